"""A warm start of one's own: every so many layers one goes."""

from collections.abc import Sequence

from tailorlib import LayerPlan, LayerSource, Tailoring, WarmStart, WarmStartContext
from tailorlib.tailoring import BASE


class Evenly(WarmStart):
    """Removes ``count`` layers of the base, spread evenly between its first and its last."""

    def __init__(self, count: int) -> None:
        self.count = count

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return one tailoring: the base without every n-th layer."""
        layers = context.family.layout.num_layers
        gone = {(i + 1) * layers // (self.count + 1) for i in range(self.count)}
        kept = tuple(LayerPlan((LayerSource(BASE, i),)) for i in range(layers) if i not in gone)
        return [Tailoring(kept, seed=context.seed)]
