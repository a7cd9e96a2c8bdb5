"""Normalised feature distillation: regression of standardised maps (arXiv 2207.05256)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.maps import Maps, check_levels, make_projectors, pairs

EPS = 1e-6  # added to a variance


def standardised(x_BCHW: Tensor) -> Tensor:
    """Scales each channel of each sample to mean 0 and std 1 over H x W; 0 where it is constant."""
    centred = x_BCHW - x_BCHW.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt()


class NFD(Objective):
    """w * sum over levels of mean over channels and positions of (z(r(F_s)) - z(F_t))^2.

    z standardises each channel over its positions. The loss of a channel is therefore 2 (1 - rho),
    with rho the correlation of the two maps, and does not depend on their scale and offset. r is a
    1x1 convolution if the numbers of channels differ (dropped at export), else the identity.

    Source: "Normalized Feature Distillation for Semantic Segmentation" (arXiv 2207.05256), as
    defined in one sentence by Liu et al. 2022 (standardise over width and height, then the
    Euclidean distance). The default weight was chosen in this project: uncorrelated maps have the
    loss 20.

    Args:
        levels: {student level: teacher map}.
        weight: w.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

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
        # The projectors; the name `through` is in checkpoints.
        self.through = make_projectors(
            levels,
            student_maps,
            teacher_maps,
            lambda s, t: nn.Conv2d(s, t, 1),
            project_equal_channels=False,
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return {
            level: self.weight * (standardised(s) - standardised(t)).square().mean((1, 2, 3))
            for level, s, t in pairs(ctx, self.levels, self.through)
        }
