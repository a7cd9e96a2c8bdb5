"""PURSUhInT: layers that say the same share one hint point; what CKA must not see, it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdep_bench.errors import KdepError
from kdep_bench.features.layers import evenly_spaced, linear_cka
from kdep_bench.objectives.pursuhint import Pursuhint, hint_points

MAPS = {f"s{s}": {"channels": 4, "stride": s} for s in (4, 8, 16, 32)}


def distances(layers: list[np.ndarray]) -> list[list[float]]:
    return [[1 - linear_cka(a, b) for b in layers] for a in layers]


def test_cka_does_not_see_a_rotation_a_scale_or_a_shift():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3 * x @ turn + rng.normal(size=6)) == pytest.approx(1)
    assert linear_cka(x, rng.normal(size=(200, 6))) < 0.2
    with pytest.raises(KdepError, match="the same output for every image"):
        linear_cka(x, np.ones((200, 2)))


@given(some.integers(0, 500), some.integers(1, 60))
def test_checked_rows_are_spread_over_all_rows(count: int, most: int):
    """The first rows of a pool sorted by class would know a few classes alone."""
    rows = evenly_spaced(np.arange(count), most)
    assert len(rows) <= most
    if count:
        assert rows[0] == 0
        assert count - rows[-1] <= -(-count // most)
    if count <= most:
        assert len(rows) == count


@settings(max_examples=40, deadline=None)
@given(some.lists(some.integers(1, 4), min_size=2, max_size=5), some.integers(0, 99))
def test_every_planted_group_gets_one_hint_point(sizes: list[int], seed: int):
    """Layers of one group are rotations of one feature, with a little noise of their own."""
    rng = np.random.default_rng(seed)
    layers, group = [], []
    for g, size in enumerate(sizes):
        own = rng.normal(size=(300, 8))
        for _ in range(size):
            turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
            layers.append(own @ turn + 0.05 * rng.normal(size=own.shape))
            group.append(g)
    points = hint_points(distances(layers), len(sizes))
    assert [group[i] for i in points] == list(range(len(sizes)))
    assert points == hint_points(distances(layers), len(sizes))


@settings(max_examples=40, deadline=None)
@given(some.lists(some.integers(1, 4), min_size=1, max_size=5), some.data())
def test_a_duplicated_block_is_one_hint_point(sizes: list[int], data: Any):
    rng = np.random.default_rng(data.draw(some.integers(0, 99)))
    blocks = [rng.normal(size=(60, 5)) for _ in sizes]
    which = [g for g, size in enumerate(sizes) for _ in range(size)]
    count = data.draw(some.integers(1, len(which)))
    points = hint_points(distances([blocks[g] for g in which]), count)
    groups = [which[i] for i in points]
    assert len(set(groups)) == len(groups) == min(count, len(sizes))


def test_the_levels_hinted_at_are_the_centres_by_depth():
    """s4 = s8 and s16 = s32: one of either pair, and s32, which teaches to the end."""
    near, far = 0.01, 0.9
    side = {"s4": 0, "s8": 0, "s16": 1, "s32": 1}
    layer_distances = {
        a: {b: 0.0 if a == b else near if side[a] == side[b] else far for b in MAPS} for a in MAPS
    }
    levels = {k: k for k in sorted(MAPS)}
    chosen = Pursuhint(levels, MAPS, MAPS, layer_distances, points=2)
    assert {side[k] for k in chosen.levels} == {0, 1}
    assert "s32" in chosen.levels
    assert list(Pursuhint(levels, MAPS, MAPS, layer_distances, points=1).levels) == ["s32"]
    assert set(chosen.through) == set(chosen.levels)
    for points in (0, 5):
        with pytest.raises(KdepError, match=r"number of hint points is .*, with 4 levels"):
            Pursuhint(levels, MAPS, MAPS, layer_distances, points=points)


def test_a_centre_moves_for_any_gain_above_rounding():
    # As centres: layer 1 costs 0.1**2 + 0.1**2, layer 0 costs 0.1**2 + 0.0999**2, a little less.
    layer_distances = [[0, 0.1, 0.0999], [0.1, 0, 0.1], [0.0999, 0.1, 0]]
    assert hint_points(layer_distances, 1) == [0]
    equal = [[0, 0.1, 0.1], [0.1, 0, 0.1], [0.1, 0.1, 0]]
    assert hint_points(equal, 1) == [1]  # a tie keeps the middle of the depth
