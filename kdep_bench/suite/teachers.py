"""The teachers of a method by role: their configs, and the inputs that the method reads of each.

A method with several teachers gives each a name, its role:
`teachers=dict(small="suite", large="efficientnet_lite2")`. The value is "suite" for the suite's
teacher, the name of a config in configs/teachers (or dict(base=...)), or dict(student=, method=)
for an intermediate teacher, as in the key `teacher` of a method. A class that reads one teacher
reads the teacher of the first role, or of the role that its part of a weighted sum names. A method
without `teachers` has one teacher, whose role is "".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.objectives.roles import (
    FROM_TEACHER,
    SINGLE_ROLE,
    attribute_from_source,
    combined_config,
    readers,
    reads_every,
    union,
)
from kdep_bench.suite.methods import DESCRIPTION_KEYS, assistant_config, head_classes, without
from kdep_bench.suite.schema import Json, Suite, uses_teacher

SUITE = "suite"  # value of a role: the suite's teacher


@dataclass(frozen=True)
class RoleTeacher:
    """One teacher of a method.

    Attributes:
        role: its name in the method; "" if the method has only one teacher.
        method: the method reduced to this teacher: its `needs`, `objective`, `align` and `teacher`.
        suite_teacher: the teacher config; for an intermediate teacher, the suite's teacher config.
    """

    role: str
    method: Json
    suite_teacher: Json | None

    @property
    def config(self) -> Json | None:
        """Teacher config of the role; None if the suite has no teacher."""
        return assistant_config(self.method) or self.suite_teacher

    def key(self, kind: str) -> str:
        """Role of this teacher's stage of a kind in `Stage.needs` and chains: 'large.cache'."""
        return f"{self.role}.{kind}" if self.role else kind


def teachers_by_role(method: Json, suite_teacher: Json | None) -> list[RoleTeacher]:
    """The teachers of a method in the order of its roles; [] for a method that reads no teacher.

    Raises:
        KdepError: a part of the objective names a teacher that is not a role of the method.
    """
    if not uses_teacher(method):
        return []
    if method.get("teachers") is None:
        return [RoleTeacher("", method, suite_teacher)]
    roles = list(method["teachers"])
    parts_by_role = readers(method.get("objective"), roles)
    return [_role_teacher(method, role, parts_by_role[role], suite_teacher) for role in roles]


def _role_teacher(
    method: Json, role: str, configs: Sequence[Json], suite_teacher: Json | None
) -> RoleTeacher:
    """The teacher of a role. `configs`: the parts of the objective that read it."""
    reference = method["teachers"][role]
    needs = union(configs, "needs")
    role_method = {
        **without(method, {"teachers", "teacher"}),
        "needs": sorted({"pooled" if n == "target" else n for n in needs}),
        "objective": combined_config(configs),
        "align": method.get("align") if "target" in needs else None,
    }
    if reference == SUITE:
        return RoleTeacher(role, role_method, suite_teacher)
    if "type" in reference:
        return RoleTeacher(role, role_method, reference)
    return RoleTeacher(role, {**role_method, "teacher": reference}, suite_teacher)


def teacher_config_for(method: Json, suite_teacher: Json | None) -> Json | None:
    """The teacher of a method, as records and model cards describe it; None without one.

    Several teachers are combined into one config: `name` joins their names, `teachers` is the list
    of their configs, and `card` joins what model cards and notes state about them.
    """
    if method.get("teachers") is None:
        return _teacher_config(method, suite_teacher) if uses_teacher(method) else None
    configs = [
        config
        for role_teacher in teachers_by_role(method, suite_teacher)
        if (config := _teacher_config(role_teacher.method, role_teacher.suite_teacher)) is not None
    ]
    cards = {c["name"]: c.get("card", {}) for c in configs}
    card: Json = {
        "labels_used": any(c.get("labels_used") for c in cards.values()),
        "licence": "; ".join(f"{k}: {c.get('licence') or 'not stated'}" for k, c in cards.items()),
    }
    for key in ("pretraining", "source"):
        stated = [f"{name}: {c[key]}" for name, c in cards.items() if c.get(key)]
        if stated:
            card[key] = "; ".join(stated)
    return {"name": "+".join(c["name"] for c in configs), "teachers": configs, "card": card}


