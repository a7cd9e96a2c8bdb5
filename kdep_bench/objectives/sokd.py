"""Semi-online distillation (Liu et al., BMVC 2021), with a trained bridge network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.teachers.base import build_teacher


class SemiOnline(Objective):
    """KL(T || A) + KL(S || A) + KL(A || S) of the logits of teacher T, bridge A and student S.

    Each term is tau^2 KL at temperature tau, without gradient for its first argument: the bridge
    learns from teacher and student, the student from the bridge. The bridge is a copy of the
    teacher's layers behind one feature map, with new random weights. Its input is that map of the
    teacher, and the student's optimiser trains it. Bridge and student head are dropped at export.

    Source: swlzq/Semi-Online-KD `trainer/sokd.py`, `models/wrn.py`; tau 4, all weights 1, one
    learning rate for student and bridge. Two differences: its two cross-entropies are omitted (see
    SemiOnlineWithLabels), and the teacher is in eval mode. The published code leaves the teacher in
    training mode, so its BatchNorm statistics drift.

    Args:
        levels: {student level: teacher map}, one entry; only the teacher's map is read.
        tau: temperature.
        width, teacher_classes, teacher_config: set by the pre-training stage.
    """

    needs = frozenset({"maps", "logits", "tail"})
    stage_arguments = frozenset({"width", "teacher_classes", "teacher_config"})

    def __init__(
        self,
        levels: Mapping[str, str],
        width: int,
        teacher_classes: int,
        teacher_config: Mapping[str, Any],
        tau: Positive = 4.0,
    ) -> None:
        super().__init__()
        if len(levels) != 1:
            raise KdepError(
                f"the bridge of semi-online distillation has {len(levels)} levels",
                expected="one level, whose teacher map is the input of the bridge",
                fix="correct `levels` in the method's objective",
            )
        self.level, self.tau = next(iter(levels.values())), float(tau)
        self.head = nn.Linear(width, teacher_classes)
        # Not in `Objective.auxiliary_modules` (parts with their own optimiser): those are updated
        # before the student's loss, and their losses are not part of the loss curve.
        self.bridge = reinitialised(build_teacher(teacher_config).tail(self.level))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return self.kl_terms(ctx, self.head(ctx.post_activation), self.bridge_logits(ctx))

    def bridge_logits(self, ctx: Context) -> Tensor:
        """The bridge's logits [B, C] for the teacher's map."""
        assert ctx.teacher is not None
        return self.bridge(ctx.teacher.maps[self.level])

    def kl_terms(self, ctx: Context, student_BC: Tensor, bridge_BC: Tensor) -> dict[str, Tensor]:
        """The three KL terms, each (B,)."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        return {
            "student": soft_kl(bridge_BC.detach(), student_BC, self.tau),
            "bridge_teacher": soft_kl(ctx.teacher.logits, bridge_BC, self.tau),
            "bridge_student": soft_kl(student_BC.detach(), bridge_BC, self.tau),
        }


class SemiOnlineWithLabels(SemiOnline):
    """The terms of SemiOnline + CE(y, S) + CE(y, A), as published.

    The labels must be the classes of the teacher's classifier.

    Args:
        classes: number of classes of the labels, set by the pre-training stage.
        levels, width, teacher_classes, teacher_config, tau: as in SemiOnline.
    """

    needs = frozenset({"maps", "logits", "tail", "labels", "classes"})
    stage_arguments = SemiOnline.stage_arguments | {"classes"}

    def __init__(
        self,
        levels: Mapping[str, str],
        width: int,
        teacher_classes: int,
        teacher_config: Mapping[str, Any],
        classes: int,
        tau: Positive = 4.0,
    ) -> None:
        if classes != teacher_classes:
            raise KdepError(
                f"the labels have {classes} classes and the teacher {teacher_classes}",
                expected="labels of the teacher's classes",
                fix="use the label-free form (SemiOnline), or a teacher trained on these classes",
            )
        super().__init__(levels, width, teacher_classes, teacher_config, tau)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        student, bridge = self.head(ctx.post_activation), self.bridge_logits(ctx)
        return {
            **self.kl_terms(ctx, student, bridge),
            "cross_entropy": F.cross_entropy(student, ctx.labels, reduction="none"),
            "bridge_cross_entropy": F.cross_entropy(bridge, ctx.labels, reduction="none"),
        }


def reinitialised(module: nn.Module) -> nn.Module:
    """The same module, its layers reinitialised by `reset_parameters`, trainable, in train mode."""
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return module.requires_grad_(True).train()
