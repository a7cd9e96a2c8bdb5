"""The board (results by row and task) and the leaderboards: golden files, and remarks on records
that could mislead."""

from __future__ import annotations

import csv
import fnmatch
import io
import itertools
import os
import random
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as strategies
from make_records import failed, fields, grid, record

from kdep_bench.results import build, text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, make_board
from kdep_bench.results.claims.judge import judge
from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record, make
from kdep_bench.results.records.store import Damaged, Run, Store
from kdep_bench.results.report import board_rows, csv_table, latex, markdown, plots

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "results"
SCORES = {
    "kdep": {"probe": [0.50, 0.52, 0.51], "det": [0.30, 0.31, 0.32], "seg": [0.42, 0.43, 0.41]},
    "svd": {"probe": [0.49, 0.52, 0.50], "det": [0.29, 0.31, 0.33], "seg": [0.40, 0.42, 0.42]},
    "supervised": {
        "probe": [0.45, 0.44, 0.46],
        "det": [0.29, 0.32, 0.30],
        "seg": [0.40, 0.43, 0.4],
    },
    "scratch": {"probe": [0.20, 0.22, 0.21], "det": [0.10, 0.12, 0.11], "seg": [0.30, 0.31, 0.29]},
}
KDEP_BEATS_SCRATCH = {
    "name": "kdep_beats_scratch",
    "title": "KDEP beats no pre-training",
    "a": {"method": "kdep"},
    "b": {"method": "scratch"},
}


def golden_records() -> list[Record]:
    """Three complete methods, one with a failed seed, one with less data and a missing seed."""
    records = grid(SCORES)
    records += grid({"kdep": {"probe": [0.47, 0.48, 0.46], "det": [0.27, 0.26, 0.28]}}, share=0.1)
    # Nine records of kdep come first; the ninth record of svd is its seg with seed 2.
    records[8 + 9] = failed("svd", "seg", transfer=2)
    records.append(make(fields("kdep", "seg", None, share=0.1) | {"status": "missing"}))
    return records


def board_of(records: list[Record], damaged: list[Damaged] | None = None) -> Board:
    """The board of records that are not written to disk."""
    sharer = store._Sharer()
    runs: list[Run] = [sharer.run(r, f"{r.id}.json") for r in records]
    return make_board(Store(runs, damaged or []))


def all_tables(records: list[Record]) -> tuple[str, str, str]:
    """leaderboard.md, leaderboard.csv and leaderboard.tex of the records."""
    board = board_of(records)
    view = board_rows.make_view(board, judge(board, [KDEP_BEATS_SCRATCH]))
    return markdown.markdown(view), csv_table.csv_table(view), latex.latex(view)


def rows(csv_text: str) -> list[dict[str, str]]:
    """The rows of the CSV."""
    return list(csv.DictReader(io.StringIO(csv_text)))


@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.csv", "leaderboard.tex"])
def test_the_leaderboards_equal_the_golden_files(name, results):
    folder = results(golden_records())
    build(folder, "golden", [KDEP_BEATS_SCRATCH])
    written = (folder / name).read_text()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(written)
    assert written == (GOLDEN / name).read_text(), "if intended: run with UPDATE_GOLDEN=1"


