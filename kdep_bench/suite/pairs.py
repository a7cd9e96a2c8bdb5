"""Checks of combinations: a student with a task, a method with a student, teacher and data.

Each rule is a small function in one of the lists TASK_RULES, RULES, TEACHER_RULES and LAST_RULES;
it raises a KdepError if its check fails. The plan calls `check_task` and `check_pair` for every
pair that it builds. Rules read configs and the source code of classes, and check that weights files
exist; no rule reads data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from kdep_bench.data.given_files import CONTENT
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.features.policies import check_widths
from kdep_bench.objectives.levels import (
    depths_of,
    levels_of,
    parts_with_key,
    peers_of,
    student_levels,
    teacher_blocks,
    teacher_layer,
    top_classes,
)
from kdep_bench.objectives.roles import FROM_TEACHER, PROXY_SUFFIX, candidates
from kdep_bench.objectives.signs import check_map_targets
from kdep_bench.schedules.base import check_span
from kdep_bench.schedules.build import check_some_weight_nonzero, spans
from kdep_bench.schedules.phases import check_phases
from kdep_bench.signatures import (
    check_arguments,
    check_backbone,
    check_type,
    class_value,
    resolve_alias,
)
from kdep_bench.suite.arguments import (
    check_augment,
    check_classes,
    check_couples_samples,
    check_extra_optimizers,
    check_needs,
    check_objective_types,
    check_optimizer,
    check_peers_differ,
    check_single_pass,
    check_timm_transformer,
    check_transformer,
    check_weights_file,
    required_arguments,
    requires_student_maps,
    transformer_size,
)
from kdep_bench.suite.config import check, merged
from kdep_bench.suite.known_data import has_labels, known_parts
from kdep_bench.suite.methods import (
    DESCRIPTION_KEYS,
    EXPORTED_TEACHER,
    assistant_config,
    head_classes,
    intermediate_methods,
    teacher_width,
    trains,
    without,
)
from kdep_bench.suite.schema import ADD_PYRAMID, MODELS, Json, Suite, labels_of_run, method_needs
from kdep_bench.suite.teachers import check_roles, teachers_by_role
from kdep_bench.transfer.recipes import check_keys, check_recipe

DENSE = ("detection", "segmentation")
TRANSFER_PACKAGE = "kdep_bench.transfer."
# Inputs of a method that need no more of a teacher than class probabilities.
BLACK_BOX_OUTPUTS = {"probabilities", "teacher_images", "labels", "views"}
LAST = "last"  # name of a teacher's last map, which its card need not state
# Arguments of an objective that the pre-training stage can only compute from a cache.
ARGUMENTS_FROM_CACHE = {"layer_distances", "teacher_mean_variance", "teacher_weights"}


def check_task(student: Json, task: Json) -> None:
    """Raises KdepError if the student cannot do the task, or if the task's recipe is wrong."""
    for rule in TASK_RULES:
        rule(student, task)


def check_pyramid(student: Json, task: Json) -> None:
    """Checks that a student for detection or segmentation has a `pyramid` in its config."""
    if task["family"] in DENSE and not (student.get("pyramid") or {}).get("out_indices"):
        raise KdepError(
            f"task {task['name']!r} needs feature maps of several levels, but student "
            f"{student['name']!r} has no `pyramid` in its config",
            fix=f"{ADD_PYRAMID}, or remove the task or the student from the suite",
        )


def check_c4_detector(student: Json, task: Json) -> None:
    """Checks that a C4 detector gets a ResNet: the last stage of a ResNet is its RoI head."""
    kind = str(student["backbone"].get("type"))
    if task["recipe"].get("head") == "c4" and not kind.endswith("ResNet"):
        raise KdepError(
            f"task {task['name']!r} builds a C4 detector, which needs a ResNet, but student "
            f"{student['name']!r} is a {kind.rpartition('.')[2]}",
            fix="use the FPN task of the same data set",
        )


def check_task_recipe(student: Json, task: Json) -> None:
    """Checks the keys of a task's recipe, and the types and ranges of their values."""
    if (keys := class_value(task["type"], "recipe_keys")) is not None:
        check_keys(task["name"], task["recipe"], keys)
    if task["type"].startswith(TRANSFER_PACKAGE):
        check_recipe(task["name"], task["recipe"])


def check_task_class(student: Json, task: Json) -> None:
    """Checks that the task's `type` names a class of tasks."""
    check_type(task, f"task {task['name']!r}", "kdep_bench.transfer.base.Task")


def check_metric_and_family(student: Json, task: Json) -> None:
    """Checks that the task's class measures its metric and belongs to its task family."""
    kind = task["type"]
    metrics = class_value(kind, "measures")
    if task["recipe"].get("set") == "voc":
        metrics = class_value(kind, "voc_measures") or metrics
    if metrics and task["metric"] not in metrics:
        raise unknown_name("metric", task["metric"], metrics, place=f"task {task['name']!r}")
    families = class_value(kind, "families")
    if families and task["family"] not in families:
        raise unknown_name("family", task["family"], families, place=f"task {task['name']!r}")


