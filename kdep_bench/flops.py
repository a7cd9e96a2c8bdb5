"""Floating-point operations of a forward pass, counted by torch as it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# A backward pass costs about two forward passes (Kaplan et al. 2020, section 2.1).
FORWARD_AND_BACKWARD = 3


def forward_flops(module: nn.Module, images: Tensor) -> int:
    """FLOPs of `module(images)` for one of `images` [B, ...]: two a multiply-add, of convolutions
    and matrix products (what torch's FlopCounterMode counts), in eval mode, without a gradient.

    Attention runs as plain matrix products meanwhile: of the fused kernels torch counts some, and
    not the one for CPUs.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was = module.training
    module.eval()
    counter: Any = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(images)
    finally:
        module.train(was)
    return counter.get_total_flops() // len(images)
