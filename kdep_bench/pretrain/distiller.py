"""The pre-training model (an mmengine model): student, teacher outputs, target and objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdep_bench.augments.base import Batch, Draw, as_uint8, build_augment
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.features.target import build_target
from kdep_bench.networks.backbone import PreActivationTap, build_backbone, pool
from kdep_bench.objectives.auxiliary import AuxiliaryModules
from kdep_bench.objectives.base import Context, StudentOutput, build_objective, demands
from kdep_bench.objectives.roles import SINGLE_ROLE
from kdep_bench.pretrain.compiled import compiled
from kdep_bench.pretrain.parallel import (
    accumulated_step,
    mean_over_ranks,
    rank,
    share_batch_norm,
    world_size,
)
from kdep_bench.pretrain.pyramid import Pyramid
from kdep_bench.pretrain.teaching import TeacherReader
from kdep_bench.teachers.base import TeacherOutput

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NewNetwork(nn.Module):
    """A network of the student's architecture with new random weights, for objectives.

    Maps normalised images [B, 3, H, W] to the pooled features before and after the last activation,
    [B, D] float32 each. The network is run in the precision of the student.
    """

    def __init__(self, student: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = build_backbone(student)
        # In a list, so that the backbone is not registered as a submodule a second time.
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_B3HW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            before, after = self._tap[0](x_B3HW)
        return pool(before.float()), pool(after.float())


class NewPyramid(NewNetwork):
    """A NewNetwork that also returns its feature pyramid: images -> StudentOutput."""

    def __init__(self, student: Mapping[str, Any], dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # that of NewNetwork would build another backbone
        self._pyramid = Pyramid(student)
        self.backbone = self._pyramid.backbone
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

    def forward(self, x_B3HW: Tensor) -> StudentOutput:  # type: ignore[override]
        before, after = super().forward(x_B3HW)
        return StudentOutput(before, after, *self._pyramid.maps())


def verified_network(student: Mapping[str, Any], dtype: torch.dtype) -> NewNetwork:
    """A network of another student config; KdepError unless it has that config's width and tap."""
    network = NewNetwork(student, dtype)
    with torch.random.fork_rng(devices=[]):
        network._tap[0].verify(student["width"], student["input_px"])
    return network


def _check_peers(student: nn.Module, objective: nn.Module) -> None:
    """Checks the initial weights of networks that are trained together with the student.

    Raises:
        KdepError: they are the student's, because its backbone loads weights when it is built.
    """
    weights = _trained_weights(student)
    for network in objective.modules():
        if not isinstance(network, NewNetwork):
            continue
        peer = _trained_weights(network.backbone)
        is_equal = peer.keys() == weights.keys() and all(
            torch.equal(peer[name], weight) for name, weight in weights.items()
        )
        if weights and is_equal:
            raise KdepError(
                "a peer of the student starts with the student's weights, which its backbone loads",
                expected="networks with different random weights, which teach each other",
                fix="choose a student with random initial weights, or another method",
            )


def _trained_weights(net: nn.Module) -> dict[str, Tensor]:
    """The trained tensors of two or more dimensions by name; others often begin as constants."""
    return {k: p for k, p in net.named_parameters() if p.requires_grad and p.ndim > 1}


