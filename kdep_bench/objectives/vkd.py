"""VkD: regression of the normalised teacher feature through an orthogonal projector."""

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

    P [Dt, Ds], for the widths Dt of the teacher and Ds of the student, is trained, with orthonormal
    columns (rows if Ds > Dt) and no bias: it can rotate the student's feature but not scale its
    directions. It is dropped at export. The teacher's feature is normalised over its channels,
    without learned scale.

    Source: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal
    Projections", CVPR 2024, arXiv 2403.06213; formula as in the authors' roymiles/VkD `train.py`
    (an orthogonally parametrised Linear without bias) and `engine.py` (layer norm of the pooled
    teacher feature, smooth L1, factor alpha = 1, in addition to label and logit terms).

    Args:
        width: Ds, number of channels of the student's feature; set by the pre-training stage.
        teacher_width: Dt, the same for the teacher; set by the pre-training stage.
        weight: w, or "auto" for 2 * `scale`: smooth L1 is half the square near zero, and the
            normalised target has the mean square 1.
        scale: see `loss_weight`.
    """

    needs = frozenset({"pooled"})
    stage_arguments = frozenset({"width", "teacher_width"})

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
        self.is_student_wider = width > teacher_width

    def projector(self) -> Tensor:
        """P [Dt, Ds]: Q of the QR decomposition of the parameter `free`, with diag(R) positive.

        `torch.nn.utils.parametrizations.orthogonal` is not used, for two reasons. For these shapes
        it stores signs in the diagonal of its parameter, and the first weight decay turns one of
        them into 0. For [1280, 256] it takes 1.5 s per step on one core; this code takes 25 ms.
        """
        q, r = torch.linalg.qr(self.free)
        q = q * r.diagonal().sign()
        return q.T if self.is_student_wider else q

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        target = layer_norm(ctx.teacher.pooled, ctx.teacher.pooled.shape[1:])
        error = smooth_l1_loss(ctx.pre_activation @ self.projector().T, target, reduction="none")
        return {"feature": self.weight * error.mean(1)}
