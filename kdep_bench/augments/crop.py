"""A random crop of every view in every step, the same for the student and live teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.errors import KdepError


class RandomCrop(Augment):
    """Crops a random square of each view, resizes it to the view's size, and flips half of them.

    Cached teacher outputs describe the uncropped view, so they cannot be used.

    Args:
        scale: smallest and largest area of the crop, as a fraction of the view.
    """

    def __init__(self, scale: Sequence[float] = (0.4, 1.0)) -> None:
        super().__init__()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise KdepError(
                f"the random crop has scale={list(scale)}",
                expected="two numbers, 0 < smallest <= largest <= 1",
                fix="correct `augment` in the method",
            )
        self.scale = float(scale[0]), float(scale[1])

    def change(self, batch: Batch, draw: Draw) -> Batch:
        area, x, y, flip = draw.uniform(4).unbind(1)
        low, high = self.scale
        side = (low + (high - low) * area).sqrt()
        transform = torch.zeros(len(side), 2, 3)
        transform[:, 0, 0] = torch.where(flip < 0.5, -side, side)
        transform[:, 1, 1] = side
        transform[:, 0, 2] = (1 - side) * (2 * x - 1)
        transform[:, 1, 2] = (1 - side) * (2 * y - 1)
        return replace(
            batch,
            images=cropped(batch.images, transform),
            teacher_images={k: cropped(v, transform) for k, v in batch.teacher_images.items()},
        )


def cropped(images_B3HW: Tensor, transform_B23: Tensor) -> Tensor:
    """Resamples images by affine maps of the normalised coordinates [-1, 1]^2, bilinearly."""
    grid = F.affine_grid(
        transform_B23.to(images_B3HW), list(images_B3HW.shape), align_corners=False
    )
    return F.grid_sample(images_B3HW, grid, "bilinear", "border", align_corners=False)
