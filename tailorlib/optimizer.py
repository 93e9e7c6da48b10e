"""Optimizer: who proposes the next candidate.

A new optimizer is one class with two methods::

    class Greedy(Optimizer):
        def _ask(self):
            return self.space.sample(self.rng)

        def _tell(self, trial):
            ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from tailorlib.distributions import Params, plain_value
from tailorlib.exceptions import PluginError, listed, shown
from tailorlib.registry import Registry
from tailorlib.search_space import SearchSpace
from tailorlib.seeding import numpy_generator
from tailorlib.trial import Trial

CAPABILITIES = {
    "conditional": "parameters that are inactive at times",
    "subset": "parameters that are a subset of layers",
    "batch": "several asks before a tell",
    "fidelity": "the same candidate told again, scored on more samples",
    "multi_objective": "more than one objective",
}
"""What an optimizer can declare to handle."""


class Optimizer(ABC):
    """Proposes assignments (ask) and learns from evaluated ones (tell).

    ``__init__`` takes recipe hyperparameters only; what is known at run time comes with :meth:`setup`. Given
    the same seed and the same sequence of asks and tells an optimizer proposes the same candidates: a study
    resumes by replaying them.
    """

    supports: frozenset[str] = frozenset({"conditional", "subset"})
    """Declared capabilities, some of :data:`CAPABILITIES`; a recipe that needs another one is refused."""

    space: SearchSpace
    """The search space, after :meth:`setup`."""
    objectives: tuple[str, ...]
    """Names of the objectives, after :meth:`setup`; a trial's ``losses`` are in their order."""
    rng: np.random.Generator
    """The optimizer's own random numbers, after :meth:`setup`."""

    def setup(self, space: SearchSpace, seed: int, objectives: tuple[str, ...] = ("fitness",)) -> None:
        """Start a study.

        Args:
            space: The search space, already set up with its family's layout.
            seed: The study's seed.
            objectives: Names of the objectives.
        """
        self.space, self.objectives = space, objectives
        self.rng = numpy_generator(seed, "optimizer", type(self).__name__)
        self._setup(space, seed)

    def ask(self) -> Params:
        """Return the active parameters of the next candidate.

        Raises:
            PluginError: If the subclass proposes something outside the search space, or leaves an active parameter
                out.
        """
        if not hasattr(self, "space"):
            raise PluginError(f"{type(self).__name__}.ask is called before setup(space, seed).")
        return self._checked(self._ask())

    def tell(self, trial: Trial) -> None:
        """Learn from a trial; it may be replayed, proposed by someone else, or failed (infinite loss).

        Under a scheduler the same candidate is told again when it has been scored on more samples: the later
        trial counts. Its fitness is then an estimate of what all samples would give, so that trials of unlike
        ``fidelity`` compare.
        """
        self.space.check(trial.params)
        self._tell(trial)

    def _checked(self, proposal: object) -> Params:
        """Return the active part of a proposal; raise what is wrong with it, before defaults hide it."""
        name = f"{type(self).__name__}._ask"
        if not isinstance(proposal, Mapping):
            raise PluginError(
                f"{name} gives a mapping of parameters, such as self.space.sample(self.rng), got "
                f"{shown(proposal)}."
            )
        plain: dict[str, Any] = {key: plain_value(value) for key, value in proposal.items()}
        if faults := self.space.faults(plain):
            raise PluginError(f"{name} proposes something outside of the search space: {'; '.join(faults[:5])}.")
        params = self.space.active(self.space.complete(plain))
        if missing := [key for key in params if key not in plain]:
            raise PluginError(
                f"{name} gives every active parameter, and left out {listed(missing, 5)}. self.space.sample(rng) "
                "and self.space.complete(params) give all of them."
            )
        return params

    def _setup(self, space: SearchSpace, seed: int) -> None:
        """Prepare for the space; nothing by default."""

    @abstractmethod
    def _ask(self) -> Params:
        """Propose an assignment; only inactive parameters may be left out."""

    def _tell(self, trial: Trial) -> None:
        """Learn from a trial; nothing by default."""


OPTIMIZERS: Registry[Optimizer] = Registry(Optimizer, "tailorlib.optimizers")
