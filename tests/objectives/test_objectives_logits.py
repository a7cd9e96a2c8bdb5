"""NKD, TF-NKD, Continuation-KD, CTKD and early-stopped KD: identities and schedules."""

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
    others_term,
    target_term,
    without,
)
from kdep_bench.schedules.annealing import Annealing
from kdep_bench.schedules.build import as_schedule
from kdep_bench.schedules.until import Until
from kdep_bench.teachers.base import TeacherOutput

B, D, C = 5, 4, 7


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(seed: int = 0, **more: Any) -> Context:
    f = rand(B, D, seed=seed)
    return Context(
        before=f, after=f, teacher=TeacherOutput(rand(B, 9), 3 * rand(B, C, seed=1)), **more
    )


def made(kind: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return kind(width=D, teacher_classes=C, **more)


def loss(objective: Objective, ctx: Context) -> Tensor:
    return torch.stack([t.mean() for t in objective.terms(ctx).values()]).sum()


# -- NKD ----------------------------------------------------------------------------------------


def test_soft_cross_entropy_splits_into_target_others_and_what_nkd_drops():
    s, t, y = rand(B, C).double(), rand(B, C, seed=1).double(), torch.tensor([0, 3, 6, 1, 2])
    whole = -(F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1)
    p_t, p_s = (F.softmax(z, 1).gather(1, y[:, None])[:, 0] for z in (t, s))
    parts = target_term(t, s, y) + (1 - p_t) * others_term(t, s, y, 1.0)
    torch.testing.assert_close(parts - (1 - p_t) * (1 - p_s).log(), whole)


def test_two_classes_have_no_others():
    s, t = rand(B, 2), rand(B, 2, seed=1)
    y = torch.zeros(B, dtype=torch.int64)
    assert without(s, y).shape == (B, 1)
    assert not others_term(t, s, y, 1.0).any()


def test_nkd_takes_the_teachers_top_1_where_there_are_no_labels():
    ctx = context()
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    free, bound = made(NKD), made(NKDWithLabels, classes=C)
    ctx_labels = context(labels=ctx.teacher.logits.argmax(1))
    for a, b in zip(free.terms(ctx).values(), bound.terms(ctx_labels).values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(KdepError, match="output at the label"):
        made(NKDWithLabels, classes=C + 1)


def test_the_teacher_free_weight_has_the_labels_value_as_its_mean():
    labels = torch.tensor([0, 1, 2, 0, 1])
    objective = TeacherFreeNKD(D, 3, value=0.7)
    log_py = F.log_softmax(objective.head(context().after), 1).gather(1, labels[:, None])[:, 0]
    weights = objective.weights(log_py)
    assert float(weights.mean()) == pytest.approx(0.7)
    assert not weights.requires_grad
    terms = objective.terms(context(labels=labels))
    torch.testing.assert_close(terms["target"], -weights * log_py)


# -- Continuation-KD ----------------------------------------------------------------------------


def test_phi_rises_in_equal_steps_and_never_passes_one():
    phi = Annealing(20)
    values = [phi(e, 200) for e in range(200)]
    assert values[0] == 1 / 20
    assert values[-1] == 1
    assert max(values) == 1
    assert [values.count(k / 20) for k in range(1, 21)] == [10] * 20


def test_no_margin_is_annealing_kd_and_a_wide_one_gives_no_gradient():
    plain = made(Continuation, margin=0.0, weight=C)
    ctx = context(step=3, steps=40)
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    phi = 2 / 20
    want = (plain.head(ctx.after) - phi * ctx.teacher.logits).square().sum(1)
    energy = ctx.teacher.logits.square().mean()  # of the first batch, the unit of w and m
    torch.testing.assert_close(plain.terms(ctx)["hinge"], want / energy)
    wide = made(Continuation, margin=1e6)
    loss(wide, ctx).backward()
    assert not wide.head.weight.grad.any()
    with pytest.raises(KdepError, match="margin"):
        made(Continuation, margin=-1.0)


def test_the_hinge_has_one_meaning_whatever_the_unit_of_the_teachers_logits():
    for unit in (0.1, 1.0, 30.0):
        objective = made(Continuation, weight=20.0, margin=0.25, phi=1.0)
        for p in objective.parameters():
            torch.nn.init.zeros_(p)
        t = unit * rand(B, C).sign()  # of equal energy in every sample
        ctx = Context(rand(B, D), rand(B, D), teacher=TeacherOutput(rand(B, 9), t))
        torch.testing.assert_close(objective.terms(ctx)["hinge"], torch.full((B,), 15.0))


def test_the_hinge_is_per_sample():
    """A sample within the margin gives no gradient, whatever the rest of its batch does."""
    t = torch.zeros(3, C)
    s = torch.tensor([[0.1], [1.0], [10.0]]).expand(3, C).clone().requires_grad_()
    hinge(s, t, 1.0, margin=2.0).sum().backward()
    assert s.grad is not None
    assert s.grad.any(1).tolist() == [False, True, True]


def fitted_to_a_noisy_sine(seed: int, margin: float, phi: Any, decay: float) -> tuple[float, float]:
    """(energy above the third harmonic, squared error to the sine) of a student of sine + noise.

    The student is the objective's own head on Fourier features of amplitude k^-decay: with a
    positive decay low frequencies are learned first, as networks do (Rahaman et al., ICML 2019).
    """
    points, steps = 256, 400
    x = torch.arange(points) / points * 2 * torch.pi
    noisy = (x.sin() + 0.3 * rand(points, seed=seed))[:, None]
    k = torch.arange(1, 49)
    waves = torch.cat([(x[:, None] * k).sin(), (x[:, None] * k).cos()], 1)
    f = 2**0.5 * waves * (k**-decay).repeat(2)
    unit = float(noisy.square().mean())  # `margin` and a weight of 1 are absolute here
    student = Continuation(f.shape[1], 1, margin=margin / unit, weight=unit, phi=phi)
    for p in student.parameters():
        torch.nn.init.zeros_(p)
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    for step in range(steps):
        ctx = Context(f, f, teacher=TeacherOutput(noisy, noisy), step=step, steps=steps)
        optimizer.zero_grad()
        loss(student, ctx).backward()
        optimizer.step()
    with torch.no_grad():
        y = student.head(f)[:, 0]
    high = torch.fft.rfft(y)[4:].abs().square().sum() / points**2
    return float(high), float((y - x.sin()).square().mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_student_of_a_noisy_teacher_has_less_high_frequency_than_a_plain_one(seed: int):
    """The paper's demonstration, label-free: what lies within the margin is not fitted.

    It needs a student that learns low frequencies first: one that learns all alike ends where the
    margin begins, noise and all, and has gained nothing (decay 0; ratio 1.2 to 1.6).
    """
    fading = dict(type=Annealing, t_max=20)
    high, error = fitted_to_a_noisy_sine(seed, 0.25, fading, decay=0.5)
    plain_high, plain_error = fitted_to_a_noisy_sine(seed, 0.0, 1.0, decay=0.5)
    assert high < 0.6 * plain_high
    assert error < plain_error
    assert (
        fitted_to_a_noisy_sine(seed, 0.0, fading, decay=1.0)[0]
        < 0.75 * (fitted_to_a_noisy_sine(seed, 0.0, 1.0, decay=1.0)[0])
    )  # the fading alone helps too


# -- CTKD ---------------------------------------------------------------------------------------


def test_ctkd_starts_at_the_published_temperature_and_its_curriculum_is_theirs():
    objective = made(CTKD, epochs=40.0)
    assert float(objective.temperature(0.0)) == pytest.approx(15.62, abs=0.01)
    assert objective.curriculum(0, 400) == 0
    assert objective.curriculum(100, 400) == -1
    assert objective.curriculum(399, 400) == -1


def gradients(factor: float) -> tuple[Tensor, Tensor]:
    objective = made(CTKD, curriculum=factor)
    loss(objective, context()).backward()
    return objective.theta.grad, objective.head.weight.grad


def test_theta_ascends_without_gradient_to_the_student():
    (up, head_up), (down, head_down), (still, head) = (gradients(f) for f in (-1.0, 1.0, 0.0))
    assert float(up) == -float(down) != 0
    assert float(still) == 0
    assert torch.equal(head_up, head_down)
    assert torch.equal(head_up, head)
    before = made(CTKD, curriculum=-1.0)
    now = loss(before, context())
    now.backward()
    with torch.no_grad():
        before.theta -= 0.5 * before.theta.grad  # what an optimiser that descends does
    assert float(loss(before, context())) > float(now)


def test_ctkd_with_a_constant_temperature_is_logit_kd():
    tau = float(made(CTKD, curriculum=0.0).temperature(0.0))
    plain = made(LogitKD, tau=tau)
    got, want = made(CTKD, curriculum=0.0).terms(context()), plain.terms(context())
    torch.testing.assert_close(got["kl"], want["kl"])


# -- early-stopped KD ---------------------------------------------------------------------------


def eskd(stop: float) -> dict[str, Any]:
    room = "kdep_bench.objectives"
    until = dict(type="kdep_bench.schedules.until.Until", stop=stop)
    return dict(
        type=f"{room}.weighted_sum.WeightedSum",
        parts=dict(
            ce=dict(objective=dict(type=f"{room}.cross_entropy.CrossEntropy")),
            kd=dict(objective=dict(type=f"{room}.logit_kd.LogitKD", tau=4.0), weight=until),
        ),
    )


@pytest.mark.parametrize(("stop", "steps_on"), [(0.0, 0), (0.25, 10), (1.0, 40)])
def test_early_stopped_kd_is_kd_up_to_e0_and_cross_entropy_after(stop: float, steps_on: int):
    facts = dict(width=D, classes=3, teacher_classes=C, epochs=8.0)
    objective = build_objective(eskd(stop), facts)
    labels = torch.tensor([0, 1, 2, 0, 1])
    on = [
        bool(objective.terms(context(labels=labels, step=k, steps=40))["kd"].any())
        for k in range(40)
    ]
    assert on == [k < steps_on for k in range(40)]


def test_until_requires_a_fraction_of_the_run():
    assert as_schedule(dict(type=Until, stop=0.5, value=2.0))(0, 10) == 2.0
    with pytest.raises(KdepError, match="a fraction of the training"):
        Until(1.5)
