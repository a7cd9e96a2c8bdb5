"""The pooled model of all methods on a task: exact cases, references, coverage of intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from make_records import fields, grid
from test_results_tables import board_of

from kdep_bench.results.board import compare
from kdep_bench.results.claims.judge import judge
from kdep_bench.results.claims.verdict import headlines
from kdep_bench.results.records.record import Record, make
from kdep_bench.results.statistics import comparisons, pooled
from kdep_bench.results.statistics import intervals as st

stats: Any = scipy.stats  # its type stubs lack some keywords


def by_method(table: np.ndarray) -> dict[str, dict[tuple[int, int], float]]:
    """Methods m0, m1, ... with one value per pre-training seed; NaN: no value."""
    return {
        f"m{i}": {(s, s): float(v) for s, v in enumerate(row) if not np.isnan(v)}
        for i, row in enumerate(table)
    }


def fitted(table: np.ndarray) -> pooled.Pooled:
    """The model of a table [methods, seeds]."""
    model = pooled.fit(by_method(table))
    assert model is not None
    return model


def test_two_methods_give_the_paired_t_interval():
    table = np.array([[0.31, 0.35, 0.30], [0.28, 0.33, 0.22]])
    pooled_difference = fitted(table).difference("m0", "m1")
    paired = st.estimate(st.differences(by_method(table)["m0"], by_method(table)["m1"]))
    assert (pooled_difference.mean, pooled_difference.se, pooled_difference.df) == pytest.approx(
        (paired.mean, paired.se, paired.df)
    )
    assert (pooled_difference.low, pooled_difference.high) == pytest.approx(
        (paired.low, paired.high)
    )
    assert pooled_difference.seeds == "3 pre-training seeds"


def test_three_methods_on_three_seeds_equal_values_computed_by_hand():
    # After subtraction of method and seed means the residuals are m0 (1, -1, 0), m1 (-1, 1, 0),
    # m2 (0, 0, 0). Their sum of squares is 4 on (3 - 1)(3 - 1) = 4 degrees of freedom: variance 1.
    table = np.array([[11.0, 10.0, 12.0], [5.0, 8.0, 8.0], [0.0, 1.0, 2.0]])
    model = fitted(table)
    assert model.df == 4
    assert model.variance == pytest.approx(1.0)
    difference = model.difference("m1", "m2")
    # The differences 5, 7, 6 have variance 1, so their mean over 3 seeds has 1/3. The pooled
    # variance is larger: 2/3.
    assert difference.mean == pytest.approx(6.0)
    assert difference.se == pytest.approx((2 / 3) ** 0.5)
    # The differences of m0 and m1 (6, 2, 4) have variance 4: 4/3 is larger than 2/3.
    assert model.difference("m0", "m1").se == pytest.approx((4 / 3) ** 0.5)
    half = stats.t.ppf(0.975, 4) * (2 / 3) ** 0.5
    assert (difference.low, difference.high) == pytest.approx((6 - half, 6 + half))


def test_a_table_with_missing_scores_is_fitted_by_least_squares():
    table = np.array([[0.5, 0.6, np.nan], [0.4, 0.45, 0.7], [0.1, 0.3, 0.45], [0.2, np.nan, 0.5]])
    model = fitted(table)
    design, y = [], []
    for i, row in enumerate(table):
        for s, v in enumerate(row):
            if not np.isnan(v):
                design.append([*(i == j for j in range(4)), *(s == j for j in (1, 2))])
                y.append(v)
    x, y = np.array(design, float), np.array(y)
    beta, rest, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    assert model.df == len(y) - rank == 4
    assert model.variance == pytest.approx(rest[0] / 4)
    inverse = np.linalg.inv(x.T @ x)
    contrast = np.array([1.0, 0, 0, -1, 0, 0])
    difference = model.difference("m0", "m3")
    assert difference.mean == pytest.approx(contrast @ beta)
    assert difference.se == pytest.approx((contrast @ inverse @ contrast * rest[0] / 4) ** 0.5)


@pytest.mark.parametrize(
    "table",
    [
        [[1.0, 2.0]],  # one method
        [[1.0], [2.0]],  # one seed
        [[1.0, 2.0, np.nan, np.nan], [np.nan, np.nan, 1.0, 3.0]],  # no common seed
    ],
)
def test_no_model_is_fitted_without_degrees_of_freedom(table):
    assert pooled.fit(by_method(np.array(table))) is None


def test_no_model_is_fitted_to_crossed_seeds():
    grid = {(p, t): 0.1 * p + 0.2 * t for p in range(3) for t in range(2)}
    assert pooled.fit({"a": grid, "b": grid}) is None


def test_a_method_with_one_seed_is_left_out_of_the_model():
    two_methods = by_method(np.array([[0.1, 0.2, 0.3], [0.2, 0.2, 0.4]]))
    model = pooled.fit(two_methods | {"single": {(0, 0): 0.9}})
    assert model is not None
    assert "single" not in model


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(("n_others", "df"), [(1, 4), (3, 20), (9, 8), (27, 54)])
def test_dunnett_s_constant_has_a_level_of_95_percent_in_the_multivariate_t(
    n_others, df, two_sided
):
    c = pooled.dunnett(n_others, df, two_sided=two_sided)
    if n_others == 1:
        assert c == pytest.approx(stats.t.ppf(0.975 if two_sided else 0.95, df), abs=1e-4)
        return
    shape = np.full((n_others, n_others), 0.5) + 0.5 * np.eye(n_others)
    distribution = stats.multivariate_t(shape=shape, df=df, seed=0)
    lower = np.full(n_others, -c if two_sided else -np.inf)
    level = distribution.cdf(np.full(n_others, c), lower_limit=lower, maxpts=200_000)
    assert level == pytest.approx(0.95, abs=1.5e-3)


def test_dunnett_s_constants_equal_published_values():
    # Dunnett 1955, tables 1a and 2a (level 0.95): 3 treatments at 20 df, 9 at infinity.
    assert pooled.dunnett(3, 20, two_sided=False) == pytest.approx(2.19, abs=5e-3)
    assert pooled.dunnett(9, 1e6, two_sided=False) == pytest.approx(2.42, abs=5e-3)
    assert pooled.dunnett(9, 1e6, two_sided=True) == pytest.approx(2.69, abs=1e-2)


def test_without_seed_effects_a_difference_agrees_with_scipy_s_dunnett():
    # Without seed effects the two-way residuals of a long table are those of the one-way layout.
    y = np.random.default_rng(1).normal(size=(5, 400))
    y[1] += 0.165  # the difference of methods 1 and 0 is near the limit of significance
    model = fitted(y)
    result = stats.dunnett(*y[1:], control=y[0], random_state=0)
    limit = pooled.dunnett(4, model.df, two_sided=True)
    for i in range(1, 5):
        est = model.difference(f"m{i}", "m0")
        assert est.se is not None
        assert (result.pvalue[i - 1] < 0.05) == (abs(est.mean) > limit * est.se)


def test_holm_s_correction_equals_values_computed_by_hand():
    adjusted = pooled.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    # Sorted .005 x 4, .01 x 3, .03 x 2, .04 x 1, made non-decreasing.
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert pooled.holm({}) == {}


# ---- simulated coverage of the intervals and of the best set ----

SEEDS, RUNS = 3, 1500


def draw(rng: np.random.Generator, sds: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Scores [methods, SEEDS]. All methods share the effect of a seed, of standard deviation 1."""
    noise = rng.normal(size=(len(sds), SEEDS)) * sds[:, None]
    return means[:, None] + noise + rng.normal(size=(1, SEEDS))


