"""Runs a training on an mmengine Runner; an interrupted run resumes from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from kdep_bench import openmmlab
from kdep_bench.pretrain.hooks import (
    AuxiliaryState,
    GradientCoverageHook,
    RandomState,
    StepCounterHook,
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
    """The mmengine config of a training run.

    Args:
        model: config of the model.
        dataset: config of the data set, which defines the order of the samples (no shuffling).
        collate: dotted path of the collate function.
        steps: number of iterations.
        batch: samples per step over all processes.
        optimizer: config of the optimiser.
        schedule: configs of mmengine's parameter schedulers.
        checkpoint_every: steps between checkpoints.
        world_size: number of processes.
        loss_scaling: whether to scale the loss dynamically, for float16 on a GPU.
        some_unused: whether some parameters may be unused in the loss; DDP then looks for them.
        workers: number of loader processes.
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
        state: state dict of the trained model; its backbone is the weight average if there is one.
        curve: loss curve [[step, loss], ...].
        terms: mean fraction of the loss magnitude per term, over all steps.
        seconds: wall time of all steps, those before an interruption included.
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
    """Trains from the latest complete checkpoint in `work_dir`, or from the start.

    Args:
        config: see `runner_config`.
        seed: seed of all random generators.
        work_dir: folder for checkpoints and logs.
        progress: called by the progress hook with (steps done, all steps, note).
        ema: decay of the weight average, or None.

    Raises:
        KdepError: the loss is not finite, a student parameter gets no gradient, the live teacher's
            weights changed, or the model raises a KdepError.
    """
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")
    progress_hook, term_shares = openmmlab.ProgressHook(progress), TermShares()
    average = None if ema is None else WeightAverage(ema)
    hooks = [
        StepCounterHook(),
        GradientCoverageHook(),
        RandomState(),
        AuxiliaryState(),
        term_shares,
        *([] if average is None else [average]),
        progress_hook,
    ]
    runner = openmmlab.build_runner(
        Config(config), work_dir=work_dir, seed=seed, hooks=hooks, resume=True
    )
    runner.train()
    model = unwrapped(runner)
    for reader in model.teacher_readers.values():
        reader.check_frozen()
    state = model.state_dict()
    if average is not None:
        state |= {f"backbone.{k}": v for k, v in average.average.items()}
    return Trained(state, progress_hook.points, term_shares.fractions, progress_hook.seconds)
