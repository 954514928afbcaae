"""A run, or the list of runs, as it goes on: drawn in place on a terminal, a line per change where there is none.

Whatever its size, only what changed is read and counted; steps that are alike are one line with a bar, as in the graph.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from baton import (
    Baton,
    Box,
    Graph,
    Run,
    RunChange,
    RunsChange,
    RunState,
    RunStatus,
    RunSummary,
    StepState,
    StepStatus,
    Totals,
)
from baton._terminal import (
    LOOKS,
    cost,
    duration,
    few,
    headline,
    one_line,
    open_console,
    remark,
    runs_table,
    safe,
    share,
    signed,
    step_row,
    steps_table,
)
from baton._totals import moved

# From one picture to the next; what changes meanwhile is in the next one.
_PACE = 0.1
# Without news the clocks still go on.
_TICK = 0.5
_BAR = 24
# More than any screen has lines.
_KEPT_RUNS = 500

# What stays in sight when a run has more than the screen has lines.
_URGENCY: Final = (
    StepState.EXECUTING,
    StepState.RETRYABLE,
    StepState.DISCARDED,
    StepState.CANCELLED,
    StepState.SCHEDULED,
    StepState.AVAILABLE,
    StepState.HELD,
    StepState.COMPLETED,
    StepState.SKIPPED,
)
# The order along a bar, and what its cells are written with, also where only ASCII can be.
_CELLS: Final = {
    StepState.COMPLETED: ("█", "#"),
    StepState.SKIPPED: ("▓", ">"),
    StepState.EXECUTING: ("▒", "*"),
    StepState.RETRYABLE: ("↻", "~"),
    StepState.CANCELLED: ("⊘", "-"),
    StepState.DISCARDED: ("✗", "x"),
    StepState.AVAILABLE: ("░", "."),
    StepState.SCHEDULED: ("░", "."),
    StepState.HELD: ("░", "."),
}
_BAD: Final = (StepState.DISCARDED, StepState.CANCELLED)
_LINES_OF_FAILURES = 5


@dataclass(slots=True)
class _Line:
    """A box of the graph, and what is known of its steps."""

    box: Box
    counts: Counter[StepState] = field(default_factory=Counter[StepState])
    started_at: datetime | None = None
    settled_at: datetime | None = None
    error: str | None = None
    usage: Totals | None = None
    told: object = None

    @property
    def label(self) -> str:
        return f"{self.box.label} ({len(self.box.steps):,})" if self.box.group else self.box.label

    @property
    def state(self) -> StepState:
        """The most urgent of its steps' states."""
        return next((state for state in _URGENCY if self.counts[state]), StepState.HELD)

    @property
    def settled(self) -> int:
        return sum(count for state, count in self.counts.items() if state.settled)

    @property
    def seconds(self) -> float | None:
        """From when its first step began until its last one settled, or until now."""
        if self.started_at is None:
            return None
        done = self.settled == len(self.box.steps) and self.settled_at is not None
        end = self.settled_at if done and self.settled_at is not None else datetime.now(UTC)
        return max(0.0, (end - self.started_at).total_seconds())

    @property
    def words(self) -> str:
        return ", ".join(f"{self.counts[state]:,} {state}" for state in _URGENCY if self.counts[state])


