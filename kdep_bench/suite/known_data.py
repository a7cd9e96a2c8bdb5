"""Parts, splits and numbers of images of a suite's data, before anything is prepared.

Counts of generated data are in the config, those of official sets in this package; folders of the
user's data are counted here, each no further than a rule needs. For data made by a user's function
nothing is known, and nothing is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.signatures import module_value
from kdep_bench.suite.schema import Json

POCKET = "kdep_bench.data.pocket"
OWN_DATA = "kdep_bench.data.own"
OFFICIAL = "kdep_bench.data.official.stage"
# Part of a config of the user's data -> the folder that tasks read it from.
FOLDERS = {"classify": "classify", "coco": "detect", "masks": "cityscapes"}
MOST_PER_CLASS = 200  # images of a class folder that are counted


@dataclass(frozen=True)
class KnownParts:
    """The folders of prepared data that tasks read.

    Attributes:
        splits: splits by folder; None for a folder without splits (`photos`).
        sets: official sets, whose tasks read their own splits.
        written: folder -> its key in the data config, where it has one.
    """

    splits: Mapping[str, tuple[str, ...] | None]
    sets: tuple[str, ...] = ()
    written: Mapping[str, str] | None = None


def module_of(data: Json) -> str:
    """The module that prepares the data."""
    kind = data.get("type") or POCKET + ".prepare"
    return kind.rpartition(":")[0] if ":" in kind else kind.rpartition(".")[0]


def _pocket(data: Json) -> Json:
    return {**(module_value(POCKET, "DEFAULTS") or {}), **data}


def parts_of(data: Json) -> KnownParts | None:
    """The parts of the data that tasks can read, from its config; None where unknown."""
    module = module_of(data)
    if module == POCKET:
        spec = _pocket(data)
        scenes = tuple(s for s, n in spec["scenes"].items() if n)
        classify = tuple(s for s, n in spec["classify"].items() if n)
        return KnownParts(
            {"classify": classify, "detect": scenes, "cityscapes": scenes, "photos": None},
            written={"classify": "classify", "detect": "scenes", "cityscapes": "scenes"},
        )
    if module == OWN_DATA:
        splits = {
            FOLDERS[part]: tuple(s for s, v in data[part].items() if v is not None)
            for part in FOLDERS
            if data.get(part)
        }
        return KnownParts(splits, written={folder: part for part, folder in FOLDERS.items()})
    if module == OFFICIAL:
        return KnownParts({}, tuple(sorted(data.get("sets") or ())))
    return None


def has_labels(data: Json) -> bool:
    """Whether the data have labels, according to their config."""
    if data.get("labels", True) is False:
        return False
    return module_of(data) != OWN_DATA or bool(data.get("pool_labels"))


def pool_images(data: Json, limit: int) -> int | None:
    """Images of the pool, or `limit` where there are more; None where unknown."""
    module = module_of(data)
    if module == POCKET:
        spec = _pocket(data)
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


def training_images(data: Json, folder: str) -> list[int] | None:
    """Images per class of a folder with class folders (`classify/train`), at most MOST_PER_CLASS
    each; None where unknown."""
    module, (part, _, split) = module_of(data), folder.partition("/")
    if part != "classify" or not split:
        return None
    if module == POCKET:
        images, classes = _pocket(data)["classify"].get(split), 8  # dealt out in turn
        return None if not images else [(images + k) // classes for k in range(classes)]
    if module == OWN_DATA:
        from kdep_bench.data.listing import class_names

        root = _folder((data.get("classify") or {}).get(split))
        if root is None:
            return None
        try:
            names = class_names(root)
        except KdepError:
            return None
        counts = [_count(root / name, MOST_PER_CLASS) for name in names]
        known = [c for c in counts if c is not None]
        return known if known and len(known) == len(counts) else None
    return None


def _folder(given: object) -> Path | None:
    """A folder of the user's data; None where it does not exist, which stage `prepare` reports."""
    if not isinstance(given, str):
        return None
    path = Path(given).expanduser()
    if not path.is_absolute() and os.environ.get("KDEP_DATA"):
        path = Path(os.environ["KDEP_DATA"]) / path
    return path if path.is_dir() else None


def _count(folder: Path, limit: int) -> int | None:
    from kdep_bench.data.listing import count_images

    try:
        return count_images(folder, limit)
    except KdepError:
        return None  # not readable, which stage `prepare` reports
