"""Teachers weighted by how far their gradients agree (Du et al., NeurIPS 2020)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.multi_teacher import MultiTeacherKD

SWEEPS = 30  # over all pairs of teachers; one is exact for two teachers


def least_norm_weights(gradients_KD: Tensor, limit: float) -> Tensor:
    """[K]: argmin |sum_k a_k g_k|^2 over sum a = 1, 0 <= a_k <= limit (at least 1 / K).

    By exact minimisation over one pair of weights after another, from equal weights: where the
    gradients are equal, so are the weights. On the device of the gradients, without waiting for it.
    """
    count = len(gradients_KD)
    limit = max(limit, 1 / count)
    gram = (gradients_KD @ gradients_KD.T).double()
    a = gram.new_full((count,), 1 / count)
    pairs = list(itertools.combinations(range(count), 2))
    for _ in range(1 if count == 2 else SWEEPS):
        for i, j in pairs:
            slope = (gram[i] - gram[j]) @ a  # along e_i - e_j
            curvature = gram[i, i] + gram[j, j] - 2 * gram[i, j]
            step = torch.where(curvature > 0, -slope / curvature.clamp_min(1e-300), 0 * slope)
            low = torch.maximum(-a[i], a[j] - limit)
            high = torch.minimum(a[j], limit - a[i])
            step = step.clamp(low, high)
            a = a.clone()
            a[i], a[j] = a[i] + step, a[j] - step
    return a.to(gradients_KD.dtype)


class AgreementKD(MultiTeacherKD):
    """MultiTeacherKD whose w_k, equal for all samples of a batch, give the least-norm gradient.

    w = argmin |sum_k w_k g_k|^2, sum w = 1, 0 <= w_k <= tolerance, with g_k the mean over the batch
    of the gradient of teacher k's term with respect to the student's logits: a direction in which
    no teacher's loss grows. g_k = tau (softmax(z_s / tau) - softmax(z_k / tau)) for tau^2 KL_tau.

    Source: Du et al. 2020, "Agree to Disagree", as AEKD in Rorozhl/CA-MKD `helper/loops.py`,
    `helper/optimization.py` (a one-class SVM with nu = 1 / (C K), the same problem; tolerance is
    its C = 0.6). That SVM stops at its starting point where the gradients are small; here the
    problem is solved.

    Args:
        tolerance: largest weight of a teacher; below 1 / K it is 1 / K, equal weights.
        the others: as in MultiTeacherKD.
    """

    couples_samples = True

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        tau: Positive | Mapping[str, Any] = 4.0,
        tolerance: Positive = 0.6,
        epochs: float | None = None,
    ) -> None:
        super().__init__(width, teachers, tau=tau, epochs=epochs)
        self.tolerance = float(tolerance)

    @torch.no_grad()
    def agreement(self, ctx: Context, student_BC: Tensor) -> Tensor:
        """[K]: the weights of this batch."""
        tau = self.tau(ctx.step, ctx.steps)
        student, gradients = F.softmax(student_BC / tau, 1), []
        for teacher in ctx.teachers.values():
            assert teacher.logits is not None
            gradients.append(tau * (student - F.softmax(teacher.logits / tau, 1)).mean(0))
        return least_norm_weights(torch.stack(gradients), self.tolerance)

    def weighed(
        self, ctx: Context, student_BC: Tensor, terms: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        weights = dict(zip(ctx.teachers, self.agreement(ctx, student_BC), strict=True))
        return {role: weights[role] * term for role, term in terms.items()}
