"""Waits for facts about runs: pushed by notification, with a poll behind it, so a lost notification costs only delay.

A waiter takes a lease on its topic first, so that the engine knows somebody listens, then looks, then sleeps until notified.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

from oban import Oban
from psycopg import AsyncConnection

from baton import _store

_LEASE = 60.0


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
        self._events: dict[str, set[asyncio.Event]] = {}
        self._token: str | None = None

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

    def _on_notification(self, _channel: str, payload: dict[str, Any]) -> None:
        for kind in ("workflow", "finished"):
            for event in self._events.get(f"{kind}:{payload.get('id')}", ()):
                event.set()

    async def until[T](
        self, run_id: UUID, kind: str, look: Callable[[], Awaitable[T | None]], timeout: float | None
    ) -> T:
        """Call `look` now, at each notification on the run and at each poll, until it finds something.

        Raises:
            TimeoutError: It found nothing for `timeout` seconds.
        """
        found = await look()
        if found is not None:
            return found
        topic = f"{kind}:{run_id}"
        event = asyncio.Event()
        self._events.setdefault(topic, set()).add(event)
        try:
            async with asyncio.timeout(timeout):
                renew_at = 0.0
                clock = asyncio.get_running_loop().time
                while True:
                    if clock() >= renew_at:
                        await self._subscribe(topic)
                        renew_at = clock() + _LEASE / 2
                    event.clear()
                    found = await look()
                    if found is not None:
                        return found
                    try:
                        async with asyncio.timeout(self._poll_interval):
                            await event.wait()
                    except TimeoutError:
                        pass
        finally:
            self._events[topic].discard(event)
            if not self._events[topic]:
                del self._events[topic]
                await asyncio.shield(self._unsubscribe(topic))

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
