"""Searches a folder for the parts of a data set: pool, class folders, COCO boxes and masks.

The content of files is checked, not only their names: a json is used if it is a COCO file and its
first images exist, a folder of masks if it has a mask for every image of another folder. The split
is read from the path ("train", "val", ...).
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
from kdep_bench.errors import KdepError, first_of

SPLITS = {
    "train": ("train", "training", "train2014", "train2017"),
    "val": ("val", "valid", "validation", "dev", "val2014", "val2017"),
    "test": ("test", "testing", "eval"),
}
POOL_NAMES = ("pool", "unlabeled", "unlabelled", "images", "photos", "raw")
MAX_DEPTH = 5  # levels of folders that are searched
_N_CHECKED = 20  # number of images per json or folder that are checked
_IGNORED_MASK_VALUE = 255
# Names of folders that are for a kind of file, and so are not classes.
_KINDS = {"image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels", "gt"}
_KINDS |= {"annotation", "annotations", "depth", "segmentation"}
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")


@dataclass
class Discovery:
    """The parts of a data set; an absent part is empty or None.

    Attributes:
        root: the folder that was searched.
        pool: folder of images for pre-training.
        pool_images: number of images in the pool.
        pool_labels: whether the sub-folders of the pool are classes.
        classify: folder of class folders by split.
        coco: (json, folder of its images) by split.
        masks: (folder of images, folder of masks) by split.
        n_mask_classes: the largest mask value except 255, plus one; 0 without masks.
        notes: decisions and what was left out, with reasons, as text for the user.
    """

    root: Path
    pool: Path | None = None
    pool_images: int = 0
    pool_labels: bool = False
    classify: dict[str, Path] = field(default_factory=dict)
    coco: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    masks: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    n_mask_classes: int = 0
    notes: list[str] = field(default_factory=list)


def discover(root: Path, box_folders_are_classes: bool = False) -> Discovery:
    """Searches the folder `root` for the parts of a data set.

    Args:
        root: the folder to search.
        box_folders_are_classes: whether folders of images with boxes may be used as classes.

    Raises:
        KdepError: the folder does not exist, contains no image, or the first image of each of its
            folders cannot be read.
    """
    if not root.is_dir():
        raise KdepError(
            f"{root} is a file" if root.exists() else f"the folder {root} does not exist",
            fix="give the folder that contains your images",
        )
    parts = Discovery(root)
    folders = dict(_walk(root, parts.notes))
    if not any(images for images, _ in folders.values()):
        raise KdepError(
            f"the folder {root} contains no image (searched {MAX_DEPTH} levels deep)",
            expected="files such as .jpg or .png",
            fix="give the folder that contains your images"
            + (f"; {first_of(parts.notes, 3, '; ')}" if parts.notes else ""),
        )
    _note_unreadable_images(parts, folders)
    _find_boxes(parts, folders)
    _find_masks(parts, folders)
    _find_classes(parts, folders, box_folders_are_classes)
    for part in (parts.classify, parts.coco, parts.masks):
        _require_test_split(part, parts.notes)
    _find_pool(parts, folders)
    return parts


Folders = Mapping[Path, tuple[list[str], list[str]]]  # folder -> (image names, json names)


def _walk(root: Path, notes: list[str]) -> Iterator[tuple[Path, tuple[list[str], list[str]]]]:
    """Yields (folder, (image names, json names)) for the root and the folders below it, sorted.

    A folder that is reached twice, through links, is yielded once. Notes on folders that cannot be
    read or are too deep are added to `notes`.
    """
    seen: set[str] = set()
    too_deep: list[Path] = []

    def note_unreadable(e: OSError) -> None:
        notes.append(f"{e.filename}: left out, because it cannot be read ({e.strerror})")

    for path, subfolders, names in os.walk(root, onerror=note_unreadable, followlinks=True):
        if os.path.realpath(path) in seen:
            subfolders[:] = []  # os.walk then does not descend
            continue
        seen.add(os.path.realpath(path))
        folder = Path(path)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith((".", "__")))
        if len(folder.relative_to(root).parts) >= MAX_DEPTH:
            too_deep += [folder / n for n in subfolders]
            subfolders[:] = []
        images = sorted(n for n in names if is_image_name(n) and not n.startswith("."))
        yield folder, (images, sorted(n for n in names if n.endswith(".json")))
    if too_deep:
        notes.append(
            f"{too_deep[0]}: left out, because only {MAX_DEPTH} levels of folders are searched"
            + (f", and {len(too_deep) - 1} more" if len(too_deep) > 1 else "")
        )


def _note_unreadable_images(parts: Discovery, folders: Folders) -> None:
    """Adds a note for every folder whose first image cannot be read.

    Stage `prepare` reads every image, so one image per folder is enough here.

    Raises:
        KdepError: the first images of all folders cannot be read.
    """
    first = [folder / images[0] for folder, (images, _) in folders.items() if images]
    unreadable = [path for path in first if not _mode(path)]
    if len(unreadable) == len(first):
        whose = "each of its folders" if len(first) > 1 else "its folder"
        raise KdepError(
            f"the folder {parts.root} contains no readable image: the first file of {whose} is "
            f"damaged or not an image (for example {unreadable[0]})",
            fix="remove or replace the damaged files, or give the folder that contains your images",
        )
    parts.notes += [f"{path}: cannot be read as an image; replace it" for path in unreadable]


def _split(path: Path, root: Path) -> str | None:
    """The split that a path below `root` names; of several names the last; None without any."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(root).as_posix().lower())
    for word in reversed(words):
        for split, names in SPLITS.items():
            if word in names:
                return split
    return None


