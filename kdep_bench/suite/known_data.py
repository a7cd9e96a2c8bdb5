"""Folders, splits and numbers of images of a suite's data, before the data are prepared.

The numbers of generated data (the pocket data) are in their config, and those of official data sets
in this package. Images in the user's folders are counted, up to a limit. Data that a function of
the user prepares are not checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.signatures import module_value
from kdep_bench.suite.methods import UNPREPARED_KEYS, without
from kdep_bench.suite.schema import Json

POCKET = "kdep_bench.data.pocket"
OWN_DATA = "kdep_bench.data.own"
OFFICIAL = "kdep_bench.data.official.stage"
# Key in the config of a user's data -> the folder from which tasks read that part.
FOLDERS = {"classify": "classify", "coco": "detect", "masks": "cityscapes"}
MAX_PER_CLASS = 200  # counting the images of a class folder stops at this number
_POCKET_CLASSES = 8  # classes of the pocket composites


@dataclass(frozen=True)
class KnownParts:
    """The folders of prepared data that tasks read.

    Attributes:
        splits: folder -> its splits; None for a folder without splits (`photos`).
        sets: names of the official data sets; their tasks know the splits.
        config_keys: folder -> its key in the data config, if it has one.
    """

    splits: Mapping[str, tuple[str, ...] | None]
    sets: tuple[str, ...] = ()
    config_keys: Mapping[str, str] | None = None


def module_name(data: Json) -> str:
    """Name of the module that prepares the data."""
    kind = data.get("type") or POCKET + ".prepare"
    return kind.rpartition(":")[0] if ":" in kind else kind.rpartition(".")[0]


def prepared_spec(data: Json) -> Json:
    """The part of a data config that stage `prepare` reads.

    `source` describes other data. For the pocket data it chooses the packages; its default "auto"
    is left out, so that configs with and without it have the same stage id.
    """
    spec = without(data, UNPREPARED_KEYS)
    if module_name(data) == POCKET and data.get("source", "auto") != "auto":
        spec["source"] = data["source"]
    return spec


def _pocket_config(data: Json) -> Json:
    """A config of the pocket data, with its default values filled in."""
    return {**(module_value(POCKET, "DEFAULTS") or {}), **data}


def known_parts(data: Json) -> KnownParts | None:
    """The folders of the data that tasks can read, from its config; None if unknown."""
    module = module_name(data)
    if module == POCKET:
        spec = _pocket_config(data)
        scenes = tuple(s for s, n in spec["scenes"].items() if n)
        classify = tuple(s for s, n in spec["classify"].items() if n)
        return KnownParts(
            {"classify": classify, "detect": scenes, "cityscapes": scenes, "photos": None},
            config_keys={"classify": "classify", "detect": "scenes", "cityscapes": "scenes"},
        )
    if module == OWN_DATA:
        splits = {
            FOLDERS[part]: tuple(s for s, v in data[part].items() if v is not None)
            for part in FOLDERS
            if data.get(part)
        }
        return KnownParts(splits, config_keys={folder: part for part, folder in FOLDERS.items()})
    if module == OFFICIAL:
        return KnownParts({}, tuple(sorted(data.get("sets") or ())))
    return None


def has_labels(data: Json) -> bool:
    """Whether the data have labels, according to their config."""
    if data.get("labels", True) is False:
        return False
    return module_name(data) != OWN_DATA or bool(data.get("pool_labels"))


def pool_images(data: Json, limit: int) -> int | None:
    """Number of images in the pool, at most `limit`; None if unknown."""
    module = module_name(data)
    if module == POCKET:
        spec = _pocket_config(data)
        return min(limit, spec["pool_composites"] + spec["pool_crops"])
    if module == OFFICIAL and data.get("tiny_seed") is None:
        if data.get("pool_folder", "train") != "train":
            return None
        from kdep_bench.data.official.base import get_set

        count = get_set(data["pool"]).counts.get("train_images")
        return None if count is None else min(limit, count)
    if module == OWN_DATA:
        folder = _folder(data.get("pool"))
        return None if folder is None else _count(folder, limit)
    return None


def images_per_class(data: Json, folder: str) -> list[int] | None:
    """Numbers of images of each class, at most MAX_PER_CLASS each; None if unknown.

    `folder`: a folder with one sub-folder per class, such as 'classify/train'.
    """
    module, (part, _, split) = module_name(data), folder.partition("/")
    if part != "classify" or not split:
        return None
    if module == POCKET:
        n_images, n_classes = _pocket_config(data)["classify"].get(split), _POCKET_CLASSES
        # Images are generated for each class in turn, so the counts differ by at most one.
        return None if not n_images else [(n_images + k) // n_classes for k in range(n_classes)]
    if module == OWN_DATA:
        root, names = _folder((data.get("classify") or {}).get(split)), class_names(data, folder)
        if root is None or names is None:
            return None
        counts = [_count(root / name, MAX_PER_CLASS) for name in names]
        readable = [count for count in counts if count is not None]
        return readable if readable and len(readable) == len(counts) else None
    return None


def class_names(data: Json, folder: str) -> list[str] | None:
    """Names of the classes of a folder such as 'classify/train'; None if unknown."""
    module, (part, _, split) = module_name(data), folder.partition("/")
    if part != "classify" or not split:
        return None
    if module == POCKET:
        return sorted(module_value("kdep_bench.data.pocket.material", "CLASSES") or ()) or None
    if module == OWN_DATA:
        from kdep_bench.data import listing

        root = _folder((data.get("classify") or {}).get(split))
        try:
            return None if root is None else listing.class_names(root)
        except KdepError:
            return None
    return None


def _folder(value: object) -> Path | None:
    """The folder that a data config names; None if it does not exist (stage `prepare` reports it).

    A relative path is below $KDEP_DATA, if that is set.
    """
    if not isinstance(value, str):
        return None
    path = Path(value).expanduser()
    if not path.is_absolute() and os.environ.get("KDEP_DATA"):
        path = Path(os.environ["KDEP_DATA"]) / path
    return path if path.is_dir() else None


def _count(folder: Path, limit: int) -> int | None:
    """Number of images, at most `limit`; None if unreadable (stage `prepare` reports it)."""
    from kdep_bench.data.listing import count_images

    try:
        return count_images(folder, limit)
    except KdepError:
        return None
