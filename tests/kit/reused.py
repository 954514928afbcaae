"""One database for many tests: emptied before each, and replaced when a test changed more than rows.

Copying the template costs more than most tests do.
"""

import time
from contextlib import ExitStack
from typing import Any, Self

import psycopg

from baton import testing

_TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
# What a test may have left behind besides rows.
_SHAPE = """
    SELECT (SELECT array_agg(oid::text || relname ORDER BY oid) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'i')),
           (SELECT array_agg(oid::text || tgenabled::text ORDER BY oid) FROM pg_trigger),
           (SELECT array_agg(oid::text || xmin::text ORDER BY oid) FROM pg_proc WHERE oid >= 16384),
           (SELECT array_agg(oid ORDER BY oid) FROM pg_constraint WHERE oid >= 16384),
           (SELECT array_agg(oid ORDER BY oid) FROM pg_namespace WHERE oid >= 16384),
           (SELECT array_agg(setconfig::text) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
            WHERE d.datname = current_database())
"""


class Reused:
    """The database of a test module. Leave the `with` block to drop it."""

    def __init__(self, server: Any, template: str, *, durable: bool = False) -> None:
        self._durable = durable
        self._server = server
        self._template = template
        self._stack = ExitStack()
        self._dsn: str | None = None
        self._conn: psycopg.Connection | None = None
        self._shape: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clean(self) -> str:
        """Connection string of a migrated database without rows."""
        if self._conn is None or self._dsn is None or not self._emptied(self._conn):
            self._replace()
        assert self._dsn is not None
        return self._dsn

    def _emptied(self, conn: psycopg.Connection) -> bool:
        try:
            if conn.execute(_SHAPE.encode()).fetchone() != self._shape:
                return False
            # A backend outlives its connection by a moment.
            others = b"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            deadline = time.monotonic() + 1
            while conn.execute(others).fetchone():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.002)
            with conn.transaction():
                conn.execute("SET LOCAL session_replication_role = replica")
                for (table,) in conn.execute(_TABLES.encode()).fetchall():
                    if table != "workflow_migrations":
                        conn.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
        except psycopg.Error:
            return False
        return True

    def _replace(self) -> None:
        self._stack.close()
        self._dsn = self._stack.enter_context(testing.copy(self._server, self._template))
        self._conn = self._stack.enter_context(psycopg.connect(self._dsn, autocommit=True))
        if not self._durable:
            # What is tested is order, not that disks keep their word.
            name = psycopg.sql.Identifier(self._conn.info.dbname)
            self._conn.execute(psycopg.sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        self._shape = self._conn.execute(_SHAPE.encode()).fetchone()
