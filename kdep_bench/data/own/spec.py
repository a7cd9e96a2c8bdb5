"""The data config of a user's own data: resolves its paths and checks it; opens no data files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.data.allowed import POOL, read_allowed
from kdep_bench.data.own import KEYS
from kdep_bench.data.own.names import check_similar_names, listed
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.files import safe_name

ROOT = "KDEP_DATA"  # environment variable: the folder that paths in the config are relative to
# Parts whose splits have two paths: their keys, and whether each must be a folder.
_PAIRS = {"coco": {"json": False, "images": True}, "masks": {"images": True, "masks": True}}
IGNORE = 255  # mask value of pixels that are used neither in training nor in the score


@dataclass
class DataConfig:
    """A data config with absolute paths that exist.

    Attributes:
        pool: folder of the images for pre-training; None only if its path has a fault.
        pool_labels: whether the folders directly below the pool are classes.
        classify: folder of class folders by split.
        coco: (json, folder of images) by split.
        masks: (folder of images, folder of masks) by split.
        classes: class names of the masks by mask value.
        allow_absent: classes that the training split may lack.
        allow_duplicates: pairs of sets that may share images.
    """

    pool: Path | None = None
    pool_labels: bool = False
    classify: dict[str, Path] = field(default_factory=dict)
    coco: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    masks: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    allow_absent: set[str] = field(default_factory=set)
    allow_duplicates: set[frozenset[str]] = field(default_factory=set)


def read_spec(spec: Mapping[str, Any], faults: Faults) -> DataConfig:
    """Converts the spec of stage `prepare` to a DataConfig; adds faults to `faults`.

    Raises:
        KdepError: an unknown key.
    """
    if unknown := set(spec) - set(KEYS):
        raise unknown_name("key", sorted(unknown)[0], KEYS, place="the data config")
    config = DataConfig(pool_labels=bool(spec.get("pool_labels")))
    with faults.collect():
        config.pool = existing_path(spec.get("pool"), "pool", folder=True)
    for split, value in _splits(spec, "classify", faults):
        with faults.collect():
            config.classify[split] = existing_path(value, f"classify.{split}", folder=True)
    for split, value in _splits(spec, "coco", faults):
        with faults.collect():
            config.coco[split] = _pair(value, f"coco.{split}", _PAIRS["coco"])
    for split, value in _splits(spec, "masks", faults):
        with faults.collect():
            config.masks[split] = _pair(value, f"masks.{split}", _PAIRS["masks"])
    for split, (images, folder) in config.masks.items():
        if images.resolve() == folder.resolve():
            faults.add(
                KdepError(
                    f"the images and the masks of {split} are in the same folder, {images}, so "
                    "masks would be used as images",
                    fix="move the masks into their own folder",
                )
            )
    with faults.collect():
        config.classes = mask_classes(spec)
    with faults.collect():
        config.allow_absent = set(_strings(spec.get("allow_absent") or [], "allow_absent"))
    with faults.collect():
        config.allow_duplicates = read_allow_duplicates(spec)
    for part, split, folder in _nested(config):
        faults.add(
            KdepError(
                f"the folder {folder} is used for two splits of `{part}`: it is the folder of "
                f"{split}, or inside it",
                fix="give each split its own folder in the data config",
            )
        )
    return config


def existing_path(value: Any, key: str, *, folder: bool) -> Path:
    """The absolute path of a config value; links are not resolved.

    Args:
        value: the path as the config has it.
        key: the config key, for errors.
        folder: whether a folder is expected, not a file.

    Raises:
        KdepError: not a path, it does not exist, or it is a file instead of a folder or vice versa.
    """
    path = Path(os.path.expanduser(_path_text(value, key, folder=folder)))
    if not path.is_absolute() and os.environ.get(ROOT):
        path = Path(os.environ[ROOT]) / path
    path = Path(os.path.abspath(path))
    if not os.path.exists(path):  # False also where the path is too long
        raise KdepError(
            f"the path {path} of the data config ({key}) does not exist",
            expected=f"an absolute path, or one relative to ${ROOT}",
            fix=f"correct `{key}`",
        )
    if os.path.isdir(path) != folder:
        raise KdepError(
            f"the path {path} of the data config ({key}) is a {'file' if folder else 'folder'}",
            expected="a folder" if folder else "a file",
            fix=f"correct `{key}`",
        )
    return path


def _path_text(value: Any, key: str, *, folder: bool) -> str:
    """Returns the path of a config; raises KdepError if it is not text."""
    if not isinstance(value, str) or not value:
        raise KdepError(
            f"the data config has no `{key}`"
            if value is None
            else f"the data config has {key} = {value!r:.60}",
            expected=f"a path that is absolute or relative to ${ROOT}",
            fix=f"write the path of the {'folder' if folder else 'file'} there",
        )
    return value


def mask_classes(spec: Mapping[str, Any]) -> list[str]:
    """`classes` of the config: class names by mask value; empty if the config has no masks.

    Raises:
        KdepError: no names, fewer than 2 or more than 255, or two that are equal or nearly equal.
    """
    if not spec.get("masks"):
        return []
    if not spec.get("classes"):
        raise KdepError(
            "the data config has `masks` but no `classes`",
            fix="add classes=['road', ...]: the class names by mask value, starting with value 0",
        )
    classes = _strings(spec["classes"], "classes")
    if not 2 <= len(classes) <= IGNORE:
        raise KdepError(
            f"`classes` in the data config has {len(classes)} names",
            expected=f"2 to {IGNORE}",
            fix="list one name per mask value, also for the background (value 0)",
        )
    if len(set(classes)) < len(classes):
        repeated = sorted({c for c in classes if classes.count(c) > 1})
        raise KdepError(
            f"the data config has the class {listed(repeated)} more than once in `classes`",
            fix="give each mask value its own name",
        )
    check_similar_names(
        classes, "`classes` of the data config", "give each class a name of its own"
    )
    return classes


def check_parts(data: Mapping[str, Any]) -> None:
    """Raises KdepError for a part of the data config that does not have the form of paths."""
    faults = Faults()
    with faults.collect():
        _path_text(data.get("pool"), "pool", folder=True)
    for split, value in _entries(data, "classify", faults):
        with faults.collect():
            _path_text(value, f"classify.{split}", folder=True)
    for part, folders in _PAIRS.items():
        for split, value in _entries(data, part, faults):
            with faults.collect():
                _pair_values(value, f"{part}.{split}", folders)
    faults.raise_any(f"the data {data.get('name')!r}")


def check_labels(data: Mapping[str, Any]) -> None:
    """Raises KdepError if a config has labels=True, for supervised methods, but no pool labels."""
    if data.get("labels", False) and not data.get("pool_labels", False):
        raise KdepError(
            f"the data {data.get('name')!r} has labels=True but not pool_labels=True, so the pool "
            "would have no labels for a supervised method",
            fix="set pool_labels=True if the sub-folders of the pool are classes, otherwise "
            "labels=False",
        )


def check_paths(data: Mapping[str, Any]) -> None:
    """Raises KdepError if two splits of a part have the same path (of `coco`: the same json)."""
    for part, keys in (("classify", [None]), ("coco", ["json"]), ("masks", ["images", "masks"])):
        splits = data.get(part)
        if not isinstance(splits, Mapping):
            continue
        for key in keys:
            seen: dict[str, str] = {}
            for split, value in splits.items():
                path = value.get(key) if key and isinstance(value, Mapping) else value
                if not isinstance(path, str):
                    continue
                earlier = seen.setdefault(os.path.normpath(path), split)
                if earlier != split:
                    raise KdepError(
                        f"the data config has the same path {path} for two splits of `{part}`: "
                        f"{earlier} and {split}",
                        expected="different data in each split, because a score on training data "
                        "is meaningless",
                        fix=f"correct `{part}` in the data config",
                    )


def read_allow_duplicates(spec: Mapping[str, Any]) -> set[frozenset[str]]:
    """Reads `allow_duplicates` as pairs of sets; raises KdepError for an unknown set or pair."""
    names = [POOL]
    for part in ("classify", "coco", "masks"):
        splits = spec.get(part)
        if isinstance(splits, Mapping):
            names += [f"{part}/{s}" for s, value in splits.items() if value is not None]
    return read_allowed(spec.get("allow_duplicates") or [], names)


def check_recipes(data: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> None:
    """Raises KdepError if a segmentation recipe has other classes than the masks of the data."""
    if not data.get("masks"):
        return
    classes = mask_classes(data)
    for task in tasks:
        recipe = task.get("recipe") or {}
        if "classes" not in recipe or recipe.get("folder") != "cityscapes":
            continue
        recipe_classes = [str(c) for c in recipe["classes"]]
        if recipe_classes != classes:
            is_reordered = sorted(recipe_classes) == sorted(classes)
            raise KdepError(
                f"the task {task.get('name')!r} has the classes {tuple(recipe_classes)} in its "
                f"recipe, but the data {data.get('name')!r} has {tuple(classes)}"
                + (", so scores would be shown for the wrong classes" if is_reordered else ""),
                expected="the same names in the same order, starting with mask value 0",
                fix=f"set classes={tuple(classes)} in the task's recipe, with one colour each in "
                "its palette",
            )
        if len(recipe.get("palette") or classes) != len(classes):
            raise KdepError(
                f"the task {task.get('name')!r} has a palette of {len(recipe['palette'])} colours "
                f"for {len(classes)} classes",
                expected="one colour per class",
                fix="correct `palette` in the task's recipe",
            )


def _entries(spec: Mapping[str, Any], part: str, faults: Faults) -> list[tuple[str, Any]]:
    """(split, its value) for each split of `part` in the data config that is not None."""
    value = spec.get(part)
    if value is None or value == {}:
        return []
    if not isinstance(value, Mapping):
        faults.add(
            KdepError(
                f"the data config has {part} = {value!r:.60}",
                expected="one entry per split: dict(train=..., test=...)",
                fix=f"correct `{part}`",
            )
        )
        return []
    splits = []
    for split, inner in value.items():
        with faults.collect():
            safe_name(str(split), f"split of `{part}`")
            if inner is not None:
                splits.append((str(split), inner))
    return splits


def _splits(spec: Mapping[str, Any], part: str, faults: Faults) -> list[tuple[str, Any]]:
    """As `_entries`; adds a fault if there is no training split."""
    splits = _entries(spec, part, faults)
    if splits and "train" not in {s for s, _ in splits}:
        faults.add(
            KdepError(
                f"`{part}` of the data config has only the splits {listed(s for s, _ in splits)}, "
                "and the task needs 'train'",
                fix=f"add `train` to `{part}`",
            )
        )
    return splits


def _pair_values(value: Any, key: str, folders: Mapping[str, bool]) -> list[tuple[str, str]]:
    """(key, path as text) of the two paths of a split; see `_PAIRS`."""
    if not isinstance(value, Mapping) or set(value) != set(folders):
        got = f"the keys {sorted(map(str, value))}" if isinstance(value, Mapping) else ""
        raise KdepError(
            f"{key} of the data config has {got}"
            if got
            else f"the data config has {key} = {value!r:.60}",
            expected=f"{key}=dict(" + ", ".join(f"{k}=..." for k in folders) + ")",
            fix=f"correct `{key}`",
        )
    return [(k, _path_text(value[k], f"{key}.{k}", folder=folders[k])) for k in folders]


def _pair(value: Any, key: str, folders: Mapping[str, bool]) -> tuple[Path, Path]:
    """The two paths of a split; see `_PAIRS`."""
    faults, paths = Faults(), []
    for name, text in _pair_values(value, key, folders):
        with faults.collect():
            paths.append(existing_path(text, f"{key}.{name}", folder=folders[name]))
    faults.raise_any(f"{key} of the data config")
    return paths[0], paths[1]


def _strings(value: Any, key: str) -> list[str]:
    names = list(value) if isinstance(value, list | tuple) else None
    if names is None or not all(isinstance(n, str) and n.strip() == n != "" for n in names):
        raise KdepError(
            f"the data config has {key} = {value!r:.60}",
            expected="a list of names without spaces around them",
            fix=f"correct `{key}`",
        )
    return names


def _nested(config: DataConfig) -> list[tuple[str, str, Path]]:
    """(part, other split, folder) for each folder that is, or is inside, the other split's folder.

    `coco` is not checked: its json files list the images, so its splits may share a folder.
    """
    rows = []
    for part, folders in (
        ("classify", config.classify),
        ("masks", {s: images for s, (images, _) in config.masks.items()}),
    ):
        real = {s: f.resolve() for s, f in folders.items()}
        for i, split in enumerate(real):
            for earlier in list(real)[:i]:
                a, b = real[split], real[earlier]
                if a == b or a.is_relative_to(b):
                    rows.append((part, earlier, folders[split]))
                elif b.is_relative_to(a):
                    rows.append((part, split, folders[earlier]))
    return rows
