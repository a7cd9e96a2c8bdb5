"""Pieces of an mm Config that the transfer tasks share."""

from __future__ import annotations

import copy
import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.listing import class_names, shown
from kdep_bench.errors import KdepError

# ---- pieces of configs ----


def plain(value: Any) -> Any:
    """A deep copy in plain dicts, lists and numbers (of ConfigDicts, tuples, lazy types)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    from kdep_bench.registry import type_path

    return type_path(value)


def pyramid(student: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The student's levels for a dense task; KdepError for one that has none (a plain ViT)."""
    found = plain(student.get("pyramid") or {})
    if not found.get("out_indices"):
        raise KdepError(
            f"task {task} needs feature maps of several levels, but student {student['name']} has "
            "no `pyramid` in its config",
            fix="add `pyramid` to the student's config, or remove the task or the student from "
            "the suite",
        )
    return found


def backbone_cfg(
    student: Mapping[str, Any],
    checkpoint: Path,
    out_indices: Sequence[int] | None,
    *,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """The student's backbone config, loading `checkpoint`; the same class in every task."""
    cfg = copy.deepcopy(plain(student["backbone"]))
    if out_indices is not None:
        cfg["out_indices"] = tuple(out_indices)
    cfg.update(frozen_stages=frozen_stages, norm_eval=norm_eval, **more)
    cfg["init_cfg"] = dict(type="Pretrained", checkpoint=str(checkpoint))
    return cfg


def runtime_cfg(
    scope: str, work_dir: Path, seed: int, checkpoint: Path, allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The part of a Config that is no task's own: hooks, seeds, logs, the load gate."""
    return dict(
        default_scope=scope,
        custom_imports=dict(
            imports=[f"{scope}.models", "mmpretrain.models", "kdep_bench.transfer.gate"],
            allow_failed_imports=False,
        ),
        default_hooks=dict(
            runtime_info=dict(type="RuntimeInfoHook"),
            timer=dict(type="IterTimerHook"),
            sampler_seed=dict(type="DistSamplerSeedHook"),
            logger=dict(type="LoggerHook", interval=50),
            param_scheduler=dict(type="ParamSchedulerHook"),
            # None, or mmengine would keep a checkpoint of every epoch, and nothing reads them: a
            # transfer that was interrupted begins again.
            checkpoint=None,
        ),
        custom_hooks=[
            dict(
                type="KdepLoadGate",
                checkpoint=str(checkpoint),
                allow_missing=list(allow_missing),
            )
        ],
        env_cfg=dict(
            cudnn_benchmark=False,
            mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
            dist_cfg=dict(backend="nccl"),
        ),
        randomness=dict(seed=int(seed), deterministic=False, diff_rank_seed=False),
        log_processor=dict(window_size=20, by_epoch=False),
        log_level="WARNING",
        load_from=None,
        resume=False,
        launcher="none",
        work_dir=str(work_dir),
    )


def loader(
    dataset: Mapping[str, Any], batch: int, *, train: bool, infinite: bool = False
) -> dict[str, Any]:
    """A dataloader config without worker processes (sets are small, a stage owns one core)."""
    kind = "InfiniteSampler" if infinite else "DefaultSampler"
    return dict(
        batch_size=int(batch),
        num_workers=0,
        persistent_workers=False,
        drop_last=bool(train and not infinite),
        sampler=dict(type=kind, shuffle=train),
        dataset=dict(dataset),
    )


def sgd(recipe: Mapping[str, Any], head_lr_mult: float | None = None) -> dict[str, Any]:
    """SGD with momentum from `lr`, `momentum`, `weight_decay`, `clip_norm` of the recipe.

    `head_lr_mult` multiplies the rate of every parameter outside the backbone.
    """
    wrapper: dict[str, Any] = dict(
        type="OptimWrapper",
        optimizer=dict(
            type="SGD",
            lr=recipe["lr"],
            momentum=recipe["momentum"],
            weight_decay=recipe["weight_decay"],
        ),
        clip_grad=dict(max_norm=recipe["clip_norm"]) if recipe["clip_norm"] else None,
    )
    if head_lr_mult is not None and head_lr_mult != 1:
        wrapper["optimizer"]["lr"] = recipe["lr"] * head_lr_mult
        wrapper["paramwise_cfg"] = dict(custom_keys={"backbone": dict(lr_mult=1 / head_lr_mult)})
    return wrapper


def step_schedule(recipe: Mapping[str, Any], iters: int) -> list[dict[str, Any]]:
    """Linear warm-up over `warmup` steps, then x0.1 at the fractions `steps` of `iters`."""
    return [
        dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=recipe["warmup"]),
        dict(
            type="MultiStepLR",
            by_epoch=False,
            begin=0,
            end=iters,
            milestones=[round(iters * s) for s in recipe["steps"]],
            gamma=0.1,
        ),
    ]


def poly_schedule(recipe: Mapping[str, Any], iters: int) -> list[dict[str, Any]]:
    """Linear warm-up over `warmup` steps, then (1 - t)^`poly_power` down to 1 % of the rate."""
    warmup = int(recipe["warmup"])
    return [
        dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=warmup),
        dict(
            type="PolyLR",
            power=recipe["poly_power"],
            eta_min=0.01 * recipe["lr"],
            by_epoch=False,
            begin=warmup,
            end=iters,
        ),
    ]


def without_sync_bn(cfg: Any) -> Any:
    """SyncBN -> BN in place: over which samples a BatchNorm goes, `parallel` decides."""
    if isinstance(cfg, dict):
        if cfg.get("type") == "SyncBN":
            cfg["type"] = "BN"
        for value in cfg.values():
            without_sync_bn(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_sync_bn(value)
    return cfg


# ---- pieces of runs ----


def prefer_channels_last(model: Any) -> None:
    """Convolution weights channels-last: 1.2x on CPU for these networks, values unchanged."""
    import torch

    model.to(memory_format=torch.channels_last)


class reading_images:
    """Turns the decoder's exceptions into a sentence that names the file."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, KdepError):
            return
        text = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        if isinstance(error, OSError) and error.errno in _NO_FAULT_OF_AN_IMAGE:
            return
        if isinstance(error, OSError) or "image" in text.lower() or "imdecode" in text:
            raise KdepError(
                f"task {self.task} cannot read an image ({text[:200]})",
                fix="replace that image by one that can be decoded, and run again",
            ) from error


# A full disk or too many open files would otherwise be called a broken image.
_NO_FAULT_OF_AN_IMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def class_folders(root: Path) -> list[str]:
    """Sorted names of the class folders under `root`; KdepError when there are fewer than two."""
    if not root.is_dir():
        raise KdepError(
            f"the prepared data have no folder {root.parent.name}/{root.name}",
            expected="one folder per class in it",
            fix="add that split to `classify` in the data config, or choose another `folder` or "
            "`split` in the task's config",
        )
    names = class_names(root)
    if len(names) < 2:
        raise KdepError(
            f"{shown(root.resolve())} has {len(names)} class folders",
            expected="two or more",
            fix="add a folder for each class there, or correct its path in the data config",
        )
    return names