TASK_RULES: tuple[Callable[[Json, Json], None], ...] = (
    check_task_class,
    check_metric_and_family,
    check_pyramid,
    check_c4_detector,
    check_task_recipe,
)


def check_task_data(data: Json, task: Json) -> None:
    """Raises KdepError if the data lack the folder, split or official set that the task reads."""
    parts = known_parts(data)
    if parts is None or not task["type"].startswith(TRANSFER_PACKAGE):
        return
    task_recipe, label = task["recipe"], f"task {task['name']!r}"
    if (name := task_recipe.get("set")) is not None:
        if name not in parts.sets:
            raise KdepError(
                f"{label} reads the official set {name!r}, but the data {data['name']!r} has "
                f"{', '.join(parts.sets) or 'no official set'}",
                fix=f"add {name!r} to `sets` of the data config"
                if data.get("sets") is not None
                else "choose data with official sets, as configs/data/imagenet.py, or another task",
            )
        return
    folder, _, inner = str(task_recipe.get("folder")).partition("/")
    if folder not in parts.splits:
        config_key = (parts.config_keys or {}).get(folder)
        if config_key:
            raise KdepError(
                f"{label} reads the folder {folder!r} of the data, but the data {data['name']!r} "
                f"has no `{config_key}`",
                expected=_example(config_key, [inner] if inner else _splits(task)),
                fix=f"add `{config_key}` to the data config, or remove the task from the suite",
            )
        folders = ", ".join(sorted(parts.splits))
        raise KdepError(
            f"{label} reads the folder {folder!r} of the data, which the data {data['name']!r} "
            "does not have",
            expected=f"one of the folders {folders}" if folders else None,
            fix="choose other data, or remove the task from the suite",
        )
    splits = parts.splits[folder]
    required = [inner] if inner else _splits(task)
    if splits is None or required == []:
        return
    if missing := [s for s in required if s not in splits]:
        config_key = (parts.config_keys or {}).get(folder, folder)
        raise KdepError(
            f"{label} reads {' and '.join(f'{folder}/{s}' for s in missing)}, but "
            f"`{config_key}` of the data {data['name']!r} has the splits "
            + (", ".join(splits) or "none"),
            expected=f"the splits {', '.join(required)}",
            fix=f"add {' and '.join(f'{config_key}.{s}' for s in missing)} to the data config, "
            + ("correct `split` of the task, " if task.get("split") in missing else "")
            + "or choose another task",
        )


def _example(config_key: str, splits: list[str]) -> str:
    """The entry of a data config with these splits, as an error shows it."""
    forms = {"coco": "dict(json=..., images=...)", "masks": "dict(images=..., masks=...)"}
    value = forms.get(config_key, "...")
    entries = ", ".join(f"{split}={value}" for split in splits or ["train", "test"])
    classes = " and classes=[...]" if config_key == "masks" else ""
    return f"{config_key}=dict({entries}){classes} in the data config"


def _splits(task: Json) -> list[str]:
    """The splits that a task of this package reads; [] for cross-validation over one folder."""
    if task["recipe"].get("protocol") == "folds":
        return []
    is_probe = task["type"].endswith(".LinearProbe")
    splits = ["train", "val", "test"] if is_probe else ["train"]
    return list(dict.fromkeys([*splits, task.get("split", "test")]))


@dataclass(frozen=True)
class StudentMethod:
    """One method on one student, in a suite.

    Attributes:
        suite_teacher: the suite's teacher; the method may have an intermediate teacher instead.
        epochs: epochs of this pre-training, which may be fewer than the budget's.
        batch: its batch.
        role: role of the teacher that a rule checks, if the method has several teachers; `method`
            and `suite_teacher` are then reduced to this teacher.
    """

    suite: Suite
    student: Json
    method: Json
    suite_teacher: Json | None
    epochs: float
    batch: int
    role: str = ""

    @property
    def name(self) -> str:
        return f"method {self.method['name']!r}"

    @property
    def label(self) -> str:
        role = f" (teacher {self.role!r})" if self.role else ""
        return f"{self.name} on student {self.student['name']!r}{role}"

    @cached_property
    def needs(self) -> set[str]:
        return method_needs(self.method)

    @property
    def is_live(self) -> bool:
        """Whether the teacher runs in the training step (otherwise it is read from a cache)."""
        budget = self.suite.budget
        return budget.teacher == "live" or self.method.get("teacher_source") == "live"

    @cached_property
    def teacher(self) -> Json:
        """The teacher of a method that reads one; raises KdepError if there is none."""
        teacher = assistant_config(self.method) or self.suite_teacher
        if teacher is None:
            raise KdepError(
                f"{self.label} needs a teacher, but the suite has none for this student",
                fix="set `teacher` in the suite",
            )
        return teacher


