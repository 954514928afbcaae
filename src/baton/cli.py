"""The command line: `baton migrate`, `start`, `cancel` and the like; `_shown` has those that show, `_command` what all share.

Exit codes:
    0    all went well; `start` was stopped by one signal and its running steps ended in time
    1    the run failed, or what was asked for was not confirmed or could not be written
    2    usage: an option, an argument, an app or an id that cannot work
    3    Baton cannot start: no connection, schema missing or outdated, a package not installed
    130  interrupted before the end, by Ctrl-C or SIGTERM

What a user can get wrong ends in one line on standard error; a traceback is a bug. `--help` imports no database driver, and a
password in a connection string is never shown.
"""

import asyncio
import importlib.util
import io
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import baton as api
from baton import _budget_command, _costs, _shown, errors
from baton._command import (
    FAILED,
    HELP,
    INTERRUPTED,
    CannotStart,
    Failure,
    Interrupted,
    Target,
    Unusable,
    data_dir_option,
    database_options,
    understood,
)

_EPILOG = """\b
Exit codes:
  0    all went well, or stopped by a signal in good order
  1    the run failed, or something was not confirmed or not written
  2    an option, argument, app or id that cannot work
  3    no connection, schema missing or outdated, package missing
  130  interrupted before the end
"""
_DEMO_PACKAGES = ("markdown_it", "openai", "trafilatura", "yake")


class _Commands(click.Group):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except Exception as error:
            failure = _failure(error)
            if failure is None:
                raise
            logging.getLogger("baton.cli").debug("the cause:", exc_info=True)
            raise failure from error


