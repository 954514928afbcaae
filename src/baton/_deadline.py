"""Deadlines that hold although a server does not answer, and how long to wait before it is asked again.

A query that is cancelled first asks its server to end it, and a frozen server answers neither. Cancelled again, it is given up
with its connection.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

# Between asking and giving up.
_ASKED = 1.0


async def within[T](seconds: float, work: Coroutine[Any, Any, T], *, asked: float = _ASKED) -> T:
    """What `work` returns, or raises.

    Args:
        asked: Seconds it gets to end after each of two cancellations.

    Raises:
        TimeoutError: It did not end in time. It is cancelled, and it may have come through all the same.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            await end(task, asked)
    if task.cancelled() or not task.done():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return task.result()


async def end(task: asyncio.Task[Any], asked: float = _ASKED) -> None:
    """Cancel a task, twice if need be, and wait no longer for one that heeds neither."""
    for _ in range(2):
        task.cancel()
        await asyncio.wait({task}, timeout=asked)
        if task.done():
            break
    if task.done() and not task.cancelled():
        # Asked for, or it would be reported as an error that nobody looked at.
        task.exception()


def pause_after(failures: int, *, first: float, longest: float) -> float:
    """Seconds until the next try: `first` after one failure, doubled with each more, never over `longest`."""
    # No larger power than a float holds: an outage of hours is a thousand failures.
    return min(first * 2.0 ** min(failures - 1, 100), longest)
