"""ScaleChoice: the residual scales of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tailorlib import Distribution, LayerPlan, Params
from tailorlib.distributions import ParamValue
from tailorlib_strategies.operations.residual_scale import ResidualScale

BRANCHES = ("attention", "mlp")


class ScaleChoice:
    """The factors of a layer's two branches: ``ResidualScale.attention`` and ``ResidualScale.mlp``.

    A factor that is one number is applied, and is no parameter.

    Args:
        scale: The ranges; ``None`` leaves both factors at 1.
    """

    def __init__(self, scale: ResidualScale | None) -> None:
        drawn = {} if scale is None else scale.distributions()
        self._fixed = {branch: 1.0 for branch in BRANCHES if branch not in drawn}
        self._fixed |= {branch: d.low for branch, d in drawn.items() if d.low == d.high}
        self._searched = {f"ResidualScale.{branch}": d for branch, d in drawn.items() if branch not in self._fixed}

    def parameters(self) -> Iterator[tuple[str, Distribution]]:
        """Yield every parameter, in a fixed order."""
        yield from self._searched.items()

    def active(self, params: Params, prefix: str) -> dict[str, ParamValue]:
        """Return what matters of an assignment, given the prefix of the layer."""
        return {f"{prefix}{name}": params[f"{prefix}{name}"] for name in self._searched}

    def scaled(self, plan: LayerPlan, params: Params, prefix: str) -> LayerPlan:
        """Return a layer's plan with its scales."""
        attention, mlp = (self._factor(branch, params, prefix) for branch in BRANCHES)
        return plan if attention == mlp == 1 else replace(plan, attention_scale=attention, mlp_scale=mlp)

    def encode(self, plan: LayerPlan, prefix: str) -> tuple[dict[str, ParamValue], list[str]]:
        """Return the parameters of a plan's scales, with their prefix, and which of them can't be had."""
        named: dict[str, ParamValue] = {}
        wrong = []
        for branch, value in zip(BRANCHES, (plan.attention_scale, plan.mlp_scale), strict=True):
            name = f"ResidualScale.{branch}"
            distribution = self._searched.get(name)
            if distribution is not None:
                named[prefix + name] = value
            if distribution is not None and not distribution.contains(value):
                wrong.append(f"{name}={value!r} is not in {distribution}")
            elif distribution is None and value != self._fixed[branch]:
                wrong.append(f"its {branch}_scale is {value}, not {self._fixed[branch]}")
        return named, wrong

    def continuous(self) -> int:
        """Return the number of searched factors."""
        return len(self._searched)

    def _factor(self, branch: str, params: Params, prefix: str) -> float:
        if branch in self._fixed:
            return self._fixed[branch]
        value = params[f"{prefix}ResidualScale.{branch}"]
        assert isinstance(value, int | float)
        return float(value)
