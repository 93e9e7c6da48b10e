"""A device whose memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

OUT_OF_MEMORY = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."),
}


@contextmanager
def memory_for(model: Any, tokens: int, error: Exception) -> Iterator[list[int]]:
    """Let the decoder fail with more tokens than that; yields the sizes that it failed with."""
    decoder, failed = model.get_decoder(), []
    forward = decoder.forward

    def limited(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.numel() > tokens:
            failed.append(input_ids.numel())
            raise error
        return forward(input_ids=input_ids, **kwargs)

    decoder.forward = limited
    try:
        yield failed
    finally:
        del decoder.forward
