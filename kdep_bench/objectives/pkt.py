"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective

EPS = 1e-7  # as in the source


def neighbour_probabilities(x_BD: Tensor) -> Tensor:
    """(cosine + 1) / 2 of every pair of samples, [B, B], each row divided by its sum."""
    unit = F.normalize(x_BD, dim=1)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKT(Objective):
    """w * mean over B^2 of P_t log(P_t / P_s), with P of `neighbour_probabilities`.

    The loss is invariant to rotations of the features and to the length of each feature. It takes
    O(B^2 D) time.

    Source: HobbitLong/RepDistiller `distiller_zoo/PKT.py` (authors: passalis/probabilistic_kt),
    weight 30000.

    Args:
        weight: w.
    """

    needs = frozenset({"pooled"})
    couples_samples = True

    def __init__(self, weight: Positive = 30000.0) -> None:
        super().__init__()
        self.weight = float(weight)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        p_s = neighbour_probabilities(ctx.pre_activation)
        p_t = neighbour_probabilities(ctx.teacher.pooled)
        return {"pkt": self.weight * (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean(1)}
