"""Variation: steps from one assignment to a near one, which know what a parameter means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np

from tailorlib import Params
from tailorlib.distributions import Distribution, Float, ParamValue, Subset
from tailorlib.search_space import SearchSpace

_INDEXED = re.compile(r"^(?P<kind>.*?)(?P<index>\d+)(?P<rest>\..+)$")
Genome = dict[str, ParamValue]
"""All parameters of a candidate, the inactive ones too."""
Arm = Literal["layers", "plans"]
"""Which layers there are, and what each is made of."""


class Variation:
    """Typed mutations in a search space.

    A *swap* exchanges removed layers for kept ones, so that the number of layers stays exact (EvoPress, arXiv
    2410.14649, section 3); a *choice* changes a source or an operation of one layer; a *nudge* moves one number.
    The kind is drawn first and the parameter then, so that one subset of layers is not drowned by a hundred
    parameters of the kept ones. A layer that comes back takes its plan from the nearest layer that is there.

    Args:
        space: The search space, set up.
        swap: Probability that a step is a swap, where the space has a subset to swap in.
        nudge: Probability of the other steps that they move a number, where there is one.
        spread: Probability that what a layer's parameter becomes is taken over by a run of layers beside it: what
            is good in one layer is often good in its neighbours.
    """

    def __init__(self, space: SearchSpace, swap: float, nudge: float, spread: float = 0.0) -> None:
        self.space, self.swap, self.nudge, self.spread = space, swap, nudge, spread
        self.distributions = space.distributions()
        self._kinds = {n: _kind(d) for n, d in self.distributions.items() if d.cardinality != 1}
        self._twins: defaultdict[tuple[str, str, Distribution], dict[int, str]] = defaultdict(dict)
        self._places: dict[str, tuple[int, dict[int, str]]] = {}
        self._layers: defaultdict[int, list[tuple[str, dict[int, str]]]] = defaultdict(list)
        for name, distribution in self.distributions.items():
            found = _INDEXED.match(name)
            if found:
                twins = self._twins[found["kind"], found["rest"], distribution]
                twins[int(found["index"])] = name
                self._places[name] = int(found["index"]), twins
                self._layers[int(found["index"])].append((name, twins))

    def step(self, genome: Genome, rng: np.random.Generator, active: Params | None = None) -> None:
        """Change one parameter in place, or one in a run of layers.

        Args:
            genome: What is changed.
            rng: Draws the step.
            active: The active parameters, if they are known.
        """
        active = self.space.active(genome) if active is None else active
        self.take(genome, self.kinds(active), rng, active)

    def take(self, genome: Genome, kinds: dict[str, list[str]], rng: np.random.Generator, active: Params) -> None:
        """Change one parameter of those that can change, in place, or one in a run of layers.

        Args:
            genome: What is changed.
            kinds: The names that :meth:`kinds` gives of its active parameters.
            rng: Draws the step.
            active: Its active parameters.
        """
        names = kinds[self.draw(kinds, rng)]
        if names:
            self.change(genome, names[int(rng.integers(len(names)))], rng, active)

    def kinds(self, active: Iterable[str], arm: Arm | None = None) -> dict[str, list[str]]:
        """Return the names of active parameters that can change: those of swaps, nudges and choices.

        Args:
            active: Names of the active parameters.
            arm: Leave only swaps, or all but swaps.
        """
        kinds: dict[str, list[str]] = {"swap": [], "nudge": [], "choice": []}
        for name in active:
            kind = self._kinds.get(name)
            if kind is not None and arm in (None, "layers" if kind == "swap" else "plans"):
                kinds[kind].append(name)
        return kinds

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The halves of the search that the space has: which layers there are, and what each is made of."""
        kinds = set(self._kinds.values())
        halves: tuple[tuple[Arm, bool], ...] = (("layers", "swap" in kinds), ("plans", bool(kinds - {"swap"})))
        return tuple(arm for arm, there in halves if there)

    def change(
        self, genome: Genome, name: str, rng: np.random.Generator, active: Collection[str] | None = None
    ) -> None:
        """Change a parameter in place, given the names of the active ones if they are known."""
        if self._kinds.get(name) == "swap":
            before = set(self.space.active(genome) if active is None else active)
            genome[name] = self.distributions[name].mutate(genome[name], rng)
            self._inherit(genome, before)
            return
        genome.update(self.changes(genome, name, rng))

    def changes(self, genome: Genome, name: str, rng: np.random.Generator) -> Genome:
        """Return what a choice or a nudge makes of a parameter, at times of that of a run of layers."""
        value = self.distributions[name].mutate(genome[name], rng)
        if not self.spread or name not in self._places or rng.random() >= self.spread:
            return {name: value}
        index, twins = self._places[name]
        below, above = (int(x) for x in rng.integers(0, len(twins), 2) * rng.integers(0, 2, 2))
        return {twin: value for i, twin in twins.items() if index - below <= i <= index + above}

    def genome(self, params: Params) -> Genome:
        """Return all parameters of a candidate of which the active ones are known."""
        found = dict(self.space.complete(params))
        self._inherit(found, set(params))
        return found

    def draw(self, kinds: dict[str, list[str]], rng: np.random.Generator) -> str:
        """Return the kind of a step."""
        if kinds["swap"] and (not (kinds["nudge"] or kinds["choice"]) or rng.random() < self.swap):
            return "swap"
        if kinds["nudge"] and (not kinds["choice"] or rng.random() < self.nudge):
            return "nudge"
        return "choice"

    def take_over(self, genome: Genome, index: int, there: Collection[int]) -> None:
        """Give a layer the plan of the nearest of those that are there, in place."""
        if there:
            nearest = min(there, key=lambda i: (abs(i - index), i))
            genome.update({n: genome[twins[nearest]] for n, twins in self._layers[index] if nearest in twins})

    def _inherit(self, genome: Genome, known: Collection[str]) -> None:
        there = {self._places[name][0] for name in known if name in self._places}
        for index in self._layers:
            if index not in there:
                self.take_over(genome, index, there)


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to, such as 3 of ``layer.3.operation``."""
    found = _INDEXED.match(name)
    return int(found["index"]) if found else None


def stem_of(name: str) -> str:
    """Return a parameter's name without its layer, such as ``layer.#.operation``: the same for all layers."""
    return _INDEXED.sub(r"\g<kind>#\g<rest>", name)


def _kind(distribution: Distribution) -> str:
    if isinstance(distribution, Subset):
        return "swap"
    return "nudge" if isinstance(distribution, Float) else "choice"