def test_the_golden_csv_has_values_computed_by_hand():
    kdep = next(
        r
        for r in rows(all_tables(golden_records())[1])
        if r["row"] == "kdep · 100 % data" and r["task"] == "probe"
    )
    assert float(kdep["mean"]) == pytest.approx(0.51)
    assert float(kdep["sd"]) == pytest.approx(0.01)
    assert float(kdep["low95"]) == pytest.approx(0.51 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert (kdep["n"], kdep["among_best"], kdep["labels_used"]) == ("3", "yes", "no")
    assert float(kdep["cost_s"]) == 402.0
    assert kdep["command"] == "python tools/run_suite.py configs/suites/golden.py --only kdep"


def test_the_command_of_a_row_names_its_stages_if_their_ids_are_known():
    records = []
    for share, part in ((1.0, ""), (0.1, ".0.1")):
        for t in range(2):
            record_fields = fields("kdep", "probe", 0.5, transfer=t, share=share)
            record_fields["id"] = f"transfer-probe.resnet18_w32.kdep{part}.s0-{t}-0123456789ab"
            records.append(make(record_fields))
    board = board_of(records)
    lines = [board_rows.command(board, a) for a in board.rows]
    start = "python tools/run_suite.py configs/suites/golden.py --only "
    assert lines == [
        f"{start}'transfer-*.resnet18_w32.kdep.s*'",
        f"{start}'transfer-*.resnet18_w32.kdep.0.1.s*'",
    ]


def test_the_commands_of_the_published_rows_select_only_those_rows():
    folder = Path(__file__).resolve().parents[2] / "results" / "pocket"
    board = make_board(store.read(folder))
    ids = {a: {r.id for r in board.runs_of(a)} for a in board.rows}
    for row, row_ids in ids.items():
        pattern = shlex.split(board_rows.command(board, row))[-1]
        assert set(fnmatch.filter(set().union(*ids.values()), pattern)) == row_ids


@settings(max_examples=15, deadline=None)
@given(strategies.integers(0, 10**6))
def test_the_tables_do_not_depend_on_the_order_of_records(seed):
    records = golden_records()
    shuffled = records[:]
    random.Random(seed).shuffle(shuffled)
    assert all_tables(shuffled) == all_tables(records)


def curve_records() -> list[Record]:
    """Records for every kind of claim: data fractions, eight teachers, supervised pre-training."""
    records = grid(SCORES)
    records += grid({"kdep": {t: [v - 0.2 for v in vs] for t, vs in SCORES["kdep"].items()}}, 0.1)
    for i in range(8):
        for t in range(2):
            record_fields = fields(
                "svd", "probe", 0.3 + 0.02 * i + 0.01 * t, transfer=t, id=f"teacher{i}-{t}"
            )
            record_fields["student"]["name"] = "other"
            record_fields["teacher"] |= {"name": f"t{i}", "top1": 0.9 - 0.01 * i}
            record_fields["align"]["explained_variance_ratio"] = 0.9 - 0.05 * i
            records.append(make(record_fields))
    return records


def every_claim() -> list[dict]:
    """One claim of each kind."""
    rank_correlation = {
        "kind": "rank_correlation",
        "a": {"method": "svd"},
        "at_most": 0.0,
        "title": "x",
    }
    efficiency = {
        "kind": "efficiency",
        "axis": "images",
        "at_least": 1.2,
        "b": {"method": "supervised"},
    }
    return [
        KDEP_BEATS_SCRATCH,
        KDEP_BEATS_SCRATCH | efficiency | {"name": "less"},
        rank_correlation | {"name": "compact", "by": "explained_variance_ratio"},
        rank_correlation | {"name": "accurate", "by": "top1"},
    ]


@settings(max_examples=8, deadline=None)
@given(strategies.integers(0, 10**6))
def test_no_kind_of_claim_depends_on_the_order_of_records(seed):
    records = curve_records()
    before = judge(board_of(records), every_claim())
    assert {v.verdict for v in before} >= {"supported"}
    assert all("not testable" not in v.verdict for v in before if v.name == "less")
    random.Random(seed).shuffle(records)
    assert judge(board_of(records), every_claim()) == before


@settings(max_examples=12, deadline=None)
@given(strategies.integers(0, 10**6), strategies.floats(0, 1), strategies.booleans())
def test_a_second_record_of_a_seed_gives_a_remark(index, value, newer):
    records = curve_records()
    copied = records[index % len(records)]
    created = "2026-03-01T00:00:00+00:00" if newer else copied.created
    double = copied.model_copy(update={"id": "double", "value": value, "created": created})
    after = board_of([*records, double])
    assert after.remarks
    assert "double" in " ".join(after.remarks)


def test_missing_results_are_shown_and_give_no_mean():
    board = board_of(golden_records())
    md, table, _ = all_tables(golden_records())
    assert "2 failed" not in md
    assert "41.0 ± 1.4 (2), 1 failed" in md
    assert "| missing |" in md
    svd = next(a for a in board.rows if a.method == "svd")
    tenth = next(a for a in board.rows if a.fraction < 1)
    for row in (svd, tenth):
        assert row not in compare.complete_rows(board, "resnet18_w32")
        assert row not in compare.mean_ranks(board, "resnet18_w32")
    kdep = next(a for a in board.rows if a.method == "kdep" and a.fraction == 1)
    columns = compare.columns_of(board, "resnet18_w32")
    assert compare.mean_difference(board, svd, kdep, columns) is None
    assert "the loss became NaN" in md
    seg = next(r for r in rows(table) if r["method"] == "svd" and r["task"] == "seg")
    assert (seg["ok"], seg["failed"], seg["n"]) == ("2", "1", "2")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.sets(strategies.integers(0, 35), max_size=12), strategies.booleans())
