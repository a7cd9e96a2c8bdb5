"""The comparison of method families: closed forms, missing results, and names with markup."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from make_records import fields

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.results import build, text
from kdep_bench.results.board import families
from kdep_bench.results.board.board import Board, RowKey, make_board
from kdep_bench.results.board.row_summary import RowSummary
from kdep_bench.results.records import store
from kdep_bench.results.records.record import RENAMED_IN_3, Record, make
from kdep_bench.results.report import board_rows

SEEDS = 3


class MethodValues(NamedTuple):
    """Values of a method's records; `probe`, `seg`: scores on these tasks with seed 0."""

    family: str
    uses_labels: bool
    probe: float
    seg: float
    step_s: float | None
    extra_parameters: int
    extra_forwards: int


METHODS = {
    "scratch": MethodValues("none", False, 0.20, 0.10, None, 0, 0),
    "kdep": MethodValues("feature", False, 0.50, 0.40, 0.10, 0, 20_000),
    "fitnets": MethodValues("feature", False, 0.44, 0.36, 0.12, 5_000, 20_000),
    "rkd": MethodValues("relation", False, 0.40, 0.30, 0.11, 0, 20_000),
    "pkt": MethodValues("relation", False, 0.42, 0.32, 0.13, 0, 20_000),
    "dml": MethodValues("online", True, 0.52, 0.41, 0.20, 2_800_000, 60_000),
}
INPUTS = {
    "kdep": {"reads": ["pooled"]},
    "fitnets": {"reads": ["maps"]},
    "rkd": {"reads": ["pooled"]},
    "pkt": {"reads": ["pooled"]},
    "dml": {"reads": ["labels"]},
}


def seed_record(
    method: str, task: str, value: float | None, seed: int, with_costs: bool = True
) -> Record:
    """A record of a method; its costs are those in METHODS."""
    values = METHODS[method]
    record_fields = fields(method, task, value, pretrain=seed, transfer=seed)
    policy = "labels" if values.uses_labels else "label-free"
    record_fields["arm"] |= {
        "family": values.family,
        "labels_used": values.uses_labels,
        "label_policy": "none" if method == "scratch" else policy,
    }
    step_s = values.step_s
    record_fields["cost"] |= {
        "images_per_s": None if step_s is None else 120 / step_s,  # 60,000 images in 500 steps
        "peak_memory_bytes": (2 if task == "seg" else 1) * 2**30,
    }
    if method == "dml":
        record_fields["budget"] |= {"learning_rate": 0.05}
        record_fields["terms"] = {"cross_entropy": 0.9 - 0.1 * seed, "mut|ual": 0.1 + 0.1 * seed}
    if with_costs:
        record_fields["cost"] |= {
            "extra_parameters": values.extra_parameters,
            "extra_forwards": values.extra_forwards,
        }
    return make(record_fields | ({"status": "missing"} if value is None else {}))


def records(missing: tuple[str, str, int] | None = None, with_costs: bool = True) -> list[Record]:
    """Records of all methods; a seed shifts all scores equally, so paired differences are exact."""
    return [
        seed_record(m, task, None if missing == (m, task, s) else value + 0.01 * s, s, with_costs)
        for m, values in METHODS.items()
        for task, value in (("probe", values.probe), ("seg", values.seg))
        for s in range(SEEDS)
    ]


def board_of(seed_records: list[Record]) -> tuple[Board, dict[RowKey, RowSummary]]:
    """The board of the records and the summaries of its rows."""
    sharer = store._Sharer()
    board = make_board(store.Store([sharer.run(r, f"{r.id}.json") for r in seed_records], []))
    return board, board_rows.make_view(board).summaries


def families_by_name(
    board: Board, summaries: dict[RowKey, RowSummary]
) -> dict[str, families.MethodFamily]:
    """{family name: comparison of that family}."""
    return {f.name: f for f in families.families(board, summaries, INPUTS)}


def test_the_difference_of_a_family_is_the_mean_of_its_paired_differences():
    by_name = families_by_name(*board_of(records()))
    # scratch is a reference and belongs to no family.
    assert set(by_name) == {"feature", "relation", "online"}
    # ((0.40 + 0.42) / 2 - 0.50 + (0.30 + 0.32) / 2 - 0.40) / 2, the same for every seed
    to_kdep = by_name["relation"].strength["kdep"]
    assert to_kdep.methods == 2
    assert to_kdep.estimate is not None
    assert to_kdep.estimate.mean == pytest.approx(-0.09)
    assert to_kdep.estimate.n == SEEDS
    assert to_kdep.estimate.low == pytest.approx(-0.09, abs=1e-9)
    scratch = by_name["relation"].strength["scratch"].estimate
    assert scratch is not None
    assert scratch.mean == pytest.approx(0.21)
    # kdep is not compared with itself, but it is one of its family's rows compared with scratch.
    feature = by_name["feature"].strength
    assert (feature["kdep"].methods, feature["scratch"].methods) == (1, 2)
    assert feature["kdep"].estimate is not None
    assert feature["kdep"].estimate.mean == pytest.approx(-0.05)
    assert by_name["online"].labels
    assert not by_name["feature"].labels
    assert by_name["relation"].reads == {"pooled": 2}
    assert by_name["feature"].reads == {"maps": 1, "pooled": 1}


