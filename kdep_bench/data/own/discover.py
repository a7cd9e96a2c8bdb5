"""Finds the parts of a data set in a folder: pool, class folders, COCO boxes, masks, by split.

Files decide, not only names: a json counts where it is COCO and its images exist, a folder of masks
where every image of another folder has one. The split is read from the names of the path.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdep_bench.data.listing import is_image_name
from kdep_bench.data.user_json import read_user_json
from kdep_bench.errors import KdepError

SPLITS = {
    "train": ("train", "training", "train2014", "train2017"),
    "val": ("val", "valid", "validation", "dev", "val2014", "val2017"),
    "test": ("test", "testing", "eval"),
}
POOL_NAMES = ("pool", "unlabeled", "unlabelled", "images", "photos", "raw")
DEEPEST = 5  # levels of folders that are looked at
_CHECKED = 20  # image names of a json that must exist
_IGNORED_MASK_VALUE = 255
# Names of folders that hold one kind of file each, and no class.
_KINDS = {"image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels", "gt"}
_KINDS |= {"annotation", "annotations", "depth", "segmentation"}
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")


@dataclass
class Discovery:
    """The parts of a data set; an absent part is empty or None.

    Attributes:
        root: the folder that was searched.
        pool: images for pre-training.
        pool_labels: whether the sub-folders of the pool are classes.
        classify: folder of class folders by split.
        coco: (json, folder of its images) by split.
        masks: (folder of images, folder of masks) by split.
        mask_values: the largest value in a mask, except 255, plus one; 0 without masks.
        notes: what was decided, or left out, and why.
    """

    root: Path
    pool: Path | None = None
    pool_images: int = 0
    pool_labels: bool = False
    classify: dict[str, Path] = field(default_factory=dict)
    coco: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    masks: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    mask_values: int = 0
    notes: list[str] = field(default_factory=list)


def discover(root: Path, classes_of_boxes: bool = False) -> Discovery:
    """The parts of the data set below `root`.

    Args:
        root: the folder to search.
        classes_of_boxes: folders of images with boxes can be classes too.

    Raises:
        KdepError: no such folder, or no image in it.
    """
    if not root.is_dir():
        raise KdepError(
            f"the folder {root} does not exist", fix="name the folder that holds your images"
        )
    parts = Discovery(root)
    folders = dict(_walk(root, parts.notes))
    if not any(images for images, _ in folders.values()):
        raise KdepError(
            f"the folder {root} contains no image, down to {DEEPEST} levels of folders",
            expected="files such as .jpg or .png",
            fix="name the folder that holds your images"
            + "".join(f"; {note}" for note in parts.notes[:3]),
        )
    _find_boxes(parts, folders)
    _find_masks(parts, folders)
    _find_classes(parts, folders, classes_of_boxes)
    for part in (parts.classify, parts.coco, parts.masks):
        _complete(part, parts.notes)
    _find_pool(parts, folders)
    return parts


Folders = Mapping[Path, tuple[list[str], list[str]]]


def _walk(root: Path, notes: list[str]) -> Iterator[tuple[Path, tuple[list[str], list[str]]]]:
    """(folder, (image names, json names)) of the root and the folders below it, sorted.

    A folder that links lead to a second time is left out. `notes` receives the folders that cannot
    be read, and the first that is too deep.
    """
    seen: set[str] = set()
    too_deep: list[Path] = []

    def unreadable(e: OSError) -> None:
        notes.append(f"{e.filename}: left out, because it cannot be read ({e.strerror})")

    for where, inner, names in os.walk(root, onerror=unreadable, followlinks=True):
        if os.path.realpath(where) in seen:
            inner[:] = []
            continue
        seen.add(os.path.realpath(where))
        folder = Path(where)
        inner[:] = sorted(n for n in inner if not n.startswith((".", "__")))
        if len(folder.relative_to(root).parts) >= DEEPEST:
            too_deep += [folder / n for n in inner]
            inner[:] = []
        images = sorted(n for n in names if is_image_name(n) and not n.startswith("."))
        yield folder, (images, sorted(n for n in names if n.endswith(".json")))
    if too_deep:
        notes.append(
            f"{too_deep[0]}: left out, because only {DEEPEST} levels of folders are searched"
            + (f", like {len(too_deep) - 1} more" if len(too_deep) > 1 else "")
        )


def split_of(path: Path, root: Path) -> str | None:
    """The split that the last fitting word of a path below `root` names; None without one."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(root).as_posix().lower())
    for word in reversed(words):
        for split, names in SPLITS.items():
            if word in names:
                return split
    return None


