"""Encoding of a search space as a vector of standard normal numbers, for optimizers of real vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from statistics import NormalDist

import numpy as np

from tailorlib import Distribution, Integer, Params, SearchSpace, Subset
from tailorlib.distributions import Categorical, ParamValue

NORMAL = NormalDist()
EDGE = 1e-6
"""Coordinates 0 and 1 lie at infinity; this far from the edge is about 4.75 standard deviations."""


class NormalEncoding:
    """Maps assignments to vectors z and back; each coordinate's position in [0, 1] is Phi(z).

    A standard normal vector decodes to a uniform draw from the space, so an optimizer's own initial samples and
    its N(0, 1) mutations need no scaling. Values that own a cell of the cube (choices, whole numbers, members of
    a subset) are encoded at a random place within the cell: fixed places would tie the keys of a subset, and a
    mutated key would then swap with the same layer every time.

    Args:
        space: A search space, set up.
        rng: Draws the places within cells.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self.space, self.rng = space, rng
        self.dimension = sum(d.width for d in space.distributions().values())

    def decode(self, z: Sequence[float]) -> Params:
        """Return the assignment at a vector."""
        positions = iter([NORMAL.cdf(float(x)) for x in z])
        return {
            name: d.decode(tuple(islice(positions, d.width))) for name, d in self.space.distributions().items()
        }

    def encode(self, params: Params) -> list[float]:
        """Return a vector of an assignment; what it leaves open is drawn at random."""
        positions: list[float] = []
        for name, distribution in self.space.distributions().items():
            if name in params:
                positions += self._place(distribution, params[name])
            else:
                positions += self.rng.random(distribution.width).tolist()
        return [NORMAL.inv_cdf(min(max(u, EDGE), 1 - EDGE)) for u in positions]

    def _place(self, distribution: Distribution, value: ParamValue) -> list[float]:
        """Return coordinates in [0, 1] that decode to the value."""
        if isinstance(distribution, Subset):
            # the largest keys are the members: split a uniform sample of keys there
            keys = np.sort(self.rng.random(distribution.n))
            assert isinstance(value, tuple)
            member, outside = np.isin(np.arange(distribution.n), value), distribution.n - len(value)
            placed = np.empty(distribution.n)
            placed[member] = self.rng.permutation(keys[outside:])
            placed[~member] = self.rng.permutation(keys[:outside])
            sizes = distribution.encode(value)[distribution.n :]
            return [float(u) for u in placed] + [
                self._within(u, distribution.k - distribution.low + 1) for u in sizes
            ]
        if isinstance(distribution, Categorical | Integer):
            (middle,) = distribution.encode(value)
            cells = distribution.cardinality
            assert cells is not None
            return [self._within(middle, cells)]
        return list(distribution.encode(value))

    def _within(self, middle: float, cells: int) -> float:
        """Return a random place in the cell of that middle, one of so many."""
        return middle + (float(self.rng.random()) - 0.5) * 0.98 / cells
