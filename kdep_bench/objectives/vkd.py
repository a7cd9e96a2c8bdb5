"""VkD: an orthogonal projector on the student's side and a normalised teacher feature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.weight import DEFAULT_LOSS_AT_ZERO


class OrthogonalProjection(Objective):
    """w * mean over channels of smooth_l1(P student, layer_norm(teacher)), per sample.

    P [Dt, Ds] has orthonormal columns (rows where Ds > Dt) and no bias, so it can turn the
    student's feature but not stretch any of it: what is learned must be in the student. The
    teacher's feature is normalised over its channels, without learned scale.

    Source: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal
    Projections", CVPR 2024, arXiv 2403.06213; formula as in the authors' roymiles/VkD `train.py`
    (an orthogonally parametrised Linear without bias) and `engine.py` (layer norm of the pooled
    teacher feature, smooth L1, factor alpha = 1, in addition to label and logit terms).

    Args:
        width: Ds. teacher_width: Dt. Both given by the pre-training stage.
        weight: w, or "auto": twice `scale`, since smooth L1 is half the square near zero and the
            normalised target has mean square 1: the slope is that of FeatureRegression's rule.
        scale: see `loss_weight`.
    """

    needs = frozenset({"pooled"})
    requires = frozenset({"width", "teacher_width"})

    def __init__(
        self,
        width: int,
        teacher_width: int,
        weight: Positive | Literal["auto"] = "auto",
        scale: Positive = DEFAULT_LOSS_AT_ZERO,
    ) -> None:
        super().__init__()
        self.weight = 2.0 * scale if weight == "auto" else float(weight)
        self.free = nn.Parameter(torch.empty(max(width, teacher_width), min(width, teacher_width)))
        nn.init.orthogonal_(self.free)
        self.wide = width > teacher_width

    def projector(self) -> Tensor:
        """P [Dt, Ds]: the Q of the unique QR of a free matrix with positive diagonal of R.

        Not torch's `parametrizations.orthogonal`: its default for such shapes keeps +-1 signs in
        the diagonal of the parameter, casts them to integers, and so loses a column to the first
        weight decay; and at [1280, 256] it takes 1.5 s a step on one core where this takes 25 ms.
        """
        q, r = torch.linalg.qr(self.free)
        q = q * r.diagonal().sign()
        return q.T if self.wide else q

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        target = layer_norm(ctx.teacher.pooled, ctx.teacher.pooled.shape[1:])
        error = smooth_l1_loss(ctx.before @ self.projector().T, target, reduction="none")
        return {"feature": self.weight * error.mean(1)}
