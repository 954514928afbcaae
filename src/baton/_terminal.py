"""What a terminal shows of runs: text made safe, tables, and a run at one moment. `_watch` shows one as it goes on.

Names and errors come from anybody. Nothing here hands them to the terminal, or to rich's markup, before what a terminal would
obey is written as an escape. Every state has a word and a sign of its own, so colour only adds to them.
"""

import graphlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any

import click
import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, OverflowMethod, RenderableType, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from baton import (
    DayCost,
    Explanation,
    LabelCost,
    ModelCost,
    Progress,
    RunExplanation,
    RunState,
    RunStatus,
    RunSummary,
    StepCost,
    StepsCost,
    StepState,
    StepStatus,
    Totals,
    doctor,
)
from baton._error_line import error_line

type CostRow = StepCost | ModelCost | LabelCost | StepsCost | DayCost

_NARROWEST = 8

# C0 and C1 controls, bidirectional marks, separators that break lines, surrogates, and tags. Joiners stay: emoji need them.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_OBEYED_NOT_LAYOUT = re.compile(_OBEYED.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

# Sign, the sign where only ASCII can be written, and style.
LOOKS: dict[str, tuple[str, str, str]] = {
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


def one_line(error: str | None) -> str:
    """The line of a text that says what happened, safe to show."""
    text = error_line(error) or "no reason was recorded"
    return safe(text if len(text) <= 300 else f"{text[:299]}…")


def as_json(value: Any) -> str:
    """JSON of dataclasses, dates, ids and decimals that is safe in a terminal, too, and means the same."""
    text = orjson.dumps(value, default=_digits, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    # Outside of strings there are only newlines, which stay.
    return _OBEYED_NOT_LAYOUT.sub(lambda found: _json_escape(found[0]), text)


def _digits(value: object) -> str:
    """An exact decimal, which a number in JSON would not stay."""
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError


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


def cost(console: Console, usage: Totals | None) -> str:
    """`$0.0123`, `≥$0.0123` where that is not all of it, `unknown`; nothing where no model was called."""
    if usage is None:
        return ""
    if usage.cost_usd is None:
        return "unknown"
    sign = (">=" if console.options.ascii_only else "≥") if usage.is_lower_bound else ""
    return sign + usage.cost_text.removeprefix("at least ")


def signed(state: str, text: str, console: Console) -> Text:
    """A text behind the sign of a state, in its colour."""
    sign, plain, style = LOOKS.get(state, ("?", "?", ""))
    return Text(f"{plain if console.options.ascii_only else sign} {text}", style=style)


def took(run: RunSummary) -> str:
    """How long a run took, or has been taking."""
    return duration(((run.finished_at or datetime.now(UTC)) - run.inserted_at).total_seconds())


def runs_table(console: Console, runs: Sequence[RunSummary]) -> RenderableType:
    """Runs, one per line; ids are never cut, and the rest gives way to them."""
    titles = ["id", "state", "name"]
    rows = [[Text(safe(run.id)), signed(run.state, run.state, console), Text(safe(run.name))] for run in runs]
    if console.width >= 76:
        titles.append("settled")
        for row, run in zip(rows, runs, strict=True):
            row.append(Text(f"{run.steps - run.unsettled}/{run.steps}"))
    if console.width >= 100:
        titles += ["inserted", "took"]
        for row, run in zip(rows, runs, strict=True):
            row += [Text(f"{run.inserted_at.astimezone():%Y-%m-%d %H:%M:%S}"), Text(took(run))]
    return _table(console, titles, rows, narrow=[2], one_row=True, right=[3, 5])


def picture(console: Console, status: RunStatus) -> RenderableType:
    """A run at one moment: a line about itself, then its steps by layer. Steps of one layer can run at the same time."""
    layers = _layers(tuple((step.name, step.deps) for step in status.steps))
    cells: list[list[Text]] = []
    shown = 0
    for step in sorted(status.steps, key=lambda step: layers[step.name]):
        layer = layers[step.name]
        about = remark(step, f"after {few(step.deps)}" if step.deps else "")
        cells.append(step_row(console, layer if layer != shown else None, step, about))
        shown = layer
    return Group(headline(console, status.run, status.usage), steps_table(console, cells, titles=True))


def headline(console: Console, run: RunSummary, usage: Totals | None) -> Text:
    """One line about a run."""
    head = signed(run.state, f"{safe(run.name)}  {run.state}  {took(run)}", console)
    if usage is not None:
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        head.append(f"  {'cost unknown' if usage.cost_usd is None else usage.cost_text}")
        head.append(f", {tokens:,} tokens" if tokens else "")
    head.no_wrap, head.overflow = True, _cut(console)
    return head


def step_row(console: Console, layer: int | None, step: StepStatus, about: str) -> list[Text]:
    """Cells of one step, for `steps_table`; no layer leaves its cell empty."""
    return [
        Text(str(layer or ""), style="dim"),
        signed(step.state, safe(step.name), console),
        Text(step.state, style=LOOKS.get(step.state, ("", "", ""))[2]),
        Text(_tries(step)),
        Text(duration(_seconds(step))),
        Text(cost(console, step.usage)),
        Text(about, style="dim" if step.state is StepState.HELD else ""),
    ]


def steps_table(
    console: Console, rows: Sequence[Sequence[Text]], *, titles: bool = False, one_row: bool = False
) -> Table:
    """A table of the cells of `step_row`; with `one_row` none takes more than a line. The cost is there if anything costs."""
    names = ["", "step", "state", "tries", "took", "cost", ""] if titles else [""] * 7
    if not any(row[5].plain for row in rows):
        names = [*names[:5], *names[6:]]
        rows = [[*row[:5], *row[6:]] for row in rows]
    return _table(
        console,
        names,
        rows,
        narrow=[len(names) - 1, 1],
        one_row=one_row,
        right=[0, 3, 4, 5][: len(names) - 3],
    )


def explained(console: Console, found: Explanation | RunExplanation) -> RenderableType:
    """Why a step is where it is, a cause a line; or that of each step of a run, and how many more there are."""
    if isinstance(found, Explanation):
        head = signed(found.state, f"{safe(found.step)}  {found.state}", console)
        return Group(head, *(Text(f"  {safe(cause.text)}") for cause in found.causes))
    run = found.run
    head = signed(run.state, f"{safe(run.name)}  {run.state}  {took(run)}", console)
    head.no_wrap, head.overflow = True, _cut(console)
    if run.state is not RunState.EXECUTING:
        return Group(head, Text("it has finished: nothing of it is left to happen"))
    rows = [
        [signed(step.state, safe(step.step), console), Text(step.state), Text(safe(step.text))]
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


def costs_table(console: Console, total: Totals, rows: Sequence[CostRow]) -> RenderableType:
    """What calls of models came to, a line each, and below what all of them did."""
    about = [_cost_of(row) for row in rows] or [{"": ""}]
    titles = [*about[0], "calls", "input", "output", "cost"]
    cells = [
        [Text(text) for text in (*names.values(), *_figures(row.totals))]
        for names, row in zip(about, rows, strict=False)
    ]
    names = len(titles) - 4
    cells.append([Text(text, style="bold") for text in ("all", *[""] * (names - 1), *_figures(total))])
    return _table(console, titles, cells, narrow=range(names), one_row=True, right=range(names, len(titles)))


def _cost_of(row: CostRow) -> dict[str, str]:
    """What a line of costs is about, by the titles of its columns."""
    match row:
        case StepCost():
            model = _model(row.provider, row.model)
            return {"step": safe(row.step), "attempt": str(row.attempt), "model": model}
        case ModelCost():
            return {"model": _model(row.provider, row.model)}
        case LabelCost():
            return {"label": safe(row.label)}
        case StepsCost():
            return {"label": safe(row.label), "step": safe(row.step)}
        case DayCost():
            return {"day": f"{row.day:%Y-%m-%d}"}


def _model(provider: str | None, model: str | None) -> str:
    return safe(f"{provider}/{model or '?'}" if provider else model or "?")


def _figures(totals: Totals) -> list[str]:
    tokens = (totals.input_tokens, totals.output_tokens)
    return [f"{totals.calls:,}", *("?" if one is None else f"{one:,}" for one in tokens), totals.cost_text]


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


def remark(step: StepStatus, order: str) -> str:
    """What a step waits for, in the words of `order`, how far it is, and what went wrong last."""
    remarks = [order] if order else []
    if step.state in (StepState.SCHEDULED, StepState.RETRYABLE) and step.scheduled_at is not None:
        remarks.append(
            f"runs in {duration(max(0.0, (step.scheduled_at - datetime.now(UTC)).total_seconds()))}"
        )
    if step.progress is not None and step.state is StepState.EXECUTING:
        remarks.append(progress(step.progress))
    if step.error and step.state is not StepState.COMPLETED:
        remarks.append(one_line(step.error))
    return "; ".join(remarks)


def progress(told: Progress) -> str:
    """`37% (370/1000) message`; without a total, how much is done."""
    done = _number(told.done)
    if (part := share(told)) is not None and told.total is not None:
        done = f"{int(100 * part)}% ({done}/{_number(told.total)})"
    return f"{done} {one_line(told.message)}" if told.message else done


def share(told: Progress) -> float | None:
    """How much of the total is done; None where there is no total, or rows from elsewhere hold no numbers."""
    part = told.done / told.total if told.total else None
    return part if part is not None and isfinite(part) else None


def _number(value: float) -> str:
    return str(int(value)) if isfinite(value) and value == int(value) else f"{value:.1f}"


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = [safe(name) for name in names[:6]]
    return ", ".join(shown if len(names) <= 6 else [*shown[:5], f"{len(names) - 5} more"])
