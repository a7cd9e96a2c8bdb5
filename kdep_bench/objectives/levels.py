"""Which maps of the teacher an objective's config names. Imports no torch: the plan asks too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def levels_of(config: Any) -> set[str]:
    """Names of the teacher's maps that an objective reads: the values of its `levels`."""
    if isinstance(config, Mapping):
        own = config.get("levels")
        found = set(own.values()) if isinstance(own, Mapping) else set()
        return found.union(*(levels_of(v) for v in config.values()))
    return set()