def test_a_row_with_a_missing_result_has_no_mean_rank(missing_indices, missing):
    records = grid(SCORES)
    for i in missing_indices:
        r = records[i]
        status = (
            {"status": "missing", "error": None}
            if missing
            else {"status": "failed", "error": "it broke"}
        )
        records[i] = r.model_copy(update={"value": None, **status})
    board = board_of(records)
    incomplete = {records[i].arm.method for i in missing_indices}
    ranked = {a.method for a in compare.mean_ranks(board, "resnet18_w32")}
    assert ranked == set(SCORES) - incomplete


def test_an_identical_duplicate_changes_nothing_and_has_a_remark():
    records = golden_records()
    copy = records[0].model_copy(update={"id": "copy"})
    board, expected = board_of([*records, copy]), board_of(records)
    assert {k: c.values for k, c in board.results.items()} == {
        k: c.values for k, c in expected.results.items()
    }
    assert any("Duplicates" in r and "copy" in r for r in board.remarks)


def test_the_newer_of_two_records_is_used_with_a_remark():
    newer = record("kdep", "probe", 0.9, created="2026-02-01T00:00:00+00:00", id="newer")
    for order in ([newer, *golden_records()], [*golden_records(), newer]):
        board = board_of(order)
        result = next(
            c
            for (a, col), c in board.results.items()
            if a.method == "kdep" and a.fraction == 1 and col.task == "probe"
        )
        assert result.values[0, 0] == 0.9
        assert any("Duplicates" in r and "newer" in r for r in board.remarks)


def test_time_zones_are_used_to_find_the_newer_record():
    early = record(value=0.1, created="2026-01-01T12:00:00+05:00", id="early")
    late = record(value=0.2, created="2026-01-01T08:00:00+00:00", id="late")
    result = next(iter(board_of([late, early]).results.values()))
    assert result.values == {(0, 0): 0.2}


def test_equally_old_records_that_disagree_are_a_conflict():
    contradiction = record("kdep", "probe", 0.9, id="rival")
    board = board_of([*golden_records(), contradiction])
    result = next(
        c
        for (a, col), c in board.results.items()
        if a.method == "kdep" and a.fraction == 1 and col.task == "probe"
    )
    assert (0, 0) not in result.values
    assert len(result.failed) == 1
    assert any(r.startswith("Conflict") for r in board.remarks)


def test_scores_on_other_data_are_in_a_separate_column():
    other = [
        r.model_copy(
            update={"id": f"{r.id}-b", "data": r.data.model_copy(update={"fingerprint": "beef"})}
        )
        for r in grid({"supervised": {"probe": [0.9, 0.9, 0.91]}})
    ]
    records = grid({"kdep": {"probe": [0.5, 0.51, 0.52]}}) + other
    board = board_of(records)
    assert len(board.columns) == 2
    assert any("different data fingerprints" in r for r in board.remarks)
    (kdep,) = [a for a in board.rows if a.method == "kdep"]
    (sup,) = [a for a in board.rows if a.method == "supervised"]
    for column in board.columns:
        assert compare.difference(board, kdep, sup, column).estimate is None


def test_a_run_that_failed_before_its_data_were_known_is_in_the_row_of_its_method():
    early = failed(
        "kdep",
        "probe",
        transfer=3,
        teacher=None,
        budget={},
        data={"name": "pocket", "fingerprint": ""},
    )
    board = board_of([*grid({"kdep": {"probe": [0.5, 0.51, 0.52]}}), early])
    assert len(board.columns) == len(board.rows) == 1
    assert len(next(iter(board.results.values())).failed) == 1


def test_a_diverged_transfer_has_a_remark():
    runs = grid({"kdep": {"probe": [0.5, 0.51, 0.52]}, "imagenet": {"probe": [0.1, 0.11, 0.12]}})
    curves = {"kdep": [[1, 2.0], [2, 3.9], [3, 1.0]], "imagenet": [[1, 2.0], [2, 44.0], [3, 2.0]]}
    runs_with_curves = [
        r.model_copy(update={"curves": {"loss": curves[r.arm.method]}}) for r in runs
    ]
    remarks = [r for r in board_of(runs_with_curves).remarks if "diverged" in r]
    assert len(remarks) == 1
    assert "imagenet" in remarks[0]
    assert "for 3 seeds: the loss rose to 22 times" in remarks[0]
    assert not [r for r in board_of(runs).remarks if "diverged" in r]


