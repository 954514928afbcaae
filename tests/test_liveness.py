"""A process is alive while its heartbeats come: through whatever its steps and its server do, and until its last outcome."""

import asyncio
import logging
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from oban import Oban
from psycopg_pool import AsyncConnectionPool

from baton import Baton, Workflow, current, step
from baton import _oban as seam
from baton.errors import InvalidOption
from tests.kit.reused import Reused
from tests.kit.wait import eventually

SECONDS = 2.0


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        yield conn


async def rows(db: psycopg.AsyncConnection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql.encode(), params or None)).fetchall()


def worker(dsn: str, **options: Any) -> Baton:
    return Baton(dsn, **{"queues": {"default": 5}, "rescue_after": SECONDS, **options})


def workflow(**steps: Any) -> Workflow:
    made = Workflow("liveness")
    for name, job in steps.items():
        made.add(name, job)
    return made


async def heard(db: psycopg.AsyncConnection) -> Any:
    """When the one producer was heard last."""
    found = await rows(db, "SELECT updated_at FROM oban_producers WHERE meta #>> '{baton,since}' IS NOT NULL")
    return found[0][0] if found else None


async def beats(db: psycopg.AsyncConnection) -> None:
    """Wait for two heartbeats from now on: the first may have been on its way."""
    for _ in range(2):
        before = await heard(db)

        async def again(before: Any = before) -> bool:
            return await heard(db) not in (None, before)

        await eventually(again, timeout=30)


def beats_meanwhile(dsn: str, times: int) -> bool:
    """As `beats`, without an await."""
    sql = b"SELECT updated_at FROM oban_producers"
    seen = set()
    deadline = time.monotonic() + 60
    with psycopg.connect(dsn, autocommit=True) as conn:
        while len(seen) < times and time.monotonic() < deadline:
            seen.add(conn.execute(sql).fetchone())
            time.sleep(0.01)
    return len(seen) == times


@step
async def blocked(dsn: str) -> bool:
    return beats_meanwhile(dsn, 6) and eventually_now(lambda: bool(warnings))


warnings: list[str] = []


def eventually_now(fact: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.01)
    return fact()


class Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "has not answered" in record.getMessage():
            warnings.append(record.getMessage())


async def test_a_step_that_blocks_the_event_loop_is_named_once_and_heartbeats_go_on(
    baton_dsn: str,
) -> None:
    handler = Warnings()
    warnings.clear()
    logging.getLogger("baton.engine").addHandler(handler)
    try:
        async with worker(baton_dsn) as baton:
            run = await baton.insert(workflow(culprit=blocked.new(baton_dsn)))
            assert await run.result("culprit", timeout=90) is True
    finally:
        logging.getLogger("baton.engine").removeHandler(handler)
    (told,) = warnings
    assert "Async steps running: 'culprit' of 'liveness'" in told
    # In the step, or in what it calls.
    assert re.search(r"it is at \S+, line \d+", told)
    assert "make that step a plain function (def, not async def)" in told


