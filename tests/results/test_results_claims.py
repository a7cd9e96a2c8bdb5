"""Claims about methods: the verdict of each kind of claim, and its tables and charts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from make_records import fields, grid
from test_results_tables import KDEP_BEATS_SCRATCH, SCORES, board_of

from kdep_bench.errors import KdepError
from kdep_bench.results import text
from kdep_bench.results.board import efficiency
from kdep_bench.results.budget_axis import Axis
from kdep_bench.results.claims.judge import judge, make_claim
from kdep_bench.results.claims.verdict import headlines, load_config, load_folder
from kdep_bench.results.records.record import make
from kdep_bench.results.report import board_rows, markdown, plots
from kdep_bench.results.statistics import intervals as st

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "claims"


def verdict(records, **claim):
    """The verdict on the claim KDEP_BEATS_SCRATCH with the keys `claim` replaced."""
    (only_verdict,) = headlines(judge(board_of(records), [KDEP_BEATS_SCRATCH | claim]))
    return only_verdict


def method_records(method, values, share=1.0, cost=None, images=None):
    """Records of a method with these scores on one task."""
    records = []
    for t, v in enumerate(values):
        record_fields = fields(method, "probe", v, transfer=t, share=share)
        if cost is not None:
            record_fields["cost"]["pretrain_s"] = cost
        if images is not None:
            record_fields["data"]["images"] = images
        records.append(make(record_fields))
    return records


def test_a_clear_difference_is_supported_or_refuted():
    outcome = verdict(grid(SCORES))
    assert (outcome.verdict, outcome.scope) == ("supported", "all tasks")
    assert verdict(grid(SCORES), a={"method": "scratch"}, b={"method": "kdep"}).verdict == "refuted"


def test_a_method_compared_with_itself_has_no_verdict():
    """A difference of exactly 0 would support or refute every margin."""
    itself = verdict(grid(SCORES), b={"method": "kdep"}, margin=-0.01)
    assert itself.verdict == "not testable here"
    assert "the same row" in itself.reason


def test_the_epochs_of_a_claim_match_a_row_with_rounded_epochs():
    """7.53 epochs of 3,200 images are 376 steps of 64, which are 7.52 epochs."""
    records = []
    for epochs, method, value in ((7.52, "kdep", 0.5), (16.0, "kdep", 0.2), (0.0, "scratch", 0.3)):
        for seed in range(3):
            record_fields = fields(method, "probe", value + 0.01 * seed, transfer=seed)
            record_fields["budget"] = {**record_fields.get("budget", {}), "epochs": epochs}
            records.append(make(record_fields))
    assert verdict(records, a={"method": "kdep", "epochs": 7.53}).verdict == "supported"
    assert verdict(records, a={"method": "kdep", "epochs": 16}).verdict == "refuted"
    assert verdict(records, a={"method": "kdep", "epochs": 12}).verdict == "not testable here"


def test_a_claim_has_one_row_per_family_and_all_tasks_last():
    verdicts = judge(board_of(grid(SCORES)), [KDEP_BEATS_SCRATCH])
    assert [v.scope for v in verdicts] == [
        "classification",
        "detection",
        "segmentation",
        "all tasks",
    ]


def test_two_task_families_have_one_verdict_each_and_one_for_all_tasks():
    one_family = {m: {"probe": tasks["probe"]} for m, tasks in SCORES.items()}
    two_families = {m: {t: tasks[t] for t in ("probe", "det")} for m, tasks in SCORES.items()}
    for per_family in (True, False):
        claim = KDEP_BEATS_SCRATCH | {"per_family": per_family}
        assert [v.scope for v in judge(board_of(grid(one_family)), [claim])] == ["classification"]
        scopes = [v.scope for v in judge(board_of(grid(two_families)), [claim])]
        single_families = ["classification", "detection"] if per_family else []
        assert scopes == [*single_families, "all tasks"]


def test_a_mean_dominated_by_one_family_is_undecided_if_another_disagrees():
    gaps = {"probe": 0.30, "det": -0.05, "seg": 0.05}
    scores = (0.40, 0.41, 0.42)
    table = {
        "kdep": {task: [score + gap for score in scores] for task, gap in gaps.items()},
        "scratch": {task: list(scores) for task in gaps},
    }
    outcome = verdict(grid(table))
    assert outcome.verdict == "undecided"
    assert "refuted on detection" in outcome.reason
    assert "would be supported" in outcome.reason


def test_an_undecided_claim_states_the_seeds_needed():
    records = method_records("kdep", [0.50, 0.53, 0.47]) + method_records(
        "scratch", [0.49, 0.48, 0.50]
    )
    outcome = verdict(records)
    assert outcome.verdict == "undecided"
    assert outcome.seeds_to_decide is not None
    assert outcome.seeds_to_decide > 3


def test_a_negative_margin_tests_that_a_method_is_not_worse():
    records = method_records("kdep", [0.50, 0.51, 0.52]) + method_records(
        "scratch", [0.501, 0.512, 0.521]
    )
    assert verdict(records, margin=-0.01).verdict == "supported"
    assert verdict(records, margin=0.01).verdict == "refuted"


def test_a_claim_about_a_missing_method_is_not_testable():
    outcome = verdict(grid({"kdep": SCORES["kdep"]}))
    assert outcome.verdict == "not testable here"
    assert "scratch" in outcome.reason


def test_one_seed_leaves_a_claim_undecided():
    assert (
        verdict(method_records("kdep", [0.9]) + method_records("scratch", [0.1])).verdict
        == "undecided"
    )


def test_a_mean_with_a_missing_result_is_undecided():
    records = grid(SCORES)
    records[0] = records[0].model_copy(
        update={"status": "failed", "error": "it broke", "value": None}
    )
    verdicts = {v.scope: v for v in judge(board_of(records), [KDEP_BEATS_SCRATCH])}
    assert verdicts["classification"].verdict == verdicts["all tasks"].verdict == "undecided"
    assert verdicts["detection"].verdict == "supported"
    assert "failed or missing" in verdicts["all tasks"].reason


def test_the_cost_includes_the_teacher_cache():
    records = method_records("kdep", [0.8, 0.81, 0.82], cost=10) + method_records(
        "supervised", [0.5, 0.51, 0.52], cost=100
    )
    claim = {"b": {"method": "supervised"}, "max_cost_ratio": 0.2}
    # kdep takes 10 s for training and 102 s for cache and alignment: 112 s to 100 s.
    outcome = verdict(records, **claim)
    assert (outcome.verdict, outcome.cost) == ("refuted", "1.12")
    assert verdict(records, **(claim | {"max_cost_ratio": 1.2})).verdict == "supported"


def test_a_claim_about_an_unknown_cost_is_undecided():
    records = method_records("kdep", [0.8, 0.81, 0.82]) + method_records(
        "scratch", [0.5, 0.51, 0.52]
    )
    assert verdict(records, max_cost_ratio=2.0).verdict == "undecided"


def efficiency_records(noise=0.002, top=0.50):
    """Records of kdep with 1, 10 and 100 % of 100,000 images."""
    rng = np.random.default_rng(0)
    records = []
    for share, score in ((0.01, 0.30), (0.1, 0.40), (1.0, top)):
        values = score + noise * rng.normal(size=3)
        records += method_records("kdep", values, share, images=round(100_000 * share))
    return records


EFFICIENCY = {"kind": "efficiency", "b": {"method": "supervised"}, "axis": "images"}


def test_data_efficiency_is_interpolated_on_the_curve():
    # On a log scale kdep reaches .45 half-way between 10,000 and 100,000 images: factor sqrt(10).
    records = efficiency_records() + method_records(
        "supervised", [0.45, 0.4505, 0.4495], images=100_000
    )
    outcome = verdict(records, **EFFICIENCY, at_least=2.0)
    assert outcome.verdict == "supported"
    assert float(outcome.interval.split(" ")[0]) == pytest.approx(math.sqrt(10), rel=0.05)
    assert verdict(records, **EFFICIENCY, at_least=10.0).verdict == "refuted"


def test_a_score_outside_the_curve_gives_a_bound_on_the_ratio():
    high = efficiency_records() + method_records("supervised", [0.6, 0.61, 0.59], images=100_000)
    outcome = verdict(high, **EFFICIENCY, at_least=2.0)
    assert outcome.verdict == "refuted"
    assert outcome.interval == "at most a factor of 1 (score not reached with any budget)"
    low = efficiency_records() + method_records("supervised", [0.2, 0.21, 0.19], images=100_000)
    outcome = verdict(low, **EFFICIENCY, at_least=10.0)
    assert outcome.verdict == "supported"
    assert outcome.interval == "at least a factor of 100 (score reached with the smallest budget)"
    assert "at least 100 times" in outcome.reason
    assert verdict(low, **EFFICIENCY, at_least=500.0).verdict == "undecided"
    mixed = efficiency_records() + method_records("supervised", [0.45, 0.45, 0.6], images=100_000)
    shown = verdict(mixed, **EFFICIENCY, at_least=2.0).interval  # one seed has a bound
    assert re.fullmatch(r"at most 2\.\d times, interval of the bound \[.*\]", shown)


def test_the_leaderboard_shows_the_reduction_factor_of_the_claim():
    records = efficiency_records() + method_records(
        "supervised", [0.45, 0.4505, 0.4495], images=100_000
    )
    board = board_of(records)
    savings = {axis: s for _, _, axis, s in efficiency.reduction_factors(board, "resnet18_w32")}
    # The rows of kdep differ only in the number of images, and so in the FLOPs of the teacher
    # cache. The other axes have no curve.
    assert set(savings) == {"images", "flops"}
    shown = text.reduction(savings["images"])
    assert shown == verdict(records, **EFFICIENCY, at_least=2.0).interval
    assert shown in markdown.markdown(board_rows.make_view(board))


def test_a_cost_with_an_unknown_part_is_unknown():
    record_fields = fields("kdep", "probe", 0.5)
    record_fields["cost"]["cache_s"] = None
    # Without a cache stage the teacher was live, so its time is part of the training time.
    board = board_of([make(record_fields)])
    assert efficiency.amount(board, board.rows[0], "seconds") == 302.0
    record_fields["stages"]["cache"] = "cache-x"
    board = board_of([make(record_fields)])
    assert efficiency.amount(board, board.rows[0], "seconds") is None


def test_a_row_without_pre_training_gives_no_cost_ratio():
    records = method_records("kdep", [0.8, 0.81, 0.82]) + method_records(
        "scratch", [0.5, 0.51, 0.52], cost=0.2
    )
    assert verdict(records).cost == "—"


@pytest.mark.parametrize("noise", [0.004, 0.012])
def test_the_interval_of_the_efficiency_ratio_covers_the_true_ratio(noise):
    """kdep gains .1 for ten times the images. Supervised scores .45 with 100,000 images, kdep with
    a sqrt(10) times smaller number."""
    rng = np.random.default_rng(int(noise * 1000))
    truth, hits, runs = 0.5 * math.log(10), 0, 1200
    keys = [(0, t) for t in range(3)]
    for _ in range(runs):
        scores = {
            share: dict(zip(keys, level + noise * rng.normal(size=3), strict=True))
            for share, level in ((0.01, 0.3), (0.1, 0.4), (1.0, 0.5))
        }
        goal = dict(zip(keys, 0.45 + noise * rng.normal(size=3), strict=True))
        logs = [math.log(1e5 * share) for share in scores]
        reached = efficiency.log_budgets_at_goal(logs, [*scores.values()], goal)
        estimated = st.estimate({k: math.log(1e5) - v for k, v in reached.items()})
        assert estimated.low is not None
        assert estimated.high is not None
        hits += estimated.low < truth < estimated.high
    assert 0.93 < hits / runs < 0.97


def test_an_efficiency_claim_with_one_point_is_not_testable():
    records = method_records("kdep", [0.5, 0.51, 0.52]) + method_records(
        "supervised", [0.4, 0.41, 0.42]
    )
    assert verdict(records, **EFFICIENCY, at_least=2.0).verdict == "not testable here"


def test_costs_include_the_teacher_s_forward_passes():
    board = board_of(method_records("kdep", [0.5, 0.6]) + method_records("scratch", [0.1, 0.2]))
    kdep, scratch = board.rows
    assert efficiency.amount(board, kdep, "seconds") == 402.0
    # 60,000 images forward and backward; the teacher runs on 10,000 images in 2 views.
    assert efficiency.amount(board, kdep, "flops_without_teacher") == 60_000 * 1e8 * 3
    assert efficiency.amount(board, kdep, "flops") == 60_000 * 1e8 * 3 + 20_000 * 4e8
    assert efficiency.amount(board, scratch, "images") is None


def teacher_records(ratios, scores, accuracies=None, share=1.0, method="kdep"):
    """Records of a method with several teachers.

    Each teacher has an explained variance ratio, a score of its student, and a reported accuracy.
    """
    records = []
    for i, (ratio, score) in enumerate(zip(ratios, scores, strict=True)):
        for t in range(2):
            record_fields = fields(
                method, "probe", score, transfer=t, share=share, id=f"r{share}-{i}-{t}"
            )
            record_fields["teacher"]["name"] = f"teacher{i}"
            record_fields["teacher"]["top1"] = None if accuracies is None else accuracies[i]
            record_fields["align"]["explained_variance_ratio"] = ratio
            records.append(make(record_fields))
    return records


# The claim that students score lower if the teacher's feature has a high explained variance ratio.
COMPACT = load_config(CONFIGS / "compact_teacher_is_worse.py")
# The claim that students do not score higher if the teacher has a higher accuracy.
BETTER = load_config(CONFIGS / "better_teacher_is_not_better.py")


def test_the_claim_on_explained_variance_is_a_rank_correlation_over_teachers():
    ratios = np.linspace(0.5, 0.95, 8)
    falling = teacher_records(ratios, np.linspace(0.6, 0.3, 8))
    assert verdict(falling, **COMPACT).verdict == "supported"
    former_name = COMPACT | {"by": "energy_kept"}  # as in claims.json of earlier versions
    assert verdict(falling, **former_name) == verdict(falling, **COMPACT)
    assert (
        verdict(teacher_records(ratios, np.linspace(0.3, 0.6, 8)), **COMPACT).verdict == "refuted"
    )


def test_the_accuracy_claim_uses_the_teachers_reported_accuracy():
    ratios, accuracies = np.full(9, 0.8), np.linspace(0.70, 0.86, 9)
    rising, falling = np.linspace(0.3, 0.6, 9), np.linspace(0.6, 0.3, 9)
    assert verdict(teacher_records(ratios, rising, accuracies), **BETTER).verdict == "refuted"
    assert verdict(teacher_records(ratios, falling, accuracies), **BETTER).verdict == "supported"
    unrelated = verdict(
        teacher_records(ratios, rising[[4, 0, 8, 3, 5, 1, 7, 2, 6]], accuracies), **BETTER
    )
    assert unrelated.verdict == "undecided"
    unknown = verdict(teacher_records(ratios, rising), **BETTER)
    assert unknown.verdict == "not testable here"
    assert "there are 0" in unknown.reason


@pytest.mark.parametrize("claim", [COMPACT, BETTER], ids=["compactness", "accuracy"])
def test_too_few_teachers_leave_a_claim_undecided(claim):
    for n in (2, 5, 7):
        x = np.linspace(0.5, 0.9, n)
        outcome = verdict(teacher_records(x, np.linspace(0.6, 0.3, n), x), **claim)
        assert outcome.verdict == "undecided"
        assert f"{n} teachers" in outcome.reason
    assert verdict(teacher_records([0.5], [0.6], [0.7]), **claim).verdict == "not testable here"


def test_a_teacher_is_represented_by_its_row_with_most_data():
    ratios = np.linspace(0.5, 0.95, 8)
    all_data = teacher_records(ratios, np.linspace(0.6, 0.3, 8))
    tenth = teacher_records(ratios, np.linspace(0.2, 0.5, 8), share=0.1)
    for records in ([*all_data, *tenth], [*tenth, *all_data]):
        assert verdict(records, **COMPACT).interval.startswith("-1.00")


def test_claims_have_the_stated_false_positive_rate():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(150):
        records = method_records("kdep", rng.normal(0.5, 0.01, 3)) + method_records(
            "scratch", rng.normal(0.5, 0.01, 3)
        )
        wrong += verdict(records).verdict != "undecided"
    assert wrong / 150 < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margn": 1}, "margin"),
        ({"b": None}, "needs b"),
        ({"kind": "efficiency"}, "at_least"),
        ({"kind": "rank_correlation"}, "at_least and at_most"),
        ({"a": {"methd": "x", "method": "y"}}, "methd"),
        ({"max_cost_ratio": 0}, "max_cost_ratio"),
        ({"margin": "10"}, "has margin = '10'; expected a number. Fix: correct `margin`"),
        ({"families": []}, "has families = []; expected 1 or more entries"),
        (
            {"a": "kdep"},
            "expected dict(method=..., share=..., epochs=..., teacher=...). Fix: write ",
        ),
        ({"a": {"method": "kdep", "margin": 1}}, "`margin` is a key of the claim"),
        ({"kind": "diference", "margin": True}, "2 faults"),
    ],
)
def test_a_malformed_claim_raises_kdep_error(change, message):
    with pytest.raises(KdepError) as error:
        make_claim(KDEP_BEATS_SCRATCH | change)
    assert message in str(error.value)


def test_a_claim_without_a_title_is_told_what_the_title_is():
    with pytest.raises(KdepError, match=r"lacks the key 'title'. Fix: add title=..., the text"):
        make_claim({k: v for k, v in KDEP_BEATS_SCRATCH.items() if k != "title"})


def test_two_claims_with_the_same_name_are_refused():
    with pytest.raises(KdepError, match="two claims"):
        judge(board_of([]), [KDEP_BEATS_SCRATCH, KDEP_BEATS_SCRATCH])


def test_shipped_claims_are_valid_and_named_after_their_files():
    claims = load_folder(CONFIGS)
    assert len(claims) >= 8
    assert [c["name"] for c in claims] == sorted(p.stem for p in CONFIGS.glob("*.py"))
    verdicts = judge(board_of(grid(SCORES)), claims)
    assert {v.name for v in verdicts} == {c["name"] for c in claims}
    assert {v.verdict for v in verdicts if v.name == "kdep_beats_scratch"} == {"supported"}
    assert {v.verdict for v in verdicts if v.name == "kdep_beats_conv1x1"} == {"not testable here"}


def test_a_broken_claim_file_raises_kdep_error(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("claims = 1\n")
    with pytest.raises(KdepError, match=r"bad\.py"):
        load_config(path)


def test_a_claim_config_may_inherit_from_another(tmp_path):
    (tmp_path / "base.py").write_text("claim = dict(name='a', title='A', margin=0.1)\n")
    (tmp_path / "derived.py").write_text(
        "from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n\n"
        "claim.update(margin=0.25)\n"
    )
    assert load_config(tmp_path / "derived.py") == {"name": "a", "title": "A", "margin": 0.25}


def test_a_claim_supported_on_a_family_is_not_refuted_overall():
    """The mean is negative because of one family; on the others the claim holds."""
    gaps = {"probe": -0.30, "det": 0.05, "seg": 0.05}
    scores = (0.50, 0.51, 0.52)
    table = {
        "kdep": {task: [score + gap for score in scores] for task, gap in gaps.items()},
        "scratch": {task: list(scores) for task in gaps},
    }
    outcome = verdict(grid(table))
    assert outcome.verdict == "undecided"
    assert "supported on detection" in outcome.reason
    assert "would be refuted" in outcome.reason


def test_an_untestable_claim_has_one_row_for_all_students():
    records = grid(SCORES) + grid(SCORES, student={"name": "other", "width": 64})
    records = [r.model_copy(update={"id": f"{r.id}-{k}"}) for k, r in enumerate(records)]
    board = board_of(records)
    assert len(board.students) == 2
    assert len(judge(board, [KDEP_BEATS_SCRATCH | {"a": {"method": "nobody"}}])) == 1
    assert len(headlines(judge(board, [KDEP_BEATS_SCRATCH]))) == 2


def test_every_axis_of_a_claim_has_a_heading():
    assert set(efficiency.AXES) == set(get_args(Axis))


def trained_records(method, score, teacher="", share=1.0, seen=60_000):
    """Records of a method with three transfer seeds, for `seen` images seen in pre-training."""
    records = []
    for t in range(3):
        record_fields = fields(method, "probe", score + 0.001 * t, transfer=t, share=share)
        record_fields["id"] += f"-{teacher}-{seen}"
        record_fields["teacher"] = (
            {"name": teacher, "width": 1280, "flops": 4e8} if teacher else None
        )
        record_fields["budget"] |= {
            "images_seen": seen,
            "epochs": seen / record_fields["data"]["images"],
            "views": 2,
        }
        record_fields["cost"] |= {"pretrain_s": seen / 100, "cache_s": 0.0, "align_s": 0.0}
        records.append(make(record_fields))
    return records


def test_each_teacher_and_data_fraction_has_one_curve():
    """The goal is 0.50. The curve of lite0 reaches it at 20,000 images seen with 10 % of the data
    and at 40,000 with all data; the curve of lite2 does not reach it."""
    scores = {
        ("lite0", 0.1): (0.40, 0.50, 0.55),
        ("lite0", 1.0): (0.30, 0.40, 0.50),
        ("lite2", 1.0): (0.20, 0.30, 0.40),
    }
    seen = (10_000, 20_000, 40_000)
    records = trained_records("supervised", 0.50, seen=80_000)
    for (teacher, share), line in scores.items():
        for s, n in zip(line, seen, strict=True):
            records += trained_records("kdep", s, teacher, share, n)
    board = board_of(records)
    lines = {
        label: s
        for label, _, axis, s in efficiency.reduction_factors(board, "resnet18_w32")
        if axis == "images_seen"
    }
    times = {label: math.exp(s.estimate.mean) for label, s in lines.items()}
    assert times == pytest.approx(
        {
            "kdep · lite0 · 100 % data": 2,
            "kdep · lite0 · 10 % data": 4,
            "kdep · lite2 · 100 % data": 2,
        }
    )
    assert [lines[n].bound for n in sorted(lines)] == ["", "", "at most"]
    # A claim that names no data fraction is about the row with all data.
    claim = EFFICIENCY | {"axis": "images_seen", "a": {"method": "kdep", "teacher": "lite0"}}
    assert verdict(records, **claim, at_least=3.0).reason.startswith("kdep · lite0 · 100 % data:")
    assert verdict(records, **claim, at_least=3.0).verdict == "refuted"
    claim["a"] = claim["a"] | {"share": 0.1}
    assert verdict(records, **claim, at_least=3.0).verdict == "supported"


def test_data_fractions_with_equal_images_seen_are_points_of_one_curve():
    records = trained_records("supervised", 0.50, seen=20_000)
    for share, scores in ((0.1, (0.30, 0.50)), (1.0, (0.40, 0.60))):
        for s, n in zip(scores, (10_000, 20_000), strict=True):
            records += trained_records("kdep", s, "lite0", share, n)
    board = board_of(records)
    rows = [a for a in board.rows if a.method == "kdep"]
    lines = efficiency.lines_of(board, rows, "images")
    assert {name: [a.fraction for a in curve_rows] for name, curve_rows in lines.items()} == {
        "kdep · 0.02 M images seen": [1.0, 0.1],
        "kdep · 0.01 M images seen": [1.0, 0.1],
    }
    savings = {
        (n, axis): s for n, _, axis, s in efficiency.reduction_factors(board, "resnet18_w32")
    }
    saving = savings["kdep · 0.02 M images seen", "images"]
    # 10 % of the data already reach the score.
    assert math.exp(saving.estimate.mean) == pytest.approx(10)


def test_too_many_curves_are_split_into_one_chart_per_teacher():
    records = trained_records("supervised", 0.5) + trained_records("supervised", 0.6, seen=80_000)
    for i in range(3):
        for share in (0.01, 0.1, 1.0):
            for n in (10_000, 20_000):
                records += trained_records("kdep", 0.3 + 1e-6 * n, f"teacher{i}", share, n)
    view = board_rows.make_view(board_of(records))
    drawn = {p.name: p for p in plots.draw(view, [])}
    charts = [n for n in drawn if n.startswith("efficiency-0-images_seen")]
    assert charts == [f"efficiency-0-images_seen-{i}" for i in range(3)]
    for i, name in enumerate(charts):
        assert drawn[name].caption.endswith(f" · teacher{i}")
        for line in ("supervised", *(f"kdep · teacher{i} · {s} % data" for s in (1, 10, 100))):
            assert line in drawn[name].svg
        assert f"teacher{(i + 1) % 3}" not in drawn[name].svg


def test_curves_with_and_without_a_teacher_are_labelled():
    records = []
    for k, seen in enumerate((10_000, 20_000)):
        records += trained_records("dml", 0.5 + 0.1 * k, seen=seen)
        records += trained_records("dml", 0.6 + 0.1 * k, "lite0", seen=4 * seen)
    board = board_of(records)
    assert set(efficiency.lines_of(board, board.rows, "images_seen")) == {
        "dml · lite0",
        "dml · no teacher",
    }


def test_a_claim_about_families_that_were_not_measured_is_untestable():
    probe = grid({m: {"probe": tasks["probe"]} for m, tasks in SCORES.items()})
    outcome = verdict(probe, families=["detection"])
    assert outcome.verdict == "not testable here"
    assert outcome.reason == "no task of these families is in the records"


def test_a_curve_over_seconds_is_interpolated_in_the_order_of_seconds_and_not_of_epochs():
    """kdep's 3 epochs took 400 s, its 6 epochs 100 s."""
    records = trained_records("supervised", 0.50, seen=80_000)
    for seen, seconds, score in ((30_000, 400.0, 0.60), (60_000, 100.0, 0.40)):
        for r in trained_records("kdep", score, "lite0", seen=seen):
            cost = r.cost.model_copy(update={"pretrain_s": seconds})
            records.append(r.model_copy(update={"cost": cost}))
    board = board_of(records)
    (goal,) = [a for a in board.rows if a.method == "supervised"]
    curve = [a for a in board.rows if a.method == "kdep"]
    for order in (curve, curve[::-1]):
        saving = efficiency.reduction_factor(board, order, goal, board.columns, "seconds")
        assert saving is not None
        # Half of the way from 0.40 to 0.60 on a log scale: 200 s; the goal took 800 s.
        assert math.exp(saving.estimate.mean) == pytest.approx(4)
        assert saving.bound == ""


