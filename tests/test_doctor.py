"""The doctor: each check is made to fail for real, is found alone or with what follows from it, and its remedy cures it."""

import asyncio
import contextlib
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from oban._query import Query
from psycopg import AsyncConnection

from baton import Baton, Workflow, doctor, local, migration, step, testing
from baton.doctor import Finding, Level
from baton.errors import DatabaseUnreachable, InvalidOption
from baton.local import LocalServer
from tests.kit.pooler import pooler
from tests.kit.reused import Reused
from tests.kit.wait import eventually
from tests.test_cli import _OBEYED, NOT_HERE
from tests.test_cli import baton as command

DOCUMENTED = Path(__file__).parent.parent / "docs" / "doctor.md"


@pytest.fixture(autouse=True)
def _no_database_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_DSN", "DATABASE_URL", "BATON_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server, durable=True) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
def fresh(_baton_server: Any) -> Iterator[str]:
    """A database for a test that changes what emptying it does not undo."""
    with testing.copy(*_baton_server) as dsn:
        yield dsn


@step(name="tests.doctor.good")
async def good() -> None:
    return None


async def insert(dsn: str, prefix: str = "public") -> str:
    """A run of two steps on which nobody works."""
    workflow = Workflow("two")
    workflow.add("first", good.new())
    workflow.add("second", good.new(), deps=["first"])
    async with Baton(dsn, prefix=prefix) as client:
        run_id = (await client.insert(workflow)).id
    # On a slow machine it would wait for so long that this is a finding.
    later = "timezone('UTC', now()) + interval '1 h'"
    change(dsn, f"UPDATE {prefix}.oban_jobs SET scheduled_at = {later} WHERE state = 'available'")
    return run_id


@pytest.fixture
def run(baton_dsn: str) -> str:
    return asyncio.run(insert(baton_dsn))


def change(dsn: str, sql: str, *params: object) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.encode(), params or None)


def examine(dsn: str, **options: Any) -> list[Finding]:
    """What is wrong."""
    found = asyncio.run(doctor.check(dsn, **options))
    return [finding for finding in found if finding.level is not Level.OK]


def levels(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.check, str(finding.level)) for finding in found}


def said(found: list[Finding], check: str) -> str:
    return "\n".join(f"{finding.found} -> {finding.remedy}" for finding in found if finding.check == check)


