"""Checks of a transfer method with its tasks, its student and its teacher.

Each rule is a small function in RULES that raises a KdepError if its check fails. The classes'
attributes are read from their source code without importing them, so that `--dry-run` does not
import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.objectives.levels import (
    block_pairs,
    levels_of,
    student_levels,
)
from kdep_bench.signatures import check_arguments, check_type, class_value, resolve_alias
from kdep_bench.suite.arguments import (
    check_classes,
    check_couples_samples,
    check_is_transformer,
    patch_side,
    transformer_size,
)
from kdep_bench.suite.methods import DESCRIPTION_KEYS, tasks_for, tuned_teacher, without
from kdep_bench.suite.pairs import check_pair, check_task
from kdep_bench.suite.schema import ADD_PYRAMID, Json, Suite

BASE = "kdep_bench.transfer.method.TransferMethod"
_PLANNING = {"name", "family", "teacher", "tasks"}  # keys that are not arguments of the class


@dataclass(frozen=True)
class StudentTransfer:
    """A transfer method of a suite on one student.

    Attributes:
        method: config of the pre-training, with the transfer method in `transfer`.
        suite_teacher: the suite's teacher for the student; None without a teacher.
    """

    suite: Suite
    student: Json
    method: Json
    suite_teacher: Json | None

    @property
    def config(self) -> Json:
        return self.method["transfer"]

    @property
    def label(self) -> str:
        return f"the transfer method {self.config['name']!r}"

    @property
    def teacher(self) -> Json | None:
        return tuned_teacher(self.method, self.student)

    def class_attribute(self, name: str) -> Any:
        """An attribute of the method's class, read from its source; None if unknown."""
        return class_value(resolve_alias(self.config["type"]), name)


def check_transfer(
    suite: Suite, student: Json, method: Json, suite_teacher: Json | None = None
) -> None:
    """Raises KdepError if the transfer method cannot work with this suite and student.

    Does nothing for a method without `transfer`.
    """
    if method.get("transfer") is None:
        return
    for rule in RULES:
        rule(StudentTransfer(suite, student, method, suite_teacher))


def check_tasks(transfer: StudentTransfer) -> None:
    """Checks that the method's tasks are in the suite, and that it supports them."""
    suite_tasks = [task["name"] for task in transfer.suite.tasks]
    for name in transfer.config.get("tasks") or []:
        if name not in suite_tasks:
            raise unknown_name("task", name, suite_tasks, place=transfer.label)
    tasks = tasks_for(transfer.suite, transfer.method)
    unsupported = {task["name"]: _unsupported(transfer, task) for task in tasks}
    supported = [name for name, fault in unsupported.items() if fault is None]
    fix = f"set transfer=dict(tasks={supported}) in the method" if supported else "remove it"
    faults = Faults(by_fix=True)
    for name, fault in unsupported.items():
        if fault is not None:
            problem = f"{transfer.label} does not support the task {name!r}, {fault[0]}"
            faults.add(KdepError(problem, expected=fault[1], fix=fix))
    faults.raise_any(transfer.label)


def _unsupported(transfer: StudentTransfer, task: Json) -> tuple[str, str] | None:
    """(why a transfer method does not support a task, what it supports); None if it does."""
    families = transfer.class_attribute("families")
    if families and task["family"] not in families:
        supported = ", ".join(sorted(families))
        return f"of the family {task['family']}", f"tasks of the family {supported}"
    if class_value(task["type"], "supports_transfer_methods") is False:
        return "which does not train the whole network", "a task that is fine-tuned"
    needs = transfer.class_attribute("needs") or ()
    if "target_images" in needs and not class_value(task["type"], "has_target_images"):
        return (
            "which has no target images (images of another domain without boxes)",
            "a task of kdep_bench.transfer.domain_detection, such as pocket_det_fog",
        )
    return None


def check_processes(transfer: StudentTransfer) -> None:
    """Checks that a method that needs a whole batch in one process gets it."""
    processes = transfer_processes(transfer.suite)
    if processes > 1 and transfer.class_attribute("single_process"):
        raise KdepError(
            f"{transfer.label} cannot divide a training over processes, and the suite's `runtime` "
            f"has {processes} for `transfer`",
            fix="remove `transfer` from processes, gpus and nodes in the suite's `runtime`",
        )


def transfer_processes(suite: Suite) -> int:
    """Number of processes of a transfer stage."""
    runtime = suite.runtime
    processes = runtime.processes.get("transfer", runtime.gpus.get("transfer", 1))
    return processes * runtime.nodes.get("transfer", 1)


