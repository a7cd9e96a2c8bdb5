"""PURSUhInT: similar layers share one hint point, a layer whose map the student learns.

Layers are clustered by 1 - CKA (centred kernel alignment, the similarity of two layers' outputs);
the hint points are the centres of the clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from kdep_bench.errors import KdepError
from kdep_bench.features.layers import evenly_spaced, linear_cka
from kdep_bench.objectives.pursuhint import Pursuhint, hint_points

MAPS = {f"s{stride}": {"channels": 4, "stride": stride} for stride in (4, 8, 16, 32)}


def distances(layers: list[np.ndarray]) -> list[list[float]]:
    """[L, L]: 1 - CKA of every pair of L layers, each [images, channels]."""
    return [[1 - linear_cka(a, b) for b in layers] for a in layers]


def test_cka_ignores_a_rotation_a_scale_and_a_shift():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3 * x @ rotation + rng.normal(size=6)) == pytest.approx(1)
    assert linear_cka(x, rng.normal(size=(200, 6))) < 0.2
    with pytest.raises(KdepError, match="the same output for every image"):
        linear_cka(x, np.ones((200, 2)))


@given(strategies.integers(0, 500), strategies.integers(1, 60))
def test_rows_for_the_distances_are_evenly_spread(count: int, max_rows: int):
    """The first rows of a pool that is sorted by class would contain only a few classes."""
    rows = evenly_spaced(np.arange(count), max_rows)
    assert len(rows) <= max_rows
    if count:
        assert rows[0] == 0
        step = -(-count // max_rows)  # count / max_rows, rounded up
        assert count - rows[-1] <= step
    if count <= max_rows:
        assert len(rows) == count


@settings(max_examples=40, deadline=None)
@given(
    strategies.lists(strategies.integers(1, 4), min_size=2, max_size=5), strategies.integers(0, 99)
)
def test_every_group_of_similar_layers_gets_one_hint_point(sizes: list[int], seed: int):
    """The layers of a group are rotations of the same feature with a little noise."""
    rng = np.random.default_rng(seed)
    layers, group_of_layer = [], []
    for group, size in enumerate(sizes):
        feature = rng.normal(size=(300, 8))
        for _ in range(size):
            rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
            layers.append(feature @ rotation + 0.05 * rng.normal(size=feature.shape))
            group_of_layer.append(group)
    points = hint_points(distances(layers), len(sizes))
    assert [group_of_layer[i] for i in points] == list(range(len(sizes)))
    assert points == hint_points(distances(layers), len(sizes))  # reproducible


@settings(max_examples=40, deadline=None)
@given(strategies.lists(strategies.integers(1, 4), min_size=1, max_size=5), strategies.data())
def test_layers_that_are_equal_share_one_hint_point(sizes: list[int], data: Any):
    rng = np.random.default_rng(data.draw(strategies.integers(0, 99)))
    outputs = [rng.normal(size=(60, 5)) for _ in sizes]  # one per group of equal layers
    group_of_layer = [group for group, size in enumerate(sizes) for _ in range(size)]
    count = data.draw(strategies.integers(1, len(group_of_layer)))
    points = hint_points(distances([outputs[group] for group in group_of_layer]), count)
    groups = [group_of_layer[i] for i in points]
    assert len(set(groups)) == len(groups) == min(count, len(sizes))


def test_hint_points_are_the_centres_of_groups_and_include_the_last_level():
    """s4 and s8 are similar, s16 and s32 too: one map of each pair is chosen, s32 of the second."""
    near, far = 0.01, 0.9
    pair_of = {"s4": 0, "s8": 0, "s16": 1, "s32": 1}
    layer_distances = {
        a: {b: near if pair_of[a] == pair_of[b] else far for b in MAPS} | {a: 0.0} for a in MAPS
    }
    levels = {level: level for level in sorted(MAPS)}  # student level -> teacher map
    chosen = Pursuhint(levels, MAPS, MAPS, layer_distances, points=2)
    assert {pair_of[level] for level in chosen.levels} == {0, 1}
    assert "s32" in chosen.levels
    assert list(Pursuhint(levels, MAPS, MAPS, layer_distances, points=1).levels) == ["s32"]
    assert set(chosen.through) == set(chosen.levels)  # one projector for each chosen map
    for points in (0, 5):
        with pytest.raises(KdepError, match=r"number of hint points is .*, with 4 levels"):
            Pursuhint(levels, MAPS, MAPS, layer_distances, points=points)


def test_a_centre_moves_for_any_smaller_cost_and_ties_keep_the_middle_layer():
    # The cost of a centre is the sum of squared distances to the other layers of its cluster:
    # layer 1 (the first choice) costs 0.1**2 + 0.1**2, layer 0 0.1**2 + 0.0999**2, a little less.
    layer_distances = [[0, 0.1, 0.0999], [0.1, 0, 0.1], [0.0999, 0.1, 0]]
    assert hint_points(layer_distances, 1) == [0]
    equal = [[0, 0.1, 0.1], [0.1, 0, 0.1], [0.1, 0.1, 0]]
    assert hint_points(equal, 1) == [1]
