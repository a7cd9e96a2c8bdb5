"""Coverage, false-positive rate and power, by simulation on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats as scipy_stats

from kdep_bench.results import statistics as st


def _cell(values):
    return {(0, i): float(v) for i, v in enumerate(values)}


@pytest.mark.parametrize("n", [3, 5, 10])
def test_95_percent_intervals_cover_93_to_97_percent(n):
    rng = np.random.default_rng(n)
    hits = 0
    for row in rng.normal(0.4, 0.02, (3000, n)):
        e = st.estimate(_cell(row))
        assert e.low is not None
        assert e.high is not None
        hits += e.low < 0.4 < e.high
    assert 0.93 < hits / 3000 < 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_why_not_the_bootstrap_at_few_seeds(n):
    rng = np.random.default_rng(n)
    hits = 0
    for row in rng.normal(size=(600, n)):
        low, high = st.bca_interval(row, resamples=1000)
        hits += low < 0 < high
    assert hits / 600 < 0.93


@pytest.mark.parametrize("skewed", [False, True])
def test_bca_covers_where_it_is_used(skewed):
    rng = np.random.default_rng(3)
    n = st.BOOTSTRAP_FROM
    x = rng.exponential(size=(1000, n)) - 1 if skewed else rng.normal(size=(1000, n))
    hits = 0
    for row in x:
        low, high = st.bca_interval(row, resamples=1000)
        hits += low < 0 < high
    assert 0.915 < hits / 1000 < 0.97
    assert st.estimate(_cell(x[0])).method == "bca"


@pytest.mark.parametrize(("p", "t"), [(3, 3), (3, 5), (5, 3)])
@pytest.mark.parametrize("sds", [(1, 1, 1), (1, 0, 1), (0, 1, 1), (3, 0.5, 1), (0, 0, 1)])
def test_crossed_seeds_never_cover_less_than_stated(p, t, sds):
    rng = np.random.default_rng(p * 10 + t)
    many = 8000
    grid = rng.normal(size=(many, p, 1)) * sds[0] + rng.normal(size=(many, 1, t)) * sds[1]
    grid = grid + rng.normal(size=(many, p, t)) * sds[2]
    mean, se, df = st.crossed_moments(grid)
    half = scipy_stats.t.ppf(0.975, df) * se
    assert np.mean(np.abs(mean) < half) > 0.94


def test_nine_values_of_three_pretrainings_are_not_nine_independent_ones():
    # The naive t over all nine undercovers badly when pre-training seeds matter.
    rng = np.random.default_rng(0)
    hits = naive = 0
    for _ in range(1500):
        grid = rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(3, 3))
        cell = {(i, j): float(grid[i, j]) for i in range(3) for j in range(3)}
        e = st.estimate(cell)
        assert e.low is not None
        assert e.high is not None
        hits += e.low < 0 < e.high
        half = scipy_stats.t.ppf(0.975, 8) * grid.std(ddof=1) / 3
        naive += abs(grid.mean()) < half
    assert hits / 1500 > 0.94
    assert naive / 1500 < 0.8


def test_the_interval_is_students_own():
    x = [0.41, 0.44, 0.47]
    e = st.estimate(_cell(x))
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(x), scipy_stats.sem(x))
    assert (e.low, e.high) == pytest.approx((low, high))
    assert (e.n, e.method, e.seeds) == (3, "t", "3 transfer seeds")


def test_one_seed_has_no_interval_and_no_verdict():
    e = st.estimate({(0, 0): 0.5})
    assert (e.sd, e.low, e.high) == (None, None, None)
    assert not e.told_from_zero
    assert st.best_set({"a": {(0, 0): 0.9}, "b": {(0, 0): 0.1}}) == {"a", "b"}


def test_an_incomplete_grid_rests_on_pretraining_seeds():
    cell = {(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.3, (2, 0): 0.4}
    e = st.estimate(cell)
    assert e.df == 2
    assert e.seeds == "3 pre-training seeds"


def test_paired_differences_tell_small_effects_and_false_positives_keep_to_5_percent():
    rng = np.random.default_rng(1)
    many, found, false = 2000, 0, 0
    for _ in range(many):
        seeds = rng.normal(0.4, 0.05, 5)  # what the two arms share
        a = _cell(seeds + rng.normal(0, 0.005, 5) + 0.02)
        b = _cell(seeds + rng.normal(0, 0.005, 5))
        c = _cell(seeds + rng.normal(0, 0.005, 5))
        found += st.estimate(st.differences(a, b)).told_from_zero
        false += st.estimate(st.differences(b, c)).told_from_zero
    assert found / many > 0.9
    assert 0.035 < false / many < 0.065


@pytest.mark.parametrize("arms", [3, 6])
def test_the_bold_set_holds_the_truly_best_and_spares_equals(arms):
    rng = np.random.default_rng(arms)
    many, lost_best, lost_equal = 800, 0, 0
    for _ in range(many):
        shift = np.zeros(arms)
        shift[0] = 0.01
        cells = {i: _cell(rng.normal(0.4 + shift[i], 0.02, 3)) for i in range(arms)}
        lost_best += 0 not in st.best_set(cells)
        equal = {i: _cell(rng.normal(0.4, 0.02, 3)) for i in range(arms)}
        lost_equal += 0 not in st.best_set(equal)
    assert lost_best / many <= 0.05
    assert lost_equal / many <= 0.05


def test_a_clear_winner_stands_alone():
    cells = {"a": _cell([0.8, 0.81, 0.82]), "b": _cell([0.1, 0.12, 0.11]), "c": _cell([0.2] * 3)}
    assert st.best_set(cells) == {"a"}
    assert st.best_set(cells, sign=-1) == {"b"}
    assert st.rank_intervals(cells) == {"a": (1, 1), "b": (3, 3), "c": (2, 2)}


def test_power_and_seeds_needed_agree_with_simulation():
    n = st.seeds_needed(0.02, 0.02)
    assert n == 10
    rng = np.random.default_rng(0)
    x = rng.normal(0.02, 0.02, (20_000, n))
    _, low, high = st.t_interval(x)
    simulated = np.mean((low > 0) | (high < 0))
    assert st.power(0.02, 0.02, n) == pytest.approx(simulated, abs=0.01)
    assert st.power(0.02, 0.02, n) >= 0.8 > st.power(0.02, 0.02, n - 1)
    assert st.seeds_needed(0.0, 0.02) is None
    assert st.seeds_needed(1e-6, 0.02) is None
    assert st.seeds_needed(5.0, 0.001) == 2
    gap = st.smallest_gap(0.02, 5)
    assert gap is not None
    assert st.power(gap, 0.02, 5) == pytest.approx(0.8, abs=1e-6)


def test_noise_floor_pools_within_arms():
    rng = np.random.default_rng(0)
    cells = [_cell(rng.normal(m, 0.02, 5)) for m in np.linspace(0.1, 0.9, 60)]
    floor = st.noise_floor(cells)
    assert floor is not None
    assert floor.sd == pytest.approx(0.02, rel=0.1)
    assert (floor.df, floor.n) == (240, 5)
    assert st.noise_floor([_cell([0.5])]) is None


def test_the_noise_floor_of_crossed_seeds_rests_on_pretraining_seeds():
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(40):
        grid = 0.05 * rng.normal(size=(3, 1)) + 0.001 * rng.normal(size=(3, 3))
        cells.append({(p, t): float(grid[p, t]) for p in range(3) for t in range(3)})
    floor = st.noise_floor(cells)
    assert floor is not None
    assert floor.n == 3
    assert floor.gap_now == pytest.approx(st.smallest_gap(0.05 * 2**0.5, 3), rel=0.15)


def test_ranks_share_ties():
    ranks = st.mean_ranks({"a": [0.5, 0.1], "b": [0.5, 0.2], "c": [0.1, 0.3]}, [1, -1])
    assert ranks == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_mean_over_tasks_uses_only_pairs_that_all_tasks_have():
    assert st.mean_over([{(0, 0): 0.2, (0, 1): 0.4}, {(0, 0): 0.4}]) == {(0, 0): pytest.approx(0.3)}


def test_published_weights_stand_against_every_pretraining_seed():
    a = {(p, t): 0.5 + 0.01 * p for p in range(3) for t in range(2)}
    b = {(0, 0): 0.1, (0, 1): 0.2}
    assert len(st.differences(a, b)) == 2
    assert len(st.differences(a, b, fixed_b=True)) == 6


@settings(max_examples=60, deadline=None)
@given(
    some.dictionaries(
        some.tuples(some.integers(0, 3), some.integers(0, 3)), some.floats(0, 1), min_size=1
    ),
    some.randoms(use_true_random=False),
)
def test_order_never_matters(values, random):
    items = list(values.items())
    random.shuffle(items)
    assert st.estimate(dict(items)) == st.estimate(values)
    e = st.estimate(values)
    if e.low is not None and e.high is not None:
        assert e.low <= e.mean + 1e-12
        assert e.mean - 1e-12 <= e.high
