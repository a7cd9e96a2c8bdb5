"""Resizing of feature maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_map(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps to `size` (height, width).

    Uses adaptive average pooling if no side grows, otherwise bilinear interpolation.
    """
    h, w = x_BCHW.shape[2:]
    if (h, w) == size:
        return x_BCHW
    if h >= size[0] and w >= size[1]:
        return F.adaptive_avg_pool2d(x_BCHW, size)
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)
