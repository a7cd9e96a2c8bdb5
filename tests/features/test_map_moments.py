"""Mean and covariance of maps: all positions have equal weight, sampled rows are evenly spread."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from kdep_bench.features import map_moments
from kdep_bench.features.layers import evenly_spaced

ROWS, CHANNELS = 10, 3


class FakeCache:
    """A cache with maps [ROWS, CHANNELS, 4, 4]."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.maps = generator.normal(size=(ROWS, CHANNELS, 4, 4)).astype(np.float32)
        self.extras = {"maps.a": [self.maps]}

    def rows(self, rows: np.ndarray, name: str) -> np.ndarray:
        assert name == "maps.a"
        return self.maps[rows]


def position_means(maps: np.ndarray, side: int) -> np.ndarray:
    """[N, C]: means of blocks of 4 / side x 4 / side positions; every block is a sample."""
    step = 4 // side
    blocks = maps.reshape(len(maps), CHANNELS, side, step, side, step).mean((3, 5))
    return blocks.transpose(0, 2, 3, 1).reshape(-1, CHANNELS)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_the_moments_are_those_of_all_positions(side: int):
    stored = FakeCache()
    read = map_moments.cached_maps(cast(Any, stored), ["a"])
    moments = map_moments.map_moments(read, np.arange(ROWS), [("a", side)])["a", side]
    x = position_means(stored.maps, side)
    assert moments.n == len(x) == ROWS * side**2
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), atol=1e-6)
    centred = x - x.mean(0)
    np.testing.assert_allclose(moments.scatter.numpy(), centred.T @ centred, atol=1e-4)


def test_a_sample_of_many_rows_is_evenly_spread(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(map_moments, "MAX_ROWS", 4)
    stored, shuffled = FakeCache(), np.random.default_rng(1).permutation(ROWS)
    read = map_moments.cached_maps(cast(Any, stored), ["a"])
    moments = map_moments.map_moments(read, shuffled, [("a", 2)])["a", 2]
    sampled_rows = evenly_spaced(np.arange(ROWS), 4)  # the order of the given rows does not matter
    assert len(sampled_rows) <= 4
    x = position_means(stored.maps[sampled_rows], 2)
    assert moments.n == len(x)
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), atol=1e-6)
    map_moments.save_map_moments(read, shuffled, [("a", 2), ("a", 2)], tmp_path)
    saved_moments = map_moments.open_map_moments(tmp_path, "a", 2)
    assert saved_moments.n == moments.n
    torch.testing.assert_close(saved_moments.mean, moments.mean)
    torch.testing.assert_close(saved_moments.scatter, moments.scatter)
