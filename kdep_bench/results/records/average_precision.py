"""COCO's average precision on resampled test images, and a score of detections per image.

AP is not a mean over images, because the detections of all images are ranked together. But the true
positives of an image do not depend on the other images. Therefore pycocotools matches each file
once. If a sample contains image n w[n] times, the image's detections and true boxes are counted
w[n] times. Along the ranked list of detections,

    recall = true positives / true boxes,   precision = true positives / detections.

The AP of a class is the mean, over the 101 recalls 0, 0.01, ..., 1, of the largest precision at
that recall or above. AP is the mean over the IoU thresholds and the classes that have true boxes
(`COCOeval.accumulate`). If every image is counted once, the result equals that of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdep_bench.results.records.detections import IOU_THRESHOLDS, MAX_DETECTIONS, evaluation
from kdep_bench.results.records.samples import Samples

Array = NDArray[np.float64]

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's, by the same expression
#: metric -> (indices of its IoU thresholds, most detections that it counts per image and class).
#: As in pycocotools' summarize, AP over all thresholds counts 100, and AP50 and AP75 count 1000.
METRICS = {
    "bbox_mAP": (tuple(range(len(IOU_THRESHOLDS))), MAX_DETECTIONS[0]),
    "bbox_mAP_50": ((0,), MAX_DETECTIONS[-1]),
    "bbox_mAP_75": ((5,), MAX_DETECTIONS[-1]),
}
ELEMENTS = 2_000_000  # largest size of an array [true positives, replicates]
F1_IOU = 0  # index of the IoU threshold 0.5, which the F1 per image uses


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The D detections of one class, by decreasing score, and its true boxes.

    Attributes:
        image: [D] index of the image.
        score: [D].
        rank: [D] rank by score among the image's detections of the class, from 0.
        true: index of the IoU threshold -> [D] whether the detection matches a true box.
        ignored: index of the IoU threshold -> [D] whether the detection matches a crowd box; it is
            then neither a true nor a false positive.
        truths: [N] number of true boxes of each image, without crowd boxes.
    """

    image: NDArray[np.int64]
    score: Array
    rank: NDArray[np.int64]
    true: Mapping[int, NDArray[np.bool_]]
    ignored: Mapping[int, NDArray[np.bool_]]
    truths: Array


def matches(samples: Samples, metric: str) -> list[ClassMatches]:
    """The detections of every class, matched by pycocotools.

    The IoU thresholds are those of `metric`, one of METRICS, and 0.5. `samples`: outputs of the
    scorer 'coco'.
    """
    thresholds = sorted({F1_IOU, *METRICS[metric][0]})
    truths = np.zeros((len(samples.classes), len(samples.images)))
    single = samples.arrays["truth_crowd"] == 0  # boxes of one object, not of a crowd
    places = (samples.arrays["truth_label"][single], samples.arrays["truth_image"][single])
    np.add.at(truths, places, 1)
    parts: list[list[Any]] = [[] for _ in samples.classes]
    if len(samples.arrays["image"]):
        for part in evaluation(samples, IOU_THRESHOLDS[thresholds], areas=1).evalImgs:
            if part is not None:  # ordered by class, then by image
                parts[part["category_id"] - 1].append(part)
    return [_joined(p, t, thresholds) for p, t in zip(parts, truths, strict=True)]


def _joined(parts: Sequence[Any], truths: Array, thresholds: Sequence[int]) -> ClassMatches:
    """The matches of a class from pycocotools' results of its images (`parts`)."""
    counts = [len(part["dtScores"]) for part in parts]
    score = np.concatenate([np.zeros(0), *(part["dtScores"] for part in parts)])
    order = np.argsort(-score, kind="mergesort")  # pycocotools' order of equal scores

    def joined(name: str) -> NDArray[np.bool_]:
        empty = np.zeros((len(thresholds), 0), bool)
        return np.concatenate([empty, *(part[name] > 0 for part in parts)], 1)[:, order]

    ignored = joined("dtIgnore")
    true = joined("dtMatches") & ~ignored
    image = np.repeat(np.array([part["image_id"] - 1 for part in parts], np.int64), counts)
    rank = np.concatenate([np.zeros(0, np.int64), *map(np.arange, counts)])
    return ClassMatches(
        image[order],
        score[order],
        rank[order],
        dict(zip(thresholds, true, strict=True)),
        dict(zip(thresholds, ignored, strict=True)),
        truths,
    )


