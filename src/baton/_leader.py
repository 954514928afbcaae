"""Oban's leader with a lease that lasts until it is renewed, and that belongs to one process.

Oban 0.7.0 writes a lease of 3 seconds and renews it each 15, so two processes lead at once; and it tells them apart by their
node's name, which two hosts may share. Here a process knows its lease by the time of its election, which the server gives out
once, and believes in it no longer than the server does. Part of the seam to Oban.
"""

import asyncio
import logging
import time
from datetime import datetime
from typing import Self

from oban import telemetry
from oban._leader import Leader

from baton._deadline import end, within
from baton._engine import Engine

logger = logging.getLogger("baton.engine")

_CALL_SECONDS = 5.0
_STOP_SECONDS = 1.0


class LeasedLeader(Leader):
    """A leader whose lease is as long as its interval."""

    # Oban sets these to None first and has no annotations, so a checker takes None for their type.
    _listen_token: str | None  # type: ignore[assignment]
    _loop_task: asyncio.Task[None] | None  # type: ignore[assignment]
    _engine: Engine
    _elected_at: datetime | None = None
    _held_until = 0.0

    @classmethod
    def take_over(cls, leader: Leader, engine: Engine) -> Self | None:
        """Make an Oban's leader one of these, started or not; None for one that somebody else built, which is left alone."""
        if type(leader) is not Leader:
            return None
        # In place, because each of Oban's loops holds it.
        leader.__class__ = cls
        assert isinstance(leader, cls)
        leader._engine = engine
        return leader

    def give_back(self) -> None:
        """Make it Oban's own again; an election that was won stays won, as the node's."""
        self.__class__ = Leader  # type: ignore[assignment]

    @property
    def is_leader(self) -> bool:
        return self._is_leader and time.monotonic() < self._held_until

    async def start(self) -> None:
        if not self._enabled:
            self._started.set()
            return
        # Without waiting for LISTEN: an election needs no notification, it only comes sooner with one.
        self._listen_token = await self._notifier.listen("leader", self._on_notification, wait=False)
        self._loop_task = asyncio.create_task(self._loop(), name="oban-leader")
        await self._started.wait()

    async def stop(self) -> None:
        """Give the lease up. Without a database that answers, it runs out by itself."""
        if self._listen_token:
            await self._notifier.unlisten(self._listen_token)
        self._stopping.set()
        if self._loop_task is not None:
            await asyncio.wait({self._loop_task}, timeout=_STOP_SECONDS)
            if not self._loop_task.done():
                await end(self._loop_task)
        if not self.is_leader:
            return
        self._is_leader = False
        try:
            await within(_STOP_SECONDS, self._resign())
        except Exception as error:
            logger.warning("the lease of the leader is left to run out (%s)", " ".join(str(error).split()))

    async def _resign(self) -> None:
        await self._engine.resign(self._name, self._node, self._elected_at)
        await self._notifier.notify("leader", {"action": "resign", "node": self._node, "name": self._name})

    async def _election(self) -> None:
        async with self._election_lock:
            with telemetry.span("oban.leader.election", {"leader": self.is_leader}) as context:
                # From before the question on, so that we stop leading before the server lets another one.
                asked_at = time.monotonic()
                try:
                    elected_at = await within(
                        _CALL_SECONDS,
                        self._engine.elect(self._name, self._node, self._elected_at, self._interval),
                    )
                    # An error changes nothing: what was leased before lasts as long as it lasts.
                    self._is_leader, self._elected_at = elected_at is not None, elected_at
                    self._held_until = asked_at + self._interval
                finally:
                    context.add({"leader": self.is_leader})
