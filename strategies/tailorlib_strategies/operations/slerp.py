"""SLERP: spherical interpolation of two tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.interpolate import slerp


class SLERP(MergeOperation):
    """Spherical linear interpolation of exactly two tensors, as flat vectors (Shoemake 1985).

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
        """Return slerp(theta_1, theta_2; t)."""
        first, second = tensors
        return slerp(first, second, number(params, "t"))
