"""Random views in every step: colour, crop, rotation and a hidden square."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kdep_bench.augments.base import Augment, Batch, Draw
from kdep_bench.augments.crop import cropped
from kdep_bench.bounds import BelowOne, Fraction, NotNegative
from kdep_bench.data.normalisation import MEAN


class MultiView(Augment):
    """Changes an image with probability `p`, in the same way for the student and live teachers.

    A changed image is cropped to a square, rotated, and multiplied by a brightness and a contrast;
    a square of it is filled with the mean colour. Cached teacher outputs do not describe it.

    Source: the kinds of transformation of cross-architecture distillation (Liu et al., ACCV 2022);
    their strengths are this project's.

    Args:
        p: probability.
        shrink: the side of the crop is 1 - shrink to 1 of the image's.
        angle: largest rotation in degrees.
        colour: brightness and contrast are 1 - colour to 1 + colour.
        square: side of the filled square, as a fraction of the image's.
    """

    mean: Tensor

    def __init__(
        self,
        p: Fraction = 0.5,
        shrink: BelowOne = 0.3,
        angle: NotNegative = 15.0,
        colour: BelowOne = 0.4,
        square: Fraction = 0.25,
    ) -> None:
        super().__init__()
        self.p, self.shrink, self.angle = float(p), float(shrink), float(angle)
        self.colour, self.square = float(colour), float(square)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def change(self, batch: Batch, draw: Draw) -> Batch:
        numbers = draw.uniform(9).to(batch.images.device, non_blocking=True)
        return replace(
            batch,
            images=self.view(batch.images, numbers),
            teacher_images={k: self.view(v, numbers) for k, v in batch.teacher_images.items()},
        )

    def view(self, images_B3HW: Tensor, numbers_B9: Tensor) -> Tensor:
        """The views of images in the range 0 to 255, from nine random numbers per image."""
        chosen, side, x, y, angle, brightness, contrast, row, column = numbers_B9.unbind(1)
        side, radians = 1 - self.shrink * side, math.radians(self.angle) * (2 * angle - 1)
        cos, sin = side * radians.cos(), side * radians.sin()
        shift_x, shift_y = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)
        transform = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], 1).unflatten(1, (2, 3))
        out = cropped(images_B3HW, transform) * self._factor(brightness)
        mean = out.mean((1, 2, 3), keepdim=True)
        out = ((out - mean) * self._factor(contrast) + mean).clamp(0, 255)
        rows, columns = self._covered(row, out.shape[2]), self._covered(column, out.shape[3])
        covered = rows[:, None, :, None] & columns[:, None, None, :]
        out = torch.where(covered, self.mean, out)
        return torch.where((chosen < self.p)[:, None, None, None], out, images_B3HW)

    def _factor(self, number_B: Tensor) -> Tensor:
        """[B, 1, 1, 1]: factors between 1 - colour and 1 + colour."""
        return (1 + self.colour * (2 * number_B - 1))[:, None, None, None]

    def _covered(self, number_B: Tensor, pixels: int) -> Tensor:
        """[B, pixels] bool: the pixels of a line that the square covers."""
        start = (number_B * (1 - self.square) * pixels)[:, None]
        position = torch.arange(pixels, device=number_B.device) + 0.5
        return (position >= start) & (position < start + self.square * pixels)
