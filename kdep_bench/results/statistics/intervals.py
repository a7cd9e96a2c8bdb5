"""Means and confidence intervals over seeds, and paired differences.

Scores are fractions, keyed by (pre-training seed, transfer seed). Two properties of few seeds
determine the methods used here:

* With three seeds a nominal 95 % percentile bootstrap of the mean covers about 75 %, and BCa
  little more, as both only resample the three values. Student's t covers 95 % on normal data at any
  n (Student 1908). So: t below `BOOTSTRAP_FROM` values, BCa (Efron 1987) from there on, t again
  above `BOOTSTRAP_TO`, where the two agree. The tests of this module simulate the coverage.
* Values that share a pre-training seed are not independent. With P x T crossed seeds the variance
  of the mean is Vp + Vt - Ve (clustered by each seed, less the part counted twice: Cameron,
  Gelbach and Miller 2011), degrees of freedom after Satterthwaite (1946).

The intervals cover seed variance only, not other test sets or tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.95
POWER = 0.80
BOOTSTRAP_FROM = 50
BOOTSTRAP_TO = 300
MOST_SEEDS = 1000
ROUNDING = 1e-12  # of sums of scores, which are fractions: a smaller difference or spread is none

Key = tuple[int, int]
Values = Mapping[Key, float]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval.

    `sd`: standard deviation of the values; `se`: standard error of the mean; `df`: its degrees of
    freedom; `low`, `high`: ends of the interval. All are None for n = 1. `method`: 't', 'bca',
    'crossed t', 'pooled t', 'welch' or 'none'. `seeds`: the seeds it covers, as text.
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
        """Whether zero is outside the interval; False without an interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Array, level: float = LEVEL) -> tuple[Array, Array, Array]:
    """Mean, low, high of `values` [..., n], n >= 2, by Student's t."""
    n = values.shape[-1]
    mean = values.mean(-1)
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(-1, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def bca_interval(
    values: Array, level: float = LEVEL, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean of `values` [n] (Efron 1987).

    Deterministic: the generator is seeded, so a rebuilt report is identical.
    """
    n = len(values)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    means = np.sort(values[rng.integers(0, n, (resamples, n))].mean(1))
    mean = values.mean()
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / resamples
    z0 = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    # For the mean the jackknife deviations are the centred values over n - 1.
    d = values - mean
    acceleration = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)
    z = z0 + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    levels = ndtr(z0 + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def crossed_moments(grid: Array) -> tuple[Array, Array, Array]:
    """Mean, standard error and degrees of freedom of complete grids [..., P, T], P, T >= 2."""
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


def _seed_text(p: int, t: int, grid: bool) -> str:
    if p > 1 and t > 1:
        return f"{p} x {t} seeds" if grid else f"{p} pre-training seeds"
    if p > 1:
        return f"{p} pre-training seeds"
    return f"{t} transfer seed{'s' if t > 1 else ''}"


def seed_text(keys: Sequence[Key]) -> str:
    """The seeds that an interval over values with these keys covers: "3 pre-training seeds"."""
    p, t = len({k[0] for k in keys}), len({k[1] for k in keys})
    return _seed_text(p, t, len(keys) == p * t)


@lru_cache(maxsize=4096)
def _layout(keys: tuple[Key, ...]) -> tuple[int, int]:
    """(number of pre-training seeds, number of transfer seeds) in `keys`."""
    return len({k[0] for k in keys}), len({k[1] for k in keys})


def estimate(values: Values, level: float = LEVEL) -> Estimate:
    """Mean and interval of `values`, keyed by (pretrain seed, transfer seed).

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values to estimate from")
    # Sorted keys: float sums, hence last digits, must not depend on the order of the records.
    keys = tuple(sorted(values))
    return estimate_of_array(keys, np.array([values[k] for k in keys], dtype=float), level)


def estimate_of_array(keys: tuple[Key, ...], x: Array, level: float = LEVEL) -> Estimate:
    """`estimate` of the values `x` [n], in the order of their sorted `keys`."""
    p, t = _layout(keys)
    n = len(keys)
    sd = float(x.std(ddof=1)) if n > 1 else None
    full = n == p * t
    seeds = _seed_text(p, t, full)
    if n == 1:
        return Estimate(float(x[0]), None, 1, None, None, None, None, "none", seeds)
    if p > 1 and t > 1 and full:
        mean, se, df = (float(v) for v in crossed_moments(x.reshape(p, t)))
        half = float(stdtrit(df, (1 + level) / 2)) * se
        return Estimate(mean, sd, n, se, df, mean - half, mean + half, "crossed t", seeds)
    if p > 1 and t > 1:  # an incomplete grid: only pre-training seeds are independent
        pretrain_seeds = np.array([k[0] for k in keys])
        x = np.array([x[pretrain_seeds == q].mean() for q in np.unique(pretrain_seeds)])
    mean, low, high = (float(v) for v in t_interval(x, level))
    m, method = len(x), "t"
    if BOOTSTRAP_FROM <= m <= BOOTSTRAP_TO:
        (low, high), method = bca_interval(x, level), "bca"
    se = float(x.std(ddof=1)) / m**0.5
    return Estimate(mean, sd, n, se, float(m - 1), low, high, method, seeds)


def differences(a: Values, b: Values, fixed_b: bool = False) -> dict[Key, float]:
    """a - b at every common seed pair.

    `fixed_b`: b was not pre-trained here (published weights), so its values are compared with those
    of every pre-training seed of a with the same transfer seed.
    """
    if fixed_b and len({k[0] for k in b}) == 1:
        by_transfer = {k[1]: v for k, v in b.items()}
        return {k: a[k] - by_transfer[k[1]] for k in sorted(a) if k[1] in by_transfer}
    return {k: a[k] - b[k] for k in sorted(a) if k in b}


def mean_over(tables: Sequence[Values], weights: Sequence[float] | None = None) -> dict[Key, float]:
    """Mean over tasks at every seed pair that *all* of `many` have (none is averaged over).

    `weights`: of each task, by default equal; they are divided by their sum.
    """
    if not tables:
        return {}
    keys = set(tables[0]).intersection(*tables[1:])
    return {k: float(np.average([v[k] for v in tables], weights=weights)) for k in sorted(keys)}


def p_two_sided(est: Estimate, value: float = 0.0) -> float:
    """Two-sided p of the data if the true mean were `value`; 1 without an interval."""
    if est.se is None or est.df is None:
        return 1.0
    if est.se < ROUNDING:
        return 1.0 if abs(est.mean - value) < ROUNDING else 0.0
    return float(2 * stdtr(est.df, -abs(est.mean - value) / est.se))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t with `df` degrees of freedom."""
    return float(stdtrit(df, (1 + level) / 2))


def normal_quantile(level: float = LEVEL) -> float:
    """The two-sided normal quantile, 1.96 at 95 %."""
    return float(ndtri((1 + level) / 2))
