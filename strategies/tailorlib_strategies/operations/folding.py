"""LayerFolding: neighbouring layers folded into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import add_task_vectors
from tailorlib_strategies.operations.hyperparameters import Range, number, searched


class LayerFolding(MergeOperation):
    """Layer collapse (LaCo, arXiv 2402.11187): theta = theta_1 + scale * sum_{k > 1} (theta_k - theta_1).

    The first source is the layer that the others are folded into: usually the lowest of some neighbours, of one
    model or of several. At scale 1 this is the paper's equation, theta_l + sum_k (theta_{l+k} - theta_l).

    Args:
        scale: The factor of the summed differences; a number fixes it, a pair is searched.
    """

    def __init__(self, scale: Range = 1.0) -> None:
        self.scale = searched("LayerFolding.scale", scale)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``scale``."""
        return {"scale": self.scale}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_1 + scale * sum_k (theta_k - theta_1)."""
        anchor, *others = tensors
        return add_task_vectors(anchor, others, [1.0] * len(others), number(params, "scale"))
