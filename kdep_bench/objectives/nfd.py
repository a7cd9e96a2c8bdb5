"""Normalised feature distillation: each channel's spatial pattern, whatever its scale."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.maps import Maps, check_levels, pairs, projectors

EPS = 1e-6


def standardised(x_BCHW: Tensor) -> Tensor:
    """Every channel of every sample at mean 0 and deviation 1 over H x W; 0 if it is constant."""
    centred = x_BCHW - x_BCHW.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt()


class NFD(Objective):
    """w * sum over levels of mean over channels and places of (z(r(F_s)) - z(F_t))^2.

    z standardises a channel over its map, so that a level's mean is 2 (1 - rho) averaged over
    channels, rho the correlation of the two maps; it does not change when either side is scaled or
    shifted per channel. r is a 1x1 convolution where channels differ (dropped at export).

    Source: "Normalized Feature Distillation for Semantic Segmentation" (arXiv 2207.05256), in the
    one-sentence definition that Liu et al. 2022 quote (standardise over width and height, then the
    Euclidean distance). Its weight was not read: 10 makes an uncorrelated map cost 20.

    Args:
        levels: {student level: teacher map}.
        weight: w.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    requires = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        weight: Positive = 10.0,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        self.levels, self.weight = dict(levels), float(weight)
        self.through = projectors(
            levels, student_maps, teacher_maps, lambda s, t: nn.Conv2d(s, t, 1), always=False
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {
            level: self.weight * (standardised(s) - standardised(t)).square().mean((1, 2, 3))
            for level, s, t in pairs(ctx, self.levels, self.through)
        }
