"""What a training step frees stays with the process, ready for its next step."""

from __future__ import annotations

import ctypes

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# mallopt(3) takes an int; blocks of a GiB and more still go back to the system.
_TRIM, _MMAP = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory below 2 GiB; False where there is no glibc.

    By default it maps every block above 32 MiB afresh and gives it back when it is freed. A
    network's large maps then cost a page fault each 4 KiB, every step. No result depends on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, _MMAP) and mallopt(M_TRIM_THRESHOLD, _TRIM)
    )
