"""HSSAKD: its formula in float64, what each loss trains, and the cost of its four rotations.

Every image is in the batch four times, rotated by 0, 90, 180 and 270 degrees. Classifiers on the
feature maps predict the pair of class and rotation (the joint label). The formula is in the
docstring of `Hssakd`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.augments.base import Batch, Draw
from kdep_bench.augments.rotations import Rotations
from kdep_bench.errors import KdepError
from kdep_bench.objectives.auxiliary import AuxiliaryModules
from kdep_bench.objectives.base import Context, demands
from kdep_bench.objectives.hssakd import Hssakd, branch, joint_labels
from kdep_bench.pretrain.diagnostics import extra_cost
from kdep_bench.pretrain.teaching import TeacherSource
from kdep_bench.suite.config import load_suite, resolve
from kdep_bench.teachers.base import TeacherOutput
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, TinyRun
from tests.suite.test_suite_methods import plan

CLASSES, IMAGES = 3, 2
STUDENT = {"s4": {"channels": 4, "stride": 4}, "s8": {"channels": 5, "stride": 8}}
TEACHER = {"s4": {"channels": 2, "stride": 4}, "s8": {"channels": 3, "stride": 8}}


def build(**arguments: Any) -> tuple[Hssakd, Context]:
    """The objective and random features of two images in four rotations, in float64."""
    torch.manual_seed(0)
    objective = Hssakd(
        {"s8": "s8", "s4": "s4"}, 6, CLASSES, 7, STUDENT, TEACHER, **arguments
    ).double()
    count = 4 * IMAGES
    after = torch.randn(count, 6, dtype=torch.float64, requires_grad=True)

    def maps(levels: dict[str, dict[str, int]]) -> dict[str, Tensor]:
        """Random maps of an image with 32 pixels."""
        return {
            name: torch.randn(count, m["channels"], 32 // m["stride"], 32 // m["stride"]).double()
            for name, m in levels.items()
        }

    teacher = TeacherOutput(torch.randn(count, 7).double(), None, maps(TEACHER))
    return objective, Context(
        after,
        after,
        labels=torch.tensor([2, 0]).repeat_interleave(4),
        teacher=teacher,
        maps=maps(STUDENT),
        extra={"rotation": torch.arange(4).repeat(IMAGES)},
    )


def log_softmax(z_BC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Log-probabilities [B, C] of logits at temperature tau."""
    return z_BC / tau - np.log(np.exp(z_BC / tau).sum(1, keepdims=True))


def kl(t_BC: Tensor, s_BC: Tensor, tau: float) -> np.ndarray:
    """[B]: tau^2 KL(t || s) of logits at temperature tau."""
    log_t, log_s = (log_softmax(z.detach().numpy(), tau) for z in (t_BC, s_BC))
    return tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(1)


def test_every_term_equals_the_formula_in_float64():
    tau = 2.5
    objective, ctx = build(tau=tau, cross_entropy=0.5, main=0.7, joint=0.9)
    assert ctx.teacher is not None
    terms = {k: v.detach().numpy() for k, v in objective.terms(ctx).items()}
    teacher = objective.teacher.eval()
    student = objective.head(ctx.post_activation)
    log_p = log_softmax(student.detach().numpy())
    # The batch holds images a and b as a0 a90 a180 a270 b0 ...; only a0 and b0 are unrotated.
    # Their labels are 2 and 0.
    cross_entropy = 0.5 * np.mean([-log_p[0, 2], -log_p[4, 0]])
    assert terms["cross_entropy"].mean() == pytest.approx(cross_entropy)
    main = kl(teacher.main(ctx.teacher.pooled), student, tau)
    np.testing.assert_allclose(terms["main"], 0.7 * main, rtol=1e-9)
    for level in ("s4", "s8"):
        teacher_logits = teacher.joint[level](ctx.teacher.maps[level])
        assert teacher_logits.shape == (4 * IMAGES, 4 * CLASSES)
        expected = 0.9 * kl(teacher_logits, objective.joint[level](ctx.maps[level]), tau)
        np.testing.assert_allclose(terms[f"joint_{level}"], expected, rtol=1e-9, err_msg=level)
    assert set(terms) == {"cross_entropy", "main", "joint_s4", "joint_s8"}


