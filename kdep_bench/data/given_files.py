"""Adds the SHA-256 of the files that a config names (weights, text embeddings) to it.

The config is part of the stage ids. With the path alone, the scores of an old checkpoint would be
reused after another checkpoint is saved under the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.content import Catalogue, Source, all_of, one_file
from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError

PATHS = ("weights", "text", "text_model")  # keys whose values are paths, also without a "/"
CONTENT = "content"  # added to the config: {config key of a path: SHA-256 of the file}

Config = Mapping[str, Any]


def given_paths(config: Config) -> dict[str, Path]:
    """Paths of the files and folders that the config names and that exist, by config key.

    A string is taken as a path if its key is in PATHS or if it contains a "/". Weights with a
    stated `sha256` are left out: that hash identifies them, and is checked when they are read. The
    paths in a config inside this one, such as the teacher of a black box, have keys such as
    "teacher.weights".
    """
    paths: dict[str, Path] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and "type" in value:
            paths |= {f"{key}.{inner}": path for inner, path in given_paths(value).items()}
        if key in ("type", "name", CONTENT) or not isinstance(value, str):
            continue
        if key == "weights" and config.get("sha256") is not None:
            continue
        path = os.path.abspath(os.path.expanduser(value))
        if (key in PATHS or "/" in value) and os.path.exists(path):
            paths[key] = Path(path)
    return paths


def _source(path: Path) -> Source:
    return all_of(path) if path.is_dir() else one_file(path)


def with_content(config: Config, read: Callable[[Source], Catalogue]) -> dict[str, Any]:
    """A copy of the config with the SHA-256 of the files it names, under the key CONTENT.

    Args:
        config: arguments of a teacher or of given weights.
        read: hashes the files of a source, for example `content.Index.read`.
    """
    digests = {k: read(_source(p)).digest() for k, p in given_paths(config).items()}
    return {**config, CONTENT: digests} if digests else dict(config)


def check_and_remove_content(config: Config) -> dict[str, Any]:
    """A copy of the config without the key CONTENT, after the files were compared with it.

    Raises:
        KdepError: a file changed after the run was planned.
    """
    planned, paths = config.get(CONTENT) or {}, given_paths(config)
    for key in planned.keys() & paths.keys():
        if Catalogue(_source(paths[key])).scan().digest() != planned[key]:
            raise KdepError(
                f"{shown(paths[key])} ({key}) changed after the run was planned",
                fix="run the suite again: every stage that depends on the file is rerun",
            )
    return {k: v for k, v in config.items() if k != CONTENT}
