"""ModelStock: the mean of the sources drawn towards the base by the angle between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import add_task_vectors, gram
from tailorlib_strategies.operations.hyperparameters import fixed
from tailorlib_strategies.operations.interpolate import cosines


class ModelStock(MergeOperation):
    """Model Stock (arXiv 2403.19522, equation 2): theta = t mean_k theta_k + (1 - t) theta_base.

    t = K cos / (1 + (K - 1) cos) with cos the mean cosine between the K task vectors; where that denominator is
    zero the base stays. A task vector of zeros is at a right angle to all. mergekit 0.1.5 puts 1e-6 in place of a
    smaller product of two lengths, so it takes short task vectors for more orthogonal than they are.

    Args:
        filter_wise: Whether each row (run along the last dimension) has an angle of its own, not the tensor.
    """

    needs_base = True

    def __init__(self, filter_wise: bool = False) -> None:
        self.filter_wise = fixed("ModelStock.filter_wise", filter_wise)

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the fixed ``filter_wise``."""
        return {"filter_wise": self.filter_wise}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + t mean_k delta_k."""
        assert base is not None
        K = len(tensors)  # noqa: N806
        if not params["filter_wise"]:
            _, cosine = cosines(gram(tensors, base))
            pairs = torch.stack([cosine[i, j] for i, j in combinations(range(K), 2)])
            return add_task_vectors(base, tensors, [float(_ratio(pairs.mean(), K)) / K] * K)
        deltas = [(tensor - base).contiguous() for tensor in tensors]
        lengths = [delta.norm(dim=-1, keepdim=True) for delta in deltas]
        total = torch.zeros_like(lengths[0])
        for i, j in combinations(range(K), 2):
            product, length = (deltas[i] * deltas[j]).sum(dim=-1, keepdim=True), lengths[i] * lengths[j]
            total += torch.where(length > 0, product / length, 0.0).clamp_(-1.0, 1.0)
        ratio = _ratio(total / (K * (K - 1) / 2), K)
        mean = deltas[0]
        for delta in deltas[1:]:
            mean.add_(delta)
        return mean.mul_(ratio / K).add_(base)


def _ratio(cosine: Tensor, K: int) -> Tensor:  # noqa: N803
    """Return t of the paper's equation 2."""
    denominator = 1 + (K - 1) * cosine
    return torch.where(denominator.abs() < 1e-6, 0.0, K * cosine / denominator)
