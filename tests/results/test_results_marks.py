"""Remarks and marks show what a mean would hide: several configurations or versions of a task under
one name, and scores below chance."""

from __future__ import annotations

import pytest
from make_records import fields, grid, record

from kdep_bench.results import build
from kdep_bench.results.board.board import Board, make_board
from kdep_bench.results.records.record import make
from kdep_bench.results.records.store import read


def board_of(folder) -> Board:
    """The board of a results folder."""
    return make_board(read(folder))


def test_one_method_name_with_two_learning_rates_has_a_remark(results):
    runs = [
        record("kdep", "probe", 0.5, transfer=seed, budget={"epochs": 6.0, "learning_rate": rate})
        for seed, rate in enumerate((0.2, 0.2, 0.05))
    ]
    remarks = board_of(results(runs)).remarks
    assert any(
        "The 3 runs of kdep (resnet18_w32) on probe have the learning rates 0.05, 0.2, but one name"
        in r
        for r in remarks
    ), remarks


def test_the_remark_on_a_diverged_transfer_names_the_row_with_its_epochs(results):
    runs = [
        record("kdep", "probe", 0.5, pretrain=k, budget={"epochs": epochs}, curves={"loss": losses})
        for k, (epochs, losses) in enumerate(
            ((4.0, [[0, 1.0], [1, 0.5]]), (64.0, [[0, 1.0], [1, 5.0]]))
        )
    ]
    remarks = [r for r in board_of(results(runs)).remarks if "diverged" in r]
    assert len(remarks) == 1
    assert "of kdep · 64 epochs (resnet18_w32) on probe diverged for 1 seed" in remarks[0]
    assert "5 times its first value" in remarks[0]


def test_one_method_name_with_two_configurations_has_a_remark(results):
    runs = grid({"kdep": {"probe": [0.5, 0.6, 0.7]}})
    assert not any("but one name" in r for r in board_of(results(runs)).remarks)
    changed = make(fields("kdep", "probe", 0.7, transfer=2) | {"config_hash": "ba5e"})
    remarks = board_of(results([changed], "golden")).remarks
    assert any("have 2 configurations, but one name" in r for r in remarks), remarks


def test_two_versions_of_a_task_are_two_columns_with_a_remark(results):
    runs = grid({"kdep": {"probe": [0.5, 0.6]}})
    task = fields("kdep", "probe")["task"] | {"version": 2}
    runs += [
        make(fields("kdep", "probe", 0.9, transfer=t) | {"id": f"v2-{t}", "task": task})
        for t in (0, 1)
    ]
    board = board_of(results(runs))
    assert len(board.columns) == 2
    means = sorted(e.mean for r in board.results.values() if (e := r.estimate))
    assert means == pytest.approx([0.55, 0.9])
    assert any("have the versions 1, 2 of the task probe" in r for r in board.remarks)


def test_latex_marks_scores_below_chance_and_scores_below_scratch(results):
    folder = results(
        grid(
            {
                "kdep": {"probe": [0.4, 0.41, 0.42]},
                "svd": {"probe": [0.2, 0.21, 0.22]},
                "scratch": {"probe": [0.3, 0.31, 0.32]},
                "supervised": {"probe": [0.1, 0.11, 0.12]},  # chance is 0.125
            }
        )
    )
    build(folder, claims=[])
    text = (folder / "leaderboard.tex").read_text()
    dagger = r"\textsuperscript{\dag}"
    marked = [line.split(" & ")[1].strip() for line in text.splitlines() if dagger in line]
    assert sorted(marked) == ["supervised", "svd"]
