"""Moments of maps: every place of a row counts alike, over rows spread evenly."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from kdep_bench.features import map_moments
from kdep_bench.features.layers import evenly_spaced

ROWS, CHANNELS = 10, 3


class Stored:
    """Maps [ROWS, CHANNELS, 4, 4] as a cache keeps them."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.maps = generator.normal(size=(ROWS, CHANNELS, 4, 4)).astype(np.float32)
        self.extras = {"maps.a": [self.maps]}

    def rows(self, rows: np.ndarray, name: str) -> np.ndarray:
        assert name == "maps.a"
        return self.maps[rows]


def places(maps: np.ndarray, side: int) -> np.ndarray:
    """[N, C]: means of 4 / side x 4 / side blocks, every place a sample."""
    step = 4 // side
    blocks = maps.reshape(len(maps), CHANNELS, side, step, side, step).mean((3, 5))
    return blocks.transpose(0, 2, 3, 1).reshape(-1, CHANNELS)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_the_moments_are_those_of_all_places(side: int):
    stored = Stored()
    got = map_moments.map_moments(cast(Any, stored), np.arange(ROWS), "a", side)
    x = places(stored.maps, side)
    assert got.n == len(x) == ROWS * side**2
    np.testing.assert_allclose(got.mean.numpy(), x.mean(0), atol=1e-6)
    centred = x - x.mean(0)
    np.testing.assert_allclose(got.scatter.numpy(), centred.T @ centred, atol=1e-4)


def test_a_sample_of_many_rows_is_evenly_spread(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(map_moments, "MAX_ROWS", 4)
    stored, shuffled = Stored(), np.random.default_rng(1).permutation(ROWS)
    got = map_moments.map_moments(cast(Any, stored), shuffled, "a", 2)
    read = evenly_spaced(np.arange(ROWS), 4)
    assert len(read) <= 4
    x = places(stored.maps[read], 2)
    assert got.n == len(x)
    np.testing.assert_allclose(got.mean.numpy(), x.mean(0), atol=1e-6)
    map_moments.save_map_moments(cast(Any, stored), shuffled, [("a", 2), ("a", 2)], tmp_path)
    again = map_moments.open_map_moments(tmp_path, "a", 2)
    assert again.n == got.n
    torch.testing.assert_close(again.mean, got.mean)
    torch.testing.assert_close(again.scatter, got.scatter)
