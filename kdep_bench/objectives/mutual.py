"""Deep mutual learning (Zhang et al., CVPR 2018): two students distil each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context, Objective


def kl(target_BC: Tensor, logits_BC: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) per sample, [B]; no gradient for `target`."""
    log_p, log_q = F.log_softmax(target_BC.detach(), 1), F.log_softmax(logits_BC, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class Mutual(Objective):
    """L_1 + L_2 with L_i = CE(y, p_i) + w KL(p_j || p_i); p_j has no gradient in L_i.

    The peer is a second student of the same architecture with another initialisation, trained by
    the same optimiser. The peer and both heads are dropped at export. The method needs labels: the
    KL terms alone contain no information on the images.

    Source: AberHu/Knowledge-Distillation-Zoo `kd_losses/dml.py`, `train_dml.py`; weight 1.

    Args:
        weight: w.
        width, classes: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes"})
    forwards = 1
    trained_peers = 1

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
        logits, peer_logits = (
            self.head(ctx.post_activation),
            self.peer_head(self.peer(ctx.images)[1]),
        )
        return {
            "cross_entropy": F.cross_entropy(logits, ctx.labels, reduction="none"),
            "mutual": self.weight * kl(peer_logits, logits),
            "peer_cross_entropy": F.cross_entropy(peer_logits, ctx.labels, reduction="none"),
            "peer_mutual": self.weight * kl(logits, peer_logits),
        }