class Board:
    """A run by the boxes of its graph, kept up to date by its changes.

    Args:
        change: The first one, with all steps.
    """

    def __init__(self, change: RunChange) -> None:
        graph = Graph(
            change.run.name,
            deps={step.name: step.deps for step in change.steps},
            states={step.name: step.state for step in change.steps},
            functions={step.name: step.function for step in change.steps},
            positions={step.name: step.position for step in change.steps},
        )
        boxes = sorted(graph.layout().boxes, key=lambda box: box.layer)
        self.run = change.run
        self.usage: Totals | None = None
        self.states: dict[str, StepState] = {}
        self.steps: dict[int, StepStatus] = {}
        self.lines = [_Line(box) for box in boxes]
        self._line_of = {step: line for line in self.lines for step in line.box.steps}
        number_of = {step: number for number, line in enumerate(self.lines) for step in line.box.steps}
        self._number_of = {step.name: number_of[step.position] for step in change.steps}
        self.apply(change)

    def apply(self, change: RunChange) -> list[_Line]:
        """Take in what is new, and return the lines that it is about."""
        self.run = change.run
        touched: dict[int, _Line] = {}
        for step in change.steps:
            line = self._line_of.get(step.position)
            if line is not None:
                self._count(line, self.steps.get(step.position), step)
                touched[id(line)] = line
            self.steps[step.position] = step
            self.states[step.name] = step.state
        return list(touched.values())

    def _count(self, line: _Line, before: StepStatus | None, now: StepStatus) -> None:
        if before is not None:
            line.counts[before.state] -= 1
        line.counts[now.state] += 1
        if now.started_at is not None:
            line.started_at = min(line.started_at or now.started_at, now.started_at)
        if now.settled_at is not None:
            line.settled_at = max(line.settled_at or now.settled_at, now.settled_at)
        spent = before.usage if before else None
        line.usage = moved(line.usage, spent, now.usage)
        self.usage = moved(self.usage, spent, now.usage)
        if now.error and now.state is not StepState.COMPLETED:
            line.error = f"{now.name}: {one_line(now.error)}"

    def picture(self, console: Console, rows: int) -> RenderableType:
        """A line about the run, and at most so many rows about its boxes, by layer: those that matter most."""
        head = headline(console, self.run, self.usage)
        head.append(f"  {self.run.steps - self.run.unsettled:,} of {self.run.steps:,}", style="dim")
        lines = self.lines
        if len(lines) > rows:
            kept = sorted(range(len(lines)), key=lambda n: (_URGENCY.index(lines[n].state), n))[:rows]
            lines = [lines[n] for n in sorted(kept)]
        cells = []
        shown = 0
        for line in lines:
            layer = line.box.layer if line.box.layer != shown else None
            shown = line.box.layer
            cells.append(
                _group_row(console, layer, line)
                if line.box.group
                else self._step_row(console, layer, self.steps[line.box.steps[0]])
            )
        table = steps_table(console, cells, one_row=True)
        if len(lines) == len(self.lines):
            return Stack(head, table)
        hidden = sum((line.counts for line in self.lines), Counter[StepState]())
        hidden.subtract(sum((line.counts for line in lines), Counter[StepState]()))
        rest = ", ".join(f"{hidden[state]:,} {state}" for state in _URGENCY if hidden[state])
        return Stack(head, table, Text(f"and {hidden.total():,} more: {rest}", style="dim"))

    def _step_row(self, console: Console, layer: int | None, step: StepStatus) -> list[Text]:
        return step_row(console, layer, step, remark(step, self._waits(step)))

    def _waits(self, step: StepStatus) -> str:
        """What a held step waits for; of a group, how many of its steps."""
        if step.state is not StepState.HELD:
            return ""
        left = Counter(self._number_of[name] for name in step.deps if not self._settled(name))
        found = [(self.lines[number].box, count) for number, count in left.items()]
        return f"waits for {few([f'{box.label} ({n:,})' if box.group else box.label for box, n in found])}"

    def _settled(self, name: str) -> bool:
        return name not in self.states or self.states[name].settled

    def tell(self, touched: Iterable[_Line], say: Callable[[str], None]) -> None:
        """Say a line for each that is worth it: for each change of a step, and for each tenth of a group."""
        since = ((self.run.finished_at or datetime.now(UTC)) - self.run.inserted_at).total_seconds()
        width = min(40, max(len(line.label) for line in self.lines))
        for line in touched:
            step = None if line.box.group else self.steps[line.box.steps[0]]
            news = _group_news(line) if step is None else _step_news(step)
            if line.told != news:
                line.told = news
                text = _group_text(line) if step is None else _step_text(step, self._waits(step))
                say(f"{since:7.2f}s  {safe(line.label):<{width}}  {text}")


def _group_row(console: Console, layer: int | None, line: _Line) -> list[Text]:
    state = line.state
    about = _bar(console, line).append(f"  {line.words}", style="default")
    if line.error:
        about.append(f"; {line.error}")
    return [
        Text(str(layer or ""), style="dim"),
        signed(state, safe(line.label), console),
        Text(state, style=LOOKS[state][2]),
        Text(f"{100 * line.settled // len(line.box.steps)}%"),
        Text(duration(line.seconds)),
        Text(cost(console, line.usage)),
        about,
    ]


def _bar(console: Console, line: _Line) -> Text:
    """A cell for each share of the steps, and one at least for each state among them."""
    present = [state for state in _CELLS if line.counts[state]]
    free = _BAR - len(present)
    total = sum(line.counts[state] for state in present)
    bar = Text()
    done = used = 0
    for state in present:
        # Rounded as a running sum, so that all bars are of one length.
        done += line.counts[state]
        length = 1 + free * done // total - used
        used = free * done // total
        bar.append(_CELLS[state][console.options.ascii_only] * length, style=LOOKS[state][2])
    return bar


def _group_news(line: _Line) -> object:
    bad = sum(line.counts[state] for state in _BAD)
    begun = line.started_at is not None
    return begun, 10 * line.settled // len(line.box.steps), min(bad, _LINES_OF_FAILURES)


def _group_text(line: _Line) -> str:
    failed = any(line.counts[state] for state in (*_BAD, StepState.RETRYABLE))
    return f"{line.words}: {line.error}" if failed and line.error else line.words


def _step_news(step: StepStatus) -> object:
    done = share(step.progress) if step.progress and step.state is StepState.EXECUTING else None
    return step.state, step.attempt, None if done is None else int(10 * done)


