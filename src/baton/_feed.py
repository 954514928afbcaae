"""Follows runs: one reader for each topic in this process, however many subscribe.

A notification says which steps have changed. The reader reads those, many at a time, keeps what it read, and tells each
subscriber which they are. That is a small buffer, in which the later takes the place of the earlier, so one that never asks
delays nobody. Behind the notifications is a poll that compares counters and versions of rows, and a comparison of everything
whenever something may have been missed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from psycopg import AsyncConnection, OperationalError

from baton import _store, snapshot
from baton._deadline import end, pause_after
from baton._known import Known
from baton._waiting import Waiters
from baton.errors import BatonError, NotStarted, RunNotFound
from baton.snapshot import Marked

logger = logging.getLogger("baton")

# From one look to the next at least so long, so that what changes meanwhile is read at once.
_BATCH_SECONDS = 0.05
# A comparison of everything takes at most this part of the time.
_COMPARING = 0.1
_LONGEST_PAUSE = 5.0
_READ_AT_ONCE = 1_000
_COMPARED_AT_ONCE = 10_000
# Of the steps that run or may, and of all that have not settled, so many are looked at in each poll, and others in the next.
_POLLED = 1_000
# What is read of a run and of its steps is of one moment; each row is looked up, as in the engine, however many there are.
_MOMENT = (
    b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; SET LOCAL enable_seqscan = off; "
    b"SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
)
# More than that are not remembered one by one.
MOST_HINTS = 10_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What every reader needs."""

    connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    prefix: str
    waiters: Waiters


class Subscriber(Protocol):
    """Whom a feed tells."""

    def end(self) -> None:
        """There is nothing more to follow."""


class Feed[S: Subscriber]:
    """The one reader of a topic. It lives while somebody subscribes."""

    def __init__(self, topic: str, reading: Reading, on_end: Callable[["Feed[S]"], None]) -> None:
        self.topic = topic
        self.subscribers: set[S] = set()
        self.reading = reading
        self._on_end = on_end
        self._wake = asyncio.Event()
        self._entering: dict[S, asyncio.Future[None]] = {}
        # Whether something may have been missed, and since when everything may be compared again.
        self._missed = False
        self._compare_at = 0.0
        self._poll_at = 0.0
        self._task = asyncio.create_task(self._run(), name=f"baton-feed-{topic}")

    async def enter(self, subscriber: S) -> None:
        """Tell a subscriber what holds now, as it is read after this, and from then on what changes.

        Raises:
            RunNotFound: There is no such run.
            OperationalError: The database is away.
        """
        looked = self._entering[subscriber] = asyncio.get_running_loop().create_future()
        self._wake.set()
        try:
            await looked
        except BaseException:
            await self.leave(subscriber)
            raise

    async def leave(self, subscriber: S) -> None:
        """Tell it no more. With the last one the feed ends."""
        self.subscribers.discard(subscriber)
        self._entering.pop(subscriber, None)
        if not self.subscribers and not self._entering:
            await self.stop(NotStarted("nobody follows any more"))

    async def stop(self, why: BatonError) -> None:
        """End all subscriptions, and this reader."""
        self._end(why)
        await end(self._task)

    def _end(self, why: BatonError) -> None:
        self._on_end(self)
        for subscriber in self.subscribers:
            subscriber.end()
        self._refuse(list(self._entering), why)

    def _refuse(self, entering: Iterable[S], why: Exception) -> None:
        for subscriber in entering:
            looked = self._entering.pop(subscriber, None)
            if looked is not None and not looked.done():
                looked.set_exception(why)

    def hear(self, payload: Mapping[str, Any] | None) -> None:
        """Something has changed: what, is said by a payload that anybody may have sent; None: anything may have."""
        if payload is None or not self._note(payload):
            self._missed = True
        self._wake.set()

    async def _run(self) -> None:
        await self.reading.waiters.join(self.topic, self.hear)
        try:
            await self._follow()
        finally:
            self.reading.waiters.leave(self.topic, self.hear)

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            self._wake.clear()
            began = clock()
            entering = list(self._entering)
            try:
                await self.reading.waiters.renew(self.topic)
                await self._look_at_once(entering)
                looked = clock()
                failures = 0
            except RunNotFound as error:
                self._end(error)
                return
            except Exception as error:
                # What was being read is not known to be told.
                self._missed, self._compare_at = True, 0.0
                self._refuse(entering, error)
                failures += 1
                if isinstance(error, OperationalError):
                    logger.warning("could not look at %s (%s); trying again", self.topic, _one_line(error))
                else:
                    logger.exception("could not look at %s; trying again", self.topic)
                await asyncio.sleep(pause_after(failures, first=0.2, longest=_LONGEST_PAUSE))
                continue
            await self.reading.waiters.rest(self._wake)
            # Reading takes at most half of the time.
            await asyncio.sleep(began + max(_BATCH_SECONDS, 2 * (looked - began)) - clock())

    async def _look_at_once(self, entering: list[S]) -> None:
        """Look, and tell everybody; those who enter what holds now."""
        clock = asyncio.get_running_loop().time
        began = clock()
        compare = self._missed and began >= self._compare_at
        poll = began >= self._poll_at
        if compare:
            self._missed = False
        async with self.reading.connection() as conn, conn.transaction():
            await conn.execute(_MOMENT)
            compared = await self._look(conn, entering, compare=compare, poll=poll)
        if poll:
            self._poll_at = began + self.reading.waiters.poll_interval
        if compared:
            self._compare_at = clock() + (clock() - began) / _COMPARING
        self._tell()
        for subscriber in entering:
            looked = self._entering.pop(subscriber, None)
            if looked is not None and not looked.done():
                self.subscribers.add(subscriber)
                self._seed(subscriber)
                looked.set_result(None)

    def _may_compare(self) -> bool:
        """Whether there is time for a comparison of many steps; if not, there is one as soon as there is."""
        if asyncio.get_running_loop().time() >= self._compare_at:
            return True
        self._missed = True
        return False

    def _note(self, payload: Mapping[str, Any]) -> bool:
        """Remember what is to be read, and return whether the payload said so."""
        raise NotImplementedError

    async def _look(self, conn: AsyncConnection, entering: list[S], *, compare: bool, poll: bool) -> bool:
        """Read what has changed.

        Args:
            entering: Who has not been told anything so far.
            compare: Anything may have changed.
            poll: It is time to see whether a notification was lost.

        Returns:
            Whether so much was compared that it should not happen again soon.

        Raises:
            RunNotFound: There is nothing to follow any more.
        """
        raise NotImplementedError

    def _tell(self) -> None:
        """Tell the subscribers what was read."""
        raise NotImplementedError

    def _seed(self, subscriber: S) -> None:
        """Tell a new one what holds."""
        raise NotImplementedError


