"""What the engine costs at scale; CPU seconds, because the machine may be busy."""

from __future__ import annotations

import time
from pathlib import Path

import suite_fakes as fakes

from kdep_bench.suite import bench, state


def test_status_of_many_stage_directories(tmp_path: Path):
    """2,000 here; `python -m kdep_bench.suite.bench` looks at 10,000."""
    plan = bench.large_plan(2_000)
    bench.pretend_done(plan, tmp_path)
    begun = time.process_time()
    known = state.statuses(plan, tmp_path)
    spent = time.process_time() - begun
    assert all(s.done for s in known.values())
    assert spent < 2.0 * len(plan.stages) / 10_000 * 2  # twice the bar: a busy machine


def test_the_command_prints_its_figures(capsys, monkeypatch):
    assert bench.main(["--stages", "50", "--runs", "5", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "stages/s" in said
    assert "status of as many directories" in said


def test_stages_that_do_nothing_are_real_ones(tmp_path: Path):
    got = bench.starting(4, tmp_path, 2, fakes.FAST.preload)
    assert got["stages_run"] == 4
    assert got["stages_per_s"] > 0
    assert len(list(tmp_path.glob("nothing-*/stage.json"))) == 4
