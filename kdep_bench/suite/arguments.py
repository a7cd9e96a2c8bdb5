"""Checks of a method's config against its classes: arguments, ranges, inputs, the optimiser.

`pairs` calls these functions. They read the source code of the classes instead of importing them,
so that `--dry-run` does not import torch. In this package `label` is what an error calls the
method, for example "method 'kdep'".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdep_bench.data.given_files import CONTENT
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.objectives.levels import depths_of
from kdep_bench.objectives.roles import FROM_TEACHER
from kdep_bench.schedules.build import as_schedule
from kdep_bench.signatures import (
    check_arguments,
    check_type,
    check_value,
    class_value,
    derives_from,
    optimizer_path,
    resolve_alias,
    signature,
    timm_class,
    torch_optimizers,
)
from kdep_bench.suite.schema import Json, method_needs, weights_argument

RANDOM = "random"  # value of `weights` of a teacher: random initial weights
_OBJECTIVE = "kdep_bench.objectives.base.Objective"
# Key of a method -> base of the class in its `type`.
_BASES = {
    "align": "kdep_bench.features.aligners.Aligner",
    "transform": "kdep_bench.features.transform.Transform",
}
_SCHEDULES = "kdep_bench.schedules."
# (blocks, attention heads) of timm's vision transformers, by the second word of their names.
VIT_SIZES: Mapping[str, tuple[int, int]] = {
    "tiny": (12, 3),
    "small": (12, 6),
    "base": (12, 12),
    "large": (24, 16),
    "huge": (32, 16),
}
_VIT_NAME = re.compile(rf"(?:vit|deit|deit3)_({'|'.join(VIT_SIZES)})_patch\d+_")
_PATCH = re.compile(r"_patch(\d+)")  # in timm's names of vision transformers: the side in pixels
# timm's class of vision transformers with a sequence of tokens and absolute position embeddings.
# Other classes are not supported (see `networks.visible.timm_source`).
_VIT_CLASS = "timm.models.vision_transformer.VisionTransformer"
# Names of its networks, for a name that timm's source does not define (an earlier name).
_TIMM_VIT = re.compile(r"(?:flexivit|vit|deit3?)_|test_vit")
# Argument of an optimiser -> its range (see `signatures.check_value`). torch reports most wrong
# values only when training begins.
_OPTIMIZER_RANGES: Mapping[str, str] = {
    "lr": "Positive",
    "momentum": "BelowOne",
    "dampening": "Fraction",
    "weight_decay": "NotNegative",
    "eps": "NotNegative",
    "alpha": "BelowOne",
    "rho": "BelowOne",
    "lr_decay": "NotNegative",
    "nesterov": "bool",
}
# Names of the learning rate in other libraries.
_OTHER_LR_NAMES = frozenset({"learning_rate", "rate", "base_lr", "init_lr", "LR"})


def check_optimizer(config: Json, where: str) -> None:
    """Checks the config of an optimiser; `where` is what an error calls it.

    Raises:
        KdepError: the optimiser does not exist, an argument is wrong, or the learning rate is
            missing, 0, negative or not a number.
    """
    kind = config.get("type")
    if not isinstance(kind, str):
        raise KdepError(f"{where} has no `type`", fix="add it, for example type='SGD'")
    faults = Faults()
    other_names = [] if "lr" in config else sorted(config.keys() & _OTHER_LR_NAMES)
    if other_names:
        faults.add(KdepError(f"{where} has {other_names[0]!r} but no `lr`", fix="rename it to lr"))
    elif "lr" not in config:
        problem = f"{where} has no learning rate `lr`"
        faults.add(KdepError(problem, fix="add it, for example lr=0.1"))
    if "params" in config:
        faults.add(
            KdepError(
                f"{where} has `params`, the parameters to train, which the training sets",
                fix="remove it",
            )
        )
    path = optimizer_path(kind)
    known_optimizers = torch_optimizers()
    if path is None and "." not in kind and known_optimizers:
        raise unknown_name("optimizer type", kind, known_optimizers, place=where)
    if path is None:
        check_type(config, where)
    arguments = {k: v for k, v in config.items() if k not in other_names and k != "params"}
    for name, annotation in _OPTIMIZER_RANGES.items():
        if name in config:
            try:
                check_value(annotation, config[name], where, name)
            except KdepError as fault:
                faults.add(fault)
                del arguments[name]  # it would be reported again below
    betas = config.get("betas")
    if betas is not None:
        try:
            check_value("list", betas, where, "betas")
            for beta in betas:
                check_value("BelowOne", beta, where, "betas")
        except KdepError as fault:
            faults.add(fault)
            del arguments["betas"]
    if path is not None:
        with faults.collect():
            check_arguments({**arguments, "type": path}, where, passed_by_stage=("params",))
    faults.raise_any(where)
    if config.get("nesterov") and (not config.get("momentum") or config.get("dampening")):
        raise KdepError(
            f"{where} has nesterov=True with momentum={config.get('momentum', 0)} and "
            f"dampening={config.get('dampening', 0)}",
            expected="momentum above 0 and dampening=0",
            fix="change one of them, or set nesterov=False",
        )


def check_classes(method: Json, label: str, epochs: float) -> None:
    """Raises KdepError for arguments that the classes of a method do not accept.

    Args:
        method: its config.
        label: what an error calls the method.
        epochs: epochs of the pre-training; schedules are checked over them.
    """
    for key, base in _BASES.items():
        if isinstance(config := method.get(key), Mapping):
            check_type(config, f"{label}.{key}", base)
    # (key of the method, arguments that the stage passes itself)
    for key, passed_arguments in (("align", ()), ("weights", ("backbone",))):
        config = method.get(key)
        if isinstance(config, Mapping):
            config = {k: v for k, v in config.items() if k != CONTENT}
        check_arguments(config, f"{label}.{key}", passed_arguments)
    if isinstance(method.get("weights"), Mapping):
        check_weights_file(method["weights"], label, "weights=dict(weights=...) of the method")
    transform = method.get("transform")
    if isinstance(transform, Mapping):
        required = class_value(resolve_alias(transform.get("type")), "required_args") or ()
        check_arguments(transform, f"{label}.transform", required)
    for key, config in _typed_dicts(method.get("objective"), "objective"):
        if key.endswith(".optimizer"):
            check_optimizer(config, f"the {label}.{key}")
            continue
        where, path = f"{label}.{key}", resolve_alias(config["type"])
        if path.startswith(_SCHEDULES) and signature(path) is not None:
            check_arguments(config, where, ("epochs",))
            _check_schedule(config, where, epochs)
        else:
            required = class_value(path, "stage_arguments") or ()
            teachers = {"teachers"} if class_value(path, "every_teacher") else set()
            check_arguments(config, where, {*required, "epochs"} | teachers)


def check_objective_types(method: Json, label: str) -> None:
    """Raises KdepError if a `type` in the method's objective is missing or names no class."""
    objective = method.get("objective")
    if isinstance(objective, Mapping):
        check_type(objective, f"{label}.objective", _OBJECTIVE)
    for key, config in _typed_dicts(objective, "objective"):
        if not key.endswith(".optimizer"):  # `check_optimizer` knows short names
            base = _OBJECTIVE if key.endswith("objective") else None
            check_type(config, f"{label}.{key}", base)


