"""TensorBoard receives the losses of a real transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.transfer.test_transfer_tasks import run_stage, task_config


def run_with_tensorboard(task: dict[str, Any], *args: Any) -> dict[str, Any]:
    """The stage's outputs, in a process with TensorBoard as its tracker."""
    from kdep_bench import trackers

    trackers.set_backends(trackers.resolve(["tensorboard"]), "transfer-x")
    return run_stage(task, *args)


def test_tensorboard_gets_the_losses(
    in_subprocess, student, data, exported, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    task = task_config("seg", iters=50)  # a value is logged every 50 steps
    outputs = in_subprocess(run_with_tensorboard, task, student, 0, data, exported, tmp_path)
    assert 0 <= outputs["value"] <= 1
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events.parent)).Reload()
    losses = read.Scalars("loss")
    assert losses[-1].step == 50
    assert 0 < losses[-1].value < 20
