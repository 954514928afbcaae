"""What the watched runs look like right now, kept once per process however many look.

A `Board` follows one run. For each set of groups that somebody shows unfolded it has a `View`: the layout, which box each step
stands in, and each box as JSON, written when it is first asked for after a change. Whoever looks holds the number of the last
change they were told of, and asks for what changed since: nothing is queued for them, so one who is slow costs no memory and
sees fewer states between, and the last one always.

What is spent of a run's budgets is no change of the run: while it is live and somebody looks, it is read each second.
"""

import asyncio
import heapq
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import psycopg
import psycopg_pool

from baton import (
    Baton,
    BatonError,
    BudgetStatus,
    Graph,
    Layout,
    Run,
    RunChange,
    RunSummary,
    StepState,
    StepStatus,
    Totals,
)
from baton._totals import moved
from baton.web import _shapes
from baton.web._errors import Refused

logger = logging.getLogger("baton.web")

_MOST_BOARDS = 64
# Of one run. Those that nobody looks at stay for a while: a page that is loaded again finds its own.
_MOST_VIEWS = 32
_KEPT_VIEWS = 4
_LINGER = 10.0
_PATIENCE = 30.0
# Messages for those who have seen the same change; nearly all have seen the last one or the one before.
_MESSAGES = 4
_SHOWN_FAILED = 5
# From one look at the budgets, or at what each model cost, to the next.
_BUDGET_SECONDS = 1.0
_MODEL_SECONDS = 1.0
_MOST_MODELS = 200
_FAILED = (StepState.DISCARDED, StepState.CANCELLED)


class Moves:
    """Numbered changes, and waiting for the next."""

    def __init__(self) -> None:
        self.version = 1
        self._next = asyncio.Event()

    def moved(self) -> None:
        self.version += 1
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look."""
        self._next.set()
        self._next = asyncio.Event()

    async def beyond(self, version: int) -> None:
        """Wait until there is something new to somebody who has seen `version`."""
        if self.version <= version:
            await self._next.wait()


@dataclass(slots=True)
class _Tally:
    """Steps of a group by state, which failed, when the first began and when the last ended, and what they cost."""

    counts: Counter[StepState] = field(default_factory=Counter)
    failed: dict[StepState, set[int]] = field(default_factory=lambda: {state: set() for state in _FAILED})
    started_at: datetime | None = None
    settled_at: datetime | None = None
    usage: Totals | None = None

    def move(self, before: StepStatus | None, step: StepStatus) -> None:
        if before is not None:
            self.counts[before.state] -= 1
            self.failed.get(before.state, set()).discard(step.position)
        self.usage = moved(self.usage, before.usage if before else None, step.usage)
        self.counts[step.state] += 1
        if step.state in self.failed:
            self.failed[step.state].add(step.position)
        if step.started_at is not None:
            self.started_at = min(self.started_at or step.started_at, step.started_at)
        if step.settled_at is not None:
            self.settled_at = max(self.settled_at or step.settled_at, step.settled_at)

    def shape(self) -> dict[str, Any]:
        shown: list[int] = []
        for state in _FAILED:
            shown += heapq.nsmallest(_SHOWN_FAILED - len(shown), self.failed[state])
        ended = not any(count for state, count in self.counts.items() if not state.settled)
        return {
            "counts": _shapes.counts(self.counts),
            "failed": shown,
            "started_at": self.started_at,
            "settled_at": self.settled_at if ended else None,
            "usage": _shapes.usage(self.usage),
        }


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A layout as the page reads it, and where each step stands in it."""

    json: bytes
    box_of: dict[int, str]
    groups: dict[str, tuple[int, ...]]
    boxes: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, layout: Layout) -> "_Drawing":
        shown = {
            "layout": {
                "width": layout.width,
                "height": layout.height,
                "boxes": [
                    {
                        "id": box.id,
                        "label": box.label,
                        "x": box.x,
                        "y": box.y,
                        "width": box.width,
                        "height": box.height,
                        "group": box.group,
                        "position": None if box.group else box.steps[0],
                        "total": len(box.steps),
                        "function": box.function,
                    }
                    for box in layout.boxes
                ],
                "edges": [
                    {"source": edge.source, "target": edge.target, "points": edge.points}
                    for edge in layout.edges
                ],
            },
            "groups": [
                {
                    "id": group.id,
                    "label": group.label,
                    "total": len(group.steps),
                    "expanded": group.expanded,
                }
                for group in layout.groups
            ],
        }
        return cls(
            json=_shapes.dumps(shown)[1:-1],
            box_of={position: box.id for box in layout.boxes for position in box.steps},
            groups={group.id: group.steps for group in layout.groups},
            boxes=tuple((box.id, box.group) for box in layout.boxes),
        )


