"""Stored detections: their average precision by COCO's rules, and their COCO result format."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from kdep_bench.results.records.samples import Samples

# Largest numbers of detections per image and class in mmdet's CocoMetric. Its AP50 and AP75 use the
# last number.
MAX_DETECTIONS = (100, 300, 1000)
# Metric -> its index in COCOeval.stats.
STATS = {"bbox_mAP": 0, "bbox_mAP_50": 1, "bbox_mAP_75": 2}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)


def coco_json(samples: Samples) -> list[dict[str, Any]]:
    """The detections in COCO's result format; image and category ids are numbers from 1."""
    arrays = samples.arrays
    return [
        {
            "image_id": int(image) + 1,
            "category_id": int(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(score),
        }
        for image, label, score, (x1, y1, x2, y2) in zip(
            arrays["image"], arrays["label"], arrays["score"], arrays["box"].tolist(), strict=True
        )
    ]


def truth_json(samples: Samples) -> dict[str, Any]:
    """The ground truth in COCO's annotation format, with the ids of `coco_json`."""
    arrays = samples.arrays
    columns = ("truth_image", "truth_label", "truth_box", "truth_area", "truth_crowd")
    return {
        "images": [{"id": i + 1, "file_name": n} for i, n in enumerate(samples.images)],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(samples.classes)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(image) + 1,
                "category_id": int(label) + 1,
                "bbox": box,
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for i, (image, label, box, area, crowd) in enumerate(
                zip(*(arrays[c].tolist() for c in columns), strict=True)
            )
        ],
    }


def coco_scores(samples: Samples) -> dict[str, float]:
    """AP, AP50 and AP75 as mmdet's CocoMetric reports them, rounded to three digits.

    They are 0 without a detection.
    """
    if not len(samples.arrays["image"]):
        return dict.fromkeys(STATS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = evaluation(samples)
        coco.accumulate()
        coco.summarize()
    return {name: float(f"{round(coco.stats[i], 3)}") for name, i in STATS.items()}


def evaluation(samples: Samples, thresholds: Any = IOU_THRESHOLDS, areas: int = 4) -> Any:
    """pycocotools' COCOeval with the settings of mmdet's CocoMetric, after `evaluate()`.

    Args:
        samples: outputs with at least one detection.
        thresholds: IoU thresholds.
        areas: number of COCO's ranges of box areas to evaluate; the first range is all areas.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()  # Any: its type stubs do not allow data in memory
        truth.dataset = truth_json(samples)
        truth.createIndex()
        coco = COCOeval(truth, truth.loadRes(coco_json(samples)), "bbox")
        coco.params.maxDets = list(MAX_DETECTIONS)
        coco.params.iouThrs = np.asarray(thresholds)
        coco.params.areaRng = coco.params.areaRng[:areas]
        coco.params.areaRngLbl = coco.params.areaRngLbl[:areas]
        coco.evaluate()
    return coco
