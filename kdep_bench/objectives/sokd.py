"""Semi-online distillation (Liu et al., BMVC 2021): a bridge between frozen teacher and student."""

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
    """L_A + L_S: a bridge A learns from teacher T and student S, the student from the bridge.

    L_A = KL(T || A) + KL(S || A), L_S = KL(A || S), each tau^2 KL at temperature tau without
    gradient to its first argument. A is the layers of the teacher after the map `level`, with new
    random weights and in training mode, on the stored map; it and the student's linear head are
    dropped at export. The teacher stays in evaluation mode: the published code leaves it in
    training mode, so that its BatchNorm statistics drift.

    Source: swlzq/Semi-Online-KD `trainer/sokd.py`, `models/wrn.py`; tau 4, all weights 1, one
    learning rate for student and bridge; without its two cross-entropies (SemiOnlineWithLabels).
    The bridge is no player (`Objective.players`): a player steps before the student's loss, which
    would then read a bridge that is one step ahead, and its two losses would leave the loss curve.

    Args:
        levels: {student level: teacher map}, one entry; only the teacher's map is read.
        tau: temperature.
        width, teacher_classes, teacher_config: set by the pre-training stage.
    """

    needs = frozenset({"maps", "logits", "tail"})
    requires = frozenset({"width", "teacher_classes", "teacher_config"})

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
                expected="one map of the teacher, after which the bridge begins",
                fix="correct `levels` of the objective",
            )
        self.level, self.tau = next(iter(levels.values())), float(tau)
        self.head = nn.Linear(width, teacher_classes)
        self.bridge = fresh(build_teacher(teacher_config).tail(self.level))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return self.distilled(ctx, self.head(ctx.after), self.bridged(ctx))

    def bridged(self, ctx: Context) -> Tensor:
        """[B, C]: the bridge's logits of the teacher's map."""
        assert ctx.teacher is not None
        return self.bridge(ctx.teacher.maps[self.level])

    def distilled(self, ctx: Context, student_BC: Tensor, bridge_BC: Tensor) -> dict[str, Tensor]:
        """The three KL terms."""
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        return {
            "student": soft_kl(bridge_BC.detach(), student_BC, self.tau),
            "bridge_teacher": soft_kl(ctx.teacher.logits, bridge_BC, self.tau),
            "bridge_student": soft_kl(student_BC.detach(), bridge_BC, self.tau),
        }


class SemiOnlineWithLabels(SemiOnline):
    """The terms of SemiOnline + CE(y, S) + CE(y, A), as published.

    The labels must be those of the teacher's classifier.

    Args:
        classes: number of classes of the labels, set by the pre-training stage.
    """

    needs = frozenset({"maps", "logits", "tail", "labels", "classes"})
    requires = SemiOnline.requires | {"classes"}

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
        student, bridge = self.head(ctx.after), self.bridged(ctx)
        return {
            **self.distilled(ctx, student, bridge),
            "cross_entropy": F.cross_entropy(student, ctx.labels, reduction="none"),
            "bridge_cross_entropy": F.cross_entropy(bridge, ctx.labels, reduction="none"),
        }


def fresh(module: nn.Module) -> nn.Module:
    """The module with random weights and trainable, layer by layer as torch initialises them."""
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return module.requires_grad_(True).train()
