"""A schedule from one value to another along half a cosine."""

from __future__ import annotations

import math

from kdep_bench.schedules.base import Schedule


class Cosine(Schedule):
    """end + (start - end) (1 + cos(pi x)) / 2, with x the elapsed fraction of the span."""

    def __init__(
        self, start: float, end: float, span: float | None = None, epochs: float | None = None
    ) -> None:
        super().__init__(span, epochs)
        self.start, self.end = float(start), float(end)

    def value_at(self, fraction: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * fraction)) / 2