def check_weights_file(config: Json, label: str, setting: str) -> None:
    """Raises KdepError if `weights` of a config is the path of a file that does not exist.

    Args:
        config: arguments of a teacher or of given weights.
        label: what an error calls its method or teacher.
        setting: what an error calls the setting with the path.
    """
    path = config.get("weights")
    if not isinstance(path, str) or path == RANDOM:
        return
    if not os.path.exists(os.path.expanduser(path)):
        raise KdepError(
            f"the weights file {path} of {label} does not exist",
            expected="a torch or safetensors file",
            fix=f"correct {setting}",
        )


def _typed_dicts(config: Any, path: str) -> Iterator[tuple[str, Json]]:
    """(path, dict) of every dict with a `type` in a nested config, outer dicts first.

    A path has the keys and list positions that lead to the dict, for example 'objective.terms.0'.
    Backbones, whose `type` may be a name in a registry, are left out.
    """
    if isinstance(config, dict):
        if "type" in config:
            yield path, config
        for key, value in config.items():
            if key != "backbone":
                yield from _typed_dicts(value, f"{path}.{key}")
    elif isinstance(config, list):
        for position, value in enumerate(config):
            yield from _typed_dicts(value, f"{path}.{position}")


def _check_schedule(config: Json, where: str, epochs: float) -> None:
    """Raises KdepError if a schedule cannot be built or has a value that is not finite."""
    try:
        schedule = as_schedule(config, epochs)
        values = [schedule(step, 100) for step in range(100)]  # a training of 100 steps
    except KdepError as e:
        raise KdepError(f"{where}: {e.problem}", expected=e.expected, fix=e.fix) from None
    except (TypeError, ValueError, ArithmeticError) as e:
        raise KdepError(
            f"{where} is not a valid schedule ({type(e).__name__}: {e})",
            expected="numbers as arguments",
            fix="correct the schedule in the method's config",
        ) from None
    if not all(math.isfinite(v) for v in values):
        raise KdepError(
            f"{where} is infinite or NaN at some step",
            fix="correct the schedule in the method's config",
        )


