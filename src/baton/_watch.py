"""A run as it goes on: drawn in place on a terminal, a line per change where there is none.

Whatever its size, only what changed is read and counted; steps that are alike are one line with a bar, as in the graph.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.text import Text

from baton import Box, Graph, Run, RunChange, RunState, RunStatus, StepState, StepStatus
from baton._terminal import (
    LOOKS,
    duration,
    few,
    headline,
    last_line,
    open_console,
    remark,
    safe,
    share,
    signed,
    step_row,
    steps_table,
)

# From one picture to the next; what changes meanwhile is in the next one.
_PACE = 0.1
# Without news the clocks still go on.
_TICK = 0.5
_BAR = 24

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
        if now.error and now.state is not StepState.COMPLETED:
            line.error = f"{now.name}: {last_line(now.error)}"

    def picture(self, console: Console, rows: int) -> RenderableType:
        """A line about the run, and at most so many rows about its boxes, by layer: those that matter most."""
        head = headline(console, self.run)
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
        since = (datetime.now(UTC) - self.run.inserted_at).total_seconds()
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
    if in_place and sys.stdout.isatty() and not console.is_dumb_terminal:
        return await watch_live(run, stop, console)
    return await watch_lines(run, stop, say)


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
                # The empty line is where the terminal echoes ^C; at the end of a full one it would break the picture.
                live.update(Stack(board.picture(console, max(1, console.height - 5)), Text()), refresh=True)

        return await _follow(run, stop, draw, pace=_PACE)


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

    return await _follow(run, stop, report, pace=0)


async def _follow(
    run: Run, stop: asyncio.Event, look: Callable[[RunChange | None], None], *, pace: float
) -> RunStatus | None:
    """Look at each change until the run has finished, and at None where there is none for a while."""
    async with run.changes() as changes:
        stopped = asyncio.ensure_future(stop.wait())
        news: asyncio.Future[RunChange | None] | None = None
        waiting: set[asyncio.Future[Any]]
        try:
            while not stop.is_set():
                news = news or asyncio.ensure_future(anext(changes, None))
                waiting = {news, stopped}
                await asyncio.wait(waiting, timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    look(None)
                    continue
                change, news = news.result(), None
                if change is None or change.run.state is not RunState.EXECUTING:
                    break
                look(change)
                await asyncio.wait({stopped}, timeout=pace)
            else:
                return None
        finally:
            waiting = {stopped, news} if news else {stopped}
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
    status = await run.status()
    look(RunChange(status.run, status.steps))
    return status
