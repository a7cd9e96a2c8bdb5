"""Assigns the teachers of a method with several to the parts of its objective. Imports no torch.

A method with several teachers names each by a role. A class with `every_teacher = True` reads all
of them; any other reads the first, or the one that its part of a weighted sum names:
`parts=dict(maps=dict(objective=dict(type=...), teacher="large"))`. Nothing else is declared twice:
what a role's teacher must give follows from the `needs` of the classes that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.registry import locate, type_path
from kdep_bench.signatures import class_value, resolve_alias

ONLY = "teacher"  # role of the teacher of a method that has one

# Words of `needs` that name an output of a teacher.
FROM_TEACHER = frozenset(
    {"target", "pooled", "logits", "maps", "tokens", "probabilities", "classifier", "layer"}
)

Json = dict[str, Any]
Lookup = Callable[[str, str], Any]


def from_source(path: str, name: str) -> Any:
    """An attribute of a class, read from its source: the lookup of the plan."""
    return class_value(resolve_alias(path), name)


def from_class(path: str, name: str) -> Any:
    """An attribute of a class that is imported: the lookup of the pre-training stage."""
    return getattr(locate(path), name, None)


def readers(
    objective: Any, roles: Sequence[str], lookup: Lookup = from_source
) -> dict[str, list[Json]]:
    """Role -> the configs, inside an objective's, of the classes that read that role's teacher.

    Args:
        objective: config of the method's objective; None reads nothing.
        roles: of the method's teachers, the first one first.
        lookup: (dotted path, name) -> value of a class attribute, None where it has none.

    Raises:
        KdepError: a part that names no role of the method, or one for a class that reads several.
    """
    by_role: dict[str, list[Json]] = {role: [] for role in roles}
    for config, visible in _typed(objective, tuple(roles)):
        path = type_path(config["type"])
        if lookup(path, "needs"):
            every = lookup(path, "every_teacher")
            if every and len(visible) == 1 < len(roles):
                raise KdepError(
                    f"objective part that names the teacher {visible[0]!r} and has "
                    f"{path.rpartition('.')[2]}, which reads several teachers",
                    fix="remove `teacher` from that part",
                )
            read_roles = visible if every else visible[:1]
            for role in read_roles:
                by_role[role].append(config)
    return by_role


def _typed(value: Any, visible: tuple[str, ...] | None) -> Iterator[tuple[Json, tuple[str, ...]]]:
    """Every config with a `type`, with the roles of the teachers that its place may read.

    `seen` None: whatever the roles are.
    """
    if isinstance(value, list | tuple):
        for item in value:
            yield from _typed(item, visible)
    elif isinstance(value, Mapping):
        names_one = isinstance(value.get("objective"), Mapping) and value.get("teacher") is not None
        if names_one and visible is not None:
            if value["teacher"] not in visible:
                raise unknown_name("teacher role of a part", value["teacher"], visible)
            visible = (value["teacher"],)
        if "type" in value:
            yield dict(value), visible or ()
        for nested in value.values():
            yield from _typed(nested, visible)


def reads_every(objective: Any, lookup: Lookup = from_source) -> list[str]:
    """Paths of the classes in an objective's config that read every teacher of the method."""
    paths = [type_path(config["type"]) for config, _ in _typed(objective, None)]
    return [path for path in paths if lookup(path, "every_teacher")]


def together(configs: Sequence[Json]) -> Json:
    """All of `configs` in one dict, for functions that search nested configs."""
    return {str(k): config for k, config in enumerate(configs)}


def union(configs: Sequence[Json], name: str, lookup: Lookup = from_source) -> set[str]:
    """The union of a class attribute (`needs`, `requires`) over the classes of `configs`."""
    return {word for config in configs for word in (lookup(type_path(config["type"]), name) or ())}
