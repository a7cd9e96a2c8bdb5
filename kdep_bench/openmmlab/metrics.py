"""Reads metrics from the result of an mmengine evaluator.

A missing metric is an error, except when nothing was detected.
This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kdep_bench.errors import KdepError


class CountsDetections(Protocol):
    """What `read_metrics` reads of the hook `DetectionCount` after a test run."""

    images: int
    detections: int


def read_metrics(
    metrics: Mapping[str, Any], names: Sequence[str], detections: CountsDetections | None = None
) -> tuple[dict[str, float], list[str]]:
    """Reads the metrics `names` from the result of `runner.test()` or `runner.val()`.

    CocoMetric returns no metrics if there are no detections at all. With `detections`, missing
    metrics then count 0, and a note states this.

    Args:
        metrics: the result, with keys such as 'coco/bbox_mAP_50'.
        names: the keys to read, with their prefix.
        detections: for a COCO evaluator, the DetectionCount of the same test run.

    Returns:
        finite values by key, in the unit of the evaluator; notes.

    Raises:
        KdepError: a metric is missing, not a number, NaN, infinite, or COCO's -1.
    """
    absent = [key for key in names if key not in metrics]
    if absent and detections is not None and detections.images and not detections.detections:
        names_text = ", ".join(absent)
        note = f"there are no detections in {detections.images} images, so {names_text} counts 0"
        return {key: _number(metrics.get(key, 0.0), key) for key in names}, [note]
    if absent:
        raise KdepError(
            f"the evaluator returned no {', '.join(absent)}, only {sorted(metrics) or 'nothing'}",
            fix="set `metric` in the task's config to one of the metrics that it returned",
        )
    return {key: _number(metrics[key], key) for key in names}, []


def _number(value: Any, key: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise KdepError(
            f"the metric {key} is {value!r}",
            expected="a finite number",
            fix="look for the cause in the stage's log",
        )
    if number == -1.0:  # COCOeval's value for a group without ground truth
        raise KdepError(
            f"the metric {key} is -1: the split has no annotated objects that this metric scores "
            "(for example, no small ones for mAP_s)",
            fix="remove the metric from the task, or check its annotation file",
        )
    return number
