"""Scores computed from stored outputs per image equal those of OpenMMLab's metrics exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.results.records import samples as sample_files
from kdep_bench.results.records.detections import coco_json, truth_json
from kdep_bench.results.records.samples import Samples
from kdep_bench.transfer import samples as transfer_samples

CLASSES = ("bird", "coin", "disc")


def through_file(tmp_path: Path, samples: Samples) -> Samples:
    """The same samples, after they were written to a file and read back."""
    stored_summary = sample_files.write(tmp_path / sample_files.FILE, samples)
    assert stored_summary["bytes"] == (tmp_path / sample_files.FILE).stat().st_size
    return sample_files.read(tmp_path / sample_files.FILE, stored_summary["sha256"])


def image_names(count: int) -> tuple[str, ...]:
    """Names of test images."""
    return tuple(f"test/{i}.jpg" for i in range(count))


@pytest.mark.parametrize("images", [1, 3, 7, 97, 400, 1601])
def test_accuracy_is_that_of_mmpretrain(tmp_path, images):
    openmmlab.setup("mmpretrain", switch=True)
    from mmpretrain.evaluation import Accuracy

    torch.manual_seed(images)
    probabilities = torch.softmax(3 * torch.randn(images, 3), 1)
    probabilities[::5] = 1 / 3  # ties
    results = [{"pred_score": p, "gt_label": torch.randint(0, 3, (1,))} for p in probabilities]
    expected = Accuracy(topk=(1,)).compute_metrics(results)
    samples = Samples("accuracy", CLASSES, image_names(images), transfer_samples._accuracy(results))
    scores = sample_files.scores(through_file(tmp_path, samples))
    assert scores["top1"] == float(expected["top1"]) / 100


def random_areas(images: int, metric: Any) -> list[Any]:
    """Per image: areas of intersection, union, prediction and truth of random masks, [4] each.

    Class 3 is absent.
    """
    torch.manual_seed(images)
    results = []
    for _ in range(images):
        predicted, truth = torch.randint(0, 3, (2, 96, 96))
        truth[:9] = 255  # the ignored label
        results.append(metric.intersect_and_union(predicted, truth, 4, 255))
    return results


def test_mean_iou_is_that_of_mmseg_with_a_class_that_is_absent(tmp_path):
    openmmlab.setup("mmseg", switch=True)
    from kdep_bench.transfer.iou import ClasswiseIoU

    metric = ClasswiseIoU()
    metric.dataset_meta = {"classes": (*CLASSES, "nowhere")}
    results = random_areas(29, metric)
    expected = metric.compute_metrics(list(results))
    arrays = transfer_samples._areas(results)
    samples = Samples("iou", (*CLASSES, "nowhere"), image_names(29), arrays)
    scores = sample_files.scores(through_file(tmp_path, samples))
    assert scores == {k: float(expected[k]) / 100 for k in ("mIoU", "mAcc", "aAcc")}


def write_annotations(path: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Writes random COCO annotations of five images, which are not in the order of their ids.

    The last image has no box; some boxes are crowds. Returns the id and the boxes of each image.
    """
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in (30, 4, 17, 9, 1)
    ]
    boxes: list[dict[str, Any]] = []
    for image in images[:-1]:
        for _ in range(int(rng.integers(1, 6))):
            corner, size = rng.uniform(0, 60, 2), rng.uniform(5, 40, 2)
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([2, 5, 7])),
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(size.prod()),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    categories = [{"id": i, "name": n} for i, n in zip((2, 5, 7), CLASSES, strict=True)]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return [
        {"id": image["id"], "boxes": [box for box in boxes if box["image_id"] == image["id"]]}
        for image in images
    ]


