"""Detects other work on the machine, which would make measured times wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kdep_bench.errors import KdepError

STAT = Path("/proc/stat")
MAX_BUSY_CORES = 0.1  # cores; with more work on the machine, a measurement is not valid


def busy_seconds(text: str) -> float:
    """Core-seconds since boot that were not idle, from the text of /proc/stat (see proc(5)).

    Waiting for a disk counts as idle. Time that the host gave to other guests (steal) is included.
    """
    fields = text.splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, fields)
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


def busy_cores(seconds: float = 2.0, stat: Path = STAT) -> float:
    """Mean number of cores in use by other processes; this process sleeps for `seconds`."""
    before, start = busy_seconds(stat.read_text()), time.monotonic()
    time.sleep(seconds)
    return (busy_seconds(stat.read_text()) - before) / (time.monotonic() - start)


def check_idle(busy: float, limit: float = MAX_BUSY_CORES) -> None:
    """Raises KdepError if other work uses more than `limit` cores."""
    if busy > limit:
        raise KdepError(
            f"other processes use {busy:.1f} cores of this machine",
            expected=f"at most {limit:g}",
            fix="wait until they end, or add --allow-busy (the report then has a warning)",
        )