def coverage(sds: np.ndarray) -> tuple[float, float]:
    """(coverage over all pairs of methods, coverage over pairs of methods with the largest standard
    deviation), at equal true means."""
    rng = np.random.default_rng(0)
    k = len(sds)
    noisy = np.flatnonzero(sds == sds.max())
    inside = np.zeros((k, k))
    for _ in range(RUNS):
        table = draw(rng, sds, np.zeros(k))
        model = pooled.fit(by_method(table))
        gaps = table[:, None] - table[None]  # the paired interval, for methods outside the model
        half = stats.t.ppf(0.975, SEEDS - 1) * gaps.std(-1, ddof=1) / SEEDS**0.5
        means = gaps.mean(-1)
        if model is not None:
            positions = [int(name[1:]) for name in model.names]
            t = stats.t.ppf(0.975, model.df)
            for i, position in enumerate(positions):
                half[position, positions] = t * model._errors(i)
        inside += np.abs(means) <= half
    inside /= RUNS
    pairs = ~np.eye(k, dtype=bool)
    return float(inside[pairs].mean()), float(inside[np.ix_(noisy, noisy)].sum() - len(noisy)) / (
        len(noisy) * (len(noisy) - 1)
    )


@pytest.mark.parametrize(
    ("k", "noisy", "least_average", "least_noisy"),
    [
        # Equal variances; then three times as large for half of the methods, or for 3 of 28.
        (3, 0, 0.94, 0.94),
        (8, 0, 0.945, 0.945),
        (28, 0, 0.945, 0.945),
        (3, 2, 0.94, 0.92),
        (8, 4, 0.945, 0.91),
        (28, 14, 0.945, 0.91),
        (28, 3, 0.945, 0.86),
    ],
)
def test_intervals_cover_95_percent_of_all_pairs(k, noisy, least_average, least_noisy):
    sds = np.where(np.arange(k) < noisy, 3**0.5, 1.0)
    average, worst = coverage(sds)
    print(f"{k} methods, {noisy} noisy: {average:.3f} over all pairs, {worst:.3f} of noisy ones")
    assert average >= least_average
    assert worst >= least_noisy


