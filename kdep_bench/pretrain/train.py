"""One training run on an mmengine Runner: assembled as an ordinary config, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from kdep_bench import openmmlab
from kdep_bench.pretrain.hooks import (
    Clock,
    EveryWeightTaught,
    PlayersState,
    RandomState,
    TermShares,
    WeightAverage,
    unwrapped,
)


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
    loss_scaling: bool = False,
    some_unused: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """The mmengine config of a run of `steps` iterations at a *global* batch of `batch`.

    The sampler deals the fixed sequence of samples out to the ranks in turn, so the ranks read
    together what one process would; no shuffling happens here. `loss_scaling` is for float16 on a
    GPU; `some_unused` for losses that some weights have no part in; `workers` processes read ahead.
    """
    scaling = {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    return {
        "model_wrapper_cfg": {
            "type": "kdep_bench.pretrain.parallel.DistributedDistiller",
            "broadcast_buffers": False,  # equal on all ranks: see share_batch_norm
            "find_unused_parameters": some_unused,
        },
        "model": model,
        "train_dataloader": {
            "batch_size": batch // world_size,
            "num_workers": workers,
            "persistent_workers": False,
            "pin_memory": torch.cuda.is_available(),
            "sampler": {"type": "kdep_bench.pretrain.loop.Positions"},
            "collate_fn": {"type": collate},
            "dataset": dataset,
        },
        "train_cfg": {
            "type": "kdep_bench.pretrain.loop.SequenceLoop",
            "max_iters": steps,
            "val_interval": steps + 1,
        },
        "optim_wrapper": {
            **(scaling if loss_scaling else {"type": "OptimWrapper"}),
            "optimizer": optimizer,
        },
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


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        state: state dict of the trained model, out of any wrapper; with a weight average, the
            backbone is that average.
        curve: loss curve [[step, loss], ...].
        terms: mean fraction of the loss magnitude per term, over all steps.
        seconds: wall seconds of all steps, those before a resume included.
    """

    state: dict[str, Any]
    curve: list[list[float]]
    terms: dict[str, float]
    seconds: float


def train(
    config: dict[str, Any],
    seed: int,
    work_dir: Path,
    progress: Callable[..., None],
    ema: float | None = None,
) -> Trained:
    """Runs the config, from the newest whole checkpoint in `work_dir` if there is one."""
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")
    progress_hook, term_shares = openmmlab.ProgressHook(progress), TermShares()
    average = None if ema is None else WeightAverage(ema)
    states = (RandomState(), PlayersState())
    given = (Clock(), EveryWeightTaught(), *states, term_shares, average, progress_hook)
    hooks = [h for h in given if h is not None]
    runner = openmmlab.build_runner(
        Config(config), work_dir=work_dir, seed=seed, hooks=hooks, resume=True
    )
    runner.train()
    model = unwrapped(runner)
    for side in model.teacher_sides.values():
        side.still_frozen()
    state = model.state_dict()
    if average is not None:
        state |= {f"backbone.{k}": v for k, v in average.average.items()}
    return Trained(state, progress_hook.points, term_shares.shares, progress_hook.seconds)
