"""CES-KD: the loss against its formula in float64, and what the plan refuses.

Samples are divided by difficulty into as many strata as there are teachers; each stratum learns
from one teacher. The pacing decides how many strata are trained on, easy ones first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

C, B = 5, 12


def classes_of(*roles: str) -> dict[str, dict[str, int]]:
    return {role: {"teacher_classes": C} for role in roles}


def context(step: int = 0, roles: str = "abc", **values: Any) -> Context:
    """Random float64 features and logits of a batch, step `step` of 100."""
    g = torch.Generator().manual_seed(0)
    after = torch.randn(B, 3, generator=g, dtype=torch.float64, requires_grad=True)
    logits = {r: 2 * torch.randn(B, C, generator=g, dtype=torch.float64) for r in roles}
    teachers = {r: TeacherOutput(z, z) for r, z in logits.items()}
    first = next(iter(teachers.values()))
    values = {"labels": torch.arange(B) % C, **values}
    return Context(after, after, teacher=first, teachers=teachers, step=step, steps=100, **values)


def log_softmax(z_BC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    return z_BC / tau - np.log(np.exp(z_BC / tau).sum(1, keepdims=True))


def as_array(x: Tensor | None) -> np.ndarray:
    assert x is not None
    return x.detach().numpy()


def reference(
    objective: CurriculumExperts, ctx: Context, difficulty: np.ndarray, tau: float, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled KL, scale and log-probabilities of the student for a first batch.

    The first `number` strata are used. With 12 distinct difficulties and three strata, each stratum
    has four samples.
    """
    rank = difficulty.argsort().argsort()
    stratum = rank // (B // len(ctx.teachers))
    student = as_array(objective.head(ctx.after))
    logits = [as_array(t.logits) for t in ctx.teachers.values()]
    chosen = np.stack([logits[k][b] for b, k in enumerate(stratum)])
    log_t, log_s = log_softmax(chosen, tau), log_softmax(student, tau)
    kl = tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(1)
    used = stratum < number
    scale = used * B / used.sum()
    return scale * kl, scale, log_softmax(student)


@pytest.mark.parametrize(("step", "number"), [(0, 1), (10, 1), (17, 2), (34, 3), (99, 3)])
def test_the_loss_equals_the_formula_in_float64(step: int, number: int):
    """The default pacing is 2 step / 100: one stratum up to step 16, two up to 33."""
    objective, ctx = (
        CurriculumExperts(3, classes_of(*"abc"), tau=3.0, epochs=1.0).double(),
        context(step),
    )
    log_p = log_softmax(as_array(ctx.teachers["c"].logits))
    expected, _, _ = reference(objective, ctx, -(np.exp(log_p) * log_p).sum(1), 3.0, number)
    terms = objective.terms(ctx)
    assert set(terms) == {"kl"}
    np.testing.assert_allclose(as_array(terms["kl"]), expected, rtol=1e-9)


def test_the_loss_with_labels_equals_the_formula_in_float64():
    objective = CurriculumExpertsWithLabels(
        3, classes_of(*"abc"), C, alpha=0.7, epochs=1.0
    ).double()
    ctx, at_label = context(20), (np.arange(B), np.arange(B) % C)
    difficulty = -log_softmax(as_array(ctx.teachers["c"].logits))[at_label]
    kl, scale, log_s = reference(objective, ctx, difficulty, 4.0, 2)
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
    expected = LogitKD.kl(kd, ctx, kd.head(ctx.after))
    torch.testing.assert_close(label_free.terms(ctx)["kl"], expected)


