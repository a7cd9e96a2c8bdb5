"""Objectives with an additional network: mutual learning and the mean teacher.

In mutual learning, a student and a second network (the peer) learn from each other's class
probabilities. The mean teacher is a moving average (EMA) of the student's weights; the student
learns its class probabilities for another view of the same image.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.mean_teacher import MeanTeacher, update_average
from kdep_bench.objectives.mutual import Mutual
from kdep_bench.pretrain.distiller import Distiller
from tests.objectives import tiny

WIDTH, CLASSES, VIEWS = 3, 3, 2  # of the feature, of the labels, views per image
# BatchNorm in eval mode with its initial statistics (mean 0, variance 1) divides by this.
BATCH_NORM_STD = (1 + 1e-5) ** 0.5


class Student(nn.Module):
    """The image's mean colour [B, 3] times one weight, then BatchNorm."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = nn.BatchNorm1d(WIDTH, affine=False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """[B, 3]."""
        return self.norm(self.scale * x_B3HW.mean((2, 3)))


class Peer(nn.Module):
    """A student as a peer, with the interface of `pretrain.distiller.NewNetwork`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.backbone = Student(scale)

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features before and after the activation, [B, 3] each; only the second is read."""
        out = self.backbone(x_B3HW)
        return -out, out


def set_identity(*heads: nn.Linear) -> None:
    """Sets the heads' weights, so that they return the feature as logits."""
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(torch.eye(CLASSES))
            head.bias.zero_()


def context(step: int = 0, steps: int = 1) -> Context:
    """Two images of two views each; each of the four views has another random colour."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(4, 3, generator=generator)
    images = colours[:, :, None, None].expand(4, 3, 2, 2).contiguous()
    return Context(
        pre_activation=-colours,
        post_activation=colours,
        labels=torch.tensor([0, 0, 2, 2]),
        images=images,
        rows=torch.arange(4),
        step=step,
        steps=steps,
    )


def attach(objective: MeanTeacher | Mutual, peer_scale: float = 2.0) -> Student:
    """Attaches a student and a peer to the objective; returns the student."""
    student, peer = Student(), Peer(peer_scale)
    make: Callable[[], nn.Module] = lambda: peer  # noqa: E731
    objective.attach(student, make)
    return student


def test_the_mean_teacher_s_target_is_from_the_other_view():
    objective = MeanTeacher(WIDTH, CLASSES, VIEWS, weight=3.0)
    set_identity(objective.head, objective.teacher_head)
    attach(objective)
    ctx = context()
    terms = objective.train().terms(ctx)
    teacher = F.softmax(ctx.post_activation / BATCH_NORM_STD, 1)
    of_other_view = teacher[[1, 0, 3, 2]]
    expected = 3 * (F.softmax(ctx.post_activation, 1) - of_other_view).square().mean(1)
    torch.testing.assert_close(terms["consistency"], expected)
    assert ctx.labels is not None
    hard = F.cross_entropy(ctx.post_activation, ctx.labels, reduction="none")
    torch.testing.assert_close(terms["cross_entropy"], hard)
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    assert not any(p.requires_grad for p in objective.teacher_head.parameters())


def test_the_target_of_each_of_three_views_is_from_the_next_view():
    objective = MeanTeacher(WIDTH, CLASSES, views=3)
    set_identity(objective.teacher_head)
    attach(objective)
    colours = torch.arange(18.0).view(6, 3) % 7
    images = colours[:, :, None, None].expand(6, 3, 2, 2)
    targets = objective.ema_probabilities(
        Context(pre_activation=colours, post_activation=colours, images=images)
    )
    teacher = F.softmax(colours / BATCH_NORM_STD, 1)
    torch.testing.assert_close(targets, teacher[[1, 2, 0, 4, 5, 3]])


def test_the_mean_teacher_starts_as_the_student_and_follows_it_by_its_decay():
    objective = MeanTeacher(WIDTH, CLASSES, VIEWS, decay=0.9)
    student = attach(objective, peer_scale=7.0)
    mean = objective.teacher.get_submodule("backbone")
    assert mean.state_dict()["scale"] == 1  # the student's initial value, not the peer's
    torch.testing.assert_close(objective.teacher_head.weight, objective.head.weight)
    head_before = objective.head.weight.detach().clone()
    with torch.no_grad():
        student.scale.fill_(2.0)
        objective.head.weight.add_(1.0)
    assert student.norm.running_mean is not None
    assert student.norm.num_batches_tracked is not None
    student.norm.running_mean.fill_(5.0)
    student.norm.num_batches_tracked.fill_(3)
    objective.after_step()
    state = mean.state_dict()
    torch.testing.assert_close(state["scale"], torch.tensor(0.9 * 1 + 0.1 * 2))
    # 0.9 * 0 + 0.1 * 5
    torch.testing.assert_close(state["norm.running_mean"], torch.full((3,), 0.5))
    assert state["norm.num_batches_tracked"] == 3  # a counter is copied
    torch.testing.assert_close(objective.teacher_head.weight, head_before + 0.1)
    with pytest.raises(KdepError, match="decay=1"):
        MeanTeacher(WIDTH, CLASSES, VIEWS, decay=1.0)


def test_with_a_decay_of_0_the_moving_average_is_a_copy():
    average, student = Student(1.0), Student(4.0)
    update_average(average, student, 0.0)
    assert average.state_dict()["scale"] == 4


def test_the_mean_teacher_s_default_weight_reaches_10_after_a_quarter_of_training():
    objective = MeanTeacher(WIDTH, CLASSES, VIEWS)
    weights = [objective.weight(step, 8) for step in range(5)]
    assert weights == [0, 5, 10, 10, 10]


class FixedWeightsNet(tiny.TinyNet):
    """A student whose weights are always the same, as if it loaded them."""

    def init_weights(self) -> None:
        """Weights from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) / 10)


