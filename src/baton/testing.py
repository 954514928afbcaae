"""Run workflows in tests: to their end, in the test's event loop, on a real PostgreSQL, through the engine that production has.

    async def test_the_brief_names_its_topic(baton_dsn):
        finished = await testing.run(research("tides"), dsn=baton_dsn)
        assert finished.outcome == "completed"
        assert "tides" in finished.results["compile_brief"]

`baton_dsn` is a pytest fixture that comes with Baton: the connection string of a migrated, empty database of the test's own, on
an embedded server that the whole session shares.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from baton import _store, migration
from baton._states import RunState, StepState
from baton.client import Baton
from baton.local import LocalServer
from baton.run import Run
from baton.workflow import Workflow

_TEMPLATE = "baton_template"
_CONCURRENCY = 10
# Later than any schedule: time does not pass in a test, it is skipped.
_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end.

    Attributes:
        outcome: `completed`, `failed` or `cancelled`.
        states: State by step name.
        results: What each completed step returned, as the annotated type, by step name.
        errors: Last error, or the reason, of each step that was cancelled or discarded.
        attempts: Attempts of each step.
        run: The handle. Its Baton has stopped, so it reads nothing more.
    """

    outcome: RunState
    states: Mapping[str, StepState]
    results: Mapping[str, Any]
    errors: Mapping[str, str | None]
    attempts: Mapping[str, int]
    run: Run


async def run(workflow: Workflow, *, dsn: str, timeout: float = 30.0, prefix: str = "public") -> Finished:
    """Insert a workflow and work on it until it has finished.

    Nothing is simulated but time: what is scheduled, snoozed or waiting to be retried runs at once. All queues that the
    workflow uses are worked on, in this process, and jobs of other runs that wait in these queues of the database as well.

    Args:
        workflow: What to run.
        dsn: A migrated database, such as the `baton_dsn` fixture gives.
        timeout: Seconds until it must have finished.
        prefix: Schema of the tables.

    Raises:
        WorkflowTimeout: It did not finish in time, for instance because a step snoozes for ever.
        AssertionError: The run finished and the audit of the database found something wrong: a bug of Baton's.
        DefinitionError: Something is wrong with the workflow.
    """
    queues = {step.queue: _CONCURRENCY for step in workflow.steps.values()} or {"default": 1}
    async with Baton(dsn, queues=queues, prefix=prefix) as baton:
        handle = await baton.insert(workflow)
        skipping = asyncio.create_task(_skip_time(baton))
        try:
            outcome = await handle.wait(timeout=timeout)
        finally:
            skipping.cancel()
            await asyncio.gather(skipping, return_exceptions=True)
        status = await handle.status()
        results = await handle.results()
        async with baton._connection() as conn:
            found = await (await conn.execute(_store.load("audit", prefix))).fetchall()
    if found:
        raise AssertionError(f"the audit found what must never be: {found}")
    return Finished(
        outcome=outcome,
        states=status.states(),
        results=results,
        errors={step.name: step.error for step in status.steps if step.state is not StepState.COMPLETED},
        attempts={step.name: step.attempt for step in status.steps},
        run=handle,
    )


async def _skip_time(baton: Baton) -> None:
    oban = baton.oban
    while True:
        _, active = await oban._query.stage_jobs(10_000, list(oban._producers), _END_OF_TIME)
        for queue in active:
            oban._producers[queue].notify()
        await asyncio.sleep(0.02)


@contextmanager
def template(server: LocalServer) -> Iterator[str]:
    """A migrated database to copy, on a server that is started already; yields its name."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    asyncio.run(migration.up(server.dsn_for(_TEMPLATE)))
    yield _TEMPLATE


@contextmanager
def copy(server: LocalServer, name: str) -> Iterator[str]:
    """A copy of a database, for one test; yields its connection string and drops it afterwards."""
    database = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(database), sql.Identifier(name)
            )
            if conn.info.server_version >= 150000
            else sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(database), sql.Identifier(name)
            )
        )
        try:
            yield server.dsn_for(database)
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