@dataclass(frozen=True, slots=True)
class _About:
    """What is said of a run as a whole, besides its steps by state."""

    run: RunSummary
    usage: Totals | None = None
    budgets: tuple[BudgetStatus, ...] = ()

    @property
    def json(self) -> bytes:
        return b'"run":%s,"usage":%s,"budgets":%s' % (
            _shapes.dumps(_shapes.run(self.run)),
            _shapes.dumps(_shapes.usage(self.usage)),
            _shapes.dumps([_shapes.budget(budget) for budget in self.budgets]),
        )


class View(Moves):
    """A run as it is seen with some groups unfolded."""

    def __init__(self, drawing: _Drawing, about: _About, steps: Iterable[StepStatus]) -> None:
        super().__init__()
        self.users = 0
        self.over = False
        self._drawing = drawing
        self._groups = {box: _Tally() for box, group in drawing.boxes if group}
        self._steps: dict[str, StepStatus] = {}
        self._counts: Counter[StepState] = Counter()
        # Box to the number of its last change; what changed last comes last.
        self._changed: OrderedDict[str, int] = OrderedDict()
        self._written: dict[str, bytes] = {}
        self._messages: OrderedDict[int, bytes] = OrderedDict()
        self._about = about
        self.apply(about, [(None, step) for step in steps])

    def apply(self, about: _About, steps: Sequence[tuple[StepStatus | None, StepStatus]]) -> None:
        """Take in what changed: each step as it was and as it is.

        A step that stands in no box ends this view: the graph has grown.
        """
        self.version += 1
        self._messages.clear()
        self._about = about
        for before, after in steps:
            box = self._drawing.box_of.get(after.position)
            if box is None:
                self.over = True
                continue
            if before is not None:
                self._counts[before.state] -= 1
            self._counts[after.state] += 1
            tally = self._groups.get(box)
            if tally is None:
                self._steps[box] = after
            elif before is not None and before.state is after.state and before.usage == after.usage:
                continue
            else:
                tally.move(before, after)
            self._changed[box] = self.version
            self._changed.move_to_end(box)
            self._written.pop(box, None)
        self.wake()

    def message(self, since: int) -> bytes:
        """The run, the counts and the boxes that changed after `since`, as JSON without its braces."""
        found = self._messages.get(since)
        if found is None:
            boxes = []
            for box in reversed(self._changed):
                if self._changed[box] <= since:
                    break
                boxes.append(b'"%s":%s' % (box.encode(), self._box(box)))
            found = b'%s,"counts":%s,"boxes":{%s}' % (
                self._about.json,
                _shapes.dumps(_shapes.counts(self._counts)),
                b",".join(boxes),
            )
            self._messages[since] = found
            if len(self._messages) > _MESSAGES:
                self._messages.popitem(last=False)
        return found

    def whole(self) -> bytes:
        """Everything, with the layout, as JSON."""
        return b"{%s,%s}" % (self._drawing.json, self.message(0))

    def group(self, box: str) -> tuple[int, ...] | None:
        """Positions of the steps in a group, unfolded or not; None if there is no such group."""
        return self._drawing.groups.get(box)

    def _box(self, box: str) -> bytes:
        written = self._written.get(box)
        if written is None:
            tally = self._groups.get(box)
            shape = tally.shape() if tally is not None else _shapes.step(self._steps[box])
            written = self._written[box] = _shapes.dumps(shape)
        return written


