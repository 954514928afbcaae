"""The commands that show something: `baton list`, `show` and `why`."""

import asyncio
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

import baton as api
from baton._command import HELP, Target, database_options

if TYPE_CHECKING:
    from baton import RunStatus


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
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
    callback=_moment,
    help="Only those inserted at this time or later; 2h is two hours ago.",
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only those inserted before this time.")
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
@click.option("--mermaid", is_flag=True, help="As a Mermaid flowchart.")
@click.option("--dot", is_flag=True, help="As a Graphviz digraph.")
@database_options
def show(target: Target, run_id: str, with_results: bool, as_json: bool, mermaid: bool, dot: bool) -> None:
    """Show one run: its steps, their states, times and errors."""
    from baton import _terminal

    if as_json + mermaid + dot > 1:
        raise click.UsageError("--json, --mermaid and --dot exclude each other.")
    if with_results and (mermaid or dot):
        raise click.UsageError("--results goes with the table or with --json.")

    async def read() -> "tuple[RunStatus, api.Graph, dict[str, Any]]":
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return await run.status(), await run.graph(), await run.results() if with_results else {}

    status, graph, results = asyncio.run(read())
    if mermaid or dot:
        click.echo(graph.to_mermaid() if mermaid else graph.to_dot(), nl=False)
    elif as_json:
        click.echo(_terminal.as_json(asdict(status) | ({"results": results} if with_results else {})))
    else:
        console = _terminal.open_console()
        _terminal.show(console, _terminal.picture(console, status))
        for name, value in results.items():
            click.echo(f"\n{_terminal.safe(name)}:\n{_terminal.as_json(value)}")


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
