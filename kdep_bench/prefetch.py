"""Work done ahead of who reads it, in threads: for decoders, which leave Python's lock alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

T = TypeVar("T")
R = TypeVar("R")


def prefetch(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """`work(item)` of each item, in their order, done by `threads` threads; by none, one by one.

    At most `2 * threads` results are waiting or being made. What `work` raises is raised here when
    its item's turn comes, and nothing more is begun. OpenCV works in the calling thread meanwhile,
    so that `threads` is the number of cores in use.
    """
    if threads < 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) == 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()
    finally:
        cv2.setNumThreads(before)
