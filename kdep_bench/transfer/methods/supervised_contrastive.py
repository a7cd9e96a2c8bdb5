"""Fine-tuning with a supervised contrastive loss: images of a class attract each other.

    L = (1 - weight) L_task + weight L_contrast,
    L_contrast,i = -mean over p in P(i) of log( exp(z_i.z_p / tau) / sum_a exp(z_i.z_a / tau) )

per image i of a batch. z = f / |f| of the pooled feature f that the classifier reads; a: all other
images of the batch; P(i): those of them with the label of i. If there are none, the loss of image i
is 0, which counts in the mean over the batch.

Source: the loss is L_out of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020,
equation 2. Without its projection head and second view, and added to the cross-entropy, it is the
loss of Gunel et al., ICLR 2021 (arXiv 2011.01403); weight 0.9 and tau 0.3 are the values of their
best few-shot models. DisCo (Gao, Wu et al., arXiv 2112.05638) fine-tunes a distilled network with a
contrastive loss on labelled pairs of sentences. Images with class labels have no such pairs, so
this is a re-implementation, whose form, with a classifier, was chosen in this project.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from kdep_bench.bounds import Fraction, Positive
from kdep_bench.transfer.method import TransferContext, TransferMethod


class SupervisedContrastive(TransferMethod):
    """A supervised contrastive loss added to the task's; see the top of this module.

    Args:
        weight: weight of the contrastive loss; the task's loss has the weight 1 - `weight`.
        tau: temperature of the cosines.
    """

    families = frozenset({"classification"})
    single_process: ClassVar[bool] = True  # the images of one batch are compared

    def __init__(self, weight: Fraction = 0.9, tau: Positive = 0.3) -> None:
        super().__init__()
        self.weight, self.tau = float(weight), float(tau)
        self._features: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        head = cast(Any, model).head
        self._handles = [head.register_forward_pre_hook(self._record)]

    def _record(self, _module: nn.Module, args: Any) -> None:
        self._features = [args[0][-1]]

    def finish(self, model: nn.Module) -> dict[str, Any]:
        for handle in self._handles:
            handle.remove()
        return {}

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        features = self._features.pop().float().flatten(1)
        labels = torch.stack([s.gt_label.reshape(()) for s in ctx.samples]).to(features.device)
        contrast = supervised_contrast(features, labels, self.tau)
        # The task's own loss has the weight 1 already.
        return {
            "contrast": self.weight * contrast,
            "task": -self.weight * ctx.task_losses["loss"],
        }


def supervised_contrast(features: Tensor, labels: Tensor, tau: float) -> Tensor:
    """The contrastive loss of features [B, C] with class labels [B]: (B,)."""
    unit = F.normalize(features, dim=1)
    is_self = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    cosines = (unit @ unit.T / tau).masked_fill(is_self, -torch.inf)
    log_probability = (cosines - cosines.logsumexp(1, keepdim=True)).masked_fill(is_self, 0.0)
    is_positive = (labels[:, None] == labels) & ~is_self
    total = (log_probability * is_positive).sum(1)
    return -total / is_positive.sum(1).clamp(min=1)
