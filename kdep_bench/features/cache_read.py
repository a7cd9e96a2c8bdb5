"""An opened teacher cache: memory-mapped shards of two-byte numbers, read row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict

MANIFEST, SAMPLE, INDEX = "cache.json", "sample.npz", "rows.npy"
# What a cache holds beside the pooled feature where its spec says so.
OUTPUTS = ("logits", "maps", "tokens", "probabilities")
SHARD_ROWS = 16384


@dataclass(frozen=True)
class Cache:
    """An opened cache of R rows: `width` Dt, `shards` memory maps [<=SHARD_ROWS, Dt] float16.

    `extras`: shards [<=SHARD_ROWS, ...] float16 of each further array: "logits", "tokens",
    "maps.<name>", "probabilities.<k>"; "class_numbers.<k>" is int16. `index`: the sorted row
    numbers that are stored, None for all from 0. `shards` is empty in a cache of probabilities
    whose methods do not read the pooled feature. `classes`: of the teacher's logits, in a cache
    of probabilities.
    """

    teacher: dict[str, Any]
    width: int
    shards: list[np.ndarray]
    extras: dict[str, list[np.ndarray]] = field(default_factory=dict)
    index: np.ndarray | None = None
    classes: int | None = None

    def __len__(self) -> int:
        return sum(len(s) for s in self.shards or next(iter(self.extras.values())))

    def rows(self, index: np.ndarray, name: str | None = None) -> np.ndarray:
        """[len(index), Dt] float16, in the order of `index`; of the further array `name` if given.

        Only the rows asked for are read, so memory does not grow with the cache. KdepError for a
        row that a cache of one data share does not hold.
        """
        if self.index is not None:
            place = np.searchsorted(self.index, index)
            held = self.index[np.minimum(place, len(self.index) - 1)] == index
            if not held.all():
                raise KdepError(
                    f"row {index[~held][0]} is not in the cache of teacher {self.teacher['name']}",
                    expected=f"one of the {len(self.index)} rows of the data fraction that it was "
                    "computed for",
                    fix="use the data fraction of the suite that planned it",
                )
            index = place
        shards = self.shards if name is None else self.extras[name]
        out = np.empty((len(index), *shards[0].shape[1:]), shards[0].dtype)
        which = index // SHARD_ROWS
        for k in np.unique(which):
            here = which == k
            out[here] = shards[k][index[here] % SHARD_ROWS]
        return out

    def wanted(self, needs: Sequence[str] | frozenset[str]) -> list[str]:
        """Names of the further arrays that serve the needs among OUTPUTS."""
        more = {"class_numbers"} if "probabilities" in needs else set()
        return sorted(n for n in self.extras if n.partition(".")[0] in {*needs, *more})


def shard_path(folder: Path, k: int, name: str = "features") -> Path:
    return folder / f"{name}-{k:05d}.npy"


def open_cache(folder: Path) -> Cache:
    """Opens a finished cache; KdepError for a missing, truncated or mis-shaped shard."""
    m = read_strict(folder / MANIFEST)
    width = m["teacher"]["width"]

    def shards(name: str, shape: Sequence[int]) -> list[np.ndarray]:
        return [
            open_shard(shard_path(folder, k, name), (rows, *shape), dtype_of(name))
            for k in range(m["shards"])
            for rows in [min(SHARD_ROWS, m["rows"] - k * SHARD_ROWS)]
        ]

    extras = {name: shards(name, shape) for name, shape in m.get("outputs", {}).items()}
    index = np.load(folder / INDEX) if "of" in m else None
    pooled = shards("features", (width,)) if m.get("pooled", True) else []
    return Cache(m["teacher"], width, pooled, extras, index, m.get("classes"))


def dtype_of(name: str) -> np.dtype:
    """Type of the numbers in a cache's array."""
    return np.dtype(np.int16 if name.startswith("class_numbers.") else np.float16)


def open_shard(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One memory-mapped array of exactly that shape and type."""
    try:
        shard = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise KdepError(
            f"the cache shard {path} cannot be read ({e})",
            expected=f"{dtype} {shape}",
            fix="delete that stage folder and run again",
        ) from None
    if shard.shape != shape or shard.dtype != dtype:
        raise KdepError(
            f"the cache shard {path} contains {shard.shape} {shard.dtype}",
            expected=f"{shape} {dtype}",
            fix="delete that stage folder and run again",
        )
    return shard
