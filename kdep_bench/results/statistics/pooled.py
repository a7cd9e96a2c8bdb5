"""The pooled model: all methods of a task in one model, score = method + seed + residual.

Reason: with three seeds a paired t test has two degrees of freedom, and its 95 % interval extends
4.3 standard errors to either side. The methods of a task have the same seeds and mostly the same
recipe. So their residuals can estimate one common variance: k methods with n seeds have
(k - 1)(n - 1) degrees of freedom (two-way layout without interaction; Scheffe 1959, ch. 4).

If methods have different variances, the pooled one is too small for the noisy methods. Therefore a
comparison uses the larger of two standard errors, the pooled one and that of its own paired
differences, with the pooled degrees of freedom. A method with a significantly larger variance is
left out of the model and compared by its own differences. Otherwise a single diverging method would
hide all differences between the others.

Coverage with three seeds, simulated in tests/results/test_results_pooled.py: 94 to 96 % over all
pairs, with equal variances and also if 2 of 3, 4 of 8 or 14 of 28 methods have three times the
variance of the others. Pairs of two such noisy methods: 92 to 93 %, and 90 % if only 3 of 28 are
noisy. Paired t tests cover 95 % there, with intervals that are twice as wide.

The best methods and the ranks use Dunnett's constants (Dunnett 1955), which correct for all
comparisons with one method. A method is among the best unless another is significantly better
(multiple comparisons with the best; Hsu 1984). With probability 95 % the method with the best true
mean is among them.

The model needs one value per method and seed. If pre-training and transfer seeds are crossed
(several transfer seeds per pre-training seed), `fit` returns None, and pairs are compared alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, fdtri, ndtr, stdtrit

from kdep_bench.results.statistics.intervals import (
    LEVEL,
    ROUNDING,
    Array,
    Estimate,
    Key,
    Values,
    seed_text,
)

VARIANCE_TEST_LEVEL = 0.01  # significance level of the test for a method with a larger variance
# Most scores of an incomplete table; its fit takes scores x (methods + seeds)^2 operations.
MAX_SCORES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """The fitted model of k methods and n seeds.

    Attributes:
        names: the methods.
        seeds: the seed pairs.
        values: [k, n] scores; NaN where a method has no value for a seed.
        effects: [k] least-squares means.
        unit_variance: [k, k] variance of the difference of two effects divided by `variance`.
        variance: pooled residual variance.
        df: degrees of freedom of `variance`.
    """

    names: tuple[Any, ...]
    seeds: tuple[Key, ...]
    values: Array
    effects: Array
    unit_variance: Array
    variance: float
    df: float

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def difference(self, a: Any, b: Any, level: float = LEVEL) -> Estimate:
        """The estimate of a - b; raises KeyError for a name that is not in the model."""
        i, j = self._index(a), self._index(b)
        mean, se = float(self.effects[i] - self.effects[j]), float(self._errors(i)[j])
        gaps = self.values[i] - self.values[j]
        common = [seed for seed, gap in zip(self.seeds, gaps, strict=True) if not np.isnan(gap)]
        gaps = gaps[~np.isnan(gaps)]
        half = float(stdtrit(self.df, (1 + level) / 2)) * se
        sd = float(gaps.std(ddof=1)) if len(gaps) > 1 else None
        seeds = seed_text(common or self.seeds)
        return Estimate(
            mean, sd, len(gaps), se, self.df, mean - half, mean + half, "pooled t", seeds
        )

    def best(self, sign: int = 1, level: float = LEVEL) -> set[Any]:
        """The methods for which no other method is significantly better.

        `sign`: 1 if larger scores are better, -1 if smaller ones are.
        """
        limit = dunnett(len(self.names) - 1, self.df, level, two_sided=False)
        return {
            name
            for i, name in enumerate(self.names)
            if not (sign * (self.effects - self.effects[i]) > limit * self._errors(i)).any()
        }

    def ranks(self, sign: int = 1, level: float = LEVEL) -> dict[Any, tuple[int, int]]:
        """Method -> (best, worst) rank that it may have (1 = best).

        All comparisons of a method are corrected together; `sign` as in `best`.
        """
        k = len(self.names)
        limit = dunnett(k - 1, self.df, level, two_sided=True)
        ranks = {}
        for i, name in enumerate(self.names):
            lead = sign * (self.effects - self.effects[i])
            margin = limit * self._errors(i)
            ranks[name] = (1 + int((lead > margin).sum()), k - int((lead < -margin).sum()))
        return ranks

    def _index(self, name: Any) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None

    def _errors(self, i: int) -> Array:
        """[k] standard errors of the differences from method `i`.

        Each is the larger of the pooled standard error and that of the pair's own differences.
        """
        gaps = self.values - self.values[i]
        known = ~np.isnan(gaps)
        n = known.sum(1)
        centred = np.where(known, gaps, 0.0)
        centred = np.where(known, gaps - (centred.sum(1) / np.maximum(n, 1))[:, None], 0.0)
        pair_variance = np.where(
            n > 1, (centred**2).sum(1) / np.maximum(n - 1, 1) / np.maximum(n, 1), 0.0
        )
        return np.sqrt(np.maximum(self.variance * self.unit_variance[i], pair_variance))


def fit(scores: Mapping[Any, Values]) -> Pooled | None:
    """The model of the methods of a task.

    Methods with fewer than two values are left out. If no score is missing, methods whose variance
    is significantly larger than that of the others are also left out (see `_noisy`).

    Args:
        scores: method -> scores by seed pair.

    Returns:
        None if there are no degrees of freedom (one method or one seed), if seeds are crossed, if
        some groups of methods have no common seed, or if an incomplete table is too large.
    """
    several = {name: values for name, values in scores.items() if len(values) > 1}
    seeds = {s for values in several.values() if _one_per_seed(values) for s in values}
    for name, values in several.items():
        if _repeats(values):  # published weights: the values are repeated per pre-training seed
            several[name] = {s: v for s, v in values.items() if s in seeds}
    several = {name: values for name, values in several.items() if len(values) > 1}
    if len(several) < 2 or not all(_one_per_seed(v) for v in several.values()):
        return None
    names, columns = tuple(several), tuple(sorted(seeds))
    table = np.array([[several[n].get(s, np.nan) for s in columns] for n in names])
    if np.isnan(table).any():
        return _incomplete(names, columns, table)
    is_kept = ~_noisy(table)
    if is_kept.sum() > 1:
        names = tuple(name for name, kept in zip(names, is_kept, strict=True) if kept)
        table = table[is_kept]
    k, n = table.shape
    df = (k - 1) * (n - 1)
    unit = np.full((k, k), 2.0 / n) - np.diag(np.full(k, 2.0 / n))
    return Pooled(names, columns, table, table.mean(1), unit, _variance(table), float(df))


def _variance(table: Array) -> float:
    """Residual variance of a complete table [k, n], k > 1."""
    k, n = table.shape
    rest = table - table.mean(1)[:, None] - table.mean(0)[None] + table.mean()
    return float((rest**2).sum() / ((k - 1) * (n - 1)))


def _noisy(table: Array) -> NDArray[np.bool_]:
    """[k] whether the variance of each method is significantly larger than that of the others.

    The variance over seeds of (method - mean of the others) is that of a residual times
    1 + 1 / (k - 1). Divided by the variance of the others' residuals it has an F distribution with
    n - 1 and (k - 2)(n - 1) degrees of freedom. Each method is tested at the significance level
    VARIANCE_TEST_LEVEL. With fewer than three methods none is noisy.
    """
    k, n = table.shape
    flags = np.zeros(k, bool)
    if k < 3:
        return flags
    limit = fdtri(n - 1, (k - 2) * (n - 1), 1 - VARIANCE_TEST_LEVEL)
    for i in range(k):
        remaining = np.delete(table, i, axis=0)
        variance = float((table[i] - remaining.mean(0)).var(ddof=1)) / (1 + 1 / (k - 1))
        flags[i] = variance > limit * max(_variance(remaining), ROUNDING**2)
    return flags


def _incomplete(names: tuple[Any, ...], seeds: tuple[Key, ...], table: Array) -> Pooled | None:
    """The least-squares fit of a table [k, n] with missing scores (NaN); None as in `fit`."""
    k, n = table.shape
    rows, columns = np.nonzero(~np.isnan(table))
    if len(rows) > MAX_SCORES:
        return None
    design = np.zeros((len(rows), k + n))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), k + columns] = 1
    gram = design.T @ design
    rank = int(np.linalg.matrix_rank(gram, hermitian=True))
    df = len(rows) - rank
    # A rank below k + n - 1 means that some groups of methods have no common seed.
    if df < 1 or rank < k + n - 1:
        return None
    inverse = np.linalg.pinv(gram, hermitian=True)
    y = table[rows, columns]
    fitted = inverse @ design.T @ y
    variance = float(((y - design @ fitted) ** 2).sum() / df)
    part = inverse[:k, :k]
    unit = np.diag(part)[:, None] + np.diag(part)[None] - 2 * part
    effects = fitted[:k] + fitted[k:].mean()
    return Pooled(names, seeds, table, effects, np.maximum(unit, 0.0), variance, float(df))


def _repeats(values: Values) -> bool:
    """Whether the value of a transfer seed is the same for each of several pre-training seeds."""
    by_transfer: dict[int, set[float]] = {}
    for (_, transfer), value in values.items():
        by_transfer.setdefault(transfer, set()).add(value)
    return all(len(v) == 1 for v in by_transfer.values())


def _one_per_seed(values: Values) -> bool:
    """Whether each pre-training seed has one transfer seed, or there is one pre-training seed."""
    pretrain = {s[0] for s in values}
    return len(pretrain) in (1, len(values))


@lru_cache(maxsize=4096)
def dunnett(comparisons: int, df: float, level: float = LEVEL, *, two_sided: bool) -> float:
    """Dunnett's constant for comparing one method with `comparisons` others, with equal seeds.

    It is the `level` quantile of max_j T_j (two-sided: of max_j |T_j|), where
    T_j = (Z_j - Z_0) / (sqrt(2) U) with standard normal Z and U^2 ~ chi^2_df / df. The integrals
    over Z_0 and U are computed by Gauss-Legendre quadrature.
    """
    z, wz = np.polynomial.legendre.leggauss(96)
    z, wz = 8.5 * z, 8.5 * wz
    wz = wz * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    q, wq = np.polynomial.legendre.leggauss(96)
    q, wq = (q + 1) / 2, wq / 2
    u = np.sqrt(chdtri(df, q) / df)  # quantiles at 1 - q; the nodes q are symmetric about 0.5

    low, high = 0.0, 64.0
    for _ in range(40):  # bisection: scipy.optimize takes 0.3 s to import
        c = (low + high) / 2
        cut = np.sqrt(2.0) * c * u[:, None]
        inside = ndtr(z + cut) - (ndtr(z - cut) if two_sided else 0.0)
        low, high = (low, c) if wq @ (inside**comparisons @ wz) > level else (c, high)
    return float(high)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Name -> p value after Holm's correction (1979), which controls the family-wise error."""
    adjusted, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = largest
    return adjusted
