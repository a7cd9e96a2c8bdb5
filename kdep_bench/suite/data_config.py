"""Checks of a data config with the help of the module that prepares the data.

The `type` of a data config names a function. Its module may define

- `KEYS`: the keys that the config may have, as a collection, or as a dict whose values are dicts
  with the keys one level below;
- `check_plan(data, tasks)`: raises KdepError if the config and the tasks do not fit together.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

from kdep_bench.data.pocket.spec import checked_spec
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.suite import key_places
from kdep_bench.suite.known_data import POCKET, module_name, prepared_spec
from kdep_bench.suite.schema import DATA_KEYS

Json = dict[str, Any]


def data_module(data: Json) -> ModuleType | None:
    """The module of the data's `type`; None without a `type`, or if it cannot be imported."""
    name = re.split(r"[.:]\w+$", str(data.get("type") or ""))[0]
    try:
        return importlib.import_module(name) if name else None
    except Exception:  # stage `prepare` reports the faults of a user's module
        return None


def data_keys(data: Json) -> Json | None:
    """Keys that the data config may have, as nested dicts; None if its module has no `KEYS`."""
    keys = getattr(data_module(data), "KEYS", None)
    if keys is None:
        return None
    nested = dict(keys) if isinstance(keys, dict) else dict.fromkeys(keys)
    return {**dict.fromkeys(DATA_KEYS), **nested}


def with_keys(base: Json, keys: Json) -> Json:
    """`base` with the value None for each missing key of `keys`, also one level below.

    An override may then set these keys, see `config.merged`.
    """
    out = {**dict.fromkeys(keys), **base}
    for key, inner in keys.items():
        if isinstance(inner, dict) and isinstance(base.get(key), dict):
            out[key] = {**dict.fromkeys(inner), **base[key]}
    return out


def without_unused(merged_value: Json, base: Json, overrides: Json) -> Json:
    """`merged_value` without the keys that only `with_keys` added, recursively.

    They are neither in `base` nor in `overrides`.
    """
    out = {}
    for key, value in merged_value.items():
        if key in base or key in overrides:
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                inner_overrides = overrides.get(key)
                value = without_unused(
                    value, base[key], inner_overrides if isinstance(inner_overrides, dict) else {}
                )
            out[key] = value
    return out


def check_keys(data: Json) -> None:
    """Raises KdepError for keys that the data's `type` does not accept.

    Also for a value of `labels` or `pool_labels` that is not True or False.
    """
    keys = data_keys(data)
    where, faults = f"the data {data['name']!r}", Faults()
    for key in [] if keys is None else sorted(set(data) - set(keys)):
        otherwise = key_places.fix(key)
        faults.add(unknown_name("key", key, keys or (), place=where, otherwise=otherwise))
    for key in ("labels", "pool_labels"):
        if key in data and not isinstance(data[key], bool):
            problem = f"{where} has {key} = {data[key]!r:.60}"
            faults.add(KdepError(problem, expected="True or False", fix=f"correct `{key}`"))
    faults.raise_any(where)


def check_inline(data: Json) -> None:
    """Raises KdepError for a data config that is written in a suite and has no name."""
    if "name" not in data:
        raise KdepError(
            "the inline data config of the suite has no `name`",
            fix="add name='...'; directories and tables show it",
        )


def check_data_plan(data: Json, tasks: list[Json]) -> None:
    """Calls `check_plan` of the data's module, if it has this function.

    Raises:
        KdepError: a value of the pocket data is wrong, or the config and the tasks do not fit
            together.
    """
    if module_name(data) == POCKET:
        checked_spec(prepared_spec(data))
    check = getattr(data_module(data), "check_plan", None)
    if check is not None:
        check(data, tasks)
