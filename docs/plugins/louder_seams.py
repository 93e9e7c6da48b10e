"""A compensation of one's own: what stands below a gap speaks up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tailorlib import Compensation, CompensationContext, Tailoring
from tailorlib.compensation import seams


class LouderSeams(Compensation):
    """Scales what the MLP below each gap adds to the residual stream by ``1 + gain`` for each missing layer."""

    def __init__(self, gain: float = 0.1) -> None:
        self.gain = gain

    def prepare(self, context: CompensationContext) -> None:
        """Remember how deep the whole model is; nothing is measured here."""
        self.num_layers = context.family.layout.num_layers

    def complete(self, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring with louder layers below its gaps."""
        layers = list(tailoring.layers)
        for seam in seams(tailoring, self.num_layers):
            factor = 1 + self.gain * (seam.above - seam.layer - 1)
            layers[seam.plan] = replace(layers[seam.plan], mlp_scale=layers[seam.plan].mlp_scale * factor)
        return replace(tailoring, layers=tuple(layers))

    def facts(self) -> Mapping[str, Any]:
        """Return what a report says of it."""
        return {"gain": self.gain}
