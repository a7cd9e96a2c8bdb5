"""Describable Textures (DTD r1.0.1): dtd/{images/<texture>/, labels/, imdb/imdb.mat}.

Of the ten official splits, split 1 is used; its parts are train1, val1 and test1.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive
from kdep_bench.data.official.base import (
    OfficialSet,
    decode_some,
    how_to_unpack_again,
    lines,
    need_files,
)
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import plain_text

FOLDER = "dtd"
_UNPACK_AGAIN = how_to_unpack_again("dtd")
SPLITS = ("train1", "val1", "test1")


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that the parts of split 1 are disjoint, images exist, and imdb.mat has the same parts.

    mmpretrain reads the parts from imdb.mat, where 1 is train, 2 val and 3 test (mmpretrain 1.2.0,
    `datasets/dtd.py`). Returns counts; see `OfficialSet.verify`.
    """
    base = folder / FOLDER
    parts = {s: lines(base / "labels" / f"{s}.txt", "one image per line") for s in SPLITS}
    names = [n for s in SPLITS for n in parts[s]]
    if len(set(names)) != len(names):
        raise KdepError(
            f"some images are in two lists in {base / 'labels'}",
            expected="each image in one of train1.txt, val1.txt and test1.txt",
            fix=_UNPACK_AGAIN,
        )
    need_files(base / "images", names, base / "labels")
    table = _read_imdb(base / "imdb" / "imdb.mat")
    _check_labels(base / "imdb" / "imdb.mat", table)
    for number, split in enumerate(SPLITS, 1):
        stored = {
            name for name, part in zip(table["name"], table["set"], strict=True) if part == number
        }
        if stored != set(parts[split]):
            raise KdepError(
                f"the split {split} of {base / 'imdb/imdb.mat'} differs from labels/{split}.txt",
                fix=_UNPACK_AGAIN,
            )
    decode_some((base / "images" / n for n in names), n_decoded)
    counts = {f"{s.rstrip('1')}_images": len(parts[s]) for s in SPLITS}
    return {"images": len(names), **counts, "classes": len({n.split("/")[0] for n in names})}


def _check_labels(path: Path, table: dict[str, list]) -> None:
    """Raises KdepError unless each folder has one class number, in alphabetical order."""
    class_number: dict[str, int] = {}  # by folder
    for name, label in zip(table["name"], table["class"], strict=True):
        folder = str(name).partition("/")[0]
        if class_number.setdefault(folder, label) != label:
            raise KdepError(
                f"in the table {path}, the image {name} has the class {label}, but other images of "
                f"its folder have the class {class_number[folder]}",
                expected="one class per folder",
                fix=_UNPACK_AGAIN,
            )
    labels = [class_number[folder] for folder in sorted(class_number)]
    if any(a >= b for a, b in itertools.pairwise(labels)):
        raise KdepError(
            f"in the table {path}, the textures have the class numbers {first_of(labels, 8)}",
            expected="numbers in the alphabetical order of the textures",
            fix=_UNPACK_AGAIN,
        )


def _read_imdb(path: Path) -> dict[str, list]:
    """Reads imdb.mat: the columns name, class and set, each with one entry per image."""
    import mat4py

    from kdep_bench.data.official.base import need_file

    try:
        table = mat4py.loadmat(str(need_file(path, "DTD's table of images")))["images"]
        columns = [table[k] for k in ("name", "class", "set")]
        name_types, *number_types = ([type(v) for v in c] for c in columns)
        lengths_are_equal = {len(c) for c in columns} == {len(name_types)}
        names_are_valid = set(name_types) == {str}
        numbers_are_valid = all(set(types) == {int} for types in number_types)
        if lengths_are_equal and names_are_valid and numbers_are_valid:
            return table
        reason = "its columns name, class and set have different lengths or wrong types"
    except KdepError:
        raise
    except Exception as e:  # mat4py does not export its own exception class
        reason = plain_text(e)
    raise KdepError(
        f"the file {path} cannot be read ({reason})",
        expected="a MATLAB 5 file with `images`",
        fix=_UNPACK_AGAIN,
    ) from None


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 of the 47 textures with 2 images in each part of split 1."""
    base = folder / FOLDER
    parts: dict[str, list[str]] = {s: [] for s in SPLITS}
    rows = []
    for number, texture in enumerate(("banded", "blotchy", "braided", "bubbly"), 1):
        for i in range(6):
            part = i % 3
            name = f"{texture}/{texture}_{i:04d}.jpg"
            draw.save(base / "images" / name, draw.noise_image(rng))
            parts[SPLITS[part]].append(name)
            rows.append((name, number, part + 1))
    for part_name, names in parts.items():
        draw.write_lines(base / "labels" / f"{part_name}.txt", names)
    (base / "imdb").mkdir(parents=True)
    name_cells = np.empty((1, len(rows)), object)
    name_cells[0] = [name for name, _, _ in rows]
    # uint8 as in the real file: MATLAB stores doubles with integer values as small integers.
    table = {
        "id": np.arange(1, len(rows) + 1, dtype=np.uint8)[None],
        "name": name_cells,
        "class": np.array([[class_number for _, class_number, _ in rows]], np.uint8),
        "set": np.array([[part for _, _, part in rows]], np.uint8),
    }
    draw.save_mat(base / "imdb" / "imdb.mat", {"images": table})


SET = OfficialSet(
    name="dtd",
    title="Describable Textures (DTD)",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    # "made available to the computer vision community for research purposes": its page, as quoted
    # on huggingface.co/datasets/tanganke/dtd.
    licence="research use",
    archives=(
        Archive(
            "dtd-r1.0.1.tar.gz",
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
            "torchvision 0.29.1, datasets/dtd.py",
        ),
    ),
    counts={
        "images": 5640,
        "train_images": 1880,
        "val_images": 1880,
        "test_images": 1880,
        "classes": 47,
    },
    training_counts=("train_images", "val_images"),
    verify=verify,
    tiny=tiny,
)
