"""KDEP's objective: mean squared error to the fixed target, no labels, nothing learnable."""

from __future__ import annotations

from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective


class FeatureRegression(Objective):
    """w * mean over channels of (student - target)^2, per sample.

    Source: CVMI-Lab/KDEP `src/train_distill.py` (`mse_loss`, mean over batch and channels); the
    public scripts use w = 3 for one teacher and 20 for another.

    Args:
        weight: w, or "auto": w = 1 / (mean square of the target over the fitting rows). The loss
            is then the share of the target's energy that is not yet explained, 1 for an output of
            zero, whatever the teacher's scale, T or n, so one learning rate serves all teachers.
        target_energy: mean square of the target, set by the pre-training stage.
    """

    needs = frozenset({"target"})

    def __init__(self, weight: float | str = "auto", target_energy: float | None = None) -> None:
        super().__init__()
        if weight == "auto":
            if target_energy is None or not 0 < target_energy < float("inf"):
                raise KdepError(
                    f"the target's mean square is {target_energy}",
                    "a positive number for weight='auto'",
                    "check the teacher's features, or give `weight` a number",
                )
            weight = 1.0 / target_energy
        self.weight = float(weight)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.target is not None
        return {"feature": self.weight * (ctx.before - ctx.target).square().mean(1)}
