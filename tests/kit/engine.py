"""The engine without workers: a graph in the database, and its attempts in the hands of a test."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from oban import Oban
from oban.job import Job
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from tests.kit.graphs import HOOKED

from baton import Budget, Workflow, _store
from baton._engine import Acked, Claim, Engine, Outcome
from baton._plan import plan_insert

type Deps = Mapping[str, Iterable[str]]


def graph(
    deps: Deps,
    *,
    name: str = "graph",
    key: str | None = None,
    ignore_cancelled: Iterable[str] = (),
    ignore_discarded: Iterable[str] = (),
    always: Iterable[str] = (),
    on_failure: Iterable[str] = (),
    hooked: Iterable[str] = (),
    scheduled: Mapping[str, datetime] | None = None,
    queues: Mapping[str, str] | None = None,
    max_attempts: int = 3,
    deadline: datetime | timedelta | None = None,
    budget: Budget | Iterable[Budget] | None = None,
) -> Workflow:
    """A workflow of ordinary Oban jobs that nobody will run, from names to the names they wait for."""
    workflow = Workflow(name, key=key, deadline=deadline, budget=budget)
    for step, waits_for in deps.items():
        job = Job(
            HOOKED if step in set(hooked) else "tests.kit.Nobody",
            queue=(queues or {}).get(step, "default"),
            scheduled_at=(scheduled or {}).get(step),
            max_attempts=max_attempts,
        )
        workflow.add(
            step,
            job,
            deps=list(waits_for),
            ignore_cancelled=step in set(ignore_cancelled),
            ignore_discarded=step in set(ignore_discarded),
            always=step in set(always),
            on_failure=step in set(on_failure),
        )
    return workflow


def chain(length: int) -> dict[str, list[str]]:
    return {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(length)}


class Steps:
    """Steps of the workflows in one database, by name. Names must be unique among them."""

    def __init__(self, dsn: str, db: AsyncConnection, engine: Engine, stack: AsyncExitStack) -> None:
        self.dsn = dsn
        self.db = db
        self.engine = engine
        self.audited = True
        self._stack = stack
        self._oban: Oban | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str) -> AsyncIterator["Steps"]:
        """Steps of an empty database, which is audited at the end unless `audited` was turned off."""
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(await AsyncConnection.connect(dsn, autocommit=True))

            async def conninfo() -> str:
                return dsn

            engine = Engine(conninfo, kwargs={}, prefix="public", origin=str(uuid4()), pool_size=4)
            stack.push_async_callback(engine.close)
            steps = cls(dsn, db, engine, stack)
            yield steps
            if steps.audited:
                assert await steps.audit() == []

    async def session(self, **settings: Any) -> AsyncConnection:
        """Another connection, in a transaction from its first statement on; closed at the end."""
        return await self._stack.enter_async_context(await AsyncConnection.connect(self.dsn, **settings))

    async def oban(self) -> Oban:
        """Oban's own calls on this database. It is not started, so nothing runs."""
        if self._oban is None:
            pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
                self.dsn, min_size=1, max_size=3, open=False
            )
            self._stack.push_async_callback(pool.close)
            await pool.open()
            self._oban = Oban(pool=pool, name=str(uuid4()))
        return self._oban

    async def rows(self, sql: str | bytes, *params: Any) -> list[tuple[Any, ...]]:
        text = sql if isinstance(sql, bytes) else sql.encode()
        return await (await self.db.execute(text, params or None)).fetchall()

    async def value(self, sql: str, *params: Any) -> Any:
        row = await (await self.db.execute(sql.encode(), params or None)).fetchone()
        return row[0] if row else None

    async def run(self, sql: str, *params: Any) -> None:
        await self.db.execute(sql.encode(), params or None)

    async def insert(self, deps: Deps, **options: Any) -> UUID:
        (inserted,) = await self.engine.insert(plan_insert([graph(deps, **options)]))
        return inserted.id

    async def job_id(self, name: str) -> int:
        return int(await self.value("SELECT job_id FROM workflow_nodes WHERE name = %s", name))

    async def step(self, name: str) -> dict[str, Any]:
        async with self.db.cursor(row_factory=dict_row) as cursor:
            await cursor.execute("SELECT * FROM workflow_nodes WHERE name = %s", (name,))
            row = await cursor.fetchone()
        assert row is not None
        return row

    async def workflow(self, workflow_id: UUID) -> dict[str, Any]:
        async with self.db.cursor(row_factory=dict_row) as cursor:
            await cursor.execute("SELECT * FROM workflows WHERE id = %s", (workflow_id,))
            row = await cursor.fetchone()
        assert row is not None
        return row

    async def states(self) -> dict[str, str]:
        """State of each step; a released one's is its job's."""
        return dict(
            await self.rows(
                "SELECT s.name, CASE WHEN s.state = 'released' THEN coalesce(j.state::text, 'gone') ELSE s.state END "
                "FROM workflow_nodes AS s LEFT JOIN oban_jobs AS j ON j.id = s.job_id ORDER BY s.id"
            )
        )

    async def jobs(self) -> dict[str, str]:
        """State of each step's job."""
        return dict(
            await self.rows(
                "SELECT s.name, coalesce(j.state::text, 'gone') FROM workflow_nodes AS s "
                "LEFT JOIN oban_jobs AS j ON j.id = s.job_id ORDER BY s.id"
            )
        )

    async def start(self, *names: str) -> list[Outcome]:
        """Begin an attempt of these steps, as a worker's claim does; returns a completed outcome for each."""
        rows = await self.rows(
            "UPDATE oban_jobs AS j SET state = 'executing', attempt = j.attempt + 1, "
            "attempted_at = timezone('UTC', clock_timestamp()) FROM workflow_nodes AS s "
            "WHERE s.job_id = j.id AND s.name = ANY(%s) AND j.state = 'available' RETURNING j.id, j.attempted_at",
            list(names),
        )
        assert len(rows) == len(names), f"not all of {names} can start: {await self.states()}"
        return [Outcome(id_, at.replace(tzinfo=UTC), "completed", result="1") for id_, at in sorted(rows)]

    async def finish(self, *names: str, state: str = "completed", result: str = "1") -> Acked:
        """Run one attempt of each step to this state, in one ack."""
        outcomes = [
            Outcome(
                job_id=started.job_id,
                attempted_at=started.attempted_at,
                state=state,
                result=result if state == "completed" else None,
                error=None if state == "completed" else {"attempt": 1, "error": "because"},
                reason=None if state == "completed" else "because",
            )
            for started in await self.start(*names)
        ]
        return await self.engine.ack(outcomes)

    async def audit(self) -> list[tuple[Any, ...]]:
        return await self.rows(_store.load("audit"))

    async def completions(self) -> list[tuple[Any, ...]]:
        return await self.rows("SELECT outcome, failed_steps FROM workflow_completions ORDER BY finished_at")

    async def blocked(self) -> list[int]:
        """Backends of this database that wait for a lock."""
        return [
            pid
            for (pid,) in await self.rows(
                "SELECT pid FROM pg_stat_activity "
                "WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
        ]


def claimed_by(done: Acked) -> list[dict[str, Any]]:
    """The jobs that an ack claimed, as JSON."""
    return [json.loads(job) for job in done.claimed]


def claim(queue: str = "default", demand: int = 100) -> Claim:
    return Claim(queue=queue, demand=demand, node="test", producer=uuid4())


async def sqlstate_of(conn: AsyncConnection, sql: str, *params: Any) -> str | None:
    """SQLSTATE that a statement fails with, None if it succeeds."""
    try:
        await conn.execute(sql.encode(), params or None)
    except psycopg.Error as error:
        return error.sqlstate
    return None
