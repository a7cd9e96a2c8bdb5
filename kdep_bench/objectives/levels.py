"""Which maps an objective's config names. Imports no torch: the plan asks too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def levels_of(config: Any) -> set[str]:
    """Names of the teacher's maps that an objective reads: the values of its `levels`."""
    return {its for levels in _levels(config) for its in levels.values()}


def student_levels(config: Any) -> set[str]:
    """Names of the student's levels that an objective reads: the keys of its `levels`."""
    return {own for levels in _levels(config) for own in levels}


def level_pairs(config: Any) -> set[tuple[str, str]]:
    """(student level, teacher map) of every pair that an objective names."""
    return {pair for levels in _levels(config) for pair in levels.items()}


def _levels(config: Any) -> Iterator[Mapping[str, str]]:
    """Every `levels` of a config and its parts."""
    if isinstance(config, Mapping):
        if isinstance(config.get("levels"), Mapping):
            yield config["levels"]
        for value in config.values():
            yield from _levels(value)
