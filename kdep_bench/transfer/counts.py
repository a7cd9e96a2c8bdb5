"""Compares the number of images in files and annotations with the number that a data set loads.

The data sets of the toolkits have their own rules for which files are images. If one of them
skipped images, only a part of the split would be scored, and no error would be raised.
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
    """Number of images that a data set must load.

    Attributes:
        role: the data loader that reads the split.
        split: name of the split.
        images: number of images.
        place: folder or file in which the images were counted.
        note: note on images that are intentionally omitted; "" if there are none.
    """

    role: Role
    split: str
    images: int
    place: Path
    note: str = ""


def compare(task: str, counted: Iterable[SplitCount], loaded: Mapping[str, int]) -> list[str]:
    """Compares counted images with the lengths of data sets.

    Args:
        task: name of the task, for errors.
        counted: one SplitCount per role.
        loaded: lengths of the data sets, by role.

    Returns:
        notes on images that are intentionally omitted.

    Raises:
        KdepError: a length differs, or there is no SplitCount for a role.
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
    return [count.note for count in by_role.values() if count.note]


def trained_images(
    table: Mapping[str, Any], classes: Iterable[str], min_size: int
) -> tuple[int, str]:
    """Number of images in a COCO json that mmdet trains on, and a note on the omitted images.

    mmdet's `filter_cfg` omits images without annotations of `classes`, and images whose shorter
    side is below `min_size` pixels.
    """
    names = set(classes)
    category_ids = {c["id"] for c in table["categories"] if c["name"] in names}
    with_boxes = {a["image_id"] for a in table["annotations"] if a["category_id"] in category_ids}
    images = table["images"]
    small = sum(min(i["width"], i["height"]) < min_size for i in images)
    used = sum(i["id"] in with_boxes and min(i["width"], i["height"]) >= min_size for i in images)
    return used, omission_note(len(images), used, small, min_size)


def omission_note(images: int, used: int, small: int, min_size: int) -> str:
    """A note on the training images that a detector does not use; "" if it uses all.

    Args:
        images: number of images.
        used: number of images that are used.
        small: number of images with a side below `min_size` pixels.
        min_size: see `trained_images`.
    """
    if used == images:
        return ""
    reasons = [f"{small} under {min_size} pixels"] if small else []
    if images - used - small > 0:
        reasons.append(f"{images - used - small} without a box")
    return f"{images - used} of {images} training images are left out: {', '.join(reasons)}"