def test_seeds_without_effect_have_a_remark():
    board = board_of(grid({"kdep": {"probe": [0.5, 0.5, 0.5]}}))
    assert any("may have no effect" in r for r in board.remarks)


def test_a_suite_without_times_explains_its_empty_cost_columns():
    records = golden_records()
    assert board_rows.UNTIMED not in all_tables(records)[0]
    times = ("pretrain_s", "cache_s", "align_s", "transfer_s", "images_per_s")
    no_times: dict[str, None] = dict.fromkeys(times)
    untimed = [r.model_copy(update={"cost": r.cost.model_copy(update=no_times)}) for r in records]
    parts = all_tables(untimed)[0].split("\n## ")
    sections = [p.partition("\n")[0] for p in parts if "Times are not reported" in p]
    assert sections == ["Summary"]
    assert not any("| pre-training cost |" in p for p in parts)
    # With one timed run the column is shown.
    assert "Times are not reported" not in all_tables([*untimed[1:], records[0]])[0]


def test_columns_without_a_value_and_settings_with_one_value_are_left_out():
    """Each has its heading, except a column of dashes, which says nothing."""
    head = ["student", "method", "data fraction", "step time", "probe (top1)"]
    rows = [
        ["resnet18_w32", "kdep", "10 %", "—", "50.0"],
        ["resnet18_w32", "svd", "10 %", "—", "50.0"],
        ["resnet18_w32", "scratch", "—", "—", "20.0"],
    ]
    view = board_rows.make_view(board_of(grid({"kdep": {"probe": [0.5, 0.6]}})))
    chance = ["", "*chance*", "", "", "*12.5*"]
    assert markdown._table(view, head, rows, 2, chance) == [
        "| method | probe (top1) |",
        "| --- | ---: |",
        "| kdep | 50.0 |",
        "| svd | 50.0 |",
        "| scratch | 20.0 |",
        "| *chance* | *12.5* |",
        "",
        "The same in every row: *data fraction* 10 % (none for scratch).",
        "",
    ]
    # The row without a value is not named if another row has the same name, or rows have no name.
    for named in (["resnet18_w32", "kdep", "—", "—", "20.0"], ["resnet18_w32", "", "—", "—", "20"]):
        shown = markdown._table(view, head, [*rows[:2], named], 2)
        assert shown[0] == "| method | data fraction | probe (top1) |"
        assert "The same in every row" not in "".join(shown)
    shown = markdown._table(view, ["comparison", "seed pairs"], [["a - b", "3"], ["c - b", "—"]], 1)
    assert shown[-2] == "The same in every row: *seed pairs* 3 (none for c - b)."
    one_row = markdown._table(view, head, rows[:1], 2)
    assert one_row[0] == "| method | data fraction | probe (top1) |"


def test_the_legend_explains_missing_marks_only_where_methods_are_compared():
    one_each = grid({"kdep": {"probe": [0.5, 0.6]}})
    one_each += grid({"kdep": {"probe": [0.4, 0.5]}}, student={"name": "other", "width": 64})
    view = board_rows.make_view(board_of(one_each))
    assert markdown._NO_BEST not in markdown.legend(view, "")
    view = board_rows.make_view(board_of(grid({m: {"probe": [0.5]} for m in ("kdep", "svd")})))
    assert markdown._NO_BEST in markdown.legend(view, "")


def test_a_single_row_is_not_among_the_best():
    view = board_rows.make_view(board_of(grid({"kdep": {"probe": [0.5, 0.6]}})))
    text_of_page = markdown.markdown(view)
    assert "**" not in text_of_page
    assert "minimum detectable difference" not in text_of_page
    table = rows(csv_table.csv_table(view))
    assert [r["among_best"] for r in table] == ["yes"]


def test_labels_used_by_a_teacher_are_reported():
    first = fields("kdep", "probe", 0.5)
    first["arm"] |= {"label_policy": "labels", "labels_used": False}
    assert "| by its teacher |" in all_tables([make(first)])[0]


