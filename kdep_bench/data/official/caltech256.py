"""Caltech-256: 256_ObjectCategories/<number>.<name>/*.jpg, 257 classes including "clutter".

The release has no split. As in KDEP's public code, the first 60 images of each class are for
training and the others for testing; `convert` writes the lists `kdep_train.txt` and
`kdep_test.txt`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kdep_bench.data.listing import class_names, list_images
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive, Progress
from kdep_bench.data.official.base import (
    OfficialSet,
    decode_some,
    how_to_unpack_again,
    lines,
    need_dir,
    need_files,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic

FOLDER = "256_ObjectCategories"
_UNPACK_AGAIN = how_to_unpack_again("caltech256")
TRAIN_PER_CLASS = 60
LISTS = {"train": "kdep_train.txt", "test": "kdep_test.txt"}
_CLASS = re.compile(r"(\d{3})\.[\w.+-]+")


def classes(folder: Path) -> list[str]:
    """Names of the class folders in the order of their numbers.

    Raises:
        KdepError: no class folders, or numbers that are not 001, 002, ... without gaps.
    """
    names = class_names(need_dir(folder / FOLDER, "class folders"))
    for position, name in enumerate(names, 1):
        match = _CLASS.fullmatch(name)
        if match is None or int(match[1]) != position:
            raise KdepError(
                f"the class folder {folder / FOLDER / name} is at position {position}",
                expected=f"the name {position:03d}.<name>: numbers from 001 without gaps",
                fix=_UNPACK_AGAIN,
            )
    if not names:
        raise KdepError(
            f"the folder {folder / FOLDER} has no class folders",
            expected="257 class folders",
            fix=_UNPACK_AGAIN,
        )
    return names


def _images(folder: Path) -> list[str]:
    """File names of the images of a class; subfolders and other files are left out."""
    return [n for n in list_images(folder).images if "/" not in n and n.endswith(".jpg")]


def convert(folder: Path, progress: Progress) -> None:
    """Writes the lists of training and test images, one 'path label' per line."""
    write_lists(folder, TRAIN_PER_CLASS)


def write_lists(folder: Path, per_class: int) -> None:
    """Writes the lists: of each class, the first `per_class` images by name are for training.

    Raises:
        KdepError: a class that has no image left for testing.
    """
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(classes(folder)):
        images = _images(folder / FOLDER / name)
        if len(images) <= per_class:
            raise KdepError(
                f"the class folder {folder / FOLDER / name} has {len(images)} images",
                expected=f"more than {per_class}",
                fix=_UNPACK_AGAIN,
            )
        for split, part in (("train", images[:per_class]), ("test", images[per_class:])):
            rows[split] += [f"{FOLDER}/{name}/{image} {label}" for image in part]
    for split, file in LISTS.items():
        write_atomic(folder / file, "".join(f"{row}\n" for row in rows[split]))


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that class numbers have no gap and that the lists contain each image exactly once.

    Returns counts; see `OfficialSet.verify`.
    """
    names = classes(folder)
    listed: list[str] = []
    counts = {}
    for split, file in LISTS.items():
        paths = [_row_path(folder / file, row, names) for row in lines(folder / file, _ROW_FORM)]
        counts[f"{split}_images"] = len(paths)
        listed += paths
    total = sum(len(_images(folder / FOLDER / n)) for n in names)
    if len(set(listed)) != len(listed) or len(listed) != total:
        raise KdepError(
            f"the lists in {folder} have {len(listed)} rows with {len(set(listed))} different "
            f"images; the class folders contain {total} images",
            expected="every image in exactly one list",
            fix="prepare the data set again with kdep-bench data caltech256",
        )
    need_files(folder, listed, f"{folder}/kdep_*.txt")
    decode_some((folder / n for n in listed), n_decoded)
    return {"classes": len(names), "images": total, **counts}


_ROW_FORM = "one 'path label' per line"


def _row_path(file: Path, row: str, names: list[str]) -> str:
    """The path in a row of a list; raises KdepError if its label does not fit its class folder."""
    path, _, label = row.rpartition(" ")
    parts = path.split("/")
    number = names.index(parts[1]) if len(parts) == 3 and parts[1] in names else None
    if number is None or parts[0] != FOLDER or label != str(number):
        raise KdepError(
            f"the list {file} has the line {row[:100]!r}",
            expected=f"{FOLDER}/<class folder>/<image> and the number of that class folder, from 0"
            + ("" if number is None else f": {number}"),
            fix="move that list elsewhere and run kdep-bench data caltech256 again, which writes a "
            "new list",
        )
    return path


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates three classes and "clutter" with 6 images each, of which 4 are for training."""
    for number, name in enumerate(("ak47", "american-flag", "backpack", "clutter"), 1):
        for i in range(1, 7):
            file = f"{number:03d}.{name}/{number:03d}_{i:04d}.jpg"
            draw.save(folder / FOLDER / file, draw.noise_image(rng))
    write_lists(folder, 4)


SET = OfficialSet(
    name="caltech256",
    title="Caltech-256",
    homepage="https://data.caltech.edu/records/nyy15-4j048",
    licence="CC BY 4.0 (unchecked)",
    archives=(
        Archive(
            "256_ObjectCategories.tar",
            "https://data.caltech.edu/records/nyy15-4j048",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
            "torchvision 0.29.1, datasets/caltech.py",
        ),
    ),
    # 30,607 images: the data set's own page. Training: 257 classes x 60 images.
    counts={"classes": 257, "images": 30607, "train_images": 15420, "test_images": 15187},
    training_counts=("train_images",),
    verify=verify,
    tiny=tiny,
    convert=convert,
)
