"""The two steps of mmcv's masked convolution: gather windows, write results.

The stride is 1, and the batch has one image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills `col` (C*kh*kw, M) with the windows of `im` (1, C, H, W) around M pixels.

    `mask_h_idx` and `mask_w_idx` (M,) are the rows and columns of the pixels.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    shifted = [
        padded[:, mask_h_idx + i, mask_w_idx + j] for i in range(kernel_h) for j in range(kernel_w)
    ]
    col.copy_(torch.stack(shifted, dim=1).flatten(0, 1))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Writes `col` (C, M) to M pixels of `im` (1, C, H, W)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
