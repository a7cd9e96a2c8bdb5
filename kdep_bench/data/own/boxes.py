"""The user's detection data: checks the json of each split and writes a canonical COCO json.

In the canonical json, images are sorted by file name, categories by name, and annotations by
(image, category, box); all are numbered from 1. So two user files that differ only in ids or in the
order of lists and keys result in the same file, and in the same scores.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.images import ImageInfo, check_orientation, placed_name
from kdep_bench.data.listing import list_images, shown
from kdep_bench.data.own.coco_json import Boxes, read_boxes
from kdep_bench.data.own.names import listed, pair_text, similar_names
from kdep_bench.data.own.spec import DataConfig
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults
from kdep_bench.files import canonical_json, write_atomic

FOLDER = "detect"
MIN_SIDE = 1.0  # pixels; mmdet ignores boxes of smaller width or height in training


def read_all(config: DataConfig, faults: Faults) -> dict[str, Boxes]:
    """Reads the annotations of every split, and checks each split and the splits together."""
    splits: dict[str, Boxes] = {}
    count_at_start = len(faults)
    for split, (path, folder) in config.coco.items():
        count_before = len(faults)
        boxes = read_boxes(path, folder, faults)
        if boxes is None:
            continue
        with faults.collect():
            _check_files(boxes)
        splits[split] = boxes
        if len(faults) == count_before:
            with faults.collect():
                _check_scorable(split, boxes)
    with faults.collect():
        _check_same_file(config)
    if len(splits) == len(config.coco):
        with faults.collect():
            class_names(splits)
            # Annotations with a fault were not read, so classes could wrongly look absent.
            if len(faults) == count_at_start:
                _check_trainable(splits, config, faults)
    return splits


def class_names(splits: Mapping[str, Boxes]) -> list[str]:
    """The class names of all splits, sorted.

    Raises:
        KdepError: no split has all names; then the splits probably spell them differently.
    """
    sets = {split: set(b.categories) for split, b in splits.items()}
    all_names = set().union(*sets.values())
    if splits and not any(names == all_names for names in sets.values()):
        # No split has all names, so another split has a name that the reference does not have.
        reference = "train" if "train" in sets else next(iter(sets))
        split = next(s for s in sets if sets[s] - sets[reference])
        extra, missing = sorted(sets[split] - sets[reference]), sorted(all_names - sets[split])
        similar = similar_names([*extra, *missing]) or [
            (a, b[0]) for a in extra if (b := difflib.get_close_matches(a, missing, 1, 0.8))
        ]
        hint = f"; {pair_text(*similar[0])} look like one class" if similar else ""
        raise KdepError(
            f"the classes of {splits[split].path} and {splits[reference].path} differ: only the "
            f"first has {listed(extra)}, only the second has {listed(missing)}{hint}",
            expected="one list of class names in all splits (ids and order do not matter)",
            fix="export all splits with the same categories, or rename them in one file",
        )
    return sorted(all_names)


def _check_files(boxes: Boxes) -> None:
    """Raises KdepError if images of the json are missing, or the search for images ignores them."""
    missing = [n for n in boxes.sizes if not os.path.lexists(boxes.folder / n)]
    if missing:
        hint = (
            "use / instead of \\ in the file names"
            if "\\" in missing[0]
            else "check that `images` is the right folder and that all images were copied"
        )
        raise KdepError(
            f"{len(missing)} of {len(boxes.sizes)} images named in {boxes.path} are not in "
            f"{boxes.folder}, the first is {missing[0]}",
            fix=hint,
        )
    # The hash that identifies the data covers only the images of this listing.
    listed_images = set(list_images(boxes.folder).images)
    unlisted = [n for n in boxes.sizes if n not in listed_images]
    if unlisted:
        raise KdepError(
            f"{len(unlisted)} of {len(boxes.sizes)} images named in {boxes.path} have a name that "
            f"is ignored when {boxes.folder} is searched for images, the first is {unlisted[0]}: "
            "no image suffix, a hidden file or folder, or a folder of an operating system",
            expected="names such as a/0.jpg, with the suffix of their format",
            fix="rename the file or folder, and its file_name in the json accordingly",
        )


def _check_same_file(config: DataConfig) -> None:
    """Raises KdepError if two splits use the same json."""
    seen: dict[Path, str] = {}
    for split, (path, _) in config.coco.items():
        if earlier := seen.get(path.resolve()):
            raise KdepError(
                f"the splits {earlier} and {split} use the same json file {path}",
                fix="give each split its own file in `coco` of the data config",
            )
        seen[path.resolve()] = split


def _check_scorable(split: str, boxes: Boxes) -> None:
    """Raises KdepError if a split has no box that is used for training and score."""
    if any(not b.crowd for b in boxes.boxes):
        return
    problem = (
        f"all {len(boxes.boxes)} annotations of {boxes.path} have iscrowd or ignore set to 1"
        if boxes.boxes
        else f"the file {boxes.path} has no annotations"
    )
    purpose = "training" if split == "train" else "the score"
    raise KdepError(
        problem,
        expected=f"boxes with iscrowd 0 for {purpose}",
        fix=f"add boxes to this json, or remove `coco.{split}` from the data config"
        if split != "train"
        else "add boxes to this json, or remove `coco` from the data config and its tasks from "
        "the suite",
    )


def _check_trainable(splits: Mapping[str, Boxes], config: DataConfig, faults: Faults) -> None:
    """Adds a fault for each split that has boxes of a class without a usable box in `train`."""
    if "train" not in splits:
        return
    train = splits["train"]
    if all(b.crowd for b in train.boxes):
        return
    usable = Counter(b.category for b in train.boxes if not b.crowd and min(b.bbox[2:]) >= MIN_SIDE)
    for split, boxes in splits.items():
        scored = {b.category for b in boxes.boxes if not b.crowd}
        missing = sorted(c for c in scored if not usable[c] and c not in config.allow_absent)
        if split == "train" or not missing:
            continue
        faults.add(
            KdepError(
                f"the file {train.path} has no box of {listed(missing, 500)} to train on (iscrowd "
                f"0, at least {MIN_SIDE:g} px wide and high), but {boxes.path} has; their AP "
                "would be 0 for every method",
                fix=f"add boxes to {train.path.name}, remove the class from {boxes.path.name}, or "
                "add it to `allow_absent` in the data config",
            )
        )


def check_sizes(boxes: Boxes, info: Mapping[Path, ImageInfo], faults: Faults) -> None:
    """Adds a fault for each image whose size differs from the one stated in the json."""
    for name, (width, height) in boxes.sizes.items():
        file = boxes.folder / name
        if file not in info:  # the image has a fault, which is already reported
            continue
        image = info[file]
        with faults.collect(f"{boxes.path} size"):
            check_orientation(file, image, width, height, str(boxes.path))
            if (width, height) != image.upright:
                raise KdepError(
                    f"the image {shown(file)} is {image.upright[0]}x{image.upright[1]}",
                    expected=f"{width}x{height}, the size in {boxes.path}",
                    fix="copy both again (image and annotations are of different versions), or "
                    "correct width and height in the json if its boxes fit the image",
                )


def write(
    split: str, boxes: Boxes, classes: list[str], info: Mapping[Path, ImageInfo], data: Path
) -> dict[Path, Path]:
    """Writes the canonical json of a split.

    Args:
        split: name of the split.
        boxes: its annotations.
        classes: class names of all splits, sorted.
        info: ImageInfo by the user's file.
        data: root folder of the layout.

    Returns:
        {user's image: its path in the layout}.
    """
    names = {n: placed_name(n, info[boxes.folder / n]) for n in boxes.sizes}
    order = sorted(names, key=lambda n: names[n])
    image_ids = {n: i for i, n in enumerate(order, 1)}
    class_ids = {c: i for i, c in enumerate(classes, 1)}
    rows = sorted(
        (image_ids[b.image], class_ids[b.category], b.bbox, b.area, b.crowd) for b in boxes.boxes
    )
    table: dict[str, Any] = {
        "images": [
            {"id": image_ids[n], "file_name": names[n], **_size(boxes.sizes[n])} for n in order
        ],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": area,
                "iscrowd": int(crowd),
            }
            for i, (image, category, box, area, crowd) in enumerate(rows, 1)
        ],
        "categories": [{"id": class_ids[c], "name": c} for c in classes],
    }
    write_atomic(data / FOLDER / "annotations" / f"{split}.json", canonical_json(table))
    return {boxes.folder / n: data / FOLDER / split / names[n] for n in boxes.sizes}


def _size(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


def copy_notes(splits: Mapping[str, Boxes], config: DataConfig) -> list[str]:
    """A note for each split whose boxes are all equal to boxes of the training split."""
    if "train" not in splits:
        return []
    train = Counter(splits["train"].boxes)
    return [
        f"every box of {split} is also in train, in an image with the same name: one json may be a "
        "copy of the other"
        for split, boxes in splits.items()
        if split != "train"
        and frozenset((f"coco/{split}", "coco/train")) not in config.allow_duplicates
        and Counter(boxes.boxes) <= train
    ]


def card(splits: Mapping[str, Boxes], classes: list[str]) -> dict[str, Any]:
    """Counts of boxes by split and class, for the data card."""
    out: dict[str, Any] = {"classes": classes, "splits": {}}
    for split, boxes in splits.items():
        scored = Counter(b.category for b in boxes.boxes if not b.crowd)
        out["splits"][split] = {
            "images": len(boxes.sizes),
            "images_without_boxes": len(boxes.sizes)
            - len({b.image for b in boxes.boxes if not b.crowd}),
            "boxes": {c: scored[c] for c in classes},
            "crowds": sum(b.crowd for b in boxes.boxes),
            "repeated_annotations": boxes.repeated,
            "thinner_than_1_px": sum(min(b.bbox[2:]) < MIN_SIDE for b in boxes.boxes),
        }
    return out


def notes(config: DataConfig, counted: Mapping[str, Any]) -> list[str]:
    """Notes on absent classes and repeated annotations, to show with the scores on these boxes.

    `counted`: the result of `card`.
    """
    out = []
    splits, classes = counted["splits"], counted["classes"]
    train = splits.get("train", {"boxes": {}})["boxes"]
    for split, row in splits.items():
        absent = [c for c in classes if not row["boxes"][c]]
        if split != "train" and absent:
            out.append(
                f"{split} has no box of {listed(absent)}: its AP is the mean over the other "
                f"{len(classes) - len(absent)} of {len(classes)} classes"
            )
        if row["repeated_annotations"]:
            out.append(f"{row['repeated_annotations']} annotations of {split} are repeated")
    allowed = sorted(c for c in config.allow_absent if c in classes and not train.get(c))
    if allowed:
        out.append(f"train has no box of {listed(allowed)} (allowed by the data config)")
    return out
