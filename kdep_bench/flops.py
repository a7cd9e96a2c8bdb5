"""Floating-point operations of a forward pass, counted by torch while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# A backward pass costs about two forward passes (Kaplan et al. 2020, section 2.1).
FORWARD_AND_BACKWARD = 3


def forward_flops(module: nn.Module, images: Tensor) -> int:
    """FLOPs of `module(images)` per image, for `images` [B, ...].

    Counts convolutions and matrix products, two FLOPs per multiply-add (torch's FlopCounterMode),
    in evaluation mode and without gradients. Attention is computed with plain matrix products
    during the count, because torch does not count all fused attention kernels.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was_training = module.training
    module.eval()
    counter: Any = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(images)
    finally:
        module.train(was_training)
    return counter.get_total_flops() // len(images)
