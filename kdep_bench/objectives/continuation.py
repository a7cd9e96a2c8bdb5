"""Continuation-KD: a hinge loss on logits; the factor of the teacher's logits rises to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.schedules.build import as_schedule

PHI: Mapping[str, Any] = {"type": "kdep_bench.schedules.annealing.Annealing", "t_max": 20}


def hinge(s_BC: Tensor, t_BC: Tensor, phi: float, margin: float | Tensor) -> Tensor:
    """max(0, |s - phi t|^2 - margin phi) per sample, shape [B]; | |^2 sums over channels."""
    return ((s_BC - phi * t_BC).square().sum(1) - margin * phi).clamp(min=0)


class Continuation(Objective):
    """w max(0, |z_s - phi z_t|^2 / C - m phi E) / E on logits, with phi rising to 1; label-free.

    E is the mean square of the teacher's logits in the first batch. The published loss is
    psi CE + (1 - psi) L with this L and a rising psi: see configs/methods/continuation_labels.py,
    a WeightedSum of this class and CrossEntropy with two schedules. Here psi is 0. With m = 0 the
    loss is that of Annealing-KD.

    Source: arXiv 2212.05998, eqs 3-5 and algorithm 1. Chosen in this project: the division by C and
    by E, so that one weight and one margin suit every teacher; and the value of the margin, which
    the paper does not state. An output of zero has the loss w (1 - m) at phi = 1, and no loss
    while phi < m.

    Args:
        margin: m, as a fraction of E.
        weight: w.
        phi: a number or the config of a schedule.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "epochs"})

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        margin: NotNegative = 0.05,
        weight: Positive = 20.0,
        phi: float | Mapping[str, Any] = PHI,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        if margin < 0:
            raise KdepError(
                f"Continuation-KD has margin={margin}",
                expected="0 or more",
                fix="correct `margin` in the method's objective",
            )
        self.head = nn.Linear(width, teacher_classes)
        self.margin, self.weight, self.classes = float(margin), float(weight), teacher_classes
        self.phi = as_schedule(phi, epochs, "phi")
        self.scale = FirstBatch()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        logits = ctx.teacher.logits
        assert logits is not None
        phi = self.phi(ctx.step, ctx.steps)
        square_norm = self.classes * self.scale(
            lambda: logits.square().mean(), "the teacher's logit"
        )
        loss = hinge(self.head(ctx.post_activation), logits, phi, self.margin * square_norm)
        return {"hinge": self.weight / square_norm * loss}