def test_the_interval_of_a_family_is_a_t_interval_over_seeds():
    seed_records = records()
    with_noise = [r if r.arm.method != "dml" else with_seed_noise(r) for r in seed_records]
    dml = families_by_name(*board_of(with_noise))["online"].strength["kdep"].estimate
    assert dml is not None
    # The seeds add 0, 0.03 and 0.06 to the difference 0.015 on both tasks: mean 0.045, sd 0.03.
    # 4.302653 is the 97.5 % quantile of Student's t with two degrees of freedom.
    assert dml.mean == pytest.approx(0.045)
    assert dml.low == pytest.approx(0.045 - 4.302653 * 0.03 / 3**0.5, abs=1e-6)


def with_seed_noise(r: Record) -> Record:
    """The record with a score that depends on the pre-training seed."""
    assert r.value is not None
    return r.model_copy(update={"value": r.value + 0.03 * r.seed.pretrain})


def test_a_method_with_a_missing_result_is_left_out_of_the_mean_of_its_family():
    board, summaries = board_of(records(missing=("pkt", "seg", 1)))
    relation = families_by_name(board, summaries)["relation"]
    assert relation.left_out == ["pkt"]
    assert relation.strength["kdep"].methods == 1
    assert relation.strength["kdep"].estimate is not None
    assert relation.strength["kdep"].estimate.mean == pytest.approx(-0.10)  # only rkd
    board, summaries = board_of(records(missing=("kdep", "probe", 0)))
    for family in families_by_name(board, summaries).values():
        assert family.strength["kdep"].estimate is None
        assert family.strength["kdep"].methods == 0
    assert families_by_name(board, summaries)["relation"].strength["scratch"].methods == 2


def test_methods_with_other_numbers_of_epochs_have_separate_rows():
    short = []
    for r in records():
        if r.arm.method == "dml":
            value, budget = r.value or 0, r.budget.model_copy(update={"epochs": 3.0})
            change = {"id": f"{r.id}-short", "budget": budget, "value": value - 0.1}
            short.append(r.model_copy(update=change))
    with_labels = [f for f in families.families(*board_of(records() + short), INPUTS) if f.labels]
    assert [f.epochs for f in with_labels] == [6, 3]
    means = [f.strength["kdep"].estimate for f in with_labels]
    assert [m.mean for m in means if m] == pytest.approx([0.015, -0.085])


def test_families_with_a_data_fraction_are_listed_below_those_with_all_data():
    tenth = []
    for r in records():
        if r.arm.method == "dml":
            data = r.data.model_copy(update={"share": 0.1, "images": 1000})
            tenth.append(r.model_copy(update={"id": f"{r.id}-less", "data": data}))
    with_labels = [f for f in families.families(*board_of(records() + tenth), INPUTS) if f.labels]
    assert [f.fraction for f in with_labels] == [1, 0.1]
    assert with_labels[0].strength["kdep"].methods == 1
    assert with_labels[1].strength["kdep"].methods == 0  # no kdep of a tenth of the data here


def test_labels_that_only_a_teacher_used_are_named_as_in_the_summary():
    """The teacher of rkd was trained with labels; dml uses labels itself."""
    changes = {"rkd": {"label_policy": "labels", "family": "logit"}, "dml": {"family": "logit"}}
    seed_records = [
        r.model_copy(update={"arm": r.arm.model_copy(update=changes.get(r.arm.method, {}))})
        for r in records()
    ]
    view = board_rows.make_view(board_of(seed_records)[0])
    (logit,) = [f for f in families.families(view.board, view.summaries, {}) if f.labels]
    assert board_rows.family_entries(logit, text.md)[0][0] == "yes (1), by its teacher (1)"
    (by_row,) = [board_rows.labels_text(s) for a, s in view.summaries.items() if a.method == "rkd"]
    assert by_row == "by its teacher"


def test_forward_passes_without_those_of_the_teacher_s_training_are_marked(
    results: Callable[..., Path],
):
    """Records of schema 2 did not count the pre-training of the teacher of rkd."""
    folder = results(records())
    build(folder, "golden", [], INPUTS)
    assert "‡" not in (folder / "leaderboard.md").read_text()
    for path in (folder / "records").glob("*rkd*"):
        value = json.loads(path.read_text()) | {"schema": 2}
        value["stages"]["teacher.pretrain"] = "pretrain-other"
        for part, names in RENAMED_IN_3.items():
            if value[part]:
                value[part] |= {old: value[part].pop(new) for old, new in names.items()}
        path.write_text(json.dumps(value))
    build(folder, "golden", [], INPUTS)
    md, html = (folder / "leaderboard.md").read_text(), (folder / "index.html").read_text()
    rows = [line.split(" | ") for line in md.splitlines() if " ms |" in line]
    passes = {entries[0].strip("| "): entries[7] for entries in rows}
    assert (passes["rkd"], passes["pkt"]) == ("0.33 ‡", "0.33")
    assert "| 0.33 ‡ |" in next(x for x in md.splitlines() if "| relation | no |" in x)
    assert families.missing_passes_note([_marked(folder)]) in md
    assert "0.33 ‡" in html


