"""CES-KD (curriculum experts): the loss against its formula in float64; what the plan refuses.

Samples are divided by difficulty into as many strata as there are teachers; each stratum learns
from one teacher. The pacing, a number from 0 to 1 that grows during training, decides how many
strata are trained on, easy ones first. The formula is in the docstring of `CurriculumExperts`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.ces_kd import (
    CurriculumExperts,
    CurriculumExpertsWithLabels,
    RecentQuantiles,
)
from kdep_bench.objectives.logit_kd import LogitKD, LogitKDWithLabels
from kdep_bench.teachers.base import TeacherOutput
from tests.suite.test_suite_methods import plan

C, B = 5, 12  # classes, samples per batch


def classes_of(*roles: str) -> dict[str, dict[str, int]]:
    """The argument `teachers` for teachers with these roles: all have C classes."""
    return {role: {"teacher_classes": C} for role in roles}


def context(step: int = 0, roles: str = "abc", **values: Any) -> Context:
    """Random float64 features and logits of a batch, in step `step` of 100."""
    generator = torch.Generator().manual_seed(0)
    after = torch.randn(B, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = {
        role: 2 * torch.randn(B, C, generator=generator, dtype=torch.float64) for role in roles
    }
    teachers = {role: TeacherOutput(z, z) for role, z in logits.items()}
    first = next(iter(teachers.values()))
    values = {"labels": torch.arange(B) % C, **values}
    return Context(after, after, teacher=first, teachers=teachers, step=step, steps=100, **values)


def log_softmax(z_BC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Log-probabilities [B, C] of logits at temperature tau."""
    return z_BC / tau - np.log(np.exp(z_BC / tau).sum(1, keepdims=True))


def as_array(x: Tensor | None) -> np.ndarray:
    """The tensor without gradient, as an array."""
    assert x is not None
    return x.detach().numpy()