def check_pair(
    suite: Suite,
    student: Json,
    method: Json,
    suite_teacher: Json | None,
    epochs: float | None = None,
    batch: int | None = None,
) -> None:
    """Raises KdepError if a method cannot work with this student, teacher and data.

    Args:
        suite: the suite, with its data and budget.
        student: config of the student.
        method: config of the method.
        suite_teacher: the suite's teacher; the method may have an intermediate teacher instead.
        epochs, batch: epochs and batch of this pre-training; None: the budget's.
    """
    epochs = suite.budget.epochs if epochs is None else epochs
    batch = suite.budget.batch if batch is None else batch
    pair = StudentMethod(suite, student, method, suite_teacher, epochs, batch)
    for rule in RULES:
        rule(pair)
    for role_teacher in teachers_by_role(method, suite_teacher):
        role_pair = replace(
            pair,
            method=role_teacher.method,
            suite_teacher=role_teacher.suite_teacher,
            role=role_teacher.role,
        )
        for rule in TEACHER_RULES:
            rule(role_pair)
    for rule in LAST_RULES:
        rule(pair)


# ---- rules of every pair ----


def check_teacher_roles(pair: StudentMethod) -> None:
    """Checks that the objective reads every teacher in `teachers`, see `teachers.check_roles`."""
    check_roles(pair.suite, pair.method, pair.suite_teacher)


def check_types(pair: StudentMethod) -> None:
    """Checks that every `type` in the method's objective names a class; other rules read it."""
    check_objective_types(pair.method, pair.name)


def check_student_backbone(pair: StudentMethod) -> None:
    """Checks that the `type` of the student's backbone names a class."""
    check_backbone(pair.student["backbone"], f"`backbone` of student {pair.student['name']!r}")


def check_assistants(pair: StudentMethod) -> None:
    """Checks the intermediate teachers of a method, if it has any."""
    if pair.method.get("teachers") is None:
        check_assistant(pair)
        return
    for role_teacher in teachers_by_role(pair.method, pair.suite_teacher):
        check_assistant(replace(pair, method=role_teacher.method, role=role_teacher.role))


def check_assistant(pair: StudentMethod) -> None:
    """Checks that an intermediate teacher is trained, within the budget and the label policy."""
    intermediate = pair.method.get("teacher")
    if intermediate is None:
        return
    if not trains(intermediate["method"]):
        raise KdepError(
            f"the teacher of {pair.name} is the method {intermediate['method']['name']!r}, which "
            "has no objective and is not trained",
            fix="choose another method in its `teacher`",
        )
    max_epochs = pair.suite.budget.epochs
    if intermediate["epochs"] is not None and intermediate["epochs"] > max_epochs:
        raise KdepError(
            f"`teacher.epochs` of {pair.name} is {intermediate['epochs']:g}, but the budget has "
            f"{max_epochs:g} epochs",
            fix=f"set teacher.epochs to {max_epochs:g} or less",
        )
    policy = labels_of_run(intermediate["method"], intermediate["student"])["label_policy"]
    if policy == "labels" and labels_of_run(pair.method, pair.student)["label_policy"] != "labels":
        raise KdepError(
            f"{pair.name} has a label-free policy, but its teacher "
            f"{intermediate['method']['name']!r} on student {intermediate['student']['name']!r} is "
            "trained with labels",
            fix="set label_policy='labels' in the method, or choose a label-free teacher",
        )
    check_pair(
        pair.suite,
        intermediate["student"],
        intermediate["method"],
        pair.suite_teacher,
        intermediate["epochs"],
        intermediate.get("batch"),
    )


def check_batch(pair: StudentMethod) -> None:
    """Checks that the batch of an intermediate teacher can be split as the budget's is."""
    if pair.batch != pair.suite.budget.batch and pair.batch % (parts := _batch_parts(pair)):
        raise KdepError(
            f"`teacher.batch` = {pair.batch} of an intermediate teacher ({pair.label}) cannot be "
            f"split into {parts} micro-batches or processes of equal size",
            fix=f"set it to a multiple of {parts}",
        )


def check_objective_with_alignment(pair: StudentMethod) -> None:
    """Checks that a method with an alignment has an objective."""
    if pair.method.get("objective") is None and pair.method.get("align"):
        raise KdepError(
            f"{pair.name} has `align` but no objective", fix="remove `align`, or add an objective"
        )


def check_labels(pair: StudentMethod) -> None:
    """Checks that a method that reads labels declares it, and that the data have labels."""
    if "labels" not in pair.needs:
        return
    if not pair.method.get("labels_used"):
        raise KdepError(
            f"{pair.name} needs labels but has labels_used=False",
            fix="set labels_used=True in the method",
        )
    if not has_labels(pair.suite.data):
        raise KdepError(
            f"{pair.label} needs labels, but the data {pair.suite.data['name']!r} have none",
            fix="remove the method; or, if the sub-folders of the pool are classes, set "
            "labels=True and pool_labels=True in the data config",
        )


def check_views(pair: StudentMethod) -> None:
    """Checks that a batch can contain all views of an image, if the method compares views."""
    budget = pair.suite.budget
    if "views" in pair.needs and (budget.views < 2 or pair.batch % budget.views):
        views = max(2, budget.views)
        batch = views * math.ceil(pair.batch / views)
        raise KdepError(
            f"{pair.label} compares several views of an image, but the budget has "
            f"views={budget.views} and batch={pair.batch}",
            expected="views of 2 or more, and a batch that is a multiple of views",
            fix=f"set views={views} and batch={batch}, or remove the method",
        )


