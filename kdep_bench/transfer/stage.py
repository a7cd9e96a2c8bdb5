"""Stage `transfer`: trains and scores one exported backbone on one task with one seed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.transfer.base import MMTask, ProgressFn, Task


def run(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: ProgressFn
) -> dict[str, Any]:
    """Trains and scores the task `spec["task"]` with the exported backbone.

    The stage can run in several processes (ranks), which torchrun starts with the same
    arguments. The recipe's batch size is for all ranks together. Rank 0 writes the files; the
    outputs of rank 0 are used.

    Args:
        spec: `task`, the task config; `student`, the student config; `seed`; optionally `threads`,
            the number of CPU threads; `transfer`, the config of a transfer method, and `teacher`,
            the student config of its tuned teacher; `keep_model`, whether the trained model is
            saved as a tuned teacher.
        inputs: directories of the stages `prepare` and `export`; for a transfer method with a tuned
            teacher also `teacher`, the transfer stage that saved it; for one that reads the
            pre-training also `pretrain`.
        out: the stage's directory.
        progress: called with (done, total, note).

    Returns:
        value, metric, metrics, per_class, gate, chance, curves, train_s, eval_s, images_per_s,
        pictures, notes; samples if outputs per image were saved. Metrics are fractions (0..1),
        times are in seconds. With a transfer method also `transfer`, its extra parameters and
        forward passes; with `keep_model` also `model_checksum`.

    Raises:
        KdepError: invalid data, a backbone that was not loaded, or a loss that is not finite.
    """
    import torch

    torch.set_num_threads(int(spec.get("threads") or os.environ.get("OMP_NUM_THREADS") or 1))
    task = build(spec["task"])
    if not isinstance(task, Task):
        raise KdepError(
            f"the task type {spec['task']['type']} is not a transfer task",
            expected="a subclass of kdep_bench.transfer.base.Task",
            fix="correct `type` in the task's config",
        )
    if task.runs_in_rank_0_only and not openmmlab.is_main_rank():
        return {}
    _extend(task, spec, inputs)
    result = task.run(
        Path(inputs["prepare"]) / "data",
        spec["student"],
        Path(inputs["export"]) / "backbone.pth",
        int(spec["seed"]),
        Path(out),
        progress,
    )
    json.dumps(result, allow_nan=False)  # fails here rather than later if a value is not valid JSON
    return result


def _extend(task: Task, spec: dict[str, Any], inputs: dict[str, Path]) -> None:
    """Sets a task's transfer method, and whether its model is saved."""
    task.keeps_model = bool(spec.get("keep_model"))
    if spec.get("transfer") is None:
        return
    if not isinstance(task, MMTask):
        raise KdepError(
            f"the task {task.name} is not trained by a toolkit's Runner, so it has no transfer "
            "method",
            fix="choose a task that is fine-tuned, such as segmentation",
        )
    from kdep_bench.transfer.method import transfer_method_config

    task.transfer_method = transfer_method_config(spec, inputs)
