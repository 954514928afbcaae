"""`Baton` and `Run` as a user has them: inserting, joining a caller's transaction, keys, reading, waiting, attaching."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from oban import Oban
from oban.job import Job
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import baton
from baton import Baton, Workflow, step, testing
from baton.errors import (
    CycleError,
    InvalidOption,
    KeyConflict,
    NotStarted,
    ResultNotFound,
    RunNotFound,
    StepCancelled,
    UnknownStep,
    WorkflowTimeout,
)
from tests.kit.reused import Reused
from tests.kit.wait import eventually

TABLES = ("workflows", "workflow_nodes", "workflow_edges", "workflow_completions", "oban_jobs")


@step(name="tests.client.double")
async def double(n: int) -> int:
    return 2 * n


@step(name="tests.client.add")
def add(a: int, b: int) -> int:
    return a + b


def sums(name: str = "sums", *, key: str | None = None, n: int = 1, queue: str = "default") -> Workflow:
    workflow = Workflow(name, key=key)
    a = workflow.add("a", double.with_options(queue=queue).new(n))
    workflow.add("b", add.with_options(queue=queue).new(a.result, a.result))
    return workflow


async def counts(dsn: str) -> dict[str, int]:
    async with await AsyncConnection.connect(dsn) as conn:
        found = {}
        for table in TABLES:
            row = await (await conn.execute(f"SELECT count(*) FROM {table}".encode())).fetchone()
            assert row is not None
            found[table] = row[0]
        return found


async def value(dsn: str, sql: str, *params: Any) -> Any:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(sql.encode(), params or None)
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    """One that inserts and reads, and runs nothing."""
    async with Baton(baton_dsn, poll_interval=0.05) as client:
        yield client


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        yield worker


# --- insert ------------------------------------------------------------------------------------------


async def test_an_inserted_workflow_runs_and_gives_its_results(worker: Baton) -> None:
    run = await worker.insert(sums())
    assert run.inserted
    assert await run.wait(timeout=10) == "completed"
    assert await run.results() == {"a": 2, "b": 4}
    assert await run.results("b") == {"b": 4}


async def test_insert_writes_all_or_nothing(client: Baton, baton_dsn: str) -> None:
    # The last statement of the insert fails.
    await value(baton_dsn, "ALTER TABLE workflow_edges ADD CONSTRAINT broken CHECK (dependency_id IS NULL)")
    with pytest.raises(psycopg.errors.CheckViolation):
        await client.insert(sums())
    assert set((await counts(baton_dsn)).values()) == {0}


async def test_a_workflow_that_is_wrong_is_refused_before_anything_is_written(
    client: Baton, baton_dsn: str
) -> None:
    cyclic = Workflow("cycle")
    cyclic.add("a", double.new(1), deps=["b"])
    cyclic.add("b", double.new(1), deps=["a"])
    with pytest.raises(CycleError):
        await client.insert(cyclic)
    lacking = Workflow("lacking")
    lacking.add("a", double.new(1), deps=["nobody"])
    with pytest.raises(UnknownStep):
        await client.insert_many([sums(), lacking])
    with pytest.raises(InvalidOption, match="insert takes a Workflow, not str"):
        await client.insert("sums")  # type: ignore[arg-type]
    assert set((await counts(baton_dsn)).values()) == {0}


async def test_the_same_workflow_inserted_twice_is_two_runs(client: Baton, baton_dsn: str) -> None:
    workflow = sums()
    first, second = await client.insert(workflow), await client.insert(workflow)
    assert first.id != second.id
    assert (await counts(baton_dsn))["oban_jobs"] == 4


async def test_many_workflows_are_inserted_in_order_all_or_none(client: Baton, baton_dsn: str) -> None:
    runs = await client.insert_many([sums(f"w{n}", n=n) for n in range(20)])
    assert [(await run.summary()).name for run in runs] == [f"w{n}" for n in range(20)]
    assert await value(baton_dsn, "SELECT count(DISTINCT xmin::text) FROM workflows") == 1
    assert await client.insert_many([]) == []


async def test_an_empty_workflow_has_finished_when_it_is_inserted(client: Baton) -> None:
    run = await client.insert(Workflow("empty"))
    assert await run.wait(timeout=0.1) == "completed"
    assert (await run.status()).steps == ()
    assert await run.results() == {}


# --- in the caller's transaction ----------------------------------------------------------------------


class Caller:
    """A caller with a transaction of its own, in one of the ways to have one."""

    def __init__(self, conn: Any, execute: Callable[[str], Any], commit: Any, rollback: Any) -> None:
        self.conn = conn
        self.execute = execute
        self.commit = commit
        self.rollback = rollback


@asynccontextmanager
async def psycopg_connection(dsn: str) -> AsyncIterator[Caller]:
    async with await AsyncConnection.connect(dsn) as conn:
        yield Caller(conn, lambda sql: conn.execute(sql.encode()), conn.commit, conn.rollback)
        await conn.rollback()


@asynccontextmanager
async def psycopg_cursor(dsn: str) -> AsyncIterator[Caller]:
    async with await AsyncConnection.connect(dsn) as conn:
        yield Caller(conn.cursor(), lambda sql: conn.execute(sql.encode()), conn.commit, conn.rollback)
        await conn.rollback()


@asynccontextmanager
async def sqlalchemy_engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    async def connect() -> AsyncConnection:
        return await AsyncConnection.connect(dsn)

    engine = create_async_engine("postgresql+psycopg://", async_creator=connect)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def sqlalchemy_session(dsn: str) -> AsyncIterator[Caller]:
    async with sqlalchemy_engine(dsn) as engine, AsyncSession(engine) as session:
        yield Caller(session, lambda sql: _execute(session, sql), session.commit, session.rollback)


async def _execute(conn: Any, sql: str) -> None:
    await conn.execute(text(sql))


@asynccontextmanager
async def sqlalchemy_connection(dsn: str) -> AsyncIterator[Caller]:
    async with sqlalchemy_engine(dsn) as engine, engine.connect() as conn:
        yield Caller(conn, lambda sql: _execute(conn, sql), conn.commit, conn.rollback)


CALLERS = {
    "psycopg AsyncConnection": psycopg_connection,
    "psycopg AsyncCursor": psycopg_cursor,
    "SQLAlchemy AsyncSession": sqlalchemy_session,
    "SQLAlchemy AsyncConnection": sqlalchemy_connection,
}


@pytest.mark.parametrize("kind", CALLERS)
async def test_an_insert_in_the_callers_transaction_lives_and_dies_with_it(
    worker: Baton, baton_dsn: str, kind: str
) -> None:
    workflow = sums()
    async with CALLERS[kind](baton_dsn) as caller:
        await caller.execute("CREATE TABLE theirs (x int)")
        await caller.commit()

        await caller.execute("INSERT INTO theirs VALUES (1)")
        run = await worker.insert(workflow, conn=caller.conn)
        assert set((await counts(baton_dsn)).values()) == {0}, "nothing is seen before the commit"
        with pytest.raises(RunNotFound):
            await run.summary()
        await caller.rollback()
        assert set((await counts(baton_dsn)).values()) == {0}
        assert await value(baton_dsn, "SELECT count(*) FROM theirs") == 0

        await caller.execute("SAVEPOINT before")
        await worker.insert(workflow, conn=caller.conn)
        await caller.execute("ROLLBACK TO SAVEPOINT before")
        run = await worker.insert(workflow, conn=caller.conn)
        await caller.execute("INSERT INTO theirs VALUES (2)")
        await caller.commit()
        assert (await counts(baton_dsn))["workflows"] == 1
        assert await run.result("b", timeout=10) == 4
        assert await value(baton_dsn, "SELECT count(*) FROM theirs") == 1


async def test_an_insert_on_an_autocommit_connection_is_its_own_transaction(
    client: Baton, baton_dsn: str
) -> None:
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        await client.insert(sums(), conn=conn)
        assert (await counts(baton_dsn))["workflows"] == 1
        async with conn.transaction():
            await client.insert(sums(), conn=conn)
            assert (await counts(baton_dsn))["workflows"] == 1
        assert (await counts(baton_dsn))["workflows"] == 2


async def test_a_refused_insert_leaves_the_callers_transaction_usable(client: Baton, baton_dsn: str) -> None:
    live = await client.insert(sums(key="k"))
    async with await AsyncConnection.connect(baton_dsn) as conn:
        await conn.execute("CREATE TABLE theirs AS SELECT 1 AS x")
        with pytest.raises(KeyConflict) as refused:
            await client.insert(sums(key="k", n=2), conn=conn)
        assert refused.value.run_id == live.id
        assert live.id in str(refused.value)
        await client.insert(sums(key="other"), conn=conn)
        await conn.commit()
    assert await value(baton_dsn, "SELECT count(*) FROM theirs") == 1
    assert (await counts(baton_dsn))["workflows"] == 2


@pytest.mark.parametrize("what", ["a string", "a number", "a synchronous connection"])
async def test_what_is_no_connection_is_refused_and_left_alone(
    client: Baton, baton_dsn: str, what: str
) -> None:
    with psycopg.connect(baton_dsn) as synchronous:
        conn: Any = {"a string": "postgres://", "a number": 5, "a synchronous connection": synchronous}[what]
        with pytest.raises((InvalidOption, TypeError)):
            await client.insert(sums(), conn=conn)
        assert synchronous.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_a_caller_in_a_serializable_transaction_may_insert(client: Baton, baton_dsn: str) -> None:
    async with await AsyncConnection.connect(baton_dsn) as conn:
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        run = await client.insert(sums(key="k"), conn=conn)
        again = await client.insert(sums(key="k"), conn=conn)
        await conn.commit()
    assert (again.id, again.inserted) == (run.id, False)


# --- keys --------------------------------------------------------------------------------------------


async def test_twenty_inserts_of_one_key_at_once_are_one_run(client: Baton, baton_dsn: str) -> None:
    runs = await asyncio.gather(*(client.insert(sums(key="k")) for _ in range(20)))
    assert len({run.id for run in runs}) == 1
    assert [run.inserted for run in runs].count(True) == 1
    assert (await counts(baton_dsn))["oban_jobs"] == 2


async def test_the_key_of_an_open_transaction_is_waited_for(client: Baton, baton_dsn: str) -> None:
    async with await AsyncConnection.connect(baton_dsn) as conn:
        first = await client.insert(sums(key="k"), conn=conn)
        second = asyncio.create_task(client.insert(sums(key="k")))
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        await eventually(lambda: value(baton_dsn, blocked))
        await conn.rollback()
        run = await second
    assert run.inserted
    assert run.id != first.id


async def test_a_key_with_another_definition_is_a_conflict_that_names_the_run(client: Baton) -> None:
    live = await client.insert(sums(key="k"))
    with pytest.raises(KeyConflict, match="whose definition differs") as refused:
        await client.insert(sums(key="k", n=5))
    assert refused.value.run_id == live.id


async def test_a_key_is_free_again_when_its_run_has_finished(worker: Baton) -> None:
    first = await worker.insert(sums(key="k"))
    await first.wait(timeout=10)
    second = await worker.insert(sums(key="k", n=3))
    assert second.inserted
    assert second.id != first.id


async def test_two_of_one_key_inserted_together_become_one_run(client: Baton, baton_dsn: str) -> None:
    first, other, second = await client.insert_many([sums(key="k"), sums(key="l"), sums(key="k")])
    assert (first.id, first.inserted, second.inserted) == (second.id, True, False)
    assert other.inserted
    assert (await counts(baton_dsn))["oban_jobs"] == 4


async def test_a_conflict_among_many_undoes_them_all(client: Baton, baton_dsn: str) -> None:
    await client.insert(sums(key="k"))
    with pytest.raises(KeyConflict):
        await client.insert_many([sums(key="a"), sums(key="k", n=9), sums(key="z")])
    assert (await counts(baton_dsn))["workflows"] == 1


# --- reading -----------------------------------------------------------------------------------------


async def test_status_shows_the_run_and_each_step_at_one_moment(client: Baton) -> None:
    run = await client.insert(sums("shown", key="k"))
    status = await run.status()
    assert (status.run.name, status.run.key, status.state, status.run.steps, status.run.unsettled) == (
        "shown",
        "k",
        "executing",
        2,
        2,
    )
    a, b = status.steps
    assert (a.name, a.state, a.function, a.queue, a.attempt) == (
        "a",
        "available",
        "tests.client.double",
        "default",
        0,
    )
    assert (b.name, b.state, b.deps, b.waiting_on, b.has_result) == ("b", "held", ("a",), 1, False)
    assert (a.started_at, a.settled_at, a.seconds) == (None, None, None)
    assert abs((status.run.inserted_at - datetime.now(UTC)).total_seconds()) < 60
    assert status.step("a") == a
    with pytest.raises(KeyError):
        status.step("nobody")


async def test_a_finished_run_shows_times_and_attempts(worker: Baton) -> None:
    run = await worker.insert(sums())
    await run.wait(timeout=10)
    status = await run.status()
    assert (status.state, status.run.unsettled, status.run.failed) == ("completed", 0, 0)
    assert status.run.finished_at is not None
    for shown in status.steps:
        assert shown.started_at is not None
        assert shown.settled_at is not None
        assert status.run.inserted_at <= shown.started_at <= shown.settled_at <= status.run.finished_at
        assert shown.seconds is not None
        assert (shown.attempt, shown.has_result) == (1, True)


async def test_results_keep_their_type_after_oban_pruned_the_jobs(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(typed())
    await run.wait(timeout=10)
    assert await run.result("at") == datetime(2026, 1, 1, tzinfo=UTC)
    assert await worker.oban._query.prune_jobs(0, 100) == 1
    assert await run.result("at") == datetime(2026, 1, 1, tzinfo=UTC)
    status = (await run.status()).step("at")
    assert (status.state, status.function) == ("completed", "tests.client.moment")


@step(name="tests.client.moment")
async def moment() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def typed() -> Workflow:
    workflow = Workflow("typed")
    workflow.add("at", moment.new())
    return workflow


async def test_a_run_is_found_by_its_id_anywhere(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(sums())
    async with Baton(baton_dsn) as other:
        assert (await other.get_run(run.id).summary()).id == run.id
    with pytest.raises(RunNotFound, match="is no run's id"):
        client.get_run("nonsense")
    nowhere = client.get_run(uuid4())
    for ask in (
        *(nowhere.summary, nowhere.status, nowhere.graph, nowhere.wait, nowhere.results),
        *(lambda: nowhere.result("a"), lambda: nowhere.results("a")),
    ):
        with pytest.raises(RunNotFound):
            await ask()  # type: ignore[operator]


async def test_runs_are_listed_newest_first_by_pages_and_states(worker: Baton) -> None:
    runs = [await worker.insert(sums(f"w{n}", queue="elsewhere")) for n in range(5)]
    done = await worker.insert(sums("done"))
    await done.wait(timeout=10)
    assert [run.name for run in await worker.query.list_runs()] == ["done", "w4", "w3", "w2", "w1", "w0"]
    assert [run.name for run in await worker.query.list_runs(state="completed")] == ["done"]
    first = await worker.query.list_runs(state=baton.RunState.EXECUTING, limit=2)
    second = await worker.query.list_runs(state="executing", limit=2, before=first[-1].id)
    assert [run.name for run in (*first, *second)] == ["w4", "w3", "w2", "w1"]
    assert await worker.query.list_runs(before=runs[0].id) == []
    for wrong in ({"limit": 0}, {"limit": 1001}, {"state": "unheard of"}, {"before": "nonsense"}):
        with pytest.raises(baton.BatonError):
            await worker.query.list_runs(**wrong)  # type: ignore[arg-type]


async def test_the_graph_of_a_run_is_drawn_with_its_states(worker: Baton) -> None:
    run = await worker.insert(sums())
    await run.wait(timeout=10)
    graph = await run.graph()
    assert graph.deps == {"a": (), "b": ("a",)}
    assert graph.states == {"a": "completed", "b": "completed"}
    assert "-->" in graph.to_mermaid()
    assert "completed" in graph.to_mermaid()
    assert "->" in graph.to_dot()
    assert ">a: completed</title>" in graph.to_svg()
    assert [box.steps for box in graph.layout().boxes] == [
        (step.position,) for step in (await run.status()).steps
    ]
    assert "a" in graph.to_text()


# --- waiting -----------------------------------------------------------------------------------------


async def leases(dsn: str) -> int:
    return int(await value(dsn, "SELECT count(*) FROM workflow_subscribers"))


async def test_waiting_ends_at_its_timeout_and_leaves_no_lease(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(sums())
    with pytest.raises(WorkflowTimeout, match=r"has not finished after 0\.1 seconds"):
        await run.wait(timeout=0.1)
    with pytest.raises(WorkflowTimeout, match=r"step 'b' of run .* has not settled"):
        await run.result("b", timeout=0.1)
    with pytest.raises(ResultNotFound):
        await run.result("nobody", timeout=0.1)
    assert await leases(baton_dsn) == 0
    assert (await run.summary()).state == "executing"


async def settle(dsn: str, state: str = "completed") -> None:
    await value(
        dsn, "UPDATE oban_jobs SET state = %s::oban_job_state WHERE state = 'available' RETURNING 1", state
    )


async def test_who_waits_is_told_by_notification(baton_dsn: str) -> None:
    workflow = Workflow("plain")
    workflow.add("a", Plain.new())
    workflow.add("b", Plain.new(), deps=["a"])
    async with Baton(baton_dsn, poll_interval=60) as client:
        run = await client.insert(workflow)
        waiting = [
            asyncio.create_task(run.wait()),
            asyncio.create_task(run.result("a")),
            asyncio.create_task(run.result("b")),
        ]

        async def all_wait() -> bool:
            return await leases(baton_dsn) == 2

        await eventually(all_wait)
        async with asyncio.timeout(10):
            await settle(baton_dsn)
            assert await waiting[1] is None
            await settle(baton_dsn)
            assert await asyncio.gather(*waiting) == ["completed", None, None]

        async def none_left() -> bool:
            return await leases(baton_dsn) == 0

        await eventually(none_left, timeout=2)


async def test_who_waits_and_is_not_notified_finds_out_by_polling(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton._waiting.Waiters._on_notification", lambda *_: None)
    async with Baton(baton_dsn, poll_interval=0.05) as client:
        run = await client.insert(sums())
        waiting = asyncio.create_task(run.wait(timeout=10))
        await settle(baton_dsn)
        await settle(baton_dsn)
        assert await waiting == "completed"


async def test_who_stops_waiting_leaves_no_lease(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(sums())
    waiting = asyncio.create_task(run.wait())
    await eventually(lambda: leases(baton_dsn))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    async def none_left() -> bool:
        return await leases(baton_dsn) == 0

    await eventually(none_left)


async def test_a_step_cancelled_by_hand_ends_the_wait_for_it(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(sums())
    waiting = asyncio.create_task(run.result("b", timeout=10))
    await settle(baton_dsn, "cancelled")
    with pytest.raises(StepCancelled, match="its dependency 'a' was cancelled"):
        await waiting
    with pytest.raises(StepCancelled):
        await run.result("a")


# --- beside Oban -------------------------------------------------------------------------------------


@baton.worker(queue="default")
class Plain:
    ran: list[Any] = []  # noqa: RUF012

    async def process(self, job: Job) -> str:
        self.ran.append(job.args)
        return "ignored"


@asynccontextmanager
async def app(dsn: str, **queues: int) -> AsyncIterator[Oban]:
    """An app's own Oban, not started."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=5, open=False) as pool:
        yield Oban(pool=pool, name=str(uuid4()), queues=queues or {"default": 3})


