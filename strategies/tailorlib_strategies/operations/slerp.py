"""SLERP: spherical interpolation of two tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import gram, weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.interpolate import COLINEAR, arc, cosines


class SLERP(MergeOperation):
    """Spherical linear interpolation of exactly two tensors, as flat vectors (Shoemake 1985).

    theta = sin((1 - t) w) / sin(w) theta_1 + sin(t w) / sin(w) theta_2 with w the angle between the two; the line
    (1 - t) theta_1 + t theta_2 where |cos(w)| > 0.9995. A tensor of zeros is at a right angle to all others.

    Args:
        t: Position from the first source (0) to the second (1), in the recipe's order; a number fixes it, a
            pair is searched.
    """

    max_sources = 2

    def __init__(self, t: Range = (0.0, 1.0)) -> None:
        self.t = searched("SLERP.t", t, low=0.0, high=1.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``t``."""
        return {"t": self.t}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the point at t on the arc."""
        _, cosine = cosines(gram(tensors))
        first, second = arc(cosine[0, 1], number(params, "t"), COLINEAR)
        return weighted_sum(tensors, [float(first), float(second)])
