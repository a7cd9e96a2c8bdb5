"""A linear ramp over a fraction of the run, then a constant."""

from __future__ import annotations

from kdep_bench.errors import KdepError
from kdep_bench.schedules.base import Schedule


class Ramp(Schedule):
    """Linear from `start` to `end` over the first fraction `over` of the run, then `end`.

    `epochs`: as in `Schedule`. For example, Continuation-KD's
    psi = min(e / 150, 1) in 200 epochs is Ramp(0, 1, over=0.75).
    """

    def __init__(
        self, start: float, end: float, over: float = 1.0, epochs: float | None = None
    ) -> None:
        super().__init__(None, epochs)
        if not 0 < over <= 1:
            raise KdepError(
                f"the schedule Ramp has over={over}",
                expected="a fraction of the training, above 0 and at most 1",
                fix="correct `over` in this schedule of the method's objective",
            )
        self.start, self.end, self.over = float(start), float(end), float(over)

    def value_at(self, fraction: float) -> float:
        return self.start + (self.end - self.start) * min(1.0, fraction / self.over)
