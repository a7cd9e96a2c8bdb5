"""Methods among the best and rank intervals, both from paired tests; mean ranks over tasks."""

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
    """One-sided p value of the hypothesis that the true mean is `margin` or more.

    Without a standard error it is 1.
    """
    if est.se is None or est.df is None:
        return 1.0
    if est.se == 0:
        return 0.0 if est.mean < margin else 1.0
    return float(stdtr(est.df, (est.mean - margin) / est.se))


def best_set(scores: Mapping[Any, Values], sign: int = 1, level: float = LEVEL) -> set[Any]:
    """The names whose scores have the best mean or are not significantly worse.

    Each of the k names is tested against the best mean by a one-sided paired t test with the
    significance level (1 - level) / (k - 1), Bonferroni's correction for k - 1 tests. So the set
    contains the name with the best true mean with probability `level` (Gupta 1965; Hsu 1984, with
    Bonferroni's constant instead of Hsu's). Scores with fewer than two seed pairs in common with
    the best cannot be tested; their names are in the set.

    Args:
        scores: name -> values by seed pair.
        sign: 1 if larger scores are better, -1 if smaller ones are.
        level: probability that the set contains the best.
    """
    means = {k: sign * estimate(v).mean for k, v in scores.items() if v}
    if not means:
        return set()
    top = max(means.values())
    best = min((k for k in means if means[k] == top), key=repr)
    inside = {best}
    for name in means:
        if name == best:
            continue
        gaps = {k: sign * v for k, v in differences(scores[name], scores[best]).items()}
        p = p_less(estimate(gaps)) if gaps else 1.0
        if p >= (1 - level) / (len(means) - 1):
            inside.add(name)
    return inside


def rank_intervals(
    scores: Mapping[Any, Values], sign: int = 1, level: float = LEVEL
) -> dict[Any, tuple[int, int]]:
    """Name -> (best, worst) rank (1 = best) that paired tests with all other names do not exclude.

    Each test is two-sided with the significance level (1 - level) / (k - 1), with k the number of
    names. The arguments are those of `best_set`.
    """
    names = [k for k, v in scores.items() if v]
    alpha = (1 - level) / max(1, len(names) - 1) / 2
    keys = {n: tuple(sorted(scores[n])) for n in names}
    arrays = {n: sign * np.array([scores[n][k] for k in keys[n]]) for n in names}
    # Name -> number of names that are significantly better (`above`) or worse (`below`).
    above, below = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if keys[a] == keys[b]:
                est = estimate_of_array(keys[a], arrays[a] - arrays[b], level)
            else:
                gaps = differences(scores[a], scores[b])
                if not gaps:
                    continue
                est = estimate({k: sign * v for k, v in gaps.items()}, level)
            is_a_worse = p_less(est) < alpha
            is_b_worse = p_less(_negative(est)) < alpha
            above[a] += is_a_worse
            below[b] += is_a_worse
            above[b] += is_b_worse
            below[a] += is_b_worse
    return {n: (1 + above[n], len(names) - below[n]) for n in names}


def _negative(e: Estimate) -> Estimate:
    low = None if e.high is None else -e.high
    high = None if e.low is None else -e.low
    return Estimate(-e.mean, e.sd, e.n, e.se, e.df, low, high, e.method, e.seeds)


def mean_ranks(table: Mapping[Any, Sequence[float]], signs: Sequence[int]) -> dict[Any, float]:
    """Row -> its rank (1 = best), averaged over the columns.

    Rows with equal scores in a column share the mean of their ranks.

    Args:
        table: row -> one mean per column; every row has all columns.
        signs: per column 1 if larger is better, -1 if smaller is.
    """
    names = list(table)
    if not names:
        return {}
    scores = np.array([[s * v for s, v in zip(signs, table[n], strict=True)] for n in names])
    better = (scores[None, :, :] > scores[:, None, :]).sum(1)
    equal = (scores[None, :, :] == scores[:, None, :]).sum(1)
    ranks = better + (equal + 1) / 2
    return {n: float(ranks[i].mean()) for i, n in enumerate(names)}
