"""Replacement of the compiled module `mmcv._ext`, imported under that name only.

Most functions of mmcv's extension return nothing: the caller allocates the outputs, and the
function fills them. Names and order of arguments are those of mmcv. `mmcv.ops` requires on import
that 112 names exist; those without a replacement here raise KdepError when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision

from kdep_bench.errors import KdepError
from kdep_bench.ops.attention import ms_deform_attn_backward, ms_deform_attn_forward
from kdep_bench.ops.boxes import bbox_overlaps, nms, nms_match, softnms
from kdep_bench.ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from kdep_bench.ops.focal import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from kdep_bench.ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from kdep_bench.ops.roi_align import roi_align_backward, roi_align_forward

KDEP_REPLACEMENT = True  # kdep_bench.ops.backend() recognises the replacement by this name


def get_compiler_version() -> str:
    """The text that mmcv reports as its compiler version."""
    return f"none, operators of torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """The CUDA version that torch and torchvision's operators were built with."""
    return torch.version.cuda or "not available"


def _missing(name: str) -> Callable[..., NoReturn]:
    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise KdepError(
            f"the mmcv operator {name!r} was called, but mmcv has no compiled extension here and "
            "kdep_bench.ops has no replacement for it",
            fix="install a compiled mmcv 2.1.0 for this torch, or choose a model that does not "
            "need it",
        )

    call.__name__ = name
    return call


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_"):  # such as __path__, which the import system and pickle look for
        raise AttributeError(name)
    return globals().setdefault(name, _missing(name))


__all__ = [
    "bbox_overlaps",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "nms_match",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softnms",
]
