"""Prefetching by threads gives the results and errors of a loop, for few items at a time."""

from __future__ import annotations

import threading
from collections import deque

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench.prefetch import prefetch


@given(st.lists(st.integers()), st.integers(0, 5))
def test_prefetching_gives_the_values_of_a_loop_in_the_same_order(items, threads):
    assert list(prefetch(lambda x: 2 * x, items, threads)) == [2 * x for x in items]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_exception_in_a_worker_is_raised_after_the_earlier_results_and_ends_the_iteration(
    threads,
):
    begun: list[int] = []

    def work(k: int) -> int:
        """Fails at item 40."""
        begun.append(k)
        if k == 40:
            raise ValueError("the fortieth")
        return k

    results: list[int] = []
    with pytest.raises(ValueError, match="fortieth"):
        deque(map(results.append, prefetch(work, range(1000), threads)))
    assert results == list(range(40))
    assert max(begun) <= 40 + 2 * threads


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_the_number_of_items_in_work_is_limited(threads):
    lock, begun, ended = threading.Lock(), 0, 0
    before = cv2.getNumThreads()

    def work(k: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return k

    for k in prefetch(work, range(200), threads):
        ended = k + 1
        with lock:
            assert begun - ended <= max(0, 2 * threads - 1)
    assert begun == ended == 200
    assert cv2.getNumThreads() == before
    unfinished = prefetch(work, range(200), threads)
    next(unfinished)
    unfinished.close()  # closing waits only for the few items in work
    assert begun <= 200 + max(1, 2 * threads)
