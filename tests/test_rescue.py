"""Who is rescued: jobs whose process is dead, and nobody who is only slow. The rule itself, without processes."""

import asyncio
import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from oban import telemetry

from baton._engine import Engine
from tests.kit import fixtures
from tests.kit.wait import eventually

from baton import Baton, Workflow, step  # isort: skip

HERE = "11111111-1111-1111-1111-111111111111"
GONE = "22222222-2222-2222-2222-222222222222"
THIRD = "33333333-3333-3333-3333-333333333333"


database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db
engine = fixtures.engine


async def value(db: psycopg.AsyncConnection, sql: str, *params: object) -> Any:
    row = await (await db.execute(sql.encode(), params or None)).fetchone()
    assert row is not None
    return row[0]


async def beat(db: psycopg.AsyncConnection, *producers: str, rescue_after: float = 30) -> list[str]:
    """A heartbeat of these producers; returns those whose row was not there."""
    rows = [
        {"uuid": uuid, "name": "Oban", "node": "node", "queue": "default", "meta": {}} for uuid in producers
    ]
    made = await value(db, "SELECT baton_beat(%s::jsonb, %s)", json.dumps(rows), rescue_after)
    return [str(uuid) for uuid in made]


async def pass_time(db: psycopg.AsyncConnection, seconds: float, *, but: tuple[str, ...] = ()) -> None:
    """As if everything had happened so much earlier; the producers in `but` have been beating all the while."""
    await db.execute(
        "UPDATE oban_producers SET started_at = started_at - make_interval(secs => %(seconds)s), "
        "updated_at = CASE WHEN uuid = ANY(%(but)s::uuid[]) THEN updated_at "
        "ELSE updated_at - make_interval(secs => %(seconds)s) END, "
        "meta = CASE WHEN meta #>> '{baton,since}' IS NULL THEN meta ELSE jsonb_set(meta, '{baton,since}', "
        "to_jsonb((meta #>> '{baton,since}')::timestamp - make_interval(secs => %(seconds)s))) END",
        {"seconds": seconds, "but": list(but)},
    )
    await db.execute(
        "UPDATE oban_jobs SET attempted_at = attempted_at - make_interval(secs => %s)", (seconds,)
    )


async def executing(
    db: psycopg.AsyncConnection,
    producer: str | None,
    *,
    attempt: int = 1,
    worker: str = "baton.StepWorker",
    meta: str = "{}",
) -> int:
    return int(
        await value(
            db,
            "INSERT INTO oban_jobs (worker, state, attempt, max_attempts, attempted_at, attempted_by, meta) "
            "VALUES (%s, 'executing', %s, 3, timezone('UTC', clock_timestamp()), %s, %s::jsonb) RETURNING id",
            worker,
            attempt,
            ["node", producer] if producer else ["node"],
            meta,
        )
    )


async def state(db: psycopg.AsyncConnection, job_id: int) -> tuple[str, int]:
    row = await (
        await db.execute("SELECT state::text, attempt FROM oban_jobs WHERE id = %s", (job_id,))
    ).fetchone()
    assert row is not None
    return row[0], row[1]


async def error(db: psycopg.AsyncConnection, job_id: int) -> str:
    return str(await value(db, "SELECT errors -> -1 ->> 'error' FROM oban_jobs WHERE id = %s", job_id))


async def test_a_slow_job_of_a_living_producer_is_left_alone_and_a_dead_ones_runs_again(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, HERE, GONE)
    slow, dead = await executing(db, HERE), await executing(db, GONE)
    plain = await executing(db, GONE, worker="app.Work")
    await pass_time(db, 29, but=(HERE,))
    assert await engine.rescue(30) == []
    await pass_time(db, 86_400, but=(HERE,))
    assert await engine.rescue(30) == [dead, plain]
    assert await state(db, slow) == ("executing", 1)
    assert await state(db, dead) == ("available", 1)
    assert await state(db, plain) == ("available", 1)
    assert await error(db, dead) == "the process running it died; it was on node node"
    assert await engine.rescue(30) == [], "once"


async def test_a_claim_is_a_sign_of_life(db: psycopg.AsyncConnection, engine: Engine) -> None:
    await beat(db, HERE, GONE)
    await pass_time(db, 40, but=(HERE,))
    just_claimed = await executing(db, GONE)
    assert await engine.rescue(30) == []
    await pass_time(db, 40, but=(HERE,))
    assert await engine.rescue(30) == [just_claimed]


