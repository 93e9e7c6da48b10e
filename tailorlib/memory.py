"""Freed memory: what the C library keeps of it, for the next tensor, and what it gives back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST, _LARGEST_OF_OLD = 2**30, 2**25


def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory for the next tensor, for the rest of the process.

    By default glibc returns every block above 32 MB to the kernel, which then clears fresh pages for the next one.
    An evaluation and an export make and drop such blocks all the time: a third of a search can go into that.

    Returns:
        Whether this C library can be told so.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is None:
        return False
    # before 2.35 glibc takes no threshold above 32 MB
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def give_back_freed_memory() -> None:
    """Return freed memory to the system, where the C library can be told so; elsewhere this does nothing.

    glibc keeps the holes that short-lived tensors leave between those that stay: quantising a family can leave
    more of them than the family takes.
    """
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _of_c_library(name: str) -> Callable[..., int] | None:
    """Return a function of the C library by name; ``None`` where there is none, as everywhere but in glibc."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)
