"""Scores of one training from its per-sample outputs.

They are scores of bootstrap samples of the test images, and of each image.

Not every metric is a mean over images: mIoU sums areas over all images, and AP ranks the detections
of all images. Therefore the score of a single image is another measure, with another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdep_bench.results.records.samples import Samples

Array = NDArray[np.float64]

FRACTION_RIGHT = "correct"
IMAGE_IOU = "mIoU of the image"
IMAGE_F1 = "best F1 of the image at IoU 0.5"
AP_TOLERANCE = 5e-4  # mmdet rounds AP to three digits


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of bootstrap samples of the test images, and of each image.

    Attributes:
        weighted: weights [R, N] -> [R], the metric if image n is counted `weights[r, n]` times; NaN
            without ground truth.
        per_image: [N] scores of single images; NaN if undefined.
        measure: name of the score of a single image.
        tolerance: largest difference between the recorded score and `weighted` for weights of 1.
    """

    weighted: Callable[[Array], Array]
    per_image: Array
    measure: str
    tolerance: float = 1e-6


def image_scores(samples: Samples, metric: str) -> ImageScores | None:
    """The scores; None for a metric that cannot be computed from these outputs."""
    if samples.scorer in ("accuracy", "probe") and metric == "top1":
        return _accuracy(samples)
    if samples.scorer == "iou" and metric == "mIoU":
        return _iou(samples)
    if samples.scorer == "coco":
        return _coco(samples, metric)
    return None


def _accuracy(samples: Samples) -> ImageScores:
    correct = samples.arrays["truth"] == samples.arrays["prediction"]
    # mmpretrain's Accuracy counts a prediction only if its score is above thrs = 0.
    if samples.scorer == "accuracy":
        correct &= samples.arrays["probability"] > 0

    def weighted(weights: Array) -> Array:
        return weights @ correct / weights.sum(1)

    return ImageScores(weighted, correct.astype(float), FRACTION_RIGHT)


def _iou(samples: Samples) -> ImageScores:
    areas = samples.arrays["areas"].astype(float)

    def weighted(weights: Array) -> Array:
        return mean_iou(weights @ areas[:, 0], weights @ areas[:, 1])

    return ImageScores(weighted, mean_iou(areas[:, 0], areas[:, 1]), IMAGE_IOU)


def mean_iou(intersection: Array, union: Array) -> Array:
    """[R] mean IoU over the classes with a union above 0, from areas [R, C]; NaN without one."""
    known = union > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(known, intersection / union, 0.0)
        return iou.sum(1) / known.sum(1)


def _coco(samples: Samples, metric: str) -> ImageScores | None:
    from kdep_bench.results.records import average_precision as ap

    if metric not in ap.METRICS:
        return None
    per_class = ap.matches(samples, metric)

    def weighted(weights: Array) -> Array:
        return ap.average_precision(per_class, metric, weights)

    return ImageScores(weighted, ap.best_f1(per_class), IMAGE_F1, AP_TOLERANCE + 1e-6)
