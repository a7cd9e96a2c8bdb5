"""Regression of the teacher's pooled feature through a learned projector.

The KDEP paper compares its SVD with this method ("parametric alignment").
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO, loss_weight


class ProjectedRegression(Objective):
    """w * mean over channels of (p(student) - teacher)^2, per sample.

    The projector p is a linear layer with bias from the student's width to the teacher's, or
    Linear, ReLU, Linear if `hidden` is given. It is dropped at export. The linear layer equals the
    1x1 convolution of FitNets (Romero et al. 2015) and of the KDEP paper, because a 1x1 convolution
    commutes with average pooling.

    Args:
        width: number of channels of the student's feature; set by the pre-training stage.
        teacher_width: number of channels of the teacher's feature; set by the pre-training stage.
        teacher_mean_variance: mean over channels of the variance of the teacher's feature, set by
            the pre-training stage.
        hidden: width of the hidden layer; None for the linear projector.
        weight: w, or "auto" for `scale` / `teacher_mean_variance`; see `loss_weight`.
            FeatureRegression divides by the mean square of the target. Here the variance is used,
            because the bias learns the channel means within a few steps, and only the variance is
            left to learn.
        scale: used with weight="auto": the loss of a constant prediction (every channel's mean)
            then equals `scale`.
    """

    needs = frozenset({"pooled"})
    stage_arguments = frozenset({"width", "teacher_width", "teacher_mean_variance"})

    def __init__(
        self,
        width: int,
        teacher_width: int,
        teacher_mean_variance: float | None = None,
        hidden: Count | None = None,
        weight: Positive | Literal["auto"] = "auto",
        scale: Positive = DEFAULT_LOSS_AT_ZERO,
    ) -> None:
        super().__init__()
        if hidden is not None and hidden < 1:
            raise KdepError(
                f"the projector's hidden width is {hidden}",
                expected="1 or more, or None",
                fix="correct `hidden` in the method's objective",
            )
        self.weight = loss_weight(
            weight, scale, teacher_mean_variance, "the mean variance of the teacher's feature"
        )
        self.projector = (
            nn.Linear(width, teacher_width)
            if hidden is None
            else nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, teacher_width)
            )
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        error = self.projector(ctx.pre_activation) - ctx.teacher.pooled
        return {"feature": self.weight * error.square().mean(1)}
