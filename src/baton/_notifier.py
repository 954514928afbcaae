"""Oban's notifier, with a LISTEN that neither a payload nor a connection can end.

One task connects, listens, receives and looks whether the server still answers, and begins again whenever one of these fails.
What was missed meanwhile nobody can say, so everybody who waits is told to look. Part of the seam to Oban.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Self

from oban._notifier import PostgresNotifier, decode_payload
from psycopg import AsyncConnection, Notify, sql

from baton._deadline import end, pause_after, within
from baton._engine import connect_options

logger = logging.getLogger("baton.engine")

_LONGEST_PAUSE = 5.0
_STOP_SECONDS = 1.0


class Listener(PostgresNotifier):
    """A notifier that is always about to listen, from its start to its stop."""

    on_reconnect: Callable[[], object]
    """Called when LISTEN is in force again, after a time in which it was not."""
    # Oban sets these to None first and has no annotations, so a checker takes None for their type.
    _conn: AsyncConnection | None  # type: ignore[assignment]
    _loop_task: asyncio.Task[None] | None  # type: ignore[assignment]
    _listening: asyncio.Event
    _calls: set[asyncio.Future[Any]]

    @classmethod
    def take_over(cls, notifier: object, on_reconnect: Callable[[], object]) -> Self | None:
        """Make an Oban's notifier one of these, started or not; None for one that somebody else built, which is left alone."""
        if type(notifier) is not PostgresNotifier:
            return None
        # In place, because each of Oban's parts holds it.
        notifier.__class__ = cls
        assert isinstance(notifier, cls)
        notifier.on_reconnect = on_reconnect
        notifier._listening = asyncio.Event()
        notifier._calls = set()
        if notifier._loop_task is not None:
            notifier._replace(notifier._loop_task)
        return notifier

    def _replace(self, listening: asyncio.Task[None]) -> None:
        """Go on in our way with what Oban had started."""
        loop = listening.get_loop()
        for task in (listening, self._beat_task):
            if task is not None:
                task.cancel()
        former, self._conn = self._conn, None
        self._beat_task = None
        self._loop_task = loop.create_task(self._run(former, missed=True), name="oban-notifier-loop")

    async def start(self) -> None:
        """Begin to listen. Returns when LISTEN is in force, or goes on without for the time being."""
        self._loop_task = asyncio.create_task(self._run(), name="oban-notifier-loop")
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._listening.wait()
        except TimeoutError:
            logger.warning("no notifications for now; jobs are found by polling until LISTEN succeeds")

    async def stop(self) -> None:
        task, self._loop_task = self._loop_task, None
        if task is not None:
            await end(task)
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=_STOP_SECONDS)
            for call in late:
                call.cancel()

    async def _connect(self) -> None:
        """For a reconnect of Oban's that was under way when it was taken over: there is nothing left for it to do."""

    async def _run(self, former: AsyncConnection | None = None, *, missed: bool = False) -> None:
        if former is not None:
            await former.close()
        failures = 0
        while True:
            conn = None
            try:
                conn = await within(self._connect_timeout, self._open())
                await within(self._connect_timeout, self._listen_again(conn))
                self._conn = conn
                self._listening.set()
                if missed:
                    self.on_reconnect()
                failures = 0
                await self._receive(conn)
            except Exception as error:
                logger.warning("LISTEN has ended (%s); connecting again", _one_line(error))
            finally:
                self._conn = None
                self._listening.clear()
                if conn is not None:
                    await conn.close()
            failures, missed = failures + 1, True
            pause = pause_after(failures, first=0.2, longest=_LONGEST_PAUSE)
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311

    async def _open(self) -> AsyncConnection:
        """A connection with all that the pool connects with: its string alone may lack the password."""
        options = await connect_options(self._query._pool.kwargs)
        options = {**options, "application_name": "baton listen", "autocommit": True}
        return await AsyncConnection.connect(await self._query.dsn(), **options)

    async def _listen_again(self, conn: AsyncConnection) -> None:
        self._pending_listen.update(self._subscriptions)
        self._pending_unlisten.clear()
        await self._change(conn)

    async def _change(self, conn: AsyncConnection) -> None:
        """Listen to what was subscribed to meanwhile, and no more to what nobody wants."""
        for channel in list(self._pending_unlisten):
            if channel not in self._subscriptions:
                await conn.execute(sql.SQL("UNLISTEN {}").format(self._identifier(channel)))
            self._pending_unlisten.discard(channel)
        for channel in list(self._pending_listen):
            await conn.execute(sql.SQL("LISTEN {}").format(self._identifier(channel)))
            self._pending_listen.discard(channel)
            if (event := self._listen_events.pop(channel, None)) is not None:
                event.set()

    def _identifier(self, channel: str) -> sql.Identifier:
        return sql.Identifier(self._to_full_channel(channel))

    async def _receive(self, conn: AsyncConnection) -> None:
        clock = asyncio.get_running_loop().time
        beat_at = clock() + self._beat_interval
        while True:
            if self._pending_listen or self._pending_unlisten:
                await within(self._connect_timeout, self._change(conn))
            async for notification in conn.notifies(timeout=self._notify_timeout):
                self._deliver(notification)
            if clock() >= beat_at:
                await within(self._connect_timeout, conn.execute("SELECT 1"))
                beat_at = clock() + self._beat_interval

    def _deliver(self, notification: Notify) -> None:
        channel = self._from_full_channel(notification.channel)
        try:
            payload = decode_payload(notification.payload)
            if not isinstance(payload, Mapping):
                raise TypeError("it is no object")
        except Exception as error:
            # NOTIFY needs no privilege: anybody who can connect can send anything.
            logger.warning("a notification on %s cannot be read: %s", notification.channel, _one_line(error))
            return
        for callback in list(self._subscriptions.get(channel, {}).values()):
            self._call(callback, channel, dict(payload))

    def _call(
        self, callback: Callable[[str, dict[str, Any]], Any], channel: str, payload: dict[str, Any]
    ) -> None:
        """Each callback gets a payload of its own: Oban's take theirs apart."""
        try:
            made = callback(channel, payload)
            if inspect.isawaitable(made):
                call = asyncio.ensure_future(made)
                self._calls.add(call)
                call.add_done_callback(self._called)
        except Exception as error:
            _log_failure(error)

    def _called(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            _log_failure(error)


def _log_failure(error: BaseException) -> None:
    logger.error("what was to be done on a notification failed", exc_info=error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
