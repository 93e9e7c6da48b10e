"""Optuna: the samplers of the Optuna library, by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tailorlib import Distribution, Optimizer, Params, SearchSpace, Subset, Trial
from tailorlib.distributions import Categorical, Float, Integer, ParamValue
from tailorlib.exceptions import RecipeError, did_you_mean
from tailorlib.seeding import numpy_generator, seed_for
from tailorlib_strategies.optimizers.told import Key, OptionalPackage, Steps, Told, number_checked

SAMPLERS = ("TPE", "GP", "NSGAII", "NSGAIII", "Random")
_GROWING = frozenset({"TPE", "Random"})
"""Samplers that know of conditional parameters; the others see every parameter in every trial."""
_POPULATION = frozenset({"NSGAII", "NSGAIII"})
_RELATIVE = "relative_params"
"""Part of the names of what a sampler notes about its draw for other processes."""


@dataclass
class _Record:
    """A candidate as Optuna keeps it: its values, losses (``None`` while it runs), and the sampler's notes."""

    values: dict[str, Any]
    losses: tuple[float, ...] | None
    notes: dict[str, Any] = field(default_factory=dict)


class _Piece:
    """One parameter as Optuna's values.

    A Subset is a key for each element, and one more coordinate for its size if it varies; the others are one
    value, choices by their numbers.

    Args:
        name: The parameter's name.
        distribution: The parameter's distribution.
        optuna: The library.
        ties: Breaks ties between keys that are flags, 0 or 1; ``None`` for keys that are real numbers in [0, 1].
    """

    def __init__(
        self, name: str, distribution: Distribution, optuna: Any, ties: np.random.Generator | None = None
    ) -> None:
        self.distribution, self._ties, kinds = distribution, ties, optuna.distributions
        if isinstance(distribution, Subset):
            key = kinds.FloatDistribution(0.0, 1.0) if ties is None else kinds.IntDistribution(0, 1)
            self.inner = {f"{name}[{i}]": key for i in range(distribution.n)}
            if distribution.width > distribution.n:
                self.inner[f"{name}[size]"] = kinds.FloatDistribution(0.0, 1.0)
        elif isinstance(distribution, Float):
            self.inner = {name: kinds.FloatDistribution(distribution.low, distribution.high, distribution.log)}
        elif isinstance(distribution, Integer):
            self.inner = {name: kinds.IntDistribution(distribution.low, distribution.high)}
        elif isinstance(distribution, Categorical):
            self.inner = {name: kinds.CategoricalDistribution(range(len(distribution.choices)))}
        else:
            raise RecipeError(
                f"Optuna takes Float, Integer, Categorical and Subset parameters, got {name}, a "
                f"{type(distribution).__name__}. Take another optimizer."
            )

    def encode(self, value: ParamValue) -> dict[str, Any]:
        """Return Optuna's values of the parameter's."""
        distribution = self.distribution
        if not isinstance(distribution, Subset):
            (name,) = self.inner
            return {name: distribution.index(value) if isinstance(distribution, Categorical) else value}
        found = list(distribution.encode(value))
        if self._ties is not None:
            found[: distribution.n] = [round(key) for key in found[: distribution.n]]
        return dict(zip(self.inner, found, strict=True))

    def suggest(self, trial: Any) -> ParamValue:
        """Let a trial of Optuna choose the parameter's value."""
        distribution = self.distribution
        if isinstance(distribution, Subset):
            return distribution.decode(self._keys(trial, distribution.n))
        (name,) = self.inner
        if isinstance(distribution, Float):
            return float(trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log))
        if isinstance(distribution, Integer):
            return int(trial.suggest_int(name, distribution.low, distribution.high))
        assert isinstance(distribution, Categorical)
        return distribution.choices[int(trial.suggest_categorical(name, range(len(distribution.choices))))]

    def _keys(self, trial: Any, number: int) -> list[float]:
        """Let a trial choose the coordinates of a Subset; of equal flags those that are drawn larger count."""
        names = list(self.inner)
        size = [float(trial.suggest_float(name, 0.0, 1.0)) for name in names[number:]]
        if self._ties is None:
            return [float(trial.suggest_float(name, 0.0, 1.0)) for name in names[:number]] + size
        flags = np.array([trial.suggest_int(name, 0, 1) for name in names[:number]])
        return [float(key) for key in (flags + self._ties.random(number)) / 2] + size


