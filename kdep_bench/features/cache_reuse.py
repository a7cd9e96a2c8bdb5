"""Reuses shards of a finished cache of the same teacher and views, if it has all needed outputs.

The methods of a suite determine which outputs its cache stores, so two suites with the same teacher
and views may plan different caches. If a finished cache in the work dir contains everything that a
new cache needs, the new cache gets hard links to its files, and the teacher is not run again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.features.cache_origin import STAGE, computed_by
from kdep_bench.features.cache_read import INDEX, MANIFEST, note_path, shard_path
from kdep_bench.files import read_strict, write_json

# Entries of a cache's spec that do not change the values of an array: which arrays are stored, and
# the rows per forward pass.
_STORAGE = {"outputs", "pooled", "batch"}


def link_shards(
    out: Path,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Path],
    manifest: Mapping[str, Any],
    index: np.ndarray | None,
    is_current: Callable[[Path], bool],
) -> str | None:
    """Links the shards of a finished cache into the folder of a new cache.

    Args:
        out: folder of the new cache.
        spec, inputs: spec and inputs of the new cache's stage.
        manifest: manifest of the new cache.
        index: sorted row numbers that the new cache stores; None for all rows.
        is_current: whether the teacher still computes what the cache in a folder contains. A newer
            version of its class may compute something else from the same weights.

    Returns:
        the name of the folder of the cache that computed the arrays: the finished cache, or the
        cache from which it was linked itself. None if no finished cache contains all arrays.
    """
    for folder, origin in _finished_caches(inputs["views"].parent, out, spec, inputs):
        is_usable = _contains(folder, manifest, index) and is_current(folder)
        if is_usable and _link(folder, out, manifest):
            return origin
    return None


def _finished_caches(
    work_dir: Path, out: Path, spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> Iterator[tuple[Path, str]]:
    """The finished caches of the same teacher, views and data fraction.

    Yields (folder, name of the folder of the cache that computed its arrays).
    """
    needs = {name: path.name for name, path in inputs.items()}
    for folder in sorted(work_dir.glob("cache-*")):
        if folder == out or not (folder / STAGE).exists():
            continue
        try:
            stage = read_strict(folder / STAGE)
            is_same = stage["needs"] == needs and _values(stage["spec"]) == _values(spec)
            origin = computed_by(work_dir, folder.name, stage["outputs"])
        except (KdepError, KeyError, TypeError, AttributeError):
            continue  # a damaged stage.json; the engine reports it when that stage is needed
        if is_same:
            yield folder, origin


def _values(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a cache's spec that decide the values of its arrays."""
    return {name: value for name, value in spec.items() if name not in _STORAGE}


def _contains(folder: Path, manifest: Mapping[str, Any], index: np.ndarray | None) -> bool:
    """Whether a cache has all arrays of `manifest`, computed from the same images and weights."""
    try:
        stored = read_strict(folder / MANIFEST)
        has_outputs = stored["outputs"].items() >= manifest["outputs"].items()
        has_pooled = stored.get("pooled", True) or not manifest.get("pooled", True)
        stored_index = np.load(folder / INDEX) if "of" in stored else None
    except (KdepError, KeyError, AttributeError, OSError, ValueError):
        return False
    # Compared above, or added to the manifest later.
    ignored = {"outputs", "pooled", "of", "files", "classes"}
    is_same = all(stored.get(k) == v for k, v in manifest.items() if k not in ignored)
    if index is None or stored_index is None:
        has_rows = index is stored_index
    else:
        has_rows = np.array_equal(index, stored_index)
    return bool(has_outputs and has_pooled and is_same and has_rows)


def _link(folder: Path, out: Path, manifest: Mapping[str, Any]) -> bool:
    """Links all shards of `folder` into `out`; returns False if a file or its note is missing.

    The stage checks the hashes of the linked files afterwards (`cache.is_complete`). The new notes
    state the cost of the forward passes of the finished cache, so that a record states what the
    cache costs.
    """
    extras, pooled = manifest["outputs"], manifest.get("pooled", True)
    try:
        for k in range(manifest["shards"]):
            note = read_strict(note_path(folder, k))
            linked = {"seconds": note["seconds"], "forwards": note["forwards"]}
            if pooled:
                linked["sha256"] = note["sha256"]
            if extras:
                linked["further"] = {name: note["further"][name] for name in extras}
            for name in _array_names(extras, pooled):
                _link_or_copy(shard_path(folder, k, name), shard_path(out, k, name))
            write_json(note_path(out, k), linked)
    except (KdepError, KeyError, TypeError, OSError):
        return False
    return True


def _array_names(extras: Iterable[str], pooled: bool) -> list[str]:
    """Names of the stored arrays, for `shard_path`."""
    return [*extras, *(["features"] if pooled else [])]


def _link_or_copy(source: Path, target: Path) -> None:
    """Makes a hard link, which takes no disk space; a copy if the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
