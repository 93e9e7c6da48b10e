"""TaskArithmetic: the base plus scaled task vectors, the merge of the GPTailor paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.hyperparameters import Range, number, searched


def task_vectors(tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """Return the task vectors delta_k = theta_k - theta_base, stacked: (K, ...)."""
    assert base is not None  # MergeOperation.apply has checked it
    return torch.stack(list(tensors)) - base


class TaskArithmetic(MergeOperation):
    """Task arithmetic (arXiv 2212.04089): theta = theta_base + scale * sum_k (theta_k - theta_base).

    Args:
        scale: The factor of the summed task vectors (lambda); a number fixes it, a pair is searched.
    """

    needs_base = True

    def __init__(self, scale: Range = (0.0, 1.0)) -> None:
        self.scale = searched("TaskArithmetic.scale", scale)

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
        """Return theta_base + scale * sum_k delta_k."""
        assert base is not None
        return base + number(params, "scale") * task_vectors(tensors, base).sum(dim=0)
