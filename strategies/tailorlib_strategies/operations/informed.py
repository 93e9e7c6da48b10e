"""Merges that know the data: each source counts where calibration text says that it matters.

Notation: theta_k the K sources, w_k their weights, G_k the Gram matrix of a linear layer's inputs in model k, F_k
the diagonal of model k's Fisher information. Both statistics come from the family; a tensor without one (a norm or
a bias has no Gram matrix) is averaged: sum_k w_k theta_k / sum_k w_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params, Statistic
from tailorlib_strategies.operations.blocks import Blocks, by_block, weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, number, per_source, searched
from tailorlib_strategies.operations.interpolate import normalized

_FLOOR = torch.finfo(torch.float32).eps ** 2
"""Fisher information below this, relative to the tensor's largest, is that of a gradient lost in rounding."""
_ATTEMPTS = 12


class RegMean(MergeOperation):
    """Regression mean (arXiv 2212.09849): the linear layer nearest to all sources on the sources' own inputs.

    theta^T = (sum_k w_k G'_k)^-1 sum_k w_k G'_k theta_k^T with G'_k = alpha G_k + (1 - alpha) diag(G_k). With
    alpha 1 it minimises sum_k w_k |X_k theta^T - X_k theta_k^T|^2; with alpha 0 each input's column is averaged
    for itself. What is no linear layer with a Gram matrix is averaged.

    Args:
        alpha: Share of the Gram matrices' off-diagonal entries, within [0, 1]; the paper mostly takes 0.9.
        weights: The weight w_k of each source, 0 or more. For both: a number fixes it, a pair is searched.
    """

    statistic = Statistic.GRAM

    def __init__(self, alpha: Range = (0.0, 1.0), weights: Range = 1.0) -> None:
        self.alpha = searched("RegMean.alpha", alpha, low=0.0, high=1.0)
        self.weights = searched("RegMean.weights", weights, low=0.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``alpha``."""
        return {"alpha": self.alpha}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
        statistics: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Return the regression mean, or the weighted mean where a source has no Gram matrix."""
        weights = normalized(per_source(params, "weights", len(tensors)))
        grams = [gram for gram in statistics if gram is not None]
        if len(grams) < len(tensors):
            return weighted_sum(tensors, weights)
        return regression_mean(tensors, grams, weights, number(params, "alpha"))


class Fisher(MergeOperation):
    """Fisher-weighted averaging (arXiv 2111.09832): theta = sum_k w_k F_k theta_k / sum_k w_k F_k, by entry.

    The statistic is divided by its norm over the whole model, as in the paper's reference code: so no model counts
    more because its gradients are large throughout. Weights can undo that. Where no source has any information,
    the weighted mean stays.

    Args:
        weights: The weight w_k of each source, 0 or more; a number is the same for all, a pair is searched.
    """

    statistic = Statistic.FISHER

    def __init__(self, weights: Range = 1.0) -> None:
        self.weights = searched("Fisher.weights", weights, low=0.0)

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
        statistics: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Return the Fisher-weighted mean, or the weighted mean where a source has no Fisher information."""
        weights = normalized(per_source(params, "weights", len(tensors)))
        fishers = [fisher for fisher in statistics if fisher is not None]
        if len(fishers) < len(tensors):
            return weighted_sum(tensors, weights)
        return fisher_mean(tensors, fishers, weights)


def regression_mean(
    tensors: Sequence[Tensor], grams: Sequence[Tensor], weights: Sequence[float], alpha: float
) -> Tensor:
    """Return the regression mean of linear layers.

    It is computed in float64, as the weighted mean m plus (sum_k w_k G'_k)^-1 sum_k w_k G'_k (theta_k - m)^T:
    equal sources give themselves, and directions that no input has keep the mean. The system is scaled to a unit
    diagonal. Its smallest eigenvalue is then 1 - alpha or more; where that is less than the rounding of the Gram
    matrices (their size times the epsilon of their data type), a ridge makes up for it.

    Args:
        tensors: Weights theta_k, [out, in].
        grams: Gram matrices G_k of the inputs, [in, in], all over the same number of inputs.
        weights: w_k, 0 or more; they sum to 1.
        alpha: Share of the off-diagonal entries.
    """
    first = tensors[0]
    device = torch.device("cpu") if first.device.type == "mps" else first.device  # which has no float64
    wide = [t.to(device, torch.float64) for t in tensors]
    mean = weighted_sum(wide, weights)  # [out, in]
    n = mean.shape[1]
    system = mean.new_zeros(n, n)
    residual = mean.new_zeros(n, mean.shape[0])  # [in, out]
    for theta, gram, weight in zip(wide, grams, weights, strict=True):
        diagonal = gram.diagonal().to(device, torch.float64) * weight
        scaled = gram.to(device, torch.float64) * (weight * alpha)  # w_k G'_k, but for the diagonal
        scaled.diagonal().copy_(diagonal)
        system += scaled
        residual.addmm_(scaled, (theta - mean).T)
    scale = torch.where(system.diagonal() > 0, system.diagonal().rsqrt(), 0.0)  # [in]; 0: an input that never is
    system.mul_(scale[:, None]).mul_(scale).diagonal().fill_(1.0)
    correction = _solve(system, residual.mul_(scale[:, None]), n * torch.finfo(grams[0].dtype).eps, 1 - alpha)
    return (mean + (correction * scale[:, None]).T).to(first.device, first.dtype)


def _solve(system: Tensor, right: Tensor, rounding: float, least: float) -> Tensor:
    """Solve a system whose smallest eigenvalue is ``least``, plus or minus ``rounding``."""
    ridge = max(0.0, rounding - least)
    system.diagonal().add_(ridge)
    for _ in range(_ATTEMPTS):
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            break
        system.diagonal().add_(rounding)
        rounding *= 10
    return torch.cholesky_solve(right, factor)


def fisher_mean(tensors: Sequence[Tensor], fishers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_k w_k F_k theta_k / sum_k w_k F_k by entry; the weighted mean where the sum is nothing.

    Args:
        tensors: Weights theta_k of one shape.
        fishers: Fisher information F_k of each entry, of that shape.
        weights: w_k, 0 or more; they sum to 1.
    """
    K = len(tensors)  # noqa: N806
    peak = max(weight * float(fisher.max()) for weight, fisher in zip(weights, fishers, strict=True))
    if peak < torch.finfo(torch.float32).tiny:
        return weighted_sum(tensors, weights)

    def compute(pieces: Blocks) -> Tensor:
        thetas = pieces[:K]
        mean = weighted_sum(thetas, weights)
        total, pull = torch.zeros_like(mean), torch.zeros_like(mean)
        for theta, fisher, weight in zip(thetas, pieces[K:], weights, strict=True):
            information = fisher * (weight / peak)
            total += information
            pull.addcmul_(information, theta - mean)
        return torch.where(total > _FLOOR, mean + pull / total, mean)

    return by_block(compute, *tensors, *fishers)
