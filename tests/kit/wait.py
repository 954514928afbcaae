"""Waiting for facts instead of for time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def eventually[T](fact: Callable[[], Awaitable[T] | T], timeout: float = 10.0) -> T:
    """Look until `fact` answers something true, and return the answer.

    Raises:
        AssertionError: It did not within `timeout` seconds; the last answer is in the message.
    """
    deadline = time.monotonic() + timeout
    while True:
        found: Any = fact()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {timeout} seconds"
        await asyncio.sleep(0.005)
