"""What a terminal shows of runs: text made safe, tables, and a run as it goes on.

Names and errors come from anybody. Nothing here hands them to the terminal, or to rich's markup, before what a terminal would
obey is written as an escape. Every state has a word and a sign of its own, so colour only adds to them.
"""

import asyncio
import graphlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import click
import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, OverflowMethod, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from baton import (
    Explanation,
    Run,
    RunExplanation,
    RunState,
    RunStatus,
    RunSummary,
    StepState,
    StepStatus,
    doctor,
)

_POLL = 0.1
_NARROWEST = 8

# C0 and C1 controls, bidirectional marks, separators that break lines, surrogates, and tags. Joiners stay: emoji need them.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_OBEYED_NOT_LAYOUT = re.compile(_OBEYED.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

# Sign, the sign where only ASCII can be written, and style.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "held": ("·", ".", "dim"),
    "scheduled": ("◷", "@", "magenta"),
    "available": ("○", "o", "blue"),
    "executing": ("●", "*", "yellow"),
    "retryable": ("↻", "~", "bright_red"),
    "completed": ("✓", "+", "green"),
    "cancelled": ("⊘", "-", "red"),
    "discarded": ("✗", "x", "bold red"),
    "skipped": ("↷", ">", "dim"),
    "failed": ("✗", "x", "bold red"),
}
# What stays in sight when a run has more steps than the screen has lines.
_URGENCY = (
    "executing",
    "retryable",
    "discarded",
    "cancelled",
    "scheduled",
    "available",
    "held",
    "completed",
    "skipped",
)


_LEVELS = {"ok": "green", "warning": "yellow", "error": "red"}


def safe(text: str, *, lines: bool = False) -> str:
    r"""Write what a terminal would obey instead of show as an escape: `\x1b`, `\u202e`.

    Args:
        lines: Newlines and tabs stay.
    """
    return (_OBEYED_NOT_LAYOUT if lines else _OBEYED).sub(lambda found: _escape(found[0]), text)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def last_line(error: str | None) -> str:
    """The line of an error that says what happened, safe to show."""
    lines = (error or "").strip().splitlines()
    text = lines[-1].strip() if lines else "no reason was recorded"
    return safe(text if len(text) <= 300 else f"{text[:299]}…")


def as_json(value: Any) -> str:
    """JSON of dataclasses, dates and ids that is safe in a terminal, too, and means the same."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    # Outside of strings there are only newlines, which stay.
    return _OBEYED_NOT_LAYOUT.sub(lambda found: _json_escape(found[0]), text)


def _json_escape(char: str) -> str:
    return "".join(
        f"\\u{high:02x}{low:02x}" for high, low in zip(*[iter(char.encode("utf-16-be"))] * 2, strict=True)
    )


def open_console() -> Console:
    """Standard output, as wide as the terminal; as wide as need be where it is none, so that nothing is cut in a pipe."""
    width = None if sys.stdout.isatty() else 200
    return Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


@dataclass(frozen=True, slots=True)
class _Safe:
    """Whatever it renders is safe, also what comes into being on the way: Markdown turns `&#x202e;` into that character."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(safe(segment.text, lines=True), segment.style)


def show(console: Console, what: RenderableType) -> None:
    """Print, without the blanks that tables end their lines with where nobody sees colours."""
    if console.is_terminal:
        console.print(_Safe(what))
        return
    with console.capture() as captured:
        console.print(_Safe(what))
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def show_markdown(console: Console, text: str) -> None:
    """Print Markdown: rendered on a terminal, as it is in a pipe."""
    if sys.stdout.isatty():
        # Links as text: a link that a terminal hides behind other words is one more thing it would obey.
        show(console, Markdown(text, hyperlinks=False))
    else:
        click.echo(safe(text, lines=True))


