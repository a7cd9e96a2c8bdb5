"""Schedules from configs, and their checks at planning time. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.registry import build, type_path
from kdep_bench.schedules.base import Schedule

LOOKS = 200  # at how many places of a run its weights are looked at


def as_schedule(value: Any, epochs: float | None = None) -> Schedule:
    """A number, or the config `dict(type=..., ...)` of a schedule, as a Schedule."""
    from kdep_bench.schedules.constant import Constant

    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        made = build(value, epochs=epochs)
        if not isinstance(made, Schedule):
            raise KdepError(
                f"{type_path(value['type'])} is not a Schedule",
                expected="a class of kdep_bench.schedules",
                fix="correct `type` of the loss weight in the method's objective",
            )
        return made
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KdepError(
            f"the loss weight {value!r} is not a number",
            expected="a number, or dict(type=<schedule>, ...)",
            fix="correct the weight in the method's objective",
        )
    return Constant(value)


def spans(config: Any) -> Iterator[float]:
    """Every `span` in a nested config; what the plan checks before anything runs."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "span" and isinstance(value, int | float) and not isinstance(value, bool):
                yield float(value)
            else:
                yield from spans(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from spans(value)


def check_heard(objective: Any, epochs: float, who: str) -> None:
    """KdepError when all weights of a sum are zero at some time of a run of `epochs`.

    A student that has nothing left to learn from is not a shorter run of the same method: it is
    weight decay. Early-stopped distillation needs another term, such as the labels'.
    """
    parts = objective.get("parts") if isinstance(objective, Mapping) else None
    if not isinstance(parts, Mapping) or not parts:
        return
    weights = [as_schedule(part.get("weight", 1.0), epochs) for part in parts.values()]
    for k in range(LOOKS):
        if not any(w(k, LOOKS) for w in weights):
            raise KdepError(
                f"all loss weights of {who} are 0 after {k / LOOKS:.0%} of the training",
                fix="keep at least one weight above 0: let the schedule end later, or add a loss "
                "term",
            )
