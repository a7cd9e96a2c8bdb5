"""The replacements of mmcv's operators create their tensors on the GPU, tested with a fake GPU.

Values on a real GPU are compared by the other tests of this folder, on machines that have one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.ops import boxes, deform_conv, focal, masked_conv, roi_align
from tests.fake_cuda import fake_cuda


def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros on the (fake) GPU."""
    return torch.zeros(shape, dtype=dtype, device="cuda")


def run_roi_align(backward: bool) -> Tensor:
    """RoIAlign's output, or the gradient of its images."""
    rois, out, none = gpu(3, 5), gpu(3, 4, 2, 2), gpu(0)
    x = gpu(2, 4, 8, 8)
    settings = (2, 2, 0.5, 2, 1, True)
    if backward:
        roi_align.roi_align_backward(out, rois, none, none, x, *settings)
        return x
    roi_align.roi_align_forward(x, rois, out, none, none, *settings)
    return out


def run_deform_conv(modulated: bool) -> Tensor:
    """The output of a (modulated) deformable convolution."""
    x, weight, out, offset = gpu(2, 4, 8, 8), gpu(6, 4, 3, 3), gpu(2, 6, 8, 8), gpu(2, 18, 8, 8)
    if modulated:
        mask, bias, none = gpu(2, 9, 8, 8), gpu(6), gpu(0)
        geometry = (3, 3, 1, 1, 1, 1, 1, 1, 1, 1)
        deform_conv.modulated_deform_conv_forward(
            x, weight, bias, none, offset, mask, out, none, *geometry, True
        )
        return out
    none, geometry = gpu(0), (3, 3, 1, 1, 1, 1, 1, 1, 1, 1)
    deform_conv.deform_conv_forward(x, weight, offset, out, none, none, *geometry, 32)
    return out


def run_focal(step: Callable[..., None]) -> Tensor:
    """The loss, or its gradient, that `step` writes."""
    x, out = gpu(5, 3), gpu(5, 3)
    step(x, gpu(5, dtype=torch.long), gpu(0), out, 2.0, 0.25)
    return out


def run_overlaps(aligned: bool) -> Tensor:
    """The IoU of four boxes with four others: of each pair, or of all combinations."""
    out = gpu(4) if aligned else gpu(4, 4)
    boxes.bbox_overlaps(gpu(4, 4), gpu(4, 4), out, 0, aligned, 0)
    return out


def run_masked_im2col() -> Tensor:
    """The columns of the masked positions."""
    place, col = gpu(6, dtype=torch.long), gpu(4 * 9, 6)
    masked_conv.masked_im2col_forward(gpu(1, 4, 8, 8), place, place, col, 3, 3, 1, 1)
    return col


CALLS: dict[str, Callable[[], Any]] = {
    "roi_align": lambda: run_roi_align(False),
    "roi_align_backward": lambda: run_roi_align(True),
    "deform_conv": lambda: run_deform_conv(False),
    "modulated_deform_conv": lambda: run_deform_conv(True),
    "focal": lambda: run_focal(focal.sigmoid_focal_loss_forward),
    "focal_backward": lambda: run_focal(focal.sigmoid_focal_loss_backward),
    "overlaps": lambda: run_overlaps(False),
    "aligned_overlaps": lambda: run_overlaps(True),
    "masked_im2col": run_masked_im2col,
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_stays_on_the_gpu(name: str):
    with fake_cuda():
        assert CALLS[name]().device.type == "cuda"
