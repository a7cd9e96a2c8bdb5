"""Work ahead: the same results in the same order, bounded, and errors in their turn."""

from __future__ import annotations

import threading
from collections import deque

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench.prefetch import prefetch


@given(st.lists(st.integers()), st.integers(0, 5))
def test_order_and_values_are_those_of_a_loop(items, threads):
    assert list(prefetch(lambda x: 2 * x, items, threads)) == [2 * x for x in items]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_worker_exception_is_raised_in_order_and_ends_the_iteration(threads):
    begun: list[int] = []

    def work(k: int) -> int:
        begun.append(k)
        if k == 40:
            raise ValueError("the fortieth")
        return k

    seen: list[int] = []
    with pytest.raises(ValueError, match="fortieth"):
        deque(map(seen.append, prefetch(work, range(1000), threads)))
    assert seen == list(range(40))
    assert max(begun) <= 40 + 2 * threads


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_no_more_is_begun_than_is_bounded(threads):
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
    left = prefetch(work, range(200), threads)
    next(left)
    left.close()  # who reads no further waits for little
    assert begun <= 200 + max(1, 2 * threads)
