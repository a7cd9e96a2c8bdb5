"""In which precision an operator computes."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if a tensor is, else float32.

    torchvision's kernels know no bfloat16, and a half-precision box coordinate above 1024 is off by
    a pixel, so half types are always widened; the outputs are narrowed again by `copy_`.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
