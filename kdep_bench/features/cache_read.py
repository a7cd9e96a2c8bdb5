"""Reads a teacher cache: memory-mapped arrays with one row per (image, view)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.errors import KdepError, how_to_rebuild
from kdep_bench.features import int8_maps
from kdep_bench.files import read_strict

MANIFEST = "cache.json"  # file that describes the cache
SAMPLE = "sample.npz"  # file with row numbers and images, to compare the cache with the teacher
INDEX = "rows.npy"  # file with the row numbers of a data fraction
# Outputs that a cache can store in addition to the pooled feature.
OUTPUTS = ("logits", "maps", "tokens", "probabilities")
SHARD_ROWS = 16384  # rows per file
Shard = np.ndarray | int8_maps.Int8Shard


@dataclass(frozen=True)
class Cache:
    """The outputs of one teacher for every view of all pre-training images, or of a data fraction.

    Attributes:
        teacher: `name`, `checksum` and `width` of the teacher.
        width: Dt, the number of channels of the teacher's pooled feature.
        shards: memory maps [<=SHARD_ROWS, Dt] float16 of the pooled feature; empty if it is not
            stored.
        extras: {name: memory maps [<=SHARD_ROWS, ...]} of the other outputs: "logits", "tokens",
            "maps.<name>" and "probabilities.<k>" are float16, "class_numbers.<k>" is int16 (k: the
            number of classes per row, those with the largest probabilities). Maps that are stored
            as int8 are converted to float16 when rows are read.
        index: sorted row numbers of the stored rows; None if all rows are stored.
        classes: number of the teacher's classes, if probabilities are stored; otherwise None.
    """

    teacher: dict[str, Any]
    width: int
    shards: list[np.ndarray]
    extras: Mapping[str, Sequence[Shard]] = field(default_factory=dict)
    index: np.ndarray | None = None
    classes: int | None = None

    def __len__(self) -> int:
        return sum(len(s) for s in self.shards or next(iter(self.extras.values())))

    def rows(self, index: np.ndarray, name: str | None = None) -> np.ndarray:
        """Reads the pooled feature, or another output, of some rows.

        Args:
            index: [n] row numbers (image * views + view).
            name: key of `extras`; None for the pooled feature.

        Returns:
            [n, `width`] float16, or [n, ...] for another output, in the order of `index`.

        Raises:
            KdepError: a row is not stored, because the cache is of another data fraction.
        """
        if self.index is not None:
            position = np.searchsorted(self.index, index)
            is_stored = self.index[np.minimum(position, len(self.index) - 1)] == index
            if not is_stored.all():
                raise KdepError(
                    f"row {index[~is_stored][0]} is not in the cache of teacher "
                    f"{self.teacher['name']}, which has {len(self.index)} rows of one data "
                    "fraction",
                    fix="use the data fraction for which the cache was computed",
                )
            index = position
        shards: Sequence[Shard] = self.shards if name is None else self.extras[name]
        out = np.empty((len(index), *shards[0].shape[1:]), shards[0].dtype)
        shard_of_row = index // SHARD_ROWS
        for k in np.unique(shard_of_row):
            in_shard = shard_of_row == k
            out[in_shard] = shards[k][index[in_shard] % SHARD_ROWS]
        return out

    def extra_names(self, needs: Sequence[str] | frozenset[str]) -> list[str]:
        """Sorted keys of `extras` that hold the outputs in `needs`.

        Args:
            needs: the `needs` of an objective; words that are not in OUTPUTS are ignored.
        """
        kinds = set(needs)
        if "probabilities" in needs:
            kinds.add("class_numbers")
        return sorted(name for name in self.extras if name.partition(".")[0] in kinds)


def shard_path(folder: Path, k: int, name: str = "features") -> Path:
    """Path of the file with shard `k` of an output; `folder` is the cache's folder."""
    return folder / f"{name}-{k:05d}.npy"


def note_path(out: Path, k: int) -> Path:
    """The file of shard k that holds its cost and the hashes of its arrays."""
    return shard_path(out, k).with_suffix(".json")


def open_cache(folder: Path) -> Cache:
    """Opens a finished cache.

    Raises:
        KdepError: a shard is missing or truncated, or has another shape or type.
    """
    manifest = read_strict(folder / MANIFEST)
    width = manifest["teacher"]["width"]

    def open_shards(name: str, shape: Sequence[int]) -> list[np.ndarray]:
        shards = []
        for k in range(manifest["shards"]):
            rows = min(SHARD_ROWS, manifest["rows"] - k * SHARD_ROWS)
            shards.append(open_shard(shard_path(folder, k, name), (rows, *shape), dtype_of(name)))
        return shards

    outputs = manifest.get("outputs", {})
    stored = {name: open_shards(name, shape) for name, shape in outputs.items()}
    extras = _join_int8_maps(stored)
    # "of": number of rows of all views; only a cache of a data fraction has this key.
    index = np.load(folder / INDEX) if "of" in manifest else None
    pooled = open_shards("features", (width,)) if manifest.get("pooled", True) else []
    return Cache(manifest["teacher"], width, pooled, extras, index, manifest.get("classes"))


def _join_int8_maps(stored: Mapping[str, list[np.ndarray]]) -> dict[str, Sequence[Shard]]:
    """The arrays of a cache by name; the codes and scales of int8 maps become "maps.<name>"."""
    arrays: dict[str, Sequence[Shard]] = {}
    for name, shards in stored.items():
        kind, _, map_name = name.partition(".")
        if kind == int8_maps.CODES:
            scales = stored[f"{int8_maps.SCALES}.{map_name}"]
            pairs = zip(shards, scales, strict=True)
            arrays[f"maps.{map_name}"] = [int8_maps.Int8Shard(*pair) for pair in pairs]
        elif kind != int8_maps.SCALES:
            arrays[name] = shards
    return arrays


def dtype_of(name: str) -> np.dtype:
    """The data type of a stored array, by its name in the manifest."""
    types = {"class_numbers": np.int16, int8_maps.CODES: np.int8}
    return np.dtype(types.get(name.partition(".")[0], np.float16))


def bytes_of_view(width: int, shapes: Mapping[str, Sequence[int]]) -> int:
    """Number of bytes that a cache stores per view.

    Args:
        width: number of values of the pooled feature; 0 if it is not stored.
        shapes: {name: shape of the array for one view} of the other outputs.
    """
    extras = sum(math.prod(shape) * dtype_of(name).itemsize for name, shape in shapes.items())
    return width * np.dtype(np.float16).itemsize + extras


def open_shard(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Opens one shard as a memory map.

    Raises:
        KdepError: the file cannot be read, or has another shape or data type.
    """
    try:
        shard = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise KdepError(
            f"the cache shard {path} cannot be read ({e})",
            expected=f"{dtype} {shape}",
            fix=how_to_rebuild(path.parent),
        ) from None
    if shard.shape != shape or shard.dtype != dtype:
        raise KdepError(
            f"the cache shard {path} contains {shard.shape} {shard.dtype}",
            expected=f"{shape} {dtype}",
            fix=how_to_rebuild(path.parent),
        )
    return shard
