"""Sigmoid focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5), element by element.

With p = sigmoid(x):  -alpha (1-p)^gamma log p  where the column is the target's class, and
-(1-alpha) p^gamma log(1-p) elsewhere. A target equal to the number of classes is background. The
logarithms are `logsigmoid`, so that they stay exact where mmcv clamps p at the smallest float.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.ops._dtype import compute_dtype


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills `output` (N, C) from logits (N, C), targets (N,) int64, weights (C,) or empty."""
    x = input.to(compute_dtype(input))
    p, q = x.sigmoid(), (-x).sigmoid()
    hit = -alpha * q.pow(gamma) * F.logsigmoid(x)
    miss = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-x)
    output.copy_(_weighted(torch.where(_is_class(target, x), hit, miss), target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills `grad_input` (N, C) with the derivative of each element of the loss by its logit."""
    x = input.to(compute_dtype(input))
    p, q = x.sigmoid(), (-x).sigmoid()
    hit = -alpha * q.pow(gamma) * (q - gamma * p * F.logsigmoid(x))
    miss = (1 - alpha) * p.pow(gamma) * (p - gamma * q * F.logsigmoid(-x))
    grad_input.copy_(_weighted(torch.where(_is_class(target, x), hit, miss), target, weight))


def _is_class(target: Tensor, logits: Tensor) -> Tensor:
    return target[:, None] == torch.arange(logits.size(1), device=logits.device)


def _weighted(values: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None or weight.numel() == 0 or target.numel() == 0:
        return values
    highest = int(target.max())
    if highest >= weight.numel():  # mmcv reads past the end of the weights here
        raise KdepError(
            f"the focal loss has {weight.numel()} class weights, but a target has the class "
            f"{highest}",
            expected="one weight per class, the background included",
            fix="append the background's weight, or leave the weights out",
        )
    return values * weight.to(values.dtype)[target][:, None]