def limit(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Let a test find at once what takes a minute to become a finding."""
    monkeypatch.setattr(doctor, "_LIMITS", replace(doctor._LIMITS, **limits))


# --- a healthy system ---------------------------------------------------------------------------------


def test_of_a_healthy_database_there_is_nothing_to_say_whatever_its_time_zone(
    baton_dsn: str, run: str
) -> None:
    change(baton_dsn, f"ALTER DATABASE {name_of(baton_dsn)} SET timezone = 'Asia/Kathmandu'")
    found = asyncio.run(doctor.check(baton_dsn))
    assert [finding for finding in found if finding.level is not Level.OK] == []
    assert [finding.check for finding in found] == doctor.names()
    assert all(finding.found and finding.remedy is None for finding in found)


async def test_nor_of_one_with_a_worker(baton_dsn: str) -> None:
    run_id = await insert(baton_dsn)
    async with Baton(baton_dsn, queues={"default": 2}) as worker:
        await worker.get_run(run_id).wait(timeout=30)
        found = await doctor.check(baton_dsn)
    assert [finding for finding in found if finding.level is not Level.OK] == []


def test_a_schema_of_another_name_is_healthy_too(baton_dsn: str) -> None:
    asyncio.run(migration.up(baton_dsn, prefix="jobs"))
    asyncio.run(insert(baton_dsn, prefix="jobs"))
    assert examine(baton_dsn, prefix="jobs") == []


async def test_a_connection_is_left_as_it_was(baton_dsn: str) -> None:
    names = ("transaction_read_only", "statement_timeout", "lock_timeout")
    settings = ("SELECT " + ", ".join(f"current_setting('{name}')" for name in names)).encode()
    async with await AsyncConnection.connect(baton_dsn) as conn:
        await conn.execute("CREATE TABLE mine (n int)")
        before = await (await conn.execute(settings)).fetchone()
        assert all(finding.level is Level.OK for finding in await doctor.check(conn))
        assert await (await conn.execute(settings)).fetchone() == before
        await conn.execute("INSERT INTO mine VALUES (1)")
        await conn.rollback()
        assert all(finding.level is Level.OK for finding in await doctor.check(conn))


# --- what one statement breaks, and what the remedy says puts right --------------------------------------


def name_of(dsn: str) -> str:
    return psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]  # type: ignore[return-value]


@dataclass(frozen=True)
class Broken:
    """A statement that breaks something, what is found then, and words that must be in it."""

    sql: str
    found: dict[str, str]
    words: str
    cured: bool = False


AGED = "(timezone('UTC', now()) - interval '{}')"
PRODUCER = (
    "INSERT INTO oban_producers (uuid, node, queue, meta, started_at, updated_at) "
    "VALUES ('{0}', 'n1', 'default', '{1}', {2}, {3});"
)
SOMEBODY = "00000000-0000-0000-0000-000000000001"
RUNNING = (
    "UPDATE oban_jobs SET state = 'executing', attempt = 1, attempted_at = {0}, attempted_by = ARRAY['n1', '"
    + SOMEBODY
    + "'] WHERE state = 'available';"
)
NOW = AGED.format("0 s")

BROKEN = {
    "read-only": Broken(
        "SET default_transaction_read_only = on",
        {"read-only": "error"},
        "nothing can be written",
    ),
    "durability": Broken(
        "SET synchronous_commit = off",
        {"durability": "warning"},
        "synchronous_commit is off",
    ),
    "isolation": Broken(
        "SET default_transaction_isolation = 'repeatable read'",
        {"isolation": "warning"},
        "repeatable read",
        cured=True,
    ),
    "replication-role": Broken(
        "SET session_replication_role = replica", {"replication-role": "error"}, "replica"
    ),
    "search-path": Broken("SET search_path = nowhere", {"search-path": "error"}, "nowhere", cured=True),
    "connections": Broken(
        "ALTER DATABASE {db} CONNECTION LIMIT 1", {"connections": "error"}, "this database has 1 of 1"
    ),
    "autovacuum": Broken(
        "ALTER TABLE oban_jobs SET (autovacuum_enabled = false)",
        {"autovacuum": "error"},
        "oban_jobs",
        cured=True,
    ),
    "oban-tables: column": Broken(
        "ALTER TABLE oban_producers RENAME COLUMN started_at TO began_at",
        {"oban-tables": "error", "leader": "warning"},
        "oban_producers.started_at is missing",
    ),
    "oban-tables: type": Broken(
        "ALTER TABLE oban_leaders ALTER COLUMN elected_at TYPE timestamptz",
        {"oban-tables": "error"},
        "is timestamp with time zone instead of timestamp without time zone",
    ),
    "tables: index": Broken(
        "DROP INDEX workflow_nodes_owed", {"tables": "error"}, "index workflow_nodes_owed is missing"
    ),
    "tables: table": Broken(
        "DROP TABLE workflow_debug_logs",
        {"tables": "error", "orphans": "warning"},
        "table workflow_debug_logs is missing",
    ),
    "unlogged": Broken(
        "ALTER TABLE workflow_edges SET UNLOGGED", {"unlogged": "error"}, "workflow_edges", cured=True
    ),
    "triggers: disabled": Broken(
        "ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated",
        {"triggers": "error"},
        "baton_jobs_updated",
    ),
    "triggers: for replicas": Broken(
        "ALTER TABLE oban_jobs ENABLE REPLICA TRIGGER baton_jobs_deleted",
        {"triggers": "error"},
        "baton_jobs_deleted",
    ),
    "triggers: missing": Broken(
        "DROP TRIGGER baton_jobs_truncated ON oban_jobs",
        {"triggers": "error"},
        "baton_jobs_truncated",
    ),
    "functions: missing": Broken(
        "DROP FUNCTION baton_owe", {"functions": "error"}, "functions are missing: owe"
    ),
    "functions: changed": Broken(
        "CREATE OR REPLACE FUNCTION baton_owe(p_wanted bigint[], p_taken bigint[]) RETURNS void LANGUAGE plpgsql AS "
        "'BEGIN RETURN; END'",
        {"functions": "warning"},
        "1 functions are not those of this version: owe",
    ),
    "functions: twice": Broken(
        "CREATE FUNCTION baton_owe(p_wanted text) RETURNS void LANGUAGE sql AS ''",
        {"functions": "error", "function-rights": "warning"},
        "more than once: owe",
    ),
    "function-rights": Broken(
        "GRANT EXECUTE ON FUNCTION baton_on_jobs_updated() TO PUBLIC",
        {"function-rights": "error"},
        "everybody may call baton_on_jobs_updated(), which has its owner's rights",
        cured=True,
    ),
    "function-owners: caller": Broken(
        "ALTER FUNCTION baton_on_jobs_deleted() SECURITY INVOKER",
        {"function-owners": "error"},
        "its caller's rights",
        cured=True,
    ),
    "function-owners: path": Broken(
        "ALTER FUNCTION baton_on_jobs_updated() RESET search_path",
        {"function-owners": "error"},
        "search path",
        cured=True,
    ),
    "audit": Broken(
        "UPDATE workflow_nodes SET waiting_on = 2 WHERE name = 'second'",
        {"audit": "error"},
        "1 times, counters is not as it must be",
    ),
    "audit: a budget": Broken(
        "INSERT INTO workflow_budgets (key, limit_usd, reserved_usd, on_exhausted, unpriced) "
        "VALUES ('day', 1, 0.5, 'stop', 'strict')",
        {"audit": "error"},
        "1 times, budgets is not as it must be",
    ),
    "unfinished": Broken(
        "UPDATE workflow_nodes SET state = 'cancelled', waiting_on = 0, settled_at = now(), error = 'x', doomed = false",
        {"unfinished": "error", "audit": "error"},
        "1 runs have no step left",
    ),
    "deliveries: failing": Broken(
        "INSERT INTO workflow_deliveries (workflow_id, generation, consumer, tries, due_at) "
        "SELECT id, 1, 'ledger', 5, now() + interval '1 h' FROM workflows",
        {"deliveries": "warning"},
        "1 ends wait to be delivered to consumer ledger, tried up to 5 times",
    ),
    "deliveries: taken by nobody": Broken(
        "INSERT INTO workflow_deliveries (workflow_id, generation, step_id, cause, due_at) "
        "SELECT workflow_id, 1, id, 'cancelled', now() - interval '1 h' FROM workflow_nodes",
        {"deliveries": "warning"},
        "2 ends wait to be delivered to code of steps",
    ),
    "deadlines": Broken(
        "UPDATE workflows SET deadline_at = now() - interval '90 s'",
        {"deadlines": "error"},
        "1 runs are past their deadline",
    ),
    "cancelling": Broken(
        PRODUCER.format(SOMEBODY, "{}", NOW, NOW)
        + RUNNING.format(NOW)
        + "DO $$ BEGIN PERFORM baton_cancel(id, NULL, 'enough', 'request') FROM workflows; END $$;"
        + "UPDATE workflow_nodes SET cancel_requested_at = now() - interval '10 min' WHERE cancel_requested_at IS NOT NULL",
        {"cancelling": "warning"},
        "step first of run",
    ),
    "parked": Broken(
        "UPDATE oban_jobs SET state = 'scheduled', scheduled_at = timezone('UTC', now()) + interval '1 min', "
        "meta = meta || '{\"parked\": \"no step shop.pay\"}' WHERE state = 'available'",
        {"parked": "warning"},
        "1 jobs wait for a worker that knows their code: no step shop.pay",
    ),
    "paused-runs": Broken(
        "DO $$ BEGIN PERFORM baton_pause(id) FROM workflows; END $$; "
        "UPDATE workflows SET paused_at = now() - interval '2 days'",
        {"paused-runs": "warning"},
        "1 runs are paused",
    ),
    "leader: two": Broken(
        "INSERT INTO oban_leaders (name, node, elected_at, expires_at) "
        f"SELECT name, 'n-' || name, {NOW}, {NOW} + interval '1 min' FROM unnest(ARRAY['oban', 'Oban']) AS name",
        {"leader": "warning"},
        "several nodes lead",
    ),
    "leader: none": Broken(
        PRODUCER.format(SOMEBODY, "{}", AGED.format("1 h"), NOW), {"leader": "warning"}, "no node leads"
    ),
    "producers": Broken(
        PRODUCER.format(SOMEBODY, "{}", AGED.format("1 h"), AGED.format("5 min")),
        {"producers": "warning"},
        "on node n1",
    ),
    "workers: none": Broken(
        f"UPDATE oban_jobs SET scheduled_at = {AGED.format('2 min')} WHERE state = 'available'",
        {"workers": "error"},
        "--queue default=10",
    ),
    "workers: paused": Broken(
        PRODUCER.format(SOMEBODY, '{"paused": true}', NOW, NOW)
        + f"UPDATE oban_jobs SET scheduled_at = {AGED.format('2 min')} WHERE state = 'available'",
        {"workers": "warning"},
        "it is paused on all of its workers (1) -> await baton.oban.resume_queue('default')",
    ),
    "lost-jobs": Broken(
        RUNNING.format(AGED.format("10 min")),
        {"lost-jobs": "warning"},
        "of the processes on n1 nothing is known; 0 workers are",
    ),
    "queue-names": Broken(
        "UPDATE oban_jobs SET queue = 'a\"b' WHERE state = 'available'",
        {"queue-names": "error"},
        'queue a"b (3 bytes)',
    ),
    "queue-names: long": Broken(
        "UPDATE oban_jobs SET queue = repeat('q', 1001)", {"queue-names": "error"}, "q (1001 bytes)"
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_what_one_statement_breaks_is_found_and_nothing_else(settled_in: str, broken: Broken) -> None:
    # In a transaction, which is as good as a database of the test's own: it is rolled back.
    async with await AsyncConnection.connect(settled_in) as conn:
        await conn.execute(broken.sql.replace("{db}", name_of(settled_in)).encode())
        found = await wrong(conn)
        assert levels(found) == set(broken.found.items()), found
        first = next(iter(broken.found))
        assert broken.words in said(found, first)
        assert all(finding.remedy for finding in found)
        if broken.cured:
            for finding in found:
                await conn.execute(str(finding.remedy).replace("ALTER ROLE postgres SET", "SET").encode())
            assert await wrong(conn) == []
        await conn.rollback()


@pytest.fixture(scope="module")
def settled_in(_baton_server: Any) -> Iterator[str]:
    """A database with a run of two steps on which nobody works, for tests that leave it as it was."""
    with testing.copy(*_baton_server) as dsn:
        asyncio.run(insert(dsn))
        yield dsn


async def wrong(database: str | AsyncConnection[Any]) -> list[Finding]:
    return [finding for finding in await doctor.check(database) if finding.level is not Level.OK]


def test_what_a_migration_cures(baton_dsn: str, run: str) -> None:
    change(
        baton_dsn,
        """
        ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated;
        ALTER TABLE oban_jobs ENABLE REPLICA TRIGGER baton_jobs_deleted;
        DROP TRIGGER baton_jobs_truncated ON oban_jobs;
        DROP FUNCTION baton_owe;
        CREATE FUNCTION baton_wake(text) RETURNS void LANGUAGE sql AS '';
        CREATE OR REPLACE FUNCTION baton_cancelled(p_jobs bigint[]) RETURNS bigint[] LANGUAGE sql AS 'SELECT NULL::bigint[]'
        """,
    )
    found = examine(baton_dsn)
    assert levels(found) == {
        ("triggers", "error"),
        ("functions", "error"),
        ("functions", "warning"),
        ("function-rights", "warning"),
    }
    assert len(said(found, "triggers").splitlines()) == 3
    follow(baton_dsn, str(next(finding.remedy for finding in found if finding.check == "functions")))
    assert examine(baton_dsn) == []


def follow(dsn: str, remedy: str) -> None:
    """Do what a remedy says: statements, commands, or one after the other."""
    for part in re.split(r"; (?:then )?|, (?=which |as )", remedy):
        if part.startswith("baton "):
            command(*part.split()[1:], "--dsn", dsn)
        elif part.startswith(("UPDATE", "SELECT", "VACUUM")):
            change(dsn, part)


def test_orphans_are_counted_by_kind(baton_dsn: str, run: str) -> None:
    change(
        baton_dsn,
        """
        SET session_replication_role = replica;
        DELETE FROM oban_jobs;
        INSERT INTO workflow_nodes (workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded,
                                    state, waiting_on, result, settled_at)
        SELECT gen_random_uuid(), 1, 's', 'f', -1, '{}', false, false, 'completed', 0, '{}', now();
        INSERT INTO workflow_edges VALUES (-1, -2), (-1, -3);
        INSERT INTO workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at)
        VALUES (gen_random_uuid(), 1, 'completed', '{}', now());
        INSERT INTO workflow_deliveries (workflow_id, generation, consumer) VALUES (gen_random_uuid(), 1, 'c');
        INSERT INTO workflow_checkpoints (step_id, key, value, attempt) VALUES (-1, '', '{}', 1);
        INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt) VALUES (gen_random_uuid(), -1, 1);
        INSERT INTO workflow_progress (step_id, workflow_id, attempt, attempted_at) VALUES (-1, gen_random_uuid(), 1, now());
        INSERT INTO workflow_streams (step_id, attempt, position, workflow_id, chunk, bytes)
        VALUES (-1, 1, 0, gen_random_uuid(), '1', 1);
        INSERT INTO workflow_budgets (workflow_id, limit_usd, on_exhausted, unpriced)
        VALUES (gen_random_uuid(), 1, 'stop', 'strict');
        INSERT INTO workflow_budget_runs VALUES (gen_random_uuid(), -1);
        INSERT INTO workflow_reservations (id, budget_id, step_id, job_id, attempted_at, usd, tokens, calls)
        VALUES (gen_random_uuid(), -1, -1, -1, now(), 1, 1, 1)
        """,
    )
    found = examine(baton_dsn)
    assert {finding.check for finding in found} == {"orphans", "audit"}
    assert {finding.found for finding in found if finding.check == "orphans"} == {
        "2 unsettled steps without a job",
        "1 steps without a run",
        "2 dependencies without a step",
        "1 completions without a run",
        "1 deliveries without a run",
        "1 stored values without a step",
        "1 debug logs without a run",
        "2 reports without a step",
        "1 budgets without a run",
        "1 shares of a budget without the run or the budget",
        "1 reservations without a step or a budget",
    }


# --- what takes more than a statement ---------------------------------------------------------------------


def test_owed(baton_dsn: str, run: str) -> None:
    with psycopg.connect(baton_dsn) as other:
        other.execute("SELECT FROM oban_jobs WHERE meta ->> 'workflow_name' = 'second' FOR UPDATE")
        change(baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE meta ->> 'workflow_name' = 'first'")
    assert examine(baton_dsn) == []
    change(
        baton_dsn,
        "UPDATE workflow_nodes SET settled_at = now() - interval '1 min' WHERE settled_at IS NOT NULL",
    )
    found = examine(baton_dsn)
    assert levels(found) == {("owed", "error")}
    assert "1 steps may run" in said(found, "owed")
    change(baton_dsn, "SELECT baton_sweep('{}', 'test')")
    assert examine(baton_dsn) == []


def test_repairs(baton_dsn: str, run: str) -> None:
    with psycopg.connect(baton_dsn) as conn:
        (source,) = conn.execute("SELECT pg_get_functiondef('baton_finish'::regproc)").fetchone() or ("",)
    change(baton_dsn, str(source).replace("BEGIN\n", "BEGIN RAISE EXCEPTION 'no luck';\n", 1))
    change(baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    found = examine(baton_dsn)
    assert levels(found) == {("functions", "warning"), ("repairs", "error"), ("audit", "error")}
    assert "1 steps could not be settled when their jobs ended (P0001): no luck" in said(found, "repairs")
    follow(baton_dsn, str(next(finding.remedy for finding in found if finding.check == "functions")))
    change(baton_dsn, "SELECT baton_sweep('{}', 'test')")
    assert examine(baton_dsn) == []


def test_transactions(baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(baton_dsn, application_name="report\x1b[31m") as other:
        other.execute("SELECT 1")
        assert examine(baton_dsn) == []
        limit(monkeypatch, idle=0)
        found = examine(baton_dsn)
        assert levels(found) == {("transactions", "warning")}
        assert f"session {other.info.backend_pid} of" in said(found, "transactions")
        assert "idle in transaction" in said(found, "transactions")
        follow(baton_dsn, str(found[0].remedy).partition(";")[0])
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    assert examine(baton_dsn) == []


def test_old_snapshots(baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(baton_dsn) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT count(*) FROM oban_jobs")
        for n in range(5):
            change(baton_dsn, "UPDATE oban_jobs SET priority = %s", n)
        assert examine(baton_dsn) == []
        limit(monkeypatch, transactions=3)
        found = examine(baton_dsn)
        assert levels(found) == {("old-snapshots", "warning")}
        assert found[0].remedy == f"SELECT pg_terminate_backend({other.info.backend_pid})"


@pytest.mark.parametrize(("mode", "level"), [("SHARE", "error"), ("ROW EXCLUSIVE", "warning")])
def test_locks(baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch, mode: str, level: str) -> None:
    with contextlib.closing(psycopg.connect(baton_dsn)) as other:
        other.execute(f"LOCK TABLE oban_jobs IN {mode} MODE")
        limit(monkeypatch, strong=0, weak=0)
        found = examine(baton_dsn)
        assert levels(found) == {("locks", level)}
        assert f"has held {mode.title().replace(' ', '')}Lock on oban_jobs for" in said(found, "locks")
        follow(baton_dsn, str(found[0].remedy))
    assert examine(baton_dsn) == []


def test_what_cannot_be_looked_at_is_a_finding_and_does_not_keep_others_waiting(
    baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LOCK_SECONDS", 0.02)
    with psycopg.connect(baton_dsn) as other:
        other.execute("LOCK TABLE oban_jobs, workflow_repairs IN ACCESS EXCLUSIVE MODE")
        found = examine(baton_dsn)
    assert ("repairs", "warning") in levels(found)
    assert "could not be looked at: canceling statement due to lock timeout" in said(found, "repairs")
    assert "`locks`" in said(found, "workers")
    assert examine(baton_dsn) == []


async def test_deadlocks(fresh: str) -> None:
    await insert(fresh)

    def take(first: str, second: str, gate: threading.Barrier) -> None:
        with psycopg.connect(fresh, options="-c deadlock_timeout=10ms") as conn:
            lock = "SELECT FROM oban_jobs WHERE meta ->> 'workflow_name' = %s FOR UPDATE"
            conn.execute(lock, (first,))
            gate.wait(30)
            try:
                conn.execute(lock, (second,))
            except psycopg.errors.DeadlockDetected:
                conn.rollback()

    for _ in range(2):
        gate = threading.Barrier(2)
        await asyncio.gather(
            asyncio.to_thread(take, "first", "second", gate), asyncio.to_thread(take, "second", "first", gate)
        )

    async def counted() -> list[Finding]:
        found = await doctor.check(fresh)
        return [finding for finding in found if finding.level is not Level.OK]

    found = await eventually(counted, timeout=30)
    assert levels(found) == {("deadlocks", "warning")}
    assert "2 deadlocks in this database since" in said(found, "deadlocks")


async def test_bloat(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, dead_rows=1000)
    # In sessions that end, since what a session did is counted then.
    change(fresh, "ALTER TABLE oban_jobs SET (autovacuum_enabled = false)")
    change(fresh, "INSERT INTO oban_jobs (worker) SELECT 'w' FROM generate_series(1, 1500)")
    change(fresh, "DELETE FROM oban_jobs")

    async def counted() -> list[Finding]:
        return [
            finding for finding in await doctor.check(fresh) if finding.check == "bloat" and finding.remedy
        ]

    (found,) = await eventually(counted, timeout=30)
    assert found.found == "oban_jobs has 1500 dead rows and 0 living ones"
    follow(fresh, str(found.remedy).partition(";")[0])
    await eventually(lambda: _healthy_but(fresh, "autovacuum"), timeout=30)


async def _healthy_but(dsn: str, check: str) -> bool:
    return {finding.check for finding in await doctor.check(dsn) if finding.level is not Level.OK} == {check}


def test_notify_queue(baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, notify_share=0)
    assert examine(baton_dsn) == []
    with psycopg.connect(baton_dsn, autocommit=True) as listener:
        listener.execute("LISTEN slow")
        listener.execute("BEGIN")
        change(baton_dsn, "SELECT pg_notify('slow', repeat('x', 7900) || n) FROM generate_series(1, 30) AS n")
        assert levels(examine(baton_dsn)) == {("notify-queue", "warning")}


def test_clock(baton_dsn: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for offset, word in ((60, "60.0 s ahead of"), (-60, "60.0 s behind")):
        monkeypatch.setattr(doctor, "_now", lambda by=offset: datetime.now(UTC) + timedelta(seconds=by))
        found = examine(baton_dsn)
        assert levels(found) == {("clock", "warning")}
        # The offset is known to within the time that the question takes.
        assert abs(float(re.findall(r"is ([\d.]+) s", found[0].found)[0]) - 60) < 5
        assert word.split()[-1] in found[0].found


def test_leader_by_the_lease_that_oban_writes(baton_dsn: str, run: str) -> None:
    change(baton_dsn, PRODUCER.format(SOMEBODY, "{}", AGED.format("1 h"), NOW))
    with psycopg.connect(baton_dsn, autocommit=True) as conn:
        elect = Query._load_file("elect_leader.sql", "public")
        conn.execute(elect, {"name": "oban", "node": "n1", "ttl": 30})
    # Three seconds, whatever it was asked for.
    change(
        baton_dsn,
        "UPDATE oban_leaders SET expires_at = expires_at - interval '2 s', elected_at = elected_at - interval '2 s'",
    )
    found = examine(baton_dsn)
    assert levels(found) == {("leader", "warning")}
    assert "the lease of node n1 end" in found[0].found


@pytest.fixture
def short() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="baton", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("sessions", "level"), [(1, "warning"), (2, "error")])
async def test_pooler(baton_dsn: str, short: Path, sessions: int, level: str) -> None:
    async with pooler(baton_dsn, short, sessions=sessions) as dsn:
        found = [finding for finding in await doctor.check(dsn) if finding.level is not Level.OK]
    assert levels(found) == {("pooler", level)}
    assert ("answered by 2 sessions" in found[0].found) == (sessions == 2)


async def test_server_version(baton_dsn: str, short: Path) -> None:
    async with pooler(baton_dsn, short, sessions=1, version="13.4") as dsn:
        found = await doctor.check(dsn)
    assert "the server is PostgreSQL 13.4 -> upgrade it" in said(found, "server-version")


def test_encoding(baton_dsn: str) -> None:
    name = f"latin_{uuid4().hex[:8]}"
    change(
        baton_dsn, f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    try:
        found = examine(psycopg.conninfo.make_conninfo(baton_dsn, dbname=name))
        assert levels(found) == {("encoding", "error"), ("schema", "error")}
        assert "LATIN1" in said(found, "encoding")
    finally:
        change(baton_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_rights(baton_dsn: str, run: str) -> None:
    role = f"clerk_{uuid4().hex[:8]}"
    dsn = psycopg.conninfo.make_conninfo(baton_dsn, user=role)
    change(baton_dsn, f"CREATE ROLE {role} LOGIN")
    try:
        found = examine(dsn)
        assert ("schema", "error") in levels(found)
        assert f"baton migrate --grant {role}, as the owner of the tables" in said(found, "schema")
        change(baton_dsn, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        found = examine(dsn)
        assert levels(found) == {("rights", "error")}
        assert "DELETE, INSERT, UPDATE on" in said(found, "rights")
        follow(baton_dsn, str(found[0].remedy))
        assert examine(dsn) == []
        for lost in (
            "EXECUTE ON FUNCTION baton_sweep",
            "UPDATE ON workflow_consumers",
            "INSERT ON workflow_deliveries",
            "DELETE ON workflow_debug_logs",
            "USAGE ON SEQUENCE oban_jobs_id_seq",
        ):
            change(baton_dsn, f"REVOKE {lost} FROM {role}")
            found = examine(dsn)
            assert levels(found) == {("rights", "error")}, lost
            assert lost.split()[-1] in said(found, "rights") or "baton_sweep" in lost
            follow(baton_dsn, str(found[0].remedy))
    finally:
        change(baton_dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("sql", "level", "words"),
    [
        (
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
            "error",
            "no tables of Oban's and none of Baton's -> baton migrate",
        ),
        (
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE workflow_nodes ()",
            "error",
            "--prefix another_schema",
        ),
        (
            "DELETE FROM workflow_migrations WHERE version > 1",
            "error",
            "is at version 1, and this Baton needs",
        ),
        (
            "INSERT INTO workflow_migrations VALUES (99, 'later')",
            "warning",
            "is at version 99, and this Baton knows",
        ),
    ],
    ids=["none", "somebody else's", "older", "newer"],
)
def test_schema(fresh: str, sql: str, level: str, words: str) -> None:
    change(fresh, sql)
    found = examine(fresh)
    assert levels(found) == {("schema", level)}
    assert words in said(found, "schema")


def test_a_server_that_may_lose_commits_and_a_standby(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(local._FIXED, "fsync", "off")
    with LocalServer.start(tmp_path / "pg") as server:
        asyncio.run(migration.up(server.dsn))
        found = examine(server.dsn)
        assert levels(found) == {("durability", "error")}
        assert "fsync is off" in found[0].found
    monkeypatch.undo()
    (tmp_path / "pg/data/standby.signal").touch()
    with LocalServer.start(tmp_path / "pg") as server:
        found = examine(server.dsn)
        assert "nothing can be written: the server is a standby" in found[0].found
        assert found[0].level is Level.ERROR
        # A standby has no unlogged tables.
        assert {finding.check for finding in found[1:]} == {"leader", "producers", "workers", "lost-jobs"}
        assert all("ask the primary" in str(finding.remedy) for finding in found[1:])


# --- refusals and losses ------------------------------------------------------------------------------------


async def test_what_cannot_be_asked_raises(baton_dsn: str) -> None:
    with pytest.raises(InvalidOption, match="prefix"):
        await doctor.check(baton_dsn, prefix='a"b')
    with pytest.raises(DatabaseUnreachable):
        await doctor.check(NOT_HERE)
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        change(baton_dsn, "SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            await doctor.check(conn)


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_ends_with_1(baton_dsn: str, run: str) -> None:
    assert command("doctor", "--dsn", baton_dsn).stdout == f"{len(doctor.names())} checks: nothing is wrong\n"
    told = command("doctor", "--dsn", baton_dsn, "--verbose").stdout.splitlines()
    assert len(told) == len(doctor.names()) + 1
    change(baton_dsn, "ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated")
    change(baton_dsn, f"ALTER DATABASE {name_of(baton_dsn)} SET synchronous_commit = off")
    found = examine_command(baton_dsn, code=1)
    assert "error    triggers: trigger baton_jobs_updated" in found
    assert "\n         do: baton migrate\n" in found
    assert f"{len(doctor.names())} checks: 1 error and 1 warning" in found


def test_warnings_count_only_if_strict(baton_dsn: str, run: str) -> None:
    change(baton_dsn, f"ALTER DATABASE {name_of(baton_dsn)} SET synchronous_commit = off")
    assert "warning  durability" in examine_command(baton_dsn, code=0)
    assert "warning  durability" in examine_command(baton_dsn, "--strict", code=1)
    found = json.loads(examine_command(baton_dsn, "--strict", "--json", code=1))
    assert [each["check"] for each in found if each["level"] != "ok"] == ["durability"]
    assert len(found) == len(doctor.names())


def examine_command(dsn: str, *options: str, code: int) -> str:
    import click.testing

    from baton.cli import cli

    done = click.testing.CliRunner().invoke(cli, ["doctor", "--dsn", dsn, *options])
    assert done.exit_code == code, done.output
    return done.stdout


def test_a_database_that_does_not_answer_ends_it_with_3() -> None:
    told = command("doctor", "--dsn", NOT_HERE, code=3).stderr
    assert "s3cret" not in told
    command("doctor", "--dsn", NOT_HERE, "--prefix", 'a"b', code=2)


def test_remedies_for_the_embedded_server_say_so(tmp_path: Path) -> None:
    import click.testing

    from baton.cli import cli

    arguments = ["doctor", "--local", "--data-dir", str(tmp_path / "p g"), "--prefix", "jobs"]
    done = click.testing.CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert f"do: baton migrate --prefix jobs --local --data-dir '{tmp_path}/p g'" in done.stdout


def test_texts_of_others_cannot_command_a_terminal(baton_dsn: str, run: str) -> None:
    hostile = "'; DROP TABLE oban_jobs; -- \x1b[31mred\u202e{0.__class__}%s\n\x07"
    change(
        baton_dsn,
        "UPDATE oban_jobs SET state = 'scheduled', scheduled_at = timezone('UTC', now()) + interval '1 h', queue = %s, "
        "meta = meta || jsonb_build_object('parked', %s::text) WHERE state = 'available'",
        f'"{hostile}',
        hostile,
    )
    change(baton_dsn, "UPDATE workflow_nodes SET name = %s, waiting_on = 2 WHERE name = 'second'", hostile)
    told = examine_command(baton_dsn, code=1)
    assert not _OBEYED.search(told)
    assert "\\x1b[31mred\\u202e{0.__class__}%s\\x0a" in told
    text = examine_command(baton_dsn, "--json", code=1)
    assert not _OBEYED.search(text)
    assert hostile in next(each["found"] for each in json.loads(text) if each["check"] == "parked")


# --- completeness -----------------------------------------------------------------------------------------------


def test_each_check_is_broken_here() -> None:
    broken = {name.partition(":")[0] for name in BROKEN}
    tests = " ".join(name.replace("_", "-") for name in globals() if name.startswith("test_"))
    assert [name for name in doctor.names() if name not in broken and name not in tests] == []


def test_the_page_lists_each_check_in_order() -> None:
    assert (
        re.findall(r"^\| `([a-z-]+)` \|", DOCUMENTED.read_text().partition("## Is the")[2], re.MULTILINE)
        == doctor.names()
    )
