"""Semi-online distillation: which loss trains which network, and which bridges are refused.

The bridge is a copy of the teacher's layers after one of its feature maps, with new random weights
that are trained. Its input is that map. The formula is in the docstring of `SemiOnline`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.mutual import kl
from kdep_bench.objectives.sokd import SemiOnline, SemiOnlineWithLabels
from kdep_bench.teachers.base import TeacherOutput, build_teacher
from tests.objectives import tiny

WIDTH, CLASSES = 3, tiny.LOGITS  # of the student's feature, of all logits (5)


def semi_online(**options: Any) -> SemiOnline:
    """The objective, whose bridge reads the map s16, with fixed initial weights."""
    torch.manual_seed(0)
    return SemiOnline(dict(s16="s16"), WIDTH, CLASSES, tiny.TEACHER, **options)


def context(count: int = 6) -> Context:
    """A batch of `count` images: random student features and the tiny teacher's outputs."""
    torch.manual_seed(1)
    teacher = build_teacher(tiny.TEACHER)(tiny.batch(count, 0)["images"])
    after = torch.randn(count, WIDTH, requires_grad=True)
    return Context(after, after, teacher=teacher, labels=torch.arange(count) % CLASSES)


def networks_with_gradient(loss: Tensor, model: SemiOnline) -> set[str]:
    """Which of "bridge" and "head" (the student's) get a gradient from the loss."""
    parts = {"bridge": model.bridge, "head": model.head}
    names = set()
    for name, part in parts.items():
        grads = torch.autograd.grad(
            loss, list(part.parameters()), retain_graph=True, allow_unused=True
        )
        if any(g is not None and bool(g.any()) for g in grads):
            names.add(name)
    return names


def test_each_loss_trains_only_one_network():
    model, ctx = semi_online(), context()
    terms = model.terms(ctx)
    assert networks_with_gradient(terms["student"].sum(), model) == {"head"}
    assert networks_with_gradient(terms["bridge_teacher"].sum(), model) == {"bridge"}
    assert networks_with_gradient(terms["bridge_student"].sum(), model) == {"bridge"}


def test_the_terms_equal_kl_divergences_computed_by_hand():
    """KL(p || q) = sum of p ln(p / q), at the temperature 1.

    Probabilities: bridge (1/2, 1/2), student (1/4, 3/4), teacher (7/8, 1/8). So the student's term
    is KL(bridge || student) = ln(2) / 2 + ln(2/3) / 2, and so on.
    """

    class EqualLogits(nn.Module):
        """A bridge that returns the logits (0, 0)."""

        def forward(self, _map: Tensor) -> Tensor:
            """[1, 2] zeros."""
            return torch.tensor([[0.0, 0.0]])

    model = semi_online(tau=1.0)
    model.bridge, model.head = EqualLogits(), nn.Identity()  # type: ignore[assignment]
    # The softmax of (0, ln r) is (1, r) / (1 + r).
    student, teacher = (torch.tensor([[0.0, math.log(ratio)]]) for ratio in (3.0, 1 / 7))
    teacher_output = TeacherOutput(student, teacher, {"s16": torch.zeros(1, 10, 2, 2)})
    terms = model.terms(Context(student, student, teacher=teacher_output))
    expected = {
        "student": math.log(2) / 2 + math.log(2 / 3) / 2,
        "bridge_teacher": 7 / 8 * math.log(7 / 4) + 1 / 8 * math.log(1 / 4),
        "bridge_student": 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected)


def test_the_terms_between_student_and_bridge_are_those_of_mutual_learning():
    """At temperature 1, student and bridge learn from each other like two peers."""
    model, ctx = semi_online(tau=1.0), context()
    terms = model.terms(ctx)
    student, bridge = model.head(ctx.post_activation), model.bridge_logits(ctx)
    torch.testing.assert_close(terms["student"], kl(bridge, student))
    torch.testing.assert_close(terms["bridge_student"], kl(student, bridge))


def test_the_bridge_has_other_weights_than_the_teacher_and_is_trainable(
    monkeypatch: pytest.MonkeyPatch,
):
    layers = build_teacher(tiny.TEACHER).tail("s16")  # stands in for the teacher's last layers
    monkeypatch.setattr(tiny.TinyTeacher, "tail", lambda *_: copy.deepcopy(layers))
    model = semi_online()
    assert all(p.requires_grad for p in model.bridge.parameters())
    assert model.bridge.training
    bridge_weights = model.bridge.state_dict()
    teacher_weights = layers.state_dict()
    assert bridge_weights.keys() == teacher_weights.keys()
    assert not any(torch.equal(v, teacher_weights[k]) for k, v in bridge_weights.items())


def test_the_published_form_adds_two_cross_entropies():
    torch.manual_seed(0)
    model = SemiOnlineWithLabels(dict(s16="s16"), WIDTH, CLASSES, tiny.TEACHER, CLASSES)
    ctx = context()
    terms = model.terms(ctx)
    without_labels = {"student", "bridge_teacher", "bridge_student"}
    assert set(terms) == without_labels | {"cross_entropy", "bridge_cross_entropy"}
    assert ctx.labels is not None
    expected = nn.functional.cross_entropy(model.bridge_logits(ctx), ctx.labels, reduction="none")
    torch.testing.assert_close(terms["bridge_cross_entropy"], expected)
    assert networks_with_gradient(terms["bridge_cross_entropy"].sum(), model) == {"bridge"}
    with pytest.raises(KdepError, match="labels have 3 classes and the teacher 5"):
        SemiOnlineWithLabels(dict(s16="s16"), WIDTH, CLASSES, tiny.TEACHER, 3)


def test_a_bridge_must_read_one_map_whose_later_layers_the_teacher_provides():
    with pytest.raises(KdepError, match="has 2 levels"):
        SemiOnline(dict(s8="s8", s16="s16"), WIDTH, CLASSES, tiny.TEACHER)
    with pytest.raises(KdepError, match="after the map 's4' are not available"):
        SemiOnline(dict(s4="s4"), WIDTH, CLASSES, tiny.TEACHER)
