"""Base classes of the transfer tasks.

A task's `build_cfg` returns an ordinary mmengine Config, which the tools of mmpretrain, mmdet or
mmseg can run if it is written to a file. `run` trains the model, checks that the pre-trained
weights were loaded, scores the task's split exactly once and returns the outputs of stage
`transfer`.
"""

from __future__ import annotations

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdep_bench.data import normalisation
from kdep_bench.errors import KdepError
from kdep_bench.transfer.counts import SplitCount, compare
from kdep_bench.transfer.mm_config import plain, prefer_channels_last, reading_images
from kdep_bench.transfer.recipes import check_keys, check_recipe

if TYPE_CHECKING:
    from kdep_bench.transfer.method import TransferMethodConfig

MEAN, STD = list(normalisation.MEAN), list(normalisation.STD)  # lists can be written into configs
CURVE_POINTS = 100  # maximum number of points of a loss curve

ProgressFn = Callable[..., None]


class Task(ABC):
    """One downstream task.

    Args:
        name, version: identify the task.
        family: task family: 'classification', 'detection' or 'segmentation'.
        split: the split that is scored.
        metric: the metric that is the task's score.
        direction: 'max' if higher values are better, otherwise 'min'.
        chance: expected score of predictions that do not depend on the image.
        recipe: all settings of the training; the same for all methods.

    Attributes:
        keeps_model: whether the trained model is saved (`transfer.method.MODEL`), as the teacher of
            transfer methods and for ONNX files. A task with one model per fold ignores it.

    Raises:
        KdepError: the recipe has unknown, missing or invalid keys.
    """

    scope: ClassVar[str]  # 'mmpretrain', 'mmdet' or 'mmseg'
    measures: ClassVar[frozenset[str]]  # names of the metrics; `metric` must be one of them
    families: ClassVar[frozenset[str]]  # allowed values of `family`
    recipe_keys: ClassVar[frozenset[str]] = frozenset()  # all keys of a recipe; each is required
    runs_in_rank_0_only: ClassVar[bool] = True  # whether other processes than rank 0 end at once
    supports_transfer_methods: ClassVar[bool] = False  # see transfer/method.py
    keeps_model: bool = False

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
        """Raises KdepError for a recipe with unknown, missing or invalid keys."""
        normalisation.check_recipe({"name": self.name, "recipe": self.recipe})
        check_keys(self.name, self.recipe, self.recipe_keys)
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
        """Builds the mmengine Config of the training and the test.

        Args:
            data_root: folder of the prepared data.
            student: student config.
            checkpoint: the exported backbone.
            seed: random seed of the training.
            work_dir: folder for logs.
        """

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
        """Trains and scores; returns the outputs of stage `transfer`.

        Args:
            data_root, student, checkpoint, seed: see `build_cfg`.
            out: folder of the stage.
            progress: called with (done, total, note).
        """

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
        samples: Mapping[str, Any] | None = None,
        chance: float | None = None,
    ) -> dict[str, Any]:
        """The stage's outputs; see `kdep_bench.transfer.stage.run`.

        Raises:
            KdepError: the task's metric is missing or not finite.
        """
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
            **({} if samples is None else {"samples": dict(samples)}),
        }