def _objectives(method: Json) -> list[str]:
    """Import paths of the objective of a method and of its parts."""
    typed = _typed_dicts(method.get("objective"), "objective")
    return [resolve_alias(config["type"]) for path, config in typed if path.endswith("objective")]


def requires_student_maps(method: Json) -> bool:
    """Whether a class of the method's objective reads the student's feature maps."""
    return "student_maps" in required_arguments(method)


def required_arguments(method: Json) -> set[str]:
    """Arguments that the pre-training stage gives to the classes of the method's objective."""
    names_by_class = (class_value(path, "stage_arguments") or () for path in _objectives(method))
    return {name for names in names_by_class for name in names}


def check_needs(method: Json, label: str) -> None:
    """Raises KdepError if the objective reads an input that the method's `needs` does not list."""
    needs: set[str] = set()
    for path in _objectives(method):
        needs |= class_value(path, "needs") or frozenset()
    if "target" in needs:
        for key in ("align", "transform"):
            if not method.get(key):
                raise KdepError(
                    f"{label} regresses an aligned teacher feature but its config has no `{key}`",
                    expected="both `align` and `transform`",
                    fix=f"set `{key}` in the method's config",
                )
        needs = (needs - {"target"}) | {"pooled"}
    if "labels" in needs and not method.get("labels_used"):
        raise KdepError(
            f"{label} reads labels but has labels_used=False",
            fix="set labels_used=True, or choose an objective without labels",
        )
    if missing := sorted(needs - method_needs(method)):
        raise KdepError(
            f"the objective of {label} reads {', '.join(missing)} from a batch, but the method's "
            f"`needs` does not list {'it' if len(missing) == 1 else 'them'}",
            expected=f"needs={sorted(needs | method_needs(method))}",
            fix="set `needs` in the method's config",
        )


def check_couples_samples(method: Json, label: str, parts: int) -> None:
    """Raises KdepError if the objective compares samples of a batch that is split.

    `parts`: number of micro-batches and processes that a batch is split into.
    """
    if parts > 1 and any(class_value(path, "couples_samples") for path in _objectives(method)):
        raise KdepError(
            f"{label} compares the samples of a batch with each other, but the batch is split into "
            f"{parts} micro-batches or processes",
            fix="run its pre-training in one process with accumulate=1",
        )


