"""Means and confidence intervals over seeds, and paired differences.

Scores are fractions with the key (pre-training seed, transfer seed). The kind of interval depends
on the number of seeds:

* With three seeds, 95 % bootstrap intervals of the mean (percentile and BCa) cover only about 75 %
  on normal data, because they resample just three values. Student's t covers 95 % on normal data
  for any n (Student 1908). So Student's t is used below `BOOTSTRAP_FROM` values, BCa (Efron 1987)
  from there to `BOOTSTRAP_TO`, and Student's t above, where the two agree. The tests of this module
  simulate the coverage.
* Values that share a pre-training seed are not independent. With P x T crossed seeds the variance
  of the mean is Vp + Vt - Ve: the variance clustered by pre-training seed, plus that clustered by
  transfer seed, minus the residual variance, which both contain (Cameron, Gelbach and Miller
  2011). The degrees of freedom are those of Satterthwaite (1946).

The intervals cover the variance between seeds, not between test sets or tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.95  # confidence level of the intervals
POWER = 0.80  # power for which numbers of seeds and detectable differences are computed
BOOTSTRAP_FROM = 50  # smallest number of values for a BCa interval
BOOTSTRAP_TO = 300  # largest number of values for a BCa interval
MAX_SEEDS = 1000  # larger numbers of seeds are not computed
ROUNDING = 1e-12  # rounding error of a sum of scores: a smaller difference is treated as 0

Key = tuple[int, int]  # (pre-training seed, transfer seed)
Values = Mapping[Key, float]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean score, or a difference of two mean scores, with its interval.

    Attributes:
        mean: the mean or difference.
        sd: standard deviation of the values over seeds; None for n = 1 and for "welch".
        n: number of values; of a "pooled t" difference, number of common seed pairs.
        se: standard error of `mean`; None without an interval.
        df: degrees of freedom of `se`; None without an interval.
        low, high: ends of the interval; None if there is none (`method` "none").
        method: how the interval was computed: "t", "bca", "crossed t", "crossed bootstrap",
            "pooled t", "welch" or "none".
        seeds: the seeds that the interval covers, as text.
    """

    mean: float
    sd: float | None
    n: int
    se: float | None
    df: float | None
    low: float | None
    high: float | None
    method: str
    seeds: str

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False without an interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """(mean, low, high), each [...], of `values` [..., n], n >= 2, by Student's t."""
    n = values.shape[-1]
    mean = values.mean(-1)
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(-1, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def bca_interval(
    values: Array, level: float = LEVEL, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """(low, high): the BCa bootstrap interval of the mean of `values` [n] (Efron 1987).

    The random generator has a fixed seed, so equal values have equal intervals.
    """
    n = len(values)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    means = np.sort(values[rng.integers(0, n, (resamples, n))].mean(1))
    mean = values.mean()
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / resamples
    z0 = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    # For a mean, the jackknife deviations are proportional to the centred values.
    deviations = values - mean
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    z = z0 + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    levels = ndtr(z0 + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def crossed_moments(grid: Array) -> tuple[Array, Array, Array]:
    """(mean, standard error, degrees of freedom), each [...], of grids [..., P, T], P, T >= 2.

    P: pre-training seeds, T: transfer seeds. The variance is Vp + Vt - Ve of the module's
    docstring, but at least the larger of Vp and Vt.
    """
    p, t = grid.shape[-2:]
    mean = grid.mean((-2, -1))
    rows, cols = grid.mean(-1), grid.mean(-2)
    rest = grid - rows[..., :, None] - cols[..., None, :] + mean[..., None, None]
    v_rows = rows.var(-1, ddof=1) / p
    v_cols = cols.var(-1, ddof=1) / t
    v_rest = (rest**2).sum((-2, -1)) / ((p - 1) * (t - 1)) / (p * t)
    variance = np.maximum(v_rows + v_cols - v_rest, np.maximum(v_rows, v_cols))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (
            v_rows**2 / (p - 1) + v_cols**2 / (t - 1) + v_rest**2 / ((p - 1) * (t - 1))
        )
    max_df = p * t - 1
    df = np.clip(np.nan_to_num(df, nan=max_df, posinf=max_df), min(p, t) - 1, max_df)
    return mean, np.sqrt(variance), df


def _seed_text(p: int, t: int, is_grid: bool) -> str:
    """The text for `p` pre-training and `t` transfer seeds; `is_grid`: all combinations exist."""
    if p > 1 and t > 1 and is_grid:
        return f"{p} pre-training x {t} transfer seeds"
    if p > 1:
        return f"{p} pre-training seeds"
    return f"{t} transfer seed{'s' if t > 1 else ''}"


def seed_text(keys: Sequence[Key]) -> str:
    """The seeds that an interval over values with these keys covers: "3 pre-training seeds"."""
    p, t = _seed_counts(tuple(keys))
    return _seed_text(p, t, is_grid=len(keys) == p * t)


@lru_cache(maxsize=4096)
def _seed_counts(keys: tuple[Key, ...]) -> tuple[int, int]:
    """(number of pre-training seeds, number of transfer seeds) in `keys`."""
    return len({k[0] for k in keys}), len({k[1] for k in keys})


def estimate(values: Values, level: float = LEVEL) -> Estimate:
    """Mean and interval of `values`, whose keys are (pre-training seed, transfer seed).

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("there are no values to estimate from")
    # The keys are sorted: the last digits of a sum must not depend on the order of the records.
    keys = tuple(sorted(values))
    return estimate_of_array(keys, np.array([values[k] for k in keys], dtype=float), level)


def estimate_of_array(keys: tuple[Key, ...], x: Array, level: float = LEVEL) -> Estimate:
    """`estimate` of the values `x` [n] with the sorted `keys`."""
    p, t = _seed_counts(keys)
    n = len(keys)
    sd = float(x.std(ddof=1)) if n > 1 else None
    is_grid = n == p * t
    seeds = _seed_text(p, t, is_grid)
    if n == 1:
        return Estimate(float(x[0]), None, 1, None, None, None, None, "none", seeds)
    if p > 1 and t > 1 and is_grid:
        mean, se, df = (float(v) for v in crossed_moments(x.reshape(p, t)))
        half = float(stdtrit(df, (1 + level) / 2)) * se
        return Estimate(mean, sd, n, se, df, mean - half, mean + half, "crossed t", seeds)
    if p > 1 and t > 1:  # not a complete grid: only the means per pre-training seed are independent
        pretrain_seeds = np.array([k[0] for k in keys])
        x = np.array([x[pretrain_seeds == seed].mean() for seed in np.unique(pretrain_seeds)])
    mean, low, high = (float(v) for v in t_interval(x, level))
    n_independent, method = len(x), "t"
    if BOOTSTRAP_FROM <= n_independent <= BOOTSTRAP_TO:
        (low, high), method = bca_interval(x, level), "bca"
    se = float(x.std(ddof=1)) / n_independent**0.5
    return Estimate(mean, sd, n, se, float(n_independent - 1), low, high, method, seeds)


def differences(a: Values, b: Values, fixed_b: bool = False) -> dict[Key, float]:
    """Seed pair -> a - b, for every common seed pair.

    `fixed_b`: whether b is not pre-trained by the suite (published weights). It then has a single
    pre-training seed, and its values are compared with all pre-training seeds of a.
    """
    if fixed_b and len({k[0] for k in b}) == 1:
        by_transfer = {k[1]: v for k, v in b.items()}
        return {k: a[k] - by_transfer[k[1]] for k in sorted(a) if k[1] in by_transfer}
    return {k: a[k] - b[k] for k in sorted(a) if k in b}


def mean_over(tables: Sequence[Values], weights: Sequence[float] | None = None) -> dict[Key, float]:
    """Seed pair -> mean over `tables`, for the seed pairs that all of them have.

    Args:
        tables: the values of each task.
        weights: the weight of each task, divided by their sum; equal weights if None.
    """
    if not tables:
        return {}
    keys = set(tables[0]).intersection(*tables[1:])
    return {k: float(np.average([v[k] for v in tables], weights=weights)) for k in sorted(keys)}


def p_two_sided(est: Estimate, value: float = 0.0) -> float:
    """Two-sided p value for a true mean of `value`; 1 without an interval."""
    if est.se is None or est.df is None:
        return 1.0
    if est.se < ROUNDING:
        return 1.0 if abs(est.mean - value) < ROUNDING else 0.0
    return float(2 * stdtr(est.df, -abs(est.mean - value) / est.se))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t with `df` degrees of freedom; 4.30 for df = 2."""
    return float(stdtrit(df, (1 + level) / 2))


def normal_quantile(level: float = LEVEL) -> float:
    """The two-sided normal quantile, 1.96 at 95 %."""
    return float(ndtri((1 + level) / 2))
