"""Methods that act at transfer: additional losses, networks and data in a task's training.

`transfer=dict(type=..., ...)` of a method config names a subclass of `TransferMethod`. `change`
adds the method to the task's mm Config. The model is then the task's own, with the method as an
additional module `transfer_method.*`; `backbone.*` keeps its name, which the load gate looks for.
After training, `remove` takes out the method and its teacher, and only the task's own model is
scored and saved.
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
from kdep_bench.openmmlab import is_main_rank, planned_ranks
from kdep_bench.openmmlab.hooks import LossCurve
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.registry import build, locate, type_path
from kdep_bench.teachers.base import freeze, load_exactly
from kdep_bench.transfer.export import save_tensors
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.parallel import unwrapped

NEEDS = frozenset({"tuned_teacher"})
REQUIRES = frozenset(
    {
        "student_maps",  # {level: {"channels": C, "stride": s, "side": n}}, as in the context
        "teacher_maps",  # the same of the tuned teacher
    }
)
MODEL = "model.pth"  # a task's trained model, in the folder of its stage
PREFIX = "transfer.loss_"  # of the method's losses in the training log


@dataclass(frozen=True)
class TransferContext:
    """One training batch of the task as a transfer method sees it.

    Attributes:
        inputs: [B, 3, H, W] the batch as the networks read it (normalised).
        samples: the toolkit's data samples, with the task's labels.
        maps: the student's levels by name, {"s8": [B, C, H/8, W/8], ...}, named by stride.
        teacher_maps: the same of the tuned teacher, without gradient; empty without one.
        step, steps: optimiser step, from 0, and their number in the whole training.
    """

    inputs: Tensor
    samples: Sequence[Any]
    maps: Mapping[str, Tensor]
    teacher_maps: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    steps: int = 1


class TransferMethod(nn.Module, ABC):
    """One transfer method, one file in `kdep_bench/transfer/methods/`.

    Class attributes:
        families: task families that it supports.
        needs: subset of NEEDS. "tuned_teacher": another student that was transferred to the same
            task before; the config then has `teacher=dict(student=..., method=...)`.
        requires: subset of REQUIRES, keyword arguments of the constructor that the stage gives.
        backbones: class names of the backbones that it can read; None for any.

    Parameters and buffers are trained with the model, by the optimiser's rules for layers outside
    the backbone, and removed after training. The state of the random number generator is restored
    after the method is built, so the task's own model starts from the same weights as without it.
    """

    families: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()
    backbones: ClassVar[frozenset[str] | None] = None

    @classmethod
    def change_config(cls, cfg: Any, config: Mapping[str, Any], data_root: Path) -> None:
        """Changes the task's mm Config in place before anything is built (data, schedule, hooks).

        Args:
            config: the method's own config.
            data_root: the prepared data, for a method that reads further sets.
        """

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        """Called once, when all networks are built: the place of forward hooks and of layers whose
        widths that only the networks have. Store no network as an attribute: it would become a
        registered module."""

    def hooks(self) -> list[Hook]:
        """Further mmengine hooks of the training."""
        return []

    @abstractmethod
    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        """Terms added to the task's losses: per sample, shape (B,), whose mean is taken, or ()."""


