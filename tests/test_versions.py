"""Two versions at once: the library before this one on today's schema, this one on the schema before, and a migration under
running work. What the other version sends and had is recorded in `tests/kit/version_1.py`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.types.numeric import Int8, Int8Dumper

from baton import Baton, Workflow, _store, migration, step
from baton.errors import SchemaOutdated
from tests.kit import version_1
from tests.kit.version_1 import RESULTS, Library, outcome
from tests.kit.wait import eventually

ALL = ["top", "left", "right", "bottom"]
DONE = dict.fromkeys(ALL, "completed")
LATEST = [m.version for m in _store.migrations() if m.version > 1]


@step(name="tests.versions.two")
async def two() -> int:
    return 2


@step(name="tests.versions.double")
async def double(value: int) -> int:
    return 2 * value


@step(name="tests.versions.add")
async def add(left: int, right: int) -> int:
    return left + right


def diamond() -> Workflow:
    """The recorded one, as this version inserts it."""
    workflow = Workflow("diamond")
    top = workflow.add("top", two.new())
    left = workflow.add("left", double.new(top.result))
    right = workflow.add("right", double.new(top.result))
    workflow.add("bottom", add.new(left.result, right.result))
    return workflow


@asynccontextmanager
async def library(dsn: str) -> AsyncIterator[Library]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        conn.adapters.register_dumper(int, Int8Dumper)
        yield Library(conn)


@pytest.fixture
async def old(baton_dsn: str) -> AsyncIterator[Library]:
    """A process of version 1 on today's schema."""
    async with library(baton_dsn) as old:
        yield old


@pytest.fixture
async def before(baton_dsn: str) -> AsyncIterator[Library]:
    """A process of version 1 on the schema of version 1."""
    await version_1.install(baton_dsn)
    async with library(baton_dsn) as before:
        yield before


async def audit(old: Library) -> list[tuple[Any, ...]]:
    return await old.rows(_store.load("audit").decode())


async def finish(dsn: str, run_id: UUID) -> tuple[str, dict[str, Any]]:
    """Let a worker of this version bring a run to its end."""
    async with Baton(dsn, queues={"default": 2}) as baton:
        run = baton.get_run(run_id)
        return await run.wait(timeout=60), await run.results()


async def waits(old: Library, pid: int) -> bool:
    """Whether a session waits for a lock, as one that does not itself wait sees it."""
    return bool(await old.value("SELECT cardinality(pg_blocking_pids(%s::integer))", pid))


async def migrating_pid(old: Library) -> int | None:
    """The session of `up()`, once it waits for a lock."""
    found = await old.rows(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'baton migrate' AND datname = current_database() "
        "AND wait_event_type = 'Lock'"
    )
    return found[0][0] if found else None


# --- the library of version 1 on today's schema --------------------------------------------------------


async def test_the_old_library_brings_a_run_to_its_end(old: Library) -> None:
    run_id = await old.insert()
    assert await old.states(run_id) == dict(zip(ALL, ["available", *["held"] * 3], strict=True))
    assert sorted(await old.work()) == sorted(ALL)
    assert await old.states(run_id) == DONE
    assert await old.results(run_id) == RESULTS
    run = await old.run(run_id)
    assert (run["unsettled"], run["failed"], run["outcome"], run["generation"]) == (0, 0, "completed", 1)
    listed = await old.rows(version_1.LIST_RUNS, state="completed", before=None, limit=10)
    assert [row[0] for row in listed] == [run_id]
    assert await audit(old) == []


async def test_a_step_that_fails_in_the_old_library_dooms_what_waits_for_it(old: Library) -> None:
    run_id = await old.insert()
    assert sorted(await old.work(failing="left")) == ["left", "right", "top"]
    assert await old.states(run_id) == {**DONE, "left": "discarded", "bottom": "cancelled"}
    run = await old.run(run_id)
    assert (run["unsettled"], run["failed"], run["outcome"]) == (0, 2, "failed")
    settled = {row[0]: row[10] for row in await old.rows(version_1.READ_STEPS, id=run_id, names=None)}
    assert settled["left"] == "no luck"
    assert settled["bottom"] == "its dependency 'left' was discarded"
    assert await audit(old) == []


