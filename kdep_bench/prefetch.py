"""Ordered, bounded prefetching with a thread pool, for decoders that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

T = TypeVar("T")
R = TypeVar("R")


def prefetch(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Yields `work(item)` for each item, in order, computed by `threads` threads.

    At most `2 * threads` results are waiting or in progress. An exception of `work` is raised in
    place of the result of its item; after that no other item is started. OpenCV's own threads are
    switched off until the last result, so that `threads` is the number of cores in use.

    Args:
        work: called once per item.
        items: the inputs.
        threads: number of threads. Below 1, items are computed one by one in the calling thread,
            with OpenCV's own threads.
    """
    if threads < 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    cv2_threads = cv2.getNumThreads()
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
                for future in waiting:
                    future.cancel()
    finally:
        cv2.setNumThreads(cv2_threads)
