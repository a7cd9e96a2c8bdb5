"""Data fractions: selects a random fraction of the pool images, and reads their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.views import SELECTION, subset
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_atomic

LIST = "images.txt"  # written into the stage's folder


def select_images(
    files: list[str], fraction: float, seed: int = 0, labels: str | Path | None = None
) -> np.ndarray:
    """Sorted indices of the images of a data fraction; smaller fractions are subsets of larger.

    Args:
        files: names of the pool images.
        fraction: data fraction in (0, 1].
        seed: random seed of the selection.
        labels: a labels file, to select the same fraction of every class (KDEP's public list has
            128 images of each of 1000 classes). None: select from all images, without labels.

    Raises:
        KdepError: the fraction is out of range, or labels are missing or invalid.
    """
    if labels is None:
        return subset(len(files), fraction, seed)
    return per_class(read_labels(Path(labels), files), fraction, seed)


def per_class(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Sorted indices of a random fraction of the images of each class, at least one per class.

    Of the n images of a class, it takes the first `round(fraction * n)` of a seeded permutation.

    Args:
        labels: [N] class numbers.
        fraction: data fraction in (0, 1].
        seed: random seed of the permutations.

    Raises:
        KdepError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise KdepError(
            f"the data fraction is {fraction}",
            expected="above 0 and at most 1",
            fix="correct `shares` in the suite",
        )
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, SELECTION, int(label)]).permutation(members)
        chosen.append(order[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def select_for_spec(
    files: list[str], spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> np.ndarray:
    """Sorted indices of a stage's images, by `share`, `share_seed` and `share_by` of its spec."""
    return select_images(
        files, spec["share"], spec["share_seed"], labels_for_fraction(spec, inputs)
    )


# Note of a record whose images were drawn per class.
DRAWN_BY_LABEL = "the images of the data fraction were drawn per class, by label"


def labels_for_fraction(spec: Mapping[str, Any], inputs: Mapping[str, Path]) -> Path | None:
    """The labels file if the stage's spec has share_by="class", otherwise None."""
    grouping = spec.get("share_by", "image")
    if grouping not in ("image", "class"):
        raise KdepError(
            f"share_by is {grouping!r}",
            expected="'image' or 'class'",
            fix="correct share_by in the suite",
        )
    return labels_file(inputs) if grouping == "class" else None


def labels_file(inputs: Mapping[str, Path]) -> Path:
    """Path of the pool's labels, written by the `prepare` stage."""
    return inputs["prepare"] / "data" / "pool" / "labels.json"


_LABELS_FIX = (
    "run the suite again with --force prepare; if the data config has a data function of your own, "
    "it must write the label of each pool image into that labels file"
)


def read_labels(path: Path, files: list[str]) -> np.ndarray:
    """[N] int64 class numbers of the pool images; every image must have one in range.

    Raises:
        KdepError: no labels file, or one without a valid label for each image.
    """
    if not path.is_file():
        raise KdepError(
            f"the prepared data have no pool labels ({path} does not exist), but a method reads "
            "them or the data fraction is drawn per class",
            fix="set labels=False in the data config and share_by='image' in the suite, and remove "
            "the methods that read labels; or give the data labels (own data: class folders in the "
            "pool and pool_labels=True)",
        )
    stored: dict[str, Any] = read_strict(path)
    by_image = stored.get("labels") if isinstance(stored, dict) else None
    classes = stored.get("classes") if isinstance(stored, dict) else None
    if not isinstance(by_image, dict) or not isinstance(classes, list):
        raise KdepError(
            f"the labels file {path} has the wrong structure",
            expected="{'classes': [names], 'labels': {image: class number}}",
            fix=_LABELS_FIX,
        )
    missing = [f for f in files if type(by_image.get(f)) is not int]
    if missing:
        raise KdepError(
            f"{len(missing)} pool images have no label in {path}, the first is {missing[0]}",
            fix=_LABELS_FIX,
        )
    labels = np.array([by_image[f] for f in files], np.int64)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise KdepError(
            f"the labels in {path} range from {labels.min()} to {labels.max()}",
            expected=f"0 to {len(classes) - 1}",
            fix=_LABELS_FIX,
        )
    return labels


def save_list(folder: Path, files: list[str], images: np.ndarray) -> dict[str, Any]:
    """Writes the names of the selected images, and returns an entry for the stage's outputs.

    The names are written to `images.txt`, one per line, unless all images are selected.

    Args:
        folder: folder of the stage.
        files: names of the pool images.
        images: indices of the selected images.

    Returns:
        "images": their number; "of": the size of the pool; "sha256": as `sha256sum images.txt`
        prints it; "file": "images.txt" or None.
    """
    text = "".join(f"{files[i]}\n" for i in images)
    is_full_pool = len(images) == len(files)
    if not is_full_pool:
        write_atomic(folder / LIST, text)
    return {
        "images": len(images),
        "of": len(files),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "file": None if is_full_pool else LIST,
    }
