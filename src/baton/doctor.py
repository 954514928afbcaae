"""Whether a database and its workers are as they must be: `baton doctor`, from Python.

    for finding in await baton.doctor.check(dsn):
        print(finding.level, finding.check, finding.found, finding.remedy)

It only reads, and each question has a time limit, so it may be asked of a production database at any moment.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from baton import _diagnosis, _store, migration
from baton._diagnosis import CHECKS, Check, Context, Finding, Level, Limits
from baton._engine import connect
from baton.errors import SchemaConflict

__all__ = ["Finding", "Level", "check", "names"]

_LIMITS = Limits()
_LOCK_SECONDS = 0.5
# Answers that end the examination: nobody is there to ask.
_LAST_WORDS = (psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown)


def names() -> list[str]:
    """The checks, in the order in which `check` makes them."""
    first = [one.name for one in CHECKS if not one.needs_schema]
    return [*first, "schema", *(one.name for one in CHECKS if one.needs_schema)]


async def check(
    database: str | AsyncConnection[Any], *, prefix: str = "public", options: str = ""
) -> list[Finding]:
    """Look for whatever is wrong with a database for Baton's purposes, and say what to do about it.

    Nothing is written. A question that takes too long, or that the role may not ask, is a finding as well.

    Args:
        database: Connection string, or a connection to use; one in a transaction stays in it.
        prefix: Schema of the tables.
        options: What `baton` commands in remedies are given, besides the prefix, to reach this database: `--local`.

    Returns:
        At least one finding for each check, in order; `ok` where nothing is wrong. Without Baton's tables, or with older ones,
        the checks that need them are left out.

    Raises:
        InvalidOption: `prefix` is not a schema name.
        DatabaseUnreachable: There is no connection.
    """
    _store.validate_prefix(prefix)
    async with _connection(database) as conn:
        context = Context(
            prefix=prefix,
            role=conn.info.user,
            options=options,
            server_version=conn.info.server_version,
            session=conn.info.backend_pid,
        )
        found: list[Finding] = []
        for one in CHECKS:
            if not one.needs_schema:
                found += await _make(conn, one, context)
        schema, skipped = await _schema(conn, context)
        found.append(schema)
        for one in CHECKS:
            if one.needs_schema and skipped is not None and one.name not in skipped:
                found += await _make(conn, one, context)
        return found


@asynccontextmanager
async def _connection(database: str | AsyncConnection[Any]) -> AsyncIterator[AsyncConnection[Any]]:
    if isinstance(database, AsyncConnection):
        yield database
        return
    async with await connect(database, autocommit=True, application_name="baton doctor") as conn:
        yield conn


async def _make(conn: AsyncConnection[Any], one: Check, context: Context) -> list[Finding]:
    try:
        rows = [row for _ in range(one.separately) for row in await _ask(conn, one, context.prefix)]
    except psycopg.Error as error:
        if conn.closed or isinstance(error, _LAST_WORDS):
            raise
        return [_diagnosis.unknown(one.name, str(error).partition("\n")[0], context)]
    return _diagnosis.findings(one, rows, context, _LIMITS)


async def _ask(conn: AsyncConnection[Any], one: Check, prefix: str) -> list[dict[str, Any]]:
    """Rows of a check's statement, each with the moments between which they were made."""
    params = _diagnosis.params(_LIMITS)
    if one.name in _diagnosis.OWN_PARAMS:
        params |= _diagnosis.OWN_PARAMS[one.name](_LIMITS)
    async with _bounded(conn, one.seconds), conn.cursor(row_factory=dict_row) as cursor:
        asked_at = _now()
        # Not prepared: a pooler may stand in between, which is one of the questions.
        await cursor.execute(_statement(one.statement, prefix), params, prepare=False)
        answered_at = _now()
        rows = await cursor.fetchall()
    return [{**row, "asked_at": asked_at, "answered_at": answered_at} for row in rows]


@asynccontextmanager
async def _bounded(conn: AsyncConnection[Any], seconds: float) -> AsyncIterator[None]:
    """A transaction that only reads and does not wait; a part of the caller's, if the connection is in one."""
    # Rolled back, so that what is set here is undone in the caller's, too.
    async with conn.transaction(force_rollback=True):
        await conn.execute(
            f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '{seconds:g}s'; "
            f"SET LOCAL lock_timeout = '{_LOCK_SECONDS:g}s'".encode()
        )
        yield


def _now() -> datetime:
    return datetime.now(UTC)


def _statement(name: str, prefix: str) -> bytes:
    text = _store.load(name, prefix)
    return text.replace(b"/* audit */", _store.load("audit", prefix))


async def _schema(conn: AsyncConnection[Any], context: Context) -> tuple[Finding, tuple[str, ...] | None]:
    """What is to be said of the schema, and the checks to leave out because of it; None for all that need one."""

    def wrong(found: str, remedy: str, level: Level = Level.ERROR) -> Finding:
        return Finding("schema", level, found, remedy)

    migrate = context.command("migrate")
    try:
        async with _bounded(conn, 5.0):
            state = await migration._read(conn, context.prefix)
    except SchemaConflict as conflict:
        return wrong(str(conflict), replace(context, prefix="another_schema").command("migrate")), None
    except psycopg.Error as error:
        if conn.closed or isinstance(error, _LAST_WORDS):
            raise
        finding = _diagnosis.unknown("schema", str(error).partition("\n")[0], context)
        return replace(finding, level=Level.ERROR), None
    where = f"schema {context.prefix!r}"
    if not state.oban or not state.version:
        whose = "Baton's" if state.oban else "Oban's and none of Baton's" if not state.version else "Oban's"
        return wrong(f"{where} has no tables of {whose}", migrate), None
    if state.version < state.wanted:
        return wrong(
            f"{where} is at version {state.version}, and this Baton needs {state.wanted}", migrate
        ), None
    if state.version > state.wanted:
        newer = f"{where} is at version {state.version}, and this Baton knows {state.wanted}"
        finding = wrong(newer, "pip install --upgrade oban-baton", Level.WARNING)
        return finding, ("functions", "function-owners", "tables")
    return Finding("schema", Level.OK, f"{where} is at version {state.version}"), ()