async def test_an_insert_of_the_old_library_has_the_defaults_of_what_came_later(old: Library) -> None:
    run_id = await old.insert()
    assert await old.rows(
        "SELECT deadline_at, paused_at, cancel_requested_at, cancel_cause, rerun_of, revived_at FROM workflows"
    ) == [(None,) * 6]
    assert await old.rows(
        "SELECT DISTINCT runs_on, hooked, cancel_requested_at, cancel_reason FROM workflow_nodes "
        "WHERE workflow_id = %s",
        run_id,
    ) == [("success", False, None, None)]


async def test_what_the_old_library_claimed_and_cannot_run_it_gives_back(old: Library) -> None:
    await old.insert()
    (job,) = await old.claim()
    await old.rows(version_1.GIVE_BACK, [job["id"]], [job["attempted_at"]])
    (again,) = await old.claim()
    assert (again["id"], again["attempt"]) == (job["id"], 1), "its attempt was given back as well"
    assert await old.value(version_1.RECLAIM, "default", old.producer, [job["id"]]) == 0
    assert await old.value(version_1.RECLAIM, "default", old.producer, []) == 1
    assert sorted(await old.work()) == sorted(ALL)
    assert await audit(old) == []


async def test_what_the_old_library_stored_before_its_ack_comes_with_the_next_claim(old: Library) -> None:
    await old.insert()
    (job,) = await old.claim()
    params = (Int8(job["id"]), job["attempted_at"])
    assert await old.value(version_1.STORE, *params, "", "2")
    retry = {"id": job["id"], "attempted_at": job["attempted_at"], "state": "retryable", "delay": 0.0}
    await old.ack([{**retry, "error": {"attempt": 1, "at": "2026-11-26T00:00:00+00:00", "error": "later"}}])
    assert not await old.value(version_1.STORE, *params, "late", "3"), "the attempt has ended"
    await old.rows("UPDATE oban_jobs SET state = 'available' WHERE state = 'retryable' RETURNING id")
    (again,) = await old.claim()
    assert (again["attempt"], again["step"]["stored"]) == (2, {"value": 2})
    await old.ack([outcome(again)])
    results = await old.rows(
        version_1.READ_DEPENDENCY_RESULTS,
        step_id=await old.value("SELECT id FROM workflow_nodes WHERE name = 'left'"),
        names=None,
    )
    assert results == [("top", '{"value": 2}')]


async def test_upkeep_of_the_old_library_finds_nothing_to_do_and_repairs_what_there_is(old: Library) -> None:
    run_id = await old.insert()
    await old.rows(
        version_1.SUBSCRIBE + " RETURNING topic", topic="workflow:all", subscriber=uuid4(), seconds=60.0
    )
    assert await old.value(version_1.SWEEP, [old.producer], "an old node") == []
    assert await old.value(version_1.RECONCILE) == 0
    assert await old.value(version_1.RESCUE, 60.0) == 0
    # Changes that no trigger saw.
    await old.rows("SELECT set_config('session_replication_role', 'replica', false)")
    await old.rows(
        "UPDATE oban_jobs SET state = 'cancelled', cancelled_at = now() WHERE state = 'available' RETURNING id"
    )
    await old.rows("SELECT set_config('session_replication_role', 'origin', false)")
    assert await old.value(version_1.RECONCILE) == 1
    assert set((await old.states(run_id)).values()) == {"cancelled"}
    assert await audit(old) == []


async def test_a_step_is_not_taken_from_an_old_process_that_lives_and_is_from_one_that_died(
    old: Library, baton_dsn: str
) -> None:
    run_id = await old.insert()
    await old.rows(
        "INSERT INTO oban_producers (uuid, node, queue) VALUES (%s, 'an old node', 'default') RETURNING uuid",
        old.producer,
    )
    (job,) = await old.claim()
    rescue = "SELECT baton_rescue_dead(%s)"
    assert await old.value(rescue, 0.0) == [], "it said nothing of its silence, so Oban's own minute holds"
    await old.rows(
        "UPDATE oban_producers SET updated_at = updated_at - interval '61 seconds' RETURNING uuid",
    )
    await old.rows(
        "UPDATE oban_jobs SET attempted_at = attempted_at - interval '61 seconds' WHERE id = %s RETURNING id",
        job["id"],
    )
    assert await old.value(rescue, 0.0) == [job["id"]]
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)
    assert await audit(old) == []


