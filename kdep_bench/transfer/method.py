"""Transfer methods: additional losses, networks and data in the training of a task.

A method config with `transfer=dict(type=..., ...)` names a subclass of `TransferMethod`.
`TransferMethodConfig.change` adds the method to the task's mmengine Config. During training, the
task's model has an additional module `transfer_method`; its other modules keep their names. After
training, `remove` removes the method and its teacher, so only the task's own model is scored and
saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.openmmlab import is_main_rank, planned_ranks
from kdep_bench.openmmlab.hooks import LossCurve
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.registry import build, locate, type_path
from kdep_bench.teachers.base import freeze, load_exactly
from kdep_bench.transfer.export import save_tensors
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.parallel import unwrapped

NEEDS = frozenset({"tuned_teacher", "target_images"})
STAGE_ARGUMENTS = frozenset(
    {
        # {level: {"channels": C, "stride": s, "side": n, "out_index": i}} of the student; i is the
        # level's number in `out_indices` of the backbone
        "student_maps",
        "teacher_maps",  # the same for the tuned teacher
        "pretrained",  # path of the state dict that the pre-training of the student wrote
    }
)
PRETRAINED = "student.pth"  # state dict of a pre-training, in the folder of its stage
MODEL = "model.pth"  # a task's trained model, in the folder of its stage
PREFIX = "transfer.loss_"  # prefix of the names of the method's losses in the training log


@dataclass(frozen=True)
class TransferContext:
    """One training batch of the task, the argument of `TransferMethod.losses`.

    Attributes:
        inputs: [B, 3, H, W], normalised images.
        samples: the toolkit's data samples, with the task's labels.
        maps: the student's maps, named by stride: {"s8": [B, C, H/8, W/8], ...}; empty for
            classification unless the class has `stage_arguments`.
        teacher_maps: the same of the tuned teacher, without gradient; empty if there is none.
        step: number of the optimiser step, from 0.
        steps: number of optimiser steps of the training.
        task_losses: the losses of the task's model for this batch, with gradient.
    """

    inputs: Tensor
    samples: Sequence[Any]
    maps: Mapping[str, Tensor]
    teacher_maps: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    steps: int = 1
    task_losses: Mapping[str, Any] = field(default_factory=dict)


class TransferMethod(nn.Module, ABC):
    """Base class of transfer methods; each has a file in `kdep_bench/transfer/methods/`.

    Its parameters are trained with the model, with the learning rate of layers outside the
    backbone, and are removed after training. The state of the random number generator is restored
    after the method is built, so the task's model has the same initial weights as without it.

    Class attributes:
        families: task families that it supports.
        needs: subset of NEEDS. "tuned_teacher": another student that was trained on the same task
            before; the config then has `teacher=dict(student=..., method=...)`. "target_images":
            images of another domain, see `domain_detection.DomainDetection`.
        stage_arguments: subset of STAGE_ARGUMENTS: keyword arguments of the constructor that the
            stage sets.
        backbones: class names of the supported backbones; None: any.
        objectives: import paths of the objectives with which the student must be pre-trained;
            None: any.
        single_process: whether the training cannot be divided over several processes.
        extra_trained_images, extra_forward_images: for the forecast of the cost, the number of
            additional images per training image that the task's network is trained on, and that it
            or a copy of it processes without a backward pass.
        optimises_images: for the forecast, whether it makes `images` images in `steps` steps of
            gradient descent through the tuned teacher (two arguments of the class), once before the
            training, unless its argument `generated` is 0.
        plan_check: dotted path of a function that planning calls with the method's config; it
            raises KdepError, and its module must not import torch. None: no such check.
        transformer: whether student and tuned teacher must be vision transformers of timm.
        teacher_is_student: whether the tuned teacher must be the same student (teacher="self").

    Attributes:
        extra_images: number of images that networks (the student too) processed in additional
            forward passes, which the method counts. Passes of the tuned teacher are counted
            separately.
        reads_teacher_maps: whether the tuned teacher processes the training images.
    """

    families: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]] = frozenset()
    stage_arguments: ClassVar[frozenset[str]] = frozenset()
    backbones: ClassVar[frozenset[str] | None] = None
    objectives: ClassVar[frozenset[str] | None] = None
    single_process: ClassVar[bool] = False
    extra_trained_images: ClassVar[int] = 0
    extra_forward_images: ClassVar[int] = 0
    optimises_images: ClassVar[bool] = False
    extra_images: int = 0
    reads_teacher_maps: bool = True
    plan_check: ClassVar[str | None] = None
    transformer: ClassVar[bool] = False
    teacher_is_student: ClassVar[bool] = False

    @classmethod
    def change_config(cls, cfg: Any, config: Mapping[str, Any], data_root: Path) -> None:
        """Changes the task's mmengine Config (data, schedule, hooks) in place, before it is used.

        Args:
            cfg: the mmengine Config.
            config: the config of the transfer method.
            data_root: folder of the prepared data, for methods that read additional data.
        """

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        """Called once, after all networks are built.

        Registers forward hooks, and creates layers whose widths depend on the networks. Do not
        store a network as an attribute: torch would register it as a submodule.

        Args:
            model: the task's model.
            teacher: the tuned teacher, or None.
        """

    def hooks(self) -> list[Hook]:
        """Additional mmengine hooks for the training."""
        return []

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """Called once after the training, before the method and its teacher are removed.

        A method whose scored network differs from the trained one (k-bit weights) changes `model`
        here. Names and shapes of the model's tensors must stay those of the task's own model.

        Returns:
            additional entries of the stage's output `transfer`.
        """
        return {}

    @abstractmethod
    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        """The loss terms that are added to the task's losses, by name.

        A term has shape (B,), one value per sample, which are averaged, or () for a scalar.
        """


@dataclass(frozen=True)
class TransferMethodConfig:
    """The transfer method of one stage.

    Attributes:
        config: config of the transfer method, {type, ...}.
        student: config of the student that is trained.
        teacher: student config of the tuned teacher, or None.
        folder: directory of the stage that trained the tuned teacher, or None.
        pretraining: directory of the student's pre-training, or None.
    """

    config: Mapping[str, Any]
    student: Mapping[str, Any]
    teacher: Mapping[str, Any] | None = None
    folder: Path | None = None
    pretraining: Path | None = None

    def change(self, cfg: Any, task: Any, data_root: Path, seed: int, work_dir: Path) -> None:
        """Adds the transfer method to the mmengine Config `cfg` of `task`, in place.

        Args:
            cfg: the mmengine Config.
            task: the task.
            data_root, seed, work_dir: see `Task.build_cfg`.

        Raises:
            KdepError: the type is not a TransferMethod, the method does not support the task's
                family, or it needs a tuned teacher or a pre-training that is not given.
        """
        kind = _checked(self.config, task)
        if "pretrained" in kind.stage_arguments and self.pretraining is None:
            raise KdepError(
                f"the transfer method {type_path(kind)} reads the student's pre-training, which is "
                "not an input of the stage",
                fix="plan the suite again",
            )
        if "tuned_teacher" in kind.needs and (self.teacher is None or self.folder is None):
            raise KdepError(
                f"the transfer method {type_path(kind)} needs a tuned teacher",
                fix="add teacher=dict(student=..., method=...) to `transfer` of the method",
            )
        teacher = None
        if task.family == "classification" and kind.stage_arguments:
            _return_levels(cfg.model.backbone, self.student)
        if self.teacher is not None and self.folder is not None:
            path = self.folder / MODEL
            model = task.build_cfg(data_root, self.teacher, path, seed, work_dir).model.to_dict()
            if task.family == "classification" and kind.stage_arguments:
                _return_levels(model["backbone"], self.teacher)
            del model["backbone"]["init_cfg"]  # the weights of the whole model are loaded instead
            teacher = dict(
                model=model, checkpoint=str(path), maps=_levels(kind, task, self.teacher)
            )
        kind.change_config(cfg, self.config, data_root)
        cfg.model = dict(
            type="KdepTransferModel",
            model=cfg.model.to_dict(),
            method=dict(self.config),
            maps=_levels(kind, task, self.student),
            teacher=teacher,
            pretrained=None if self.pretraining is None else str(self.pretraining / PRETRAINED),
        )
        cfg.custom_imports.imports.append("kdep_bench.transfer.method")


def transfer_method_config(
    spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> TransferMethodConfig | None:
    """The transfer method of a stage `transfer`, from its spec and inputs; None if it has none."""
    if spec.get("transfer") is None:
        return None
    folders = (inputs.get("teacher"), inputs.get("pretrain"))
    return TransferMethodConfig(
        spec["transfer"],
        spec["student"],
        spec.get("teacher"),
        *(None if folder is None else Path(folder) for folder in folders),
    )


def _checked(config: Mapping[str, Any], task: Any) -> type[TransferMethod]:
    """The class of a transfer method; raises KdepError if it does not support the task."""
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, TransferMethod)):
        raise KdepError(
            f"{type_path(config['type'])} is not a transfer method",
            expected="a subclass of kdep_bench.transfer.method.TransferMethod",
            fix="correct `type` in the method's `transfer`",
        )
    for attribute, names, known in (
        ("needs", kind.needs, NEEDS),
        ("stage_arguments", kind.stage_arguments, STAGE_ARGUMENTS),
    ):
        for name in sorted(names - known):
            raise unknown_name("entry", name, known, place=f"`{attribute}` of {type_path(kind)}")
    if "target_images" in kind.needs and not getattr(task, "has_target_images", False):
        raise KdepError(
            f"the transfer method {type_path(kind)} reads target images, and the task {task.name} "
            "has none",
            fix="use a task of kdep_bench.transfer.domain_detection, such as pocket_det_fog",
        )
    if kind.single_process and planned_ranks() > 1:
        raise KdepError(
            f"the transfer method {type_path(kind)} cannot run in {planned_ranks()} processes",
            expected="one process",
            fix="set runtime.processes or runtime.gpus of transfer to 1",
        )
    if task.family not in kind.families:
        raise KdepError(
            f"the transfer method {type_path(kind)} does not support the task {task.name} of the "
            f"family {task.family}",
            expected=f"a task of the family {', '.join(sorted(kind.families))}",
            fix="use such a task, or remove the method from the suite",
        )
    return kind


def _levels(
    kind: type[TransferMethod], task: Any, student: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """The levels of a student in a task, see STAGE_ARGUMENTS.

    Empty without a feature pyramid, and for classification unless the method reads maps: a
    classifier reads the last map only (see `_return_levels`).
    """
    pyramid = student.get("pyramid") or {}
    if not pyramid.get("out_indices") or (
        task.family == "classification" and not kind.stage_arguments
    ):
        return {}
    levels = describe(student)
    # `describe` keeps the order of the pyramid.
    named = zip(levels.items(), pyramid["out_indices"], strict=True)
    return {name: {**level, "out_index": int(index)} for (name, level), index in named}


def _return_levels(backbone_cfg: dict[str, Any], student: Mapping[str, Any]) -> None:
    """Adds the pyramid to the outputs of a classifier's backbone; its head reads the last one."""
    pyramid = student.get("pyramid") or {}
    if not pyramid.get("out_indices"):
        return
    with torch.random.fork_rng(devices=[]):
        default = getattr(build_backbone(student), "out_indices", ())
    backbone_cfg["out_indices"] = tuple(sorted({*map(int, pyramid["out_indices"]), *default}))