def _find_boxes(parts: Discovery, folders: Folders) -> None:
    """Sets `parts.coco`: COCO files, each with the nearest folder that contains its images.

    Files with keypoints are used only if there are no other files with boxes.
    """
    candidates: list[tuple[str, Path, Any]] = []
    keypoint_files: list[tuple[str, Path, Any]] = []
    for folder, (_, jsons) in folders.items():
        for name in jsons:
            path = folder / name
            table = _coco(path, parts.notes)
            if table is None:
                continue
            split = _split(path, parts.root)
            if split is None:
                parts.notes.append(f"{path}: left out, because its path contains no split name")
                continue
            images = _image_folder(table, path, folders, parts.root)
            if images is None:
                parts.notes.append(f"{path}: left out, because no folder contains its images")
                continue
            group = keypoint_files if _has_keypoints(table) else candidates
            group.append((split, path, (path, images)))
    for _, path, _ in keypoint_files:
        parts.notes.append(
            f"{path}: left out, because it describes keypoints and other files have boxes"
            if candidates
            else f"{path}: describes keypoints; only its boxes are used"
        )
    parts.coco = _one_data_set(candidates or keypoint_files, parts)


def _one_data_set(candidates: Sequence[tuple[str, Path, Any]], parts: Discovery) -> dict[str, Any]:
    """Chooses the candidates that belong to one data set; the others are listed in the notes.

    Candidates belong together if their paths are equal after the names of splits are removed. The
    first such group with a training split and another split is chosen. Without such a
    group, the first candidate of each split is chosen.

    Args:
        candidates: (split, its file or folder, the value to return).
        parts: has the root; notes are added to it.

    Returns:
        value by split.
    """
    groups: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    first: dict[str, tuple[Path, Any]] = {}  # split -> its first candidate
    for split, path, value in candidates:
        groups[_without_split(path, parts.root)].setdefault(split, value)
        first.setdefault(split, (path, value))
    complete = [g for g in groups.values() if "train" in g and len(g) > 1]
    chosen = complete[0] if complete else {split: value for split, (_, value) in first.items()}
    if not complete and len(chosen) > 1:
        paths = ", ".join(f"{split} {path}" for split, (path, _) in first.items())
        parts.notes.append(
            "the paths of the splits are not alike; check that they belong to one data set: "
            f"{paths}"
        )
    for split, path, value in candidates:
        if chosen.get(split) is not value:
            parts.notes.append(f"{path}: left out, because another data set was found first")
    return chosen


def _without_split(path: Path, root: Path) -> tuple[str, ...]:
    """The words of a path below `root`, without the names of splits."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(root).as_posix().lower())
    splits = {name for names in SPLITS.values() for name in names}
    return tuple(w for w in words if w and w not in splits)


def _coco(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The content of a file if it is a COCO json with boxes, otherwise None.

    For a json that cannot be read, and a COCO json that cannot be used, the reason is added to
    `notes`.
    """
    try:
        table = read_user_json(path)
    except KdepError as e:
        notes.append(f"{path}: left out, because {e.problem}")
        return None
    lists = ("images", "annotations")
    if not isinstance(table, dict) or not all(isinstance(table.get(k), list) for k in lists):
        return None
    if not table["images"]:
        notes.append(f"{path}: left out, because its list of images is empty")
        return None
    has_box = [_has_area(a) for a in table["annotations"] if isinstance(a, dict)]
    if _has_keypoints(table) and not all(has_box):
        notes.append(
            f"{path}: left out, because it describes keypoints, and {has_box.count(False)} of its "
            f"{len(has_box)} annotations have no box with an area"
        )
    elif not any(has_box) or not isinstance(table.get("categories"), list):
        # For example a json of captions or of panoptic segments.
        notes.append(f"{path}: left out, because it has no boxes with classes")
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
    """Whether an annotation of a COCO json has keypoints."""
    return any(isinstance(a, dict) and "keypoints" in a for a in table["annotations"])