def test_each_sample_has_one_teacher_and_harder_samples_have_a_later_teacher():
    objective, ctx = CurriculumExperts(3, classes_of(*"abc"), pacing=1.0).double(), context()
    for teacher in ctx.teachers.values():
        assert teacher.logits is not None
        teacher.logits.requires_grad_()
    difficulty = objective.difficulty(ctx).detach()
    objective.terms(ctx)["kl"].sum().backward()
    is_used = torch.stack([t.logits.grad.abs().sum(1) > 0 for t in ctx.teachers.values()])  # type: ignore[union-attr]
    assert is_used.sum(0).tolist() == [1] * B
    chosen = is_used.int().argmax(0)[difficulty.argsort()]
    assert chosen.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_samples_of_unused_strata_have_no_gradient():
    objective, ctx = CurriculumExperts(3, classes_of(*"abc"), pacing=0.0).double(), context()
    hard = objective.strata(objective.difficulty(ctx)) > 0
    objective.terms(ctx)["kl"].mean().backward()
    assert ctx.after.grad is not None
    assert not ctx.after.grad[hard].any()
    assert bool(ctx.after.grad[~hard].any())


def test_a_pacing_of_two_thirds_uses_two_of_three_strata():
    objective = CurriculumExperts(3, classes_of(*"abc"), pacing=2 / 3)
    assert (objective.scale(context(), torch.tensor([0, 1, 2])) > 0).tolist() == [True, True, False]


def test_a_batch_without_easy_samples_has_the_loss_0_and_no_nan():
    objective = CurriculumExperts(3, classes_of(*"abc"), pacing=0.0)
    assert objective.scale(context(), torch.full((B,), 2)).tolist() == [0.0] * B


def test_strata_are_computed_from_recent_values_not_only_from_the_batch():
    strata = RecentQuantiles(2, memory=8)
    assert strata(torch.arange(8.0)).tolist() == [0] * 4 + [1] * 4
    # Quantiles of this batch alone would put 6 into the easier stratum.
    assert strata(torch.tensor([7.0, 6.0])).tolist() == [1, 1]
    strata.eval()
    before = strata.recent.clone()
    strata(torch.full((8,), 100.0))
    torch.testing.assert_close(strata.recent, before)
    strata.train()
    strata(torch.full((8,), 100.0))  # forgets the values before
    assert strata(torch.tensor([7.0])).tolist() == [0]


def test_memory_is_the_number_of_recent_values_that_are_stored():
    short, long = RecentQuantiles(2, 4), RecentQuantiles(2, 100)
    for strata in (short, long):
        strata(torch.arange(4.0))
        strata(torch.arange(100.0, 104.0))
    assert short(torch.tensor([98.0, 99.0])).tolist() == [0, 0]  # of 98, 99, 100, 101
    assert long(torch.tensor([98.0, 99.0])).tolist() == [0, 1]  # of all ten


def test_difficulty_is_the_entropy_of_the_last_teacher():
    ctx = context(roles="ab")
    z = torch.tensor([[0.0] * C, [1e4, 0, 0, 0, 0]], dtype=torch.float64)
    for teacher in ctx.teachers.values():
        teacher.__dict__["logits"] = z
    difficulty = CurriculumExperts(3, classes_of(*"ab"), epochs=1.0).difficulty(ctx)
    assert difficulty.tolist() == pytest.approx([math.log(C), 0.0])
    labels = CurriculumExpertsWithLabels(3, classes_of(*"ab"), C, epochs=1.0)
    hard = labels.difficulty(context(roles="ab"))
    logits = context(roles="ab").teachers["b"].logits
    assert logits is not None
    torch.testing.assert_close(hard, F.cross_entropy(logits, torch.arange(B) % C, reduction="none"))


def test_the_assistant_of_takd_is_trained_once_for_both_methods():
    kinds = [s.kind for s in plan("ces_kd").stages.values()]
    assert kinds.count("pretrain") == 2
    assert kinds.count("cache") == 2
    both = [s.kind for s in plan("ces_kd", "takd").stages.values()]
    assert both.count("pretrain") == 3
    assert both.count("cache") == 2


LITE2: Mapping[str, str] = dict(small="suite", large="efficientnet_lite2")


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