def test_the_four_joint_labels_of_a_class_are_consecutive():
    labels, rotation = torch.arange(CLASSES).repeat_interleave(4), torch.arange(4).repeat(CLASSES)
    joint = F.one_hot(joint_labels(labels, rotation), 4 * CLASSES)
    assert joint.shape[1] == 4 * CLASSES
    assert len(joint.unique(dim=0)) == 4 * CLASSES  # every pair has a different joint label
    summed = joint.unflatten(1, (CLASSES, 4)).sum(2)
    assert torch.equal(summed, F.one_hot(labels, CLASSES))


def test_rotations_are_quarter_turns_and_the_first_is_the_unchanged_image():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 4, 4, generator=generator)
    teacher_images = torch.rand(3, 3, 6, 6, generator=generator)
    batch = Rotations().change(Batch(images, {"teacher": teacher_images}), Draw(0, 0, 3))
    # Rows 0, 4, 8 are unrotated, rows 1, 5, 9 are turned once, and so on.
    assert torch.equal(batch.images[0::4], images)
    assert torch.equal(batch.teacher_images["teacher"][0::4], teacher_images)
    assert batch.extra["rotation"].tolist() == [0, 1, 2, 3] * 3
    # A quarter turn anticlockwise brings the last column to the top.
    assert torch.equal(batch.images[1::4][:, :, 0], images[:, :, :, -1])
    assert torch.equal(batch.images[2::4], images.flip(2, 3))
    assert torch.equal(batch.images[3::4].rot90(1, (2, 3)), images)
    assert len(batch.images) == len(batch.teacher_images["teacher"]) == 3 * Rotations.copies


def test_a_branch_halves_the_map_once_per_later_level():
    """A branch is the classifier of one map; [2, 5, 7] are the channels of this and later maps."""
    sizes: list[tuple[int, ...]] = []  # [C, H, W] of the output of each convolution
    module = branch([2, 5, 7], 9)
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    assert module(torch.zeros(2, 2, 8, 8)).shape == (2, 9)
    assert sizes == [(5, 4, 4), (7, 2, 2)]
    assert branch([3], 4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)  # the last level


def test_the_teacher_s_classifiers_are_trained_with_labels_only():
    objective, ctx = build(optimizer={"type": "SGD", "lr": 0.5})
    auxiliary = AuxiliaryModules(objective.auxiliary_modules())
    objective.train()

    def teacher_loss() -> float:
        """Cross-entropies of the joint labels per level, and of the classes of unrotated images."""
        assert ctx.teacher is not None
        assert ctx.labels is not None
        main, joint = objective.teacher(ctx.teacher)
        unrotated = F.cross_entropy(main[0::4], ctx.labels[0::4])
        labels = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3])  # 4 * class + rotation
        return float(unrotated + sum(F.cross_entropy(z, labels) for z in joint.values()))

    before = teacher_loss()
    for _ in range(5):
        with auxiliary.training():
            objective.update_auxiliary(ctx, auxiliary)
    assert teacher_loss() < before - 0.1
    torch.stack([t.mean() for t in objective.terms(ctx).values()]).sum().backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert ctx.post_activation.grad is not None
    assert all(bool(p.grad.any()) for p in objective.joint.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in objective.joint.parameters())


def test_targets_are_computed_in_eval_mode_and_change_no_batch_norm_statistics():
    objective, ctx = build()
    objective.train()
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    targets = objective.targets(ctx)
    assert objective.teacher.training
    after = objective.teacher.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert ctx.teacher is not None
    torch.testing.assert_close(targets, objective.teacher.eval()(ctx.teacher))


