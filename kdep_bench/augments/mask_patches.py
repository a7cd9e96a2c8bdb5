"""Random masks of image patches, for masked autoencoders."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.bounds import BelowOne, Count
from kdep_bench.errors import KdepError


class MaskPatches(Augment):
    """Chooses random patches to mask, and adds the masks `visible` and `hidden` to `Batch.extra`.

    `visible` [B, n] int64: numbers of the visible patches, counted row by row. `hidden` [B, s, s]
    bool: whether a patch of the grid of s x s = L patches is masked. n = max(1, L - round(ratio
    L)). The patches are chosen by sorting uniform noise, as in He et al., CVPR 2022.

    The images are unchanged; the objective applies the mask. Cached teacher outputs describe the
    unmasked images, so they cannot be used.

    Args:
        patch: side of a patch in the student's pixels.
        ratio: fraction of the patches that are masked.
    """

    adds = frozenset({"visible", "hidden"})

    def __init__(self, patch: Count = 16, ratio: BelowOne = 0.75) -> None:
        super().__init__()
        self.patch, self.ratio = int(patch), float(ratio)

    def change(self, batch: Batch, draw: Draw) -> Batch:
        px = batch.images.shape[-1]
        if px % self.patch:
            raise KdepError(
                f"images of {px} pixels cannot be divided into patches of {self.patch}",
                fix="set `patch` of the method's `augment` to the student's patch size",
            )
        side = px // self.patch  # patches per row
        patches = side**2
        n_visible = max(1, patches - round(self.ratio * patches))
        order = draw.uniform(patches).argsort(stable=True, dim=1)
        visible = order[:, :n_visible].to(batch.images.device, non_blocking=True)
        hidden = torch.ones(order.shape, dtype=torch.bool, device=visible.device)
        hidden = hidden.scatter(1, visible, False).unflatten(1, (side, side))
        return replace(batch, extra={**batch.extra, "visible": visible, "hidden": hidden})