def average_precision(per_class: Sequence[ClassMatches], metric: str, weights: Array) -> Array:
    """[R] the metric if image n is counted `weights[r, n]` times; NaN without a true box.

    Args:
        per_class: result of `matches` for this metric.
        metric: one of METRICS.
        weights: [R, N] counts.
    """
    thresholds, limit = METRICS[metric]
    values = [_class_ap(matched, t, limit, weights) for matched in per_class for t in thresholds]
    table = np.array(values).reshape(-1, len(weights))
    known = ~np.isnan(table)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, table, 0.0).sum(0) / known.sum(0)


def _class_ap(matched: ClassMatches, threshold: int, limit: int, weights: Array) -> Array:
    """[R] AP of one class at one IoU threshold; NaN if the sample has no true box of the class.

    Only the precision at true positives is needed: between two of them the precision falls.
    """
    from scipy import sparse

    truths = weights @ matched.truths
    counted = (matched.rank < limit) & ~matched.ignored[threshold]
    image, true = matched.image[counted], matched.true[threshold][counted]
    before = np.cumsum(true) - true  # true positives ranked above each detection
    n_true = int(true.sum())
    result = np.where(truths > 0, 0.0, np.nan)
    if not n_true:
        return result
    kept = before < n_true  # without the detections after the last true positive
    image, before, true = image[kept], before[kept], true[kept]
    # Row p: the detections after true positive p - 1, up to and including true positive p.
    places, images = (before, image), len(matched.truths)
    detections = sparse.csr_matrix((np.ones(len(image)), places), (n_true, images))
    step = max(1, ELEMENTS // n_true)
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        drawn = np.ascontiguousarray(weights[part].T)
        positives = np.cumsum(detections @ drawn, 0)
        true_positives = np.cumsum(drawn[image[true]], 0)
        precision = true_positives / (positives + np.spacing(1))
        best = np.maximum.accumulate(precision[::-1], 0)[::-1]
        recall = true_positives / np.maximum(truths[part], 1)
        reached = np.searchsorted(RECALLS, recall.ravel(), "right").reshape(recall.shape)
        new = np.diff(reached, axis=0, prepend=0)  # recalls first reached at this true positive
        result[part] = np.where(truths[part] > 0, (best * new).sum(0) / len(RECALLS), np.nan)
    return result


def best_f1(per_class: Sequence[ClassMatches]) -> Array:
    """[N] F1 = 2 TP / (detections + true boxes) of each image at IoU 0.5, over all classes.

    Each image has the score threshold with its highest F1, so the F1 at any common threshold is
    lower or equal. It is 0 without a match, and NaN for an image without true boxes.
    """
    truths = np.sum([matched.truths for matched in per_class], 0)
    f1 = np.where(truths > 0, 0.0, np.nan)
    counted = [~matched.ignored[F1_IOU] for matched in per_class]
    pairs = list(zip(per_class, counted, strict=True))
    image = np.concatenate([matched.image[keep] for matched, keep in pairs])
    score = np.concatenate([matched.score[keep] for matched, keep in pairs])
    true = np.concatenate([matched.true[F1_IOU][keep] for matched, keep in pairs])
    order = np.lexsort((true, -score, image))  # equal scores: false ones first
    image, score, true = image[order], score[order], true[order]
    for n in np.unique(image):
        if truths[n] > 0:
            of_image = slice(*np.searchsorted(image, [n, n + 1]))
            positives = np.arange(1, of_image.stop - of_image.start + 1)
            f1[n] = (2 * np.cumsum(true[of_image]) / (positives + truths[n])).max()
    return f1
