"""Average precision (AP) on resampled test images equals that of pycocotools on copies of the
images; its intervals have the stated coverage."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

import numpy as np
import pytest

from kdep_bench.results.records import average_precision as ap
from kdep_bench.results.records.detections import coco_scores, evaluation
from kdep_bench.results.records.image_scores import image_scores
from kdep_bench.results.records.samples import Samples
from kdep_bench.results.statistics import over_images as oi

CLASSES = ("bird", "coin", "disc", "nowhere")  # the last has detections and no truth


def detections(
    detected: list[tuple[int, int, float, list[float]]],
    truth: list[tuple[int, int, list[float], int]],
    images: int,
) -> Samples:
    """Per-sample outputs of `images` images, from tuples: a detection is (image, class, score,
    corners), a true box (image, class, corners, 1 if a crowd)."""
    boxes = np.array([t[2] for t in truth], float).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    arrays = {
        "image": np.array([f[0] for f in detected], np.int32),
        "label": np.array([f[1] for f in detected], np.int32),
        "score": np.array([f[2] for f in detected], np.float32),
        "box": np.array([f[3] for f in detected], np.float32).reshape(-1, 4),
        "truth_image": np.array([t[0] for t in truth], np.int32),
        "truth_label": np.array([t[1] for t in truth], np.int32),
        "truth_box": boxes,
        "truth_area": boxes[:, 2] * boxes[:, 3],
        "truth_crowd": np.array([t[3] for t in truth], np.int8),
    }
    return Samples("coco", CLASSES, tuple(map(str, range(images))), arrays)


def random_detections(seed: int, images: int = 12, ties: bool = True) -> Samples:
    """Shifted and wrong detections, crowds, and one image with more than 100 of one class.

    `ties`: round the scores, so that some are equal.
    """
    rng = np.random.default_rng(seed)
    detected, truth = [], []
    for n in range(images - 1):  # the last image is empty
        for _ in range(int(rng.integers(1, 5))):
            true_label = int(rng.integers(3))
            corner, size = rng.uniform(0, 60, 2), rng.uniform(20, 40, 2)
            box = np.r_[corner, corner + size]
            truth.append((n, true_label, box.tolist(), int(rng.random() < 0.15)))
            for _ in range(3):
                label = true_label if rng.random() < 0.8 else int(rng.integers(4))
                detected.append((n, label, rng.random(), (box + rng.normal(0, 4, 4)).tolist()))
    for _ in range(130):
        corner = rng.uniform(0, 60, 2)
        detected.append((0, 1, rng.random(), [*corner, *(corner + 20)]))
    if ties:
        detected = [(n, label, round(score, 1), box) for n, label, score, box in detected]
    return detections(detected, truth, images)


def unrounded_scores(samples: Samples) -> dict[str, float]:
    """AP, AP50 and AP75 by pycocotools, not rounded."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = evaluation(samples)
        coco.accumulate()
        coco.summarize()
    return {"bbox_mAP": coco.stats[0], "bbox_mAP_50": coco.stats[1], "bbox_mAP_75": coco.stats[2]}


def weighted(samples: Samples, metric: str, weights: np.ndarray) -> np.ndarray:
    """For each row of `weights`: AP if each image is counted as often as its weight states."""
    return ap.average_precision(ap.matches(samples, metric), metric, weights)


@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_that_of_pycocotools_if_every_image_is_counted_once(seed):
    samples = random_detections(seed)
    once = np.ones((1, len(samples.images)))
    recorded = coco_scores(samples)
    for metric, value in unrounded_scores(samples).items():
        assert value > 0.01
        assert weighted(samples, metric, once)[0] == pytest.approx(value, abs=1e-12)
        scores = image_scores(samples, metric)
        assert scores is not None
        assert abs(scores.weighted(once)[0] - recorded[metric]) <= scores.tolerance


def resampled(samples: Samples, order: np.ndarray) -> Samples:
    """The images of `order`; an image that occurs several times becomes several images."""
    arrays = samples.arrays
    parts: dict[str, list[np.ndarray]] = {name: [] for name in arrays}
    for new, old in enumerate(order):
        for prefix in ("", "truth_"):
            selected = arrays[f"{prefix}image"] == old
            for name in arrays:
                if name.startswith("truth_") == bool(prefix):
                    parts[name].append(arrays[name][selected])
            parts[f"{prefix}image"][-1] = np.full(selected.sum(), new, np.int32)
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return Samples("coco", samples.classes, tuple(map(str, range(len(order)))), joined)


def test_an_image_with_weight_2_gives_the_ap_of_two_copies():
    samples, rng = random_detections(7, ties=False), np.random.default_rng(0)
    images = len(samples.images)
    for _ in range(3):
        order = rng.integers(0, images, images)
        weights = np.bincount(order, minlength=images)[None].astype(float)
        scores_of_copies = unrounded_scores(resampled(samples, np.sort(order)))
        for metric in ap.METRICS:
            assert weighted(samples, metric, weights)[0] == pytest.approx(scores_of_copies[metric])


BOX = [10.0, 10.0, 50.0, 50.0]
AWAY = [100.0, 100.0, 140.0, 140.0]  # does not overlap BOX


