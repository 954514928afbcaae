"""Waits for facts about runs: pushed by notification, with a poll behind it, so a lost notification costs only delay.

Whoever listens makes sure of a lease on its topic, so that the engine knows somebody does, then looks, then sleeps until
notified. A topic is `finished:<run>`, `settled:<run>`, `workflow:<run>` or `workflow:all`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from oban import Oban
from psycopg import AsyncConnection, OperationalError

from baton import _store

logger = logging.getLogger("baton")

_LEASE = 60.0
# Whoever listens sees to its lease at least so often.
_RENEWED_SECONDS = _LEASE / 2
# Of many that wait for one run, together at most so many look a second, however often it moves.
_LOOKS_PER_SECOND = 500

type Listener = Callable[[Mapping[str, Any] | None], None]
"""Called with a notification's payload, which anybody may have sent, or with None: anything may have been missed."""


@dataclass(slots=True)
class _Topic:
    """Those who listen to one topic, and their common lease."""

    listeners: set[Listener] = field(default_factory=set)
    renew_at: float = 0.0
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Waiters:
    """Whoever waits or follows in this process, on Oban's one LISTEN connection."""

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        poll_interval: float,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self.poll_interval = poll_interval
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
        run_id = payload.get("id")
        told = (
            [f"{payload['fact']}:{run_id}"] if "fact" in payload else [f"workflow:{run_id}", "workflow:all"]
        )
        for name in told:
            if (topic := self._topics.get(name)) is not None:
                for listener in list(topic.listeners):
                    listener(payload)

    def wake(self) -> None:
        """Let everybody look: notifications may have been missed."""
        for topic in self._topics.values():
            for listener in list(topic.listeners):
                listener(None)

    async def join(self, name: str, listener: Listener) -> None:
        """Have a listener called on a topic from now on. What the engine does is told once there is a lease: see `renew`."""
        while name in self._leaving:
            # It would take the new lease along.
            await asyncio.shield(self._leaving[name])
        self._topics.setdefault(name, _Topic()).listeners.add(listener)

    async def renew(self, name: str) -> None:
        """Take the topic's lease, or extend it when half of it is over. After one that had run out, everybody is to look.

        Raises:
            OperationalError: The database is away. The next call tries again.
        """
        topic = self._topics[name]
        clock = asyncio.get_running_loop().time
        # Whoever comes while another is at it must not look before the lease is in force.
        async with topic.renewing:
            if clock() < topic.renew_at:
                return
            lapsed = 0.0 < topic.renew_at < clock() - _RENEWED_SECONDS
            topic.renew_at = clock() + _RENEWED_SECONDS
            try:
                await self._subscribe(name)
            except BaseException:
                topic.renew_at = 0.0
                raise
        for listener in list(topic.listeners) if lapsed else ():
            listener(None)

    async def rest(self, news: asyncio.Event) -> None:
        """Wait for news, but no longer than until it is time to look, or to see to the lease."""
        try:
            async with asyncio.timeout(min(self.poll_interval, _RENEWED_SECONDS)):
                await news.wait()
        except TimeoutError:
            pass

    def leave(self, name: str, listener: Listener) -> None:
        """Call a listener no more. The last one's lease is given up, without anybody waiting for that."""
        topic = self._topics[name]
        topic.listeners.discard(listener)
        if not topic.listeners:
            del self._topics[name]
            self._leaving[name] = asyncio.create_task(self._give_up(name))

    async def until[T](
        self, run_id: UUID, fact: str, look: Callable[[], Awaitable[T | None]], timeout: float | None
    ) -> T:
        """Call `look` now, at each notification of the fact and at each poll, until it finds something.

        A connection that is lost meanwhile is a reason to look again, not to stop waiting.

        Args:
            fact: `finished`: the run has. `settled`: a step of it has.

        Raises:
            TimeoutError: It found nothing for `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            found = await look()
            if found is not None:
                return found
            name = f"{fact}:{run_id}"
            event = asyncio.Event()

            def listener(_: object) -> None:
                event.set()

            await self.join(name, listener)
            try:
                while True:
                    event.clear()
                    found = await self._look(name, look)
                    if found is not None:
                        return found
                    await self.rest(event)
                    waiting = len(self._topics[name].listeners)
                    if waiting > 1:
                        await asyncio.sleep(waiting / _LOOKS_PER_SECOND)
            finally:
                # Whoever waited has what they waited for, and need not wait for this.
                self.leave(name, listener)

    async def _look[T](self, name: str, look: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            await self.renew(name)
            return await look()
        except OperationalError as error:
            self._topics[name].renew_at = 0.0
            logger.warning("could not look at %s (%s); trying again", name, " ".join(str(error).split()))
            return None

    async def _subscribe(self, topic: str) -> None:
        async with self._connection() as conn:
            await conn.execute(
                _store.load("subscribe", self._prefix),
                {"topic": topic, "subscriber": self._subscriber, "seconds": _LEASE},
            )

    async def _give_up(self, topic: str) -> None:
        try:
            await self._unsubscribe(topic)
        finally:
            # Not when the task is seen to have ended: whoever joins in between would find it, and wait for it without pause.
            self._leaving.pop(topic, None)

    async def _unsubscribe(self, topic: str) -> None:
        try:
            async with self._connection() as conn:
                await conn.execute(
                    _store.load("unsubscribe", self._prefix), {"topic": topic, "subscriber": self._subscriber}
                )
        except Exception:
            # The lease runs out by itself.
            return
