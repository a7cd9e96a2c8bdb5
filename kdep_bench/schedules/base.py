"""A number that changes over training: a pure function of (step, steps). Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdep_bench.errors import KdepError
from kdep_bench.registry import type_path


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
                    f"a schedule has span={span}",
                    expected="a positive number of epochs",
                    fix="correct `span` in the schedule of the method's loss weight",
                )
            if epochs is not None:
                check_span(span, epochs, type_path(type(self)))
        self.span, self.epochs = span, epochs

    def done(self, step: int, steps: int) -> float:
        """Fraction of the schedule that is done at step `step` (from 0) of `steps`, 0 to 1."""
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
        """The value when the fraction `x` in [0, 1] of the schedule is done."""

    def __call__(self, step: int, steps: int) -> float:
        """The value in optimiser step `step`, counted from 0, of a run of `steps`."""
        return self.at(self.done(step, steps))


def check_span(span: float, epochs: float, who: str) -> None:
    """KdepError when a schedule of `span` epochs does not fit into a run of `epochs`."""
    if span > epochs:
        raise KdepError(
            f"{who} has a schedule of {span:g} epochs, but trains for {epochs:g}",
            fix="shorten `span`, or leave it out: the schedule then covers the whole training",
        )