def test_ap_of_two_images_equals_the_value_computed_by_hand():
    """Image 0: its box is detected (0.9). Image 1: the detection (0.8) is elsewhere."""
    samples = detections([(0, 0, 0.9, BOX), (1, 0, 0.8, AWAY)], [(0, 0, BOX, 0), (1, 0, BOX, 0)], 2)
    weights = np.array([[1, 1], [2, 0], [0, 2], [1, 3], [3, 1]], float)
    # Precision 1 up to recall 1/2, 1, 0, 1/4, 3/4: 51, 101, 0, 26, 76 of the 101 recalls.
    expected = np.array([51, 101, 0, 26, 76]) / 101
    assert weighted(samples, "bbox_mAP_50", weights) == pytest.approx(expected)
    # With swapped scores the false detection is first: precision 1/2, 1, 0, 1/4, 3/4.
    samples = detections([(0, 0, 0.7, BOX), (1, 0, 0.8, AWAY)], [(0, 0, BOX, 0), (1, 0, BOX, 0)], 2)
    expected *= np.array([1 / 2, 1, 0, 1 / 4, 3 / 4])
    assert weighted(samples, "bbox_mAP_50", weights) == pytest.approx(expected)


def test_a_class_without_truth_in_the_sample_is_left_out_of_the_mean():
    truth = [(0, 0, BOX, 0), (1, 1, BOX, 0)]
    samples = detections([(0, 0, 0.9, BOX), (1, 1, 0.8, AWAY)], truth, 3)
    values = weighted(
        samples, "bbox_mAP_50", np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0], [0, 0, 3.0]])
    )
    assert values[:3] == pytest.approx([0.5, 1.0, 0.0])
    assert np.isnan(values[3])  # no truth at all
    nothing = detections([], truth, 3)
    assert weighted(nothing, "bbox_mAP_50", np.ones((1, 3))).tolist() == [0.0]


def test_the_f1_of_an_image_equals_the_value_computed_by_hand():
    second_box = [60.0, 10.0, 90.0, 50.0]
    truth = [(0, 0, BOX, 0), (0, 1, second_box, 0), (1, 0, BOX, 0), (3, 0, BOX, 1), (4, 0, BOX, 0)]
    detected = [
        *((0, 0, 0.9, BOX), (0, 0, 0.8, AWAY), (0, 1, 0.7, second_box)),
        *((1, 0, 0.3, BOX), (2, 0, 0.9, AWAY), (3, 0, 0.9, BOX)),
    ]
    best_f1 = ap.best_f1(ap.matches(detections(detected, truth, 5), "bbox_mAP_75"))
    # F1 of image 0: 2/3 with the detections above 0.75, 4/5 with all. Image 1: 1. Images 2 and 3
    # have no true box (3: only a crowd). Image 4 has no detection.
    assert best_f1[[0, 1, 4]] == pytest.approx([4 / 5, 1.0, 0.0])
    assert np.isnan(best_f1[[2, 3]]).all()
    # No threshold separates equal scores, so the false detection counts.
    samples = detections([(0, 0, 0.9, AWAY), (0, 0, 0.9, BOX)], [(0, 0, BOX, 0)], 1)
    assert ap.best_f1(ap.matches(samples, "bbox_mAP"))[0] == pytest.approx(2 / 3)


IMAGES = 120
RUNS = 200  # simulations; the standard error of a coverage near 95 % is 1.5 %
WEIGHTS = oi.image_weights(IMAGES, 100)  # 100 bootstrap samples


def one_class(true: np.ndarray, score: np.ndarray) -> list[ap.ClassMatches]:
    """One detection per true box; `true`, `score`: [N, boxes per image]."""
    image, rank = np.indices(true.shape)
    order = np.argsort(-score.ravel(), kind="stable")
    thresholds: Mapping[int, np.ndarray] = {0: true.ravel()[order]}
    ignored = {0: np.zeros(true.size, bool)}
    counts = np.full(len(true), float(true.shape[1]))
    return [
        ap.ClassMatches(
            image.ravel()[order], score.ravel()[order], rank.ravel()[order],
            thresholds, ignored, counts,
        )
    ]  # fmt: skip


def coverage(p: float, boxes: int, separated: bool) -> float:
    """Fraction of intervals that contain the true AP; an image's boxes are all right or all wrong.

    With scores that separate right from wrong, precision is 1 up to recall p: AP = p. With random
    scores it is p at any recall up to p: AP = p^2.
    """
    rng, hits = np.random.default_rng(3), 0
    value = p if separated else p**2
    for _ in range(RUNS):
        true = np.repeat(rng.random((IMAGES, 1)) < p, boxes, 1)
        score = rng.random((IMAGES, boxes)) + (true if separated else 0)
        per_class = one_class(true, score)
        once = ap.average_precision(per_class, "bbox_mAP_50", np.ones((1, IMAGES)))
        drawn = ap.average_precision(per_class, "bbox_mAP_50", WEIGHTS)
        interval = oi.crossed(once, drawn[:, None], IMAGES)
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= value <= interval.high
    return hits / RUNS


def test_the_interval_of_ap_covers_95_percent_if_scores_separate_right_from_wrong():
    """Images are independent, but the boxes of one image are not."""
    assert 0.91 <= coverage(0.6, 3, True) <= 0.985


def test_the_interval_of_ap_covers_nearly_95_percent_if_scores_are_random():
    """The largest precision at or above a recall is biased upwards, most at low recalls."""
    assert 0.90 <= coverage(0.6, 2, False) <= 0.985
