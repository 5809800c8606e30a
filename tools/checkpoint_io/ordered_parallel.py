"""Process chunks on all cores with ordered results and few chunks in memory.

Reading, hashing, compressing and numpy's arithmetic release Python's lock, so threads are enough.
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
KEPT = 1 << 30  # bytes, more than is ever used
THREADS_LIMIT = 8  # more threads do not read faster, and each holds a few chunks


@cache
def threads() -> int:
    """Number of threads, set by KNOWLM_THREADS; results do not depend on it."""
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@cache
def pool() -> ThreadPoolExecutor:
    """The thread pool; BLAS is limited to one thread, because its own threads would compete with it."""
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
    """Let BLAS use all cores, for products of large matrices while the pool is idle."""
    limit_blas(threads())
    try:
        yield
    finally:
        limit_blas(1)


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    Otherwise each chunk's arrays are allocated anew page by page: merging takes 20 to 30 % more processor time.
    """
    with suppress(OSError, AttributeError):  # a C library other than glibc
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for each item, in order; at most one more result than threads is held.

    `function` must not call `in_order`: it would wait for the threads that it occupies.
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