@dataclass(frozen=True)
class TransferMethodConfig:
    """A transfer method in one stage.

    Attributes:
        config: {type, ...} of the method.
        student: config of the student that is transferred.
        teacher: config of the tuned teacher's student, or None.
        folder: directory of the stage that tuned the teacher, or None.
    """

    config: Mapping[str, Any]
    student: Mapping[str, Any]
    teacher: Mapping[str, Any] | None = None
    folder: Path | None = None

    def change(self, cfg: Any, task: Any, data_root: Path, seed: int, work_dir: Path) -> None:
        """Makes `cfg`, a Config of `task`, that of a training with the method, in place.

        Raises:
            KdepError: a type that is no TransferMethod, a task of a family that it does not
                support, a method without the teacher that it needs.
        """
        kind = _checked(self.config, task)
        if "tuned_teacher" in kind.needs and (self.teacher is None or self.folder is None):
            raise KdepError(
                f"the transfer method {type_path(kind)} needs a tuned teacher",
                fix="add teacher=dict(student=..., method=...) to `transfer` of the method",
            )
        teacher = None
        if self.teacher is not None and self.folder is not None:
            path = self.folder / MODEL
            whole = task.build_cfg(data_root, self.teacher, path, seed, work_dir).model
            whole = whole.to_dict()
            del whole["backbone"]["init_cfg"]  # the whole model's weights are read instead
            teacher = dict(model=whole, checkpoint=str(path), maps=_levels(self.teacher))
        kind.change_config(cfg, self.config, data_root)
        cfg.model = dict(
            type="KdepTransferModel",
            model=cfg.model.to_dict(),
            method=dict(self.config),
            maps=_levels(self.student),
            teacher=teacher,
        )
        cfg.custom_imports.imports.append("kdep_bench.transfer.method")


def transfer_method_of(
    spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> TransferMethodConfig | None:
    """The transfer method of a stage's spec; None where it has none."""
    if spec.get("transfer") is None:
        return None
    folder = inputs.get("teacher")
    return TransferMethodConfig(
        spec["transfer"],
        spec["student"],
        spec.get("teacher"),
        None if folder is None else Path(folder),
    )


def _checked(config: Mapping[str, Any], task: Any) -> type[TransferMethod]:
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, TransferMethod)):
        raise KdepError(
            f"{type_path(config['type'])} is not a transfer method",
            expected="a subclass of kdep_bench.transfer.method.TransferMethod",
            fix="correct `type` in the method's `transfer`",
        )
    for what, stated, known in (("need", kind.needs, NEEDS), ("question", kind.requires, REQUIRES)):
        for word in sorted(stated - known):
            raise unknown_name(f"{what} of {type_path(kind)}", word, known)
    if task.family not in kind.families:
        raise KdepError(
            f"the transfer method {type_path(kind)} does not support the task {task.name}, of the "
            f"family {task.family}",
            expected=f"a task of the family {', '.join(sorted(kind.families))}",
            fix="use such a task, or take the method out of the suite",
        )
    return kind