async def test_a_run_of_the_old_library_is_worked_by_this_one(old: Library, baton_dsn: str) -> None:
    run_id = await old.insert()
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)
    assert await old.results(run_id) == RESULTS
    assert await audit(old) == []


async def test_a_run_of_this_library_is_worked_by_the_old_one(old: Library, baton_dsn: str) -> None:
    async with Baton(baton_dsn) as baton:
        run = await baton.insert(diamond())
        assert sorted(await old.work()) == sorted(ALL)
        assert await run.wait(timeout=60) == "completed"
        assert await run.results() == RESULTS
    assert await audit(old) == []


async def test_each_works_a_part_of_the_same_run(old: Library, baton_dsn: str) -> None:
    run_id = await old.insert()
    for name in ("top", "left"):
        job, *others = await old.claim(demand=1)
        assert (job["step"]["name"], others) == (name, [])
        await old.ack([outcome(job)])
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)
    assert await audit(old) == []


async def test_many_runs_are_worked_by_both_at_once(old: Library, baton_dsn: str) -> None:
    async with Baton(baton_dsn, queues={"default": 2}) as baton:
        runs = [await baton.insert(diamond()) for _ in range(10)]
        runs += [baton.get_run(await old.insert()) for _ in range(10)]
        await old.work()
        assert {await run.wait(timeout=60) for run in runs} == {"completed"}
        assert all([await run.results() == RESULTS for run in runs])
    assert await audit(old) == []


async def test_what_this_library_asked_to_end_ends_in_the_old_one(old: Library, baton_dsn: str) -> None:
    async with Baton(baton_dsn) as baton:
        run = await baton.insert(diamond())
        (job,) = await old.claim()
        assert await run.cancel() == "cancelled"
        # It knows nothing of that, and its step completes.
        assert await old.ack([outcome(job)], demand=10) == []
        assert await run.wait(timeout=60) == "cancelled"
    assert set((await old.states(UUID(run.id))).values()) == {"cancelled"}
    assert await audit(old) == []


async def test_the_old_library_claims_nothing_of_a_run_that_is_paused(old: Library, baton_dsn: str) -> None:
    async with Baton(baton_dsn) as baton:
        run = await baton.insert(diamond())
        (job,) = await old.claim()
        await run.pause()
        assert await old.ack([outcome(job)], demand=10) == []
        assert (await old.states(UUID(run.id)))["left"] == "available", "as it shows such a job"
        await run.resume()
        assert sorted(await old.work()) == ["bottom", "left", "right"]
        assert await run.wait(timeout=60) == "completed"
    assert await audit(old) == []


# --- this library on the schema of version 1 -----------------------------------------------------------


@pytest.mark.usefixtures("before")
async def test_this_library_does_not_start_on_an_older_schema_and_names_the_command(baton_dsn: str) -> None:
    state = await migration.check(baton_dsn)
    assert (state.version, state.ready, state.missing_triggers) == (1, False, ())
    with pytest.raises(SchemaOutdated, match=r"version 1, and this library needs \d+; run `baton migrate`"):
        await Baton(baton_dsn, queues={"default": 1}).start()


# --- from version 1 to today's under running work ------------------------------------------------------


async def test_runs_in_every_state_survive_the_migration(before: Library, baton_dsn: str) -> None:
    failed = await before.insert()
    await before.work(failing="right")
    done = await before.insert()
    await before.work()
    half, fresh = await before.insert(), await before.insert()
    (job,) = await before.claim(demand=1)
    await before.ack([outcome(job)])
    (running,) = await before.claim(demand=1)
    tables = ("workflows", "workflow_nodes", "workflow_edges", "workflow_completions", "oban_jobs")
    counts = [await before.value(f"SELECT count(*) FROM {table}") for table in tables]

    assert await migration.up(baton_dsn) == LATEST
    assert (await migration.check(baton_dsn)).current
    assert [await before.value(f"SELECT count(*) FROM {table}") for table in tables] == counts
    assert (await before.run(failed))["outcome"] == "failed"
    assert await before.states(failed) == {**DONE, "right": "discarded", "bottom": "cancelled"}
    assert await before.results(done) == RESULTS
    assert await audit(before) == []
    # What ran all the time is acked to the new functions by the old library.
    await before.ack([outcome(running)])
    assert await finish(baton_dsn, half) == ("completed", RESULTS)
    assert await finish(baton_dsn, fresh) == ("completed", RESULTS)
    assert await audit(before) == []


