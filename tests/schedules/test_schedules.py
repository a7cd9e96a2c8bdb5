"""Schedules are pure functions with known ends, and one longer than the run is refused."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench.errors import KdepError
from kdep_bench.schedules.base import as_schedule, check_span, spans
from kdep_bench.schedules.cosine import Cosine
from kdep_bench.schedules.linear import Linear
from kdep_bench.schedules.step import Step


def test_closed_forms():
    assert [Linear(1, 0)(k, 4) for k in range(4)] == [1, 0.75, 0.5, 0.25]
    assert Cosine(2, 0)(2, 4) == pytest.approx(1)
    assert Cosine(2, 0)(1, 3) == pytest.approx(1.5)  # 1 + cos(60 degrees)
    assert [Step([1, 0.1, 0.01], span=90, epochs=90)(e, 90) for e in (0, 29, 30, 59, 60, 89)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    assert as_schedule(0.3)(7, 9) == 0.3


@given(
    st.sampled_from([Linear, Cosine]),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.integers(1, 500),
    st.floats(0.05, 1),
)
def test_ends_bounds_and_the_span(kind, start: float, end: float, steps: int, share: float):
    s = kind(start, end, span=10 * share, epochs=10)
    assert s(0, steps) == pytest.approx(start)
    values = [s(k, steps) for k in range(steps)]
    assert all(min(start, end) - 1e-9 <= v <= max(start, end) + 1e-9 for v in values)
    late = [v for k, v in enumerate(values) if k >= max(1, steps * share)]
    assert late == pytest.approx([end] * len(late))
    rising = [b - a for a, b in pairwise(values)]
    assert all(d * (end - start) >= -1e-9 for d in rising)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(KdepError, match="20 epochs, and the run has 16"):
        as_schedule(
            {"type": "kdep_bench.schedules.linear.Linear", "start": 1, "end": 0, "span": 20}, 16
        )
    with pytest.raises(KdepError, match="shorten the span"):
        check_span(20, 16, "method 'm'")
    nested = {"parts": {"a": {"weight": {"type": "x", "span": 3}}}, "list": [{"span": 4.5}]}
    assert sorted(spans(nested)) == [3, 4.5]
    with pytest.raises(KdepError, match="not told the run's epochs"):
        Linear(1, 0, span=3)(0, 10)


@pytest.mark.parametrize("bad", [True, "much", None])
def test_a_weight_that_is_no_number_is_refused(bad: object):
    with pytest.raises(KdepError, match="a weight is"):
        as_schedule(bad)


def test_the_room_imports_no_torch():
    code = "import sys, kdep_bench.schedules.base; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