def check_method_arguments(pair: StudentMethod) -> None:
    """Checks that the method's classes accept the arguments in its config."""
    check_classes(pair.method, pair.name, pair.epochs)


def check_method_optimizer(pair: StudentMethod) -> None:
    """Checks the budget's optimiser with the arguments that the method overrides."""
    overrides = pair.method.get("optimizer")
    if overrides:
        where = f"optimizer of {pair.name}"
        check_optimizer(merged(pair.suite.budget.optimizer, overrides, where), f"the {where}")


def check_held_out(pair: StudentMethod) -> None:
    """Checks that no intermediate teacher is trained on the images on which teachers are weighted.

    Otherwise a teacher that overfits would get the largest weight.
    """
    if "teacher_weights" not in required_arguments(pair.method):
        return
    fraction = pair.method["objective"].get("held_out", 0)
    if not 0 < fraction < 1:
        raise KdepError(
            f"{pair.name} weights its teachers on held-out images, but has no validation split: "
            f"held_out={fraction}",
            expected="a fraction of the images above 0 and below 1",
            fix="set objective=dict(held_out=0.1) in the method",
        )
    reference, roles = pair.method["objective"].get("reference"), pair.method["teachers"]
    if reference is not None and reference not in roles:
        raise unknown_name("role", reference, roles, place=f"`reference` of {pair.name}")
    for method in intermediate_methods(pair.method):
        objective = method.get("objective") or {}
        own_fraction = objective.get("held_out", 0)
        skips = class_value(resolve_alias(objective.get("type")), "skips_held_out")
        if not skips or own_fraction < fraction:
            trained = f"holds out {own_fraction:g}" if skips else "is trained on all images"
            raise KdepError(
                f"{pair.name} weights its teachers on {fraction:g} of the images, but its "
                f"intermediate teacher {method['name']!r} {trained}",
                expected="intermediate teachers that are not trained on the held-out images",
                fix=f"use an objective of kdep_bench/objectives/held_out.py with held_out="
                f"{fraction:g}, as in the method held_out_kd",
            )


def check_candidates(pair: StudentMethod) -> None:
    """Checks an objective that chooses among candidate teachers by short distillations.

    Each candidate needs a proxy: an intermediate teacher that is distilled from the candidate. If
    it were distilled from another network, the quality of that network would decide.
    """
    path = resolve_alias((pair.method.get("objective") or {}).get("type"))
    if not class_value(path, "compares_candidates"):
        return
    teachers = pair.method["teachers"]
    try:
        compared = candidates(list(teachers))
    except KdepError as e:
        raise KdepError(f"{pair.name}: {e.problem}", expected=e.expected, fix=e.fix) from None
    for role in compared:
        proxy = teachers[role + PROXY_SUFFIX]
        source = proxy["method"].get("teacher") if isinstance(proxy, dict) else None
        if source is None or source != teachers[role]:
            raise KdepError(
                f"the teacher {role + PROXY_SUFFIX!r} of {pair.name} is not distilled from the "
                f"teacher {role!r}",
                expected="an intermediate teacher whose method has that teacher as its `teacher`",
                fix=f"repeat the dict of {role!r} as `teacher` of the method of "
                f"{role + PROXY_SUFFIX!r}",
            )


def check_schedule_spans(pair: StudentMethod) -> None:
    """Checks that the schedules end within the training."""
    for span in spans(pair.method.get("objective")):
        check_span(span, pair.epochs, f"a schedule of {pair.name}")


def check_phases_of_run(pair: StudentMethod) -> None:
    """Checks that the phases of an objective are within the run and do not overlap."""
    objective = pair.method.get("objective") or {}
    if isinstance(phases := objective.get("phases"), list):
        try:
            check_phases(phases, float(objective.get("length", 0.0)))
        except KdepError as e:
            raise KdepError(
                f"the objective of {pair.name} has {e.problem}", expected=e.expected, fix=e.fix
            ) from None


def check_active_terms(pair: StudentMethod) -> None:
    """Checks that at every step at least one loss term has a weight above 0."""
    check_some_weight_nonzero(pair.method.get("objective"), pair.epochs, pair.name)


def check_peers(pair: StudentMethod) -> None:
    """Checks the networks that are trained with the student.

    The config of another network must be valid and have the student's input size. A network of the
    student's architecture must have other initial weights.
    """
    for config in peers_of(pair.method.get("objective")):
        check(MODELS["student"], config, f"`peer` in the objective of {pair.name}")
        check_backbone(config["backbone"], f"`peer.backbone` in the objective of {pair.name}")
        if config["input_px"] != (px := pair.student["input_px"]):
            raise KdepError(
                f"{pair.label} trains a second network, {config['name']!r}, whose input has "
                f"{config['input_px']} pixels, but the student's has {px}",
                expected="one input size, because both see the same images",
                fix=f"set objective=dict(peer=dict(input_px={px})) in the method, or name another "
                "`peer`",
            )
    check_peers_differ(pair.method, pair.name, pair.student)


