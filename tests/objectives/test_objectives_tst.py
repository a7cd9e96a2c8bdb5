"""TST: operations and their rates, both losses in float64, what learns when, cost and plans."""

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

CLASSES, WIDTH, PX, TEACHER_PX = 4, 5, 8, 12


class Linear(Teacher):
    """A teacher that is linear in its pixels, with another normalisation than the student's."""

    has_logits, tap, width, input_px = True, "pixels", CLASSES, TEACHER_PX

    def __init__(self, name: str) -> None:
        super().__init__((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
        self.name = name
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(3 * TEACHER_PX**2, CLASSES, generator=generator).double() / 5

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        logits = x_B3HW.flatten(1).double() @ self.weight
        return TeacherOutput(logits, logits)


class Student(nn.Module):
    """A linear layer and BatchNorm, as a student that is called through `Context.student`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3 * PX * PX, WIDTH), nn.BatchNorm1d(WIDTH)

    def run(self, x: Tensor) -> StudentOutput:
        out = self.norm(self.linear(x.flatten(1)))
        return StudentOutput(out, out)


def built(batch: int = 3, **arguments: Any) -> tuple[TeachWhatYouShould, Student, Context]:
    torch.manual_seed(0)
    teacher = dict(type=f"{__name__}.Linear", name="linear")
    objective, student = TeachWhatYouShould(WIDTH, CLASSES, teacher, **arguments), Student()
    objective.double()
    student.double()
    objective.attach(student, lambda: nn.Identity())
    images, large = (torch.randn(batch, 3, px, px).double() for px in (PX, TEACHER_PX))
    logits = torch.randn(batch, CLASSES).double()
    output = TeacherOutput(logits, logits, images=large)
    before = student.run(images).before
    ctx = Context(
        before, before, teacher=output, images=images, student=student.run, step=5, steps=40
    )
    return objective, student, ctx


def draw(*names: str, uniform: float = 0.999999) -> AugmentDraw:
    """These operations, by default with a weight of 1 at the first rates."""
    chosen = [NAMES.index(name) for name in names]
    count = len(NAMES)
    return AugmentDraw(chosen, [uniform] * count, (0.0, 0.0), [1.0] * count)


# ---- operations ----


@pytest.mark.parametrize("name", LEARNED)
def test_a_change_of_zero_leaves_the_image_unchanged_and_others_change_it(name: str):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double() * 0.9
    no_change, strength = torch.tensor(0.0).double(), torch.tensor(0.6).double()
    tolerance = 5e-3 if name == "solarize" else 1e-6  # its threshold is soft
    torch.testing.assert_close(LEARNED[name](x, no_change), x, rtol=0, atol=tolerance)
    changed, opposite = LEARNED[name](x, strength), LEARNED[name](x, -strength)
    assert (changed - x).abs().max() > 0.01
    assert torch.equal(changed, opposite) == (name == "solarize")


def test_operations_have_known_values():
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
    # 0.45 of the width per unit: half of the width, 4 of 8 columns, at 0.5 / 0.45.
    moved = LEARNED["translate_x"](x, full * 0.5 / 0.45)
    torch.testing.assert_close(moved[..., :4], x[..., 4:], atol=1e-5, rtol=0)
    assert moved[..., 4:].abs().max() < 1e-5  # black
    cut = cutout(x, (0.5, 0.0))
    assert cut[..., 2:6, :4].abs().max() == 0
    assert torch.equal(cut[..., 6:, :], x[..., 6:, :])


def test_the_augmentation_starts_at_half_of_the_largest_changes():
    changed = LearnedAugment()(torch.full((1, 3, 4, 4), 0.4), draw("brightness"))
    torch.testing.assert_close(changed, torch.full_like(changed, 0.4 * (1 + 0.9 / 2)))


def test_changes_of_the_chosen_operations_are_added_with_their_weights():
    augment = LearnedAugment()
    x = torch.rand(2, 3, 8, 8)
    changed = augment(x, draw("invert", "cutout"))
    torch.testing.assert_close(changed, x + (1 - 2 * x) + cutout(x, (0.0, 0.0)) - x)
    with torch.no_grad():
        augment.rate.fill_(-60.0)  # rates of 0
    for seed in range(20):
        drawn = augment.draw(np.random.default_rng(seed))
        torch.testing.assert_close(augment(x, drawn), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [-3.0, -1.0, 0.0, 2.0])
def test_an_operation_is_applied_at_its_learned_rate_and_not_at_the_published_code_s(rate: float):
    """The published code's rate is sigmoid(sigmoid(r)), between 0.5 and 0.73."""
    augment = LearnedAugment(active=len(NAMES))
    with torch.no_grad():
        augment.rate.fill_(-60.0)[NAMES.index("invert")] = rate
    x, applied = torch.zeros(1, 3, 4, 4), []
    for seed in range(1500):
        drawn = augment.draw(np.random.default_rng(seed))
        applied.append(augment(x, drawn)[0, 0, 0, 0].item() > 0.5)
    expected = 1 / (1 + np.exp(-rate))
    assert np.mean(applied) == pytest.approx(
        expected, abs=4 * (expected * 0.25 / 1500) ** 0.5 + 0.01
    )


def test_draws_depend_on_seed_and_step_only():
    objective, _, ctx = built()

    def numbers(step: int, number: int = 0) -> list[float]:
        drawn = objective.draw(Context(ctx.before, ctx.after, step=step), number)
        return [*drawn.chosen, *drawn.uniform, *drawn.corner, *drawn.signs]

    torch.rand(7)  # the state of the global generator does not matter
    assert numbers(3) == numbers(3)
    assert numbers(3) != numbers(4)
    assert numbers(3, 0) != numbers(3, 1)
    assert len(set(numbers(3)[:4])) == 4
    assert len(LearnedAugment(active=7).draw(np.random.default_rng(0)).chosen) == 7
    first = numbers(3)
    torch.manual_seed(1)
    assert numbers(3) != first


# ---- losses ----


def log_softmax(z: np.ndarray, tau: float = 1.0) -> np.ndarray:
    z = z / tau - (z / tau).max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def reference_logits(
    objective: TeachWhatYouShould, student: Student, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Logits for images with inverted colours, from the definitions of both normalisations."""
    assert ctx.teacher is not None
    assert ctx.teacher.images is not None
    assert ctx.images is not None
    mean, std = (np.asarray(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    large = 255 - (ctx.teacher.images.numpy() * std + mean)
    teacher = objective._teacher[0]
    assert isinstance(teacher, Linear)
    z = (large - teacher.mean.numpy()) / teacher.std.numpy()
    t = z.reshape(len(z), -1) @ teacher.weight.numpy()
    small = (255 - (ctx.images.numpy() * std + mean) - mean) / std
    after = student.run(torch.from_numpy(small)).after
    return t, objective.head(after).detach().numpy()


def test_both_losses_equal_their_formulae_in_float64():
    objective, student, ctx = built(tau=2.5)
    student.eval()
    inverted = draw("invert")
    t, s = reference_logits(objective, student, ctx)
    assert ctx.teacher is not None
    assert ctx.teacher.logits is not None
    y = ctx.teacher.logits.numpy().argmax(1)
    rows = np.arange(len(y))
    p_y = np.exp(log_softmax(s))[rows, y]
    expected = -log_softmax(t)[rows, y] - np.log(1 - p_y + 1e-8)
    loss = objective.augment_loss(ctx, inverted).detach().numpy()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)  # the weight is 1 to seven digits
    objective.draw = lambda *_: inverted  # type: ignore[method-assign]
    terms = {k: v.detach().numpy() for k, v in objective.terms(ctx).items()}

    def kl(teacher: np.ndarray, of_student: np.ndarray) -> np.ndarray:
        a, b = log_softmax(teacher, 2.5), log_softmax(of_student, 2.5)
        return 2.5**2 * (np.exp(a) * (a - b)).sum(1)

    original = objective.head(ctx.after).detach().numpy()
    np.testing.assert_allclose(terms["original"], kl(ctx.teacher.logits.numpy(), original) / 2)
    np.testing.assert_allclose(terms["augmented"], kl(t, s) / 2, rtol=1e-4)


def test_the_gradient_of_strengths_and_rates_is_that_of_finite_differences():
    objective, student, ctx = built()
    student.eval()
    # Moderate weights: at u = 0.5 and temperature 0.05 the weight is sigmoid(20 r).
    chosen = draw("brightness", "rotate", "translate_y", "invert", uniform=0.5)
    augment, step = objective.augment, 1e-6
    with torch.no_grad():
        augment.strength.copy_(torch.linspace(-0.4, 0.4, len(LEARNED)))
        augment.rate.fill_(0.03)

    def loss() -> Tensor:
        return objective.augment_loss(ctx, chosen).mean()

    loss().backward()
    for parameter, names in ((augment.strength, list(LEARNED)), (augment.rate, list(NAMES))):
        assert parameter.grad is not None
        for name in (
            "brightness",
            "rotate",
            "translate_y",
            *(["invert"] if "invert" in names else []),
        ):
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


def test_the_augmentation_learns_in_its_phases_only_and_the_student_does_not_change(tmp_path: Path):
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
        # Phases of 2 of 40 steps at 0.125 and 0.375 of the run.
        assert changed == (step in (5, 6, 15, 16)), step
        moved = {
            k for k, v in run.model.backbone.state_dict().items() if not torch.equal(v, student[k])
        }
        assert all("norms" in k for k in moved)  # statistics of the two passes of the student
    teacher = objective._teacher[0]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_playing_leaves_the_student_s_statistics_and_mode(tmp_path: Path):
    objective, student, ctx = built(phases=[0.0], length=1.0)
    from kdep_bench.objectives.players import Players

    players, mean = Players(objective.players()), student.norm.running_mean
    assert mean is not None
    before = mean.clone()
    assert objective.players()["augment"].max_norm == 10  # limited after the average over ranks
    with players.training():
        objective.play(ctx, players)
    assert student.training
    assert torch.equal(mean, before)
    assert all(p.grad is None for p in student.parameters())


def test_a_phase_makes_images_that_the_student_misses_more_than_the_teacher(tmp_path: Path):
    run = TinyRun(
        "tst", tmp_path, resolve("method", "tst")["objective"] | dict(phases=[], length=0)
    )
    run.train(STEPS)
    objective: Any = run.model.objective
    data, contexts = run.batch(dict(tiny.batch(BATCH, 77))), []
    losses = run.model.losses

    def keep(*args: Any) -> Any:
        terms = objective.terms
        objective.terms = lambda ctx: contexts.append(ctx) or terms(ctx)
        return losses(*args)

    run.model.losses = keep  # type: ignore[method-assign]
    run.model(**data, mode="loss")
    ctx = contexts[-1]
    run.model.backbone.eval()
    drawn = [objective.augment.draw(np.random.default_rng(k)) for k in range(40)]

    def measured() -> float:
        with torch.no_grad():
            return float(torch.stack([objective.augment_loss(ctx, d).mean() for d in drawn]).mean())

    before = measured()
    optimizer = torch.optim.SGD(objective.augment.parameters(), 0.3)
    objective.augment.requires_grad_(True)
    for k in range(60):
        optimizer.zero_grad()
        objective.augment_loss(ctx, drawn[k % 40]).mean().backward()
        optimizer.step()
    assert measured() < before - 0.02


@pytest.mark.parametrize("phases", [[], [0.125, 0.375]])
def test_the_declared_passes_are_those_of_teacher_and_student_on_augmented_images(
    phases: list[float], tmp_path: Path
):
    config = resolve("method", "tst")["objective"] | dict(phases=phases)
    run = TinyRun("tst", tmp_path, config)
    objective: Any = run.model.objective
    passes = [0]
    features, student = objective._teacher[0].features, run.model.run_student

    def counted(function: Any) -> Any:
        def call(x: Tensor) -> Any:
            passes[0] += len(x)
            return function(x)

        return call

    objective._teacher[0].features = counted(features)
    run.model.run_student = counted(student)  # type: ignore[method-assign]
    run.train(STEPS)
    n_augmented = passes[0] - STEPS * BATCH  # without the student's first pass in every step
    assert n_augmented == pytest.approx(demands(config).forwards * STEPS * BATCH)


# ---- plans ----


def test_the_originals_are_read_from_the_cache_of_logit_kd_and_the_pool_is_decoded():
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


def test_a_black_box_teacher_and_micro_batches_are_refused():
    from kdep_bench.suite.config import load_suite

    with pytest.raises(KdepError, match="class probabilities only"):
        plan("tst", teacher="efficientnet_lite0_black_box")
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=2)
    with pytest.raises(KdepError, match="with a separate optimiser"):
        plan("tst", budget=budget)
