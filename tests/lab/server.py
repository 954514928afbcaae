"""The lab's own PostgreSQL: one that can be killed in every way, and comes back with what it had committed."""

import os
import signal
import time
from pathlib import Path

import psycopg
from psycopg import sql

from baton.local import LocalServer

DATABASE = "lab"

_SETTINGS = {"deadlock_timeout": "50ms", "log_lock_waits": "off", "max_connections": "300"}


class Server:
    """A server in a folder of its own, until `stop`. Its data outlives its crashes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = LocalServer.start(folder, database=DATABASE)
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            for name, value in _SETTINGS.items():
                conn.execute(
                    sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                )
        self.restart_immediately()

    def stop(self) -> None:
        self._server.stop()

    @property
    def dsn(self) -> str:
        """Straight to the server, past the proxy."""
        return self._server.dsn

    def dsn_for(self, database: str) -> str:
        return self._server.dsn_for(database)

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(str(psycopg.conninfo.conninfo_to_dict(self.dsn)["host"])) / ".s.PGSQL.5432"

    @property
    def log(self) -> Path:
        return self._folder / "server.log"

    def restart_immediately(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does, without a checkpoint, and start it again: it recovers."""
        old = self._server
        os.kill(old.pid, signal.SIGQUIT)
        # Waits for the end of the old one. Its lease is kept until the new one is there: the last one stops the server.
        self._server = LocalServer.start(self._folder, database=DATABASE)
        old.stop()

    def crash(self) -> None:
        """Kill a backend with -9: the server ends all connections and recovers, under the postmaster it had."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            os.kill(conn.info.backend_pid, signal.SIGKILL)
            self._wait_until_gone(conn.info.backend_pid)

    @staticmethod
    def _wait_until_gone(pid: int) -> None:
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
