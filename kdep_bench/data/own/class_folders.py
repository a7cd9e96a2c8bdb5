"""The user's classification data: folders of class folders, and the labels of the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.data.images import ImageInfo
from kdep_bench.data.listing import Listing, class_names, list_images, shown
from kdep_bench.data.own.names import (
    SPLIT_WORDS,
    check_similar_names,
    listed,
    pair_text,
    similar_names,
)
from kdep_bench.data.own.spec import DataConfig
from kdep_bench.errors import KdepError, first_of
from kdep_bench.faults import Faults

FOLDER = "classify"
MAX_GROUPS = 20  # maximum number of groups of equal images in the data card
_UNLABELLED = (
    "set pool_labels=False and labels=False, and in the suite remove the methods that read labels "
    "and set share_by='image'"
)


@dataclass
class Folders:
    """One folder of class folders.

    Attributes:
        folder: the folder.
        listing: its files.
        classes: paths of images relative to the folder, by class.
    """

    folder: Path
    listing: Listing
    classes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Paths of all images."""
        return [self.folder / n for names in self.classes.values() for n in names]


def check_other_files(listing: Listing, faults: Faults) -> None:
    """Adds a fault if the folder has files that are neither images nor skipped."""
    if listing.other_files:
        suffixes = sorted({Path(n).suffix or "none" for n in listing.other_files})
        count = len(listing.other_files)
        suffix_text = f", the first of {count} such files" if count > 1 else ""
        faults.add(
            KdepError(
                f"the file {shown(listing.root / listing.other_files[0])} does not have an image "
                f"suffix{suffix_text} (suffixes: {first_of(map(shown, suffixes), 5)})",
                expected="only images, with the suffix of their format",
                fix="move it elsewhere, or correct its suffix",
            )
        )


def read_folders(folder: Path, faults: Faults, fix: str) -> Folders | None:
    """Reads the class folders below a folder; None if there are none.

    Args:
        folder: contains one folder per class.
        faults: faults are added to it.
        fix: the fix to state if the folders are splits instead of classes.
    """
    listing = list_images(folder)
    check_other_files(listing, faults)
    out = Folders(folder, listing, listing.by_class())
    if loose := out.classes.pop("", []):
        faults.add(
            KdepError(
                f"the image {shown(folder / loose[0])} is not in a class folder"
                + (f" ({len(loose)} such images)" if len(loose) > 1 else ""),
                expected=f"one folder per class below {folder}",
                fix="move it into the folder of its class",
            ),
        )
    names = class_names(folder)
    if empty := [n for n in names if n not in out.classes]:
        faults.add(
            KdepError(
                f"the class folder {shown(folder / empty[0])} contains no image",
                fix="add its images, or move the folder elsewhere",
            )
        )
    if not out.classes:
        return None
    if names and all(n.casefold() in SPLIT_WORDS for n in names):
        faults.add(
            KdepError(
                f"the folders of {folder} are named {listed(names)}, which are splits and not "
                "classes",
                expected="one folder per class",
                fix=fix,
            )
        )
    if bad := [n for n in names if n != n.strip() or n != shown(n)]:
        faults.add(
            KdepError(
                f"the class folder {shown(folder / bad[0])!r} has spaces around its name or bytes "
                "that are not UTF-8",
                fix="rename it, in every split",
            )
        )
    with faults.collect():
        check_similar_names(
            names, f"the folder {folder}", "move the images into one folder, or rename one"
        )
    return out


