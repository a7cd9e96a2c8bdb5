"""KDEP's objective: mean squared error to a fixed target, without labels or learned parameters."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdep_bench.bounds import Positive
from kdep_bench.errors import unknown_name
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO as DEFAULT_LOSS_AT_ZERO
from kdep_bench.objectives.weight import loss_weight


class FeatureRegression(Objective):
    """w * mean over channels of (student - target)^2, per sample.

    Source: CVMI-Lab/KDEP `src/train_distill.py` (`mse_loss`, mean over batch and channels).

    With SGD, w multiplies the learning rate, so the best fixed w depends on the scale of the
    teacher's target. "auto" divides by the target's mean square (see `loss_weight`), which makes
    the loss independent of that scale, but the student's output must still grow to the scale. With
    `unit`, the target is divided by its root mean square, so training does not depend on its scale.

    Args:
        weight: w, or "auto".
        scale: the loss of an output of zero, for weight="auto".
        target_mean_square: mean square of the target over the alignment samples; set by the
            pre-training stage.
        unit: divide the target by its root mean square over the alignment samples.
        tap: "before" regresses the student's feature before its last activation, as KDEP does;
            "after" regresses the feature after it, which a classifier reads.
    """

    needs = frozenset({"target"})
    stage_arguments = frozenset({"target_mean_square"})

    def __init__(
        self,
        weight: Positive | Literal["auto"] = "auto",
        scale: Positive = DEFAULT_LOSS_AT_ZERO,
        target_mean_square: float | None = None,
        unit: bool = False,
        tap: Literal["before", "after"] = "before",
    ) -> None:
        super().__init__()
        if tap not in ("before", "after"):
            raise unknown_name("tap of the student", tap, ("before", "after"))
        self.tap = tap
        # A target divided by its root mean square has the mean square 1.
        self.weight = loss_weight(weight, scale, 1.0 if unit else target_mean_square)
        # loss_weight("auto", 1, mean_square) is 1 / mean_square, or an error if that is not finite.
        self.rms = loss_weight("auto", 1.0, target_mean_square) ** -0.5 if unit else 1.0

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.target is not None
        target = ctx.target / self.rms if self.rms != 1.0 else ctx.target
        student = ctx.pre_activation if self.tap == "before" else ctx.post_activation
        return {"feature": self.weight * (student - target).square().mean(1)}