def check_student_maps(pair: StudentMethod) -> None:
    """Checks that the student has the feature maps that the objective reads."""
    if not requires_student_maps(pair.method):
        return
    if not pair.student.get("pyramid"):
        raise KdepError(
            f"{pair.label} needs feature maps, but the student's config has no `pyramid`",
            fix=ADD_PYRAMID,
        )
    levels = [f"s{s}" for s in pair.student["pyramid"].get("strides", [])]
    for level in sorted(student_levels(pair.method.get("objective"))) if levels else []:
        if level not in levels:
            raise unknown_name(
                "level",
                level,
                levels,
                place=f"student {pair.student['name']!r}, which {pair.name} reads",
            )


# ---- rules of methods that read a teacher ----


def check_teacher_exists(pair: StudentMethod) -> None:
    """Checks that there is a teacher; otherwise the property `teacher` raises the error."""
    assert pair.teacher is not None


def check_teacher_arguments(pair: StudentMethod) -> None:
    """Checks the arguments of the suite's teacher, and that its file of weights exists."""
    teacher = pair.suite_teacher if assistant_config(pair.method) is None else None
    while teacher is not None:
        label = f"the teacher {teacher.get('name')!r}"
        check_type(teacher, label, "kdep_bench.teachers.base.Teacher")
        check_arguments(without(teacher, DESCRIPTION_KEYS | {CONTENT}), label)
        check_weights_file(teacher, label, "`weights` of the teacher")
        if isinstance(model := teacher.get("model"), Mapping):
            check_backbone(model, f"`model` of {label}")
        inner = teacher.get("teacher")  # of a black box
        teacher = inner if isinstance(inner, dict) else None


def check_logits(pair: StudentMethod) -> None:
    """Checks that the teacher has a classifier, if the method reads logits or probabilities."""
    input_name = "logits" if "logits" in pair.needs else "class probabilities"
    class_outputs = {"logits", "probabilities"} & pair.needs
    if class_outputs and pair.teacher.get("has_logits", True) is False:
        raise KdepError(
            f"{pair.label} needs {input_name}, but the teacher {pair.teacher['name']!r} has none",
            fix="choose a teacher with a classifier, or a method that uses features only",
        )


def check_black_box(teacher: Json, needs: set[str], label: str) -> None:
    """Raises KdepError if `needs` has more than class probabilities of a black-box teacher.

    A black-box teacher returns nothing else. `label` is what an error calls the reader.
    """
    if not class_value(str(teacher.get("type")), "black_box"):
        return
    if hidden := sorted(needs - BLACK_BOX_OUTPUTS):
        raise KdepError(
            f"{label} reads {', '.join(hidden)} of the teacher {teacher['name']!r}, which returns "
            "class probabilities only",
            fix="choose a method that reads probabilities only (fs_bbt, tinyvit), or another "
            "teacher",
        )


def check_black_box_teacher(pair: StudentMethod) -> None:
    """Checks that a black-box teacher is only asked for class probabilities."""
    check_black_box(pair.teacher, pair.needs, pair.label)


def check_synthesis(pair: StudentMethod) -> None:
    """Checks a method that makes more images from few images (`synthesis`).

    The made images have no labels, and only the suite's teacher runs on them.
    """
    method = pair.method
    config = method.get("synthesis")
    if config is None:
        return
    check_arguments(config, f"{pair.name}.synthesis")
    problems = {
        "takes no training step": not trains(method),
        "reads labels, which these images do not have": "labels" in pair.needs,
        "has a `teacher` of its own": method.get("teacher") is not None,
        "has several `teachers`": method.get("teachers") is not None,
        "has no teacher in the suite": pair.suite_teacher is None,
    }
    for problem, present in problems.items():
        if present:
            raise KdepError(
                f"{pair.name} makes its own images (`synthesis`), but {problem}",
                expected="a label-free method with the suite's teacher",
                fix="remove `synthesis` from the method, or choose another objective or teacher",
            )
    if pair.suite_teacher is not None and pair.suite_teacher.get("has_logits", True) is False:
        raise KdepError(
            f"{pair.name} makes images by class, but the teacher {pair.suite_teacher['name']!r} "
            "has no classifier",
            fix="choose a teacher with a classifier",
        )


def check_classifier(pair: StudentMethod) -> None:
    """Checks that the teacher's classifier reads its pooled feature, if the method applies it."""
    if "classifier" not in pair.needs or pair.teacher.get("card", {}).get("logits_from_pooled"):
        return
    if pair.teacher.get("type") == EXPORTED_TEACHER:
        raise KdepError(
            f"{pair.label} applies the teacher's classifier to its pooled feature before the last "
            f"activation, but the classifier of {pair.teacher['name']!r}, which the suite trains, "
            "reads the feature after it",
            fix="choose a teacher with a config in configs/teachers/ that states "
            "card=dict(logits_from_pooled=True)",
        )
    raise KdepError(
        f"{pair.label} applies the teacher's classifier to a pooled feature, but the config of the "
        f"teacher {pair.teacher['name']!r} does not state that its logits are computed from it",
        expected="card=dict(logits_from_pooled=True) in the teacher's config",
        fix="choose another teacher, or state it in the config if the class has a `logit_head`",
    )


