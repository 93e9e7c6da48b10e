"""Nevergrad: every optimizer of the nevergrad library, by name."""

from __future__ import annotations

import math
import random
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nevergrad
import numpy as np

from tailorlib import Optimizer, Params, SearchSpace, Trial
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError, did_you_mean
from tailorlib.seeding import numpy_generator, seed_for
from tailorlib_strategies.optimizers.encoding import NormalEncoding

Key = frozenset[tuple[str, ParamValue]]


class Nevergrad(Optimizer):
    """A nevergrad optimizer on the normal encoding of the space.

    What the search has seen is never proposed again while there is anything new in reach: a proposal that decodes
    to a known candidate is told its loss at once, and another one is asked for.

    Args:
        optimizer: Any name of ``nevergrad.optimizers.registry``. The default, a (1+1) search whose mutations start
            bold and shrink as 0.4 ln(n) / n (n the number of asks), found the most among those tried on a
            synthetic landscape with 48 and with 150 trials (``tests/benchmarks/optimizers_synthetic.py``).
        budget: Number of trials, for optimizers that plan with it.
        retries: How often a proposal that is already known is replaced.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity"})

    def __init__(
        self, optimizer: str = "DiscreteLenglerFourthOnePlusOne", budget: int | None = None, retries: int = 50
    ) -> None:
        if optimizer not in nevergrad.optimizers.registry:
            close = did_you_mean(optimizer, nevergrad.optimizers.registry)
            if " Known:" in close:  # some 800 names are no help
                close = " See sorted(nevergrad.optimizers.registry)."
            raise RecipeError(f"Nevergrad.optimizer names an optimizer of nevergrad, got {optimizer!r}.{close}")
        if budget is not None and budget < 1:
            raise RecipeError(f"Nevergrad.budget is a positive number of trials, got {budget}. Leave it out.")
        self.optimizer, self.budget, self.retries = optimizer, budget, retries

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._encoding = NormalEncoding(space, numpy_generator(seed, "nevergrad", "encoding"))
        self._global = GlobalRandomness(seed_for(seed, "nevergrad", "global") % 2**32)
        self._pending: defaultdict[Key, deque[Any]] = defaultdict(deque)
        self._known: dict[Key, float] = {}
        self._points: dict[Key, Any] = {}
        self._unpriced: list[tuple[Any, float]] = []
        with self._global.private():
            self._search = self._make(seed)
        with GlobalRandomness(0).private(), self._plainly():
            self._make(seed).ask()  # a twin finds out what is only said at the first ask

    def _make(self, seed: int) -> Any:
        parametrization = nevergrad.p.Array(init=np.zeros(self._encoding.dimension))
        parametrization.random_state = np.random.RandomState(seed_for(seed, "nevergrad") % 2**32)
        return nevergrad.optimizers.registry[self.optimizer](parametrization, budget=self.budget)

    def _ask(self) -> Params:
        for attempt in range(self.retries + 1):
            with self._global.private():
                candidate = self._search.ask()
            params = self.space.active(self._encoding.decode(candidate.value))
            key = frozenset(params.items())
            if (key not in self._known and not self._pending.get(key)) or attempt == self.retries:
                break
            if key in self._known:
                self._learn(candidate, self._known[key])
        self._pending[key].append(candidate)
        return params

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:  # how nevergrad says that an optimizer plans with a budget
            if self.budget is not None:
                raise
            raise RecipeError(
                f"Nevergrad's {self.optimizer} plans with the number of trials, got no budget. Set budget to "
                "study.trials, or take another optimizer."
            ) from error

    def _tell(self, trial: Trial) -> None:
        key = frozenset(trial.params.items())
        before, self._known[key] = self._known.get(key), trial.loss
        queue = self._pending.get(key)
        if before is not None and before != trial.loss:
            self._correct(self._points[key], trial.loss)
        if queue or before is None:
            self._points[key] = queue.popleft() if queue else self._injected(trial.params)
            self._learn(self._points[key], trial.loss)

    def _correct(self, candidate: Any, loss: float) -> None:
        """Put a candidate's later loss in place of the earlier one.

        Telling it again would not do: nevergrad takes the mean of both, and trusts what was told twice so much
        more that it becomes the best, whatever its loss.
        """
        waiting = [at for at, (one, _) in enumerate(self._unpriced) if one is candidate]
        for at in waiting:
            self._unpriced[at] = candidate, loss
        if waiting:
            return
        loss = min(loss, self._penalty())
        candidate.loss = loss
        value = self._search.archive.get(candidate.get_standardized_data(reference=self._search.parametrization))
        if value is None:
            return  # pruned: too bad to be remembered
        value.mean = value._minimum = loss
        value.square = loss * loss
        values = list(self._search.archive.values())
        for name in self._search.current_bests:
            found = [(one.get_estimation(name), at) for at, one in enumerate(values)]
            self._search.current_bests[name] = values[min(found)[1]]

    def _learn(self, candidate: Any, loss: float) -> None:
        self._unpriced.append((candidate, loss))
        if not any(map(math.isfinite, self._known.values())):
            return  # what a failure costs is only known once something has worked
        penalty = self._penalty()
        with self._global.private():
            for waiting, its_loss in self._unpriced:
                self._search.tell(waiting, min(its_loss, penalty))
        self._unpriced.clear()

    def _penalty(self) -> float:
        """Return what a failure costs: nevergrad can't take infinity."""
        finite = [known for known in self._known.values() if math.isfinite(known)]
        return max(finite) + (max(finite) - min(finite)) + 1.0 if finite else 1.0

    def _injected(self, params: Params) -> Any:
        # asking for a suggestion, not spawning a child: some optimizers spend their first ask on the origin
        with self._global.private():
            self._search.suggest(np.array(self._encoding.encode(params)))
            return self._search.ask()


class GlobalRandomness:
    """A private state of Python's and NumPy's global generators, which parts of nevergrad draw from.

    Args:
        seed: A 32-bit seed.
    """

    def __init__(self, seed: int) -> None:
        self._states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

    @contextmanager
    def private(self) -> Iterator[None]:
        """Put the private state in place of the global one, and keep where it got to."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])  # noqa: NPY002
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice on settings that the user did not make
                yield
        finally:
            self._states = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
