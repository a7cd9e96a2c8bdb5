"""Deep mutual learning (Zhang et al., CVPR 2018): two students teach each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective


def kl(of_BC: Tensor, to_BC: Tensor) -> Tensor:
    """[B]: KL(softmax(of) || softmax(to)); no gradient reaches `of`."""
    log_p, log_q = F.log_softmax(of_BC.detach(), 1), F.log_softmax(to_BC, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class Mutual(Objective):
    """L_1 + L_2, L_i = CE(y, p_i) + w KL(p_j || p_i), p_j without gradient.

    The peer is a second student of the same kind with another initialisation, trained by the same
    optimiser; it and both heads are dropped at export. Supervised: two untrained students have
    nothing else to say.

    Source: AberHu/Knowledge-Distillation-Zoo `kd_losses/dml.py`, `train_dml.py`; weight 1.

    Args:
        weight: w.
        width, classes: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    requires = frozenset({"width", "classes"})
    forwards = 1

    def __init__(self, width: int, classes: int, weight: Positive = 1.0) -> None:
        super().__init__()
        self.head, self.peer_head = nn.Linear(width, classes), nn.Linear(width, classes)
        self.weight = float(weight)
        self.peer: nn.Module = nn.Identity()

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        self.peer = new_network()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        assert ctx.images is not None
        mine, its = self.head(ctx.after), self.peer_head(self.peer(ctx.images)[1])
        return {
            "cross_entropy": F.cross_entropy(mine, ctx.labels, reduction="none"),
            "mutual": self.weight * kl(its, mine),
            "peer_cross_entropy": F.cross_entropy(its, ctx.labels, reduction="none"),
            "peer_mutual": self.weight * kl(mine, its),
        }
