"""Per-sample outputs of a transfer run: the predictions for each test image, and their score.

There is one compressed NumPy file per transfer run, without pickled objects. Its array `meta` is a
JSON text with the version of the format, the scorer, the class names, and the name of each image
(its path below the data, or its number). The other arrays depend on the scorer:

* `accuracy` (fine-tuning) and `probe`: class numbers `truth` and `prediction` [N]; `probability`
  [N] of the predicted class and `truth_probability` [N] of the true class.
* `iou`: `areas` [N, 4, C], numbers of pixels of each image and class: intersection, union,
  prediction, truth.
* `coco`: detections (`image`, `label`, `score`, `box` as x1, y1, x2, y2 in pixels) and ground truth
  (`truth_image`, `truth_label`, `truth_box` as x, y, width, height, `truth_area`, `truth_crowd`).

`scores` computes the metrics with the same arithmetic as the toolkit that reported them, so all
digits are equal.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.safe_files import read_bytes

FILE = "samples.npz"
FOLDER = "samples"  # the folder inside a results folder
VERSION = 1
MAX_FILE_BYTES = 512 << 20  # largest size, in bytes, of a file and of all its arrays together
#: Scorer -> array -> number of dimensions.
ARRAYS: Mapping[str, Mapping[str, int]] = {
    "accuracy": {"truth": 1, "prediction": 1, "probability": 1, "truth_probability": 1},
    "probe": {"truth": 1, "prediction": 1, "probability": 1, "truth_probability": 1},
    "iou": {"areas": 3},
    "coco": {
        "image": 1,
        "label": 1,
        "score": 1,
        "box": 2,
        "truth_image": 1,
        "truth_label": 1,
        "truth_box": 2,
        "truth_area": 1,
        "truth_crowd": 1,
    },
}


@dataclass(frozen=True, eq=False)
class Samples:
    """Per-sample outputs; `arrays` as in the module's docstring."""

    scorer: str
    classes: tuple[str, ...]
    images: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


def write(path: Path, samples: Samples) -> dict[str, Any]:
    """Writes the file atomically.

    Returns:
        the values of `record.SampleFile`: {"file", "sha256", "bytes", "images"}.
    """
    meta = {
        "version": VERSION,
        "scorer": samples.scorer,
        "classes": list(samples.classes),
        "images": list(samples.images),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays: dict[str, Any] = {"meta": text, **samples.arrays}
    np.savez_compressed(buffer, **arrays)
    raw = buffer.getvalue()
    write_atomic(path, raw)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "bytes": len(raw),
        "images": len(samples.images),
    }


def read(path: Path, sha256: str | None = None) -> Samples:
    """The content of the file.

    Args:
        path: the file.
        sha256: the checksum in the record; None: it is not compared.

    Raises:
        KdepError: the checksum differs, or the file has another format.
    """
    try:
        raw = read_bytes(path, MAX_FILE_BYTES)
    except OSError as e:
        raise KdepError(
            f"the file {path} cannot be read ({e.strerror})", fix="copy it again"
        ) from None
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise KdepError(
            f"the file {path} does not have the checksum of its record", fix="copy it again"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["version"] != VERSION:
            raise ValueError(f"version {meta['version']!r}, not {VERSION}")
        samples = Samples(
            meta["scorer"],
            tuple(map(str, meta["classes"])),
            tuple(map(str, meta["images"])),
            arrays,
        )
        _check(samples)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise KdepError(
            f"the file {path} does not contain per-sample outputs ({e!s:.120})",
            fix="copy it again",
        ) from None
    return samples


def _check(samples: Samples) -> None:
    """Raises ValueError if arrays are missing or do not agree with each other."""
    expected = ARRAYS.get(samples.scorer)
    if expected is None:
        raise ValueError(f"unknown scorer {samples.scorer!r:.40}")
    if set(expected) != set(samples.arrays):
        raise ValueError(f"arrays {sorted(samples.arrays)}, expected {sorted(expected)}")
    images, classes = len(samples.images), len(samples.classes)
    for name, dimensions in expected.items():
        array = samples.arrays[name]
        if array.ndim != dimensions or array.dtype.kind not in "iufb":
            raise ValueError(f"{name} has the shape {array.shape} and the type {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} contains NaN or infinity")
    if samples.scorer == "iou":
        if samples.arrays["areas"].shape != (images, 4, classes):
            shape = samples.arrays["areas"].shape
            raise ValueError(f"areas has the shape {shape}, expected {(images, 4, classes)}")
        return
    lengths = {name: len(samples.arrays[name]) for name in expected}
    if samples.scorer != "coco":
        if set(lengths.values()) != {images}:
            raise ValueError(f"the arrays have the lengths {lengths}, expected {images} images")
        _check_range(samples, ("truth", "prediction"), classes)
        return
    for prefix in ("", "truth_"):  # arrays of the detections, then of the ground truth
        several = {n for name, n in lengths.items() if name.startswith("truth_") == bool(prefix)}
        if len(several) != 1 or samples.arrays[f"{prefix}box"].shape[1:] != (4,):
            raise ValueError(f"the arrays have different lengths: {lengths}, or no boxes [n, 4]")
        _check_range(samples, (f"{prefix}image",), images)
        _check_range(samples, (f"{prefix}label",), classes)


def _check_range(samples: Samples, names: Sequence[str], size: int) -> None:
    for name in names:
        array = samples.arrays[name]
        inside = not array.size or 0 <= array.min() <= array.max() < size
        if array.dtype.kind not in "iu" or not inside:
            raise ValueError(f"{name} contains a number that is not from 0 to {size - 1}")


# --- scores -----------------------------------------------------------------------------------


def scores(samples: Samples) -> dict[str, float]:
    """Name of the metric, as in the record -> its value, a fraction."""
    if samples.scorer == "coco":
        from kdep_bench.results.records.detections import coco_scores

        return coco_scores(samples)
    return (_accuracy if samples.scorer != "iou" else _iou)(samples)


def _accuracy(samples: Samples) -> dict[str, float]:
    truth, prediction = samples.arrays["truth"], samples.arrays["prediction"]
    if samples.scorer == "probe":
        recall = [float((prediction[truth == i] == i).mean()) for i in range(len(samples.classes))]
        return {
            "top1": float((prediction == truth).mean()),
            "mean_class_recall": float(np.mean(recall)),
        }
    # As mmpretrain's Accuracy: predictions with probability 0 are wrong, and the count and 100 / N
    # are float32.
    correct = (prediction == truth) & (samples.arrays["probability"] > 0)
    return {"top1": float(np.float32(correct.sum()) * np.float32(100.0 / len(truth))) / 100}


def _iou(samples: Samples) -> dict[str, float]:
    """As mmseg's IoUMetric, which adds the images one by one in float32 (see transfer/iou.py)."""
    total = np.zeros(samples.arrays["areas"].shape[1:], np.float32)
    for areas in samples.arrays["areas"]:
        total = total + areas.astype(np.float32)
    intersection, union, _, truth = total
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, accuracy = intersection / union, intersection / truth
    return {
        "mIoU": float(np.nanmean(iou)) * 100 / 100,
        "mAcc": float(np.nanmean(accuracy)) * 100 / 100,
        "aAcc": float(intersection.sum() / truth.sum()) * 100 / 100,
    }
