"""What the commands have in common: exit codes, failures in one message, and the database that a command is about."""

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import baton as api

if TYPE_CHECKING:
    from baton import Baton

FAILED, USAGE, NO_START, INTERRUPTED = 1, 2, 3, 130
HELP: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}


class Failure(click.ClickException):
    """What the user can do something about, in one message."""

    exit_code = FAILED

    def show(self, file: Any = None) -> None:
        """Write it to standard error."""
        from baton._terminal import safe

        click.echo(f"baton: {safe(self.message, lines=True)}", file=file, err=file is None)


class Unusable(Failure):
    """An option, argument, app or id that cannot work."""

    exit_code = USAGE


class CannotStart(Failure):
    """No connection, no schema, no package."""

    exit_code = NO_START


class Interrupted(Failure):
    """Ended by Ctrl-C."""

    exit_code = INTERRUPTED


@dataclass(frozen=True, slots=True)
class Target:
    """The database that a command is about."""

    dsn: str | None
    data_dir: Path | None
    prefix: str

    @property
    def options(self) -> str:
        """What another command is given to find the embedded server; a connection string may hold a password."""
        if self.dsn is not None:
            return ""
        return "--local" + (f" --data-dir {shlex.quote(str(self.data_dir))}" if self.data_dir else "")

    @asynccontextmanager
    async def database(self) -> "AsyncIterator[str]":
        """Connection string; an embedded server runs meanwhile."""
        if self.dsn is not None:
            yield understood(self.dsn)
            return
        from baton.local import LocalServer

        with await asyncio.to_thread(LocalServer.start, self.data_dir) as server:
            yield server.dsn

    def reader(self, *, pool_size: int = 10) -> "Baton":
        """A Baton that reads, not started."""
        if self.dsn is None:
            return api.Baton.local(self.data_dir, prefix=self.prefix, queues={}, pool_size=pool_size)
        return api.Baton(understood(self.dsn), prefix=self.prefix, pool_size=pool_size)

    @asynccontextmanager
    async def baton(self) -> "AsyncIterator[Baton]":
        """A Baton that reads."""
        async with self.reader(pool_size=2) as baton:
            yield baton


def understood(dsn: str) -> str:
    """The connection string, if it is one."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except (ProgrammingError, ValueError):
        # libpq's own words would show the password.
        hint = "; leave out the driver after the `+`" if "+" in dsn.partition("://")[0] else ""
        raise Unusable(
            f"the connection string cannot be understood; one looks like postgresql://user@localhost:5432/database{hint}"
        ) from None
    return dsn


def database_options(command: Callable[..., None]) -> Callable[..., None]:
    def with_target(
        *args: Any, dsn: str | None, local: bool, data_dir: Path | None, prefix: str, **options: Any
    ) -> None:
        context = click.get_current_context()
        if local and context.get_parameter_source("dsn") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--dsn and --local exclude each other.")
        if data_dir is not None and not local:
            raise click.UsageError("--data-dir is for --local.")
        if not (dsn or local) and not options.get("as_sql"):
            raise click.UsageError(
                "Which database? Pass --dsn postgresql://user@localhost/name, set BATON_DSN or DATABASE_URL, "
                "or pass --local for the embedded PostgreSQL that `baton demo` uses."
            )
        command(*args, target=Target(None if local else dsn, data_dir, prefix), **options)

    wrapped: Callable[..., None] = update_wrapper(with_target, command)
    for option in (
        click.option("--prefix", default="public", show_default=True, help="Schema of the tables."),
        data_dir_option("Folder of the embedded PostgreSQL; default: BATON_DATA, or your data folder."),
        click.option("--local", is_flag=True, help="The embedded PostgreSQL instead of a DSN."),
        click.option(
            "--dsn", envvar=["BATON_DSN", "DATABASE_URL"], show_envvar=True, help="Connection string."
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def data_dir_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--data-dir", type=click.Path(path_type=Path), help=text)
