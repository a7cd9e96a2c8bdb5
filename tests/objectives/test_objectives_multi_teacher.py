"""Objectives with several teachers and their weightings, compared with values computed by hand.

A weighting gives every teacher (or every term of a loss) a weight per sample. Teachers are named by
their roles, here a and b. The formulas are in the docstrings of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.aekd import AgreementKD, least_norm_weights
from kdep_bench.objectives.base import Context, Objective, build_objective, demands
from kdep_bench.objectives.ca_mkd import ConfidenceAwareFeatures, ConfidenceWeights
from kdep_bench.objectives.entropy_weights import EntropyWeights
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.multi_teacher import MultiTeacherKD, MultiTeacherKDWithLabels
from kdep_bench.objectives.roles import attribute_of_class, readers, union
from kdep_bench.objectives.weighting import Weighting
from kdep_bench.teachers.base import TeacherOutput

PATH = "kdep_bench.objectives"
TWO_TEACHERS = {role: {"teacher_classes": 4, "teacher_width": 2} for role in ("a", "b")}


def context(logits: Mapping[str, Any], **values: Any) -> Context:
    """A batch whose teachers give the logits {role: [B, C]}; features are 0."""
    teachers = {
        role: TeacherOutput(torch.zeros(len(z), 2), torch.as_tensor(z, dtype=torch.float32))
        for role, z in logits.items()
    }
    zeros = torch.zeros(len(next(iter(logits.values()))), 3)
    first = next(iter(teachers.values()))
    return Context(
        zeros, values.pop("post_activation", zeros), teacher=first, teachers=teachers, **values
    )


def log_probabilities(*p: float) -> list[float]:
    """Logits whose softmax is p; -1e4 where p is 0."""
    return [math.log(x) if x else -1e4 for x in p]


def ones(ctx: Context) -> dict[str, Tensor]:
    """A loss of 1 per teacher and sample."""
    return {role: torch.ones(len(ctx.post_activation)) for role in ctx.teachers}


def test_entropy_weights_of_two_teachers_equal_those_computed_by_hand():
    """The entropies are 1.5 ln 2 and 2 ln 2, which are 3/7 and 4/7 of their sum.

    A weight is (1 - fraction) / number of teachers: 4/7 / 2 and 3/7 / 2.
    """
    ctx = context(
        {"a": [log_probabilities(0.5, 0.25, 0.25, 0)], "b": [log_probabilities(*[0.25] * 4)]}
    )
    weights = EntropyWeights().weigh(ctx, ones(ctx))
    assert weights["a"].tolist() == pytest.approx([2 / 7])
    assert weights["b"].tolist() == pytest.approx([3 / 14])


def test_entropy_weights_of_teachers_without_entropy_are_equal_and_not_nan():
    """(1 - 1/3) / 3 = 2/9 for each of three teachers."""
    ctx = context({k: [log_probabilities(1, 0, 0)] for k in "abc"})
    weights = EntropyWeights().weigh(ctx, ones(ctx))
    assert [weight.item() for weight in weights.values()] == pytest.approx([2 / 9] * 3)


def test_confidence_weights_follow_the_cross_entropy_with_the_label():
    """Cross-entropies ln 2 and ln 4: softmax 1/3 and 2/3, so weights 2/3 / 2 and 1/3 / 2."""
    ctx = context(
        {"a": [log_probabilities(0.5, 0.25, 0.25, 0)], "b": [log_probabilities(*[0.25] * 4)]},
        labels=torch.tensor([0]),
    )
    weights = ConfidenceWeights().weigh(ctx, ones(ctx))
    assert weights["a"].tolist() == pytest.approx([1 / 3])
    assert weights["b"].tolist() == pytest.approx([1 / 6])


def test_the_weight_of_a_teacher_goes_to_zero_as_its_error_grows():
    previous = 1.0
    for wrong_logit in (0.0, 3.0, 30.0):
        logits = {"a": [[9.0, 0.0]], "b": [[0.0, wrong_logit]]}
        ctx = context(logits, labels=torch.tensor([0]))
        weight = ConfidenceWeights().weigh(ctx, ones(ctx))["b"].item()
        assert weight < previous
        previous = weight
    assert previous < 1e-6


def test_two_equal_teachers_give_logit_distillation_from_one():
    torch.manual_seed(0)
    after, teacher = torch.randn(5, 3), torch.randn(5, 4)
    ctx = context(
        {"a": teacher, "b": teacher}, labels=torch.tensor([0, 1, 2, 3, 0]), post_activation=after
    )
    for weighting in ({"type": f"{PATH}.ca_mkd.ConfidenceWeights"}, None):
        kd = MultiTeacherKD(3, TWO_TEACHERS, tau=2.0, weighting=weighting)
        computed = sum(kd.terms(ctx).values())
        # ConfidenceWeights gives each of two equal teachers 1/4; without it each has 1/2.
        expected = soft_kl(teacher, kd.head(after), 2.0) / (2 if weighting else 1)
        torch.testing.assert_close(computed, expected)


def test_the_terms_with_labels_share_one_head():
    torch.manual_seed(0)
    after, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    ctx = context(
        {"a": torch.randn(6, 4), "b": torch.randn(6, 4)}, labels=labels, post_activation=after
    )
    kd = MultiTeacherKDWithLabels(3, TWO_TEACHERS, 4)
    terms = kd.terms(ctx)
    assert set(terms) == {"cross_entropy", "kl_a", "kl_b"}
    expected = nn.functional.cross_entropy(kd.head(after), labels, reduction="none")
    torch.testing.assert_close(terms["cross_entropy"], expected)
    assert sum(p.numel() for p in kd.parameters()) == 3 * 4 + 4


def features(classifier: nn.Module) -> tuple[ConfidenceAwareFeatures, Context]:
    """CA-MKD (confidence-aware multi-teacher KD) with identity projectors, and one sample.

    The student's feature is [1, 2], the teachers' are [1, 0] and [2, 2]; the label is 0. Both
    teachers have this classifier.
    """
    model = ConfidenceAwareFeatures(2, 4, TWO_TEACHERS)
    for role in TWO_TEACHERS:
        model.embed[f"of_{role}"] = nn.Identity()
    teachers = {
        role: TeacherOutput(torch.tensor([value]), None, classifier=classifier)
        for role, value in (("a", [1.0, 0.0]), ("b", [2.0, 2.0]))
    }
    after = torch.tensor([[1.0, 2.0]], requires_grad=True)
    return model, Context(after, after, labels=torch.tensor([0]), teachers=teachers)


def test_a_classifier_of_zeros_weighs_teachers_equally():
    """Mean squared errors (0 + 4) / 2 and (1 + 0) / 2; weights (1 - 1/2) / 2 teachers = 1/4.

    So the terms are 2 / 4 and 0.5 / 4.
    """
    classifier = nn.Linear(2, 4)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    model, ctx = features(classifier)
    terms = model.terms(ctx)
    assert {k: v.tolist() for k, v in terms.items()} == {"a": [0.5], "b": [0.125]}


def test_the_teacher_s_classifier_weighs_features_and_is_not_trained():
    wrong_classifier = nn.Linear(2, 2, bias=False).requires_grad_(False)
    wrong_classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    model, ctx = features(wrong_classifier)
    right_classifier = nn.Linear(2, 2, bias=False).requires_grad_(False)
    right_classifier.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    ctx.teachers["b"].__dict__["classifier"] = right_classifier  # the dataclass is frozen
    terms = model.terms(ctx)
    # The logits are (1, 2) and (2, 1), so for label 0 the cross-entropies are ln(1 + e) and
    # ln(1 + 1/e), and their softmax is proportional to 1 + e and 1 + 1/e.
    wrong, right = 1 + math.e, 1 + 1 / math.e
    # Squared error 2 or 0.5, times (1 - softmax) / 2 teachers.
    assert terms["a"].item() == pytest.approx(2 * (right / (wrong + right)) / 2, rel=1e-5)
    assert terms["b"].item() == pytest.approx(0.5 * (wrong / (wrong + right)) / 2, rel=1e-5)
    sum(terms.values()).sum().backward()  # type: ignore[union-attr]
    assert bool(ctx.post_activation.grad.any())  # type: ignore[union-attr]
    assert wrong_classifier.weight.grad is None


@pytest.mark.parametrize(
    ("gradients", "max_weight", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 0.6, [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 3.0]], 1.0, [0.9, 0.1]),  # min of w^2 + 9 (1 - w)^2: w = 9 / (1 + 9)
        ([[1.0, 0.0], [0.0, 3.0]], 0.6, [0.6, 0.4]),  # limited by max_weight
        ([[1.0, 0.0], [-3.0, 0.0]], 1.0, [0.75, 0.25]),  # opposite gradients cancel
        ([[1e-9, 0.0], [-3e-9, 0.0]], 1.0, [0.75, 0.25]),  # tiny gradients are not rounded to 0
        ([[2.0, 1.0], [2.0, 1.0]], 0.6, [0.5, 0.5]),  # equal gradients, equal weights
        ([[0.0, 0.0], [0.0, 0.0]], 0.6, [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 3.0]], 0.1, [0.5, 0.5]),  # below 1 / K only equal weights are possible
    ],
)
def test_least_norm_weights_are_those_computed_by_hand(
    gradients: list[list[float]], max_weight: float, expected: list[float]
):
    """The weights minimise the length of the weighted sum of the gradients, up to max_weight."""
    computed = least_norm_weights(torch.tensor(gradients, dtype=torch.float64), max_weight)
    assert computed.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_least_norm_weights_are_those_of_the_published_one_class_svm(count: int):
    """AEKD's published code solves the problem as a one-class SVM (support vector machine)."""
    for seed in range(5):
        gradients = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)).double()
        gram = (gradients @ gradients.T).numpy()
        svm = OneClassSVM(kernel="precomputed", nu=1 / (0.6 * count), tol=1e-10).fit(gram)
        expected = np.zeros(count)
        expected[svm.support_] = svm.dual_coef_[0] * 0.6  # dual_coef_ sums to count * nu = 1 / 0.6
        computed = least_norm_weights(gradients, 0.6).numpy()
        np.testing.assert_allclose(computed, expected, atol=1e-5)


