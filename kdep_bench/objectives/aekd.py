"""Multi-teacher KD with teacher weights that minimise the gradient norm (Du et al. 2020)."""

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

SWEEPS = 30  # iterations over all pairs of three or more teachers; for two teachers 1 is exact


def least_norm_weights(gradients_KD: Tensor, limit: float) -> Tensor:
    """Weights a [K] that minimise |sum_k a_k g_k|^2 subject to sum a = 1, 0 <= a_k <= limit.

    Coordinate descent from equal weights: each step minimises exactly over one pair of weights.
    Equal gradients therefore give equal weights. There is no synchronisation with the GPU.

    Args:
        gradients_KD: g, one row per teacher.
        limit: upper bound of a weight; a limit below 1 / K is replaced by 1 / K.
    """
    count = len(gradients_KD)
    limit = max(limit, 1 / count)
    gram = (gradients_KD @ gradients_KD.T).double()
    weights = gram.new_full((count,), 1 / count)
    pairs = list(itertools.combinations(range(count), 2))
    for _ in range(1 if count == 2 else SWEEPS):
        for i, j in pairs:
            # Newton step that adds to weight i and subtracts the same from weight j.
            slope = (gram[i] - gram[j]) @ weights
            curvature = gram[i, i] + gram[j, j] - 2 * gram[i, j]
            step = torch.where(curvature > 0, -slope / curvature.clamp_min(1e-300), 0 * slope)
            low = torch.maximum(-weights[i], weights[j] - limit)
            high = torch.minimum(weights[j], limit - weights[i])
            step = step.clamp(low, high)
            weights = weights.clone()
            weights[i], weights[j] = weights[i] + step, weights[j] - step
    return weights.to(gradients_KD.dtype)


class AgreementKD(MultiTeacherKD):
    """MultiTeacherKD with the weights w_k per batch that minimise the norm of the summed gradient.

    w = argmin |sum_k w_k g_k|^2 subject to sum w = 1, 0 <= w_k <= tolerance. g_k is the gradient of
    teacher k's term with respect to the student's logits, averaged over the batch; for tau^2 KL_tau
    it is tau (softmax(z_s / tau) - softmax(z_k / tau)). If no weight is at its limit,
    a small step against the summed gradient does not increase the loss of any teacher.

    Source: Du et al. 2020, "Agree to Disagree", as AEKD in Rorozhl/CA-MKD `helper/loops.py`,
    `helper/optimization.py`. That code solves the same problem as a one-class SVM with
    nu = 1 / (C K), C = 0.6 (the tolerance here), but its solver returns the starting point when the
    gradients are small.

    Args:
        tolerance: largest weight of a teacher; a value below 1 / K gives equal weights 1 / K.
        width, teachers, tau, epochs: as in MultiTeacherKD.
    """

    couples_samples = True  # the loss of a sample depends on the others of its batch

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
        """The weights [K] of the teachers in this batch."""
        tau = self.tau(ctx.step, ctx.steps)
        student, gradients = F.softmax(student_BC / tau, 1), []
        for teacher in ctx.teachers.values():
            assert teacher.logits is not None
            gradients.append(tau * (student - F.softmax(teacher.logits / tau, 1)).mean(0))
        return least_norm_weights(torch.stack(gradients), self.tolerance)

    def weighted_terms(
        self, ctx: Context, student_BC: Tensor, terms: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        weights = dict(zip(ctx.teachers, self.agreement(ctx, student_BC), strict=True))
        return {role: weights[role] * term for role, term in terms.items()}
