"""Run functions in threads, and several coroutines at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

# Shorter texts are processed on the event loop (tokenising takes about a millisecond), longer texts in a thread.
EVENT_LOOP_CHARACTERS = 8192


async def run_in_thread_if_long(characters: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments); the call runs in a thread if `characters` exceeds EVENT_LOOP_CHARACTERS."""
    if characters <= EVENT_LOOP_CHARACTERS:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


async def run_together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the results of coroutines that run at the same time; the first exception cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def map_concurrently(
    function: Callable[[Any], Coroutine[Any, Any, Any]], items: Sequence[Any], limit: int
) -> list[Any]:
    """Return the result of function(item) for each item; at most `limit` (1 or more) run at the same time."""
    results: list[Any] = [None] * len(items)
    pending = iter(enumerate(items))

    async def work() -> None:
        for at, item in pending:
            results[at] = await function(item)

    await run_together(work() for _ in range(min(limit, len(items))))
    return results
