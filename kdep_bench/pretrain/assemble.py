"""From the config of a method to its objective, target transform and schedule."""

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
from kdep_bench.pretrain.by_role import of_role, words_of_role
from kdep_bench.pretrain.diagnostics import distances, mean_variance, moments_of_maps, target_probes
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.pretrain.teaching import Teaching
from kdep_bench.registry import type_path


def check_precision(precision: str) -> None:
    """Refuses float16 where there is no GPU: a CPU has no loss scaling and little use for it."""
    if precision == "float16" and not torch.cuda.is_available():
        raise KdepError(
            "budget.precision is 'float16', which needs a GPU, and this machine has none",
            fix="use 'float32' or 'bfloat16' (bfloat16 needs no loss scaling)",
        )


def augment_config(
    method: dict[str, Any], wanted: Demands, taught: Teaching
) -> dict[str, Any] | None:
    """The method's augmentation; None without one.

    Raises KdepError where it changes what labels or stored teacher outputs belong to.
    """
    config = method.get("augment")
    if config is None:
        return None
    kind = augment_class(config)
    if "labels" in wanted.needs and not kind.keeps_labels:
        raise KdepError(
            f"the method {method['name']} reads labels, which do not describe the images of "
            f"{kind.__name__}",
            fix="remove `augment`, or choose an objective without labels",
        )
    stored = len(taught.by_role) or bool(taught.model or taught.stream)
    broken = sorted((wanted.needs & FROM_TEACHER) - kind.keeps) if stored > taught.live else []
    if broken:
        raise KdepError(
            f"the method {method['name']} reads {', '.join(broken)} from a cache, which do not "
            f"describe the images of {kind.__name__}",
            fix="set teacher_source='live' in the method, or remove `augment`",
        )
    return dict(config)


def objective_config(
    spec: dict[str, Any], inputs: dict[str, Path], taught: Teaching, out: Path
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """(objective config with all its arguments, target config, probes).

    With several teachers the target config and `probes["targets"]` are by role, for those roles
    whose aligned feature is regressed.

    Raises KdepError for an objective that this method's labels or alignment cannot serve.
    """
    method = spec["method"]
    objective, name = dict(method["objective"]), type_path(method["objective"]["type"])
    wanted = demands(objective)
    if "labels" in wanted.needs and not method["labels_used"]:
        raise KdepError(
            f"the objective {name} needs labels, but the method {method['name']} has "
            "labels_used=False",
            fix="set labels_used=True, or choose an objective without labels",
        )
    answers: Answers = {
        "width": lambda: spec["student"]["width"],
        "classes": lambda: len(read_strict(labels_file(inputs))["classes"]),
        "epochs": lambda: spec["budget"]["epochs"],
        "views": lambda: open_views(inputs["views"]).views,
        "pool_images": lambda: len(open_views(inputs["views"]).files),
        "student_maps": lambda: describe(spec["student"]),
    }
    if taught.by_role:
        return _of_several(objective, answers, spec, inputs, taught, out)
    target, probes = _target(wanted.needs, name, spec, inputs)
    answers |= _teacher_answers(spec, inputs, taught, probes, out)
    return (
        objective | _required_values(name, wanted.requires - set(objective), answers),
        target,
        probes,
    )


Answers = dict[str, Callable[[], Any]]


def _of_several(
    objective: dict[str, Any],
    answers: Answers,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    taught: Teaching,
    out: Path,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """`objective_config` of a method with several teachers."""
    objective_name, targets, probes = (
        type_path(objective["type"]),
        dict[str, Any](),
        dict[str, Any](),
    )
    teachers: dict[str, dict[str, Any]] = {}
    for role, teacher_source in taught.by_role.items():
        role_spec, role_inputs = of_role(role, spec, inputs)
        needs = frozenset(words_of_role(role, spec, "needs"))
        target, probed = _target(needs, objective_name, role_spec, role_inputs)
        if target is not None:
            targets[role], probes[role] = target, probed
        required = words_of_role(role, spec, "requires") & TEACHER_ARGUMENTS
        answers_of_role = _teacher_answers(
            role_spec, role_inputs, teacher_source, probed, out / "teachers" / role
        )
        teachers[role] = _required_values(objective_name, required, answers_of_role)
    required = demands(objective).requires - set(objective) - TEACHER_ARGUMENTS
    complete = objective | _required_values(objective_name, required, answers)
    if takes_teachers(objective):
        complete["teachers"] = teachers
    return complete, targets or None, {"targets": probes} if probes else {}


def _target(
    needs: frozenset[str], name: str, spec: dict[str, Any], inputs: dict[str, Path]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(config of the regression target, its probes); (None, {}) where none is read."""
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
    return target, target_probes(spec, inputs, target)


def _teacher_answers(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    taught: Teaching,
    probes: dict[str, Any],
    out: Path,
) -> Answers:
    """Functions that compute values of one teacher, by their name in ARGUMENTS."""
    return {
        "target_mean_square": lambda: probes.get("target_mean_square"),
        "teacher_mean_variance": lambda: mean_variance(spec, inputs),
        "layer_distances": lambda: distances(spec, inputs),
        "map_moments": lambda: moments_of_maps(spec, inputs, out),
        **taught.facts,
    }


def _required_values(
    name: str, required: set[str] | frozenset[str], answers: Answers
) -> dict[str, Any]:
    unavailable = sorted(required - set(answers))
    if unavailable:
        raise KdepError(
            f"the objective {name} requires the constructor argument {', '.join(unavailable)}, "
            "which pre-training cannot provide",
            expected=f"one of {', '.join(sorted(answers))}",
            fix="set it in the method's config, or add the teacher output it belongs to to the "
            "objective's `needs`",
        )
    return {word: answers[word]() for word in sorted(required)}


def schedule(budget: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Learning-rate schedule by iteration, its shape stretched over the budget.

    "cosine": linear warm-up over the share `warmup` of the steps, then half a cosine to zero.
    "step": x0.1 after each third, KDEP's shape (x0.1 every 30 of 90 epochs).
    """
    warm = int(budget.get("warmup", 0.0) * steps)
    if warm == 1:  # mmengine's LinearLR of one step would keep its start factor for the whole run
        warm = 0
    plan: list[dict[str, Any]] = []
    if warm:
        plan.append(
            {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warm}
        )
    shape = budget.get("schedule", "cosine")
    if shape == "cosine":
        plan.append(
            {
                "type": "CosineAnnealingLR",
                "T_max": max(1, steps - warm),
                "eta_min": 0.0,
                "by_epoch": False,
                "begin": warm,
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
