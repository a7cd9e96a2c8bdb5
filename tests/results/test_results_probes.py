"""Tables of probes: known means, missing seeds, and no effect on other tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from make_records import grid, record

from kdep_bench.errors import KdepError
from kdep_bench.results.records import probe_record, store
from kdep_bench.results.report import report
from kdep_bench.results.report.probe_tables import ProbeColumn, make_section

# Names of the values that the probes in configs/probes/ measure; one example each of the names with
# a number or a variant (images per class, severity, radius).
VALUE_NAMES = (
    *("top1", "top1, 16 per class", "mAP", "recall at 10", "ECE", "classwise ECE", "Brier"),
    *("NLL", "top1, clean - corrupted", "top1, severity 3", "effective rank", "CKA"),
    *("participation ratio before activation", "dead dimensions", "CKA before activation"),
    *("mIoU", "pixel accuracy", "ms, torch, batch 1", "images/s, onnxruntime, batch 32"),
    *("top1, mean of targets, kNN", "top1, 4 per class, no adapter", "top1, gaussian noise"),
    *("effective rank before activation", "recall at 1", "top1, clean", "top1, corrupted"),
    *("loss", "largest Hessian eigenvalue", "Hessian trace", "sharpness, radius 0.001"),
    *("loss increase, distance 0.1", "within-class variance", "CKA with the student"),
)


def probe(method: str = "kdep", seed: int = 0, top1: float | None = 0.5, **change: Any):
    """A probe record with changes."""
    fields: dict[str, Any] = {
        "schema": 1,
        "id": f"probe-knn.{method}.s{seed}",
        "suite": "golden",
        "status": "ok",
        "method": {"method": method, "label_policy": "label-free", "labels_used": False},
        "student": "resnet18_w32",
        "teacher": "lite0",
        "data": {"name": "pocket", "fingerprint": "f0" * 8, "share": 1.0},
        "epochs": 6.0,
        "seed": seed,
        "probe": "knn",
        "folder": "classify",
        "about": "accuracy of neighbours",
        "config_hash": "c0ffee",
        "values": [
            {"name": "top1", "value": top1, "better": "larger", "percent": True, "chance": 0.125},
            {"name": "NLL", "value": 2.0 - (top1 or 0), "better": "smaller"},
        ],
        "features_s": 3.0,
        "probe_s": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    if top1 is None:
        fields |= {"status": "failed", "error": "the loss became NaN.", "values": []}
    return probe_record.make(fields | change)


def write_and_build(results: Path, *probes: probe_record.ProbeRecord) -> str:
    """Writes records and builds the report; returns leaderboard.md."""
    for r in grid({"kdep": {"probe": [0.5, 0.6]}, "scratch": {"probe": [0.2, 0.3]}}):
        store.write(results, r)
    for p in probes:
        probe_record.write(results, p)
    report.build(results, claims=[])
    return (results / "leaderboard.md").read_text()


def test_means_deviations_and_seeds_equal_values_computed_by_hand(tmp_path):
    probes = [probe(seed=s, top1=v) for s, v in enumerate((0.5, 0.6, 0.7))]
    page = write_and_build(tmp_path, *probes, probe("scratch", top1=0.25))
    assert "### knn (classify)" in page
    assert "\nAccuracy of neighbours.\n" in page
    assert "| kdep | 60.0 ± 10.0 (3) | 1.400 ± 0.100 (3) |" in page
    assert "| scratch | 25.0 (1) | 1.750 (1) |" in page
    assert "| *chance* | *12.5* | *—* |" in page
    assert "top1 x100 ↑" in page
    assert "NLL ↓" in page
    section = page[page.index("## Probes") :]
    assert section.index("| kdep | 60.0") < section.index("| scratch | 25.0")  # sorted by score


def test_probes_change_no_score_mean_or_mark(tmp_path):
    """Apart from the section of probes, the report does not depend on probe records."""
    without = write_and_build(tmp_path / "a")
    page = write_and_build(tmp_path / "b", probe(top1=0.99), probe("scratch", top1=0.01))
    start, end = page.index("## Probes"), page.index("## Environment")
    assert page[:start] + page[end:] == without
    assert "**" not in page[start:end]
    for name in ("leaderboard.csv", "leaderboard.tex"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    assert not (tmp_path / "a" / "probes.csv").exists()


def test_failed_and_missing_seeds_are_named_and_never_averaged(tmp_path):
    absent = probe(seed=2, top1=None, status="missing", error=None)
    page = write_and_build(tmp_path, probe(top1=0.5), probe(seed=1, top1=None), absent)
    assert "| kdep | 50.0 (1), 1 failed, 1 missing |" in page
    assert "probe knn of kdep, seed 1: the loss became NaN." in page
    page = write_and_build(tmp_path / "only", probe(top1=None))
    assert "| kdep | failed |" in page  # without values, the row still has a status


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"name": "pocket", "fingerprint": "ab" * 8, "share": 1.0}},
        {"config_hash": "bead5"},
        {"folder": "classify2"},
    ],
)
def test_probes_on_other_data_or_with_another_config_have_separate_tables(other):
    """Numbers measured on different data may not be averaged."""
    section = make_section([probe(), probe(seed=1, top1=0.7, **other)], [])
    assert [len(t.rows) for t in section.tables] == [1, 1]
    assert len({t.title for t in section.tables}) == 2
    column = section.tables[0].columns[0]
    assert sorted(t.rows[0].score_text(column) for t in section.tables) == ["50.0 (1)", "70.0 (1)"]


def test_rows_with_other_data_fractions_or_epochs_are_separate_and_labelled():
    tenth = probe(data={"name": "pocket", "fingerprint": "f0" * 8, "share": 0.1}, id="probe-a")
    section = make_section([probe(), tenth, probe(id="probe-b", epochs=2.0)], [])
    assert sorted(section.labels.values()) == [
        "kdep · 10 % data · 6 epochs",
        "kdep · 100 % data · 2 epochs",
        "kdep · 100 % data · 6 epochs",
    ]


def test_two_records_of_one_seed_are_refused_instead_of_counted_twice():
    section = make_section([probe(), probe(id="probe-copy", top1=0.9)], [])
    assert not section.tables[0].rows
    assert "2 records of kdep, seed 0" in section.remarks[0]


def test_hostile_names_are_escaped(tmp_path):
    name = "<script>alert(1)</script>|=cmd()"
    page = write_and_build(
        tmp_path, probe(probe=name, about=name, id="probe-x"), probe(name, id="probe-y")
    )
    assert "<script>alert" not in page
    assert "<script>alert" not in (tmp_path / "index.html").read_text()
    rows = list(csv.reader(io.StringIO((tmp_path / "probes.csv").read_text())))
    assert all(not cell.startswith("=") for row in rows for cell in row)


def test_the_csv_has_every_value(tmp_path):
    write_and_build(tmp_path, probe(top1=0.5), probe(seed=1, top1=0.75))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "probes.csv").read_text())))
    assert [(r["seed"], r["metric"], r["value"]) for r in rows] == [
        ("0", "top1", "0.5"),
        ("0", "NLL", "1.5"),
        ("1", "top1", "0.75"),
        ("1", "NLL", "1.25"),
    ]
    assert rows[0]["features_s"] == "3.0"


def test_probes_of_another_suite_in_the_folder_are_not_shown(tmp_path):
    probe_record.write(tmp_path, probe(suite="other"))
    store.write(tmp_path, record())
    report.build(tmp_path, "golden", claims=[])
    assert "Probes" not in (tmp_path / "leaderboard.md").read_text()


def test_inconsistent_probe_records_are_refused():
    for change in (
        {"status": "ok", "values": []},
        {"status": "failed", "error": None, "values": []},
        {"status": "missing"},
        {"values": [{"name": "a", "value": float("nan")}]},
        {"values": [{"name": "a", "value": 1.0}, {"name": "a", "value": 2.0}]},
        {"extra": 1},
    ):
        fields = json.loads(probe_record.dump(probe())) | change
        with pytest.raises(KdepError, match="is damaged"):
            probe_record.make(fields)


def test_a_value_is_shown_with_its_unit():
    assert ProbeColumn("a", "", True).text_of(0.1234) == "12.3"
    assert ProbeColumn("a", "", False).text_of(0.1234) == "0.123"
    assert ProbeColumn("a", "", False).text_of(73.456) == "73.46"
    assert ProbeColumn("a", "", False).text_of(None) == "—"


def test_every_heading_of_the_probes_in_the_configs_is_explained():
    """Headings are made from the names of values, and the glossary must have each of them."""
    from kdep_bench.probes import base
    from kdep_bench.results.report import glossary

    for name in VALUE_NAMES:
        for better in base.Better.__args__:
            assert glossary.term_of(ProbeColumn(name, better, True).heading), name
    assert glossary.term_of("something else") is None
