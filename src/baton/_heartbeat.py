"""Keeps this process known as alive, from a thread with a connection of its own.

A step may block the event loop, hold every connection of the pools, or run for hours: none of it makes the process look dead,
and its jobs be rescued. Only its end does, a stop of all of it (SIGSTOP, a frozen machine, C code that does not let go of
Python's lock), or the loss of the database. The same thread notices when the event loop does not answer, and says what runs
on it.
"""

import asyncio
import logging
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
from psycopg.abc import PQGen

from baton import _store

logger = logging.getLogger("baton.engine")

_LONGEST_INTERVAL = 15.0
_LONGEST_SILENCE_OF_THE_LOOP = 5.0
_TICK = 1.0
# A server that does not answer is given up and dialled again.
_LONGEST_CALL = 5.0
_SHORTEST_CALL = 1.0
_CONNECT_SECONDS = 5
_ASK_SECONDS = 0.5
_BEAT = "SELECT /* schema */baton_beat(%s::jsonb, %s)"


@dataclass(frozen=True, slots=True)
class Heart:
    """One producer: what its row says, should it have to be made again."""

    uuid: str
    name: str
    node: str
    queue: str
    meta: Mapping[str, object]


class _Connection(psycopg.Connection[Any]):
    """A connection whose statements end in time, also when the server stands still: keepalives do not notice that."""

    call_seconds = _LONGEST_CALL

    def wait[T](self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        return super().wait(_ending_in(self.call_seconds, gen), *args, **kwargs)


def _ending_in[T](seconds: float, gen: PQGen[T]) -> PQGen[T]:
    deadline = time.monotonic() + seconds
    try:
        state = next(gen)
        while True:
            # Resumed at each of psycopg's intervals, ready or not.
            ready = yield state
            if time.monotonic() > deadline:
                raise psycopg.OperationalError(f"no answer within {seconds:g} seconds")
            state = gen.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result


class Heartbeat:
    """Beats for the producers of one process, until `stop`.

    Args:
        parameters: Those of the connection, asked for again at each reconnect. Called in the event loop.
        prefix: Schema of the tables.
        rescue_after: Seconds that this process may be silent before others take it for dead.
        hearts: The producers of this moment; without any there is no connection. Called in the thread.
        on_the_loop: What runs on the event loop, in words. Called in the thread.
    """

    def __init__(
        self,
        *,
        parameters: Callable[[], Awaitable[Mapping[str, Any]]],
        prefix: str,
        rescue_after: float,
        hearts: Callable[[], Sequence[Heart]],
        on_the_loop: Callable[[], Sequence[str]],
    ) -> None:
        self.interval = min(rescue_after / 4, _LONGEST_INTERVAL)
        self._rescue_after = rescue_after
        self._parameters = parameters
        self._known: Mapping[str, Any] = {}
        self._prefix = prefix
        self._hearts = hearts
        self._conn: _Connection | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._leaving: list[tuple[str, bool]] = []
        self._last_beat = float("-inf")
        self._failures = 0
        self._watch = _LoopWatch(min(_LONGEST_SILENCE_OF_THE_LOOP, rescue_after / 2), on_the_loop)

    async def start(self) -> None:
        """Begin, from the event loop that is to be watched. Started twice, it is one."""
        self._known = await self._parameters()
        self._watch.loop = asyncio.get_running_loop()
        self._watch.thread_id = threading.get_ident()
        self.look()

    def look(self) -> None:
        """Beat for a producer that has come; its thread begins with the first one. Does nothing before `start`."""
        if self._watch.loop is None or self._stopping or not self._hearts():
            return
        if self._thread is None:
            # No thread that the end of the process would wait for.
            self._thread = threading.Thread(target=self._run, name="baton-heartbeat", daemon=True)
            self._thread.start()
        self._wake.set()

    @property
    def running(self) -> bool:
        """Whether the rows of the producers are this thread's business."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def on_time(self) -> bool:
        """Whether the last beat is as young as it should be."""
        return self.running and time.monotonic() - self._last_beat < 2 * self.interval + 1.0

    def leave(self, uuid: str, *, gone: bool) -> None:
        """Beat for a producer no more, which `hearts` names no more.

        Args:
            gone: It has stopped, and its row goes; else it goes on without Baton.
        """
        self._leaving.append((uuid, gone))
        self._wake.set()

    async def stop(self, timeout: float) -> None:
        """Take leave and end; where the server is away, the rows go later, by their age."""
        thread, self._stopping = self._thread, True
        self._wake.set()
        if thread is not None:
            await asyncio.to_thread(thread.join, timeout)

    def _run(self) -> None:
        next_beat = 0.0
        while True:
            stopping = self._stopping
            self._wake.clear()
            if stopping or self._leaving or time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._turn(stopping)
            if stopping or self._watch.loop_is_closed():
                break
            self._watch.look()
            self._wake.wait(min(_TICK, max(0.0, next_beat - time.monotonic())))
        if self._conn is not None:
            self._conn.close()

    def _turn(self, stopping: bool) -> float:
        """Beat once and see off who leaves; returns seconds until the next turn."""
        try:
            hearts = [] if stopping else self._hearts()
            if hearts:
                self._beat(hearts)
            self._see_off()
        except Exception as error:
            self._failures += 1
            self._close()
            if self._failures in (1, 10, 100):
                logger.warning(
                    "no heartbeat (%s); trying again. In %g seconds others will take this process for dead",
                    " ".join(str(error).split()) or type(error).__name__,
                    self._rescue_after,
                )
            longest = min(self.interval, 5.0)
            return random.uniform(0.5, 1.0) * min(0.1 * 2.0 ** min(self._failures, 10), longest)  # noqa: S311
        if self._failures and hearts:
            self._failures = 0
            logger.info("heartbeats are heard again")
        return self.interval

    def _beat(self, hearts: Sequence[Heart]) -> None:
        rows = orjson.dumps(hearts, default=str).decode()
        row = (
            self._connected()
            .execute(_store.statement(_BEAT, self._prefix), (rows, self._rescue_after))
            .fetchone()
        )
        first, self._last_beat = self._last_beat == float("-inf"), time.monotonic()
        assert row is not None
        if row[0] and not first:
            logger.info("made the rows of %d queues anew, which somebody had removed", len(row[0]))

    def _see_off(self) -> None:
        while self._leaving:
            uuid, gone = self._leaving[0]
            name = "delete_producers" if gone else "unmark_producers"
            self._connected().execute(_store.load(name, self._prefix), {"producers": [uuid]})
            self._leaving.pop(0)

    def _connected(self) -> _Connection:
        if self._conn is None:
            self._ask_parameters()
            # What is for the asynchronous connections of a pool is not for this one.
            known = {
                key: value for key, value in self._known.items() if key not in ("cursor_factory", "context")
            }
            self._conn = _Connection.connect(
                **{
                    **known,
                    "connect_timeout": _CONNECT_SECONDS,
                    "application_name": "baton heartbeat",
                    "autocommit": True,
                    "prepare_threshold": None,
                }
            )
            self._conn.call_seconds = min(max(self._rescue_after / 4, _SHORTEST_CALL), _LONGEST_CALL)
        return self._conn

    def _ask_parameters(self) -> None:
        """They may have changed, as a password does that is only good for minutes. A blocked loop cannot tell."""
        assert self._watch.loop is not None
        asked = asyncio.run_coroutine_threadsafe(self._ask(), self._watch.loop)
        try:
            self._known = asked.result(_ASK_SECONDS)
        except FutureTimeout:
            asked.cancel()

    async def _ask(self) -> Mapping[str, Any]:
        return await self._parameters()

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


class _LoopWatch:
    """Asks the event loop to answer, and says when it does not: once for each time that it stands still."""

    def __init__(self, patience: float, on_the_loop: Callable[[], Sequence[str]]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread_id = 0
        self._patience = patience
        self._on_the_loop = on_the_loop
        self._asked_at: float | None = None
        self._said = False

    def loop_is_closed(self) -> bool:
        return self.loop is None or self.loop.is_closed()

    def look(self) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self._said = now, False
            try:
                assert self.loop is not None
                self.loop.call_soon_threadsafe(self._answered)
            except RuntimeError:
                return  # closed
        elif not self._said and now - self._asked_at > self._patience:
            self._said = True
            logger.warning(
                "the event loop has not answered for %.1f seconds%s. Async steps running: %s. What blocks it holds up all "
                "of them, and acks and claims: make that step a plain function (def, not async def), which runs in a thread",
                now - self._asked_at,
                self._place(),
                ", ".join(self._on_the_loop()) or "none",
            )

    def _answered(self) -> None:
        self._asked_at = None

    def _place(self) -> str:
        frame = sys._current_frames().get(self.thread_id)
        if frame is None:
            return ""
        return f"; it is at {frame.f_code.co_filename}, line {frame.f_lineno}, in {frame.f_code.co_qualname}"