async def test_ordinary_jobs_run_beside_steps_as_with_oban_alone(worker: Baton, baton_dsn: str) -> None:
    Plain.ran.clear()
    job = await worker.oban.enqueue(Plain.new({"n": 1}))
    run = await worker.insert(sums())
    await run.wait(timeout=10)
    await eventually(lambda: Plain.ran)
    done = "SELECT state::text FROM oban_jobs WHERE id = %s AND state = 'completed'"
    await eventually(lambda: value(baton_dsn, done, job.id))
    assert Plain.ran == [{"n": 1}]
    assert await value(baton_dsn, "SELECT count(*) FROM workflow_nodes WHERE job_id = %s", job.id) == 0


async def test_baton_attaches_to_an_oban_that_it_starts_and_stops(baton_dsn: str) -> None:
    async with app(baton_dsn) as oban:
        async with Baton(oban=oban) as attached:
            assert dict(attached.queues) == {"default": 3}
            assert await (await attached.insert(sums())).result("b", timeout=10) == 4
        assert await value(baton_dsn, "SELECT count(*) FROM oban_producers") == 0, "stopped"


async def test_baton_attaches_before_the_app_starts_its_oban(baton_dsn: str) -> None:
    async with app(baton_dsn) as oban:
        attached = Baton(oban=oban)
        async with oban, attached:
            assert await (await attached.insert(sums())).result("b", timeout=10) == 4
            await attached.stop()
            assert await value(baton_dsn, "SELECT count(*) FROM oban_producers") == 1, "the app's to stop"


