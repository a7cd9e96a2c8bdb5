"""What a method's config says of its arm: whether it trains, and who teaches it."""

from __future__ import annotations

from kdep_bench.suite.schema import Json, Suite, label_policy, method_needs, uses_teacher

# Keys that describe a config to people; no stage reads them, so none runs again when they change.
PROSE = {"about", "source", "reconstruction", "card", "tests_on"}
EXPORTED = "kdep_bench.teachers.exported.Exported"


def without(config: Json, keys: set[str]) -> Json:
    """`config` less some top-level keys."""
    return {k: v for k, v in config.items() if k not in keys}


def trains(method: Json) -> bool:
    """Whether an arm takes pre-training steps at all (scratch and given weights do not)."""
    return (
        method.get("objective") is not None
        and method.get("weights") is None
        and method.get("steps", True)
    )


def arms_of(suite: Suite, student: Json) -> list[Json]:
    """The methods that the suite runs for a student."""
    name = student["name"]
    return [m for m in suite.methods if m.get("students") is None or name in m["students"]]


def assistant_of(method: Json) -> Json | None:
    """The teacher config that stands for the arm which teaches `method`; None without one.

    Its file is told to the cache stage by the stages it comes from. It has logits where its
    objective has one linear head, and gives no maps.
    """
    told = method.get("teacher")
    if told is None:
        return None
    student, taught = told["student"], told["method"]
    head = not (taught.get("objective") or {}).get("parts")
    cut = "" if told["epochs"] is None else f".{told['epochs']:g}ep"
    return {
        "type": EXPORTED,
        "name": f"{student['name']}.{taught['name']}{cut}",
        "student": without(student, PROSE),
        "has_logits": head and bool(method_needs(taught) & {"labels", "logits"}),
        "card": {
            "width": student["width"],
            "maps": False,
            "labels_used": label_policy(taught) == "labels",
        },
    }


def teacher_config_for(method: Json, base: Json | None) -> Json | None:
    """Teacher config of a method: its own assistant, the suite's (`base`), or None without one."""
    if not uses_teacher(method):
        return None
    assistant = assistant_of(method)
    if assistant is None:
        return base
    own = teacher_config_for(method["teacher"]["method"], base)
    known = (own or {}).get("card", {}).get("trained_on")
    if known:  # what its own teacher was trained on reached it
        assistant["card"] = {**assistant["card"], "trained_on": known}
    return assistant


def teacher_width(teacher: Json) -> int | None:
    """The width of a teacher's feature; None where no page says."""
    return teacher.get("width") or teacher.get("card", {}).get("width")


def head_classes(suite: Suite, method: Json, base: Json | None) -> int | None:
    """Classes of the logits that `method` is taught by; None where no page says."""
    told = method.get("teacher")
    if told is None:
        return (base or {}).get("card", {}).get("classes")
    if "labels" in method_needs(told["method"]):
        return suite.data.get("pool_classes")
    return head_classes(suite, told["method"], base)