class MMTask(Task):
    """A task that an mmengine Runner trains and tests, in one process or (torchrun) in several.

    The number of processes changes the training only by rounding and by the random draws of
    augmentations (see `kdep_bench.transfer.parallel`). Rank 0 writes the files, and every rank
    returns the outputs. If there is a metric `constant_<metric>`, its value replaces `chance`.

    Attributes:
        transfer_method: the transfer method, set by the stage; None if there is none.
    """

    runs_in_rank_0_only: ClassVar[bool] = False
    supports_transfer_methods: ClassVar[bool] = True
    transfer_method: TransferMethodConfig | None = None

    @abstractmethod
    def check_data(self, data_root: Path) -> list[SplitCount]:
        """Checks the data, and counts the images of the training and the test split.

        Raises:
            KdepError: a fault that would change training or score without an error.
        """

    @abstractmethod
    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        """Converts the Runner's test metrics to fractions.

        Args:
            raw: the result of `runner.test()`.
            cfg: the mmengine Config.
            count: the DetectionCount of the test; zeros for tasks other than detection.

        Returns:
            metrics by name, the task's metric by class, notes.
        """

    def draw(self, runner: Any, out: Path) -> list[str]:
        """Saves images of some predictions in the folder `out`; returns their file names."""
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
        from kdep_bench.openmmlab import ProgressHook
        from kdep_bench.transfer import method
        from kdep_bench.transfer.gate import read_tensors
        from kdep_bench.transfer.samples import save_samples

        openmmlab.setup(self.scope)
        read_tensors(checkpoint)  # raises an error for a damaged file before the training
        counted = self.check_data(data_root)
        work_dir = out / "mm"
        _join_ranks(work_dir)
        cfg = self.build_cfg(data_root, student, checkpoint, seed, work_dir)
        if self.transfer_method is not None:
            self.transfer_method.change(cfg, self, data_root, seed, work_dir)
        import_modules_from_strings(**cfg.custom_imports)  # Config.fromfile would do this
        curve = ProgressHook(progress, limit=CURVE_POINTS)
        batch = int(cfg.train_dataloader.batch_size)  # for all processes together
        runner, method_hooks = self._runner(cfg, seed, curve)
        with reading_images(f"task {self.name}"):
            start = time.perf_counter()
            count_notes = self._check_image_counts(runner, counted, batch)
            runner.train()
            train_s = time.perf_counter() - start
            method_outputs = method.strip_and_save(
                runner, method_hooks, out if self.keeps_model else None
            )
            gate = self._gate(runner)
            start = time.perf_counter()
            raw, count, test_outputs = self._test(runner, work_dir)
            eval_s = time.perf_counter() - start
        metrics, per_class, notes = self.read_metrics(raw, cfg, count)
        samples, sample_notes = None, []
        if openmmlab.is_main_rank():
            samples, sample_notes = save_samples(out, test_outputs.samples(data_root), metrics)
        pictures = self.draw(runner, out) if seed == 0 and openmmlab.is_main_rank() else []
        progress(1, 1, f"{self.metric} {metrics.get(self.metric, float('nan')):.4f}")
        openmmlab.leave_distributed()
        outputs = self.outputs(
            metrics=metrics,
            per_class=per_class,
            gate=gate,
            curves={"loss": curve.points, **method_outputs.pop("curves", {})},
            train_s=train_s,
            eval_s=eval_s,
            images_per_s=runner.iter * batch / max(train_s, 1e-9),
            notes=[*notes, *count_notes, *sample_notes],
            pictures=pictures,
            samples=samples,
            chance=metrics.get(f"constant_{self.metric}"),
        )
        return {**outputs, **method_outputs}

    def _runner(self, cfg: Any, seed: int, curve: Any) -> tuple[Any, list[Any]]:
        """Builds the Runner; returns it and the hooks of the transfer method."""
        from kdep_bench import openmmlab
        from kdep_bench.openmmlab import build_runner
        from kdep_bench.transfer import method, parallel

        hooks = parallel.split_over_ranks(cfg, seed, self.name)
        runner = build_runner(cfg, hooks=[*hooks, curve])
        method_hooks = method.method_hooks(runner)
        for hook in method_hooks:
            runner.register_hook(hook)
        # Not done with DDP, whose gradient buffers have another memory format: within four steps,
        # the losses of two ranks then differed from those of one process by more than 0.1 %.
        if openmmlab.planned_ranks() == 1:
            prefer_channels_last(runner.model)
        return runner, method_hooks

    def _check_image_counts(self, runner: Any, counted: Any, batch: int) -> list[str]:
        """Compares the numbers of loaded images with `counted`; returns notes on omitted images.

        Raises:
            KdepError: the numbers differ, or there are fewer training images than a batch has.
        """
        train_set: Any = runner.train_dataloader.dataset
        test_set: Any = runner.test_dataloader.dataset
        loaded = {"train": len(train_set), "test": len(test_set)}
        notes = compare(self.name, counted, loaded)
        if not len(runner.train_dataloader):
            raise KdepError(
                f"task {self.name} has {loaded['train']} training images, fewer than one batch",
                expected=f"at least {batch} images",
                fix="lower `batch` in the task's recipe, or add images",
            )
        return notes

    def _gate(self, runner: Any) -> Any:
        """The result of the check of the loaded weights; raises KdepError if it did not run."""
        from kdep_bench.transfer.gate import LoadGate

        gates = [h for h in runner.hooks if isinstance(h, LoadGate)]
        if len(gates) != 1 or gates[0].gate is None:
            raise KdepError(
                f"the check of the loaded weights (KdepLoadGate) did not run in task {self.name}",
                expected="one KdepLoadGate in custom_hooks, run before the first step",
                fix="add dict(type='KdepLoadGate', ...) to custom_hooks in the task's class",
            )
        return gates[0].gate

    def _test(self, runner: Any, work_dir: Path) -> tuple[Any, Any, Any]:
        """Runs the test; returns the Runner's metrics, its DetectionCount and its TestOutputs."""
        from kdep_bench.openmmlab import DetectionCount
        from kdep_bench.transfer import parallel
        from kdep_bench.transfer.samples import TestOutputs

        count = DetectionCount()
        if self.family == "detection":
            runner.register_hook(count)
        parallel.set_collect_folder(runner, work_dir)
        outputs = TestOutputs(runner)
        return runner.test(), count, outputs


def _join_ranks(work_dir: Path) -> None:
    """Joins the process group; rank 0 first removes the work dir of an interrupted attempt."""
    from kdep_bench import openmmlab

    openmmlab.join_distributed()
    if openmmlab.is_main_rank():
        shutil.rmtree(work_dir, ignore_errors=True)
    openmmlab.wait_for_ranks()
