"""AFD, which weighs pairs of maps by attention, and RTK, which also discards teacher maps.

The formula of AFD is in the docstring of `AttentionFeatures`, that of RTK in the docstring of
`StrongestTeacherMaps` (kdep_bench/objectives/attention_features.py). The pattern of a map is its
mean square over channels, one number per position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.attention_features import (
    AttentionFeatures,
    StrongestTeacherMaps,
    spatial_pattern,
    strongest,
)
from kdep_bench.objectives.base import Context
from kdep_bench.teachers.base import TeacherOutput
from tests.objectives.test_objectives_maps import rand

STUDENT = {"s8": {"channels": 3, "stride": 8}, "s16": {"channels": 4, "stride": 16}}
TEACHER = {"a": {"channels": 5, "stride": 8}, "b": {"channels": 6, "stride": 16}}
LEVELS = {"s8": "a", "s16": "b"}
B, DIM = 4, 8  # images per batch, width of the attention's queries and keys


def context(seed: int = 0) -> Context:
    """Random maps: the student's of 4 x 4 and 2 x 2 positions, the teacher's of twice the side."""
    maps = {"s8": rand(B, 3, 4, 4, seed=seed), "s16": rand(B, 4, 2, 2, seed=seed + 1)}
    teacher_maps = {"a": rand(B, 5, 8, 8, seed=seed + 2), "b": rand(B, 6, 4, 4, seed=seed + 3)}
    return with_maps(maps, teacher_maps)


def with_maps(maps: dict[str, Tensor], teacher_maps: dict[str, Tensor]) -> Context:
    """A batch with these maps of student and teacher."""
    pooled = torch.zeros(B, 4)
    teacher_output = TeacherOutput(torch.zeros(B, 5), None, teacher_maps)
    return Context(pre_activation=pooled, post_activation=pooled, teacher=teacher_output, maps=maps)


def build(kind: Any = AttentionFeatures, **arguments: Any) -> Any:
    """An objective of class `kind` with fixed initial weights."""
    torch.manual_seed(0)
    options = {"levels": LEVELS, "dim": DIM, **arguments}
    return kind(student_maps=STUDENT, teacher_maps=TEACHER, **options)


def normalised(layer: Any, x_ND: np.ndarray) -> np.ndarray:
    """[N, DIM] float64: the output of a linear layer followed by BatchNorm in training mode."""
    weight, bias = (p.detach().double().numpy() for p in (layer[0].weight, layer[0].bias))
    out = x_ND @ weight.T + bias
    return (out - out.mean(0)) / np.sqrt(out.var(0) + 1e-5)


def pattern_of(map_CHW: np.ndarray, side: int) -> np.ndarray:
    """[side^2] float64: mean square over channels, resized to `side` x `side`, with length 1."""
    mean_square = (map_CHW**2).mean(0)
    if side >= len(mean_square):
        scale = side // len(mean_square)
        resized = np.kron(mean_square, np.ones((scale, scale)))
    else:
        scale = len(mean_square) // side
        resized = mean_square.reshape(side, scale, side, scale).mean((1, 3))
    return resized.ravel() / np.linalg.norm(resized)


def reference(objective: Any, ctx: Context, over_teacher: bool, count: int) -> np.ndarray:
    """Loss [B] in float64, computed from the formula with loops over samples and maps.

    Args:
        objective: gives the weights of the layers.
        ctx: the batch.
        over_teacher: whether attention sums to 1 over the teacher's maps, and distances are sums
            over positions (RTK); otherwise it sums to 1 over the student's, and they are means.
        count: number of teacher maps that are kept.
    """
    student = {k: v.double().numpy() for k, v in ctx.maps.items()}
    assert ctx.teacher is not None
    teacher = {k: v.double().numpy() for k, v in ctx.teacher.maps.items()}
    # Index i counts the student's maps, j the teacher's.
    queries = {t: normalised(objective.queries[t], teacher[t].mean((2, 3))) for t in "ab"}
    keys = [normalised(objective.keys[s], student[s].mean((2, 3))).clip(min=0) for s in LEVELS]
    rows = np.stack(keys, 1).reshape(B * 2, DIM)
    transformed = normalised(objective.bilinear, rows).reshape(B, 2, 2, DIM)
    position_t, position_s = (
        p.detach().double().numpy()
        for p in (objective.teacher_positions, objective.student_positions)
    )
    losses = np.zeros(B)
    for b in range(B):
        score, distance = np.zeros((2, 2)), np.zeros((2, 2))
        for i, s in enumerate(LEVELS):
            for j, t in enumerate("ab"):
                product = transformed[b, i, j] @ queries[t][b] + position_s[i] @ position_t[j]
                score[i, j] = product / np.sqrt(DIM)
                side = teacher[t].shape[2]
                difference = pattern_of(student[s][b], side) - pattern_of(teacher[t][b], side)
                distance[i, j] = (difference**2).sum() if over_teacher else (difference**2).mean()
        weights = np.exp(score) / np.exp(score).sum(int(over_teacher), keepdims=True)
        if count < 2:
            weights = np.where(weights == weights.max(1, keepdims=True), weights, 0)
            weights = weights / weights.sum(1, keepdims=True)
        losses[b] = objective.weight * (weights * distance).sum()
    return losses


def test_afd_equals_a_float64_reference():
    objective, ctx = build(), context()
    loss = objective.terms(ctx)["patterns"].detach()
    np.testing.assert_allclose(loss, reference(objective, ctx, False, 2), rtol=2e-5)
    torch.testing.assert_close(objective.attention(ctx).sum(1), torch.ones(B, 2))


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_rtk_equals_a_float64_reference(keep: float):
    objective, ctx = build(StrongestTeacherMaps, keep=keep), context()
    loss = objective.terms(ctx)["patterns"].detach()
    np.testing.assert_allclose(loss, reference(objective, ctx, True, round(2 * keep)), rtol=2e-5)
    torch.testing.assert_close(objective.attention(ctx).sum(2), torch.ones(B, 2))


def test_the_attention_of_a_single_pair_of_maps_is_1():
    objective, ctx = build(levels={"s8": "a"}), context()
    assert bool((objective.attention(ctx) == 1).all())
    assert ctx.teacher is not None
    patterns = [spatial_pattern(m, (8, 8)) for m in (ctx.maps["s8"], ctx.teacher.maps["a"])]
    expected = 200 * (patterns[0] - patterns[1]).square().mean(1)  # 200: the default weight
    torch.testing.assert_close(objective.terms(ctx)["patterns"], expected)


def test_patterns_do_not_depend_on_the_scale_and_order_of_channels():
    x = rand(B, 5, 8, 8)
    changed = 3 * x[:, [4, 1, 0, 3, 2]]
    torch.testing.assert_close(spatial_pattern(x, (4, 4)), spatial_pattern(changed, (4, 4)))
    assert not bool(spatial_pattern(torch.zeros(1, 2, 4, 4), (2, 2)).any())  # no NaN


def test_only_the_strongest_weights_are_kept_and_receive_gradients():
    scores = torch.tensor([[[2.0, 0.0, 1.0]]], requires_grad=True)
    kept = strongest(scores.softmax(2), 2)
    e = np.exp([2.0, 1.0])
    np.testing.assert_allclose(kept.detach()[0, 0], [e[0] / e.sum(), 0, e[1] / e.sum()], rtol=1e-6)
    kept[0, 0, 0].backward()
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad[0, 0, 1], 0, atol=1e-7)
    assert abs(float(scores.grad[0, 0, 0])) > 0.1


def test_rtk_discards_a_teacher_map_of_noise():
    """Teacher map a has the student's pattern, b is new noise in every step.

    After training, the student's first map gives nearly all attention to a.
    """
    objective = build(StrongestTeacherMaps, levels={"s8": "a", "s16": "b"}, keep=1.0)
    optimizer = torch.optim.Adam(objective.parameters(), 0.02)
    attention = torch.ones(1)
    for step in range(150):
        pattern = rand(B, 1, 4, 4, seed=3 * step).abs() + 0.1
        maps = {"s8": pattern.expand(-1, 3, -1, -1), "s16": rand(B, 4, 2, 2, seed=1)}
        enlarged = torch.nn.functional.interpolate(pattern, scale_factor=2).expand(-1, 5, -1, -1)
        noise = rand(B, 6, 4, 4, seed=3 * step + 1) ** 3
        ctx = with_maps(maps, {"a": enlarged, "b": noise})
        attention = objective.attention(ctx)[:, 0].detach().mean(0)
        optimizer.zero_grad()
        objective.terms(ctx)["patterns"].sum().backward()
        optimizer.step()
    assert attention[1] < 0.1
    objective.count = 1  # keep only the teacher map with the most attention
    assert bool((objective.attention(ctx)[:, 0, 1] == 0).all())


def test_a_fraction_that_keeps_no_map_is_refused():
    with pytest.raises(KdepError, match="keep=0 leaves no map"):
        build(StrongestTeacherMaps, keep=0)
