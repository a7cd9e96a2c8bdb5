"""Rank correlations: known answers, the interval's coverage, and undefined cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdep_bench.results.statistics.rank_correlation import MIN_POINTS, kendall, spearman


def by_hand(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(rho, tau-b) from the definitions, in float64."""

    def ranks(v: np.ndarray) -> np.ndarray:
        return np.array([(v < a).sum() + ((v == a).sum() - 1) / 2 for a in v])

    rx, ry = ranks(x) - ranks(x).mean(), ranks(y) - ranks(y).mean()
    rho = (rx * ry).sum() / math.sqrt((rx**2).sum() * (ry**2).sum())
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    sx = np.array([np.sign(x[i] - x[j]) for i, j in pairs])
    sy = np.array([np.sign(y[i] - y[j]) for i, j in pairs])
    return rho, (sx * sy).sum() / math.sqrt((sx**2).sum() * (sy**2).sum())


def test_correlations_equal_their_definitions_also_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 9).astype(float), rng.normal(size=9)
        values = [c.value for c in (spearman(x, y), kendall(x, y)) if c]
        assert values == pytest.approx(by_hand(x, y))


@pytest.mark.parametrize("n", [MIN_POINTS, 13])
@pytest.mark.parametrize("r", [0.0, 0.5, -0.8])
@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_the_interval_covers_the_correlation_of_normal_data(correlation, n, r):
    assert coverage(correlation, n, r) > 0.9


def coverage(correlation: Callable[..., Any], n: int, r: float) -> float:
    """Fraction of 400 intervals of n points with correlation r that contain the true value."""
    rng = np.random.default_rng(n)
    truth = 6 / math.pi * math.asin(r / 2)  # Spearman's rho of normal data (Pearson 1907)
    if correlation is kendall:
        truth = 2 / math.pi * math.asin(r)
    hits = 0
    for _ in range(400):
        x = rng.normal(size=n)
        c = correlation(x, r * x + math.sqrt(1 - r * r) * rng.normal(size=n))
        hits += c.low <= truth <= c.high
    return hits / 400


@pytest.mark.parametrize(("correlation", "stated"), [(spearman, 0.80), (kendall, 0.82)])
def test_the_interval_of_a_high_correlation_covers_less_as_its_docstring_states(
    correlation, stated
):
    r, n = 0.98, MIN_POINTS
    assert coverage(correlation, n, r) == pytest.approx(stated, abs=0.06)  # 3 standard errors


def test_a_perfect_ranking_has_a_finite_interval_and_few_points_have_none():
    x = np.arange(9.0)
    for correlation in (spearman, kendall):
        up, down = correlation(x, x**3), correlation(x, -x)
        assert up is not None
        assert down is not None
        assert up.low is not None
        assert up.high is not None
        assert (up.value, down.value) == pytest.approx((1, -1))
        assert 0.9 < up.low < up.high <= 1
        assert (down.low, down.high) == pytest.approx((-up.high, -up.low))
        short = correlation(x[:7], x[:7])
        assert short == (pytest.approx(1), 7, None, None)
        assert correlation(x, np.full(9, 0.3)) is None  # no ranks: not a correlation of 0
        assert correlation(x[:2], x[:2]) is None
