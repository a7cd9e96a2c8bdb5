"""The weighted ensemble of assistants: loss and weights in float64, and what the plan refuses.

Assistants are teachers of medium size; the student learns the weighted mean of their class
probabilities. The weights minimise the cross-entropy of this mixture on held-out images, a convex
function, so that expectation maximisation finds the same weights as differential evolution. The
formulas are in the docstring of `WeightedAssistants`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.cross_entropy import CrossEntropy
from kdep_bench.objectives.held_out import (
    HeldOutCrossEntropy,
    HeldOutLogitKD,
    HeldOutOutputs,
    is_held_out,
)
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.objectives.weighted_assistants import (
    WeightedAssistants,
    WeightedAssistantsWithLabels,
    evolve_weights,
)
from kdep_bench.suite.config import load_suite
from kdep_bench.teachers.base import TeacherOutput
from tests.suite.test_suite_methods import plan

C, B = 5, 12  # classes, samples per batch
# Configs: without labels, the weights make the mixture similar to the large teacher.
LABEL_FREE: dict[str, Any] = dict(held_out=0.1, reference="large", tau=2.0)
WITH_LABELS: dict[str, Any] = dict(held_out=0.1)


def classes_of(*roles: str) -> dict[str, dict[str, int]]:
    """The argument `teachers` for teachers with these roles: all have C classes."""
    return {role: {"teacher_classes": C} for role in roles}


def context(*roles: str) -> Context:
    """Random float64 features, logits and labels of a batch."""
    generator = torch.Generator().manual_seed(0)
    after = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    logits = {
        role: 2 * torch.randn(B, C, generator=generator, dtype=torch.float64) for role in roles
    }
    teachers = {role: TeacherOutput(z, z) for role, z in logits.items()}
    first = next(iter(teachers.values()))
    return Context(
        after,
        after,
        teacher=first,
        teachers=teachers,
        labels=torch.arange(B) % C,
        rows=torch.arange(2 * B)[::2],  # the first of two views of each image
    )


def probabilities(logits_NC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Softmax [N, C] of the logits at temperature tau."""
    exponentials = np.exp(logits_NC / tau)
    return exponentials / exponentials.sum(1, keepdims=True)


def em_weights(p_KNC: np.ndarray, q_NC: np.ndarray) -> np.ndarray:
    """[K] weights w that maximise the mean over N of sum_c q_c log(sum_k w_k p_kc).

    By 3000 steps of expectation maximisation.
    """
    weights = np.full(len(p_KNC), 1 / len(p_KNC))
    for _ in range(3_000):
        weighted = weights[:, None, None] * p_KNC
        weights = (q_NC * weighted / weighted.sum(0)).sum(2).mean(1)
    return weights


def held_out_outputs() -> HeldOutOutputs:
    """Outputs for 200 images of the teacher `large` and three assistants.

    Of its five classes, `a` knows the first three and `b` the other two; `c` is random.
    """
    rng = np.random.default_rng(0)
    large = 4 * rng.standard_normal((200, C))
    noise = {role: rng.standard_normal((200, C)) for role in "abc"}
    a = large * [1, 1, 1, 0, 0] + noise["a"]
    b = large * [0, 0, 0, 1, 1] + noise["b"]
    logits = {"a": a, "b": b, "c": 3 * noise["c"], "large": large}
    return HeldOutOutputs(logits, large.argmax(1), 200)


def test_the_loss_equals_the_formula_in_float64():
    weights = {"a": 0.25, "b": 0.75, "large": 0.0}
    objective = WeightedAssistants(
        3, classes_of("a", "b", "large"), weights, held_out=0.1, reference="large", tau=3.0
    ).double()
    ctx = context("a", "b", "large")
    logits = {role: t.logits.numpy() for role, t in ctx.teachers.items() if t.logits is not None}
    mixture = 0.25 * probabilities(logits["a"], 3.0) + 0.75 * probabilities(logits["b"], 3.0)
    student = probabilities(objective.head(ctx.post_activation).detach().numpy(), 3.0)
    expected = 3.0**2 * (mixture * np.log(mixture / student)).sum(1)
    np.testing.assert_allclose(objective.terms(ctx)["kl"].detach(), expected, rtol=1e-9)


