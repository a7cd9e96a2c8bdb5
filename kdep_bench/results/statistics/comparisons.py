"""Which of several methods are among the best, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr

from kdep_bench.results.statistics.intervals import (
    LEVEL,
    Estimate,
    Values,
    differences,
    estimate,
    estimate_of_array,
)


def p_less(est: Estimate, margin: float = 0.0) -> float:
    """One-sided p of the data if the true mean were at least `margin` (small: it is less)."""
    if est.se is None or est.df is None:
        return 1.0
    if est.se == 0:
        return 0.0 if est.mean < margin else 1.0
    return float(stdtr(est.df, (est.mean - margin) / est.se))


def best_set(cells: Mapping[Any, Values], sign: int = 1, level: float = LEVEL) -> set[Any]:
    """The cells that cannot be told from the best one; `sign` -1 where small is good.

    A cell is left out when a one-sided paired t test against the best mean says it is worse at
    (1 - level) / (k - 1), k cells: a subset that holds the truly best with probability `level`
    (Gupta 1965; Hsu 1984, with Bonferroni for his constant). What has no pairs with the best,
    or only one, cannot be told from it and stays in.
    """
    means = {k: sign * estimate(v).mean for k, v in cells.items() if v}
    if not means:
        return set()
    top = max(means.values())
    best = min((k for k in means if means[k] == top), key=repr)
    inside = {best}
    for name in means:
        if name == best:
            continue
        gaps = {k: sign * v for k, v in differences(cells[name], cells[best]).items()}
        p = p_less(estimate(gaps)) if gaps else 1.0
        if p >= (1 - level) / (len(means) - 1):
            inside.add(name)
    return inside


def rank_intervals(
    cells: Mapping[Any, Values], sign: int = 1, level: float = LEVEL
) -> dict[Any, tuple[int, int]]:
    """For each cell the ranks (1 = best) it may have, from paired tests against every other.

    Each test is two-sided at (1 - level) / (k - 1); equal intervals are ties.
    """
    names = [k for k, v in cells.items() if v]
    alpha = (1 - level) / max(1, len(names) - 1) / 2
    keys = {n: tuple(sorted(cells[n])) for n in names}
    arrays = {n: sign * np.array([cells[n][k] for k in keys[n]]) for n in names}
    above, below = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if keys[a] == keys[b]:
                est = estimate_of_array(keys[a], arrays[a] - arrays[b], level)
            else:
                gaps = differences(cells[a], cells[b])
                if not gaps:
                    continue
                est = estimate({k: sign * v for k, v in gaps.items()}, level)
            less = p_less(est) < alpha
            more = p_less(_negative(est)) < alpha
            above[a] += less
            below[b] += less
            above[b] += more
            below[a] += more
    return {n: (1 + above[n], len(names) - below[n]) for n in names}


def _negative(e: Estimate) -> Estimate:
    low = None if e.high is None else -e.high
    high = None if e.low is None else -e.low
    return Estimate(-e.mean, e.sd, e.n, e.se, e.df, low, high, e.method, e.seeds)


def mean_ranks(table: Mapping[Any, Sequence[float]], signs: Sequence[int]) -> dict[Any, float]:
    """Mean over columns of the rank (1 = best, ties share the middle) of complete rows.

    Args:
        table: row -> one mean a column; the caller leaves out rows that lack a column.
        signs: +1 or -1 a column, -1 where small is good.
    """
    names = list(table)
    if not names:
        return {}
    scores = np.array([[s * v for s, v in zip(signs, table[n], strict=True)] for n in names])
    better = (scores[None, :, :] > scores[:, None, :]).sum(1)
    equal = (scores[None, :, :] == scores[:, None, :]).sum(1)
    ranks = better + (equal + 1) / 2
    return {n: float(ranks[i].mean()) for i, n in enumerate(names)}
