"""SCE: select where the task vectors differ, calculate their weights, erase what disagrees in sign."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import Blocks, blocks, by_block, run_sums
from tailorlib_strategies.operations.consensus import disjoint_sum
from tailorlib_strategies.operations.hyperparameters import Range, number, searched
from tailorlib_strategies.operations.interpolate import normalized
from tailorlib_strategies.operations.ranking import Largest
from tailorlib_strategies.operations.sparsify import kept


class SCE(MergeOperation):
    """SCE (FuseChat, arXiv 2408.07990): theta = theta_base + sum_k eta_k delta_k / sum_k eta_k.

    Select the entries with the largest variance across the task vectors; weigh each source by the mean square of
    its selected entries, eta_k; erase entries whose sign is not that of the sum of all. Entries on which all
    sources agree have no variance and count in no share: of equal models nothing is selected.

    mergekit 0.1.5 takes equal weights where the mean squares sum to less than 1e-6, as those of most fine-tunes
    do; here their ratio counts whatever their size. One entry at least is selected of those that vary (mergekit:
    none of fewer than 1 / select_topk), and of tied ones those that come first.

    Args:
        select_topk: Share of the entries to select, within (0, 1]; 1 selects those that don't vary too. A number
            fixes it, a pair is searched.
    """

    needs_base = True
    min_sources = 1

    def __init__(self, select_topk: Range = (0.1, 1.0)) -> None:
        self.select_topk = searched("SCE.select_topk", select_topk, low=1e-6, high=1.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``select_topk``."""
        return {"select_topk": self.select_topk}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + the merged task vector."""
        assert base is not None
        deltas = [(tensor - base).contiguous() for tensor in tensors]
        share = number(params, "select_topk")
        if share < 1:
            _select_(deltas, share)
        squares = [math.fsum(s for (b,) in blocks(delta) for s in run_sums(b.square())) for delta in deltas]
        eta = normalized(squares)

        def compute(pieces: Blocks) -> Tensor:
            origin, *votes = pieces
            total, weight = disjoint_sum(votes, eta, eta)
            return total.div_(weight).add_(origin)

        return by_block(compute, base, *deltas)


def _select_(deltas: Sequence[Tensor], share: float) -> None:
    """Set all but the entries of largest variance to zero, in place."""
    spread = by_block(_variance, *deltas)
    varying = sum(int(block.count_nonzero()) for (block,) in blocks(spread))
    largest = Largest(spread, kept(share, varying))
    for variance, *pieces in blocks(spread, *deltas):
        mask = largest.mask(variance)
        for piece in pieces:
            piece.mul_(mask)


def _variance(pieces: Blocks) -> Tensor:
    """Return the variance across tensors from their differences to the first: exactly 0 where all are equal."""
    K = len(pieces)  # noqa: N806
    mean = torch.zeros_like(pieces[0])
    for piece in pieces[1:]:
        mean.add_(piece - pieces[0], alpha=1 / K)
    variance = mean.square()
    for piece in pieces[1:]:
        variance.add_((piece - pieces[0]).sub_(mean).square_())
    return variance.div_(K)
