"""Teachers in the report: correlations, choice and regret of known records.

A teacher with a missing score or measure is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_records import fields
from test_results_probes import probe

from kdep_bench.errors import KdepError
from kdep_bench.results.board.teachers import studies
from kdep_bench.results.claims.schema import make_claim
from kdep_bench.results.records import probe_record, store
from kdep_bench.results.records.record import make
from kdep_bench.results.report import report
from kdep_bench.results.report.page.comparisons import teacher_choice_section, teachers_section
from kdep_bench.results.teacher_measures import MEASURES, PICKER, choice

SEEDS = (0, 1, 2)
# Of nine teachers: the mean score, the participation ratio and the accuracy.
SCORES = np.array([0.50, 0.46, 0.44, 0.40, 0.38, 0.33, 0.30, 0.28, 0.20])
RATIOS = np.array([70.0, 72.0, 60.0, 50.0, 41.0, 42.0, 30.0, 20.0, 10.0])
ACCURACIES = np.array([0.3, 0.2, 0.5, 0.4, 0.6, 0.55, 0.65, 0.8, 0.7])


def name(i: int) -> str:
    return f"teacher{i}"


def score_fields(i: int, seed: int, score: float, **changes: Any) -> dict[str, Any]:
    """The fields of a record of kdep with teacher `i`; its value is `score` + 0.01 (seed - 1)."""
    values = fields(
        "kdep",
        value=score + (seed - 1) * 0.01,
        pretrain=seed,
        transfer=seed,
        id=f"transfer-{i}-{seed}",
        **changes,
    )
    values["teacher"] = {**values["teacher"], "name": name(i), "top1": 0.7 if i == 0 else None}
    return values


def teacher_record(i: int, seed: int, **changes: Any) -> probe_record.ProbeRecord:
    """The record of the probe `teacher`; its values are those of the teacher plus the seed."""
    measured = {PICKER: float(RATIOS[i]) + seed - 1, "linear probe accuracy": float(ACCURACIES[i])}
    values = [{"name": k, "value": v} for k, v in measured.items()]
    common = dict(id=f"probe-{i}-{seed}", probe="teacher", teacher=name(i), values=values)
    return probe(seed=seed, **{**common, **changes})


def write(results: Path, n: int = 9) -> None:
    """Writes the records of the first `n` teachers, and of their probes, with three seeds."""
    for i in range(n):
        for seed in SEEDS:
            store.write(results, make(score_fields(i, seed, SCORES[i])))
            probe_record.write(results, teacher_record(i, seed))


def build(results: Path, claims: list[dict[str, Any]] | None = None) -> str:
    """Builds the report of a folder; returns leaderboard.md."""
    report.build(results, claims=claims or [])
    return (results / "leaderboard.md").read_text()


def study_of(results: Path):
    return studies(report.view_of(results).board)


CLAIM = dict(
    name="spread", title="Spread", kind="rank_correlation", a=dict(method="kdep"), at_least=0.2
)


def test_the_choice_of_a_measure_and_its_regret_equal_values_computed_by_hand(tmp_path):
    write(tmp_path)
    (study,) = study_of(tmp_path)
    assert study.best.row.teacher == "teacher0"
    assert [t.score for t in study.rows] == pytest.approx(SCORES)
    assert study.mean_regret == pytest.approx(0.50 - SCORES.mean())
    results = {r.measure: r for r in study.results}
    assert list(results) == [PICKER, "linear probe accuracy"]  # top-1 is known for one teacher only
    picked = results[PICKER]
    # teacher1 has the highest ratio. Its score is 4 points lower, equally for each seed.
    assert (picked.choice, picked.regret) == ("teacher1", pytest.approx(0.04))
    assert picked.interval is not None
    assert picked.interval.mean == pytest.approx(0.04)
    # Two swapped neighbours among nine: 1 - 6 * (1 + 1 + 1 + 1) / (9 * 80), and 36 - 2 * 2 pairs.
    assert picked.spearman is not None
    assert picked.kendall is not None
    assert picked.spearman.value == pytest.approx(1 - 24 / 720)
    assert picked.kendall.value == pytest.approx((34 - 2) / 36)
    assert picked.spearman.low is not None
    assert picked.spearman.low > 0.5
    assert results["linear probe accuracy"].choice == "teacher7"
    accuracy = results["linear probe accuracy"].spearman
    assert accuracy is not None
    assert accuracy.value < 0
    page = build(tmp_path)
    assert "## Teachers" in page
    assert "| kdep | teacher1 | 46.0 | 72.0 | 20.0 |" in page
    line = next(
        x
        for x in page.replace("\\", "").splitlines()
        if "participation ratio (kdep-bench pick)" in x
    )
    assert "| unlabelled images | 9 | + | +0.97 [" in line
    assert "| teacher1 | +4.0 [" in line
    assert "| a teacher chosen at random | — | 9 |" in page
    assert "Only the tables of teachers" in page
    view = report.view_of(tmp_path)
    for section in (teachers_section(view), teacher_choice_section(view)):
        assert section is not None


def test_a_choice_of_the_best_teacher_has_no_regret(tmp_path):
    write(tmp_path, 1)
    for i in (2, 3):
        for seed in SEEDS:
            store.write(tmp_path, make(score_fields(i, seed, SCORES[i])))
            probe_record.write(tmp_path, teacher_record(i, seed))
    assert "| teacher0 | 0 (the best teacher) |" in build(tmp_path)
    (study,) = study_of(tmp_path)
    spearman = study.results[0].spearman
    assert spearman is not None
    assert spearman.low is None  # three teachers: no interval


@pytest.mark.parametrize("fault", ["score", "measure", "missing value", "two settings", "copy"])
def test_a_teacher_with_a_gap_is_left_out_and_named(tmp_path, fault):
    write(tmp_path, 4)
    changes: dict[str, Any] = {}
    if fault == "score":
        store.write(tmp_path, make(_failed_fields(1, 2)))
    elif fault == "measure":
        changes = dict(status="failed", error="it failed.", values=[])
    elif fault == "missing value":
        changes = dict(values=[{"name": PICKER, "value": 1.0}])
    elif fault == "two settings":
        changes = dict(config_hash="other")
    else:
        changes = dict(id="probe-copy")
    if changes:
        probe_record.write(tmp_path, teacher_record(1, 2, **changes))
    (study,) = study_of(tmp_path)
    assert [t.row.teacher for t in study.rows] == ["teacher0", "teacher2", "teacher3"]
    assert list(study.left_out) == ["teacher1"]
    page = build(tmp_path)
    assert "a score or a measure is missing: teacher1." in page
    if fault != "score":
        assert "The teacher teacher1 of kdep (resnet18_w32) is not in the table" in page


def _failed_fields(i: int, seed: int) -> dict[str, Any]:
    """The fields of a failed run of kdep with teacher `i`."""
    changed = score_fields(i, seed, 0.5)
    return {**changed, "value": None, "metrics": {}, "per_class": {}, "status": "failed"} | {
        "error": "the loss became NaN."
    }


def test_the_row_with_the_most_epochs_is_used_for_score_and_measures(tmp_path):
    write(tmp_path, 3)
    for seed in SEEDS:
        shorter = score_fields(0, seed, 0.9)
        shorter["budget"] = {**shorter["budget"], "epochs": 3.0}
        store.write(tmp_path, make({**shorter, "id": f"short-{seed}"}))
        values = [{"name": PICKER, "value": 999.0}]
        change = dict(id=f"probe-short-{seed}", epochs=3.0, values=values)
        probe_record.write(tmp_path, teacher_record(0, seed, **change))
    (study,) = study_of(tmp_path)
    assert study.best.score == pytest.approx(0.5)
    assert study.best.measures[PICKER] == pytest.approx(70.0)


def test_without_the_probe_there_are_no_tables_of_teachers(tmp_path):
    for i in range(3):
        store.write(tmp_path, make(score_fields(i, 0, SCORES[i])))
    page = build(tmp_path)
    assert "## Teachers" not in page
    assert teachers_section(report.view_of(tmp_path)) is None


def test_claims_rank_teachers_by_measures_of_the_probe(tmp_path):
    write(tmp_path)
    claims = [CLAIM | {"by": PICKER}, CLAIM | {"name": "other", "by": "linear probe accuracy"}]
    page = build(tmp_path, claims)
    assert "**supported**" in page
    assert "**refuted**" in page
    with pytest.raises(KdepError, match="expected one of explained_variance_ratio, top1, part"):
        make_claim(CLAIM | {"by": "participation"})


def test_every_measure_has_a_sign_and_equal_teachers_are_chosen_by_name():
    assert all(m.sign in (-1, 1) and m.meaning for m in MEASURES.values())
    assert choice({"b": 2.0, "a": 2.0, "c": 1.0}) == "a"
    assert choice({"b": 2.0, "a": 2.0, "c": 1.0}, "mean cosine") == "c"
