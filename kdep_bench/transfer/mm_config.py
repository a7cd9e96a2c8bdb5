"""Parts of mmengine Configs, and of runs, that the transfer tasks share."""

from __future__ import annotations

import copy
import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.data.listing import class_names, shown
from kdep_bench.errors import KdepError

NEVER = 10**9  # value of `val_interval`: no validation during training

# ---- parts of configs ----


def plain(value: Any) -> Any:
    """A deep copy with plain dicts and lists; a class becomes its path, "module:Class"."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    from kdep_bench.registry import type_path

    return type_path(value)


def pyramid(student: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """The entry `pyramid` of a student config: channels, strides and out_indices of its levels.

    Args:
        student: student config.
        subject: what reads the maps, for the error: "task pocket_seg".

    Raises:
        KdepError: the student has no pyramid (a plain ViT).
    """
    levels = plain(student.get("pyramid") or {})
    if not levels.get("out_indices"):
        raise KdepError(
            f"{subject} needs feature maps of several levels, but student {student['name']} has no "
            "`pyramid` in its config",
            fix="add `pyramid` to the student's config, or remove from the suite the student or "
            "what reads its maps",
        )
    return levels


def backbone_cfg(
    student: Mapping[str, Any],
    checkpoint: Path,
    out_indices: Sequence[int] | None,
    *,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """The student's backbone config, which loads `checkpoint`.

    Args:
        student: student config.
        checkpoint: the exported backbone.
        out_indices: indices of the outputs; None: as in the student config.
        frozen_stages, norm_eval: arguments of the backbone.
        more: other arguments of the backbone.
    """
    cfg = copy.deepcopy(plain(student["backbone"]))
    if out_indices is not None:
        cfg["out_indices"] = tuple(out_indices)
    cfg.update(frozen_stages=frozen_stages, norm_eval=norm_eval, **more)
    cfg["init_cfg"] = dict(type="Pretrained", checkpoint=str(checkpoint))
    return cfg


def runtime_cfg(
    scope: str, work_dir: Path, seed: int, checkpoint: Path, allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The part of a Config that is the same for all tasks: hooks, seeds, logs, `gate.LoadGate`."""
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
            # No checkpoints: an interrupted transfer starts again from the beginning.
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
    """The config of a data loader without workers, because the sets are small."""
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
    """The config of SGD with `lr`, `momentum`, `weight_decay` and `clip_norm` of the recipe.

    `head_lr_mult` multiplies the learning rate of all parameters outside the backbone.
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
        # mmengine can scale the rate of named parts only: the backbone's is scaled back.
        wrapper["optimizer"]["lr"] = recipe["lr"] * head_lr_mult
        wrapper["paramwise_cfg"] = dict(custom_keys={"backbone": dict(lr_mult=1 / head_lr_mult)})
    return wrapper


def step_schedule(recipe: Mapping[str, Any], iters: int) -> list[dict[str, Any]]:
    """Learning rate schedule of a recipe, as configs of mmengine.

    Linear warm-up from 5 % of the rate over `warmup` iterations, then x0.1 at each point of the
    recipe's `steps` (fractions of `iters`).
    """
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
    """Learning rate schedule of a recipe, as configs of mmengine.

    Linear warm-up from 5 % of the rate over `warmup` iterations, then (1 - t)^`poly_power` down to
    1 % of the rate; t runs from 0 to 1.
    """
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
    """Replaces SyncBN by BN in place and returns cfg.

    In a run of several processes, `transfer.parallel` converts BN back to SyncBN once the model is
    built.
    """
    if isinstance(cfg, dict):
        if cfg.get("type") == "SyncBN":
            cfg["type"] = "BN"
        for value in cfg.values():
            without_sync_bn(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_sync_bn(value)
    return cfg


# ---- parts of runs ----


def prefer_channels_last(model: Any) -> None:
    """Sets the memory format channels-last; these networks are then 1.2 times as fast on a CPU."""
    import torch

    model.to(memory_format=torch.channels_last)


class reading_images:
    """Context manager: converts exceptions for images that cannot be decoded to KdepErrors.

    Args:
        subject: what reads the images, for the error: "task pocket_seg".
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, KdepError):
            return
        text = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        if isinstance(error, OSError) and error.errno in _OTHER_FAULTS:
            return
        if isinstance(error, OSError) or "image" in text.lower() or "imdecode" in text:
            raise KdepError(
                f"{self.subject} cannot read an image ({text[:200]})",
                fix="replace that image by one that can be decoded, and run again",
            ) from error


# Errors such as a full disk or too many open files, which are not faults of an image.
_OTHER_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def class_folders(root: Path) -> list[str]:
    """Sorted names of the class folders in `root`; raises KdepError if there are fewer than two."""
    if not root.is_dir():
        raise KdepError(
            f"the prepared data have no folder {root.parent.name}/{root.name}",
            expected="a folder with one folder per class",
            fix="add that split to `classify` in the data config, or choose another `folder` or "
            "`split` in the task's config",
        )
    names = class_names(root)
    if len(names) < 2:
        raise KdepError(
            f"the folder {shown(root.resolve())} has {len(names)} class folders",
            expected="two or more",
            fix="add a folder for each class there, or correct its path in the data config",
        )
    return names
