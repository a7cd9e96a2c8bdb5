"""Rotations of every image by 0, 1, 2 and 3 quarter turns."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdep_bench.augments.base import Augment, Batch, Draw

TURNS = 4  # number of rotations of an image by quarter turns


class Rotations(Augment):
    """Replaces each image by its rotations by 0, 90, 180 and 270 degrees, in this order.

    Adds `rotation` [4 B] int64, the number of quarter turns. Quarter turns need no interpolation.
    Cached teacher outputs describe the unrotated image, so they cannot be used; a live teacher gets
    the rotated images. Labels stay valid.

    Source: winycg/HSAKD `train_student_cifar.py`.
    """

    copies = 4
    adds = frozenset({"rotation"})

    def change(self, batch: Batch, draw: Draw) -> Batch:
        turns = torch.arange(TURNS, device=batch.images.device).repeat(len(batch.images))
        return replace(
            batch,
            images=rotate_all(batch.images),
            teacher_images={k: rotate_all(v) for k, v in batch.teacher_images.items()},
            extra={**batch.extra, "rotation": turns},
        )


def rotate_all(images_BCHW: Tensor) -> Tensor:
    """[4 B, C, H, W]: the rotations of each image, consecutive."""
    turned = [torch.rot90(images_BCHW, k, (2, 3)) for k in range(TURNS)]
    return torch.stack(turned, 1).flatten(0, 1)
