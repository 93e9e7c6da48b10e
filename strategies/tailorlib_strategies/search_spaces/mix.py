"""Mix: which models make something, and how; a plan without its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tailorlib import LayerPlan, LayerSource
from tailorlib.distributions import ParamValue
from tailorlib.tailoring import BASE, SELECT, Owner, PartPlan


@dataclass(frozen=True)
class Mix:
    """The models that make something, and how: a plan without its place.

    Args:
        models: One model, which is taken as it is, or several, which are merged.
        operation: Name of the operation.
        params: Its hyperparameters, complete.
        on_base: Whether task vectors against the base are merged.
    """

    models: tuple[str, ...] = (BASE,)
    operation: str = SELECT
    params: tuple[tuple[str, ParamValue], ...] = ()
    on_base: bool = False

    def layer(self, i: int) -> LayerPlan:
        """Return the plan of a layer that is made from the models' layers ``i``."""
        sources = tuple(LayerSource(model, i) for model in self.models)
        return LayerPlan(sources, self.operation, self.params, LayerSource(BASE, i) if self.on_base else None)

    def part(self) -> Owner:
        """Return the plan of a part outside the layers."""
        if self.operation == SELECT:
            return self.models[0]
        return PartPlan(self.models, self.operation, self.params, BASE if self.on_base else None)

    @classmethod
    def of(cls, plan: LayerPlan | Owner) -> Mix:
        """Return what a plan mixes, wherever it takes it from."""
        if isinstance(plan, str):
            return cls((plan,))
        models = plan.models if isinstance(plan, PartPlan) else tuple(source.model for source in plan.sources)
        return cls(models, plan.operation, plan.params, plan.base is not None)


def plain(plan: LayerPlan) -> LayerPlan:
    """Return a layer's plan without its parts and residual scales."""
    bare = not (plan.parts or plan.is_scaled)
    return plan if bare else replace(plan, parts=(), attention_scale=1.0, mlp_scale=1.0)
