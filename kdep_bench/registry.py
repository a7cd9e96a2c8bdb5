"""Imports and builds the class that a config's `type=` names by its dotted path.

A new method, teacher or task needs no registration: it is found by its import path.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from kdep_bench.errors import KdepError


def type_path(kind: Any) -> str:
    """The dotted path of a `type=` value: a string, a class, or a class imported by a config."""
    if isinstance(kind, str):
        return kind
    if hasattr(kind, "dump_str"):  # mmengine's object for a lazily imported name
        return str(kind.dump_str)
    return f"{kind.__module__}.{kind.__qualname__}"


def import_fix(error: BaseException, otherwise: str) -> str:
    """The fix for a failed import: `otherwise`, unless the cause is a lack of memory.

    The dynamic loader reports a lack of memory as an ImportError ("failed to map segment from
    shared object", "cannot allocate memory"), which some packages put into an error of their own.
    """
    text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}".lower()
    if "failed to map segment" in text or "cannot allocate memory" in text:
        return "the memory ran out: run fewer stages at once (--jobs 1), or raise the memory limit"
    return otherwise


def locate(kind: Any) -> Any:
    """Imports the object that a `type=` value names.

    Raises:
        KdepError: it cannot be imported.
    """
    path = type_path(kind)
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise KdepError(
            f"the type {path!r} cannot be imported ({e})",
            expected="the dotted path of a class",
            fix=import_fix(e, "correct `type=` in the config"),
        ) from e


def build(config: Mapping[str, Any], **extra_args: Any) -> Any:
    """Calls the class in `config['type']` with the other keys of the config and `extra_args`.

    Raises:
        KdepError: the class cannot be imported, or does not accept the arguments.
    """
    args = {k: v for k, v in config.items() if k != "type"}
    try:
        return locate(config["type"])(**args, **extra_args)
    except TypeError as e:
        raise KdepError(
            f"{type_path(config['type'])} does not accept the arguments {sorted(args)} ({e})",
            fix="compare the config with the class's docstring",
        ) from e
