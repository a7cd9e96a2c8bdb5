"""Builds schedules from configs, and checks them at planning time. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.registry import build, type_path
from kdep_bench.schedules.base import Schedule

N_CHECKED_STEPS = 200  # steps of a run, evenly spaced, at which loss weights are checked


def as_schedule(value: Any, epochs: float | None = None, setting: str = "weight") -> Schedule:
    """The Schedule of a number, of a schedule's config dict(type=..., ...), or of a Schedule.

    `setting`: name of the objective's argument that has this value, for errors.

    Raises:
        KdepError: any other value, or a type that is not a Schedule.
    """
    from kdep_bench.schedules.constant import Constant

    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        schedule = build(value, epochs=epochs)
        if not isinstance(schedule, Schedule):
            raise KdepError(
                f"{type_path(value['type'])} is not a Schedule",
                expected="a class of kdep_bench.schedules",
                fix=f"correct `type` of `{setting}` in the method's objective",
            )
        return schedule
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KdepError(
            f"the objective has {setting} = {value!r:.60}",
            expected="a number, or dict(type=<schedule>, ...)",
            fix=f"correct `{setting}` in the method's objective",
        )
    return Constant(value)


def spans(config: Any) -> Iterator[float]:
    """Yields every `span`, in epochs, inside a nested config."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "span" and isinstance(value, int | float) and not isinstance(value, bool):
                yield float(value)
            else:
                yield from spans(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from spans(value)


def check_some_weight_nonzero(objective: Any, epochs: float, subject: str) -> None:
    """Raises KdepError if all weights of a WeightedSum are 0 at some time of a run.

    At such a time, only weight decay would change the student.

    Args:
        objective: config of an objective; it is checked only if it is a WeightedSum.
        epochs: epochs of the run.
        subject: name of the method, for the error.
    """
    parts = objective.get("parts") if isinstance(objective, Mapping) else None
    if not isinstance(parts, Mapping) or not parts:
        return
    weights = [as_schedule(part.get("weight", 1.0), epochs) for part in parts.values()]
    for step in range(N_CHECKED_STEPS):
        if not any(weight(step, N_CHECKED_STEPS) for weight in weights):
            raise KdepError(
                f"all loss weights of {subject} are 0 after {step / N_CHECKED_STEPS:.0%} of the "
                "training",
                fix="keep at least one weight above 0: let the schedule end later, or add a loss "
                "term",
            )
