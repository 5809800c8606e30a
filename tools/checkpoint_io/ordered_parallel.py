"""Process chunks in threads, with results in order and few chunks in memory.

Reading, hashing, compression and numpy's arithmetic release the GIL, so threads are sufficient.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
KEPT = 1 << 30  # bytes, larger than any allocation
THREADS_LIMIT = 8  # more threads do not read faster, and each one holds a few chunks


@cache
def threads() -> int:
    """Return the number of threads: KNOWLM_THREADS, or the cores up to THREADS_LIMIT; results do not depend on it."""
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@cache
def pool() -> ThreadPoolExecutor:
    """Return the thread pool. BLAS is limited to one thread, because its threads would compete with the pool."""
    limit_blas(1)
    keep_memory()
    return ThreadPoolExecutor(threads())


def limit_blas(count: int) -> None:
    """Limit the threads of BLAS, if threadpoolctl is installed."""
    with suppress(ImportError):
        import threadpoolctl

        threadpoolctl.threadpool_limits(count, "blas")


@contextmanager
def blas_on_all_cores() -> Iterator[None]:
    """Let BLAS use as many threads as the pool, for products of large matrices while the pool is idle."""
    limit_blas(threads())
    try:
        yield
    finally:
        limit_blas(1)


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    Otherwise the system allocates each chunk's arrays again page by page; merging takes 20 to 30 % more CPU time.
    """
    with suppress(OSError, AttributeError):  # a C library other than glibc
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)


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
