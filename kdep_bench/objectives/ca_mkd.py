"""Confidence-aware multi-teacher distillation: logits and features (Zhang et al., ICASSP 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.multi_teacher import check_labels, check_two_or_more
from kdep_bench.objectives.weighting import Weighting


def confidence(losses_KB: Tensor) -> Tensor:
    """Weights [K, B] of K teachers: (1 - softmax over teachers of their losses) / (K - 1) / K.

    The weights of a sample sum to 1 / K, because the published code divides by K as well.

    Args:
        losses_KB: cross-entropy of each teacher for each sample.
    """
    count = len(losses_KB)
    return (1 - F.softmax(losses_KB, 0)) / (count - 1) / count


class ConfidenceWeights(Weighting):
    """Weights each teacher by the `confidence` of the cross-entropy of its logits with the label.

    The keys of the terms are the teachers' roles. Source: Rorozhl/CA-MKD `helper/loops.py`, CAMKD.
    The label-free counterpart is EntropyWeights.
    """

    needs = frozenset({"logits", "labels", "classes"})
    every_teacher = True

    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert ctx.labels is not None
        check_two_or_more(ctx.teachers)
        losses = []
        for teacher in ctx.teachers.values():
            assert teacher.logits is not None
            losses.append(F.cross_entropy(teacher.logits, ctx.labels, reduction="none"))
        return dict(zip(ctx.teachers, confidence(torch.stack(losses)), strict=True))


class ConfidenceAwareFeatures(Objective):
    """sum over teachers k of w_k * mean over channels of (r_k(student) - F_k)^2, per sample.

    F_k is the pooled feature of teacher k. The projector r_k is Linear, BatchNorm, ReLU, and is
    dropped at export. w_k is the `confidence` of the cross-entropy of teacher k's classifier on
    r_k(student): a teacher has a large weight where its classifier predicts the label from the
    projected student feature. The gradient passes through w_k, as in the published code.

    Source: Rorozhl/CA-MKD `distiller_zoo/CAMKD.py`, `models/util.py` CalWeight, Embed. There r_k
    has a 1x1 convolution on the last maps in place of Linear and is followed by pooling, and the
    weight of the loss is 50, but 0 in the first epoch.

    Args:
        width, classes, teachers: set by the pre-training stage.
    """

    needs = frozenset({"pooled", "classifier", "labels", "classes"})
    stage_arguments = frozenset({"width", "classes", "teacher_width", "teacher_classes"})
    every_teacher = True  # the argument `teachers` replaces the last two

    def __init__(self, width: int, classes: int, teachers: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        check_two_or_more(teachers)
        check_labels(classes, teachers)
        # The prefix "of_" avoids clashes of roles with attributes of ModuleDict.
        self.embed = nn.ModuleDict(
            {
                f"of_{role}": nn.Sequential(
                    nn.Linear(width, values["teacher_width"]),
                    nn.BatchNorm1d(values["teacher_width"]),
                    nn.ReLU(),
                )
                for role, values in teachers.items()
            }
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        errors, losses = list[Tensor](), list[Tensor]()
        for role, teacher in ctx.teachers.items():
            assert teacher.classifier is not None
            feature = self.embed[f"of_{role}"](ctx.post_activation)
            errors.append((feature - teacher.pooled).square().mean(1))
            logits = teacher.classifier(feature)
            losses.append(F.cross_entropy(logits, ctx.labels, reduction="none"))
        weights = confidence(torch.stack(losses))
        return {role: w * e for role, w, e in zip(ctx.teachers, weights, errors, strict=True)}
