"""The best student is written as an ordinary config; no file of the user is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.search import winner
from kdep_bench.search.config import load_search
from kdep_bench.search.log import Trial
from kdep_bench.suite.config import build_suite, load_config
from kdep_bench.suite.plan import build_plan


def best_trial(proposal: dict[str, Any]) -> Trial:
    """A complete trial of this proposal."""
    return Trial(
        trial=5,
        state="complete",
        proposal=proposal,
        student="s",
        params=30_028,
        flops=2_465_280,
        epochs=2.0,
        scores=[0.1, 0.375],
    )


def test_a_suite_with_the_written_student_reuses_the_stages_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = load_search("smoke_kdep")
    trial = best_trial(search.first_proposal | {"method.transform.n": 3.0})
    path, is_new = winner.write(search, trial, tmp_path / "students", "top1")
    assert is_new
    text = path.read_text()
    assert "AutoKD (arXiv 2111.03555), a re-implementation" in text
    assert "top1 0.375 on the validation split" in text
    monkeypatch.setenv("KDEP_CONFIGS", str(tmp_path))
    name = path.stem
    assert load_config("student", name)["name"] == name
    # The config's docstring shows the method as an entry of a suite's `methods`.
    method = eval(text.partition("`methods`:\n\n")[2].partition('\n"""')[0])
    file = search.file
    suite = build_suite(
        dict(
            name="mine",
            data="smoke",
            teacher="efficientnet_lite0",
            students=[name],
            methods=[method],
            tasks=["smoke_probe"],
            budget={**file.budget, "epochs": 2.0},
            seeds=dict(pretrain=[0], transfer=[0]),
        )
    )
    searched = build_plan(search.suite(trial.proposal, 2.0)).stages
    plan = build_plan(suite)
    (run,) = plan.runs
    assert set(plan.stages) - set(searched) == {run.id}  # only the transfer on another task is new


def test_a_file_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    search = load_search("smoke_kdep")
    trial = best_trial(search.first_proposal)
    path, _ = winner.write(search, trial, tmp_path, "top1")
    edited = "# mine\n" + path.read_text()
    path.write_text(edited)
    assert winner.write(search, trial, tmp_path, "top1") == (path, False)
    assert path.read_text() == edited
    another_student = edited.replace("width=", "width=1")
    path.write_text(another_student)
    with pytest.raises(KdepError, match=r"defines another student .* Fix: choose another folder"):
        winner.write(search, trial, tmp_path, "top1")
    assert path.read_text() == another_student
    assert winner.write(search, trial, tmp_path / "elsewhere", "top1")[1]
