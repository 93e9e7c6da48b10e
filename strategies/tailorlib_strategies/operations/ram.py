"""RAM: what one source alone changed is taken whole, what several changed is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import Blocks, blocks, by_block
from tailorlib_strategies.operations.hyperparameters import Range, number, searched


class RAM(MergeOperation):
    """Reinforced Agent Merging (arXiv 2601.13572): theta = theta_base + sum_k m_k delta_k / sum_k m_k.

    m_k says entry by entry whether |delta_k| > epsilon; where no source changed anything the base stays.

    Args:
        epsilon: What is no larger counts as no change; a number fixes it, a pair is searched (logarithmically).
    """

    needs_base = True
    min_sources = 1

    def __init__(self, epsilon: Range = 1e-5) -> None:
        self.epsilon = searched(f"{self.name}.epsilon", epsilon, low=0.0, log=True)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``epsilon``."""
        return {"epsilon": self.epsilon}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + the mean of the changes, over those who made one."""
        assert base is not None
        return _merged(base, tensors, number(params, "epsilon"), [1.0] * len(tensors))


class RAMPlus(RAM):
    """RAM+ (arXiv 2601.13572), tensor by tensor: what one source alone changed is also reinforced.

    Such entries of source k are multiplied by lambda_k = 1 + r min(alpha, rho_k), with rho_k the number of entries
    that k changed along with others over the number that k alone changed. mergekit's ``ramplus_tl``.

    Args:
        epsilon: What is no larger counts as no change.
        r: Strength of the reinforcement.
        alpha: The largest rho_k that counts. For all: a number fixes it, a pair is searched.
    """

    def __init__(self, epsilon: Range = 1e-5, r: Range = (0.0, 1.0), alpha: Range = 0.2) -> None:
        super().__init__(epsilon)
        self.r = searched("RAMPlus.r", r)
        self.alpha = searched("RAMPlus.alpha", alpha, low=0.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the ranges of ``epsilon``, ``r`` and ``alpha``."""
        return {"epsilon": self.epsilon, "r": self.r, "alpha": self.alpha}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + the mean of the changes, the unshared ones reinforced."""
        assert base is not None
        epsilon, r, alpha = (number(params, name) for name in ("epsilon", "r", "alpha"))
        alone, shared = [0] * len(tensors), [0] * len(tensors)
        for origin, *pieces in blocks(base, *tensors):
            changed = [torch.hardshrink(piece - origin, epsilon) for piece in pieces]
            count = _count(changed)
            for k, delta in enumerate(changed):
                own = int((count * delta.sign().abs_() == 1).count_nonzero())
                alone[k] += own
                shared[k] += int(delta.count_nonzero()) - own
        factors = [1 + r * min(alpha, s / a) if a else 1.0 for s, a in zip(shared, alone, strict=True)]
        return _merged(base, tensors, epsilon, factors)


def _merged(base: Tensor, tensors: Sequence[Tensor], epsilon: float, factors: Sequence[float]) -> Tensor:
    """Return the base plus the mean change; a change that one source alone made counts by the source's factor."""

    def compute(pieces: Blocks) -> Tensor:
        origin, *others = pieces
        deltas = [torch.hardshrink(other - origin, epsilon) for other in others]
        count = _count(deltas)
        alone = (count == 1).to(origin.dtype)
        total = torch.zeros_like(origin)
        for delta, factor in zip(deltas, factors, strict=True):
            total.add_(delta)
            if factor != 1:
                total.addcmul_(delta, alone, value=factor - 1)
        return total.div_(count.clamp_(min=1)).add_(origin)

    return by_block(compute, base, *tensors)


def _count(changed: Sequence[Tensor]) -> Tensor:
    """Return how many are not zero, entry by entry."""
    total = torch.zeros_like(changed[0])
    for delta in changed:
        total.add_(delta.sign().abs_())
    return total