def tables(sds: np.ndarray, means: np.ndarray, runs: int) -> list[np.ndarray]:
    """Simulated tables of scores."""
    rng = np.random.default_rng(0)
    return [draw(rng, sds, means) for _ in range(runs)]


@pytest.mark.parametrize(
    ("ratio", "least"), [(1.0, 0.945), (3**0.5, 0.92)], ids=["equal", "variances 1 and 3"]
)
def test_the_best_set_contains_the_best_true_mean(ratio, least):
    # All true means are equal, so every method has the best one; m0 has the larger noise.
    sds = np.where(np.arange(8) % 2 == 0, ratio, 1.0)
    models = [fitted(t) for t in tables(sds, np.zeros(8), 1000)]
    fraction = float(np.mean(["m0" in m.best() for m in models if "m0" in m.names]))
    print(f"best true mean in the best set: {fraction:.3f}")
    assert fraction >= least


def test_the_best_set_of_the_model_is_smaller_than_that_of_paired_tests():
    # Four groups of 7 methods; each group is two standard deviations below the previous one.
    means = -np.repeat([0.0, 2.0, 4.0, 6.0], 7)
    drawn = tables(np.ones(28), means, 60)
    size = np.mean([len(fitted(t).best()) for t in drawn])
    size_by_paired_tests = np.mean([len(comparisons.best_set(by_method(t))) for t in drawn])
    print(
        f"of 28 methods {size:.1f} are among the best, {size_by_paired_tests:.1f} by paired t tests"
    )
    assert size < 15
    assert size_by_paired_tests > 25


# ---- tables and claims that use the model ----

FOUR = ("probe", "finetune", "photos", "det")


def four_tasks(gaps_of_kdep: dict[str, float]) -> list[Record]:
    """Records: kdep is better than supervised by `gaps_of_kdep`, scratch far below; small noise."""
    noise = ([0.0, 0.001, -0.001], [0.001, -0.001, 0.0], [-0.001, 0.0, 0.001])
    base = {
        "kdep": gaps_of_kdep,
        "supervised": dict.fromkeys(FOUR, 0.0),
        "scratch": dict.fromkeys(FOUR, -0.3),
    }
    records = []
    for (method, gaps), seed_noise in zip(base.items(), noise, strict=True):
        for task in FOUR:
            for seed, error in enumerate(seed_noise):
                record_fields = fields(method, task, 0.5 + gaps[task] + error, transfer=seed)
                record_fields["task"]["family"] = "detection" if task == "det" else "classification"
                records.append(make(record_fields))
    return records


def test_task_families_have_equal_weight_in_the_mean_over_tasks():
    board = board_of(four_tasks({"probe": 0.06, "finetune": 0.06, "photos": 0.06, "det": -0.06}))
    rows = compare.difference_table(board, "resnet18_w32")
    mean = next(d for d in rows if d.column is None and d.reference.method == "supervised")
    assert mean.estimate is not None
    # The mean over tasks would be (3 x 6 - 6) / 4 = +3; with equal family weights it is 0.
    assert mean.estimate.mean == pytest.approx(0.0, abs=1e-9)
    assert mean.verdict == "not significant"
    assert compare.task_weights(board.columns) == pytest.approx([1 / 6] * 3 + [1 / 2])


def test_differences_are_corrected_for_multiple_comparisons():
    # By the pooled model kdep - supervised on probe has p = 0.02; eight differences are tested.
    board = board_of(four_tasks({"probe": 0.0035, "finetune": 0.0, "photos": 0.0, "det": 0.0}))
    rows = compare.difference_table(board, "resnet18_w32")
    probe = next(
        d
        for d in rows
        if d.column and d.column.task == "probe" and d.reference.method == "supervised"
    )
    assert probe.p is not None
    assert 0.005 < probe.p < 0.05
    assert probe.adjusted is not None
    assert probe.adjusted > 0.05
    assert probe.verdict == "not significant"
    scratch = [d for d in rows if d.reference.method == "scratch" and d.column]
    assert [d.verdict for d in scratch] == ["better"] * 4


