"""SMAC: Bayesian optimisation with SMAC3's random forest, as the GPTailor paper searched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorlib import Optimizer, Params, SearchSpace, Subset, Trial
from tailorlib.distributions import Categorical, ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator, seed_for
from tailorlib_strategies.optimizers.told import Key, Losses, OptionalPackage, Steps, Told, number_checked

Vector = NDArray[np.float64]
MAX_LEAVES = 4096
"""Of a tree: more than a study has trials."""
PLATEAU = 3
"""How many steps without gain end a climb: a forest is constant in many directions."""


class SMAC(Optimizer):
    """SMAC3's random forest, expected improvement, random interleaving and ParEGO (arXiv 2109.09831).

    The parts are those of SMAC's facade for hyperparameter optimisation: its random forest on log-scaled losses,
    log expected improvement below the best prediction, every fifth proposal drawn at random, and for several
    objectives its ParEGO on losses scaled to [0, 1], with new weights for each proposal (as in GPTailor, arXiv
    2506.20480). The forest is fitted at each proposal to the latest losses. SMAC's initial design, intensifier
    and files are not used: warm starts come first, schedulers decide who is scored again, and the journal is the
    record. Nothing is written to disk.

    The acquisition function is climbed by typed steps in the search space, among which swaps keep a Subset's
    size, instead of SMAC's local search. In SMAC 2.4 that one drops every neighbour that differs from its start
    in more than one entry; inactive entries are NaN, which differ from themselves, so that in a conditional space
    it never moves. And it takes its starts from a Python set, whose order differs between processes: a study
    could not be resumed. For the same reason the ConfigSpace has no conditions. Inactive parameters are at their
    defaults, and the flags and choices that make them inactive are there for the forest to split on.

    A Subset is a flag for each element: a condition "layer removed" is then one split of a tree.

    A failed trial counts as the worst one so far (:class:`~tailorlib_strategies.optimizers.told.Told`). Candidates
    that are asked for and not told yet are not proposed again, but the forest knows nothing of them.

    Args:
        starts: Number of trials before the forest is used; those that warm starts don't fill are steps from the
            best.
        challengers: Number of random candidates that a search for a proposal looks at.
        climbs: Number of candidates that it climbs from: half of them the best told ones, half those of largest
            expected improvement.
        tries: Number of neighbours that are compared for each step of a climb.
        random: Probability that a proposal is drawn at random.
        settings: Arguments of the forest: ``n_trees``, ``ratio_features``, ``min_samples_split``,
            ``min_samples_leaf``, ``max_depth``, ``bootstrapping``.

    Raises:
        RecipeError: If a number is out of range, the forest refuses the settings, or SMAC is missing.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity", "multi_objective"})

    def __init__(
        self,
        starts: int = 10,
        challengers: int = 200,
        climbs: int = 8,
        tries: int = 16,
        random: float = 0.2,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._package = OptionalPackage("SMAC", "smac", "smac")
        self.starts = number_checked("SMAC.starts", starts, 2)
        self.challengers = number_checked("SMAC.challengers", challengers, 0)
        self.climbs, self.tries = number_checked("SMAC.climbs", climbs, 1), number_checked("SMAC.tries", tries, 1)
        if not 0 <= random <= 1:
            raise RecipeError(f"SMAC.random is a probability, got {random}.")
        self.random, self.settings = random, dict(settings or {})

    def _setup(self, space: SearchSpace, seed: int) -> None:
        facade = self._package.module("smac.facade").HyperparameterOptimizationFacade
        self._vector = _Columns(space)
        self._configspace = _configspace(self._vector, self._package.module("ConfigSpace"))
        number = len(self.objectives)
        with _quietly():
            self._scenario = self._package.module("smac").Scenario(
                self._configspace,
                deterministic=True,
                objectives=list(self.objectives) if number > 1 else self.objectives[0],
                seed=seed_for(seed, "smac") % 2**31,
            )
            self._encoder = facade.get_runhistory_encoder(self._scenario)
            self._forest = self._make_forest()
            self._scalarise = (
                self._package.module("smac.multi_objective.parego").ParEGO(self._scenario) if number > 1 else None
            )
            self._history = self._package.module("smac").RunHistory(multi_objective_algorithm=self._scalarise)
            self._encoder.runhistory = self._history
            self._encoder.multi_objective_algorithm = self._scalarise
        self._told, self._pending, self._given = Told(), set[Key](), dict[Key, Losses]()
        self._vectors: dict[Key, Vector] = {}
        self._steps = Steps(space, self._told, numpy_generator(seed, "smac", "steps"))

    def _make_forest(self) -> Any:
        """Return the facade's forest, on one thread; its trees would reserve room for a million leaves each."""
        facade = {"log_y": True, "n_trees": 10, "ratio_features": 1.0, "min_samples_split": 2, "max_depth": 2**20}
        facade |= {"min_samples_leaf": 1, "bootstrapping": True, "max_leaf_nodes": MAX_LEAVES, "n_jobs": 1}
        forest = self._package.module("smac.model.random_forest.random_forest").RandomForest
        try:
            return forest(self._configspace, **{**facade, **self.settings, "seed": self._scenario.seed})
        except TypeError as error:
            raise RecipeError(
                f"SMAC.settings are arguments of SMAC's random forest, got {self.settings}: {error}. Mend "
                "or leave them out."
            ) from error

    def _tell(self, trial: Trial) -> None:
        key = self._told.note(trial, len(self.objectives))
        self._pending.discard(key)
        if key not in self._vectors:
            self._vectors[key] = self._vector(trial.params)

    def _ask(self) -> Params:
        params = self._proposal()
        params = self._steps.fresh(params, self._known)
        self._pending.add(frozenset(params.items()))
        return params

    def _known(self, key: Key) -> bool:
        return key in self._told or key in self._pending

    def _proposal(self) -> Params:
        if len(self._told.worked()) < self.starts:
            return self._steps.near_best()
        if self.rng.random() < self.random:
            return self.space.sample(self.rng)
        with _quietly():
            inputs, costs = self._data()
            self._forest.train(inputs, costs)
            return self._climb(inputs)

    # -- The model ------------------------------------------------------------------------------------------------

    def _data(self) -> tuple[Vector, Vector]:
        """Return what the forest is fitted to: inputs [trials, columns] and log-scaled costs [trials, 1]."""
        make = self._package.module("ConfigSpace").Configuration
        states = self._package.module("smac.runhistory").StatusType
        worked = self._told.worked()
        for key, losses in self._told.losses().items():
            if self._given.get(key) != losses:
                self._given[key] = losses
                self._history.add(
                    make(self._configspace, vector=self._vectors[key]),
                    cost=list(losses) if len(losses) > 1 else losses[0],
                    seed=0,
                    status=states.SUCCESS if key in worked else states.CRASHED,
                    force_update=True,
                )
        if self._scalarise is not None:
            self._scalarise.update_on_iteration_start()
        inputs, costs = self._encoder.transform()
        return inputs, costs

    def _improvement(self, inputs: Vector, least: float) -> Vector:
        """Return the expected improvement of the exponentiated cost (Hutter and others 2009), [inputs].

        As SMAC's acquisition function, which raises an error where rounding makes it negative.
        """
        mean, variance = (x[:, 0] for x in self._forest.predict_marginalized(inputs))
        deviation = np.sqrt(variance)
        v = (least - mean) / deviation
        ndtr = self._package.module("scipy.special").ndtr
        gain = np.exp(least) * ndtr(v) - np.exp(0.5 * variance + mean) * ndtr(v - deviation)
        positive: Vector = np.maximum(gain, 0.0)
        return positive

    # -- Where the improvement is largest -------------------------------------------------------------------------

    def _climb(self, inputs: Vector) -> Params:
        """Return the unknown candidate of largest expected improvement that the climbs came by."""
        predicted = self._forest.predict_marginalized(inputs)[0][:, 0]
        least = float(predicted.min())
        keys = list(self._told.losses())
        best = [
            self._told.params[keys[i]] for i in np.argsort(predicted, kind="stable")[: max(1, self.climbs // 2)]
        ]
        found = [self.space.sample(self.rng) for _ in range(self.challengers)]
        drawn = [self._vector(params) for params in found]
        gains = self._improvement(np.stack(drawn), least) if found else np.zeros(0)
        first = np.argsort(-gains, kind="stable")[: self.climbs - len(best)]
        here = best + [found[i] for i in first]
        variation = self._steps.variation
        genomes = [variation.genome(params) for params in here]
        vectors = [self._vector(params) for params in here]
        heights = self._improvement(np.stack(vectors), least)
        seen = [(float(h), p) for h, p in zip(heights, here, strict=True)]
        patience = [PLATEAU] * len(here)
        while climbing := [i for i, left in enumerate(patience) if left]:
            neighbours = [[dict(genomes[i]) for _ in range(self.tries)] for i in climbing]
            for i, around in zip(climbing, neighbours, strict=True):
                kinds = variation.kinds(here[i])
                for genome in around:
                    variation.take(genome, kinds, self.rng, here[i])
            near = [[self.space.active(genome) for genome in around] for around in neighbours]
            rows = [
                self._vector.moved(vectors[i], here[i], params)
                for i, around in zip(climbing, near, strict=True)
                for params in around
            ]
            gains = self._improvement(np.stack(rows), least)  # at once: a call is dear
            seen += [(float(g), p) for g, p in zip(gains, (p for around in near for p in around), strict=True)]
            for row, (i, around) in enumerate(zip(climbing, neighbours, strict=True)):
                own = gains[row * self.tries : (row + 1) * self.tries]
                top = int(np.argmax(own))
                patience[i] = PLATEAU if own[top] > heights[i] else patience[i] - 1
                if own[top] >= heights[i]:
                    genomes[i], heights[i], here[i] = around[top], own[top], near[row][top]
                    vectors[i] = rows[row * self.tries + top]
        seen.sort(key=lambda pair: -pair[0])
        return next((p for _, p in seen if not self._known(frozenset(p.items()))), seen[0][1])


class _Columns:
    """Candidates as ConfigSpace's vectors: flags of a Subset, numbers of choices, coordinates of the rest.

    Args:
        space: The search space, set up.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._distributions = {name: d for name, d in space.distributions().items() if d.cardinality != 1}
        self._start: dict[str, int] = {}
        self.choices: list[int | None] = []
        """How many choices each entry of the vector has; ``None`` for a coordinate."""
        for name, distribution in self._distributions.items():
            self._start[name] = len(self.choices)
            if isinstance(distribution, Subset):
                self.choices += [2] * distribution.n
            elif isinstance(distribution, Categorical):
                self.choices.append(len(distribution.choices))
            else:
                self.choices += [None] * distribution.width
        ends = [*list(self._start.values())[1:], len(self.choices)]
        self._width = {name: end - at for (name, at), end in zip(self._start.items(), ends, strict=True)}
        self._defaults = [0.0] * len(self.choices)
        for name, distribution in self._distributions.items():
            self._fill(self._defaults, name, distribution.default)

    def __call__(self, params: Params) -> Vector:
        """Return the vector of active parameters, [entries]; the others are at their defaults."""
        vector = self._defaults.copy()  # a list: an array's entries are set ten times slower
        for name, value in params.items():
            if name in self._start:
                self._fill(vector, name, value)
        return np.array(vector)

    def moved(self, vector: Vector, before: Params, after: Params) -> Vector:
        """Return the vector of ``after``, given that of ``before``: neighbours differ in few parameters."""
        moved = vector.copy()
        for name in before.keys() - after.keys():
            if name in self._start:
                at, width = self._start[name], self._width[name]
                moved[at : at + width] = self._defaults[at : at + width]
        for name, value in after.items() - before.items():
            if name in self._start:
                self._fill(moved, name, value)
        return moved

    def _fill(self, vector: list[float] | Vector, name: str, value: ParamValue) -> None:
        distribution, at = self._distributions[name], self._start[name]
        if isinstance(distribution, Subset):
            assert isinstance(value, tuple)
            vector[at : at + distribution.n] = [0.0] * distribution.n
            for i in value:
                vector[at + int(i)] = 1.0
        elif isinstance(distribution, Categorical):
            vector[at] = distribution.index(value)
        else:
            vector[at : at + distribution.width] = distribution.encode(value)


def _configspace(columns: _Columns, library: Any) -> Any:
    """Return a ConfigSpace with one hyperparameter for each entry of the vector."""
    space = library.ConfigurationSpace()
    names = [f"x{i:06}" for i in range(len(columns.choices))]  # ConfigSpace's order, which is by name, is ours
    space.add(
        [
            library.UniformFloatHyperparameter(name, 0.0, 1.0)
            if choices is None
            else library.CategoricalHyperparameter(name, range(choices))
            for name, choices in zip(names, columns.choices, strict=True)
        ]
    )
    return space


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence advice on settings that the user did not make."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