def _find_boxes(parts: Discovery, folders: Folders) -> None:
    """COCO files by split, each with the nearest folder that holds its images.

    Files with keypoints count only where no other file of boxes has been found.
    """
    candidates: list[tuple[str, Path, Any]] = []
    of_keypoints: list[tuple[str, Path, Any]] = []
    for folder, (_, jsons) in folders.items():
        for name in jsons:
            path = folder / name
            table = _coco(path, parts.notes)
            if table is None:
                continue
            split = split_of(path, parts.root)
            if split is None:
                parts.notes.append(f"{path}: its path names no split, so it is left out")
                continue
            images = _folder_of(table, path, folders, parts.root)
            if images is None:
                parts.notes.append(f"{path}: no folder holds its images, so it is left out")
                continue
            kind = of_keypoints if _has_keypoints(table) else candidates
            kind.append((split, path, (path, images)))
    for _, path, _ in of_keypoints:
        parts.notes.append(
            f"{path}: left out, because it describes keypoints and other files have boxes"
            if candidates
            else f"{path}: it describes keypoints; only its boxes are used"
        )
    parts.coco = _one_data_set(candidates or of_keypoints, parts)


def _one_data_set(candidates: Sequence[tuple[str, Path, Any]], parts: Discovery) -> dict[str, Any]:
    """The candidates of one data set by split; notes name the others.

    Splits of one data set have paths that are equal without the names of splits. Where no such
    group has a training and another split, the first candidate of each split counts.

    Args:
        candidates: (split, its file or folder, the value to return).
        parts: for its root, and for notes.
    """
    groups: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    of_split: dict[str, tuple[Path, Any]] = {}
    for split, path, value in candidates:
        groups[_without_split(path, parts.root)].setdefault(split, value)
        of_split.setdefault(split, (path, value))
    whole = [g for g in groups.values() if "train" in g and len(g) > 1]
    chosen = whole[0] if whole else {split: value for split, (_, value) in of_split.items()}
    if not whole and len(chosen) > 1:
        paths = ", ".join(f"{split} {path}" for split, (path, _) in of_split.items())
        parts.notes.append(f"the splits have paths of other forms, check that they fit: {paths}")
    for split, path, value in candidates:
        if chosen.get(split) is not value:
            parts.notes.append(f"{path}: left out, because another data set was found first")
    return chosen


def _without_split(path: Path, root: Path) -> tuple[str, ...]:
    """The words of a path below `root` without names of splits."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(root).as_posix().lower())
    splits = {name for names in SPLITS.values() for name in names}
    return tuple(w for w in words if w and w not in splits)


def _coco(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The content of a COCO json with boxes; None for another file, with a note if it is COCO."""
    try:
        table = read_user_json(path)
    except KdepError as e:
        notes.append(f"{path}: left out: {e.problem}")
        return None
    lists = ("images", "annotations")
    if not isinstance(table, dict) or not all(isinstance(table.get(k), list) for k in lists):
        return None
    if not table["images"]:
        notes.append(f"{path}: left out, because its list of images is empty")
        return None
    boxes = [_has_area(a) for a in table["annotations"] if isinstance(a, dict)]
    if _has_keypoints(table) and not all(boxes):
        notes.append(
            f"{path}: left out, because it describes keypoints, and {boxes.count(False)} of its "
            f"{len(boxes)} annotations have no box with an area"
        )
    elif not any(boxes) or not isinstance(table.get("categories"), list):
        notes.append(f"{path}: left out, because it has no boxes of classes")  # captions, ...
    else:
        return table
    return None