def check_all_arguments(transfer: StudentTransfer) -> None:
    """Checks that the method's class, and the objective in it, accept their arguments."""
    required_args = transfer.class_attribute("stage_arguments") or ()
    check_type(transfer.config, transfer.label, BASE)
    check_arguments(
        without(transfer.config, DESCRIPTION_KEYS | _PLANNING), transfer.label, required_args
    )
    objective = transfer.config.get("objective")
    if isinstance(objective, dict):
        config = {"objective": objective}
        check_classes(config, transfer.label, 1.0)
        for path in _types(objective):
            _check_objective(transfer, path, required_args)
        check_couples_samples(config, transfer.label, transfer_processes(transfer.suite))


def _types(config: Any) -> Iterator[str]:
    """The `type` of every dict in a nested config."""
    inner = config if isinstance(config, list) else []
    if isinstance(config, dict):
        inner = list(config.values())
        if isinstance(config.get("type"), str):
            yield config["type"]
    for value in inner:
        yield from _types(value)


def _check_objective(transfer: StudentTransfer, path: str, required_args: Any) -> None:
    """Checks that the objective class `path` reads only feature maps.

    `required_args`: constructor arguments that the transfer method passes to it.
    """
    needs = (class_value(resolve_alias(path), "needs") or frozenset()) - {"maps"}
    needs = needs or (
        class_value(resolve_alias(path), "stage_arguments") or frozenset()
    ) - frozenset(required_args)
    if needs:
        raise KdepError(
            f"the objective of {transfer.label} reads {', '.join(sorted(needs))}",
            expected="an objective that reads only feature maps",
            fix="choose another objective, such as kdep_bench.objectives.nfd.NFD",
        )


def check_teacher(transfer: StudentTransfer) -> None:
    """Checks the teacher, which the method must have if and only if it reads a teacher."""
    needs = transfer.class_attribute("needs")
    if transfer.teacher is None:
        if needs and "tuned_teacher" in needs:
            raise KdepError(
                f"{transfer.label} needs a teacher that was transferred to the same task, and has "
                "none",
                fix="add teacher=dict(student=..., method=...) to `transfer` in the method's "
                "config: the student that becomes the teacher, and its pre-training",
            )
        return
    if needs is not None and "tuned_teacher" not in needs:
        raise KdepError(
            f"{transfer.label} has a `teacher` but reads none",
            fix="remove `teacher` from its `transfer`",
        )
    student, method = transfer.teacher["student"], transfer.teacher["method"]
    is_other_student = student["name"] != transfer.student["name"]
    if is_other_student and transfer.class_attribute("teacher_is_student"):
        raise KdepError(
            f"the teacher of {transfer.label} is the student {student['name']!r}, but the student "
            f"{transfer.student['name']!r} is trained",
            expected="the same network",
            fix="set teacher='self' in `transfer` of the method",
        )
    if student["name"] not in (method.get("students") or [student["name"]]):
        raise KdepError(
            f"the teacher of {transfer.label} is the student {student['name']!r} pre-trained by "
            f"{method['name']!r}, a method for other students",
            expected=f"one of {', '.join(method['students'])}",
            fix="choose another method or student in its `teacher`",
        )
    for task in tasks_for(transfer.suite, transfer.method):
        check_task(student, task)
        # A dense task has one image size for all students, a classifier that of the student.
        own_px, px = student["input_px"], transfer.student["input_px"]
        if task["family"] == "classification" and own_px != px:
            raise KdepError(
                f"the teacher of {transfer.label} is trained on images of {own_px} pixels, but "
                f"reads those of the student {transfer.student['name']!r}, of {px} pixels",
                expected="one input size",
                fix=f"add input_px={px} to `student` in its `teacher`; if it is a name, write "
                f"student=dict(base=NAME, input_px={px})",
            )
    if transfer.teacher.get("transfer") is not None:
        _check_teacher_transfer(transfer, transfer.teacher["transfer"])
    check_pair(transfer.suite, student, method, transfer.suite_teacher)


def _check_teacher_transfer(transfer: StudentTransfer, teacher_transfer: Json) -> None:
    """Checks the transfer method with which the teacher itself is trained on the tasks.

    `teacher_transfer`: its type and arguments.
    """
    assert transfer.teacher is not None
    name = f"{transfer.config['name']}.teacher"
    config = {**teacher_transfer, "name": name, "tasks": transfer.config.get("tasks")}
    of_teacher = replace(
        transfer,
        student=transfer.teacher["student"],
        method={**transfer.teacher["method"], "transfer": config},
    )
    for rule in RULES:
        rule(of_teacher)