async def test_a_baton_that_was_never_started_on_an_oban_that_runs_is_named_once(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with app(baton_dsn) as oban:
        attached = Baton(oban=oban)
        async with oban:
            assert attached._seam is not None
            for _ in range(20):
                await attached._seam.every_second()
            assert caplog.text.count("was never started: there are no heartbeats") == 1
            async with attached:
                pass
    caplog.clear()
    async with app(baton_dsn) as oban, oban, Baton(oban=oban) as attached:
        assert attached._seam is not None
        for _ in range(20):
            await attached._seam.every_second()
        assert "never started" not in caplog.text


async def test_baton_attaches_to_an_oban_that_runs_already(baton_dsn: str) -> None:
    async with app(baton_dsn) as oban, oban:
        await oban.enqueue(Plain.new())
        async with Baton(oban=oban) as attached:
            assert await (await attached.insert(sums())).result("b", timeout=10) == 4


async def test_a_queue_that_is_started_later_runs_steps_too(baton_dsn: str) -> None:
    async with app(baton_dsn) as oban, Baton(oban=oban) as attached:
        await oban.start_queue(queue="late", limit=2)
        assert await (await attached.insert(sums(queue="late"))).result("b", timeout=10) == 4


async def test_a_step_that_runs_when_baton_leaves_a_running_oban_keeps_its_result(baton_dsn: str) -> None:
    let_go = asyncio.Event()
    began = asyncio.Event()

    @step(name="tests.client.long")
    async def long() -> str:
        began.set()
        await let_go.wait()
        return "kept"

    workflow = Workflow("leaving")
    workflow.add("long", long.new())
    async with app(baton_dsn) as oban, oban:
        async with Baton(oban=oban) as attached:
            run = await attached.insert(workflow)
            await began.wait()
            leaving = asyncio.create_task(attached.stop())
            await asyncio.sleep(0)
            let_go.set()
            await leaving
        await eventually(lambda: value(baton_dsn, "SELECT 1 FROM oban_jobs WHERE state <> 'executing'"))
    async with Baton(baton_dsn, queues={"default": 1}) as reader:
        assert await reader.get_run(run.id).result("long", timeout=5) == "kept"


async def test_two_batons_in_one_process_keep_to_themselves(baton_dsn: str) -> None:
    async with (
        Baton(baton_dsn, queues={"one": 2}) as one,
        Baton(baton_dsn, queues={"two": 2}) as two,
        app(baton_dsn, plain=1) as oban,
        oban,
    ):
        runs = [await one.insert(sums(queue="two")), await two.insert(sums(queue="one"))]
        assert [await run.result("b", timeout=10) for run in runs] == [4, 4]
        Plain.ran.clear()
        await oban.enqueue(Plain.new({"x": 1}, queue="plain"))
        await eventually(lambda: Plain.ran)


async def test_more_plain_steps_run_at_once_after_their_queue_was_scaled_up(baton_dsn: str) -> None:
    at_once = threading.Barrier(8, timeout=5)

    @step(name="tests.client.meets", max_attempts=1)
    def meets() -> None:
        at_once.wait()

    workflow = Workflow("scaled")
    for n in range(8):
        workflow.add(f"n{n}", meets.new())
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        await worker.oban.scale_queue(queue="default", limit=8)
        assert await (await worker.insert(workflow)).wait(timeout=15) == "completed"


# --- starting and stopping ----------------------------------------------------------------------------


def test_a_baton_needs_a_database_and_says_how_to_give_it_one() -> None:
    with pytest.raises(
        InvalidOption, match=r"Baton\('postgresql://...'\).*Baton\(oban=...\).*Baton\.local\(\)"
    ):
        Baton()


@pytest.mark.parametrize(
    "options",
    [
        {"dsn": ""},
        {"dsn": 5},
        {"dsn": b"postgresql://"},
        {"oban": "postgresql://"},
        {"dsn": "postgresql://", "queues": ["default"]},
        {"dsn": "postgresql://", "queues": {"default": 0}},
        {"dsn": "postgresql://", "queues": {"default": True}},
        {"dsn": "postgresql://", "queues": {"a b": 1}},
        {"dsn": "postgresql://", "prefix": "Public; DROP"},
        {"dsn": "postgresql://", "prefix": 5},
        {"dsn": "postgresql://", "result_limit": 0},
        {"dsn": "postgresql://", "result_limit": "1"},
        {"dsn": "postgresql://", "poll_interval": 0},
        {"dsn": "postgresql://", "poll_interval": None},
        {"dsn": "postgresql://", "pool_size": 0},
        {"dsn": "postgresql://", "pool_size": 2.5},
        {"dsn": "postgresql://", "result_limit": 1e6},
        {"dsn": "postgresql://", "shutdown_grace_period": -1},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(baton.BatonError):
        Baton(**options)


async def test_before_the_start_and_after_the_end_everything_says_so(baton_dsn: str) -> None:
    baton_ = Baton(baton_dsn)
    for _ in range(2):
        for use in (lambda: baton_.oban, lambda: baton_.get_run(uuid4())):
            with pytest.raises(NotStarted, match="inside `async with baton:`"):
                use()
        for call in (lambda: baton_.insert(sums()), lambda: baton_.query.list_runs()):
            with pytest.raises(NotStarted):
                await call()  # type: ignore[operator]
        await baton_.stop()
        await baton_.start()
        assert await baton_.start() is baton_, "again does nothing"
        run = await baton_.insert(sums())
        await baton_.stop()
        await baton_.stop()
        with pytest.raises(NotStarted):
            await run.summary()


async def test_a_baton_may_start_again_and_work(baton_dsn: str) -> None:
    baton_ = Baton(baton_dsn, queues={"default": 2})
    for _ in range(2):
        async with baton_:
            assert await (await baton_.insert(sums())).result("b", timeout=10) == 4


async def test_two_starts_at_once_are_one_and_two_stops_end_together(baton_dsn: str) -> None:
    baton_ = Baton(baton_dsn, queues={"default": 2})
    tasks = len(asyncio.all_tasks())
    await asyncio.gather(baton_.start(), baton_.start())
    producers = await value(baton_dsn, "SELECT count(*) FROM oban_producers")
    first, second = asyncio.create_task(baton_.stop()), asyncio.create_task(baton_.stop())
    await second
    assert first.done(), "who stops it as the second waits for the end as well"
    assert producers == 1
    await eventually(lambda: len(asyncio.all_tasks()) == tasks)


def test_a_baton_may_serve_one_event_loop_after_the_other(baton_dsn: str) -> None:
    baton_ = Baton(baton_dsn, queues={"default": 2})

    async def use() -> int:
        await asyncio.gather(baton_.start(), baton_.start())
        result = await (await baton_.insert(sums())).result("b", timeout=10)
        await asyncio.gather(baton_.stop(), baton_.stop())
        return int(result)

    assert [asyncio.run(use()), asyncio.run(use())] == [4, 4]


async def test_a_start_while_it_stops_begins_anew(baton_dsn: str) -> None:
    baton_ = Baton(baton_dsn, queues={"default": 2})
    await baton_.start()
    stopping = asyncio.create_task(baton_.stop())
    await asyncio.sleep(0)
    await baton_.start()
    assert stopping.done()
    assert await (await baton_.insert(sums())).result("b", timeout=10) == 4
    await baton_.stop()


async def test_a_start_that_fails_leaves_nothing_behind_and_may_be_repeated(baton_dsn: str) -> None:
    await value(baton_dsn, "ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated")
    baton_ = Baton(baton_dsn, queues={"default": 2})
    tasks = len(asyncio.all_tasks())
    with pytest.raises(
        baton.errors.SchemaOutdated, match="missing the triggers baton_jobs_updated; run `baton migrate`"
    ):
        await baton_.start()
    await eventually(lambda: len(asyncio.all_tasks()) == tasks)
    await baton.migration.up(baton_dsn)
    async with baton_:
        assert await (await baton_.insert(sums())).result("b", timeout=10) == 4


async def test_stopping_gives_back_what_did_not_end_in_time_without_using_its_attempt(baton_dsn: str) -> None:
    began = asyncio.Event()

    @step(name="tests.client.endless", max_attempts=1)
    async def endless() -> int:
        if not began.is_set():
            began.set()
            await asyncio.sleep(600)
        return baton.current().attempt

    workflow = Workflow("endless")
    workflow.add("it", endless.new())
    async with Baton(baton_dsn, queues={"default": 1}, shutdown_grace_period=0.05) as first:
        run = await first.insert(workflow)
        await began.wait()
    assert await value(baton_dsn, "SELECT state::text || attempt FROM oban_jobs") == "available0"
    async with Baton(baton_dsn, queues={"default": 1}) as second:
        assert await second.get_run(run.id).result("it", timeout=10) == 1


async def test_a_workflow_runs_the_same_in_another_schema(baton_dsn: str) -> None:
    await baton.migration.up(baton_dsn, prefix="elsewhere")
    finished = await testing.run(sums(), dsn=baton_dsn, prefix="elsewhere")
    assert finished.results == {"a": 2, "b": 4}
    assert set((await counts(baton_dsn)).values()) == {0}