class Board:
    """One run, followed for all who look at it."""

    def __init__(self, baton: Baton, run: Run) -> None:
        self.users = 0
        self.over = False
        self._baton = baton
        self._run = run
        self._about: _About | None = None
        self._steps: dict[int, StepStatus] = {}
        self._graph: Graph | None = None
        self._views: OrderedDict[tuple[str, ...], View] = OrderedDict()
        self._making = asyncio.Lock()
        self._models = _Models(baton, run)
        self._budgets_seen = asyncio.Event()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever waited for it may have gone.
        self._first.add_done_callback(asyncio.Future.exception)
        self._task = asyncio.create_task(self._follow_all(), name=f"baton-web-{run.id}")

    async def ready(self) -> None:
        """Wait for the first look at the run; raises what that raised."""
        async with asyncio.timeout(_PATIENCE):
            await asyncio.shield(self._first)
            await self._budgets_seen.wait()

    def close(self) -> asyncio.Task[None]:
        """Stop following; whoever looks is told that it is over."""
        self._end()
        self._task.cancel()
        return self._task

    @asynccontextmanager
    async def view(self, expand: frozenset[str]) -> AsyncIterator[View]:
        """The run with some groups unfolded; ids that are of no group are passed over."""
        view = await self._view(tuple(sorted(expand)))
        view.users += 1
        try:
            yield view
        finally:
            view.users -= 1

    async def positions(self, group: str, expand: frozenset[str]) -> tuple[int, ...] | None:
        """The steps of a group, None if there is none of that id."""
        async with self.view(expand) as view:
            found = view.group(group)
        return found or next((found for view in self._views.values() if (found := view.group(group))), None)

    async def _view(self, key: tuple[str, ...]) -> View:
        # One after the other: a layout keeps the interpreter busy, whatever the thread.
        async with self._making:
            view = self._views.get(key)
            if view is None or view.over:
                if view is not None:
                    self._graph = None
                view = await self._make(key)
                view.over |= self.over
                self._views[key] = view
            self._views.move_to_end(key)
            return view

    async def _make(self, key: tuple[str, ...]) -> View:
        self._drop_idle_views()
        if len(self._views) >= _MOST_VIEWS:
            raise Refused(503, "this run is looked at in too many ways at once; fold some groups")
        if self._graph is None:
            self._graph = await self._baton.query.read_graph(self._run.id)
        assert self._about is not None
        graph, about, steps = self._graph, self._about, dict(self._steps)
        view = await asyncio.to_thread(
            lambda: View(_Drawing.of(graph.layout(expand=key)), about, steps.values())
        )
        # What changed meanwhile.
        changed = [step for position, step in self._steps.items() if steps.get(position) is not step]
        view.apply(self._about, [(steps.get(step.position), step) for step in changed])
        return view

    def _drop_idle_views(self) -> None:
        idle = [key for key, view in self._views.items() if not view.users]
        for key in idle[: max(0, len(idle) - _KEPT_VIEWS)]:
            del self._views[key]

    async def models(self) -> bytes:
        """What each model cost so far, as JSON; read once for all who look."""
        return await self._models.read(None if self._about is None else self._about.usage)

    async def _follow_all(self) -> None:
        budgets = asyncio.create_task(self._follow_budgets(), name=f"baton-web-budgets-{self._run.id}")
        try:
            await self._follow()
        finally:
            budgets.cancel()
            await asyncio.wait({budgets})

    async def _follow_budgets(self) -> None:
        """Look at the run's budgets, if it has any: it draws on those that it was inserted with, and on no others."""
        await asyncio.wait({self._first})
        seen: tuple[RunSummary, Totals | None] | None = None
        while not self.over and self._about is not None:
            now = self._about.run, self._about.usage
            # Of a run that has ended, what is settled late is seen with what was spent late.
            if self.users and (self._about.run.finished_at is None or now != seen):
                try:
                    budgets = await self._baton.budgets.for_run(self._run.id)
                except (BatonError, OSError, psycopg.Error, psycopg_pool.PoolTimeout) as error:
                    logger.info("the budgets of run %s could not be read: %s", self._run.id, error)
                else:
                    seen = now
                    if budgets != self._about.budgets:
                        self._tell(replace(self._about, budgets=budgets), ())
                    if not budgets:
                        break
                self._budgets_seen.set()
            await asyncio.sleep(_BUDGET_SECONDS)
        self._budgets_seen.set()

    async def _follow(self) -> None:
        try:
            async with self._run.changes() as changes:
                async for change in changes:
                    self._apply(change)
                    if not self._first.done():
                        self._first.set_result(None)
        except Exception as error:
            if not self._first.done():
                self._first.set_exception(error)
            elif isinstance(error, BatonError):
                logger.info("run %s is not followed any more: %s", self._run.id, error)
            else:
                logger.exception("run %s is not followed any more", self._run.id)
        finally:
            self._end()

    def _apply(self, change: RunChange) -> None:
        steps = [(self._steps.get(step.position), step) for step in change.steps]
        self._steps.update((step.position, step) for step in change.steps)
        about = self._about or _About(change.run)
        usage = about.usage
        for before, after in steps:
            usage = moved(usage, before.usage if before else None, after.usage)
        self._tell(replace(about, run=change.run, usage=usage), steps)

    def _tell(self, about: _About, steps: Sequence[tuple[StepStatus | None, StepStatus]]) -> None:
        self._about = about
        for view in self._views.values():
            view.apply(about, steps)

    def _end(self) -> None:
        self.over = True
        self._budgets_seen.set()
        if not self._first.done():
            self._first.set_exception(Refused(503, "this run is not followed here any more; try again"))
        for view in self._views.values():
            view.over = True
            view.wake()


