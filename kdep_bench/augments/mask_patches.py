"""Random patch masks: which patches of each image the networks see."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.bounds import BelowOne, Count
from kdep_bench.errors import KdepError


class MaskPatches(Augment):
    """Hides random patches: adds `visible` and `hidden`.

    `visible` [B, n] int64: the numbers, row by row, of the patches that stay visible. `hidden`
    [B, s, s] bool: the other ones, in the grid of s x s = L patches.

    A random n = max(1, L - round(ratio L)) of the L patches of each image (He et al., CVPR 2022,
    draw them by sorting uniform noise as well). The images are unchanged; the objective hides the
    other patches from the student. Stored teacher outputs are of whole images, so none holds.

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
        patches = (px // self.patch) ** 2
        visible = max(1, patches - round(self.ratio * patches))
        order = draw.uniform(patches).argsort(stable=True, dim=1)
        chosen = order[:, :visible].to(batch.images.device, non_blocking=True)
        hidden = torch.ones(order.shape, dtype=torch.bool, device=chosen.device)
        hidden = hidden.scatter(1, chosen, False).unflatten(1, (px // self.patch, px // self.patch))
        return replace(batch, extra={**batch.extra, "visible": chosen, "hidden": hidden})