async def test_rows_of_version_1_pass_the_constraints_that_nobody_checked(
    before: Library, baton_dsn: str
) -> None:
    await before.insert()
    await before.work(failing="left")
    await before.insert()
    await before.claim(demand=1)
    await before.insert()
    await migration.up(baton_dsn)
    unchecked = await before.rows(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint "
        "WHERE contype = 'c' AND NOT convalidated AND connamespace = 'public'::regnamespace"
    )
    assert unchecked, "the migration left none to validate"
    for table, constraint in unchecked:
        await before.conn.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}".encode())


async def test_a_run_that_failed_before_the_migration_is_retried_after_it(
    before: Library, baton_dsn: str
) -> None:
    run_id = await before.insert()
    await before.work(failing="left")
    await migration.up(baton_dsn)
    async with Baton(baton_dsn, queues={"default": 2}) as baton:
        run = baton.get_run(run_id)
        assert await run.retry() == ["left", "bottom"]
        assert await run.wait(timeout=60) == "completed"
        assert await run.results() == RESULTS
    assert await audit(before) == []


async def test_a_role_that_was_granted_to_works_on_with_the_old_library(
    before: Library, baton_dsn: str
) -> None:
    role = f"worker_{uuid4().hex[:8]}"
    await before.conn.execute(
        f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; "
        f"GRANT USAGE ON SCHEMA public TO {role}; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}; "
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}".encode()
    )
    try:
        async with library(baton_dsn.replace("postgres@", f"{role}@")) as worker:
            run_id = await worker.insert()
            (job,) = await worker.claim()
            await migration.up(baton_dsn)
            await worker.ack([outcome(job)])
            await worker.work()
            assert await worker.results(run_id) == RESULTS
            await worker.insert()
            await worker.work(failing="top")
    finally:
        await before.conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
    assert await audit(before) == []


async def test_no_row_is_rewritten_by_the_migration(before: Library, baton_dsn: str) -> None:
    await before.insert()
    files = "SELECT pg_relation_filenode('workflows'), pg_relation_filenode('workflow_nodes')"
    was = await before.rows(files)
    await migration.up(baton_dsn)
    assert await before.rows(files) == was


async def test_the_migration_waits_for_an_ack_that_has_not_committed(
    before: Library, baton_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_LOCK_TIMEOUT", "50ms")
    run_id = await before.insert()
    (job,) = await before.claim()
    await before.conn.execute("BEGIN")
    await before.ack([outcome(job)], demand=10)
    with caplog.at_level(logging.WARNING, "baton.migration"):
        up = asyncio.create_task(migration.up(baton_dsn))
        await eventually(lambda: "trying again (1/" in caplog.text)
        async with library(baton_dsn) as other:
            # Others get through between two tries.
            await other.insert()
        await before.conn.commit()
        assert await up == LATEST
    # The claim was committed with the ack: `left` and `right` are with the old library.
    jobs = await before.rows("SELECT id FROM oban_jobs WHERE state = 'executing' ORDER BY id")
    assert len(jobs) == 2
    assert await before.value(version_1.RECLAIM, "default", before.producer, []) == 2
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)
    assert await audit(before) == []


async def test_an_ack_that_is_half_way_ends_while_the_migration_waits(
    before: Library, baton_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migration, "_LOCK_TIMEOUT", "60s")
    run_id = await before.insert()
    async with library(baton_dsn) as worker:
        (job,) = await worker.claim()
        await worker.conn.execute("BEGIN")
        # As an ack does: it looks at the steps first, and locks their runs later.
        await worker.states(run_id)
        with caplog.at_level(logging.WARNING, "baton.migration"):
            up = asyncio.create_task(migration.up(baton_dsn))
            await eventually(lambda: migrating_pid(before))
            await worker.ack([outcome(job)])
            await worker.conn.commit()
            assert await up == LATEST
    assert caplog.messages == []
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)