def _teacher_config(method: Json, suite_teacher: Json | None) -> Json | None:
    """Config of the teacher (which may be intermediate) of a method with one teacher."""
    assistant = assistant_config(method)
    if assistant is None:
        return suite_teacher
    upstream = teacher_config_for(method["teacher"]["method"], suite_teacher) or {}
    cards = [teacher.get("card", {}) for teacher in upstream.get("teachers", [upstream])]
    # An intermediate teacher has learnt from the training data of its own teachers as well.
    trained_on = dict.fromkeys(name for card in cards for name in card.get("trained_on") or [])
    if trained_on:
        assistant["card"] = {**assistant["card"], "trained_on": list(trained_on)}
    return assistant


# ---- checks when the plan is built ----


def check_roles(suite: Suite, method: Json, suite_teacher: Json | None) -> None:
    """Raises KdepError if the teachers of a method do not fit its objective, or are the same."""
    label = f"method {method['name']!r}"
    _check_readers(method, label)
    if method.get("teachers") is None:
        return
    teachers = teachers_by_role(method, suite_teacher)
    networks: dict[str, RoleTeacher] = {}
    for role_teacher in teachers:
        if role_teacher.config is None:
            continue  # `pairs.check_teacher_exists` reports it
        network = role_teacher.method.get("teacher") or without(
            role_teacher.config, DESCRIPTION_KEYS | {"name"}
        )
        earlier = networks.setdefault(canonical_json(network), role_teacher)
        if earlier is not role_teacher:
            raise KdepError(
                f"the teachers {earlier.role!r} and {role_teacher.role!r} of {label} are "
                f"the same network, {role_teacher.config['name']!r}",
                expected="another network for each role",
                fix="change `teachers` in the method",
            )
    _check_classes(suite, method, teachers, label)


def _check_readers(method: Json, label: str) -> None:
    """Raises KdepError if a teacher is not read, or if a part of the objective lacks a teacher."""
    objective, roles = method.get("objective"), list(method.get("teachers") or [])
    if method.get("teachers") is not None and method.get("teacher") is not None:
        raise KdepError(
            f"{label} has both `teacher` and `teachers`",
            fix="remove `teacher`, and add the intermediate teacher as a role in `teachers`",
        )
    try:
        parts_by_role = readers(objective, roles or [SINGLE_ROLE])
    except KdepError as e:
        fix = e.fix if roles else "add `teachers` to the method, or remove `teacher` from the part"
        raise KdepError(f"{label}: {e.problem}", expected=e.expected, fix=fix) from None
    reads_all = reads_every(objective)
    if reads_all and len(roles) < 2:
        raise KdepError(
            f"the objective of {label} reads several teachers ({reads_all[0].rpartition('.')[2]}), "
            f"but the method has {'one' if roles else 'no'} teacher in `teachers`",
            expected="two or more",
            fix='set for example teachers=dict(small="suite", large="<name of a teacher config>"), '
            'where "suite" is the teacher of the suite',
        )
    unread = [role for role in roles if not union(parts_by_role[role], "needs") & FROM_TEACHER]
    if not unread:
        return
    if len(unread) == len(roles):
        raise KdepError(
            f"{label} has `teachers`, but its objective reads no teacher",
            fix="remove `teachers`",
        )
    if len(roles) - len(unread) == 1 and unread == roles[1:]:
        raise KdepError(
            f"{label} has {len(roles)} teachers ({', '.join(roles)}), but its objective reads one",
            fix="name one in `teachers`, choose an objective for several teachers, or name the "
            "`teacher` of each part of a weighted sum",
        )
    raise KdepError(
        f"no part of the objective of {label} reads the teacher {unread[0]!r}",
        fix=f"remove {unread[0]!r} from `teachers`, or name it as `teacher` of a part",
    )


def _check_classes(suite: Suite, method: Json, teachers: Sequence[RoleTeacher], label: str) -> None:
    """Raises KdepError if one student head is trained on logits with different class counts."""
    counts: dict[str, Any] = {}
    for role_teacher in teachers:
        if any(
            "logits" in (attribute_from_source(config["type"], "needs") or ())
            and attribute_from_source(config["type"], "every_teacher")
            for config in role_teacher.method["objective"].values()
        ):
            n_classes = head_classes(suite, role_teacher.method, role_teacher.suite_teacher)
            if n_classes is not None:
                counts[role_teacher.role] = n_classes
    if len(set(counts.values())) > 1:
        raise KdepError(
            f"{label} compares one student head with the logits of all its teachers, which have "
            f"different numbers of classes ({', '.join(f'{r} {n}' for r, n in counts.items())})",
            fix="name only teachers with the same classes in `teachers`",
        )
