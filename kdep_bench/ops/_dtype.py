"""The floating-point type that operators compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: float64 if any of the tensors is float64, otherwise float32.

    Half-precision tensors are computed in float32, because torchvision's kernels do not support
    bfloat16, and because half-precision box coordinates above 1024 have errors of a pixel. The
    operators convert their results back to the type of the output.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
