"""Feature regression and its weight rule, learned projectors, VkD: closed forms and gradients.

Feature regression is KDEP's loss, the squared error to the target. The weight rule makes the loss
of an output of zero the same for every teacher. VkD uses an orthogonal projector.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.feature_regression import FeatureRegression
from kdep_bench.objectives.projected_regression import ProjectedRegression
from kdep_bench.objectives.vkd import OrthogonalProjection
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO, loss_weight
from kdep_bench.teachers.base import TeacherOutput


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(student: torch.Tensor, teacher: torch.Tensor) -> Context:
    """A batch with these features of student and teacher; the target is the teacher's feature."""
    return Context(student, student, target=teacher, teacher=TeacherOutput(teacher, None))


# -- the weight rule ----------------------------------------------------------------------------


def test_the_automatic_weight_is_the_loss_of_an_output_of_zero_over_the_mean_square():
    assert loss_weight("auto", 20.0, 4.0) == 5.0
    assert loss_weight(3, 20.0, None) == 3.0
    with pytest.raises(KdepError, match=r"the target's mean square is 0\.0"):
        FeatureRegression(target_mean_square=0.0)
    with pytest.raises(KdepError, match=r"mean variance of the teacher's feature is 0\.0"):
        ProjectedRegression(4, 7, teacher_mean_variance=0.0)


@pytest.mark.parametrize("mean_square", [None, 0.0, float("nan"), float("inf"), -1.0])
def test_a_mean_square_that_is_not_positive_and_finite_is_refused(mean_square: float | None):
    with pytest.raises(KdepError, match="mean square"):
        FeatureRegression(target_mean_square=mean_square)
    with pytest.raises(KdepError, match="mean square"):
        FeatureRegression(target_mean_square=mean_square, unit=True)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.booleans())