def reference(
    objective: CurriculumExperts, ctx: Context, difficulty: np.ndarray, tau: float, n_strata: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The KL term by hand, if `ctx` is the first batch and the first `n_strata` strata are used.

    With 12 different difficulties and three strata, each stratum has four samples.

    Returns:
        [B] scale * tau^2 KL(teacher of the sample || student), [B] scale (0 for unused samples,
        B / number of used ones for the others), [B, C] log-probabilities of the student.
    """
    rank = difficulty.argsort().argsort()
    stratum = rank // (B // len(ctx.teachers))
    student = as_array(objective.head(ctx.post_activation))
    logits = [as_array(t.logits) for t in ctx.teachers.values()]
    chosen = np.stack([logits[k][b] for b, k in enumerate(stratum)])
    log_t, log_s = log_softmax(chosen, tau), log_softmax(student, tau)
    kl = tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(1)
    used = stratum < n_strata
    scale = used * B / used.sum()
    return scale * kl, scale, log_softmax(student)


@pytest.mark.parametrize(("step", "n_strata"), [(0, 1), (10, 1), (17, 2), (34, 3), (99, 3)])
def test_the_loss_equals_the_formula_in_float64(step: int, n_strata: int):
    """The default pacing is p = 2 step / 100, and max(1, ceil(3 p)) strata are used.

    So one stratum is used up to step 16, two up to step 33, and three later.
    """
    objective = CurriculumExperts(3, classes_of(*"abc"), tau=3.0, epochs=1.0).double()
    ctx = context(step)
    log_p = log_softmax(as_array(ctx.teachers["c"].logits))
    entropy = -(np.exp(log_p) * log_p).sum(1)  # of the last teacher: the difficulty
    expected, _, _ = reference(objective, ctx, entropy, 3.0, n_strata)
    terms = objective.terms(ctx)
    assert set(terms) == {"kl"}
    np.testing.assert_allclose(as_array(terms["kl"]), expected, rtol=1e-9)


def test_the_loss_with_labels_equals_the_formula_in_float64():
    objective = CurriculumExpertsWithLabels(
        3, classes_of(*"abc"), C, alpha=0.7, epochs=1.0
    ).double()
    ctx, at_label = context(20), (np.arange(B), np.arange(B) % C)
    difficulty = -log_softmax(as_array(ctx.teachers["c"].logits))[at_label]
    kl, scale, log_s = reference(objective, ctx, difficulty, 4.0, 2)  # default tau, two strata
    terms = objective.terms(ctx)
    np.testing.assert_allclose(as_array(terms["kl"]), 0.7 * kl, rtol=1e-9)
    hard = 0.3 * scale * -log_s[at_label]
    np.testing.assert_allclose(as_array(terms["cross_entropy"]), hard, rtol=1e-9)


def test_one_teacher_gives_logit_distillation():
    ctx = context(roles="a")
    kd = LogitKDWithLabels(3, C, C, alpha=0.6, tau=2.0).double()
    objective = CurriculumExpertsWithLabels(
        3, classes_of("a"), C, alpha=0.6, tau=2.0, epochs=1.0
    ).double()
    objective.head.load_state_dict(kd.head.state_dict())
    torch.testing.assert_close(objective.terms(ctx), kd.terms(ctx))
    label_free = CurriculumExperts(3, classes_of("a"), tau=2.0, epochs=1.0).double()
    label_free.head.load_state_dict(kd.head.state_dict())
    expected = LogitKD.kl(kd, ctx, kd.head(ctx.post_activation))
    torch.testing.assert_close(label_free.terms(ctx)["kl"], expected)


def test_each_sample_has_one_teacher_and_harder_samples_have_a_later_teacher():
    objective, ctx = CurriculumExperts(3, classes_of(*"abc"), pacing=1.0).double(), context()
    for teacher in ctx.teachers.values():
        assert teacher.logits is not None
        teacher.logits.requires_grad_()
    difficulty = objective.difficulty(ctx).detach()
    objective.terms(ctx)["kl"].sum().backward()
    # [teacher, sample]: whether the loss of a sample depends on a teacher's logits.
    is_used = torch.stack([t.logits.grad.abs().sum(1) > 0 for t in ctx.teachers.values()])  # type: ignore[union-attr]
    assert is_used.sum(0).tolist() == [1] * B
    teacher_by_difficulty = is_used.int().argmax(0)[difficulty.argsort()]
    assert teacher_by_difficulty.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_samples_of_unused_strata_have_no_gradient():
    objective, ctx = CurriculumExperts(3, classes_of(*"abc"), pacing=0.0).double(), context()
    hard = objective.strata(objective.difficulty(ctx)) > 0
    objective.terms(ctx)["kl"].mean().backward()
    assert ctx.post_activation.grad is not None
    assert not ctx.post_activation.grad[hard].any()
    assert bool(ctx.post_activation.grad[~hard].any())


def test_a_pacing_of_two_thirds_uses_two_of_three_strata():
    objective = CurriculumExperts(3, classes_of(*"abc"), pacing=2 / 3)
    one_sample_per_stratum = torch.tensor([0, 1, 2])
    is_used = objective.scale(context(), one_sample_per_stratum) > 0
    assert is_used.tolist() == [True, True, False]


def test_a_batch_without_easy_samples_has_the_loss_0_and_no_nan():
    objective = CurriculumExperts(3, classes_of(*"abc"), pacing=0.0)
    all_hard = torch.full((B,), 2)
    assert objective.scale(context(), all_hard).tolist() == [0.0] * B


def test_strata_are_computed_from_recent_values_not_only_from_the_batch():
    strata = RecentQuantiles(2, memory=8)
    assert strata(torch.arange(8.0)).tolist() == [0] * 4 + [1] * 4
    # Quantiles of this batch alone would put 6 into the easier stratum.
    assert strata(torch.tensor([7.0, 6.0])).tolist() == [1, 1]
    strata.eval()
    stored = strata.recent.clone()
    strata(torch.full((8,), 100.0))
    torch.testing.assert_close(strata.recent, stored)  # evaluation stores nothing
    strata.train()
    strata(torch.full((8,), 100.0))  # replaces all eight stored values
    assert strata(torch.tensor([7.0])).tolist() == [0]


def test_memory_is_the_number_of_recent_values_that_are_stored():
    short, long = RecentQuantiles(2, 4), RecentQuantiles(2, 100)
    for strata in (short, long):
        strata(torch.arange(4.0))
        strata(torch.arange(100.0, 104.0))
    # The four newest values are 98, 99, 100 and 101, with the median 99.5.
    assert short(torch.tensor([98.0, 99.0])).tolist() == [0, 0]
    # All ten values are 0 to 3 and 98 to 103, with the median 98.5.
    assert long(torch.tensor([98.0, 99.0])).tolist() == [0, 1]


def test_difficulty_is_the_entropy_or_with_labels_the_cross_entropy_of_the_last_teacher():
    ctx = context(roles="ab")
    uniform_and_one_hot = torch.tensor([[0.0] * C, [1e4, 0, 0, 0, 0]], dtype=torch.float64)
    for teacher in ctx.teachers.values():
        teacher.__dict__["logits"] = uniform_and_one_hot  # the dataclass is frozen
    difficulty = CurriculumExperts(3, classes_of(*"ab"), epochs=1.0).difficulty(ctx)
    assert difficulty.tolist() == pytest.approx([math.log(C), 0.0])
    # With labels, it is the cross-entropy of the last teacher.
    with_labels = CurriculumExpertsWithLabels(3, classes_of(*"ab"), C, epochs=1.0)
    difficulty = with_labels.difficulty(context(roles="ab"))
    logits = context(roles="ab").teachers["b"].logits
    assert logits is not None
    expected = F.cross_entropy(logits, torch.arange(B) % C, reduction="none")
    torch.testing.assert_close(difficulty, expected)


def test_the_assistant_of_takd_is_trained_once_for_both_methods():
    kinds = [s.kind for s in plan("ces_kd").stages.values()]
    assert kinds.count("pretrain") == 2  # assistant and student
    assert kinds.count("cache") == 2
    kinds_of_both = [s.kind for s in plan("ces_kd", "takd").stages.values()]
    assert kinds_of_both.count("pretrain") == 3
    assert kinds_of_both.count("cache") == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(teachers=dict(_delete_=True, large="suite")), "reads several teachers"),
        (dict(teachers=dict(_delete_=True, a="suite", b="efficientnet_lite0")), "the same network"),
        (dict(teachers=dict(_delete_=True, a="suite", b="dinov2_vitb14")), "needs logits"),
        (dict(teachers=dict(assistant=dict(method="scratch"))), "is not trained"),
        (dict(objective=dict(pacing=1.5)), "pacing = 1.5"),
        (dict(objective=dict(memory=0)), "memory = 0"),
        (dict(objective=dict(tau=0.0)), "tau = 0"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="ces_kd", name="changed", **method))


def test_a_split_batch_and_labels_of_other_classes_are_refused():
    from kdep_bench.suite.config import load_suite

    budget = load_suite("smoke").budget.model_dump()
    with pytest.raises(KdepError, match="compares the samples of a batch"):
        plan("ces_kd", budget=budget | dict(accumulate=2))
    with pytest.raises(KdepError, match="the labels have 3 classes and the teachers 5"):
        CurriculumExpertsWithLabels(3, classes_of(*"ab"), 3)
