"""Builds an mmengine Runner from an ordinary mm Config, working around known faults of mmengine."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import init_dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kdep_bench import trackers
from kdep_bench.errors import KdepError
from kdep_bench.openmmlab import environment, loading
from kdep_bench.openmmlab.hooks import SealHook, StopOnBadLoss

_number = itertools.count()  # makes experiment names unique within a process


class _FileLogRunner(Runner):
    """Logs to `work_dir/log.txt`; only errors are printed to the console."""

    def build_logger(
        self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any
    ):
        log_file = log_file or str(Path(self.work_dir) / "log.txt")
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger


def build_runner(
    cfg: Config,
    *,
    work_dir: str | Path | None = None,
    seed: int | None = None,
    hooks: Sequence[Hook] = (),
    log_level: str = "INFO",
    resume: bool = False,
) -> Runner:
    """`Runner.from_cfg` of a copy of `cfg`; call `setup(scope)` before.

    Args:
        cfg: a Config that the toolkit's own runner could run.
        work_dir: replaces cfg.work_dir; the log is `work_dir/log.txt`.
        seed: replaces cfg.randomness.seed. One of the two is required.
        hooks: additional hooks, registered with their own priorities.
        log_level: of the log file. Only errors are printed to the console.
        resume: continue from the newest sealed checkpoint in `work_dir`, if there is one (see
            `latest_sealed`).

    The Visualizer also logs to the suite's `runtime.trackers`. A loss that is NaN or infinite stops
    the training (StopOnBadLoss), and checkpoints are sealed when written (SealHook). Under
    `torchrun` the process group is started here and the model is wrapped in DDP, also on a CPU.

    Raises:
        KdepError: `setup` was not called, another default scope, no seed, no work dir, mixed
            precision without a GPU, or `resume` set in the config.
    """
    # Workaround: mmengine writes the config up to five times, and formatting by yapf takes seconds
    # of CPU for a detector or a segmenter. The unformatted text is the same Python.
    cfg = Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)
    scope = _check_scope(cfg)
    out = _settle_work_dir(cfg, work_dir)
    _settle_seed(cfg, seed)
    _check_precision(cfg)
    _settle_distributed(cfg)
    _settle_resume(cfg, out, resume)
    loading.register_loaders()
    loading.trust_work_dir(out)
    cfg.log_level = log_level
    # Runners built in the same second would share a name, and with it scope and message hub.
    cfg.experiment_name = f"{scope}-{os.getpid()}-{next(_number)}"
    cfg.setdefault("visualizer", {"type": "mmengine.Visualizer", "vis_backends": []})
    cfg.visualizer.setdefault("name", cfg.experiment_name)
    cfg.visualizer.vis_backends = [
        *(cfg.visualizer.get("vis_backends") or []),
        *trackers.current_backends(),
    ]
    runner = _FileLogRunner.from_cfg(cfg)
    for hook in (StopOnBadLoss(), SealHook(), *hooks):
        runner.register_hook(hook)
    return runner


def _check_scope(cfg: Config) -> str:
    scope = environment.current_scope()
    if scope is None:
        raise KdepError(
            "a Runner was built before a toolkit was set up",
            fix="call openmmlab.setup('mmpretrain' | 'mmdet' | 'mmseg') at the start of the stage",
        )
    if cfg.setdefault("default_scope", scope) != scope:
        raise KdepError(
            f"the config has default_scope {cfg.default_scope!r}, but the process was set up for "
            f"{scope}",
            fix="run the stage with setup() of the config's toolkit",
        )
    return scope


def _settle_work_dir(cfg: Config, work_dir: str | Path | None) -> Path:
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    if not cfg.get("work_dir"):
        raise KdepError(
            "the config has no work_dir", fix="set it to a directory for logs and checkpoints"
        )
    out = Path(cfg.work_dir).resolve()
    out.mkdir(parents=True, exist_ok=True)
    cfg.work_dir = str(out)
    return out


def _settle_seed(cfg: Config, seed: int | None) -> None:
    randomness = dict(cfg.get("randomness") or {})
    if seed is not None:
        randomness["seed"] = seed
    if randomness.get("seed") is None:
        raise KdepError(
            "the run has no seed", fix="pass an integer to build_runner, or set cfg.randomness"
        )
    cfg.randomness = randomness


def _check_precision(cfg: Config) -> None:
    """Raises KdepError for mixed precision on a CPU, where AmpOptimWrapper fails an assertion."""
    kind = str((cfg.get("optim_wrapper") or {}).get("type", ""))
    if kind.endswith("AmpOptimWrapper") and not torch.cuda.is_available():
        raise KdepError(
            "the config uses AmpOptimWrapper, which needs a GPU, and this machine has none",
            fix="remove optim_wrapper.type from the recipe; OptimWrapper then trains in float32",
        )


def planned_rank() -> int:
    """The rank of this process, 0 to `planned_ranks() - 1`."""
    return int(os.environ.get("RANK", "0"))


def planned_ranks() -> int:
    """Number of processes that torchrun or srun started for this run; 1 in a plain process."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_rank() -> bool:
    """Whether this process is rank 0, which writes files."""
    return planned_ranks() == 1 or os.environ["RANK"] == "0"


def leave_distributed() -> None:
    """Destroys the process group, if there is one, after a barrier; call it last in every rank.

    Workaround: if a rank exits or destroys its group while a peer is still in a collective or in
    gloo's shutdown, the peer may abort (SIGABRT) on the closed connection. The store is not
    affected: torchrun's agent on the first node hosts it, and outlives all ranks.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def join_distributed() -> None:
    """Joins the process group of the ranks that torchrun or srun started, if there are several.

    With GPUs: nccl and one GPU per local rank (mmengine's initialisation); otherwise gloo.
    """
    if planned_ranks() == 1 or torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        init_dist("pytorch", backend="nccl")
    else:
        torch.distributed.init_process_group("gloo")


def wait_for_ranks() -> None:
    """A barrier over all ranks; returns at once in a plain process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _settle_distributed(cfg: Config) -> None:
    """Starts distributed training, also on a CPU.

    Workaround: mmengine's launcher calls torch.cuda.set_device and passes device ids to DDP.
    """
    if planned_ranks() == 1:
        cfg.launcher = "none"
        return
    cfg.launcher = "pytorch"
    join_distributed()
    if torch.cuda.is_available():
        return
    wrapper = dict(cfg.get("model_wrapper_cfg") or {})
    wrapper.setdefault("type", "mmengine.MMDistributedDataParallel")
    wrapper.setdefault("broadcast_buffers", False)  # as mmengine's default wrapper
    wrapper.setdefault("find_unused_parameters", cfg.get("find_unused_parameters", False))
    wrapper["device_ids"] = None
    cfg.model_wrapper_cfg = ConfigDict(wrapper)


def _settle_resume(cfg: Config, out: Path, resume: bool) -> None:
    """Sets the config to resume from a sealed file in the work dir, by our loader only."""
    if cfg.get("resume"):
        raise KdepError(
            "the config sets `resume`",
            fix="remove it from the config and call build_runner(cfg, resume=True)",
        )
    latest = loading.latest_sealed(out) if resume else None
    if latest is not None:
        cfg.resume, cfg.load_from = True, f"{loading.RESUME}{latest}"
