"""The pre-training model: student, fixed target and one objective, as an mmengine model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdep_bench.augments.base import Batch, Draw, as_uint8, build_augment
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.features.target import build_target
from kdep_bench.networks.backbone import PreActivationTap, build_backbone, pool
from kdep_bench.objectives.base import Context, StudentOutput, build_objective, demands
from kdep_bench.objectives.players import Players
from kdep_bench.objectives.roles import ONLY
from kdep_bench.pretrain.compiled import compiled
from kdep_bench.pretrain.parallel import (
    accumulated_step,
    mean_over_ranks,
    rank,
    share_batch_norm,
    world_size,
)
from kdep_bench.pretrain.pyramid import Pyramid
from kdep_bench.pretrain.teaching import TeacherSide
from kdep_bench.teachers.base import TeacherOutput

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NewNetwork(nn.Module):
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
        student: student config.
        objective: {type, ...} of the objective, with the arguments that it requires.
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
        roles: of a method with several teachers, the first one first; `teacher` and `target` are
            then by role.
        augment: config of an Augment that changes every batch, or None.
        seed: of its random numbers.

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
        roles: Sequence[str] = (),
        augment: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        # Non-blocking: from the loader's pinned memory a batch is copied while the GPU works.
        super().__init__({"type": "BaseDataPreprocessor", "non_blocking": True})
        if precision not in PRECISIONS:
            raise KdepError(
                f"unknown precision {precision!r}",
                expected=f"one of {', '.join(PRECISIONS)}",
                fix="correct `precision` in the suite's budget",
            )
        self.dtype = PRECISIONS[precision]
        self.step, self.steps, self.accumulate, self.part = 0, 1, accumulate, 0
        self.augment = None if augment is None else build_augment(augment)
        self.seed = seed
        sides = {role: (teacher or {})[role] for role in roles} or {ONLY: teacher or {}}
        self.teacher_sides = {role: TeacherSide(**side) for role, side in sides.items()}
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
        self.objective.attach(self.backbone, lambda: NewNetwork(student, self.dtype))
        self.players = None
        if demands(objective).has_players:
            if accumulate > 1:
                raise KdepError(
                    f"{type(self.objective).__name__} has parts with an optimiser of their own, "
                    f"which would take a step in each of {accumulate} micro-batches",
                    fix="set budget.accumulate=1",
                )
            self.players = Players(self.objective.players())
        if world_size() > 1:  # a peer's and a projector's statistics are shared like the student's
            share_batch_norm(self.backbone)
            share_batch_norm(self.objective)
        self.by_role = bool(roles)
        self.target = None
        if target and not roles:
            self.target = build_target(**target)
        elif target:  # "of_": a role may be called as an attribute of ModuleDict
            self.target = nn.ModuleDict({f"of_{k}": build_target(**v) for k, v in target.items()})
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @property
    def teacher_side(self) -> TeacherSide:
        """The side of the first teacher."""
        return next(iter(self.teacher_sides.values()))

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

    def run_student(self, x: Tensor) -> StudentOutput:
        """One pass of the student on normalised images [B, 3, H, W]; float32 outputs."""
        device = x.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            before, after = self.student(x)
        with torch.autocast(device, enabled=False):
            maps, maps_before = self._pyramid.maps() if self._pyramid is not None else ({}, {})
            return StudentOutput(pool(before.float()), pool(after.float()), maps, maps_before)

    def forward(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        outputs: Mapping[str, Tensor] | None = None,
        teacher_images: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
        teachers: Mapping[str, Mapping[str, Any]] | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """The mean of every loss term over one batch of ViewStream, keyed `loss_<term>`."""
        if mode != "loss":
            raise KdepError(
                f"the pre-training model was run in mode {mode!r}",
                expected="mode 'loss'",
                fix="call it with mode='loss'; it makes no predictions",
            )
        single = {"teacher": teacher, "outputs": outputs, "teacher_images": teacher_images}
        parts, batch = teachers or {ONLY: single}, None
        if self.augment is not None:
            batch, parts = self.augmented(images, parts)
            images = batch.images
            self.objective.before_student(batch.extra)
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        student = self.run_student(x)
        with torch.autocast(images.device.type, enabled=False):
            by_role = self.teacher_outputs(parts, {} if batch is None else batch.extra)
            if batch is not None:
                both = {**batch.stored, **by_role}
                by_role = {role: both[role] for role in self.teacher_sides if role in both}
            targets = self.targets(by_role)
            if batch is not None:
                targets |= batch.targets
            return self.losses(student, by_role, targets, labels, rows, x, batch)

    @torch.no_grad()
    def augmented(
        self, images: Tensor, parts: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Batch, dict[str, Mapping[str, Any]]]:
        """(the changed batch with the stored outputs, what live teachers will see of it)."""
        assert self.augment is not None
        live = {r: parts[r]["teacher_images"] for r, s in self.teacher_sides.items() if s.live}
        with torch.autocast(images.device.type, enabled=False):
            stored = self.teacher_outputs({r: p for r, p in parts.items() if r not in live})
            batch = self.augment.change(
                Batch(
                    images.float(),
                    {role: shown.float() for role, shown in live.items()},
                    stored,
                    self.targets(stored),
                ),
                Draw(
                    self.seed, self.step, len(images), rank(), world_size(),
                    self.part, self.accumulate,
                ),
            )  # fmt: skip
        changed = {role: as_uint8(shown) for role, shown in batch.teacher_images.items()}
        return batch, {role: {"teacher_images": shown} for role, shown in changed.items()}

    def teacher_outputs(
        self,
        batch_parts: Mapping[str, Mapping[str, Any]],
        extra: Mapping[str, Tensor] | None = None,
    ) -> dict[str, TeacherOutput]:
        """The outputs, by role, of the teachers that have a part in the batch.

        `extra`: what the augmentation added.
        """
        outputs = {
            role: side(
                batch_parts[role].get("teacher"),
                batch_parts[role].get("outputs") or {},
                batch_parts[role].get("teacher_images"),
                extra or {},
            )
            for role, side in self.teacher_sides.items()
            if role in batch_parts
        }
        return {role: out for role, out in outputs.items() if out is not None}

    def targets(self, teachers: Mapping[str, TeacherOutput]) -> dict[str, Tensor]:
        """The aligned and transformed feature of every teacher that has a target."""
        if self.target is None:
            return {}
        if not self.by_role:
            return {role: self.target(out.pooled) for role, out in teachers.items()}
        assert isinstance(self.target, nn.ModuleDict)
        targets = {k.removeprefix("of_"): target for k, target in self.target.items()}
        return {
            role: target(teachers[role].pooled)
            for role, target in targets.items()
            if role in teachers
        }

    def losses(
        self,
        student: StudentOutput,
        teachers: Mapping[str, TeacherOutput],
        targets: Mapping[str, Tensor],
        labels: Tensor | None,
        rows: Tensor | None,
        images: Tensor | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """The objective's terms on one batch, each checked and averaged."""
        first = next(iter(teachers), "")
        ctx = Context(
            before=student.before,
            after=student.after,
            target=targets.get(first),
            labels=labels,
            teacher=teachers.get(first),
            maps=student.maps,
            maps_before=student.maps_before,
            images=images,
            rows=rows,
            step=self.step,
            steps=self.steps,
            teachers=teachers,
            targets=targets,
            extra={} if batch is None else batch.extra,
            student=self.run_student,
        )
        if self.players is not None and torch.is_grad_enabled():
            with self.players.training():
                self.objective.play(ctx, self.players)
        terms = self.objective.terms(ctx)
        for name, term in terms.items():
            if term.shape != student.before.shape[:1]:
                raise KdepError(
                    f"the loss term {name!r} of {type(self.objective).__name__} has shape "
                    f"{tuple(term.shape)}",
                    expected=f"({len(student.before)},), one value per sample",
                    fix="return one loss per sample from `terms` of that class",
                )
        return {f"loss_{name}": term.mean() for name, term in terms.items()}
