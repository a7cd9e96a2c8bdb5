"""What every transfer task shares: the mm Config around a backbone, one training, one test.

A task's `build_cfg` returns an ordinary mm Config: dumped to a file it can be run by the stock
mmpretrain, mmdet or mmseg runner. `run` builds it, trains, proves the load gate, scores the test
split exactly once and returns the outputs of the transfer stage.
"""

from __future__ import annotations

import copy
import errno
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data import normalisation
from kdep_bench.data.listing import class_names, shown
from kdep_bench.errors import KdepError
from kdep_bench.transfer.counts import SplitCount, compare
from kdep_bench.transfer.recipes import check_recipe

MEAN, STD = list(normalisation.MEAN), list(normalisation.STD)  # lists: mm configs dump them
CURVE_POINTS = 100

ProgressFn = Callable[..., None]


class Task(ABC):
    """One downstream task of one family.

    Args:
        name, family, version, split, metric, direction, chance: what is measured, on which split,
            which key of the metrics is the value, 'max' or 'min', and what guessing scores.
        recipe: every number of the training recipe; the same for all arms.
    """

    scope: ClassVar[str]
    measures: ClassVar[frozenset[str]]  # keys of its metrics, which a config's `metric` is one of
    families: ClassVar[frozenset[str]]  # what a config may call its `family`
    recipe_keys: ClassVar[frozenset[str]] = frozenset()
    alone: ClassVar[bool] = True  # runs in rank 0 alone where several processes were started

    def __init__(
        self,
        *,
        name: str,
        family: str,
        metric: str,
        recipe: Mapping[str, Any],
        version: int = 1,
        split: str = "test",
        direction: str = "max",
        chance: float | None = 0.0,
    ) -> None:
        self.name, self.family, self.version, self.split = name, family, version, split
        self.metric, self.direction, self.chance = metric, direction, chance
        self.recipe = plain(recipe)
        self._check_recipe()

    def _check_recipe(self) -> None:
        normalisation.check_recipe({"name": self.name, "recipe": self.recipe})
        got = set(self.recipe)
        if surplus := got - self.recipe_keys:
            raise KdepError(
                f"the recipe of task {self.name} has unknown keys: {', '.join(sorted(surplus))}",
                expected="only " + ", ".join(sorted(self.recipe_keys)),
                fix="remove or rename them in the task config",
            )
        if lacking := self.recipe_keys - got:
            raise KdepError(
                f"the recipe of task {self.name} lacks the keys {', '.join(sorted(lacking))}",
                fix="add them to the task config",
            )
        check_recipe(self.name, self.recipe)

    @abstractmethod
    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        """The mm Config (mmengine.Config): model with the exported backbone, data, schedule."""

    @abstractmethod
    def run(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        out: Path,
        progress: ProgressFn,
    ) -> dict[str, Any]:
        """Trains and scores; returns the outputs of the transfer stage (strict JSON)."""

    def outputs(
        self,
        *,
        metrics: Mapping[str, float],
        per_class: Mapping[str, float],
        gate: Mapping[str, Any],
        curves: Mapping[str, Any],
        train_s: float,
        eval_s: float,
        images_per_s: float,
        notes: Sequence[str] = (),
        pictures: Sequence[str] = (),
        chance: float | None = None,
    ) -> dict[str, Any]:
        """The stage's outputs; a value that is not a finite number is a fault, never stored."""
        value = metrics.get(self.metric)
        chance = self.chance if chance is None else chance
        if value is None or not math.isfinite(value):
            raise KdepError(
                f"the result of task {self.name} is {self.metric} = {value}",
                expected=f"a finite number (measured: {', '.join(sorted(metrics)) or 'nothing'})",
                fix="check the loss curve in the stage's log",
            )
        notes = list(notes)
        undefined = sorted(k for k, v in per_class.items() if not math.isfinite(v))
        if undefined:
            notes.append(f"no value for classes absent from the split: {', '.join(undefined)}")
        return {
            "value": float(value),
            "metric": self.metric,
            "metrics": {k: float(v) for k, v in metrics.items() if math.isfinite(v)},
            "per_class": {k: float(v) for k, v in per_class.items() if math.isfinite(v)},
            "gate": dict(gate),
            "chance": None if chance is None else float(chance),
            "curves": dict(curves),
            "train_s": round(train_s, 3),
            "eval_s": round(eval_s, 3),
            "images_per_s": round(images_per_s, 2),
            "pictures": list(pictures),
            "notes": notes,
        }


