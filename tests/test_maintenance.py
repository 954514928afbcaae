"""What the maintenance deletes, repairs and tells: whole finished runs, never a row of a live one."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from oban import Oban, telemetry
from psycopg_pool import AsyncConnectionPool

from baton import Baton, Workflow, _store, step
from baton._engine import Engine
from baton._maintenance import Maintenance, Upkeep
from baton.errors import InvalidOption, JobsGone
from tests.kit import fixtures
from tests.kit.database import INVARIANTS
from tests.kit.spent import spend
from tests.kit.wait import eventually

TABLES = (
    "workflows",
    "workflow_nodes",
    "workflow_edges",
    "workflow_completions",
    "workflow_checkpoints",
    "workflow_debug_logs",
    "workflow_step_stats",
    "workflow_progress",
    "workflow_streams",
)
WHOLE = "\nUNION ALL\n".join(
    f"SELECT found.id::text FROM ({INVARIANTS[name].partition('UNION ALL SELECT job.id')[0]}) AS found (id)"
    for name in ("S12 whole workflows", "S12 no strays")
)


database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db
engine = fixtures.engine


@pytest.fixture
async def baton(baton_dsn: str) -> AsyncIterator[Baton]:
    """Without queues: nothing runs. The first turn of its own maintenance is over, so that it is not taken for a test's."""
    over = asyncio.Event()
    telemetry.attach("test-maintenance-own", ["baton.plugin.sweep.stop"], lambda *_: over.set())
    async with Baton(baton_dsn) as baton:
        await over.wait()
        telemetry.detach("test-maintenance-own")
        yield baton


