"""Freed memory stays with the process, so that the next large block causes no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
import ctypes, resource, sys
from kdep_bench.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.memset.restype = ctypes.c_void_p, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = keep_freed_memory()
first, second = faults(), faults()
print(int(kept), first, second)
"""


def test_a_large_block_is_mapped_only_once():
    completed = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True
    ).stdout.split()
    kept, first, second = map(int, completed)
    if not kept:
        pytest.skip("no glibc here")
    assert first > 10  # 64 MiB are 16,384 pages of 4 KiB, or 32 huge pages of 2 MiB
    assert second < first / 5
