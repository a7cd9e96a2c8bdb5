"""Distillation of an instance relationship graph over two layers, after IRG (CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.similarity_preserving import row_gram

FORMS = ("gram", "attention")


def attention(x_BD: Tensor, tau: float) -> Tensor:
    """Log-softmax of cosine / tau over the other samples, [B, B], of features [B, D]."""
    unit = F.normalize(x_BD, dim=1)
    is_self = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # -1e4 gives the probability 0; infinity would give NaN in KL terms.
    return F.log_softmax((unit @ unit.T / tau).masked_fill(is_self, -1e4), dim=1)


class InstanceGraph(Objective):
    """Matches the similarities between the samples of a batch at two layers, and their change.

        L = edges * (|A_late^s - A_late^t|^2 + |A_early^s - A_early^t|^2) / B^2
            + change * |(A_late - A_early)^s - (A_late - A_early)^t|^2 / B^2

    A [B, B] is the similarity matrix of the batch (the edges of a graph whose nodes are samples).
    With form "gram", A is the matrix of SimilarityPreserving; without an earlier layer, the loss is
    that of SimilarityPreserving as well. With form "attention", A is the softmax of cosine / tau
    over the other samples, and each edge term is edges * KL(A^t || A^s), averaged over the rows.

    Re-implementation after IRG (Liu et al., CVPR 2019). IRG compares the change of feature maps,
    which needs maps of equal shape in student and teacher; here it is the change of A, so that no
    projector is needed. IRG's term on logits is omitted.

    Args:
        levels: {student level: teacher map} of one earlier layer, pooled; None for the last layer
            only.
        edges, change: weights of the two kinds of terms.
        form: "gram" or "attention".
        tau: temperature, for form "attention" only.
    """

    needs = frozenset({"pooled", "maps"})
    couples_samples = True

    def __init__(
        self,
        levels: Mapping[str, str] | None,
        edges: NotNegative = 3000.0,
        change: NotNegative = 3000.0,
        form: Literal["gram", "attention"] = "gram",
        tau: Positive = 0.1,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise unknown_name("form of the instance graph", form, FORMS)
        if levels is not None and len(levels) != 1:
            raise KdepError(
                f"the instance graph has {len(levels)} earlier layers",
                expected="one earlier layer, or none",
                fix="set `levels` in the method's objective to one entry or to None",
            )
        if not tau > 0:
            raise KdepError(
                f"the instance graph has tau={tau}",
                expected="a positive number",
                fix="correct `tau` in the method's objective",
            )
        self.levels = dict(levels or {})
        self.edges, self.change = float(edges), float(change)
        self.form, self.tau = form, float(tau)

    def graph(self, x_BD: Tensor) -> Tensor:
        """The edges [B, B] of features [B, D]; log-probabilities for form "attention"."""
        return row_gram(x_BD) if self.form == "gram" else attention(x_BD, self.tau)

    def difference(self, s_BB: Tensor, t_BB: Tensor) -> Tensor:
        """Distance of the edges of two graphs per sample, shape [B]."""
        if self.form == "gram":
            return (s_BB - t_BB).square().mean(1)
        return (t_BB.exp() * (t_BB - s_BB)).sum(1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        late_s, late_t = self.graph(ctx.pre_activation), self.graph(ctx.teacher.pooled)
        out = {"edges": self.edges * self.difference(late_s, late_t)}
        for student_map, teacher_map in self.levels.items():
            early_s = self.graph(ctx.maps[student_map].mean((2, 3)))
            early_t = self.graph(ctx.teacher.maps[teacher_map].mean((2, 3)))
            out["early"] = self.edges * self.difference(early_s, early_t)
            if self.form == "attention":
                late_s, late_t, early_s, early_t = (
                    edges.exp() for edges in (late_s, late_t, early_s, early_t)
                )
            difference = (late_s - early_s) - (late_t - early_t)
            out["change"] = self.change * difference.square().mean(1)
        return out
