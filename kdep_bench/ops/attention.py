"""Multi-scale deformable attention (arXiv:2010.04159), by mmcv's implementation in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdep_bench.ops._dtype import compute_dtype


def _attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Not imported at the top of the file, because mmcv.ops imports this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Computes the attention output for Q queries, L levels and P sampling points per level.

    Args:
        value: (B, sum of H*W over levels, heads, d), with d channels per head.
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: not used.
        sampling_locations: (B, Q, heads, L, P, 2), x and y in 0..1.
        attention_weights: (B, Q, heads, L, P).
        im2col_step: not used.

    Returns:
        (B, Q, heads * d).
    """
    dtype = compute_dtype(value)
    operands = (t.to(dtype) for t in (sampling_locations, attention_weights))
    return _attend(value.to(dtype), value_spatial_shapes, *operands).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fills `grad_value`, `grad_sampling_loc` and `grad_attn_weight` from `grad_output`."""
    dtype = compute_dtype(value)
    with torch.enable_grad():
        leaves = [
            t.detach().to(dtype).requires_grad_()
            for t in (value, sampling_locations, attention_weights)
        ]
        output = _attend(leaves[0], value_spatial_shapes, leaves[1], leaves[2])
    grads = torch.autograd.grad(output, leaves, grad_output.to(dtype))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
