"""Pattern losses on feature maps: float64 references, invariances and clustering of levels.

A pattern has one number per position (`SpatialAttention`) or per pair of positions
(`PositionRelations`), whatever the number of channels. The formula of the loss is in the docstring
of `MapPatterns` (kdep_bench/objectives/map_patterns.py).
"""

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


def context(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Context:
    """A batch with these maps of student and teacher, {level: [B, C, H, W]}."""
    pooled = torch.zeros(len(next(iter(student.values()))), 3)
    teacher_output = TeacherOutput(pooled, None, teacher)
    return Context(
        pre_activation=pooled, post_activation=pooled, teacher=teacher_output, maps=student
    )


def build(kind: Any, levels: dict[str, str], **arguments: Any) -> Any:
    """An objective of class `kind` for {student level: teacher map}."""
    return kind(levels, student_maps=MAPS, teacher_maps=MAPS, **arguments)


def maps(seed: int, channels: int, side: int, count: int = 3) -> Tensor:
    """Normal noise [count, channels, side, side] with a fixed seed."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def pattern_by_hand(kind: Any, x_CHW: np.ndarray) -> np.ndarray:
    """The pattern of one map with N positions, from its formula in float64.

    Returns:
        [N] squares averaged over channels, with length 1 (SpatialAttention), or [N, N] cosines of
        the channel vectors of all pairs of positions (PositionRelations).
    """
    x_CN = x_CHW.reshape(len(x_CHW), -1)
    if kind is SpatialAttention:
        squares = (x_CN**2).mean(0)
        return squares / np.sqrt((squares**2).sum())
    n = x_CN.shape[1]
    cosine = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a, b = x_CN[:, i], x_CN[:, j]
            cosine[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    return cosine


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_equals_a_float64_reference(kind):
    student, teacher = maps(0, 8, 4), maps(1, 11, 4)  # different channels need no projector
    ctx = context({"s8": student}, {"s8": teacher})
    loss = build(kind, {"s8": "s8"}, weight=7.0).terms(ctx)["s8"]
    student_patterns, teacher_patterns = (
        [pattern_by_hand(kind, x.double().numpy()) for x in net] for net in (student, teacher)
    )
    constant = pattern_by_hand(kind, np.ones((2, 4, 4)))
    loss_of_constant = np.mean([((constant - t) ** 2).mean() for t in teacher_patterns])
    pairs = zip(student_patterns, teacher_patterns, strict=True)
    expected = [7 * ((s - t) ** 2).mean() / loss_of_constant for s, t in pairs]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_0_for_the_teacher_s_pattern_and_the_weight_for_a_constant_map(kind):
    teacher = maps(1, 6, 4)
    objective = build(kind, {"s8": "s8"}, weight=3.0)
    constant = torch.ones(3, 6, 4, 4)

    def loss(student: Tensor) -> Tensor:
        """Loss [B] of a student with this map."""
        return objective.terms(context({"s8": student}, {"s8": teacher}))["s8"]

    assert loss(constant).mean() == pytest.approx(3.0, rel=1e-4)
    # Scale, number and order of channels are ignored.
    for student in (teacher, 5 * teacher, teacher.repeat(1, 2, 1, 1), teacher.flip(1)):
        assert loss(student).abs().max() < 1e-8
    shuffled_positions = teacher.flatten(2)[:, :, torch.randperm(16)].view_as(teacher)
    assert loss(shuffled_positions).mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_finite_differences_and_reaches_every_position(kind):
    objective = build(kind, {"s16": "s16"}).double()
    teacher = maps(1, 5, 3, 2).double()
    student = maps(2, 4, 3, 2).double().requires_grad_()

    def loss(student: Tensor) -> Tensor:
        """Loss [B] of a student with this map."""
        return objective.terms(context({"s16": student}, {"s16": teacher}))["s16"]

    loss(student.detach())  # the first batch sets the divisor, which is then constant
    assert torch.autograd.gradcheck(loss, (student,))
    (gradient,) = torch.autograd.grad(loss(student).sum(), student)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", [ClusteredAttention, ClusteredRelations])
def test_levels_are_the_centres_of_clusters_and_include_the_deepest(kind):
    levels = {level: level for level in MAPS}
    # s4 and s8 are similar, so of two clusters one is {s4, s8} and the other {s16}.
    distances = {
        "s4": {"s4": 0, "s8": 0.01, "s16": 0.9},
        "s8": {"s4": 0.01, "s8": 0, "s16": 0.8},
        "s16": {"s4": 0.9, "s8": 0.8, "s16": 0},
    }
    chosen = build(kind, levels, layer_distances=distances, points=2).levels
    assert len(chosen) == 2
    assert "s16" in chosen
    assert build(kind, levels, layer_distances=distances, points=1).levels == {"s16": "s16"}
    with pytest.raises(KdepError, match="number of hint points is 4, with 3 levels"):
        build(kind, levels, layer_distances=distances, points=4)


def test_a_map_with_one_position_is_refused():
    small = {"s16": {"channels": 5, "stride": 16, "side": 1}}
    with pytest.raises(KdepError, match="has one position"):
        SpatialAttention({"s16": "s16"}, student_maps=small, teacher_maps=MAPS)
