"""Mean and covariance of a teacher's feature maps over images and spatial positions.

The alignment of MapRegression is fitted to them. A map is first resized to the side of the student
level that regresses it (1: the global mean); each position is then one sample. At most MAX_ROWS
views are read, evenly spaced over the data fraction: for 4 x 4 positions these are 65,536 samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdep_bench.errors import KdepError
from kdep_bench.features.cache_read import Cache
from kdep_bench.features.layers import evenly_spaced
from kdep_bench.features.transform import Moments
from kdep_bench.networks.resize import resize_map
from kdep_bench.openmmlab import load_weights

MAX_ROWS = 4096  # views


def map_moments(cache: Cache, rows: NDArray[np.int64], name: str, side: int) -> Moments:
    """Moments of the C channels of a cached map over all positions at `side` x `side`.

    Args:
        cache: holds the map.
        rows: row numbers of the views to use, at most MAX_ROWS of them.
        name: name of the map.
        side: height and width of the resized map, in positions.

    Raises:
        KdepError: a value that is not finite.
    """
    rows = evenly_spaced(np.sort(rows), MAX_ROWS)
    channels = int(cache.extras[f"maps.{name}"][0].shape[1])
    moments = Moments(channels)
    for start in range(0, len(rows), 256):
        maps = torch.from_numpy(cache.rows(rows[start : start + 256], f"maps.{name}")).float()
        moments.add(resize_map(maps, (side, side)).permute(0, 2, 3, 1).reshape(-1, channels))
    return moments


def save_map_moments(
    cache: Cache, rows: NDArray[np.int64], maps_and_sides: Iterable[tuple[str, int]], folder: Path
) -> None:
    """Writes the moments of each (map name, side) below `folder`, for `open_map_moments`."""
    for name, side in sorted(set(maps_and_sides)):
        write_moments(map_moments(cache, rows, name, side), folder, name, side)


def write_moments(moments: Moments, folder: Path, name: str, side: int) -> None:
    """Writes the moments of one map atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}@{side}.pt"
    state = {"n": torch.tensor(moments.n), "mean": moments.mean, "scatter": moments.scatter}
    torch.save(state, partial)
    partial.replace(folder / f"{name}@{side}.pt")


def open_map_moments(folder: str | Path, name: str, side: int) -> Moments:
    """Reads the moments that `write_moments` wrote; raises KdepError if there are none."""
    path = Path(folder) / f"{name}@{side}.pt"
    if not path.is_file():
        raise KdepError(
            f"the moments of the teacher's map {name} at {side} x {side} are not in {folder}, "
            "where the pre-training stage writes them before training",
            fix="run the suite again",
        )
    stored = load_weights(path)
    moments = Moments(len(stored["mean"]))
    moments.n, moments.mean, moments.scatter = int(stored["n"]), stored["mean"], stored["scatter"]
    return moments