def test_agreement_weighs_by_the_gradient_of_the_terms_with_respect_to_the_logits():
    torch.manual_seed(1)
    after = torch.randn(6, 3)
    ctx = context({"a": torch.randn(6, 4), "b": 3 * torch.randn(6, 4)}, post_activation=after)
    kd = AgreementKD(3, TWO_TEACHERS, tau=2.0, tolerance=0.8)
    logits = kd.head(after).detach().requires_grad_()
    gradients = []
    for teacher in ctx.teachers.values():
        assert teacher.logits is not None
        (gradient,) = torch.autograd.grad(soft_kl(teacher.logits, logits, 2.0).sum(), logits)
        gradients.append(gradient.mean(0))
    expected = least_norm_weights(torch.stack(gradients), 0.8)
    torch.testing.assert_close(kd.agreement(ctx, logits), expected)
    terms = kd.terms(ctx)
    assert ctx.teachers["a"].logits is not None
    ratio = terms["kl_a"] / soft_kl(ctx.teachers["a"].logits, logits, 2.0)
    torch.testing.assert_close(ratio, expected[:1].expand(6))


# ---- the weighting's interface ----


class FixedWeights(Weighting):
    """Returns the weights {term: [B]} that it is built with."""

    needs = frozenset({"labels"})

    def __init__(self, weights: Mapping[str, list[float]]) -> None:
        super().__init__()
        self.weights = {k: torch.tensor(v) for k, v in weights.items()}

    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The fixed weights."""
        return self.weights


class FirstLogit(Objective):
    """One term: the first logit times `teacher_classes`, which shows which teacher was passed."""

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"teacher_classes"})

    def __init__(self, teacher_classes: int) -> None:
        super().__init__()
        self.classes = teacher_classes

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """The term [B]."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        return {"first": self.classes * ctx.teacher.logits[:, 0]}


