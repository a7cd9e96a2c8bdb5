"""Objectives on relations between samples: invariances, closed forms and refusals."""

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

B, DS, DT = 6, 5, 9  # batch, widths of student and teacher


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise [shape] in float64 with a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int) -> Tensor:
    """A random rotation [d, d]."""
    return torch.linalg.qr(rand(d, d, seed=7))[0]


def context(s: Tensor, t: Tensor, **values: Any) -> Context:
    """A batch with these features of student and teacher."""
    return Context(before=s, after=s.relu(), teacher=TeacherOutput(t, None), **values)


def total(objective: Objective, s: Tensor, t: Tensor, **values: Any) -> Tensor:
    """The sum of the means of all terms; checks that each term is per sample."""
    terms = objective.terms(context(s, t, **values))
    assert all(v.shape == (len(s),) for v in terms.values())
    return torch.stack([v.mean() for v in terms.values()]).sum()


def view_gram(m: int) -> ViewGram:
    """The objective on Gram matrices of m views per image."""
    return ViewGram(views=m)


ROWS = torch.arange(B)
RELATIONS: dict[str, Objective] = {
    "rkd": RKD(),
    "sp": SimilarityPreserving(),
    "pkt": PKT(),
    "cc": CorrelationCongruence(),
    "graph": InstanceGraph(None),
    "attention": InstanceGraph(None, form="attention"),
    "view_gram": view_gram(2),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_the_loss_is_zero_for_a_rotated_and_scaled_teacher_of_any_width(name: str):
    s = rand(B, DS)
    wide = torch.cat((s, torch.zeros(B, DT - DS, dtype=s.dtype)), 1)
    assert float(total(RELATIONS[name], s, 3 * wide @ rotation(DT), rows=ROWS)) < 1e-6
    other = total(RELATIONS[name], s, rand(B, DT, seed=1), rows=ROWS)
    assert float(other) > 1e-3


@pytest.mark.parametrize("name", RELATIONS)
def test_gradients_are_those_of_finite_differences(name: str):
    student, teacher = rand(B, DS).requires_grad_(), rand(B, DT, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: total(RELATIONS[name], x, teacher, rows=ROWS), (student,)
    )


def test_rkd_equals_its_formula():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    d = torch.cdist(student, student)
    assert torch.allclose(scaled_distances(student), d / d[d > 0].mean(), atol=1e-5)
    i, j, k = 1, 3, 4
    a, b = student[j] - student[i], student[k] - student[i]
    assert float(angles(student, B)[i, j, k]) == pytest.approx(float(a @ b / a.norm() / b.norm()))
    terms = RKD(distance=1.0, angle=2.0).terms(context(student, teacher))
    huber = torch.nn.functional.smooth_l1_loss
    dt = torch.cdist(teacher, teacher)
    expected = huber(d / d[d > 0].mean(), dt / dt[dt > 0].mean())
    assert float(terms["distance"].mean()) == pytest.approx(float(expected), abs=1e-6)
    assert float(terms["angle"].mean()) == pytest.approx(
        2 * float(huber(angles(student, B), angles(teacher, B)))
    )
    # A shift of the teacher's feature does not change the loss.
    assert float(total(RKD(), student, teacher + 5)) == pytest.approx(
        float(total(RKD(), student, teacher))
    )


def test_the_angle_term_of_two_vertices_is_scaled_to_all_vertices():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    all_vertices = RKD(distance=0).terms(context(student, teacher))["angle"]
    two_vertices = RKD(distance=0, vertices=2).terms(context(student, teacher))["angle"]
    assert torch.allclose(two_vertices[:2], all_vertices[:2] * B / 2)
    assert not two_vertices[2:].any()
    with pytest.raises(KdepError, match="vertices=0"):
        RKD(vertices=0)


def test_similarity_preserving_is_the_frobenius_norm_of_the_grams():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    g = [torch.nn.functional.normalize(x @ x.T, dim=1) for x in (student, teacher)]
    expected = 3000 * (g[0] - g[1]).square().sum() / B**2
    assert float(total(SimilarityPreserving(), student, teacher)) == pytest.approx(float(expected))


def test_pkt_ignores_the_lengths_of_features():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    lengths = torch.linspace(0.5, 4, B, dtype=student.dtype)[:, None]
    assert float(total(PKT(), student * lengths, teacher)) == pytest.approx(
        float(total(PKT(), student, teacher)), rel=1e-4
    )


def test_the_kernel_of_correlation_congruence_converges_to_the_gaussian():
    s = torch.nn.functional.normalize(rand(B, DS), dim=1)
    gauss = (-0.4 * torch.cdist(s, s).square()).exp()
    assert torch.allclose(CorrelationCongruence(order=12).kernel(s), gauss)
    assert not torch.allclose(CorrelationCongruence(order=2).kernel(s), gauss)


def test_an_instance_graph_of_one_layer_is_similarity_preserving():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    assert torch.equal(
        InstanceGraph(None, edges=7.0).terms(context(student, teacher))["edges"],
        SimilarityPreserving(weight=7.0).terms(context(student, teacher))["similarity"],
    )


@pytest.mark.parametrize("form", ["gram", "attention"])
def test_the_change_between_layers_is_zero_for_equal_graphs(form: str):
    late, early = rand(B, DS), rand(B, 3, 2, 2, seed=3)
    same = TeacherOutput(late, None, {"e": 2 * early})
    ctx = Context(before=late, after=late, teacher=same, maps={"s8": early})
    graph = InstanceGraph({"s8": "e"}, form=form)  # type: ignore[arg-type]
    terms = graph.terms(ctx)
    assert set(terms) == {"edges", "early", "change"}
    assert all(float(v.abs().max()) < 1e-6 for v in terms.values())
    other = TeacherOutput(late, None, {"e": rand(B, 4, 5, 5, seed=4)})
    moved = graph.terms(Context(before=late, after=late, teacher=other, maps={"s8": early}))
    assert float(moved["change"].mean()) > 1e-3
    assert float(moved["edges"].abs().max()) < 1e-6


def test_view_gram_compares_norms_for_one_view_and_ignores_the_order_of_views():
    student, teacher = rand(B, DS), rand(B, DT, seed=1)
    one_view = total(view_gram(1), student, teacher, rows=ROWS)
    normalised = [x.square().sum(1) / x.square().sum(1).mean() for x in (student, teacher)]
    assert float(one_view) == pytest.approx(
        20 * float((normalised[0] - normalised[1]).square().mean())
    )
    swap = torch.tensor([1, 0, 3, 2, 5, 4])
    assert float(total(view_gram(2), student[swap], teacher[swap], rows=ROWS)) == pytest.approx(
        float(total(view_gram(2), student, teacher, rows=ROWS))
    )
    with pytest.raises(KdepError, match="are not adjacent"):
        total(view_gram(2), student, teacher, rows=torch.tensor([0, 2, 1, 3, 4, 5]))
    with pytest.raises(KdepError, match="one view"):
        ViewGram(views=1, cosine=True)


def test_bad_arguments_are_refused():
    for make in (
        lambda: CorrelationCongruence(gamma=0),
        lambda: InstanceGraph(None, form="none"),  # type: ignore[arg-type]
        lambda: InstanceGraph(None, tau=0),
        lambda: InstanceGraph({"a": "a", "b": "b"}),
    ):
        with pytest.raises(KdepError):
            make()


def test_the_kernel_s_order_is_1_or_more_and_its_gamma_positive():
    # With order 1 the kernel is exp(-2 gamma) (1 + 2 gamma cos).
    kernel = CorrelationCongruence(gamma=0.5, order=1).kernel(torch.eye(2))
    torch.testing.assert_close(kernel, math.exp(-1) * torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    for arguments in (dict(order=0), dict(gamma=0.0), dict(gamma=-1.0)):
        with pytest.raises(KdepError, match="correlation congruence has"):
            CorrelationCongruence(**arguments)  # type: ignore[arg-type]