@pytest.fixture
def told() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the sweeps of a test tell by telemetry."""
    heard: list[tuple[str, dict[str, Any]]] = []
    names = [f"baton.plugin.sweep.{part}" for part in ("start", "stop", "exception")]
    telemetry.attach("test-maintenance", names, lambda name, meta: heard.append((name, meta)))
    yield heard
    telemetry.detach("test-maintenance")


def maintenance(
    engine: Engine, *, leader: bool = True, job_max_age: float = 0.0, **options: Any
) -> Maintenance:
    upkeep = Upkeep(
        **{
            "interval": 60.0,
            "rescue_after": 60.0,
            "prune": True,
            "prune_limit": 10_000,
            "debug_log_max_age": None,
            **options,
        }
    )
    return Maintenance(engine, upkeep, is_leader=lambda: leader, job_max_age=job_max_age)


async def rows(db: psycopg.AsyncConnection, sql: str | bytes, *params: object) -> list[tuple[Any, ...]]:
    return await (
        await db.execute(sql if isinstance(sql, bytes) else sql.encode(), params or None)
    ).fetchall()


async def counts(db: psycopg.AsyncConnection) -> dict[str, int]:
    return {table: (await rows(db, f"SELECT count(*) FROM {table}"))[0][0] for table in TABLES}


async def runs(db: psycopg.AsyncConnection) -> set[str]:
    return {str(run_id) for (run_id,) in await rows(db, "SELECT id FROM workflows")}


@step
async def idle() -> None: ...


def chain(steps: int) -> Workflow:
    workflow = Workflow("chain")
    for number in range(steps):
        workflow.add(f"s{number}", idle.new(), deps=[f"s{number - 1}"] if number else [])
    return workflow


async def finished(
    baton: Baton, db: psycopg.AsyncConnection, *, steps: int = 2, state: str = "completed", jobs: bool = False
) -> str:
    """A run whose steps all ended, and whose jobs Oban has pruned, unless they are to stay."""
    run = await baton.insert(chain(steps))
    of_run = "(SELECT job_id FROM workflow_nodes WHERE workflow_id = %s)"
    for _ in range(steps):
        await db.execute(
            f"UPDATE oban_jobs SET state = '{state}' WHERE state = 'available' AND id IN {of_run}".encode(),
            (run.id,),
        )
    assert await rows(db, "SELECT outcome IS NOT NULL FROM workflows WHERE id = %s", run.id) == [(True,)]
    if not jobs:
        await db.execute(f"DELETE FROM oban_jobs WHERE id IN {of_run}".encode(), (run.id,))
    return run.id


async def test_a_finished_run_goes_whole_once_its_jobs_are_gone(
    baton: Baton,
    baton_dsn: str,
    engine: Engine,
    db: psycopg.AsyncConnection,
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    gone = await finished(baton, db, steps=3)
    ((step_id,),) = await rows(
        db, "SELECT id FROM workflow_nodes WHERE workflow_id = %s AND name = 's0'", gone
    )
    await db.execute(
        "INSERT INTO workflow_checkpoints (step_id, key, value, attempt) VALUES (%s, '', '{\"value\": 1}', 1)",
        (step_id,),
    )
    await db.execute(
        "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt) VALUES (%s, %s, 1)", (gone, step_id)
    )
    await spend(baton_dsn, gone, "s0", "0.1")
    kept = await finished(baton, db, jobs=True)
    await maintenance(engine).sweep()
    assert await runs(db) == {kept}
    assert await counts(db) == {
        "workflows": 1,
        "workflow_nodes": 2,
        "workflow_edges": 1,
        "workflow_completions": 1,
        "workflow_checkpoints": 0,
        "workflow_debug_logs": 0,
        # What it cost is asked for later.
        "workflow_step_stats": 1,
        "workflow_progress": 0,
        "workflow_streams": 0,
    }
    _, meta = told[-1]
    assert (meta["pruned"], meta["deleted"]["workflow_nodes"]) == (1, 3)


async def test_without_prune_nothing_goes(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]]
) -> None:
    await finished(baton, db)
    before = await counts(db)
    await maintenance(engine, prune=False).sweep()
    await maintenance(engine, leader=False).sweep()
    assert await counts(db) == before
    assert [(name, meta.get("pruned"), meta.get("deleted")) for name, meta in told] == [
        ("baton.plugin.sweep.start", None, None),
        ("baton.plugin.sweep.stop", 0, {}),
    ] * 2


async def test_a_live_run_keeps_every_row_though_its_jobs_are_gone(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    run = await baton.insert(chain(3))
    await db.execute("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    await db.execute("DELETE FROM oban_jobs WHERE state = 'completed'")
    before = await counts(db)
    await maintenance(engine).sweep()
    assert await counts(db) == before
    assert {name: str(state) for name, state in (await run.status()).states().items()} == {
        "s0": "completed",
        "s1": "available",
        "s2": "held",
    }


async def test_a_run_whose_end_is_still_to_be_delivered_stays(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    await db.execute("INSERT INTO workflow_consumers (name) VALUES ('bill')")
    run_id = await finished(baton, db)
    await maintenance(engine).sweep()
    assert await runs(db) == {run_id}
    await db.execute("DELETE FROM workflow_deliveries")
    await maintenance(engine).sweep()
    assert await runs(db) == set()


async def test_a_run_that_is_younger_than_oban_keeps_jobs_is_not_looked_at(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    run_id = await finished(baton, db)
    await maintenance(engine, job_max_age=3_600).sweep()
    assert await runs(db) == {run_id}


async def test_a_turn_deletes_up_to_its_limit_and_the_oldest_first(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    kept = [await finished(baton, db, steps=4, jobs=True)]
    old = [await finished(baton, db, steps=4) for _ in range(5)]
    upkeep = maintenance(engine, prune_limit=8)
    for left in (old[2:], old[4:], []):
        await upkeep.sweep()
        assert await runs(db) == {*kept, *left}


async def test_a_run_larger_than_the_limit_goes_alone(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    await finished(baton, db, steps=5)
    second = await finished(baton, db, steps=1)
    await maintenance(engine, prune_limit=1).sweep()
    assert await runs(db) == {second}


async def test_empty_runs_of_one_moment_go_one_by_one(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    await baton.insert_many([Workflow(f"empty{number}") for number in range(4)])
    await db.execute("UPDATE workflows SET finished_at = now()")
    upkeep = maintenance(engine, prune_limit=1)
    for left in (3, 2, 1, 0):
        await upkeep.sweep()
        assert len(await runs(db)) == left


async def test_two_leaders_at_once_delete_everything_once(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]]
) -> None:
    for _ in range(10):
        await finished(baton, db)
    await asyncio.gather(*(maintenance(engine).sweep() for _ in range(3)))
    # One may have passed over what another held.
    await maintenance(engine).sweep()
    assert await runs(db) == set()
    stops = [meta for name, meta in told if name == "baton.plugin.sweep.stop"]
    assert sum(meta["pruned"] for meta in stops) == 10
    assert sum(meta["deleted"].get("workflow_nodes", 0) for meta in stops) == 20


async def test_failures_that_nobody_hears_of_any_more_go_with_their_run(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    await engine.add_consumer("baton.workflow.failed")
    await finished(baton, db, state="discarded")
    assert await rows(db, "SELECT consumer FROM workflow_deliveries") == [("baton.workflow.failed",)]
    await maintenance(engine).sweep()
    assert await runs(db) == set()
    assert await rows(db, "SELECT FROM workflow_deliveries") == []


async def test_a_retry_that_was_first_keeps_the_run(
    baton: Baton, baton_dsn: str, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    run_id = await finished(baton, db, state="discarded", jobs=True)
    async with await psycopg.AsyncConnection.connect(baton_dsn) as retry:
        await retry.execute("SELECT baton_retry(%s)", (run_id,))
        # Oban's pruner waits for the job, and will not take it.
        pruning = asyncio.create_task(
            db.execute("DELETE FROM oban_jobs WHERE state IN ('discarded', 'cancelled')")
        )
        await maintenance(engine).sweep()
        await retry.commit()
        await pruning
    await maintenance(engine).sweep()
    assert (await baton.get_run(run_id).status()).state == "executing"
    assert await rows(db, WHOLE) == []


async def test_a_prune_that_was_first_takes_the_whole_run(
    baton: Baton, baton_dsn: str, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    run_id = await finished(baton, db, state="discarded")
    async with await psycopg.AsyncConnection.connect(baton_dsn) as prune:
        await prune.execute("SELECT * FROM baton_prune(100, 0, NULL)")
        retrying = asyncio.create_task(engine.retry(UUID(run_id)))

        async def waits() -> bool:
            return bool(
                await rows(
                    db,
                    "SELECT FROM pg_stat_activity WHERE datname = current_database() "
                    "AND cardinality(pg_blocking_pids(pid)) > 0",
                )
            )

        await eventually(waits, timeout=30)
        await prune.commit()
        assert await retrying is None, "there is no such run"
    assert set((await counts(db)).values()) == {0}


async def test_a_retry_and_a_prune_at_once_leave_a_run_whole_or_gone(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection
) -> None:
    upkeep = maintenance(engine)
    for number in range(30):
        run_id = await finished(baton, db, state="discarded", jobs=True)

        async def delete_and_prune(number: int = number) -> None:
            for _ in range(number % 5):
                await asyncio.sleep(0)
            await db.execute("DELETE FROM oban_jobs WHERE state IN ('discarded', 'cancelled')")
            await upkeep.sweep()

        async def retry(run_id: str = run_id, number: int = number) -> str:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            try:
                return "gone" if await engine.retry(UUID(run_id)) is None else "revived"
            except JobsGone:
                return "without jobs"

        _, came = await asyncio.gather(delete_and_prune(), retry())
        await upkeep.sweep()
        assert (run_id in await runs(db)) == (came == "revived")
        assert await rows(db, WHOLE) == []
        assert await rows(db, _store.load("audit")) == []


async def test_captured_calls_go_by_their_age_whatever_their_run_does(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]]
) -> None:
    run = await baton.insert(chain(1))
    for hours in (1, 3, 5):
        await db.execute(
            "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt, inserted_at) "
            "SELECT workflow_id, id, 1, now() - make_interval(hours => %s) FROM workflow_nodes",
            (hours,),
        )
    await maintenance(engine, debug_log_max_age=None).sweep()
    await maintenance(engine, debug_log_max_age=7_200, prune_limit=1).sweep()
    assert await counts(db) == {**(await counts(db)), "workflow_debug_logs": 2, "workflows": 1}
    await maintenance(engine, debug_log_max_age=7_200).sweep()
    assert (await counts(db))["workflow_debug_logs"] == 1
    assert [meta["debug_logs"] for name, meta in told if name.endswith("stop")] == [0, 1, 1]
    assert (await run.status()).state == "executing"


async def test_what_calls_cost_goes_by_its_age_once_their_run_has_ended(
    baton: Baton,
    baton_dsn: str,
    engine: Engine,
    db: psycopg.AsyncConnection,
    told: list[tuple[str, dict[str, Any]]],
) -> None:
    live = (await baton.insert(chain(1))).id
    now = datetime.now(UTC)
    for hours in (1, 3, 5):
        for run_id in (live, "01890a5d-ac96-774b-bcce-b302099a8057"):
            await spend(baton_dsn, run_id, "s0", "0.1", at=now - timedelta(hours=hours))
    await maintenance(engine, stats_max_age=None).sweep()
    await maintenance(engine, stats_max_age=7_200, prune_limit=1).sweep()
    assert (await counts(db))["workflow_step_stats"] == 5
    await maintenance(engine, stats_max_age=7_200).sweep()
    kept = await rows(db, "SELECT workflow_id::text, count(*) FROM workflow_step_stats GROUP BY 1 ORDER BY 2")
    assert kept == [("01890a5d-ac96-774b-bcce-b302099a8057", 1), (live, 3)]
    assert [meta["stats"] for name, meta in told if name.endswith("stop")] == [0, 1, 1]


async def test_what_no_trigger_saw_is_repaired_and_counted(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]]
) -> None:
    run = await baton.insert(chain(1))
    async with db.transaction():
        await db.execute("SET LOCAL session_replication_role = replica")
        await db.execute("UPDATE oban_jobs SET state = 'completed'")
    await maintenance(engine, leader=False).sweep()
    assert (await run.status()).state == "executing"
    await maintenance(engine).sweep()
    assert (await run.status()).state == "completed"
    assert [meta["repaired"] for name, meta in told if name.endswith("stop")] == [0, 1]


async def test_a_missing_trigger_is_told_of_and_nothing_is_repaired_without_it(
    baton: Baton,
    engine: Engine,
    db: psycopg.AsyncConnection,
    told: list[tuple[str, dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await db.execute("ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated")
    with caplog.at_level(logging.ERROR, "baton.engine"):
        await maintenance(engine).sweep()
    assert told[-1][1]["missing_triggers"] == ["baton_jobs_updated"]
    assert any("run `baton migrate`" in record.message for record in caplog.records)


async def test_an_error_is_told_of_and_the_loop_goes_on(
    baton: Baton, engine: Engine, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]]
) -> None:
    await finished(baton, db)
    await db.execute("ALTER TABLE workflows RENAME TO hidden")
    upkeep = maintenance(engine, interval=0.01)
    upkeep.loop.start()
    try:
        await eventually(lambda: any(name.endswith("exception") for name, _ in told), timeout=30)
        await db.execute("ALTER TABLE hidden RENAME TO workflows")
        await eventually(lambda: any(meta.get("pruned") for _, meta in told), timeout=30)
    finally:
        await upkeep.loop.stop()
    assert next(meta for name, meta in told if name.endswith("exception"))["error_type"] == "UndefinedTable"


@pytest.mark.parametrize("given", [True, False], ids=["an Oban of the app's own", "a DSN"])
async def test_a_baton_sweeps_by_itself(
    baton_dsn: str, db: psycopg.AsyncConnection, told: list[tuple[str, dict[str, Any]]], given: bool
) -> None:
    options: dict[str, Any] = {"prune": True, "interval": 0.05}
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        if given:
            oban = Oban(pool=pool, queues={"default": 1}, pruner={"max_age": 1})
            options["oban"] = oban
        baton = Baton(**options) if given else Baton(baton_dsn, queues={"default": 1}, **options)
        async with baton:
            run = await baton.insert(chain(2))
            await run.wait(timeout=30)
            if not given:
                # Oban keeps jobs for a day, and so do we.
                await db.execute("UPDATE workflows SET finished_at = finished_at - interval '2 days'")
            await db.execute("DELETE FROM oban_jobs")

            async def gone() -> bool:
                return await runs(db) == set()

            await eventually(gone, timeout=30)
    assert any(meta.get("pruned") == 1 for _, meta in told)


# --- Oban's pruner, at its fastest ---------------------------------------------------------------------

ended: dict[str, int] = {}


@step
async def after_the_pruning(dsn: str, before: int) -> int:
    """Ends when no job of the step before is left: Oban has pruned it, in the middle of the run."""
    import baton

    context = baton.current()
    job = context.job

    async def pruned() -> bool:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            return not await rows(
                conn,
                "SELECT FROM workflow_nodes AS step JOIN oban_jobs AS job ON job.id = step.job_id "
                "WHERE step.workflow_id = %s AND job.state = 'completed'",
                context.workflow_id,
            )

    assert job.id is not None
    await eventually(pruned, timeout=60)
    if context.step == "last":
        ended[context.workflow_id] = before + 1
    return before + 1


@pytest.mark.slow
async def test_obans_pruner_at_one_second_takes_nothing_from_running_workflows(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    def workflow() -> Workflow:
        made = Workflow("pruned")
        value: Any = 0
        for name in ("first", "second", "third", "last"):
            value = made.add(name, after_the_pruning.new(baton_dsn, value)).result
        return made

    ended.clear()
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        oban = Oban(pool=pool, queues={"default": 20}, pruner={"max_age": 1, "interval": 0.05})
        async with Baton(oban=oban, prune=True, interval=0.05) as baton:
            ids = [run.id for run in await baton.insert_many([workflow() for _ in range(6)])]
            for _ in itertools.count():
                # At every moment: each run has all of its steps and edges, or nothing.
                assert await rows(db, WHOLE) == []
                if len(ended) == 6 and await runs(db) == set():
                    break
    assert ended == dict.fromkeys(ids, 4)
    assert set((await counts(db)).values()) == {0}


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("interval", 0),
        ("interval", -1),
        ("interval", "60"),
        ("prune", 1),
        ("prune", None),
        ("prune_limit", 0),
        ("prune_limit", True),
        ("prune_limit", None),
        ("prune_limit", float("inf")),
        ("prune_limit", 1e10),
        ("debug_log_max_age", -1),
        ("stats_max_age", -1),
        ("stats_max_age", "a day"),
        ("debug_log_max_age", float("inf")),
        ("debug_log_max_age", "a day"),
    ],
)
def test_an_option_that_cannot_work_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=f"^{option} is "):
        Baton("postgresql://", **{option: value})
