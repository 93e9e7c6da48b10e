"""MultiSLERP: the normalised mean direction of any number of tensors, at their mean length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import add_task_vectors, gram, weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, fixed, per_source, searched
from tailorlib_strategies.operations.interpolate import normalized, spherical_mean


class MultiSLERP(MergeOperation):
    """Barycentric interpolation on a hypersphere, as in mergekit's ``multislerp`` without a base.

    theta = (sum_k w_k |theta_k|) m / |m| with m = sum_k w_k u_k and u_k = theta_k / |theta_k|. mergekit 0.1.5 goes
    on from m / |m| = x by the weighted mean of the tangents there, sum_k w_k (u_k - <u_k, x> x), which is zero for
    all inputs: this is its closed form. Antipodes in balance give the weighted sum (mergekit: the same of two, an
    error of more).

    Args:
        weights: The weight w_k of each source; a number gives all the same, a pair is searched.
        normalize: Whether to divide the weights by their sum.
    """

    def __init__(self, weights: Range = (0.0, 1.0), normalize: bool = True) -> None:
        self.weights = searched(f"{self.name}.weights", weights)
        self.normalize = fixed(f"{self.name}.normalize", normalize)

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the fixed ``normalize``."""
        return {"normalize": self.normalize}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the mean direction at the mean length, from the base if there is one."""
        weights = per_source(params, "weights", len(tensors))
        weights = normalized(weights) if params["normalize"] else weights
        coefficients = spherical_mean(gram(tensors, base), weights)
        if base is None:
            return weighted_sum(tensors, coefficients)
        return add_task_vectors(base, tensors, coefficients)


class TaskMultiSLERP(MultiSLERP):
    """MultiSLERP of task vectors: theta = theta_base + multislerp(theta_k - theta_base).

    Args:
        weights: The weight w_k of each task vector; a number gives all the same, a pair is searched.
        normalize: Whether to divide the weights by their sum.
    """

    needs_base = True
    min_sources = 1
