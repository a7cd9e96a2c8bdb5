"""Distances between a teacher's layers: 1 - linear CKA of their spatially averaged maps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdep_bench.errors import KdepError
from kdep_bench.features.cache_read import Cache

MAX_ROWS = 10_000  # samples; about as many as in PURSUhInT
READ_ROWS = 256  # rows whose maps are read at a time, which limits memory


def evenly_spaced(rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` of the rows, evenly spaced (the first rows may be of only a few classes)."""
    return rows[:: math.ceil(len(rows) / limit)] if len(rows) else rows


def linear_cka(a_NC: NDArray[np.float64], b_ND: NDArray[np.float64]) -> float:
    """Linear centred kernel alignment, from 0 to 1 (Kornblith et al., ICML 2019, eq. 5).

    |A^T B|_F^2 / (|A^T A|_F |B^T B|_F) of the centred features A and B. It is 1 if one is a
    rotated, scaled and shifted copy of the other.

    Args:
        a_NC: features of N samples.
        b_ND: features of the same samples in another layer.

    Raises:
        KdepError: features that are the same for every sample, for which CKA is undefined.
    """
    a, b = a_NC - a_NC.mean(0), b_ND - b_ND.mean(0)
    scale = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    if not scale > 0:
        raise KdepError(
            "a layer of the teacher has the same output for every image, so its CKA is undefined",
            fix="remove that layer from the method's levels",
        )
    return float(np.square(a.T @ b).sum()) / scale


def layer_distances(
    cache: Cache, rows: NDArray[np.int64], names: list[str]
) -> dict[str, dict[str, float]]:
    """{layer: {layer: 1 - CKA}} of the cached maps `names`, over at most MAX_ROWS of `rows`."""
    rows = evenly_spaced(np.sort(rows), MAX_ROWS)
    means = {name: _means(cache, rows, name) for name in names}
    return {
        a: {b: 0.0 if a == b else 1.0 - linear_cka(means[a], means[b]) for b in names}
        for a in names
    }


def _means(cache: Cache, rows: NDArray[np.int64], name: str) -> NDArray[np.float64]:
    """[len(rows), C]: the map of each row averaged over its spatial positions."""
    parts = [
        cache.rows(rows[k : k + READ_ROWS], f"maps.{name}").mean((2, 3), dtype=np.float64)
        for k in range(0, len(rows), READ_ROWS)
    ]
    return np.concatenate(parts)
