"""Builds the configs of objective, target, augmentation and schedule of a pre-training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdep_bench.augments.base import augment_class
from kdep_bench.data.fractions import labels_file
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.objectives.base import TEACHER_ARGUMENTS, Demands, demands, takes_teachers
from kdep_bench.objectives.roles import FROM_TEACHER
from kdep_bench.pretrain.by_role import restrict_to_role, words_of_role
from kdep_bench.pretrain.diagnostics import (
    distances,
    mean_variance,
    target_statistics,
    write_map_moments,
)
from kdep_bench.pretrain.held_out import weigh_teachers
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.pretrain.teaching import TeacherSource
from kdep_bench.registry import type_path


def check_precision(precision: str) -> None:
    """Raises KdepError for float16 without a GPU, because a CPU run has no loss scaling."""
    if precision == "float16" and not torch.cuda.is_available():
        raise KdepError(
            "budget.precision is 'float16', which needs a GPU, and this machine has none",
            fix="use 'float32' or 'bfloat16' (bfloat16 needs no loss scaling)",
        )


def augment_config(
    method: dict[str, Any], required: Demands, teacher_source: TeacherSource
) -> dict[str, Any] | None:
    """The config of the method's augmentation, or None.

    Raises:
        KdepError: the objective reads labels or cached teacher outputs that do not describe the
            augmented images.
    """
    config = method.get("augment")
    if config is None:
        return None
    kind = augment_class(config)
    if "labels" in required.needs and not kind.keeps_labels:
        raise KdepError(
            f"the method {method['name']} reads labels, which do not describe the images that "
            f"{kind.__name__} returns",
            fix="remove `augment`, or choose an objective without labels",
        )
    n_teachers = len(teacher_source.by_role)  # 0 also for a method with one teacher
    if n_teachers == 0 and (teacher_source.model or teacher_source.stream):
        n_teachers = 1
    invalid = sorted((required.needs & FROM_TEACHER) - kind.keeps)
    if invalid and n_teachers > teacher_source.n_live:
        raise KdepError(
            f"the method {method['name']} reads {', '.join(invalid)} from a cache, which do not "
            f"describe the images that {kind.__name__} returns",
            fix="set teacher_source='live' in the method, or remove `augment`",
        )
    return dict(config)


def objective_config(
    spec: dict[str, Any], inputs: dict[str, Path], teacher_source: TeacherSource, out: Path
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """Completes the objective's config with the constructor arguments that it requires.

    Returns:
        (objective config, target config, measurements). The target config is None if the objective
        has no target; the measurements are those of `diagnostics.target_statistics`. With several
        teachers, the target config and `measurements["targets"]` are dicts by role, and
        `measurements["teacher_weights"]` describes the choice of `teacher_weights`.

    Raises:
        KdepError: the objective needs labels, an alignment or an argument that is not available.
    """
    method = spec["method"]
    objective, name = dict(method["objective"]), type_path(method["objective"]["type"])
    required = demands(objective)
    if "labels" in required.needs and not method["labels_used"]:
        raise KdepError(
            f"the objective {name} needs labels, but the method {method['name']} has "
            "labels_used=False",
            fix="set labels_used=True, or choose an objective without labels",
        )
    arg_functions: ArgFunctions = {
        "width": lambda: spec["student"]["width"],
        "input_px": lambda: int(spec["student"]["input_px"]),
        "classes": lambda: len(read_strict(labels_file(inputs))["classes"]),
        "epochs": lambda: spec["budget"]["epochs"],
        "views": lambda: open_views(inputs["views"]).views,
        "pool_images": lambda: len(open_views(inputs["views"]).files),
        "student_maps": lambda: describe(spec["student"]),
    }
    if teacher_source.by_role:
        return _with_several_teachers(objective, arg_functions, spec, inputs, teacher_source, out)
    target, measurements = _target(required.needs, name, spec, inputs)
    arg_functions |= _teacher_arg_functions(spec, inputs, teacher_source, measurements, out)
    return (
        objective
        | _required_values(name, required.stage_arguments - set(objective), arg_functions),
        target,
        measurements,
    )


ArgFunctions = dict[str, Callable[[], Any]]  # argument name -> function that computes its value


def _with_several_teachers(
    objective: dict[str, Any],
    arg_functions: ArgFunctions,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    teacher_source: TeacherSource,
    out: Path,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """`objective_config` for a method with several teachers."""
    objective_name = type_path(objective["type"])
    targets, measurements = dict[str, Any](), dict[str, Any]()
    teachers: dict[str, dict[str, Any]] = {}
    for role, role_source in teacher_source.by_role.items():
        role_spec, role_inputs = restrict_to_role(role, spec, inputs)
        needs = frozenset(words_of_role(role, spec, "needs"))
        target, target_values = _target(needs, objective_name, role_spec, role_inputs)
        if target is not None:
            targets[role], measurements[role] = target, target_values
        required = words_of_role(role, spec, "stage_arguments") & TEACHER_ARGUMENTS
        functions_of_role = _teacher_arg_functions(
            role_spec, role_inputs, role_source, target_values, out / "teachers" / role
        )
        teachers[role] = _required_values(objective_name, required, functions_of_role)
    chosen: dict[str, Any] = {}
    if "teacher_weights" in demands(objective).stage_arguments:
        weights = weigh_teachers(spec, inputs, demands(objective))
        arg_functions = {**arg_functions, "teacher_weights": lambda: dict(weights.weights)}
        chosen = {"teacher_weights": {**weights.report, "note": weights.note}}
    required = demands(objective).stage_arguments - set(objective) - TEACHER_ARGUMENTS
    complete = objective | _required_values(objective_name, required, arg_functions)
    if takes_teachers(objective):
        complete["teachers"] = teachers
    measured = {"targets": measurements} if measurements else {}
    return complete, targets or None, measured | chosen


def _target(
    needs: frozenset[str], name: str, spec: dict[str, Any], inputs: dict[str, Path]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(config of the regression target, its `target_statistics`); (None, {}) without a target."""
    method = spec["method"]
    if "target" not in needs:
        return None, {}
    if "align" not in inputs or method.get("transform") is None:
        raise KdepError(
            f"the objective {name} regresses an aligned teacher feature, but the config of "
            f"method {method['name']} lacks `align` or `transform`",
            fix="set both in the method's config",
        )
    target = {"align_dir": str(inputs["align"]), "transform": method["transform"]}
    return target, target_statistics(spec, inputs, target)


