"""One training run on an mmengine Runner: assembled as an ordinary config, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel, is_model_wrapper

from kdep_bench import openmmlab


def runner_config(
    model: dict[str, Any],
    dataset: dict[str, Any],
    collate: str,
    steps: int,
    batch: int,
    optimizer: dict[str, Any],
    schedule: list[dict[str, Any]],
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
    }


def train(
    config: dict[str, Any],
    seed: int,
    work_dir: Path,
    progress: Callable[..., None],
) -> tuple[BaseModel, list[list[float]], float]:
    """Runs the config, from the newest whole checkpoint in `work_dir` if there is one.

    Returns the trained model, its loss curve [[step, loss], ...] and the seconds all steps took,
    those before a resume included.
    """
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")
    hook = openmmlab.ProgressHook(progress)
    runner = openmmlab.build_runner(
        Config(config), work_dir=work_dir, seed=seed, hooks=[hook], resume=True
    )
    runner.train()
    model: Any = runner.model
    return (model.module if is_model_wrapper(model) else model), hook.points, hook.seconds
