"""TST (teach what you should): operations and rates, losses in float64, training, cost, plans.

The student also learns from augmented images. In phases of the training, the augmentation learns to
make images that the teacher classifies as before and the student does not: its parameters are a
strength per operation (how much it changes an image) and a rate (how often it is applied). The
formulas are in the docstrings of `TeachWhatYouShould` and `LearnedAugment`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.networks.learned_augment import (
    LEARNED,
    NAMES,
    AugmentDraw,
    LearnedAugment,
    cutout,
)
from kdep_bench.objectives.base import Context, StudentOutput, demands
from kdep_bench.objectives.tst import TeachWhatYouShould
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.base import Teacher, TeacherOutput
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, STEPS, TinyRun
from tests.suite.test_suite_methods import plan

CLASSES, WIDTH = 4, 5  # of the teacher's logits, of the student's feature
PX, TEACHER_PX = 8, 12  # sides of the images in pixels


class LinearTeacher(Teacher):
    """A teacher that is linear in its pixels, with another normalisation than the student's."""

    has_logits, tap, width, input_px = True, "pixels", CLASSES, TEACHER_PX

    def __init__(self, name: str) -> None:
        super().__init__((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
        self.name = name
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3 * TEACHER_PX**2, CLASSES, generator=generator).double() / 5

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """The logits, also as pooled feature."""
        logits = x_B3HW.flatten(1).double() @ self.weight
        return TeacherOutput(logits, logits)


class Student(nn.Module):
    """A linear layer and BatchNorm, as a student that is called through `Context.student`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3 * PX * PX, WIDTH), nn.BatchNorm1d(WIDTH)

    def run(self, x: Tensor) -> StudentOutput:
        """Features [B, WIDTH] of normalised images."""
        out = self.norm(self.linear(x.flatten(1)))
        return StudentOutput(out, out)


def build(batch: int = 3, **arguments: Any) -> tuple[TeachWhatYouShould, Student, Context]:
    """The objective, its student, and a random batch in step 5 of 40; all in float64."""
    torch.manual_seed(0)
    teacher = dict(type=f"{__name__}.LinearTeacher", name="linear")
    objective, student = TeachWhatYouShould(WIDTH, CLASSES, teacher, **arguments), Student()
    objective.double()
    student.double()
    objective.attach(student, lambda: nn.Identity())
    images, teacher_images = (torch.randn(batch, 3, px, px).double() for px in (PX, TEACHER_PX))
    logits = torch.randn(batch, CLASSES).double()
    output = TeacherOutput(logits, logits, images=teacher_images)
    before = student.run(images).pre_activation
    ctx = Context(
        before, before, teacher=output, images=images, student=student.run, step=5, steps=40
    )
    return objective, student, ctx


def draw(*names: str, uniform: float = 0.999999) -> AugmentDraw:
    """The draw in which these operations are applied.

    `uniform` is the random number that decides with the rate whether an operation is applied: with
    the default and the initial rates it is, with a weight of 1.
    """
    chosen = [NAMES.index(name) for name in names]
    count = len(NAMES)
    return AugmentDraw(chosen, [uniform] * count, (0.0, 0.0), [1.0] * count)


# ---- operations ----


@pytest.mark.parametrize("name", LEARNED)
def test_a_change_of_zero_leaves_the_image_unchanged_and_others_change_it(name: str):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double() * 0.9
    no_change, strength = torch.tensor(0.0).double(), torch.tensor(0.6).double()
    # Solarize inverts values above a threshold, which is soft so that it has a gradient.
    tolerance = 5e-3 if name == "solarize" else 1e-6
    torch.testing.assert_close(LEARNED[name](x, no_change), x, rtol=0, atol=tolerance)
    changed, opposite = LEARNED[name](x, strength), LEARNED[name](x, -strength)
    assert (changed - x).abs().max() > 0.01
    assert torch.equal(changed, opposite) == (name == "solarize")  # it has no direction


def test_operations_have_known_values():
    """The largest changes: factors 1 +- 0.9, a shift by 0.45 of the side."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    full = torch.tensor(1.0)
    torch.testing.assert_close(LEARNED["brightness"](x, full), 1.9 * x)
    torch.testing.assert_close(LEARNED["brightness"](x, -full), 0.1 * x)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(LEARNED["color"](x, -full), grey + 0.1 * (x - grey))
    torch.testing.assert_close(LEARNED["contrast"](x, full), grey.mean() + 1.9 * (x - grey.mean()))
    dark, bright = torch.full_like(x, 0.2), torch.full_like(x, 0.9)
    torch.testing.assert_close(LEARNED["solarize"](bright, full / 2), 1 - bright, atol=5e-3, rtol=0)
    torch.testing.assert_close(LEARNED["solarize"](dark, full / 2), dark, atol=5e-3, rtol=0)
    # A strength of 0.5 / 0.45 moves the image by half of its width, 4 of 8 columns.
    moved = LEARNED["translate_x"](x, full * 0.5 / 0.45)
    torch.testing.assert_close(moved[..., :4], x[..., 4:], atol=1e-5, rtol=0)
    assert moved[..., 4:].abs().max() < 1e-5  # black
    # The corner (0.5, 0) of a square of 4 x 4 pixels is at row 0.5 * (8 - 4) = 2.
    cut = cutout(x, (0.5, 0.0))
    assert cut[..., 2:6, :4].abs().max() == 0
    assert torch.equal(cut[..., 6:, :], x[..., 6:, :])


def test_initial_strengths_are_half_of_the_largest_changes():
    changed = LearnedAugment()(torch.full((1, 3, 4, 4), 0.4), draw("brightness"))
    torch.testing.assert_close(changed, torch.full_like(changed, 0.4 * (1 + 0.9 / 2)))


def test_changes_of_the_chosen_operations_are_added_and_are_0_at_a_rate_of_0():
    augment = LearnedAugment()
    x = torch.rand(2, 3, 8, 8)
    changed = augment(x, draw("invert", "cutout"))
    change_of_invert, change_of_cutout = (1 - x) - x, cutout(x, (0.0, 0.0)) - x
    torch.testing.assert_close(changed, x + change_of_invert + change_of_cutout)
    with torch.no_grad():
        augment.rate.fill_(-60.0)  # the rate is sigmoid(-60), about 0
    for seed in range(20):
        drawn = augment.draw(np.random.default_rng(seed))
        torch.testing.assert_close(augment(x, drawn), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [-3.0, -1.0, 0.0, 2.0])
def test_an_operation_is_applied_with_the_probability_sigmoid_of_its_rate(rate: float):
    """In the published code it is sigmoid(sigmoid(rate)), which is between 0.5 and 0.73."""
    n_draws = 1500
    augment = LearnedAugment(active=len(NAMES))
    with torch.no_grad():
        augment.rate.fill_(-60.0)[NAMES.index("invert")] = rate
    black, applied = torch.zeros(1, 3, 4, 4), []
    for seed in range(n_draws):
        drawn = augment.draw(np.random.default_rng(seed))
        applied.append(augment(black, drawn)[0, 0, 0, 0].item() > 0.5)  # inverted: white
    expected = 1 / (1 + np.exp(-rate))
    tolerance = 4 * (expected * 0.25 / n_draws) ** 0.5 + 0.01
    assert np.mean(applied) == pytest.approx(expected, abs=tolerance)


def test_draws_depend_on_seed_and_step_only():
    objective, _, ctx = build()

    def numbers(step: int, number: int = 0) -> list[float]:
        """All random numbers of the draw with this number in a step."""
        drawn = objective.draw(Context(ctx.pre_activation, ctx.post_activation, step=step), number)
        return [*drawn.chosen, *drawn.uniform, *drawn.corner, *drawn.signs]

    first = numbers(3)
    torch.rand(7)  # the state of the global generator does not matter
    assert numbers(3) == first
    assert numbers(3) != numbers(4)
    assert numbers(3, 0) != numbers(3, 1)
    assert len(set(numbers(3)[:4])) == 4  # four different operations
    assert len(LearnedAugment(active=7).draw(np.random.default_rng(0)).chosen) == 7
    torch.manual_seed(1)  # the seed of another run
    assert numbers(3) != first


# ---- losses ----


def log_softmax(z_BC: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """Log-probabilities [B, C] of logits at temperature tau, without overflow."""
    shifted = z_BC / tau - (z_BC / tau).max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def reference_logits(
    objective: TeachWhatYouShould, student: Student, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, CLASSES] of teacher and student for images with inverted colours.

    Computed from the definitions of both normalisations.
    """
    assert ctx.teacher is not None
    assert ctx.teacher.images is not None
    assert ctx.images is not None
    mean, std = (np.asarray(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    inverted = 255 - (ctx.teacher.images.numpy() * std + mean)
    teacher = objective._teacher[0]
    assert isinstance(teacher, LinearTeacher)
    x = (inverted - teacher.mean.numpy()) / teacher.std.numpy()
    teacher_logits = x.reshape(len(x), -1) @ teacher.weight.numpy()
    inverted = (255 - (ctx.images.numpy() * std + mean) - mean) / std
    after = student.run(torch.from_numpy(inverted)).post_activation
    return teacher_logits, objective.head(after).detach().numpy()


def test_the_losses_of_augmentation_and_student_equal_their_formulas_in_float64():
    """All images are inverted."""
    objective, student, ctx = build(tau=2.5)
    student.eval()
    inverted = draw("invert")
    teacher_logits, student_logits = reference_logits(objective, student, ctx)
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    y = ctx.teacher.logits.numpy().argmax(1)  # the teacher's class of the image as it is
    rows = np.arange(len(y))
    p_y = np.exp(log_softmax(student_logits))[rows, y]
    expected = -log_softmax(teacher_logits)[rows, y] - np.log(1 - p_y + 1e-8)
    loss = objective.augment_loss(ctx, inverted).detach().numpy()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)  # the weight is 1 to seven digits
    objective.draw = lambda *_: inverted  # type: ignore[method-assign]
    terms = {k: v.detach().numpy() for k, v in objective.terms(ctx).items()}

    def kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
        """[B]: tau^2 KL(teacher || student) of logits."""
        log_t, log_s = log_softmax(teacher, 2.5), log_softmax(student, 2.5)
        return 2.5**2 * (np.exp(log_t) * (log_t - log_s)).sum(1)

    original = objective.head(ctx.post_activation).detach().numpy()
    np.testing.assert_allclose(terms["original"], kl(ctx.teacher.logits.numpy(), original) / 2)
    expected = kl(teacher_logits, student_logits) / 2
    np.testing.assert_allclose(terms["augmented"], expected, rtol=1e-4)


def test_the_gradient_of_strengths_and_rates_is_that_of_finite_differences():
    objective, student, ctx = build()
    student.eval()
    # With the random number 0.5 and the temperature 0.05, the weight is sigmoid(rate / 0.05), which
    # is 0.65 at the rate 0.03. At 0 or 1 its gradient would be 0.
    chosen = draw("brightness", "rotate", "translate_y", "invert", uniform=0.5)
    augment, step = objective.augment, 1e-6
    with torch.no_grad():
        augment.strength.copy_(torch.linspace(-0.4, 0.4, len(LEARNED)))
        augment.rate.fill_(0.03)

    def loss() -> Tensor:
        """Mean loss of the augmentation."""
        return objective.augment_loss(ctx, chosen).mean()

    loss().backward()
    for parameter, names in ((augment.strength, list(LEARNED)), (augment.rate, list(NAMES))):
        assert parameter.grad is not None
        for name in ("brightness", "rotate", "translate_y", "invert"):
            if name not in names:  # invert has a rate, but no strength
                continue
            k = names.index(name)
            with torch.no_grad():
                parameter[k] += step
                above = loss()
                parameter[k] -= 2 * step
                below = loss()
                parameter[k] += step
            difference = float(above - below) / (2 * step)
            assert float(parameter.grad[k]) == pytest.approx(difference, rel=2e-3, abs=1e-7), name


# ---- training ----


def test_the_augmentation_learns_in_its_phases_only_and_no_loss_of_it_trains_the_student(
    tmp_path: Path,
):
    run = TinyRun("tst", tmp_path)
    objective: Any = run.model.objective
    run.model.train()
    for step in range(STEPS):
        run.model.step = step
        before = objective.augment.rate.clone(), objective.augment.strength.clone()
        student = {k: v.clone() for k, v in run.model.backbone.state_dict().items()}
        run.terms(tiny.batch(BATCH, step))
        after = objective.augment.rate, objective.augment.strength
        changed = not all(map(torch.equal, before, after))
        # Phases begin at 0.125 and 0.375 of 40 steps and have 0.05 of them, which is 2.
        assert changed == (step in (5, 6, 15, 16)), step
        state = run.model.backbone.state_dict()
        changed_tensors = {k for k, v in state.items() if not torch.equal(v, student[k])}
        # Only BatchNorm's statistics change, as no optimiser of the student runs here.
        assert all("norms" in k for k in changed_tensors)
    teacher = objective._teacher[0]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_step_of_the_augmentation_does_not_change_the_student_s_statistics_and_mode():
    objective, student, ctx = build(phases=[0.0], length=1.0)
    from kdep_bench.objectives.auxiliary import AuxiliaryModules

    auxiliary, mean = AuxiliaryModules(objective.auxiliary_modules()), student.norm.running_mean
    assert mean is not None
    assert (
        objective.auxiliary_modules()["augment"].max_norm == 10
    )  # limited after the average over ranks
    mean_before = mean.clone()
    with auxiliary.training():
        objective.update_auxiliary(ctx, auxiliary)
    assert student.training
    assert torch.equal(mean, mean_before)
    assert all(p.grad is None for p in student.parameters())


def test_training_the_augmentation_lowers_its_loss(tmp_path: Path):
    """The loss is low for images that the teacher classifies as before and the student does not."""
    no_phases = resolve("method", "tst")["objective"] | dict(phases=[], length=0)
    run = TinyRun("tst", tmp_path, no_phases)
    run.train(STEPS)
    objective: Any = run.model.objective
    data, contexts = run.batch(dict(tiny.batch(BATCH, 77))), []
    losses = run.model.losses

    def keep(*args: Any) -> Any:
        """The model's losses; stores the Context that the objective gets."""
        terms = objective.terms
        objective.terms = lambda ctx: contexts.append(ctx) or terms(ctx)
        return losses(*args)

    run.model.losses = keep  # type: ignore[method-assign]
    run.model(**data, mode="loss")
    ctx = contexts[-1]
    run.model.backbone.eval()
    drawn = [objective.augment.draw(np.random.default_rng(k)) for k in range(40)]

    def mean_loss() -> float:
        """Mean of the augmentation's loss over images and draws."""
        with torch.no_grad():
            return float(torch.stack([objective.augment_loss(ctx, d).mean() for d in drawn]).mean())

    loss_before = mean_loss()
    optimizer = torch.optim.SGD(objective.augment.parameters(), 0.3)
    objective.augment.requires_grad_(True)
    for k in range(60):
        optimizer.zero_grad()
        objective.augment_loss(ctx, drawn[k % 40]).mean().backward()
        optimizer.step()
    assert mean_loss() < loss_before - 0.02


@pytest.mark.parametrize("phases", [[], [0.125, 0.375]])
def test_the_declared_extra_passes_are_those_on_augmented_images(
    phases: list[float], tmp_path: Path
):
    config = resolve("method", "tst")["objective"] | dict(phases=phases)
    run = TinyRun("tst", tmp_path, config)
    objective: Any = run.model.objective
    passes = [0]  # images in passes of the teacher and the student
    features, student = objective._teacher[0].features, run.model.run_student

    def counted(function: Any) -> Any:
        """The function, which adds its number of images to `passes`."""

        def call(x: Tensor) -> Any:
            """Counts the images x and runs the function."""
            passes[0] += len(x)
            return function(x)

        return call

    objective._teacher[0].features = counted(features)
    run.model.run_student = counted(student)  # type: ignore[method-assign]
    run.train(STEPS)
    n_augmented = passes[0] - STEPS * BATCH  # without the student's pass on the images themselves
    assert n_augmented == pytest.approx(demands(config).forwards * STEPS * BATCH)


# ---- plans ----


def test_outputs_for_unchanged_images_are_those_of_the_cache_of_logit_kd():
    stages = plan("tst").stages.values()
    (pretrain,) = (s for s in stages if s.kind == "pretrain")
    caches = {s.id for s in stages if s.kind == "cache"}
    assert caches == {s.id for s in plan("logit_kd").stages.values() if s.kind == "cache"}
    assert pretrain.needs["images"] == next(s.id for s in stages if s.kind == "prepare")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(objective=dict(phases=[0.5, 0.1])), "ascending order"),
        (dict(objective=dict(phases=[0.98])), r"phases=\[0\.98\] of length=0\.05"),
        (dict(objective=dict(phases=[0.1, 0.12])), "each phase ending before the next"),
        (dict(objective=dict(active=0)), "active = 0"),
        (dict(objective=dict(temperature=0.0)), "temperature = 0"),
        (dict(objective=dict(optimizer=dict(type="SGD"))), "no learning rate"),
        (dict(needs=["logits"]), "reads teacher_images"),
        (dict(augment=dict(type="kdep_bench.augments.crop.RandomCrop")), "from a cache"),
    ],
)
def test_the_plan_refuses_invalid_methods(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="tst", name="changed", **method))


def test_a_black_box_teacher_and_a_split_batch_are_refused():
    from kdep_bench.suite.config import load_suite

    with pytest.raises(KdepError, match="class probabilities only"):
        plan("tst", teacher="efficientnet_lite0_black_box")
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=2)
    with pytest.raises(KdepError, match="with a separate optimiser"):
        plan("tst", budget=budget)