async def test_silence_counts_only_while_others_are_heard(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    """The server stood still, or its clock went forward: everybody was silent, and nobody died."""
    await beat(db, HERE, GONE)
    job = await executing(db, GONE)
    await pass_time(db, 3_600)
    assert await engine.rescue(30) == [], "nobody was heard"
    await beat(db, HERE)
    assert await engine.rescue(30) == [], "the one who was heard was silent before as well"
    await beat(db, GONE)
    await pass_time(db, 20, but=(HERE,))
    assert await engine.rescue(30) == []
    await pass_time(db, 20, but=(HERE,))
    assert await engine.rescue(30) == [job], "now it is silent, and others were not"


async def test_a_clock_that_was_set_back_delays_a_rescue_and_no_more(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, HERE, GONE)
    job = await executing(db, GONE)
    await pass_time(db, -7_200)
    assert await engine.rescue(30) == []
    await beat(db, HERE)
    await pass_time(db, 40, but=(HERE,))
    assert await engine.rescue(30) == [job]


async def test_a_process_that_was_started_after_the_death_carries_on_the_watch(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, GONE)
    job = await executing(db, GONE)
    await pass_time(db, 10)
    # The only worker died and another takes its place within the pause that is allowed.
    await beat(db, HERE)
    await pass_time(db, 25, but=(HERE,))
    assert await engine.rescue(30) == [job]


async def test_without_its_row_a_producer_is_given_the_time_that_it_may_be_silent(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    """A crash of the server empties the unlogged table."""
    await beat(db, HERE)
    step_job, other = await executing(db, GONE), await executing(db, THIRD, worker="app.Work")
    nobodys = await executing(db, None, worker="app.Work")
    await pass_time(db, 86_400, but=(HERE,))
    assert await engine.rescue(30) == []
    await pass_time(db, 40, but=(HERE,))
    assert await engine.rescue(30) == [step_job], "only Baton runs steps"
    assert await beat(db, THIRD) == [], "it lives, and takes over the row that was made for it"
    await pass_time(db, 86_400, but=(HERE, THIRD))
    assert await engine.rescue(30) == [nobodys]
    assert await state(db, other) == ("executing", 1)


async def test_a_node_without_baton_may_be_silent_for_a_minute_whatever_we_want(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, HERE, rescue_after=2)
    await db.execute("INSERT INTO oban_producers (uuid, node, queue) VALUES (%s, 'node', 'default')", (GONE,))
    job = await executing(db, GONE, worker="Elixir.Work")
    await pass_time(db, 55, but=(HERE,))
    assert await engine.rescue(2) == []
    await pass_time(db, 10, but=(HERE,))
    assert await engine.rescue(2) == [job]


async def test_where_no_node_has_heartbeats_of_ours_obans_own_minute_holds(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    """Nodes with an older Baton, on the schema of this one."""
    for uuid in (HERE, GONE):
        await db.execute(
            "INSERT INTO oban_producers (uuid, node, queue) VALUES (%s, 'node', 'default')", (uuid,)
        )
    job = await executing(db, GONE)
    await pass_time(db, 55, but=(HERE,))
    assert await value(db, "SELECT baton_rescue(60)") == 0
    await pass_time(db, 10, but=(HERE,))
    assert await value(db, "SELECT baton_rescue(60)") == 1
    assert await state(db, job) == ("available", 1)


async def test_a_job_that_killed_its_last_process_is_discarded_with_a_reason(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, HERE, GONE)
    job = await executing(db, GONE, attempt=3, meta='{"rescued": 2}')
    await pass_time(db, 31, but=(HERE,))
    assert await engine.rescue(30) == [job]
    assert await state(db, job) == ("discarded", 3)
    assert await error(db, job) == "the process running it died, 3 times; it was on node node"


@pytest.mark.parametrize("attempt", [1, 3])
async def test_a_job_that_was_asked_to_end_ends_with_its_process(
    db: psycopg.AsyncConnection, engine: Engine, attempt: int
) -> None:
    await beat(db, HERE, GONE)
    job = await executing(db, GONE, attempt=attempt, worker="app.Work")
    assert await engine.cancel_many([job]) == [(job, "executing")]
    # Both marks belong to the same attempt.
    await pass_time(db, 31, but=(HERE,))
    assert await engine.rescue(30) == [job]
    assert (await state(db, job))[0] == "cancelled"


@step
async def idle() -> None: ...


async def claimed_run(baton: Baton, db: psycopg.AsyncConnection, attempt: int = 1) -> tuple[Any, int]:
    """A run of one step, whose attempt runs in a process that is gone by now."""
    workflow = Workflow("run")
    workflow.add("only", idle.new())
    run = await baton.insert(workflow)
    job = (await run.status()).step("only").job_id
    assert job is not None
    await db.execute(
        "UPDATE oban_jobs SET state = 'executing', attempt = %s, max_attempts = 3, attempted_by = %s, "
        "attempted_at = timezone('UTC', clock_timestamp()) WHERE id = %s",
        (attempt, ["node", GONE], job),
    )
    return run, job


@pytest.mark.parametrize("attempt", [1, 3])
async def test_a_step_that_was_cancelled_while_it_ran_does_not_run_again(
    baton_dsn: str, db: psycopg.AsyncConnection, engine: Engine, attempt: int
) -> None:
    async with Baton(baton_dsn) as baton:
        await beat(db, HERE, GONE)
        run, job = await claimed_run(baton, db, attempt)
        await engine.cancel(run_id := UUID(run.id), None, "no longer needed")
        assert (await run.status()).step("only").state == "executing"
        await pass_time(db, 31, but=(HERE,))
        assert await engine.rescue(30) == [job]
        assert await run.wait(timeout=10) == "cancelled"
        status = await run.status()
        assert (status.step("only").state, status.step("only").error) == ("cancelled", "no longer needed")
        assert await value(db, "SELECT state::text FROM oban_jobs WHERE id = %s", job) == "cancelled"
        assert (
            await value(db, "SELECT count(*) FROM workflow_completions WHERE workflow_id = %s", run_id) == 1
        )


async def test_the_step_of_a_paused_run_waits_on(
    baton_dsn: str, db: psycopg.AsyncConnection, engine: Engine
) -> None:
    async with Baton(baton_dsn) as baton:
        await beat(db, HERE, GONE)
        run, job = await claimed_run(baton, db)
        await engine.pause(UUID(run.id))
        await pass_time(db, 31, but=(HERE,))
        assert await engine.rescue(30) == [job]
        assert await state(db, job) == ("suspended", 1)
        await engine.resume(UUID(run.id))
        assert await state(db, job) == ("available", 1)


async def test_an_ack_that_is_being_written_wins_over_two_rescuers(
    baton_dsn: str, db: psycopg.AsyncConnection, engine: Engine
) -> None:
    async with Baton(baton_dsn) as baton:
        await beat(db, HERE, GONE)
        run, job = await claimed_run(baton, db)
        await pass_time(db, 31, but=(HERE,))
        async with await psycopg.AsyncConnection.connect(baton_dsn) as ack:
            await ack.execute("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", (job,))
            assert await asyncio.gather(engine.rescue(30), engine.rescue(30)) == [[], []]
            await ack.commit()
        assert await asyncio.gather(engine.rescue(30), engine.rescue(30)) == [[], []]
        assert await run.wait(timeout=10) == "completed"


async def test_one_at_a_time_rescues(baton_dsn: str, db: psycopg.AsyncConnection, engine: Engine) -> None:
    await beat(db, HERE, GONE)
    job = await executing(db, GONE)
    await pass_time(db, 31, but=(HERE,))
    async with await psycopg.AsyncConnection.connect(baton_dsn) as first:
        assert await value(first, "SELECT baton_rescue_dead(30)") == [job]
        assert await engine.rescue(30) == [], "and does not wait"
        await first.rollback()
    assert await engine.rescue(30) == [job]


async def test_a_row_is_cleared_away_after_its_jobs_were_rescued(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await beat(db, HERE, GONE, rescue_after=100)
    await db.execute(
        "INSERT INTO oban_producers (uuid, node, queue) VALUES (%s, 'node', 'default')", (THIRD,)
    )
    await pass_time(db, 150, but=(HERE,))
    assert await engine.delete_silent_producers(60) == 1
    await pass_time(db, 60, but=(HERE,))
    assert await engine.delete_silent_producers(60) == 1
    assert str(await value(db, "SELECT uuid FROM oban_producers")) == HERE


async def test_obans_lifeline_goes_by_liveness_and_ends_what_could_never_be_claimed(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    @step
    async def waits() -> int:
        await eventually(lambda: released)
        return 1

    released: list[bool] = []
    async with Baton(baton_dsn, queues={"default": 1}) as baton:
        workflow = Workflow()
        workflow.add("waits", waits.new())
        run = await baton.insert(workflow)

        async def runs() -> bool:
            return (await run.status()).step("waits").state == "executing"

        await eventually(runs)
        spent = await value(
            db,
            "INSERT INTO oban_jobs (worker, state, attempt, max_attempts) VALUES ('app.Work', 'available', 3, 3) RETURNING id",
        )
        # What Oban's own rule, age, takes for dead.
        baton.oban._lifeline._rescue_after = 0.0
        await eventually(lambda: baton.oban.is_leader)
        await baton.oban._lifeline._rescue()
        assert (await run.status()).step("waits").state == "executing"
        assert (await state(db, spent))[0] == "discarded"
        assert await error(db, spent) == "it was to run again with no attempt left"
        released.append(True)
        await run.wait(timeout=10)
        assert (await run.status()).step("waits").attempt == 1


async def test_each_process_rescues_and_says_so_by_telemetry(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    heard: list[dict[str, Any]] = []

    async def told() -> bool:
        await beat(db, HERE)
        return bool(heard)

    telemetry.attach("test-rescue", ["baton.plugin.rescued"], lambda _name, meta: heard.append(meta))
    try:
        async with Baton(baton_dsn) as baton:
            await beat(db, HERE, GONE)
            run, job = await claimed_run(baton, db)
            await pass_time(db, 31, but=(HERE,))
            # Nobody called anything: a process without queues, and without leadership, looks each second.
            await eventually(told, timeout=20)
            assert heard == [{"count": 1, "job_ids": [job]}]
            assert (await run.status()).step("only").state == "available"
    finally:
        telemetry.detach("test-rescue")
