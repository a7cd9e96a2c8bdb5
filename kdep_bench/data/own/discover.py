"""Finds the parts of a data set in a folder: pool, class folders, COCO boxes, masks, by split.

Files decide, not only names: a json counts where it is COCO and its images exist, a folder of masks
where every image of another folder has one. The split is read from the names of the path.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def discover(root: Path) -> Discovery:
    """The parts of the data set below `root`.

    Raises:
        KdepError: no such folder, or no image in it.
    """
    if not root.is_dir():
        raise KdepError(
            f"the folder {root} does not exist", fix="name the folder that holds your images"
        )
    folders = dict(_walk(root))
    if not any(images for images, _ in folders.values()):
        raise KdepError(
            f"the folder {root} contains no image, down to {DEEPEST} levels of folders",
            expected="files such as .jpg or .png",
            fix="name the folder that holds your images",
        )
    parts = Discovery(root)
    _find_boxes(parts, folders)
    _find_masks(parts, folders)
    _find_classes(parts, folders)
    for part in (parts.classify, parts.coco, parts.masks):
        _complete(part, parts.notes)
    _find_pool(parts, folders)
    return parts


Folders = Mapping[Path, tuple[list[str], list[str]]]


def _walk(root: Path) -> Iterator[tuple[Path, tuple[list[str], list[str]]]]:
    """(folder, (image names, json names)) of the root and the folders below it, sorted."""
    for where, inner, names in os.walk(root, followlinks=True):
        folder = Path(where)
        inner[:] = sorted(n for n in inner if not n.startswith((".", "__")))
        if len(folder.relative_to(root).parts) >= DEEPEST:
            inner[:] = []
        images = sorted(n for n in names if is_image_name(n) and not n.startswith("."))
        yield folder, (images, sorted(n for n in names if n.endswith(".json")))


def split_of(path: Path, root: Path) -> str | None:
    """The split that the last fitting word of a path below `root` names; None without one."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(root).as_posix().lower())
    for word in reversed(words):
        for split, names in SPLITS.items():
            if word in names:
                return split
    return None


def _find_boxes(parts: Discovery, folders: Folders) -> None:
    """COCO files by split, each with the nearest folder that holds its images."""
    for folder, (_, jsons) in folders.items():
        for name in jsons:
            path = folder / name
            table = _coco(path)
            if table is None:
                continue
            split = split_of(path, parts.root)
            if split is None:
                parts.notes.append(f"{path}: its path names no split, so it is left out")
                continue
            if split in parts.coco:
                parts.notes.append(f"{path}: {parts.coco[split][0]} is used for {split}")
                continue
            images = _folder_of(table, path, folders, parts.root)
            if images is None:
                parts.notes.append(f"{path}: no folder holds its images, so it is left out")
                continue
            parts.coco[split] = (path, images)


def _coco(path: Path) -> dict[str, Any] | None:
    """The content of a COCO json with boxes; None for another file."""
    try:
        table = read_user_json(path)
    except KdepError:
        return None
    lists = ("images", "annotations", "categories")
    fits = isinstance(table, dict) and all(isinstance(table.get(k), list) for k in lists)
    return table if fits and table["images"] else None


def _folder_of(table: Mapping[str, Any], path: Path, folders: Folders, root: Path) -> Path | None:
    """The folder below which the first images of a COCO json exist, the nearest to the json.

    Splits may repeat file names, so that the folder of another split never counts.
    """
    entries = [e for e in table["images"][:_CHECKED] if isinstance(e, dict)]
    names = [e["file_name"] for e in entries if isinstance(e.get("file_name"), str)]
    split = split_of(path, root)
    fitting = [f for f in folders if names and all((f / n).is_file() for n in names)]
    same = [f for f in fitting if split_of(f, root) == split]
    fitting = same or [f for f in fitting if split_of(f, root) is None]

    def distance(folder: Path) -> tuple[int, str]:
        common = os.path.commonpath([folder, path.parent])
        steps = len(folder.relative_to(common).parts) + len(path.parent.relative_to(common).parts)
        return steps, str(folder)

    return min(fitting, key=distance, default=None)


def _find_masks(parts: Discovery, folders: Folders) -> None:
    """Pairs of an image folder and a folder of one-channel PNGs with the same names."""
    by_names: dict[frozenset[str], list[Path]] = defaultdict(list)
    for folder, (images, _) in folders.items():
        if images:
            by_names[frozenset(os.path.splitext(n)[0] for n in images)].append(folder)
    for same in by_names.values():
        masks = [f for f in same if _are_masks(f, folders[f][0])]
        image_folders = [f for f in same if f not in masks]
        for folder in masks:
            split = split_of(folder, parts.root)
            partners = [f for f in image_folders if split_of(f, parts.root) == split]
            if split is None or not partners or split in parts.masks:
                continue
            parts.masks[split] = (partners[0], folder)
            parts.mask_values = max(parts.mask_values, _values(folder, folders[folder][0]))


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
                values = [v for _, v in image.getcolors(1 << 16) or []]
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # stage prepare names the broken file
        numbers = [v for v in values if isinstance(v, int) and v != _IGNORED_MASK_VALUE]
        largest = max([largest, *numbers])
    return largest + 1


def _find_classes(parts: Discovery, folders: Folders) -> None:
    """Folders of class folders: splits side by side, each with the same two or more classes."""
    used = {folder for pair in parts.masks.values() for folder in pair}
    used |= {images for _, images in parts.coco.values()}
    candidates: dict[Path, dict[str, Path]] = defaultdict(dict)
    for folder, (images, _) in folders.items():
        inner = [f for f in folders if f.parent == folder and folders[f][0]]
        split = split_of(Path(folder.name), Path())
        if split and len(inner) >= 2 and not images and not used & {folder, *inner}:
            candidates[folder.parent][split] = folder
    for splits in candidates.values():
        classes = {
            split: {f.name for f in folders if f.parent == folder and folders[f][0]}
            for split, folder in splits.items()
        }
        if "train" not in splits or len(splits) < 2:
            continue
        same = {s: f for s, f in splits.items() if classes[s] == classes["train"]}
        for split in splits.keys() - same.keys():
            parts.notes.append(f"{splits[split]}: other classes than {splits['train']}")
        if len(same) > 1 and not parts.classify:
            parts.classify = same


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
    else:
        parts.pool = parts.root
    parts.pool_images = count(parts.pool)
