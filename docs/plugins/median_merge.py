"""A merge operation of one's own: the median of the task vectors, which no single odd fine-tune can move far."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Distribution, Float, MergeOperation, Params


class Median(MergeOperation):
    """theta = theta_base + scale * median_k (theta_k - theta_base), entry by entry."""

    needs_base = True

    def distributions(self) -> Mapping[str, Distribution]:
        """Let the search choose a scale for each layer."""
        return {"scale": Float(0.2, 1.5)}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Sort the K task vectors entry by entry, and take the middle one (the mean of two for an even K)."""
        scale = params["scale"]
        assert base is not None and isinstance(scale, float)
        ordered = torch.stack([t - base for t in tensors]).sort(dim=0).values  # (K, ...)
        return base + scale * (ordered[(len(tensors) - 1) // 2] + ordered[len(tensors) // 2]) / 2
