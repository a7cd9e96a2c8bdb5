"""mmseg's IoUMetric with values per class and without rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module(name="KdepIoUMetric")
class ClasswiseIoU(IoUMetric):
    """mmseg's IoUMetric with values per class and without rounding; all values are in percent.

    `IoU.<class>` is added; it is NaN for a class that is neither in the truth nor predicted. mIoU,
    mAcc and aAcc, which mmseg rounds to two decimals, are replaced by the exact values.
    `constant_mIoU` is added, the mIoU of predicting the most frequent class everywhere: the
    fraction of labelled pixels with that class, divided by the number of classes in the truth.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics: dict[str, Any] = dict(super().compute_metrics(results))
        areas: list[Any] = [sum(part) for part in zip(*results, strict=True)]
        intersection, union, prediction, truth = areas  # pixels per class
        exact = self.total_area_to_metrics(
            intersection, union, prediction, truth, self.metrics, self.nan_to_num, self.beta
        )
        assert self.dataset_meta is not None
        for name, value in zip(self.dataset_meta["classes"], exact["IoU"], strict=True):
            metrics[f"IoU.{name}"] = float(value) * 100
        metrics["mIoU"] = float(np.nanmean(exact["IoU"])) * 100
        metrics["mAcc"] = float(np.nanmean(exact["Acc"])) * 100
        metrics["aAcc"] = float(exact["aAcc"]) * 100
        most_frequent = float(truth.max() / truth.sum())
        metrics["constant_mIoU"] = most_frequent / int((truth > 0).sum()) * 100
        return metrics
