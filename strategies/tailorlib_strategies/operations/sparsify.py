"""Sparsification of task vectors: which entries of a delta survive."""

from __future__ import annotations

import torch
from torch import Tensor


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the ``max(1, floor(density * n))`` entries of largest magnitude, set the others to zero.

    The threshold is a selection in O(n), not a sort. Of entries tied at the threshold those that come first
    survive, so that the count is exact and every device agrees (deltas of bfloat16 models are full of ties).

    Args:
        delta: A task vector of any shape, n entries.
        density: Share of the entries to keep, in (0, 1].
    """
    n = delta.numel()
    keep = max(1, int(density * n))
    if keep >= n:
        return delta
    magnitude = delta.abs().flatten()  # (n,)
    threshold = magnitude.kthvalue(n - keep + 1).values
    mask = magnitude >= threshold
    surplus = int(mask.sum()) - keep
    if surplus:
        tied = (magnitude == threshold).nonzero().flatten()
        mask[tied[len(tied) - surplus :]] = False
    return torch.where(mask.view(delta.shape), delta, 0.0)


def drop_and_rescale(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each entry with probability ``density`` and divide it by ``density``: the expectation is the delta.

    Args:
        delta: A task vector of any shape, on any device.
        density: Probability to keep an entry, in (0, 1].
        generator: CPU generator; the mask is drawn on the CPU, so that every device gets the same bits.
    """
    mask = torch.rand(delta.shape, generator=generator) < density
    return torch.where(mask.to(delta.device), delta / density, 0.0)
