"""Contrastive distillation: InfoNCE in float64, the queue, and images that are no negatives.

InfoNCE is the cross-entropy of recognising the teacher's feature of the same image (the positive)
among those of other images (the negatives) of the batch and of a queue of earlier batches. The
formula is in the docstring of `ContrastiveDistillation`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.ckd import ContrastiveDistillation
from kdep_bench.suite.config import load_suite
from kdep_bench.teachers.base import TeacherOutput
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, TinyRun
from tests.suite.test_suite_methods import plan

WIDTH, TEACHER_WIDTH, B = 5, 4, 3  # feature widths, samples per batch


def build(queue: int = 7, views: int = 1, **arguments: Any) -> ContrastiveDistillation:
    """The objective in float64, with a queue of `queue` features and fixed initial weights."""
    torch.manual_seed(0)
    return ContrastiveDistillation(WIDTH, TEACHER_WIDTH, views, queue, **arguments).double()


def context(step: int, rows: list[int] | None = None) -> Context:
    """Random features of the batch of a step; `rows`: its samples' numbers, image * views + view.

    By default each step has new images.
    """
    generator = torch.Generator().manual_seed(step)
    count = len(rows or range(B))
    before = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    pooled = torch.randn(count, TEACHER_WIDTH, generator=generator, dtype=torch.float64)
    numbers = torch.tensor(rows) if rows else torch.arange(B) + step * B
    return Context(before, before, teacher=TeacherOutput(pooled, None), rows=numbers)


def unit(vector: list[float]) -> list[float]:
    """The vector divided by its length."""
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def teacher_features(ctx: Context) -> list[list[float]]:
    """[B][TEACHER_WIDTH]: the teacher's features with length 1."""
    assert ctx.teacher is not None
    return [unit(f) for f in ctx.teacher.pooled.tolist()]


def info_nce(objective: ContrastiveDistillation, ctx: Context, negatives: list[Any], tau: float):
    """Loss of each sample, number by number from the formula.

    Args:
        objective: gives the weights of the projector.
        ctx: the batch.
        negatives: for each sample the list of its negatives, teacher features with length 1.
        tau: temperature.
    """
    weight, bias = objective.projector.weight.tolist(), objective.projector.bias.tolist()
    features, losses = zip(ctx.pre_activation.tolist(), teacher_features(ctx), strict=True), []
    for k, (feature, positive) in enumerate(features):
        projected = [sum(a * b for a, b in zip(row, feature, strict=True)) for row in weight]
        student = unit([p + b for p, b in zip(projected, bias, strict=True)])
        exponentials = [
            math.exp(sum(a * b for a, b in zip(student, teacher, strict=True)) / tau)
            for teacher in [positive, *negatives[k]]
        ]
        losses.append(-math.log(exponentials[0] / sum(exponentials)))
    return losses


def without(features: list[Any], k: int) -> list[Any]:
    """The list without its k-th element."""
    return features[:k] + features[k + 1 :]


def test_the_loss_equals_info_nce_with_a_first_in_first_out_queue_in_float64():
    objective, queue = build(tau=0.3, weight=1.7), []
    for step in range(5):
        ctx = context(step)
        loss = objective.terms(ctx)["contrast"]
        batch = teacher_features(ctx)
        negatives = [without(batch, k) + queue for k in range(B)]
        expected = [1.7 * v for v in info_nce(objective, ctx, negatives, 0.3)]
        assert loss.tolist() == pytest.approx(expected, rel=1e-6), step
        # Newest first. 7 is no multiple of B, so part of a batch is dropped.
        queue = [*batch, *queue][:7]
        n_filled = min(7, B * (step + 1))
        torch.testing.assert_close(objective.queue[:n_filled], torch.tensor(queue).double())
        assert not objective.queue.requires_grad


def test_without_a_queue_the_loss_is_the_cross_entropy_over_the_batch():
    objective, ctx = build(queue=0, tau=0.2), context(0)
    objective.terms(context(9))  # an earlier batch, of which nothing is kept
    assert ctx.teacher is not None
    student, teacher = (
        F.normalize(objective.projector(ctx.pre_activation)),
        F.normalize(ctx.teacher.pooled),
    )
    scores = student @ teacher.T / 0.2
    expected = F.cross_entropy(scores, torch.arange(B), reduction="none")
    torch.testing.assert_close(objective.terms(ctx)["contrast"], expected)


