"""RoIAlign forward and backward against a float64 loop whose gradient is autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from mmcv.ops import RoIAlign, roi_align

from kdep_bench.errors import KdepError


def sample64(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Bilinear value (C,) of `image` (C, H, W) at a point.

    It is 0 more than one pixel outside the image; nearer points are moved to the border.
    """
    _, height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return image.new_zeros(image.shape[0])
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * image[:, top, left] + dx * image[:, top, right]
    lower = (1 - dx) * image[:, bottom, left] + dx * image[:, bottom, right]
    return (1 - dy) * upper + dy * lower


def roi_align64(
    images: torch.Tensor, rois: list, size: tuple, scale: float, ratio: int, aligned: bool
) -> torch.Tensor:
    """RoIAlign in loops: each bin is the mean of its sampled points."""
    pooled = []
    for index, *box in rois:
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (edge * scale - shift for edge in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h = ratio if ratio > 0 else math.ceil(bin_h)
        grid_w = ratio if ratio > 0 else math.ceil(bin_w)
        for i in range(size[0]):
            for j in range(size[1]):
                values = [
                    sample64(
                        images[int(index)],
                        y1 + bin_h * (i + (a + 0.5) / grid_h),
                        x1 + bin_w * (j + (b + 0.5) / grid_w),
                    )
                    for a in range(grid_h)
                    for b in range(grid_w)
                ]
                total = sum(values, images.new_zeros(images.shape[1]))
                pooled.append(total / max(len(values), 1))
    stacked = torch.stack(pooled).reshape(len(rois), *size, images.shape[1])
    return stacked.permute(0, 3, 1, 2)


# Image number, x1, y1, x2, y2 of boxes that are: inside, across the top left border, across the
# bottom right border, smaller than a pixel, and outside the image.
ROIS = [
    [0, 3.3, 2.1, 20.7, 17.9],
    [1, -6.0, -3.0, 9.5, 8.2],
    [1, 20.0, 11.0, 47.0, 40.0],
    [0, 8.2, 8.3, 8.6, 8.5],
    [0, 90.0, 90.0, 99.0, 99.0],
]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_output_and_gradient_equal_the_reference(
    ratio: int, aligned: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 12, 14, dtype=torch.float64, requires_grad=True)
    expected = roi_align64(images, ROIS, (3, 2), 0.5, ratio, aligned)
    upstream = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, images, upstream)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        leaf = images.detach().to(device, dtype).requires_grad_()
        rois = torch.tensor(ROIS, dtype=dtype, device=device)
        output = roi_align(leaf, rois, (3, 2), 0.5, ratio, "avg", aligned)
        output.backward(upstream.to(device, dtype))
        assert leaf.grad is not None
        torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(leaf.grad.cpu().double(), expected_grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(
    dtype: torch.dtype, device: torch.device
) -> None:
    images = torch.randn(2, 3, 12, 14, device=device).to(dtype).requires_grad_()
    rois = torch.tensor(ROIS, device=device)
    output = RoIAlign((3, 2), 0.5)(images, rois)
    wide = RoIAlign((3, 2), 0.5)(images.detach().float(), rois)
    assert torch.equal(output, wide.to(dtype))
    output.sum().backward()
    assert images.grad is not None
    assert images.grad.dtype == dtype


def test_no_boxes_give_an_empty_output_and_a_constant_image_gives_its_constant() -> None:
    images = torch.full((1, 2, 8, 8), 3.0)
    assert roi_align(images, torch.empty(0, 5), (2, 2)).shape == (0, 2, 2, 2)
    inside = torch.tensor([[0, 1.0, 1, 6, 6]])
    assert torch.allclose(roi_align(images, inside, (2, 2)), torch.tensor(3.0))


def test_max_pooling_is_refused() -> None:
    with pytest.raises(KdepError, match=r"pool_mode='max'.*compiled mmcv"):
        RoIAlign((2, 2), pool_mode="max")(
            torch.zeros(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2.0, 2]])
        )
