"""Image operations whose strengths and rates are learned by gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Largest changes: torchvision's for AutoAugment. The shift is a fraction of the side.
MAX_BLEND, MAX_SHEAR, MAX_SHIFT, MAX_ANGLE = 0.9, 0.3, 0.45, torch.pi / 6
SOFTNESS = 0.05  # width of solarize's threshold
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in the luminance


def _grey(x_B3HW: Tensor) -> Tensor:
    return sum(w * x_B3HW[:, c : c + 1] for c, w in enumerate(GREY)).expand_as(x_B3HW)  # type: ignore[union-attr]


def _blend(x: Tensor, base: Tensor, change: Tensor) -> Tensor:
    """base + f (x - base) with f = 1 + 0.9 change."""
    return base + (1 + MAX_BLEND * change) * (x - base)


def _sharpness(x: Tensor, change: Tensor) -> Tensor:
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    weight = (kernel / kernel.sum()).expand(3, 1, 3, 3)
    return _blend(x, F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), weight, groups=3), change)


def _solarize(x: Tensor, change: Tensor) -> Tensor:
    """Inverts values above a threshold, which falls from 1.2 (no change) to 0 (all are inverted).

    The threshold is a sigmoid instead of a step, so that `change` has a gradient.
    """
    threshold = (1 + 4 * SOFTNESS) * (1 - change.abs())
    return x + torch.sigmoid((x - threshold) / SOFTNESS) * (1 - 2 * x)


def _affine(x: Tensor, rows: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> Tensor:
    """Resamples by an affine map of the normalised coordinates; black outside of the image."""
    matrix = torch.stack([torch.stack(row) for row in rows]).expand(len(x), 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)


def _moved(x: Tensor, **entries: Tensor) -> Tensor:
    """An affine map that is the identity except for `entries`, named by row and column."""
    unit, zero = x.new_ones(()), x.new_zeros(())
    names = (("a00", "a01", "a02"), ("a10", "a11", "a12"))
    identity = {"a00": unit, "a11": unit}
    first, second = (tuple(entries.get(n, identity.get(n, zero)) for n in row) for row in names)
    return _affine(x, (first, second))


def _rotate(x: Tensor, change: Tensor) -> Tensor:
    angle = MAX_ANGLE * change
    return _moved(x, a00=angle.cos(), a01=-angle.sin(), a10=angle.sin(), a11=angle.cos())


# Operations with a learned strength, on images [B, 3, H, W] in [0, 1]. Their second argument is in
# [-1, 1]: the strength with a random sign (solarize ignores the sign). 0 changes nothing.
LEARNED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda x, m: _blend(x, torch.zeros_like(x), m),
    "color": lambda x, m: _blend(x, _grey(x), m),
    "contrast": lambda x, m: _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), m),
    "sharpness": _sharpness,
    "solarize": _solarize,
    "shear_x": lambda x, m: _moved(x, a01=MAX_SHEAR * m),
    "shear_y": lambda x, m: _moved(x, a10=MAX_SHEAR * m),
    "translate_x": lambda x, m: _moved(x, a02=2 * MAX_SHIFT * m),
    "translate_y": lambda x, m: _moved(x, a12=2 * MAX_SHIFT * m),
    "rotate": _rotate,
}
FIXED = ("invert", "cutout")  # operations without a strength
NAMES = (*LEARNED, *FIXED)


def cutout(x_B3HW: Tensor, corner: tuple[float, float]) -> Tensor:
    """Sets a rectangle of half the height and half the width to 0.

    `corner`: its (top, left) corner, fractions in [0, 1) of the largest possible values.
    """
    h, w = x_B3HW.shape[-2:]
    top, left = (int(c * n / 2) for c, n in zip(corner, (h, w), strict=True))
    mask = torch.ones_like(x_B3HW)
    mask[..., top : top + h // 2, left : left + w // 2] = 0
    return x_B3HW * mask


class AugmentDraw(NamedTuple):
    """The random numbers of one application; plain numbers, so that no GPU waits for them.

    Attributes:
        chosen: numbers of the k operations that are applied.
        uniform: one number in (0, 1) per operation.
        corner: two numbers in [0, 1), of the cutout.
        signs: 1 or -1 per operation, the direction of its change.
    """

    chosen: list[int]
    uniform: list[float]
    corner: tuple[float, float]
    signs: list[float]


class LearnedAugment(nn.Module):
    """x + sum over k random operations of b_i (op_i(x; m_i) - x).

    m_i = sigmoid of a learned number, with a random sign. b_i is a relaxed Bernoulli variable with
    the rate sigmoid(r_i) for a learned r_i: b = sigmoid((log u - log(1 - u) + r) / temperature)
    with a uniform u. All images of a batch get the same operations.

    Source: Shao et al., IJCAI 2023; shaoshitong/TST `datas/Augmention.py`: 4 operations,
    temperature 0.05, all learned numbers start at 0. Three departures: the published code uses
    sigmoid(r) in place of r, so that the rate is between 0.5 and 0.73 and cannot fall to 0; its
    operations with a strength are frozen networks that imitate torchvision's, here they are
    formulae; posterize and equalize, which have no gradient of their own, are left out.

    Args:
        active: number k of operations.
        temperature: of the relaxed Bernoulli variables.
    """

    def __init__(self, active: int = 4, temperature: float = 0.05) -> None:
        super().__init__()
        self.active, self.temperature = active, temperature
        self.strength = nn.Parameter(torch.zeros(len(LEARNED)))
        self.rate = nn.Parameter(torch.zeros(len(NAMES)))

    def draw(self, rng: np.random.Generator) -> AugmentDraw:
        """The random numbers of one application."""
        order = rng.permutation(len(NAMES))[: self.active]
        uniform = rng.random(len(NAMES)).clip(1e-6, 1 - 1e-6)
        top, left = rng.random(2).tolist()
        signs = rng.choice([-1.0, 1.0], len(NAMES))
        return AugmentDraw(order.tolist(), uniform.tolist(), (top, left), signs.tolist())

    def forward(self, x_B3HW: Tensor, draw: AugmentDraw) -> Tensor:
        """Changed images, for images in [0, 1]; not clipped, as in the source."""
        strength, names = self.strength.sigmoid(), list(LEARNED)
        out = x_B3HW
        for k in draw.chosen:
            if k < len(names):
                changed = LEARNED[names[k]](x_B3HW, draw.signs[k] * strength[k])
            elif NAMES[k] == "invert":
                changed = 1 - x_B3HW
            else:
                changed = cutout(x_B3HW, draw.corner)
            u = draw.uniform[k]
            noise = math.log(u) - math.log(1 - u)
            weight = ((noise + self.rate[k]) / self.temperature).sigmoid()
            out = out + weight * (changed - x_B3HW)
        return out
