"""Image re-representation fine-tuning (IRF): a task's model from few images.

The first step of OTA (One to Transfer All, `ota.py`).

L = L_task + w(t) * L_re, w(t) = weight * (1 - t), over the progress t of the training from 0 to 1

L_re is a contrastive loss (NT-Xent, Chen et al., ICML 2020). Every image has two views, with
different random patches masked. The loss of a view is the cross-entropy of finding the other view
of the same image among all other views of the batch; the logits are the cosines of the projected
features, divided by T. It reads no labels. Its weight falls from `weight` to 0, so that the last
steps train only the task's loss. The running statistics of BatchNorm are those of the images
without masks: the model is evaluated on such images, and the second step of OTA,
downstream-image-guided generation (DIGG, `digg.py`), generates images that fit these statistics.

Re-implementation from the abstract of arXiv 2111.12386 alone, which states that IRF makes a
task-specific model of any foundation model with few images of the task. The loss is not in the
abstract; masked views, contrast and schedule are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Fraction, NotNegative, Positive
from kdep_bench.networks.running_statistics import unchanged_running_statistics
from kdep_bench.transfer.method import TransferContext, TransferMethod


class IRF(TransferMethod):
    """Fine-tuning with a contrastive loss of masked views; see the top of this module.

    Args:
        weight: weight of the contrastive loss at the first step; 0: the loss is not computed.
        T: temperature of the cosines.
        masked: probability with which each patch of a view is masked.
        patch: side of a patch in pixels.
        width: width of the projected features.
    """

    families = frozenset({"classification"})
    # With several processes, a view would be compared only with those of a part of the batch.
    single_process: ClassVar[bool] = True
    extra_trained_images: ClassVar[int] = 2  # the two masked views of an image

    def __init__(
        self,
        weight: NotNegative = 1.0,
        T: Positive = 0.2,
        masked: Fraction = 0.3,
        patch: Count = 8,
        width: Count = 128,
    ) -> None:
        super().__init__()
        self.weight, self.T, self.masked = float(weight), float(T), float(masked)
        self.patch, self.width = int(patch), int(width)
        self.projector: nn.Module = nn.Identity()
        self._model: list[Any] = []  # in a list, so that torch does not register it

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self._model = [model]
        channels = int(self._model[0].head.in_channels)
        self.projector = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, self.width)
        )

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        weight = self.weight * (1 - ctx.step / ctx.steps)
        if weight == 0:
            return {}
        views = torch.cat([mask_patches(ctx.inputs, self.masked, self.patch) for _ in range(2)])
        self.extra_images += len(views)
        with unchanged_running_statistics(self._model[0]):
            features = self._model[0].extract_feat(views, stage="neck")[-1]
        return {"re_representation": weight * contrast(self.projector(features.float()), self.T)}


def mask_patches(images: Tensor, masked: float, patch: int) -> Tensor:
    """The normalised images [B, 3, H, W] with random patches set to 0, the mean colour."""
    b, _, height, width = images.shape
    rows, columns = -(-height // patch), -(-width // patch)
    drawn = torch.rand(b, 1, rows, columns, device=images.device)
    keep = (drawn >= masked).to(images.dtype)
    keep = keep.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images * keep[..., :height, :width]


def contrast(features: Tensor, T: float) -> Tensor:
    """(B,): NT-Xent of 2 B features, averaged over the two views of an image, rows i and B + i."""
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T / T
    similarity = similarity.masked_fill(torch.eye(len(unit), device=unit.device).bool(), -torch.inf)
    half = len(unit) // 2
    partner = torch.arange(len(unit), device=unit.device).roll(half)
    per_view = F.cross_entropy(similarity, partner, reduction="none")
    return per_view.view(2, half).mean(0)
