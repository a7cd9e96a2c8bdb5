"""The pre-training model: student, fixed target and one objective, as an mmengine model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.features.target import build_target
from kdep_bench.networks.backbone import PreActivationTap, build_backbone, pool
from kdep_bench.objectives.base import Context, build_objective
from kdep_bench.pretrain.compiled import compiled
from kdep_bench.pretrain.parallel import (
    accumulated_step,
    mean_over_ranks,
    share_batch_norm,
    world_size,
)
from kdep_bench.pretrain.pyramid import Pyramid
from kdep_bench.pretrain.teaching import TeacherSide
from kdep_bench.teachers.base import TeacherOutput

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Another(nn.Module):
    """One more network of the student's kind: normalised images -> (before, after), pooled.

    For objectives with networks of their own; runs in the precision the student runs in.
    """

    def __init__(self, student: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = build_backbone(student)
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_B3HW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            before, after = self._tap[0](x_B3HW)
        return pool(before.float()), pool(after.float())


class Distiller(BaseModel):
    """Student backbone + objective. The state dict's `backbone.*` is what gets exported.

    Args:
        student: student config page.
        objective: {type, ...} of the objective, with everything it asked for.
        target: {align_dir, transform}, or None for an objective without a teacher.
        precision: "float32", or "bfloat16" / "float16" to run the backbone under autocast
            (parameters, BatchNorm statistics, target and loss stay float32). bfloat16 has float32's
            range, so no loss scaling is needed, on CPU or CUDA; float16 is for CUDA and needs it
            (AmpOptimWrapper).
        maps: whether the objective reads the student's pyramid.
        levels_before: the levels that it reads before their last activation.
        teacher: arguments of TeacherSide.
        accumulate: micro-batches a step.
        compile: back end of torch.compile for the student, or None.

    `step` and `steps` are set by the training loop before every step.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        student: Mapping[str, Any],
        objective: Mapping[str, Any],
        target: Mapping[str, Any] | None = None,
        precision: str = "float32",
        maps: bool = False,
        levels_before: Sequence[str] = (),
        teacher: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        compile: str | None = None,
    ) -> None:
        # Non-blocking: from the loader's pinned memory a batch is copied while the GPU works.
        super().__init__({"type": "BaseDataPreprocessor", "non_blocking": True})
        if precision not in PRECISIONS:
            raise KdepError(
                f"unknown precision {precision!r}", expected=f"one of {', '.join(PRECISIONS)}"
            )
        self.dtype = PRECISIONS[precision]
        self.step, self.steps, self.accumulate = 0, 1, accumulate
        self.teacher_side = TeacherSide(**(teacher or {}))
        self._pyramid = Pyramid(student, levels_before) if maps else None
        self.backbone = build_backbone(student) if self._pyramid is None else self._pyramid.backbone
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self._tap[0].verify(student["width"], student["input_px"])
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._pyramid is not None:
            self._pyramid.verify()
        self.compile_with = compile
        self._student: list[Any] = []  # in a list: no second registration in the state dict
        self.objective = build_objective(objective, {})
        self.objective.attach(self.backbone, lambda: Another(student, self.dtype))
        if world_size() > 1:  # a peer's and a projector's statistics are shared like the student's
            share_batch_norm(self.backbone)
            share_batch_norm(self.objective)
        self.target = build_target(**target) if target else None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def init_weights(self) -> None:
        """Nothing: the backbone was initialised, under the run's seed, when it was built."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        if self.accumulate == 1:
            return super().train_step(data, optim_wrapper)
        return accumulated_step(self, self, data, optim_wrapper, self.accumulate)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, log = super().parse_losses(losses)
        return loss, mean_over_ranks(log)

    def student(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(before, after): the last maps of the backbone, eager or compiled."""
        if not self._student:
            tap = self._tap[0]
            self._student.append(compiled(tap, self.compile_with, x) if self.compile_with else tap)
        return self._student[0](x)

    def forward(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        outputs: Mapping[str, Tensor] | None = None,
        teacher_images: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """One batch, as ViewStream gives it; the mean of every term, keyed `loss_<term>`."""
        if mode != "loss":
            raise KdepError(
                f"the pre-training model was run in mode {mode!r}", expected="mode 'loss'"
            )
        device = images.device.type
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            before, after = self.student(x)
        with torch.autocast(device, enabled=False):
            return self.losses(
                pool(before.float()),
                pool(after.float()),
                self.teacher_side(teacher, outputs or {}, teacher_images),
                labels,
                rows,
                x,
            )

    def losses(
        self,
        before: Tensor,
        after: Tensor,
        said: TeacherOutput | None,
        labels: Tensor | None,
        rows: Tensor | None,
        images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms on one batch, each checked and averaged."""
        maps, maps_before = self._pyramid.maps() if self._pyramid is not None else ({}, {})
        ctx = Context(
            before=before,
            after=after,
            target=self.target(said.pooled) if self.target is not None and said else None,
            labels=labels,
            teacher=said,
            maps=maps,
            maps_before=maps_before,
            images=images,
            rows=rows,
            step=self.step,
            steps=self.steps,
        )
        terms = self.objective.terms(ctx)
        for name, term in terms.items():
            if term.shape != before.shape[:1]:
                raise KdepError(
                    f"the loss term {name!r} of {type(self.objective).__name__} has shape "
                    f"{tuple(term.shape)}",
                    expected=f"({len(before)},), one value per sample",
                )
        return {f"loss_{name}": term.mean() for name, term in terms.items()}
