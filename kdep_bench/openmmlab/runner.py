"""Builds an mmengine Runner from an ordinary Config, with workarounds for faults of mmengine."""

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

_counter = itertools.count()  # makes experiment names unique within a process


class _FileLogRunner(Runner):
    """A Runner that logs to `work_dir/log.txt` and prints only errors to the console."""

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
    """Builds a Runner from a copy of `cfg`; call `openmmlab.setup(scope)` first.

    The Runner also logs to the suite's `runtime.trackers`. A loss that is NaN or infinite stops the
    training (StopOnBadLoss). Every checkpoint gets a seal, a second file with its SHA-256
    (SealHook). Under `torchrun` the process group is started here, and the model is wrapped in DDP,
    also on a CPU.

    Args:
        cfg: a Config that the toolkit's own runner could run.
        work_dir: replaces cfg.work_dir; the log is `work_dir/log.txt`.
        seed: replaces cfg.randomness.seed. One of the two is required.
        hooks: additional hooks, registered with their own priorities.
        log_level: level of the log file.
        resume: whether to resume from the newest checkpoint in `work_dir` that matches its seal, if
            there is one.

    Raises:
        KdepError: `setup` was not called, the config has another default scope, no seed or no work
            dir, uses mixed precision without a GPU, or sets `resume`.
    """
    # Workaround: mmengine writes the config up to five times, and formatting it takes seconds of
    # CPU time for a detector or a segmenter. Without formatting, the Python code is equivalent.
    cfg = Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)
    scope = _check_scope(cfg)
    out = _set_work_dir(cfg, work_dir)
    _set_seed(cfg, seed)
    _check_precision(cfg)
    _set_distributed(cfg)
    _set_resume(cfg, out, resume)
    loading.register_loaders()
    loading.trust_work_dir(out)
    cfg.log_level = log_level
    # mmengine's default names differ by the time in seconds only, and Runners with the same name
    # share global state.
    cfg.experiment_name = f"{scope}-{os.getpid()}-{next(_counter)}"
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
    """The toolkit of this process; raises KdepError if the config is for another toolkit."""
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
            fix="call openmmlab.setup() for the toolkit of the config",
        )
    return scope


def _set_work_dir(cfg: Config, work_dir: str | Path | None) -> Path:
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


def _set_seed(cfg: Config, seed: int | None) -> None:
    randomness = dict(cfg.get("randomness") or {})
    if seed is not None:
        randomness["seed"] = seed
    if randomness.get("seed") is None:
        raise KdepError(
            "the run has no seed", fix="pass an integer to build_runner, or set cfg.randomness"
        )
    cfg.randomness = randomness


def _check_precision(cfg: Config) -> None:
    """Raises KdepError for mixed precision without a GPU: AmpOptimWrapper needs one."""
    kind = str((cfg.get("optim_wrapper") or {}).get("type", ""))
    if kind.endswith("AmpOptimWrapper") and not torch.cuda.is_available():
        raise KdepError(
            "the config uses AmpOptimWrapper, which needs a GPU, and this machine has none",
            fix="remove optim_wrapper.type from it (in a task: from its `recipe`), so that "
            "OptimWrapper trains in float32",
        )


def planned_rank() -> int:
    """The rank of this process, 0 to `planned_ranks() - 1`; 0 in a single process.

    It is read from torchrun's environment variables, so it is known before the process group
    exists.
    """
    return int(os.environ.get("RANK", "0"))


def planned_ranks() -> int:
    """Number of processes that torchrun started for this run; 1 for a single process."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_rank() -> bool:
    """Whether this process has rank 0; only this rank writes files."""
    return planned_ranks() == 1 or os.environ["RANK"] == "0"


def leave_distributed() -> None:
    """Destroys the process group, if there is one, after a barrier; call it last in every rank.

    Workaround: if a rank exits or destroys its group while another rank is still in a collective
    operation or in gloo's shutdown, the other rank may abort (SIGABRT) because its connection is
    closed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def join_distributed() -> None:
    """Joins the process group of the ranks that torchrun started, if there are several.

    Uses nccl and one GPU per local rank (mmengine's initialisation) if there are GPUs, otherwise
    gloo.
    """
    if planned_ranks() == 1 or torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        init_dist("pytorch", backend="nccl")
    else:
        torch.distributed.init_process_group("gloo")


def wait_for_ranks() -> None:
    """A barrier over all ranks; returns at once in a single process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _set_distributed(cfg: Config) -> None:
    """Joins the process group, if there is one, and sets the config for it.

    Workaround: mmengine's launcher needs GPUs; here distributed training also works on CPUs.
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
    wrapper.setdefault("broadcast_buffers", False)  # as in mmengine's default wrapper
    wrapper.setdefault("find_unused_parameters", cfg.get("find_unused_parameters", False))
    wrapper["device_ids"] = None
    cfg.model_wrapper_cfg = ConfigDict(wrapper)


def _set_resume(cfg: Config, out: Path, resume: bool) -> None:
    """With `resume`, sets the config to resume from the newest checkpoint with a seal in `out`."""
    if cfg.get("resume"):
        raise KdepError(
            "the config sets `resume`",
            fix="remove it from the config and call build_runner(cfg, resume=True)",
        )
    latest = loading.latest_sealed(out) if resume else None
    if latest is not None:
        cfg.resume, cfg.load_from = True, f"{loading.RESUME}{latest}"
