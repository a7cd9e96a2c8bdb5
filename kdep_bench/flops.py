"""Floating-point operations of a forward pass, counted by torch as it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(module: nn.Module, images: Tensor) -> int:
    """FLOPs of `module(images)` for one of `images` [B, ...]: two a multiply-add, of convolutions
    and matrix products (what torch's FlopCounterMode counts), in eval mode, without a gradient."""
    was = module.training
    module.eval()
    counter: Any = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            module(images)
    finally:
        module.train(was)
    return counter.get_total_flops() // len(images)
