"""KDEP's objective: mean squared error to the fixed target, no labels, nothing learnable."""

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

    Under SGD the weight multiplies the learning rate, so a fixed w ties the rate to the scale of
    one teacher's target; "auto" is the rule of `loss_weight`. It makes the loss independent of the
    target's scale, but the student's output still has to reach that scale. With `unit`, the target
    is divided by its root mean square, and nothing depends on the scale: a teacher's feature times
    a constant then trains exactly the same student.

    Args:
        weight: w, or "auto".
        scale: the loss of an output of zero under "auto".
        target_mean_square: mean square of the target over the alignment samples; set by the
            pre-training stage.
        unit: divide the target by its root mean square over the alignment samples.
        tap: "before" regresses the student's feature before its last activation, as KDEP does;
            "after" the feature that a classifier reads.
    """

    needs = frozenset({"target"})
    requires = frozenset({"target_mean_square"})

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
        # Of the target as shown to the student, whose mean square is 1 in the unit of its own rms.
        self.weight = loss_weight(weight, scale, 1.0 if unit else target_mean_square)
        # 1 / loss_weight("auto", 1, mean_square) is the mean square, checked.
        self.rms = loss_weight("auto", 1.0, target_mean_square) ** -0.5 if unit else 1.0

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.target is not None
        target = ctx.target / self.rms if self.rms != 1.0 else ctx.target
        student = ctx.before if self.tap == "before" else ctx.after
        return {"feature": self.weight * (student - target).square().mean(1)}
