"""Downstream-image-guided generation (DIGG), the second step of One to Transfer All (OTA).

It makes many images from a few images of the task. Each image x minimises this loss, which is
computed with the tuned teacher T. The minimum is sought by Adam on the pixels:

    statistics * S(x) + guide * ||f(x) - g||^2 / mean ||g||^2 + smooth * TV(x)

f is T's pooled feature. Two random images a, b of the task are the guides of x, and
g = m f(a) + (1 - m) f(b), with m uniform in 0.3..0.7, is their mixed feature. S is the mean over
T's BatchNorm layers and channels of ((mean - running mean) / running std)^2 +
(std / running std - 1)^2, where mean and std are those of a generated batch (the idea of
DeepInversion, Yin et al., CVPR 2020). TV is the mean absolute difference of neighbouring pixels. No
labels and no pre-training images are read.

Re-implementation from the abstract of arXiv 2111.12386 alone, which states only that DIGG produces
data for distillation, guided by images of the task. These losses are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MIX = (0.3, 0.7)  # range of m
BATCH = 64  # number of images that are optimised together; S is computed from their statistics


@dataclass(frozen=True)
class Generation:
    """Settings of the generation.

    Attributes:
        images: number of generated images.
        steps, rate: number of steps and learning rate of Adam; pixel values are normalised.
        statistics, guide, smooth: weights of the three terms.
        start: initial x: "images": its guide a; "noise": Gaussian noise.
    """

    images: int
    steps: int
    rate: float
    statistics: float
    guide: float
    smooth: float
    start: str


def generate(teacher: Any, guides: Tensor, low: Tensor, high: Tensor, cfg: Generation) -> Tensor:
    """Generates images [cfg.images, 3, H, W] for a teacher.

    The random numbers are torch's; with the same seed, the images are the same.

    Args:
        teacher: an image classifier in evaluation mode; its weights get no gradient.
        guides: [N, 3, H, W] normalised images of the task.
        low, high: [3, 1, 1] smallest and largest normalised pixel value.
        cfg: settings.
    """
    parts = []
    for start in range(0, cfg.images, BATCH):
        count = min(BATCH, cfg.images - start)
        a, b = (torch.randint(len(guides), (count,)) for _ in range(2))
        mix = torch.empty(count, 1).uniform_(*MIX).to(guides.device)
        with torch.no_grad():
            target = mix * feature(teacher, guides[a]) + (1 - mix) * feature(teacher, guides[b])
        x = guides[a].clone() if cfg.start == "images" else torch.randn(guides[a].shape).to(guides)
        parts.append(optimise(teacher, x, target, low, high, cfg))
    return torch.cat(parts)


def optimise(
    teacher: Any, x: Tensor, target: Tensor, low: Tensor, high: Tensor, cfg: Generation
) -> Tensor:
    """Takes cfg.steps steps of Adam on the loss at the top of this module; returns the images.

    Args:
        x: [B, 3, H, W], the initial images, which are not changed.
        target: [B, D], the mixed features g of their guides.
    """
    x = x.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=cfg.rate)
    for _ in range(cfg.steps):
        optimizer.zero_grad()
        with torch.enable_grad(), batch_statistics(teacher) as statistics:
            guide = guide_loss(feature(teacher, x), target)
            loss = cfg.guide * guide + cfg.smooth * total_variation(x)
            if statistics:
                loss = loss + cfg.statistics * torch.stack(statistics).mean()
        (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, low), high))
    return x.detach()


def feature(teacher: Any, images: Tensor) -> Tensor:
    """[B, D] the teacher's pooled feature."""
    return teacher.extract_feat(images, stage="neck")[-1]


def guide_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean of |features - target|^2 over the batch, divided by that of |target|^2: a scalar."""
    return (features - target).square().sum(1).mean() / target.square().sum(1).mean()


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of pixels below each other plus that of pixels side by side."""
    return x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()


def statistics_loss(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """The contribution of one layer to S, from the layer's input [B, C, H, W]: a scalar."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    std = (norm.running_var + norm.eps).sqrt()
    shift = (mean - norm.running_mean) / std
    return (shift.square() + ((variance + norm.eps).sqrt() / std - 1).square()).mean()


@contextmanager
def batch_statistics(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list; a forward pass of the teacher appends `statistics_loss` of each BatchNorm."""
    losses: list[Tensor] = []

    def record(norm: Any, inputs: Any) -> None:
        losses.append(statistics_loss(inputs[0], norm))

    layers = [
        m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats
    ]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield losses
    finally:
        for handle in handles:
            handle.remove()
