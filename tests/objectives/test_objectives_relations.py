"""Objectives on relations between samples: invariances, closed forms and refused arguments.

RKD compares distances and angles, SP (similarity-preserving) and the instance graph Gram matrices,
PKT conditional probabilities, CC (correlation congruence) a kernel, and ViewGram the Gram matrices
of the views of an image. None needs a projector between the widths of student and teacher.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.correlation_congruence import CorrelationCongruence
from kdep_bench.objectives.instance_graph import InstanceGraph
from kdep_bench.objectives.pkt import PKT
from kdep_bench.objectives.rkd import RKD, angles, scaled_distances
from kdep_bench.objectives.similarity_preserving import SimilarityPreserving
from kdep_bench.objectives.view_gram import ViewGram
from kdep_bench.teachers.base import TeacherOutput

B, DS, DT = 6, 5, 9  # images per batch, feature widths of student (DS) and teacher (DT)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise [shape] in float64 with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    """A random rotation [width, width]."""
    return torch.linalg.qr(rand(width, width, seed=7))[0]


def context(student: Tensor, teacher: Tensor, **values: Any) -> Context:
    """A batch with these features [B, DS] of the student and [B, DT] of the teacher."""
    output = TeacherOutput(teacher, None)
    return Context(pre_activation=student, post_activation=student.relu(), teacher=output, **values)


def total(objective: Objective, student: Tensor, teacher: Tensor, **values: Any) -> Tensor:
    """The loss: the sum of the means of all terms, which must have one value per sample."""
    terms = objective.terms(context(student, teacher, **values))
    assert all(v.shape == (len(student),) for v in terms.values())
    return torch.stack([v.mean() for v in terms.values()]).sum()


ROWS = torch.arange(B)  # row numbers of the views
RELATIONS: dict[str, Objective] = {
    "rkd": RKD(),
    "sp": SimilarityPreserving(),
    "pkt": PKT(),
    "cc": CorrelationCongruence(),
    "graph": InstanceGraph(None),
    "attention": InstanceGraph(None, form="attention"),
    "view_gram": ViewGram(views=2),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_the_loss_is_zero_for_a_rotated_and_scaled_teacher_of_any_width(name: str):
    student = rand(B, DS)
    widened = torch.cat((student, torch.zeros(B, DT - DS, dtype=student.dtype)), 1)
    rotated = 3 * widened @ rotation(DT)
    assert float(total(RELATIONS[name], student, rotated, rows=ROWS)) < 1e-6
    unrelated = rand(B, DT, seed=1)
    assert float(total(RELATIONS[name], student, unrelated, rows=ROWS)) > 1e-3


@pytest.mark.parametrize("name", RELATIONS)
def test_gradients_are_those_of_finite_differences(name: str):
    student, teacher = rand(B, DS).requires_grad_(), rand(B, DT, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: total(RELATIONS[name], x, teacher, rows=ROWS), (student,)
    )


def test_rkd_equals_its_formula():
    """Distances are divided by their mean; the angle at sample i is given by its cosine."""
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    distances, teacher_distances = torch.cdist(student, student), torch.cdist(teacher, teacher)
    scaled = distances / distances[distances > 0].mean()
    teacher_scaled = teacher_distances / teacher_distances[teacher_distances > 0].mean()
    assert torch.allclose(scaled_distances(student), scaled, atol=1e-5)
    i, j, k = 1, 3, 4
    a, b = student[j] - student[i], student[k] - student[i]
    assert float(angles(student, B)[i, j, k]) == pytest.approx(float(a @ b / a.norm() / b.norm()))
    terms = RKD(distance=1.0, angle=2.0).terms(context(student, teacher))
    huber = torch.nn.functional.smooth_l1_loss
    expected = huber(scaled, teacher_scaled)
    assert float(terms["distance"].mean()) == pytest.approx(float(expected), abs=1e-6)
    expected = 2 * huber(angles(student, B), angles(teacher, B))
    assert float(terms["angle"].mean()) == pytest.approx(float(expected))
    # A shift of the teacher's feature does not change the loss.
    assert float(total(RKD(), student, teacher + 5)) == pytest.approx(
        float(total(RKD(), student, teacher))
    )


def test_the_angle_term_of_two_vertices_is_scaled_to_all_vertices():
    """`vertices` limits the samples at which angles are measured; the mean stays comparable."""
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    all_vertices = RKD(distance=0).terms(context(student, teacher))["angle"]
    two_vertices = RKD(distance=0, vertices=2).terms(context(student, teacher))["angle"]
    assert torch.allclose(two_vertices[:2], all_vertices[:2] * B / 2)
    assert not two_vertices[2:].any()
    with pytest.raises(KdepError, match="vertices=0"):
        RKD(vertices=0)


def test_similarity_preserving_is_the_squared_difference_of_gram_matrices():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    # Gram matrices with rows of length 1.
    of_student, of_teacher = (
        torch.nn.functional.normalize(x @ x.T, dim=1) for x in (student, teacher)
    )
    expected = 3000 * (of_student - of_teacher).square().sum() / B**2  # 3000: the default weight
    assert float(total(SimilarityPreserving(), student, teacher)) == pytest.approx(float(expected))


def test_pkt_ignores_the_lengths_of_features():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    lengths = torch.linspace(0.5, 4, B, dtype=student.dtype)[:, None]
    assert float(total(PKT(), student * lengths, teacher)) == pytest.approx(
        float(total(PKT(), student, teacher)), rel=1e-4
    )


def test_the_kernel_of_correlation_congruence_converges_to_the_gaussian():
    """The kernel is a Taylor series of exp(-gamma distance^2) with the default gamma = 0.4."""
    unit = torch.nn.functional.normalize(rand(B, DS), dim=1)
    gaussian = (-0.4 * torch.cdist(unit, unit).square()).exp()
    assert torch.allclose(CorrelationCongruence(order=12).kernel(unit), gaussian)
    assert not torch.allclose(CorrelationCongruence(order=2).kernel(unit), gaussian)


def test_an_instance_graph_of_one_layer_is_similarity_preserving():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    assert torch.equal(
        InstanceGraph(None, edges=7.0).terms(context(student, teacher))["edges"],
        SimilarityPreserving(weight=7.0).terms(context(student, teacher))["similarity"],
    )


@pytest.mark.parametrize("form", ["gram", "attention"])
def test_the_change_between_layers_is_zero_for_equal_graphs(form: str):
    """The graph of the pooled feature (edges), of an early map, and the difference of both."""
    late, early = rand(B, DS), rand(B, 3, 2, 2, seed=3)
    equal = TeacherOutput(late, None, {"e": 2 * early})
    ctx = Context(pre_activation=late, post_activation=late, teacher=equal, maps={"s8": early})
    graph = InstanceGraph({"s8": "e"}, form=form)  # type: ignore[arg-type]
    terms = graph.terms(ctx)
    assert set(terms) == {"edges", "early", "change"}
    assert all(float(v.abs().max()) < 1e-6 for v in terms.values())
    other_early = TeacherOutput(late, None, {"e": rand(B, 4, 5, 5, seed=4)})
    terms = graph.terms(
        Context(pre_activation=late, post_activation=late, teacher=other_early, maps={"s8": early})
    )
    assert float(terms["change"].mean()) > 1e-3
    assert float(terms["edges"].abs().max()) < 1e-6


def test_view_gram_compares_norms_for_one_view_and_ignores_the_order_of_views():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    one_view = total(ViewGram(views=1), student, teacher, rows=ROWS)
    # Squared lengths, divided by their mean over the batch.
    of_student, of_teacher = (
        x.square().sum(1) / x.square().sum(1).mean() for x in (student, teacher)
    )
    expected = 20 * (of_student - of_teacher).square().mean()  # 20: the default weight
    assert float(one_view) == pytest.approx(float(expected))
    swap = torch.tensor([1, 0, 3, 2, 5, 4])  # the two views of each image
    swapped = total(ViewGram(views=2), student[swap], teacher[swap], rows=ROWS)
    expected = total(ViewGram(views=2), student, teacher, rows=ROWS)
    assert float(swapped) == pytest.approx(float(expected))
    with pytest.raises(KdepError, match="are not adjacent"):
        total(ViewGram(views=2), student, teacher, rows=torch.tensor([0, 2, 1, 3, 4, 5]))
    with pytest.raises(KdepError, match="one view"):
        ViewGram(views=1, cosine=True)


def test_arguments_out_of_range_are_refused():
    for make, message in (
        (lambda: CorrelationCongruence(gamma=0), "gamma=0"),
        (lambda: InstanceGraph(None, form="none"), "form .*'none'"),  # type: ignore[arg-type]
        (lambda: InstanceGraph(None, tau=0), "tau=0"),
        (lambda: InstanceGraph({"a": "a", "b": "b"}), "has 2 earlier layers"),
    ):
        with pytest.raises(KdepError, match=message):
            make()


def test_the_kernel_s_order_is_1_or_more_and_its_gamma_positive():
    # With order 1 the kernel is exp(-2 gamma) (1 + 2 gamma cos), with cos 1 and 0 here.
    kernel = CorrelationCongruence(gamma=0.5, order=1).kernel(torch.eye(2))
    torch.testing.assert_close(kernel, math.exp(-1) * torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    for arguments in (dict(order=0), dict(gamma=0.0), dict(gamma=-1.0)):
        with pytest.raises(KdepError, match="correlation congruence has"):
            CorrelationCongruence(**arguments)  # type: ignore[arg-type]
