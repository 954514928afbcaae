"""Waits for facts about runs: pushed by notification, with a poll behind it, so a lost notification costs only delay.

A waiter makes sure of a lease on its topic, so that the engine knows somebody listens, then looks, then sleeps until notified.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from oban import Oban
from psycopg import AsyncConnection, OperationalError

from baton import _store

logger = logging.getLogger("baton")

_LEASE = 60.0
# Of many that wait for one run, together at most so many look a second, however often it moves.
_LOOKS_PER_SECOND = 500


@dataclass(slots=True)
class _Topic:
    """Those who wait for one kind of fact about one run, and their common lease."""

    events: set[asyncio.Event] = field(default_factory=set)
    renew_at: float = 0.0


class Waiters:
    """Whoever waits in this process, on Oban's one LISTEN connection."""

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        poll_interval: float,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._poll_interval = poll_interval
        self._subscriber = uuid4()
        self._topics: dict[str, _Topic] = {}
        self._token: str | None = None
        self._leaving: dict[str, asyncio.Task[None]] = {}

    async def start(self, oban: Oban) -> None:
        """Listen on Oban's notifier; returns when the LISTEN is in force, or after 5 seconds without."""
        try:
            self._token = await oban._notifier.listen(
                "workflow", self._on_notification, wait=True, timeout=5.0
            )
        except TimeoutError:
            self._token = None

    async def stop(self, oban: Oban) -> None:
        """Stop listening. Whoever still waits goes on by polling."""
        if self._token is not None:
            await oban._notifier.unlisten(self._token)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    def _on_notification(self, _channel: str, payload: dict[str, Any]) -> None:
        for kind in ("workflow", "finished"):
            topic = self._topics.get(f"{kind}:{payload.get('id')}")
            for event in topic.events if topic else ():
                event.set()

    def wake(self) -> None:
        """Let everybody look: notifications may have been missed."""
        for topic in self._topics.values():
            for event in topic.events:
                event.set()

    async def until[T](
        self, run_id: UUID, kind: str, look: Callable[[], Awaitable[T | None]], timeout: float | None
    ) -> T:
        """Call `look` now, at each notification on the run and at each poll, until it finds something.

        A connection that is lost meanwhile is a reason to look again, not to stop waiting.

        Raises:
            TimeoutError: It found nothing for `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            found = await look()
            if found is not None:
                return found
            name = f"{kind}:{run_id}"
            if name in self._leaving:
                # It would take the new lease along.
                await asyncio.shield(self._leaving[name])
            topic = self._topics.setdefault(name, _Topic())
            event = asyncio.Event()
            topic.events.add(event)
            try:
                while True:
                    event.clear()
                    found = await self._look(topic, name, look)
                    if found is not None:
                        return found
                    try:
                        async with asyncio.timeout(self._poll_interval):
                            await event.wait()
                    except TimeoutError:
                        pass
                    if len(topic.events) > 1:
                        await asyncio.sleep(len(topic.events) / _LOOKS_PER_SECOND)
            finally:
                topic.events.discard(event)
                if not topic.events:
                    self._topics.pop(name, None)
                    # Whoever waited has what they waited for, and need not wait for this.
                    self._leaving[name] = asyncio.create_task(self._unsubscribe(name))
                    self._leaving[name].add_done_callback(lambda _: self._leaving.pop(name, None))

    async def _look[T](self, topic: _Topic, name: str, look: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            clock = asyncio.get_running_loop().time
            if clock() >= topic.renew_at:
                topic.renew_at = clock() + _LEASE / 2
                await self._subscribe(name)
            return await look()
        except OperationalError as error:
            topic.renew_at = 0.0
            logger.warning("could not look at %s (%s); trying again", name, " ".join(str(error).split()))
            return None

    async def _subscribe(self, topic: str) -> None:
        async with self._connection() as conn:
            await conn.execute(
                _store.load("subscribe", self._prefix),
                {"topic": topic, "subscriber": self._subscriber, "seconds": _LEASE},
            )

    async def _unsubscribe(self, topic: str) -> None:
        try:
            async with self._connection() as conn:
                await conn.execute(
                    _store.load("unsubscribe", self._prefix), {"topic": topic, "subscriber": self._subscriber}
                )
        except Exception:
            # The lease runs out by itself.
            return
