"""What Baton tells of steps and runs by Oban's telemetry, when, how often, and what the default logger makes of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from oban import telemetry as oban_telemetry
from psycopg import AsyncConnection

import baton
from baton import Baton, Cancel, Snooze, Workflow, _signals, step, telemetry
from baton.errors import InvalidOption, StepFailed
from tests.kit.crew import one_step, raises
from tests.kit.processes import Witness, Worker, until
from tests.kit.reused import Reused
from tests.kit.wait import eventually

SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        yield conn


class Heard(list[tuple[str, dict[str, Any]]]):
    """Events in the order they were told."""

    def of(self, *names: str) -> list[dict[str, Any]]:
        return [meta for name, meta in self if name in names]

    def states(self, step_name: str) -> list[str]:
        return [meta["state"] for _, meta in self if meta.get("step_name") == step_name]

    def listen(self, *events: str) -> None:
        oban_telemetry.attach("test-telemetry", list(events), lambda name, meta: self.append((name, meta)))


@pytest.fixture
def told() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    oban_telemetry.detach("test-telemetry")


@pytest.fixture
def heard(told: Heard) -> Heard:
    told.listen(*telemetry.STEP_EVENTS, telemetry.WORKFLOW_FINISHED)
    return told


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    telemetry.detach_default_logger()


@step(name="tests.telemetry.gives")
async def gives(value: str = "") -> str:
    return f"{value}{SECRET}"


@step(name="tests.telemetry.fails", max_attempts=1)
async def fails(message: str = "no hope") -> None:
    raise ValueError(message)


@step(name="tests.telemetry.recovers", max_attempts=3, backoff=lambda _attempt: 0)
async def recovers() -> str | Snooze:
    if baton.current().attempt == 1:
        raise ValueError("not yet")
    if "snoozed" not in baton.current().job.meta:
        return Snooze(0)
    return "at last"


@step(name="tests.telemetry.declines")
async def declines() -> Cancel:
    return Cancel("not needed")


def flow(name: str = "flow", **steps: Any) -> Workflow:
    workflow = Workflow(name)
    for step_name, job in steps.items():
        workflow.add(step_name, job)
    return workflow


# --- steps ----------------------------------------------------------------------------------------


async def test_each_thing_that_becomes_of_an_attempt_is_told_once(baton_dsn: str, heard: Heard) -> None:
    workflow = flow(good=gives.new(), bad=fails.new(), late=recovers.new(), no=declines.new())
    workflow.add("doomed", gives.new(), deps=["bad"])
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        run = await worker.insert(workflow)
        assert await run.wait(timeout=20) == "failed"
    assert heard.states("good") == ["executing", "completed"]
    assert heard.states("bad") == ["executing", "discarded"]
    assert heard.states("no") == ["executing", "cancelled"]
    assert heard.states("late") == [
        *("executing", "retryable"),
        *("executing", "snoozed"),
        *("executing", "completed"),
    ]
    assert heard.states("doomed") == [], "no process ran it"


async def test_an_event_says_what_where_and_how_long(baton_dsn: str, heard: Heard) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        run = await worker.insert(flow("measured", only=gives.new()))
        await run.wait(timeout=10)
        job_id = (await run.status()).step("only").job_id
    (began,) = heard.of(telemetry.STEP_EXECUTING)
    (ended,) = heard.of(telemetry.STEP_COMPLETED)
    common = {
        "count": 1,
        "workflow_id": run.id,
        "workflow_label": "measured",
        "step_name": "only",
        "worker": "tests.telemetry.gives",
        "queue": "default",
        "job_id": job_id,
        "attempt": 1,
        "max_attempts": 20,
        "error": None,
    }
    assert before < began.pop("timestamp") <= ended.pop("timestamp")
    assert began.pop("queue_time") == ended.pop("queue_time") > 0
    assert ended.pop("duration") > 0
    assert began == {**common, "state": "executing", "has_result": False}
    assert ended == {**common, "state": "completed", "has_result": True}


async def test_the_time_in_the_queue_begins_when_the_last_dependency_has_settled(
    baton_dsn: str, db: AsyncConnection, heard: Heard
) -> None:
    workflow = flow(slow=gives.new())
    workflow.add("next", gives.new(), deps=["slow"])
    async with Baton(baton_dsn) as client:
        run = await client.insert(workflow)
        await db.execute("UPDATE oban_jobs SET scheduled_at = scheduled_at - interval '1 hour'")
        async with Baton(baton_dsn, queues={"default": 1}):
            assert await run.wait(timeout=10) == "completed"
    hour = 3_600 * 1_000_000_000
    waited = {meta["step_name"]: meta["queue_time"] for meta in heard.of(telemetry.STEP_COMPLETED)}
    assert waited["slow"] > hour > waited["next"] >= 0


async def test_an_error_is_told_in_one_line_cut_to_a_length(baton_dsn: str, heard: Heard) -> None:
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        run = await worker.insert(flow(short=fails.new(), long=fails.new("x" * 10_000)))
        await run.wait(timeout=10)
    errors = {meta["step_name"]: meta["error"] for meta in heard.of(telemetry.STEP_DISCARDED)}
    assert errors["short"] == "ValueError: no hope"
    assert errors["long"].startswith("ValueError: xxx")
    assert len(errors["long"]) <= 300


async def test_an_event_is_told_after_the_commit_that_made_it_true(baton_dsn: str, told: Heard) -> None:
    seen: list[tuple[str, Any]] = []

    def look(name: str, meta: dict[str, Any]) -> None:
        with psycopg.connect(baton_dsn) as other:
            table = "workflows" if name == telemetry.WORKFLOW_FINISHED else "workflow_nodes"
            column = "outcome" if table == "workflows" else "state"
            key = "id" if table == "workflows" else "workflow_id"
            row = other.execute(
                f"SELECT {column}, (SELECT state::text FROM oban_jobs) FROM {table} WHERE {key} = %s".encode(),
                (meta["workflow_id"],),
            ).fetchone()
            seen.append((name, row))

    oban_telemetry.attach("test-telemetry", list(telemetry.EVENTS[:7]), look)
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        await (await worker.insert(flow(only=gives.new()))).wait(timeout=10)
    assert seen == [
        (telemetry.STEP_EXECUTING, ("released", "executing")),
        (telemetry.STEP_COMPLETED, ("completed", "completed")),
        (telemetry.WORKFLOW_FINISHED, ("completed", "completed")),
    ]


async def test_an_attempt_that_lost_its_job_tells_nothing(
    baton_dsn: str, db: AsyncConnection, heard: Heard
) -> None:
    door = asyncio.Event()

    @step(name="tests.telemetry.waits")
    async def waits() -> None:
        await door.wait()

    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(flow(only=waits.new()))
        await eventually(lambda: heard.states("only") == ["executing"])
        # As after a rescue by others: another attempt holds the job.
        await db.execute("UPDATE oban_jobs SET attempted_at = attempted_at + interval '1 second'")
        producer = worker.oban._producers["default"]
        door.set()
        await eventually(lambda: not producer._running_jobs and not producer._pending_acks)
        assert heard.states("only") == ["executing"]
        assert (await run.status()).state == "executing"


async def test_a_step_that_was_cancelled_while_it_ran_is_cancelled_whatever_it_returns(
    baton_dsn: str, heard: Heard
) -> None:
    @step(name="tests.telemetry.insists")
    def insists() -> str:
        context = baton.current()
        while not context.cancelled:
            pass
        return "done all the same"

    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(flow(only=insists.new()))
        await eventually(lambda: heard.states("only") == ["executing"])
        await run.cancel(reason="enough of it")
        assert await run.wait(timeout=10) == "cancelled"
    (ended,) = heard.of(telemetry.STEP_CANCELLED)
    assert (ended["error"], ended["has_result"]) == ("enough of it", False)
    assert heard.states("only") == ["executing", "cancelled"]


async def test_what_nobody_hears_is_not_made(baton_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_signals, "_described")
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(flow(only=gives.new()))
        assert await run.wait(timeout=10) == "completed"


async def test_a_handler_that_raises_changes_nothing(
    baton_dsn: str, told: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_name: str, _meta: dict[str, Any]) -> None:
        raise RuntimeError("a handler of mine")

    oban_telemetry.attach("test-telemetry", list(telemetry.EVENTS), raises)
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(flow(only=gives.new()))
        assert await run.wait(timeout=10) == "completed"
    assert "a handler of mine" in caplog.text


# --- runs -----------------------------------------------------------------------------------------


@step(name="tests.telemetry.elsewhere", queue="elsewhere")
async def elsewhere() -> None: ...


async def cancel_of_the_run(client: Baton, run: Any) -> None:
    await run.cancel()


async def cancel_of_its_steps(client: Baton, run: Any) -> None:
    await run.cancel("only")


async def obans_cancel(client: Baton, run: Any) -> None:
    await client.oban.cancel_job((await run.status()).step("only").job_id)


@pytest.mark.parametrize(
    ("verb", "outcome"),
    [(cancel_of_the_run, "cancelled"), (cancel_of_its_steps, "failed"), (obans_cancel, "failed")],
    ids=["cancel", "cancel of steps", "Oban's cancel"],
)
async def test_the_end_of_a_run_is_told_by_whoever_ended_it(
    baton_dsn: str, heard: Heard, verb: Any, outcome: str
) -> None:
    async with Baton(baton_dsn) as client, Baton(baton_dsn, queues={"default": 1}):
        run = await client.insert(flow("ended", only=elsewhere.new()))
        await verb(client, run)
        (finished,) = heard.of(telemetry.WORKFLOW_FINISHED)
        assert finished.pop("timestamp") == (await run.status()).run.finished_at
        assert finished == {
            "workflow_id": run.id,
            "workflow_label": "ended",
            "generation": 1,
            "outcome": outcome,
            "failed_steps": ["only"],
            "failed_count": 1,
            "total_count": 1,
        }


async def test_a_run_that_its_last_ack_ends_is_told_once_after_its_steps(
    baton_dsn: str, heard: Heard
) -> None:
    workflow = flow(a=gives.new(), b=fails.new())
    workflow.add("c", gives.new(), deps=["a"])
    async with Baton(baton_dsn, queues={"default": 2}) as worker, Baton(baton_dsn, queues={"default": 2}):
        run = await worker.insert(workflow)
        assert await run.wait(timeout=10) == "failed"
    names = [name for name, meta in heard if meta["workflow_id"] == run.id]
    assert names.count(telemetry.WORKFLOW_FINISHED) == 1
    assert names[-1] == telemetry.WORKFLOW_FINISHED
    (finished,) = heard.of(telemetry.WORKFLOW_FINISHED)
    assert (finished["outcome"], finished["failed_steps"]) == ("failed", ["b"])
    assert (finished["failed_count"], finished["total_count"]) == (1, 3)


async def test_an_empty_run_is_finished_when_it_is_inserted(baton_dsn: str, heard: Heard) -> None:
    async with Baton(baton_dsn) as client:
        runs = await client.insert_many([flow("empty"), flow("full", only=elsewhere.new()), flow("bare")])
    assert [meta["workflow_label"] for meta in heard.of(telemetry.WORKFLOW_FINISHED)] == ["empty", "bare"]
    assert [meta["workflow_id"] for meta in heard.of(telemetry.WORKFLOW_FINISHED)] == [runs[0].id, runs[2].id]


async def test_a_run_in_a_callers_transaction_is_not_told_of(baton_dsn: str, heard: Heard) -> None:
    async with Baton(baton_dsn) as client, await AsyncConnection.connect(baton_dsn) as conn:
        await client.insert(flow("empty"), conn=conn)
        await conn.rollback()
    assert heard == []


async def test_a_deadline_that_passes_is_told_of(baton_dsn: str, heard: Heard) -> None:
    workflow = Workflow("late", deadline=timedelta(milliseconds=1))
    workflow.add("only", elsewhere.new())
    async with Baton(baton_dsn) as client:
        run = await client.insert(workflow)
        await eventually(lambda: heard.of(telemetry.WORKFLOW_FINISHED), timeout=20)
    (finished,) = heard.of(telemetry.WORKFLOW_FINISHED)
    assert (finished["workflow_id"], finished["outcome"]) == (run.id, "failed")


async def test_a_rerun_of_nothing_is_told_of(baton_dsn: str, heard: Heard) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(flow())
        again = await run.rerun()
        assert await again.wait(timeout=10) == "completed"
    assert [meta["workflow_id"] for meta in heard.of(telemetry.WORKFLOW_FINISHED)] == [run.id, again.id]


async def test_a_long_list_of_failed_steps_is_cut_and_counted(baton_dsn: str, heard: Heard) -> None:
    workflow = Workflow("wide")
    for n in range(150):
        workflow.add(f"s{n}", elsewhere.new())
    async with Baton(baton_dsn) as client:
        await (await client.insert(workflow)).cancel()
    (finished,) = heard.of(telemetry.WORKFLOW_FINISHED)
    assert finished["failed_steps"] == [f"s{n}" for n in range(100)]
    assert (finished["failed_count"], finished["total_count"]) == (150, 150)


# --- failed runs, from the sweep ------------------------------------------------------------------


async def cancel_by_hand(db: AsyncConnection) -> None:
    await db.execute("UPDATE oban_jobs SET state = 'cancelled' WHERE state NOT IN ('cancelled', 'completed')")


async def sweep(client: Baton, *, leader: bool = True) -> None:
    seam: Any = client._seam
    seam.maintenance._is_leader = lambda: leader
    await seam.maintenance.sweep()


async def test_a_run_that_somebody_elses_statement_failed_is_told_by_the_sweep_alone(
    baton_dsn: str, db: AsyncConnection, heard: Heard
) -> None:
    heard.listen(telemetry.WORKFLOW_FAILED)
    async with Baton(baton_dsn, interval=3600) as client:
        await sweep(client)
        run = await client.insert(flow("by hand", only=elsewhere.new()))
        await client.insert(flow("completes"))
        await cancel_by_hand(db)
        await sweep(client, leader=False)
        assert heard.of(telemetry.WORKFLOW_FAILED) == []
        await sweep(client)
        await sweep(client)
    (failed,) = heard.of(telemetry.WORKFLOW_FAILED)
    assert failed.pop("timestamp").tzinfo is UTC
    assert failed == {
        "workflow_id": run.id,
        "workflow_label": "by hand",
        "generation": 1,
        "failed_steps": ["only"],
        "failed_count": 1,
        "total_count": 1,
    }
    assert run.id not in [meta["workflow_id"] for meta in heard.of(telemetry.WORKFLOW_FINISHED)]


async def test_whoever_leads_next_tells_what_was_not_told(
    baton_dsn: str, db: AsyncConnection, told: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.listen(telemetry.WORKFLOW_FAILED)
    async with Baton(baton_dsn, interval=3600) as first:
        await sweep(first)
        await first.insert_many([flow(f"run {n}", only=elsewhere.new()) for n in range(3)])
        await cancel_by_hand(db)
        engine: Any = first._engine
        monkeypatch.setattr(engine, "delete_delivery", dies)
        with pytest.raises(ConnectionError):
            await sweep(first)
        assert len(told) == 1, "told, and not noted"
    async with Baton(baton_dsn, interval=3600) as second:
        await sweep(second)
        assert len(told) == 1, "its lease is not over"
        await db.execute("UPDATE workflow_deliveries SET due_at = now()")
        await sweep(second)
        labels = sorted(meta["workflow_label"] for meta in told.of(telemetry.WORKFLOW_FAILED)[1:])
        assert labels == ["run 0", "run 1", "run 2"]
        await sweep(second)
        assert len(told) == 4
    assert await rows(db, "SELECT count(*) FROM workflow_deliveries") == [(0,)]


async def dies(*_: Any) -> None:
    raise ConnectionError("the server is gone")


async def test_nothing_is_kept_where_nobody_ever_listened(baton_dsn: str, db: AsyncConnection) -> None:
    async with Baton(baton_dsn, interval=3600) as client:
        await sweep(client)
        await client.insert(flow(only=elsewhere.new()))
        await cancel_by_hand(db)
    assert await rows(db, "SELECT count(*) FROM workflow_consumers") == [(0,)]
    assert await rows(db, "SELECT count(*) FROM workflow_deliveries") == [(0,)]


async def test_each_retry_that_fails_again_is_a_failure_of_its_own(
    baton_dsn: str, db: AsyncConnection, told: Heard
) -> None:
    told.listen(telemetry.WORKFLOW_FAILED)
    async with Baton(baton_dsn, interval=3600) as client:
        await sweep(client)
        run = await client.insert(flow(only=elsewhere.new()))
        await cancel_by_hand(db)
        await run.retry()
        await cancel_by_hand(db)
        await sweep(client)
    assert sorted(meta["generation"] for meta in told.of(telemetry.WORKFLOW_FAILED)) == [1, 2]


def test_the_consumer_of_failed_runs_is_nobody_elses(baton_dsn: str) -> None:
    with pytest.raises(InvalidOption, match="use another name"):
        Baton(baton_dsn, consumer="baton.workflow.failed")


async def rows(db: AsyncConnection, sql: str) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql.encode())).fetchall()


# --- the default logger ---------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "baton.telemetry"]


async def test_the_default_logger_logs_what_goes_wrong_and_the_end_of_runs(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry.attach_default_logger()
    with caplog.at_level(logging.INFO, "baton.telemetry"):
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            bad = await worker.insert(flow("bad", late=recovers.new(), gone=fails.new(), no=declines.new()))
            await bad.wait(timeout=20)
            good = await worker.insert(flow("good", fine=gives.new()))
            await good.wait(timeout=20)
    said = {(record.levelname, record.getMessage()) for record in logged(caplog)}
    assert said == {
        ("WARNING", "step late of bad failed and will be tried again, attempt 1 of 3: ValueError: not yet"),
        ("ERROR", "step gone of bad failed for good, attempt 1 of 1: ValueError: no hope"),
        ("INFO", "step no of bad was cancelled, attempt 1 of 20: not needed"),
        ("ERROR", f"run {bad.id} of bad failed, 2 of 3 steps did not complete: gone, no"),
        ("INFO", f"run {good.id} of good completed, 1 step"),
    }
    record: Any = next(record for record in logged(caplog) if "for good" in record.getMessage())
    assert (record.event, record.workflow, record.step) == (telemetry.STEP_DISCARDED, bad.id, "gone")
    assert (record.attempt, record.error, record.state) == (1, "ValueError: no hope", "discarded")
    assert (record.worker, record.queue) == ("tests.telemetry.fails", "default")


def test_what_is_logged_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.attach_default_logger()
    hostile = "x\n2026-01-01 INFO all is well\r\x1b[2K\u2028\u202efdp\x00\ud800"
    meta = {
        "workflow_id": "1",
        "workflow_label": hostile,
        "step_name": hostile,
        "attempt": 1,
        "max_attempts": 1,
        "error": hostile,
    }
    oban_telemetry.execute(telemetry.STEP_DISCARDED, meta)
    oban_telemetry.execute(
        telemetry.WORKFLOW_FINISHED,
        {
            "workflow_id": "1",
            "workflow_label": hostile,
            "outcome": "failed",
            "failed_steps": [hostile] * 100,
            "failed_count": 150,
            "total_count": 200,
        },
    )
    for record in logged(caplog):
        text = record.getMessage()
        assert text.isprintable(), text
        assert "\\n2026-01-01 INFO all is well\\r\\x1b[2K\\u2028\\u202efdp\\x00\\ud800" in text
        text.encode()
    assert "and 145 more" in logged(caplog)[1].getMessage()


async def test_rescued_jobs_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.attach_default_logger()
    oban_telemetry.execute(telemetry.RESCUED, {"count": 2, "job_ids": [7, 8]})
    (record,) = logged(caplog)
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        "2 jobs of dead processes run again, or have ended: [7, 8]",
    )


def test_it_is_attached_once_however_often_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.attach_default_logger()
    telemetry.attach_default_logger("DEBUG")
    run = {"workflow_id": "1", "workflow_label": "w", "outcome": "completed", "failed_steps": []}
    finished = {**run, "failed_count": 0, "total_count": 1}
    with caplog.at_level(logging.DEBUG):
        oban_telemetry.execute(telemetry.WORKFLOW_FINISHED, finished)
        telemetry.detach_default_logger()
        telemetry.detach_default_logger()
        oban_telemetry.execute(telemetry.WORKFLOW_FINISHED, finished)
    assert [record.levelno for record in logged(caplog)] == [logging.DEBUG]


@pytest.mark.parametrize("level", ["loud", None, True, 1.5], ids=str)
def test_a_level_that_logging_does_not_know_is_refused(level: Any) -> None:
    with pytest.raises(InvalidOption, match="one of logging's"):
        telemetry.attach_default_logger(level)


@pytest.mark.slow
def test_a_worker_on_the_command_line_shows_what_fails(baton_dsn: str, tmp_path: Path) -> None:
    witness = Witness(baton_dsn)
    with Worker(baton_dsn, tmp_path) as worker:
        witness.insert(one_step("bad", raises.new()))
        until(lambda: "1 of 1 step did not complete" in worker.log, worker)
        worker.stop()
        worker.end()
    assert "step bad of crew-bad failed for good, attempt 1 of 1: ValueError: no hope\n" in worker.log
    assert "of crew-bad failed, 1 of 1 step did not complete: bad\n" in worker.log


# --- secrets --------------------------------------------------------------------------------------


async def test_no_argument_and_no_result_is_told_or_logged(
    baton_dsn: str, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry.attach_default_logger("DEBUG")
    workflow = flow("secretive", gives=gives.new(f"{SECRET} given"))
    workflow.add("next", gives.new(workflow.steps and SECRET), deps=["gives"])
    with caplog.at_level(logging.DEBUG, "baton"):
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            run = await worker.insert(workflow)
            assert await run.result("next", timeout=10) == SECRET * 2
            failing = await worker.insert(flow(bad=fails.new("no hope")))
            with pytest.raises(StepFailed):
                await failing.result("bad", timeout=10)
    assert len(heard) >= 5
    assert SECRET not in repr(heard)
    assert SECRET not in caplog.text
    assert SECRET not in repr([vars(record) for record in caplog.records])


# --- calls of models ------------------------------------------------------------------------------


@step(name="tests.telemetry.asks", max_attempts=2, backoff=lambda _attempt: 0)
async def asks() -> str:
    baton.record_usage({"model": "gpt-6.1-sol", "input_tokens": 10, "output_tokens": 5, "cost_usd": "0.25"})
    if baton.current().attempt == 1:
        raise ValueError("not yet")
    answer = {"model": "of-nobody-2026", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    async def call() -> dict[str, Any]:
        return answer

    await baton.once("draft", call, request={"model": "of-nobody"})
    return SECRET


async def test_each_call_of_a_model_is_told_once_when_it_is_written(
    baton_dsn: str, db: AsyncConnection, told: Heard
) -> None:
    told.listen(telemetry.LLM_CALL, telemetry.STEP_COMPLETED)
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        run = await worker.insert(flow("asked", only=asks.new()))
        assert await run.wait(timeout=20) == "completed"
    assert [name for name, _ in told][-1] == telemetry.STEP_COMPLETED
    calls = told.of(telemetry.LLM_CALL)
    assert sorted((call["attempt"], call["model"], call["cost_usd"]) for call in calls) == [
        (1, "gpt-6.1-sol", Decimal("0.25")),
        (2, "gpt-6.1-sol", Decimal("0.25")),
        (2, "of-nobody-2026", None),
    ]
    call = next(call for call in calls if call["call_key"] == "draft")
    assert call.pop("timestamp").tzinfo is not None
    assert call.pop("duration") >= 0
    assert call.pop("job_id") > 0
    assert call == {
        "count": 1,
        "workflow_id": str(run.id),
        "workflow_label": "asked",
        "step_name": "only",
        "worker": "tests.telemetry.asks",
        "queue": "default",
        "attempt": 2,
        "call_key": "draft",
        "provider": None,
        "model": "of-nobody-2026",
        "requested_model": "of-nobody",
        "service_tier": None,
        "input_tokens": 7,
        "output_tokens": 3,
        "cache_read_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": None,
        "price_source": None,
    }
    rows = await (await db.execute("SELECT model FROM workflow_step_stats")).fetchall()
    assert len(rows) == len(calls)
