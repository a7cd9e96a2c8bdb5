"""CES-KD: one of several teachers per image, chosen by its difficulty; easy images first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Fraction, Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.multi_teacher import check_labels, common_classes
from kdep_bench.schedules.build import as_schedule

PACING: Mapping[str, Any] = {
    "type": "kdep_bench.schedules.ramp.Ramp",
    "start": 0.0,
    "end": 1.0,
    "over": 0.5,
}


class RecentQuantiles(nn.Module):
    """Divides values into `count` equally frequent strata, by the last `memory` values.

    Args:
        count: K.
        memory: number of values that are kept, as a buffer.
    """

    recent: Tensor

    def __init__(self, count: int, memory: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("recent", torch.full((memory,), torch.nan))

    @torch.no_grad()
    def forward(self, values_B: Tensor) -> Tensor:
        """[B] int64, 0 (smallest) to K - 1. In training the values are added to the memory first.

        A value equal to a quantile is in the lower stratum, so equal values are all in stratum 0.
        """
        recent = torch.cat([values_B.detach().to(self.recent), self.recent])[: len(self.recent)]
        if self.training:
            self.recent.copy_(recent)
        if self.count == 1:
            return torch.zeros_like(values_B, dtype=torch.int64)
        levels = torch.arange(1, self.count, dtype=recent.dtype, device=recent.device) / self.count
        limits = torch.nanquantile(recent, levels)
        return (values_B[:, None] > limits).sum(1)


class CurriculumExperts(Objective):
    """tau^2 KL_tau(teacher k(b) || student) of the samples b whose stratum is let in; label-free.

    The teachers are listed by capacity, the smallest first, and all have the same classes. The
    difficulty of a sample is the entropy of the last teacher's softmax. The K teachers divide the
    samples into K strata of equal size by difficulty, and k(b) is the sample's stratum: the easiest
    learn from the smallest teacher. In a step with the pacing p the first max(1, ceil(p K)) strata
    are let in. The loss is the mean over their samples; the others have the loss 0.

    Source: re-implementation from the abstract of arXiv 2209.07606, which states one teacher per
    image, chosen by the difficulty of classifying it, and a gradual curriculum. Difficulty, strata,
    pacing and temperature are chosen in this project. The strata are those of the last `memory`
    samples, so the assignment of a sample depends on those before it and in its batch. The
    student's linear head is dropped at export.

    Args:
        tau: temperature of the KL; the entropy is that at temperature 1.
        pacing: p, a number or a schedule.
        memory: samples from which the strata are computed.
        width, teachers, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    requires = frozenset({"width", "teacher_classes", "epochs"})
    every_teacher = True
    couples_samples = True

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        tau: Positive = 4.0,
        pacing: Fraction | Mapping[str, Any] = PACING,
        memory: Count = 4096,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        self.head = nn.Linear(width, common_classes(teachers))
        self.strata = RecentQuantiles(len(teachers), memory)
        self.tau, self.pacing = float(tau), as_schedule(pacing, epochs)

    def difficulty(self, ctx: Context) -> Tensor:
        """[B]: entropy in nats of the last teacher's probabilities."""
        return torch.special.entr(F.softmax(_logits(ctx)[-1], 1)).sum(1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        stratum = self.strata(self.difficulty(ctx))
        return {"kl": self.scale(ctx, stratum) * self.kl(ctx, self.head(ctx.after), stratum)}

    def kl(self, ctx: Context, student_BC: Tensor, stratum_B: Tensor) -> Tensor:
        """[B]: the divergence from each sample's teacher."""
        logits_KBC = _logits(ctx)
        rows = torch.arange(len(stratum_B), device=stratum_B.device)
        return soft_kl(logits_KBC[stratum_B, rows], student_BC, self.tau)

    def scale(self, ctx: Context, stratum_B: Tensor) -> Tensor:
        """[B]: batch size over number of samples let in, 0 for a sample that is not."""
        p = self.pacing(ctx.step, ctx.steps)
        # Less 1e-6: rounding of a pacing of 2 / 3 must not let in the third of three strata.
        number = max(1, math.ceil(p * self.strata.count - 1e-6))
        admitted = (stratum_B < number).float()
        return admitted * len(admitted) / admitted.sum().clamp(min=1)


class CurriculumExpertsWithLabels(CurriculumExperts):
    """(1 - alpha) CE(y, student) + alpha tau^2 KL_tau of the samples let in, on one head.

    The difficulty is the cross-entropy of the last teacher's logits with the label. The labels must
    be those of the teachers' classifiers.

    Args:
        alpha: weight of the distillation term, 0 to 1.
        classes: number of classes of the labels, set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    requires = CurriculumExperts.requires | {"classes"}

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        classes: int,
        alpha: Fraction = 0.9,
        tau: Positive = 4.0,
        pacing: Fraction | Mapping[str, Any] = PACING,
        memory: Count = 4096,
        epochs: float | None = None,
    ) -> None:
        check_labels(classes, teachers)
        super().__init__(width, teachers, tau, pacing, memory, epochs)
        self.alpha = float(alpha)

    def difficulty(self, ctx: Context) -> Tensor:
        """[B]: cross-entropy of the last teacher with the label."""
        assert ctx.labels is not None
        return F.cross_entropy(_logits(ctx)[-1], ctx.labels, reduction="none")

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        student, stratum = self.head(ctx.after), self.strata(self.difficulty(ctx))
        scale = self.scale(ctx, stratum)
        hard = F.cross_entropy(student, ctx.labels, reduction="none")
        kl = self.kl(ctx, student, stratum)
        return {
            "cross_entropy": (1 - self.alpha) * (scale * hard),
            "kl": self.alpha * (scale * kl),
        }


def _logits(ctx: Context) -> Tensor:
    """[K, B, C]: the teachers' logits, in the order of their roles."""
    logits = [teacher.logits for teacher in ctx.teachers.values()]
    assert all(z is not None for z in logits)
    return torch.stack([z for z in logits if z is not None])