def test_the_recorded_number_of_extra_passes_equals_the_passes_that_are_run(tmp_path: Any):
    run = TinyRun("hssakd", tmp_path)
    passes: dict[str, int] = {"student": 0, "teacher": 0}  # images
    live = run.model.first_teacher_reader.live
    assert live is not None

    def count(name: str) -> Any:
        """A hook that counts the images that a network gets."""

        def hook(_module: nn.Module, args: tuple[Tensor, ...], _out: Any) -> None:
            """Adds the images of one pass."""
            passes[name] += len(args[0])

        return hook

    run.model.backbone.register_forward_hook(count("student"))
    live.register_forward_hook(count("teacher"))
    run.terms(tiny.batch(BATCH, 0))
    required = demands(resolve("method", "hssakd")["objective"])
    cost = extra_cost({}, required, TeacherSource(model={"live": {}}), BATCH, Rotations.copies)
    # 3 passes of the student beyond the first, and 4 of the teacher.
    assert cost["extra_forwards"] == passes["student"] - BATCH + passes["teacher"] == 7 * BATCH
    assert extra_cost({}, required, TeacherSource(), BATCH)["extra_forwards"] == 0


def test_every_rotation_has_the_label_of_its_image(tmp_path: Any):
    run = TinyRun("hssakd", tmp_path)
    contexts: list[Context] = []  # those that the objective gets
    objective = run.model.objective
    terms = objective.terms  # type: ignore[union-attr]
    objective.terms = lambda ctx: contexts.append(ctx) or terms(ctx)  # type: ignore[union-attr]
    data = tiny.batch(BATCH, 0)
    run.terms(data)
    (ctx,) = contexts
    assert ctx.images is not None
    assert ctx.labels is not None
    assert ctx.rows is not None
    assert torch.equal(ctx.labels, data["labels"].repeat_interleave(4))
    assert torch.equal(ctx.rows, data["rows"].repeat_interleave(4))
    normalised = (data["images"].float() - run.model.mean) / run.model.std
    torch.testing.assert_close(ctx.images[0::4], normalised)
    torch.testing.assert_close(ctx.images[1::4], normalised.rot90(1, (2, 3)))


def test_the_plan_has_a_live_teacher_and_no_cache():
    stages = plan("hssakd").stages.values()
    (pretrain,) = (s for s in stages if s.kind == "pretrain")
    assert pretrain.spec["teacher"]["name"] == "efficientnet_lite0"
    assert not any(s.kind == "cache" for s in stages)


ROTATIONS = dict(type="kdep_bench.augments.rotations.Rotations")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(base="hssakd", teacher_source="cached"), "from a cache.*Rotations"),
        (dict(base="hssakd", augment=None), "reads rotation, which its `augment` does not add"),
        (dict(base="hssakd", labels_used=False), "labels_used=False"),
        (dict(base="hssakd", objective=dict(levels=dict(_delete_=True, s64="s32"))), "level"),
        (dict(base="hssakd", objective=dict(tau=0.0)), "tau = 0"),
        (dict(base="hssakd", objective=dict(joint=-1.0)), "joint = -1"),
        (dict(base="hssakd", objective=dict(optimizer=dict(type="SGD", lr=0.1, lrr=1))), "lrr"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(name="changed", **method))


def test_a_teacher_without_maps_and_a_split_batch_are_refused():
    with pytest.raises(KdepError, match="needs feature maps, but the teacher"):
        plan("hssakd", teacher=dict(base="efficientnet_lite0", card=dict(maps=False)))
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=2)
    with pytest.raises(KdepError, match="with a separate optimiser"):
        plan("hssakd", budget=budget)


def test_rotations_are_refused_where_views_of_an_image_must_be_consecutive():
    budget = load_suite("smoke").budget.model_dump() | dict(views=2)
    method = dict(base="view_gram", name="changed", augment=ROTATIONS, teacher_source="live")
    with pytest.raises(KdepError, match="compares the views of an image"):
        plan(method, budget=budget)
