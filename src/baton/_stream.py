"""Follows what a step streams: from the start, then as it comes, until the step has settled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, OperationalError

from baton import snapshot
from baton._waiting import Waiters
from baton.errors import ResultNotFound, RunNotFound
from baton.snapshot import Chunk, StreamPage

logger = logging.getLogger("baton")

# Chunks and bytes of one page.
_PAGE = 1_000
_PAGE_BYTES = 1_000_000
# From one look to the next at least so long, so that what comes meanwhile is read at once.
_BATCH_SECONDS = 0.05


class Follower:
    """One reader of one step's stream.

    Args:
        attempt: The attempt to read; None for the newest that has streamed, and then those after it.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        waiters: Waiters,
        *,
        run_id: UUID,
        step: str,
        attempt: int | None,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._waiters = waiters
        self._run_id = run_id
        self._step = step
        self._stays = attempt is not None
        self._attempt = attempt
        self._after = -1
        self._step_id = 0
        self._news = asyncio.Event()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The chunks, each once and in order. Pages are read as they are asked for, so what nobody takes stays where it is."""
        page = await self._read()
        for chunk in page.chunks:
            yield chunk
        if page.ended:
            return
        topic = f"workflow:{self._run_id}"
        await self._waiters.join(topic, self._hear)
        try:
            while not page.ended:
                self._news.clear()
                page = await self._look(topic) or page
                for chunk in page.chunks:
                    yield chunk
                if not page.more and not page.ended:
                    await self._waiters.rest(self._news)
                    await asyncio.sleep(_BATCH_SECONDS)
        finally:
            self._waiters.leave(topic, self._hear)

    async def _look(self, topic: str) -> StreamPage | None:
        try:
            await self._waiters.renew(topic)
            return await self._read()
        except OperationalError as error:
            logger.warning("could not look at %s (%s); trying again", topic, " ".join(str(error).split()))
            return None

    async def _read(self) -> StreamPage:
        async with self._connection() as conn:
            page = await snapshot.read_stream(
                conn,
                self._prefix,
                self._run_id,
                {"name": self._step, "position": None},
                attempt=self._attempt,
                after=self._after,
                on=not self._stays,
                limit=_PAGE,
                most_bytes=_PAGE_BYTES,
            )
            if page is None:
                if await snapshot.read_run(conn, self._prefix, self._run_id) is None:
                    raise RunNotFound(f"there is no run {self._run_id}; it may have been pruned")
                raise ResultNotFound(f"run {self._run_id} has no step {self._step!r}")
        self._step_id = page.step_id
        if page.chunks:
            self._attempt, self._after = page.chunks[-1].attempt, page.chunks[-1].position
        return page

    def _hear(self, payload: Mapping[str, Any] | None) -> None:
        steps = payload.get("steps") if payload is not None else None
        if not isinstance(steps, list) or self._step_id in steps:
            self._news.set()
