"""Variation: steps from one assignment to a near one, which know what a parameter means."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from tailorlib import Params
from tailorlib.distributions import Distribution, Float, ParamValue, Subset
from tailorlib.search_space import SearchSpace

_INDEXED = re.compile(r"^(?P<kind>.*?)(?P<index>\d+)(?P<rest>\..+)$")
Genome = dict[str, ParamValue]
"""All parameters of a candidate, the inactive ones too."""


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
    """

    def __init__(self, space: SearchSpace, swap: float, nudge: float) -> None:
        self.space, self.swap, self.nudge = space, swap, nudge
        self.distributions = space.distributions()

    def step(self, genome: Genome, rng: np.random.Generator) -> None:
        """Change one parameter in place."""
        active = [n for n in self.space.active(genome) if self.distributions[n].cardinality != 1]
        kinds: dict[str, list[str]] = {"swap": [], "nudge": [], "choice": []}
        for name in active:
            kinds[_kind(self.distributions[name])].append(name)
        names = kinds[self._draw(kinds, rng)]
        if names:
            self._change(genome, names[int(rng.integers(len(names)))], rng)

    def genome(self, params: Params) -> Genome:
        """Return all parameters of a candidate of which the active ones are known."""
        found = dict(self.space.complete(params))
        self._inherit(found, set(params))
        return found

    def _draw(self, kinds: dict[str, list[str]], rng: np.random.Generator) -> str:
        if kinds["swap"] and (not (kinds["nudge"] or kinds["choice"]) or rng.random() < self.swap):
            return "swap"
        if kinds["nudge"] and (not kinds["choice"] or rng.random() < self.nudge):
            return "nudge"
        return "choice"

    def _change(self, genome: Genome, name: str, rng: np.random.Generator) -> None:
        before = set(self.space.active(genome))
        genome[name] = self.distributions[name].mutate(genome[name], rng)
        if isinstance(self.distributions[name], Subset):
            self._inherit(genome, before)

    def _inherit(self, genome: Genome, known: Collection[str]) -> None:
        there = sorted({index for name in known if (index := layer_of(name)) is not None})
        for name in self.distributions:
            index = layer_of(name)
            if index is None or index in there or not there:
                continue
            nearest = min(there, key=lambda i: (abs(i - index), i))
            twin = _INDEXED.sub(rf"\g<kind>{nearest}\g<rest>", name)
            if self.distributions.get(twin) == self.distributions[name]:
                genome[name] = genome[twin]


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to, such as 3 of ``layer.3.operation``."""
    found = _INDEXED.match(name)
    return int(found["index"]) if found else None


def _kind(distribution: Distribution) -> str:
    if isinstance(distribution, Subset):
        return "swap"
    return "nudge" if isinstance(distribution, Float) else "choice"
