"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective

EPS = 1e-7  # as in the source


def neighbours(x_BD: Tensor) -> Tensor:
    """[B, B]: (cosine + 1) / 2 of every pair, each row divided by its sum."""
    unit = F.normalize(x_BD, dim=1)
    likeness = (unit @ unit.T + 1) / 2
    return likeness / likeness.sum(1, keepdim=True)


class PKT(Objective):
    """w * mean over B^2 of P_t log(P_t / P_s), P a row of cosine similarities as probabilities.

    Source: HobbitLong/RepDistiller `distiller_zoo/PKT.py` (authors: passalis/probabilistic_kt),
    weight 30000. Invariant to rotation and to the length of each feature. O(B^2 D).
    """

    needs = frozenset({"pooled"})
    couples_samples = True

    def __init__(self, weight: Positive = 30000.0) -> None:
        super().__init__()
        self.weight = float(weight)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        p_s, p_t = neighbours(ctx.before), neighbours(ctx.teacher.pooled)
        return {"pkt": self.weight * (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean(1)}