CLAIM = {"name": "c", "title": "t", "a": {"method": "kdep"}, "b": {"method": "supervised"}}


def test_several_claims_are_corrected_for_multiple_comparisons():
    records = four_tasks(dict.fromkeys(FOUR, 0.0033))
    single_claim = headlines(judge(board_of(records), [CLAIM]))
    assert single_claim[0].verdict == "supported"
    assert single_claim[0].p is not None
    assert 0.01 < single_claim[0].p < 0.05
    three_claims = [CLAIM | {"name": n} for n in "abc"]
    three_verdicts = headlines(judge(board_of(records), three_claims))
    assert [v.verdict for v in three_verdicts] == ["undecided"] * 3
    assert "without the correction it would be supported" in three_verdicts[0].reason


def test_a_verdict_on_one_pre_trained_network_is_marked():
    records = four_tasks(dict.fromkeys(FOUR, 0.1))
    (verdict,) = headlines(judge(board_of(records), [CLAIM]))
    assert verdict.label == "supported (for one pre-trained network)"
    several = [
        make(
            r.model_dump(mode="json")
            | {"id": f"x{i}", "seed": {"pretrain": i % 3, "transfer": i % 3}}
        )
        for i, r in enumerate(records)
    ]
    (three,) = headlines(judge(board_of(several), [CLAIM]))
    assert three.label == "supported"


def test_bold_scores_and_ranks_are_those_of_the_model():
    # Means .51, .44, .43. The residual standard deviation is far below the gap of 7 points, but not
    # below the gap of 1 point.
    scores = {"kdep": [0.50, 0.51, 0.52], "svd": [0.44, 0.45, 0.43], "fit": [0.42, 0.44, 0.43]}
    board = board_of(grid({m: {"probe": v} for m, v in scores.items()}))
    (column,) = board.columns
    assert {a.method for a in compare.best(board, "resnet18_w32", column)} == {"kdep"}
    ranks = {a.method: r for a, r in compare.ranks(board, "resnet18_w32", column).items()}
    assert ranks == {"kdep": (1, 1), "svd": (2, 3), "fit": (2, 3)}


def test_a_row_without_a_teacher_is_separate_from_the_row_with_a_teacher():
    with_teacher = [fields("kdep", "probe", 0.5, transfer=s) for s in range(2)]
    without = [fields("kdep", "probe", 0.1, transfer=s) | {"teacher": None} for s in range(2)]
    for i, f in enumerate(without):
        f["id"] = f"none-{i}"
    board = board_of([make(f) for f in with_teacher + without])
    assert [board.result(a, board.columns[0]).estimate.mean for a in board.rows] == [0.1, 0.5]  # type: ignore[union-attr]


def test_a_failed_run_is_counted_only_for_its_own_teacher():
    ok = [make(fields("kdep", "probe", 0.5 + s / 100, transfer=s)) for s in range(2)]
    failed: dict[str, Any] = fields("kdep", "probe", None, transfer=2)
    failed |= {"status": "failed", "error": "x", "id": "b"}
    failed["teacher"] = {**failed["teacher"], "name": "lite2"}
    failed["budget"] = {**failed["budget"], "epochs": None}  # it failed before they were known
    board = board_of([*ok, make(failed)])
    rows = {a.teacher: board.result(a, board.columns[0]) for a in board.rows}
    assert sorted(rows) == ["lite0", "lite2"]
    assert rows["lite0"].is_complete
    # This run failed before its teacher was known, so it belongs to the only row.
    board = board_of([*ok, make(failed | {"teacher": None, "id": "c"})])
    assert [a.teacher for a in board.rows] == ["lite0"]
    assert not board.result(board.rows[0], board.columns[0]).is_complete


def test_a_claim_that_no_student_can_test_has_one_line_in_total():
    records = [
        make(
            fields("kdep", "probe", 0.5, transfer=s)
            | {"id": f"{n}{s}", "student": {**fields()["student"], "name": n}}
        )
        for n in ("small", "large")
        for s in range(2)
    ]
    verdicts = judge(board_of(records), [CLAIM])
    assert [v.verdict for v in verdicts] == ["not testable here"]
