"""Reads the metrics of an mm evaluator; a missing metric is an error. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kdep_bench.errors import KdepError


class DetectionCounts(Protocol):
    """The two numbers that a `DetectionCount` hook holds after a test run."""

    images: int
    detections: int


def read_metrics(
    metrics: Mapping[str, Any], names: Sequence[str], detections: DetectionCounts | None = None
) -> tuple[dict[str, float], list[str]]:
    """The `names` entries of what `runner.test()` or `runner.val()` returned, and notes.

    Args:
        metrics: the evaluator's dict, with keys such as 'coco/bbox_mAP_50'.
        names: the keys to read, with their prefix.
        detections: for a COCO evaluator, the DetectionCount that watched the pass. CocoMetric logs
            no metric at all when nothing was detected: if images were counted but no detection,
            missing metrics are 0, and a note says so. Any other absence is a KdepError.

    Returns values keyed as in `names`, finite, in the evaluator's own unit.
    Raises KdepError when a metric is absent, not a number, NaN, infinite, or COCO's -1.
    """
    absent = [key for key in names if key not in metrics]
    if absent and detections is not None and detections.images and not detections.detections:
        note = f"nothing was detected in {detections.images} images: {', '.join(absent)} counts 0"
        return {key: _number(metrics.get(key, 0.0), key) for key in names}, [note]
    if absent:
        raise KdepError(
            f"the evaluator returned no {', '.join(absent)}, only {sorted(metrics) or 'nothing'}",
            fix="correct `metric` in the task's config: a key as listed above, with its prefix",
        )
    return {key: _number(metrics[key], key) for key in names}, []


def _number(value: Any, key: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise KdepError(
            f"the metric {key} is {value!r}", expected="a finite number", fix="read the stage's log"
        )
    if number == -1.0:  # COCOeval's value for a group without ground truth
        raise KdepError(
            f"the metric {key} is -1: the split has no annotated objects of that kind",
            fix="remove the metric from the task, or check its annotation file",
        )
    return number
