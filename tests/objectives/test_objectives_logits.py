"""NKD, TF-NKD, Continuation-KD, CTKD and early-stopped KD: identities and schedules.

All are variants of logit distillation (KD): NKD (normalised KD) and its teacher-free form TF-NKD,
Continuation-KD (a hinge loss with a growing teacher), CTKD (a learned temperature), and KD that
stops before the end of training. The formulas are in the docstrings of their classes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective, build_objective
from kdep_bench.objectives.continuation import Continuation, hinge
from kdep_bench.objectives.ctkd import CTKD
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.objectives.nkd import (
    NKD,
    NKDWithLabels,
    TeacherFreeNKD,
    drop_class,
    others_term,
    target_term,
)
from kdep_bench.schedules.annealing import Annealing
from kdep_bench.schedules.build import as_schedule
from kdep_bench.schedules.until import Until
from kdep_bench.teachers.base import TeacherOutput

B, D, C = 5, 4, 7  # batch, feature width, teacher classes


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(seed: int = 0, **values: Any) -> Context:
    """A batch with random student features [B, D] and teacher logits [B, C]."""
    feature = rand(B, D, seed=seed)
    teacher = TeacherOutput(rand(B, 9), 3 * rand(B, C, seed=1))
    return Context(pre_activation=feature, post_activation=feature, teacher=teacher, **values)


def build(kind: Any, **values: Any) -> Any:
    """An objective of this class with fixed initial weights."""
    torch.manual_seed(0)
    return kind(width=D, teacher_classes=C, **values)


def loss(objective: Objective, ctx: Context) -> Tensor:
    """The total loss: the sum of the means of all terms."""
    return torch.stack([t.mean() for t in objective.terms(ctx).values()]).sum()


# -- NKD ----------------------------------------------------------------------------------------


def test_soft_cross_entropy_is_nkd_s_terms_plus_the_term_that_nkd_drops():
    """The dropped term is (1 - p_t) log(1 - p_s), with p_t and p_s the probabilities of class y."""
    student, teacher = rand(B, C).double(), rand(B, C, seed=1).double()
    y = torch.tensor([0, 3, 6, 1, 2])
    cross_entropy = -(F.softmax(teacher, 1) * F.log_softmax(student, 1)).sum(1)
    p_t, p_s = (F.softmax(z, 1).gather(1, y[:, None])[:, 0] for z in (teacher, student))
    terms = target_term(teacher, student, y) + (1 - p_t) * others_term(teacher, student, y, 1.0)
    torch.testing.assert_close(terms - (1 - p_t) * (1 - p_s).log(), cross_entropy)


def test_nkd_with_two_classes_has_no_term_of_other_classes():
    student, teacher = rand(B, 2), rand(B, 2, seed=1)
    y = torch.zeros(B, dtype=torch.int64)
    assert drop_class(student, y).shape == (B, 1)
    assert not others_term(teacher, student, y, 1.0).any()


def test_nkd_without_labels_uses_the_teacher_s_top_1():
    ctx = context()
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    label_free, with_labels = build(NKD), build(NKDWithLabels, classes=C)
    top_1_as_labels = context(labels=ctx.teacher.logits.argmax(1))
    terms = label_free.terms(ctx).values()
    expected_terms = with_labels.terms(top_1_as_labels).values()
    for term, expected in zip(terms, expected_terms, strict=True):
        assert torch.equal(term, expected)
    with pytest.raises(KdepError, match="logit of the label"):
        build(NKDWithLabels, classes=C + 1)


def test_the_weights_of_teacher_free_nkd_have_the_given_mean():
    labels = torch.tensor([0, 1, 2, 0, 1])
    objective = TeacherFreeNKD(D, 3, value=0.7)
    log_p = F.log_softmax(objective.head(context().post_activation), 1)
    log_p_of_label = log_p.gather(1, labels[:, None])[:, 0]
    weights = objective.weights(log_p_of_label)
    assert float(weights.mean()) == pytest.approx(0.7)
    assert not weights.requires_grad
    terms = objective.terms(context(labels=labels))
    torch.testing.assert_close(terms["target"], -weights * log_p_of_label)


# -- Continuation-KD ----------------------------------------------------------------------------


def test_phi_rises_in_equal_steps_to_1():
    """phi is the factor of the teacher's logits."""
    phi = Annealing(20)
    values = [phi(step, 200) for step in range(200)]
    assert values[0] == 1 / 20
    assert values[-1] == 1
    assert max(values) == 1
    assert [values.count(k / 20) for k in range(1, 21)] == [10] * 20


