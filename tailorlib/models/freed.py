"""Freed memory: what the C library keeps of it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back_freed_memory() -> None:
    """Return freed memory to the system, where the C library can be told so; elsewhere this does nothing.

    glibc keeps the holes that short-lived tensors leave between those that stay: quantising a family can leave
    more of them than the family takes.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries than glibc have none
