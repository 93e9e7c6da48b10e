"""MagnitudeScale: the stream above a gap gets the size that it had."""

from __future__ import annotations

from dataclasses import replace

from tailorlib import Tailoring
from tailorlib.compensation import seams
from tailorlib_strategies.compensations.bridge import Tabled


class MagnitudeScale(Tabled):
    """Scales the stream at each gap by the mean of ``|H_m| / |H_{l+1}|``, one number per gap.

    The magnitude compensation of Prune&Comp (arXiv 2507.18212). To scale the stream by a factor is to scale by its
    inverse what all layers above add to it: the norms that read a stream, the final one too, take no notice of its
    size. So the factors fold into the layers' output matrices as residual scales. It is there to compare with.

    Args:
        calibration: The text, in domains.
        teacher: As of :class:`Bridge`.
    """

    def complete(self, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring with residual scales above its gaps."""
        layers, factor = list(tailoring.layers), 1.0
        found = {seam.plan: seam for seam in seams(tailoring, self._num_layers)}
        for i, plan in enumerate(layers):
            layers[i] = replace(
                plan, attention_scale=plan.attention_scale / factor, mlp_scale=plan.mlp_scale / factor
            )
            if i in found:
                factor *= self.table.facts["pairs"][f"{found[i].layer}-{found[i].above}"]["magnitude"]
        return replace(tailoring, layers=tuple(layers))