def test_partly_loaded_weights_give_a_remark():
    board = board_of([record(gate={"coverage": 0.5})])
    assert any("without all pre-trained weights" in r for r in board.remarks)
    records = [record(transfer=t, gate={"coverage": 0.5}) for t in range(7)]
    (remark,) = [r for r in board_of(records).remarks if "weights loaded" in r]
    assert remark.startswith("7 transfer runs")
    assert remark.count("transfer-kdep") == 5  # the first five by name


def test_a_run_that_failed_early_is_only_in_the_row_of_its_own_teacher():
    def early_failure(teacher: str | None, transfer: int) -> Record:
        """A run that failed before its epochs (and its teacher, if None) were known."""
        record_fields = fields("kdep", "probe", None, transfer=transfer) | {
            "status": "failed",
            "error": "no",
        }
        record_fields["id"] += f"-{teacher}"
        record_fields["teacher"] = None if teacher is None else {"name": teacher}
        record_fields["budget"] = {}
        return make(record_fields)

    complete = [record("kdep", "probe", 0.5, transfer=t) for t in range(2)]
    assert [a.teacher for a in board_of([*complete, early_failure("lite0", 2)]).rows] == ["lite0"]
    assert [a.teacher for a in board_of([*complete, early_failure(None, 2)]).rows] == ["lite0"]
    other_teacher = board_of([*complete, early_failure("lite2", 2)])
    assert {a.teacher: a.epochs for a in other_teacher.rows} == {"lite0": 6.0, "lite2": None}
    (row,) = [a for a in other_teacher.rows if a.teacher == "lite0"]
    assert other_teacher.result(row, other_teacher.columns[0]).is_complete


def test_smaller_scores_are_better_if_the_task_s_direction_is_min():
    scores = {"kdep": {"probe": [0.1, 0.11, 0.12]}, "scratch": {"probe": [0.5, 0.51, 0.52]}}
    down = {"direction": "min"}
    records = [r.model_copy(update={"task": r.task.model_copy(update=down)}) for r in grid(scores)]
    board = board_of(records)
    (column,) = board.columns
    assert {a.method for a in compare.best(board, "resnet18_w32", column)} == {"kdep"}
    kdep, scratch = board.rows
    assert compare.difference(board, kdep, scratch, column).verdict == "better"


def many_methods(count: int) -> list[Record]:
    """kdep, scratch and `count` methods on two tasks; method i is i points below kdep."""
    scores = {f"rival{i:02}": 0.50 - 0.01 * i for i in range(count)}
    scores |= {"kdep": 0.50, "scratch": 0.20}
    return grid(
        {m: {t: [v, v + 0.01, v + 0.02] for t in ("probe", "seg")} for m, v in scores.items()}
    )


def test_methods_are_compared_with_kdep_and_the_references_but_not_with_each_other():
    pairs = compare.compared_pairs(board_of(many_methods(1)), "resnet18_w32")
    names = [(a.method, b.method) for a, b in pairs]
    assert names == [("kdep", "scratch"), ("rival00", "kdep"), ("rival00", "scratch")]


def test_a_long_table_of_differences_lists_the_means_over_tasks_first():
    two_methods, twelve_methods = (all_tables(many_methods(n))[0] for n in (2, 12))
    assert "Task by task" not in two_methods
    over_tasks, by_task = twelve_methods.split("## Paired differences")[1].split(
        "<summary>Task by task</summary>"
    )
    mean = "mean of 2 tasks (2 task families, equal weights)"
    # Each of 12 methods against kdep and scratch, and kdep against scratch.
    assert over_tasks.count(mean) == 2 * 12 + 1
    assert "probe" not in over_tasks
    assert f"| rival03 - kdep | {mean} | -3.0 [-3.0, -3.0] |" in over_tasks
    assert by_task.count("| rival03 - kdep |") == 2


def test_the_charts_show_every_pair_of_many_methods():
    # (methods, charts): one chart per pair, or with many pairs one per reference.
    for count, charts in ((2, 5), (12, 2)):
        view = board_rows.make_view(board_of(many_methods(count)))
        drawn = [p for p in plots.draw(view, []) if p.group == "differences"]
        assert len(drawn) == charts
        for i in range(count):
            assert sum(f"rival{i:02}" in p.caption + p.svg for p in drawn) == 2


