"""Adds a distillation objective on feature maps to the losses of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdep_bench.networks.backbone import pool
from kdep_bench.objectives.base import Context, build_objective
from kdep_bench.objectives.maps import Maps
from kdep_bench.teachers.base import TeacherOutput
from kdep_bench.transfer.method import TransferContext, TransferMethod


class AddedObjective(TransferMethod):
    """L = L_task + mean over the batch of the sum of the objective's terms.

    The objective is a class of `kdep_bench.objectives` that reads only feature maps. Its teacher is
    the tuned teacher, which receives the same augmented crops as the student.

    Args:
        objective: config of the objective.
        student_maps, teacher_maps: set by the transfer stage.
    """

    families = frozenset({"segmentation"})
    needs = frozenset({"tuned_teacher"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self, objective: Mapping[str, Any], student_maps: Maps, teacher_maps: Maps
    ) -> None:
        super().__init__()
        maps = {"student_maps": student_maps, "teacher_maps": teacher_maps}
        self.objective = build_objective(objective, maps)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        # `Context` requires pooled features, which an objective on maps does not read.
        last = pool(list(ctx.maps.values())[-1])
        teacher = pool(list(ctx.teacher_maps.values())[-1])
        return self.objective.terms(
            Context(
                pre_activation=last,
                post_activation=last,
                teacher=TeacherOutput(teacher, None, ctx.teacher_maps),
                maps=ctx.maps,
                images=ctx.inputs,
                step=ctx.step,
                steps=ctx.steps,
            )
        )
