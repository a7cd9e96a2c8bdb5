"""Continuation-KD's hinge: follow a teacher that is faded in, and ignore what is close enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.schedules.base import as_schedule

PHI: Mapping[str, Any] = {"type": "kdep_bench.schedules.annealing.Annealing", "t_max": 20}


def hinge(s_BC: Tensor, t_BC: Tensor, phi: float, margin: float) -> Tensor:
    """[B]: max(0, |s - phi t|^2 - margin phi), the sum over channels."""
    return ((s_BC - phi * t_BC).square().sum(1) - margin * phi).clamp(min=0)


class Continuation(Objective):
    """w max(0, |z_s - phi z_t|^2 - m phi) / C on logits, phi rising to 1: the label-free form.

    As published the loss is psi CE + (1 - psi) of this, psi rising: a WeightedSum of this and
    CrossEntropy with two schedules (configs/methods/continuation_labels.py). Without labels psi is
    0. With m = 0 it is Annealing-KD.

    Source: arXiv 2212.05998, eqs 3-5 and algorithm 1. Two choices are this project's: the margin's
    value (none is printed) and the division by C, which gives w and m a meaning whatever the number
    of classes; w = C is the paper's sum.

    Args:
        margin: m, in units of squared logits a class.
        weight: w.
        phi: a number or a schedule.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    asks = frozenset({"width", "teacher_classes", "epochs"})

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        margin: float = 0.1,
        weight: float = 20.0,
        phi: float | Mapping[str, Any] = PHI,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        if margin < 0:
            raise KdepError(f"Continuation-KD got margin={margin}", "0 or more")
        self.head = nn.Linear(width, teacher_classes)
        self.margin, self.weight, self.classes = float(margin), float(weight), teacher_classes
        self.phi = as_schedule(phi, epochs)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        phi, c = self.phi(ctx.step, ctx.steps), self.classes
        far = hinge(self.head(ctx.after), ctx.teacher.logits, phi, self.margin * c)
        return {"hinge": self.weight / c * far}
