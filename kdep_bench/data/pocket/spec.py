"""Checks the config of the pocket data; imports no image library, so that planning can use it."""

from __future__ import annotations

from typing import Any

from kdep_bench.data.pocket import DEFAULTS
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults

_SOURCES = ("auto", "debian+pip", "pip-only")


def checked_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """DEFAULTS updated with `spec`; raises KdepError for unknown keys and invalid values."""
    faults = Faults()
    for key in spec:
        if key not in DEFAULTS and key != "type":
            faults.add(unknown_name("key", key, DEFAULTS, place="the pocket data"))
    full = {k: spec.get(k, v) for k, v in DEFAULTS.items()}
    for key in ("classify", "scenes"):
        if not isinstance(full[key], dict) or set(full[key]) != {"train", "val", "test"}:
            expected = "dict(train=..., val=..., test=...) with numbers of images"
            faults.add(_wrong_value(key, full[key], expected))
            full[key] = {}
    integers = {key: full[key] for key in ("pool_composites", "pool_crops", "seed")}
    for part in ("classify", "scenes"):
        integers |= {f"{part}.{split}": count for split, count in full[part].items()}
    for key, value in integers.items():
        if type(value) is not int or value < 0:
            faults.add(_wrong_value(key, value, "an integer, 0 or more"))
    if not _is_side(full["px"]):
        faults.add(_wrong_value("px", full["px"], "an integer from 32 to 512"))
    size = full["scene_size"]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_is_side, size)):
        expected = "[width, height], two integers from 32 to 512"
        faults.add(_wrong_value("scene_size", size, expected))
    if full["source"] not in _SOURCES:
        faults.add(unknown_name("source", str(full["source"]), _SOURCES, place="the pocket data"))
    faults.raise_any("the pocket data")
    full["scene_size"] = list(full["scene_size"])
    return full


def _wrong_value(key: str, value: Any, expected: str) -> KdepError:
    return KdepError(
        f"the pocket data has {key} = {value!r:.80}",
        expected=expected,
        fix=f"correct `{key}` in the data config",
    )


def _is_side(value: Any) -> bool:
    """Whether a value can be a side of an image, in pixels."""
    return type(value) is int and 32 <= value <= 512
