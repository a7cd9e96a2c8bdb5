"""Deformable convolution against F.conv2d, against sampling by grid_sample, and gradcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from torch import Tensor

STRIDE, PAD, DILATION = 2, 1, 1


def random_inputs(
    groups: int = 1, offset_groups: int = 1, device: torch.device | str = "cpu"
) -> dict:
    """Tensors of a deformable convolution, by argument name."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        """A tensor of normal random numbers."""
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    kernel_positions = offset_groups * 9
    return {
        "x": normal(2, 4, 6, 7),
        "offset": normal(2, 2 * kernel_positions, 3, 4) * 0.7,
        "mask": normal(2, kernel_positions, 3, 4).sigmoid(),
        "weight": normal(6, 4 // groups, 3, 3),
        "bias": normal(6),
    }


def reference(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One offset group: the input of each of the 9 kernel positions is sampled by grid_sample."""
    height, width = x.shape[-2:]
    out_h, out_w = offset.shape[-2:]
    rows = torch.arange(out_h, dtype=x.dtype)[:, None] * STRIDE - PAD
    columns = torch.arange(out_w, dtype=x.dtype)[None] * STRIDE - PAD
    samples = []
    for k in range(9):
        row = rows + k // 3 * DILATION + offset[:, 2 * k]
        column = columns + k % 3 * DILATION + offset[:, 2 * k + 1]
        # grid_sample expects (x, y) from -1 to 1.
        grid = torch.stack([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1], -1)
        samples.append(F.grid_sample(x, grid, align_corners=True) * mask[:, k : k + 1])
    kernel = weight.reshape(*weight.shape[:2], 9)
    return torch.einsum("ock,knchw->nohw", kernel, torch.stack(samples)) + bias[:, None, None]


def test_with_zero_offsets_deformable_convolution_equals_convolution(device: torch.device) -> None:
    tensors = random_inputs(groups=2, device=device)
    x, weight = tensors["x"].requires_grad_(), tensors["weight"].requires_grad_()
    zero = torch.zeros_like(tensors["offset"])
    plain = F.conv2d(x, weight, None, STRIDE, PAD, DILATION, 2)
    deformed = deform_conv2d(x, zero, weight, STRIDE, PAD, DILATION, 2, 1)
    torch.testing.assert_close(deformed, plain, rtol=0, atol=1e-12)
    upstream = torch.randn_like(plain)
    for grad, plain_grad in zip(
        torch.autograd.grad(deformed, (x, weight), upstream),
        torch.autograd.grad(plain, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(grad, plain_grad, rtol=0, atol=1e-12)


def test_with_zero_offsets_the_mask_scales_a_convolution(device: torch.device) -> None:
    tensors = random_inputs(device=device)
    zero, half = torch.zeros_like(tensors["offset"]), torch.full_like(tensors["mask"], 0.5)
    plain = F.conv2d(tensors["x"], tensors["weight"], None, STRIDE, PAD)
    for bias, shift in ((tensors["bias"], tensors["bias"][:, None, None]), (None, 0.0)):
        deformed = modulated_deform_conv2d(
            tensors["x"], zero, half, tensors["weight"], bias, STRIDE, PAD
        )
        torch.testing.assert_close(deformed, 0.5 * plain + shift, rtol=0, atol=1e-12)


def test_forward_and_gradients_equal_the_sampled_reference() -> None:
    tensors = {name: v.requires_grad_() for name, v in random_inputs().items()}
    expected = reference(
        tensors["x"], tensors["offset"], tensors["mask"], tensors["weight"], tensors["bias"]
    )
    output = modulated_deform_conv2d(
        tensors["x"],
        tensors["offset"],
        tensors["mask"],
        tensors["weight"],
        tensors["bias"],
        STRIDE,
        PAD,
        DILATION,
    )
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    names = ("x", "offset", "mask", "weight", "bias")
    pairs = zip(
        torch.autograd.grad(output, [tensors[n] for n in names], upstream),
        torch.autograd.grad(expected, [tensors[n] for n in names], upstream),
        strict=True,
    )
    for grad, expected_grad in pairs:
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 2)])
def test_gradients_equal_finite_differences(groups: int, offset_groups: int) -> None:
    tensors = {name: v.requires_grad_() for name, v in random_inputs(groups, offset_groups).items()}
    args = (STRIDE, PAD, DILATION, groups, offset_groups)
    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(
        lambda x, o, w: deform_conv2d(x, o, w, *args),
        (tensors["x"], tensors["offset"], tensors["weight"]),
        **fast,
    )
    assert torch.autograd.gradcheck(
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, *args),
        (tensors["x"], tensors["offset"], tensors["mask"], tensors["weight"], tensors["bias"]),
        **fast,
    )