def _image_folder(
    table: Mapping[str, Any], path: Path, folders: Folders, root: Path
) -> Path | None:
    """The folder, nearest to the json at `path`, that contains the first images of its `table`.

    A folder of another split is not accepted, because splits may have the same file names.
    """
    entries = [e for e in table["images"][:_N_CHECKED] if isinstance(e, dict)]
    names = [e["file_name"] for e in entries if isinstance(e.get("file_name"), str)]
    split = _split(path, root)
    are_relative = all(not os.path.isabs(n) and ".." not in Path(n).parts for n in names)
    if not names or not are_relative:
        return None
    is_file = os.path.isfile  # unlike Path.is_file, it returns False for an invalid name
    candidates = [f for f in folders if all(is_file(f / n) for n in names)]
    same_split = [f for f in candidates if _split(f, root) == split]
    candidates = same_split or [f for f in candidates if _split(f, root) is None]
    return min(candidates, key=lambda f: (_steps(f, path.parent), str(f)), default=None)


def _steps(first: Path, second: Path) -> int:
    """Number of steps up and down in the folder tree from one folder to another."""
    common = os.path.commonpath([first, second])
    return sum(len(f.relative_to(common).parts) for f in (first, second))


def _find_masks(parts: Discovery, folders: Folders) -> None:
    """Sets `parts.masks`: image folders, each with a folder of one-channel PNGs of equal names."""
    by_names: dict[frozenset[str], list[Path]] = defaultdict(list)
    for folder, (images, _) in folders.items():
        if images:
            by_names[frozenset(os.path.splitext(n)[0] for n in images)].append(folder)
    candidates: list[tuple[str, Path, Any]] = []
    for same in by_names.values():
        masks = [f for f in same if _are_masks(f, folders[f][0])]
        image_folders = [f for f in same if f not in masks]
        for folder in masks:
            split = _split(folder, parts.root)
            partners = [f for f in image_folders if _split(f, parts.root) == split]
            if split is None or not partners:
                continue
            nearest = min(partners, key=lambda f, m=folder: (_steps(f, m), str(f)))
            candidates.append((split, folder, (nearest, folder)))
    candidates.sort(key=lambda c: c[1])
    parts.masks = _one_data_set(candidates, parts)
    counts = [_mask_classes(m, folders[m][0]) for _, m in parts.masks.values()]
    parts.n_mask_classes = max(counts, default=0)
    if parts.masks and not 2 <= parts.n_mask_classes <= _IGNORED_MASK_VALUE:
        parts.notes.append(
            f"{parts.masks[min(parts.masks)][1]}: left out, because mask values must be numbers of "
            f"2 to {_IGNORED_MASK_VALUE} classes, from 0 ({_IGNORED_MASK_VALUE} is ignored), but "
            + (
                f"the largest value in these masks is {parts.n_mask_classes - 1}"
                if parts.n_mask_classes
                else f"these masks have only {_IGNORED_MASK_VALUE}"
            )
        )
        parts.masks, parts.n_mask_classes = {}, 0


def _are_masks(folder: Path, names: list[str]) -> bool:
    """Whether all files are PNGs, and the first _N_CHECKED of them have one channel."""
    if not all(n.lower().endswith(".png") for n in names):
        return False
    return all(_mode(folder / n) in _ONE_CHANNEL for n in names[:_N_CHECKED])


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _mask_classes(folder: Path, names: list[str]) -> int:
    """The largest mask value of a folder, except 255, plus one."""
    largest = -1
    for name in names:
        try:
            with Image.open(folder / name) as image:
                values = np.asarray(image)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # stage `prepare` reports damaged files
        values = values[values != _IGNORED_MASK_VALUE]
        largest = max(largest, int(values.max()) if values.size else -1)
    return largest + 1


