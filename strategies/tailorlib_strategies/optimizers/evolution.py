"""Evolution: an evolution strategy whose steps know what a parameter means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tailorlib import Optimizer, Params
from tailorlib.distributions import Integer, ParamValue, Subset
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SearchSpace
from tailorlib.trial import Trial
from tailorlib_strategies.optimizers.variation import Genome, Variation, layer_of

Key = frozenset[tuple[str, ParamValue]]
Vector = NDArray[np.float64]
RATE = 0.3
"""How far a success draws the logarithms of the mean numbers of steps; a failure moves them by an eighth of it."""
LEAST_STEPS, MOST_STEPS = (0.3, 1.0), (3.0, 40.0)
"""Bounds of the mean numbers of swaps and of other steps."""


@dataclass(eq=False)
class _Individual:
    """A told candidate: all its parameters, the inactive ones too, and what is known of it."""

    genome: Genome
    loss: float
    fidelity: float
    born: int

    @property
    def rank(self) -> tuple[float, float, int]:
        """What is surer comes first, then what is better, then what is older."""
        return (-self.fidelity if self.works else 0.0, self.loss, self.born)

    @property
    def works(self) -> bool:
        """Whether it didn't fail."""
        return math.isfinite(self.loss)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A proposal: all its parameters, how many steps of each kind led to it, and the loss that it should beat."""

    genome: Genome
    steps: Vector
    beaten: float


class Evolution(Optimizer):
    """A (mu + lambda) or (mu, lambda) evolution strategy with typed mutations.

    A child takes after one parent, or after two: each layer from one of them, and of the removed layers those
    that both remove. Then it takes some steps (see
    :class:`~tailorlib_strategies.optimizers.variation.Variation`). How many is learnt, apart for the removed
    layers and for all else: the numbers that led to something better draw the mean towards them, and failures
    shrink it.

    Under a scheduler selection is in several steps, as in EvoPress (arXiv 2410.14649, section 3): a candidate
    that is told again, scored on more samples, comes before all that were scored on fewer. So the parents are
    the best of those that are known best, and a lucky score on a few samples displaces none of them.

    Args:
        parents: Number of parents, mu.
        children: Number of children of a generation, lambda.
        selection: ``plus``: the best of parents and children live on; ``comma``: of the children alone.
        starts: Number of trials before there are children; those that warm starts don't fill are drawn at random.
        crossover: Probability that a child has two parents, if there are two.
        swaps: Mean number of swaps of a child, at first.
        changes: Mean number of other steps of a child, at first.
        nudge: Probability of the other steps that they move a number, where there is one.
        spread: Probability that a step is taken over by a run of layers.
        patience: Trials without a better candidate after which the parents are forgotten, but for the best, and
            steps are as many as at first. 0 never does.

    Raises:
        RecipeError: If a number is out of range.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity"})

    def __init__(
        self,
        parents: int = 2,
        children: int = 1,
        selection: Literal["plus", "comma"] = "plus",
        starts: int = 8,
        crossover: float = 0.2,
        swaps: float = 0.7,
        changes: float = 6.0,
        nudge: float = 0.25,
        spread: float = 0.2,
        patience: int = 60,
    ) -> None:
        least = {
            "parents": (parents, 1),
            "children": (children, 1),
            "starts": (starts, 1),
            "patience": (patience, 0),
        }
        faults = [
            f"Evolution.{k} is at least {low}, got {value}." for k, (value, low) in least.items() if value < low
        ]
        faults += [
            f"Evolution.{name} is a probability, got {value}."
            for name, value in (("crossover", crossover), ("nudge", nudge), ("spread", spread))
            if not 0 <= value <= 1
        ]
        faults += [
            f"Evolution.{name} is a positive number, got {value}."
            for name, value in (("swaps", swaps), ("changes", changes))
            if not 0 < value < math.inf
        ]
        if selection not in {"plus", "comma"}:
            faults.append(f"Evolution.selection is plus or comma, got {selection!r}.")
        if selection == "comma" and children < parents:
            faults.append(f"With selection: comma, there are children >= parents={parents}, got {children}.")
        if faults:
            raise RecipeError(faults)
        self.parents, self.children, self.selection, self.starts = parents, children, selection, starts
        self.crossover, self.swaps, self.changes = crossover, swaps, changes
        self.nudge, self.spread, self.patience = nudge, spread, patience

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._variation = Variation(space, 0.0, self.nudge, self.spread)
        self._population: list[_Individual] = []
        self._told: list[_Individual] = []
        self._known: dict[Key, _Individual] = {}
        self._asked: dict[Key, _Asked] = {}
        self._best: tuple[float, float, int] | None = None
        self._warm, self._idle = False, 0
        self._forget_means()

    def _forget_means(self) -> None:
        self._means = np.log([self.swaps, self.changes])

    # -- Children -------------------------------------------------------------------------------------------------

    def _ask(self) -> Params:
        warming_up = not self._warm and len(self._known) + len(self._asked) < self.starts
        for _ in range(20):
            if warming_up or not self._population:
                asked = _Asked(self._variation.genome(self.space.sample(self.rng)), np.zeros(2), -math.inf)
            else:
                asked = self._child()
            active = self.space.active(asked.genome)
            key = frozenset(active.items())
            if key not in self._known and key not in self._asked:
                break
        self._asked[key] = asked
        return active

    def _child(self) -> _Asked:
        first = self._population[int(self.rng.integers(len(self._population)))]
        others = [one for one in self._population if one is not first]
        genome = dict(first.genome)
        crossed = bool(others) and self.rng.random() < self.crossover
        if crossed:
            genome = self._crossed(genome, others[int(self.rng.integers(len(others)))].genome)
        steps = self._mutate(genome, at_least=0 if crossed else 1)
        # what crossover brings says nothing about the steps
        return _Asked(genome, np.zeros(2) if crossed else steps, first.loss)

    def _mutate(self, genome: Genome, at_least: int) -> Vector:
        """Take steps in place, and return how many of each kind, [swaps, changes]."""
        kinds = self._variation.kinds(self.space.active(genome))
        possible = np.array([bool(kinds["swap"]), bool(kinds["nudge"] or kinds["choice"])])
        drawn = self.rng.poisson(np.exp(self._means + 0.5 * self.rng.standard_normal(2))) * possible
        if drawn.sum() < at_least and possible.any():
            drawn[self.rng.choice(np.flatnonzero(possible))] = 1
        for kind, number in zip(("swap", "change"), drawn, strict=True):
            for _ in range(int(number)):
                self._step(genome, kind)
        taken: Vector = drawn.astype(np.float64)
        return taken

    def _step(self, genome: Genome, kind: str) -> None:
        kinds = self._variation.kinds(self.space.active(genome))
        if kind == "change":
            kind = "nudge" if kinds["nudge"] and self.rng.random() < self.nudge else "choice"
            kind = kind if kinds[kind] else "nudge"
        names = kinds[kind]
        if names:
            self._variation.change(genome, names[int(self.rng.integers(len(names)))], self.rng)

    def _crossed(self, one: Genome, other: Genome) -> Genome:
        """Return a child of two: subsets meet in the middle, and each layer comes whole from one of them."""
        from_other = {index: self.rng.random() < 0.5 for index in dict.fromkeys(map(layer_of, one))}
        child: Genome = {}
        for name, value in one.items():
            if isinstance(self._variation.distributions[name], Subset):
                child[name] = self._between(value, other[name])
            else:
                child[name] = other[name] if from_other[layer_of(name)] else value
        return child

    def _between(self, one: ParamValue, other: ParamValue) -> tuple[int, ...]:
        """Return a subset with all that two have in common, and as much of either as there is room for."""
        assert isinstance(one, tuple) and isinstance(other, tuple)
        both = {int(i) for i in one} & {int(i) for i in other}
        either = sorted(({int(i) for i in one} | {int(i) for i in other}) - both)
        size = Integer(*sorted((len(one), len(other)))).sample(self.rng)
        drawn = self.rng.choice(len(either), size=size - len(both), replace=False) if either else ()
        return tuple(sorted(both | {either[int(i)] for i in drawn}))

    # -- Selection ------------------------------------------------------------------------------------------------

    def _tell(self, trial: Trial) -> None:
        key = frozenset(trial.params.items())
        asked, known = self._asked.pop(key, None), self._known.get(key)
        self._warm = self._warm or trial.origin != "optimizer"
        if known is None:
            genome = asked.genome if asked else self._variation.genome(trial.params)
            known = self._known[key] = _Individual(genome, trial.loss, trial.fidelity, len(self._known))
            if asked:
                self._adapt(asked.steps, trial.loss < asked.beaten)
        elif (known.loss, known.fidelity) == (trial.loss, trial.fidelity):
            return
        else:
            known.loss, known.fidelity = trial.loss, trial.fidelity
        if known not in self._told:
            self._told.append(known)
        if len(self._told) >= self.children or not self._population:
            self._select()

    def _adapt(self, steps: Vector, success: bool) -> None:
        """Draw the mean numbers of steps towards those that led to something better; shrink them otherwise."""
        pull = np.maximum(np.log(np.maximum(steps, 0.5)) - self._means, 0.3)
        moved = self._means + np.where(steps > 0, RATE * pull if success else -RATE / 8, 0.0)
        self._means = np.clip(moved, np.log(LEAST_STEPS), np.log(MOST_STEPS))

    def _select(self) -> None:
        told = [one for one in self._told if one.works]
        self._idle += len(self._told)
        self._told = []
        older = [one for one in self._population if one not in told and one.works]
        pool = told if self.selection == "comma" and len(told) >= self.parents else [*older, *told]
        self._population = sorted(pool, key=lambda one: one.rank)[: self.parents]
        if not self._population:
            return
        best = self._population[0]
        if self._best is None or best.rank < self._best:
            self._best, self._idle = best.rank, 0
        elif self.patience and self._idle >= self.patience:
            self._population, self._idle = [min(self._known.values(), key=lambda one: one.rank)], 0
            self._forget_means()
