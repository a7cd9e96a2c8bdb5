"""The correlation term of correlation congruence (Peng et al., ICCV 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective


class CorrelationCongruence(Objective):
    """w * mean over B^2 of (K_s - K_t)^2, K a Gaussian kernel of normalised features.

    K(x, y) = exp(-gamma |x - y|^2), which is exp(-2 gamma) exp(2 gamma x.y) for |x| = |y| = 1, is
    approximated by its Taylor series of order P: exp(-2 gamma) sum_p (2 gamma)^p / p! (x.y)^p.

    Source: the paper's kernel as in AberHu/Knowledge-Distillation-Zoo `kd_losses/cc.py` (gamma 0.4,
    P = 2). RepDistiller's `CC.py` is a different loss. The default weight was chosen in this
    project.

    Args:
        gamma: inverse squared width of the kernel.
        order: P.
        weight: w.
    """

    needs = frozenset({"pooled"})
    couples_samples = True

    def __init__(self, gamma: Positive = 0.4, order: Count = 2, weight: Positive = 1000.0) -> None:
        super().__init__()
        if not gamma > 0 or order < 1:
            raise KdepError(
                f"correlation congruence has gamma={gamma}, order={order}",
                expected="gamma above 0, order 1 or more",
                fix="correct `gamma` and `order` in the method's objective",
            )
        self.gamma, self.order, self.weight = float(gamma), order, float(weight)

    def kernel(self, x_BD: Tensor) -> Tensor:
        """Kernel matrix [B, B] of features [B, D]."""
        unit = F.normalize(x_BD, dim=1)
        cosine = unit @ unit.T
        total = torch.zeros_like(cosine)
        for p in range(self.order + 1):
            total = total + (2 * self.gamma) ** p / math.factorial(p) * cosine**p
        return math.exp(-2 * self.gamma) * total

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        difference = self.kernel(ctx.pre_activation) - self.kernel(ctx.teacher.pooled)
        return {"correlation": self.weight * difference.square().mean(1)}
