"""Consensus of task vectors: which sign an entry takes, and the sum of those that agree with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tailorlib_strategies.operations.blocks import Blocks, by_block

_CANCELLED = 1e-6
"""Weights of both signs that sum to less, of the largest, are taken to cancel."""


def elect_signs(votes: Sequence[Tensor]) -> Tensor:
    """Return the sign with the larger total mass, entry by entry; a draw counts as positive.

    Equation (elect) of TIES (arXiv 2306.01708, section 3): gamma_m = sgn(sum_k tau_k).

    Args:
        votes: Task vectors of one shape.

    Returns:
        A tensor of that shape of -1 and 1.
    """
    total = votes[0].clone()
    for vote in votes[1:]:
        total.add_(vote)
    return total.sign_().add_(0.5).sign_()


def disjoint_sum(
    votes: Sequence[Tensor], factors: Sequence[float], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return, entry by entry, the sum of the votes that have the elected sign, and the sum of their weights.

    Args:
        votes: Task vectors tau_k of one shape. Zeros don't vote.
        factors: The factor of each vote in the first sum.
        weights: What each counts in the second.

    Returns:
        sum_k factor_k tau_k and sum_k weight_k over {k : sgn(tau_k) = gamma_m}. Where nothing has the sign or the
        weights cancel, the second sum is a number to divide by all the same.
    """
    signs = elect_signs(votes)
    total, weight = torch.zeros_like(signs), torch.zeros_like(signs)
    for vote, factor, own in zip(votes, factors, weights, strict=True):
        agreeing = (vote * signs).clamp_(min=0)
        total.add_(agreeing, alpha=factor)
        weight.add_(agreeing.sign_(), alpha=own)
    return total.mul_(signs), _divisors(weight, weights)


def _divisors(sums: Tensor, weights: Sequence[float]) -> Tensor:
    """Return sums of some of the weights, each 0 replaced by a number to divide by."""
    if min(weights) >= 0 < max(weights):
        return sums.clamp_(min=min(w for w in weights if w > 0))
    return sums.masked_fill_(sums.abs() <= _CANCELLED * max(map(abs, weights)), 1.0)


def add_disjoint_mean(
    base: Tensor,
    deltas: Sequence[Tensor],
    *,
    weights: Sequence[float],
    factors: Sequence[float],
    scale: float,
    normalize: bool,
) -> Tensor:
    """Return theta_base + scale * tau_m, with tau_m the disjoint merge of TIES.

    tau_m = sum_k w_k delta_k / sum_k w_k over {k : sgn(w_k delta_k) = gamma_m}, entry by entry.

    Args:
        base: The base's tensor.
        deltas: Task vectors of its shape.
        weights: w_k.
        factors: What each task vector is multiplied by besides its weight.
        scale: The factor of the merged task vector.
        normalize: Whether to divide by the sum of the weights.
    """

    def compute(pieces: Blocks) -> Tensor:
        origin, *others = pieces
        votes = [delta * (w * f) for delta, w, f in zip(others, weights, factors, strict=True)]
        total, weight = disjoint_sum(votes, [1.0] * len(votes), weights)
        return origin.add(total.div_(weight) if normalize else total, alpha=scale)

    return by_block(compute, base, *deltas)