def _has_area(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation has a box of four numbers with a width and a height above 0."""
    box = annotation.get("bbox")
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
        and min(box[2:]) > 0
    )


def _has_keypoints(table: Mapping[str, Any]) -> bool:
    return any(isinstance(a, dict) and "keypoints" in a for a in table["annotations"])


def _folder_of(table: Mapping[str, Any], path: Path, folders: Folders, root: Path) -> Path | None:
    """The folder below which the first images of a COCO json exist, the nearest to the json.

    Splits may repeat file names, so that the folder of another split never counts.
    """
    entries = [e for e in table["images"][:_CHECKED] if isinstance(e, dict)]
    names = [e["file_name"] for e in entries if isinstance(e.get("file_name"), str)]
    split = split_of(path, root)
    below = all(not os.path.isabs(n) and ".." not in Path(n).parts for n in names)
    is_file = os.path.isfile  # unlike Path.is_file, False for a name that no file can have
    fitting = [f for f in folders if names and below and all(is_file(f / n) for n in names)]
    same = [f for f in fitting if split_of(f, root) == split]
    fitting = same or [f for f in fitting if split_of(f, root) is None]
    return min(fitting, key=lambda f: (_steps(f, path.parent), str(f)), default=None)


def _steps(first: Path, second: Path) -> int:
    """Number of folders between two folders."""
    common = os.path.commonpath([first, second])
    return sum(len(f.relative_to(common).parts) for f in (first, second))


def _find_masks(parts: Discovery, folders: Folders) -> None:
    """Pairs of an image folder and a folder of one-channel PNGs with the same names."""
    by_names: dict[frozenset[str], list[Path]] = defaultdict(list)
    for folder, (images, _) in folders.items():
        if images:
            by_names[frozenset(os.path.splitext(n)[0] for n in images)].append(folder)
    candidates: list[tuple[str, Path, Any]] = []
    for same in by_names.values():
        masks = [f for f in same if _are_masks(f, folders[f][0])]
        image_folders = [f for f in same if f not in masks]
        for folder in masks:
            split = split_of(folder, parts.root)
            partners = [f for f in image_folders if split_of(f, parts.root) == split]
            if split is None or not partners:
                continue
            nearest = min(partners, key=lambda f, m=folder: (_steps(f, m), str(f)))
            candidates.append((split, folder, (nearest, folder)))
    candidates.sort(key=lambda c: c[1])
    parts.masks = _one_data_set(candidates, parts)
    values = [_values(m, folders[m][0]) for _, m in parts.masks.values()]
    parts.mask_values = max(values, default=0)
    if parts.masks and not 2 <= parts.mask_values <= _IGNORED_MASK_VALUE:
        parts.notes.append(
            f"{parts.masks[min(parts.masks)][1]}: left out, because mask values are numbers of "
            f"classes from 0 on, 2 to {_IGNORED_MASK_VALUE} of them ({_IGNORED_MASK_VALUE} is "
            f"ignored); these have {parts.mask_values}"
        )
        parts.masks, parts.mask_values = {}, 0


def _are_masks(folder: Path, names: list[str]) -> bool:
    """Whether the first images are PNGs with one channel."""
    if not all(n.lower().endswith(".png") for n in names):
        return False
    return all(_mode(folder / n) in _ONE_CHANNEL for n in names[:_CHECKED])


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _values(folder: Path, names: list[str]) -> int:
    """The largest mask value of a folder, except 255, plus one."""
    largest = -1
    for name in names:
        try:
            with Image.open(folder / name) as image:
                values = np.asarray(image)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # stage prepare names the broken file
        values = values[values != _IGNORED_MASK_VALUE]
        largest = max(largest, int(values.max()) if values.size else -1)
    return largest + 1


def _find_classes(parts: Discovery, folders: Folders, classes_of_boxes: bool) -> None:
    """Folders of class folders: splits side by side, each with the same two or more classes."""
    of_masks = {folder for pair in parts.masks.values() for folder in pair}
    of_boxes = {images for _, images in parts.coco.values()}
    candidates: dict[Path, dict[str, Path]] = defaultdict(dict)
    for folder, (images, _) in folders.items():
        inner = _inner(folder, folders)
        split = split_of(Path(folder.name), Path())
        if split and len(inner) >= 2 and not images and not of_masks & {folder, *inner}:
            if kinds := [f.name for f in inner if f.name.lower() in _KINDS]:
                parts.notes.append(f"{folder}: its folder {kinds[0]} is no class, so it has none")
                continue
            candidates[folder.parent][split] = folder
    for parent, splits in candidates.items():
        classes = {split: {f.name for f in _inner(f, folders)} for split, f in splits.items()}
        if "train" not in splits or len(splits) < 2:
            where = ", ".join(map(str, splits.values()))
            parts.notes.append(f"{where}: no classification, which needs train and test")
            continue
        same = {s: f for s, f in splits.items() if classes[s] == classes["train"]}
        for split in splits.keys() - same.keys():
            parts.notes.append(f"{splits[split]}: other classes than {splits['train']}")
        if len(same) < 2:
            continue
        has_boxes = any(of_boxes & {f, *_inner(f, folders)} for f in same.values())
        if has_boxes and not classes_of_boxes:
            parts.notes.append(
                f"{parent}: no classification, because its images also have boxes, and folders of "
                "images with boxes are often no classes; if they are, run init again with "
                "--classes-of-boxes and another --name"
            )
        elif parts.classify:
            parts.notes.append(f"{parent}: left out, because other class folders were found first")
        else:
            parts.classify = same


def _inner(folder: Path, folders: Folders) -> list[Path]:
    """The folders directly below a folder that hold images."""
    return [f for f in folders if f.parent == folder and folders[f][0]]


def _complete(part: dict[str, Any], notes: list[str]) -> None:
    """A part needs train and test: without a test split the validation split is the test."""
    if "val" in part and "test" not in part:
        part["test"] = part.pop("val")
        where = part["test"][0] if isinstance(part["test"], tuple) else part["test"]
        notes.append(f"{where}: there is no test split, so the validation split is the test split")
    if part and not {"train", "test"} <= part.keys():
        notes.append(f"only the split {', '.join(part)} of {next(iter(part.values()))}: left out")
        part.clear()


def _find_pool(parts: Discovery, folders: Folders) -> None:
    """Images for pre-training: a folder named so, or the training images of a part."""
    evaluated = [p for s, p in parts.classify.items() if s != "train"]
    evaluated += [images for s, (_, images) in parts.coco.items() if s != "train"]
    evaluated += [images for s, (images, _) in parts.masks.items() if s != "train"]
    labelled = [*evaluated, *(masks for _, masks in parts.masks.values())]

    def count(folder: Path) -> int:
        return sum(len(images) for f, (images, _) in folders.items() if f.is_relative_to(folder))

    named = [
        f
        for f in folders
        if f.name.lower() in POOL_NAMES
        and count(f)
        and not any(e.is_relative_to(f) or f.is_relative_to(e) for e in labelled)
    ]
    if named:
        parts.pool = max(named, key=lambda f: (count(f), str(f)))
    elif "train" in parts.classify:
        parts.pool, parts.pool_labels = parts.classify["train"], True
        parts.notes.append(f"{parts.pool}: the training images are also the pool")
    elif parts.coco or parts.masks:
        parts.pool = parts.coco["train"][1] if parts.coco else parts.masks["train"][0]
        parts.notes.append(f"{parts.pool}: the training images are also the pool")
        if any(e.is_relative_to(parts.pool) for e in evaluated):
            parts.notes[-1] = (
                f"{parts.pool}: the pool, although it also holds test images, so that scores would "
                "be too high and carry a note; move the training images to a folder of their own"
            )
    else:
        parts.pool = parts.root
        inner = _inner(parts.root, folders)
        if len(inner) >= 2 and not any(split_of(f, parts.root) for f in inner):
            parts.notes.append(
                f"{parts.root}: no classification, because no folder is named train or test; if "
                f"{inner[0].name}, {inner[1].name}, ... are classes, move their images to "
                "train/CLASS and test/CLASS"
            )
    parts.pool_images = count(parts.pool)