def sum_of(weights: Mapping[str, list[float]]) -> Objective:
    """A sum of two `FirstLogit` parts with these weights per sample.

    Part "one" reads teacher b and has the constant weight 2; part "two" reads the first teacher.
    The teachers a and b have 3 and 5 classes.
    """
    config = dict(
        type=f"{PATH}.weighted_sum.WeightedSum",
        parts=dict(
            one=dict(objective=dict(type=f"{__name__}.FirstLogit"), teacher="b", weight=2.0),
            two=dict(objective=dict(type=f"{__name__}.FirstLogit")),
        ),
        weighting=dict(type=f"{__name__}.FixedWeights", weights=weights),
    )
    assert demands(config).needs == {"logits", "labels"}
    assert union(
        readers(config, ["a", "b"], attribute_of_class)["b"], "needs", attribute_of_class
    ) == {"logits"}
    arguments = {
        "teachers": {"a": {"teacher_classes": 3}, "b": {"teacher_classes": 5}},
        "epochs": 1.0,
    }
    return build_objective(config, arguments)


def test_each_part_of_a_weighted_sum_gets_the_arguments_and_outputs_of_its_teacher():
    ctx = context({"a": [[7.0], [1.0]], "b": [[11.0], [1.0]]})
    terms = sum_of({"one": [1.0, 0.5], "two": [0.0, 1.0]}).terms(ctx)
    # Weight of the sample * weight of the part * classes * first logit.
    assert terms["one"].tolist() == [1.0 * 2 * 5 * 11.0, 0.5 * 2 * 5 * 1.0]
    assert terms["two"].tolist() == [0.0 * 1 * 3 * 7.0, 1.0 * 1 * 3 * 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"one": [1.0, 1.0]}, "returns weights for the terms one"),
        ({"one": [1.0, 1.0], "two": [1.0]}, "shape"),
    ],
)
def test_weights_that_do_not_fit_the_terms_are_refused(weights: Mapping[str, Any], message: str):
    ctx = context({"a": [[7.0], [1.0]], "b": [[11.0], [1.0]]})
    with pytest.raises(KdepError, match=message):
        sum_of(weights).terms(ctx)


