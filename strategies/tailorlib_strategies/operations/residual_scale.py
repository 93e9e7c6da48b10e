"""ResidualScale: how much a layer's attention and MLP add to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

from tailorlib import Float, Operation
from tailorlib_strategies.operations.hyperparameters import Range, searched


class ResidualScale(Operation):
    """Scale the two branches of a layer: h' = h + attention * Attention(h), h'' = h' + mlp * MLP(h').

    A factor of a branch folds exactly into the branch's output projection, or into the norm behind it: the scaled
    model is an ordinary model. The layer-wise output scale of automated model merging (arXiv 2502.04030).

    Args:
        attention: Factor of the attention's branch, 0 or more.
        mlp: Factor of the MLP's branch, 0 or more. For both: a number fixes it, a pair is searched.
    """

    def __init__(self, attention: Range = (0.5, 1.5), mlp: Range = (0.5, 1.5)) -> None:
        self.attention = searched("ResidualScale.attention", attention, low=0.0)
        self.mlp = searched("ResidualScale.mlp", mlp, low=0.0)

    def distributions(self) -> Mapping[str, Float]:
        """Return the ranges of ``attention`` and ``mlp``."""
        return {"attention": self.attention, "mlp": self.mlp}
