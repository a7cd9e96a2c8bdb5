"""Similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective


def row_gram(x_BD: Tensor) -> Tensor:
    """The Gram matrix [B, B] of features [B, D]; each row of the matrix has Euclidean length 1."""
    return F.normalize(x_BD @ x_BD.T, dim=1)


class SimilarityPreserving(Objective):
    """w * |G_s - G_t|_F^2 / B^2, with G the `row_gram` of student and teacher feature.

    The loss is invariant to rotation and scale of both features, whose widths may differ. It takes
    O(B^2 D) time.

    Source: HobbitLong/RepDistiller `distiller_zoo/SP.py`, weight 3000.

    Args:
        weight: w.
    """

    needs = frozenset({"pooled"})
    couples_samples = True

    def __init__(self, weight: Positive = 3000.0) -> None:
        super().__init__()
        self.weight = float(weight)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        difference = row_gram(ctx.pre_activation) - row_gram(ctx.teacher.pooled)
        # One value per sample; their mean over B is |.|_F^2 / B^2.
        return {"similarity": self.weight * difference.square().mean(1)}
