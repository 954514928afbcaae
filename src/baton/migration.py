"""Create, upgrade, check and remove Baton's tables, functions, triggers and views beside Oban's.

    await baton.migration.up(dsn)               # create or upgrade; does nothing when all is there
    await baton.migration.down(dsn)             # remove what Baton created, and nothing of Oban's
    op.execute(baton.migration.sql())           # the same as text, for Alembic, Django or a DBA

Tables are made by numbered files, forward only; functions and views are replaced as a whole, on all nodes at once, so they keep
their meaning for one version back, and views their columns. Everything happens in one transaction.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from oban.schema import install_sql
from psycopg import AsyncConnection, errors
from psycopg import sql as pgsql
from psycopg.rows import class_row

from baton import _store
from baton._engine import connect
from baton.errors import InvalidOption, SchemaConflict, SchemaMissing, SchemaOutdated, StartError

logger = logging.getLogger(__name__)

# CREATE TRIGGER and ALTER TABLE want locks that one long transaction can withhold while every ack queues up behind us. So: ask
# briefly, let the queue pass, ask again. Briefly is less than PostgreSQL waits, by default, before it looks for a deadlock and
# ends somebody: where two wait for each other, we give way.
_LOCK_TIMEOUT = "400ms"
_LOCK_TRIES = 20


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What `check` found in a schema.

    Attributes:
        oban: Oban's tables are there.
        version: Version of Baton's schema, 0 where there is none.
        wanted: Version that this library needs.
        current: Functions are those of this library's build; those of another with the same version will do as well.
        missing_triggers: Triggers on `oban_jobs` that are absent or disabled.
    """

    oban: bool
    version: int
    wanted: int
    current: bool
    missing_triggers: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether this library can run here. A schema newer than the library is fine."""
        return self.oban and not self.missing_triggers and self.version >= self.wanted


def sql(
    prefix: str = "public", *, since: int = 0, grant: Sequence[str] = (), grant_read: Sequence[str] = ()
) -> str:
    """The statements `up` would run on a schema at version `since`, for another migration tool to run in one transaction.

    Oban's own tables must be there: `oban.schema.install_sql(prefix)`.

    Args:
        prefix: Schema of the tables.
        since: Version that is there already; 0 for none.
        grant: Roles that run workers or insert workflows and do not own the tables.
        grant_read: Roles that may read the views, and nothing else.

    Raises:
        InvalidOption: `prefix` is not a schema name, or a role has a name that needs more than quotes.
    """
    _store.validate_prefix(prefix)
    parts = [_TABLE.format(prefix=prefix)] if since == 0 else []
    pending = _pending(since)
    if since and pending:
        parts.append(_store.load("lock_tables", prefix).decode())
    for migration in pending:
        parts.append(_store.render(migration.text, prefix).rstrip().rstrip(";") + ";")
        parts.append(
            f'INSERT INTO "{prefix}".workflow_migrations (version, name) '
            f"VALUES ({migration.version}, '{migration.name}') ON CONFLICT DO NOTHING;"
        )
    parts.append(_functions(prefix))
    parts.append(_store.load("create_triggers", prefix).decode())
    parts.append(_store.load("revoke_functions", prefix).decode())
    parts.extend(f"{_store.render(text, prefix).rstrip()};" for _, text in _store.views())
    parts.append(_grants(prefix, grant, grant_read))
    parts.append(
        f"INSERT INTO \"{prefix}\".workflow_migrations (version, name) VALUES (0, '{checksum()}') "
        "ON CONFLICT (version) DO UPDATE SET name = excluded.name, applied_at = now();"
    )
    return "\n".join(parts)


def _functions(prefix: str) -> str:
    definitions = ",\n".join(
        f"('baton_{name}', $baton$\n{_store.render(text, prefix)}$baton$)"
        for name, text in _store.functions()
    )
    return _store.load("replace_functions", prefix).decode().replace("/* definitions */", definitions)


def _missing_views(prefix: str) -> str:
    definitions = ",\n".join(
        f"('baton_{name}', $baton$\n{_store.render(text, prefix)}$baton$)" for name, text in _store.views()
    )
    return _store.load("create_views", prefix).decode().replace("/* definitions */", definitions)


def _grants(prefix: str, workers: Sequence[str], readers: Sequence[str]) -> str:
    return "\n".join(
        [
            *(_grant(role, prefix, "grant") for role in workers),
            *(_grant(role, prefix, "grant_read") for role in readers),
        ]
    )


def _grant(role: str, prefix: str, statement: str) -> str:
    if not _ROLE.fullmatch(role):
        raise InvalidOption(
            f"role {role!r} cannot be granted to; use 1 to 63 ASCII letters, digits, '_' or '-'"
        )
    return _store.load(statement, prefix).decode().replace("/* role */", f'"{role}"')


_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_TABLE = (
    'CREATE TABLE IF NOT EXISTS "{prefix}".workflow_migrations '
    "(version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now());"
)


def checksum() -> str:
    """Fingerprint of this library's functions, views and triggers, recorded as version 0."""
    digest = hashlib.sha256()
    for name, text in (*_store.functions(), *_store.views()):
        # As they are created, so that a change of what they have in common is one of them.
        digest.update(f"{name}\0{_store.render(text, 'public')}\0".encode())
    digest.update(_store.load("create_triggers"))
    return digest.hexdigest()[:16]


