"""CUB-200-2011: the folder CUB_200_2011/ with images/ and lists of names, classes and splits."""

from __future__ import annotations

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

FOLDER = "CUB_200_2011"
_UNPACK_AGAIN = how_to_unpack_again("cub200")
_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks that the lists have the same ids, images exist, and classes fit folders and 1..200.

    Returns counts; see `OfficialSet.verify`.
    """
    base = folder / FOLDER
    images, labels, split = (_table(base / name) for name in _LISTS)
    for name, table in zip(_LISTS[1:], (labels, split), strict=True):
        if table.keys() != images.keys():
            different = sorted(table.keys() ^ images.keys())
            raise KdepError(
                f"the file {base / name} and images.txt differ in {len(different)} image ids, the "
                f"first is {different[0]}",
                fix=_UNPACK_AGAIN,
            )
    if wrong := sorted(v for v in set(labels.values()) if not _is_number(v)):
        raise KdepError(
            f"the file {base / _LISTS[1]} has the class {wrong[0][:40]!r}",
            expected="1..200",
            fix=_UNPACK_AGAIN,
        )
    for key, name in images.items():
        number = name.partition(".")[0]
        if not _is_number(number) or int(labels[key]) != int(number):
            raise KdepError(
                f"the file {base / _LISTS[1]} gives the image {key} the class {labels[key]}, but "
                f"images.txt puts it into the folder {name.partition('/')[0]}",
                expected="the number at the beginning of the folder's name",
                fix=_UNPACK_AGAIN,
            )
    classes = {int(v) for v in labels.values()}
    if min(classes) < 1 or max(classes) > 200:
        raise KdepError(
            f"the file {base / _LISTS[1]} has classes {min(classes)}..{max(classes)}",
            expected="1..200",
            fix=_UNPACK_AGAIN,
        )
    if wrong := set(split.values()) - {"0", "1"}:
        raise KdepError(
            f"the file {base / _LISTS[2]} contains {first_of(map(repr, sorted(wrong)), 3)}",
            expected="0 and 1",
            fix=_UNPACK_AGAIN,
        )
    need_files(base / "images", images.values(), base / "images.txt")
    decode_some((base / "images" / v for v in images.values()), n_decoded)
    train = sum(v == "1" for v in split.values())
    return {
        "images": len(images),
        "train_images": train,
        "test_images": len(images) - train,
        "classes": len(classes),
    }


def _table(path: Path) -> dict[int, str]:
    """Reads a list with one 'id value' per line as {id: value}.

    Raises:
        KdepError: a line of another form, or an id that occurs twice.
    """
    table = {}
    for row in lines(path, "one 'id value' per line"):
        key, _, value = row.partition(" ")
        if not _is_number(key) or not value:
            raise KdepError(
                f"the file {path} contains the line {row[:60]!r}",
                expected="'id value'",
                fix=_UNPACK_AGAIN,
            )
        if int(key) in table:
            raise KdepError(f"the file {path} has the id {key} twice", fix=_UNPACK_AGAIN)
        table[int(key)] = value
    return table


def _is_number(text: str) -> bool:
    """Whether the text is a non-negative integer of at most nine digits."""
    # str.isdigit is also true for superscript digits, which int() does not accept.
    return text.isascii() and text.isdigit() and len(text) < 10


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 of the 200 classes with 4 training and 2 test images each."""
    base, rows = folder / FOLDER, []
    for number, bird in enumerate(("Black_Wren", "Blue_Wren", "Red_Wren", "Sand_Wren"), 1):
        for i in range(6):
            name = f"{number:03d}.{bird}/{bird}_{i:04d}_{number}{i}.jpg"
            draw.save(base / "images" / name, draw.noise_image(rng))
            rows.append((name, number, int(i < 4)))
    # The columns of `rows` are the values of the lists in _LISTS.
    for column, name in enumerate(_LISTS):
        draw.write_lines(base / name, [f"{i} {row[column]}" for i, row in enumerate(rows, 1)])


SET = OfficialSet(
    name="cub200",
    title="CUB-200-2011",
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    licence="non-commercial research and education (unchecked)",
    archives=(
        Archive(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158",
            "97eceeb196236b17998738112f37df78",
            "used by many public loaders, for instance avalanche's datasets/cub200.py",
        ),
    ),
    counts={"images": 11788, "train_images": 5994, "test_images": 5794, "classes": 200},
    training_counts=("train_images",),
    verify=verify,
    tiny=tiny,
)
