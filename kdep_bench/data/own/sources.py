"""The files and folders that the data config of a user's own data names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.content import Source, images_of, one_file

ROOT = "KDEP_DATA"  # environment variable: the folder that paths in the config are relative to


def reads(spec: Mapping[str, Any]) -> dict[str, list[Source]]:
    """The files and folders that stage `prepare` reads, by part; see `kdep_bench.data.content`.

    Malformed entries of the config are skipped here; the stage reports them.
    """
    parts: dict[str, list[Source]] = {}
    if isinstance(spec.get("pool"), str):
        parts["pool"] = [images_of(_path(spec["pool"]))]
    # Key of the config, and the folder of the prepared data: masks are stored as in Cityscapes.
    for key, folder in (("classify", "classify"), ("coco", "detect"), ("masks", "cityscapes")):
        splits = spec.get(key)
        for split, value in splits.items() if isinstance(splits, Mapping) else ():
            # A split of `classify` is a path, one of `coco` dict(json=..., images=...), and one of
            # `masks` dict(images=..., masks=...).
            paths = {"": value} if isinstance(value, str) else value
            sources = []
            for key_name, path in paths.items() if isinstance(paths, Mapping) else ():
                if isinstance(path, str):
                    sources.append((one_file if key_name == "json" else images_of)(_path(path)))
            if sources:
                parts[f"{folder}/{split}"] = sources
    return parts


def _path(text: str) -> Path:
    path = Path(os.path.expanduser(text))
    if not path.is_absolute() and os.environ.get(ROOT):
        path = Path(os.environ[ROOT]) / path
    return Path(os.path.abspath(path))
