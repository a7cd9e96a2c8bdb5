"""The pre-training model: student, fixed target and one objective, as an mmengine model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.features.target import build_target
from kdep_bench.objectives.base import Context, build_objective
from kdep_bench.pretrain.pyramid import Pyramid
from kdep_bench.students.backbone import PreActivationTap, build_backbone, pool
from kdep_bench.teachers.base import TeacherOutput


class Distiller(BaseModel):
    """Student backbone + objective. The state dict's `backbone.*` is what gets exported.

    Args:
        student: student config page.
        objective: {type, ...} of the objective, with everything it asked for.
        target: {align_dir, transform}, or None for an objective without a teacher.
        precision: "float32", or "bfloat16" to run the backbone under autocast (parameters,
            BatchNorm statistics, target and loss stay float32). bfloat16 has float32's range, so
            no loss scaling is needed, on CPU or CUDA.
        maps: whether the objective reads the student's pyramid.

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
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise KdepError(f"unknown precision {precision!r}", "'float32' or 'bfloat16'")
        self.use_bfloat16 = precision == "bfloat16"
        self.step, self.steps = 0, 1
        self._pyramid = Pyramid(student) if maps else None
        self.backbone = build_backbone(student) if self._pyramid is None else self._pyramid.backbone
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self._tap[0].verify(student["width"], student["input_px"])
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._pyramid is not None:
            self._pyramid.verify()
        self.objective = build_objective(objective, {})
        self.target = build_target(**target) if target else None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def init_weights(self) -> None:
        """Nothing: the backbone was initialised, under the run's seed, when it was built."""

    def forward(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """`images` [B, 3, px, px] uint8; returns the mean of every term, keyed `loss_<term>`."""
        if mode != "loss":
            raise KdepError(f"the pre-training model was run in mode {mode!r}", "mode 'loss'")
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.use_bfloat16):
            before, after = self._tap[0](x)
        before, after = pool(before.float()), pool(after.float())
        said = None if teacher is None else TeacherOutput(teacher.float(), None)
        ctx = Context(
            before=before,
            after=after,
            target=self.target(said.pooled) if self.target is not None and said else None,
            labels=labels,
            teacher=said,
            maps=self._pyramid.maps() if self._pyramid is not None else {},
            rows=rows,
            step=self.step,
            steps=self.steps,
        )
        terms = self.objective.terms(ctx)
        for name, term in terms.items():
            if term.shape != (len(images),):
                raise KdepError(
                    f"term {name!r} of {type(self.objective).__name__} has shape "
                    f"{tuple(term.shape)}",
                    f"({len(images)},), one value a sample",
                )
        return {f"loss_{name}": term.mean() for name, term in terms.items()}