def test_a_longer_queue_raises_the_loss_and_evaluation_does_not_fill_it():
    losses = []
    for queue in (0, 2, 6):
        objective = build(queue)
        objective.terms(context(0))
        losses.append(objective.terms(context(1))["contrast"])
    # More negatives, larger loss.
    assert bool((losses[0] < losses[1]).all())
    assert bool((losses[1] < losses[2]).all())
    objective = build(6).eval()
    objective.terms(context(0))
    assert not bool(objective.queue.any())


def test_other_views_and_repetitions_of_an_image_are_no_negatives():
    """Rows 4 and 5 are views of image 2: without the rule, the loss could not fall below log 2."""
    objective, first = build(views=2), context(0, [4, 0])  # rows of images 2 and 0
    objective.terms(first)
    ctx = context(1, [4, 5, 8])  # images 2, 2 and 4
    queued, batch = teacher_features(first), teacher_features(ctx)
    # For image 4, the features of image 2 in the batch replace the older one in the queue.
    negatives = [[batch[2], queued[1]], [batch[2], queued[1]], [batch[0], batch[1], queued[1]]]
    expected = info_nce(objective, ctx, negatives, 0.3679)  # 1 / e, the default temperature
    assert objective.terms(ctx)["contrast"].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_student_the_projector_and_the_temperature_get_a_gradient():
    objective = build()
    objective.terms(context(0))
    ctx = context(1)
    assert ctx.teacher is not None
    ctx.teacher.pooled.requires_grad_()
    ctx.pre_activation.requires_grad_()
    objective.terms(ctx)["contrast"].mean().backward()
    assert ctx.teacher.pooled.grad is None
    assert ctx.pre_activation.grad is not None
    assert bool(ctx.pre_activation.grad.any())
    assert all(p.grad is not None and bool(p.grad.any()) for p in objective.parameters())
    assert {n for n, _ in objective.named_parameters()} == {
        "log_scale",
        "projector.weight",
        "projector.bias",
    }
    assert "log_scale" not in dict(build(learn_tau=False).named_parameters())


def test_the_learned_temperature_stays_at_or_above_a_hundredth():
    objective = build()
    with torch.no_grad():
        objective.log_scale.fill_(7.0)  # log(1 / tau): tau would be 0.001
        objective.after_step()
    assert float(objective.log_scale.detach().exp()) == pytest.approx(100)


def test_a_resumed_run_has_the_queue_of_an_uninterrupted_one():
    objective = build()
    for step in range(2):
        objective.terms(context(step))
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(objective.state_dict()))
    for step in (2, 3):
        losses = [o.terms(context(step))["contrast"] for o in (objective, resumed)]
        assert torch.equal(*losses)
    assert torch.equal(objective.queue_images, resumed.queue_images)


def test_the_bound_on_mutual_information_rises_in_training(tmp_path: Path):
    """log(n + 1) - loss for n negatives; a loss is positive, so it stays below log(n + 1)."""
    run = TinyRun("ckd", tmp_path)

    def step(k: int, images: dict[str, Tensor]) -> Tensor:
        """Loss of step k on these images, with row numbers that no other step has."""
        run.model.step = k
        return run.terms({**images, "rows": images["rows"] + k * BATCH})["loss_contrast"]

    def bound(k: int) -> float:
        """The bound on images that are not trained on; k numbers the step."""
        run.model.eval()
        with torch.no_grad():
            loss = float(step(k, tiny.batch(BATCH, 900)))
        run.model.train()
        objective: Any = run.model.objective
        return math.log(BATCH - 1 + int((objective.queue_images >= 0).sum())) - loss

    step(0, tiny.batch(BATCH, 0))
    before = bound(500)
    for k in range(40):
        loss = step(1 + k, tiny.batch(BATCH, k))
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    # In the batch: all samples except the two views of the image; in the queue: 41 batches.
    negatives = BATCH - 2 + 41 * BATCH
    assert before + 0.5 < bound(500) < math.log(negatives + 1)


def test_a_batch_without_negatives_is_refused():
    with pytest.raises(KdepError, match=r"no negatives.*always be 0"):
        build(queue=0).terms(context(0, [1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(objective=dict(queue=-1)), "queue = -1"),
        (dict(objective=dict(tau=0.0)), "tau = 0"),
        (dict(objective=dict(temperature=0.1)), "unknown key 'temperature'"),
        (dict(augment=dict(type="kdep_bench.augments.crop.RandomCrop")), "from a cache"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_plan(changes: dict[str, Any], message: str):
    assert plan("ckd").runs
    with pytest.raises(KdepError, match=message):
        plan(dict(base="ckd", name="changed", **changes))


def test_a_batch_that_is_split_is_refused_by_the_plan():
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=2)
    with pytest.raises(KdepError, match="compares the samples of a batch"):
        plan("ckd", budget=budget)
