"""Workers in processes of their own, to be killed, frozen and stopped, and a server to be taken away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg
from tests.kit import crew

from baton import Baton, Workflow, migration
from baton.local import LocalServer

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


class Worker:
    """`baton start` on the steps of a module in `tests.kit`. Leave the `with` block to be sure that it is gone."""

    def __init__(
        self,
        dsn: str,
        folder: Path,
        *,
        module: str = "crew",
        app: str = "make",
        knows: bool = False,
        **options: Any,
    ) -> None:
        options = {"queues": {"default": 5}, "rescue_after": 2.0, **options}
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        environment = {
            **os.environ,
            "APP_DSN": dsn,
            "CREW_OPTIONS": json.dumps(options),
            "CREW_KNOWS": "1" if knows else "",
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "baton", "start"),
                    *("--app", f"tests.kit.{module}:{app}", "--app-dir", str(ROOT)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(timeout=PATIENCE)
        assert "Traceback" not in self.log, self.log
        return code

    def working(self) -> Self:
        until(lambda: "is working on" in self.log or self.process.poll() is not None, self)
        assert self.process.poll() is None, self.log
        return self


def until[T](fact: Callable[[], T], *workers: Worker) -> T:
    """Wait for a fact and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"still {found!r} after {PATIENCE} s\n" + "\n".join(worker.log for worker in workers)
            )
        time.sleep(0.01)
    return found


class Witness:
    """What the steps did, and what became of them, in a database with the table `effects`."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(crew.TABLE.encode())

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(sql.encode(), params or None).fetchall()

    def starts(self, name: str) -> list[tuple[int, int]]:
        """Attempt and process of each start of a step, in order."""
        return self.rows(
            "SELECT attempt, pid FROM effects WHERE step = %s AND phase = 'start' ORDER BY id", name
        )

    def ended(self, name: str) -> int:
        return len(self.rows("SELECT FROM effects WHERE step = %s AND phase = 'end'", name))

    def job(self, name: str) -> tuple[str, int]:
        """State of a step's job, and its attempt."""
        ((state, attempt),) = self.rows(
            "SELECT job.state::text, job.attempt FROM oban_jobs AS job JOIN workflow_nodes AS step "
            "ON step.job_id = job.id WHERE step.name = %s",
            name,
        )
        return state, attempt

    def result(self, name: str) -> Any:
        ((result,),) = self.rows("SELECT result -> 'value' FROM workflow_nodes WHERE name = %s", name)
        return result

    def insert(self, *workflows: Workflow) -> list[str]:
        async def insert() -> list[str]:
            async with Baton(self.dsn) as baton:
                return [run.id for run in await baton.insert_many(list(workflows))]

        return asyncio.run(insert())


class Server:
    """A PostgreSQL of one test's own, that can crash. Leave the `with` block to stop it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leases = [LocalServer.start(folder)]
        self.dsn = self._leases[0].dsn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for lease in self._leases:
            lease.stop()

    def renew(self) -> None:
        """Run, with a migrated, empty database."""
        if not self._answers():
            self.restart()
        with psycopg.connect(self._leases[0].dsn_for("postgres"), autocommit=True) as conn:
            conn.execute("DROP DATABASE baton WITH (FORCE)")
            conn.execute("CREATE DATABASE baton")
        asyncio.run(migration.up(self.dsn))

    def crash(self) -> None:
        """What `pg_ctl stop -m immediate` does: no goodbye, and recovery at the next start."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not self._answers())

    def restart(self) -> None:
        self._leases.append(LocalServer.start(self._folder))

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True
