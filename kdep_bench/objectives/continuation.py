"""Continuation-KD's hinge: follow a teacher that is faded in, and ignore what is close enough."""

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
    """[B]: max(0, |s - phi t|^2 - margin phi), the sum over channels."""
    return ((s_BC - phi * t_BC).square().sum(1) - margin * phi).clamp(min=0)


class Continuation(Objective):
    """w max(0, |z_s - phi z_t|^2 / C - m phi E) / E on logits, phi rising to 1; label-free.

    As published the loss is psi CE + (1 - psi) of this, psi rising: a WeightedSum of this and
    CrossEntropy with two schedules (configs/methods/continuation_labels.py). Without labels psi is
    0. With m = 0 it is Annealing-KD.

    Source: arXiv 2212.05998, eqs 3-5 and algorithm 1, where the sum over the C classes has no
    divisor. Chosen in this project: the margin's value, which the paper does not state, and the
    unit of weight and margin: E is the mean square of the teacher's logits in the first batch, so
    that one weight and one margin fit every teacher, as KDEP's weight does. An output of zero has
    the loss w (1 - m) at phi = 1. While phi < m, an output of zero is within the margin, so nothing
    would be learned.

    Args:
        margin: m, as a fraction of E.
        weight: w.
        phi: a number or a schedule.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    requires = frozenset({"width", "teacher_classes", "epochs"})

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
        self.phi = as_schedule(phi, epochs)
        self.scale = FirstBatch()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        logits = ctx.teacher.logits
        assert logits is not None
        phi = self.phi(ctx.step, ctx.steps)
        square_norm = self.classes * self.scale(
            lambda: logits.square().mean(), "the teacher's logit"
        )
        far = hinge(self.head(ctx.after), logits, phi, self.margin * square_norm)
        return {"hinge": self.weight / square_norm * far}
