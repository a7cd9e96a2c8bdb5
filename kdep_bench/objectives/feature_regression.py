"""KDEP's objective: mean squared error to the fixed target, no labels, nothing learnable."""

from __future__ import annotations

from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective

# With this factor the KDEP arm trains at the learning rates of the supervised arm (see
# `configs/suites/pocket_weight.py`, which varies it): the loss starts at AUTO, and the weight decay
# of the paper keeps its meaning, which a large learning rate in place of the weight would not.
AUTO = 20.0


class FeatureRegression(Objective):
    """w * mean over channels of (student - target)^2, per sample.

    Source: CVMI-Lab/KDEP `src/train_distill.py` (`mse_loss`, mean over batch and channels); the
    public scripts use w = 3 for one teacher and 20 for another.

    The weight multiplies the learning rate under SGD, so a fixed w ties the rate to the scale of
    one teacher's target. "auto" removes it: w = `scale` / (mean square of the target over the
    fitting rows), so that the loss is `scale` times the share of the target's energy not yet
    explained, whatever the teacher, T or n.

    Args:
        weight: w, or "auto".
        scale: the loss of an output of zero under "auto".
        target_energy: mean square of the target, set by the pre-training stage.
    """

    needs = frozenset({"target"})
    asks = frozenset({"target_energy"})

    def __init__(
        self, weight: float | str = "auto", scale: float = AUTO, target_energy: float | None = None
    ) -> None:
        super().__init__()
        if weight == "auto":
            if target_energy is None or not 0 < target_energy < float("inf"):
                raise KdepError(
                    f"the target's mean square is {target_energy}",
                    "a positive number for weight='auto'",
                    "check the teacher's features, or give `weight` a number",
                )
            weight = scale / target_energy
        self.weight = float(weight)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.target is not None
        return {"feature": self.weight * (ctx.before - ctx.target).square().mean(1)}
