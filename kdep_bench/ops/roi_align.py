"""RoIAlign with average pooling (He et al. 2017, arXiv:1703.06870), forward and backward.

torchvision's and mmcv's kernels compute the same function: bilinear samples on the same grid, with
the same clamping at the border; `aligned` shifts the samples by half a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

from kdep_bench.errors import KdepError
from kdep_bench.ops._dtype import compute_dtype

_AVERAGE = 1  # mmcv's code for pool_mode='avg'; 0 is 'max'


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `output` (K, C, h, w) from `input` (N, C, H, W).

    A row of `rois` (K, 5) is the index of the image in the batch, then the box x1, y1, x2, y2.
    """
    _only_average(pool_mode)
    dtype = compute_dtype(input)
    size = (aligned_height, aligned_width)
    pooled = roi_align(
        input.to(dtype), rois.to(dtype), size, spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `grad_input` (N, C, H, W) from `grad_output` (K, C, h, w)."""
    _only_average(pool_mode)
    dtype = compute_dtype(grad_output)
    # torchvision's backward kernel is called directly, so no second forward pass is needed.
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def _only_average(pool_mode: int) -> None:
    """Raises KdepError for max pooling."""
    if pool_mode != _AVERAGE:
        raise KdepError(
            "RoIAlign has pool_mode='max', which torchvision does not support",
            fix="set pool_mode='avg' in the RoI layer of the config, or install a compiled mmcv "
            "2.1.0",
        )