class Distiller(BaseModel):
    """Student backbone and objective. Only `backbone.*` of the state dict is exported.

    Args:
        student: student config.
        objective: config {type, ...} of the objective, with the arguments that it requires.
        target: arguments of `build_target`, or None for an objective without "target" in `needs`.
        precision: "float32", or "bfloat16" / "float16" to run the backbone under autocast
            (parameters, BatchNorm statistics, target and loss stay float32). float16 needs a GPU
            and loss scaling (AmpOptimWrapper); bfloat16 needs neither.
        maps: whether the objective reads the student's feature pyramid.
        pre_activation_levels: names of the pyramid levels that the objective reads before their
            last activation.
        teacher: arguments of TeacherReader.
        accumulate: number of micro-batches per step.
        compile: back end of torch.compile for the student, or None.
        roles: teacher roles of a method with several teachers, in order; `teacher` and `target` are
            then dicts by role.
        augment: config of an Augment that changes every batch, or None.
        seed: seed of the augmentation.

    Attributes:
        step: number of the current step, from 0; set before every step.
        steps: total number of steps; set before every step.
        micro_batch: number of the current micro-batch of the step, from 0.

    Raises:
        KdepError: an unknown precision, gradient accumulation with auxiliary modules (parts of an
            objective with their own optimiser), a student whose network does not fit its config, or
            a peer with the student's initial weights.
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
        pre_activation_levels: Sequence[str] = (),
        teacher: Mapping[str, Any] | None = None,
        accumulate: int = 1,
        compile: str | None = None,
        roles: Sequence[str] = (),
        augment: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        # Non-blocking, so that the next batch is copied from pinned memory while the GPU computes.
        super().__init__({"type": "BaseDataPreprocessor", "non_blocking": True})
        if precision not in PRECISIONS:
            raise KdepError(
                f"unknown precision {precision!r}",
                expected=f"one of {', '.join(PRECISIONS)}",
                fix="correct `precision` in the suite's budget",
            )
        self.dtype = PRECISIONS[precision]
        self.step, self.steps, self.accumulate, self.micro_batch = 0, 1, accumulate, 0
        self.augment = None if augment is None else build_augment(augment)
        self.seed = seed
        reader_args = {role: (teacher or {})[role] for role in roles} or {
            SINGLE_ROLE: teacher or {}
        }
        self.teacher_readers = {k: TeacherReader(**args) for k, args in reader_args.items()}
        self._pyramid = Pyramid(student, pre_activation_levels) if maps else None
        self.backbone = build_backbone(student) if self._pyramid is None else self._pyramid.backbone
        self._tap = [PreActivationTap(self.backbone, student["tap"])]
        self._tap[0].verify(student["width"], student["input_px"])
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._pyramid is not None:
            self._pyramid.verify()
        self.compile_with = compile
        self._student: list[Any] = []  # in a list, so that it is not registered as a submodule
        self.objective = build_objective(objective, {})
        self._reads_teacher_images = "teacher_images" in demands(objective).needs
        self.objective.attach(
            self.backbone,
            lambda config=None, maps=False: (
                (NewPyramid if maps else NewNetwork)(student, self.dtype)
                if config is None
                else verified_network(config, self.dtype)
            ),
        )
        _check_peers(self.backbone, self.objective)
        self.auxiliary = self._auxiliary(objective, accumulate)
        if world_size() > 1:
            # BatchNorm of projectors and peers is synchronised like the student's.
            share_batch_norm(self.backbone)
            share_batch_norm(self.objective)
        self.has_roles = bool(roles)
        self.target = _build_target(target, roles)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def _auxiliary(self, objective: Mapping[str, Any], accumulate: int) -> AuxiliaryModules | None:
        """The objective's networks with their own optimisers; None if it has none.

        Raises:
            KdepError: they would take a step in each of several micro-batches, or the class does
                not declare them, so that nothing would update them.
        """
        modules = self.objective.auxiliary_modules()
        if not demands(objective).has_auxiliary_modules:
            if modules:
                raise KdepError(
                    f"{type(self.objective).__name__} returns the auxiliary modules "
                    f"{', '.join(modules)}, but its has_auxiliary_modules is False",
                    fix="set has_auxiliary_modules = True in this class",
                )
            return None
        if accumulate > 1:
            raise KdepError(
                f"{type(self.objective).__name__} has parts with separate optimisers, which "
                f"would take a step in each of {accumulate} micro-batches",
                fix="set budget.accumulate=1",
            )
        return AuxiliaryModules(modules)

    @property
    def first_teacher_reader(self) -> TeacherReader:
        """The reader of the first teacher."""
        return next(iter(self.teacher_readers.values()))

    def init_weights(self) -> None:
        """Does nothing: the backbone is initialised, with the run's seed, when it is built."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        if self.accumulate == 1:
            return super().train_step(data, optim_wrapper)
        return accumulated_step(self, self, data, optim_wrapper, self.accumulate)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, log = super().parse_losses(losses)
        return loss, mean_over_ranks(log)

    def student(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last maps before and after the last activation, each [B, D, h, w]."""
        if not self._student:
            tap = self._tap[0]
            self._student.append(compiled(tap, self.compile_with, x) if self.compile_with else tap)
        return self._student[0](x)

    def run_student(self, x: Tensor) -> StudentOutput:
        """Runs the student on normalised images [B, 3, H, W]; the outputs are float32."""
        device = x.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            before, after = self.student(x)
        with torch.autocast(device, enabled=False):
            maps, pre_activation_maps = (
                self._pyramid.maps() if self._pyramid is not None else ({}, {})
            )
            return StudentOutput(
                pool(before.float()), pool(after.float()), maps, pre_activation_maps
            )

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
        """The loss terms of a batch: {"loss_<term>": mean over the batch}.

        Args:
            images: [B, 3, px, px] uint8.
            teacher: [B, Dt] float16, the cached pooled feature of the teacher.
            outputs: {name: [B, ...]}, other cached teacher outputs.
            teacher_images: [B, 3, teacher_px, teacher_px] uint8, for a live teacher, or for an
                objective that reads them.
            labels: [B] int64.
            rows: [B] int64 row numbers of the views.
            teachers: {role: {"teacher", "outputs", "teacher_images"}} for several teachers, in
                place of the three arguments with these names.
            mode: must be "loss", the value that mmengine passes in training.

        Raises:
            KdepError: another mode, or a loss term that is not one value per sample.
        """
        if mode != "loss":
            raise KdepError(
                f"the pre-training model was run in mode {mode!r}",
                expected="mode 'loss'",
                fix="call it with mode='loss'; it makes no predictions",
            )
        single = {"teacher": teacher, "outputs": outputs, "teacher_images": teacher_images}
        teacher_inputs, batch = teachers or {SINGLE_ROLE: single}, None
        if self.augment is not None:
            batch, teacher_inputs = self.augmented(images, teacher_inputs)
            images, copies = batch.images, self.augment.copies
            labels, rows = (
                x if x is None or copies == 1 else x.repeat_interleave(copies)
                for x in (labels, rows)
            )
            self.objective.before_student(batch.extra)
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        student = self.run_student(x)
        with torch.autocast(images.device.type, enabled=False):
            by_role = self.teacher_outputs(teacher_inputs, {} if batch is None else batch.extra)
            if batch is not None:
                # Joins the outputs of cached and live teachers, in the order of the roles.
                outputs_by_role = {**batch.stored, **by_role}
                by_role = {
                    k: outputs_by_role[k] for k in self.teacher_readers if k in outputs_by_role
                }
            targets = self.targets(by_role)
            if batch is not None:
                targets |= batch.targets
            return self.losses(student, by_role, targets, labels, rows, x, batch)

    @torch.no_grad()
    def augmented(
        self, images: Tensor, teacher_inputs: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Batch, dict[str, Mapping[str, Any]]]:
        """Applies the augmentation to a batch, and to the cached outputs and targets of its images.

        Returns:
            (the augmented batch; {role: {"teacher_images": augmented images of a live teacher}}).
        """
        assert self.augment is not None
        live = {
            role: teacher_inputs[role]["teacher_images"]
            for role, reader in self.teacher_readers.items()
            if reader.live
        }
        cached = {role: values for role, values in teacher_inputs.items() if role not in live}
        with torch.autocast(images.device.type, enabled=False):
            stored = self.teacher_outputs(cached)
            batch = self.augment.change(
                Batch(
                    images.float(),
                    {role: pixels.float() for role, pixels in live.items()},
                    stored,
                    self.targets(stored),
                ),
                Draw(
                    self.seed, self.step, len(images), rank(), world_size(),
                    self.micro_batch, self.accumulate,
                ),
            )  # fmt: skip
        changed = {role: as_uint8(pixels) for role, pixels in batch.teacher_images.items()}
        return batch, {role: {"teacher_images": pixels} for role, pixels in changed.items()}

    def teacher_outputs(
        self,
        teacher_inputs: Mapping[str, Mapping[str, Any]],
        extra: Mapping[str, Tensor] | None = None,
    ) -> dict[str, TeacherOutput]:
        """The teacher outputs by role, for the roles in `teacher_inputs`.

        Args:
            teacher_inputs: {role: {"teacher", "outputs", "teacher_images"}}; see `forward`.
            extra: tensors that the augmentation added.
        """
        outputs = {
            role: reader(
                teacher_inputs[role].get("teacher"),
                teacher_inputs[role].get("outputs") or {},
                teacher_inputs[role].get("teacher_images"),
                extra or {},
            )
            for role, reader in self.teacher_readers.items()
            if role in teacher_inputs
        }
        if self._reads_teacher_images:
            outputs = {
                role: out and self._with_images(out, teacher_inputs[role].get("teacher_images"))
                for role, out in outputs.items()
            }
        return {role: out for role, out in outputs.items() if out is not None}

    def _with_images(self, out: TeacherOutput, images: Tensor | None) -> TeacherOutput:
        """Adds the teacher's images, normalised as the student's are."""
        if images is None:
            return out
        return replace(out, images=(images.float() - self.mean) / self.std)

    def targets(self, teachers: Mapping[str, TeacherOutput]) -> dict[str, Tensor]:
        """{role: [B, D]}, the aligned and transformed feature of every teacher with a target."""
        if self.target is None:
            return {}
        if not self.has_roles:
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
        """The objective's terms: {"loss_<term>": mean over the batch}.

        The auxiliary modules of the objective are updated first.

        Raises:
            KdepError: a term that is not one value per sample.
        """
        first = next(iter(teachers), "")
        ctx = Context(
            pre_activation=student.pre_activation,
            post_activation=student.post_activation,
            target=targets.get(first),
            labels=labels,
            teacher=teachers.get(first),
            maps=student.maps,
            pre_activation_maps=student.pre_activation_maps,
            images=images,
            rows=rows,
            step=self.step,
            steps=self.steps,
            teachers=teachers,
            targets=targets,
            extra={} if batch is None else batch.extra,
            student=self.run_student,
        )
        if self.auxiliary is not None and torch.is_grad_enabled():
            with self.auxiliary.training():
                self.objective.update_auxiliary(ctx, self.auxiliary)
        terms = self.objective.terms(ctx)
        for name, term in terms.items():
            if term.shape != student.pre_activation.shape[:1]:
                raise KdepError(
                    f"the loss term {name!r} of {type(self.objective).__name__} has shape "
                    f"{tuple(term.shape)}",
                    expected=f"({len(student.pre_activation)},), one value per sample",
                    fix="return one loss per sample from `terms` of that class",
                )
        return {f"loss_{name}": term.mean() for name, term in terms.items()}


def _build_target(target: Mapping[str, Any] | None, roles: Sequence[str]) -> nn.Module | None:
    """The module that computes the target from the teacher's feature; one per role, if any.

    The prefix "of_" of a role avoids clashes with the attributes of ModuleDict.
    """
    if not target:
        return None
    if not roles:
        return build_target(**target)
    return nn.ModuleDict({f"of_{k}": build_target(**v) for k, v in target.items()})