def test_a_chart_that_omits_rows_states_it():
    complete_charts, shortened_charts = (
        plots.draw(board_rows.make_view(board_of(many_methods(n))), []) for n in (2, 45)
    )
    assert not any("the first" in p.caption for p in complete_charts)
    captions = [p.caption for p in shortened_charts if "the first 40 of" in p.caption]
    # Scores on two tasks (47 rows), differences from kdep (45 rows) and from scratch (46 rows).
    assert len(captions) == 4
    assert any("the first 40 of 47" in c for c in captions)


# Names that would do harm or break a table if a report did not escape or shorten them.
HOSTILE = [
    "<script>alert(1)</script>",
    '=cmd|"/c calc"!A1',
    "@SUM(1+1)",
    "../../etc/passwd",
    "x" * 10_000,
    "a|b\n|c|",
    "`code` **bold** [x](javascript:1)",
    '"; rm -rf ~; "',
    "\u202egnp.exe",
    "名前 é",
    "\\input{/etc/passwd} $x$ & % # _",
    "' onmouseover='x",
]


def hostile_records(name: str) -> list[Record]:
    """Records whose every free text is `name`."""
    rows = []
    for method in (name, "scratch"):
        for t in range(2):
            record_fields = fields(method, name, 0.5 + 0.01 * t, transfer=t)
            record_fields["id"] = f"r-{method == name}-{t}"
            record_fields["suite"] = name
            record_fields["arm"]["source"] = name
            record_fields["student"]["name"] = name
            record_fields["task"] |= {"family": name, "metric": name, "split": name}
            record_fields["data"]["name"] = name
            record_fields["per_class"] = {name: 0.5}
            record_fields["curves"] = {name: [[0, 1.0], [1, 0.5]]}
            record_fields["pictures"] = [name]
            record_fields["notes"] = [name]
            record_fields["packages"] = {name: name}
            record_fields["git"] = name
            record_fields["cost"]["device"] = name
            rows.append(make(record_fields))
    rows.append(failed(name, name, transfer=9, id="r-bad", error=name, suite=name))
    return rows


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_escaped_in_every_table(name, results):
    folder = results(hostile_records(name))
    build(folder)
    md = (folder / "leaderboard.md").read_text()
    # Inside a code span GitHub shows every character as it is.
    assert "<script" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", md)
    assert max(map(len, md.splitlines())) < 8000
    tables = [line for line in md.splitlines() if line.startswith("|")]
    for line, next_line in itertools.pairwise(tables):
        if set(next_line) <= set("|-: "):
            assert line.count("|") - line.count("\\|") == next_line.count("|")
    for row in csv.reader(io.StringIO((folder / "leaderboard.csv").read_text())):
        assert len(row) == len(csv_table.CSV_HEAD)
        assert not [c for c in row if c[:1] in "=+@\t\r" and c[:1]]
    tex = (folder / "leaderboard.tex").read_text()
    assert "\\input" not in tex
    assert max(map(len, tex.splitlines())) < 8000
    for line in tex.splitlines():
        if not line.startswith("%") and line.endswith(r"\\"):
            # Without escapes, no character remains that TeX interprets.
            unescaped = re.sub(
                r"\\text\w+\{\}|\\textbf|\$\\(pm|cdot)\$|\\[&%#_${}]|\\\\$", "", line
            )
            assert not re.search(r"[\\$#%^~_]", unescaped), unescaped
            # The summary and the table of a task have eight columns here.
            assert unescaped.count("&") == len(latex._ROW_END) + 2 == 7
    assert "\u202e" not in md + tex


@settings(max_examples=40, deadline=None)
@given(strategies.text(max_size=40))
def test_any_name_stays_in_one_table_cell(name):
    assert "\n" not in text.md(name)
    assert "|" not in text.md(name).replace("\\|", "")
    assert "<" not in text.md(name)
    assert text.csv_text(name)[:1] not in tuple("=+-@|%")


def test_an_empty_folder_gives_an_empty_report(tmp_path):
    done = build(tmp_path, claims=[KDEP_BEATS_SCRATCH])
    assert done["records"] == 0
    assert "Transfer runs: none" in (tmp_path / "leaderboard.md").read_text()


def test_a_damaged_file_is_in_every_output(results):
    folder = results(grid(SCORES))
    (folder / "records" / "hurt.json").write_text("{")
    done = build(folder)
    assert done["damaged"] == 1
    for name in ("leaderboard.md", "index.html"):
        assert "hurt.json" in (folder / name).read_text()
