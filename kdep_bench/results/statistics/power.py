"""Power of paired t tests: seeds needed for a difference, and minimum detectable difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, nctdtr, ndtr, stdtrit

from kdep_bench.results.statistics.intervals import LEVEL, MOST_SEEDS, POWER, Array, Values


def power(gap: float, sd: float, n: int, level: float = LEVEL, df: float | None = None) -> float:
    """Power of the two-sided paired t test at `n` pairs for a true mean difference `gap`.

    `sd` is the standard deviation of the paired differences, `df` its degrees of freedom: n - 1 by
    default, more where several methods estimate it together. Noncentral t (Cohen 1988).
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if gap else 0.0
    df, centre = n - 1 if df is None else df, abs(gap) / sd * n**0.5
    critical = float(stdtrit(df, (1 + level) / 2))
    upper = 1 - _nct(df, centre, critical)
    lower = _nct(df, centre, -critical)
    return float(np.clip(upper + lower, 0.0, 1.0))


def _nct(df: float, centre: float, t: float) -> float:
    # The series is inaccurate far from the centre, where the normal approximation is sufficient
    # (Abramowitz and Stegun 26.7.10).
    if centre < 30:
        value = float(nctdtr(df, centre, t))
        if np.isfinite(value):
            return value
    z = (t * (1 - 1 / (4 * df)) - centre) / (1 + t * t / (2 * df)) ** 0.5
    return float(ndtr(z))


def seeds_needed(
    gap: float, sd: float, level: float = LEVEL, goal: float = POWER, df_per_seed: float = 1.0
) -> int | None:
    """Smallest number of seed pairs that detects a true difference `gap` with power `goal`.

    `df_per_seed`: degrees of freedom that each seed beyond the first adds, 1 for a pair of methods
    alone. None where more than `MOST_SEEDS` would be needed, or the gap is zero.
    """

    def reached(n: int) -> bool:
        return power(gap, sd, n, level, (n - 1) * df_per_seed) >= goal

    if gap == 0:
        return None
    low, high = 2, 2
    while not reached(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(MOST_SEEDS, high * 2)
    while low < high:  # power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return high


def sd_interval(sd: float, df: float, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the interval of a standard deviation with `df` degrees of freedom, normal data."""
    tail = (1 - level) / 2
    return tuple(sd * (df / float(chdtri(df, p))) ** 0.5 for p in (tail, 1 - tail))  # type: ignore[return-value]


def smallest_gap(
    sd: float, n: int, level: float = LEVEL, goal: float = POWER, df: float | None = None
) -> float | None:
    """Smallest true difference that `n` seed pairs detect with power `goal`.

    None below two pairs. `sd`, `df` as in `power`.
    """
    if n < 2:
        return None
    if sd == 0:
        return 0.0
    low, high = 0.0, sd
    while power(high, sd, n, level, df) < goal:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, sd, n, level, df) >= goal else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise floor of a task: `sd` over the seeds of a method, pooled over methods (`df`).

    `n`: median number of independent seeds per method (its pre-training seeds where there are
    several, with the mean over transfer seeds as value; otherwise its transfer seeds).
    `detectable_difference`: smallest true paired difference that `n` seeds detect with power 0.8;
    the sd of a difference is that of the pooled model, without one sqrt(2) times that of a method.
    """

    sd: float
    df: int
    n: int
    detectable_difference: float | None


def _pooled(groups: Sequence[Array]) -> tuple[float, int]:
    df = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / df)), df


def _units(values: Values) -> Array:
    """[n] independent values: means per pre-training seed, or the values of the only one."""
    pretrain = sorted({k[0] for k in values})
    if len(pretrain) == 1:
        return np.array([values[k] for k in sorted(values)], dtype=np.float64)
    groups = [[values[k] for k in sorted(values) if k[0] == p] for p in pretrain]
    return np.array([sum(g) / len(g) for g in groups], dtype=np.float64)


def noise_floor(scores: Sequence[Values]) -> Noise | None:
    """Noise of one task and student; None where no method has two seeds.

    `scores`: one entry per method, values by seed pair.
    """
    repeated = [v for v in scores if len(v) > 1]
    if not repeated:
        return None
    sd, df = _pooled([np.array([v[k] for k in sorted(v)]) for v in repeated])
    several = [v for v in repeated if len({k[0] for k in v}) > 1]
    units = [_units(v) for v in several or repeated]
    n = int(np.median([len(u) for u in units]))
    return Noise(sd, df, n, smallest_gap(_pooled(units)[0] * 2**0.5, n))
