"""Properties of a method's config: whether it trains, its row's name, its tasks and teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kdep_bench.suite.schema import Json, Suite, labels_of_run, method_needs

# Keys that only describe a config; no stage reads them, so changing them reruns no stage.
DESCRIPTION_KEYS = {"about", "source", "reconstruction", "card", "tests_on", "scores_note"}
# Keys of a data config that its `prepare` function does not read.
UNPREPARED_KEYS = DESCRIPTION_KEYS | {"name", "type", "labels", "pool_classes"}
# Teacher class for a student that was pre-trained and exported before.
EXPORTED_TEACHER = "kdep_bench.teachers.exported.Exported"
# Value of `student` of an intermediate teacher: the same student config (self-distillation).
SAME_STUDENT = "same"


def without(config: Json, keys: set[str]) -> Json:
    """`config` without the top-level keys `keys`."""
    return {k: v for k, v in config.items() if k not in keys}


def trains(method: Json) -> bool:
    """Whether a method takes pre-training steps (scratch and given weights do not)."""
    return (
        method.get("objective") is not None
        and method.get("weights") is None
        and method.get("steps", True)
    )


def row_name(method: Json) -> str:
    """Name of the method in tables: the pre-training and, if it has one, the transfer method."""
    transfer = method.get("transfer")
    if transfer is None:
        return method["name"]
    return f"pre-trained by {method['name']}, transferred with {transfer['name']}"


def tuned_teacher(method: Json, student: Json) -> Json | None:
    """{"student", "method"}, the configs of a transfer method's tuned teacher; None without one.

    The student of teacher="self" is `student`.
    """
    teacher = (method.get("transfer") or {}).get("teacher")
    if teacher is None or teacher["student"] is not None:
        return teacher
    return {**teacher, "student": student}


def tasks_for(suite: Suite, method: Json) -> list[Json]:
    """The tasks that the suite runs a method on."""
    task_names = (method.get("transfer") or {}).get("tasks")
    return [t for t in suite.tasks if task_names is None or t["name"] in task_names]


def methods_for(suite: Suite, student: Json) -> list[Json]:
    """The methods that the suite runs for a student; see `for_student`."""
    name = student["name"]
    methods = [m for m in suite.methods if m.get("students") is None or name in m["students"]]
    return [for_student(m, student) for m in methods]


def for_student(method: Json, student: Json) -> Json:
    """The method with `student` in place of SAME_STUDENT in all its intermediate teachers.

    A method without SAME_STUDENT is returned as it is. In a chain of intermediate teachers,
    SAME_STUDENT is the student of the method that the teacher belongs to.
    """

    def resolved(reference: Any) -> Any:
        if not (isinstance(reference, dict) and isinstance(reference.get("method"), dict)):
            return reference
        architecture = student if reference["student"] == SAME_STUDENT else reference["student"]
        # None: the tuned teacher of teacher="self", whose student is that of the run as well.
        inner = for_student(reference["method"], architecture or student)
        if architecture is reference["student"] and inner is reference["method"]:
            return reference
        return {**reference, "student": architecture, "method": inner}

    changed: Json = {}
    for key in ("teachers", "teacher"):
        references = method.get(key)
        if references is None:
            continue
        if key == "teachers":
            new = {role: resolved(reference) for role, reference in references.items()}
        else:
            new = resolved(references)
        if new != references:
            changed[key] = new
    transfer = method.get("transfer")
    if transfer is not None and transfer.get("teacher") is not None:
        new = resolved(transfer["teacher"])
        if new is not transfer["teacher"]:
            changed["transfer"] = {**transfer, "teacher": new}
    return {**method, **changed} if changed else method


def assistant_config(method: Json) -> Json | None:
    """Teacher config of the intermediate teacher of `method`; None without one.

    An intermediate teacher (assistant) is a student that the suite pre-trains first. The cache
    stage reads its weights from its export stage. It has logits if its objective is not a weighted
    sum and trains one linear head, on labels, logits or probabilities. It has no feature maps.
    """
    intermediate = method.get("teacher")
    if intermediate is None:
        return None
    student, intermediate_method = intermediate["student"], intermediate["method"]
    has_one_head = not (intermediate_method.get("objective") or {}).get("parts")
    trains_head = bool(method_needs(intermediate_method) & {"labels", "logits", "probabilities"})
    label = budget_label(intermediate["epochs"], intermediate.get("batch"))
    return {
        "type": EXPORTED_TEACHER,
        "name": f"{student['name']}.{intermediate_method['name']}{label}",
        "student": without(student, DESCRIPTION_KEYS),
        "has_logits": has_one_head and trains_head,
        "card": {
            "width": student["width"],
            "maps": False,
            "labels_used": labels_of_run(intermediate_method, student)["label_policy"] == "labels",
        },
    }


def budget_label(epochs: float | None, batch: int | None) -> str:
    """Part of a name: the epochs and batch of an intermediate teacher, where they are set."""
    epochs_label = "" if epochs is None else f".{epochs:g}ep"
    return epochs_label if batch is None else f"{epochs_label}.b{batch}"


def role_teachers(method: Json) -> list[Json]:
    """The teacher configs in `teachers` of a method and of its intermediate teachers.

    The key `teachers` has a role for each teacher, for example dict(small=..., large=...).
    """
    configs: list[Json] = []

    def collect(teacher: Json) -> Json:
        configs.append(teacher)
        return teacher

    with_role_teachers(method, collect)
    return configs


def intermediate_methods(method: Json) -> Iterator[Json]:
    """The methods that pre-train the intermediate teachers of `method`, direct and indirect."""
    for reference in _intermediate(method):
        yield reference["method"]


def intermediate_teachers(method: Json) -> Iterator[Json]:
    """Teacher configs of the intermediate teachers of `method`, direct and indirect."""
    for reference in _intermediate(method):
        config = assistant_config({"teacher": reference})
        assert config is not None
        yield config


def _intermediate(method: Json) -> Iterator[Json]:
    """Yields the intermediate teachers in `teacher` and `teachers` of a method.

    Each is followed by the intermediate teachers of its own method.
    """
    for reference in (method.get("teacher"), *(method.get("teachers") or {}).values()):
        if isinstance(reference, dict) and "method" in reference:
            yield reference
            yield from _intermediate(reference["method"])


def with_role_teachers(method: Json, change: Callable[[Json], Json]) -> Json:
    """The method with each teacher config of `role_teachers` replaced by `change(config)`."""

    def changed(reference: Any) -> Any:
        if not isinstance(reference, dict):
            return reference  # "suite": the suite's teacher
        if "method" in reference:
            return {**reference, "method": with_role_teachers(reference["method"], change)}
        return change(reference)

    if method.get("teachers") is not None:
        teachers = {role: changed(reference) for role, reference in method["teachers"].items()}
        return {**method, "teachers": teachers}
    if method.get("teacher") is not None:
        return {**method, "teacher": changed(method["teacher"])}
    return method


def teacher_width(teacher: Json) -> int | None:
    """The width of a teacher's feature; None if its config does not state it."""
    return teacher.get("width") or teacher.get("card", {}).get("width")


def head_classes(suite: Suite, method: Json, suite_teacher: Json | None) -> int | None:
    """Number of classes of the teacher's logits; None if no config states it."""
    intermediate = method.get("teacher")
    if method.get("teachers") is not None:
        # One student head learns from all teachers, so all have the classes of the first.
        reference = next(iter(method["teachers"].values()))
        if isinstance(reference, dict) and "type" in reference:
            return reference.get("card", {}).get("classes")
        intermediate = None if reference == "suite" else reference
    if intermediate is None:
        return (suite_teacher or {}).get("card", {}).get("classes")
    if "labels" in method_needs(intermediate["method"]):
        return suite.data.get("pool_classes")
    return head_classes(suite, intermediate["method"], suite_teacher)