def _step_text(step: StepStatus, order: str) -> str:
    text = str(step.state)
    if step.state is StepState.COMPLETED:
        text += f" in {duration(step.seconds)}"
        if step.usage is not None:
            text += f" for {step.usage.cost_text}" if step.usage.cost_usd is not None else ", cost unknown"
    if step.attempt > 1 and not step.state.settled:
        text += f" (attempt {step.attempt} of {step.max_attempts})"
    more = remark(step, order)
    return f"{text}: {more}" if more else text


async def watch(
    run: Run, stop: asyncio.Event, say: Callable[[str], None], *, in_place: bool = True
) -> RunStatus | None:
    """Show a run until it has finished: in place on a terminal that can, in lines elsewhere or if told so.

    Returns:
        How it ended; None when `stop` was set before.
    """
    console = open_console()
    if in_place and _can_draw(console):
        return await watch_live(run, stop, console)
    return await watch_lines(run, stop, say)


def _can_draw(console: Console) -> bool:
    return sys.stdout.isatty() and not console.is_dumb_terminal


async def watch_live(run: Run, stop: asyncio.Event, console: Console) -> RunStatus | None:
    """Show a run in place, on a terminal."""
    board: Board | None = None
    with Live(console=console, auto_refresh=False) as live:

        def draw(change: RunChange | None) -> None:
            nonlocal board
            if board is None:
                board = Board(change) if change else None
            elif change:
                board.apply(change)
            if board:
                live.update(_above_echo(board.picture(console, _rows(console))), refresh=True)

        return await _until_finished(run, stop, draw, pace=_PACE)


def _rows(console: Console) -> int:
    return max(1, console.height - 5)


def _above_echo(picture: RenderableType) -> RenderableType:
    """With an empty line, where the terminal echoes ^C; at the end of a full one it would break the picture."""
    return Stack(picture, Text())


async def watch_lines(run: Run, stop: asyncio.Event, say: Callable[[str], None]) -> RunStatus | None:
    """Say a line per change of a step, and some per group."""
    board: Board | None = None

    def report(change: RunChange | None) -> None:
        nonlocal board
        if change is None:
            return
        if board is None:
            board = Board(change)
            board.tell(board.lines, say)
        else:
            board.tell(board.apply(change), say)

    return await _until_finished(run, stop, report, pace=0)


async def _until_finished(
    run: Run, stop: asyncio.Event, look: Callable[[RunChange | None], None], *, pace: float
) -> RunStatus | None:
    def see(change: RunChange | None) -> bool:
        look(change)
        return change is not None and change.run.state is not RunState.EXECUTING

    if not await _follow(run.changes(), stop, see, pace=pace):
        return None
    # What was told last need not be of one moment.
    status = await run.status()
    look(RunChange(status.run, status.steps))
    return status


async def watch_runs(baton: Baton, stop: asyncio.Event, say: Callable[[str], None]) -> None:
    """Show the newest runs until `stop` is set: as a table in place, or a line per change of a run."""
    console = open_console()
    runs: dict[str, RunSummary] = {}
    if not _can_draw(console):

        def report(change: RunsChange | None) -> bool:
            for run in change.runs if change else ():
                said = f"{run.id}  {run.state:<9}  {run.steps - run.unsettled}/{run.steps}  {safe(run.name)}"
                say(said)
            return False

        await _follow(baton.changes(), stop, report, pace=_PACE)
        return
    with Live(console=console, auto_refresh=False) as live:

        def draw(change: RunsChange | None) -> bool:
            if change is not None:
                runs.update({run.id: run for run in change.runs})
                for run_id in change.removed:
                    runs.pop(run_id, None)
            # Ids are in the order in which runs were inserted.
            newest = [runs[run_id] for run_id in sorted(runs, reverse=True)]
            for run in newest[_KEPT_RUNS:]:
                del runs[run.id]
            shown = newest[: _rows(console)]
            live.update(
                _above_echo(runs_table(console, shown) if shown else Text("no runs yet")), refresh=True
            )
            return False

        await _follow(baton.changes(), stop, draw, pace=_PACE)


async def _follow[C](
    changes: AbstractAsyncContextManager[AsyncIterator[C]],
    stop: asyncio.Event,
    look: Callable[[C | None], bool],
    *,
    pace: float,
) -> bool:
    """Look at each change until one is the last, and at None where there is none for a while.

    Returns:
        False when `stop` was set before.
    """
    async with changes as following:
        stopped = asyncio.ensure_future(stop.wait())
        news: asyncio.Future[C | None] | None = None
        waiting: set[asyncio.Future[Any]]
        try:
            while not stop.is_set():
                news = news or asyncio.ensure_future(anext(following, None))
                waiting = {news, stopped}
                await asyncio.wait(waiting, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    look(None)
                    continue
                change, news = news.result(), None
                if change is None or look(change):
                    return True
                await asyncio.wait({stopped}, timeout=pace)
            return False
        finally:
            waiting = {stopped, news} if news else {stopped}
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
