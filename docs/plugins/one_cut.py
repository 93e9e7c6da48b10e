"""A search space of one's own: one cut through the model, and a source for each side of it."""

from collections.abc import Mapping

from tailorlib import (
    Categorical,
    Distribution,
    Integer,
    LayerPlan,
    LayerSource,
    Params,
    SearchSpace,
    SpaceSize,
    Tailoring,
)
from tailorlib.exceptions import RecipeError


class OneCut(SearchSpace):
    """One run of neighbouring layers goes; what is below comes from one model, what is above from one."""

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def distributions(self) -> Mapping[str, Distribution]:
        """Return where the cut begins, and the two sources."""
        models = Categorical(self.layout.models)
        return {"start": Integer(1, self.layout.num_layers - self.count - 1), "below": models, "above": models}

    def active(self, params: Params) -> Params:
        """Return all: every parameter matters here."""
        return {name: params[name] for name in self.distributions()}

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Take layers below ``start`` from one model, and those from ``start + count`` on from the other."""
        start = params["start"]
        assert isinstance(start, int)
        below = [LayerSource(str(params["below"]), i) for i in range(start)]
        above = [LayerSource(str(params["above"]), i) for i in range(start + self.count, self.layout.num_layers)]
        return Tailoring(tuple(LayerPlan((source,)) for source in below + above), seed=seed)

    def encode(self, tailoring: Tailoring) -> Params:
        """Read the params off the layers, and see whether they mean this tailoring."""
        sources = [plan.sources[0] for plan in tailoring.layers]
        start = next((i for i, source in enumerate(sources) if source.layer != i), len(sources))
        params: Params = {"start": start, "below": sources[0].model, "above": sources[-1].model}
        if (
            not self.distributions()["start"].contains(start)
            or self.decode(params, seed=tailoring.seed) != tailoring
        ):
            raise RecipeError(f"OneCut removes one run of {self.count} layers and takes each side from one model.")
        return params

    def size(self) -> SpaceSize:
        """Return the number of cuts times the number of pairs of sources."""
        return SpaceSize((self.layout.num_layers - self.count - 1) * len(self.layout.models) ** 2, continuous=0)
