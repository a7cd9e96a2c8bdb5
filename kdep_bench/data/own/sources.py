"""Which files and folders a data config of one's own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.content import Source, images_of, one_file

ROOT = "KDEP_DATA"


def reads(spec: Mapping[str, Any]) -> dict[str, list[Source]]:
    """What the stage reads, by part; see `kdep_bench.data.content`.

    Of a config that is malformed, what can be understood: the stage itself refuses the rest.
    """
    parts: dict[str, list[Source]] = {}
    if isinstance(spec.get("pool"), str):
        parts["pool"] = [images_of(_path(spec["pool"]))]
    for key, folder in (("classify", "classify"), ("coco", "detect"), ("masks", "cityscapes")):
        splits = spec.get(key)
        for split, given in splits.items() if isinstance(splits, Mapping) else ():
            paths = {"": given} if isinstance(given, str) else given
            found = []
            for what, path in paths.items() if isinstance(paths, Mapping) else ():
                if isinstance(path, str):
                    found.append((one_file if what == "json" else images_of)(_path(path)))
            if found:
                parts[f"{folder}/{split}"] = found
    return parts


def _path(given: str) -> Path:
    path = Path(os.path.expanduser(given))
    if not path.is_absolute() and os.environ.get(ROOT):
        path = Path(os.environ[ROOT]) / path
    return Path(os.path.abspath(path))
