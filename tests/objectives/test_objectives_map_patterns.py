"""Patterns of maps: float64 references, what they ignore, and levels chosen by clustering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.map_patterns import (
    ClusteredAttention,
    ClusteredRelations,
    PositionRelations,
    SpatialAttention,
)
from kdep_bench.teachers.base import TeacherOutput

MAPS = {
    f"s{stride}": {"channels": channels, "stride": stride, "side": 32 // stride}
    for stride, channels in ((4, 6), (8, 8), (16, 5))
}
KINDS = [SpatialAttention, PositionRelations]


def context(s: dict[str, Tensor], t: dict[str, Tensor]) -> Context:
    """A batch with these maps of student and teacher."""
    n = len(next(iter(s.values())))
    pooled = torch.zeros(n, 3)
    teacher_output = TeacherOutput(pooled, None, t)
    return Context(before=pooled, after=pooled, teacher=teacher_output, maps=s)


def build(kind: Any, levels: dict[str, str], **arguments: Any) -> Any:
    return kind(levels, student_maps=MAPS, teacher_maps=MAPS, **arguments)


def maps(seed: int, channels: int, side: int, n: int = 3) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def pattern_by_hand(kind: Any, x_CHW: np.ndarray) -> np.ndarray:
    """The pattern of one map from its formula."""
    channels = x_CHW.reshape(len(x_CHW), -1)
    if kind is SpatialAttention:
        squares = (channels**2).mean(0)
        return squares / np.sqrt((squares**2).sum())
    n = channels.shape[1]
    cosine = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a, b = channels[:, i], channels[:, j]
            cosine[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    return cosine


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_equals_a_float64_reference(kind):
    s, t = maps(0, 8, 4), maps(1, 11, 4)  # other numbers of channels need no projector
    loss = build(kind, {"s8": "s8"}, weight=7.0).terms(context({"s8": s}, {"s8": t}))["s8"]
    of_s = [pattern_by_hand(kind, x.double().numpy()) for x in s]
    of_t = [pattern_by_hand(kind, x.double().numpy()) for x in t]
    constant = pattern_by_hand(kind, np.ones((2, 4, 4)))
    reference = np.mean([((constant - b) ** 2).mean() for b in of_t])
    expected = [7 * ((a - b) ** 2).mean() / reference for a, b in zip(of_s, of_t, strict=True)]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_equal_to_the_teacher_has_no_loss_and_a_constant_one_has_the_weight(kind):
    t = maps(1, 6, 4)
    objective = build(kind, {"s8": "s8"}, weight=3.0)
    constant = torch.ones(3, 6, 4, 4)
    loss = objective.terms(context({"s8": constant}, {"s8": t}))["s8"]
    assert loss.mean() == pytest.approx(3.0, rel=1e-4)
    for same in (t, 5 * t, t.repeat(1, 2, 1, 1), t.flip(1)):  # scale and channels are ignored
        loss = objective.terms(context({"s8": same}, {"s8": t}))["s8"]
        assert loss.abs().max() < 1e-8
    shuffled = t.flatten(2)[:, :, torch.randperm(16)].view_as(t)
    assert objective.terms(context({"s8": shuffled}, {"s8": t}))["s8"].mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_right_and_reaches_every_position(kind):
    objective = build(kind, {"s16": "s16"}).double()
    t = maps(1, 5, 3, 2).double()
    s = maps(2, 4, 3, 2).double().requires_grad_()
    objective.terms(context({"s16": s.detach()}, {"s16": t}))  # measures the divisor
    assert torch.autograd.gradcheck(
        lambda x: objective.terms(context({"s16": x}, {"s16": t}))["s16"], (s,)
    )
    (gradient,) = torch.autograd.grad(
        objective.terms(context({"s16": s}, {"s16": t}))["s16"].sum(), s
    )
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", [ClusteredAttention, ClusteredRelations])
def test_levels_are_the_centres_of_clusters_always_with_the_deepest(kind):
    levels = {k: k for k in MAPS}
    # s4 and s8 are similar, so two points are one of them and s16.
    near = {"s4": {"s4": 0, "s8": 0.01, "s16": 0.9}, "s8": {"s4": 0.01, "s8": 0, "s16": 0.8}}
    near["s16"] = {"s4": 0.9, "s8": 0.8, "s16": 0}
    chosen = build(kind, levels, layer_distances=near, points=2).levels
    assert len(chosen) == 2
    assert "s16" in chosen
    assert build(kind, levels, layer_distances=near, points=1).levels == {"s16": "s16"}
    with pytest.raises(KdepError, match="number of hint points is 4, with 3 levels"):
        build(kind, levels, layer_distances=near, points=4)


def test_a_map_with_one_position_is_refused():
    small = {"s16": {"channels": 5, "stride": 16, "side": 1}}
    with pytest.raises(KdepError, match="has one position"):
        SpatialAttention({"s16": "s16"}, student_maps=small, teacher_maps=MAPS)
