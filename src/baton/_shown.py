"""The commands that show something: `baton list`, `show`, `graph`, `watch` and `why`."""

import asyncio
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import baton as api
from baton._command import FAILED, HELP, INTERRUPTED, Failure, Target, database_options

if TYPE_CHECKING:
    from baton import RunStatus


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """A time, or how long ago it was; without a zone, it is this computer's."""
    if value is None:
        return None
    try:
        if ago := re.fullmatch(r"([0-9]{1,9})([smhd])", value):
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no time; write 2026-01-31, 2026-01-31T12:00, 90m, 12h or 7d."
        ) from None


@click.command("list", context_settings=HELP)
@click.option(
    "--state",
    "states",
    type=click.Choice(["executing", "completed", "failed", "cancelled"]),
    multiple=True,
    help="Only those in this state. Repeatable.",
)
@click.option("--name", help="Only those of exactly this name.")
@click.option("--key", help="Only those of exactly this key, live or not.")
@click.option("--search", help="Only those with this in their name or key, or at the beginning of their id.")
@click.option(
    "--since",
    metavar="TIME",
    callback=moment,
    help="Only those inserted at this time or later; 2h is two hours ago.",
)
@click.option("--until", metavar="TIME", callback=moment, help="Only those inserted before this time.")
@click.option("--before", metavar="RUN", help="Only those older than this run: the last of the page before.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def list_(
    target: Target,
    states: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """List runs, newest first."""
    from baton import _terminal

    async def read() -> list[api.RunSummary]:
        async with target.baton() as baton:
            return await baton.query.list_runs(
                state=states or None, inserted_after=since, inserted_before=until, **asked
            )

    runs = asyncio.run(read())
    if as_json:
        click.echo(_terminal.as_json(runs))
    elif runs:
        console = _terminal.open_console()
        _terminal.show(console, _terminal.runs_table(console, runs))
    else:
        click.echo("no runs", err=True)


@click.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option("--results", "with_results", is_flag=True, help="Results of the steps, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def show(target: Target, run_id: str, with_results: bool, as_json: bool) -> None:
    """Show one run: its steps, their states, times and errors."""
    from baton import _terminal

    async def read() -> "tuple[RunStatus, dict[str, Any]]":
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return await run.status(), await run.results() if with_results else {}

    status, results = asyncio.run(read())
    if as_json:
        click.echo(_terminal.as_json(asdict(status) | ({"results": results} if with_results else {})))
    else:
        console = _terminal.open_console()
        _terminal.show(console, _terminal.picture(console, status))
        for name, value in results.items():
            click.echo(f"\n{_terminal.safe(name)}:\n{_terminal.as_json(value)}")


@click.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option("--svg", "form", flag_value="svg", help="As an SVG file, for browsers and documents.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid flowchart.")
@click.option("--dot", "form", flag_value="dot", help="As a Graphviz digraph, with every step.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write it to this file.",
)
@database_options
def graph(target: Target, run_id: str, form: str | None, output: Path | None) -> None:
    """Draw a run: which steps wait for which, and their states; as text unless told otherwise.

    Where there are many steps, those that are alike are drawn as one.
    """

    async def read() -> api.Graph:
        async with target.baton() as baton:
            return await baton.query.read_graph(run_id)

    found = asyncio.run(read())
    draw = {"svg": found.to_svg, "mermaid": found.to_mermaid, "dot": found.to_dot}
    text = draw.get(form or "", found.to_text)()
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"{output} could not be written: {error.strerror}; name another file with --output"
        ) from error


@click.command(context_settings=HELP)
@click.argument("run_id", metavar="[RUN]", required=False)
@database_options
def watch(target: Target, run_id: str | None) -> None:
    """Show a run live, until it has ended or you press Ctrl-C; the run goes on then.

    Steps that are alike are one line with a bar. Without a terminal, each change of a step is a line. The exit code is 0 if the
    run completed, 1 if it ended otherwise, and 130 after Ctrl-C. Without RUN, it shows the newest runs until Ctrl-C.
    """
    from baton import _foreground, _watch

    async def follow() -> int:
        signals = _foreground.Signals()
        baton = target.reader(pool_size=2)
        async with _foreground.running(baton, signals) as started:
            if started and run_id is None:
                await _watch.watch_runs(baton, signals.first, click.echo)
                return 0
            status = None
            if started and run_id is not None:
                status = await _watch.watch(baton.get_run(run_id), signals.first, click.echo)
        if status is None:
            click.echo("baton: interrupted; the run goes on", err=True)
            return INTERRUPTED
        return 0 if status.state is api.RunState.COMPLETED else FAILED

    click.get_current_context().exit(_foreground.run(follow()))


@click.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.argument("step", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def why(target: Target, run_id: str, step: str | None, as_json: bool) -> None:
    """Say why nothing is happening: what a step waits for, or each step of a run that has not ended.

    Of a large run it explains 50 steps, those first that could run, and counts the others.
    """
    from baton import _terminal

    async def read() -> "api.Explanation | api.RunExplanation":
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return await run.why() if step is None else await run.why(step)

    found = asyncio.run(read())
    if as_json:
        click.echo(_terminal.as_json(found))
    else:
        console = _terminal.open_console()
        _terminal.show(console, _terminal.explained(console, found))
