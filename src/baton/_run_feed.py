"""Follows one run: keeps everything about it while somebody follows it."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from baton import snapshot
from baton._feed import MOST_HINTS, Feed, Reader, Reading, polled, step_ids
from baton._known import Known
from baton._subscription import Events, RunChanges
from baton.errors import RunNotFound


class RunFeed(Feed[RunChanges | Events]):
    """The reader of one run."""

    def __init__(self, run_id: UUID, reading: Reading, on_end: Callable[[Feed[Any]], None]) -> None:
        self._id = run_id
        self._known: Known | None = None
        self._hints: set[int] = set()
        self._polls = 0
        self._told_run: snapshot.RunSummary | None = None
        super().__init__(f"workflow:{run_id}", reading, on_end)

    def _note(self, payload: Mapping[str, Any]) -> bool:
        steps = step_ids(payload)
        if steps is None or len(self._hints) + len(steps) > MOST_HINTS:
            return False
        self._hints.update(steps)
        return True

    async def _look(
        self, conn: AsyncConnection, entering: list[RunChanges | Events], *, compare: bool, poll: bool
    ) -> bool:
        hints, self._hints = self._hints, set()
        run = await snapshot.read_run(conn, self.reading.prefix, self._id)
        if run is None:
            raise RunNotFound(
                f"there is no run {self._id}; it may have been pruned, or inserted in a transaction rolled back"
            )
        if self._known is None:
            known = Known(run)
            reader = Reader(conn, self.reading.prefix, {run.id: known})
            await reader.read_all([run.id])
            await reader.end([known])
            self._known = known
            return True
        known = self._known
        reader = Reader(conn, self.reading.prefix, {run.id: known})
        compare = compare or run.generation != known.run.generation
        known.revive(run)
        await reader.read(hints)
        if compare:
            await reader.compare(known.steps.values())
        elif poll:
            self._polls += 1
            found = await reader.compare(polled([known], self._polls))
            # What nobody told, or has not told yet, is not the only thing perhaps.
            if (found or known.unsettled != run.unsettled) and self._may_compare():
                compare = True
                await reader.compare(known.live())
        if run.finished_at is not None and known.unsettled > 0:
            # The end was seen before the notifications of what led to it. It is told after that.
            await reader.compare(known.live())
        await reader.end([known])
        return compare

    def _tell(self) -> None:
        assert self._known is not None
        steps, events = self._known.take()
        changed, self._told_run = self._told_run != self._known.run, self._known.run
        for subscriber in self.subscribers:
            if isinstance(subscriber, RunChanges):
                if changed or steps:
                    subscriber.tell(steps)
            elif events:
                subscriber.tell(events)

    def _seed(self, subscriber: RunChanges | Events) -> None:
        assert self._known is not None
        if isinstance(subscriber, RunChanges):
            subscriber.seed(self._known)
        else:
            subscriber.tell(self._known.facts)
