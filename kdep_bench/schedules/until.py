"""A constant value for a fraction of the run, then 0."""

from __future__ import annotations

from kdep_bench.errors import KdepError
from kdep_bench.schedules.base import Schedule


class Until(Schedule):
    """`value` for the first fraction `stop` of the run, then 0.

    Early-stopped distillation (Cho and Hariharan, ICCV 2019) uses it for the weight of the
    teacher's term, which becomes 0 at epoch e0 of E: stop = e0 / E.
    """

    def __init__(self, stop: float, value: float = 1.0, epochs: float | None = None) -> None:
        super().__init__(None, epochs)
        if not 0 <= stop <= 1:
            raise KdepError(
                f"a schedule has stop={stop}",
                expected="a fraction of the training, 0 to 1",
                fix="correct `stop` in this schedule of the method's objective",
            )
        self.stop, self.value = float(stop), float(value)

    def value_at(self, fraction: float) -> float:
        return self.value if fraction < self.stop else 0.0
