"""What one subscriber has not been told yet, and how it asks."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from baton._known import Key, Known
from baton.errors import NotStarted
from baton.events import Event, WorkflowFinished
from baton.snapshot import RunChange, RunsChange, RunSummary

# Of all runs one may fall behind so far; of one run, by what there is of it.
MOST_PENDING = 10_000


class Source(Protocol):
    """Who tells a subscriber."""

    async def leave(self, subscriber: "Subscription[Any]") -> None:
        """Tell it no more."""


class Subscription[T]:
    """An iterator over what is new, for one subscriber. Entered once; it ends when there is nothing more to follow.

    Args:
        enter: Has the subscription told from now on, by the source that it returns.
        what: What the user called to get it.
    """

    def __init__(self, enter: Callable[[Any], Awaitable[Source]], what: str) -> None:
        self._enter = enter
        self._what = what
        self._source: Source | None = None
        self._entered = False
        self._ended = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._entered:
            raise NotStarted(f"this {self._what} was entered before; call it again for another subscription")
        self._entered = True
        self._source = await self._enter(self)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        source, self._source = self._source, None
        if source is not None:
            self.end()
            await source.leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            if self._source is None:
                raise NotStarted(f"use `async with {self._what} as ...:`, and iterate inside")
            news = self._take()
            if news is not None:
                return news
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def end(self) -> None:
        """Nothing will be told any more. What was not asked for yet still is told."""
        self._ended = True
        self._news.set()

    def _take(self) -> T | None:
        """What is new since the last call, None if nothing."""
        raise NotImplementedError


class RunChanges(Subscription[RunChange]):
    """Which steps of a run were not told."""

    _known: Known
    _steps: dict[int, None]
    _run: bool

    def seed(self, known: Known) -> None:
        """Begin with all of it."""
        self._known = known
        self._steps = dict.fromkeys(known.steps)
        self._run = True
        self._news.set()

    def tell(self, steps: Mapping[int, None]) -> None:
        """The run has changed, and these steps of it."""
        self._steps.update(steps)
        self._run = True
        self._news.set()

    def _take(self) -> RunChange | None:
        if not self._run:
            return None
        steps, self._steps, self._run = self._steps, {}, False
        return RunChange(self._known.run, tuple(self._known.steps[step_id].status for step_id in steps))


class RunsChanges(Subscription[RunsChange]):
    """Which runs were not told, as they are, or that they are gone."""

    def __init__(self, enter: Callable[[Any], Awaitable[Source]], what: str) -> None:
        super().__init__(enter, what)
        self._runs: OrderedDict[str, RunSummary | None] = OrderedDict()
        self._first = True

    def tell(self, runs: Mapping[str, RunSummary | None]) -> None:
        """These are so now; None: gone."""
        _put(self._runs, runs, MOST_PENDING)
        self._news.set()

    def _take(self) -> RunsChange | None:
        if not self._runs and not self._first:
            return None
        runs, self._runs, self._first = self._runs, OrderedDict(), False
        return RunsChange(
            runs=tuple(run for run in runs.values() if run is not None),
            removed=tuple(run_id for run_id, run in runs.items() if run is None),
        )


class Events(Subscription[Event]):
    """Events that were not told, the last about each thing.

    Args:
        most: How many of them are kept, the last. None: all, which are no more than there are steps.
        to_the_end: End after a WorkflowFinished.
    """

    def __init__(
        self,
        enter: Callable[[Any], Awaitable[Source]],
        what: str,
        *,
        most: int | None = None,
        to_the_end: bool = False,
    ) -> None:
        super().__init__(enter, what)
        self._events: OrderedDict[Key, Event] = OrderedDict()
        self._most = most
        self._to_the_end = to_the_end

    def tell(self, events: Mapping[Key, Event]) -> None:
        """These came to be, in this order."""
        _put(self._events, events, self._most)
        self._news.set()

    def _take(self) -> Event | None:
        if not self._events:
            return None
        _, event = self._events.popitem(last=False)
        if self._to_the_end and isinstance(event, WorkflowFinished):
            self._events.clear()
            self.end()
        return event


def _put[K, V](pending: OrderedDict[K, V], news: Mapping[K, V], most: int | None) -> None:
    """Add what is new at the end, in the place of what was said of the same; beyond `most`, forget the oldest."""
    for key, value in news.items():
        pending[key] = value
        pending.move_to_end(key)
    while most is not None and len(pending) > most:
        pending.popitem(last=False)