def check_extra_optimizers(method: Json, label: str, accumulate: int) -> None:
    """Raises KdepError if the objective has separate optimisers and gradients are accumulated.

    `accumulate`: number of micro-batches per optimiser step.
    """
    if accumulate > 1 and any(
        class_value(path, "has_auxiliary_modules") for path in _objectives(method)
    ):
        raise KdepError(
            f"{label} has parts with a separate optimiser, which would step after each of the "
            f"{accumulate} micro-batches instead of after the batch",
            fix="set budget.accumulate=1, or remove the method",
        )


def check_augment(method: Json, label: str, is_live: bool, parts: int) -> None:
    """Raises KdepError if the method's augmentation does not fit the inputs that it reads.

    Args:
        method: its config.
        label: what an error calls the method.
        is_live: whether all its teachers run in the training step, on the augmented images.
        parts: number of micro-batches and processes that a batch is split into.
    """
    config = method.get("augment")
    added = class_value(resolve_alias((config or {}).get("type")), "adds") or frozenset()
    for objective in _objectives(method):
        if missing := sorted((class_value(objective, "reads_from_augment") or frozenset()) - added):
            raise KdepError(
                f"{label} reads {', '.join(missing)}, which its `augment` does not add",
                fix="set `augment` of the method to a class that adds it, for example "
                "kdep_bench.augments.mask_patches.MaskPatches for 'visible' or "
                "kdep_bench.augments.rotations.Rotations for 'rotation'",
            )
    if config is None:
        return
    kind = config.get("type")
    if not isinstance(kind, str):
        raise KdepError(
            f"{label} has an `augment` without `type`",
            fix="add the `type`: a class of kdep_bench/augments",
        )
    check_arguments(config, f"{label}.augment")
    path, name = resolve_alias(kind), kind.rpartition(".")[2]
    if class_value(path, "keeps") is None:
        raise KdepError(
            f"the type {kind!r} in `augment` of {label} is not an Augment",
            expected="a class of kdep_bench/augments",
            fix="correct `augment` in the method",
        )
    reads: set[str] = set()
    for objective in _objectives(method):
        reads |= class_value(objective, "needs") or frozenset()
    if "labels" in reads and not class_value(path, "keeps_labels"):
        raise KdepError(
            f"{label} reads labels, but {name} changes the images so that their labels are wrong",
            fix="remove `augment`, or choose an objective without labels",
        )
    if "views" in reads and (class_value(path, "copies") or 1) > 1:
        raise KdepError(
            f"{label} compares the views of an image, which are not consecutive among the images "
            f"that {name} makes of each",
            fix="remove `augment`, or choose an objective that does not compare views",
        )
    changed = sorted((reads & FROM_TEACHER) - class_value(path, "keeps"))
    if changed and not is_live:
        raise KdepError(
            f"{label} reads {', '.join(changed)} of the teacher from a cache, but {name} changes "
            "the images after the cache was computed",
            fix="remove `augment`; or, if the suite's teacher is read, set teacher_source='live' "
            "in the method",
        )
    if parts > 1 and class_value(path, "couples_samples"):
        raise KdepError(
            f"{label} mixes the samples of a batch ({name}), but the batch is split into {parts} "
            "micro-batches or processes",
            fix="run its pre-training in one process with accumulate=1",
        )


def check_transformer(method: Json, label: str, student: Json) -> None:
    """Raises KdepError if the objective reads a transformer's tokens but the student has none.

    Also if the student is known to have another depth than the objective's `student_depth`.
    """
    if not any(class_value(path, "transformer") for path in _objectives(method)):
        return
    check_is_transformer(label, student)
    known_depth, depths = transformer_size(student)[0], depths_of(method.get("objective"))
    for depth in {student_depth for student_depth, _ in depths} - {None}:
        if known_depth not in (None, depth):
            raise KdepError(
                f"{label} reads {depth} blocks of the student, but {student['name']!r} has "
                f"{known_depth}",
                fix=f"set student_depth={known_depth} in the method's objective",
            )


