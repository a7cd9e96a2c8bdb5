"""Multi-scale deformable attention against loops, masked convolution against F.conv2d."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import masked_conv2d
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor

SHAPES = [(4, 5), (2, 3)]  # (height, width) of the two levels
attend = MultiScaleDeformableAttnFunction.apply


def random_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs for 2 images, 2 heads, 2 levels, 3 queries and 2 points per query and level.

    Returns:
        Values [images, positions of both levels, heads, channels], sampling locations [images,
        queries, heads, levels, points, (x, y)] as fractions of a level (some outside it), and
        attention weights [images, queries, heads, levels, points].
    """
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(2, 4 * 5 + 2 * 3, 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, 2, 2, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    weights = torch.rand(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    return value, locations, weights


def reference(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Attention in loops: bilinear, zero outside; [0, 1] spans a level from edge to edge."""
    batch, queries, heads, levels, points, _ = locations.shape
    output = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = [0, 20]  # the first level has 4 x 5 positions
    for b, q, h, level, p in torch.cartesian_prod(
        *[torch.arange(n) for n in (batch, queries, heads, levels, points)]
    ).tolist():
        height, width = SHAPES[level]
        x = float(locations[b, q, h, level, p, 0]) * width - 0.5
        y = float(locations[b, q, h, level, p, 1]) * height - 0.5
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    corner_weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    pixel = value[b, starts[level] + row * width + column, h]
                    output[b, q, h] += weights[b, q, h, level, p] * corner_weight * pixel
    return output.flatten(2)


def test_attention_equals_loops_and_has_correct_gradients() -> None:
    value, locations, weights = random_inputs()
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 20])
    output = attend(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(output, reference(value, locations, weights), rtol=0, atol=1e-12)
    leaves = tuple(t.clone().requires_grad_() for t in (value, locations, weights))
    assert torch.autograd.gradcheck(
        lambda v, w, a: attend(v, shapes, starts, w, a, 64), leaves, fast_mode=True
    )
    half = attend(value.bfloat16(), shapes, starts, locations.float(), weights.float(), 64)
    assert half.dtype == torch.bfloat16


def test_masked_convolution_is_a_convolution_at_the_masked_positions() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 3, 6, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    unmasked = F.conv2d(x, weight, bias, padding=1)
    mask = torch.rand(1, 6, 7) > 0.5
    masked = masked_conv2d(x, mask.float(), weight, bias, 1)
    torch.testing.assert_close(masked, unmasked * mask, rtol=0, atol=1e-5)
    assert not masked_conv2d(x, torch.zeros(1, 6, 7), weight, bias, 1).any()
    with pytest.raises(IndexError):  # without padding the output is smaller than the mask
        masked_conv2d(x, torch.ones(1, 6, 7), weight, bias, 0)
