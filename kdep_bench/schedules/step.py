"""A schedule that is constant in each of several equal parts."""

from __future__ import annotations

from collections.abc import Sequence

from kdep_bench.errors import KdepError
from kdep_bench.schedules.base import Schedule


class Step(Schedule):
    """The `values` in turn, each for an equal part of `span` (in epochs; None: the whole run).

    KDEP's learning-rate shape is Step([1, 0.1, 0.01], span=90); a term that is switched off for
    the second half is Step([1, 0]).
    """

    def __init__(
        self, values: Sequence[float], span: float | None = None, epochs: float | None = None
    ) -> None:
        super().__init__(span, epochs)
        if not values:
            raise KdepError("a step schedule has no values", fix="add at least one to `values`")
        self.values = [float(v) for v in values]

    def value_at(self, fraction: float) -> float:
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
