"""A constant value."""

from __future__ import annotations

from kdep_bench.schedules.base import Schedule


class Constant(Schedule):
    """`value` in every step."""

    def __init__(self, value: float, epochs: float | None = None) -> None:
        super().__init__(None, epochs)
        self.value = float(value)

    def value_at(self, fraction: float) -> float:
        return self.value