def test_fewer_than_two_teachers_and_unequal_classes_are_refused():
    with pytest.raises(KdepError, match="for several teachers has 1"):
        MultiTeacherKD(3, {"a": TWO_TEACHERS["a"]})
    with pytest.raises(KdepError, match=r"different numbers of classes \(a 4, b 5\)"):
        MultiTeacherKD(3, TWO_TEACHERS | {"b": {"teacher_classes": 5}})
    with pytest.raises(KdepError, match="labels have 3 classes and the teachers 4"):
        MultiTeacherKDWithLabels(3, TWO_TEACHERS, 3)
    wrong = dict(
        type=f"{PATH}.multi_teacher.MultiTeacherKD", weighting=dict(type=f"{__name__}.FirstLogit")
    )
    with pytest.raises(KdepError, match=r"weighting .*FirstLogit is not a Weighting"):
        build_objective(wrong, {"width": 3, "epochs": 1.0, "teachers": TWO_TEACHERS})


def test_readers_lists_the_parts_of_each_teacher_role_and_refuses_an_unknown_role():
    def part(kind: str, **options: Any) -> dict[str, Any]:
        """Config of a part of a sum."""
        return dict(objective=dict(type=f"{PATH}.{kind}"), **options)

    config: dict[str, Any] = dict(
        type=f"{PATH}.weighted_sum.WeightedSum",
        parts=dict(
            feature=part("feature_regression.FeatureRegression", teacher="b"),
            logits=part("logit_kd.LogitKD"),
            labels=part("cross_entropy.CrossEntropy"),
        ),
    )
    read_by = readers(config, ["a", "b", "c"])
    assert union(read_by["a"], "needs") == {"logits", "labels"}
    assert union(read_by["b"], "needs") == {"target"}
    assert not read_by["c"]
    config["parts"]["feature"]["teacher"] = "bb"
    with pytest.raises(KdepError, match=r"teacher role .* in a part.*did you mean b"):
        readers(config, ["a", "b"])
