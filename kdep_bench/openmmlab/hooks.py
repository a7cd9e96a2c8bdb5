"""mmengine hooks that several stages use. This module imports mmengine and torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook

from kdep_bench.errors import KdepError
from kdep_bench.openmmlab import loading


class Progress(Protocol):
    """The callback through which a stage reports its progress."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


def _number(value: Any) -> float:
    return value.item() if hasattr(value, "item") else float(value)


class StopOnBadLoss(Hook):
    """Raises KdepError after an iteration in which a loss is NaN or infinite.

    This adds no GPU synchronisation, because mmengine reads every loss in each iteration anyway.
    The optimiser step of the iteration was already taken, but the model is not saved, because this
    hook runs before the one that saves checkpoints.
    """

    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        terms = {k: _number(v) for k, v in (outputs or {}).items() if "loss" in k}
        bad = [f"{k} = {v}" for k, v in terms.items() if not math.isfinite(v)]
        if bad:
            finite = ", ".join(f"{k} = {v:.4g}" for k, v in terms.items() if math.isfinite(v))
            raise KdepError(
                f"the loss became NaN or infinite in iteration {runner.iter + 1} of "
                f"{runner.max_iters}: {', '.join(bad)}"
                + (f" (still finite: {finite})" if finite else ""),
                fix="lower the learning rate, add warm-up or gradient clipping, or check the data",
            )


class LossCurve:
    """A loss curve with at most `limit` points [step, mean loss since the previous point].

    When the curve is full, pairs of neighbouring points are averaged; each point then covers twice
    as many steps.
    """

    def __init__(self, limit: int = 200) -> None:
        if limit < 2 or limit % 2:
            raise ValueError("limit must be even and at least 2")
        self.limit, self.stride = limit, 1
        self.points: list[list[float]] = []
        self._sum, self._count = 0.0, 0

    def add(self, step: int, value: float) -> None:
        """Adds the loss of a step."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self.stride:
            return
        if len(self.points) == self.limit:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [[b[0], (a[1] + b[1]) / 2] for a, b in pairs]
            self.stride *= 2
            if self._count < self.stride:
                return
        self.points.append([step, self._sum / self._count])
        self._sum, self._count = 0.0, 0

    def state(self) -> dict[str, Any]:
        """The curve as plain values, for `restore`."""
        return {
            "points": [list(p) for p in self.points],
            "stride": self.stride,
            "sum": self._sum,
            "count": self._count,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the curve from a result of `state`."""
        self.points = [list(p) for p in state["points"]]
        self.stride, self._sum, self._count = state["stride"], state["sum"], state["count"]


class ProgressHook(Hook):
    """Calls `progress(done, total, note)` in each training iteration and records the loss curve.

    Curve and training time are stored in checkpoints, so they cover all steps of a run that was
    interrupted and resumed.

    Args:
        progress: the stage's callback.
        limit: maximum number of points of the curve.
    """

    priority = "BELOW_NORMAL"
    _KEY = "kdep_loss_curve"

    def __init__(self, progress: Progress | Callable[..., None], limit: int = 200) -> None:
        self._progress = progress
        self._curve = LossCurve(limit)
        self._seconds_before_resume = 0.0  # seconds of training before this process resumed the run
        self._start = time.perf_counter()

    @property
    def points(self) -> list[list[float]]:
        """The loss curve as plain lists [[step, loss], ...]."""
        return [list(p) for p in self._curve.points]

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        step = runner.iter + 1
        loss = (outputs or {}).get("loss")
        note = ""
        if loss is not None:
            value = _number(loss)
            self._curve.add(step, value)
            note = f"loss {value:.3f}"
        self._progress(step, runner.max_iters, note)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, including those before a resumed checkpoint."""
        return self._seconds_before_resume + time.perf_counter() - self._start

    def before_train(self, runner: Any) -> None:
        self._start = time.perf_counter()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self._KEY] = {**self._curve.state(), "seconds": self.seconds}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self._KEY in checkpoint:
            self._curve.restore(checkpoint[self._KEY])
            self._seconds_before_resume = checkpoint[self._KEY]["seconds"]


class SealHook(Hook):
    """Writes a file with the SHA-256 (the seal) next to each checkpoint of the run."""

    priority = "LOWEST"  # after mmengine's CheckpointHook, which is VERY_LOW

    def __init__(self) -> None:
        self._sealed: str | None = None  # path of the latest checkpoint that has a seal

    def _seal(self, runner: Any) -> None:
        if runner.rank != 0 or "last_ckpt" not in runner.message_hub.runtime_info:
            return
        last = runner.message_hub.get_info("last_ckpt")
        if last != self._sealed and Path(last).is_file():
            loading.seal(Path(last))
            loading.drop_orphan_seals(Path(last).parent)
            self._sealed = last

    def before_train(self, runner: Any) -> None:
        if "last_ckpt" in runner.message_hub.runtime_info:  # the checkpoint that was resumed from
            self._sealed = runner.message_hub.get_info("last_ckpt")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._seal(runner)

    def after_train_epoch(self, runner: Any) -> None:
        self._seal(runner)


class DetectionCount(Hook):
    """Counts images and detections of the last validation or test run, for `read_metrics`.

    The counts are summed over all ranks. Images that are repeated to give all ranks the same number
    count twice.
    """

    priority = "LOW"

    def __init__(self) -> None:
        self.images = self.detections = 0

    def before_val_epoch(self, runner: Any) -> None:
        self.images = self.detections = 0

    def before_test_epoch(self, runner: Any) -> None:
        self.images = self.detections = 0

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._sum_over_ranks()

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._sum_over_ranks()

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._count(outputs)

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._count(outputs)

    def _count(self, outputs: Sequence[Any] | None) -> None:
        for sample in outputs or ():
            self.images += 1
            self.detections += len(sample.pred_instances)

    def _sum_over_ranks(self) -> None:
        counts = torch.tensor([self.images, self.detections])
        all_reduce(counts)
        self.images, self.detections = counts.tolist()
