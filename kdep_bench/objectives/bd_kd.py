"""BD-KD: a teacher trained with the student; both directions of KL, balanced per sample."""

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
    """L_s + L_t of a student s and a teacher t that are trained together, with labels.

    L_s = CE(y, p_s) + a f KL(p_t || p_s) + b r KL(p_s || p_t), per sample,
    (f, r) = (delta, 1) where the entropy of p_t is above that of p_s, otherwise (1, delta);
    L_t = CE(y, p_t) + c KL(p_s || p_t). Every KL is tau^2 KL at temperature tau. No gradient of L_s
    reaches the teacher and none of L_t the student; f and r have no gradient.

    So a student that is surer than its teacher is pulled towards all of the teacher's classes, and
    one that is less sure towards the most likely ones. With delta = 1 the student's divergence is
    symmetric; with b = 0 and a fixed teacher it is logit distillation with labels.

    Source: re-implementation from the abstract of arXiv 2212.12965. It states the sample-wise
    weights of both directions and the changed loss of the teacher; the values of f and r, delta, a,
    b, c and tau are chosen in this project. One optimiser trains both networks, whose losses share
    no gradient. The teacher and both heads are dropped at export.

    Args:
        peer: config of the teacher's network, as of a student; None for the student's own.
        delta: weight of the emphasised direction over that of the other.
        forward_weight, reverse_weight, teacher_weight: a, b, c.
        tau: temperature.
        width, classes: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    requires = frozenset({"width", "classes"})
    forwards = 1

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
        s, t = self.head(ctx.after), self.peer_head(self.peer(ctx.images)[1])
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
        """{"forward": f, "reverse": r}, each [B], of the logits of both networks."""
        surer = (entropy(teacher_BC, self.tau) > entropy(student_BC, self.tau)).float()
        return {
            "forward": 1 + (self.delta - 1) * surer,
            "reverse": 1 + (self.delta - 1) * (1 - surer),
        }
