"""Who is rescued: steps whose process is gone, and nobody who is only slow."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from baton._engine import Engine
from tests.kit.wait import eventually

from baton import Baton, Workflow, step  # isort: skip


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
async def engine(baton_dsn: str) -> AsyncIterator[Engine]:
    async def conninfo() -> str:
        return baton_dsn

    engine = Engine(conninfo, kwargs={}, prefix="public", origin="test", pool_size=1)
    yield engine
    await engine.close()


async def executing(db: psycopg.AsyncConnection, *, attempt: int, producer: str, seconds_ago: int) -> int:
    row = await (
        await db.execute(
            "INSERT INTO oban_jobs (worker, state, attempt, max_attempts, attempted_at, attempted_by) "
            "VALUES ('app.Work', 'executing', %s, 3, timezone('UTC', now()) - make_interval(secs => %s), %s) RETURNING id",
            (attempt, seconds_ago, ["node", producer]),
        )
    ).fetchone()
    assert row is not None
    return int(row[0])


async def state(db: psycopg.AsyncConnection, job_id: int) -> tuple[str, int]:
    row = await (
        await db.execute("SELECT state::text, attempt FROM oban_jobs WHERE id = %s", (job_id,))
    ).fetchone()
    assert row is not None
    return row[0], row[1]


HERE = "11111111-1111-1111-1111-111111111111"
GONE = "22222222-2222-2222-2222-222222222222"


async def test_a_slow_job_of_a_living_producer_is_left_alone_and_a_dead_ones_runs_again(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    await db.execute("INSERT INTO oban_producers (uuid, node, queue) VALUES (%s, 'node', 'default')", (HERE,))
    slow = await executing(db, attempt=1, producer=HERE, seconds_ago=86_400)
    dead = await executing(db, attempt=1, producer=GONE, seconds_ago=5)
    just_claimed = await executing(db, attempt=1, producer=GONE, seconds_ago=0)
    assert await engine.rescue(0.5) == 1
    assert await state(db, slow) == ("executing", 1)
    assert await state(db, dead) == ("available", 1)
    assert await state(db, just_claimed) == ("executing", 1)
    assert await engine.rescue(86_400.0) == 0, "in its first day this server's empty table would mean nothing"


async def test_a_job_that_killed_its_last_process_is_discarded_with_a_reason(
    db: psycopg.AsyncConnection, engine: Engine
) -> None:
    job = await executing(db, attempt=3, producer=GONE, seconds_ago=5)
    assert await engine.rescue(0.5) == 1
    assert await state(db, job) == ("discarded", 3)
    row = await (
        await db.execute("SELECT errors -> 0 ->> 'error' FROM oban_jobs WHERE id = %s", (job,))
    ).fetchone()
    assert row == ("its process died while it ran, on node node",)


async def test_obans_lifeline_rescues_by_liveness_once_baton_is_attached(
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
        # What Oban's own rule, age, takes for dead.
        baton.oban._lifeline._rescue_after = 0.0
        await baton.oban._lifeline._rescue()
        assert (await run.status()).step("waits").state == "executing"
        released.append(True)
        await run.wait(timeout=10)
        assert (await run.status()).step("waits").attempt == 1
