"""Consensus of task vectors: which sign an entry takes, and the mean of those that agree with it."""

from __future__ import annotations

import torch
from torch import Tensor


def elect_signs(deltas: Tensor) -> Tensor:
    """Return the sign with the larger total mass, entry by entry; a draw counts as positive.

    Equation (elect) of TIES (arXiv 2306.01708, section 3): gamma_m = sgn(sum_k tau_k).

    Args:
        deltas: (K, ...) task vectors.

    Returns:
        (...) of -1 and 1.
    """
    return torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)


def disjoint_mean(deltas: Tensor) -> Tensor:
    """Return the mean of the entries that have the elected sign; zero where none has.

    Equation (disjoint merge) of TIES: tau_m = mean of {tau_k : sgn(tau_k) = gamma_m}. Zeros don't vote.

    Args:
        deltas: (K, ...) task vectors.

    Returns:
        (...) the merged task vector.
    """
    agrees = deltas.sign() == elect_signs(deltas)  # (K, ...)
    total = torch.where(agrees, deltas, 0.0).sum(dim=0)
    return total / agrees.sum(dim=0).clamp(min=1)
