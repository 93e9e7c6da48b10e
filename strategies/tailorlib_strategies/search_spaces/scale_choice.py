"""ScaleChoice: the residual scales of one layer."""

from __future__ import annotations

from dataclasses import replace

from tailorlib import LayerPlan, Params
from tailorlib.distributions import ParamValue
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.search_spaces.hyperparameters import Hyperparameters


class ScaleChoice(Hyperparameters):
    """The factors of a layer's two branches: ``ResidualScale.attention`` and ``ResidualScale.mlp``.

    Args:
        scale: The ranges; ``None`` leaves both factors at 1.
    """

    def __init__(self, scale: ResidualScale | None) -> None:
        super().__init__(ResidualScale(1.0, 1.0) if scale is None else scale)

    def scaled(self, plan: LayerPlan, params: Params, prefix: str) -> LayerPlan:
        """Return a layer's plan with its scales."""
        factors = dict(self.decode(params, prefix))
        attention, mlp = factors["attention"], factors["mlp"]
        assert isinstance(attention, int | float) and isinstance(mlp, int | float)
        return plan if attention == mlp == 1 else replace(plan, attention_scale=attention, mlp_scale=mlp)

    def encode_layer(self, plan: LayerPlan, prefix: str) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a plan's scales, with their prefix, and which of them can't be had."""
        named, wrong = self.encode({"attention": plan.attention_scale, "mlp": plan.mlp_scale})
        return {f"{prefix}{name}": value for name, value in named.items()}, wrong
