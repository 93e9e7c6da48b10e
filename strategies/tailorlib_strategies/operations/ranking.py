"""Selection by magnitude, exact and in O(n): no sort, and ties have a rule."""

from __future__ import annotations

import torch
from torch import Tensor

from tailorlib_strategies.operations.blocks import blocks

_SMALL = 1 << 16
_SAMPLE = 1 << 15
_MARGIN = 0.01


class Largest:
    """Tells the ``k`` entries of largest magnitude of a tensor, block by block.

    Of entries tied at the threshold those that come first belong, so that the count is exact and every device
    agrees (deltas of bfloat16 models are full of ties).

    Args:
        tensor: A tensor of any shape.
        k: How many entries, from 0 to all.
    """

    def __init__(self, tensor: Tensor, k: int) -> None:
        n = tensor.numel()
        self._k, self._all = k, k >= n
        if 0 < k < n:
            self.threshold = kth_largest(tensor, k)
            above = sum(int((b.abs() > self.threshold).count_nonzero()) for (b,) in blocks(tensor))
            self._tied = k - above

    def rest(self, block: Tensor) -> Tensor:
        """Return a mask of the entries that don't belong; the blocks of the tensor are asked about in order."""
        if self._k == 0 or self._all:
            return torch.full_like(block, not self._all, dtype=torch.bool)
        magnitude = block.abs()
        rest = magnitude < self.threshold
        tied = (magnitude == self.threshold).nonzero().flatten()
        rest[tied[self._tied :]] = True
        self._tied -= min(self._tied, len(tied))
        return rest


def kth_largest(tensor: Tensor, k: int) -> float:
    """Return the magnitude that ``k`` entries reach: the k-th largest, k = 1 .. n.

    A sample says between which two values it lies; one pass over the tensor finds what lies between them.
    """
    n = tensor.numel()
    flat = tensor.reshape(-1)
    if n > _SMALL:
        sample = flat[:: max(1, n // _SAMPLE)].abs().sort(descending=True).values
        high = float(sample[max(0, int((k / n - _MARGIN) * len(sample)))]) if k / n > _MARGIN else float("inf")
        low = float(sample[min(len(sample) - 1, int((k / n + _MARGIN) * len(sample)))])
        above, found = _between(flat, low, high)
        if above < k <= above + len(found):
            if low == high:
                return low
            if len(found) <= n // 2:
                return kth_largest(found, k - above)
    return float(flat.abs().kthvalue(n - k + 1).values)


def _between(flat: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """Return how many magnitudes exceed ``high``, and those from ``low`` to ``high``."""
    above, found = 0, []
    for (block,) in blocks(flat):
        magnitude = block.abs()
        reach = magnitude[magnitude >= low]
        inside = reach[reach <= high]
        above += len(reach) - len(inside)
        found.append(inside)
    return above, torch.cat(found)
