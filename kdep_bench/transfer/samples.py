"""Keeps the per-sample outputs of a test: what mm's metrics collected, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.results.records.samples import FILE, Samples, scores, write

CHECKED = 5000  # images up to which the score is computed again before the stage ends
#: metric class -> scorer; see kdep_bench/results/records/samples.py.
SCORERS = {"Accuracy": "accuracy", "ClasswiseIoU": "iou", "NamedCocoMetric": "coco"}


class TestOutputs:
    """Watches the evaluator of a Runner's test; `samples` after it, in rank 0."""

    __test__ = False  # no test class for pytest

    def __init__(self, runner: Any) -> None:
        self._results: list[Any] = []
        self._dataset = runner.test_dataloader.dataset
        self._metric = next(
            (m for m in runner.test_loop.evaluator.metrics if type(m).__name__ in SCORERS), None
        )
        if self._metric is not None:
            compute = self._metric.compute_metrics

            def keep(results: list[Any]) -> Any:
                self._results = results
                return compute(results)

            self._metric.compute_metrics = keep

    def samples(self, data_root: Path) -> Samples | None:
        """The outputs; None where no known metric ran (in other ranks than 0).

        `data_root`: what the names of images are relative to.
        """
        if self._metric is None or not self._results:
            return None
        scorer = SCORERS[type(self._metric).__name__]
        classes = tuple(map(str, self._metric.dataset_meta["classes"]))
        if scorer == "coco":
            return _detections(self._metric, self._results, classes)
        names = image_names(self._dataset, data_root)
        arrays = (_accuracy if scorer == "accuracy" else _areas)(self._results)
        return Samples(scorer, classes, names, arrays)


def save_samples(
    out: Path, samples: Samples | None, metrics: dict[str, float]
) -> tuple[Any, list[str]]:
    """Writes `samples` into the stage's directory; (entry for the stage's outputs, notes).

    They are kept only if the metrics follow from them to the last digit, which is computed for test
    sets of up to `CHECKED` images.
    """
    if samples is None:
        return None, []
    if len(samples.images) <= CHECKED:
        for name, value in scores(samples).items():
            if name in metrics and metrics[name] != value:
                return None, [
                    f"no per-sample outputs: they give {name} = {value!r}, not {metrics[name]!r}"
                ]
    return write(out / FILE, samples), []


def image_names(dataset: Any, data_root: Path) -> tuple[str, ...]:
    """Paths below `data_root`, in the order of the data set; numbers where images are no files."""
    root, names = Path(data_root).resolve(), []
    for i in range(len(dataset)):
        path = dataset.get_data_info(i).get("img_path")
        if path is None:
            names.append(str(i))
            continue
        place = Path(path).absolute()
        below = place.is_relative_to(data_root) or place.is_relative_to(root)
        base = data_root if place.is_relative_to(data_root) else root
        names.append(place.relative_to(base).as_posix() if below else place.name)
    return tuple(names)


def classification(truth: Any, prediction: Any, probabilities: Any) -> dict[str, np.ndarray]:
    """Arrays from class numbers [N] and probabilities [N, C] in the order of the classes."""
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    probabilities = np.asarray(probabilities, np.float32)
    every = np.arange(len(truth))
    return {
        "truth": truth.astype(np.int32),
        "prediction": prediction.astype(np.int32),
        "probability": probabilities[every, prediction],
        "truth_probability": probabilities[every, truth],
    }


def _accuracy(results: list[Any]) -> dict[str, np.ndarray]:
    import torch

    truth = torch.cat([r["gt_label"] for r in results])
    probabilities = torch.stack([r["pred_score"] for r in results]).float()
    prediction = probabilities.topk(1, dim=1)[1][:, 0]  # as mmpretrain's Accuracy breaks ties
    return classification(truth.numpy(), prediction.numpy(), probabilities.numpy())


def _areas(results: list[Any]) -> dict[str, np.ndarray]:
    areas = np.stack([np.stack([part.numpy() for part in image]) for image in results])
    return {"areas": areas.astype(np.int32)}


def _detections(metric: Any, results: list[Any], classes: tuple[str, ...]) -> Samples:
    api = metric._coco_api
    # In the order of ids, in which COCO breaks ties between images.
    predictions = sorted((prediction for _, prediction in results), key=lambda p: p["img_id"])
    ids = [prediction["img_id"] for prediction in predictions]
    number = {image: i for i, image in enumerate(ids)}
    label = {category: i for i, category in enumerate(metric.cat_ids)}
    names = tuple(str(image["file_name"]) for image in api.loadImgs(ids))
    truth = [a for a in api.loadAnns(api.getAnnIds(imgIds=ids)) if a["category_id"] in label]
    counts = [len(prediction["scores"]) for prediction in predictions]
    arrays = {
        "image": np.repeat(np.arange(len(ids), dtype=np.int32), counts),
        "label": _joined(predictions, "labels", np.int32, (0,)),
        "score": _joined(predictions, "scores", np.float32, (0,)),
        "box": _joined(predictions, "bboxes", np.float32, (0, 4)),
        "truth_image": np.array([number[a["image_id"]] for a in truth], np.int32),
        "truth_label": np.array([label[a["category_id"]] for a in truth], np.int32),
        "truth_box": np.array([a["bbox"] for a in truth], np.float64).reshape(-1, 4),
        "truth_area": np.array([a["area"] for a in truth], np.float64),
        "truth_crowd": np.array([a.get("iscrowd", 0) for a in truth], np.int8),
    }
    return Samples("coco", classes, names, arrays)


def _joined(
    predictions: list[Any], key: str, kind: type[np.generic], empty: tuple[int, ...]
) -> np.ndarray:
    parts = [np.asarray(prediction[key]).astype(kind) for prediction in predictions]
    parts = [part.reshape(-1, *empty[1:]) for part in parts]
    return np.concatenate(parts) if parts else np.zeros(empty, kind)
