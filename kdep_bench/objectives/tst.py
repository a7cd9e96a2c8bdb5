"""Teach what you should teach (TST): distillation on images that are hard for the student only.

A learned augmentation makes these images (IJCAI 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Fraction, Positive
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.networks.learned_augment import NAMES, AugmentDraw, LearnedAugment
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.schedules.phases import check_phases, in_phase
from kdep_bench.teachers.base import build_teacher

EPSILON = 1e-8
MAX_NORM = 10.0  # largest norm of the gradient of the augmentation's parameters
SGD: Mapping[str, Any] = {"type": "SGD", "lr": 0.01, "momentum": 0.9}


class TeachWhatYouShould(Objective):
    """1/2 tau^2 KL(t(x) || s(x)) + 1/2 tau^2 KL(t(x') || s(x')), x' an augmented image.

    s and t are the logits of student and teacher. During each phase, the augmentation is trained to
    minimise CE(y, t(x')) - log(1 - p_y(s(x')) + 1e-8), with y the teacher's most probable class of
    x and p_y the student's probability of y. So it learns to make images that the teacher still
    classifies as before, and the student does not. These steps change neither the student's weights
    nor its BatchNorm statistics. Teacher and student get the same augmentation, each at its own
    resolution.

    t(x) may come from a cache; for t(x') the objective runs its own copy of the teacher in every
    step.

    Source: Shao et al., IJCAI 2023; shaoshitong/TST `Env/Environment_SDA.py`, `datas/SDAGAN.py`
    (SGD 0.01 for the augmentation, gradient norm of at most 10; phases at epochs 30 and 90 of 240,
    tau 4 for CIFAR). Differences from the source, in addition to those of LearnedAugment: y is the
    teacher's prediction, not the label; there is no cross-entropy with labels; the student
    processes x and x' in two passes, so BatchNorm normalises them separately (in the source they
    are one batch).

    Args:
        tau: temperature.
        phases: fractions of the run at which a phase begins.
        length: length of each phase, as a fraction of the run.
        active: number of operations that are chosen per step.
        temperature: temperature of the relaxed Bernoulli variables.
        optimizer: config of the augmentation's optimiser.
        width, teacher_classes, teacher_config: set by the pre-training stage.
    """

    needs = frozenset({"logits", "teacher_images"})
    stage_arguments = frozenset({"width", "teacher_classes", "teacher_config"})
    has_auxiliary_modules = True  # auxiliary module: a part with its own optimiser
    forwards = 2  # teacher and student on x'
    student_passes = 1
    teacher_passes = 1

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        teacher_config: Mapping[str, Any],
        tau: Positive = 4.0,
        phases: Sequence[float] = (0.125, 0.375),
        length: Fraction = 0.05,
        active: Count = 4,
        temperature: Positive = 0.05,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_phases(phases, length)
        if active > len(NAMES):
            raise KdepError(
                f"the augmentation of TST has active={active}",
                expected=f"at most {len(NAMES)}, the number of operations",
                fix="correct `active` in the method's objective",
            )
        self.head = nn.Linear(width, teacher_classes)
        self.augment = LearnedAugment(int(active), float(temperature))
        self.tau, self.phases, self.length = float(tau), tuple(phases), float(length)
        self.optimizer = dict(optimizer or SGD)
        with torch.random.fork_rng(devices=[]):  # the student's initial weights do not change
            # In a list, so that it is neither trained nor stored in checkpoints.
            self._teacher = [build_teacher(teacher_config)]
        self._student: list[nn.Module] = []
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    mean: Tensor
    std: Tensor

    @classmethod
    def count_forwards(cls, config: Mapping[str, Any]) -> float:
        """Two passes on x' for the student's loss, and two more in every step of a phase."""
        phases = config.get("phases", (0.125, 0.375))
        return cls.forwards + 2 * len(phases) * float(config.get("length", 0.05))

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        self._student = [student]

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        return {
            "augment": AuxiliaryModule(
                self.augment, self.optimizer, scheduled=False, max_norm=MAX_NORM
            )
        }

    def in_phase(self, ctx: Context) -> bool:
        """Whether the augmentation learns in this step."""
        return in_phase(ctx.step, ctx.steps, self.phases, self.length)

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        if not self.in_phase(ctx):
            return
        student = self._student[0]
        was_training = student.training
        student.eval()  # a separate statement: `eval` of OpenMMLab backbones returns None
        try:
            loss = self.augment_loss(ctx, self.draw(ctx, 1)).mean()
        finally:
            student.train(was_training)
        # An operation that was not chosen has no gradient: it gets 0.
        gradients = torch.autograd.grad(
            loss, auxiliary.parameters("augment"), materialize_grads=True
        )
        auxiliary.apply("augment", gradients)

    def augment_loss(self, ctx: Context, draw: AugmentDraw) -> Tensor:
        """[B]: the loss that the augmentation minimises."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        predicted = ctx.teacher.logits.argmax(1)
        teacher, student = self.logits_of_augmented(ctx, draw)
        p_y = student.softmax(1).gather(1, predicted[:, None])[:, 0]
        missed = -(1 - p_y + EPSILON).log()
        return F.cross_entropy(teacher, predicted, reduction="none") + missed

    def logits_of_augmented(self, ctx: Context, draw: AugmentDraw) -> tuple[Tensor, Tensor]:
        """Logits [B, C] of teacher and student for the augmented images."""
        assert ctx.images is not None
        assert ctx.student is not None
        assert ctx.teacher is not None
        assert ctx.teacher.images is not None
        teacher = self._teacher[0].to(ctx.images.device)
        large = 255 * self.augment(self.as_pixels(ctx.teacher.images), draw)
        out = teacher.features((large - teacher.mean) / teacher.std).logits
        assert out is not None
        small = 255 * self.augment(self.as_pixels(ctx.images), draw)
        student = ctx.student((small - self.mean) / self.std)
        return out, self.head(student.post_activation)

    def as_pixels(self, x_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] from images that are normalised as the student's are."""
        return (x_B3HW * self.std + self.mean) / 255

    def draw(self, ctx: Context, number: int) -> AugmentDraw:
        """The random numbers of a step, which depend on the run's seed and the step only.

        `number`: 0 for the student's loss, 1 for the augmentation's.
        """
        seed = torch.initial_seed() % 2**32
        return self.augment.draw(np.random.default_rng([seed, ctx.step, number]))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        teacher, student = self.logits_of_augmented(ctx, self.draw(ctx, 0))
        return {
            "original": soft_kl(ctx.teacher.logits, self.head(ctx.post_activation), self.tau) / 2,
            "augmented": soft_kl(teacher.detach(), student, self.tau) / 2,
        }
