"""Linear: the weighted mean of the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.interpolate import weighted_mean


class Linear(MergeOperation):
    """The weighted mean of the sources (model soup, arXiv 2203.05482): theta = sum_k w_k theta_k.

    One number weighs any number of sources: the weights fall on a line from the first source (in the recipe's
    order) to the last, w_k ~ 1 + tilt (1 - 2k / (K - 1)) for k = 0 .. K-1. So 0 is the plain mean, 1 leaves the
    last source out, -1 the first, and of two sources every convex combination can be reached.

    Args:
        tilt: Slope of the weights, within [-1, 1]; a number fixes it, a pair is searched.
    """

    def __init__(self, tilt: Range = (-1.0, 1.0)) -> None:
        self.tilt = searched("Linear.tilt", tilt, low=-1.0, high=1.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``tilt``."""
        return {"tilt": self.tilt}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return sum_k w_k theta_k; the weights sum to 1."""
        tilt, K = number(params, "tilt"), len(tensors)  # noqa: N806
        return weighted_mean(tensors, [(1 + tilt * (1 - 2 * k / (K - 1))) / K for k in range(K)])
