"""Features: what a linear model sees of an assignment."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tailorlib import Params
from tailorlib.distributions import Categorical, Distribution, ParamValue, Subset
from tailorlib.search_space import SearchSpace
from tailorlib_strategies.optimizers.variation import layer_of, stem_of

Vector = NDArray[np.float64]
Items = tuple[tuple[str, ParamValue], ...]
Cells = list[tuple[int, float]]
"""Features that are not zero: (index, value)."""

GROUPS = ("member", "depth", "pair", "choice", "number", "shared", "trend", "seam", "away")
"""Kinds of features, each with a prior variance of its own."""
MEMBER, DEPTH, PAIR, CHOICE, NUMBER, SHARED, TREND, SEAM, AWAY = range(len(GROUPS))
WAVES = 6
"""Smooth functions of depth: cosines of 0 to 5 half waves."""
_LEVELS = 16
"""Whole numbers with more values than that are places in a range."""


class Features:
    """Maps active parameters to features; a linear model's weights are then what each of them is worth.

    A subset gives an indicator for each member, smooth functions of the members' places (what layers are worth
    changes little from one to the next), an indicator for each pair of neighbours that are both members, and the
    number of members that the first warm start doesn't have: its removal is mostly a good one, and what leaving it
    costs shows after a few trials. A choice gives an indicator for each of its values; a number one that it is
    there, its place in its range, and that squared. Of the parameters of layers, each of these features is there
    once for the layer, once for all layers together (an operation or a source is worth about the same everywhere)
    and twice with waves over the depth. Two layers in a row give a feature for each parameter in which they
    differ. What is inactive gives zeros.

    Args:
        space: The search space, set up.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._distributions = space.distributions()
        self._groups: list[int] = []
        self._home: dict[str, frozenset[float]] = {}
        self._start: dict[str, int] = {}
        self._common: dict[tuple[str, str], int] = {}
        self._seam: dict[str, int] = {}
        self.layer = {name: layer_of(name) for name in self._distributions}
        self._stem = {name: stem_of(name) for name in self._distributions}
        self._depth = 1 + max((i for i in self.layer.values() if i is not None), default=0)
        by_stem: defaultdict[str, list[str]] = defaultdict(list)
        for name, distribution in self._distributions.items():
            self._add(name, distribution)
            if self.layer[name] is not None and not isinstance(distribution, Subset):
                by_stem[self._stem[name]].append(name)
        for stem, names in by_stem.items():
            if len(names) > 1:
                for feature in _labels(self._distributions[names[0]]):
                    self._common[stem, feature] = self._new(SHARED)
                    self._new(TREND)
                    self._new(TREND)
                self._seam[stem] = self._new(SEAM)
        self.groups = np.array(self._groups, dtype=np.int64)
        """Which prior each feature has, [features], an index into ``GROUPS``."""

    def __call__(self, params: Params) -> Vector:
        """Return the features of active parameters, [features]."""
        found = np.zeros(len(self.groups))
        for at, value in self.cells(params):
            found[at] += value
        return found

    def settle(self, params: Params) -> None:
        """Take a candidate's subsets as those that others' distance is counted from."""
        for name, value in params.items():
            if isinstance(value, tuple):
                self._home[name] = frozenset(value)

    def cells(self, params: Params) -> Cells:
        """Return the features of active parameters that are not zero; an index can come several times."""
        general, layers = self.split(params)
        cells = [cell for name, value in general for cell in self.of(name, value)]
        cells += [cell for items in layers.values() for name, value in items for cell in self.of(name, value)]
        for below, above in pairwise(sorted(layers)):
            cells += self.between(layers[below], layers[above])
        return cells

    def split(self, params: Params) -> tuple[Items, dict[int, Items]]:
        """Return what belongs to no layer, and what belongs to each."""
        general: list[tuple[str, ParamValue]] = []
        layers: defaultdict[int, list[tuple[str, ParamValue]]] = defaultdict(list)
        for name, value in params.items():
            index = self.layer[name]
            (general if index is None else layers[index]).append((name, value))
        return tuple(general), {index: tuple(items) for index, items in layers.items()}

    def of(self, name: str, value: ParamValue) -> Cells:
        """Return the features of one parameter."""
        distribution, at = self._distributions[name], self._start[name]
        if isinstance(distribution, Subset):
            assert isinstance(value, tuple)
            away = len(frozenset(value) - self._home.get(name, frozenset(value)))
            return [*self._of_subset(at, distribution, value), (at + 2 * distribution.n + WAVES, float(away))]
        places = list(_places(distribution, value))
        cells = [(at + k, x) for k, x in places]
        stem, index = self._stem[name], self.layer[name]
        if stem in self._seam and index is not None:
            first = self._common[stem, _labels(distribution)[0]]
            depth = (index + 0.5) / self._depth
            one, two = math.cos(math.pi * depth), math.cos(2 * math.pi * depth)
            for k, x in places:
                cells += [(first + 3 * k, x), (first + 3 * k + 1, one * x), (first + 3 * k + 2, two * x)]
        return cells

    def between(self, below: Items, above: Items) -> Cells:
        """Return the features of two layers in a row."""
        lower = {self._stem[name]: (name, value) for name, value in below}
        upper = {self._stem[name]: (name, value) for name, value in above}
        cells: Cells = []
        for stem in (*lower, *(s for s in upper if s not in lower)):
            if stem not in self._seam:
                continue
            if stem not in lower or stem not in upper:
                cells.append((self._seam[stem], 1.0))
            elif lower[stem][1] != upper[stem][1]:
                places = [self._distributions[name].encode(value)[0] for name, value in (lower[stem], upper[stem])]
                number = _levels(self._distributions[lower[stem][0]]) is None
                cells.append((self._seam[stem], abs(places[0] - places[1]) if number else 1.0))
        return cells

    def _add(self, name: str, distribution: Distribution) -> None:
        self._start[name] = len(self._groups)
        if isinstance(distribution, Subset):
            self._groups += [MEMBER] * distribution.n + [DEPTH] * WAVES + [PAIR] * distribution.n + [AWAY]
            return
        group = NUMBER if _levels(distribution) is None else CHOICE
        self._groups += [group] * len(_labels(distribution))

    def _new(self, group: int) -> int:
        self._groups.append(group)
        return len(self._groups) - 1

    def _of_subset(self, at: int, distribution: Subset, value: ParamValue) -> Cells:
        assert isinstance(value, tuple)
        members = [int(i) for i in value]
        n = distribution.n
        cells: Cells = [(at + i, 1.0) for i in members]
        if members:
            places = (np.array(members) + 0.5) / n
            waves = np.cos(np.pi * np.arange(WAVES)[:, None] * places).sum(axis=1)
            cells += [(at + n + k, float(x)) for k, x in enumerate(waves)]
        neighbours = [i for i, j in pairwise(members) if j == i + 1]
        cells += [(at + n + WAVES + i, 1.0) for i in neighbours]
        return [*cells, (at + 2 * n + WAVES - 1, float(len(neighbours)))] if n else []


