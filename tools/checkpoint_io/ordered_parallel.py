"""Process chunks in threads, with results in order and few chunks in memory.

Reading, hashing, compression and numpy's arithmetic release the GIL, so threads are sufficient. concurrent.futures is
not used: its conditions are Python code, in which a KeyboardInterrupt can leave a lock locked, so that the command
never ends. SimpleQueue is written in C.
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
    """Return the number of threads: KNOWLM_THREADS, or the available cores, at most THREADS_LIMIT.

    Results do not depend on this number.
    """
    return int(os.environ.get("KNOWLM_THREADS", 0)) or min(THREADS_LIMIT, len(os.sched_getaffinity(0)))


@dataclass(eq=False)
class Job:
    """A function call for the pool; the thread puts (result, exception) into `outcome`."""

    function: Callable[[Any], Any]
    item: Any
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = field(default_factory=SimpleQueue)
    is_cancelled: bool = False


@cache
def pool() -> SimpleQueue[Job]:
    """Start the threads and return their job queue.

    BLAS is limited to one thread, because its threads would compete with the pool. glibc is told to keep freed
    memory: if it returned every chunk's arrays to the system, merging would take 20 to 30 % more CPU time.
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
    """Run jobs from the queue; the loop of each thread of the pool."""
    while True:
        job = jobs.get()
        try:
            job.outcome.put((None if job.is_cancelled else job.function(job.item), None))
        except BaseException as error:
            job.outcome.put((None, error))
        del job  # otherwise the item and the result stay in memory until the next job


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) for each item in order; at most threads() + 1 results are held at a time.

    `function` must not call `in_order`, which would deadlock.
    """
    pending: deque[Job] = deque()

    def result() -> Result:
        value, error = pending.popleft().outcome.get()
        if error is not None:
            raise error
        return value

    try:
        for item in items:
            job = Job(function, item)
            pool().put(job)
            pending.append(job)  # after put, since `finally` waits for the outcome of every pending job
            if len(pending) > threads():
                yield result()
        while pending:
            yield result()
    finally:
        for job in pending:
            job.is_cancelled = True
        for job in pending:
            job.outcome.get()  # wait until no thread runs a job of this call
