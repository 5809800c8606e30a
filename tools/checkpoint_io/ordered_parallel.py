"""Process chunks in threads, with results in order and few chunks in memory.

Reading, hashing, compression and numpy's arithmetic release the GIL, so threads are sufficient.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
NEVER_RETURNED = 1 << 30  # bytes, larger than any allocation
THREADS_LIMIT = 8  # more threads do not read faster, and each one holds a few chunks


@cache
def threads() -> int:
    """Return the number of threads: KNOWLM_THREADS, or the cores up to THREADS_LIMIT; results do not depend on it."""
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@cache
def pool() -> ThreadPoolExecutor:
    """Return the thread pool, with BLAS limited to one thread, and freed memory kept by glibc.

    Threads of BLAS would compete with the pool. If the system allocated each chunk's arrays again page by page, merging
    would take 20 to 30 % more CPU time.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(parameter, NEVER_RETURNED)
    return ThreadPoolExecutor(threads())


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for each item in order; at most threads() + 1 results are held at a time.

    `function` must not call `in_order`, which would deadlock.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool().submit(function, item))
            if len(waiting) > threads():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
