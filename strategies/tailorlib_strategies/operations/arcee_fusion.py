"""ArceeFusion: take a source's entries where they matter most, the base's elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tailorlib import MergeOperation, Params
from tailorlib_strategies.operations.blocks import BLOCK, Blocks, by_block
from tailorlib_strategies.operations.ranking import kth_largest

_EPSILON = 1e-8


class ArceeFusion(MergeOperation):
    """Arcee Fusion of exactly one source, as in mergekit's ``arcee_fusion``.

    The importance of an entry is its change |theta_1 - theta_base| times the Kullback-Leibler divergence between
    the softmax of its row in the source and in the base. Entries whose importance reaches the median plus 1.5
    times the distance of the quartiles are the source's, the others the base's. Quantiles are order statistics of
    all entries (mergekit 0.1.5 estimates those of over a million from a sample of the global generator).
    """

    needs_base = True
    min_sources = 1
    max_sources = 1

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the source where its importance reaches the threshold, else the base."""
        assert base is not None
        scores = _importance(tensors[0], base)
        last = scores.numel() - 1
        lower, median, upper = (kth_largest(scores, last + 1 - last * q // 4)[0] for q in (1, 2, 3))
        threshold = median + 1.5 * (upper - lower)

        def compute(pieces: Blocks) -> Tensor:
            score, origin, source = pieces
            return torch.where(score >= threshold, source, origin)

        return by_block(compute, scores, base, tensors[0])


def _importance(tensor: Tensor, base: Tensor) -> Tensor:
    """Return |theta - theta_base| KL(softmax(theta) || softmax(theta_base)), the softmax of each row."""
    n = tensor.shape[-1]
    scores = (tensor - base).abs_().contiguous()
    rows = max(1, BLOCK // n) if tensor.device.type == "cpu" else scores.numel()
    parts = (torch.split(t.reshape(-1, n), rows) for t in (scores, tensor, base))
    for score, source, origin in zip(*parts, strict=True):
        p, q = source.softmax(dim=-1).add_(_EPSILON), origin.softmax(dim=-1).add_(_EPSILON)
        divergence = (p * (p / q).log_()).sum(dim=-1, keepdim=True).clamp_(min=0)
        score.mul_(divergence)
    return scores
