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
    """tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)), [B].

    Zero where the logits agree up to a constant a row; for tau -> infinity it goes to
    |c(z_t) - c(z_s)|^2 / (2 C) with centred logits c(z) = z - mean(z).
    """
    log_t, log_s = (F.log_softmax(z / tau, 1) for z in (teacher_BC, student_BC))
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(1)


class LogitKD(Objective):
    """L = tau^2 KL_tau(teacher || student): the student's linear head is dropped at export.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"; per sample
    as `F.kl_div(..., reduction="batchmean") * T**2` of RepDistiller `distiller_zoo/KD.py`, with the
    weight of the cross-entropy at zero. tau = 4 is that repository's default (CIFAR).

    Args:
        tau: temperature, a number or a schedule.
        entropy_floor: a teacher whose softened outputs have a mean entropy (nats) below it in the
            first batch is reported: such logits contain hardly more than the top-1 class.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    requires = frozenset({"width", "teacher_classes", "epochs"})

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
        self.tau, self.entropy_floor = as_schedule(tau, epochs), entropy_floor
        self._looked = False

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {"kl": self.kl(ctx, self.head(ctx.after))}

    def kl(self, ctx: Context, student_BC: Tensor) -> Tensor:
        """[B]: the distillation term at this step's temperature."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        tau = self.tau(ctx.step, ctx.steps)
        if not self._looked:
            self._looked = True
            self.report(ctx.teacher.logits, tau)
        return soft_kl(ctx.teacher.logits, student_BC, tau)

    def report(self, teacher_BC: Tensor, tau: float) -> None:
        """Warns of an over-confident teacher."""
        entropy = float(torch.special.entr(F.softmax(teacher_BC / tau, 1)).sum(1).mean())
        if entropy < self.entropy_floor:
            warnings.warn(
                f"the teacher's outputs at temperature {tau:g} have a mean entropy of "
                f"{entropy:.3g} nats of {math.log(teacher_BC.shape[1]):.3g} possible: they say "
                f"hardly more than a label; raise tau",
                stacklevel=2,
            )


class LogitKDWithLabels(LogitKD):
    """L = (1 - alpha) CE(y, softmax(z_s)) + alpha tau^2 KL_tau, on one head.

    Source as above: RepDistiller's CIFAR weights are 0.1 and 0.9 (alpha = 0.9). alpha = 0 is the
    cross-entropy method bit for bit. The labels must be those of the teacher's classifier.

    Args:
        alpha: weight of the distillation term, 0 to 1.
        classes: number of classes of the labels, set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    requires = LogitKD.requires | {"classes"}

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
                "head learns both",
                fix="use the label-free LogitKD, or a teacher trained on these classes",
            )
        self.alpha = alpha

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        z = self.head(ctx.after)
        hard = F.cross_entropy(z, ctx.labels, reduction="none")
        return {"cross_entropy": (1 - self.alpha) * hard, "kl": self.alpha * self.kl(ctx, z)}
