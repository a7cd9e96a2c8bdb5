"""IoUMetric that also returns each class and does not round."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module(name="KdepIoUMetric")
class ClasswiseIoU(IoUMetric):
    """mmseg's IoUMetric: the same areas and formulas, per class and unrounded as well.

    Adds `IoU.<class>` in percent (NaN where a class is in neither truth nor prediction) and
    replaces mIoU, mAcc and aAcc, which the parent rounds to two decimals, by the exact figures.
    `constant_mIoU` is what naming the commonest class everywhere would score: that class's share of
    the labelled pixels, over the number of classes present.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics: dict[str, Any] = dict(super().compute_metrics(results))
        areas: list[Any] = [sum(part) for part in zip(*results, strict=True)]
        inter, union, found, truth = areas
        exact = self.total_area_to_metrics(
            inter, union, found, truth, self.metrics, self.nan_to_num, self.beta
        )
        assert self.dataset_meta is not None
        for name, value in zip(self.dataset_meta["classes"], exact["IoU"], strict=True):
            metrics[f"IoU.{name}"] = float(value) * 100
        metrics["mIoU"] = float(np.nanmean(exact["IoU"])) * 100
        metrics["mAcc"] = float(np.nanmean(exact["Acc"])) * 100
        metrics["aAcc"] = float(exact["aAcc"]) * 100
        share = float(truth.max() / truth.sum())
        metrics["constant_mIoU"] = share / int((truth > 0).sum()) * 100
        return metrics