def check_tail(pair: StudentMethod) -> None:
    """Checks that the teacher provides its last layers, if the method trains them.

    A tail consists of the teacher's layers after one of its feature maps.
    """
    if "tail" not in pair.needs:
        return
    tails = class_value(str(pair.teacher.get("type")), "tails") or ()
    for level in sorted(levels_of(pair.method.get("objective"))):
        if level not in tails:
            raise KdepError(
                f"{pair.label} trains the teacher's layers after the map {level!r}, which the "
                f"teacher {pair.teacher['name']!r} does not provide",
                expected=f"one of {', '.join(tails)}" if tails else "a teacher with `tails`",
                fix="correct `levels` in the objective, or choose another teacher",
            )


def check_layer(pair: StudentMethod) -> None:
    """Checks a method that reads one layer of a live teacher, whose later layers are not run.

    The teacher must have the layer and run live, and the method must read no other output of it.
    """
    if "layer" not in pair.needs:
        return
    name = teacher_layer(pair.method.get("objective"))
    prefix = f"{pair.label} stops its teacher after the layer {name!r}"
    kind = str(pair.teacher.get("type"))
    if assistant_config(pair.method) is not None or not pair.is_live:
        raise KdepError(
            f"{prefix}, but reads it from a cache",
            expected="the suite's teacher or a teacher config, and teacher_source='live'",
            fix="set teacher_source='live' in the method and remove its `teacher`, if it has one",
        )
    layers = class_value(kind, "layers") or ()
    if name not in layers and not class_value(kind, "layers_by_path"):
        raise KdepError(
            f"{prefix}, which the teacher {pair.teacher['name']!r} does not have",
            expected=f"one of {', '.join(layers)}" if layers else "a teacher with `layers`",
            fix="correct `teacher_layer` in the objective, or choose another teacher",
        )
    if other_inputs := sorted((pair.needs & FROM_TEACHER) - {"layer"}):
        raise KdepError(
            f"{prefix}, but also reads its {', '.join(other_inputs)}",
            fix="remove that part of the objective, or let it read another teacher by role",
        )


def check_teacher_images(pair: StudentMethod) -> None:
    """Checks that the teacher's images are not smaller than the student's, if they are read."""
    teacher, px = pair.teacher, pair.student["input_px"]
    teacher_px = teacher.get("input_px") or teacher.get("student", {}).get("input_px")
    if "teacher_images" in pair.needs and teacher_px is not None and teacher_px < px:
        raise KdepError(
            f"{pair.label} learns from the teacher's images, but those of the teacher "
            f"{teacher['name']!r} have {teacher_px} pixels and the student's {px}",
            expected="a teacher with images as large as the student's, or larger",
            fix=f"set input_px={px} or more for the teacher (in the suite, teacher=dict(base=..., "
            f"input_px={px})), or choose another method",
        )


def check_attention(pair: StudentMethod) -> None:
    """Checks a method that reads hidden states and attention of a live vision transformer."""
    if "attention" not in pair.needs:
        return
    prefix = f"{pair.label} reads the attention of its teacher"
    if assistant_config(pair.method) is not None or not pair.is_live:
        raise KdepError(
            f"{prefix}, which is in no cache",
            expected="the suite's teacher or a teacher config, and teacher_source='live'",
            fix="set teacher_source='live' in the method and remove its `teacher`, if it has one",
        )
    depth = pair.teacher.get("card", {}).get("blocks")
    if depth is None:
        raise KdepError(
            f"{prefix}, but the config of the teacher {pair.teacher['name']!r} does not state that "
            "it is a vision transformer",
            expected="card=dict(blocks=...) in the teacher's config: its number of blocks",
            fix="choose a vision transformer, for example dinov2_vitb14, or state its number of "
            "blocks in its config",
        )
    if str(pair.teacher.get("type")).endswith(".timm_models.Timm"):
        model = pair.teacher.get("model")
        check_timm_transformer(pair.label, pair.teacher["name"], model, "teacher")
    objective = pair.method.get("objective")
    try:
        last = max(teacher_blocks(objective))
    except KdepError as e:
        raise KdepError(f"{pair.label}: {e.problem}", expected=e.expected, fix=e.fix) from None
    stated = {teacher_depth for _, teacher_depth in depths_of(objective)} or {depth}
    if last >= depth or stated != {depth}:
        raise KdepError(
            f"{prefix} in block {last} of a teacher with {max(stated)} blocks, but the teacher "
            f"{pair.teacher['name']!r} has {depth}",
            fix="correct `teacher_block` or `teacher_depth` in the method's objective",
        )
    heads = pair.teacher["card"].get("heads"), transformer_size(pair.student)[1]
    averages = (objective or {}).get("average_heads")
    if averages is False and None not in heads and heads[0] != heads[1]:
        raise KdepError(
            f"{prefix}, which has {heads[0]} attention heads, but the student has {heads[1]}",
            fix="set average_heads=True in the method's objective",
        )


