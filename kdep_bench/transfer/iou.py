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
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics: dict[str, Any] = dict(super().compute_metrics(results))
        areas = [sum(part) for part in zip(*results, strict=True)]
        exact = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        assert self.dataset_meta is not None
        for name, value in zip(self.dataset_meta["classes"], exact["IoU"], strict=True):
            metrics[f"IoU.{name}"] = float(value) * 100
        metrics["mIoU"] = float(np.nanmean(exact["IoU"])) * 100
        metrics["mAcc"] = float(np.nanmean(exact["Acc"])) * 100
        metrics["aAcc"] = float(exact["aAcc"]) * 100
        return metrics
