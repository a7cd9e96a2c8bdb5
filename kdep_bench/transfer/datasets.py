"""Replacements for a data set class of mmpretrain and a metric of mmdet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation.functional.mean_ap import (
    average_precision,
    get_cls_results,
    tpfp_default,
)
from mmdet.evaluation.metrics import VOCMetric
from mmdet.registry import METRICS
from mmpretrain.datasets import CIFAR100
from mmpretrain.registry import DATASETS

from kdep_bench.data.official.cifar100 import read_split

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]  # IoU: 0.50, 0.55, ..., 0.95


@DATASETS.register_module(name="KdepCIFAR100")
class SafeCIFAR100(CIFAR100):
    """mmpretrain's CIFAR100 with a safe unpickler.

    mmpretrain's class loads only files with the official MD5. This class does not compare the MD5,
    so it can also read generated tiny copies, and it never downloads. Its images are in BGR order,
    which the data preprocessor expects; mmpretrain's class returns RGB.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        images, labels, names = read_split(Path(self.data_prefix["root"]), self.split)
        self._metainfo.setdefault("classes", names)
        bgr = np.ascontiguousarray(images[..., ::-1])
        return [{"img": i, "gt_label": int(k)} for i, k in zip(bgr, labels, strict=True)]


@METRICS.register_module(name="KdepVOCMetric")
class ExactVOC(VOCMetric):
    """VOC AP over ten IoU thresholds, also per class, not rounded.

    `AP` is the mean of the 11-point mAP over the IoU thresholds 0.50, 0.55, ..., 0.95, as in
    Detectron2's PascalVOCDetectionEvaluator for VOC2007.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        truth, detections = zip(*results, strict=True)
        assert self.dataset_meta is not None
        classes = self.dataset_meta["classes"]
        ap = np.array(
            [[_ap(detections, truth, i, t) for i in range(len(classes))] for t in THRESHOLDS]
        )
        # A class without an object in the split has no AP (NaN), and is not part of the mean.
        out = {"AP": np.nanmean(ap), "AP50": np.nanmean(ap[0]), "AP75": np.nanmean(ap[5])}
        per_class = {f"AP.{c}": v for c, v in zip(classes, ap.mean(0), strict=True)}
        return {k: float(v) for k, v in {**out, **per_class}.items()}


def _ap(detections: Any, truth: Any, class_index: int, iou: float) -> float:
    """The 11-point AP of one class; NaN if the split has no object of the class that is scored.

    Equal to mmdet's `eval_map`, and computed with mmdet's functions, but in this process:
    `eval_map` forks four processes at every call, and a fork of a process with a GPU and threads
    may hang.
    """
    boxes, objects, ignored = get_cls_results(detections, truth, class_index)
    count = sum(len(b) for b in objects)
    if count == 0:
        return float("nan")
    per_image = [
        tpfp_default(*x, iou, None, True) for x in zip(boxes, objects, ignored, strict=True)
    ]
    order = np.argsort(-np.vstack(boxes)[:, -1], kind="stable")
    tp_flags, fp_flags = zip(*per_image, strict=True)
    true_positives = np.cumsum(np.hstack(tp_flags)[0, order])
    false_positives = np.cumsum(np.hstack(fp_flags)[0, order])
    eps = np.finfo(np.float32).eps
    precision = true_positives / np.maximum(true_positives + false_positives, eps)
    return float(average_precision(true_positives / count, precision, "11points"))
