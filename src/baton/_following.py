"""What is followed in this process, by topic: one feed each, for as long as somebody subscribes."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from baton import _subscription
from baton._all_feed import AllFeed
from baton._feed import Feed, Reading
from baton._run_feed import RunFeed
from baton._subscription import Events, RunChanges, RunsChanges, Subscription
from baton.errors import NotStarted


class Following:
    """The feeds of this process."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._feeds: dict[str, Feed[Any]] = {}
        self._open = False

    def start(self) -> None:
        """From now on one may subscribe."""
        self._open = True

    async def stop(self) -> None:
        """End all subscriptions, also while the database is away."""
        self._open = False
        why = NotStarted("Baton was stopped")
        await asyncio.gather(*(feed.stop(why) for feed in list(self._feeds.values())))

    def run_changes(self, run_id: UUID) -> RunChanges:
        """Of one run, for `run.changes()`."""
        return RunChanges(self._run(run_id), "run.changes()")

    def run_events(self, run_id: UUID) -> Events:
        """Of one run to its end, for `run.events()`."""
        return Events(self._run(run_id), "run.events()", to_the_end=True)

    def events(self, run_id: UUID | None) -> Events:
        """Of one run or of all, for `baton.subscribe()`."""
        if run_id is not None:
            return Events(self._run(run_id), "baton.subscribe()")
        return Events(self._all, "baton.subscribe()", most=_subscription.MOST_PENDING)

    def runs_changes(self) -> RunsChanges:
        """Of all runs, for `baton.changes()`."""
        return RunsChanges(self._all, "baton.changes()")

    def _run(self, run_id: UUID) -> Callable[[Any], Any]:
        async def enter(subscriber: Subscription[Any]) -> Feed[Any]:
            return await self._enter(
                f"workflow:{run_id}", lambda: RunFeed(run_id, self._reading, self._drop), subscriber
            )

        return enter

    async def _all(self, subscriber: Subscription[Any]) -> Feed[Any]:
        return await self._enter("workflow:all", lambda: AllFeed(self._reading, self._drop), subscriber)

    async def _enter(
        self, topic: str, make: Callable[[], Feed[Any]], subscriber: Subscription[Any]
    ) -> Feed[Any]:
        if not self._open:
            raise NotStarted(
                "following needs a running Baton: use it inside `async with baton:`, or after `await baton.start()`"
            )
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = make()
        await feed.enter(subscriber)
        return feed

    def _drop(self, feed: Feed[Any]) -> None:
        """It has ended; whoever comes next gets another."""
        if self._feeds.get(feed.topic) is feed:
            del self._feeds[feed.topic]
