"""DPK (dynamic prior knowledge): positions of the student's map are replaced by the teacher's.

Each position is replaced with the probability 1 - CKA, where CKA (centred kernel alignment)
measures how similar the two maps are: 1 if one is a rotation of the other. A decoder then predicts
the teacher's map from the mixed map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdep_bench.features.layers import linear_cka
from kdep_bench.objectives.base import Context, demands
from kdep_bench.objectives.dynamic_prior import DynamicPrior, batch_cka
from kdep_bench.teachers.base import TeacherOutput
from tests.objectives.test_objectives_maps import rand

MAPS = {"s8": {"channels": 3, "stride": 8}}
B = 8  # images per batch


def build(**arguments: Any) -> DynamicPrior:
    """DPK for the level s8, with fixed initial weights."""
    torch.manual_seed(0)
    return DynamicPrior({"s8": "s8"}, student_maps=MAPS, teacher_maps=MAPS, hidden=6, **arguments)


def context(student: Tensor, teacher: Tensor, step: int = 0) -> Context:
    """A batch with these maps [B, 3, H, W] at stride 8."""
    pooled = torch.zeros(B, 4)
    teacher_output = TeacherOutput(torch.zeros(B, 5), None, {"s8": teacher})
    maps = {"s8": student}
    return Context(
        pre_activation=pooled, post_activation=pooled, teacher=teacher_output, maps=maps, step=step
    )


def test_the_cka_of_a_batch_equals_the_numpy_implementation():
    x, y = rand(B, 5), rand(B, 3, seed=1)
    expected = linear_cka(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(batch_cka(x, y), expected, rtol=1e-4)
    torch.testing.assert_close(batch_cka(x, 3 * x - 1), torch.tensor(1.0))
    constant = torch.ones(B, 3)
    assert float(batch_cka(x, constant)) == 0


def test_with_equal_maps_no_position_is_replaced():
    """The loss is then the decoder's error on the student's projected map."""
    teacher = rand(B, 3, 4, 4)
    objective = build()
    ctx = context(teacher.clone(), teacher)
    assert float(objective.teacher_fraction(ctx, "s8")) < 1e-5
    projected = objective.projectors["s8"](teacher)
    error = (objective.decoders["s8"](projected) - teacher).square().mean((1, 2, 3))
    loss = objective.terms(ctx)["s8"]
    # 20 / (mean square of the target) is the automatic loss weight.
    torch.testing.assert_close(loss, 20 / teacher.square().mean() * error)


def test_with_a_cka_of_0_the_whole_map_is_replaced_and_the_student_gets_no_gradient():
    teacher = rand(B, 3, 4, 4)
    student = torch.ones(B, 3, 4, 4, requires_grad=True)  # constant, so its CKA is 0
    objective = build()
    ctx = context(student, teacher)
    assert float(objective.teacher_fraction(ctx, "s8")) == 1
    loss = objective.terms(ctx)["s8"]
    error = (objective.decoders["s8"](teacher) - teacher).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, 20 / teacher.square().mean() * error)
    loss.sum().backward()
    assert student.grad is not None
    assert not bool(student.grad.any())


def test_the_loss_equals_a_reference_with_the_positions_drawn_from_the_step():
    student, teacher = rand(B, 3, 4, 4), rand(B, 3, 4, 4, seed=1)
    objective, ctx = build(), context(student, teacher, step=7)
    fraction = 1 - linear_cka(
        student.mean((2, 3)).double().numpy(), teacher.mean((2, 3)).double().numpy()
    )
    assert 0.2 < fraction < 0.95  # so both replaced and other positions occur
    # The seed is [step, index of the level].
    drawn = np.random.default_rng([7, 0]).random((B, 1, 4, 4), np.float32) < fraction
    projected = objective.projectors["s8"](student).detach().numpy()
    mixed = torch.from_numpy(np.where(drawn, teacher.numpy(), projected))
    error = (objective.decoders["s8"](mixed) - teacher).square().mean((1, 2, 3))
    expected = 20 / teacher.square().mean() * error
    torch.testing.assert_close(objective.terms(ctx)["s8"], expected)
    other_step = objective.terms(context(student, teacher, step=8))["s8"]
    assert not torch.equal(other_step, expected)


def test_dpk_declares_that_its_loss_reads_the_whole_batch():
    """CKA compares all samples, so planning refuses a batch that is split into parts."""
    config = dict(type=f"{DynamicPrior.__module__}.DynamicPrior", levels={"s8": "s8"})
    assert demands(config).couples_samples