def _levels(student: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return describe(student) if (student.get("pyramid") or {}).get("out_indices") else {}


# ---- the model ----


class _Attachment:
    """State of a transfer method that is not a module of the model: its teacher and its records."""

    def __init__(
        self,
        plain: nn.Module,
        teacher: nn.Module | None,
        maps: Mapping[str, Mapping[str, int]],
        teacher_maps: Mapping[str, Mapping[str, int]],
    ) -> None:
        self.plain_class = type(plain)
        self.teacher = teacher
        # In the order of a backbone's outputs; a dumped Config has lost that of the keys.
        self.names, self.teacher_names = (
            tuple(sorted(m, key=lambda level: m[level]["stride"])) for m in (maps, teacher_maps)
        )
        self.teacher_images = 0
        self._seen: tuple[Tensor, ...] = ()
        backbone = cast(nn.Module, plain.backbone)
        self.handle = backbone.register_forward_hook(self._record)

    def _record(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._seen = tuple(out)

    def maps(self) -> dict[str, Tensor]:
        """The student's levels of the forward pass just done; they are then released."""
        seen, self._seen = self._seen, ()
        return dict(zip(self.names, seen, strict=True)) if self.names else {}

    @torch.no_grad()
    def teacher_levels(self, inputs: Tensor) -> dict[str, Tensor]:
        """The teacher's levels of `inputs`, float32."""
        if self.teacher is None:
            return {}
        self.teacher_images += len(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            out = cast(nn.Module, self.teacher.to(inputs.device).backbone)(inputs.float())
        return dict(zip(self.teacher_names, out, strict=True))


class _WithMethod:
    """Mixed into the class of a task's model: its losses, and those of the transfer method."""

    transfer_method: TransferMethod
    transfer_attachment: list[_Attachment]

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Any]:
        losses = super().loss(inputs, data_samples)  # type: ignore[misc]
        attachment = self.transfer_attachment[0]
        step, steps = _progress()
        with torch.autocast(inputs.device.type, enabled=False):
            ctx = TransferContext(
                inputs=inputs,
                samples=data_samples,
                maps={k: v.float() for k, v in attachment.maps().items()},
                teacher_maps=attachment.teacher_levels(inputs),
                step=step,
                steps=steps,
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
    """(step, steps) of the Runner's training."""
    hub = MessageHub.get_current_instance()
    known = hub.runtime_info
    return int(known.get("iter", 0)), max(1, int(known.get("max_iters", 1)))


@MODELS.register_module(name="KdepTransferModel")
def transfer_model(
    model: Mapping[str, Any],
    method: Mapping[str, Any],
    maps: Mapping[str, Mapping[str, int]],
    teacher: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A task's own model whose losses include those of a transfer method.

    Args:
        model: the task's model config.
        method: {type, ...} of the TransferMethod.
        maps: the student's levels.
        teacher: `model` (config), `checkpoint` (file of its whole state), `maps` (its levels).
    """
    plain = MODELS.build(dict(model))
    with torch.random.fork_rng(devices=[]):
        tuned = None if teacher is None else _tuned(teacher)
        kind = locate(method["type"])
        stated = {"student_maps": maps, "teacher_maps": (teacher or {}).get("maps", {})}
        given = {k: v for k, v in stated.items() if k in kind.requires and k not in method}
        acts = build(method, **given)
        acts.attach(plain, tuned)
    plain.transfer_method = acts
    plain.transfer_attachment = [_Attachment(plain, tuned, maps, (teacher or {}).get("maps", {}))]
    plain.__class__ = type(f"{type(plain).__name__}WithMethod", (_WithMethod, type(plain)), {})
    return plain


def _tuned(teacher: Mapping[str, Any]) -> nn.Module:
    """The tuned teacher, frozen: every tensor of its file, and no other."""
    made = MODELS.build(dict(teacher["model"]))
    load_exactly(made, read_tensors(teacher["checkpoint"]), str(teacher["checkpoint"]))
    return freeze(made)


class TransferLosses(Hook):
    """Keeps the curve of each loss of the transfer method."""

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


def hooks_of(runner: Any) -> list[Hook]:
    """The hooks of the transfer method of a Runner's model; empty without a method."""
    method = getattr(unwrapped(runner), "transfer_method", None)
    return [] if method is None else [TransferLosses(), *method.hooks()]


def strip_and_save(runner: Any, hooks: Sequence[Hook], save_in: Path | None) -> dict[str, Any]:
    """Reduces the model to the task's own one after training; returns outputs of the stage.

    Args:
        hooks: those that `hooks_of` gave.
        save_in: folder to save the model's state in, or None.

    Returns:
        of a training with a transfer method, `transfer` (see `remove`) and `curves` of its losses;
        of a saved model, `model_checksum`.
    """
    found: dict[str, Any] = {}
    cost = remove(runner)
    if cost:
        found["transfer"] = cost
        found["curves"] = next(h.curves for h in hooks if isinstance(h, TransferLosses))
    if save_in is not None and is_main_rank():
        found["model_checksum"] = save_tensors(unwrapped(runner).state_dict(), save_in / MODEL)
    return found


def remove(runner: Any) -> dict[str, Any]:
    """Takes the method and its teacher off the Runner's model; returns what they cost.

    `extra_parameters`: elements of the method's parameters and of its teacher's. `extra_forwards`:
    images that its teacher read, over all processes. Empty where there is no method.
    """
    model = unwrapped(runner)
    if not hasattr(model, "transfer_method"):
        return {}
    attachment, method = model.transfer_attachment[0], model.transfer_method
    networks = [method, *([] if attachment.teacher is None else [attachment.teacher])]
    counted = sum(p.numel() for network in networks for p in network.parameters())
    attachment.handle.remove()
    model.__class__ = attachment.plain_class
    del model.transfer_method, model.transfer_attachment
    images = attachment.teacher_images * planned_ranks()
    return {"extra_parameters": counted, "extra_forwards": images}
