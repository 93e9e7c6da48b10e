"""Neighbourhood: the typed steps around a candidate, valued without asking the search space each time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tailorlib.distributions import Float, ParamValue, Subset
from tailorlib_strategies.optimizers.features import Features, Items, Valuation
from tailorlib_strategies.optimizers.variation import Arm, Genome, Variation

PROBES = 48
"""Random candidates from which it is learnt which layer a member of a subset removes."""


@dataclass(frozen=True)
class _Place:
    """A candidate: all its parameters, and the active ones by layer."""

    genome: Genome
    general: Items
    layers: Mapping[int, Items]


class Neighbourhood:
    """Goes downhill by typed steps.

    What of a layer is active is taken to depend on the layer's own choices, and whether it is there on the
    subsets. That is learnt from the space by trying, so a step costs microseconds. Where a space is otherwise,
    values are a little off, or the space is asked; a proposal is canonical in any case, since the optimizer asks
    the space for the active part of what comes out.

    Args:
        variation: The steps.
        features: What is valued.
        rng: Draws the candidates to learn from.
    """

    def __init__(self, variation: Variation, features: Features, rng: np.random.Generator) -> None:
        self._variation, self._features, self._space = variation, features, variation.space
        self._names: dict[int, list[str]] = {}
        for name, index in features.layer.items():
            if index is not None:
                self._names.setdefault(index, []).append(name)
        numbers = {name for name, d in variation.distributions.items() if isinstance(d, Float)}
        self._choices = {i: [n for n in names if n not in numbers] for i, names in self._names.items()}
        self._active: dict[tuple[int, tuple[ParamValue, ...]], list[str]] = {}
        self._removes = self._learn(rng)

    def descend(
        self,
        genome: Genome,
        valuation: Valuation,
        steps: int,
        tries: int,
        rng: np.random.Generator,
        arm: Arm | None = None,
    ) -> Genome:
        """Take the steps that are worth least, as long as they are worth less; the first one in any case.

        Args:
            genome: Where to start.
            valuation: What is worth how much.
            steps: The largest number of steps.
            tries: Number of steps that are tried for each.
            rng: Draws the steps.
            arm: The only kinds of steps to take; all by default.
        """
        place = self._place(genome)
        for taken in range(steps):
            here = valuation(place.general, place.layers)
            names = (name for items in (place.general, *place.layers.values()) for name, _ in items)
            kinds = self._variation.kinds(names, arm)
            order = sorted(place.layers)
            found, least = None, here if taken else math.inf
            for _ in range(tries):
                candidates = kinds[self._variation.draw(kinds, rng)]
                if not candidates:
                    continue
                name = candidates[int(rng.integers(len(candidates)))]
                if isinstance(self._variation.distributions[name], Subset):
                    other = self._swapped(place, name, rng)
                    value = valuation(other.general, other.layers)
                else:
                    changes = self._variation.changes(place.genome, name, rng)
                    other, value = self._changed(place, changes, order, here, valuation)
                if value < least:
                    found, least = other, value
            if found is None:
                break
            place = found
        return place.genome

    def _changed(
        self, place: _Place, changes: Genome, order: list[int], here: float, valuation: Valuation
    ) -> tuple[_Place, float]:
        """Return a place with some parameters changed, and its value, given the value before."""
        genome = {**place.genome, **changes}
        at = {self._features.layer[name] for name in changes}
        if None in at:
            other = self._place(genome)
            return other, valuation(other.general, other.layers)
        moved = {i: self._local(i, genome) for i in at if i is not None and i in place.layers}
        other = replace(place, genome=genome, layers={**place.layers, **moved})
        if len(moved) != 1:
            return other, valuation(other.general, other.layers)
        ((index, items),) = moved.items()
        before = place.layers[index]
        value = here + valuation.layer(items) - valuation.layer(before)
        k = order.index(index)
        if k:
            below = place.layers[order[k - 1]]
            value += valuation.seam(below, items) - valuation.seam(below, before)
        if k + 1 < len(order):
            above = place.layers[order[k + 1]]
            value += valuation.seam(items, above) - valuation.seam(before, above)
        return other, value

    def _swapped(self, place: _Place, name: str, rng: np.random.Generator) -> _Place:
        """Return a place with another subset; a layer that comes back takes its plan from the nearest one."""
        genome = dict(place.genome)
        removes = self._removes.get(name)
        if removes is None:
            self._variation.change(genome, name, rng)
            return self._place(genome)
        genome[name] = self._variation.distributions[name].mutate(genome[name], rng)
        before, after = ({int(i) for i in _tuple(value)} for value in (place.genome[name], genome[name]))
        gone = {removes[i] for i in after if i in removes}
        back = {removes[i] for i in before if i in removes} - gone
        layers = {i: items for i, items in place.layers.items() if i not in gone}
        for index in sorted(back):
            self._variation.take_over(genome, index, place.layers)
            layers[index] = self._local(index, genome)
        general = tuple((n, genome[n]) for n, _ in place.general)
        return _Place(genome, general, layers)

    def _place(self, genome: Genome) -> _Place:
        return _Place(genome, *self._features.split(self._space.active(genome)))

    def _local(self, index: int, genome: Genome) -> Items:
        """Return the active parameters of a layer that is there."""
        key = (index, tuple(genome[n] for n in self._choices[index]))
        if key not in self._active:
            active = self._space.active(genome)
            self._active[key] = [n for n in self._names[index] if n in active]
        return tuple((n, genome[n]) for n in self._active[key])

    def _learn(self, rng: np.random.Generator) -> dict[str, dict[int, int]]:
        """Return which layer each member of a subset removes, for each subset of which that is so."""
        distributions = self._variation.distributions
        probes = [
            self._space.active({name: d.sample(rng) for name, d in distributions.items()}) for _ in range(PROBES)
        ]
        present = {
            i: tuple(any(name in probe for name in names) for probe in probes) for i, names in self._names.items()
        }
        subsets = [(name, d) for name, d in distributions.items() if isinstance(d, Subset)]
        sometimes = [i for i, there in present.items() if not all(there)]
        if len(subsets) != 1 or any(name not in probe for name, _ in subsets for probe in probes):
            return {}
        ((name, subset),) = subsets
        members = [set(_tuple(probe[name])) for probe in probes]
        outside = {e: tuple(e not in those for those in members) for e in range(subset.n)}
        removes: dict[int, int] = {}
        for i in sometimes:
            matching = [e for e, pattern in outside.items() if pattern == present[i]]
            if len(matching) != 1:
                return {}
            removes[matching[0]] = i
        return {name: removes}


def _tuple(value: ParamValue) -> tuple[float, ...]:
    assert isinstance(value, tuple)
    return value
