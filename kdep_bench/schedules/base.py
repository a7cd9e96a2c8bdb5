"""Base class of schedules, numbers that depend on the step of a run. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kdep_bench.errors import KdepError
from kdep_bench.registry import type_path


class Schedule(ABC):
    """A number that changes over training. Each subclass has its own file.

    Args:
        span: duration of the schedule in epochs, after which it stays at its last value; None for
            the whole run.
        epochs: epochs of the whole run, passed by `as_schedule`; needed with a `span` only.

    Raises:
        KdepError: a span that is not positive or longer than the run.
    """

    def __init__(self, span: float | None = None, epochs: float | None = None) -> None:
        if span is not None:
            if not span > 0:
                raise KdepError(
                    f"a schedule has span={span}",
                    expected="a positive number of epochs",
                    fix="correct `span` in this schedule of the method's objective",
                )
            if epochs is not None:
                check_span(span, epochs, f"the schedule {type_path(type(self))}")
        self.span, self.epochs = span, epochs

    def elapsed_fraction(self, step: int, steps: int) -> float:
        """Fraction of the schedule, 0 to 1, that is over at step `step` (from 0) of `steps`."""
        fraction_of_run = 1.0
        if self.span is not None:
            if self.epochs is None:
                raise KdepError(
                    f"the schedule {type_path(type(self))} has a span, but the number of epochs "
                    "was not passed",
                    fix="build it with as_schedule(config, epochs)",
                )
            fraction_of_run = self.span / self.epochs
        return min(1.0, step / max(1.0, steps * fraction_of_run))

    @abstractmethod
    def value_at(self, fraction: float) -> float:
        """The value after a fraction, 0 to 1, of the schedule."""

    def __call__(self, step: int, steps: int) -> float:
        """The value in optimiser step `step`, counted from 0, of a run of `steps`."""
        return self.value_at(self.elapsed_fraction(step, steps))


def check_span(span: float, epochs: float, subject: str) -> None:
    """Raises KdepError if a schedule of `span` epochs is longer than a run of `epochs`.

    `subject`: what the error calls the schedule.
    """
    if span > epochs:
        raise KdepError(
            f"{subject} lasts {span:g} epochs (`span`), but the training has {epochs:g}",
            fix="shorten `span`, or leave it out: the schedule then covers the whole training",
        )
