"""Sigmoid focal loss against the formula of the paper in float64 and its autograd gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import sigmoid_focal_loss
from torch import Tensor

from kdep_bench.errors import KdepError


def focal64(x: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """The loss of each entry by the paper's formula; the last class of `target` is background."""
    p = 1 / (1 + torch.exp(-x))
    is_class = torch.nn.functional.one_hot(target, x.shape[1] + 1)[:, :-1].bool()
    p_t = torch.where(is_class, p, 1 - p)
    alpha_t = is_class.double() * alpha + (~is_class).double() * (1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.5, 5), st.floats(0.05, 0.95))
def test_loss_and_gradient_equal_the_formula(seed: int, gamma: float, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(6, 3, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    target = torch.randint(0, 4, (6,), generator=generator)  # 3 is background
    expected = focal64(x, target, gamma, alpha)
    upstream = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad(expected, x, upstream)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        leaf = x.detach().to(dtype).requires_grad_()
        loss = sigmoid_focal_loss(leaf, target, gamma, alpha, None, "none")
        (grad,) = torch.autograd.grad(loss, leaf, upstream.to(dtype))
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_is_the_sum_divided_by_the_number_of_rows(
    reduction: str, device: torch.device
) -> None:
    x = torch.randn(5, 4, device=device)
    target = torch.tensor([0, 1, 2, 3, 4], device=device)
    total = focal64(x.double(), target, 2.0, 0.25).sum()
    loss = sigmoid_focal_loss(x, target, 2.0, 0.25, None, reduction)
    expected = total / 5 if reduction == "mean" else total
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_extreme_logits_have_a_finite_and_exact_loss() -> None:
    x = torch.tensor([[-300.0, 300.0]], requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.tensor([0]), 2.0, 0.25, None, "none")
    assert loss.tolist() == [[75.0, 225.0]]  # alpha * 300 and (1 - alpha) * 300
    loss.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[-0.25, 0.75]]


def test_class_weights_follow_the_target() -> None:
    x, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    weight = torch.tensor([2.0, 5.0])
    plain = sigmoid_focal_loss(x, target, 2.0, 0.25, None, "none")
    weighted = sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighted, plain * weight[target][:, None])
    with pytest.raises(KdepError, match="2 class weights, but a target has the class 2"):
        sigmoid_focal_loss(x, torch.tensor([0, 1, 2, 0]), 2.0, 0.25, weight, "none")
