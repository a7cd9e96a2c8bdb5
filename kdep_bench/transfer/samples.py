"""Saves the outputs of a test for each image, as the toolkit's metric collected them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.results.records.samples import FILE, Samples, scores, write

# The score is computed again from the saved outputs of up to this many images.
MAX_CHECKED_IMAGES = 5000
# {class name of the metric: scorer}; see kdep_bench/results/records/samples.py
SCORERS = {"Accuracy": "accuracy", "ClasswiseIoU": "iou", "NamedCocoMetric": "coco"}


class TestOutputs:
    """Records what the evaluator of a Runner collects in a test.

    Create it before `runner.test()`, and call `samples` after it, in rank 0.
    """

    __test__ = False  # pytest would take the class for a test

    def __init__(self, runner: Any) -> None:
        self._results: list[Any] = []
        self._dataset = runner.test_dataloader.dataset
        self._metric = next(
            (m for m in runner.test_loop.evaluator.metrics if type(m).__name__ in SCORERS), None
        )
        if self._metric is not None:
            compute = self._metric.compute_metrics

            def record_and_compute(results: list[Any]) -> Any:
                self._results = results
                return compute(results)

            self._metric.compute_metrics = record_and_compute

    def samples(self, data_root: Path) -> Samples | None:
        """The recorded outputs; None if no known metric ran, or the rank is not 0.

        Args:
            data_root: images in this folder are named by their path relative to it; others by
                their file name.
        """
        if self._metric is None or not self._results:
            return None
        scorer = SCORERS[type(self._metric).__name__]
        classes = tuple(map(str, self._metric.dataset_meta["classes"]))
        if scorer == "coco":
            return _detections(self._metric, self._results, classes)
        names = image_names(self._dataset, data_root)
        if scorer == "accuracy":
            return Samples(scorer, classes, names, _accuracy(self._results))
        return Samples(scorer, classes, names, _areas(self._results))


def save_samples(
    out: Path, samples: Samples | None, metrics: dict[str, float]
) -> tuple[Any, list[str]]:
    """Writes `samples` into the stage's directory.

    For up to MAX_CHECKED_IMAGES images, the metrics are computed from the samples; if they are not
    exactly equal to `metrics`, nothing is written.

    Args:
        out: the stage's directory.
        samples: outputs per image; None: nothing is written.
        metrics: the metrics of the test, as fractions.

    Returns:
        the entry for the stage's outputs, or None; notes.
    """
    if samples is None:
        return None, []
    if len(samples.images) <= MAX_CHECKED_IMAGES:
        for name, value in scores(samples).items():
            if name in metrics and metrics[name] != value:
                return None, [
                    f"outputs per image were not saved: they result in {name} = {value!r}, not "
                    f"{metrics[name]!r}"
                ]
    return write(out / FILE, samples), []


def image_names(dataset: Any, data_root: Path) -> tuple[str, ...]:
    """Paths of the images of a data set, relative to `data_root` where possible.

    An image that is not a file has its index as name.
    """
    root, names = Path(data_root).resolve(), []
    for i in range(len(dataset)):
        img_path = dataset.get_data_info(i).get("img_path")
        if img_path is None:
            names.append(str(i))
            continue
        path = Path(img_path).absolute()
        if path.is_relative_to(data_root):
            names.append(path.relative_to(data_root).as_posix())
        elif path.is_relative_to(root):
            names.append(path.relative_to(root).as_posix())
        else:
            names.append(path.name)
    return tuple(names)


def classification(truth: Any, prediction: Any, probabilities: Any) -> dict[str, np.ndarray]:
    """The arrays that are saved for a classification task.

    Args:
        truth, prediction: class numbers [N].
        probabilities: [N, C].
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    probabilities = np.asarray(probabilities, np.float32)
    rows = np.arange(len(truth))
    return {
        "truth": truth.astype(np.int32),
        "prediction": prediction.astype(np.int32),
        "probability": probabilities[rows, prediction],
        "truth_probability": probabilities[rows, truth],
    }


def _accuracy(results: list[Any]) -> dict[str, np.ndarray]:
    import torch

    truth = torch.cat([r["gt_label"] for r in results])
    probabilities = torch.stack([r["pred_score"] for r in results]).float()
    prediction = probabilities.topk(1, dim=1)[1][:, 0]  # topk: as in mmpretrain's Accuracy
    return classification(truth.numpy(), prediction.numpy(), probabilities.numpy())


def _areas(results: list[Any]) -> dict[str, np.ndarray]:
    """Per image and class: pixels of intersection, union, prediction and truth."""
    areas = np.stack([np.stack([part.numpy() for part in image]) for image in results])
    return {"areas": areas.astype(np.int32)}


def _detections(metric: Any, results: list[Any], classes: tuple[str, ...]) -> Samples:
    api = metric._coco_api
    # Sorted by id, because COCO orders detections of equal score by the id of their image.
    predictions = sorted((prediction for _, prediction in results), key=lambda p: p["img_id"])
    ids = [prediction["img_id"] for prediction in predictions]
    image_index = {image: i for i, image in enumerate(ids)}
    label = {category: i for i, category in enumerate(metric.cat_ids)}
    names = tuple(str(image["file_name"]) for image in api.loadImgs(ids))
    truth = [a for a in api.loadAnns(api.getAnnIds(imgIds=ids)) if a["category_id"] in label]
    counts = [len(prediction["scores"]) for prediction in predictions]
    arrays = {
        "image": np.repeat(np.arange(len(ids), dtype=np.int32), counts),
        "label": _joined(predictions, "labels", np.int32, (0,)),
        "score": _joined(predictions, "scores", np.float32, (0,)),
        "box": _joined(predictions, "bboxes", np.float32, (0, 4)),
        "truth_image": np.array([image_index[a["image_id"]] for a in truth], np.int32),
        "truth_label": np.array([label[a["category_id"]] for a in truth], np.int32),
        "truth_box": np.array([a["bbox"] for a in truth], np.float64).reshape(-1, 4),
        "truth_area": np.array([a["area"] for a in truth], np.float64),
        "truth_crowd": np.array([a.get("iscrowd", 0) for a in truth], np.int8),
    }
    return Samples("coco", classes, names, arrays)


def _joined(
    predictions: list[Any], key: str, dtype: type[np.generic], empty_shape: tuple[int, ...]
) -> np.ndarray:
    """The values `key` of all predictions in one array; `empty_shape` is its shape for none."""
    parts = [np.asarray(prediction[key]).astype(dtype) for prediction in predictions]
    parts = [part.reshape(-1, *empty_shape[1:]) for part in parts]
    return np.concatenate(parts) if parts else np.zeros(empty_shape, dtype)