class _Models:
    """What each model cost in a run, read when somebody asks and something was spent since, and at most so often."""

    def __init__(self, baton: Baton, run: Run) -> None:
        self._baton = baton
        self._run = run
        self._lock = asyncio.Lock()
        self._read: tuple[Totals | None, bytes] = (None, b"[]")
        self._next = 0.0

    async def read(self, usage: Totals | None) -> bytes:
        """As JSON; `usage` is what the run had spent when it was asked."""
        async with self._lock:
            if usage != self._read[0]:
                clock = asyncio.get_running_loop().time
                await asyncio.sleep(self._next - clock())
                self._next = clock() + _MODEL_SECONDS
                costs = await self._baton.stats.models_for_workflow(self._run.id, limit=_MOST_MODELS)
                self._read = usage, _shapes.dumps(_shapes.models(costs))
            return self._read[1]


class Boards:
    """The boards of a process: one per run that somebody looks at, and for a moment longer."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._boards: OrderedDict[str, Board] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def board(self, run_id: str) -> AsyncIterator[Board]:
        """The board of a run, which has looked at it once.

        Raises:
            RunNotFound: There is no such run.
            NotStarted: Baton has not started, or has stopped.
            Refused: Too many runs are looked at.
        """
        board = self._boards.get(run_id)
        if board is None or board.over:
            self._make_room()
            board = self._boards[run_id] = Board(self._baton, self._baton.get_run(run_id))
        self._boards.move_to_end(run_id)
        board.users += 1
        try:
            await board.ready()
            yield board
        finally:
            board.users -= 1
            if not board.users:
                asyncio.get_running_loop().call_later(_LINGER, self._close_idle, run_id, board)

    def close(self) -> None:
        """End all of them."""
        for run_id, board in list(self._boards.items()):
            self._close(run_id, board)

    def _make_room(self) -> None:
        for run_id, board in list(self._boards.items()):
            if len(self._boards) < _MOST_BOARDS:
                return
            if not board.users:
                self._close(run_id, board)
        if len(self._boards) >= _MOST_BOARDS:
            raise Refused(503, "too many runs are looked at here; try again shortly")

    def _close_idle(self, run_id: str, board: Board) -> None:
        if not board.users and self._boards.get(run_id) is board:
            self._close(run_id, board)

    def _close(self, run_id: str, board: Board) -> None:
        self._boards.pop(run_id, None)
        task = board.close()
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
