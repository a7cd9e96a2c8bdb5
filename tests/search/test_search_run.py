"""Searches with scores in closed form: resuming after SIGKILL, the best trial, halving.

Successive halving trains every proposal for a few epochs. Only the best third of the proposals that
have reached a rung (a number of epochs) so far is trained up to the next rung.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.search import log as logs
from kdep_bench.search.run import Score, TrialFailed
from kdep_bench.students.space import Size

from .closed_form import evaluate, header, run_search, score_of, search

REPO = Path(__file__).resolve().parents[2]
ONE_RUNG = dict(epochs=1.0, factor=3, rungs=1)


def test_a_killed_search_continues_with_the_proposals_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    complete_log, path = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    expected = run_search(search(), complete_log)
    for stop_at in (2, 5, 8):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.search.closed_form", str(path)],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_text().count("\n") <= stop_at:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with open(path, "ab") as file:
            file.write(b'{"trial": 99, "sta')  # a line that a killed process did not finish
    lines: list[str] = []
    from kdep_bench.search.run import run

    assert run(search(), path, header(search()), evaluate, lines.append) == expected
    assert path.read_bytes() == complete_log.read_bytes()
    assert "the last line of" in lines[0]
    assert {trial.state for trial in expected} >= {"complete", "pruned", "over_limit"}


def test_a_proposal_above_the_limits_is_not_trained_and_not_counted_as_a_trial(
    tmp_path: Path,
) -> None:
    trained: list[Size] = []

    def record_size(proposal: dict[str, Any], epochs: float, size: Size) -> Score:
        """`evaluate`, recording the size of the student."""
        trained.append(size)
        return evaluate(proposal, epochs, size)

    trials = run_search(search(), tmp_path / "log.jsonl", record_size)
    assert max(size.params for size in trained) <= 5_000_000
    over = [t for t in trials if t.state == "over_limit"]
    assert over
    assert all(t.params > 5_000_000 and not t.scores for t in over)
    assert sum(t.trained for t in trials) == 12


@pytest.mark.parametrize("direction", ["max", "min"])
def test_the_best_third_of_the_trials_at_a_rung_continues(tmp_path: Path, direction: str) -> None:
    sign = 1 if direction == "max" else -1
    path = tmp_path / "log.jsonl"
    trials = [t for t in run_search(search(trials=30), path, direction=direction) if t.trained]
    scores_at: list[list[float]] = [[], []]
    for trial in trials:
        for rung, score in enumerate(trial.scores[:2]):
            scores_at[rung].append(score)
            n_better = sum(sign * earlier > sign * score for earlier in scores_at[rung])
            is_promoted = n_better < max(1, len(scores_at[rung]) // 3)
            assert (len(trial.scores) > rung + 1) == is_promoted
    assert {len(t.scores) for t in trials} == {1, 2, 3}


def test_more_trials_extend_a_finished_search(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = run_search(search(trials=4), path)
    assert run_search(search(trials=9), path)[: len(first)] == first
    assert run_search(search(trials=9), path) == run_search(
        search(trials=9), tmp_path / "other.jsonl"
    )


def test_tpe_beats_random_proposals_at_equal_evaluations(tmp_path: Path) -> None:
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler, scores in best.items():
        for seed in range(6):
            searched = search(sampler=sampler, seed=seed, trials=40, halving=ONE_RUNG, limits={})
            trials = run_search(searched, tmp_path / f"{sampler}{seed}.jsonl")
            assert sum(t.trained for t in trials) == 40
            scores.append(max(score_of(t.proposal) for t in trials))
    mean = {name: sum(scores) / len(scores) for name, scores in best.items()}
    assert mean["tpe"] > mean["random"] + 0.5, best


@pytest.mark.parametrize("bad", [math.nan, math.inf, "failed"])
def test_a_trial_without_a_finite_score_never_becomes_the_best(tmp_path: Path, bad: Any) -> None:
    calls = iter(range(1000))

    def some_fail(proposal: dict[str, Any], epochs: float, size: Size) -> Score:
        """Every second trial fails or has no finite score."""
        if next(calls) % 2:
            if bad == "failed":
                raise TrialFailed("pretrain-x: the loss is not finite")
            return Score(bad)
        return evaluate(proposal, epochs, size)

    trials = run_search(search(halving=ONE_RUNG), tmp_path / "log.jsonl", some_fail)
    failed = [t for t in trials if t.state == "failed"]
    assert len(failed) == 6
    assert all(t.error and t.score is None for t in failed)
    chosen = logs.best(trials, {"direction": "max"})
    assert chosen is not None
    assert chosen.state == "complete"


def test_a_pruned_trial_with_a_higher_score_is_not_the_best(tmp_path: Path) -> None:
    def drops(proposal: dict[str, Any], epochs: float, size: Size) -> Score:
        """Scores that fall with the epochs."""
        return Score(evaluate(proposal, epochs, size).value - 10 * epochs)

    trials = run_search(search(trials=20), tmp_path / "log.jsonl", drops)
    chosen = logs.best(trials, {"direction": "max"})
    assert chosen is not None
    assert chosen.epochs == 9
    assert max(t.score or -99 for t in trials if t.state == "pruned") > chosen.scores[-1]


def test_three_failed_trials_in_a_row_stop_the_search_and_the_same_command_continues_it(
    tmp_path: Path,
) -> None:
    def fails(proposal: dict[str, Any], epochs: float, size: Size) -> Score:
        """Every trial fails."""
        raise TrialFailed("no space left. Fix: free disk space.")

    path = tmp_path / "log.jsonl"
    # The fix of the search replaces that of the trial.
    with pytest.raises(
        KdepError, match=r"last 3 trials .* failed; the last error: no space left. Fix: correct"
    ):
        run_search(search(), path, fails)
    trials = run_search(search(), path)
    assert [t.state for t in trials if t.trained][:4].count("failed") == 3
    assert sum(t.trained for t in trials) == 12


def test_the_search_ends_with_an_error_if_almost_no_proposal_is_within_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdep_bench.search.run.MAX_OVER_LIMIT", 20)
    searched = search(
        space=[
            dict(key="student.width", values=[8, *range(64, 64 + 8 * 400, 8)]),
            dict(key="method.transform.n", values=[1.0]),
        ],
        limits=dict(params=200_000),
    )
    with pytest.raises(
        KdepError, match=r"last 20 proposals .* are above its limits of 200,000 par"
    ):
        run_search(searched, tmp_path / "log.jsonl")


def test_an_interrupted_trial_is_not_logged(tmp_path: Path) -> None:
    from kdep_bench.search.run import Interrupted

    def stopped(proposal: dict[str, Any], epochs: float, size: Size) -> Score:
        """Ctrl-C during the trial."""
        raise Interrupted(2)

    path = tmp_path / "log.jsonl"
    with pytest.raises(Interrupted):
        run_search(search(), path, stopped)
    states = [json.loads(line)["state"] for line in path.read_text().splitlines()[1:]]
    assert set(states) <= {"over_limit"}
