"""The log of a search is enough to find the best trial; a damaged log, or one of another search, is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.search import log as logs
from kdep_bench.search.log import Trial

from .closed_form import header, run_search, search


def trial(number: int, score: float | None = None, **values: Any) -> Trial:
    """A complete trial; `values` replace its defaults."""
    defaults: dict[str, Any] = dict(
        trial=number,
        state="complete",
        proposal={"student.width": 8},
        student="s",
        params=100,
        flops=100,
        epochs=1.0,
        scores=[] if score is None else [score],
    )
    return Trial(**(defaults | values))


def test_of_equal_scores_the_trial_with_fewer_flops_fewer_parameters_or_lower_number_is_best() -> (
    None
):
    trials = [
        trial(0, 0.5, flops=200, params=1),
        trial(1, 0.5, params=90),
        trial(2, 0.5, params=80),
        trial(3, 0.5, params=80),
        trial(4, 0.4, flops=1),
    ]
    chosen = logs.best(trials, {"direction": "max"})
    assert chosen is not None
    assert chosen.trial == 2
    smallest = logs.best(trials, {"direction": "min"})
    assert smallest is not None
    assert smallest.trial == 4


def test_only_complete_trials_can_be_the_best() -> None:
    states: list[Any] = ["pruned", "failed", "over_limit"]
    others = [trial(i, 0.9, state=state) for i, state in enumerate(states)]
    assert logs.best(others, {"direction": "max"}) is None
    with pytest.raises(KdepError, match="has no best trial: none of its 3 is complete"):
        logs.summary(others, {"direction": "max"})
    failed = trial(0, state="failed", error="a.py is broken. Fix: correct a.py.")
    with pytest.raises(KdepError, match=r"last error: a.py is broken. Fix: correct the cause"):
        logs.summary([failed], {"direction": "max"})
    with pytest.raises(KdepError, match="none of its 0 is complete"):
        logs.summary([], {"direction": "max"})


def test_the_log_gives_the_best_trial_of_the_live_search(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    live = run_search(search(), path)
    log = logs.read(path)
    assert log is not None
    assert list(log.trials) == live
    assert logs.best(log.trials, {"direction": "max"}) == logs.best(live, {"direction": "max"})
    settings = header(search()).settings
    assert logs.summary(log.trials, log.header.settings) == logs.summary(live, settings)


def test_a_log_of_another_search_space_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run_search(search(trials=2), path)
    before = path.read_bytes()
    other = search(space=[dict(key="student.width", values=[8, 16])])
    with pytest.raises(
        KdepError, match=r"log .*log.jsonl belongs to another search: space.*Fix: undo the change"
    ):
        run_search(other, path)
    with pytest.raises(KdepError, match="seed 0 -> 1"):
        run_search(search(seed=1), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[0], "{torn", *lines[2:]], "line 2 of the log"),
        (lambda lines: [lines[0], *lines[2:]], r"line 2 .*trial 1 in place of 0"),
        (lambda lines: [lines[0], lines[1], lines[1]], r"line 3 .*trial 0 in place of 1"),
        (lambda lines: [lines[0].replace("top1", "top5"), *lines[1:]], "its hash does not match"),
        (lambda lines: [lines[0], lines[1].replace('"state"', '"stat"')], "line 2 of the log"),
        (
            lambda lines: [lines[0], lines[1].replace('"student.depth3": ', '"student.depth3": 9')],
            "trial 0 of the log has the proposal .* which is not in the space",
        ),
        (lambda lines: ["notes", "of mine"], "line 1 of the log"),
    ],
)
def test_a_damaged_log_is_refused_and_not_changed(
    tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "log.jsonl"
    run_search(search(trials=2), path)
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    with pytest.raises(KdepError, match=message):
        run_search(search(trials=3), path)
    assert path.read_bytes() == before


def test_a_nan_in_a_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    trials = run_search(search(trials=2), path)
    line = trials[-1].model_dump() | {"scores": [float("nan")]}
    text = path.read_text().splitlines()[:-1]
    path.write_text("\n".join([*text, json.dumps(line)]) + "\n")
    with pytest.raises(KdepError, match="NaN"):
        logs.read(path)


def test_a_user_s_file_without_a_line_feed_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(KdepError, match="is not the log of a search"):
        run_search(search(trials=2), path)
    assert path.read_text() == "my notes"


def test_a_log_that_was_interrupted_in_its_first_line_is_begun_again(tmp_path: Path) -> None:
    complete_log, path = tmp_path / "whole.jsonl", tmp_path / "log.jsonl"
    run_search(search(trials=2), complete_log)
    path.write_bytes(complete_log.read_bytes()[:40])
    run_search(search(trials=2), path)
    assert path.read_bytes() == complete_log.read_bytes()


def test_two_processes_cannot_write_the_same_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with (
        logs.writing(path, header(search())),
        pytest.raises(KdepError, match="another process writes the log"),
    ):
        run_search(search(), path)
