"""Data set classes for the mm registries where the stock one does not serve."""

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

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]


@DATASETS.register_module(name="KdepCIFAR100")
class SafeCIFAR100(CIFAR100):
    """mmpretrain's CIFAR100, read by an unpickler that builds arrays only.

    mmpretrain's class unpickles any file with the right MD5. This class needs no MD5, so that the
    generated copy of a rehearsal is read by the same code, and it never downloads. Its images are
    BGR, mm's order (mmpretrain's class gives RGB under to_rgb=False).
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        images, labels, names = read_split(Path(self.data_prefix["root"]), self.split)
        self._metainfo.setdefault("classes", names)
        bgr = np.ascontiguousarray(images[..., ::-1])
        return [{"img": i, "gt_label": int(k)} for i, k in zip(bgr, labels, strict=True)]


@METRICS.register_module(name="KdepVOCMetric")
class ExactVOC(VOCMetric):
    """VOC AP over ten thresholds with each class, unrounded.

    `AP` is the mean over IoU 0.50:0.05:0.95 of the 11-point mAP,
    as Detectron2's PascalVOCDetectionEvaluator reports for VOC2007.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        truth, found = zip(*results, strict=True)
        assert self.dataset_meta is not None
        classes = self.dataset_meta["classes"]
        ap = np.array([[_ap(found, truth, i, t) for i in range(len(classes))] for t in THRESHOLDS])
        # A class without an object in the split has no AP and is left out of the mean.
        out = {"AP": np.nanmean(ap), "AP50": np.nanmean(ap[0]), "AP75": np.nanmean(ap[5])}
        per = {f"AP.{c}": v for c, v in zip(classes, ap.mean(0), strict=True)}
        return {k: float(v) for k, v in {**out, **per}.items()}


def _ap(found: Any, truth: Any, number: int, iou: float) -> float:
    """11-point AP of one class; NaN without an object that counts.

    mmdet's `eval_map` for one class, on its own functions, without the four processes it forks
    at every call: a fork of a process that holds a GPU and threads may hang.
    """
    boxes, real, ignored = get_cls_results(found, truth, number)
    objects = sum(len(b) for b in real)
    if objects == 0:
        return float("nan")
    each = [tpfp_default(*x, iou, None, True) for x in zip(boxes, real, ignored, strict=True)]
    order = np.argsort(-np.vstack(boxes)[:, -1], kind="stable")
    right, wrong = (np.cumsum(np.hstack([e[k] for e in each])[0, order]) for k in (0, 1))
    precision = right / np.maximum(right + wrong, np.finfo(np.float32).eps)
    return float(average_precision(right / objects, precision, "11points"))
