"""Mean and covariance of a teacher's feature maps over images and spatial positions.

The alignment of the objective MapRegression is fitted to these moments. A map is first resized to
the side of the student level that regresses it (side 1: the global mean); each position is then one
sample. At most MAX_ROWS views are read, evenly spaced over the data fraction: with 4 x 4 positions,
these are 65,536 samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdep_bench.data.views import Views
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_check import render_rows, run_teacher
from kdep_bench.features.cache_read import Cache
from kdep_bench.features.layers import READ_ROWS, evenly_spaced
from kdep_bench.features.transform import Moments
from kdep_bench.networks.resize import resize_map
from kdep_bench.openmmlab import load_weights
from kdep_bench.teachers.base import Teacher

MAX_ROWS = 4096
LIVE_BATCH = 64  # images per forward pass of a live teacher

# Row numbers -> {map name: [n, C, H, W] float32}.
ReadMaps = Callable[[NDArray[np.int64]], Mapping[str, Tensor]]


def cached_maps(cache: Cache, names: Iterable[str]) -> ReadMaps:
    """A function that reads the maps `names` of the given rows from a cache."""
    names = list(names)

    def read(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        return {n: torch.from_numpy(cache.rows(rows, f"maps.{n}")).float() for n in names}

    return read


def live_maps(teacher: Teacher, views: Views, names: Iterable[str]) -> ReadMaps:
    """A function that computes the maps `names` of the given rows with the teacher.

    The teacher must be on the device of the process.
    """
    names = list(names)

    def read(rows: NDArray[np.int64]) -> dict[str, Tensor]:
        parts = []
        for start in range(0, len(rows), LIVE_BATCH):
            part = rows[start : start + LIVE_BATCH]
            parts.append(run_teacher(teacher, render_rows(views, part, teacher.input_px)).maps)
        return {n: torch.cat([part[n] for part in parts]).float() for n in names}

    return read


def map_moments(
    read: ReadMaps, rows: NDArray[np.int64], maps_and_sides: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], Moments]:
    """{(map name, side): Moments of the channels over all positions of that map}.

    Args:
        read: row numbers -> {map name: [n, C, H, W] float32}.
        rows: row numbers of the views; at most MAX_ROWS of them are used.
        maps_and_sides: pairs of a map name and the side, in positions, to which it is resized.

    Raises:
        KdepError: a value that is not finite.
    """
    rows = evenly_spaced(np.sort(rows), MAX_ROWS)
    moments: dict[tuple[str, int], Moments] = {}
    for start in range(0, len(rows), READ_ROWS):
        maps = read(rows[start : start + READ_ROWS])
        for name, side in sorted(set(maps_and_sides)):
            channels = maps[name].shape[1]
            positions = resize_map(maps[name], (side, side)).permute(0, 2, 3, 1)
            accumulated = moments.setdefault((name, side), Moments(channels))
            accumulated.add(positions.reshape(-1, channels))
    return moments


def save_map_moments(
    read: ReadMaps,
    rows: NDArray[np.int64],
    maps_and_sides: Iterable[tuple[str, int]],
    folder: Path,
) -> None:
    """Writes the result of `map_moments` below `folder`, for `open_map_moments`."""
    for (name, side), moments in map_moments(read, rows, list(maps_and_sides)).items():
        write_moments(moments, folder, name, side)


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