def check_backbones(transfer: StudentTransfer) -> None:
    """Checks that the method supports the backbones of student and teacher."""
    supported = transfer.class_attribute("backbones")
    if supported is None:
        return
    students = [
        transfer.student,
        *([] if transfer.teacher is None else [transfer.teacher["student"]]),
    ]
    for student in students:
        kind = str(student["backbone"].get("type")).rpartition(".")[2]
        if kind not in supported:
            raise KdepError(
                f"{transfer.label} cannot read the backbone {kind} of the student "
                f"{student['name']!r}",
                expected=f"one of {', '.join(sorted(supported))}",
                fix="choose another student, or remove the method",
            )


def check_transformers(transfer: StudentTransfer) -> None:
    """Checks student and teacher of a method that compares the tokens of vision transformers."""
    if not transfer.class_attribute("transformer"):
        return
    assert transfer.teacher is not None  # `check_teacher` comes before
    teacher = transfer.teacher["student"]
    check_is_transformer(transfer.label, transfer.student)
    check_is_transformer(transfer.label, teacher, "teacher")
    (depth, heads), (teacher_depth, teacher_heads) = map(
        transformer_size, (transfer.student, teacher)
    )
    if depth is not None and teacher_depth is not None:
        try:
            block_pairs(depth, teacher_depth)
        except KdepError as e:
            raise KdepError(
                f"{transfer.label}: {e.problem}",
                expected=e.expected,
                fix="choose another student as its `teacher`",
            ) from None
    sides = patch_side(transfer.student), patch_side(teacher)
    if None not in sides and sides[0] != sides[1]:
        raise KdepError(
            f"{transfer.label} compares patches, but those of the student have {sides[0]} pixels "
            f"and those of the teacher {sides[1]}",
            expected="equal patches, because both read the same images",
            fix="choose another student as its `teacher`",
        )
    averages = transfer.config.get("average_heads")
    if averages is False and None not in (heads, teacher_heads) and heads != teacher_heads:
        raise KdepError(
            f"{transfer.label} compares attention heads, but the student has {heads} and the "
            f"teacher {teacher_heads}",
            expected="equal numbers, or scores that are averaged over the heads",
            fix="set average_heads=True in `transfer` of the method",
        )


def check_pretraining(transfer: StudentTransfer) -> None:
    """Checks that the student is pre-trained with an objective whose networks the method reads."""
    supported = transfer.class_attribute("objectives")
    objective = transfer.method.get("objective")
    kind = resolve_alias(objective["type"]) if objective else ""
    if supported is not None and kind not in supported:
        training = f"is pre-trained with {kind}" if kind else "is not pre-trained"
        raise KdepError(
            f"{transfer.label} reads networks of the pre-training, but its student {training}",
            expected=f"an objective of the class {', '.join(sorted(supported))}",
            fix="set `pretrained_by` to a method with this objective, such as proc_kd",
        )


def check_has_levels(transfer: StudentTransfer) -> None:
    """Checks that a student whose feature maps are read has a `pyramid` in its config."""
    reads_maps = "student_maps" in (transfer.class_attribute("stage_arguments") or ())
    if reads_maps and not (transfer.student.get("pyramid") or {}).get("out_indices"):
        raise KdepError(
            f"{transfer.label} reads feature maps, but student {transfer.student['name']!r} has no "
            "`pyramid` in its config",
            fix=f"{ADD_PYRAMID}, or remove the method or the student from the suite",
        )


def check_levels(transfer: StudentTransfer) -> None:
    """Checks that student and teacher have the levels of feature maps that the losses read."""
    config = without(transfer.config, {"teacher"})
    _check_levels(transfer, "student", transfer.student, student_levels(config))
    if transfer.teacher is not None:
        _check_levels(transfer, "teacher", transfer.teacher["student"], levels_of(config))


def check_own_settings(transfer: StudentTransfer) -> None:
    """Runs the check that the method's class names in `plan_check`."""
    path = transfer.class_attribute("plan_check")
    if path is None:
        return
    module, _, name = path.rpartition(".")
    try:
        getattr(import_module(module), name)(transfer.config)
    except KdepError as e:
        raise KdepError(f"{transfer.label}: {e.problem}", expected=e.expected, fix=e.fix) from None


def _check_levels(transfer: StudentTransfer, role: str, student: Json, required: set[str]) -> None:
    """Raises KdepError if a student lacks one of the levels ("s8"); `role`: for the error."""
    levels_of_student = [f"s{s}" for s in (student.get("pyramid") or {}).get("strides", [])]
    for level in sorted(required - set(levels_of_student)):
        place = f"the {role} {student['name']!r}, which {transfer.label} reads"
        raise unknown_name("level", level, levels_of_student, place=place)


RULES: tuple[Callable[[StudentTransfer], None], ...] = (
    check_tasks,
    check_processes,
    check_all_arguments,
    check_teacher,
    check_backbones,
    check_transformers,
    check_pretraining,
    check_has_levels,
    check_levels,
    check_own_settings,
)