def _failure(error: Exception) -> Failure | None:
    """What an exception means to the user; None for what is no mistake of theirs."""
    match error:
        case errors.MissingExtra() | errors.LocalServerError():
            return CannotStart(str(error))
        case errors.StartError():
            return CannotStart(_one_line(error))
        case errors.DefinitionError() | errors.RunNotFound() | errors.ResultNotFound():
            return Unusable(_one_line(error))
        case errors.BatonError():
            return Failure(_one_line(error))
    if "psycopg" in sys.modules:
        import psycopg

        if isinstance(error, psycopg.Error):
            return CannotStart(f"the database says: {_one_line(error)}")
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> NoReturn:
    """Run the command line and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its code, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        cli.main(prog_name="baton")
    except SystemExit as end:
        code = end.code
    for thread in threading.enumerate():
        if thread.name.startswith("baton-step"):
            thread.join(0.1)
            if thread.is_alive():
                # Its job was given back; Python would wait for it, for as long as it takes.
                _exit_now(code if isinstance(code, int) else FAILED)
    sys.exit(code)


def _exit_now(code: int) -> NoReturn:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@click.group(
    cls=_Commands,
    context_settings=HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
)
@click.version_option(api.__version__, prog_name="baton")
def cli() -> None:
    """Durable DAG workflows on PostgreSQL."""


for command in (
    _shown.list_,
    _shown.show,
    _shown.graph,
    _shown.watch,
    _shown.why,
    _costs.cost,
    _budget_command.budget,
):
    cli.add_command(command)


@cli.command(context_settings=HELP)
@click.option(
    "--check", is_flag=True, help="Change nothing; exit with 3 if something is missing or outdated."
)
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the SQL that creates everything, for another tool."
)
@click.option("--down", is_flag=True, help="Remove Baton's tables with all workflows. Oban's stay.")
@click.option("--yes", is_flag=True, help="With --down: do not ask.")
@click.option(
    "--grant",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="Let a role work that does not own the tables. Repeatable.",
)
@click.option(
    "--grant-read",
    "readers",
    multiple=True,
    metavar="ROLE",
    help="Let a role read the views, and nothing else. Repeatable.",
)
@database_options
def migrate(
    target: Target,
    check: bool,
    as_sql: bool,
    down: bool,
    yes: bool,
    roles: tuple[str, ...],
    readers: tuple[str, ...],
) -> None:
    """Create or upgrade the tables, Oban's included.

    Doing it again does nothing, so it can be part of every deployment. To print the SQL of an upgrade alone, call
    baton.migration.sql(since=...).
    """
    if check + as_sql + down > 1:
        raise click.UsageError("--check, --sql and --down exclude each other.")
    if yes and not down:
        raise click.UsageError("--yes is for --down.")
    if (roles or readers) and (check or down):
        raise click.UsageError("--grant and --grant-read go with a migration or with --sql.")
    if as_sql:
        text = api.migration.sql(target.prefix, grant=roles, grant_read=readers)
        click.echo(
            f"-- Baton {api.__version__}, to run in one transaction. Oban's own tables must be there already:\n"
            f"-- python -c \"from oban.schema import install_sql; print(install_sql('{target.prefix}'))\"\n{text}"
        )
    elif check:
        asyncio.run(_check(target))
    elif down:
        asyncio.run(_down(target, ask=not yes))
    else:
        asyncio.run(_up(target, roles, readers))


async def _up(target: Target, roles: Sequence[str], readers: Sequence[str]) -> None:
    async with target.database() as dsn:
        before = await api.migration.check(dsn, prefix=target.prefix)
        applied = await api.migration.up(dsn, prefix=target.prefix, grant=roles, grant_read=readers)
    where = f"schema {target.prefix!r}"
    if applied:
        click.echo(f"{where}: applied {', '.join(f'version {version}' for version in applied)}")
    elif before.ready and (before.current or before.version > before.wanted):
        click.echo(f"{where}: up to date (version {before.version})")
    else:
        click.echo(f"{where}: functions and triggers renewed (version {before.version})")
    if granted := dict.fromkeys((*roles, *readers)):
        click.echo(f"{where}: granted to {', '.join(granted)}")


async def _check(target: Target) -> None:
    async with target.database() as dsn:
        state = await api.migration.check(dsn, prefix=target.prefix)
    if state.ready:
        other = "" if state.current else ", with the functions of another build, which will do"
        click.echo(f"schema {target.prefix!r}: up to date (version {state.version}{other})")
        return
    if not state.version:
        wrong = "has no tables of Baton's" if state.oban else "has no tables of Oban's and none of Baton's"
    elif not state.oban:
        wrong = "has no tables of Oban's"
    elif state.version < state.wanted:
        wrong = f"is at version {state.version}; this Baton needs {state.wanted}"
    else:
        wrong = f"misses the triggers {', '.join(state.missing_triggers)}"
    command = "baton migrate" + (f" --prefix {target.prefix}" if target.prefix != "public" else "")
    raise CannotStart(f"schema {target.prefix!r} {wrong}; run: {command}")


async def _down(target: Target, *, ask: bool) -> None:
    from psycopg import AsyncConnection, sql

    async with target.database() as dsn:
        if not (await api.migration.check(dsn, prefix=target.prefix)).version:
            click.echo(f"schema {target.prefix!r}: nothing to remove")
            return
        count = sql.SQL("SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM {}")
        async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
            database = conn.info.dbname
            row = await (
                await conn.execute(count.format(sql.Identifier(target.prefix, "workflows")))
            ).fetchone()
        assert row is not None
        click.echo(
            f"schema {target.prefix!r} of database {database!r}: {row[0]} workflows with their results will be lost, "
            f"{row[1]} of them unfinished.",
            err=True,
        )
        if ask and _typed("Type the name of the database to remove them") != database:
            raise Failure("nothing was removed; scripts pass --yes")
        await api.migration.down(dsn, prefix=target.prefix)
        click.echo(f"schema {target.prefix!r}: removed")


def _typed(prompt: str) -> str:
    try:
        return str(click.prompt(prompt, err=True, default="", show_default=False))
    except click.Abort:
        # Nobody is there to answer, or Ctrl-C.
        return ""


@cli.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.argument("step", metavar="[STEP]", required=False)
@click.option(
    "--reason", default="cancelled on request", show_default=True, help="Stored as the steps' error."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def cancel(target: Target, run_id: str, step: str | None, reason: str, as_json: bool) -> None:
    """End a run, or one step with what waits for it.

    Nothing of it starts any more. Steps that run are told to stop, and end as cancelled whatever they do. The exit code is 1
    if it had ended otherwise before.
    """

    async def do() -> "tuple[str, api.RunState | api.StepState]":
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            won = await run.cancel(reason=reason) if step is None else await run.cancel(step, reason=reason)
            return run.id, won

    found, won = asyncio.run(do())
    what = f"run {found}" if step is None else f"step {step} of run {found}"
    _tell(
        as_json,
        {"run": found, "step": step, "state": won},
        f"{what}: cancelled",
        too_late=_too_late(what, won, "cancelled"),
    )


def _too_late(what: str, state: str, wanted: str) -> str | None:
    """What to say where a verb found its run or step ended otherwise."""
    return None if state == wanted else f"{what} had ended before: it is {state}"


def _tell(as_json: bool, value: Any, line: str, *, too_late: str | None = None) -> None:
    from baton import _terminal

    if as_json:
        click.echo(_terminal.as_json(value))
    if too_late is not None:
        raise Failure(too_late)
    if not as_json:
        click.echo(_terminal.safe(line))


@cli.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def retry(target: Target, run_id: str, as_json: bool) -> None:
    """Run again what failed in a run, in place, and what waits for it.

    Steps that completed keep their results. Doing it twice retries once.
    """

    async def do() -> tuple[str, list[str]]:
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return run.id, await run.retry()

    found, names = asyncio.run(do())
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")
    count = "1 step runs" if len(names) == 1 else f"{len(names):,} steps run"
    line = f"{count} again: {shown}" if names else "nothing had failed"
    _tell(as_json, {"run": found, "steps": names}, f"run {found}: {line}")


@cli.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option(
    "--from", "steps", multiple=True, metavar="STEP", help="Where to begin; default: all of it. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def rerun(target: Target, run_id: str, steps: tuple[str, ...], as_json: bool) -> None:
    """Insert a new run that does a run again, and print its id.

    With --from, the results of the other steps that completed are copied.
    """

    async def do() -> tuple[str, str]:
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return run.id, (await run.rerun(from_=steps or None)).id

    of, new = asyncio.run(do())
    _tell(as_json, {"run": new, "rerun_of": of}, new)


@cli.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def pause(target: Target, run_id: str, as_json: bool) -> None:
    """Let nothing more of a run start until `baton resume`. What runs goes on.

    The exit code is 1 if it had ended before.
    """
    _pause_or_resume(target, run_id, as_json, "paused")


@cli.command(context_settings=HELP)
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@database_options
def resume(target: Target, run_id: str, as_json: bool) -> None:
    """Let a paused run go on. Does nothing to one that is not paused.

    The exit code is 1 if it had ended before.
    """
    _pause_or_resume(target, run_id, as_json, "goes on")


def _pause_or_resume(target: Target, run_id: str, as_json: bool, done: str) -> None:
    async def do() -> "tuple[str, api.RunState]":
        async with target.baton() as baton:
            run = baton.get_run(run_id)
            return run.id, await (run.pause() if done == "paused" else run.resume())

    found, state = asyncio.run(do())
    what = f"run {found}"
    _tell(
        as_json,
        {"run": found, "state": state},
        f"{what}: {done}",
        too_late=_too_late(what, state, "executing"),
    )


@cli.command(context_settings=HELP)
@click.option("--json", "as_json", is_flag=True, help="All findings, as JSON.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option("--verbose", is_flag=True, help="Show also what is in order.")
@database_options
def doctor(target: Target, as_json: bool, strict: bool, verbose: bool) -> None:
    """Look for whatever is wrong with the database and the workers, and say what to do.

    It only reads, and may be run at any moment. The exit code is 1 when there are errors.
    """
    from baton import _terminal

    async def examine() -> "list[api.doctor.Finding]":
        async with target.database() as dsn:
            return await api.doctor.check(dsn, prefix=target.prefix, options=target.options)

    found = asyncio.run(examine())
    if as_json:
        click.echo(_terminal.as_json(found))
    else:
        for line in _terminal.diagnosed(found, verbose=verbose):
            click.echo(line)
    bad = {"error", "warning"} if strict else {"error"}
    if bad.intersection(finding.level for finding in found):
        click.get_current_context().exit(FAILED)


@cli.command(context_settings=HELP)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=4321,
    show_default=True,
    help="Port; unless it is named, one of the next if it is taken. 0 for any.",
)
@click.option(
    "--actions", is_flag=True, help="Let the page cancel, retry, re-run, pause, resume and add to budgets."
)
@click.option("--prompts", is_flag=True, help="Let the page show captured calls of models.")
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="A host name that browsers reach the page at; needed for a --host that is not this machine's own. Repeatable.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open it in a browser.")
@database_options
def ui(
    target: Target,
    host: str,
    port: int,
    actions: bool,
    prompts: bool,
    allow_hosts: tuple[str, ...],
    open_browser: bool,
) -> None:
    """Show runs live in a browser, until Ctrl-C.

    The address that is printed lets one browser in, once; then the next one is printed. The page only shows, unless --actions.
    What it does is logged to standard error.
    """
    from baton import _foreground
    from baton.web import _serve

    named = click.get_current_context().get_parameter_source("port") is not click.core.ParameterSource.DEFAULT
    _foreground.log_to_stderr("info")

    def tell() -> None:
        click.echo(f"for another browser: {page.address()}")

    async def serve() -> None:
        signals = _foreground.Signals()
        async with _foreground.running(baton, signals) as started:
            if not started:
                return
            async with page.serving():
                click.echo(f"{page.address()}\nlets one browser in; Ctrl-C ends")
                if open_browser:
                    click.launch(page.address())
                await signals.first.wait()

    baton = target.reader()
    page = _serve.Page(
        baton,
        host=host,
        port=port,
        search=not named,
        actions=actions,
        prompts=prompts,
        allow_hosts=allow_hosts,
        used=tell,
    )
    _foreground.run(serve())


@cli.command(context_settings=HELP)
@click.option(
    "--app", "spec", required=True, metavar="MODULE:ATTRIBUTE", help="A Baton, or a function that makes one."
)
@click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Where modules are looked for first.",
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME=LIMIT",
    help="Work on these queues instead of the app's. Repeatable.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="What is logged, to standard error. At debug, also the traceback of what makes it fail.",
)
def start(spec: str, app_dir: Path, queues: tuple[str, ...], log_level: str) -> None:
    """Run workers until SIGTERM or Ctrl-C.

    The module defines the steps and a Baton with its queues, as in: baton start --app shop.workflows:baton

    The first signal stops claiming and lets running steps end, for as long as the app's grace period. The second gives
    them back at once, for another worker. The third ends the process.
    """
    from baton import _foreground

    given = _foreground.parse_queues(queues)
    _foreground.log_to_stderr(log_level)
    # Before the app is loaded, which may detach it or choose a level.
    api.telemetry.attach_default_logger()
    baton = _foreground.load(spec, app_dir)
    if given:
        baton.queues = given
    if not baton.queues:
        raise Unusable(
            f"{spec} works on no queue; give it some, Baton(..., queues={{'default': 10}}), or pass --queue default=10"
        )
    if not _foreground.run(_foreground.work(baton, understood)):
        click.get_current_context().exit(INTERRUPTED)


@cli.command(context_settings=HELP)
@click.argument("sources", nargs=-1, metavar="[PATH|URL]...")
@click.option("--topic", help="What the brief is about; default: what the sources say most.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the brief is written; default: research-brief-<id>.md here, never over another file.",
)
@click.option(
    "--resume", metavar="RUN", help="Go on with a run that was interrupted, or show one that has ended."
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; progress goes to standard error.")
@click.option("--ui", is_flag=True, help="Show it in a browser, too; then the page stays until Ctrl-C.")
@data_dir_option("Folder of the embedded PostgreSQL; default: BATON_DATA, or your data folder.")
def demo(
    sources: tuple[str, ...],
    topic: str | None,
    output: Path | None,
    resume: str | None,
    as_json: bool,
    ui: bool,
    data_dir: Path | None,
) -> None:
    """Write a research brief about files, folders and web pages, as a workflow on an embedded PostgreSQL.

    Without sources it reads the texts that come with it. Fetching, three analyses at once and the brief are five steps,
    each an Oban job; stop it in the middle, and --resume goes on where it was.

    With BATON_LLM_URL (an OpenAI-compatible endpoint), BATON_LLM_MODEL (with commas between several) and a key in BATON_LLM_KEY
    or OPENAI_API_KEY, the analyses ask models. Without, no model is asked.
    """
    if resume and (sources or topic is not None):
        raise click.UsageError("--resume goes on with the sources and the topic that the run has.")
    missing = [name for name in _DEMO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.MissingExtra(
            f'the demo needs {", ".join(missing)}; install them with: pip install "oban-baton[demo]"'
        )
    folder = output.parent if output else Path.cwd()
    if not os.access(output if output and output.exists() else folder, os.W_OK):
        raise Unusable(f"{output or folder} cannot be written; name another file with --output")
    # Standard error is for what the user must know; the queue's own business is for `baton start`.
    logging.basicConfig(level=logging.CRITICAL)
    from baton import _demo, _foreground
    from baton.examples.research_brief import asking

    try:
        endpoint = asking.endpoint()
    except asking.EndpointError as error:
        raise Unusable(str(error)) from None
    wanted = _demo.Demo(sources, topic, output, as_json, ui, data_dir, endpoint)
    click.get_current_context().exit(_foreground.run(wanted.run(resume)))
