"""LayerRemoval: how many layers go, and which may."""

from __future__ import annotations

import math

from tailorlib import Operation, Subset
from tailorlib.exceptions import RecipeError


class LayerRemoval(Operation):
    """Exactly R = ceil(ratio * L) of the L layers are removed, or any number within a range.

    Args:
        ratio: Share of the layers to remove, in [0, 1), or a range of shares, such as ``[0.1, 0.4]``. Give either
            this or ``count``.
        count: Number of layers to remove, or a range of numbers.
        protect: Layers that stay; negative numbers count from the top.
    """

    def __init__(
        self,
        ratio: float | list[float] | None = None,
        count: int | list[int] | None = None,
        protect: list[int] | None = None,
    ) -> None:
        faults = []
        if (ratio is None) == (count is None):
            faults.append(
                f"LayerRemoval takes either a ratio or a count, got ratio={ratio} and count={count}. Give one."
            )
        for name, given in (("ratio", ratio), ("count", count)):
            if isinstance(given, list) and not (len(given) == 2 and given[0] <= given[1]):
                faults.append(f"LayerRemoval.{name} is a number or a range [low, high], got {given}.")
        if ratio is not None and not all(0 <= share < 1 for share in _ends(ratio)):
            faults.append(f"LayerRemoval.ratio is in [0, 1), got {ratio}. Write 25 % as 0.25.")
        if count is not None and not all(number >= 0 for number in _ends(count)):
            faults.append(f"LayerRemoval.count is 0 or more, got {count}. Write how many layers to remove.")
        if faults:
            raise RecipeError(faults)
        self.ratio, self.count, self.protect = ratio, count, tuple(protect or ())

    @property
    def varies(self) -> bool:
        """Whether the number of removed layers is searched as well."""
        return isinstance(self.ratio if self.count is None else self.count, list)

    def number(self, num_layers: int) -> int:
        """Return R for a model of ``num_layers`` layers, the largest one of a range.

        Raises:
            RecipeError: If no layer would be left.
        """
        return self.numbers(num_layers)[1]

    def numbers(self, num_layers: int) -> tuple[int, int]:
        """Return the least and the largest R for a model of ``num_layers`` layers.

        Raises:
            RecipeError: If no layer would be left.
        """
        if self.count is not None:
            least, most = (int(number) for number in _ends(self.count))
        else:  # 0.07 * 100 is 7.000000000000001 in floating point: round off before the ceiling
            least, most = (math.ceil(round(share * num_layers, 9)) for share in _ends(self.ratio or 0))
        if most >= num_layers:
            raise RecipeError(
                f"LayerRemoval keeps at least one layer, got {most} of {num_layers} to remove. Lower the ratio "
                "or the count."
            )
        return least, most

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
        least, most = self.numbers(num_layers)
        return Subset(len(self.removable(num_layers)), most, least if self.varies else None)


def _ends(given: float | list[float] | list[int]) -> tuple[float, float]:
    """Return both ends of a range, or a number twice."""
    return (given[0], given[-1]) if isinstance(given, list) else (given, given)