def _pending(version: int) -> list[_store.Migration]:
    return [migration for migration in _store.migrations() if migration.version > version]


async def up(
    dsn: str, *, prefix: str = "public", grant: Sequence[str] = (), grant_read: Sequence[str] = ()
) -> list[int]:
    """Create or upgrade the schema, Oban's tables included where they are missing.

    Calling it again does nothing; two at once queue up. A crash leaves the schema as it was. Tables are asked for
    their locks for less than half a second at a time and for three quarters of a minute in all, so running workers are not
    held up, also those of the version before.

    Args:
        dsn: Of a role that may create tables, and will own them.
        prefix: Schema of the tables.
        grant: Roles that run workers or insert workflows and do not own the tables. Granted at every call; an upgrade grants
            what is new to those of earlier calls as well.
        grant_read: Roles that may read the views, and nothing else. Granted at every call.

    Returns:
        The versions applied, oldest first; empty when the schema was up to date.

    Raises:
        SchemaConflict: Tables with Baton's names exist that Baton did not create.
        InvalidOption: `prefix` is not a schema name, or a role has a name that needs more than quotes.
        DatabaseUnreachable: There is no connection.
    """
    _store.validate_prefix(prefix)
    async with await _connect(dsn) as conn:
        return await _patiently(lambda: _up_once(conn, prefix, grant, grant_read))


async def _patiently[T](change: Callable[[], Awaitable[T]]) -> T:
    for attempt in range(1, _LOCK_TRIES + 1):
        try:
            return await change()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if attempt == _LOCK_TRIES:
                raise
            logger.warning(
                "a table is locked by a long transaction; trying again (%d/%d)", attempt, _LOCK_TRIES
            )
            await asyncio.sleep(0.2 * attempt)
    raise AssertionError("unreachable")


async def _up_once(
    conn: AsyncConnection, prefix: str, grant: Sequence[str], grant_read: Sequence[str]
) -> list[int]:
    async with conn.transaction():
        # All of a database's migrations queue up here, Oban's install included.
        await conn.execute("SELECT pg_advisory_xact_lock(hashtext('baton.migrate'))")
        await conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        quoted = await (await conn.execute("SELECT quote_ident(%s)", (prefix,))).fetchone()
        if quoted != (prefix,):
            raise InvalidOption(
                f"prefix {prefix!r} is a word that SQL keeps for itself, and Oban writes it without quotes"
            )
        await conn.execute(pgsql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(pgsql.Identifier(prefix)))
        found = await _read(conn, prefix)
        if found.oban and (found.version > found.wanted or (found.ready and found.current)):
            # Functions of a later library stay.
            await conn.execute(_store.load("create_triggers", prefix))
            if found.version == found.wanted:
                await conn.execute(_missing_views(prefix).encode())
            await conn.execute(_grants(prefix, grant, grant_read).encode())
            return []
        if not found.oban:
            # Oban's script looks for its type in current_schema().
            await conn.execute(pgsql.SQL("SET LOCAL search_path = {}").format(pgsql.Identifier(prefix)))
            await conn.execute(install_sql(prefix).encode())
        pending = _pending(found.version)
        # Their workers run already, and from now on need the new tables and functions as well.
        granted = await (await conn.execute(_store.load("read_granted", prefix))).fetchall()
        roles = dict.fromkeys([*grant, *(role for (role,) in granted if _ROLE.fullmatch(role))])
        text = sql(prefix, since=found.version, grant=[*roles], grant_read=grant_read)
        await conn.execute(text.encode())
        return [migration.version for migration in pending]


