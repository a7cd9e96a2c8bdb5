"""The choice of a teacher by the quality of distillation, and its control, against formulas.

For each candidate teacher, a small student (the proxy) is distilled briefly; the accuracy of the
proxy on held-out images is the quality of its candidate. Similarity information is what the
teacher's outputs say about the classes other than the most probable one. In the control
(`PermutedKD`) these other classes are permuted.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.held_out import HeldOutOutputs
from kdep_bench.objectives.logit_kd import LogitKD, LogitKDWithLabels
from kdep_bench.objectives.permuted_kd import PermutedKD, permute_others
from kdep_bench.objectives.teacher_quality import (
    BestTeacher,
    rank_correlation,
    similarity_information,
)
from kdep_bench.suite.config import load_suite
from kdep_bench.teachers.base import TeacherOutput
from tests.suite.test_suite_methods import plan as plan_with_budget

C, B = 6, 40  # classes, samples per batch
ROLES = ("a", "b", "c", "a_proxy", "b_proxy", "c_proxy")


def random_logits(rows: int = B, scale: float = 2.0) -> torch.Tensor:
    """[rows, C] normal noise in float64 with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, C, generator=generator, dtype=torch.float64)


def context(logits: dict[str, torch.Tensor]) -> Context:
    """A batch with random student features [B, 3] and the teachers' logits {role: [B, ...]}."""
    generator = torch.Generator().manual_seed(1)
    after = torch.randn(B, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teachers = {role: TeacherOutput(z, z) for role, z in logits.items()}
    first = next(iter(teachers.values()))
    labels, rows = torch.arange(B) % C, torch.arange(B)
    return Context(after, after, teacher=first, teachers=teachers, labels=labels, rows=rows)


# ---- similarity information ----


def test_similarity_information_equals_the_formula_in_float64():
    """The mean entropy of the softmax over all classes but the label."""
    tau, logits, labels = 3.0, random_logits().numpy(), np.arange(B) % C
    expected = 0.0
    for row, label in zip(logits, labels, strict=True):
        exponentials = [math.exp(z / tau) for k, z in enumerate(row) if k != label]
        probabilities = [v / sum(exponentials) for v in exponentials]
        expected -= sum(p * math.log(p) for p in probabilities) / B
    assert similarity_information(logits, labels, tau) == pytest.approx(expected, rel=1e-9)


def test_a_one_hot_teacher_has_no_similarity_information_and_a_uniform_one_all():
    labels = np.arange(B) % C
    one_hot = 1e4 * np.eye(C)[labels]
    assert similarity_information(one_hot, labels) == 0
    assert similarity_information(np.zeros((B, C)), labels) == pytest.approx(math.log(C - 1))


def test_distillation_from_a_one_hot_teacher_has_the_gradient_of_the_cross_entropy():
    labels = torch.arange(B) % C
    objective = LogitKD(3, C, tau=1.0).double()
    ctx = context({"a": 1e4 * F.one_hot(labels, C).double()})
    with pytest.warns(UserWarning, match="mean entropy"):
        gradient = torch.autograd.grad(objective.terms(ctx)["kl"].sum(), ctx.post_activation)[0]
    cross_entropy = F.cross_entropy(objective.head(ctx.post_activation), labels, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(cross_entropy, ctx.post_activation)[0])


def test_permuted_classes_have_the_same_information_but_not_the_same_similarities():
    logits = random_logits(400)
    permuted, top = permute_others(logits, torch.arange(400)), logits.argmax(1)
    assert torch.equal(permuted.argmax(1), top)
    torch.testing.assert_close(permuted.sort(1).values, logits.sort(1).values, rtol=0, atol=0)
    original_information, information = (
        similarity_information(z.numpy(), top.numpy()) for z in (logits, permuted)
    )
    assert information == pytest.approx(original_information, rel=1e-9)
    second, permuted_second = (z.topk(2).indices[:, 1] for z in (logits, permuted))
    assert float((second == permuted_second).double().mean()) < 0.3  # by chance 1 / 5


def test_permutations_depend_only_on_row_and_seed_and_are_uniform():
    logits = torch.arange(C, dtype=torch.float64).repeat(6000, 1)  # the top class is the last
    rows = torch.arange(6000)
    permuted = permute_others(logits, rows)
    assert torch.equal(permute_others(logits[:10], rows[100:110]), permuted[100:110])
    assert not torch.equal(permute_others(logits, rows, seed=1), permuted)
    # [logit, class]: how often each of the five lower logits is at each of the five classes.
    frequency = torch.stack([(permuted == k).double().mean(0) for k in range(C - 1)])[:, :-1]
    torch.testing.assert_close(frequency, torch.full((5, 5), 0.2).double(), atol=0.03, rtol=0)


def test_permuted_distillation_equals_its_formula_and_with_two_classes_plain_distillation():
    logits = random_logits()
    objective, ctx = PermutedKD(3, C, tau=2.0, seed=5).double(), context({"a": logits})
    teacher = torch.softmax(permute_others(logits, torch.arange(B), 5) / 2, 1).numpy()
    student = torch.softmax(objective.head(ctx.post_activation) / 2, 1).detach().numpy()
    expected = 2**2 * (teacher * np.log(teacher / student)).sum(1)
    np.testing.assert_allclose(objective.terms(ctx)["kl"].detach(), expected, rtol=1e-9)
    plain, permuted = LogitKD(3, 2).double(), PermutedKD(3, 2).double()
    permuted.load_state_dict(plain.state_dict())
    two_classes = context({"a": logits[:, :2]})  # there is only one class to permute
    torch.testing.assert_close(permuted.terms(two_classes), plain.terms(two_classes))


# ---- the choice ----


def held_out_outputs(*accuracies: float) -> HeldOutOutputs:
    """Outputs of three candidates and their proxies for 100 samples of 50 images.

    The proxies have these accuracies. From a to c the candidates' logits grow, so that they have
    less and less similarity information.
    """
    labels = np.arange(100) % C
    logits: dict[str, np.ndarray] = {}
    for k, role in enumerate("abc"):
        logits[role] = np.random.default_rng(k).standard_normal((100, C)) * (k + 1)
    for role, accuracy in zip("abc", accuracies, strict=True):
        is_wrong = np.arange(100) >= round(100 * accuracy)
        logits[f"{role}_proxy"] = 2.0 * np.eye(C)[(labels + is_wrong) % C]
    return HeldOutOutputs(logits, labels, 50)


def test_the_best_proxy_decides_and_the_report_has_the_rank_correlation():
    chosen = BestTeacher.weigh_teachers(
        {"held_out": 0.1, "tau": 1.0}, held_out_outputs(0.7, 0.9, 0.4)
    )
    assert chosen.weights == dict.fromkeys(ROLES, 0.0) | {"b": 1.0}
    measured = chosen.report["candidates"]
    assert [m["quality"] for m in measured.values()] == [0.7, 0.9, 0.4]
    information = [m["similarity_information"] for m in measured.values()]
    assert information == sorted(information, reverse=True)
    # Ranks of information 3, 2, 1 and of quality 2, 3, 1. Spearman's correlation of n ranks with
    # the differences d is 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 (1 + 1 + 0) / (3 * 8).
    assert chosen.report["spearman_similarity_information"] == pytest.approx(0.5)
    assert "the teacher is b" in chosen.note


def test_cross_entropy_decides_between_equal_accuracies():
    outputs = held_out_outputs(0.8, 0.8, 0.8)
    # Logits of 2 and 0 give the predicted class the probability e^2 / (e^2 + 5) = 0.6. The best for
    # an accuracy of 80 % is 0.8, so larger logits lower the cross-entropy: 1.3 * 2 gives 0.73.
    logits = {**outputs.logits, "c_proxy": 1.3 * outputs.logits["c_proxy"]}
    chosen = BestTeacher.weigh_teachers(
        {"held_out": 0.1}, HeldOutOutputs(logits, outputs.labels, 9)
    )
    losses = {k: m["cross_entropy"] for k, m in chosen.report["candidates"].items()}
    assert losses["a"] == losses["b"] > losses["c"]
    assert chosen.report["chosen"] == "c"
    assert chosen.report["spearman_similarity_information"] is None  # constant quality


def test_rank_correlation_of_too_few_pairs_is_unknown():
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 2.0, 4.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)


