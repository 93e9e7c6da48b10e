"""Sparsification of task vectors: which entries of a delta survive.

All functions write into the delta that they are given, a fresh contiguous tensor of the merge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tailorlib_strategies.operations.blocks import BLOCK, blocks
from tailorlib_strategies.operations.ranking import Largest


def kept(density: float, n: int) -> int:
    """Return how many of ``n`` entries a density keeps: max(1, floor(density * n)), and none if it is 0."""
    return min(n, max(1, int(density * n))) if density > 0 else 0


def trim_(delta: Tensor, density: float) -> None:
    """Keep the entries of largest magnitude, set the others to zero; TIES (arXiv 2306.01708), step 1.

    Args:
        delta: A task vector of any shape.
        density: Share of the entries to keep; see :func:`kept`.
    """
    if density < 1:
        largest = Largest(delta, kept(density, delta.numel()))
        for (block,) in blocks(delta):
            block.mul_(largest.mask(block))


def trim_both_ends_(delta: Tensor, density: float, gamma: float) -> None:
    """Drop the largest entries as well as small ones; Model Breadcrumbs (arXiv 2312.06795).

    In descending order of magnitude floor(gamma * n) entries are dropped, the next ``kept(density, n)`` stay.
    Where that is more than there are, fewer of the largest are dropped.

    Args:
        delta: A task vector of any shape, n entries.
        density: Share of the entries to keep.
        gamma: Share of the entries to drop from the top.
    """
    n = delta.numel()
    keep = kept(density, n)
    dropped = min(int(gamma * n), n - keep)
    if density < 1:
        outliers, largest = Largest(delta, dropped), Largest(delta, dropped + keep)
        for (block,) in blocks(delta):
            block.mul_(largest.mask(block).sub_(outliers.mask(block)))


def drop_(delta: Tensor, density: float, generator: torch.Generator, *, rescale: bool) -> None:
    """Keep each entry with probability ``density``; DARE (arXiv 2311.03099).

    Args:
        delta: A task vector of any shape, on any device.
        density: Probability to keep an entry; 1 or more draws nothing.
        generator: CPU generator; the mask is drawn on the CPU, so that every device gets the same bits.
        rescale: Whether to divide what survives by ``density``, so that the expectation is the delta.
    """
    if density >= 1:
        return
    draws = torch.empty(min(BLOCK, delta.numel()))
    for block in torch.split(delta.view(-1), BLOCK):
        mask = torch.rand(len(block), generator=generator, out=draws[: len(block)]).lt_(density)
        block.mul_(mask.to(delta.device))
        if rescale and density > 0:
            block.div_(density)


def drop_by_rank_(
    delta: Tensor, density: float, epsilon: float, generator: torch.Generator, *, rescale: bool
) -> None:
    """Keep each entry with a probability that grows with its rank in its row; DELLA (arXiv 2406.11617), MagPrune.

    The probability runs linearly from ``density - epsilon`` for the smallest magnitude of a row to ``density +
    epsilon`` for the largest (the paper's epsilon is that whole width). Where this leaves [0, 1], epsilon is cut
    to what fits, so that the mean stays the density. Of equal magnitudes the earlier one ranks lower.

    Args:
        delta: A task vector; a row is a run along the last dimension.
        density: Mean probability to keep an entry; 1 or more draws nothing.
        epsilon: Half the width of the probabilities.
        generator: CPU generator, as in :func:`drop_`.
        rescale: Whether to divide each survivor by its own probability, so that the expectation is the delta.
    """
    if density >= 1:
        return
    half = max(0.0, min(epsilon, density, 1 - density))
    n = delta.shape[-1]
    rows = delta.view(-1, n)
    spread = torch.linspace(density - half, density + half, n) if n > 1 else torch.tensor([density])
    for part in torch.split(rows, max(1, BLOCK // n)):
        order = part.abs().argsort(dim=-1, stable=True)  # ascending
        probability = torch.empty_like(part)
        probability.scatter_(-1, order, spread.to(delta.device).expand_as(part))
        mask = torch.rand(part.shape, generator=generator).to(delta.device).lt_(probability)
        if rescale:
            mask.div_(probability.clamp_(min=torch.finfo(mask.dtype).tiny))
        part.mul_(mask)