def _teacher_arg_functions(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    teacher_source: TeacherSource,
    measurements: dict[str, Any],
    out: Path,
) -> ArgFunctions:
    """Functions that compute the ARGUMENTS of one teacher, by argument name."""
    return {
        "target_mean_square": lambda: measurements.get("target_mean_square"),
        "teacher_mean_variance": lambda: mean_variance(spec, inputs),
        "layer_distances": lambda: distances(spec, inputs),
        "map_moments": lambda: write_map_moments(spec, inputs, out),
        **teacher_source.build_args,
    }


def _required_values(
    name: str, required: set[str] | frozenset[str], arg_functions: ArgFunctions
) -> dict[str, Any]:
    """The values of the required arguments; KdepError if `arg_functions` lacks one."""
    unavailable = sorted(required - set(arg_functions))
    if unavailable:
        raise KdepError(
            f"the objective {name} requires the constructor argument {', '.join(unavailable)}, "
            "which pre-training cannot provide",
            expected=f"one of {', '.join(sorted(arg_functions))}",
            fix="set it in the method's config, or add the teacher output that it describes to the "
            "objective's `needs`",
        )
    return {word: arg_functions[word]() for word in sorted(required)}


def schedule(budget: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """The mmengine configs of the learning-rate schedule for a run of `steps` steps.

    "cosine": linear warm-up over the fraction `warmup` of the steps, then half a cosine to zero.
    "step": the same warm-up; the learning rate is multiplied by 0.1 after one third and after two
    thirds of the steps, as in KDEP (after epochs 30 and 60 of 90).

    Raises:
        KdepError: another value of `schedule`.
    """
    warmup = int(budget.get("warmup", 0.0) * steps)
    if warmup == 1:  # mmengine's LinearLR of one step would keep its start factor for the whole run
        warmup = 0
    plan: list[dict[str, Any]] = []
    if warmup:
        plan.append(
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warmup}
        )
    shape = budget.get("schedule", "cosine")
    if shape == "cosine":
        plan.append(
            {
                "type": "CosineAnnealingLR",
                "T_max": max(1, steps - warmup),
                "eta_min": 0.0,
                "by_epoch": False,
                "begin": warmup,
                "end": steps,
            }
        )
    elif shape == "step":
        plan.append(
            {
                "type": "MultiStepLR",
                "milestones": [max(1, steps // 3), max(2, 2 * steps // 3)],
                "gamma": 0.1,
                "by_epoch": False,
            }
        )
    else:
        raise KdepError(
            f"unknown schedule {shape!r}",
            expected="'cosine' or 'step'",
            fix="correct `schedule` in the suite's budget",
        )
    return plan