def _find_classes(parts: Discovery, folders: Folders, box_folders_are_classes: bool) -> None:
    """Sets `parts.classify`: folders named after splits that have the same class folders.

    There must be at least two of these, and the folders of the splits are in one folder.
    """
    mask_folders = {folder for pair in parts.masks.values() for folder in pair}
    box_folders = {images for _, images in parts.coco.values()}
    candidates: dict[Path, dict[str, Path]] = defaultdict(dict)
    for folder, (images, _) in folders.items():
        inner = _inner(folder, folders)
        split = _split(Path(folder.name), Path())
        if split and len(inner) >= 2 and not images and not mask_folders & {folder, *inner}:
            if kinds := [f.name for f in inner if f.name.lower() in _KINDS]:
                parts.notes.append(
                    f"{folder}: its folders are not used as classes, because one is named "
                    f"{kinds[0]}"
                )
                continue
            candidates[folder.parent][split] = folder
    for parent, splits in candidates.items():
        classes = {split: {f.name for f in _inner(f, folders)} for split, f in splits.items()}
        if "train" not in splits or len(splits) < 2:
            paths = ", ".join(map(str, splits.values()))
            parts.notes.append(f"{paths}: no classification, which needs train and test")
            continue
        same = {s: f for s, f in splits.items() if classes[s] == classes["train"]}
        for split in splits.keys() - same.keys():
            parts.notes.append(
                f"{splits[split]}: left out, because it has other classes than {splits['train']}"
            )
        if len(same) < 2:
            continue
        has_boxes = any(box_folders & {f, *_inner(f, folders)} for f in same.values())
        if has_boxes and not box_folders_are_classes:
            parts.notes.append(
                f"{parent}: no classification, because its images also have boxes, and folders of "
                "images with boxes are often not classes; if these are classes, run init again "
                "with --classes-of-boxes and another --name"
            )
        elif parts.classify:
            parts.notes.append(f"{parent}: left out, because other class folders were found first")
        else:
            parts.classify = same


def _inner(folder: Path, folders: Folders) -> list[Path]:
    """The folders directly below a folder that contain images."""
    return [f for f in folders if f.parent == folder and folders[f][0]]


def _require_test_split(part: dict[str, Any], notes: list[str]) -> None:
    """Makes sure that a part has a training and a test split; otherwise empties it.

    Without a test split, the validation split is used as test split.

    Args:
        part: by split, a path or a pair of paths; changed in place.
        notes: notes are added to it.
    """

    def first_path(split: str) -> Path:
        return part[split][0] if isinstance(part[split], tuple) else part[split]

    if "val" in part and "train" in part and "test" not in part:
        part["test"] = part.pop("val")
        notes.append(
            f"{first_path('test')}: the validation split is used as test split, because there is "
            "no test split"
        )
    if part and not {"train", "test"} <= part.keys():
        path = first_path(next(iter(part)))
        notes.append(f"{path}: left out, because there is only the split {', '.join(part)}")
        part.clear()


def _find_pool(parts: Discovery, folders: Folders) -> None:
    """Sets `parts.pool`: a folder of POOL_NAMES, the training images of a part, or the root."""
    evaluated = [p for s, p in parts.classify.items() if s != "train"]
    evaluated += [images for s, (_, images) in parts.coco.items() if s != "train"]
    evaluated += [images for s, (images, _) in parts.masks.items() if s != "train"]
    not_pool = [*evaluated, *(masks for _, masks in parts.masks.values())]

    def count(folder: Path) -> int:
        return sum(len(images) for f, (images, _) in folders.items() if f.is_relative_to(folder))

    named = [
        f
        for f in folders
        if f.name.lower() in POOL_NAMES
        and count(f)
        and not any(e.is_relative_to(f) or f.is_relative_to(e) for e in not_pool)
    ]
    if named:
        parts.pool = max(named, key=lambda f: (count(f), str(f)))
    elif "train" in parts.classify:
        parts.pool, parts.pool_labels = parts.classify["train"], True
        parts.notes.append(f"{parts.pool}: these training images are also used as the pool")
    elif parts.coco or parts.masks:
        parts.pool = parts.coco["train"][1] if parts.coco else parts.masks["train"][0]
        parts.notes.append(f"{parts.pool}: these training images are also used as the pool")
        if any(e.is_relative_to(parts.pool) for e in evaluated):
            parts.notes[-1] = (
                f"{parts.pool}: used as the pool, but it also contains test images, so scores "
                "would be too high and would be shown with a note; move the training images to "
                "their own folder"
            )
    else:
        parts.pool = parts.root
        inner = _inner(parts.root, folders)
        if len(inner) >= 2 and not any(_split(f, parts.root) for f in inner):
            parts.notes.append(
                f"{parts.root}: no classification, because no folder is named train or test; if "
                f"{inner[0].name}, {inner[1].name}, ... are classes, move their images to "
                "train/CLASS and test/CLASS"
            )
    parts.pool_images = count(parts.pool)
