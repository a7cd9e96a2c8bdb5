"""The spec and the inputs of a pre-training with several teachers, as one of them is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.objectives.roles import from_class, readers, together, union


def of_role(
    role: str, spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """(spec, inputs) as they would be with the teacher of `role` alone.

    The objective is what reads that teacher; the inputs "<role>.cache" and "<role>.align" are
    "cache" and "align".
    """
    method = spec["method"]
    reading = readers(method["objective"], spec["roles"], from_class)[role]
    role_spec = {k: v for k, v in spec.items() if k not in ("roles", "teachers")}
    role_spec["method"] = {**method, "objective": together(reading)}
    live_teacher = spec.get("teachers", {}).get(role)
    if live_teacher is not None:
        role_spec["teacher"] = live_teacher
    common = {k: v for k, v in inputs.items() if "." not in k}
    role_inputs = {k.partition(".")[2]: v for k, v in inputs.items() if k.partition(".")[0] == role}
    return role_spec, {**common, **role_inputs}


def words_of_role(role: str, spec: Mapping[str, Any], name: str) -> set[str]:
    """The `needs` or `requires` of the classes that read the teacher of `role`."""
    reading = readers(spec["method"]["objective"], spec["roles"], from_class)[role]
    return union(reading, name, from_class)
