"""What followers are told, taken with patience."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from psycopg import AsyncConnection

from baton.events import StepUpdated, WorkflowFinished

PATIENCE = 20.0


async def next_of(news: Any) -> Any:
    """The next of a subscription; AssertionError if it does not come."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await anext(news)
    except TimeoutError:
        raise AssertionError(f"nothing was told for {PATIENCE} seconds") from None


async def rest_of[T](news: AsyncIterator[T] | Any) -> list[T]:
    """What is told until the subscription ends."""
    found = []
    async with asyncio.timeout(PATIENCE):
        async for one in news:
            found.append(one)  # noqa: PERF401
    return found


def words(event: Any) -> tuple[str, ...]:
    """An event in short: who it is about, and what it says."""
    if isinstance(event, StepUpdated):
        return event.step_name, str(event.state)
    if isinstance(event, WorkflowFinished):
        return "finished", str(event.outcome)
    return type(event).__name__, event.step_name


async def until(news: Any, *wanted: tuple[str, ...]) -> list[Any]:
    """Take events until each of the wanted ones has come; returns all that came."""
    found: list[Any] = []
    missing = set(wanted)
    while missing:
        found.append(await next_of(news))
        missing.discard(words(found[-1]))
    return found


async def sql(dsn: str, text: str, *params: Any) -> list[tuple[Any, ...]]:
    """Rows of a statement, in a session and a commit of its own."""
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(text.encode(), params or None)
        return await cursor.fetchall() if cursor.description else []


async def leases(dsn: str) -> list[str]:
    """Topics somebody listens to."""
    return sorted(topic for (topic,) in await sql(dsn, "SELECT topic FROM workflow_subscribers"))
