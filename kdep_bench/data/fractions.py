"""Which images of the pool a run sees: a seeded share of them, and the saved list of its names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.views import subset
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_atomic

LIST = "images.txt"


def select_images(
    files: list[str], share: float, seed: int = 0, labels: str | Path | None = None
) -> np.ndarray:
    """Sorted numbers of the images of a share: nested for growing shares, the same for one seed.

    Without `labels` (a file) the share is a random one of all images and no label is read. With
    it, the same share of every class, as KDEP's public list has 128 images of each of 1000 classes.
    """
    if labels is None:
        return subset(len(files), share, seed)
    return per_class(read_labels(Path(labels), files), share, seed)


def per_class(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Sorted indices: the first `round(share * n)`, one at least, of a permutation of each class.

    `labels` [N] class numbers. Raises KdepError unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise KdepError(
            f"the data fraction is {share}",
            expected="above 0 and at most 1",
            fix="correct `shares` in the suite",
        )
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, 20220321, int(label)]).permutation(members)
        found.append(order[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(found))


def select_for_spec(
    files: list[str], spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> np.ndarray:
    """The images that a stage's spec (`share`, `share_seed`, `share_by`) asks for."""
    return select_images(
        files, spec["share"], spec["share_seed"], labels_for_fraction(spec, inputs)
    )


def labels_for_fraction(spec: Mapping[str, Any], inputs: Mapping[str, Path]) -> Path | None:
    """The labels file that a share drawn per class reads, and no other."""
    by = spec.get("share_by", "image")
    if by not in ("image", "class"):
        raise KdepError(
            f"share_by is {by!r}",
            expected="'image' or 'class'",
            fix="correct share_by in the suite",
        )
    return labels_file(inputs) if by == "class" else None


def labels_file(inputs: Mapping[str, Path]) -> Path:
    """Where the `prepare` stage left the pool's labels."""
    return inputs["prepare"] / "data" / "pool" / "labels.json"


_LABELS_FIX = (
    "prepare the data again with --force prepare; a data function of your own must write the label "
    "of each pool image there"
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
            fix="set labels=False in the data config and remove such methods, or give the data "
            "labels (own data: class folders in the pool and pool_labels=True)",
        )
    stored: dict[str, Any] = read_strict(path)
    found = stored.get("labels") if isinstance(stored, dict) else None
    classes = stored.get("classes") if isinstance(stored, dict) else None
    if not isinstance(found, dict) or not isinstance(classes, list):
        raise KdepError(
            f"the labels file {path} has the wrong structure",
            expected="{'classes': [names], 'labels': {image: class number}}",
            fix=_LABELS_FIX,
        )
    missing = [f for f in files if type(found.get(f)) is not int]
    if missing:
        raise KdepError(
            f"{len(missing)} pool images have no label in {path}, the first is {missing[0]}",
            fix=_LABELS_FIX,
        )
    labels = np.array([found[f] for f in files], np.int64)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise KdepError(
            f"the labels in {path} range from {labels.min()} to {labels.max()}",
            expected=f"0 to {len(classes) - 1}",
            fix=_LABELS_FIX,
        )
    return labels


def save_list(folder: Path, files: list[str], images: np.ndarray) -> dict[str, Any]:
    """What a stage tells of its images: their number and a SHA-256 over their names.

    A share below the whole pool is written as `images.txt`, one name a line, so that it can be
    read, compared (`sha256sum images.txt` gives the same number) and used elsewhere.
    """
    text = "".join(f"{files[i]}\n" for i in images)
    whole = len(images) == len(files)
    if not whole:
        write_atomic(folder / LIST, text)
    return {
        "images": len(images),
        "of": len(files),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "file": None if whole else LIST,
    }
