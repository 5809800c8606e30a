"""Process chunks in threads, with results in order and few chunks in memory.

Reading, hashing, compression and numpy's arithmetic release the GIL, so threads are sufficient. concurrent.futures is
not used, because its conditions are Python code, in which a KeyboardInterrupt can leave a lock locked for ever, so that
the command never ends. SimpleQueue is written in C.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
NEVER_RETURNED = 1 << 30  # bytes, larger than any allocation
THREADS_LIMIT = 8  # more threads do not read faster, and each one holds a few chunks


@cache
def threads() -> int:
    """Return the number of threads: KNOWLM_THREADS, or the cores up to THREADS_LIMIT; results do not depend on it."""
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@dataclass(eq=False)
class Job:
    """A call that a thread makes, unless it is cancelled before; (result, exception) is put into `outcome`."""

    function: Callable[[Any], Any]
    item: Any
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = field(default_factory=SimpleQueue)
    is_cancelled: bool = False


@cache
def pool() -> SimpleQueue[Job]:
    """Start the threads, and return the queue of their jobs; BLAS is limited to one thread, glibc keeps freed memory.

    Threads of BLAS would compete with the pool. If the system allocated each chunk's arrays again page by page, merging
    would take 20 to 30 % more CPU time.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(parameter, NEVER_RETURNED)
    jobs: SimpleQueue[Job] = SimpleQueue()
    for _ in range(threads()):
        Thread(target=work, args=(jobs,), daemon=True).start()
    return jobs


def work(jobs: SimpleQueue[Job]) -> None:
    """Do jobs forever; runs in a thread of the pool."""
    while True:
        job = jobs.get()
        try:
            job.outcome.put((None if job.is_cancelled else job.function(job.item), None))
        except BaseException as error:
            job.outcome.put((None, error))
        del job  # the item, and through the outcome the result


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for each item in order; at most threads() + 1 results are held at a time.

    `function` must not call `in_order`, which would deadlock.
    """
    waiting: deque[Job] = deque()

    def result() -> Result:
        value, error = waiting.popleft().outcome.get()
        if error is not None:
            raise error
        return value

    try:
        for item in items:
            job = Job(function, item)
            pool().put(job)
            waiting.append(job)  # after put: below, the outcome of each waiting job must come
            if len(waiting) > threads():
                yield result()
        while waiting:
            yield result()
    finally:
        for job in waiting:
            job.is_cancelled = True
        for job in waiting:
            job.outcome.get()  # no thread works on when the caller continues or the command ends
