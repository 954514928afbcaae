"""A test's own database: the real engine and Oban's own statements, on connections that the test holds in its hands.

A `Session` is one connection. Its statements commit one by one, unless the test says `begin`: then the rows they lock
stay locked until `end`, which makes them the breakpoints of every concurrent scenario.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from oban._query import UPDATABLE_FIELDS, Query
from psycopg import AsyncConnection, DatabaseError, OperationalError
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from tests.kit.graphs import QUEUE

from baton import _store
from baton._engine import Acked, Claim, Engine, Inserted, Outcome, _configure
from baton._plan import plan_insert
from baton.workflow import Workflow

PRODUCER = UUID(int=1)
END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)

# Without waiting for the disk: what is tested here is order, not durability. Deadlocks are found at once.
_OPTIONS = "-c synchronous_commit=off -c deadlock_timeout=20ms -c lock_timeout=20s"
_TABLES = (
    "workflows",
    "workflow_nodes",
    "workflow_edges",
    "workflow_completions",
    "workflow_checkpoints",
    "workflow_repairs",
    "workflow_consumers",
    "workflow_deliveries",
    "workflow_debug_logs",
    "workflow_progress",
    "workflow_streams",
    "workflow_step_stats",
    "workflow_budgets",
    "workflow_budget_runs",
    "workflow_reservations",
    "oban_jobs",
)

# Each finds rows that must never be, in addition to the audit and without its functions or columns that could be wrong.
INVARIANTS = {
    "S3 together": """
        SELECT step.id FROM workflow_nodes AS step
        WHERE (step.state = 'completed') <> (step.result IS NOT NULL)""",
    "S5 held": "SELECT id FROM workflow_nodes WHERE (state = 'held') <> (waiting_on > 0)",
    "S6 pairing": """
        SELECT step.id FROM workflow_nodes AS step JOIN oban_jobs AS job ON job.id = step.job_id
        WHERE step.state = 'held' AND job.state <> 'suspended'
           OR step.doomed AND job.state IN ('executing', 'available', 'scheduled', 'retryable')""",
    "S8 half-doomed": """
        SELECT step.id FROM workflow_nodes AS step
        JOIN workflow_edges AS edge ON edge.dependent_id = step.id
        JOIN workflow_nodes AS cause ON cause.id = edge.dependency_id
        WHERE step.state IN ('held', 'released') AND step.runs_on = 'success'
          AND (cause.state IN ('cancelled', 'skipped') AND NOT step.ignore_cancelled
               OR cause.state = 'discarded' AND NOT step.ignore_discarded)""",
    "S9 finish": """
        SELECT workflow.id FROM workflows AS workflow
        WHERE (SELECT count(*) FROM workflow_completions AS row WHERE row.workflow_id = workflow.id)
           <> workflow.generation - (SELECT count(*) > 0 FROM workflow_nodes AS step
                                     WHERE step.workflow_id = workflow.id AND step.settled_at IS NULL)::int
           OR (SELECT max(row.generation) FROM workflow_completions AS row WHERE row.workflow_id = workflow.id)
              > workflow.generation""",
    "S10 outcome": """
        SELECT workflow.id FROM workflows AS workflow
        JOIN workflow_completions AS row ON row.workflow_id = workflow.id AND row.generation = workflow.generation
        WHERE row.outcome <> workflow.outcome OR (workflow.outcome = 'completed' AND EXISTS (
          SELECT FROM workflow_nodes AS step WHERE step.workflow_id = workflow.id AND step.state IN ('cancelled', 'discarded')
            AND NOT EXISTS (SELECT FROM workflow_edges AS edge
                            JOIN workflow_nodes AS dependent ON dependent.id = edge.dependent_id
                            WHERE edge.dependency_id = step.id AND dependent.runs_on = 'success')))""",
    "S12 whole workflows": """
        SELECT workflow.id FROM workflows AS workflow LEFT JOIN workflow_nodes AS step ON step.workflow_id = workflow.id
        GROUP BY workflow.id HAVING count(step.id) <> workflow.steps""",
    "S12 no strays": """
        SELECT step.id FROM workflow_nodes AS step
        WHERE NOT EXISTS (SELECT FROM workflows WHERE id = step.workflow_id)
           OR cardinality(step.deps) <> (SELECT count(*) FROM workflow_edges WHERE dependent_id = step.id)
        UNION ALL SELECT edge.dependent_id FROM workflow_edges AS edge
        WHERE (SELECT count(*) FROM workflow_nodes WHERE id IN (edge.dependency_id, edge.dependent_id)) <> 2
        UNION ALL SELECT job.id FROM oban_jobs AS job
        WHERE NOT EXISTS (SELECT FROM workflow_nodes WHERE job_id = job.id)
        UNION ALL SELECT step.id FROM workflow_nodes AS step
        WHERE step.settled_at IS NULL AND NOT EXISTS (SELECT FROM oban_jobs WHERE id = step.job_id)""",
    "S14 cancel": """
        SELECT step.id FROM workflow_nodes AS step JOIN workflows AS workflow ON workflow.id = step.workflow_id
        JOIN oban_jobs AS job ON job.id = step.job_id
        WHERE step.settled_at IS NULL AND (step.cancel_requested_at IS NOT NULL AND job.state <> 'executing'
              OR workflow.cancel_requested_at IS NOT NULL AND step.runs_on <> 'always' AND step.cancel_requested_at IS NULL)""",
    "S14 pause": """
        SELECT step.id FROM workflow_nodes AS step JOIN workflows AS workflow ON workflow.id = step.workflow_id
        JOIN oban_jobs AS job ON job.id = step.job_id
        WHERE workflow.paused_at IS NOT NULL AND step.settled_at IS NULL
          AND job.state IN ('available', 'scheduled', 'retryable')""",
    "S16 prune": """
        SELECT row.workflow_id FROM workflow_completions AS row
        WHERE NOT EXISTS (SELECT FROM workflows WHERE id = row.workflow_id)
        UNION ALL SELECT row.workflow_id FROM workflow_deliveries AS row
        WHERE NOT EXISTS (SELECT FROM workflow_completions AS done
                          WHERE done.workflow_id = row.workflow_id AND done.generation = row.generation)
          AND row.step_id IS NULL
           OR row.step_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM workflow_nodes AS step JOIN workflow_edges AS edge ON edge.dependent_id = step.id
                JOIN workflow_nodes AS cause ON cause.id = edge.dependency_id
                WHERE step.id = row.step_id AND step.doomed AND cause.state = row.cause)
        UNION ALL SELECT NULL FROM workflow_checkpoints AS row
        WHERE NOT EXISTS (SELECT FROM workflow_nodes WHERE id = row.step_id)""",
    "S17 attempts": "SELECT id FROM oban_jobs WHERE attempt < 0 OR attempt > max_attempts AND state <> 'discarded'",
    "S13 key": "SELECT min(id::text) FROM workflows WHERE finished_at IS NULL GROUP BY key HAVING count(key) > 1",
}
_INVARIANTS = "\nUNION ALL\n".join(
    f"SELECT '{name}', found.id::text FROM ({text}) AS found (id)" for name, text in INVARIANTS.items()
)

_STEPS = """
    SELECT step.job_id, step.state, step.waiting_on, step.owed, step.doomed, step.reruns, step.attempt, step.result,
           job.state::text AS job, job.attempt AS job_attempt, job.max_attempts,
           job.scheduled_at > timezone('UTC', now()) AS later, step.cancel_requested_at IS NOT NULL AS asked
    FROM workflow_nodes AS step LEFT JOIN oban_jobs AS job ON job.id = step.job_id"""

_RUNS = """
    SELECT workflow.id, workflow.unsettled, workflow.failed, workflow.excused, workflow.outcome, workflow.generation,
           workflow.paused_at IS NOT NULL AS paused, workflow.cancel_cause AS cause, workflow.rerun_of,
           workflow.deadline_at <= now() AS overdue,
           (SELECT coalesce(json_agg(json_build_array(row.generation, row.outcome, row.failed_steps)
                                     ORDER BY row.generation), '[]')
            FROM workflow_completions AS row WHERE row.workflow_id = workflow.id) AS completions
    FROM workflows AS workflow"""

_DELIVERIES = """
    SELECT delivery.workflow_id, delivery.generation, delivery.consumer, step.job_id
    FROM workflow_deliveries AS delivery LEFT JOIN workflow_nodes AS step ON step.id = delivery.step_id"""


_VERBS = {
    "cancel": "SELECT baton_cancel(%s, %s::text[], 'enough', %s)",
    "pause": "SELECT baton_pause(%s)",
    "resume": "SELECT baton_resume(%s)",
    "retry": "SELECT baton_retry(%s)",
    "rerun": "SELECT baton_rerun(%s, %s, %s::text[])",
}

_INSTEAD = re.compile(r"^-- instead of\n", re.MULTILINE)


class _HeldConnection:
    """A pool of one connection, so that the engine's own code runs in the transaction of a test."""

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        yield self._conn


