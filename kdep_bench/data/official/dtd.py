"""Describable Textures (DTD r1.0.1): dtd/{images/<texture>/, labels/, imdb/imdb.mat}, split 1."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import Archive
from kdep_bench.data.official.base import OfficialSet, decode_some, lines, need_files
from kdep_bench.errors import KdepError
from kdep_bench.files import plain_text

FOLDER = "dtd"
SPLITS = ("train1", "val1", "test1")


def verify(folder: Path, decode: int | None) -> dict[str, int]:
    """Checks that split 1 is disjoint, its images exist, and imdb.mat has the same split.

    mmpretrain reads imdb.mat, with the splits 1 train, 2 val, 3 test (mmpretrain 1.2.0,
    `datasets/dtd.py`).
    """
    base = folder / FOLDER
    parts = {s: lines(base / "labels" / f"{s}.txt", "one image per line") for s in SPLITS}
    names = [n for s in SPLITS for n in parts[s]]
    if len(set(names)) != len(names):
        raise KdepError(
            f"the splits in {base / 'labels'} share images", fix="unpack the archive again"
        )
    need_files(base / "images", names, base / "labels")
    table = _imdb(base / "imdb" / "imdb.mat")
    _check_labels(base / "imdb" / "imdb.mat", table)
    for number, split in enumerate(SPLITS, 1):
        stored = {n for n, s in zip(table["name"], table["set"], strict=True) if s == number}
        if stored != set(parts[split]):
            raise KdepError(
                f"the split {split} of {base / 'imdb/imdb.mat'} differs from labels/{split}.txt",
                fix="unpack the archive again",
            )
    decode_some((base / "images" / n for n in names), decode)
    counts = {f"{s.rstrip('1')}_images": len(parts[s]) for s in SPLITS}
    return {"images": len(names), **counts, "classes": len({n.split("/")[0] for n in names})}


def _check_labels(path: Path, table: dict[str, list]) -> None:
    """KdepError unless each folder has one class number, increasing in the order of its name."""
    number: dict[str, int] = {}
    for name, label in zip(table["name"], table["class"], strict=True):
        folder = str(name).partition("/")[0]
        if number.setdefault(folder, label) != label:
            raise KdepError(
                f"the table {path} gives the image {name} the class {label}, but other images of "
                f"its folder {number[folder]}",
                expected="one class per folder",
                fix="unpack the archive again",
            )
    labels = [number[folder] for folder in sorted(number)]
    if any(a >= b for a, b in itertools.pairwise(labels)):
        raise KdepError(
            f"the table {path} numbers the textures {labels[:8]}...",
            expected="numbers in the order of the textures' names",
            fix="unpack the archive again",
        )


def _imdb(path: Path) -> dict[str, list]:
    """The columns name, class and set of imdb.mat, one entry per image."""
    import mat4py

    from kdep_bench.data.official.base import need_file

    try:
        table = mat4py.loadmat(str(need_file(path, "DTD's table of images")))["images"]
        columns = [table[k] for k in ("name", "class", "set")]
        texts, *numbers = ([type(v) for v in c] for c in columns)
        complete = {len(c) for c in columns} == {len(texts)} and set(texts) == {str}
        if complete and all(set(kinds) == {int} for kinds in numbers):
            return table
        reason = "its columns name, class and set have different lengths or wrong types"
    except KdepError:
        raise
    except Exception as e:  # mat4py has an error class of its own that it does not export
        reason = plain_text(e)
    raise KdepError(
        f"the file {path} cannot be read ({reason})",
        expected="a MATLAB 5 file with `images`",
        fix="unpack it again",
    ) from None


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 of the 47 textures with 2 images in each part of split 1."""
    base = folder / FOLDER
    parts: dict[str, list[str]] = {s: [] for s in SPLITS}
    rows = []
    for number, texture in enumerate(("banded", "blotchy", "braided", "bubbly"), 1):
        for i in range(6):
            split = i % 3
            name = f"{texture}/{texture}_{i:04d}.jpg"
            draw.save(base / "images" / name, draw.noise_image(rng))
            parts[SPLITS[split]].append(name)
            rows.append((name, number, split + 1))
    for split, names in parts.items():
        draw.write_lines(base / "labels" / f"{split}.txt", names)
    (base / "imdb").mkdir(parents=True)
    name_cells = np.empty((1, len(rows)), object)
    name_cells[0] = [r[0] for r in rows]
    # As in the real file, where MATLAB stored integer-valued doubles as small integers.
    numbers = {k: np.array([[r[j] for r in rows]], np.uint8) for k, j in (("class", 1), ("set", 2))}
    table = {"id": np.arange(1, len(rows) + 1, dtype=np.uint8)[None], "name": name_cells, **numbers}
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
    trained=("train_images", "val_images"),
    verify=verify,
    tiny=tiny,
)
