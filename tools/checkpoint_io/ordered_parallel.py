"""Work on chunks on all cores, with the results in order and little held at once.

Reading, hashing, compressing and numpy's arithmetic leave Python's lock, so threads are enough, and a chunk need not be
copied to another process. Not a script: the tools of this stage import it.
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
KEPT = 1 << 30  # bytes, more than is ever in use
THREADS_LIMIT = 8  # more do not make a disk faster, and each holds a few chunks


@cache
def threads() -> int:
    """How many threads work; KNOWLM_THREADS chooses, the results are the same with any number."""
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@cache
def pool() -> ThreadPoolExecutor:
    """The threads; BLAS is told to use no more of its own, or they would wait for each other."""
    limit_blas(1)
    keep_memory()
    return ThreadPoolExecutor(threads())


def limit_blas(count: int) -> None:
    """How many threads BLAS may use, where threadpoolctl is there to tell it."""
    with suppress(ImportError):
        import threadpoolctl

        threadpoolctl.threadpool_limits(count, "blas")


@contextmanager
def blas_on_all_cores() -> Iterator[None]:
    """For products of large matrices while nothing else is worked on."""
    limit_blas(threads())
    try:
        yield
    finally:
        limit_blas(1)


def keep_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the system.

    Each chunk's arrays would else come from the system anew, page by page, which took half the time of merging.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for each item, in the order of the items; at most one result more than threads waits.

    `function` must not call `in_order` itself: it would wait for the threads that it keeps busy.
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
