"""Phases of a run: intervals of equal length, given as fractions of the run. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from kdep_bench.errors import KdepError


def check_phases(phases: Sequence[float], length: float) -> None:
    """Raises KdepError unless the phases are in order, within the run and do not overlap.

    Args:
        phases: fractions of the run at which a phase begins.
        length: length of each phase, as a fraction of the run.
    """
    shortest = length - 1e-9  # allows for rounding
    is_ordered = all(b - a >= shortest for a, b in itertools.pairwise(phases))
    if not (is_ordered and all(0 <= start <= 1 - shortest for start in phases)):
        raise KdepError(
            f"phases={list(phases)} of length={length:g}",
            expected="fractions of the run in ascending order, each phase ending before the next "
            "begins and before the run ends",
            fix="correct `phases` and `length` in the method's objective",
        )


def in_phase(step: int, steps: int, phases: Sequence[float], length: float) -> bool:
    """Whether a step, of a run of `steps` steps, is in a phase."""

    def first_step(fraction: float) -> int:
        return math.ceil(fraction * steps - 1e-6)  # allows for rounding

    return any(first_step(p) <= step < first_step(p + length) for p in phases)