def test_an_output_of_zero_has_the_same_loss_for_every_teacher(scale: float, unit: bool):
    target = scale * noise(64, 8)
    objective = FeatureRegression(target_mean_square=float(target.square().mean()), unit=unit)
    loss = objective.terms(context(torch.zeros(64, 8), target))["feature"]
    assert loss.shape == (64,)
    assert float(loss.mean()) == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_unit_makes_loss_and_gradient_independent_of_the_target_s_scale(scale: float):
    """`unit=True` divides the target by the root of its mean square."""

    def loss_and_gradient(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss, and its gradient to the student's feature [16, 8]."""
        target, student = scale * noise(16, 8), noise(16, 8, seed=1).requires_grad_()
        objective = FeatureRegression(target_mean_square=float(target.square().mean()), unit=True)
        loss = objective.terms(context(student, target))["feature"].mean()
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    torch.testing.assert_close(
        loss_and_gradient(scale), loss_and_gradient(1.0), rtol=1e-4, atol=1e-5
    )


def test_the_loss_is_the_mean_squared_error_times_the_weight():
    student, teacher = noise(16, 8), noise(16, 8, seed=1)
    loss = FeatureRegression(weight=3).terms(context(student, teacher))["feature"].mean()
    torch.testing.assert_close(loss, 3 * torch.nn.functional.mse_loss(student, teacher))


# -- projectors ---------------------------------------------------------------------------------


def projectors(ds: int, dt: int) -> list[Objective]:
    """One objective of each kind with a learned projector from ds to dt channels.

    ds and dt are the widths of the student's and the teacher's feature.
    """
    return [
        ProjectedRegression(ds, dt, teacher_mean_variance=1.0),
        ProjectedRegression(ds, dt, teacher_mean_variance=1.0, hidden=5),
        OrthogonalProjection(ds, dt),
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(2, 9), st.integers(0, 2))
def test_terms_are_per_sample_and_only_student_and_projector_get_gradients(
    ds: int, dt: int, kind: int
):
    objective = projectors(ds, dt)[kind]
    student, teacher = noise(6, ds).requires_grad_(), noise(6, dt, seed=1)
    loss = objective.terms(context(student, teacher))["feature"]
    assert loss.shape == (6,)
    assert bool((loss >= 0).all())
    loss.mean().backward()
    assert student.grad is not None
    assert not teacher.requires_grad
    assert all(p.grad is not None for p in objective.parameters())
    loss_alone = objective.terms(context(student[2:3], teacher[2:3]))["feature"]
    torch.testing.assert_close(loss_alone, loss[2:3], rtol=1e-4, atol=1e-5)


def test_the_linear_projector_equals_a_1x1_convolution_before_pooling():
    objective = ProjectedRegression(4, 7, teacher_mean_variance=1.0)
    linear = objective.projector
    assert isinstance(linear, torch.nn.Linear)
    maps = noise(3, 4, 5, 5)
    conv = torch.nn.functional.conv2d(maps, linear.weight[:, :, None, None], linear.bias)
    torch.testing.assert_close(conv.mean((2, 3)), linear(maps.mean((2, 3))))


def test_the_identity_projector_gives_the_loss_0_for_equal_features():
    objective = ProjectedRegression(4, 4, weight=1.0)
    assert isinstance(objective.projector, torch.nn.Linear)
    torch.nn.init.eye_(objective.projector.weight)
    torch.nn.init.zeros_(objective.projector.bias)
    feature = noise(5, 4)
    loss = objective.terms(context(feature, feature))["feature"]
    torch.testing.assert_close(loss, torch.zeros(5))


def test_a_hidden_layer_of_width_0_is_refused():
    with pytest.raises(KdepError, match="hidden width is 0"):
        ProjectedRegression(4, 4, weight=1.0, hidden=0)


@pytest.mark.parametrize(("ds", "dt"), [(4, 9), (9, 4), (6, 6)])
def test_the_vkd_projector_is_orthogonal_and_stays_so_under_sgd(ds: int, dt: int):
    torch.manual_seed(0)
    objective = OrthogonalProjection(ds, dt)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    initial = objective.projector().detach()
    for step in range(20):
        optimizer.zero_grad()
        loss = objective.terms(context(noise(32, ds, seed=step), noise(32, dt, seed=step + 1)))
        loss["feature"].mean().backward()
        optimizer.step()
    matrix = objective.projector().detach()  # [dt, ds]
    # Orthogonal columns, or orthogonal rows if the teacher's feature is the narrower one.
    product = matrix.T @ matrix if dt >= ds else matrix @ matrix.T
    torch.testing.assert_close(product, torch.eye(min(ds, dt)), atol=1e-4, rtol=0)
    assert not torch.allclose(matrix, initial, atol=1e-3)


def test_vkd_is_smooth_l1_to_the_layer_normalised_teacher():
    objective = OrthogonalProjection(4, 6, weight=1.0)
    student, teacher = noise(8, 4), 5 * noise(8, 6, seed=1) + 3
    mean, variance = teacher.mean(1, keepdim=True), teacher.var(1, correction=0, keepdim=True)
    target = (teacher - mean) / (variance + 1e-5).sqrt()
    expected = torch.nn.functional.smooth_l1_loss(student @ objective.projector().T, target)
    loss = objective.terms(context(student, teacher))["feature"].mean()
    torch.testing.assert_close(loss, expected)


def test_vkd_is_independent_of_the_teacher_s_scale():
    objective = OrthogonalProjection(4, 6)
    student, teacher = noise(8, 4), noise(8, 6, seed=1)
    small, large = (
        objective.terms(context(student, scale * teacher + 2))["feature"] for scale in (1.0, 100.0)
    )
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)


def test_vkd_s_loss_near_its_target_has_the_automatic_weight():
    """Smooth L1 is error^2 / 2 near its target, and the weight makes up for the 1/2."""
    objective = OrthogonalProjection(6, 6)
    teacher, error = noise(8, 6), 0.01
    target = torch.nn.functional.layer_norm(teacher, (6,))
    # The projector is x -> x P^T. P is orthogonal, so x -> x P is its inverse.
    student = ((target + error) @ objective.projector()).detach()
    loss = objective.terms(context(student, teacher))["feature"].mean()
    expected = torch.tensor(DEFAULT_LOSS_AT_ZERO * error**2)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-6)