async def test_a_row_that_was_removed_comes_back(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    async with worker(baton_dsn) as baton:
        await beats(db)
        await db.execute("TRUNCATE oban_producers")
        await beats(db)
        producer = baton.oban._producers["default"]
        assert await rows(db, "SELECT uuid::text, name, node, queue, meta - 'baton' FROM oban_producers") == [
            (producer._uuid, "Oban", producer._node, "default", {"local_limit": 5, "paused": False})
        ]


async def test_a_connection_that_is_lost_is_made_again(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    async with worker(baton_dsn):
        await beats(db)
        cut = await rows(
            db,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'baton heartbeat'",
        )
        assert cut == [(True,)]
        await beats(db)


async def test_a_server_process_that_does_not_answer_is_given_up(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with worker(baton_dsn):
        await beats(db)
        ((pid,),) = await rows(
            db,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'baton heartbeat'",
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            await beats(db)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_process_without_queues_has_no_heart(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    async with Baton(baton_dsn) as baton:
        await baton.insert(workflow(idle=waits.new()))
        assert "baton-heartbeat" not in {thread.name for thread in threading.enumerate()}
        assert await rows(db, "SELECT FROM oban_producers") == []


async def test_a_queue_that_is_started_later_is_kept_alive_as_well(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        oban = Oban(pool=pool, queues={})
        async with Baton(oban=oban, rescue_after=SECONDS) as baton:
            await baton.oban.start_queue(queue="late", limit=1)
            await beats(db)
            await baton.oban.stop_queue(queue="late")

            async def gone() -> bool:
                return not await rows(db, "SELECT FROM oban_producers")

            await eventually(gone, timeout=30)


release = asyncio.Event()


@step
async def waits() -> str:
    await release.wait()
    return "done"


@step
async def ends() -> str:
    await second_release.wait()
    return "done"


second_release = asyncio.Event()


@pytest.fixture(autouse=True)
def fresh_events() -> None:
    global release, second_release
    release, second_release = asyncio.Event(), asyncio.Event()


async def running(db: psycopg.AsyncConnection, count: int) -> None:
    async def all_run() -> bool:
        return len(await rows(db, "SELECT FROM oban_jobs WHERE state = 'executing'")) == count

    await eventually(all_run, timeout=30)


async def test_a_stop_writes_outcomes_as_they_come_and_beats_until_the_last(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    baton = await worker(baton_dsn, shutdown_grace_period=60).start()
    run = await baton.insert(workflow(first=ends.new(), last=waits.new(), waiting=waits.new()))
    await running(db, 3)
    await db.execute("INSERT INTO oban_jobs (worker, queue) VALUES ('app.Later', 'default')")
    stopping = asyncio.create_task(baton.stop())
    await asyncio.sleep(0)
    await beats(db)
    second_release.set()

    async def written() -> bool:
        return (await rows(db, "SELECT state FROM workflow_nodes WHERE name = 'first'")) == [("completed",)]

    await eventually(written, timeout=30)
    await beats(db)
    assert not stopping.done()
    release.set()
    await stopping
    assert await rows(db, "SELECT name, state FROM workflow_nodes ORDER BY id") == [
        (name, "completed") for name in ("first", "last", "waiting")
    ]
    assert await rows(db, "SELECT state::text FROM oban_jobs WHERE worker = 'app.Later'") == [("available",)]
    assert await rows(db, "SELECT FROM oban_producers") == []
    assert await rows(
        db,
        "SELECT FROM pg_stat_activity WHERE application_name = 'baton heartbeat' AND datname = current_database()",
    ) in ([], [()])
    assert "baton-heartbeat" not in {thread.name for thread in threading.enumerate()}
    assert str(run.id)


async def test_an_outcome_that_cannot_be_written_yet_has_the_rest_of_the_grace(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    baton = await worker(baton_dsn, shutdown_grace_period=60).start()
    await baton.insert(workflow(first=waits.new()))
    await running(db, 1)
    async with await psycopg.AsyncConnection.connect(baton_dsn) as holder:
        await holder.execute("SELECT FROM oban_jobs FOR UPDATE")
        stopping = asyncio.create_task(baton.stop())
        release.set()
        for _ in range(3):
            # Longer than an outcome is tried after the grace.
            await beats(db)
        assert not stopping.done()
    await stopping
    assert await rows(db, "SELECT state FROM workflow_nodes") == [("completed",)]


async def test_a_second_signal_shortens_a_stop_that_is_under_way(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    baton = await worker(baton_dsn, shutdown_grace_period=3_600).start()
    await baton.insert(workflow(first=waits.new(), second=waits.new()))
    await running(db, 2)
    stopping = asyncio.create_task(baton.stop())
    await beats(db)
    assert not stopping.done()
    baton.hurry()
    await asyncio.wait_for(stopping, 60)
    assert await rows(db, "SELECT state::text, attempt FROM oban_jobs") == [("available", 0)] * 2


async def test_an_oban_that_goes_on_without_baton_beats_by_itself(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        oban = Oban(pool=pool, queues={"default": 1})
        baton = Baton(oban=oban, rescue_after=SECONDS)
        async with oban:
            async with baton:
                await beats(db)
            ((meta,),) = await rows(db, "SELECT meta FROM oban_producers")
            assert "baton" not in meta, "so that its silence is judged by Oban's own rule"
        assert await rows(db, "SELECT FROM oban_producers") == []


async def test_a_process_that_claims_what_it_still_runs_counts_both(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    """It was frozen, its job was rescued, and it was the one that claimed it next."""
    doors = {attempt: asyncio.Event() for attempt in (1, 2)}
    begun: list[int] = []

    @step(name="tests.liveness.twice")
    async def twice() -> int:
        attempt = current().attempt
        begun.append(attempt)
        await doors[attempt].wait()
        return attempt

    async with worker(baton_dsn, queues={"default": 2}) as baton:
        run = await baton.insert(workflow(twice=twice.new()))
        await eventually(lambda: begun == [1])
        await db.execute("UPDATE oban_jobs SET state = 'available'")
        producer = baton.oban._producers["default"]
        producer.notify()
        await eventually(lambda: begun == [1, 2])
        assert len(producer._running_jobs) == 2
        doors[1].set()
        await eventually(lambda: len(producer._running_jobs) == 1)
        (job_id,) = producer._running_jobs
        assert [(job_id,)] == await rows(
            db, "SELECT id FROM oban_jobs WHERE state = 'executing' AND attempt = 2"
        )
        doors[2].set()
        assert await run.result("twice", timeout=20) == 2
        await eventually(lambda: producer._running_jobs == {})


async def test_an_oban_that_goes_on_without_baton_has_again_what_it_had(baton_dsn: str) -> None:
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        oban = Oban(pool=pool, queues={"default": 1})
        async with oban:
            producer = oban._producers["default"]

            def has() -> list[Any]:
                return [getattr(producer, name) for name in seam._REPLACED]

            before = has()
            for _ in range(3):
                async with Baton(oban=oban, rescue_after=SECONDS):
                    assert producer._dispatcher is not before[0]
                assert has() == before


async def test_obans_own_stop_keeps_a_queue_alive_until_its_last_outcome(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        oban = Oban(pool=pool, queues={"default": 5}, shutdown_grace_period=60)
        async with Baton(oban=oban, rescue_after=SECONDS) as baton:
            await baton.insert(workflow(first=waits.new()))
            await running(db, 1)
            stopping = asyncio.create_task(oban.stop_queue(queue="default"))
            await beats(db)
            assert not stopping.done()
            release.set()
            await stopping
            assert await rows(db, "SELECT state FROM workflow_nodes") == [("completed",)]


async def test_obans_refresher_leaves_the_rows_to_the_heartbeat_while_it_is_on_time(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with worker(baton_dsn, rescue_after=240) as baton:

        async def on_time() -> bool:
            return await heard(db) is not None

        await eventually(on_time, timeout=30)
        before = await heard(db)
        uuid = baton.oban._producers["default"]._uuid
        assert await baton.oban._query.refresh_producers([uuid]) == [uuid]
        assert await heard(db) == before
        # Late, because its server does not let it in, say: then Oban's beat is better than none.
        assert baton._seam is not None
        baton._seam.heartbeat._last_beat -= 3_600
        assert await baton.oban._query.refresh_producers([uuid]) == [uuid]
        assert await heard(db) > before


async def test_obans_clean_up_spares_whom_a_longer_silence_was_granted(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with worker(baton_dsn, rescue_after=240) as baton:

        async def on_time() -> bool:
            return await heard(db) is not None

        await eventually(on_time, timeout=30)
        await db.execute("UPDATE oban_producers SET updated_at = updated_at - interval '400 seconds'")
        assert await baton.oban._query.cleanup_expired_producers(60.0) == 0
        await db.execute("UPDATE oban_producers SET updated_at = updated_at - interval '100 seconds'")
        assert await baton.oban._query.cleanup_expired_producers(60.0) == 1


@pytest.mark.parametrize("value", [0, 0.5, -1, "60", None, True, float("nan"), float("inf"), 1e10])
def test_rescue_after_is_a_time(value: Any) -> None:
    with pytest.raises(InvalidOption, match="rescue_after"):
        Baton("postgresql://", rescue_after=value)


# --- code that is not here ---------------------------------------------------------------------------


async def parked(db: psycopg.AsyncConnection) -> list[tuple[Any, ...]]:
    return await rows(
        db,
        "SELECT meta ->> 'parked', attempt, extract(epoch FROM scheduled_at - attempted_at)::float "
        "FROM oban_jobs WHERE state = 'scheduled' AND meta ? 'parked'",
    )


async def test_a_step_is_parked_longer_each_time_and_no_attempt_is_used(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with worker(baton_dsn) as baton:
        run = await baton.insert(workflow(lost=step(name="crew.lost", max_attempts=1)(_nothing).new()))
        _forget("crew.lost")
        delays = []
        for times in range(8):

            async def again(times: int = times) -> Any:
                return await rows(
                    db,
                    "SELECT FROM oban_jobs WHERE meta ? 'parked' AND (meta ->> 'snoozed')::int = %s",
                    times + 1,
                )

            await eventually(again, timeout=30)
            ((reason, attempt, delay),) = await parked(db)
            node = baton.oban._producers["default"]._node
            assert reason == (
                f"no code for step 'crew.lost' here; it is left for a worker that imports it (on node {node})"
            )
            assert attempt == 0
            delays.append(delay)
            await db.execute(
                "UPDATE oban_jobs SET scheduled_at = timezone('UTC', now()), state = 'available'"
            )
            baton.oban._producers["default"].notify()
        # Counted from the claim; the ack came a little later.
        for delay, longest in zip(delays, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
            assert longest / 2 <= delay <= longest + 10
        assert (await run.status()).state == "executing"


async def test_a_step_whose_worker_class_is_not_here_is_parked_and_an_ordinary_job_fails(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with worker(baton_dsn) as baton:
        await baton.insert(workflow(lost=waits.new()))
        await running(db, 1)
        release.set()

        async def done() -> bool:
            return await rows(db, "SELECT state FROM workflow_nodes") == [("completed",)]

        await eventually(done, timeout=30)
        later = datetime.now(UTC) + timedelta(hours=1)
        await baton.insert(workflow(lost=waits.with_options(scheduled_at=later).new()))
        await db.execute(
            "UPDATE oban_jobs SET worker = 'nowhere.Work', state = 'available' WHERE state = 'scheduled'"
        )
        await db.execute("INSERT INTO oban_jobs (worker, max_attempts) VALUES ('nowhere.Work', 1)")

        async def both() -> bool:
            return bool(await parked(db)) and bool(
                await rows(db, "SELECT FROM oban_jobs WHERE state = 'discarded'")
            )

        await eventually(both, timeout=30)
        ((reason, attempt, _),) = await parked(db)
        assert reason.startswith("no code for worker 'nowhere.Work' here: Module 'nowhere' not found")
        assert attempt == 0


def _nothing() -> None: ...


def _forget(name: str) -> None:
    from baton import _declare

    del _declare._registry[name]
