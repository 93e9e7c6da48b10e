"""Workspace: memory of large tensors that come and go in every scoring, kept for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Workspace:
    """Memory on a CPU, by what it is used for; each use has one tensor at a time.

    The C library gives a large freed block back to the kernel, which clears every page of the next one again: with
    a large vocabulary that takes longer than the logits. On other devices PyTorch keeps freed memory itself, and
    all tensors are new.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of any content; it is valid until the next one for the same use.

        Args:
            use: What it is for.
            shape: Its shape.
            dtype: Its data type.
            device: Where it lives.
        """
        if device.type != "cpu":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        size = prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.nbytes < size:
            held = None
            self._held.pop(use, None)  # the old one goes before the new one comes
            with torch.inference_mode(False):  # else it could be written to in inference mode alone
                held = self._held[use] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(tuple(shape))

    def clear(self) -> None:
        """Give all memory back."""
        self._held.clear()
