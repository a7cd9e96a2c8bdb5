"""Logit distillation (KD, knowledge distillation) compared with closed forms.

The loss is tau^2 KL(teacher || student) of the softmax of both logits divided by tau.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.logit_kd import LogitKD, LogitKDWithLabels, soft_kl
from kdep_bench.teachers.base import TeacherOutput

C = 7  # classes


def logits(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random teacher and student logits, [5, C] each."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(5, C, generator=generator) for _ in range(2))
    return scale * teacher, scale * student


def context(feature: Tensor, teacher: Tensor, **values: Any) -> Context:
    """A batch with this student feature, before and after the activation, and teacher logits."""
    return Context(feature, feature, teacher=TeacherOutput(feature, teacher), **values)


def with_identity_head(objective: LogitKD) -> LogitKD:
    """The same objective; its head returns the student's feature [B, C] as logits."""
    torch.nn.init.eye_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    return objective


@given(st.integers(0, 10**6), st.floats(0.5, 20), st.floats(-50, 50))
def test_the_kl_term_is_zero_for_equal_logits_and_ignores_a_shift(
    seed: int, tau: float, shift: float
):
    teacher, student = logits(seed)
    # The tolerances allow for float32 rounding, which the loss multiplies by tau squared.
    assert soft_kl(teacher, teacher + shift, tau).abs().max() < 2e-3 * tau**2
    torch.testing.assert_close(
        soft_kl(teacher, student + shift, tau),
        soft_kl(teacher, student, tau),
        rtol=1e-3,
        atol=1e-3 * tau**2,
    )
    assert bool((soft_kl(teacher, student, tau) > -1e-5).all())


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_kl_term_is_torch_s_kl_div_times_tau_squared(tau: float):
    teacher, student = logits(1)
    expected = F.kl_div(
        F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction="batchmean"
    ) * (tau**2)
    loss = with_identity_head(LogitKD(C, C, tau=tau)).terms(context(student, teacher))["kl"]
    torch.testing.assert_close(loss.mean(), expected)


def test_a_high_temperature_compares_centred_logits():
    """For tau -> infinity, tau^2 KL tends to |centred teacher - centred student|^2 / (2 C)."""
    teacher, student = (z.double() for z in logits(2))
    centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    expected = centred.square().sum(1) / (2 * C)
    torch.testing.assert_close(soft_kl(teacher, student, 1e4), expected, rtol=1e-3, atol=1e-6)


def test_the_gradient_of_the_kl_term_is_that_of_finite_differences():
    teacher, student = (z.double() for z in logits(3, 1.0))
    assert torch.autograd.gradcheck(lambda x: soft_kl(teacher, x, 2.0), student.requires_grad_())


def test_alpha_0_is_cross_entropy_and_alpha_1_is_label_free_bit_for_bit():
    teacher, student = logits(4)
    labels = torch.tensor([0, 6, 3, 3, 1])
    terms = with_identity_head(LogitKDWithLabels(C, C, C, alpha=0.0)).terms(
        context(student, teacher, labels=labels)
    )
    expected = F.cross_entropy(student, labels, reduction="none")
    assert torch.equal(sum(terms.values()), expected)  # type: ignore[arg-type]
    alpha_1 = with_identity_head(LogitKDWithLabels(C, C, C, alpha=1.0)).terms(
        context(student, teacher, labels=labels)
    )
    label_free = with_identity_head(LogitKD(C, C)).terms(context(student, teacher))
    assert torch.equal(alpha_1["kl"], label_free["kl"])
    assert not alpha_1["cross_entropy"].any()
    mixed = with_identity_head(LogitKDWithLabels(C, C, C, alpha=0.25)).terms(
        context(student, teacher, labels=labels)
    )
    torch.testing.assert_close(mixed["kl"], 0.25 * label_free["kl"])
    torch.testing.assert_close(mixed["cross_entropy"], 0.75 * terms["cross_entropy"])


def test_a_scheduled_temperature_is_used_at_each_step():
    teacher, student = logits(5)
    schedule = dict(type="kdep_bench.schedules.linear.Linear", start=8.0, end=2.0)
    objective = with_identity_head(LogitKD(C, C, tau=schedule, epochs=4))
    loss = objective.terms(context(student, teacher, step=5, steps=10))["kl"]
    half_way = (8.0 + 2.0) / 2
    torch.testing.assert_close(loss, soft_kl(teacher, student, half_way))


def test_an_over_confident_teacher_is_reported_once():
    confident = 100.0 * F.one_hot(torch.arange(5), C).float()
    objective = LogitKD(C, C, tau=1.0)
    # The largest possible entropy of seven classes is ln(7) = 1.95.
    with pytest.warns(UserWarning, match="nats of 1.95 possible"):
        objective.terms(context(torch.zeros(5, C), confident))
    with warnings.catch_warnings():
        # From here any warning fails the test: a second one, or one for a less confident teacher.
        warnings.simplefilter("error")
        objective.terms(context(torch.zeros(5, C), confident))
        LogitKD(C, C).terms(context(torch.zeros(5, C), logits(0)[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitKD(C, C, tau=0.0), "tau=0"),
        (lambda: LogitKDWithLabels(C, C, C, alpha=1.5), "alpha=1.5"),
        (lambda: LogitKDWithLabels(C, 1000, 3), "3 classes and the teacher has 1000"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str):
    with pytest.raises(KdepError, match=message):
        make()
