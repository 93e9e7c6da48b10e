"""Linear: the weighted mean of the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Distribution, MergeOperation, Params
from tailorlib_strategies.operations.blocks import weighted_sum
from tailorlib_strategies.operations.hyperparameters import Range, fixed, per_source, searched
from tailorlib_strategies.operations.interpolate import normalized


class Linear(MergeOperation):
    """The weighted mean of the sources (model soup, arXiv 2203.05482): theta = sum_k w_k theta_k / sum_k w_k.

    Where the weights sum to zero, equal weights take their place (mergekit 0.1.5: not a number).

    Args:
        weights: The weight w_k of each source; a number gives all the same, a pair is searched.
        normalize: Whether to divide by the sum of the weights. A single source is then taken as it is, else it is
            multiplied by its weight.
    """

    min_sources = 1

    def __init__(self, weights: Range = (0.0, 1.0), normalize: bool = True) -> None:
        self.weights = searched("Linear.weights", weights)
        self.normalize = fixed("Linear.normalize", normalize)

    def distributions(self) -> Mapping[str, Distribution]:
        """Return the fixed ``normalize``."""
        return {"normalize": self.normalize}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return sum_k w_k theta_k, the weights normalised."""
        weights = per_source(params, "weights", len(tensors))
        return weighted_sum(tensors, normalized(weights) if params["normalize"] else weights)
