"""What steps tell while they run: progress and streams, from the call in a step to whoever reads."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from oban.job import Job

import baton
from baton import Baton, Chunk, Run, Snooze, StepStatus, Workflow, _reports, step
from baton._reports import Heard, Told
from baton.errors import (
    InvalidOption,
    InvalidResult,
    NoWorkflow,
    ResultNotFound,
    RunNotFound,
    StreamTooLarge,
)
from tests.kit import fixtures
from tests.kit.engine import Steps
from tests.kit.gate import Gate
from tests.kit.hostile import LEGAL, VALUES
from tests.kit.processes import Witness, Worker, until
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

NOWHERE = "01890a5d-ac96-774b-bcce-b302099a8057"

# What the steps of a test do, by name.
scripts: dict[str, Callable[[], Any]] = {}


@pytest.fixture(autouse=True)
def _no_scripts() -> None:
    scripts.clear()


@step(name="tests.progress.act", max_attempts=3, backoff=lambda _: 0)
async def act(script: str) -> Any:
    return await scripts[script]()


@step(name="tests.progress.act_in_a_thread", max_attempts=3, backoff=lambda _: 0)
def act_in_a_thread(script: str) -> Any:
    return scripts[script]()


@baton.worker(queue="default")
class ActAsWorker:
    async def process(self, job: Job) -> None:
        await scripts[job.args["script"]]()


def one(script: Callable[[], Any], *, plain: bool = False) -> Workflow:
    """A workflow of one step, called `step`."""
    scripts["only"] = script
    workflow = Workflow("telling")
    workflow.add("step", (act_in_a_thread if plain else act).new("only"))
    return workflow


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.2) as worker:
        yield worker


async def ended(run: Run) -> StepStatus:
    outcome = await run.wait(timeout=60)
    status = (await run.status()).step("step")
    assert outcome == "completed", status.error
    return status


async def rows(db: psycopg.AsyncConnection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql.encode(), params or None)).fetchall()


async def streamed(db: psycopg.AsyncConnection) -> list[tuple[int, int, Any]]:
    return await rows(db, "SELECT attempt, position, chunk FROM workflow_streams ORDER BY 1, 2")


async def read(run: Run, *, attempt: int | None = None) -> list[tuple[int, int, Any]]:
    return [
        (chunk.attempt, chunk.position, chunk.value) async for chunk in run.stream("step", attempt=attempt)
    ]


# --- from where it works ---------------------------------------------------------------------------


async def in_place() -> None:
    baton.progress(1, 4, "a quarter")
    baton.stream.write("chunk")


async def in_a_task() -> None:
    await asyncio.create_task(in_place())


async def in_a_thread_that_it_asks_for() -> None:
    await asyncio.to_thread(lambda: asyncio.run(in_place()))


async def in_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(in_place())


@pytest.mark.parametrize(
    "script",
    [in_place, in_a_task, in_a_thread_that_it_asks_for, in_a_task_group],
    ids=lambda script: script.__name__,
)
async def test_an_async_step_tells(worker: Baton, script: Callable[[], Awaitable[None]]) -> None:
    run = await worker.insert(one(script))
    status = await ended(run)
    assert status.progress is not None
    assert (status.progress.done, status.progress.total, status.progress.message) == (1.0, 4.0, "a quarter")
    assert (status.chunks, await read(run)) == (1, [(1, 0, "chunk")])


async def test_a_plain_step_tells_from_its_thread(worker: Baton) -> None:
    def script() -> None:
        assert threading.current_thread() is not threading.main_thread()
        asyncio.run(in_place())

    run = await worker.insert(one(script, plain=True))
    status = await ended(run)
    assert status.progress is not None
    assert (status.progress.done, status.chunks) == (1.0, 1)


async def test_a_worker_class_tells(worker: Baton) -> None:
    scripts["only"] = in_place
    workflow = Workflow("telling")
    workflow.add("step", ActAsWorker.new({"script": "only"}))
    status = await ended(await worker.insert(workflow))
    assert status.progress is not None
    assert status.chunks == 1


def test_outside_of_a_step_there_is_nobody_to_tell() -> None:
    with pytest.raises(NoWorkflow, match=r"baton\.progress\(\) is for code that a step runs"):
        baton.progress(1)
    with pytest.raises(NoWorkflow, match=r"baton\.stream is for code that a step runs"):
        baton.stream.write("a")


async def test_an_ordinary_job_has_nobody_to_tell(worker: Baton) -> None:
    said: list[Exception] = []

    async def script() -> None:
        for tell in (lambda: baton.progress(1), lambda: baton.stream.write(1)):
            try:
                tell()
            except NoWorkflow as error:
                said.append(error)

    scripts["only"] = script
    await worker.oban.enqueue(ActAsWorker.new({"script": "only"}))
    await eventually(lambda: len(said) == 2)


async def test_a_thread_of_the_steps_own_is_not_the_step(worker: Baton) -> None:
    said: list[Exception] = []

    def tell() -> None:
        try:
            baton.progress(1)
        except NoWorkflow as error:
            said.append(error)

    def script() -> None:
        # A thread does not inherit the context before Python 3.14, and need not after.
        thread = threading.Thread(target=tell)
        thread.start()
        thread.join()

    status = await ended(await worker.insert(one(script, plain=True)))
    assert (status.progress is None) == bool(said)


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((float("nan"),), "done=nan; it must be a finite number"),
        ((float("inf"),), "done=inf"),
        ((10**400,), "done=a int; it must be a finite number"),
        ((-1,), "done=-1; it must be from 0 up"),
        ((True,), "done=a bool"),
        (("1",), "done='1'"),
        ((None,), "done=a NoneType"),
        ((1, 0), "total=0; it must be above 0"),
        ((1, -2), "total=-2"),
        ((1, float("nan")), "total=nan"),
        ((1, 2, 3), "a message of type int; it must be text"),
    ],
    ids=str,
)
async def test_progress_that_cannot_be_is_refused_at_the_call(
    worker: Baton, arguments: tuple[Any, ...], words: str
) -> None:
    async def script() -> str:
        baton.progress(1, 2, "good")
        with pytest.raises(InvalidOption) as caught:
            baton.progress(*arguments)
        return str(caught.value)

    run = await worker.insert(one(script))
    status = await ended(run)
    assert words in await run.result("step")
    assert status.progress is not None
    assert status.progress.message == "good"


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        ((0,), (0.0, None, None)),
        ((5, 3), (5.0, 3.0, None)),
        ((Fraction(1, 2), 1.0, ""), (0.5, 1.0, "")),
        ((1e308, 5e-324), (1e308, 5e-324, None)),
        ((1, None, "a\0b\ud800c"), (1.0, None, "a\u2400b\ufffdc")),
        ((1, None, "x" * 501), (1.0, None, "x" * 500)),
        ((1, None, "'; --\x1b[31m\u202e%s"), (1.0, None, "'; --\x1b[31m\u202e%s")),
    ],
    ids=["zero", "more than all", "a fraction", "extremes", "unstorable", "long", "hostile"],
)
async def test_progress_is_stored_as_it_was_told(
    worker: Baton, arguments: tuple[Any, ...], stored: tuple[Any, ...]
) -> None:
    async def script() -> None:
        baton.progress(*arguments)

    progress = (await ended(await worker.insert(one(script)))).progress
    assert progress is not None
    assert (progress.done, progress.total, progress.message) == stored


async def test_a_chunk_that_json_cannot_hold_is_refused_with_its_place(worker: Baton) -> None:
    said = {}

    async def script() -> None:
        for name, make in VALUES.items():
            with pytest.raises((InvalidResult, StreamTooLarge)) as caught:
                baton.stream.write({"rows": [make()]})
            said[name] = str(caught.value)
        baton.stream.write("good")

    run = await worker.insert(one(script))
    await ended(run)
    assert said.pop("20 MB of text").startswith("a chunk of 20,000,013 bytes as JSON is over the limit")
    assert [name for name, text in said.items() if not text.startswith('chunk["rows"][0]')] == []
    assert await read(run) == [(1, 0, "good")], "what was refused took no place"


async def test_unusual_chunks_come_out_as_they_went_in(worker: Baton) -> None:
    async def script() -> None:
        for make in LEGAL.values():
            baton.stream.write(make())

    run = await worker.insert(one(script))
    await ended(run)
    assert [value for _, _, value in await read(run)] == [make() for make in LEGAL.values()]


async def test_a_chunk_alone_may_have_a_megabyte(worker: Baton) -> None:
    async def script() -> None:
        baton.stream.write("x" * 999_998)
        with pytest.raises(StreamTooLarge, match=r"1,000,001 bytes as JSON is over the limit of 1,000,000"):
            baton.stream.write("x" * 999_999)
        with pytest.raises(StreamTooLarge):
            baton.stream.write("\u00e9" * 500_000)

    run = await worker.insert(one(script))
    await ended(run)
    assert [len(value) for _, _, value in await read(run)] == [999_998]


async def test_an_attempt_over_the_limit_is_refused_and_small_chunks_are_no_way_around(
    baton_dsn: str,
) -> None:
    async def script() -> str:
        baton.stream.write("x" * 398)
        for _ in range(8):
            baton.stream.write(1)
        with pytest.raises(StreamTooLarge) as caught:
            baton.stream.write("y")
        return str(caught.value)

    async with Baton(baton_dsn, queues={"default": 1}, stream_limit=1_000) as worker:
        run = await worker.insert(one(script))
        status = await ended(run)
        assert status.chunks == 9
        assert "step 'step' of 'telling' has streamed 984 bytes" in await run.result("step")
        assert "Baton(stream_limit=)" in await run.result("step")


@pytest.mark.parametrize("limit", [-1, "1", True, None])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidOption, match="stream_limit is"):
        Baton("postgresql://nowhere", stream_limit=limit)


# --- how it is sent --------------------------------------------------------------------------------


@pytest.fixture
def sent(worker: Baton, monkeypatch: pytest.MonkeyPatch) -> list[list[Told]]:
    """What each statement of the worker carried."""
    statements: list[list[Told]] = []
    send = worker._reports._send

    async def noted(told: Any) -> Heard:
        statements.append(list(told))
        return await send(told)

    monkeypatch.setattr(worker._reports, "_send", noted)
    return statements


async def test_steps_that_tell_nothing_cost_no_statement(worker: Baton, sent: list[list[Told]]) -> None:
    async def script() -> None:
        pass

    for _ in range(3):
        await ended(await worker.insert(one(script)))
    assert sent == []
    assert worker._reports._writer is None


async def test_many_calls_are_few_statements_and_the_last_one_arrives(
    worker: Baton, sent: list[list[Told]]
) -> None:
    took: list[float] = []

    async def script() -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        for n in range(20_000):
            baton.progress(n + 1, 20_000)
            if n % 100 == 0:
                await asyncio.sleep(0.001)
        took.append(clock() - began)

    status = await ended(await worker.insert(one(script)))
    assert status.progress is not None
    assert status.progress.done == 20_000
    # One at once, one each 100 ms, and the one before the outcome.
    assert len(sent) <= took[0] / 0.1 + 2


async def test_steps_share_a_statement(worker: Baton, sent: list[list[Told]]) -> None:
    together = asyncio.Barrier(4)

    async def script() -> None:
        baton.progress(1)
        await eventually(lambda: bool(sent))
        await together.wait()
        baton.progress(2)

    scripts["only"] = script
    workflow = Workflow("telling")
    for n in range(4):
        workflow.add(f"step{n}", act.new("only"))
    run = await worker.insert(workflow)
    assert await run.wait(timeout=60) == "completed"
    assert max(len(told) for told in sent) > 1
    assert {step.progress.done for step in (await run.status()).steps if step.progress} == {2.0}


async def test_what_was_told_is_committed_before_the_outcome(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    await db.execute(
        """
        CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.settled_at IS NOT NULL
             AND (SELECT count(*) FROM workflow_streams WHERE step_id = NEW.id AND xmin <> NEW.xmin) <> 2000 THEN
            RAISE 'its chunks are not there';
          END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER told AFTER UPDATE ON workflow_nodes FOR EACH ROW EXECUTE FUNCTION told()
        """
    )

    def script() -> None:
        for n in range(2000):
            baton.stream.write(n)

    assert (await ended(await worker.insert(one(script, plain=True)))).chunks == 2000


async def test_fifty_thousand_chunks_are_streamed_in_order(worker: Baton) -> None:
    def script() -> None:
        for n in range(50_000):
            baton.stream.write(n)

    run = await worker.insert(one(script, plain=True))
    assert await read(run) == [(1, n, n) for n in range(50_000)]
    assert (await ended(run)).chunks == 50_000


async def test_two_threads_of_a_step_leave_no_gap(worker: Baton) -> None:
    async def script() -> None:
        def write(name: str) -> None:
            for n in range(1000):
                baton.stream.write([name, n])

        await asyncio.gather(*(asyncio.to_thread(write, name) for name in "ab"))

    run = await worker.insert(one(script))
    await ended(run)
    found = await read(run)
    assert [position for _, position, _ in found] == list(range(2000))
    for name in "ab":
        assert [n for _, _, (who, n) in found if who == name] == list(range(1000))


# --- attempts --------------------------------------------------------------------------------------


async def test_a_retry_streams_anew_and_the_old_attempt_stays_readable(worker: Baton) -> None:
    async def script() -> None:
        attempt = baton.current().attempt
        baton.progress(attempt, 10)
        baton.stream.write(f"a{attempt}")
        baton.stream.write(f"b{attempt}")
        if attempt == 1:
            raise ValueError("once")

    run = await worker.insert(one(script))
    followed = await read(run)
    status = await ended(run)
    assert followed[-2:] == [(2, 0, "a2"), (2, 1, "b2")]
    assert followed in ([*((1, n, f"{c}1") for n, c in enumerate("ab")), *followed[-2:]], followed[-2:])
    assert status.progress is not None
    assert (status.progress.done, status.chunks) == (2.0, 2)
    assert await read(run) == [(2, 0, "a2"), (2, 1, "b2")]
    assert await read(run, attempt=1) == [(1, 0, "a1"), (1, 1, "b1")]
    assert await read(run, attempt=3) == []


async def test_progress_of_an_earlier_attempt_is_not_that_of_this_one(worker: Baton) -> None:
    seen: list[StepStatus] = []

    async def script() -> None:
        if baton.current().attempt == 1:
            baton.progress(7)
            raise ValueError("once")
        seen.append((await run.status()).step("step"))

    run = await worker.insert(one(script))
    await ended(run)
    assert [(status.attempt, status.progress, status.chunks) for status in seen] == [(2, None, 0)]


async def test_an_attempt_that_snoozed_goes_on_in_its_stream(worker: Baton) -> None:
    turns: list[int] = []

    async def script() -> Snooze | None:
        turns.append(baton.current().attempt)
        baton.progress(len(turns))
        baton.stream.write(f"a{len(turns)}")
        baton.stream.write(f"b{len(turns)}")
        return Snooze(0) if len(turns) < 3 else None

    run = await worker.insert(one(script))
    assert await read(run) == [(1, n, f"{'ab'[n % 2]}{n // 2 + 1}") for n in range(6)]
    status = await ended(run)
    assert (turns, status.chunks, status.snoozed) == ([1, 1, 1], 6, 2)


async def test_a_retry_of_the_run_forgets_what_its_steps_told_before(worker: Baton) -> None:
    fails = [True]

    async def script() -> None:
        if fails:
            baton.stream.write("old")
            baton.stream.write("older")
            baton.progress(1)
            raise baton.Cancel
        baton.stream.write("new")

    run = await worker.insert(one(script))
    assert await run.wait(timeout=60) == "failed"
    fails.clear()
    await run.retry()
    assert (await ended(run)).progress is None
    assert await read(run) == [(1, 0, "new")]


async def test_an_attempt_that_lost_its_job_tells_nothing_more_and_says_so_once(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, over = asyncio.Event(), asyncio.Event()

    async def script() -> None:
        baton.stream.write("in time")
        await go_on.wait()
        for n in range(100):
            baton.stream.write(n)
            baton.progress(n)
            await asyncio.sleep(0.005)
            if n == 50:
                await eventually(lambda: "lost its job" in caplog.text)
        over.set()

    with caplog.at_level(logging.WARNING, "baton.step"):
        run = await worker.insert(one(script))
        await eventually(lambda: streamed(db))
        # As a rescue: another attempt holds the job.
        await db.execute("UPDATE oban_jobs SET attempt = 2, attempted_at = attempted_at + interval '1 ms'")
        go_on.set()
        await over.wait()
    assert await streamed(db) == [(1, 0, "in time")]
    status = (await run.status()).step("step")
    assert (status.progress, status.chunks) == (None, 0)
    assert caplog.text.count("reported after its attempt had ended or lost its job") == 1


async def test_a_task_that_outlives_its_step_is_not_heard(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await go_on.wait()
        baton.stream.write("late")
        baton.progress(9)

    async def script() -> None:
        baton.stream.write("in time")
        tasks.append(asyncio.create_task(later()))

    run = await worker.insert(one(script))
    await ended(run)
    go_on.set()
    with caplog.at_level(logging.WARNING, "baton.step"):
        await tasks[0]
    assert await streamed(db) == [(1, 0, "in time")]
    assert caplog.text.count("step 'step' of 'telling' reported after its attempt had ended") == 1


async def test_what_a_step_told_that_is_given_back_stays(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    turns: list[int] = []

    async def script() -> None:
        turns.append(baton.current().attempt)
        baton.stream.write("a")
        if len(turns) == 1:
            await asyncio.Event().wait()

    async with Baton(baton_dsn, queues={"default": 1}, shutdown_grace_period=0) as worker:
        run = await worker.insert(one(script))
        await eventually(lambda: streamed(db))
    assert await rows(db, "SELECT state::text, attempt FROM oban_jobs") == [("available", 0)]
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        await ended(worker.get_run(run.id))
    assert turns == [1, 1]
    assert await streamed(db) == [(1, 0, "a"), (1, 1, "a")]


# --- when it cannot be sent ------------------------------------------------------------------------


async def test_what_is_told_while_the_database_is_away_is_kept_and_sent_later(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def script() -> None:
        baton.stream.write("before")
        await go_on.wait()
        for n in range(100):
            baton.progress(n + 1, 100)
            baton.stream.write(n)
            await asyncio.sleep(0.001)
        await eventually(lambda: "is kept, and tried again" in caplog.text, timeout=60)
        gate._open = True

    async with Gate.before(baton_dsn) as gate, Baton(gate.dsn, queues={"default": 1}) as worker:
        run = await worker.insert(one(script))
        async for chunk in run.stream("step"):
            assert chunk == Chunk(1, 0, "before")
            break
        gate.shut()
        go_on.set()
        async with Baton(baton_dsn) as reader:
            again = reader.get_run(run.id)
            assert [value for _, _, value in await read(again)] == ["before", *range(100)]
            status = await ended(again)
        assert status.progress is not None
        assert status.progress.done == 100


async def test_what_is_kept_while_the_database_is_away_has_a_limit(baton_dsn: str) -> None:
    go_on = asyncio.Event()

    async def script() -> int:
        await go_on.wait()
        count = 0
        try:
            while True:
                baton.stream.write("x" * 998)
                count += 1
        except StreamTooLarge:
            gate._open = True
            return count

    async with (
        Gate.before(baton_dsn) as gate,
        Baton(gate.dsn, queues={"default": 1}, stream_limit=1_000_000) as worker,
    ):
        run = await worker.insert(one(script))
        await eventually(lambda: worker._seam and worker._seam.dispatcher._tasks)
        gate.shut()
        go_on.set()
        async with Baton(baton_dsn) as reader:
            again = reader.get_run(run.id)
            assert await again.result("step", timeout=60) == 1_000_000 // 1_064
            assert len(await read(again)) == 1_000_000 // 1_064


async def test_an_outcome_waits_only_so_long_for_what_was_told(
    worker: Baton,
    db: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_reports, "_PATIENCE", 0.3)

    async def away(*_: object) -> Heard:
        raise psycopg.OperationalError("the server is away")

    monkeypatch.setattr(worker._reports, "_send", away)

    async def script() -> str:
        baton.stream.write("lost")
        baton.progress(1)
        return "done"

    run = await worker.insert(one(script))
    assert await run.result("step", timeout=60) == "done"
    assert (
        "the last 1 chunks that step 'step' of 'telling' streamed could not be written in time" in caplog.text
    )
    assert await streamed(db) == []
    assert worker._reports._unsent == {}


async def test_what_the_database_refuses_stalls_no_outcome_and_takes_no_other_report_along(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await db.execute("ALTER TABLE workflow_streams ADD CHECK (chunk <> '\"cursed\"')")
    together = asyncio.Barrier(2)

    async def good() -> None:
        await together.wait()
        baton.stream.write("good")

    async def bad() -> None:
        await together.wait()
        baton.stream.write("cursed")
        await eventually(lambda: "the database refused what step 'bad' of 'telling' reported" in caplog.text)
        baton.stream.write("blessed")

    scripts.update(good=good, bad=bad)
    workflow = Workflow("telling")
    for name in scripts:
        workflow.add(name, act.new(name))
    run = await worker.insert(workflow)
    assert await run.wait(timeout=_reports._PATIENCE) == "completed"
    assert [chunk.value async for chunk in run.stream("good")] == ["good"]
    assert [chunk async for chunk in run.stream("bad")] == [Chunk(1, 0, "blessed")]


async def test_a_bug_of_the_writers_stalls_no_outcome(
    worker: Baton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> Heard:
        raise RuntimeError("a bug")

    monkeypatch.setattr(worker._reports, "_send", broken)

    async def script() -> None:
        baton.stream.write("lost")

    await ended(await worker.insert(one(script)))
    assert "what steps reported is lost" in caplog.text


async def test_a_locked_job_is_passed_over_and_its_report_follows(
    worker: Baton, db: psycopg.AsyncConnection, sent: list[list[Told]]
) -> None:
    async def script() -> None:
        async with db.transaction():
            await db.execute("SELECT 1 FROM oban_jobs FOR UPDATE")
            baton.stream.write("a")
            await eventually(lambda: len(sent) > 1)
        baton.stream.write("b")

    run = await worker.insert(one(script))
    await ended(run)
    assert await read(run) == [(1, 0, "a"), (1, 1, "b")]


async def test_a_stop_that_does_not_wait_writes_the_outcome_and_gives_up_the_rest(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = asyncio.Event()

    async def never(*_: object) -> Heard:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def script() -> str:
        baton.stream.write("lost")
        return "done"

    async with Baton(baton_dsn, queues={"default": 1}, shutdown_grace_period=0) as worker:
        monkeypatch.setattr(worker._reports, "_send", never)
        run = await worker.insert(one(script))
        await waiting.wait()
    assert "the last 1 chunks" in caplog.text
    async with Baton(baton_dsn) as reader:
        assert await reader.get_run(run.id).result("step", timeout=10) == "done"


async def test_a_process_that_is_killed_loses_what_it_had_not_sent_and_the_next_attempt_begins_anew(
    database: Any, baton_dsn: str, tmp_path: Any
) -> None:
    witness = Witness(baton_dsn)
    seen = "SELECT count(*), min(position), max(position) FROM workflow_streams WHERE attempt = %s"

    async def read_all(attempt: int) -> list[int]:
        async with Baton(baton_dsn) as reader:
            page = await reader.query.read_stream(run.id, "step", attempt=attempt, limit=1_000)
            return [chunk.value for chunk in page.chunks]

    async with Baton(baton_dsn) as inserter:
        workflow = Workflow("telling")
        from tests.kit import crew

        workflow.add("step", crew.streams.new(gate=str(tmp_path / "gate")))
        run = await inserter.insert(workflow)
    with Worker(baton_dsn, tmp_path) as first:
        until(lambda: witness.rows(seen, 1)[0][0] > 20, first)
        first.kill()
    ((count, least, most),) = witness.rows(seen, 1)
    assert (least, most) == (0, count - 1), "what was sent has no gap"
    (tmp_path / "gate").touch()
    with Worker(baton_dsn, tmp_path) as second:
        until(lambda: witness.rows("SELECT 1 FROM workflows WHERE outcome = 'completed'"), second)
    assert witness.rows(seen, 1) == [(count, least, most)]
    assert await read_all(2) == [0, 1]
    assert (await read_all(1))[:3] == [0, 1, 2]


# --- whoever reads ---------------------------------------------------------------------------------


async def test_a_reader_has_each_chunk_while_the_step_still_runs(worker: Baton) -> None:
    turn: asyncio.Queue[int] = asyncio.Queue()

    async def script() -> None:
        while (n := await turn.get()) >= 0:
            baton.stream.write(n)

    run = await worker.insert(one(script))
    found = []
    turn.put_nowait(0)
    async for chunk in run.stream("step"):
        found.append((chunk.attempt, chunk.position, chunk.value))
        turn.put_nowait(len(found) if len(found) < 5 else -1)
    assert found == [(1, n, n) for n in range(5)]
    assert await ended(run)


async def test_whoever_comes_late_and_whoever_leaves_early_have_what_they_want(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    done = asyncio.Event()

    async def script() -> None:
        for n in range(10):
            baton.stream.write(n)
        await done.wait()
        baton.stream.write("end")

    run = await worker.insert(one(script))
    first = asyncio.create_task(read(run))
    async with aclosing(run.stream("step")) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            if chunk.position == 4:
                break
    await eventually(lambda: rows(db, "SELECT 1 FROM workflow_subscribers"))
    done.set()
    await ended(run)
    wanted = [*((1, n, n) for n in range(10)), (1, 10, "end")]
    assert await first == wanted
    assert await read(run) == wanted
    await eventually(lambda: none_left(db))


async def none_left(db: psycopg.AsyncConnection) -> bool:
    return not await rows(db, "SELECT 1 FROM workflow_subscribers")


async def test_a_reader_hears_of_a_chunk_without_waiting_for_the_poll(baton_dsn: str) -> None:
    turn: asyncio.Queue[int] = asyncio.Queue()

    async def script() -> None:
        while (n := await turn.get()) >= 0:
            baton.stream.write(n)

    async with (
        Baton(baton_dsn, queues={"default": 1}, poll_interval=3600) as worker,
        Baton(baton_dsn, poll_interval=3600) as reader,
    ):
        run = await worker.insert(one(script))
        turn.put_nowait(0)
        async with asyncio.timeout(30):
            async for chunk in reader.get_run(run.id).stream("step"):
                turn.put_nowait(chunk.value + 1 if chunk.value < 3 else -1)
        assert chunk.value == 3


async def test_a_stream_that_is_read_while_the_database_is_away_goes_on_afterwards(baton_dsn: str) -> None:
    done = asyncio.Event()

    async def script() -> None:
        baton.stream.write("a")
        await done.wait()
        baton.stream.write("b")

    async with (
        Baton(baton_dsn, queues={"default": 1}) as worker,
        Gate.before(baton_dsn) as gate,
        Baton(gate.dsn, poll_interval=0.05) as reader,
    ):
        run = await worker.insert(one(script))
        found = []
        async for chunk in reader.get_run(run.id).stream("step"):
            found.append(chunk.value)
            if chunk.value == "a":
                gate.shut()
                asyncio.get_running_loop().call_later(0.2, setattr, gate, "_open", True)
                done.set()
        assert found == ["a", "b"]


async def test_a_step_that_streams_nothing_gives_nothing_and_ends(worker: Baton) -> None:
    async def script() -> None:
        pass

    assert await read(await worker.insert(one(script))) == []


async def test_an_attempt_that_was_asked_for_ends_with_the_next(worker: Baton) -> None:
    done = asyncio.Event()

    async def script() -> None:
        baton.stream.write("x")
        if baton.current().attempt == 1:
            raise ValueError("once")
        await done.wait()

    run = await worker.insert(one(script))
    assert await read(run, attempt=1) == [(1, 0, "x")]
    done.set()
    await ended(run)


async def test_what_is_not_there_cannot_be_read(worker: Baton) -> None:
    run = await worker.insert(one(in_place))
    with pytest.raises(ResultNotFound, match=r"has no step 'other'"):
        await anext(run.stream("other"))
    with pytest.raises(RunNotFound, match=NOWHERE):
        await anext(worker.get_run(NOWHERE).stream("step"))
    for attempt in (0, -1, 2**31, True, 1.0, "1"):
        with pytest.raises(InvalidOption, match="attempts are counted from 1"):
            run.stream("step", attempt=attempt)  # type: ignore[arg-type]


async def test_pages_of_a_stream_are_bounded(worker: Baton) -> None:
    async def script() -> None:
        for n in range(8):
            baton.stream.write(f"{n}" * 100_000)

    run = await worker.insert(one(script))
    await ended(run)
    found, after = [], -1
    while True:
        page = await worker.query.read_stream(run.id, 1, after=after)
        assert page.attempt == 1
        if not page.chunks:
            break
        assert len(page.chunks) <= 3
        found += [chunk.value[0] for chunk in page.chunks]
        after = page.chunks[-1].position
    assert page.ended
    assert found == list("01234567")
    assert [chunk.position for chunk in (await worker.query.read_stream(run.id, "step", limit=2)).chunks] == [
        0,
        1,
    ]
    with pytest.raises(ResultNotFound):
        await worker.query.read_stream(run.id, "other")
    for options in ({"limit": 0}, {"limit": 1_001}, {"after": -2}, {"attempt": 0}):
        with pytest.raises(InvalidOption):
            await worker.query.read_stream(run.id, "step", **options)  # type: ignore[arg-type]


# --- the statement ---------------------------------------------------------------------------------


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


def told(outcome: Any, *chunks: str, first: int = 0, done: float | None = None) -> Told:
    return Told(outcome.job_id, outcome.attempted_at, done, None, None, first, chunks)


async def test_a_report_sent_again_writes_nothing_twice(steps: Steps) -> None:
    await steps.insert({"a": []})
    (a,) = await steps.start("a")
    for chunks in (["1", "2"], ["1", "2"], ["1", "2", "3"]):
        heard = await steps.engine.report([told(a, *chunks, done=1.0)])
        assert (heard.written, heard.late) == ([a.job_id], [])
    await steps.engine.report([told(a, "4", first=3)])
    assert await steps.rows("SELECT position, chunk FROM workflow_streams ORDER BY 1") == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]
    assert await steps.rows("SELECT done, chunks FROM workflow_progress") == [(None, 4)]


async def test_only_the_attempt_that_holds_its_job_is_written(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "c": [], "d": []})
    a, b, c, d = await steps.start("a", "b", "c", "d")
    await steps.run(
        "UPDATE oban_jobs SET attempted_at = attempted_at + interval '1 us' WHERE id = %s", b.job_id
    )
    await steps.engine.ack([c])
    async with steps.db.transaction():
        await steps.db.execute("SELECT 1 FROM oban_jobs WHERE id = %s FOR UPDATE", (d.job_id,))
        heard = await steps.engine.report([told(one, "1") for one in (d, c, b, a)])
    assert (heard.written, sorted(heard.late)) == ([a.job_id], sorted([b.job_id, c.job_id]))
    assert await steps.rows(
        "SELECT name FROM workflow_nodes AS s JOIN workflow_streams AS w ON w.step_id = s.id"
    ) == [("a",)]
