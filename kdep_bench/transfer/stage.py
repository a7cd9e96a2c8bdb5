"""Stage `transfer`: one task, one exported backbone, one seed."""

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
    """Trains and scores `spec["task"]` on the exported backbone.

    May run as several processes at once, one per rank, started by torchrun or srun with the same
    arguments: the recipe's batch is that of all together, rank 0 writes, and its outputs count.

    Args:
        spec: `task` (a task config), `student` (a student config), `seed`; `threads` if given;
            `transfer` (config of a transfer method) and `teacher` (student config of its tuned
            teacher); `keep_model` where the trained model is to be another stage's teacher.
        inputs: `prepare` (its `data` tree) and `export` (its `backbone.pth`); `teacher`, the
            transfer stage that kept the tuned teacher's model.
        out: the stage's own directory.

    Returns:
        value, metric, metrics, per_class, gate, chance, curves, train_s, eval_s, images_per_s,
        pictures, notes. Metrics are fractions (0..1), times are seconds. With a transfer method
        also `transfer`, its extra parameters and forward passes; with `keep_model`,
        `model_checksum`.

    Raises:
        KdepError: bad data, a backbone that did not load, a loss that is not finite.
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
    if task.alone and not openmmlab.is_main_rank():
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
    json.dumps(result, allow_nan=False)  # strict JSON here, where the cause is near
    return result


def _extend(task: Task, spec: dict[str, Any], inputs: dict[str, Path]) -> None:
    """Sets a task's transfer method, and whether its model is saved."""
    if spec.get("transfer") is None and not spec.get("keep_model"):
        return
    if not isinstance(task, MMTask):
        raise KdepError(
            f"the task {task.name} is not trained by a toolkit's Runner, so it has no transfer "
            "method and saves no model",
            fix="choose a task that is fine-tuned, such as segmentation",
        )
    from kdep_bench.transfer.method import transfer_method_of

    task.transfer_method, task.keeps_model = (
        transfer_method_of(spec, inputs),
        bool(spec.get("keep_model")),
    )
