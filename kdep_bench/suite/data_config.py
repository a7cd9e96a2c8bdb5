"""Checks of a data config by the module of its `type`, without running anything.

A module whose function is the `type` of a data config may define
`KEYS`, a collection of its keys, or a dict whose values are dicts of the names one
level below; and `check_plan(data, tasks)`, which raises KdepError where config and tasks disagree.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

from kdep_bench.errors import KdepError, unknown_name

Json = dict[str, Any]
# Keys that any data config may have.
COMMON = ("about", "card", "labels", "name", "pool_classes", "scores_note", "source", "type")


def data_module(data: Json) -> ModuleType | None:
    """The module of the data's `type`; None where there is none, or it cannot be imported."""
    name = re.split(r"[.:]\w+$", str(data.get("type") or ""))[0]
    try:
        return importlib.import_module(name) if name else None
    except Exception:  # a user's module: the stage that calls it reports its faults
        return None


def data_keys(data: Json) -> Json | None:
    """Keys that the data's own `prepare` accepts, as nested dicts; None if it lists none."""
    keys = getattr(data_module(data), "KEYS", None)
    if keys is None:
        return None
    nested = dict(keys) if isinstance(keys, dict) else dict.fromkeys(keys)
    return {**dict.fromkeys(COMMON), **nested}


def with_keys(base: Json, keys: Json) -> Json:
    """`base` with None at each key of `keys` that it lacks, one level down as well."""
    out = {**dict.fromkeys(keys), **base}
    for key, inner in keys.items():
        if isinstance(inner, dict) and isinstance(base.get(key), dict):
            out[key] = {**dict.fromkeys(inner), **base[key]}
    return out


def without_unused(merged_value: Json, base: Json, overrides: Json) -> Json:
    """`merged_value` without the keys that neither `base` nor `overrides` has, dict by dict."""
    out = {}
    for key, value in merged_value.items():
        if key in base or key in overrides:
            parts = [d[key] if isinstance(d.get(key), dict) else {} for d in (base, overrides)]
            plain = isinstance(value, dict) and isinstance(base.get(key), dict)
            out[key] = without_unused(value, *parts) if plain else value
    return out


def check_keys(data: Json) -> None:
    """KdepError for a key that the data's `type` does not know."""
    keys = data_keys(data)
    if keys is not None and (unknown := sorted(set(data) - set(keys))):
        raise unknown_name(f"key of the data {data['name']!r}", unknown[0], keys)


def check_inline(data: Json) -> None:
    """KdepError for data that a suite holds inline without a name."""
    if "name" not in data:
        raise KdepError(
            "the inline data config of the suite has no `name`",
            fix="add name='...'; directories and tables show it",
        )


def check_data_plan(data: Json, tasks: list[Json]) -> None:
    """Calls `check_plan` of the data's module, which raises KdepError for what it refuses."""
    check = getattr(data_module(data), "check_plan", None)
    if check is not None:
        check(data, tasks)