def test_the_chart_of_claims_shows_each_measured_difference_once():
    """svd - kdep is +10 points and scratch - kdep -20; a claim without records has no dot."""
    records = [
        r
        for method, mean in (("kdep", 0.4), ("svd", 0.5), ("scratch", 0.2))
        for r in method_records(method, [mean, mean + 0.01, mean + 0.02])
    ]
    claims = [
        dict(name=f"c{i}", title=f"step {i}", kind="difference", a={"method": a}, b={"method": b})
        for i, (a, b) in enumerate((("svd", "kdep"), ("scratch", "kdep"), ("absent", "kdep")))
    ]
    board = board_of(records)
    verdicts = judge(board, claims)
    means = [None if v.difference is None else round(v.difference.mean, 9) for v in verdicts]
    assert means == [0.1, -0.2, None]
    (chart,) = [
        p for p in plots.draw(board_rows.make_view(board, verdicts), []) if p.group == "claims"
    ]
    assert [chart.svg.count(f"step {i}") for i in range(3)] == [1, 1, 0]


def test_methods_of_one_family_have_different_line_styles_and_scratch_is_a_level():
    records = trained_records("scratch", 0.1, seen=0)
    for i, method in enumerate(("supervised", "fitnets", "pursuhint", "nfd")):
        for seen in (10_000, 20_000):
            records += trained_records(method, 0.2 + 0.01 * i + 1e-6 * seen, seen=seen)
    view = board_rows.make_view(board_of(records))
    chart = next(p for p in plots.draw(view, []) if p.name == "efficiency-0-images_seen")
    paths = re.findall(r'<path[^>]*d="M([^"]+)"[^>]*class="line (c\d d\d)"', chart.svg)
    assert len({style for _, style in paths}) == 5
    levels = [d for d, _ in paths if "L" in d and len({p.split()[1] for p in d.split("L")}) == 1]
    assert len(levels) == 1


def test_the_statement_on_data_names_the_supervised_row_with_the_same_epochs():
    records = trained_records("scratch", 0.1, seen=0)
    for method in ("supervised", "kdep"):
        for seen in (10_000, 20_000):
            records += trained_records(method, 0.2 + 1e-6 * seen, seen=seen)
    view = board_rows.make_view(board_of(records))
    (sentences,) = board_rows.answers(view).values()
    named = [re.findall(r"· ([\d.]+) epochs", s) for s in sentences if "as many images" in s]
    assert len(named) == 2
    assert all(a == b for a, b in named)