def random_detections(truth: list[dict[str, Any]], rng: np.random.Generator) -> list[Any]:
    """Results of mmdet for the images: three detections near each box, 80 % of the right class."""
    results = []
    for image in truth:
        boxes, labels, scores = [], [], []
        for box in image["boxes"] * 3:
            x, y, w, h = box["bbox"]
            boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 3, 4))
            is_correct = rng.random() < 0.8
            labels.append([2, 5, 7].index(box["category_id"]) if is_correct else 1)
            scores.append(round(rng.random(), 1))  # ties within and between images
        detections = {
            "img_id": image["id"],
            "bboxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(labels, int),
            "scores": np.array(scores, np.float32),
        }
        results.append(({}, detections))
    return results


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_mmdet(tmp_path, seed):
    openmmlab.setup("mmdet", switch=True)
    from kdep_bench.transfer.coco_sets import NamedCocoMetric

    rng = np.random.default_rng(seed)
    truth = write_annotations(tmp_path / "truth.json", rng)
    metric = NamedCocoMetric(ann_file=str(tmp_path / "truth.json"), metric="bbox", classwise=True)
    metric.dataset_meta = {"classes": CLASSES}
    results = random_detections(truth, rng)
    metrics = metric.compute_metrics(list(results))
    samples = through_file(tmp_path, transfer_samples._detections(metric, results, CLASSES))
    expected = {k: metrics[k] for k in ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75")}
    assert sample_files.scores(samples) == expected
    assert len(coco_json(samples)) == sum(len(r["scores"]) for _, r in results)
    assert {a["category_id"] for a in truth_json(samples)["annotations"]} <= {1, 2, 3}


def test_nothing_detected_scores_0():
    arrays = {
        "image": np.zeros(0, np.int32),
        "label": np.zeros(0, np.int32),
        "score": np.zeros(0, np.float32),
        "box": np.zeros((0, 4), np.float32),
        "truth_image": np.zeros(1, np.int32),
        "truth_label": np.zeros(1, np.int32),
        "truth_box": np.ones((1, 4)),
        "truth_area": np.ones(1),
        "truth_crowd": np.zeros(1, np.int8),
    }
    scores = sample_files.scores(Samples("coco", CLASSES, image_names(1), arrays))
    assert scores == {"bbox_mAP": 0.0, "bbox_mAP_50": 0.0, "bbox_mAP_75": 0.0}


def probe(truth: list[int], prediction: list[int]) -> Samples:
    """The samples of a linear probe with these labels and predictions."""
    arrays = transfer_samples.classification(truth, prediction, np.full((len(truth), 3), 1 / 3))
    return Samples("probe", CLASSES, image_names(len(truth)), arrays)


def test_outputs_that_do_not_give_the_reported_score_are_not_kept(tmp_path):
    samples = probe([0, 1, 2, 2], [0, 1, 2, 0])  # 3 of 4 are right
    assert transfer_samples.save_samples(tmp_path, samples, {"top1": 0.75})[0]["images"] == 4
    (tmp_path / sample_files.FILE).unlink()
    record, notes = transfer_samples.save_samples(tmp_path, samples, {"top1": 0.7500001})
    assert record is None
    assert notes == ["outputs per image were not saved: they result in top1 = 0.75, not 0.7500001"]
    assert not (tmp_path / sample_files.FILE).exists()


BAD_ARRAYS = {  # fault -> the arrays that replace those of four images
    "class numbers out of range": {"prediction": np.array([0, 1, 2, 3], np.int32)},
    "another length": {"truth": np.zeros(3, np.int32)},
    "NaN": {"probability": np.array([0, 1, np.nan, 1], np.float32)},
    "fractions as classes": {"truth": np.array([0, 1, 2, 0.5], np.float32)},
    "objects": {"truth": np.array([{}, {}, {}, {}], object)},
}


@pytest.mark.parametrize("fault", sorted(BAD_ARRAYS))
def test_a_file_with_arrays_that_fit_no_scorer_is_refused(tmp_path, fault):
    good = probe([0, 1, 2, 2], [0, 1, 2, 0])
    bad = Samples(good.scorer, good.classes, good.images, {**good.arrays, **BAD_ARRAYS[fault]})
    sample_files.write(tmp_path / "bad.npz", bad)
    with pytest.raises(KdepError, match="does not contain per-sample outputs"):
        sample_files.read(tmp_path / "bad.npz")


def test_a_changed_file_a_file_of_another_kind_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / sample_files.FILE
    stored_summary = sample_files.write(path, probe([0, 1], [0, 1]))
    second_summary = sample_files.write(tmp_path / "b.npz", probe([0, 1], [0, 1]))
    assert second_summary["sha256"] == stored_summary["sha256"]  # equal samples, equal files
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(KdepError, match="checksum"):
        sample_files.read(path, stored_summary["sha256"])
    path.write_bytes(b"no archive")
    with pytest.raises(KdepError, match="does not contain per-sample outputs"):
        sample_files.read(path)
    with pytest.raises(KdepError, match="cannot be read"):
        sample_files.read(tmp_path / "nowhere.npz")
