"""Code that depends on faults and versions of OpenMMLab: setup, loading, Runner and hooks.

    from kdep_bench import openmmlab

    openmmlab.setup("mmdet")                       # once, at the start of a stage's process
    curve = openmmlab.ProgressHook(progress)
    runner = openmmlab.build_runner(cfg, work_dir=out / "run", seed=0, hooks=[curve], resume=True)
    runner.train()
    count = openmmlab.DetectionCount()
    runner.register_hook(count)
    metrics, notes = openmmlab.read_metrics(runner.test(), ["coco/bbox_mAP_50"], detections=count)
    outputs["curves"]["loss"] = curve.points

Importing this package imports neither torch nor a toolkit; names that need them are imported when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdep_bench.openmmlab.environment import backend, check_versions, current_scope, setup, versions
from kdep_bench.openmmlab.metrics import read_metrics

if TYPE_CHECKING:
    from kdep_bench.openmmlab.hooks import DetectionCount, ProgressHook, SealHook, StopOnBadLoss
    from kdep_bench.openmmlab.loading import latest_sealed, load_weights
    from kdep_bench.openmmlab.runner import (
        build_runner,
        is_main_rank,
        join_distributed,
        leave_distributed,
        planned_rank,
        planned_ranks,
        wait_for_ranks,
    )

_LAZY = {  # name -> module that defines it
    "DetectionCount": "hooks",
    "ProgressHook": "hooks",
    "SealHook": "hooks",
    "StopOnBadLoss": "hooks",
    "build_runner": "runner",
    "is_main_rank": "runner",
    "join_distributed": "runner",
    "latest_sealed": "loading",
    "leave_distributed": "runner",
    "load_weights": "loading",
    "planned_rank": "runner",
    "planned_ranks": "runner",
    "wait_for_ranks": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "DetectionCount",
    "ProgressHook",
    "SealHook",
    "StopOnBadLoss",
    "backend",
    "build_runner",
    "check_versions",
    "current_scope",
    "is_main_rank",
    "join_distributed",
    "latest_sealed",
    "leave_distributed",
    "load_weights",
    "planned_rank",
    "planned_ranks",
    "read_metrics",
    "setup",
    "versions",
    "wait_for_ranks",
]