def test_the_loss_with_labels_equals_the_formula_in_float64():
    weights = {"a": 0.5, "b": 0.5}
    objective = WeightedAssistantsWithLabels(
        3, classes_of("a", "b"), weights, C, held_out=0.1, alpha=0.7
    ).double()
    ctx = context("a", "b")
    logits_a, logits_b = (t.logits.numpy() for t in ctx.teachers.values() if t.logits is not None)
    tau = 4.0  # the default
    mixture = (probabilities(logits_a, tau) + probabilities(logits_b, tau)) / 2
    logits = objective.head(ctx.post_activation).detach().numpy()
    student, of_label = (
        probabilities(logits, tau),
        probabilities(logits)[np.arange(B), np.arange(B) % C],
    )
    terms = objective.terms(ctx)
    kl = 0.7 * tau**2 * (mixture * np.log(mixture / student)).sum(1)
    np.testing.assert_allclose(terms["kl"].detach(), kl, rtol=1e-9)
    cross_entropy = -(1 - 0.7) * np.log(of_label)
    np.testing.assert_allclose(terms["cross_entropy"].detach(), cross_entropy, rtol=1e-9)


@pytest.mark.parametrize("roles", [("a",), ("a", "large")])
def test_one_assistant_gives_takd(roles: tuple[str, ...]):
    """TAKD (teacher-assistant distillation) is logit distillation from one assistant."""
    outputs = held_out_outputs()
    logits = {"a": outputs.logits["a"], "large": outputs.logits["large"]}
    chosen = WeightedAssistants.weigh_teachers(LABEL_FREE, HeldOutOutputs(logits, None, 200))
    assert chosen.weights == {"a": 1.0, "large": 0.0}
    kd = LogitKD(3, C, tau=2.0).double()
    objective = WeightedAssistants(
        3, classes_of("a", "large"), chosen.weights, held_out=0.1, reference="large", tau=2.0
    ).double()
    objective.head.load_state_dict(kd.head.state_dict())
    ctx = context(*roles)
    torch.testing.assert_close(objective.terms(ctx), kd.terms(ctx))


def test_evolved_weights_equal_those_of_expectation_maximisation():
    outputs = held_out_outputs()
    chosen = WeightedAssistants.weigh_teachers(LABEL_FREE, outputs)
    assistants = np.stack([probabilities(outputs.logits[role], 2.0) for role in "abc"])
    expected = em_weights(assistants, probabilities(outputs.logits["large"], 2.0))
    weights = [chosen.weights[role] for role in "abc"]
    np.testing.assert_allclose(weights, expected, atol=2e-3)
    assert chosen.weights["large"] == 0
    assert sum(chosen.weights.values()) == pytest.approx(1)
    report = chosen.report
    assert report["loss"] < report["loss_equal_weights"]
    assert report["loss"] < min(report["loss_single"].values())
    assert report["entropy"] == pytest.approx(-sum(w * math.log(w) for w in weights if w > 0))
    assert "equal weights" in chosen.note
    assert chosen == WeightedAssistants.weigh_teachers(LABEL_FREE, outputs)  # reproducible


def test_weights_from_labels_equal_those_of_expectation_maximisation():
    outputs = held_out_outputs()
    chosen = WeightedAssistantsWithLabels.weigh_teachers(WITH_LABELS, outputs)
    teachers = np.stack([probabilities(z) for z in outputs.logits.values()])
    assert outputs.labels is not None
    expected = em_weights(teachers, np.eye(C)[outputs.labels])
    np.testing.assert_allclose(list(chosen.weights.values()), expected, atol=2e-3)
    assert chosen.weights["large"] > 0.9  # the labels are its most probable classes


