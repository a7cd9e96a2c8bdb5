"""AMAL: labels and teacher weighted per image, by weights learned on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne, Count, Fraction, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.players import Player, Players

LEAST = 1e-7  # weights stay in [LEAST, 2 - LEAST]


class Amal(Objective):
    """L = mean over training samples of w_0 CE(y, p) + w_1 tau^2 KL_tau(teacher || student).

    The weights w [images of the pool, 2] minimise the cross-entropy of held-out images after one
    SGD step of the last layer on L: w <- w - rate dL_val/dw, clamped to [1e-7, 2 - 1e-7], `repeats`
    times in every `every`-th step after the warm-up. For a linear last layer the derivative is
    closed-form, see `meta_gradient`.

    Source: durgas16/AMAL `KD/LearnMultiLambdaMeta.py`, CIFAR-100 configuration: weights start at
    (0.1, 0.9), tau 4, rate 1500, 5 repeats, warm-up of 10 of 200 epochs. There a whole epoch in ten
    updates the weights, here every tenth step. There the held-out images are a list of their own;
    here they are those of the batch with a fixed hash: their loss terms are 0 and they are never
    used to train, except that BatchNorm sees them.

    Args:
        tau: temperature.
        held_out: fraction of the images that are held out.
        every, warmup: when the weights are updated; `warmup` is a fraction of the run.
        repeats: updates per such step.
        virtual_lr: of the SGD step of the last layer.
        optimizer: of the weights.
        width, classes, teacher_classes, views, pool_images: set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    requires = frozenset({"width", "classes", "teacher_classes", "views", "pool_images"})
    couples_samples = True
    has_players = True

    def __init__(
        self,
        width: int,
        classes: int,
        teacher_classes: int,
        views: int,
        pool_images: int,
        tau: Positive = 4.0,
        held_out: BelowOne = 0.1,
        every: Count = 10,
        warmup: Fraction = 0.05,
        repeats: Count = 5,
        virtual_lr: Positive = 0.05,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if classes != teacher_classes:
            raise KdepError(
                f"the data have {classes} classes and the teacher has {teacher_classes}, but one "
                "head learns both",
                fix="use a teacher trained on these classes",
            )
        if not 0 < held_out < 1:
            raise KdepError(
                f"AMAL has held_out={held_out}",
                expected="above 0 and below 1",
                fix="correct `held_out` in the method's objective",
            )
        self.head = nn.Linear(width, classes)
        self.mixing = MixingWeights(pool_images)
        self.views, self.tau, self.held_out = views, float(tau), float(held_out)
        self.every, self.warmup, self.repeats = every, float(warmup), repeats
        self.virtual_lr = float(virtual_lr)
        self.optimizer = dict(optimizer or {"type": "SGD", "lr": 1500.0})

    def players(self) -> dict[str, Player]:
        return {"mixing": Player(self.mixing, self.optimizer, scheduled=False)}

    def is_held_out(self, images: Tensor) -> Tensor:
        """[B] bool: a fixed choice by image number (Knuth's multiplicative hash)."""
        return (images * 2654435761 % 2**32) < self.held_out * 2**32

    def play(self, ctx: Context, players: Players) -> None:
        if ctx.step % self.every or ctx.step < self.warmup * ctx.steps:
            return
        assert ctx.rows is not None
        assert ctx.labels is not None
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        images = ctx.rows // self.views
        held = self.is_held_out(images)
        with torch.no_grad():
            features = F.pad(ctx.after, (0, 1), value=1.0)  # the bias as one more weight
            layer = torch.cat([self.head.weight, self.head.bias[:, None]], 1)
            for _ in range(self.repeats):
                gradient = meta_gradient(
                    layer,
                    (features, ctx.labels, ctx.teacher.logits),
                    held,
                    self.mixing.weights[images],
                    self.tau,
                    self.virtual_lr,
                )
                table = torch.zeros_like(self.mixing.weights).index_add_(0, images, gradient)
                players.apply("mixing", [table])
                self.mixing.weights.clamp_(LEAST, 2 - LEAST)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.rows is not None
        assert ctx.labels is not None
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        images = ctx.rows // self.views
        used = (~self.is_held_out(images)).float()
        scale = used * len(used) / used.sum().clamp(min=1)
        weights = self.mixing.weights.detach()[images] * scale[:, None]
        z = self.head(ctx.after)
        hard = F.cross_entropy(z, ctx.labels, reduction="none")
        return {
            "cross_entropy": weights[:, 0] * hard,
            "kl": weights[:, 1] * soft_kl(ctx.teacher.logits, z, self.tau),
        }


class MixingWeights(nn.Module):
    """[images, 2] weights of the cross-entropy and of the distillation term."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.1, 0.9]).repeat(images, 1))


def meta_gradient(
    layer_CD: Tensor,
    batch: tuple[Tensor, Tensor, Tensor],
    held_B: Tensor,
    weights_B2: Tensor,
    tau: float,
    lr: float,
) -> Tensor:
    """[B, 2]: derivative of the held-out cross-entropy by the weights of the training samples.

    After layer' = layer - lr dL/dlayer, L the mean of the weighted terms over the training samples.
    With g_bm the gradient of the unweighted term m of sample b over their number, it is
    -lr <g_bm, dL_val/dlayer'>; g_bm is an outer product, so it is never formed. 0 for held-out
    samples, and for all without a held-out one. Masks instead of indexing: a GPU need not wait.

    Args:
        batch: features [B, D], labels [B], teacher logits [B, C].
        held_B: bool, the held-out samples; the others are the training samples.
    """
    x, labels, teacher = batch
    held, used = held_B.to(x), (~held_B).to(x)
    z, right = x @ layer_CD.T, F.one_hot(labels, len(layer_CD))
    hard = F.softmax(z, 1) - right
    soft = tau * (F.softmax(z / tau, 1) - F.softmax(teacher / tau, 1))
    by_logit = torch.stack([hard, soft], 1) * (used / used.sum().clamp(min=1))[:, None, None]
    step = torch.einsum("bm,bmc,bd->cd", weights_B2, by_logit, x)
    error = F.softmax(x @ (layer_CD - lr * step).T, 1) - right
    error = error * (held / held.sum().clamp(min=1))[:, None]
    return -lr * torch.einsum("bmc,cd,bd->bm", by_logit, error.T @ x, x)
