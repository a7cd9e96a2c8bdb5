"""Logit distillation (Hinton et al. 2015), label-free or mixed with cross-entropy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Fraction, NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.schedules.build import as_schedule


def soft_kl(teacher_BC: Tensor, student_BC: Tensor, tau: float | Tensor) -> Tensor:
    """tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)) per sample, shape [B].

    It is 0 if the logits of a sample differ by a constant only. For tau -> infinity it approaches
    |c(z_t) - c(z_s)|^2 / (2 C), with centred logits c(z) = z - mean(z).
    """
    log_t, log_s = (F.log_softmax(z / tau, 1) for z in (teacher_BC, student_BC))
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(1)


class LogitKD(Objective):
    """L = tau^2 KL_tau(teacher || student) of the logits of a linear head, dropped at export.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"; equals
    `F.kl_div(..., reduction="batchmean") * T**2` of RepDistiller `distiller_zoo/KD.py`, without its
    cross-entropy term. tau = 4 is that repository's default (CIFAR).

    Args:
        tau: temperature, a number or the config of a schedule.
        entropy_floor: warn if the mean entropy (nats) of the teacher's softened outputs in the
            first batch is lower: such logits contain little more than the top-1 class.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "epochs"})

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        tau: Positive | Mapping[str, Any] = 4.0,
        entropy_floor: NotNegative = 0.1,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(tau, int | float) and not tau > 0:
            raise KdepError(
                f"logit distillation has tau={tau}",
                expected="a positive temperature",
                fix="correct `tau` in the method's objective",
            )
        self.head = nn.Linear(width, teacher_classes)
        self.tau, self.entropy_floor = as_schedule(tau, epochs, "tau"), entropy_floor
        self._entropy_checked = False

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"kl": self.kl(ctx, self.head(ctx.post_activation))}

    def kl(self, ctx: Context, student_BC: Tensor) -> Tensor:
        """The distillation term per sample, [B], at the temperature of this step."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        tau = self.tau(ctx.step, ctx.steps)
        if not self._entropy_checked:
            self._entropy_checked = True
            self._warn_of_low_entropy(ctx.teacher.logits, tau)
        return soft_kl(ctx.teacher.logits, student_BC, tau)

    def _warn_of_low_entropy(self, teacher_BC: Tensor, tau: float) -> None:
        """Warns of a teacher whose softened outputs are nearly one-hot."""
        entropy = float(torch.special.entr(F.softmax(teacher_BC / tau, 1)).sum(1).mean())
        if entropy < self.entropy_floor:
            warnings.warn(
                f"the teacher's outputs at temperature {tau:g} have a mean entropy of "
                f"{entropy:.3g} nats of {math.log(teacher_BC.shape[1]):.3g} possible, so they "
                "contain little more than the top-1 class; raise tau",
                stacklevel=2,
            )


class LogitKDWithLabels(LogitKD):
    """L = (1 - alpha) CE(y, softmax(z_s)) + alpha * (the loss of LogitKD), on one head.

    Source as for LogitKD; alpha = 0.9 is RepDistiller's value for CIFAR. With alpha = 0 the loss is
    that of CrossEntropy. The labels must be the classes of the teacher's classifier.

    Args:
        alpha: weight of the distillation term, 0 to 1.
        classes: number of classes of the labels, set by the pre-training stage.
        width, teacher_classes, tau, entropy_floor, epochs: as in LogitKD.
    """

    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = LogitKD.stage_arguments | {"classes"}

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        classes: int,
        alpha: Fraction = 0.9,
        tau: Positive | Mapping[str, Any] = 4.0,
        entropy_floor: NotNegative = 0.1,
        epochs: float | None = None,
    ) -> None:
        super().__init__(width, teacher_classes, tau, entropy_floor, epochs)
        if not 0 <= alpha <= 1:
            raise KdepError(
                f"logit distillation has alpha={alpha}",
                expected="0 to 1",
                fix="correct `alpha` in the method's objective",
            )
        if classes != teacher_classes:
            raise KdepError(
                f"the data have {classes} classes and the teacher has {teacher_classes}, but one "
                "head is trained on both",
                fix="use the label-free LogitKD, or a teacher trained on these classes",
            )
        self.alpha = alpha

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        z = self.head(ctx.post_activation)
        cross_entropy = F.cross_entropy(z, ctx.labels, reduction="none")
        return {
            "cross_entropy": (1 - self.alpha) * cross_entropy,
            "kl": self.alpha * self.kl(ctx, z),
        }
