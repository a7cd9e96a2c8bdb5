"""Files that the config of a teacher, or of given weights, names: their content in the config.

A path alone would keep the old scores where another checkpoint is saved under the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.content import Catalogue, Source, all_of, one_file
from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError

CONTENT = "content"  # the key in the config: {key of the path: SHA-256}

Config = Mapping[str, Any]


def given_paths(config: Config) -> dict[str, Path]:
    """Files and folders that exist, by the key that names them.

    A text names a path where its key is `weights`, or where it has a "/". Weights with a stated
    `sha256` are left out: that is their identity, and it is checked when they are read.
    """
    out = {}
    for key, value in config.items():
        if key in ("type", "name", CONTENT) or not isinstance(value, str):
            continue
        if key == "weights" and config.get("sha256") is not None:
            continue
        path = os.path.abspath(os.path.expanduser(value))
        if (key == "weights" or "/" in value) and os.path.exists(path):
            out[key] = Path(path)
    return out


def source_of(path: Path) -> Source:
    return all_of(path) if path.is_dir() else one_file(path)


def with_content(config: Config, read: Callable[[Source], Catalogue]) -> dict[str, Any]:
    """The config with the SHA-256 of the files it names; as it is where it names none.

    Args:
        read: the content of a source, as `content.Index.read` gives it.
    """
    digests = {k: read(source_of(p)).digest() for k, p in given_paths(config).items()}
    return {**config, CONTENT: digests} if digests else dict(config)


def without_content(config: Config) -> dict[str, Any]:
    """The arguments of the config.

    Raises:
        KdepError: a file is not the one that the run was planned with.
    """
    planned, paths = config.get(CONTENT) or {}, given_paths(config)
    for key in planned.keys() & paths.keys():
        if Catalogue(source_of(paths[key])).scan().digest() != planned[key]:
            raise KdepError(
                f"{shown(paths[key])} ({key}) changed after the run was planned",
                fix="run the suite again: every stage that depends on the file is rerun",
            )
    return {k: v for k, v in config.items() if k != CONTENT}
