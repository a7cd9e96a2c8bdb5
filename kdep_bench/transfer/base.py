"""Base classes of the transfer tasks: the mm Config around a backbone, one training, one test.

A task's `build_cfg` returns an ordinary mm Config: dumped to a file it can be run by the stock
mmpretrain, mmdet or mmseg runner. `run` builds it, trains, checks that the pre-trained weights were
loaded, scores the test split exactly once and returns the outputs of the transfer stage.
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
from kdep_bench.transfer.recipes import check_recipe

if TYPE_CHECKING:
    from kdep_bench.transfer.method import TransferMethodConfig

MEAN, STD = list(normalisation.MEAN), list(normalisation.STD)  # lists: mm configs dump them
CURVE_POINTS = 100

ProgressFn = Callable[..., None]


class Task(ABC):
    """One downstream task of one family.

    Args:
        name, family, version: identify the task.
        split: the split that is scored.
        metric: the key of the metrics that is the task's value.
        direction: 'max' if higher values are better, otherwise 'min'.
        chance: value of a guess that does not look at the image.
        recipe: every number of the training recipe; the same for all methods.
    """

    scope: ClassVar[str]
    measures: ClassVar[frozenset[str]]  # metric keys; a config's `metric` must be one
    families: ClassVar[frozenset[str]]  # allowed values of a config's `family`
    recipe_keys: ClassVar[frozenset[str]] = frozenset()
    alone: ClassVar[bool] = True  # runs in rank 0 only, also if several processes were started
    supports_transfer_methods: ClassVar[bool] = False

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
        samples: Mapping[str, Any] | None = None,
        chance: float | None = None,
    ) -> dict[str, Any]:
        """The stage's outputs; KdepError if the task's value is missing or not finite."""
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
    """A task trained and tested by the mm Runner, in one process or, under torchrun, in several.

    The number of processes does not change the training (see `parallel`); rank 0 writes the files,
    and every rank returns the outputs. If the task measures a metric `constant_<metric>`, its value
    replaces the config's `chance`.

    Attributes:
        transfer_method: the transfer method of the training, set by the stage; None without one.
        keeps_model: whether the trained model is saved (`transfer.method.MODEL`), as the teacher of
            transfer methods.
    """

    alone: ClassVar[bool] = False
    supports_transfer_methods: ClassVar[bool] = True
    transfer_method: TransferMethodConfig | None = None
    keeps_model: bool = False

    @abstractmethod
    def check_data(self, data_root: Path) -> list[SplitCount]:
        """Counts the images of the training and the test split in their files.

        Raises:
            KdepError: data that would be trained on or scored wrongly without any error.
        """

    @abstractmethod
    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        """The Runner's test metrics as fractions: (metrics, per class, notes).

        `count` is the DetectionCount of the pass (zeros outside detection).
        """

    def draw(self, runner: Any, out: Path) -> list[str]:
        """Draws sample predictions as images into `out`; returns their relative file names."""
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
        read_tensors(checkpoint)  # reports a damaged file before any work
        counted = self.check_data(data_root)
        work_dir = out / "mm"
        _join_ranks(work_dir)
        cfg = self.build_cfg(data_root, student, checkpoint, seed, work_dir)
        if self.transfer_method is not None:
            self.transfer_method.change(cfg, self, data_root, seed, work_dir)
        import_modules_from_strings(**cfg.custom_imports)  # as Config.fromfile of a dump does
        curve = ProgressHook(progress, limit=CURVE_POINTS)
        batch = int(cfg.train_dataloader.batch_size)  # of all processes together
        runner, method_hooks = self._runner(cfg, seed, curve)
        with reading_images(self.name):
            start = time.perf_counter()
            left_out = self._check_image_counts(runner, counted, batch)
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
            notes=[*notes, *left_out, *sample_notes],
            pictures=pictures,
            samples=samples,
            chance=metrics.get(f"constant_{self.metric}"),
        )
        return {**outputs, **method_outputs}

    def _runner(self, cfg: Any, seed: int, curve: Any) -> tuple[Any, list[Any]]:
        """(the Runner of a config, the hooks of a transfer method in it)."""
        from kdep_bench import openmmlab
        from kdep_bench.openmmlab import build_runner
        from kdep_bench.transfer import method, parallel

        hooks = parallel.split_over_ranks(cfg, seed, self.name)
        runner = build_runner(cfg, hooks=[*hooks, curve])
        method_hooks = method.hooks_of(runner)
        for hook in method_hooks:
            runner.register_hook(hook)
        # channels_last only without DDP: DDP's gradient buffers already have a memory format, and
        # losses of two ranks then differed from those of one process by more than 0.1 % within
        # four steps.
        if openmmlab.planned_ranks() == 1:
            prefer_channels_last(runner.model)
        return runner, method_hooks

    def _check_image_counts(self, runner: Any, counted: Any, batch: int) -> list[str]:
        """Notes on images that were left out; KdepError where less than a batch is left."""
        sets: Any = runner.train_dataloader.dataset, runner.test_dataloader.dataset
        loaded = {"train": len(sets[0]), "test": len(sets[1])}
        left_out = compare(self.name, counted, loaded)
        if not len(runner.train_dataloader):
            raise KdepError(
                f"task {self.name} has {loaded['train']} training images, fewer than one batch",
                expected=f"at least {batch} images",
                fix="lower `batch` in the task's recipe, or add images",
            )
        return left_out

    def _gate(self, runner: Any) -> Any:
        """What the check of the loaded weights measured; KdepError where it did not run."""
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
        """(the Runner's metrics, its DetectionCount, its outputs per sample)."""
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
    """Joins the processes of a run; rank 0 removes the work dir of an interrupted attempt."""
    from kdep_bench import openmmlab

    openmmlab.join_distributed()
    if openmmlab.is_main_rank():
        shutil.rmtree(work_dir, ignore_errors=True)
    openmmlab.wait_for_ranks()
