"""Images counted from files and annotations, against those that a built data set loads.

A toolkit's data set has its own idea of what an image is. Where it skips one, a score would be that
of a part of the split without a word: `compare` refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError

Role = Literal["train", "val", "test"]


@dataclass(frozen=True)
class SplitCount:
    """Images that a split must load.

    Attributes:
        role: the loader that reads the split.
        split: its name.
        images: how many images it must load.
        place: folder or file that was counted.
        left_out: images that are left out on purpose, in words; "" for none.
    """

    role: Role
    split: str
    images: int
    place: Path
    left_out: str = ""


def compare(task: str, counted: Iterable[SplitCount], loaded: Mapping[str, int]) -> list[str]:
    """Compares the counts with the lengths of the built data sets, by role.

    Returns:
        What was left out on purpose, one note per split.

    Raises:
        KdepError: a data set of another length, or one that nothing was counted for.
    """
    by_role = {c.role: c for c in counted}
    for role, images in loaded.items():
        if role not in by_role:
            raise KdepError(
                f"the `check_data` of task {task} returned no image count for its {role} data",
                expected="one SplitCount per loader",
                fix="return it in the task's class",
            )
        count = by_role[role]
        if images != count.images:
            place = shown(count.place.resolve())
            raise KdepError(
                f"task {task} loads {images} images of the split {count.split}, but {place} "
                f"contains {count.images}",
                fix="move hidden folders and files that are not images out of that folder, then "
                "run again",
            )
    return [c.left_out for c in by_role.values() if c.left_out]


def trained_images(
    table: Mapping[str, Any], classes: Iterable[str], min_size: int
) -> tuple[int, str]:
    """(number of images in a COCO table that mmdet trains on, a sentence on those it leaves out).

    mmdet's `filter_cfg` drops images without an annotation of `classes`, and images whose shorter
    side is under `min_size` pixels.
    """
    names = set(classes)
    known = {c["id"] for c in table["categories"] if c["name"] in names}
    with_boxes = {a["image_id"] for a in table["annotations"] if a["category_id"] in known}
    images = table["images"]
    small = sum(min(i["width"], i["height"]) < min_size for i in images)
    kept = sum(i["id"] in with_boxes and min(i["width"], i["height"]) >= min_size for i in images)
    return kept, left_out(len(images), kept, small, min_size)


def left_out(images: int, kept: int, small: int, min_size: int) -> str:
    """The note on training images that a detector leaves out; "" where it leaves out none."""
    if kept == images:
        return ""
    reasons = [f"{small} under {min_size} pixels"] if small else []
    if images - kept - small > 0:
        reasons.append(f"{images - kept - small} without a box")
    return f"{images - kept} of {images} training images are left out: {', '.join(reasons)}"
