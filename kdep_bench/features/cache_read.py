"""An opened teacher cache: memory-mapped shards of numbers, read row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.errors import KdepError, made_again
from kdep_bench.features import int8_maps
from kdep_bench.files import read_strict

MANIFEST, SAMPLE, INDEX = "cache.json", "sample.npz", "rows.npy"
# Outputs that a cache can store in addition to the pooled feature.
OUTPUTS = ("logits", "maps", "tokens", "probabilities")
Shard = np.ndarray | int8_maps.Int8Shard
SHARD_ROWS = 16384


@dataclass(frozen=True)
class Cache:
    """An opened cache of one teacher output per (image, view).

    Attributes:
        teacher: `name`, `checksum` and `width` of the teacher.
        width: Dt.
        shards: the pooled features, memory maps [<=SHARD_ROWS, Dt] float16; empty in a cache of
            probabilities whose methods do not read the pooled feature.
        extras: memory maps [<=SHARD_ROWS, ...] float16 of each extra output, by name: "logits",
            "tokens", "maps.<name>", "probabilities.<k>"; "class_numbers.<k>" is int16. Maps that
            are stored as int8 are converted to float16 when rows are read.
        index: sorted row numbers that are stored, of a cache of one data fraction; None for all.
        classes: number of the teacher's classes, in a cache of probabilities; otherwise None.
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
        """The pooled features [len(index), Dt] float16 of the rows `index`, in that order.

        Only these rows are read, so that memory does not grow with the cache.

        Args:
            index: [n] row numbers (image * views + view).
            name: an extra output to read instead, of shape [len(index), ...].

        Raises:
            KdepError: a row that a cache of one data fraction does not hold.
        """
        if self.index is not None:
            position = np.searchsorted(self.index, index)
            is_stored = self.index[np.minimum(position, len(self.index) - 1)] == index
            if not is_stored.all():
                raise KdepError(
                    f"row {index[~is_stored][0]} is not in the cache of teacher "
                    f"{self.teacher['name']}",
                    expected=f"one of the {len(self.index)} rows of the data fraction that it was "
                    "computed for",
                    fix="use the data fraction of the suite that planned it",
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
        """Names of the extra outputs that serve the needs among OUTPUTS."""
        indices = {"class_numbers"} if "probabilities" in needs else set()
        return sorted(n for n in self.extras if n.partition(".")[0] in {*needs, *indices})


def shard_path(folder: Path, k: int, name: str = "features") -> Path:
    """File of shard `k` of an output in a cache's folder."""
    return folder / f"{name}-{k:05d}.npy"


def open_cache(folder: Path) -> Cache:
    """Opens a finished cache.

    Raises:
        KdepError: a missing or truncated shard, or one of another shape or type.
    """
    m = read_strict(folder / MANIFEST)
    width = m["teacher"]["width"]

    def shards(name: str, shape: Sequence[int]) -> list[np.ndarray]:
        return [
            open_shard(shard_path(folder, k, name), (rows, *shape), dtype_of(name))
            for k in range(m["shards"])
            for rows in [min(SHARD_ROWS, m["rows"] - k * SHARD_ROWS)]
        ]

    stored = {name: shards(name, shape) for name, shape in m.get("outputs", {}).items()}
    index = np.load(folder / INDEX) if "of" in m else None
    pooled = shards("features", (width,)) if m.get("pooled", True) else []
    return Cache(m["teacher"], width, pooled, _with_float_maps(stored), index, m.get("classes"))


def _with_float_maps(stored: Mapping[str, list[np.ndarray]]) -> dict[str, Sequence[Shard]]:
    """The arrays of a cache by name; int8 maps and their scales as one array "maps.<name>"."""
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
    """Type of the numbers in an output's shards."""
    types = {"class_numbers": np.int16, int8_maps.CODES: np.int8}
    return np.dtype(types.get(name.partition(".")[0], np.float16))


def bytes_of_view(width: int, shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes that a cache stores per view.

    Args:
        width: numbers of the pooled feature; 0 where it is not stored.
        shapes: shape of each extra output of one view, by name.
    """
    extras = sum(math.prod(shape) * dtype_of(name).itemsize for name, shape in shapes.items())
    return width * np.dtype(np.float16).itemsize + extras


def open_shard(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One memory-mapped array; KdepError unless it has exactly the given shape and type."""
    try:
        shard = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise KdepError(
            f"the cache shard {path} cannot be read ({e})",
            expected=f"{dtype} {shape}",
            fix=made_again(path.parent),
        ) from None
    if shard.shape != shape or shard.dtype != dtype:
        raise KdepError(
            f"the cache shard {path} contains {shard.shape} {shard.dtype}",
            expected=f"{shape} {dtype}",
            fix=made_again(path.parent),
        )
    return shard