async def halt(before: Library, dsn: str, monkeypatch: pytest.MonkeyPatch) -> "asyncio.Task[list[int]]":
    """A migration that has done everything but commit, and goes on when `before` unlocks the advisory lock 1."""
    await before.rows("SELECT pg_advisory_lock(1)")
    complete = migration.sql
    monkeypatch.setattr(migration, "_LOCK_TIMEOUT", "60s")
    monkeypatch.setattr(
        migration,
        "sql",
        lambda *args, **options: complete(*args, **options) + "\nSELECT pg_advisory_xact_lock(1);",
    )
    up = asyncio.create_task(migration.up(dsn))
    await eventually(lambda: migrating_pid(before))
    return up


async def test_an_ack_that_began_before_the_migration_and_ends_after_it_counts(
    before: Library, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await before.insert()
    async with library(baton_dsn) as worker:
        (job,) = await worker.claim()
        up = await halt(before, baton_dsn, monkeypatch)
        # Functions of version 1 are under way in it, and go on among those of today.
        ack = asyncio.create_task(worker.ack([outcome(job)], demand=10))
        await eventually(lambda: waits(before, worker.conn.info.backend_pid))
        await before.rows("SELECT pg_advisory_unlock(1)")
        assert await up == LATEST
        assert sorted(job["step"]["name"] for job in await ack) == ["left", "right"]
        assert await worker.value(version_1.RECLAIM, "default", worker.producer, []) == 2
        assert await worker.states(run_id) == dict(
            zip(ALL, ["completed", "available", "available", "held"], strict=True)
        )
        assert sorted(await worker.work()) == ["bottom", "left", "right"]
    assert await before.results(run_id) == RESULTS
    assert await audit(before) == []


async def test_an_insert_that_began_before_the_migration_and_ends_after_it_is_whole(
    before: Library, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with library(baton_dsn) as inserter:
        up = await halt(before, baton_dsn, monkeypatch)
        inserting = asyncio.create_task(inserter.insert())
        await eventually(lambda: waits(before, inserter.conn.info.backend_pid))
        await before.rows("SELECT pg_advisory_unlock(1)")
        assert await up == LATEST
        run_id = await inserting
    assert await finish(baton_dsn, run_id) == ("completed", RESULTS)
    assert await audit(before) == []


async def test_a_cancel_of_obans_that_began_before_the_migration_and_ends_after_it_is_followed(
    before: Library, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await before.insert()
    async with library(baton_dsn) as oban:
        up = await halt(before, baton_dsn, monkeypatch)
        cancel = "UPDATE oban_jobs SET state = 'cancelled', cancelled_at = now() WHERE state = 'available' RETURNING id"
        cancelling = asyncio.create_task(oban.rows(cancel))
        await eventually(lambda: waits(before, oban.conn.info.backend_pid))
        await before.rows("SELECT pg_advisory_unlock(1)")
        assert await up == LATEST
        assert len(await cancelling) == 1
    assert set((await before.states(run_id)).values()) == {"cancelled"}
    assert (await before.run(run_id))["outcome"] == "failed"
    assert await audit(before) == []


async def test_a_migration_and_an_insert_that_wait_for_each_other_both_come_through(
    before: Library, baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with library(baton_dsn) as inserter:
        first = await inserter.insert()
        await inserter.conn.execute("BEGIN")
        # As an insert does: the run's row first, its steps' later.
        await inserter.conn.execute("UPDATE workflows SET name = name")
        with caplog.at_level(logging.WARNING, "baton.migration"):
            up = asyncio.create_task(migration.up(baton_dsn))
            await eventually(lambda: migrating_pid(before))
            assert len(await inserter.states(first)) == 4
            await eventually(lambda: "trying again (1/" in caplog.text)
            await inserter.conn.commit()
            assert await up == LATEST
    assert await finish(baton_dsn, first) == ("completed", RESULTS)
