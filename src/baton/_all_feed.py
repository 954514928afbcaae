"""Follows all runs: what each is, and, while somebody wants to know, what its steps come to.

Kept are versions of the newest live runs and of those that changed last, and, for events, the steps of live runs. Whatever is
not kept is read when a notification names it; a poll sees what became of the runs that are kept, and which have finished since.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from baton import _store, snapshot
from baton._feed import MOST_HINTS, Feed, Reader, Reading, polled, step_ids
from baton._known import Known
from baton._subscription import Events, RunsChanges
from baton.snapshot import RunSummary

_FIRST = 50
_MOST_RUNS = 1_000
_MOST_STEPS = 100_000
_MOST_ENDS = 100_000
_AT_ONCE = 1_000
# A run may be finished that much longer than its commit is seen; or, where a notification of it may have been missed, this.
_OVERLAP = timedelta(seconds=2)
_LONG_OVERLAP = timedelta(seconds=60)


class AllFeed(Feed[RunsChanges | Events]):
    """The reader of all runs."""

    def __init__(self, reading: Reading, on_end: Callable[[Feed[Any]], None]) -> None:
        # Runs that were named, with the steps that were; None: any of them.
        self._hints: dict[str, set[int] | None] = {}
        self._hinted = 0
        # Versions of rows.
        self._live: dict[str, str] = {}
        self._done: OrderedDict[str, str] = OrderedDict()
        # The last generation whose end was told.
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._since: datetime | None = None
        self._began: datetime | None = None
        self._known: dict[str, Known] = {}
        self._follows_steps = False
        self._polls = 0
        self._newest: list[RunSummary] = []
        # What was read and not told.
        self._news: dict[str, RunSummary | None] = {}
        super().__init__("workflow:all", reading, on_end)

    def _note(self, payload: Mapping[str, Any]) -> bool:
        run_id = _run_id(payload)
        steps = step_ids(payload)
        if run_id is None or self._hinted > MOST_HINTS:
            return False
        self._hinted += 1 + len(steps or ())
        if steps is None or self._hints.get(run_id, ()) is None:
            self._hints[run_id] = None
        else:
            self._hints[run_id] = (self._hints.get(run_id) or set()).union(steps)
        return True

    async def _look(
        self, conn: AsyncConnection, entering: list[RunsChanges | Events], *, compare: bool, poll: bool
    ) -> bool:
        hints, self._hints, self._hinted = self._hints, {}, 0
        named = dict.fromkeys(hints)
        if compare or poll or self._began is None:
            named.update(dict.fromkeys(await self._find_changed(conn)))
            named.update(
                dict.fromkeys(await self._find_finished(conn, _LONG_OVERLAP if compare else _OVERLAP))
            )
        read = await self._read_runs(conn, named)
        if any(isinstance(subscriber, RunsChanges) for subscriber in entering):
            rows = await snapshot.read_marked_runs(
                conn, self.reading.prefix, await self._ids(conn, "find_newest_runs", limit=_FIRST)
            )
            self._newest = [run for run, _ in rows]
            # They are kept, so that it is seen when one is gone.
            for run, mark in rows:
                if run.id not in self._live:
                    self._done.setdefault(run.id, mark)
        if not any(isinstance(subscriber, Events) for subscriber in (*self.subscribers, *entering)):
            self._known.clear()
            self._follows_steps = False
            return compare
        if not self._follows_steps:
            read = [run for run, _ in await snapshot.read_marked_runs(conn, self.reading.prefix, self._live)]
            self._follows_steps = True
        return await self._read_steps(conn, read, hints, compare=compare, poll=poll)

    async def _ids(self, conn: AsyncConnection, name: str, **params: object) -> list[str]:
        cursor = await conn.execute(_store.load(name, self.reading.prefix), params)
        return [str(row[0]) for row in await cursor.fetchall()]

    async def _find_changed(self, conn: AsyncConnection) -> list[str]:
        marks = {**self._live, **self._done}
        return await self._ids(
            conn, "find_changed_runs", ids=list(marks), marks=list(marks.values()), limit=_MOST_RUNS
        )

    async def _find_finished(self, conn: AsyncConnection, overlap: timedelta) -> list[str]:
        """Runs that have finished lately, and whose end was not told."""
        if self._since is None or self._began is None:
            row = await (await conn.execute("SELECT now()")).fetchone()
            assert row is not None
            self._since = self._began = row[0]
            return []
        found = []
        since = self._since
        after, after_id = max(since - overlap, self._began), None
        while True:
            cursor = await conn.execute(
                _store.load("find_finished_runs", self.reading.prefix),
                {"since": after, "after_id": after_id, "limit": _AT_ONCE},
            )
            rows = await cursor.fetchall()
            found += [
                str(run_id) for run_id, generation, _ in rows if self._ended.get(str(run_id)) != generation
            ]
            if rows:
                after_id, _, after = rows[-1]
            if len(rows) < _AT_ONCE:
                self._since = max(since, after)
                return found

    async def _read_runs(self, conn: AsyncConnection, ids: Iterable[str]) -> list[RunSummary]:
        read = []
        for some in itertools.batched(ids, _AT_ONCE):
            rows = {
                run.id: (run, mark)
                for run, mark in await snapshot.read_marked_runs(conn, self.reading.prefix, some)
            }
            for run_id in some:
                before = self._live.pop(run_id, None) or self._done.pop(run_id, None)
                if run_id not in rows:
                    if before is not None:
                        self._news[run_id] = None
                    self._known.pop(run_id, None)
                    continue
                run, mark = rows[run_id]
                (self._live if run.finished_at is None else self._done)[run_id] = mark
                if mark != before:
                    self._news[run_id] = run
                read.append(run)
        # Ids are ordered by time.
        for run_id in sorted(self._live)[:-_MOST_RUNS]:
            del self._live[run_id]
        while len(self._done) > _MOST_RUNS:
            self._done.popitem(last=False)
        return read

    async def _read_steps(
        self,
        conn: AsyncConnection,
        read: list[RunSummary],
        hints: Mapping[str, set[int] | None],
        *,
        compare: bool,
        poll: bool,
    ) -> bool:
        reader = Reader(conn, self.reading.prefix, self._known)
        new = []
        again = []
        for run in read:
            known = self._known.get(run.id)
            if known is not None:
                if hints.get(run.id, ()) is None or run.generation != known.run.generation:
                    again.append(known)
                known.revive(run)
            elif run.finished_at is None or self._is_news(run):
                self._known[run.id] = known = Known(run)
                known.told_generation = self._ended.get(run.id, known.told_generation)
                new.append(run.id)
        self._forget()
        for some in itertools.batched(new, _AT_ONCE):
            await reader.read_all(some)
        for known in self._known.values() if compare else again:
            await reader.compare(known.steps.values())
        await reader.read({step_id for steps in hints.values() for step_id in steps or ()})
        if poll:
            self._polls += 1
            found = await reader.compare(polled(self._known.values(), self._polls))
            short = any(known.unsettled != known.run.unsettled for known in self._known.values())
            # What nobody told, or has not told yet, is not the only thing perhaps.
            if (found or short) and self._may_compare():
                compare = True
                await reader.compare(step for known in self._known.values() for step in known.live())
        for known in self._known.values():
            if known.unsettled > 0 and known.run.finished_at is not None:
                # The end was seen before the notifications of what led to it. It is told after that.
                await reader.compare(known.live())
        await reader.end(self._known.values())
        return compare

    def _is_news(self, run: RunSummary) -> bool:
        """Whether it finished while somebody followed, and nobody was told."""
        assert self._began is not None
        return (
            run.finished_at is not None
            and run.finished_at >= self._began
            and self._ended.get(run.id) != run.generation
        )

    def _forget(self) -> None:
        """Keep no more steps than there is room for: the oldest runs are read anew when they are heard of."""
        steps = sum(known.run.steps for known in self._known.values())
        for run_id in sorted(self._known):
            if steps <= _MOST_STEPS or len(self._known) == 1:
                return
            steps -= self._known.pop(run_id).run.steps

    def _tell(self) -> None:
        runs, self._news = self._news, {}
        for run in runs.values():
            if run is not None and run.finished_at is not None:
                self._ended[run.id] = run.generation
                self._ended.move_to_end(run.id)
        while len(self._ended) > _MOST_ENDS:
            self._ended.popitem(last=False)
        events = {}
        for known in list(self._known.values()):
            _, news = known.take()
            events.update(news)
            if known.run.finished_at is not None and known.told_generation == known.run.generation:
                del self._known[known.run.id]
        events = {key: event for key, event in events.items() if key[0] != "streamed"}
        for subscriber in self.subscribers:
            if isinstance(subscriber, RunsChanges):
                if runs:
                    subscriber.tell(runs)
            elif events:
                subscriber.tell(events)

    def _seed(self, subscriber: RunsChanges | Events) -> None:
        if isinstance(subscriber, RunsChanges):
            subscriber.tell({run.id: run for run in self._newest})
            return
        for _, known in sorted(self._known.items()):
            subscriber.tell({key: fact for key, fact in known.facts.items() if key[0] != "streamed"})


def _run_id(payload: Mapping[str, Any]) -> str | None:
    try:
        return str(UUID(payload["id"]))
    except Exception:
        # Whatever anybody sent.
        return None
