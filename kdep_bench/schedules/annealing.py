"""The schedule of Continuation-KD's phi, the factor of the teacher's logits: steps up to 1."""

from __future__ import annotations

from kdep_bench.errors import KdepError
from kdep_bench.schedules.base import Schedule


class Annealing(Schedule):
    """phi = 1 - (T - 1) / t_max, where T decreases by 1 from t_max to 1 in equal parts of the span.

    phi is 1 / t_max in the first of the t_max parts, and 1 in the last part and afterwards.

    Source: Continuation-KD (arXiv 2212.05998), eq. 5 and algorithm 1, as Annealing-KD. The printed
    algorithm continues to T = 0 and phi = 1 + 1 / t_max; here T stops at 1.

    Args:
        t_max: number of parts.
        span, epochs: as in Schedule.
    """

    def __init__(
        self, t_max: int = 20, span: float | None = None, epochs: float | None = None
    ) -> None:
        super().__init__(span, epochs)
        if t_max < 1:
            raise KdepError(
                f"an annealing schedule has t_max={t_max}",
                expected="1 or more",
                fix="correct `t_max` in this schedule of the method's objective",
            )
        self.t_max = t_max

    def value_at(self, fraction: float) -> float:
        return min(self.t_max, int(fraction * self.t_max) + 1) / self.t_max
