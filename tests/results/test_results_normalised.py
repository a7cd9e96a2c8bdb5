"""Normalised means compared with values computed by hand."""

from __future__ import annotations

import pytest
from make_records import fields, grid, record

from kdep_bench.results import build
from kdep_bench.results.board.board import Board, make_board
from kdep_bench.results.board.normalised import normalised
from kdep_bench.results.records.record import make
from kdep_bench.results.records.store import read

# Chance is .125 on all tasks: two of classification, one of detection.
SCORES = {
    "supervised": {"probe": [0.525], "other": [0.325], "det": [0.625]},
    "kdep": {"probe": [0.325], "other": [0.525], "det": [0.375]},
    "scratch": {"probe": [0.125], "other": [0.125], "det": [0.125]},
}


def board_of(folder) -> Board:
    """The board of a results folder."""
    return make_board(read(folder))


def task_record(method: str, task: str, value: float):
    """A record of a task; "other" is a classification task."""
    family = "classification" if task == "other" else fields(method, task)["task"]["family"]
    named = fields(method, task)["task"] | {"family": family}
    return make(fields(method, task, value) | {"task": named})


def records(scores=SCORES):
    """One record per method and task."""
    return [task_record(m, t, v[0]) for m, tasks in scores.items() for t, v in tasks.items()]


def test_normalised_means_are_0_at_chance_and_1_at_supervised_and_weight_families_equally(results):
    table = {n.row.method: n for n in normalised(board_of(results(records())), "resnet18_w32")}
    assert table["supervised"].mean == pytest.approx(1)
    assert table["scratch"].mean == pytest.approx(0)
    kdep = table["kdep"]
    # probe (.325 - .125) / .4 = .5; other .4 / .2 = 2; det .25 / .5 = .5
    # classification (.5 + 2) / 2 = 1.25; mean of the families (1.25 + .5) / 2 = .875
    assert kdep.mean == pytest.approx(0.875)
    # raw: ((.325 + .525) / 2 + .375) / 2 = .4
    assert kdep.raw == pytest.approx(0.4)
    # without other (.5 + .5) / 2; without det (.5 + 2) / 2; without probe (2 + .5) / 2
    assert kdep.low == (pytest.approx(0.5), "other")
    assert kdep.high[0] == pytest.approx(1.25)
    assert [n.row.method for n in normalised(board_of(results(records())), "resnet18_w32")] == [
        "supervised",
        "kdep",
        "scratch",
    ]


def test_a_reference_near_chance_or_a_missing_task_gives_no_normalised_mean(results):
    reference_near_chance = {m: dict(t) for m, t in SCORES.items()}
    reference_near_chance["supervised"]["det"] = [0.13]
    assert normalised(board_of(results(records(reference_near_chance), "a")), "resnet18_w32") == []
    without_reference = {m: dict(t) for m, t in SCORES.items() if m != "supervised"}
    assert normalised(board_of(results(records(without_reference), "b")), "resnet18_w32") == []
    missing_task = {m: dict(t) for m, t in SCORES.items()}
    del missing_task["kdep"]["det"]
    table = normalised(board_of(results(records(missing_task), "c")), "resnet18_w32")
    assert {n.row.method for n in table} == {"supervised", "scratch"}
    one_family = [record(m, "probe", v["probe"][0]) for m, v in SCORES.items()]
    assert normalised(board_of(results(one_family, "d")), "resnet18_w32") == []


def test_an_unknown_chance_gives_no_normalised_mean(results):
    runs = records()
    task = runs[0].task.model_copy(update={"chance": None})
    runs = [r.model_copy(update={"task": task}) if r.task.name == task.name else r for r in runs]
    assert normalised(board_of(results(runs)), "resnet18_w32") == []


def test_the_leaderboard_and_the_page_show_raw_and_normalised_means(results):
    # Two seeds with equal scores.
    folder = results(grid({m: {t: v * 2 for t, v in tasks.items()} for m, tasks in SCORES.items()}))
    build(folder, claims=[])
    text = (folder / "leaderboard.md").read_text()
    section = text.split("## Means over tasks, raw and normalised")[1].split("\n## ")[0]
    assert "the supervised row with the most data and epochs (here: supervised)." in section
    (line,) = [x for x in section.splitlines() if "| kdep" in x]
    # three families here: (.5 + 2 + .5) / 3 = 1.00; raw (.325 + .525 + .375) / 3
    assert "| 40.8 | 1.00 |" in line
    assert "0.50 (without other)" in line
    assert "Means over tasks, raw and normalised" in (folder / "index.html").read_text()
