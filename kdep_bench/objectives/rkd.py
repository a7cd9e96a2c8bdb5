"""Relational knowledge distillation (Park et al., CVPR 2019): distances and angles in a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Count, NotNegative
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective

EPS = 1e-12


def scaled_distances(x_BD: Tensor) -> Tensor:
    """[B, B] Euclidean distances over the mean of the positive ones; the diagonal is 0."""
    square = x_BD.square().sum(1)
    d = (square[:, None] + square[None] - 2 * x_BD @ x_BD.T).clamp(min=EPS).sqrt()
    d = d * (1 - torch.eye(len(d), dtype=d.dtype, device=d.device))
    positive = (d > 0).to(d.dtype)
    return d / ((d * positive).sum() / positive.sum().clamp(min=1)).clamp(min=EPS)


def angles(x_BD: Tensor, vertices: int) -> Tensor:
    """[V, B, B]: cosine of the angle at each of the first V samples between every two others."""
    rays = F.normalize(x_BD[None] - x_BD[:vertices, None], dim=2)
    return rays @ rays.transpose(1, 2)


class RKD(Objective):
    """a * mean_ij huber(d_ij) + b * mean_ijk huber(cos angle_jik), student against teacher.

    Source: lenscloth/RKD `metric/loss.py`: Huber with threshold 1, eps 1e-12, the means over all
    pairs and triples, the diagonal included; distances over their batch mean, so that the loss is
    zero for any shift, rotation and scale of the teacher's feature. Weights 1 and 2 for metric
    learning there, 25 and 50 in HobbitLong/RepDistiller (the defaults here).

    Needs no projector: widths may differ. Costs O(B^2 D) for the distances and O(V B^2 D) time and
    O(V B (B + D)) memory for the angles.

    Args:
        distance, angle: a and b.
        vertices: V, how many samples of a batch serve as the vertex of angles; None for all B. The
            first V are taken: a batch is in random order already.
    """

    needs = frozenset({"pooled"})
    couples_samples = True

    def __init__(
        self, distance: NotNegative = 25.0, angle: NotNegative = 50.0, vertices: Count | None = None
    ) -> None:
        super().__init__()
        if vertices is not None and vertices < 1:
            raise KdepError(
                f"RKD has vertices={vertices}",
                expected="None or a positive number",
                fix="correct `vertices` in the method's objective",
            )
        self.distance, self.angle, self.vertices = float(distance), float(angle), vertices

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        s, t = ctx.before, ctx.teacher.pooled
        b = len(s)
        v = b if self.vertices is None else min(self.vertices, b)
        with torch.no_grad():
            t_distance, t_angle = scaled_distances(t), angles(t, v)
        far = F.smooth_l1_loss(scaled_distances(s), t_distance, reduction="none").mean(1)
        turn = F.smooth_l1_loss(angles(s, v), t_angle, reduction="none").mean((1, 2))
        # Samples that are no vertex have no angle of their own; b / v keeps the mean over b.
        turn = torch.cat((turn * (b / v), turn.new_zeros(b - v)))
        return {"distance": self.distance * far, "angle": self.angle * turn}