def test_the_best_assistant_gets_all_weight_unless_there_is_a_floor():
    outputs = held_out_outputs()
    logits = {
        "a": outputs.logits["large"],
        "b": outputs.logits["c"],
        "large": outputs.logits["large"],
    }
    a_equals_large = HeldOutOutputs(logits, None, 200)
    assert WeightedAssistants.weigh_teachers(LABEL_FREE, a_equals_large).weights["a"] > 0.999
    with_floor = WeightedAssistants.weigh_teachers({**LABEL_FREE, "floor": 0.4}, a_equals_large)
    assert with_floor.weights["b"] == pytest.approx(0.2, abs=1e-3)  # floor / number of assistants
    assert with_floor.report["entropy"] > 0.4  # of the weights 0.8 and 0.2: 0.5


def test_weights_are_found_although_the_loss_varies_little():
    """The loss varies by less than 1 % of its mean, where SciPy's default tolerance would stop."""

    def loss(weights: np.ndarray) -> float:
        """The minimum is at a first weight of 0.3."""
        return 100 + float((weights[0] - 0.3) ** 2)

    weights, with_seed_1 = (evolve_weights(loss, 2, seed=seed) for seed in (0, 1))
    assert weights[0] == pytest.approx(0.3, abs=2e-3)
    assert with_seed_1[0] != weights[0]


def test_held_out_images_have_the_loss_0_and_others_the_loss_of_the_class_without_held_out():
    """Divided by 0.7, the fraction of other images, so that the mean is over these."""
    ctx = context("a")
    assert ctx.rows is not None
    held_out = is_held_out(ctx.rows // 2, 0.3)
    assert held_out.any()
    assert not held_out.all()
    for plain, with_held_out in (
        (LogitKD(3, C, tau=2.0), HeldOutLogitKD(3, C, 2, held_out=0.3, tau=2.0)),
        (CrossEntropy(3, C), HeldOutCrossEntropy(3, C, 2, held_out=0.3)),
    ):
        with_held_out.double().load_state_dict(plain.double().state_dict())
        (expected,), (term,) = plain.terms(ctx).values(), with_held_out.terms(ctx).values()
        torch.testing.assert_close(term, torch.where(held_out, 0, expected / 0.7))


def test_a_larger_fraction_holds_out_the_images_of_a_smaller_one():
    images = torch.arange(10_000)
    small, large = is_held_out(images, 0.1), is_held_out(images, 0.3)
    assert not (small & ~large).any()
    assert float(small.float().mean()) == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(is_held_out(images.numpy(), 0.1), small.numpy())


# An assistant that is trained on all images, and one that holds out another fraction.
TAKD_ASSISTANT = dict(student="resnet18_w48", method="logit_kd")
OTHER_FRACTION = dict(
    student="resnet18_w48", method=dict(base="held_out_kd", objective=dict(held_out=0.05))
)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(objective=dict(held_out=0.0)), "has no validation split: held_out=0"),
        (dict(objective=dict(held_out=1.0)), "held_out = 1"),
        (dict(objective=dict(reference="huge")), "unknown role 'huge' in `reference`"),
        (dict(objective=dict(floor=1.5)), "floor = 1.5"),
        (dict(teachers=dict(small=TAKD_ASSISTANT)), "'logit_kd' is trained on all images"),
        (dict(teachers=dict(small=OTHER_FRACTION)), "'held_out_kd' holds out 0.05"),
        (dict(teachers=dict(small=dict(method="scratch"))), "is not trained"),
        (dict(teachers=dict(_delete_=True, large="suite")), "reads several teachers"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="weighted_assistants", name="changed", **method))


def test_a_live_teacher_is_refused_because_its_outputs_are_not_known_before_training():
    budget = load_suite("smoke").budget.model_dump()
    with pytest.raises(KdepError, match="teacher_weights, which are computed from a teacher's"):
        plan("weighted_assistants", budget=budget | dict(teacher="live"))


def test_the_fix_for_an_assistant_trained_on_all_images_is_accepted():
    assistant = dict(student="resnet18_w48", method="held_out_kd")
    method = dict(base="weighted_assistants", name="changed", teachers=dict(medium=assistant))
    assert plan(method).runs


def test_both_assistants_are_trained_once_and_the_large_teacher_is_that_of_the_suite():
    kinds = [s.kind for s in plan("weighted_assistants").stages.values()]
    assert kinds.count("pretrain") == 3  # two assistants and the student
    assert kinds.count("cache") == 3  # of the assistants and the suite's teacher
