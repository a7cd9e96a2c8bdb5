"""An mmengine Runner from an ordinary mm Config, with the known traps taken out of its way."""

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

_number = itertools.count()  # makes the experiment name of every Runner of a process its own


class _FileLogRunner(Runner):
    """Logs to `work_dir/log.txt`; the console gets only what is an error."""

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
        cfg: a Config the stock runner of the toolkit could run.
        work_dir: replaces cfg.work_dir; the log is `work_dir/log.txt`.
        seed: replaces cfg.randomness.seed. One of them must be given.
        hooks: more hooks, each at its own priority.
        log_level: of the log file. The console gets errors alone.
        resume: continue from the newest sealed checkpoint in `work_dir`; start afresh if there is
            none (`latest_sealed(work_dir)` says which it will be).

    The Visualizer also logs to the backends the suite asked for in `runtime.trackers`.

    A loss that is NaN or infinite stops the training (StopOnBadLoss), and checkpoints are sealed as
    they are written (SealHook). Under `torchrun` the process group is started here and the model
    wrapped in DDP, on a CPU too; a plain process is not distributed.

    Raises KdepError when `setup` was not called, the config has another default scope, no seed, no
    work dir, mixed precision without a GPU, or `resume` set in itself.
    """
    # Trap: mmengine writes the config out up to five times, and yapf would lay it out each time:
    # seconds of CPU for a detector or a segmenter. Unformatted it is the same Python.
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
    # Two Runners of one second would otherwise share a name, and with it scope and message hub.
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
    """Trap: mmengine's AmpOptimWrapper fails an assertion on a CPU."""
    kind = str((cfg.get("optim_wrapper") or {}).get("type", ""))
    if kind.endswith("AmpOptimWrapper") and not torch.cuda.is_available():
        raise KdepError(
            "the config uses AmpOptimWrapper, which needs a GPU, and this machine has none",
            fix="remove optim_wrapper.type from the recipe; OptimWrapper then trains in float32",
        )


def planned_rank() -> int:
    """The number of this process among `planned_ranks`, from 0."""
    return int(os.environ.get("RANK", "0"))


def planned_ranks() -> int:
    """How many processes torchrun, or srun, started for this run; 1 in a plain process."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_rank() -> bool:
    """Whether this process is the one that writes."""
    return planned_ranks() == 1 or os.environ["RANK"] == "0"


def leave_distributed() -> None:
    """Leaves the process group, if there is one, together: the last thing of every rank's work.

    Trap: a rank that exits, or destroys its group, while a peer is still in a collective or in
    gloo's shutdown lets that peer see a closed connection and abort (SIGABRT) now and then. The
    store needs no such care: torchrun's agent on the first node hosts it, and outlives all ranks.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def join_distributed() -> None:
    """Joins the ranks that torchrun or srun started, if this process is one of several.

    nccl and one GPU a local rank (mmengine's own start) where there are GPUs, else gloo.
    """
    if planned_ranks() == 1 or torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        init_dist("pytorch", backend="nccl")
    else:
        torch.distributed.init_process_group("gloo")


def wait_for_ranks() -> None:
    """Returns when every rank is here; at once in a plain process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _settle_distributed(cfg: Config) -> None:
    """Trap: mmengine's own launcher calls torch.cuda.set_device and gives DDP device ids."""
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
    """Resuming is ours alone: from a sealed file in the work dir, by the named loader."""
    if cfg.get("resume"):
        raise KdepError(
            "the config sets `resume`",
            fix="remove it from the config and call build_runner(cfg, resume=True)",
        )
    latest = loading.latest_sealed(out) if resume else None
    if latest is not None:
        cfg.resume, cfg.load_from = True, f"{loading.RESUME}{latest}"