def test_a_peer_with_the_student_s_initial_weights_is_refused():
    """In the mean teacher they are equal by definition."""
    fixed = {**tiny.STUDENT, "backbone": dict(type=f"{__name__}.FixedWeightsNet")}
    mutual = dict(type="kdep_bench.objectives.mutual.Mutual", width=tiny.DS, classes=tiny.CLASSES)
    with pytest.raises(KdepError, match="a peer of the student starts with the student's weights"):
        Distiller(fixed, mutual)
    Distiller(tiny.STUDENT, mutual)
    mean = dict(mutual, type="kdep_bench.objectives.mean_teacher.MeanTeacher", views=2, epochs=1.0)
    Distiller(fixed, mean)


def test_the_losses_of_mutual_learning_equal_their_formulas():
    """The peer's loss gives the student no gradient."""
    objective = Mutual(WIDTH, CLASSES, weight=0.5)
    set_identity(objective.head, objective.peer_head)
    attach(objective)
    objective.eval()
    ctx = context()
    student_feature = ctx.post_activation.clone().requires_grad_()
    terms = objective.terms(
        Context(student_feature.neg(), student_feature, labels=ctx.labels, images=ctx.images)
    )
    student_logits, peer_logits = (
        ctx.post_activation,
        2 * ctx.post_activation / BATCH_NORM_STD,
    )  # the peer's scale is 2
    log_s, log_p = F.log_softmax(student_logits, 1), F.log_softmax(peer_logits, 1)
    kl_to_student = (log_p.exp() * (log_p - log_s)).sum(1)  # KL(peer || student)
    kl_to_peer = (log_s.exp() * (log_s - log_p)).sum(1)
    torch.testing.assert_close(terms["mutual"].detach(), 0.5 * kl_to_student)
    torch.testing.assert_close(terms["peer_mutual"].detach(), 0.5 * kl_to_peer)
    assert ctx.labels is not None
    hard = F.cross_entropy(peer_logits, ctx.labels, reduction="none")
    torch.testing.assert_close(terms["peer_cross_entropy"].detach(), hard)
    hard = F.cross_entropy(student_logits, ctx.labels, reduction="none")
    torch.testing.assert_close(terms["cross_entropy"].detach(), hard)
    terms["peer_mutual"].sum().backward()
    assert student_feature.grad is None