def _output_names(
    backbone: nn.Module, levels: Mapping[str, Mapping[str, int]]
) -> tuple[str | None, ...]:
    """The level of each output of a backbone; None for an output that is not a level."""
    if not levels:
        return ()
    indices = getattr(backbone, "out_indices", None)
    if indices is None:  # a backbone that always returns its levels
        by_stride = sorted((level["stride"], name) for name, level in levels.items())
        return tuple(name for _, name in by_stride)
    by_index = {int(level["out_index"]): name for name, level in levels.items()}
    return tuple(by_index.get(int(i)) for i in indices)


def _named(names: Sequence[str | None], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """{level: map} of a backbone's outputs."""
    named = zip(names, outputs, strict=True)
    return {name: feature_map for name, feature_map in named if name is not None}


# ---- the model ----


class _Attachment:
    """The tuned teacher and the recorded maps of a transfer method.

    It is not a module, so the teacher is not registered as a part of the model.

    Args:
        task_model: the task's model.
        teacher: the tuned teacher, or None.
        maps, teacher_maps: levels of student and teacher; see STAGE_ARGUMENTS.
    """

    def __init__(
        self,
        task_model: nn.Module,
        teacher: nn.Module | None,
        maps: Mapping[str, Mapping[str, int]],
        teacher_maps: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.task_class = type(task_model)
        self.teacher = teacher
        backbone = cast(nn.Module, task_model.backbone)
        self.names, self.teacher_names = _output_names(backbone, maps), ()
        if teacher is not None:
            self.teacher_names = _output_names(cast(nn.Module, teacher.backbone), teacher_maps)
        self.teacher_images = 0
        self._recorded: tuple[Tensor, ...] = ()
        self.handle = backbone.register_forward_hook(self._record)

    def _record(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._recorded = tuple(out)

    def maps(self) -> dict[str, Tensor]:
        """The student's maps of the last forward pass, which are then released."""
        recorded, self._recorded = self._recorded, ()
        return _named(self.names, recorded) if self.names else {}

    @torch.no_grad()
    def teacher_levels(self, inputs: Tensor) -> dict[str, Tensor]:
        """Runs the teacher; returns its maps for `inputs`, float32."""
        if self.teacher is None or not self.teacher_names:
            return {}
        self.teacher_images += len(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            out = cast(nn.Module, self.teacher.to(inputs.device).backbone)(inputs.float())
        return _named(self.teacher_names, out)


class _WithMethod:
    """Mixin for the class of a task's model that adds the losses of the transfer method."""

    transfer_method: TransferMethod
    transfer_attachment: list[_Attachment]

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Any]:
        losses = super().loss(inputs, data_samples)  # type: ignore[misc]
        attachment = self.transfer_attachment[0]
        step, steps = _progress()
        reads_teacher = self.transfer_method.reads_teacher_maps
        with torch.autocast(inputs.device.type, enabled=False):
            ctx = TransferContext(
                inputs=inputs,
                samples=data_samples,
                maps={k: v.float() for k, v in attachment.maps().items()},
                teacher_maps=attachment.teacher_levels(inputs) if reads_teacher else {},
                step=step,
                steps=steps,
                task_losses=losses,
            )
            terms = self.transfer_method.losses(ctx)
        for name, term in terms.items():
            if term.shape not in ((), (len(inputs),)):
                raise KdepError(
                    f"the loss term {name!r} of {type(self.transfer_method).__name__} has shape "
                    f"{tuple(term.shape)}",
                    expected=f"({len(inputs)},), one value per sample, or ()",
                    fix="return the loss of every sample, or a scalar, from `losses` of that class",
                )
            losses[f"{PREFIX}{name}"] = term.mean()
        return losses


def _progress() -> tuple[int, int]:
    """(number of the optimiser step, number of steps) of the Runner."""
    info = MessageHub.get_current_instance().runtime_info
    return int(info.get("iter", 0)), max(1, int(info.get("max_iters", 1)))


@MODELS.register_module(name="KdepTransferModel")
def transfer_model(
    model: Mapping[str, Any],
    method: Mapping[str, Any],
    maps: Mapping[str, Mapping[str, int]],
    teacher: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
) -> nn.Module:
    """Builds a task's model with a transfer method, whose losses are added to the task's.

    Args:
        model: config of the task's model.
        method: config of the transfer method, {type, ...}.
        maps: the student's levels; see STAGE_ARGUMENTS.
        teacher: `model`, the config of the tuned teacher; `checkpoint`, the file with its weights;
            `maps`, its levels. None: no tuned teacher.
        pretrained: file of the student's pre-training; see STAGE_ARGUMENTS.
    """
    task_model = MODELS.build(dict(model))
    teacher_maps = (teacher or {}).get("maps", {})
    with torch.random.fork_rng(devices=[]):
        tuned_teacher = None if teacher is None else _load_teacher(teacher)
        kind = locate(method["type"])
        available = {"student_maps": maps, "teacher_maps": teacher_maps, "pretrained": pretrained}
        required = {
            k: v for k, v in available.items() if k in kind.stage_arguments and k not in method
        }
        transfer_method = build(method, **required)
        transfer_method.attach(task_model, tuned_teacher)
    task_model.transfer_method = transfer_method
    task_model.transfer_attachment = [_Attachment(task_model, tuned_teacher, maps, teacher_maps)]
    task_class = type(task_model)
    task_model.__class__ = type(f"{task_class.__name__}WithMethod", (_WithMethod, task_class), {})
    return task_model


def _load_teacher(teacher: Mapping[str, Any]) -> nn.Module:
    """Builds the tuned teacher, loads all its weights and freezes it."""
    model = MODELS.build(dict(teacher["model"]))
    load_exactly(model, read_tensors(teacher["checkpoint"]), str(teacher["checkpoint"]))
    return freeze(model)


class TransferLosses(Hook):
    """Records the curve of each loss of the transfer method.

    Args:
        limit: maximum number of points of a curve.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._curves: dict[str, LossCurve] = {}

    @property
    def curves(self) -> dict[str, list[list[float]]]:
        """{name of the loss: [[step, value], ...]}"""
        return {k: [list(p) for p in c.points] for k, c in self._curves.items()}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for name, value in (outputs or {}).items():
            if name.startswith(PREFIX):
                curve = self._curves.setdefault(name, LossCurve(self._limit))
                curve.add(runner.iter + 1, float(value))


def method_hooks(runner: Any) -> list[Hook]:
    """The hooks of the transfer method of a Runner's model; empty if it has none."""
    method = getattr(unwrapped(runner), "transfer_method", None)
    return [] if method is None else [TransferLosses(), *method.hooks()]


def strip_and_save(runner: Any, hooks: Sequence[Hook], save_in: Path | None) -> dict[str, Any]:
    """Removes the transfer method after training, and saves the task's model if required.

    Args:
        runner: the Runner.
        hooks: the result of `method_hooks`.
        save_in: folder to save the model in; None: the model is not saved.

    Returns:
        outputs of the stage: with a transfer method, `transfer` (see `remove`) and the `curves` of
        its losses; for a saved model, `model_checksum`.
    """
    outputs: dict[str, Any] = {}
    cost = remove(runner)
    if cost:
        outputs["transfer"] = cost
        outputs["curves"] = next(h.curves for h in hooks if isinstance(h, TransferLosses))
    if save_in is not None and is_main_rank():
        outputs["model_checksum"] = save_tensors(unwrapped(runner).state_dict(), save_in / MODEL)
    return outputs


def remove(runner: Any) -> dict[str, Any]:
    """Removes the transfer method and its teacher from the Runner's model; returns their cost.

    Returns:
        extra_parameters: number of parameters of the method and of its teacher.
        extra_forwards: number of images in the passes of the teacher and in the additional passes
            that the method counts, also those of the student, in all ranks.
        With the entries of `TransferMethod.finish`. Empty if there is no transfer method.
    """
    model = unwrapped(runner)
    if not hasattr(model, "transfer_method"):
        return {}
    attachment, method = model.transfer_attachment[0], model.transfer_method
    networks = [method, *([] if attachment.teacher is None else [attachment.teacher])]
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    finished = method.finish(model)
    attachment.handle.remove()
    model.__class__ = attachment.task_class
    del model.transfer_method, model.transfer_attachment
    images = (attachment.teacher_images + method.extra_images) * planned_ranks()
    return {"extra_parameters": parameters, "extra_forwards": images, **finished}