def test_margin_0_is_annealing_kd_and_a_large_margin_gives_no_gradient():
    no_margin = build(Continuation, margin=0.0, weight=C)
    ctx = context(step=3, steps=40)
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    phi = 2 / 20  # the second of 20 values, each for 2 of 40 steps
    expected = (no_margin.head(ctx.post_activation) - phi * ctx.teacher.logits).square().sum(1)
    # The loss is divided by the mean square of the teacher's logits in the first batch.
    mean_square = ctx.teacher.logits.square().mean()
    torch.testing.assert_close(no_margin.terms(ctx)["hinge"], expected / mean_square)
    wide_margin = build(Continuation, margin=1e6)
    loss(wide_margin, ctx).backward()
    assert not wide_margin.head.weight.grad.any()
    with pytest.raises(KdepError, match="margin"):
        build(Continuation, margin=-1.0)


def test_the_hinge_does_not_depend_on_the_scale_of_the_teacher_s_logits():
    """An output of zero has the loss w (1 - m) = 20 (1 - 0.25) = 15."""
    for scale in (0.1, 1.0, 30.0):
        objective = build(Continuation, weight=20.0, margin=0.25, phi=1.0)
        for p in objective.parameters():
            torch.nn.init.zeros_(p)
        teacher = scale * rand(B, C).sign()  # every sample has the mean square scale^2
        ctx = Context(rand(B, D), rand(B, D), teacher=TeacherOutput(rand(B, 9), teacher))
        torch.testing.assert_close(objective.terms(ctx)["hinge"], torch.full((B,), 15.0))


def test_the_hinge_is_per_sample():
    """A sample within the margin gives no gradient, whatever the other samples are."""
    teacher = torch.zeros(3, C)
    student = torch.tensor([[0.1], [1.0], [10.0]]).expand(3, C).clone().requires_grad_()
    # Squared distances of 7 * 0.01, 7 and 700; the margin is 2.
    hinge(student, teacher, 1.0, margin=2.0).sum().backward()
    assert student.grad is not None
    assert student.grad.any(1).tolist() == [False, True, True]


