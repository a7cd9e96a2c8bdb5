"""Spec and inputs of a pre-training with several teachers, restricted to one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.objectives.roles import attribute_of_class, combined_config, readers, union


def restrict_to_role(
    role: str, spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """(spec, inputs) of the stage as if the method had only the teacher of `role`.

    The objective consists of the parts that read this teacher. The inputs "<role>.cache" and
    "<role>.align" are renamed to "cache" and "align".
    """
    method = spec["method"]
    configs = readers(method["objective"], spec["roles"], attribute_of_class)[role]
    role_spec = {k: v for k, v in spec.items() if k not in ("roles", "teachers")}
    role_spec["method"] = {**method, "objective": combined_config(configs)}
    live_teacher = spec.get("teachers", {}).get(role)
    if live_teacher is not None:
        role_spec["teacher"] = live_teacher
    common = {k: v for k, v in inputs.items() if "." not in k}
    role_inputs = {k.partition(".")[2]: v for k, v in inputs.items() if k.partition(".")[0] == role}
    return role_spec, {**common, **role_inputs}


def words_of_role(role: str, spec: Mapping[str, Any], name: str) -> set[str]:
    """The union of `needs` or `stage_arguments` over the classes that read the teacher of `role`.

    `name`: "needs" or "stage_arguments".
    """
    configs = readers(spec["method"]["objective"], spec["roles"], attribute_of_class)[role]
    return union(configs, name, attribute_of_class)
