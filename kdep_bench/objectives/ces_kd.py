"""Curriculum expert selection (CES-KD): the difficulty of an image determines its teacher.

Easy images are used first (arXiv 2209.07606).
"""

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
    """Divides values into strata of equal frequency, at the quantiles of recent values.

    Args:
        count: K, the number of strata.
        memory: number of recent values that are stored (in a buffer).
    """

    recent: Tensor

    def __init__(self, count: int, memory: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("recent", torch.full((memory,), torch.nan))  # NaN: no value yet

    @torch.no_grad()
    def forward(self, values_B: Tensor) -> Tensor:
        """The stratum of each value, [B] int64, from 0 (smallest values) to K - 1.

        The quantiles include the values of this batch, which are stored in training mode only. A
        value that equals a quantile is in the lower stratum, so if all values are equal, all are in
        stratum 0.
        """
        recent = torch.cat([values_B.detach().to(self.recent), self.recent])[: len(self.recent)]
        if self.training:
            self.recent.copy_(recent)
        if self.count == 1:
            return torch.zeros_like(values_B, dtype=torch.int64)
        k = torch.arange(1, self.count, dtype=recent.dtype, device=recent.device)
        quantiles = torch.nanquantile(recent, k / self.count)
        return (values_B[:, None] > quantiles).sum(1)


class CurriculumExperts(Objective):
    """tau^2 KL_tau(teacher of the sample || student), for the easier part of the samples.

    The K teachers have the same classes and are listed by capacity, the smallest first. The
    difficulty of a sample is the entropy of the last teacher's softmax. The samples are divided by
    difficulty into K strata of equal frequency, and stratum k has teacher k. So the easiest samples
    have the smallest teacher. The pacing p grows during training: a step uses the first
    max(1, ceil(p K)) strata. The loss is the mean over their samples; the other samples have
    loss 0. No labels are used.

    Source: re-implementation from the abstract of arXiv 2209.07606. The abstract mentions one
    teacher per image, chosen by how difficult the image is to classify, and a gradual curriculum.
    Difficulty, strata, pacing and temperature were chosen in this project. The strata are computed
    from recent samples, so the teacher of a sample depends on earlier samples and on its batch. The
    student's linear head is dropped at export.

    Args:
        tau: temperature of the KL; the entropy has temperature 1.
        pacing: p, a number or the config of a schedule.
        memory: number of recent samples from which the strata are computed.
        width, teachers, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "epochs"})
    every_teacher = True  # the stage passes `teachers`, which replaces teacher_classes
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
        self.tau, self.pacing = float(tau), as_schedule(pacing, epochs, "pacing")

    def difficulty(self, ctx: Context) -> Tensor:
        """[B]: entropy in nats of the last teacher's probabilities."""
        return torch.special.entr(F.softmax(_logits(ctx)[-1], 1)).sum(1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        stratum = self.strata(self.difficulty(ctx))
        return {
            "kl": self.scale(ctx, stratum) * self.kl(ctx, self.head(ctx.post_activation), stratum)
        }

    def kl(self, ctx: Context, student_BC: Tensor, stratum_B: Tensor) -> Tensor:
        """[B]: tau^2 KL_tau of each sample's teacher and the student."""
        logits_KBC = _logits(ctx)
        rows = torch.arange(len(stratum_B), device=stratum_B.device)
        return soft_kl(logits_KBC[stratum_B, rows], student_BC, self.tau)

    def scale(self, ctx: Context, stratum_B: Tensor) -> Tensor:
        """[B]: batch size / number of samples in the used strata; 0 for the other samples."""
        p = self.pacing(ctx.step, ctx.steps)
        # 1e-6: if rounding makes p K slightly larger than an integer, ceil would add a stratum.
        n_strata = max(1, math.ceil(p * self.strata.count - 1e-6))
        used = (stratum_B < n_strata).float()
        return used * len(used) / used.sum().clamp(min=1)


class CurriculumExpertsWithLabels(CurriculumExperts):
    """(1 - alpha) CE(y, student) + alpha * (the KL of CurriculumExperts), on one head.

    Both terms use only the samples of the used strata. The difficulty is the cross-entropy of the
    last teacher's logits with the label. The labels must be the classes of the teachers'
    classifiers.

    Args:
        alpha: weight of the distillation term, 0 to 1.
        tau, pacing, memory, width, teachers, epochs: as in CurriculumExperts.
        classes: number of classes of the labels, set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = CurriculumExperts.stage_arguments | {"classes"}

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
        student, stratum = self.head(ctx.post_activation), self.strata(self.difficulty(ctx))
        scale = self.scale(ctx, stratum)
        cross_entropy = F.cross_entropy(student, ctx.labels, reduction="none")
        kl = self.kl(ctx, student, stratum)
        return {
            "cross_entropy": (1 - self.alpha) * (scale * cross_entropy),
            "kl": self.alpha * (scale * kl),
        }


def _logits(ctx: Context) -> Tensor:
    """[K, B, C]: the teachers' logits, in the order of `teachers` in the config."""
    logits = [teacher.logits for teacher in ctx.teachers.values()]
    assert all(z is not None for z in logits)
    return torch.stack([z for z in logits if z is not None])
