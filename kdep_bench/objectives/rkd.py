"""Relational knowledge distillation (Park et al., CVPR 2019): distances and angles in a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Count, NotNegative
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective

EPS = 1e-12  # as in the source; it keeps the gradient of the square root finite


def scaled_distances(x_BD: Tensor) -> Tensor:
    """Euclidean distances [B, B] divided by the mean of the positive ones; the diagonal is 0."""
    square = x_BD.square().sum(1)
    distance = (square[:, None] + square[None] - 2 * x_BD @ x_BD.T).clamp(min=EPS).sqrt()
    distance = distance * (1 - torch.eye(len(distance), dtype=x_BD.dtype, device=x_BD.device))
    positive = (distance > 0).to(distance.dtype)
    mean = (distance * positive).sum() / positive.sum().clamp(min=1)
    return distance / mean.clamp(min=EPS)


def angles(x_BD: Tensor, vertices: int) -> Tensor:
    """Cosines [V, B, B] of the angles at the first V samples, V = `vertices`.

    Entry (v, i, j) is the cosine of the angle between the directions from sample v to i and to j.
    """
    rays = F.normalize(x_BD[None] - x_BD[:vertices, None], dim=2)
    return rays @ rays.transpose(1, 2)


class RKD(Objective):
    """a * mean of huber(d^s - d^t) over pairs + b * mean of huber(c^s - c^t) over triples.

    d are the `scaled_distances` and c the `angles` (cosines) of the batch, of student and teacher.
    The loss is 0 if the student's feature is a shifted, rotated and scaled copy of the teacher's.
    The widths may differ; there is no projector. Cost: O(B^2 D) time for the distances,
    O(V B^2 D) time and O(V B (B + D)) memory for the angles.

    Source: lenscloth/RKD `metric/loss.py`: Huber loss with threshold 1, eps 1e-12, means over all
    pairs and triples, the diagonal included. Its weights are 1 and 2, for metric learning; the
    defaults here, 25 and 50, are those of HobbitLong/RepDistiller.

    Args:
        distance: a, weight of the distances.
        angle: b, weight of the angles.
        vertices: V, number of samples of a batch that are used as vertices of angles; None for all
            B. The first V are used, which is a random choice, because batches are in random order.
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
        student, teacher = ctx.pre_activation, ctx.teacher.pooled
        batch = len(student)
        vertices = batch if self.vertices is None else min(self.vertices, batch)
        with torch.no_grad():
            t_distances, t_angles = scaled_distances(teacher), angles(teacher, vertices)
        s_distances, s_angles = scaled_distances(student), angles(student, vertices)
        distance_loss = F.smooth_l1_loss(s_distances, t_distances, reduction="none").mean(1)
        angle_loss = F.smooth_l1_loss(s_angles, t_angles, reduction="none").mean((1, 2))
        # Samples that are not vertices have no angle loss. The factor turns the mean over the batch
        # into the mean over the vertices.
        angle_loss = angle_loss * (batch / vertices)
        angle_loss = torch.cat((angle_loss, angle_loss.new_zeros(batch - vertices)))
        return {"distance": self.distance * distance_loss, "angle": self.angle * angle_loss}
