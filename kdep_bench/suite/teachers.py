"""The teachers of a method by role: which networks, and what the method reads of each.

`teachers=dict(small="suite", large="efficientnet_lite2")` in a method's config. A role's value is
"suite", the name of a config in configs/teachers (or dict(base=...)), or dict(student=, method=)
for an intermediate teacher, as in the key `teacher` of a method. A class that reads one teacher
reads the first role's. A method without `teachers` has one teacher, with the role "".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.objectives.roles import (
    FROM_TEACHER,
    ONLY,
    from_source,
    readers,
    reads_every,
    together,
    union,
)
from kdep_bench.suite.methods import PROSE, assistant_of, head_classes, without
from kdep_bench.suite.schema import Json, Suite, uses_teacher

SUITE = "suite"  # value of a role: the suite's teacher


@dataclass(frozen=True)
class RoleTeacher:
    """One teacher of a method.

    Attributes:
        role: its name in the method; "" for the teacher of a method that has one.
        method: the method as it would be with this teacher alone: `needs`, `objective`, `align` and
            `teacher` are those of the role.
        suite_teacher: the config that takes the place of the suite's teacher.
    """

    role: str
    method: Json
    suite_teacher: Json | None

    @property
    def config(self) -> Json | None:
        """Teacher config of the role; None where the suite has no teacher."""
        return assistant_of(self.method) or self.suite_teacher

    def key(self, kind: str) -> str:
        """The name of an input or a chain entry of this kind: 'cache', or 'large.cache'."""
        return f"{self.role}.{kind}" if self.role else kind


def teachers_by_role(method: Json, suite_teacher: Json | None) -> list[RoleTeacher]:
    """Every teacher of a method that reads one, the first role first; [] for one that reads none.

    Raises:
        KdepError: a part of the objective that names no role of the method.
    """
    if not uses_teacher(method):
        return []
    if method.get("teachers") is None:
        return [RoleTeacher("", method, suite_teacher)]
    roles = list(method["teachers"])
    reading = readers(method.get("objective"), roles)
    return [_role(method, role, reading[role], suite_teacher) for role in roles]


def _role(
    method: Json, role: str, configs: Sequence[Json], suite_teacher: Json | None
) -> RoleTeacher:
    reference = method["teachers"][role]
    needs = union(configs, "needs")
    single = {
        **without(method, {"teachers", "teacher"}),
        "needs": sorted({"pooled" if n == "target" else n for n in needs}),
        "objective": together(configs),
        "align": method.get("align") if "target" in needs else None,
    }
    if reference == SUITE:
        return RoleTeacher(role, single, suite_teacher)
    if "type" in reference:
        return RoleTeacher(role, single, reference)
    return RoleTeacher(role, {**single, "teacher": reference}, suite_teacher)


def teacher_config_for(method: Json, suite_teacher: Json | None) -> Json | None:
    """The teacher of a method's records: its config, None without one.

    Of several teachers: `name` joins their names, `teachers` holds the configs, and `card` says of
    all of them what model cards and notes state.
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
    """Config of the teacher of a method with one, which may be an intermediate teacher."""
    assistant = assistant_of(method)
    if assistant is None:
        return suite_teacher
    upstream = teacher_config_for(method["teacher"]["method"], suite_teacher) or {}
    cards = [teacher.get("card", {}) for teacher in upstream.get("teachers", [upstream])]
    # Data of its teachers reached it through their features.
    trained_on = dict.fromkeys(name for card in cards for name in card.get("trained_on") or [])
    if trained_on:
        assistant["card"] = {**assistant["card"], "trained_on": list(trained_on)}
    return assistant


# ---- checks when the plan is built ----


def check_roles(suite: Suite, method: Json, suite_teacher: Json | None) -> None:
    """Refuses roles that do not fit the method's objective: KdepError."""
    label = f"method {method['name']!r}"
    _check_readers(method, label)
    if method.get("teachers") is None:
        return
    teachers = teachers_by_role(method, suite_teacher)
    networks: dict[str, RoleTeacher] = {}
    for role_teacher in teachers:
        if role_teacher.config is None:
            continue  # refused with the rules of a teacher
        network = role_teacher.method.get("teacher") or without(
            role_teacher.config, PROSE | {"name"}
        )
        same_network = networks.setdefault(canonical_json(network), role_teacher)
        if same_network is not role_teacher:
            raise KdepError(
                f"the teachers {same_network.role!r} and {role_teacher.role!r} of {label} are "
                f"the same network, {role_teacher.config['name']!r}",
                expected="another network for each role",
                fix="change `teachers` in the method",
            )
    _check_classes(suite, method, teachers, label)


def _check_readers(method: Json, label: str) -> None:
    """Every role is read, and every reader has its teachers."""
    objective, roles = method.get("objective"), list(method.get("teachers") or [])
    if method.get("teachers") is not None and method.get("teacher") is not None:
        raise KdepError(
            f"{label} has both `teacher` and `teachers`",
            fix="keep `teachers` alone, with the intermediate teacher as one of its roles",
        )
    try:
        reading = readers(objective, roles or [ONLY])
    except KdepError as e:
        fix = e.fix if roles else "add `teachers` to the method, or remove `teacher` from the part"
        raise KdepError(f"{label} has an {e.problem}", expected=e.expected, fix=fix) from None
    reads_all = reads_every(objective)
    if reads_all and len(roles) < 2:
        raise KdepError(
            f"the objective of {label} reads several teachers ({reads_all[0].rpartition('.')[2]}), "
            f"but the method has {'one' if roles else 'no'} teacher in `teachers`",
            expected="two or more",
            fix='set for example teachers=dict(small="suite", large="<name of a teacher config>"); '
            '"suite" is the teacher of the suite',
        )
    unread = [role for role in roles if not union(reading[role], "needs") & FROM_TEACHER]
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
    """Logits of several teachers, compared with one student head, have the same classes."""
    counts: dict[str, Any] = {}
    for role_teacher in teachers:
        if any(
            "logits" in (from_source(config["type"], "needs") or ())
            and from_source(config["type"], "every_teacher")
            for config in role_teacher.method["objective"].values()
        ):
            number = head_classes(suite, role_teacher.method, role_teacher.suite_teacher)
            if number is not None:
                counts[role_teacher.role] = number
    if len(set(counts.values())) > 1:
        raise KdepError(
            f"{label} compares one student head with the logits of all its teachers, which have "
            f"different numbers of classes ({', '.join(f'{r} {n}' for r, n in counts.items())})",
            fix="name only teachers with the same classes in `teachers`",
        )
