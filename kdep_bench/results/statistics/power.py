"""Power of paired t tests: seeds needed for a difference, and minimum detectable difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, nctdtr, ndtr, stdtrit

from kdep_bench.results.statistics.intervals import LEVEL, MAX_SEEDS, POWER, Array, Values


def power(gap: float, sd: float, n: int, level: float = LEVEL, df: float | None = None) -> float:
    """Power of the two-sided paired t test for a true mean difference (noncentral t; Cohen 1988).

    Args:
        gap: the true mean difference.
        sd: standard deviation of the paired differences.
        n: number of pairs.
        level: confidence level of the test.
        df: degrees of freedom of `sd`; None: n - 1. It is larger if `sd` is pooled over methods.
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
    """Distribution function of the noncentral t with noncentrality `centre`, at `t`."""
    # The series is inaccurate for a large noncentrality, where the normal approximation is
    # sufficient (Abramowitz and Stegun 26.7.10).
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

    Args:
        gap, sd, level: as in `power`.
        goal: the required power.
        df_per_seed: degrees of freedom per seed after the first; 1 for a pair of methods alone.

    Returns:
        None if more than `MAX_SEEDS` are needed, or `gap` is 0.
    """

    def has_power(n: int) -> bool:
        return power(gap, sd, n, level, (n - 1) * df_per_seed) >= goal

    if gap == 0:
        return None
    low, high = 2, 2
    while not has_power(high):
        if high >= MAX_SEEDS:
            return None
        low, high = high, min(MAX_SEEDS, high * 2)
    while low < high:  # bisection: the power increases with n
        middle = (low + high) // 2
        low, high = (low, middle) if has_power(middle) else (middle + 1, high)
    return high


def sd_interval(sd: float, df: float, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the interval of a standard deviation of normal data with `df` degrees of freedom."""
    tail = (1 - level) / 2
    return tuple(sd * (df / float(chdtri(df, p))) ** 0.5 for p in (tail, 1 - tail))  # type: ignore[return-value]


def smallest_gap(
    sd: float, n: int, level: float = LEVEL, goal: float = POWER, df: float | None = None
) -> float | None:
    """Smallest true difference that `n` seed pairs detect with power `goal`.

    `sd` and `df` are those of `power`. Returns None if n < 2.
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
    """Variation between seeds of a task.

    Attributes:
        sd: standard deviation over the seeds of a method, pooled over methods; a fraction.
        df: degrees of freedom of `sd`.
        n: median number of independent seeds per method: its pre-training seeds, or its transfer
            seeds if there is one pre-training seed.
        detectable_difference: smallest true paired difference that `n` seeds detect with power 0.8.
            `noise_floor` assumes that the standard deviation of a difference is sqrt(2) times that
            of a method; `board.compare.noise` replaces it by that of the pooled model, if any.
    """

    sd: float
    df: int
    n: int
    detectable_difference: float | None


def _pooled(groups: Sequence[Array]) -> tuple[float, int]:
    """(standard deviation within the groups, its degrees of freedom)."""
    df = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / df)), df


def _units(values: Values) -> Array:
    """[n] independent values: the mean of each pre-training seed, or all values if there is one."""
    pretrain_seeds = sorted({k[0] for k in values})
    if len(pretrain_seeds) == 1:
        return np.array([values[k] for k in sorted(values)], dtype=np.float64)
    groups = [[values[k] for k in sorted(values) if k[0] == seed] for seed in pretrain_seeds]
    return np.array([sum(g) / len(g) for g in groups], dtype=np.float64)


def noise_floor(scores: Sequence[Values]) -> Noise | None:
    """The variation between seeds of one task and student; None if no method has two seeds.

    `scores`: the values of each method by seed pair.
    """
    repeated = [v for v in scores if len(v) > 1]
    if not repeated:
        return None
    sd, df = _pooled([np.array([v[k] for k in sorted(v)]) for v in repeated])
    several = [v for v in repeated if len({k[0] for k in v}) > 1]
    units = [_units(v) for v in several or repeated]
    n = int(np.median([len(u) for u in units]))
    return Noise(sd, df, n, smallest_gap(_pooled(units)[0] * 2**0.5, n))
