"""Curriculum temperature for knowledge distillation (CTKD): an adversarial temperature of logits.

The temperature is trained to increase the student's loss (AAAI 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.schedules.build import as_schedule

CURRICULUM: Mapping[str, Any] = {
    "type": "kdep_bench.schedules.cosine.Cosine",
    "start": 0.0,
    "end": -1.0,
    "span": 10.0,
}


class ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `factor`; negative means gradient ascent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.factor * grads[0], None


class CTKD(Objective):
    """Label-free logit KD with a learned temperature tau = start + range * sigmoid(theta).

    The gradient with respect to theta is multiplied by lambda, which decreases from 0 to -1 along
    half a cosine over the first 10 epochs: the temperature then maximises the loss that the student
    minimises. The gradient includes the derivative of the factor tau^2.

    Source: zhengli97/CTKD `models/temp_global.py`, `helper/loops.py`, `train_student.py`
    CosineDecay: start 1, range 20, initial theta 1 (tau = 15.62), so tau stays in (1, 21). The
    paper's cross-entropy with labels is omitted.

    Args:
        start: lower bound of tau.
        range: upper bound of tau minus `start`.
        theta: initial value of the parameter.
        curriculum: lambda, a number or the config of a schedule.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "epochs"})

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        start: float = 1.0,
        range: float = 20.0,
        theta: float = 1.0,
        curriculum: float | Mapping[str, Any] = CURRICULUM,
        epochs: float | None = None,
    ) -> None:
        super().__init__()
        if not (start > 0 and range >= 0):
            raise KdepError(
                f"CTKD has start={start}, range={range}",
                expected="start above 0, range 0 or more",
                fix="correct `start` and `range` in the method's objective",
            )
        self.head = nn.Linear(width, teacher_classes)
        self.start, self.range = float(start), float(range)
        self.theta = nn.Parameter(torch.tensor(float(theta)))
        self.curriculum = as_schedule(curriculum, epochs, "curriculum")

    def temperature(self, factor: float) -> Tensor:
        """tau, a scalar; its gradient with respect to theta is multiplied by `factor`."""
        return self.start + self.range * torch.sigmoid(ScaledGradient.apply(self.theta, factor))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        tau = self.temperature(self.curriculum(ctx.step, ctx.steps))
        return {"kl": soft_kl(ctx.teacher.logits, self.head(ctx.post_activation), tau)}
