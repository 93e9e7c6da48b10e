"""Karcher: the mean direction with the least mean squared angle, at the mean length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import gram, weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, count, number, per_source, searched
from tailorlib_strategies.operations.interpolate import karcher_mean, normalized


class Karcher(MergeOperation):
    """Karcher mean on the hypersphere (arXiv 2603.04972), as flat vectors, at the weighted mean length.

    mergekit 0.1.5 weighs all sources alike. A tensor gives no direction if it is shorter than ``tol`` times the
    longest (mergekit: than ``tol``) or opposite to the mean, whose pull mergekit computes from the noise of a
    float32 sine.

    Args:
        max_iter: The largest number of steps.
        tol: A step shorter than this, in radians, is the last one.
        weights: The weight of each source; a number gives all the same, a pair is searched.
    """

    def __init__(self, max_iter: int = 10, tol: float = 1e-5, weights: Range = (0.0, 1.0)) -> None:
        self.max_iter = count("Karcher.max_iter", max_iter)
        self.tol = searched("Karcher.tol", tol, low=1e-12, high=1.0)
        self.weights = searched("Karcher.weights", weights)

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the fixed ``max_iter`` and ``tol``."""
        return {"max_iter": self.max_iter, "tol": self.tol}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the Karcher mean of the directions at the mean length."""
        weights = normalized(per_source(params, "weights", len(tensors)))
        steps, tol = int(number(params, "max_iter")), number(params, "tol")
        return weighted_sum(tensors, karcher_mean(gram(tensors), weights, steps, tol))