def _marked(folder: Path) -> RowSummary:
    """The summary of rkd."""
    board = make_board(store.read(folder))
    return next(s for a, s in board_rows.make_view(board).summaries.items() if a.method == "rkd")


def test_the_costs_of_a_row_exclude_its_transfer_runs():
    board, summaries = board_of(records())
    by_method = {c.row.method: c for c in families.costs(board, summaries)}
    assert "scratch" not in by_method
    assert by_method["dml"].summary.step_s == pytest.approx(0.2)
    assert by_method["dml"].ratio == pytest.approx(2)
    assert by_method["kdep"].ratio == 1
    assert by_method["dml"].forwards == 1
    assert by_method["dml"].summary.extra_parameters == 2_800_000
    assert by_method["dml"].summary.peak_memory_bytes == 2**30  # not the transfer's 2 GiB
    assert families.spread([0.5, 2.0, 1.0, None]) == "1.00 (0.50 to 2.00)"
    assert families.spread([1.0]) == "1.00"
    assert families.spread([None]) == "—"


def test_tables_and_page_show_families_and_costs_only_if_recorded(
    results: Callable[..., Path],
):
    folder = results(records())
    build(folder, "golden", [], INPUTS)
    md, html = (folder / "leaderboard.md").read_text(), (folder / "index.html").read_text()
    assert "## Method families" in md
    assert "| relation | no | 2 | pooled (2) | 1.20 (1.10 to 1.30)" in md
    assert "-9.0 [-9.0, -9.0]" in md
    assert "cross_entropy 80 %, mut\\|ual 20 %" in md  # the mean of three seeds
    assert "| dml | online | 0.05 | 200 ms | 2.00 |" in md
    assert "| kdep | feature | — | 100 ms | 1.00 |" in md  # a record without a learning rate
    assert "learning_rate" not in next((folder / "records").glob("*kdep*")).read_text()
    assert '"terms"' in next((folder / "records").glob("*dml*")).read_text()
    assert '"terms"' not in next((folder / "records").glob("*kdep*")).read_text()
    assert 'id="families"' in html
    assert 'id="costs"' in html
    table = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))
    row = next(r for r in table if r["method"] == "dml")
    assert (float(row["step_time_over_kdep"]), row["extra_parameters"]) == (2.0, "2800000")
    assert row["learning_rate"] == "0.05"
    assert read_json(folder / "methods.json") == INPUTS
    build(folder, "golden")  # from the records and methods.json
    assert (folder / "leaderboard.md").read_text() == md
    write_json(folder / "methods.json", {"kdep": "pooled"})
    with pytest.raises(KdepError, match=r"has the wrong structure.*move it to another folder"):
        build(folder, "golden")
    (folder / "methods.json").rename(folder / "kept.json")
    build(folder, "golden", [], INPUTS)
    assert read_json(folder / "methods.json") == INPUTS
    without_costs = results(records(with_costs=False), "without_costs")
    build(without_costs, "golden", [], INPUTS)
    assert "## Method families" not in (without_costs / "leaderboard.md").read_text()
    assert "step_s" not in (without_costs / "leaderboard.csv").read_text()
    assert not (without_costs / "methods.json").exists()


def test_methods_are_described_below_the_summary(results: Callable[..., Path]):
    folder = results(records(with_costs=False))
    about = {"kdep": {"reads": [], "about": "Regresses <b>the</b> teacher's feature."}}
    build(folder, "golden", [], about)
    assert read_json(folder / "methods.json") == about
    build(folder, "golden")  # from methods.json
    md, html = (folder / "leaderboard.md").read_text(), (folder / "index.html").read_text()
    assert "\n- kdep: Regresses &lt;b&gt;the&lt;/b&gt; teacher's feature.\n" in md
    assert "<b>kdep</b>: Regresses &lt;b&gt;the&lt;/b&gt; teacher&#39;s feature." in html
    assert "- pkt: " not in md


def test_markup_in_names_of_families_and_methods_is_escaped(results: Callable[..., Path]):
    hostile: dict[str, Any] = {"family": "<script>x</script>|a", "labels_used": False}
    seed_records = [
        r.model_copy(update={"arm": r.arm.model_copy(update=hostile)})
        if r.arm.method == "pkt"
        else r
        for r in records()
    ]
    folder = results(seed_records)
    build(folder, "golden", [], {"pkt": {"reads": ["<img src=x>|"]}})
    for name in ("leaderboard.md", "index.html"):
        shown = (folder / name).read_text()
        assert "<script>x" not in shown
        assert "<img src=x>" not in shown
