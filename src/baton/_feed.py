"""Follows runs: one reader for each topic in this process, however many subscribe, and a small buffer for each subscriber.

A notification says which steps have changed. The reader reads those, many at a time, keeps what it read, and marks in each
subscriber's buffer which of them it has not been told; what it is told is made when it asks, from what holds then. So one that
never asks costs a mark for each step and delays nobody. Behind the notifications is a poll that compares counters and marks of
rows, and a comparison of everything whenever something may have been missed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from psycopg import AsyncConnection, OperationalError

from baton import snapshot
from baton._deadline import end
from baton._waiting import Waiters
from baton.errors import BatonError, NotStarted, RunNotFound
from baton.snapshot import Marked, RunChange, RunSummary

logger = logging.getLogger("baton")

# From one look to the next at least so long, so that what changes meanwhile is read at once.
_BATCH_SECONDS = 0.05
# A comparison of everything takes at most this part of the time.
_COMPARING = 0.1
_READ_AT_ONCE = 1_000
_COMPARED_AT_ONCE = 10_000
# Of the steps that run or may, so many are looked at in each poll, and the others in the next.
_POLLED = 2_000
_MOST_HINTS = 10_000
_LONGEST_PAUSE = 5.0


class Subscription[T]:
    """What one subscriber has not been told yet. Entered once, then iterated; it ends when there is nothing more to follow."""

    def __init__(self, feeds: "Feeds", topic: str, what: str) -> None:
        self._feeds = feeds
        self._topic = topic
        self._what = what
        self._feed: Feed | None = None
        self._entered = False
        self._news = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise NotStarted(f"{self._what} was entered before; call it again for another subscription")
        self._entered = True
        self._feed = await self._feeds.enter(self._topic, self)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            await self._feeds.leave(feed, self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            if self._feed is None:
                raise NotStarted(f"use `async with {self._what} as ...:`, and iterate inside")
            news = self._take(self._feed)
            if news is not None:
                return news
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def end(self) -> None:
        """Nothing will change any more. What was not told yet still is."""
        self._ended = True
        self._news.set()

    def _take(self, feed: Any) -> T | None:
        """What is new since the last call, None if nothing."""
        raise NotImplementedError

    def changed(self, run: bool, steps: Iterable[int]) -> None:
        """The feed has news."""
        raise NotImplementedError


class RunChanges(Subscription[RunChange]):
    """Of one run: which of its steps were not told."""

    def __init__(self, feeds: "Feeds", topic: str, what: str) -> None:
        super().__init__(feeds, topic, what)
        # None: all of them.
        self._steps: dict[int, None] | None = None
        self._run = True

    def changed(self, run: bool, steps: Iterable[int]) -> None:
        self._run = self._run or run
        if self._steps is not None:
            self._steps.update(dict.fromkeys(steps))
        self._news.set()

    def _take(self, feed: Any) -> RunChange | None:
        assert isinstance(feed, RunFeed)
        if not self._run and not self._steps:
            return None
        told = feed.steps if self._steps is None else self._steps
        self._steps, self._run = {}, False
        return RunChange(feed.run, tuple(feed.steps[step_id].status for step_id in told))


class Feed:
    """The one reader of a topic. It lives while somebody subscribes."""

    def __init__(self, topic: str, waiters: Waiters, poll_interval: float) -> None:
        self.topic = topic
        self.subscribers: set[Subscription[Any]] = set()
        self._waiters = waiters
        self._poll_interval = poll_interval
        self.ended = False
        self._wake = asyncio.Event()
        self._entering: list[asyncio.Future[None]] = []
        self._hints: set[int] = set()
        # Whether something may have been missed, and since when one may compare everything again.
        self._missed = False
        self._compare_at = 0.0
        self._task = asyncio.create_task(self._run(), name=f"baton-feed-{topic}")

    async def next_look(self) -> None:
        """Wait until what holds now has been read.

        Raises:
            Whatever kept the feed from reading.
        """
        looked = asyncio.get_running_loop().create_future()
        self._entering.append(looked)
        self._wake.set()
        await looked

    async def stop(self) -> None:
        """End all subscriptions."""
        self._end(NotStarted("Baton was stopped"))
        await end(self._task)

    def _end(self, why: BatonError) -> None:
        self.ended = True
        for subscriber in self.subscribers:
            subscriber.end()
        self._answer(len(self._entering), why)

    def _answer(self, count: int, error: Exception | None) -> None:
        """Tell the first so many of those who wait for a look what it came to."""
        answered, self._entering = self._entering[:count], self._entering[count:]
        for looked in answered:
            if not looked.done():
                looked.set_result(None) if error is None else looked.set_exception(error)

    def _hear(self, payload: Mapping[str, Any] | None) -> None:
        steps = payload.get("steps") if payload is not None else None
        if (
            isinstance(steps, list)
            and len(self._hints) + len(steps) <= _MOST_HINTS
            and all(type(step) is int and 0 < step < 2**63 for step in steps)
        ):
            self._hints.update(steps)
        else:
            self._missed = True
        self._wake.set()

    async def _run(self) -> None:
        await self._waiters.join(self.topic, self._hear)
        try:
            await self._follow()
        finally:
            self._waiters.leave(self.topic, self._hear)

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            self._wake.clear()
            began = clock()
            entering = len(self._entering)
            try:
                await self._waiters.renew(self.topic)
                await self._look()
                failures = 0
                self._answer(entering, None)
            except RunNotFound as error:
                self._end(error)
                return
            except Exception as error:
                self._missed = True
                self._answer(entering, error)
                failures += 1
                if isinstance(error, OperationalError):
                    logger.warning(
                        "could not look at %s (%s); trying again", self.topic, " ".join(str(error).split())
                    )
                else:
                    logger.exception("could not look at %s; trying again", self.topic)
                await asyncio.sleep(min(0.1 * 2**failures, _LONGEST_PAUSE))
            try:
                async with asyncio.timeout(self._poll_interval):
                    await self._wake.wait()
            except TimeoutError:
                pass
            took = clock() - began
            if took < _BATCH_SECONDS:
                await asyncio.sleep(_BATCH_SECONDS - took)

    async def _look(self) -> None:
        """Read what has changed and tell the subscribers.

        Raises:
            RunNotFound: There is nothing to follow any more.
        """
        raise NotImplementedError


class RunFeed(Feed):
    """Everything about one run, kept while somebody follows it."""

    run: RunSummary

    def __init__(
        self,
        run_id: UUID,
        topic: str,
        waiters: Waiters,
        poll_interval: float,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
    ) -> None:
        self.steps: dict[int, Marked] = {}
        self._id = run_id
        self._connection = connection
        self._prefix = prefix
        self._unsettled = 0
        self._seeded = False
        self._poll_at = 0.0
        self._polled = 0
        # What was read and not told yet.
        self._news: dict[int, None] = {}
        super().__init__(topic, waiters, poll_interval)

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        hints, self._hints = self._hints, set()
        compare = self._missed and began >= self._compare_at
        if compare:
            self._missed = False
        async with self._connection() as conn, conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            run = await snapshot.read_run(conn, self._prefix, self._id)
            if run is None:
                raise RunNotFound(
                    f"there is no run {self._id}; it may have been pruned, or inserted in a transaction rolled back"
                )
            if not self._seeded:
                await self._read(conn, await snapshot.read_step_ids(conn, self._prefix, self._id))
                self._seeded = True
            else:
                await self._read(conn, hints)
                if compare or run.generation != self.run.generation:
                    await self._compare(conn, self.steps)
                    self._compare_at = clock() + (clock() - began) / _COMPARING
                elif began >= self._poll_at:
                    self._poll_at = began + self._poll_interval
                    await self._compare(conn, self._some_that_move())
                    if self._unsettled != run.unsettled and clock() >= self._compare_at:
                        await self._compare(conn, self._all_unsettled())
                        self._compare_at = clock() + (clock() - began) / _COMPARING
                if run.finished_at is not None and self._unsettled > 0:
                    # The end was seen before the notifications of what led to it. It is told after that.
                    await self._compare(conn, self._all_unsettled())
        self._tell(run)

    def _some_that_move(self) -> list[int]:
        """Steps that run or may start: what they come to needs no other step."""
        moving = [
            step.id
            for step in self.steps.values()
            if not step.status.state.settled and step.status.waiting_on == 0
        ]
        if len(moving) <= _POLLED:
            return moving
        start, self._polled = self._polled % len(moving), self._polled + _POLLED
        return [*moving[start:], *moving[:start]][:_POLLED]

    def _all_unsettled(self) -> list[int]:
        return [step.id for step in self.steps.values() if not step.status.state.settled]

    async def _compare(self, conn: AsyncConnection, ids: Iterable[int]) -> None:
        """Read those of the steps that are not any more as they were read."""
        for some in itertools.batched(ids, _COMPARED_AT_ONCE):
            marks = {step_id: self.steps[step_id].mark for step_id in some}
            await self._read(conn, await snapshot.find_changed(conn, self._prefix, marks))

    async def _read(self, conn: AsyncConnection, ids: Iterable[int]) -> None:
        for some in itertools.batched(ids, _READ_AT_ONCE):
            found = {step.id: step for step in await snapshot.read_marked(conn, self._prefix, some)}
            for step_id in some:
                if step_id in found and found[step_id].run_id == str(self._id):
                    self._keep(found[step_id])

    def _keep(self, step: Marked) -> None:
        before = self.steps.get(step.id)
        self.steps[step.id] = step
        self._unsettled += (not step.status.state.settled) - (
            before is not None and not before.status.state.settled
        )
        if before is None or before.status != step.status:
            self._news[step.id] = None

    def _tell(self, run: RunSummary) -> None:
        changed = getattr(self, "run", None) != run
        self.run = run
        news, self._news = self._news, {}
        if changed or news:
            for subscriber in self.subscribers:
                subscriber.changed(changed, news)


class Feeds:
    """The feeds of this process, by topic."""

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        waiters: Waiters,
        poll_interval: float,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._waiters = waiters
        self._poll_interval = poll_interval
        self._feeds: dict[str, Feed] = {}
        self._open = False

    def start(self) -> None:
        """From now on one may subscribe."""
        self._open = True

    async def stop(self) -> None:
        """End all subscriptions, also while the database is away."""
        self._open = False
        feeds, self._feeds = self._feeds, {}
        await asyncio.gather(*(feed.stop() for feed in feeds.values()))

    def run_changes(self, run_id: UUID) -> RunChanges:
        """Of one run; see `Run.changes`."""
        return RunChanges(self, f"workflow:{run_id}", "run.changes()")

    async def enter(self, topic: str, subscriber: Subscription[Any]) -> Feed:
        """Add a subscriber to the feed of its topic, once that has read what holds now."""
        if not self._open:
            raise NotStarted(
                "following needs a running Baton: use it inside `async with baton:`, or after `await baton.start()`"
            )
        feed = self._feeds.get(topic)
        if feed is None or feed.ended:
            feed = self._feeds[topic] = RunFeed(
                UUID(topic.removeprefix("workflow:")),
                topic,
                self._waiters,
                self._poll_interval,
                self._connection,
                self._prefix,
            )
        feed.subscribers.add(subscriber)
        try:
            await feed.next_look()
        except BaseException:
            await self.leave(feed, subscriber)
            raise
        return feed

    async def leave(self, feed: Feed, subscriber: Subscription[Any]) -> None:
        """Remove a subscriber; the last one's feed ends."""
        feed.subscribers.discard(subscriber)
        if not feed.subscribers:
            if self._feeds.get(feed.topic) is feed:
                del self._feeds[feed.topic]
            await feed.stop()
