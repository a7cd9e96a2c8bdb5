"""The precision in which operators compute."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32.

    Half types are computed in float32, because torchvision's kernels do not support bfloat16, and a
    half-precision box coordinate above 1024 is off by a pixel. `copy_` converts the outputs back.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
