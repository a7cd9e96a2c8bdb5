"""FitNets hints: levels of the student regress feature maps of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import unknown_name
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.maps import Maps, check_levels, make_projectors, pairs

DISTANCES = {
    "l2": lambda s, t: (s - t).square(),
    "l1": lambda s, t: (s - t).abs(),
    "huber": lambda s, t: F.smooth_l1_loss(s, t, reduction="none"),
}


def _loss_of_zero(difference: Callable[[Tensor, Tensor], Tensor], t: Tensor) -> Tensor:
    """Mean loss, a scalar, of predicting zero for the map t [B, C, H, W]."""
    return difference(torch.zeros_like(t), t).mean()


class Hints(Objective):
    """w * sum over levels of mean d(r(F_s) - F_t) / mean d(F_t).

    d is the square or another distance. r is a learned 1x1 convolution, dropped at export. The
    divisor is measured on the first batch, so that one weight suits every teacher: an output of
    zero has the loss w per level.

    Source: FitNets (Romero et al., ICLR 2015) in the form of HobbitLong/RepDistiller
    `distiller_zoo/FitNet.py`, `models/util.py` ConvReg (mean squared error after a convolution,
    weight 100, one middle level). Differences: there is no cross-entropy (label-free); the divisor;
    r has no BatchNorm and ReLU after the convolution; maps of different sizes are resized, where
    the source changes the kernel or the stride.

    Args:
        levels: {student level: teacher map}.
        weight: w.
        distance: d: "l2" (square), "l1" (absolute value) or "huber" (smooth L1, beta 1).
        hidden: channels of a hidden layer with ReLU in r; None for a linear r.
        init: r's weights are initialised from U(-init, init), as in the code of
            AberHu/Knowledge-Distillation-Zoo and lenscloth/RKD; None for torch's default.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 20.0,
        distance: str = "l2",
        hidden: Count | None = None,
        init: Positive | None = 0.005,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        if distance not in DISTANCES:
            raise unknown_name("distance of the hints", distance, DISTANCES)
        self.levels, self.weight, self.distance = dict(levels), float(weight), distance

        def projector(student_channels: int, teacher_channels: int) -> nn.Module:
            if hidden is None:
                layers = [nn.Conv2d(student_channels, teacher_channels, 1)]
            else:
                layers = [
                    nn.Conv2d(student_channels, hidden, 1, bias=False),
                    nn.BatchNorm2d(hidden),
                    nn.ReLU(),
                    nn.Conv2d(hidden, teacher_channels, 1),
                ]
            for layer in layers:
                if isinstance(layer, nn.Conv2d) and init is not None:
                    nn.init.uniform_(layer.weight, -init, init)
            return nn.Sequential(*layers)

        # The projectors; the name `through` is in checkpoints.
        self.through = make_projectors(
            levels, student_maps, teacher_maps, projector, project_equal_channels=True
        )
        self.scale = FirstBatch(len(levels))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        difference = DISTANCES[self.distance]
        for k, (level, s, t) in enumerate(pairs(ctx, self.levels, self.through)):
            reference = self.scale(
                partial(_loss_of_zero, difference, t), f"the teacher's map for {level}", k
            )
            out[level] = self.weight / reference * difference(s, t).mean((1, 2, 3))
        return out
