"""LayerRemoval: how many layers go, and which may."""

from __future__ import annotations

import math

from tailorlib import Operation, Subset
from tailorlib.exceptions import RecipeError


class LayerRemoval(Operation):
    """Exactly R = ceil(ratio * L) of the L layers are removed.

    Args:
        ratio: Share of the layers to remove, in [0, 1). Give either this or ``count``.
        count: Number of layers to remove.
        protect: Layers that stay; negative numbers count from the top.
    """

    def __init__(
        self, ratio: float | None = None, count: int | None = None, protect: list[int] | None = None
    ) -> None:
        faults = []
        if (ratio is None) == (count is None):
            faults.append(
                f"LayerRemoval takes either a ratio or a count, got ratio={ratio} and count={count}. Give one."
            )
        if ratio is not None and not 0 <= ratio < 1:
            faults.append(f"LayerRemoval.ratio is in [0, 1), got {ratio}. Write 25 % as 0.25.")
        if count is not None and count < 0:
            faults.append(f"LayerRemoval.count is 0 or more, got {count}. Write how many layers to remove.")
        if faults:
            raise RecipeError(faults)
        self.ratio, self.count, self.protect = ratio, count, tuple(protect or ())

    def number(self, num_layers: int) -> int:
        """Return R for a model of ``num_layers`` layers.

        Raises:
            RecipeError: If no layer would be left.
        """
        # 0.07 * 100 is 7.000000000000001 in floating point: round off before the ceiling
        removed = self.count if self.count is not None else math.ceil(round((self.ratio or 0) * num_layers, 9))
        if removed >= num_layers:
            raise RecipeError(
                f"LayerRemoval keeps at least one layer, got {removed} of {num_layers} to remove. Lower the ratio "
                "or the count."
            )
        return removed

    def removable(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers that are not protected, ascending.

        Raises:
            RecipeError: If ``protect`` names a layer that the model doesn't have, or leaves too few.
        """
        unknown = [i for i in self.protect if not -num_layers <= i < num_layers]
        if unknown:
            raise RecipeError(
                f"LayerRemoval.protect names layers from {-num_layers} to {num_layers - 1}, got {unknown}. Take "
                "them out."
            )
        protected = {i % num_layers for i in self.protect}
        removable = tuple(i for i in range(num_layers) if i not in protected)
        if len(removable) < self.number(num_layers):
            raise RecipeError(
                f"LayerRemoval needs as many unprotected layers as it removes, got {len(removable)} for "
                f"{self.number(num_layers)}. Protect fewer layers or remove fewer."
            )
        return removable

    def subset(self, num_layers: int) -> Subset:
        """Return the distribution of the removed layers, as positions in :meth:`removable`."""
        return Subset(len(self.removable(num_layers)), self.number(num_layers))
