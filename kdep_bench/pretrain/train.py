"""One training run on an mmengine Runner: assembled as an ordinary config, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench import openmmlab


def runner_config(
    model: dict[str, Any],
    dataset: dict[str, Any],
    collate: str,
    steps: int,
    batch: int,
    optimizer: dict[str, Any],
    schedule: list[dict[str, Any]],
    seed: int,
    work_dir: Path,
    checkpoint_every: int,
    world_size: int = 1,
) -> dict[str, Any]:
    """The mmengine config of a run of `steps` iterations at a *global* batch of `batch`.

    The sampler deals the fixed sequence of samples out to the ranks in turn, so the ranks read
    together what one process would; no shuffling happens here.
    """
    return {
        "model": model,
        "train_dataloader": {
            "batch_size": batch // world_size,
            "num_workers": 0,
            "persistent_workers": False,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": collate},
            "dataset": dataset,
        },
        "train_cfg": {"by_epoch": False, "max_iters": steps, "val_interval": steps + 1},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer},
        "param_scheduler": schedule,
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": checkpoint_every,
                "max_keep_ckpts": 1,
                "save_last": False,
            },
        },
        "default_scope": "mmengine",
        "randomness": {"seed": seed},
        "resume": True,
        "work_dir": str(work_dir),
    }


def train(config: dict[str, Any], progress: Callable[..., None]) -> tuple[Any, list[list[float]]]:
    """Runs the config; returns (the trained mmengine model, thinned loss curve [[step, loss]])."""
    return openmmlab.train(config, progress)
