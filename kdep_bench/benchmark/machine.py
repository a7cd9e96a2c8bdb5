"""Whether anything else runs here: times taken beside other work are no measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kdep_bench.errors import KdepError

STAT = Path("/proc/stat")
MOST = 0.1  # cores of other work that a measurement bears


def used(text: str) -> float:
    """Seconds of all cores that were not idle, from the text of /proc/stat (see proc(5)).

    Waiting for a disk is idle; what the host took from this machine (steal) is not.
    """
    user, nice, system, _, _, *others = (int(n) for n in text.splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def busy_cores(seconds: float = 2.0, stat: Path = STAT) -> float:
    """Cores in use, on average over `seconds` in which this process sleeps."""
    before, start = used(stat.read_text()), time.monotonic()
    time.sleep(seconds)
    return (used(stat.read_text()) - before) / (time.monotonic() - start)


def check_idle(busy: float, most: float = MOST) -> None:
    """KdepError where other work takes more than `most` cores."""
    if busy > most:
        raise KdepError(
            f"other processes use {busy:.1f} cores of this machine",
            expected=f"at most {most:g}",
            fix="wait until they end, or add --allow-busy, which is noted in the report",
        )