async def _nowhere() -> str:
    raise AssertionError("the engine opened a connection of its own")


@dataclass(frozen=True, slots=True)
class Session:
    """One connection, and what engine and Oban can do through it."""

    conn: AsyncConnection
    engine: Engine

    @property
    def pid(self) -> int:
        return self.conn.info.backend_pid

    async def begin(self) -> None:
        await self.conn.execute("BEGIN")

    async def end(self, commit: bool = True) -> None:
        """Commit or roll back; does nothing when no transaction is open."""
        await (self.conn.commit() if commit else self.conn.rollback())

    async def rows(self, sql: str | bytes, *params: object) -> list[tuple[Any, ...]]:
        return await (await self.conn.execute(_bytes(sql), params or None)).fetchall()

    async def run(self, sql: str | bytes, *params: object) -> None:
        await self.conn.execute(_bytes(sql), params or None)

    # --- the engine -----------------------------------------------------------------------------------

    async def insert(self, workflow: Workflow) -> Inserted:
        workflow.validate()
        (inserted,) = await self.engine.insert_into(plan_insert([workflow]), self.conn)
        return inserted

    async def ack(self, outcomes: Sequence[Outcome], demand: int = 0) -> Acked:
        claim = Claim(queue=QUEUE, demand=demand, node="test", producer=PRODUCER)
        return await self.engine.ack(outcomes, claim)

    async def claim(self, demand: int) -> list[str]:
        return (await self.ack([], demand)).claimed

    async def start(self, *jobs: int) -> list[Outcome]:
        """Claim these jobs whatever the queue's order; returns the outcome that completes each."""
        rows = await self.rows(
            "UPDATE oban_jobs SET state = 'executing', attempt = attempt + 1, "
            "attempted_at = timezone('UTC', clock_timestamp()) "
            "WHERE id = ANY(%s) AND state = 'available' RETURNING id, attempted_at",
            list(jobs),
        )
        began = {job: at.replace(tzinfo=UTC) for job, at in rows}
        return [Outcome(job, began[job], "completed", result="1") for job in jobs]

    # --- the verbs on runs ----------------------------------------------------------------------------

    async def control(self, verb: str, *params: object) -> Any:
        """What a verb answers, or the code of its error. Sent once: trying again is up to the caller."""
        try:
            return (await self.rows(_VERBS[verb], *params))[0][0]
        except DatabaseError as error:
            if isinstance(error, OperationalError):
                raise
            return error.sqlstate

    async def rerun(self, run_id: UUID, new_id: UUID, names: Sequence[str] | None) -> Any:
        return await self.control("rerun", run_id, new_id, names)

    async def cancel_many(self, *jobs: int) -> dict[int, str]:
        return dict(await self.engine.cancel_many(jobs))

    # --- Oban's own statements ------------------------------------------------------------------------

    async def oban(self, name: str, **params: object) -> int:
        """Run a statement of Oban's; returns how many rows it hit."""
        text = Query._load_file(f"{name}.sql", "public")
        return (await self.conn.execute(text, params)).rowcount

    async def cancel(self, *jobs: int) -> int:
        return await self.oban("cancel_many_jobs", ids=list(jobs))

    async def retry(self, *jobs: int) -> int:
        return await self.oban("retry_many_jobs", ids=list(jobs))

    async def delete(self, *jobs: int) -> int:
        return await self.oban("delete_many_jobs", ids=list(jobs))

    async def stage(self, before: datetime | None = END_OF_TIME) -> int:
        return await self.oban(
            "stage_jobs", queues=[QUEUE], limit=10_000, before=Query._cast_type("scheduled_at", before)
        )

    async def update(self, job: int, **changes: object) -> int:
        """What `Oban.update_job` does: read the row, change it, write all of it back."""
        async with self.conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute("SELECT * FROM oban_jobs WHERE id = %s", (job,))
            row = await cursor.fetchone()
        assert row is not None
        row["scheduled_at"] = row["scheduled_at"].replace(tzinfo=UTC)
        fields = {name: Query._cast_type(name, value) for name, value in {**row, **changes}.items()}
        return await self.oban("update_job", id=job, **{name: fields[name] for name in UPDATABLE_FIELDS})


