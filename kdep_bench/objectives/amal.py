"""Adaptive mixing of auxiliary losses (AMAL): meta-learned loss weights of every image.

The weights of the losses on label and teacher are learned on held-out images (AAAI 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne, Count, Fraction, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.held_out import is_held_out
from kdep_bench.objectives.logit_kd import soft_kl

MIN_WEIGHT = 1e-7  # weights are clamped to [MIN_WEIGHT, 2 - MIN_WEIGHT], as in the source


class Amal(Objective):
    """L = mean over training samples of w_0 CE(y, p) + w_1 tau^2 KL_tau(teacher || student).

    The weights w [all pre-training images, 2] are trained to minimise L_val, the cross-entropy of
    held-out images after one virtual SGD step of the last layer on L: w <- w - lr dL_val/dw,
    clamped to [1e-7, 2 - 1e-7]. For a linear last layer the derivative has a closed form, see
    `meta_gradient`.

    Source: durgas16/AMAL `KD/LearnMultiLambdaMeta.py`, CIFAR-100 configuration: initial weights
    (0.1, 0.9), tau 4, lr 1500, 5 repeats, warm-up of 10 of 200 epochs. Two differences: here the
    weights are updated in every tenth step, in the source in all steps of every tenth epoch; here
    the held-out images are chosen by a hash of the image number, in the source from a separate
    list. Held-out images have loss 0; apart from w, only BatchNorm statistics depend on them.

    Args:
        tau: temperature.
        held_out: fraction of the images that are held out.
        every: the weights are updated in every `every`-th step.
        warmup: fraction of the run before the first update.
        repeats: updates of the weights in each such step.
        virtual_lr: learning rate of the virtual SGD step of the last layer.
        optimizer: config of the optimiser of the weights.
        width, classes, teacher_classes, views, pool_images: set by the pre-training stage.
    """

    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = frozenset({"width", "classes", "teacher_classes", "views", "pool_images"})
    couples_samples = True
    has_auxiliary_modules = True  # auxiliary module: a part with its own optimiser

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
                "head is trained on both",
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

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        return {"mixing": AuxiliaryModule(self.mixing, self.optimizer, scheduled=False)}

    def is_held_out(self, images: Tensor) -> Tensor:
        """[B] bool for image numbers [B]: whether an image is held out; the same in every run."""
        return is_held_out(images, self.held_out)

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        if ctx.step % self.every or ctx.step < self.warmup * ctx.steps:
            return
        assert ctx.rows is not None
        assert ctx.labels is not None
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        images = ctx.rows // self.views
        held_out = self.is_held_out(images)
        with torch.no_grad():
            # The bias is one more weight, of a feature that is always 1.
            features = F.pad(ctx.post_activation, (0, 1), value=1.0)
            layer = torch.cat([self.head.weight, self.head.bias[:, None]], 1)
            for _ in range(self.repeats):
                gradient = meta_gradient(
                    layer,
                    (features, ctx.labels, ctx.teacher.logits),
                    held_out,
                    self.mixing.weights[images],
                    self.tau,
                    self.virtual_lr,
                )
                # The gradient of all weights; it is zero for images that are not in the batch.
                all_zero = torch.zeros_like(self.mixing.weights)
                auxiliary.apply("mixing", [all_zero.index_add(0, images, gradient)])
                self.mixing.weights.clamp_(MIN_WEIGHT, 2 - MIN_WEIGHT)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.rows is not None
        assert ctx.labels is not None
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        images = ctx.rows // self.views
        used = (~self.is_held_out(images)).float()
        # Terms are averaged over the batch; with `scale`, this is the mean over training samples.
        scale = used * len(used) / used.sum().clamp(min=1)
        weights = self.mixing.weights.detach()[images] * scale[:, None]
        logits = self.head(ctx.post_activation)
        cross_entropy = F.cross_entropy(logits, ctx.labels, reduction="none")
        return {
            "cross_entropy": weights[:, 0] * cross_entropy,
            "kl": weights[:, 1] * soft_kl(ctx.teacher.logits, logits, self.tau),
        }


class MixingWeights(nn.Module):
    """Parameter `weights` [images, 2]: weights of cross-entropy and distillation term per image."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.1, 0.9]).repeat(images, 1))


def meta_gradient(
    layer_CD: Tensor,
    batch: tuple[Tensor, Tensor, Tensor],
    held_out_B: Tensor,
    weights_B2: Tensor,
    tau: float,
    lr: float,
) -> Tensor:
    """Derivative [B, 2] of the held-out cross-entropy L_val with respect to the loss weights.

    L_val is computed with the layer after one virtual step, layer' = layer - lr dL/dlayer, where L
    is the mean of the weighted terms over the training samples. The derivative for the weight of
    term m of sample b is -lr <g_bm, dL_val/dlayer'>, with g_bm the gradient of that term (without
    its weight) with respect to the layer, divided by the number of training samples. g_bm is an
    outer product and is not computed explicitly. The result is 0 for held-out samples, and
    everywhere if no sample of the batch is held out.

    Args:
        layer_CD: weights of the last layer, the bias in the last column.
        batch: features [B, D] with a last column of ones, labels [B], teacher logits [B, C].
        held_out_B: bool; the other samples are the training samples.
        weights_B2: weights of the cross-entropy and of the distillation term.
        tau: temperature of the distillation term.
        lr: learning rate of the virtual step.
    """
    x, labels, teacher = batch
    # Masks are used because indexing would wait for a GPU.
    held_out, used = held_out_B.to(x), (~held_out_B).to(x)
    logits, one_hot = x @ layer_CD.T, F.one_hot(labels, len(layer_CD))
    cross_entropy_grad = F.softmax(logits, 1) - one_hot
    kl_grad = tau * (F.softmax(logits / tau, 1) - F.softmax(teacher / tau, 1))
    logit_grads = torch.stack([cross_entropy_grad, kl_grad], 1)
    logit_grads = logit_grads * (used / used.sum().clamp(min=1))[:, None, None]
    layer_grad = torch.einsum("bm,bmc,bd->cd", weights_B2, logit_grads, x)
    val_grad = F.softmax(x @ (layer_CD - lr * layer_grad).T, 1) - one_hot
    val_grad = val_grad * (held_out / held_out.sum().clamp(min=1))[:, None]
    return -lr * torch.einsum("bmc,cd,bd->bm", logit_grads, val_grad.T @ x, x)
