"""Schedules are pure functions with known end values; one longer than the run is refused."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench.errors import KdepError
from kdep_bench.schedules.annealing import Annealing
from kdep_bench.schedules.base import check_span
from kdep_bench.schedules.build import (
    N_CHECKED_STEPS,
    as_schedule,
    check_some_weight_nonzero,
    spans,
)
from kdep_bench.schedules.cosine import Cosine
from kdep_bench.schedules.linear import Linear
from kdep_bench.schedules.ramp import Ramp
from kdep_bench.schedules.step import Step
from kdep_bench.schedules.until import Until


def test_each_schedule_has_its_closed_form():
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
    assert [Ramp(0, 1, over=0.5)(k, 8) for k in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [Ramp(2, 1)(k, 4) for k in range(4)] == [2, 1.75, 1.5, 1.25]  # the whole run
    assert [Until(0.5, value=3)(k, 4) for k in range(4)] == [3, 3, 0, 0]
    assert [Until(0)(k, 4) for k in range(4)] == [0, 0, 0, 0]
    assert [Until(1)(k, 4) for k in range(4)] == [1, 1, 1, 1]
    # The factor is 1 - (T - 1) / 4; the temperature T falls from 4 to 1.
    assert [Annealing(4)(k, 8) for k in range(8)] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert [Annealing(1)(k, 3) for k in range(3)] == [1, 1, 1]
    assert Annealing()(0, 40) == 1 / 20


@pytest.mark.parametrize(
    ("kind", "arguments", "values"),
    [
        ("linear.Linear", {"start": 1, "end": 0}, [1, 0.5, 0, 0, 0, 0]),
        ("cosine.Cosine", {"start": 1, "end": 0}, [1, 0.5, 0, 0, 0, 0]),
        ("step.Step", {"values": [1, 0.1]}, [1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("annealing.Annealing", {"t_max": 2}, [0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_a_span_of_2_of_6_epochs_ends_at_a_third_of_the_run(kind, arguments, values):
    config = {"type": f"kdep_bench.schedules.{kind}", "span": 2, **arguments}
    assert [as_schedule(config, 6)(k, 6) for k in range(6)] == pytest.approx(values)
    assert [as_schedule(config, 6)(k, 12) for k in range(0, 12, 2)] == pytest.approx(values)
    with pytest.raises(KdepError, match="lasts 2 epochs"):
        as_schedule(config, 1)
    with pytest.raises(KdepError, match="span=0"):
        as_schedule({**config, "span": 0}, 6)


def test_a_schedule_without_a_span_covers_the_whole_run_for_any_number_of_epochs():
    for kind, values in (("until.Until", [1, 1, 0, 0]), ("ramp.Ramp", [0, 0.5, 1, 1])):
        arguments = {"stop": 0.5} if kind == "until.Until" else {"start": 0, "end": 1, "over": 0.5}
        config = {"type": f"kdep_bench.schedules.{kind}", **arguments}
        for epochs in (None, 1, 90):
            assert [as_schedule(config, epochs)(k, 4) for k in range(4)] == values
    assert Linear(1, 0).elapsed_fraction(1, 4) == 0.25
    assert Linear(1, 0).elapsed_fraction(0, 0) == 0
    assert Linear(1, 0).elapsed_fraction(9, 4) == 1


def test_arguments_out_of_their_range_are_refused():
    for value in (-0.01, 1.01):
        with pytest.raises(KdepError, match="stop="):
            Until(value)
    for value in (0, -1, 1.01):
        with pytest.raises(KdepError, match="over="):
            Ramp(0, 1, over=value)
    with pytest.raises(KdepError, match="t_max=0"):
        Annealing(0)
    with pytest.raises(KdepError, match="no values"):
        Step([])


def test_a_schedule_object_is_returned_unchanged_and_another_class_is_refused():
    schedule = Linear(1, 0)
    assert as_schedule(schedule) is schedule
    with pytest.raises(KdepError, match="is not a Schedule"):
        as_schedule({"type": "tests.schedules.test_schedules.NoSchedule"})


class NoSchedule:
    """A class with the arguments of a schedule that is not a subclass of Schedule."""

    def __init__(self, epochs: float | None = None) -> None:
        self.epochs = epochs


def method_with_weights(**weights: object) -> dict:
    """The config of a method that is a sum of parts with these loss weights."""
    return {"type": "x", "parts": {name: {"weight": w} for name, w in weights.items()}}


def test_a_sum_whose_weights_are_all_zero_for_a_while_is_refused():
    until = {"type": "kdep_bench.schedules.until.Until", "stop": 0.5}
    late = {"type": "kdep_bench.schedules.step.Step", "values": [0, 1]}
    check_some_weight_nonzero(
        method_with_weights(a=until, b=late), 4, "m"
    )  # the second begins where the first ends
    check_some_weight_nonzero(method_with_weights(a=until, b=1e-9), 4, "m")
    check_some_weight_nonzero(
        {"type": "x", "parts": {"a": {"weight": until}, "b": {}}}, 4, "m"
    )  # the weight of b is 1
    with pytest.raises(KdepError, match="all loss weights of m are 0 after 50%"):
        check_some_weight_nonzero(method_with_weights(a=until), 4, "m")
    with pytest.raises(KdepError, match="after 0%"):
        check_some_weight_nonzero(method_with_weights(a=late, b=0), 4, "m")
    last = {"type": "kdep_bench.schedules.until.Until", "stop": 1 - 1 / N_CHECKED_STEPS}
    with pytest.raises(KdepError, match="are 0 after"):
        check_some_weight_nonzero(method_with_weights(a=last), 4, "m")
    span = {"type": "kdep_bench.schedules.linear.Linear", "start": 1, "end": 0, "span": 2}
    with pytest.raises(KdepError, match="after 50%"):
        check_some_weight_nonzero(method_with_weights(a=span), 4, "m")
    for config in (None, {}, {"type": "x"}, {"type": "x", "parts": []}, {"type": "x", "parts": {}}):
        check_some_weight_nonzero(config, 4, "m")  # not a sum: nothing to check


def test_a_span_of_true_is_not_one_epoch():
    assert list(spans({"span": True, "deep": ({"span": 2},)})) == [2.0]
    assert list(spans({"span": {"span": 3}, "other": 4})) == [3.0]


@given(
    st.sampled_from([Linear, Cosine]),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.integers(1, 500),
    st.floats(0.05, 1),
)
def test_a_schedule_is_monotone_and_reaches_its_end_value_at_the_end_of_its_span(
    kind, start: float, end: float, steps: int, span_fraction: float
):
    schedule = kind(start, end, span=10 * span_fraction, epochs=10)
    assert schedule(0, steps) == pytest.approx(start)
    values = [schedule(k, steps) for k in range(steps)]
    assert all(min(start, end) - 1e-9 <= v <= max(start, end) + 1e-9 for v in values)
    after_span = [v for k, v in enumerate(values) if k >= max(1, steps * span_fraction)]
    assert after_span == pytest.approx([end] * len(after_span))
    changes = [after - before for before, after in pairwise(values)]
    assert all(change * (end - start) >= -1e-9 for change in changes)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(KdepError, match="lasts 20 epochs"):
        as_schedule(
            {"type": "kdep_bench.schedules.linear.Linear", "start": 1, "end": 0, "span": 20}, 16
        )
    with pytest.raises(KdepError, match="shorten `span`"):
        check_span(20, 16, "method 'm'")
    nested = {"parts": {"a": {"weight": {"type": "x", "span": 3}}}, "list": [{"span": 4.5}]}
    assert sorted(spans(nested)) == [3, 4.5]
    with pytest.raises(KdepError, match="the number of epochs was not passed"):
        Linear(1, 0, span=3)(0, 10)


@pytest.mark.parametrize("bad", [True, "much", None])
def test_a_weight_that_is_not_a_number_is_refused(bad: object):
    with pytest.raises(KdepError, match=rf"has tau = {bad!r}; expected a number.*correct `tau`"):
        as_schedule(bad, setting="tau")


def test_the_package_imports_no_torch():
    code = "import sys, kdep_bench.schedules.base; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