class MMTask(Task):
    """A task trained and tested by the mm Runner, in one process or, under torchrun, in several.

    Several train what one would (`parallel`); rank 0 writes, and every rank returns the outputs.

    A metric `constant_<metric>`, where the task measures one, replaces the config's `chance`.
    """

    alone: ClassVar[bool] = False

    @abstractmethod
    def check_data(self, data_root: Path) -> list[SplitCount]:
        """Counts the images of the training and the test split in their files.

        Raises:
            KdepError: data that would train or score wrongly without a word.
        """

    @abstractmethod
    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        """The Runner's test metrics as fractions: (metrics, per class, notes).

        `count` is the DetectionCount of the pass (zeros outside detection).
        """

    def draw(self, runner: Any, out: Path) -> list[str]:
        """Sample prediction pictures for a person; relative file names."""
        return []

    def run(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        out: Path,
        progress: ProgressFn,
    ) -> dict[str, Any]:
        from mmengine.utils import import_modules_from_strings

        from kdep_bench import openmmlab
        from kdep_bench.openmmlab import DetectionCount, ProgressHook, build_runner
        from kdep_bench.transfer import parallel
        from kdep_bench.transfer.gate import LoadGate, read_tensors

        openmmlab.setup(self.scope)
        read_tensors(checkpoint)  # a damaged file is told before any work
        counted = self.check_data(data_root)
        work_dir = out / "mm"
        openmmlab.join_distributed()
        if openmmlab.is_main_rank():
            shutil.rmtree(work_dir, ignore_errors=True)  # of an interrupted try
        openmmlab.wait_for_ranks()
        cfg = self.build_cfg(data_root, student, checkpoint, seed, work_dir)
        import_modules_from_strings(**cfg.custom_imports)  # as Config.fromfile of a dump does
        curve = ProgressHook(progress, limit=CURVE_POINTS)
        batch = int(cfg.train_dataloader.batch_size)  # of all processes together
        hooks = parallel.deal_out(cfg, seed, self.name)
        runner = build_runner(cfg, hooks=[*hooks, curve])
        # Not under DDP, which has laid out its gradients by now: losses of two ranks then left
        # those of one process by more than a thousandth within four steps.
        if openmmlab.planned_ranks() == 1:
            prefer_channels_last(runner.model)
        with reading_images(self.name):
            start = time.perf_counter()
            sets: Any = runner.train_dataloader.dataset, runner.test_dataloader.dataset
            loaded = {"train": len(sets[0]), "test": len(sets[1])}
            left_out = compare(self.name, counted, loaded)
            images: Any = runner.train_dataloader
            if not len(images):
                raise KdepError(
                    f"task {self.name} has {len(images.dataset)} training images, fewer than one "
                    "batch",
                    expected=f"at least {batch} images",
                    fix="lower `batch` in the task's recipe, or add images",
                )
            runner.train()
            train_s = time.perf_counter() - start
            gates = [h for h in runner.hooks if isinstance(h, LoadGate)]
            if len(gates) != 1 or gates[0].gate is None:
                raise KdepError(
                    "the check of the loaded weights (KdepLoadGate) did not run in task "
                    f"{self.name}",
                    expected="one KdepLoadGate in custom_hooks, run before the first step",
                )
            count = DetectionCount()
            if self.family == "detection":
                runner.register_hook(count)
            start = time.perf_counter()
            parallel.collect_in(runner, work_dir)
            raw = runner.test()
            eval_s = time.perf_counter() - start
        metrics, per_class, notes = self.read_metrics(raw, cfg, count)
        pictures = self.draw(runner, out) if seed == 0 and openmmlab.is_main_rank() else []
        progress(1, 1, f"{self.metric} {metrics.get(self.metric, float('nan')):.4f}")
        openmmlab.leave_distributed()
        return self.outputs(
            metrics=metrics,
            per_class=per_class,
            gate=gates[0].gate,
            curves={"loss": curve.points},
            train_s=train_s,
            eval_s=eval_s,
            images_per_s=runner.iter * batch / max(train_s, 1e-9),
            notes=[*notes, *left_out],
            pictures=pictures,
            chance=metrics.get(f"constant_{self.metric}"),
        )


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
    """The student's backbone config, told to load `checkpoint`; the same class in every task."""
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
            # transfer that was cut begins again.
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
    """Linear warm-up over `warmup` steps, then x0.1 at the shares `steps` of `iters`."""
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