def _labels(distribution: Distribution) -> Sequence[str]:
    """Return names of the features of a choice or a number."""
    levels = _levels(distribution)
    return ("there", "place", "square") if levels is None else [str(level) for level in range(levels)]


def _places(distribution: Distribution, value: ParamValue) -> Iterable[tuple[int, float]]:
    levels = _levels(distribution)
    (u,) = distribution.encode(value)
    if levels is None:
        return (0, 1.0), (1, 2 * u - 1), (2, (2 * u - 1) ** 2)
    return ((round(u * levels - 0.5), 1.0),)


def _levels(distribution: Distribution) -> int | None:
    """Return the number of values of a choice; ``None`` for a number."""
    count = distribution.cardinality
    return count if count is not None and (count <= _LEVELS or isinstance(distribution, Categorical)) else None


class Valuation:
    """What assignments are worth under given weights; what a step doesn't change is not computed again.

    Args:
        features: The features.
        weights: A weight for each feature, [features].
    """

    def __init__(self, features: Features, weights: Vector) -> None:
        self.features, self._weights = features, list(map(float, weights))
        self._layers: dict[Items, float] = {}
        self._one: dict[tuple[str, ParamValue], float] = {}
        self._seams: dict[tuple[Items, Items], float] = {}

    def __call__(self, general: Items, layers: Mapping[int, Items]) -> float:
        """Return the value of active parameters, as :meth:`Features.split` gives them."""
        order = sorted(layers)
        total = sum(self.one(*item) for item in general) + sum(self.layer(layers[i]) for i in order)
        return total + sum(self.seam(layers[a], layers[b]) for a, b in pairwise(order))

    def one(self, name: str, value: ParamValue) -> float:
        """Return the value of one parameter."""
        key = (name, value)
        if key not in self._one:
            self._one[key] = self._sum(self.features.of(name, value))
        return self._one[key]

    def layer(self, items: Items) -> float:
        """Return the value of a layer's parameters."""
        if items not in self._layers:
            self._layers[items] = sum(self.one(*item) for item in items)
        return self._layers[items]

    def seam(self, below: Items, above: Items) -> float:
        """Return the value of two layers in a row, beyond that of each."""
        key = (below, above)
        if key not in self._seams:
            self._seams[key] = self._sum(self.features.between(below, above))
        return self._seams[key]

    def _sum(self, cells: Cells) -> float:
        return sum(self._weights[at] * value for at, value in cells)
