"""Memory from the C library: how it deals with large tensors that come and go."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory for the next tensor, for the rest of the process.

    By default glibc returns every block above 32 MB to the kernel, which then clears fresh pages for the next one.
    An export makes and drops such blocks all the time, and would spend more time on that than on many a merge.

    Returns:
        Whether this C library can be told so.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than glibc have none
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    )