def check_classes_of_labels(pair: StudentMethod) -> None:
    """Checks that labels and teacher have the same number of classes, if the method needs that."""
    data = pair.suite.data
    counts = data.get("pool_classes"), head_classes(pair.suite, pair.method, pair.suite_teacher)
    if "classes" in pair.needs and None not in counts and counts[0] != counts[1]:
        raise KdepError(
            f"{pair.label} compares the teacher's classes with the image labels, but the teacher "
            f"{pair.teacher['name']!r} has {counts[1]} classes and the pool of {data['name']!r} "
            f"{counts[0]}",
            fix="use a method that reads no labels, such as `logit_kd` (of several teachers: "
            "`ebkd`), or a teacher trained on the classes of the pool",
        )


def check_number_of_probabilities(pair: StudentMethod) -> None:
    """Checks that the method reads no more class probabilities than the teacher has classes."""
    if "probabilities" not in pair.needs:
        return
    n_read = top_classes(pair.method.get("objective"))
    n_classes = head_classes(pair.suite, pair.method, pair.suite_teacher)
    if n_classes is not None and n_read > n_classes:
        raise KdepError(
            f"{pair.label} reads the {n_read} largest class probabilities, but the teacher "
            f"{pair.teacher['name']!r} has {n_classes} classes",
            fix=f"set top_classes to {n_classes} or less in the method's objective",
        )


def check_maps(pair: StudentMethod) -> None:
    """Checks that teacher and student have the feature maps that the method reads."""
    if "maps" in pair.needs and pair.teacher.get("card", {}).get("maps", True) is False:
        raise KdepError(
            f"{pair.label} needs feature maps, but the teacher {pair.teacher['name']!r} has none",
            fix="choose a teacher with feature maps, or a method that uses pooled features",
        )
    stated = pair.teacher.get("card", {}).get("maps")
    if "maps" in pair.needs and isinstance(stated, dict) and stated:
        for level in sorted(levels_of(pair.method.get("objective"))):
            if level not in (known := {*stated, LAST}):
                place = f"the teacher {pair.teacher['name']!r}, which {pair.label} reads"
                raise unknown_name("map", level, known, place=place)
    strides = (pair.student.get("pyramid") or {}).get("strides", [])
    for level in sorted(student_levels(pair.method.get("objective"))) if strides else []:
        if level not in (levels := [f"s{s}" for s in strides]):
            raise unknown_name(
                "level",
                level,
                levels,
                place=f"student {pair.student['name']!r}, which {pair.name} reads",
            )
    reads_maps = "maps" in pair.needs or requires_student_maps(pair.method)
    if reads_maps and not pair.student.get("pyramid"):
        raise KdepError(
            f"{pair.label} needs feature maps, but the student's config has no `pyramid`",
            fix=ADD_PYRAMID,
        )


def check_map_channels(pair: StudentMethod) -> None:
    """Checks that the teacher's maps have enough channels to reduce them to the student's."""
    pyramid = pair.student.get("pyramid") or {}
    channels = zip(pyramid.get("strides", ()), pyramid.get("channels", ()), strict=False)
    teacher_channels = pair.teacher.get("card", {}).get("maps")
    check_map_targets(
        pair.method.get("objective"),
        {f"s{stride}": int(count) for stride, count in channels},
        teacher_channels if isinstance(teacher_channels, dict) else {},
        pair.label,
    )


def check_prototypes(pair: StudentMethod) -> None:
    """Checks that the maps of a micro-batch have enough positions to initialise the prototypes."""
    batch = pair.batch // pair.suite.budget.accumulate
    strides = (pair.student.get("pyramid") or {}).get("strides", ())
    for part in parts_with_key(pair.method.get("objective"), "prototypes"):
        count, levels = part["prototypes"], student_levels(part)
        stride = max((s for s in strides if f"s{s}" in levels), default=None)
        if stride is None or not isinstance(count, int):
            continue
        positions = batch * math.ceil(pair.student["input_px"] / stride) ** 2
        if count <= positions:
            continue
        raise KdepError(
            f"{pair.label} initialises {count} prototypes from one batch, but the level s{stride} "
            f"of {batch} images has {positions} positions",
            expected=f"at most {positions} prototypes",
            fix=f"set prototypes={positions} or fewer in the method's objective, or a larger batch",
        )


def check_student_width(pair: StudentMethod) -> None:
    """Checks that the student's feature is not wider than the teacher's, unless a policy is set."""
    align, width = pair.method.get("align"), pair.student["width"]
    if not align:
        return
    must_be_equal = str(align.get("type")).endswith("features.aligners.Identity")
    name = f"the teacher {pair.teacher['name']!r}"
    in_width = teacher_width(pair.teacher) or width
    try:
        check_widths(width, in_width, align.get("policy"), name, must_be_equal)
    except KdepError as e:
        raise KdepError(f"{pair.label}: {e.problem}", expected=e.expected, fix=e.fix) from None