class Database:
    """The database of one test: sessions, the whole truth about its steps, and what must never be."""

    def __init__(self, dsn: str, stack: AsyncExitStack) -> None:
        self._dsn = dsn
        self._stack = stack
        self.main: Session
        self._watcher: Session

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str) -> AsyncIterator["Database"]:
        async with AsyncExitStack() as stack:
            db = cls(dsn, stack)
            db.main, db._watcher = await db.session(), await db.session()
            yield db

    async def session(self) -> Session:
        """Another connection, closed at the end."""
        connecting = AsyncConnection.connect(self._dsn, autocommit=True, options=_OPTIONS)
        conn = await self._stack.enter_async_context(await connecting)
        await _configure(conn)
        engine = Engine(_nowhere, kwargs={}, prefix="public", origin="test", pool_size=1)
        engine._pool = cast("AsyncConnectionPool[AsyncConnection]", _HeldConnection(conn))
        return Session(conn, engine)

    async def install(self, broken: str) -> None:
        """Replace one of the engine's functions by the variant in `tests/kit/broken`, which says what to change in it.

        So a variant is always the engine's function of today but for its fault, or this fails.
        """
        head, *edits = _INSTEAD.split(
            Path(__file__).with_name("broken").joinpath(f"{broken}.sql").read_text()
        )
        name = head.removeprefix("-- Broken ").partition(":")[0]
        text = dict(_store.functions())[name]
        for edit in edits:
            old, new = edit.split("-- this\n")
            assert text.count(old.rstrip()) == 1, (
                f"{name}.sql no longer has the line that {broken}.sql breaks"
            )
            text = text.replace(old.rstrip(), new.rstrip())
        await self.main.run(_store.render(text, "public"))

    async def clear(self) -> None:
        """Empty every table, Oban's last: by then no job has a step to take along."""
        await self.main.run(";".join(f"DELETE FROM {table}" for table in _TABLES))

    async def audit(self) -> list[tuple[Any, ...]]:
        """What must never be found, in the audit's words or as the name of an invariant."""
        return await self.main.rows(_store.load("audit")) + await self.main.rows(_INVARIANTS)

    async def jobs(self, run_id: UUID) -> dict[str, int]:
        """Id of each step's job by the step's name, in the order they were added."""
        return dict(
            await self.main.rows(
                "SELECT name, job_id FROM workflow_nodes WHERE workflow_id = %s ORDER BY position", run_id
            )
        )

    async def steps(self) -> dict[int, dict[str, Any]]:
        """Every step with its job, by the job's id."""
        return {row.pop("job_id"): row for row in await self._dicts(_STEPS)}

    async def runs(self) -> dict[UUID, dict[str, Any]]:
        """Every workflow with its completion, by id."""
        return {row.pop("id"): row for row in await self._dicts(_RUNS)}

    async def deliveries(self) -> list[tuple[Any, ...]]:
        """What is to be delivered: workflow, generation, and either a consumer or the job of a step."""
        return await self.main.rows(_DELIVERIES)

    async def leftovers(self) -> list[str]:
        """Tables with rows, but for what was there before any workflow."""
        return [
            table
            for table in _TABLES
            if table != "workflow_consumers" and await self.main.rows(f"SELECT 1 FROM {table} LIMIT 1")
        ]

    async def _dicts(self, sql: str) -> list[dict[str, Any]]:
        async with self.main.conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(sql.encode())
            return await cursor.fetchall()

    # --- facts about concurrency ----------------------------------------------------------------------

    async def waits_or_ends(
        self, task: "asyncio.Future[Any]", session: Session, timeout: float = 10.0
    ) -> bool:
        """Follow a statement under way until it has ended, or waits for a lock: then True."""
        deadline = time.monotonic() + timeout
        while not task.done():
            assert time.monotonic() < deadline, "it neither ended nor waited"
            ((blockers,),) = await self._watcher.rows("SELECT pg_blocking_pids(%s::integer)", session.pid)
            if blockers:
                return not task.done()
            await asyncio.sleep(0)
        return False


def _bytes(sql: str | bytes) -> bytes:
    return sql if isinstance(sql, bytes) else sql.encode()
