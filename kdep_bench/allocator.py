"""Stops glibc from returning freed memory to the operating system between training steps."""

from __future__ import annotations

import ctypes

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# mallopt(3) takes an int; blocks of 1 GiB and more are still returned to the system.
_TRIM, _MMAP = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Makes glibc keep up to 2 GiB of freed memory; returns False if there is no glibc.

    By default glibc maps each block above 32 MiB and unmaps it when it is freed, so that large
    feature maps cost one page fault per 4 KiB in every step. Results do not depend on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, _MMAP) and mallopt(M_TRIM_THRESHOLD, _TRIM)
    )