async def down(dsn: str, *, prefix: str = "public") -> None:
    """Remove Baton's tables, functions and triggers. Oban's tables and jobs stay; held steps' jobs stay suspended.

    Calling it again does nothing. All workflows and their results are lost.
    """
    _store.validate_prefix(prefix)
    async with await _connect(dsn) as conn:
        await _patiently(lambda: _down_once(conn, prefix))


async def _down_once(conn: AsyncConnection, prefix: str) -> None:
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock(hashtext('baton.migrate'))")
        await conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        if (await _read(conn, prefix)).version:
            await conn.execute(_store.load("drop_schema", prefix))


async def check(dsn: str, *, prefix: str = "public") -> SchemaState:
    """Say what is there, without changing it."""
    _store.validate_prefix(prefix)
    async with await _connect(dsn) as conn:
        return await _read(conn, prefix)


async def _connect(dsn: str) -> AsyncConnection:
    return await connect(dsn, autocommit=True, application_name="baton migrate")


async def verify(conn: AsyncConnection, prefix: str) -> None:
    """Raise, with the command to run, unless this library can run on the schema.

    Raises:
        SchemaMissing: There are no tables of Baton's.
        SchemaOutdated: They are older than this library, or its triggers are gone.
        StartError: The connection's role may not use them.
    """
    if not await _usable(conn, prefix):
        raise StartError(
            f"role {conn.info.user!r} may not use Baton's tables and functions in schema {prefix!r}; run "
            f"`baton migrate --grant {conn.info.user}` as their owner"
        )
    state = await _read(conn, prefix)
    command = "`baton migrate`" if prefix == "public" else f"`baton migrate --prefix {prefix}`"
    if not state.version:
        raise SchemaMissing(
            f"schema {prefix!r} has no Baton tables; run {command} (or await baton.migration.up(dsn))"
        )
    if not state.ready:
        reason = f"version {state.version}, and this library needs {state.wanted}"
        if state.version == state.wanted:
            reason = f"missing the triggers {', '.join(state.missing_triggers)}"
        raise SchemaOutdated(f"the Baton schema in {prefix!r} is {reason}; run {command}")


async def _usable(conn: AsyncConnection, prefix: str) -> bool:
    try:
        row = await (await conn.execute(_store.load("read_privileges", prefix))).fetchone()
        await _read(conn, prefix)
    except errors.InsufficientPrivilege:
        return False
    return row is None or row[0] is not False


@dataclass(frozen=True, slots=True)
class _Found:
    oban: bool
    baton: bool
    tables: list[str]
    missing_triggers: list[str]


async def _read(conn: AsyncConnection, prefix: str) -> SchemaState:
    async with conn.cursor(row_factory=class_row(_Found)) as cursor:
        await cursor.execute(_store.load("read_schema"), {"prefix": prefix})
        found = await cursor.fetchone()
    assert found is not None
    version, fingerprint = 0, ""
    if found.baton:
        rows = await (
            await conn.execute(
                pgsql.SQL("SELECT version, name FROM {}").format(
                    pgsql.Identifier(prefix, "workflow_migrations")
                )
            )
        ).fetchall()
        version = max((row[0] for row in rows), default=0)
        fingerprint = next((row[1] for row in rows if row[0] == 0), "")
    elif found.tables:
        raise SchemaConflict(
            f"schema {prefix!r} has tables that Baton did not create: {', '.join(found.tables)} (an Elixir Baton's, "
            "perhaps); use another schema with prefix=, or rename them"
        )
    wanted = _store.migrations()[-1].version
    return SchemaState(
        oban=found.oban,
        version=version,
        wanted=wanted,
        current=version >= wanted and fingerprint == checksum(),
        missing_triggers=tuple(found.missing_triggers),
    )