def fit_noisy_sine(seed: int, margin: float, phi: Any, decay: float) -> tuple[float, float]:
    """Trains a student on a teacher whose output is a sine with noise.

    The student is the objective's head on Fourier features of amplitude k^-decay: with a positive
    decay it learns low frequencies first, as networks do (Rahaman et al., ICML 2019).

    Args:
        seed: of the noise.
        margin: margin of the hinge.
        phi: factor of the teacher's output, or the config of a schedule.
        decay: see above.

    Returns:
        The power of the student's output above the third harmonic, and its mean squared error to
        the sine without noise.
    """
    points, steps = 256, 400
    x = torch.arange(points) / points * 2 * torch.pi
    noisy = (x.sin() + 0.3 * rand(points, seed=seed))[:, None]
    k = torch.arange(1, 49)  # frequencies
    waves = torch.cat([(x[:, None] * k).sin(), (x[:, None] * k).cos()], 1)
    features = 2**0.5 * waves * (k**-decay).repeat(2)
    # Continuation divides loss and margin by the teacher's mean square, which is undone here.
    unit = float(noisy.square().mean())
    student = Continuation(features.shape[1], 1, margin=margin / unit, weight=unit, phi=phi)
    for p in student.parameters():
        torch.nn.init.zeros_(p)
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    for step in range(steps):
        teacher = TeacherOutput(noisy, noisy)
        ctx = Context(features, features, teacher=teacher, step=step, steps=steps)
        optimizer.zero_grad()
        loss(student, ctx).backward()
        optimizer.step()
    with torch.no_grad():
        output = student.head(features)[:, 0]
    high = torch.fft.rfft(output)[4:].abs().square().sum() / points**2
    return float(high), float((output - x.sin()).square().mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_margin_and_phi_reduce_high_frequencies_of_a_noisy_teacher(seed: int):
    """The paper's demonstration without labels: differences within the margin are not fitted.

    This requires a student that learns low frequencies first. With decay 0 it learns all alike and
    fits the noise up to the margin (ratio 1.2 to 1.6).
    """
    annealing = dict(type=Annealing, t_max=20)
    high, error = fit_noisy_sine(seed, 0.25, annealing, decay=0.5)
    plain_high, plain_error = fit_noisy_sine(seed, 0.0, 1.0, decay=0.5)  # squared error
    assert high < 0.6 * plain_high
    assert error < plain_error
    # Annealing without a margin helps, too.
    annealed_high, _ = fit_noisy_sine(seed, 0.0, annealing, decay=1.0)
    plain_high, _ = fit_noisy_sine(seed, 0.0, 1.0, decay=1.0)
    assert annealed_high < 0.75 * plain_high


# -- CTKD ---------------------------------------------------------------------------------------


def test_ctkd_has_the_published_initial_temperature_and_curriculum():
    objective = build(CTKD, epochs=40.0)
    # 1 + 20 sigmoid(1) = 1 + 20 * 0.731.
    assert float(objective.temperature(0.0)) == pytest.approx(15.62, abs=0.01)
    # The gradient's factor falls from 0 to -1 in 10 of 40 epochs.
    assert objective.curriculum(0, 400) == 0
    assert objective.curriculum(100, 400) == -1
    assert objective.curriculum(399, 400) == -1


def gradients(factor: float) -> tuple[Tensor, Tensor]:
    """Gradients of the temperature parameter theta and of the head's weight.

    Args:
        factor: number by which the curriculum multiplies the gradient of theta; -1 reverses it.
    """
    objective = build(CTKD, curriculum=factor)
    loss(objective, context()).backward()
    return objective.theta.grad, objective.head.weight.grad


def test_the_curriculum_changes_only_the_gradient_of_the_temperature_parameter():
    (reversed_theta, reversed_head), (theta, head), (frozen_theta, frozen_head) = (
        gradients(f) for f in (-1.0, 1.0, 0.0)
    )
    assert float(reversed_theta) == -float(theta) != 0
    assert float(frozen_theta) == 0
    assert torch.equal(reversed_head, head)
    assert torch.equal(reversed_head, frozen_head)
    objective = build(CTKD, curriculum=-1.0)
    loss_before = loss(objective, context())
    loss_before.backward()
    with torch.no_grad():
        objective.theta -= 0.5 * objective.theta.grad  # as a step of gradient descent does
    assert float(loss(objective, context())) > float(loss_before)


def test_ctkd_with_a_constant_temperature_is_logit_kd():
    tau = float(build(CTKD, curriculum=0.0).temperature(0.0))
    plain = build(LogitKD, tau=tau)
    computed, expected = build(CTKD, curriculum=0.0).terms(context()), plain.terms(context())
    torch.testing.assert_close(computed["kl"], expected["kl"])


# -- early-stopped KD ---------------------------------------------------------------------------


def eskd(stop: float) -> dict[str, Any]:
    """The config of early-stopped KD that stops at a fraction of training."""
    package = "kdep_bench.objectives"
    until = dict(type="kdep_bench.schedules.until.Until", stop=stop)
    return dict(
        type=f"{package}.weighted_sum.WeightedSum",
        parts=dict(
            ce=dict(objective=dict(type=f"{package}.cross_entropy.CrossEntropy")),
            kd=dict(objective=dict(type=f"{package}.logit_kd.LogitKD", tau=4.0), weight=until),
        ),
    )


@pytest.mark.parametrize(("stop", "steps_on"), [(0.0, 0), (0.25, 10), (1.0, 40)])
def test_early_stopped_kd_has_no_kd_term_after_its_stop(stop: float, steps_on: int):
    arguments = dict(width=D, classes=3, teacher_classes=C, epochs=8.0)
    objective = build_objective(eskd(stop), arguments)
    labels = torch.tensor([0, 1, 2, 0, 1])
    is_on = [
        bool(objective.terms(context(labels=labels, step=k, steps=40))["kd"].any())
        for k in range(40)
    ]
    assert is_on == [k < steps_on for k in range(40)]


def test_the_schedule_until_requires_a_fraction_of_the_training():
    assert as_schedule(dict(type=Until, stop=0.5, value=2.0))(0, 10) == 2.0
    with pytest.raises(KdepError, match="a fraction of the training"):
        Until(1.5)