def check_is_transformer(label: str, student: Json, role: str = "student") -> None:
    """Raises KdepError unless the student is of timm's class VisionTransformer.

    `role`: "student" or what the student's network is used as, for the error.
    """
    backbone = student["backbone"]
    is_timm = str(backbone.get("type")).endswith(".TimmBackbone")
    check_timm_transformer(label, student["name"], backbone.get("model") if is_timm else None, role)


def check_timm_transformer(label: str, name: str, model: Any, role: str) -> None:
    """Raises KdepError unless `model` names a network of timm's class VisionTransformer.

    Args:
        label: what an error calls the method.
        name: name of the config of the network.
        model: timm's name of the network; None for a network that is not from timm.
        role: "student" or "teacher".
    """
    kind = None if model is None else timm_class(str(model))
    if kind is not None:
        is_transformer = kind == _VIT_CLASS or bool(derives_from(kind, _VIT_CLASS))
    else:
        is_transformer = bool(_TIMM_VIT.match(str(model)))
    if not is_transformer:
        stated = "" if kind is None else f" (its class is {kind.rpartition('.')[2]})"
        raise KdepError(
            f"{label} reads the tokens of a transformer, but the {role} {name!r} is not a vision "
            f"transformer of timm's class VisionTransformer{stated}",
            fix=f"use such a {role}, for example vit_t, or another method",
        )


def check_single_pass(method: Json, label: str) -> None:
    """Raises KdepError if one part of the objective reads tokens and another runs the student.

    Tokens are recorded in the student's last forward pass. After a second pass on other images,
    the tokens of those images would be compared with the teacher's for the images of the batch.
    """
    objectives = _objectives(method)
    readers = [path for path in objectives if class_value(path, "transformer")]
    runners = [path for path in objectives if class_value(path, "student_passes")]
    if readers and runners:
        reader, runner = (path.rpartition(".")[2] for path in (readers[0], runners[0]))
        raise KdepError(
            f"{label} combines {reader}, which reads the tokens of the student's last pass, with "
            f"{runner}, which runs the student on other images as well",
            expected="one of them",
            fix="remove one of the two parts of the method's objective",
        )


def check_peers_differ(method: Json, label: str, student: Json) -> None:
    """Raises KdepError if the student and a peer trained with it would start as equal networks.

    A backbone config that sets trained initial weights gives the same weights to every network
    built from it. Mutual distillation learns from what two networks do differently.
    """
    argument = weights_argument(student)
    if argument is None:
        return
    for path, config in _typed_dicts(method.get("objective"), "objective"):
        default = class_value(resolve_alias(config["type"]), "trained_peers")
        if not path.endswith("objective") or not default or not config.get("peers", default):
            continue
        peer = config.get("peer")
        if peer is None or peer["backbone"] == student["backbone"]:
            raise KdepError(
                f"{label} trains the student {student['name']!r} together with a peer of the same "
                f"architecture, and both would start with the same weights (`{argument}` in the "
                "student's `backbone`)",
                expected="a student with random initial weights",
                fix=f"remove `{argument}` from the student's `backbone`, or the method or the "
                "student from the suite",
            )


def transformer_size(student: Json) -> tuple[int | None, int | None]:
    """(blocks, attention heads) of a student that is a ViT of timm; None where not known.

    They are arguments of the backbone, or follow from timm's names of models.
    """
    backbone = student["backbone"]
    match = _VIT_NAME.match(str(backbone.get("model")))
    blocks, heads = VIT_SIZES[match[1]] if match else (None, None)
    return backbone.get("depth", blocks), backbone.get("num_heads", heads)


def patch_side(student: Json) -> int | None:
    """Side in pixels of the patches of a student that is a ViT of timm; None if not known."""
    backbone = student["backbone"]
    match = _PATCH.search(str(backbone.get("model")))
    return backbone.get("patch_size", int(match[1]) if match else None)
