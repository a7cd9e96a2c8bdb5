"""The floating-point type that operators compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: float64 if any of the tensors is float64, otherwise float32.

    Operators on half-precision tensors compute in float32, because torchvision's kernels do not
    support bfloat16, and because box coordinates above 1024 have rounding errors of up to half a
    pixel in float16 and 4 pixels in bfloat16. The operators convert their results back to the type
    of the output.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