class Reader:
    """Reads steps into what is known of their runs."""

    def __init__(self, conn: AsyncConnection, prefix: str, known: Mapping[str, Known]) -> None:
        self._conn = conn
        self._prefix = prefix
        self._known = known

    async def read_all(self, run_ids: Iterable[str]) -> None:
        """All steps of these runs."""
        cursor = await self._conn.execute(
            _store.load("find_steps_of_runs", self._prefix), {"ids": list(run_ids)}
        )
        await self.read(step_id for (step_id,) in await cursor.fetchall())

    async def read(self, ids: Iterable[int]) -> None:
        """Steps by id, those of the runs that are known."""
        for some in itertools.batched(ids, _READ_AT_ONCE):
            found = {step.id: step for step in await snapshot.read_marked(self._conn, self._prefix, some)}
            for step_id in some:
                if step_id in found and (known := self._known.get(found[step_id].run_id)) is not None:
                    known.keep(found[step_id])

    async def compare(self, steps: Iterable[Marked]) -> bool:
        """Those of the steps that are not any more as they were read; returns whether there were any."""
        found = False
        for some in itertools.batched(list(steps), _COMPARED_AT_ONCE):
            cursor = await self._conn.execute(
                _store.load("find_changed_steps", self._prefix),
                {"ids": [step.id for step in some], "marks": [step.mark for step in some]},
            )
            changed = [step_id for (step_id,) in await cursor.fetchall()]
            found = found or bool(changed)
            await self.read(changed)
        return found

    async def end(self, runs: Iterable[Known]) -> None:
        """The ends of these runs that were not told."""
        told = {known.run.id: known.told_generation for known in runs if has_ended(known)}
        if told:
            for finished in await snapshot.read_ends(self._conn, self._prefix, told):
                self._known[finished.workflow_id].finish(finished)


def has_ended(known: Known) -> bool:
    """Whether there is an end that was not told."""
    ended = known.run.generation if known.run.finished_at is not None else known.run.generation - 1
    return ended > known.told_generation


def polled(known: Iterable[Known], polls: int) -> set[Marked]:
    """Steps to look at in this poll: some of those that may move and some of the others, and others at each poll."""
    moving: list[Marked] = []
    live: list[Marked] = []
    for run in known:
        moving += run.moving()
        live += run.live()
    return {*_some_of(moving, polls), *_some_of(live, polls)}


def _some_of[T](steps: list[T], polls: int) -> list[T]:
    if len(steps) <= _POLLED:
        return steps
    start = polls * _POLLED % len(steps)
    return [*steps[start:], *steps[:start]][:_POLLED]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def step_ids(payload: Mapping[str, Any]) -> list[int] | None:
    """The steps that a notification names, None if it does not, or is none of ours."""
    steps = payload.get("steps")
    if isinstance(steps, list) and all(type(step) is int and 0 < step < 2**63 for step in steps):
        return steps
    return None
