"""Stops glibc from returning freed memory to the operating system between training steps."""

from __future__ import annotations

import ctypes

# Parameter numbers of mallopt(3), from <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Bytes. The first is the largest value of a C int, the type of mallopt's argument. Blocks of 1 GiB
# and more are still returned to the system when they are freed.
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Makes glibc keep up to 2 GiB of freed memory.

    By default glibc returns each block above 32 MiB to the system when it is freed. Large feature
    maps then cost one page fault per 4 KiB in every training step. Results do not depend on it.

    Returns:
        False if there is no glibc or it does not accept the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, _TRIM_BYTES)
    )