class Optuna(Optimizer):
    """A sampler of Optuna (https://optuna.org, arXiv 1907.10902) that is asked and told in memory.

    TPE and Random are given the active parameters only, so that TPE's groups are the parameters that are active
    together. The Gaussian process and the genetic algorithms model what every trial has: they get all
    parameters, the inactive ones at their defaults. With 240 parameters and 48 trials a proposal took TPE
    0.2 s; the Gaussian process took 3 s of one core after 10 trials.

    A Subset is a key for each element, and the elements of the largest keys are its members: told members have
    the key 0.75, the others 0.25. A varying size is one more coordinate. Measured with TPE on a landscape of 30
    layers, 48 trials from one decent start (``tests/benchmarks/optimizers_synthetic.py``; gain in nats, mean and
    standard error of 8 families): these keys 0.051 ± 0.025; ordered picks 0.020 ± 0.009; keys at random places of
    the right order 0.018 ± 0.007; a flag for each layer, mended to the size, 0.008 ± 0.005. For the Gaussian
    process keys are flags, mended at random: real keys have many places for one subset, and it went on proposing
    what it knew (mean regret of 3 seeds on an additive toy of 12 layers after 30 trials: 1.2, with flags 0.7, at
    random 1.5).

    A failed trial counts as the worst one so far (:class:`~tailorlib_strategies.optimizers.told.Told`): Optuna's
    state FAIL would be ignored, and the same region tried again. When a candidate is told again, or the worst
    changes, the study is rebuilt at the next ask. Candidates that are asked for and not told yet are running
    trials, which TPE (constant liar) and the Gaussian process take into account; none is proposed twice.

    Args:
        sampler: ``TPE`` (multivariate, with groups), ``GP``, ``NSGAII``, ``NSGAIII`` or ``Random``. All of them
            take several objectives.
        settings: Further arguments of the sampler's class, such as ``n_ei_candidates`` or ``population_size``.
        starts: Number of trials before TPE, the Gaussian process or a genetic algorithm proposes; those that
            warm starts don't fill are steps from the best. In so many dimensions a random start is far off.
        retries: How often the sampler is asked again for a candidate that is known already; after that a step is
            taken from it. The Gaussian process is not asked again, since that costs another fit.

    Raises:
        RecipeError: If there is no such sampler, the sampler refuses the settings, or Optuna is missing.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity", "multi_objective"})

    def __init__(
        self,
        sampler: str = "TPE",
        settings: dict[str, Any] | None = None,
        starts: int = 10,
        retries: int = 4,
    ) -> None:
        if sampler not in SAMPLERS:
            raise RecipeError(
                f"Optuna.sampler is one of {', '.join(SAMPLERS)}, got {sampler!r}."
                + did_you_mean(sampler, SAMPLERS)
            )
        self._package = OptionalPackage("Optuna", "optuna", "bayes")
        self.sampler, self.settings = sampler, dict(settings or {})
        self.starts = number_checked("Optuna.starts", starts, 0)
        self.retries = number_checked("Optuna.retries", retries, 0)

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._optuna = self._package.module("optuna")
        varying = {name: d for name, d in space.distributions().items() if d.cardinality != 1}
        ties = numpy_generator(seed, "optuna", "ties") if self.sampler == "GP" else None
        self._pieces = {name: _Piece(name, d, self._optuna, ties) for name, d in varying.items()}
        self._distributions = {inner: d for piece in self._pieces.values() for inner, d in piece.inner.items()}
        self._order = {name: place for place, name in enumerate(self._pieces)}
        self._told, self._records = Told(), dict[Key, _Record]()
        self._stale = False
        self._steps = Steps(space, self._told, numpy_generator(seed, "optuna", "steps"))
        with self._quietly():
            self._sampler = self._make_sampler(seed_for(seed, "optuna", self.sampler) % 2**32)
            self._rebuild()

    def _make_sampler(self, seed: int) -> Any:
        defaults: dict[str, dict[str, Any]] = {
            "TPE": {"multivariate": True, "group": True, "constant_liar": True},
            "NSGAII": {"population_size": 20},
            "NSGAIII": {"population_size": 20},
        }
        first = defaults.get(self.sampler, {})
        if self.sampler in ("TPE", "GP"):
            first["n_startup_trials"] = max(1, self.starts)
        try:
            return getattr(self._optuna.samplers, f"{self.sampler}Sampler")(
                **{"seed": seed, **first, **self.settings}
            )
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"Optuna.settings are arguments of optuna.samplers.{self.sampler}Sampler, got {self.settings}: "
                f"{error}. Mend or leave them out."
            ) from error

    # -- Asking ---------------------------------------------------------------------------------------------------

    def _ask(self) -> Params:
        with self._quietly():
            if self._stale:
                self._rebuild()
            if self.sampler != "Random" and 0 < len(self._told.worked()) < self.starts:
                params, notes = self._steps.near_best(), self._injected()
            else:
                for _ in range(1 if self.sampler == "GP" else self.retries + 1):
                    params, notes = self._draw()
                    if not self._known(frozenset(params.items())):
                        break
            params = self._steps.fresh(params, self._known)
            key = frozenset(params.items())
            if not self._known(key):
                self._records[key] = _Record(self._values(params), None, notes)
                self._add(key)
        return params

    def _known(self, key: Key) -> bool:
        return key in self._records or key in self._told

    def _draw(self) -> tuple[Params, dict[str, Any]]:
        """Let the sampler draw a candidate; return it, and what the sampler notes about it."""
        trial = self._study.ask()
        params = self._suggested(trial)
        drawn = self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # it comes back as it is encoded
        self._trials += 1
        return params, {k: v for k, v in drawn.system_attrs.items() if _RELATIVE not in k}

    def _suggested(self, trial: Any) -> Params:
        """Let the sampler choose parameters: each as soon as those chosen before it make it active."""
        full = dict(self.space.complete({}))
        if self.sampler not in _GROWING:
            full |= {name: piece.suggest(trial) for name, piece in self._pieces.items()}
            return self.space.active(full)
        waiting = self._pieces.keys() & self.space.active(full).keys()
        done: set[str] = set()
        while waiting:
            name = min(waiting, key=self._order.__getitem__)
            full[name] = self._pieces[name].suggest(trial)
            done.add(name)
            if not isinstance(self._pieces[name].distribution, Float):
                waiting = self._pieces.keys() & self.space.active(full).keys() - done
            else:
                waiting = waiting - {name}
        return self.space.active(full)

    # -- Telling --------------------------------------------------------------------------------------------------

    def _tell(self, trial: Trial) -> None:
        before = self._told.losses()
        self._told.note(trial, len(self.objectives))
        with self._quietly():
            for other, losses in self._told.losses().items():
                if before.get(other) != losses:
                    self._learn(other, losses)

    def _learn(self, key: Key, losses: tuple[float, ...]) -> None:
        record = self._records.get(key)
        if record is None:
            self._records[key] = _Record(self._values(self._told.params[key]), losses, self._injected())
            if not self._stale:
                self._add(key)
            return
        if record.losses is None and not self._stale:
            self._study.tell(self._numbers[key], list(losses))
        else:
            self._stale = True
        record.losses = losses

    def _injected(self) -> dict[str, Any]:
        """Return what the sampler would note about a candidate of its own: a genetic one, the generation."""
        return self._draw()[1] if self.sampler in _POPULATION else {}

    # -- The study ------------------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Make a study of all records; the sampler goes on, with its random numbers."""
        self._study = self._optuna.create_study(
            sampler=self._sampler, directions=["minimize"] * len(self.objectives)
        )
        self._trials, self._numbers, self._stale = 0, dict[Key, int](), False
        for key in self._records:
            self._add(key)

    def _add(self, key: Key) -> None:
        record, states = self._records[key], self._optuna.trial.TrialState
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=states.RUNNING if record.losses is None else states.COMPLETE,
                values=None if record.losses is None else list(record.losses),
                params=record.values,
                distributions={name: self._distributions[name] for name in record.values},
                system_attrs=record.notes,
            )
        )
        self._numbers[key] = self._trials
        self._trials += 1

    def _values(self, params: Params) -> dict[str, Any]:
        """Return Optuna's values of a candidate's parameters: the active ones, or all."""
        full = params if self.sampler in _GROWING else self.space.complete(params)
        return {
            inner: value
            for name, piece in self._pieces.items()
            if name in full
            for inner, value in piece.encode(full[name]).items()
        }

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Silence Optuna while it works for us, and leave its settings to others as they were."""
        logging = self._optuna.logging
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of arguments that are experimental, and of tied values
                yield
        finally:
            logging.set_verbosity(verbosity)
