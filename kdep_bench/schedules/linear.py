"""A schedule from one value to another along a straight line."""

from __future__ import annotations

from kdep_bench.schedules.base import Schedule


class Linear(Schedule):
    """start + (end - start) x, with x the elapsed fraction of the span."""

    def __init__(
        self, start: float, end: float, span: float | None = None, epochs: float | None = None
    ) -> None:
        super().__init__(span, epochs)
        self.start, self.end = float(start), float(end)

    def value_at(self, fraction: float) -> float:
        return self.start + (self.end - self.start) * fraction
