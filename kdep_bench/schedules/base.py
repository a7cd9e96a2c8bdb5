"""A number that changes over training: a pure function of (step, steps). Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.registry import build, type_path

LOOKS = 200  # at how many places of a run its weights are looked at


class Schedule(ABC):
    """One schedule, one file.

    Args:
        span: epochs the schedule takes; it stays at its last value after them. None: the whole
            run. A span longer than the run is refused when the plan is built, because a schedule
            that never arrives is another schedule.
        epochs: epochs of the whole run, given by `as_schedule`; only needed with a `span`.
    """

    def __init__(self, span: float | None = None, epochs: float | None = None) -> None:
        if span is not None:
            if not span > 0:
                raise KdepError(
                    f"a schedule has span={span}", expected="a positive number of epochs"
                )
            if epochs is not None:
                check_span(span, epochs, type_path(type(self)))
        self.span, self.epochs = span, epochs

    def done(self, step: int, steps: int) -> float:
        """Share of the schedule that lies behind step `step` (from 0) of `steps`, 0 to 1."""
        share = 1.0
        if self.span is not None:
            if self.epochs is None:
                raise KdepError(
                    f"the schedule {type_path(type(self))} has a span, but the number of epochs "
                    "was not passed",
                    fix="build it with as_schedule(config, epochs)",
                )
            share = self.span / self.epochs
        return min(1.0, step / max(1.0, steps * share))

    @abstractmethod
    def at(self, x: float) -> float:
        """The value when the share `x` in [0, 1] of the schedule is done."""

    def __call__(self, step: int, steps: int) -> float:
        """The value in optimiser step `step`, counted from 0, of a run of `steps`."""
        return self.at(self.done(step, steps))


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
            )
        return made
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KdepError(
            f"the loss weight {value!r} is not a number",
            expected="a number, or dict(type=<schedule>, ...)",
        )
    return Constant(value)


def check_span(span: float, epochs: float, who: str) -> None:
    """KdepError when a schedule of `span` epochs does not fit into a run of `epochs`."""
    if span > epochs:
        raise KdepError(
            f"{who} has a schedule of {span:g} epochs, but trains for {epochs:g}",
            fix="shorten `span`, or leave it out: the schedule then covers the whole training",
        )


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
