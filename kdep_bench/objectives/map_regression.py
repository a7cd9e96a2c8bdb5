"""KDEP on feature maps: levels of the student regress the teacher's maps, reduced by SVD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.features.align import build_aligner
from kdep_bench.features.aligners import explained_variance_ratio, orthogonal
from kdep_bench.features.map_moments import open_map_moments
from kdep_bench.features.transform import PowerTemperature
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.objectives.signs import components
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO

TAPS = ("after", "before")  # read a level after or before its last activation
ROTATION_SEED = 0


class MapTarget(nn.Module):
    """Computes the regression target of one student level from one teacher map; not trained.

    The teacher map [B, Ct, H, W] becomes a target [B, C, side, side] in four steps:

    1. The alignment (SVD) reduces the channels t of every position: z = V' (t - mean).
    2. z is resized to side x side. Steps 1 and 2 commute; this order is cheaper.
    3. Power temperature scaling: g = sign(z) |z|^(1/n).
    4. `sign` determines the form of negative values, because student channels after a ReLU are not
       negative: "pairs" is concat(relu(g), relu(-g)), "plain" is g, "rotation" is a random rotation
       of g (see `objectives/signs.py`).

    Args:
        folder: means and covariances of the teacher's maps; see `features/map_moments.py`.
        name: name of the teacher's map.
        side: height and width of the target, in positions.
        channels: C, channels of the student level.
        sign: "pairs", "plain" or "rotation".
        n: n of power temperature scaling.
        align: config of the alignment, which is fitted to get V and mean.

    Attributes:
        explained_variance_ratio: fraction of the variance over positions that z keeps.
    """

    mean: Tensor
    components: Tensor
    rotation: Tensor | None

    def __init__(
        self,
        folder: str,
        name: str,
        side: int,
        channels: int,
        sign: str,
        n: float,
        align: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.side, self.sign = side, sign
        moments = open_map_moments(folder, name, side)
        width = components(sign, channels)
        basis = build_aligner(align).fit(moments, width)
        self.explained_variance_ratio = explained_variance_ratio(moments, basis)
        # Not persistent: a resumed run fits them again. Persistent buffers would be counted as
        # extra parameters of the method.
        self.register_buffer("mean", basis.mean, persistent=False)
        self.register_buffer("components", basis.components, persistent=False)
        rotation = orthogonal(width, ROTATION_SEED).float() if sign == "rotation" else None
        self.register_buffer("rotation", rotation, persistent=False)
        self.power = PowerTemperature(T=1.0, n=n)

    @torch.no_grad()
    def forward(self, t_BCHW: Tensor) -> Tensor:
        z = torch.einsum("bchw,ck->bkhw", t_BCHW - self.mean[:, None, None], self.components)
        g = resize_map(z, (self.side, self.side))
        if self.power.n != 1:
            g = self.power(g)
        if self.rotation is not None:
            g = torch.einsum("bkhw,kj->bjhw", g, self.rotation)
        return torch.cat([g.relu(), (-g).relu()], 1) if self.sign == "pairs" else g


class MapRegression(Objective):
    """Regression of feature maps: the loss of a sample is the sum of w_l L_l over the levels l.

    L_l is the mean of (F - g / rms(g))^2 over channels and positions. F is the student's map of the
    level, and g its target, computed by MapTarget. rms(g) is measured on the first batch, so an
    output of zero has the loss w_l, and the temperature of power temperature scaling has no effect.

    This is a method of this project. It applies KDEP's recipe (He et al., CVPR 2022: SVD of the
    teacher's feature, no projector, no labels) to every position of feature maps instead of to the
    pooled feature.

    Args:
        levels: {student level: teacher map}.
        weight: sum of w_l over the levels; 20 as for KDEP's loss.
        shares: {student level: its fraction of `weight`}, sum 1; None for equal fractions.
        sign: "pairs", "plain" or "rotation": see `objectives/signs.py`.
        n: n of power temperature scaling, z -> sign(z) |z|^(1/n); 1 changes nothing.
        tap: "after" regresses the student's levels after their last activation; "before" regresses
            the inputs of these activations.
        pooled: regress the global means of both maps instead of every position.
        align: config of the alignment, as `align` of a method; it is fitted over positions. Its key
            `policy` is for levels with more channels in the student than in the teacher; see
            `features/policies.py`.
        student_maps, teacher_maps, map_moments: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps", "map_moments"})

    def __init__(
        self,
        levels: Mapping[str, str],
        student_maps: Maps,
        teacher_maps: Maps,
        map_moments: str,
        weight: float = DEFAULT_LOSS_AT_ZERO,
        shares: Mapping[str, float] | None = None,
        sign: str = "pairs",
        n: float = 1.0,
        tap: str = "after",
        pooled: bool = False,
        align: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        if tap not in TAPS:
            raise unknown_name("tap of the student's maps", tap, TAPS)
        self.levels, self.tap, self.pooled = dict(levels), tap, pooled
        self.weights = {k: weight * v for k, v in level_shares(levels, shares).items()}
        self.targets = nn.ModuleDict(
            {
                student_map: MapTarget(
                    map_moments,
                    teacher_map,
                    1 if pooled else student_maps[student_map]["side"],
                    student_maps[student_map]["channels"],
                    sign,
                    n,
                    align or {"type": "svd"},
                )
                for student_map, teacher_map in levels.items()
            }
        )
        self.scale = FirstBatch(len(levels))

    @classmethod
    def pre_activation_levels(cls, config: Mapping[str, Any]) -> frozenset[str]:
        return frozenset(config["levels"]) if config.get("tap") == "before" else frozenset()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        maps, out = ctx.pre_activation_maps if self.tap == "before" else ctx.maps, {}
        for k, (student_map, teacher_map) in enumerate(self.levels.items()):
            target = self.targets[student_map](ctx.teacher.maps[teacher_map])
            mean_square = self.scale(
                lambda g=target: g.square().mean(), f"the target of {student_map}", k
            )
            student = maps[student_map]
            if self.pooled:
                student = student.mean((2, 3), keepdim=True)
            error = student - target / mean_square.sqrt()
            out[student_map] = self.weights[student_map] * error.square().mean((1, 2, 3))
        return out


def level_shares(levels: Mapping[str, str], shares: Mapping[str, float] | None) -> dict[str, float]:
    """The fraction of the weight per level: `shares`, or equal fractions if that is None.

    Raises:
        KdepError: `shares` has other keys than `levels`, a value that is not positive, or a sum
            other than 1.
    """
    if shares is None:
        return dict.fromkeys(levels, 1.0 / len(levels))
    if (
        set(shares) != set(levels)
        or abs(sum(shares.values()) - 1) > 1e-6
        or min(shares.values()) <= 0
    ):
        raise KdepError(
            f"MapRegression has shares={dict(shares)}",
            expected=f"one positive number for each of {', '.join(levels)}, with sum 1",
            fix="correct `shares` in the method's objective",
        )
    return {student_map: float(shares[student_map]) for student_map in levels}