# ---- rules that read the source of the objective's classes; checked last ----


def check_declared_needs(pair: StudentMethod) -> None:
    """Checks that the method's `needs` lists the inputs that its objective reads."""
    check_needs(pair.method, pair.name)


def check_undivided_batch(pair: StudentMethod) -> None:
    """Checks that the batch is not split, if the objective compares the samples of a batch."""
    check_couples_samples(pair.method, pair.name, _batch_parts(pair))


def _batch_parts(pair: StudentMethod) -> int:
    """Number of micro-batches and processes that a batch is split into."""
    budget, runtime = pair.suite.budget, pair.suite.runtime
    processes = runtime.processes.get("pretrain", max(1, runtime.gpus.get("pretrain", 1)))
    return budget.accumulate * processes * runtime.nodes.get("pretrain", 1)


def check_augmentation(pair: StudentMethod) -> None:
    """Checks that labels and cached teacher outputs still fit the augmented images."""
    method = pair.method
    if method.get("augment") is not None and not trains(method):
        raise KdepError(
            f"{pair.name} has `augment` but takes no training step",
            fix="remove `augment`, or add an objective",
        )
    intermediate = [
        teacher
        for teacher in teachers_by_role(method, pair.suite_teacher)
        if assistant_config(teacher.method) is not None
    ]
    check_augment(method, pair.name, pair.is_live and not intermediate, _batch_parts(pair))


def check_transformer_student(pair: StudentMethod) -> None:
    """Checks that the student is a transformer, if the objective reads its tokens.

    Also that the student has no second pass, whose tokens would be read instead.
    """
    check_transformer(pair.method, pair.name, pair.student)
    check_single_pass(pair.method, pair.name)


def check_teacher_source(pair: StudentMethod) -> None:
    """Checks that a method with teacher_source='live' reads a teacher, but no intermediate one."""
    if pair.method.get("teacher_source") != "live":
        return
    teachers = teachers_by_role(pair.method, pair.suite_teacher)
    if not teachers or any(assistant_config(teacher.method) is not None for teacher in teachers):
        problem = "it reads no teacher"
        if teachers:
            problem = "its teacher is an intermediate teacher, which is read from its cache"
        raise KdepError(
            f"{pair.name} has teacher_source='live', but {problem}",
            fix="remove teacher_source from the method",
        )


def check_statistics_of_cache(pair: StudentMethod) -> None:
    """Checks that an objective that reads statistics of a teacher's cache has a cache.

    A live teacher has one only if the method aligns its feature.
    """
    if not pair.is_live or pair.method.get("align"):
        return
    statistics = sorted(required_arguments(pair.method) & ARGUMENTS_FROM_CACHE)
    if statistics:
        raise KdepError(
            f"{pair.label} reads {', '.join(statistics)}, which are computed from a teacher's "
            "cache, but its teacher is live",
            fix="remove teacher_source='live' from the method, or budget.teacher='live' from the "
            "suite",
        )


def check_stored_maps(pair: StudentMethod) -> None:
    """Checks that int8 maps are only set for a method that reads maps from a cache."""
    if pair.method.get("stored_maps", "float16") == "float16":
        return
    if "maps" not in pair.needs or pair.is_live:
        reason = "its teacher is live" if pair.is_live else "it reads no maps of the teacher"
        raise KdepError(
            f"{pair.name} has stored_maps='int8', but {reason}",
            fix="remove stored_maps from the method",
        )


def check_separate_optimizers(pair: StudentMethod) -> None:
    """Checks that gradients are not accumulated, if the objective has separate optimisers."""
    check_extra_optimizers(pair.method, pair.name, pair.suite.budget.accumulate)


Rule = Callable[[StudentMethod], None]
RULES: tuple[Rule, ...] = (
    check_types,
    check_student_backbone,
    check_teacher_roles,
    check_assistants,
    check_batch,
    check_objective_with_alignment,
    check_labels,
    check_views,
    check_synthesis,
    check_schedule_spans,
    check_phases_of_run,
    check_method_arguments,
    check_held_out,
    check_candidates,
    check_peers,
    check_student_maps,
    check_active_terms,
    check_method_optimizer,
)
TEACHER_RULES: tuple[Rule, ...] = (
    check_teacher_exists,
    check_teacher_arguments,
    check_black_box_teacher,
    check_logits,
    check_classifier,
    check_tail,
    check_layer,
    check_teacher_images,
    check_attention,
    check_classes_of_labels,
    check_number_of_probabilities,
    check_maps,
    check_map_channels,
    check_prototypes,
    check_student_width,
)
LAST_RULES: tuple[Rule, ...] = (
    check_declared_needs,
    check_separate_optimizers,
    check_undivided_batch,
    check_transformer_student,
    check_teacher_source,
    check_statistics_of_cache,
    check_stored_maps,
    check_augmentation,
)
