"""Sigmoid focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5), for each logit.

With p = sigmoid(x), the loss is -alpha (1-p)^gamma log p in the column of the target's class, and
-(1-alpha) p^gamma log(1-p) in the other columns. A target equal to the number of classes is
background. Logarithms are computed by `logsigmoid`, which is exact also for very small p, where
mmcv's kernel clamps p.
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
    """Fills `output` (N, C) with the loss.

    Args:
        input: logits (N, C).
        target: class numbers (N,) int64.
        weight: class weights (C,); empty if there are none.
        output: (N, C).
        gamma, alpha: see the top of this module.
    """
    x = input.to(compute_dtype(input))
    p, q = x.sigmoid(), (-x).sigmoid()  # q = 1 - p
    positive = -alpha * q.pow(gamma) * F.logsigmoid(x)
    negative = -(1 - alpha) * p.pow(gamma) * F.logsigmoid(-x)
    output.copy_(_weighted(torch.where(_is_class(target, x), positive, negative), target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills `grad_input` (N, C) with the derivative of each element of the loss by its logit."""
    x = input.to(compute_dtype(input))
    p, q = x.sigmoid(), (-x).sigmoid()  # q = 1 - p
    positive = -alpha * q.pow(gamma) * (q - gamma * p * F.logsigmoid(x))
    negative = (1 - alpha) * p.pow(gamma) * (p - gamma * q * F.logsigmoid(-x))
    gradient = torch.where(_is_class(target, x), positive, negative)
    grad_input.copy_(_weighted(gradient, target, weight))


def _is_class(target: Tensor, logits: Tensor) -> Tensor:
    """(N, C) bool: whether the column belongs to the target's class."""
    return target[:, None] == torch.arange(logits.size(1), device=logits.device)


def _weighted(values: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None or weight.numel() == 0 or target.numel() == 0:
        return values
    highest = int(target.max())
    if highest >= weight.numel():  # mmcv's kernel would read past the end of the weights
        raise KdepError(
            f"the focal loss has {weight.numel()} class weights, but a target has the class "
            f"{highest}",
            expected="one weight per class, including the background",
            fix="append a weight for the background, or remove the class weights",
        )
    return values * weight.to(values.dtype)[target][:, None]