def test_the_loss_is_that_of_logit_distillation_from_the_chosen_teacher():
    logits = {role: random_logits(scale=1.0 + k) for k, role in enumerate(ROLES)}
    weights = dict.fromkeys(ROLES, 0.0) | {"b": 1.0}
    teachers = {role: {"teacher_classes": C} for role in ROLES}
    objective = BestTeacher(3, teachers, weights, C, held_out=0.1, alpha=0.6, tau=2.0).double()
    kd = LogitKDWithLabels(3, C, C, alpha=0.6, tau=2.0).double()
    objective.head.load_state_dict(kd.head.state_dict())
    ctx = context(logits)
    torch.testing.assert_close(objective.terms(ctx), kd.terms(ctx.of_teacher("b")))


# ---- the plan ----


def plan(*methods: Any, **budget: Any):
    """The plan of these methods with 8 epochs and these changes of the budget of `smoke`."""
    values = load_suite("smoke").budget.model_dump() | dict(epochs=8.0) | budget
    return plan_with_budget(*methods, budget=values)


def test_candidates_differ_in_batch_and_epochs_only_and_other_stages_keep_their_batch():
    stages = [s for s in plan("teacher_quality").stages.values() if s.kind == "pretrain"]
    budgets = [
        (s.spec["budget"]["batch"], s.spec["budget"]["epochs"])
        for s in stages
        if s.spec["method"]["name"] == "held_out_supervised"
    ]
    batch = load_suite("smoke").budget.batch
    assert sorted(budgets) == [(batch, 4), (batch, 8), (256, 4), (256, 8)]
    proxy_budgets = [
        (s.spec["budget"]["batch"], s.spec["budget"]["epochs"])
        for s in stages
        if s.spec["method"]["name"].startswith("kd_")
    ]
    assert proxy_budgets == [(batch, 2.0)] * 4
    assert len(stages) == 9  # four candidates, four proxies, the student


