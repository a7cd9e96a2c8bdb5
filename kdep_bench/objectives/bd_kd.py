"""Balanced-divergence knowledge distillation (BD-KD): both directions of KL per sample.

Teacher and student are trained together (arXiv 2212.12965).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl


def entropy(logits_BC: Tensor, tau: float) -> Tensor:
    """[B]: entropy in nats of softmax(z / tau)."""
    return torch.special.entr(F.softmax(logits_BC / tau, 1)).sum(1)


class BalancedDivergences(Objective):
    """L_s + L_t: a student s and a teacher t are trained together, with labels.

        L_s = CE(y, p_s) + a f KL(p_t || p_s) + b r KL(p_s || p_t)
        L_t = CE(y, p_t) + c KL(p_s || p_t)

    y is the label of a sample, p_s and p_t are the probabilities of the two networks, and KL is
    tau^2 KL_tau. If the entropy of p_s is below that of p_t, f is delta and r is 1; otherwise f is
    1 and r is delta. f and r have no gradient. L_s trains only the student, L_t only the teacher.

    With delta > 1, a student that is more confident than its teacher is trained mainly to cover all
    classes that the teacher considers possible; a less confident student is trained mainly towards
    the teacher's most likely classes. With delta = 1 and b = 0, L_s is logit distillation with
    labels.

    Source: re-implementation from the abstract of arXiv 2212.12965. The abstract mentions a weight
    per sample for each direction, and a changed loss of the teacher. The rule for f and r, and the
    values of delta, a, b, c and tau, were chosen in this project. One optimiser trains both
    networks. The teacher and both heads are dropped at export.

    Args:
        peer: config of the teacher's network, in the form of a student's config; None for the
            student's architecture.
        delta: factor of the emphasised direction; the other direction has the factor 1.
        forward_weight: a.
        reverse_weight: b.
        teacher_weight: c.
        tau: temperature.
        width, classes: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes"})
    forwards = 1
    trained_peers = 1

    def __init__(
        self,
        width: int,
        classes: int,
        peer: Mapping[str, Any] | None = None,
        delta: Positive = 2.0,
        forward_weight: NotNegative = 1.0,
        reverse_weight: NotNegative = 1.0,
        teacher_weight: NotNegative = 1.0,
        tau: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.config = None if peer is None else dict(peer)
        self.head = nn.Linear(width, classes)
        self.peer_head = nn.Linear(width if peer is None else int(peer["width"]), classes)
        self.peer: nn.Module = nn.Identity()
        self.delta, self.tau = float(delta), float(tau)
        self.weights = {"forward": float(forward_weight), "reverse": float(reverse_weight)}
        self.teacher_weight = float(teacher_weight)

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        self.peer = new_network() if self.config is None else new_network(self.config)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        assert ctx.images is not None
        s, t = self.head(ctx.post_activation), self.peer_head(self.peer(ctx.images)[1])
        fixed_s, fixed_t = s.detach(), t.detach()
        divergences = {
            "forward": soft_kl(fixed_t, s, self.tau),
            "reverse": soft_kl(s, fixed_t, self.tau),
        }
        emphasis = self.emphasis(fixed_s, fixed_t)
        return {
            "cross_entropy": F.cross_entropy(s, ctx.labels, reduction="none"),
            **{k: self.weights[k] * emphasis[k] * kl for k, kl in divergences.items()},
            "peer_cross_entropy": F.cross_entropy(t, ctx.labels, reduction="none"),
            "peer_kl": self.teacher_weight * soft_kl(fixed_s, t, self.tau),
        }

    def emphasis(self, student_BC: Tensor, teacher_BC: Tensor) -> dict[str, Tensor]:
        """{"forward": f, "reverse": r}, each [B], from the logits of both networks."""
        student_entropy = entropy(student_BC, self.tau)
        is_confident = (student_entropy < entropy(teacher_BC, self.tau)).float()
        return {
            "forward": 1 + (self.delta - 1) * is_confident,
            "reverse": 1 + (self.delta - 1) * (1 - is_confident),
        }
