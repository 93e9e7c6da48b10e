"""TaskArithmetic: the base plus scaled task vectors, the merge of the GPTailor paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import add_task_vectors
from tailorlib_strategies.operations.hyperparameters import Range, number, per_source, searched


class TaskArithmetic(MergeOperation):
    """Task arithmetic (arXiv 2212.04089): theta = theta_base + scale * sum_k w_k (theta_k - theta_base).

    mergekit's ``normalize`` is weights divided by their sum.

    Args:
        scale: The factor of the summed task vectors (lambda); a number fixes it, a pair is searched.
        weights: The factor w_k of each task vector.
    """

    needs_base = True
    min_sources = 1

    def __init__(self, scale: Range = (0.0, 1.0), weights: Range = 1.0) -> None:
        self.scale = searched("TaskArithmetic.scale", scale)
        self.weights = searched("TaskArithmetic.weights", weights)

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
        """Return theta_base + scale * sum_k w_k delta_k."""
        assert base is not None
        return add_task_vectors(
            base, tensors, per_source(params, "weights", len(tensors)), number(params, "scale")
        )
