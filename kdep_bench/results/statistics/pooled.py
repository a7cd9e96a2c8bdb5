"""All methods of a task in one model: score = method + seed + residual.

With three seeds a paired t test has two degrees of freedom, and its 95 % interval is 4.3 standard
errors wide on either side. The methods of a task are trained and scored with the same seeds and,
mostly, by the same recipe, so that their residuals estimate one spread together: k methods on n
seeds leave (k - 1)(n - 1) degrees of freedom (two-way layout without interaction; Scheffe 1959,
ch. 4). Where methods differ in their spread, the pooled one is too small for the noisy ones.
A comparison therefore takes the larger of two standard errors, the pooled one and that of its own
paired differences, with the pooled degrees of freedom.

Simulated with three seeds in tests/results/test_results_pooled.py: intervals cover 94 to 96 % over
all pairs, with equal spreads and with half of 3, 8 or 28 methods at three times the variance of the
others; a pair of two such noisy methods is then covered 92 to 93 %, and 90 % where only 3 of 28 are
noisy. Paired t tests cover 95 % there with intervals twice as wide. A method whose spread is
significantly larger than that of the others leaves the model and is compared by its own
differences; one diverging method would otherwise hide every difference between the others.

The best and the ranks use Dunnett's constants (Dunnett 1955), which allow for all comparisons with
one method at once; the set of the best is that of multiple comparisons with the best (Hsu 1984):
a method belongs to it unless another one is significantly better. With probability 95 % the
method with the best true mean is among them.

Seeds: the model needs one value per method and seed. Where pre-training and transfer seeds are
crossed (several transfer seeds per pre-training seed), `fit` returns None and the caller compares
pairs as before.
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

NOISY = 0.01  # level at which a method's spread is called larger than that of the others
MAX_SCORES = 20_000  # of an incomplete table, whose fit takes scores x (methods + seeds)^2 steps


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """The fitted model. Larger scores are not assumed to be better: see `sign`.

    `values`: [k, n], NaN where a method has no value for a seed. `effects`: [k] least-squares
    means. `unit_variance`: [k, k], variance of the difference of two effects over that of a
    residual. `variance`: the pooled residual variance; `df` its degrees of freedom.
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
        """a - b. Raises KeyError for a name that is not in the model."""
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
        """The methods that no other is significantly better than; `sign` -1: small is good."""
        limit = dunnett(len(self.names) - 1, self.df, level, two_sided=False)
        return {
            name
            for i, name in enumerate(self.names)
            if not (sign * (self.effects - self.effects[i]) > limit * self._errors(i)).any()
        }

    def ranks(self, sign: int = 1, level: float = LEVEL) -> dict[Any, tuple[int, int]]:
        """The ranks (1 = best) that each method may have, its comparisons taken together."""
        k = len(self.names)
        limit = dunnett(k - 1, self.df, level, two_sided=True)
        out = {}
        for i, name in enumerate(self.names):
            lead = sign * (self.effects - self.effects[i])
            margin = limit * self._errors(i)
            out[name] = (1 + int((lead > margin).sum()), k - int((lead < -margin).sum()))
        return out

    def _index(self, name: Any) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None

    def _errors(self, i: int) -> Array:
        """[k] standard errors of the differences with method `i`: pooled or own, the larger."""
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
    """The model of a task's methods; left out are those with fewer than two values, and those whose
    spread is significantly larger than that of the others (see `_noisy`).

    None where it has no degrees of freedom (one method, one seed), where seeds are crossed, where
    the methods' seeds do not connect them all, or where an incomplete table is too large.
    """
    several = {name: values for name, values in scores.items() if len(values) > 1}
    seeds = {s for values in several.values() if _one_per_seed(values) for s in values}
    for name, values in several.items():
        if _repeats(values):  # published weights: one value for all pre-training seeds
            several[name] = {s: v for s, v in values.items() if s in seeds}
    several = {name: values for name, values in several.items() if len(values) > 1}
    if len(several) < 2 or not all(_one_per_seed(v) for v in several.values()):
        return None
    names, columns = tuple(several), tuple(sorted(seeds))
    table = np.array([[several[n].get(s, np.nan) for s in columns] for n in names])
    if np.isnan(table).any():
        return _incomplete(names, columns, table)
    quiet = ~_noisy(table)
    if quiet.sum() > 1:
        names, table = tuple(n for n, q in zip(names, quiet, strict=True) if q), table[quiet]
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
    """[k] which methods are noisier than the others, at 1 % each, k > 2.

    The variance of method - mean of the others, over seeds, is that of a residual times
    1 + 1 / (k - 1); against the variance of the others' residuals its ratio follows F with n - 1
    and (k - 2)(n - 1) degrees of freedom.
    """
    k, n = table.shape
    flags = np.zeros(k, bool)
    if k < 3:
        return flags
    limit = fdtri(n - 1, (k - 2) * (n - 1), 1 - NOISY)
    for i in range(k):
        remaining = np.delete(table, i, axis=0)
        variance = float((table[i] - remaining.mean(0)).var(ddof=1)) / (1 + 1 / (k - 1))
        flags[i] = variance > limit * max(_variance(remaining), ROUNDING**2)
    return flags


def _incomplete(names: tuple[Any, ...], seeds: tuple[Key, ...], table: Array) -> Pooled | None:
    """The least-squares fit of a table with gaps."""
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
    if df < 1 or rank < k + n - 1:  # below k + n - 1: groups of methods without a common seed
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
    """Dunnett's constant for `comparisons` of one method with others, equally many seeds each.

    The `level` quantile of max_j T_j (or max_j |T_j|), T_j = (Z_j - Z_0) / (sqrt(2) U) with
    standard normal Z and U^2 ~ chi^2_df / df: integrated over Z_0 and U.
    """
    z, wz = np.polynomial.legendre.leggauss(96)
    z, wz = 8.5 * z, 8.5 * wz
    wz = wz * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    q, wq = np.polynomial.legendre.leggauss(96)
    q, wq = (q + 1) / 2, wq / 2
    u = np.sqrt(chdtri(df, q) / df)  # the quantile at 1 - q: the weights are symmetric

    low, high = 0.0, 64.0
    for _ in range(40):  # bisection: scipy.optimize takes 0.3 s to import
        c = (low + high) / 2
        cut = np.sqrt(2.0) * c * u[:, None]
        inside = ndtr(z + cut) - (ndtr(z - cut) if two_sided else 0.0)
        low, high = (low, c) if wq @ (inside**comparisons @ wz) > level else (c, high)
    return float(high)


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p values adjusted for being tested together (Holm 1979): the family-wise error is kept."""
    out, running = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        running = max(running, min(1.0, (len(p_values) - i) * p_values[name]))
        out[name] = running
    return out
