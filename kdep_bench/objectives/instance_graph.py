"""An instance relationship graph over two layers: a reading, not the authors' own code."""

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
    """[B, B] log-probabilities: softmax over the other samples of cosine / tau."""
    unit = F.normalize(x_BD, dim=1)
    is_self = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return F.log_softmax((unit @ unit.T / tau).masked_fill(is_self, -1e4), dim=1)


class InstanceGraph(Objective):
    """The batch as a graph: nodes are samples, edges their similarities, at two depths.

    Reconstruction. The idea is that of IRG (Liu et al., CVPR 2019): match the edges of a layer, and
    how the graph changes from an earlier layer to a later one. IRG compares changes of feature
    maps, which needs maps of equal shape on both sides; here the change is that of the edges,
    A_late - A_early, so that no projector is needed. Its vertex term (logits) is left out.

        L = edges * (|A_late^s - A_late^t|^2 + |A_early^s - A_early^t|^2) / B^2
            + change * |(A_late - A_early)^s - (A_late - A_early)^t|^2 / B^2

    form "gram": A as in similarity-preserving distillation, to which the whole reduces without an
    earlier layer. form "attention": the edge terms are KL(A^t || A^s) / B of A = softmax over the
    others of cosine / tau, and the change is that of these probabilities.

    Args:
        levels: {student level: teacher map} of one earlier layer, pooled; None for the late alone.
        edges, change: weights.
        form, tau: see above; tau for "attention" alone.
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
                expected="one, or None",
                fix="give `levels` of the method's objective one entry, or leave it out",
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
        """[B, B] edges; log-probabilities in the attention form."""
        return row_gram(x_BD) if self.form == "gram" else attention(x_BD, self.tau)

    def difference(self, s_BB: Tensor, t_BB: Tensor) -> Tensor:
        """[B]: how far the edges of two graphs are apart."""
        if self.form == "gram":
            return (s_BB - t_BB).square().mean(1)
        return (t_BB.exp() * (t_BB - s_BB)).sum(1)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        late_s, late_t = self.graph(ctx.before), self.graph(ctx.teacher.pooled)
        out = {"edges": self.edges * self.difference(late_s, late_t)}
        for student_map, teacher_map in self.levels.items():
            early_s = self.graph(ctx.maps[student_map].mean((2, 3)))
            early_t = self.graph(ctx.teacher.maps[teacher_map].mean((2, 3)))
            out["early"] = self.edges * self.difference(early_s, early_t)
            if self.form == "attention":
                late_s, late_t, early_s, early_t = (
                    a.exp() for a in (late_s, late_t, early_s, early_t)
                )
            moved = (late_s - early_s) - (late_t - early_t)
            out["change"] = self.change * moved.square().mean(1)
        return out