def read_all(config: DataConfig, faults: Faults) -> dict[str, Folders]:
    """Reads the class folders of every split; adds a fault if splits have different classes."""
    splits: dict[str, Folders] = {}
    fix = "give the folder of each split in the data config: classify=dict(train=..., test=...)"
    for split, folder in config.classify.items():
        with faults.collect():
            folders = read_folders(folder, faults, fix)
            if folders is None:
                raise KdepError(
                    f"the folder {folder} has no class folders with images",
                    expected="one folder per class",
                    fix="correct `classify` in the data config",
                )
            if len(folders.classes) < 2:
                raise KdepError(
                    f"the folder {folder} has only one class, {listed(folders.classes)}, so any "
                    "network would get the full score",
                    fix="add the folders of the other classes",
                )
            splits[split] = folders
    train = splits.get("train")
    for split, folders in splits.items():
        if train is None or folders.classes.keys() == train.classes.keys():
            continue
        missing = sorted(train.classes.keys() - folders.classes.keys())
        extra = sorted(folders.classes.keys() - train.classes.keys())
        differences = [f"only {train.folder} has {listed(missing)}"] if missing else []
        differences += [f"only {folders.folder} has {listed(extra)}"] if extra else []
        similar = similar_names([*missing, *extra])
        hint = f" ({pair_text(*similar[0])} look like one class)" if similar else ""
        faults.add(
            KdepError(
                f"the classes of train and {split} differ: {', '.join(differences)}{hint}",
                expected="the same class folders in every split",
                fix="rename one of the folders"
                if similar
                else "add the missing images, or move the class folder out of the other split",
            )
        )
    return splits


def read_pool(config: DataConfig, faults: Faults) -> Folders | None:
    """Reads the class folders of the pool, for a config with pool_labels=True."""
    assert config.pool is not None
    folders = read_folders(
        config.pool,
        faults,
        f"set `pool` to the folder that contains the classes, or {_UNLABELLED}",
    )
    if folders is None or len(folders.classes) < 2:
        names = f"only one class, {listed(folders.classes)}" if folders else "no class folder"
        faults.add(
            KdepError(
                f"the pool {config.pool} has {names}",
                expected="two or more class folders, because pool_labels=True",
                fix=f"add the folders of other classes, or {_UNLABELLED}",
            )
        )
    return folders


def _in_two_classes(
    folders: Mapping[str, Folders], info: Mapping[Path, ImageInfo]
) -> list[list[str]]:
    """Groups of files with equal content in different classes, over all splits.

    A file is named "<split>/<class>/<file>", because results may be published and then must not
    contain paths of the user's machine.
    """
    by_content: dict[str, dict[str, str]] = defaultdict(dict)
    for split, folder_set in folders.items():
        for name, files in folder_set.classes.items():
            for file in files:
                if (path := folder_set.folder / file) in info:
                    by_content[info[path].sha256].setdefault(name, shown(f"{split}/{file}"))
    return sorted(sorted(c.values()) for c in by_content.values() if len(c) > 1)


def card(splits: Mapping[str, Folders], info: Mapping[Path, ImageInfo]) -> dict[str, Any]:
    """Counts of images by split and class, for the data card."""
    train = splits.get("train") or next(iter(splits.values()))
    return {
        "classes": sorted(train.classes),
        "splits": {
            s: {
                "images": len(f.files),
                "by_class": {c: len(f.classes[c]) for c in sorted(f.classes)},
            }
            for s, f in splits.items()
        },
        "in_two_classes": label_conflicts(splits, info),
    }


def label_conflicts(
    folders: Mapping[str, Folders], info: Mapping[Path, ImageInfo]
) -> dict[str, Any]:
    """Equal images in different classes.

    Returns:
        {"count": number of groups of equal images, "files": the first MAX_GROUPS groups}.
    """
    groups = _in_two_classes(folders, info)
    return {"count": len(groups), "files": groups[:MAX_GROUPS]}


def notes(class_card: Mapping[str, Any]) -> list[str]:
    """A note on equal images in different classes, to show with the scores; empty without any.

    Args:
        class_card: the result of `card`.
    """
    groups = class_card["in_two_classes"]
    if not groups["count"]:
        return []
    return [
        f"{groups['count']} images are in two classes with equal content, such as "
        f"{' and '.join(groups['files'][0][:2])}: one of the labels is wrong"
    ]
