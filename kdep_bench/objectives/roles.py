"""Determines which teachers of a method each part of an objective reads. Imports no torch.

A method with several teachers gives each a name, its role. A class with `every_teacher = True`
reads all teachers. Every other class reads the first teacher, or the teacher named in its part of a
weighted sum: `parts=dict(maps=dict(objective=dict(type=...), teacher="large"))`. The outputs that a
teacher must have follow from the `needs` of the classes that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.registry import locate, type_path
from kdep_bench.signatures import class_value, resolve_alias

SINGLE_ROLE = "teacher"  # role of the teacher in a method with one teacher
PROXY_SUFFIX = "_proxy"  # suffix of the role of a short distillation from the teacher of a role

# Words of `needs` that a teacher, live or cached, supplies with every batch.
FROM_TEACHER = frozenset(
    {
        *("target", "pooled", "logits", "maps", "tokens", "probabilities"),
        *("classifier", "layer", "attention", "teacher_images"),
    }
)

Json = dict[str, Any]
Lookup = Callable[[str, str], Any]  # (dotted path of a class, attribute) -> its value, or None


def attribute_from_source(path: str, name: str) -> Any:
    """An attribute of a class, read from its source without importing it; used for planning."""
    return class_value(resolve_alias(path), name)


def attribute_of_class(path: str, name: str) -> Any:
    """An attribute of a class, which is imported; used by the pre-training stage."""
    return getattr(locate(path), name, None)


def readers(
    objective: Any, roles: Sequence[str], lookup: Lookup = attribute_from_source
) -> dict[str, list[Json]]:
    """{role: the configs inside `objective` whose class reads the teacher of that role}.

    Args:
        objective: config of the method's objective, or None.
        roles: roles of the method's teachers, in order.
        lookup: how class attributes are read.

    Raises:
        KdepError: a part has a `teacher` that is not a role of the method, or has a `teacher`
            although its class reads every teacher.
    """
    by_role: dict[str, list[Json]] = {role: [] for role in roles}
    for config, visible in _typed_configs(objective, tuple(roles)):
        path = type_path(config["type"])
        if lookup(path, "needs"):
            reads_all = lookup(path, "every_teacher")
            if reads_all and len(visible) == 1 < len(roles):
                raise KdepError(
                    f"a part of the objective has teacher={visible[0]!r}, but its class "
                    f"{path.rpartition('.')[2]} reads every teacher",
                    fix="remove `teacher` from that part",
                )
            read_roles = visible if reads_all else visible[:1]
            for role in read_roles:
                by_role[role].append(config)
    return by_role


def _typed_configs(
    value: Any, visible: tuple[str, ...] | None
) -> Iterator[tuple[Json, tuple[str, ...]]]:
    """Yields (config, the roles that it may read) for every config with a `type` inside `value`.

    `visible`: the roles of the method's teachers; None if the caller does not use them.
    """
    if isinstance(value, list | tuple):
        for item in value:
            yield from _typed_configs(item, visible)
    elif isinstance(value, Mapping):
        is_part = isinstance(value.get("objective"), Mapping)
        if is_part and value.get("teacher") is not None and visible is not None:
            if value["teacher"] not in visible:
                raise unknown_name("teacher role", value["teacher"], visible, place="a part")
            visible = (value["teacher"],)
        if "type" in value:
            yield dict(value), visible or ()
        for nested in value.values():
            yield from _typed_configs(nested, visible)


def reads_every(objective: Any, lookup: Lookup = attribute_from_source) -> list[str]:
    """Paths of the classes in an objective's config that read every teacher of the method."""
    paths = [type_path(config["type"]) for config, _ in _typed_configs(objective, None)]
    return [path for path in paths if lookup(path, "every_teacher")]


def combined_config(configs: Sequence[Json]) -> Json:
    """One dict that contains all `configs`, for functions that search nested configs."""
    return {str(k): config for k, config in enumerate(configs)}


def union(configs: Sequence[Json], name: str, lookup: Lookup = attribute_from_source) -> set[str]:
    """The union of a class attribute (`needs`, `stage_arguments`) over the classes of `configs`."""
    return {word for config in configs for word in (lookup(type_path(config["type"]), name) or ())}


def candidates(roles: Sequence[str]) -> list[str]:
    """The roles of teachers that are compared by a short distillation, without the proxies.

    Raises:
        KdepError: a candidate has no proxy, a proxy has no candidate, or there is one candidate.
    """
    compared = [role for role in roles if not role.endswith(PROXY_SUFFIX)]
    unpaired = [role for role in compared if role + PROXY_SUFFIX not in roles]
    unpaired += [
        r
        for r in roles
        if r.endswith(PROXY_SUFFIX) and r.removesuffix(PROXY_SUFFIX) not in compared
    ]
    if unpaired or len(compared) < 2:
        raise KdepError(
            f"a choice among teachers has the roles {', '.join(roles)}",
            expected=f"two or more candidates, and for each candidate `a` a role `a{PROXY_SUFFIX}`",
            fix=f"add the role that belongs to {unpaired[0]!r} to `teachers`"
            if unpaired
            else "add another candidate and its proxy to `teachers`",
        )
    return compared
