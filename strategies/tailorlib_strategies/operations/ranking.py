"""Selection by magnitude, exact and in O(n): no sort, and ties have a rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tailorlib_strategies.operations.blocks import blocks

_SMALL = 1 << 15
"""Entries among which a selection is quicker without a sample."""
_SAMPLES = 1 << 12, 1 << 15
"""The smallest and the largest sample."""


class Largest:
    """Tells the ``k`` entries of largest magnitude of a tensor, block by block.

    Of entries tied at the threshold those that come first belong, so that the count is exact and every device
    agrees (deltas of bfloat16 models are full of ties). Entries of zero never belong.

    Args:
        tensor: A tensor of any shape.
        k: How many entries; none below 1, all from the tensor's size on.
    """

    def __init__(self, tensor: Tensor, k: int) -> None:
        self._threshold = 0.0 if k >= tensor.numel() else math.inf
        self._tied: int | None = None
        if 0 < k < tensor.numel():
            self._threshold, above, tied = kth_largest(tensor, k)
            self._tied = k - above if k < above + tied else None  # those still to come; None if all belong
        self._below = float(torch.tensor(self._threshold).nextafter(torch.tensor(0.0)))

    def mask(self, block: Tensor) -> Tensor:
        """Return 1 where an entry belongs, else 0; the blocks of the tensor are asked about in order."""
        magnitude = block.abs()
        mask = torch.hardshrink(magnitude, self._below).sign_()
        if self._tied is not None:
            tied = (magnitude == self._threshold).nonzero().flatten()
            mask[tied[self._tied :]] = 0.0
            self._tied -= min(self._tied, len(tied))
        return mask


def kth_largest(tensor: Tensor, k: int) -> tuple[float, int, int]:
    """Return the magnitude that ``k`` entries reach, how many exceed it, and how many equal it.

    A sample says between which two values it lies; one pass over the tensor finds what lies between them.

    Args:
        tensor: A tensor of n entries.
        k: From 1 to n.
    """
    n = tensor.numel()
    flat = tensor.reshape(-1)
    if n > _SMALL:
        sample = flat[:: n // min(max(n >> 6, _SAMPLES[0]), _SAMPLES[1])].abs().sort(descending=True).values
        margin = 2 / math.sqrt(len(sample))  # of a quantile: four standard errors or more
        first, last = (int((k / n + m) * len(sample)) for m in (-margin, margin))
        high = float(sample[first]) if first > 0 else math.inf
        low = float(sample[last]) if last < len(sample) else 0.0
        above, found = _between(flat, low, high)
        if above < k <= above + len(found):
            if low == high:
                return low, above, len(found)
            if len(found) <= n // 2:
                threshold, inside, tied = kth_largest(found, k - above)
                return threshold, above + inside, tied
    magnitude = flat.abs()
    threshold = float(magnitude.kthvalue(n - k + 1).values)
    above, reached = (int(m.count_nonzero()) for m in (magnitude > threshold, magnitude >= threshold))
    return threshold, above, reached - above


def _between(flat: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """Return how many magnitudes exceed ``high``, and those from ``low`` to ``high``."""
    above, found = 0, []
    for (block,) in blocks(flat):
        magnitude = block.abs()
        above += int((magnitude > high).count_nonzero())
        found.append(magnitude[(magnitude >= low).logical_and_(magnitude <= high)])
    return above, torch.cat(found)