CANDIDATE = dict(student="resnet18_w48", method="held_out_supervised", epochs=3.0)
PROXY = dict(
    student="resnet18_w32",
    method=dict(base="held_out_kd", name="kd_a", label_policy="labels", teacher=CANDIDATE),
    epochs=2.0,
)


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        (dict(teachers=dict(_delete_=True, a=CANDIDATE, b=PROXY)), {}, "belongs to 'a' to"),
        (dict(teachers=dict(_delete_=True, a=CANDIDATE, b_proxy=PROXY)), {}, "belongs to 'a' to"),
        (dict(teachers=dict(_delete_=True, a=CANDIDATE, a_proxy=PROXY)), {}, "another candidate"),
        (dict(teachers=dict(short_small=CANDIDATE)), {}, "'short_small_proxy' .* not distilled"),
        (dict(teachers=dict(long_large=dict(batch=128))), {}, "'long_large_proxy' .* not distil"),
        (dict(objective=dict(held_out=0.2)), {}, "holds out 0.1"),
        (dict(teachers=dict(long_small=dict(method="supervised"))), {}, "is trained on all images"),
        (dict(teachers=dict(long_small=dict(batch=0))), {}, "batch"),
        ({}, dict(accumulate=3, batch=96), "`teacher.batch` = 256 .* multiple of 3"),
        ({}, dict(epochs=2.0), "but the budget has 2 epochs"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: Any, budget: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="teacher_quality", name="changed", **method), **budget)


def test_a_batch_larger_than_the_pool_is_refused_for_an_intermediate_teacher():
    from kdep_bench.suite.image_counts import check_counts

    teacher = dict(student="resnet18_w48", method="supervised", batch=1_000_000)
    method = dict(base="eskd_teacher", name="changed", teacher=teacher)
    with pytest.raises(KdepError, match="has a batch of 1000000, but only"):
        check_counts(suite_of(method))


def suite_of(method: Any):
    """A suite with one method on the data of `smoke`."""
    from kdep_bench.suite.config import build_suite

    return build_suite(
        dict(
            name="several",
            data="smoke",
            teacher="efficientnet_lite0",
            students=["resnet18_w32"],
            methods=[method],
            tasks=["smoke_probe"],
            budget=load_suite("smoke").budget.model_dump(),
            seeds=dict(pretrain=[0], transfer=[0]),
        )
    )
