"""Stage `transfer`: one task, one exported backbone, one seed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.transfer.base import ProgressFn, Task


def run(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: ProgressFn
) -> dict[str, Any]:
    """Trains and scores `spec["task"]` on the exported backbone.

    May run as several processes at once, one a rank, started by torchrun or srun with the same
    arguments: the recipe's batch is that of all together, rank 0 writes, and its outputs count.

    Args:
        spec: `task` (a task config), `student` (a student config), `seed`; `threads` if given.
        inputs: `prepare` (its `data` tree) and `export` (its `backbone.pth`).
        out: the stage's own directory.

    Returns:
        value, metric, metrics, per_class, gate, chance, curves, train_s, eval_s, images_per_s,
        pictures, notes. Metrics are fractions (0..1), times are seconds.

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
        )
    if task.alone and not openmmlab.is_main_rank():
        return {}
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
