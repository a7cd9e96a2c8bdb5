"""Coverage, false-positive rate and power, by simulation on data with known parameters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from scipy import stats as scipy_stats

from kdep_bench.results.statistics import comparisons, power
from kdep_bench.results.statistics import intervals as st


def scores_of(values):
    """Scores by (pre-training seed 0, transfer seed)."""
    return {(0, i): float(v) for i, v in enumerate(values)}


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_coverage_of_95_percent_intervals_is_between_93_and_97_percent(n):
    rng = np.random.default_rng(n)
    hits = 0
    for row in rng.normal(0.4, 0.02, (3000, n)):
        estimated = st.estimate(scores_of(row))
        assert estimated.low is not None
        assert estimated.high is not None
        hits += estimated.low < 0.4 < estimated.high
    assert 0.93 < hits / 3000 < 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_bootstrap_intervals_of_few_seeds_cover_too_little(n):
    rng = np.random.default_rng(n)
    hits = 0
    for row in rng.normal(size=(600, n)):
        low, high = st.bca_interval(row, resamples=1000)
        hits += low < 0 < high
    assert hits / 600 < 0.93


@pytest.mark.parametrize("skewed", [False, True])
def test_bca_intervals_cover_enough_at_the_smallest_number_of_seeds_that_uses_them(skewed):
    rng = np.random.default_rng(3)
    n = st.BOOTSTRAP_FROM
    x = rng.exponential(size=(1000, n)) - 1 if skewed else rng.normal(size=(1000, n))
    hits = 0
    for row in x:
        low, high = st.bca_interval(row, resamples=1000)
        hits += low < 0 < high
    assert 0.915 < hits / 1000 < 0.97
    assert st.estimate(scores_of(x[0])).method == "bca"


@pytest.mark.parametrize(("p", "t"), [(3, 3), (3, 5), (5, 3)])
# `sds`: standard deviations of pre-training seeds, of transfer seeds, and of the residual.
@pytest.mark.parametrize("sds", [(1, 1, 1), (1, 0, 1), (0, 1, 1), (3, 0.5, 1), (0, 0, 1)])
def test_intervals_over_crossed_seeds_cover_at_least_95_percent(p, t, sds):
    rng = np.random.default_rng(p * 10 + t)
    runs = 8000
    grid = rng.normal(size=(runs, p, 1)) * sds[0] + rng.normal(size=(runs, 1, t)) * sds[1]
    grid = grid + rng.normal(size=(runs, p, t)) * sds[2]
    mean, se, df = st.crossed_moments(grid)
    half = scipy_stats.t.ppf(0.975, df) * se
    assert np.mean(np.abs(mean) < half) > 0.94


def test_nine_values_of_three_pre_trainings_are_not_treated_as_independent():
    # A t interval over all nine values covers too little if pre-training seeds have an effect.
    rng = np.random.default_rng(0)
    hits = naive = 0
    for _ in range(1500):
        grid = rng.normal(size=(3, 1)) + 0.3 * rng.normal(size=(3, 3))
        scores = {(i, j): float(grid[i, j]) for i in range(3) for j in range(3)}
        estimated = st.estimate(scores)
        assert estimated.low is not None
        assert estimated.high is not None
        hits += estimated.low < 0 < estimated.high
        half = scipy_stats.t.ppf(0.975, 8) * grid.std(ddof=1) / 3
        naive += abs(grid.mean()) < half
    assert hits / 1500 > 0.94
    assert naive / 1500 < 0.8


def test_the_interval_is_student_s_t_interval():
    x = [0.41, 0.44, 0.47]
    estimated = st.estimate(scores_of(x))
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(x), scipy_stats.sem(x))
    assert (estimated.low, estimated.high) == pytest.approx((low, high))
    assert (estimated.n, estimated.method, estimated.seeds) == (3, "t", "3 transfer seeds")


def test_one_seed_has_no_interval_and_no_verdict():
    estimated = st.estimate({(0, 0): 0.5})
    assert (estimated.sd, estimated.low, estimated.high) == (None, None, None)
    assert not estimated.excludes_zero
    assert comparisons.best_set({"a": {(0, 0): 0.9}, "b": {(0, 0): 0.1}}) == {"a", "b"}


def test_incompletely_crossed_seeds_count_as_pretraining_seeds():
    scores = {(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.3, (2, 0): 0.4}
    estimated = st.estimate(scores)
    assert estimated.df == 2
    assert estimated.seeds == "3 pre-training seeds"


def test_paired_differences_find_small_effects_with_5_percent_false_positives():
    rng = np.random.default_rng(1)
    runs, detected, false_positives = 2000, 0, 0
    for _ in range(runs):
        seeds = rng.normal(0.4, 0.05, 5)  # common to both methods
        a = scores_of(seeds + rng.normal(0, 0.005, 5) + 0.02)
        b = scores_of(seeds + rng.normal(0, 0.005, 5))
        c = scores_of(seeds + rng.normal(0, 0.005, 5))
        detected += st.estimate(st.differences(a, b)).excludes_zero
        false_positives += st.estimate(st.differences(b, c)).excludes_zero
    assert detected / runs > 0.9
    assert 0.035 < false_positives / runs < 0.065


@pytest.mark.parametrize("n_methods", [3, 6])
def test_the_best_set_contains_the_best_method_and_equally_good_methods(n_methods):
    rng = np.random.default_rng(n_methods)
    runs, lost_best, lost_equal = 800, 0, 0
    for _ in range(runs):
        shift = np.zeros(n_methods)
        shift[0] = 0.01  # method 0 is the best
        scores = {i: scores_of(rng.normal(0.4 + shift[i], 0.02, 3)) for i in range(n_methods)}
        lost_best += 0 not in comparisons.best_set(scores)
        equal = {i: scores_of(rng.normal(0.4, 0.02, 3)) for i in range(n_methods)}
        lost_equal += 0 not in comparisons.best_set(equal)
    assert lost_best / runs <= 0.05
    assert lost_equal / runs <= 0.05


def test_the_best_set_is_one_method_if_it_is_significantly_better_than_all_others():
    scores_by_method = {
        "a": scores_of([0.8, 0.81, 0.82]),
        "b": scores_of([0.1, 0.12, 0.11]),
        "c": scores_of([0.2] * 3),
    }
    assert comparisons.best_set(scores_by_method) == {"a"}
    assert comparisons.best_set(scores_by_method, sign=-1) == {"b"}
    assert comparisons.rank_intervals(scores_by_method) == {"a": (1, 1), "b": (3, 3), "c": (2, 2)}


def test_power_and_seeds_needed_agree_with_simulation():
    """Difference and standard deviation are both 0.02; the required power is 0.8."""
    n = power.seeds_needed(0.02, 0.02)
    assert n == 10
    rng = np.random.default_rng(0)
    x = rng.normal(0.02, 0.02, (20_000, n))
    _, low, high = st.t_interval(x)
    simulated = np.mean((low > 0) | (high < 0))
    assert power.power(0.02, 0.02, n) == pytest.approx(simulated, abs=0.01)
    assert power.power(0.02, 0.02, n) >= 0.8 > power.power(0.02, 0.02, n - 1)
    assert power.seeds_needed(0.0, 0.02) is None
    assert power.seeds_needed(1e-6, 0.02) is None
    assert power.seeds_needed(5.0, 0.001) == 2
    gap = power.smallest_gap(0.02, 5)
    assert gap is not None
    assert power.power(gap, 0.02, 5) == pytest.approx(0.8, abs=1e-6)


def test_the_standard_deviation_over_seeds_is_pooled_within_methods():
    rng = np.random.default_rng(0)
    scores_by_method = [scores_of(rng.normal(m, 0.02, 5)) for m in np.linspace(0.1, 0.9, 60)]
    noise = power.noise_floor(scores_by_method)
    assert noise is not None
    assert noise.sd == pytest.approx(0.02, rel=0.1)
    assert (noise.df, noise.n) == (60 * (5 - 1), 5)
    assert power.noise_floor([scores_of([0.5])]) is None


def test_the_detectable_difference_of_crossed_seeds_counts_pretraining_seeds():
    rng = np.random.default_rng(0)
    scores_by_method = []
    for _ in range(40):
        grid = 0.05 * rng.normal(size=(3, 1)) + 0.001 * rng.normal(size=(3, 3))
        scores_by_method.append({(p, t): float(grid[p, t]) for p in range(3) for t in range(3)})
    noise = power.noise_floor(scores_by_method)
    assert noise is not None
    assert noise.n == 3
    assert noise.detectable_difference == pytest.approx(
        power.smallest_gap(0.05 * 2**0.5, 3), rel=0.15
    )


def test_methods_with_one_pre_training_seed_do_not_count_for_the_detectable_difference():
    several = {(p, t): 0.1 * p + 0.01 * t for p in range(2) for t in range(2)}
    noise = power.noise_floor([several, scores_of([0.1, 0.2, 0.3, 0.4, 0.5]), scores_of([0.7])])
    assert noise is not None
    assert noise.n == 2
    assert noise.detectable_difference == pytest.approx(power.smallest_gap(0.1, 2), rel=1e-4)
    assert noise.df == (4 - 1) + (5 - 1)


def test_equal_scores_have_their_mean_rank():
    ranks = comparisons.mean_ranks({"a": [0.5, 0.1], "b": [0.5, 0.2], "c": [0.1, 0.3]}, [1, -1])
    assert ranks == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_mean_over_tasks_uses_only_seed_pairs_that_all_tasks_have():
    assert st.mean_over([{(0, 0): 0.2, (0, 1): 0.4}, {(0, 0): 0.4}]) == {(0, 0): pytest.approx(0.3)}


def test_published_weights_are_compared_with_every_pre_training_seed():
    a = {(p, t): 0.5 + 0.01 * p for p in range(3) for t in range(2)}
    b = {(0, 0): 0.1, (0, 1): 0.2}
    assert len(st.differences(a, b)) == 2
    assert len(st.differences(a, b, fixed_b=True)) == 6


@settings(max_examples=60, deadline=None)
@given(
    strategies.dictionaries(
        strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3)),
        strategies.floats(0, 1),
        min_size=1,
    ),
    strategies.randoms(use_true_random=False),
)
def test_an_estimate_does_not_depend_on_the_order_of_values(values, random):
    items = list(values.items())
    random.shuffle(items)
    assert st.estimate(dict(items)) == st.estimate(values)
    estimated = st.estimate(values)
    if estimated.low is not None and estimated.high is not None:
        assert estimated.low <= estimated.mean + 1e-12
        assert estimated.mean - 1e-12 <= estimated.high


def test_bca_intervals_equal_those_of_scipy_on_skewed_values():
    x = np.random.default_rng(5).exponential(size=60)
    for level in (0.95, 0.8):
        interval = st.bca_interval(x, level, resamples=20_000)
        expected = scipy_stats.bootstrap(
            (x,), np.mean, confidence_level=level, method="BCa", n_resamples=20_000, rng=1
        ).confidence_interval
        width = expected.high - expected.low
        assert interval == pytest.approx((expected.low, expected.high), abs=0.03 * width)
    assert st.bca_interval(np.full(60, 0.3)) == (0.3, 0.3)


def test_crossed_moments_equal_values_computed_by_hand():
    # row means 1.5 and 4.5, column means 2 and 4, residuals +-0.5
    mean, se, df = st.crossed_moments(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert mean == 3
    assert se == pytest.approx((2.25 + 1 - 0.25) ** 0.5)
    assert df == pytest.approx(3**2 / (2.25**2 + 1**2 + 0.25**2))
    estimated = st.estimate({(7, 1): 1.0, (7, 2): 2.0, (9, 1): 3.0, (9, 2): 6.0})
    assert (estimated.mean, estimated.n, estimated.method, estimated.seeds) == (
        3,
        4,
        "crossed t",
        "2 pre-training x 2 transfer seeds",
    )
    half = scipy_stats.t.ppf(0.975, df) * 3**0.5
    assert (estimated.low, estimated.high) == pytest.approx((3 - half, 3 + half))
    unequal = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, 3.0]])  # unequal numbers of seeds
    rows = np.var(unequal.mean(1), ddof=1) / 2
    columns = np.var(unequal.mean(0), ddof=1) / 3
    residuals = unequal - unequal.mean(1)[:, None] - unequal.mean(0)[None] + 3
    rest = (residuals**2).sum() / (1 * 2) / 6
    variance = max(rows + columns - rest, rows, columns)
    moments = st.crossed_moments(unequal)
    assert moments[1] == pytest.approx(variance**0.5)
    raw = variance**2 / (rows**2 / 1 + columns**2 / 2 + rest**2 / 2)
    assert moments[2] == pytest.approx(np.clip(raw, 1, 5))


def test_the_kind_of_seeds_is_named():
    def seeds(keys):
        return st.estimate({k: 0.1 * i for i, k in enumerate(keys)}).seeds

    assert seeds([(0, 0)]) == "1 transfer seed"
    assert seeds([(0, 0), (0, 1)]) == "2 transfer seeds"
    assert seeds([(0, 0), (1, 0)]) == "2 pre-training seeds"
    assert seeds([(0, 0), (0, 1), (1, 0), (1, 1)]) == "2 pre-training x 2 transfer seeds"
    assert seeds([(0, 0), (0, 1), (1, 0)]) == "2 pre-training seeds"  # an incomplete grid


def test_differences_join_by_seed_and_not_by_position():
    a = {(0, 0): 0.5, (0, 1): 0.7, (0, 2): 0.9}
    b = {(0, 2): 0.1, (0, 1): 0.2, (0, 5): 0.3}
    assert st.differences(a, b) == pytest.approx({(0, 1): 0.5, (0, 2): 0.8})
    assert st.differences(a, {}) == {}
    # Published weights have one pre-training seed, which is compared with each of a's.
    crossed = {(0, 0): 0.5, (1, 0): 0.6, (1, 1): 0.8}
    single = {(0, 0): 0.1, (0, 1): 0.3}
    fixed = st.differences(crossed, single, fixed_b=True)
    assert fixed == pytest.approx({(0, 0): 0.4, (1, 0): 0.5, (1, 1): 0.5})
    assert set(st.differences(crossed, single)) == {(0, 0)}
    two = {(0, 0): 0.1, (1, 0): 0.3}  # two pre-training seeds: joined as usual
    assert st.differences(crossed, two, fixed_b=True) == pytest.approx({(0, 0): 0.4, (1, 0): 0.3})


def test_p_values_and_the_best_set_equal_values_computed_by_hand():
    estimated = st.estimate(scores_of([-0.03, -0.01, -0.02]))
    assert comparisons.p_less(estimated) == pytest.approx(
        scipy_stats.ttest_1samp([-0.03, -0.01, -0.02], 0).pvalue / 2  # type: ignore[attr-defined]
    )
    shifted = scipy_stats.ttest_1samp([-0.04, -0.02, -0.03], 0).pvalue / 2  # type: ignore[attr-defined]
    assert comparisons.p_less(estimated, margin=0.01) == pytest.approx(shifted)
    assert comparisons.p_less(st.estimate(scores_of([0.5]))) == 1
    assert comparisons.p_less(st.estimate(scores_of([0.5, 0.5]))) == 1
    assert comparisons.p_less(st.estimate(scores_of([-0.5, -0.5]))) == 0
    assert comparisons.p_less(st.estimate(scores_of([0.0, 0.0]))) == 1
    low = scores_of([0.10, 0.11, 0.12])
    scores_by_method = {
        "low": low,
        "high": scores_of([0.50, 0.52, 0.51]),
        "near": scores_of([0.50, 0.53, 0.49]),
    }
    assert comparisons.best_set(scores_by_method) == {"high", "near"}
    assert comparisons.best_set(scores_by_method, sign=-1) == {"low"}
    assert comparisons.best_set({"a": {}, "b": {}}) == set()
    # Without a common seed, a method cannot be significantly worse.
    assert comparisons.best_set({"a": scores_of([0.9, 0.9]), "b": {(5, 5): 0.1}}) == {"a", "b"}


def test_rank_intervals_equal_values_computed_by_hand():
    scores_by_method = {
        "best": scores_of([0.90, 0.91, 0.92]),
        "worst": scores_of([0.10, 0.11, 0.13]),
        "middle": scores_of([0.50, 0.52, 0.51]),
        "as middle": scores_of([0.52, 0.50, 0.51]),
        "none": {},
    }
    ranks = comparisons.rank_intervals(scores_by_method)
    assert ranks == {"best": (1, 1), "worst": (4, 4), "middle": (2, 3), "as middle": (2, 3)}
    small = comparisons.rank_intervals(scores_by_method, sign=-1)
    assert small == {"best": (4, 4), "worst": (1, 1), "middle": (2, 3), "as middle": (2, 3)}
    # Over the common seeds, "a" is higher by 0.1 each time.
    a = {(0, 0): 0.9, (0, 1): 0.11, (0, 2): 0.5, (0, 3): 0.3}
    b = {(0, 1): 0.01, (0, 2): 0.401, (0, 3): 0.2, (0, 4): 0.99}
    assert comparisons.rank_intervals({"a": a, "b": b}) == {"a": (1, 1), "b": (2, 2)}
    assert comparisons.rank_intervals({"a": a, "b": b}, sign=-1) == {"a": (2, 2), "b": (1, 1)}
    assert comparisons.rank_intervals({"a": a, "b": {(9, 9): 0.1}}) == {"a": (1, 2), "b": (1, 2)}


def test_power_of_the_paired_t_test_equals_that_of_scipy_s_noncentral_t():
    """The arguments of `power` are the true difference, the standard deviation and the seeds."""
    for gap, sd, n in ((0.5, 1.0, 34), (0.02, 0.01, 3), (0.1, 0.3, 12), (-0.5, 1.0, 34)):
        critical = scipy_stats.t.ppf(0.975, n - 1)
        noncentral = scipy_stats.nct(n - 1, abs(gap) / sd * n**0.5)
        expected = noncentral.sf(critical) + noncentral.cdf(-critical)
        assert power.power(gap, sd, n) == pytest.approx(expected, abs=1e-6)
    assert power.power(0.1, 1.0, 1) == 0
    assert (power.power(0.1, 0.0, 2), power.power(0.0, 0.0, 2)) == (1, 0)
    # From a noncentrality of 30 on, `_nct` (the distribution function of the noncentral t) uses a
    # normal approximation; its values do not jump there.
    assert power._nct(5, 29.9, 30.0) == pytest.approx(power._nct(5, 30.1, 30.2), abs=0.03)
    assert power._nct(50, 40.0, 40.0) == pytest.approx(0.5, abs=0.03)
    assert 0.05 < power._nct(50, 40.0, 36.0) < 0.2
    needed = power.seeds_needed(0.5, 1.0)
    assert needed is not None
    assert power.power(0.5, 1.0, needed) >= 0.8 > power.power(0.5, 1.0, needed - 1)
    assert power.seeds_needed(0.0, 1.0) is None
    assert power.seeds_needed(1e-6, 1.0) is None
    assert power.seeds_needed(1.0, 0.0) == 2
    gap = power.smallest_gap(1.0, needed)
    assert gap is not None
    assert power.power(gap, 1.0, needed) == pytest.approx(0.8, abs=1e-4)
    assert power.smallest_gap(1.0, 1) is None
    assert power.smallest_gap(0.0, 3) == 0


def test_quantiles_match_published_tables():
    assert st.t_quantile(2) == pytest.approx(4.302653, abs=1e-6)
    assert st.t_quantile(9, 0.9) == pytest.approx(1.833113, abs=1e-6)
    assert st.normal_quantile() == pytest.approx(1.959964, abs=1e-6)
    assert st.normal_quantile(0.9) == pytest.approx(1.644854, abs=1e-6)


def test_mean_ranks_equal_values_computed_by_hand():
    table = {"a": [0.9, 10.0], "b": [0.9, 5.0], "c": [0.1, 1.0]}
    # First column: a and b share rank 1.5; in the second, smaller is better.
    assert comparisons.mean_ranks(table, [1, -1]) == {"a": 2.25, "b": 1.75, "c": 2.0}
    assert comparisons.mean_ranks({}, [1]) == {}