def duration(seconds: float | None) -> str:
    """`31ms`, `0.31s`, `12.3s`, `3m05s`, `2h07m`; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _signed(state: str, text: str, console: Console) -> Text:
    sign, plain, style = _LOOKS.get(state, ("?", "?", ""))
    return Text(f"{plain if console.options.ascii_only else sign} {text}", style=style)


def took(run: RunSummary) -> str:
    """How long a run took, or has been taking."""
    return duration(((run.finished_at or datetime.now(UTC)) - run.inserted_at).total_seconds())


def runs_table(console: Console, runs: Sequence[RunSummary]) -> RenderableType:
    """Runs, one per line; ids are never cut, and the rest gives way to them."""
    titles = ["id", "state", "name"]
    rows = [
        [Text(safe(run.id)), _signed(run.state, run.state, console), Text(safe(run.name))] for run in runs
    ]
    if console.width >= 76:
        titles.append("settled")
        for row, run in zip(rows, runs, strict=True):
            row.append(Text(f"{run.steps - run.unsettled}/{run.steps}"))
    if console.width >= 100:
        titles += ["inserted", "took"]
        for row, run in zip(rows, runs, strict=True):
            row += [Text(f"{run.inserted_at.astimezone():%Y-%m-%d %H:%M:%S}"), Text(took(run))]
    return _table(console, titles, rows, narrow=[2], one_row=True, right=[3, 5])


def picture(
    console: Console, status: RunStatus, *, rows: int | None = None, dependencies: bool = False
) -> RenderableType:
    """A run at one moment: a line about itself, then its steps by layer. Steps of one layer can run at the same time.

    Args:
        rows: Steps to show at most, in a row each; what runs or went wrong stays, and the others are counted.
        dependencies: Name every step's dependencies, not only those that a held step still waits for.
    """
    run = status.run
    head = _signed(run.state, f"{safe(run.name)}  {run.state}  {took(run)}", console)
    head.no_wrap, head.overflow = True, _cut(console)
    states = status.states()
    chosen = _most_urgent(status.steps, rows)
    layers = _layers(tuple((step.name, step.deps) for step in status.steps))
    cells: list[list[Text]] = []
    shown = 0
    for step in sorted(chosen, key=lambda step: layers[step.name]):
        layer = layers[step.name]
        row = [
            Text(str(layer) if layer != shown else "", style="dim"),
            _signed(step.state, safe(step.name), console),
            Text(step.state, style=_LOOKS.get(step.state, ("", "", ""))[2]),
            Text(_tries(step)),
            Text(duration(_seconds(step))),
            Text(_remark(step, states, dependencies), style="dim" if step.state is StepState.HELD else ""),
        ]
        cells.append(row)
        shown = layer
    titles = ["", "step", "state", "tries", "took", ""] if dependencies else [""] * 6
    table = _table(console, titles, cells, narrow=[5, 1], one_row=rows is not None, right=[0, 3, 4])
    if len(chosen) == len(status.steps):
        return Group(head, table)
    hidden = Counter(step.state for step in status.steps) - Counter(step.state for step in chosen)
    rest = ", ".join(f"{count} {state}" for state, count in hidden.items())
    return Group(head, table, Text(f"and {hidden.total()} more: {rest}", style="dim"))


def explained(console: Console, found: Explanation | RunExplanation) -> RenderableType:
    """Why a step is where it is, a cause a line; or that of each step of a run, and how many more there are."""
    if isinstance(found, Explanation):
        head = _signed(found.state, f"{safe(found.step)}  {found.state}", console)
        return Group(head, *(Text(f"  {safe(cause.text)}") for cause in found.causes))
    run = found.run
    head = _signed(run.state, f"{safe(run.name)}  {run.state}  {took(run)}", console)
    head.no_wrap, head.overflow = True, _cut(console)
    if run.state is not RunState.EXECUTING:
        return Group(head, Text("it has finished: nothing of it is left to happen"))
    rows = [
        [_signed(step.state, safe(step.step), console), Text(step.state), Text(safe(step.text))]
        for step in found.steps
    ]
    table = _table(console, ["step", "state", "why"], rows, narrow=[2, 0], one_row=False, right=[])
    more = run.unsettled - len(found.steps)
    return Group(head, table, *([Text(f"and {more:,} more that have not ended", style="dim")] * (more > 0)))


def diagnosed(found: Sequence[doctor.Finding], *, verbose: bool) -> Iterator[str]:
    """Lines of text: what is wrong and its remedy, below each other; never cut, so that a remedy can be copied."""
    counts = Counter(finding.level for finding in found)
    for finding in found:
        if verbose or finding.level is not doctor.Level.OK:
            level = click.style(f"{finding.level:<8}", fg=_LEVELS[finding.level], bold=True)
            yield f"{level} {finding.check}: {safe(finding.found)}"
            if finding.remedy:
                yield f"{'':8} do: {safe(finding.remedy)}"
    checks = len({finding.check for finding in found})
    wrong = [
        f"{counts[level]} {level}{'s' * (counts[level] > 1)}"
        for level in (doctor.Level.ERROR, doctor.Level.WARNING)
        if counts[level]
    ]
    yield f"{checks} checks: {' and '.join(wrong) or 'nothing is wrong'}"


def _table(
    console: Console,
    titles: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    narrow: Sequence[int],
    one_row: bool,
    right: Sequence[int],
) -> Table:
    """A table in which only the columns `narrow` give way when there is too little room, the first of them first.

    Left to itself, rich takes from all columns alike, and cuts states and ids.
    """
    widths = [max([cell_len(title), *(row[n].cell_len for row in rows)]) for n, title in enumerate(titles)]
    for column in narrow:
        excess = sum(widths) + 2 * len(widths) - 2 - console.width
        widths[column] = max(min(widths[column], _NARROWEST), widths[column] - max(0, excess))
    table = Table(
        box=None,
        pad_edge=False,
        show_header=any(titles),
        header_style="dim",
        padding=(0, 2, 0, 0),
        expand=False,
    )
    overflow = _cut(console) if one_row else "fold"
    for n, (title, width) in enumerate(zip(titles, widths, strict=True)):
        table.add_column(
            title, width=width, no_wrap=one_row, overflow=overflow, justify="right" if n in right else "left"
        )
    for row in rows:
        table.add_row(*row)
    return table


def _cut(console: Console) -> OverflowMethod:
    return "crop" if console.options.ascii_only else "ellipsis"


def _most_urgent(steps: Sequence[StepStatus], rows: int | None) -> list[StepStatus]:
    if rows is None or len(steps) <= rows:
        return list(steps)
    kept = sorted(steps, key=lambda step: _URGENCY.index(step.state))[:rows]
    names = {step.name for step in kept}
    return [step for step in steps if step.name in names]


@lru_cache(maxsize=4)
def _layers(graph: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, int]:
    """The layer of each step, counted from 1: one more than the highest of its dependencies."""
    sorter = graphlib.TopologicalSorter(dict(graph))
    sorter.prepare()
    found: dict[str, int] = {}
    number = 0
    while sorter.is_active():
        number += 1
        ready = sorter.get_ready()
        found |= dict.fromkeys(ready, number)
        sorter.done(*ready)
    return found


def _tries(step: StepStatus) -> str:
    return (
        f"{step.attempt}/{step.max_attempts}"
        if step.max_attempts and step.attempt
        else str(step.attempt or "")
    )


def _seconds(step: StepStatus) -> float | None:
    if step.state is StepState.EXECUTING and step.started_at is not None:
        return max(0.0, (datetime.now(UTC) - step.started_at).total_seconds())
    return step.seconds


def _remark(step: StepStatus, states: dict[str, StepState], dependencies: bool) -> str:
    """What a step waits for, and what went wrong last."""
    remarks = []
    if dependencies and step.deps:
        remarks.append(f"after {_few(step.deps)}")
    elif step.state is StepState.HELD:
        remarks.append(
            f"waits for {_few([name for name in step.deps if name in states and not states[name].settled])}"
        )
    if step.state in (StepState.SCHEDULED, StepState.RETRYABLE) and step.scheduled_at is not None:
        remarks.append(
            f"runs in {duration(max(0.0, (step.scheduled_at - datetime.now(UTC)).total_seconds()))}"
        )
    if step.error and step.state is not StepState.COMPLETED:
        remarks.append(last_line(step.error))
    return "; ".join(remarks)


def _few(names: Sequence[str]) -> str:
    shown = [safe(name) for name in names[:6]]
    return ", ".join(shown if len(names) <= 6 else [*shown[:5], f"{len(names) - 5} more"])


async def watch_live(run: Run, stop: asyncio.Event, console: Console) -> RunStatus | None:
    """Show a run in place, on a terminal, until it has finished.

    Returns:
        How it ended; None when `stop` was set before.
    """
    with Live(console=console, auto_refresh=False) as live:

        def draw(status: RunStatus) -> None:
            # The empty line is where the terminal echoes ^C; at the end of a full one it would break the picture.
            shown = Group(picture(console, status, rows=max(1, console.height - 5)), Text())
            live.update(shown, refresh=True)

        return await _follow(run, stop, draw)


async def watch_lines(run: Run, stop: asyncio.Event, say: Callable[[str], None]) -> RunStatus | None:
    """Say a line per change of a step, until the run has finished; returns as `watch_live`."""
    seen: dict[str, tuple[StepState, int]] = {}

    def report(status: RunStatus) -> None:
        for step in status.steps:
            if seen.get(step.name) != (step.state, step.attempt):
                seen[step.name] = (step.state, step.attempt)
                say(_change(step, status))

    return await _follow(run, stop, report)


def _change(step: StepStatus, status: RunStatus) -> str:
    since = (datetime.now(UTC) - status.run.inserted_at).total_seconds()
    width = min(40, max(len(step.name) for step in status.steps))
    line = f"{since:7.2f}s  {safe(step.name):<{width}}  {step.state}"
    if step.state is StepState.COMPLETED:
        line += f" in {duration(step.seconds)}"
    if step.attempt > 1 and not step.state.settled:
        line += f" (attempt {step.attempt} of {step.max_attempts})"
    remark = _remark(step, status.states(), dependencies=False)
    return f"{line}: {remark}" if remark else line


async def _follow(run: Run, stop: asyncio.Event, look: Callable[[RunStatus], None]) -> RunStatus | None:
    finished = asyncio.create_task(run.wait())
    stopped = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            status = await run.status()
            look(status)
            if status.state is not RunState.EXECUTING:
                return status
            if finished.done():
                finished.result()
            await asyncio.wait({finished, stopped}, timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
        return None
    finally:
        finished.cancel()
        stopped.cancel()
        await asyncio.gather(finished, stopped, return_exceptions=True)
