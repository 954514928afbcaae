"""Cancel, retry, re-run, pause, deadlines and deliveries, as a user has them: on a running Baton."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

import baton
from baton import Baton, Cancel, Run, RunState, Workflow, WorkflowFinished, step
from baton._deliveries import delay_after
from baton.errors import (
    InvalidName,
    InvalidOption,
    JobsGone,
    KeyConflict,
    ResultNotFound,
    RunEnding,
    RunNotFound,
)
from tests.kit.reused import Reused
from tests.kit.wait import eventually

NOWHERE = "01890a5d-ac96-774b-bcce-b302099a8057"


class Stage:
    """What the steps of this file see and say: doors that a test opens, and a list of what happened."""

    def __init__(self) -> None:
        self.doors: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()
        self.happened: list[str] = []
        self.plain = threading.Event()

    def door(self, name: str) -> asyncio.Event:
        return self.doors.setdefault(name, asyncio.Event())


stage = Stage()


@pytest.fixture(autouse=True)
def _fresh_stage() -> Iterator[None]:
    stage.__init__()  # type: ignore[misc]
    yield
    stage.plain.set()


@step(name="tests.control.work", max_attempts=1)
async def work(name: str) -> str:
    stage.happened.append(f"{name} started")
    if name in stage.broken:
        raise ValueError(f"{name} is broken")
    return f"{name} {stage.happened.count(f'{name} started')}"


@step(name="tests.control.wait_at", max_attempts=1)
async def wait_at(name: str) -> str:
    stage.happened.append(f"{name} started")
    try:
        await stage.door(name).wait()
    except asyncio.CancelledError:
        stage.happened.append(f"{name} was told")
        raise
    return name


@step(name="tests.control.stubborn", max_attempts=1)
async def stubborn(name: str) -> str:
    stage.happened.append(f"{name} started")
    try:
        await stage.door(name).wait()
    except asyncio.CancelledError:
        stage.happened.append(f"{name} went on")
    return name


@step(name="tests.control.plain", max_attempts=1)
def plain(name: str) -> str:
    stage.happened.append(f"{name} started")
    context = baton.current()
    while not context.cancelled and not stage.plain.is_set():
        stage.plain.wait(0.01)
    stage.happened.append(f"{name} saw {context.cancelled}")
    return name


@step(name="tests.control.deaf", max_attempts=1)
def deaf(name: str) -> str:
    stage.happened.append(f"{name} started")
    stage.plain.wait(20)
    return name


@step(name="tests.control.cancels")
async def cancels(name: str) -> str:
    raise Cancel(f"{name} does not want to")


async def told_cancelled(reason: str, job: Any) -> None:
    stage.happened.append(f"{job.meta['workflow_name']} was told: {reason}")


def told_discarded(reason: str, job: Any) -> None:
    if "hook" in stage.broken:
        stage.broken.discard("hook")
        raise ValueError("the hook is broken")
    stage.happened.append(f"job {job.state} was told: {reason}")


@step(name="tests.control.hooked", on_dep_cancelled=told_cancelled, on_dep_discarded=told_discarded)
async def hooked(name: str) -> str:
    return name


@baton.worker(queue="default")
class Hooked:
    async def process(self, job: Any) -> None:
        return None

    async def on_dep_cancelled(self, reason: str, job: Any) -> None:
        stage.happened.append(f"class with {job.args} was told: {reason}")


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.05) as worker:
        yield worker


async def execute(dsn: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(sql.encode(), params or None)
        return await cursor.fetchall() if cursor.description else []


async def audit_finds_nothing(dsn: str) -> None:
    from baton import _store

    assert await execute(dsn, _store.load("audit", "public").decode()) == []


def chain(*, middle: Any = wait_at, name: str = "chain") -> Workflow:
    """first → middle → last, and beside; an always step at the end."""
    workflow = Workflow(name)
    first = workflow.add("first", work.new("first"))
    workflow.add("middle", middle.new("middle"), deps=[first])
    workflow.add("last", work.new("last"), deps=["middle"])
    workflow.add("clean_up", work.new("clean_up"), deps=["last"], always=True)
    return workflow


async def happened(*what: str) -> None:
    await eventually(lambda: set(what) <= set(stage.happened))


# --- cancel ------------------------------------------------------------------------------------------


async def test_cancel_ends_a_run_and_its_running_async_step(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain())
    await happened("middle started")
    assert await run.cancel(reason="not wanted") == RunState.CANCELLED
    assert await run.wait(timeout=20) == RunState.CANCELLED
    status = await run.status()
    assert status.states() == {
        "first": "completed",
        "middle": "cancelled",
        "last": "cancelled",
        "clean_up": "completed",
    }
    assert status.step("middle").error == "not wanted"
    assert stage.happened == ["first started", "middle started", "middle was told", "clean_up started"]
    assert (status.run.cancel_reason, await run.cancel()) == ("not wanted", RunState.CANCELLED)
    await audit_finds_nothing(baton_dsn)


async def test_a_step_that_swallows_its_cancellation_ends_as_cancelled_all_the_same(worker: Baton) -> None:
    run = await worker.insert(chain(middle=stubborn))
    await happened("middle started")
    await run.cancel()
    assert await run.wait(timeout=20) == RunState.CANCELLED
    assert (await run.status()).step("middle").state == "cancelled"
    assert "middle went on" in stage.happened
    assert "middle" not in await run.results()


async def test_a_plain_step_finds_a_flag(worker: Baton) -> None:
    run = await worker.insert(chain(middle=plain))
    await happened("middle started")
    await run.cancel()
    await happened("middle saw True")
    assert await run.wait(timeout=20) == RunState.CANCELLED
    assert (await run.status()).step("middle").state == "cancelled"


async def test_a_cancel_reaches_a_step_that_runs_in_another_process(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain())
    await happened("middle started")
    async with Baton(baton_dsn) as elsewhere:
        assert await elsewhere.get_run(run.id).cancel() == RunState.CANCELLED
    assert await run.wait(timeout=20) == RunState.CANCELLED


async def test_cancel_before_anything_ran_starts_nothing(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(chain())
        assert await run.cancel() == RunState.CANCELLED
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.05) as worker:
        assert await worker.get_run(run.id).wait(timeout=20) == RunState.CANCELLED
        assert stage.happened == ["clean_up started"]


async def test_cancel_says_who_won(worker: Baton) -> None:
    workflow = Workflow("short")
    workflow.add("a", work.new("a"))
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == RunState.COMPLETED
    assert await run.cancel() == RunState.COMPLETED
    assert await run.cancel("a") == "completed"
    assert (await run.summary()).cancel_requested_at is None


async def test_cancelling_one_step_takes_what_waits_for_it_and_nothing_else(
    worker: Baton, baton_dsn: str
) -> None:
    workflow = Workflow("two arms")
    workflow.add("left", wait_at.new("left"))
    workflow.add("right", wait_at.new("right"))
    workflow.add("after_left", work.new("after_left"), deps=["left"])
    workflow.add("after_right", work.new("after_right"), deps=["right"])
    run = await worker.insert(workflow)
    await happened("left started", "right started")
    assert await run.cancel("left", reason="enough") == "cancelled"
    stage.door("right").set()
    assert await run.wait(timeout=20) == RunState.FAILED
    assert (await run.status()).states() == {
        "left": "cancelled",
        "right": "completed",
        "after_left": "cancelled",
        "after_right": "completed",
    }
    with pytest.raises(ResultNotFound, match="no step 'nobody'"):
        await run.cancel("nobody")
    await audit_finds_nothing(baton_dsn)


async def test_obans_cancel_of_a_running_step_holds_when_its_notification_is_lost(
    worker: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await worker.insert(chain())
    await happened("middle started")

    async def lost(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(worker.oban._notifier, "notify", lost)
    await worker.oban.cancel_job((await run.status()).step("middle").job_id)
    assert await run.wait(timeout=20) == RunState.FAILED
    assert (await run.status()).step("middle").state == "cancelled"
    assert "middle was told" in stage.happened


async def test_every_verb_says_when_there_is_no_such_run(worker: Baton) -> None:
    run = worker.get_run(NOWHERE)
    for call in (run.cancel, lambda: run.cancel("a"), run.retry, run.rerun, run.pause, run.resume):
        with pytest.raises(RunNotFound, match="there is no run"):
            await call()


# --- without notifications ---------------------------------------------------------------------------


async def test_a_run_across_two_processes_ends_although_every_notification_is_lost(baton_dsn: str) -> None:
    await execute(baton_dsn, "CREATE FUNCTION lost(text, text) RETURNS void LANGUAGE sql AS ''")
    functions = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname LIKE 'baton%' AND prosrc LIKE '%pg_notify(%'"
    for (definition,) in await execute(baton_dsn, functions):
        await execute(baton_dsn, definition.replace("pg_notify(", "public.lost("))
    workflow = Workflow("across")
    for number, queue in enumerate(("left", "right", "left", "right")):
        before = [f"step_{number - 1}"] if number else []
        workflow.add(f"step_{number}", work.with_options(queue=queue).new(f"step_{number}"), deps=before)
    async with (
        Baton(baton_dsn, queues={"left": 1}) as left,
        Baton(baton_dsn, queues={"right": 1}),
        await AsyncConnection.connect(baton_dsn, autocommit=True) as ear,
    ):
        for channel in ("insert", "workflow"):
            await ear.execute(f'LISTEN "public.oban_{channel}"'.encode())
        run = await left.insert(workflow)
        assert await run.wait(timeout=30) == RunState.COMPLETED
        assert [notify async for notify in ear.notifies(timeout=0.1)] == []
    assert len(stage.happened) == 4


# --- retry and re-run --------------------------------------------------------------------------------


async def test_retry_runs_what_failed_again_and_keeps_the_rest(worker: Baton, baton_dsn: str) -> None:
    stage.broken.add("middle")
    run = await worker.insert(chain(middle=work))
    assert await run.wait(timeout=20) == RunState.FAILED
    stage.broken.clear()
    assert await run.retry() == ["middle", "last", "clean_up"]
    assert await run.wait(timeout=20) == RunState.COMPLETED
    assert await run.results() == {
        "first": "first 1",
        "middle": "middle 2",
        "last": "last 1",
        "clean_up": "clean_up 2",
    }
    status = await run.status()
    assert (status.run.generation, status.step("middle").attempt) == (2, 1)
    assert await execute(
        baton_dsn, "SELECT generation, outcome FROM workflow_completions ORDER BY generation"
    ) == [
        (1, "failed"),
        (2, "completed"),
    ]
    assert await run.retry() == []
    await audit_finds_nothing(baton_dsn)


async def test_two_retries_at_once_retry_once(worker: Baton) -> None:
    stage.broken.add("middle")
    run = await worker.insert(chain(middle=work))
    await run.wait(timeout=20)
    stage.broken.clear()
    stage.broken.add("last")
    first, second = await asyncio.gather(run.retry(), run.retry())
    assert sorted([len(first), len(second)]) == [0, 3]
    assert await run.wait(timeout=20) == RunState.FAILED
    assert stage.happened.count("middle started") == 2


async def test_a_cancelled_run_can_be_retried(worker: Baton) -> None:
    run = await worker.insert(chain())
    await happened("middle started")
    await run.cancel()
    await run.wait(timeout=20)
    stage.door("middle").set()
    assert await run.retry() == ["middle", "last", "clean_up"]
    assert await run.wait(timeout=20) == RunState.COMPLETED
    assert (await run.summary()).cancel_requested_at is None


async def test_retry_of_a_run_that_is_being_cancelled_is_refused(worker: Baton) -> None:
    workflow = Workflow("deaf")
    workflow.add("a", deaf.new("a"))
    run = await worker.insert(workflow)
    await happened("a started")
    await run.cancel()
    with pytest.raises(RunEnding, match="is being cancelled; wait for its end"):
        await run.retry()
    stage.plain.set()
    assert await run.wait(timeout=20) == RunState.CANCELLED
    assert await run.retry() == ["a"]
    assert await run.wait(timeout=20) == RunState.COMPLETED


async def test_retry_without_its_jobs_changes_nothing(worker: Baton, baton_dsn: str) -> None:
    stage.broken.add("middle")
    run = await worker.insert(chain(middle=work))
    await run.wait(timeout=20)
    job = (await run.status()).step("middle").job_id
    await execute(baton_dsn, "DELETE FROM oban_jobs WHERE id = %s", job)
    with pytest.raises(JobsGone, match="'middle'") as caught:
        await run.retry()
    assert caught.value.steps == ("middle",)
    with pytest.raises(JobsGone):
        await run.rerun()
    summary = await run.summary()
    assert (summary.state, summary.generation) == (RunState.FAILED, 1)
    assert len(await worker.query.list_runs()) == 1


async def test_a_retry_whose_key_is_taken_is_refused(worker: Baton) -> None:
    def keyed(name: str) -> Workflow:
        workflow = Workflow("keyed", key="k")
        workflow.add("a", wait_at.new(name))
        return workflow

    first = await worker.insert(keyed("one"))
    await happened("one started")
    await first.cancel()
    await first.wait(timeout=20)
    second = await worker.insert(keyed("two"))
    with pytest.raises(KeyConflict, match="another live run has its key"):
        await first.retry()
    stage.door("two").set()
    assert await second.wait(timeout=20) == RunState.COMPLETED


async def test_rerun_copies_what_had_settled_and_runs_the_rest(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain(middle=work))
    await run.wait(timeout=20)
    again = await run.rerun(from_="middle")
    assert again.id != run.id
    assert await again.wait(timeout=20) == RunState.COMPLETED
    assert await again.results() == {
        "first": "first 1",
        "middle": "middle 2",
        "last": "last 2",
        "clean_up": "clean_up 2",
    }
    assert (await again.summary()).rerun_of == run.id
    assert (await run.results())["middle"] == "middle 1"
    whole = await run.rerun()
    await whole.wait(timeout=20)
    assert stage.happened.count("first started") == 2
    with pytest.raises(ResultNotFound, match="no step 'nobody'"):
        await run.rerun(from_="nobody")
    with pytest.raises(InvalidOption, match="names no step"):
        await run.rerun(from_=[])
    for call in (run.cancel, run.result, run.why, lambda step: run.rerun(from_=step)):
        for wrong in (3, [3]):
            with pytest.raises(InvalidOption, match=r"not by (int|list)"):
                await call(wrong)  # type: ignore[operator]
    with pytest.raises(InvalidOption, match="reason is None"):
        await run.cancel(reason=None)  # type: ignore[call-overload]
    await audit_finds_nothing(baton_dsn)


# --- pause and deadline ------------------------------------------------------------------------------


async def test_a_paused_run_starts_nothing_until_it_is_resumed(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain())
    await happened("middle started")
    assert await run.pause() == RunState.EXECUTING
    stage.door("middle").set()
    await eventually(lambda: settled(run, "middle"))
    # Others do run meanwhile.
    other = Workflow("other")
    other.add("a", work.new("a"))
    await (await worker.insert(other)).wait(timeout=20)
    assert "last started" not in stage.happened
    paused = await run.status()
    assert (paused.state, paused.step("last").state) == (RunState.EXECUTING, "available")
    assert paused.run.paused_at is not None
    await audit_finds_nothing(baton_dsn)
    assert await run.resume() == RunState.EXECUTING
    assert await run.wait(timeout=20) == RunState.COMPLETED
    assert (await run.pause(), await run.resume()) == (RunState.COMPLETED, RunState.COMPLETED)


async def settled(run: Run, name: str) -> bool:
    return (await run.status()).step(name).state.settled


async def test_a_run_ends_at_its_deadline(worker: Baton) -> None:
    workflow = Workflow("late", deadline=timedelta(milliseconds=50))
    workflow.add("a", wait_at.new("a"))
    workflow.add("b", work.new("b"), deps=["a"])
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == RunState.FAILED
    status = await run.status()
    assert status.states() == {"a": "cancelled", "b": "cancelled"}
    assert "deadline" in (status.step("b").error or "")


async def test_a_deadline_ahead_and_one_that_is_met_change_nothing(worker: Baton) -> None:
    workflow = Workflow("in time", deadline=datetime.now(UTC) + timedelta(hours=1))
    workflow.add("a", work.new("a"))
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == RunState.COMPLETED
    assert (await run.summary()).deadline_at is not None


# --- always, on_failure ------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
async def test_steps_run_at_the_end_whatever_happened_or_only_after_a_failure(
    worker: Baton, *, broken: bool
) -> None:
    if broken:
        stage.broken.add("a")
    workflow = Workflow("ends")
    a = workflow.add("a", work.new("a"))
    workflow.add("always", work.new("always"), deps=[a], always=True)
    workflow.add("alarm", work.new("alarm"), deps=[a], on_failure=True)
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == (RunState.FAILED if broken else RunState.COMPLETED)
    assert (await run.status()).states() == {
        "a": "discarded" if broken else "completed",
        "always": "completed",
        "alarm": "completed" if broken else "skipped",
    }


# --- deliveries --------------------------------------------------------------------------------------


@asynccontextmanager
async def told(
    dsn: str, events: list[WorkflowFinished], *, error: type[BaseException] = ValueError, **options: Any
) -> AsyncIterator[Baton]:
    async def on_finished(event: WorkflowFinished) -> None:
        events.append(event)
        if "callback" in stage.broken:
            stage.broken.discard("callback")
            raise error("the callback is broken")

    options = {"queues": {"default": 5}, "poll_interval": 0.05} | options
    async with Baton(dsn, on_finished=on_finished, **options) as client:
        yield client


async def test_the_end_of_each_generation_is_delivered_with_what_happened(baton_dsn: str) -> None:
    events: list[WorkflowFinished] = []
    stage.broken.add("middle")
    async with told(baton_dsn, events) as client:
        run = await client.insert(chain(middle=work, name="news"))
        await run.wait(timeout=20)
        await eventually(lambda: len(events) == 1)
        stage.broken.clear()
        await run.retry()
        await run.wait(timeout=20)
        await eventually(lambda: len(events) == 2)
        summary = await run.summary()
    first, second = events
    assert (first.workflow_id, first.workflow_label, first.generation) == (run.id, "news", 1)
    assert (first.outcome, first.failed_steps) == (RunState.FAILED, ("middle", "last"))
    assert (second.outcome, second.failed_steps, second.generation) == (RunState.COMPLETED, (), 2)
    assert second.timestamp == summary.finished_at
    assert first.id != second.id
    assert await execute(baton_dsn, "SELECT * FROM workflow_deliveries") == []


# What a callback waits for may have been cancelled. That is an error of its own, not the end of all deliveries.
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_what_could_not_be_delivered_is_delivered_again_with_the_same_id(
    baton_dsn: str, error: type[BaseException]
) -> None:
    events: list[WorkflowFinished] = []
    stage.broken.add("callback")
    async with told(baton_dsn, events, error=error) as client:
        run = await client.insert(Workflow("empty"))
        await eventually(lambda: len(events) == 1)
        await eventually(lambda: postponed(baton_dsn))
        await execute(baton_dsn, "UPDATE workflow_deliveries SET due_at = now()")
        await eventually(lambda: len(events) == 2)
    assert events[0] == events[1]
    assert events[0].workflow_id == run.id
    assert await execute(baton_dsn, "SELECT * FROM workflow_deliveries") == []


async def postponed(dsn: str) -> bool:
    rows = await execute(
        dsn, "SELECT due_at > now() + interval '100 seconds' FROM workflow_deliveries WHERE tries = 1"
    )
    return rows == [(True,)]


async def test_a_consumer_is_told_what_ended_while_it_was_away(baton_dsn: str) -> None:
    events: list[WorkflowFinished] = []
    async with told(baton_dsn, events):
        pass
    async with Baton(baton_dsn, queues={"default": 5}) as other:
        run = await other.insert(chain(middle=work))
        await run.wait(timeout=20)
        assert events == []
    async with told(baton_dsn, events, queues={}):
        await eventually(lambda: [event.workflow_id for event in events] == [run.id])


async def test_one_process_of_a_consumer_is_told_and_each_consumer(baton_dsn: str) -> None:
    app: list[WorkflowFinished] = []
    billing: list[WorkflowFinished] = []
    async with (
        told(baton_dsn, app) as client,
        told(baton_dsn, app, queues={}),
        told(baton_dsn, billing, queues={}, consumer="billing"),
    ):
        runs = await client.insert_many([Workflow("empty") for _ in range(30)])
        await eventually(lambda: (len(app), len(billing)) == (30, 30))
    assert (
        {event.workflow_id for event in app}
        == {event.workflow_id for event in billing}
        == {run.id for run in runs}
    )


async def test_what_a_dead_process_had_taken_is_delivered_by_another(baton_dsn: str) -> None:
    events: list[WorkflowFinished] = []
    async with told(baton_dsn, events):
        pass
    async with Baton(baton_dsn) as client:
        run = await client.insert(Workflow("empty"))
    # It took the delivery, and died.
    (taken,) = await execute(baton_dsn, "SELECT baton_deliver('app', '{}', 10, 0)")
    assert len(taken[0]) == 1
    async with told(baton_dsn, events, queues={}):
        await eventually(lambda: [event.workflow_id for event in events] == [run.id])


async def test_a_consumer_that_was_removed_is_kept_nothing_for(baton_dsn: str) -> None:
    events: list[WorkflowFinished] = []
    async with told(baton_dsn, events):
        pass
    async with Baton(baton_dsn) as client:
        await client.insert(Workflow("empty"))
        assert len(await execute(baton_dsn, "SELECT * FROM workflow_deliveries")) == 1
        assert await client.remove_consumer("app")
        assert not await client.remove_consumer("app")
        await client.insert(Workflow("empty"))
    assert await execute(baton_dsn, "SELECT * FROM workflow_deliveries") == []


async def test_runs_that_end_while_it_stops_are_delivered(baton_dsn: str) -> None:
    events: list[WorkflowFinished] = []
    async with told(baton_dsn, events, poll_interval=30.0) as client:
        workflow = Workflow("stopping")
        workflow.add("a", wait_at.new("a"))
        run = await client.insert(workflow)
        await happened("a started")
        asyncio.get_running_loop().call_later(0.1, stage.door("a").set)
    assert [event.workflow_id for event in events] == [run.id]


def test_the_delay_between_tries_doubles_up_to_an_hour() -> None:
    assert [delay_after(tries) for tries in (1, 2, 3, 6, 7, 10_000)] == [120, 240, 480, 3600, 3600, 3600]


def test_a_callback_or_a_consumer_that_cannot_work_is_refused() -> None:
    with pytest.raises(InvalidOption, match="on_finished must be an `async def`"):
        Baton("postgresql://", on_finished=lambda event: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidName):
        Baton("postgresql://", consumer=" ")


# --- hooks -------------------------------------------------------------------------------------------


async def test_a_doomed_step_is_told_why(worker: Baton) -> None:
    stage.broken.add("breaks")
    workflow = Workflow("hooks")
    workflow.add("unwilling", cancels.new("unwilling"))
    workflow.add("breaks", work.new("breaks"))
    workflow.add("one", hooked.new("one"), deps=["unwilling"])
    workflow.add("two", hooked.new("two"), deps=["breaks"])
    workflow.add("three", Hooked.new({"n": 3}), deps=["unwilling"])
    workflow.add("quiet", work.new("quiet"), deps=["unwilling"])
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == RunState.FAILED
    await eventually(lambda: len([line for line in stage.happened if "was told" in line]) == 3)
    assert {line for line in stage.happened if "was told" in line} == {
        "one was told: its dependency 'unwilling' was cancelled",
        "job cancelled was told: its dependency 'breaks' was discarded",
        "class with {'n': 3} was told: its dependency 'unwilling' was cancelled",
    }
    await eventually(lambda: nothing_due(worker.dsn))


async def test_a_hook_that_fails_is_called_again(worker: Baton) -> None:
    stage.broken |= {"breaks", "hook"}
    workflow = Workflow("hooks")
    workflow.add("breaks", work.new("breaks"))
    workflow.add("two", hooked.new("two"), deps=["breaks"])
    run = await worker.insert(workflow)
    assert await run.wait(timeout=20) == RunState.FAILED
    await eventually(lambda: postponed(worker.dsn))
    await execute(worker.dsn, "UPDATE workflow_deliveries SET due_at = now()")
    await happened("job cancelled was told: its dependency 'breaks' was discarded")
    await eventually(lambda: nothing_due(worker.dsn))


async def test_a_hook_without_its_job_is_left_out(baton_dsn: str) -> None:
    stage.broken.add("breaks")
    async with Baton(baton_dsn) as client:
        workflow = Workflow("hooks")
        workflow.add("gives_up", hooked.new("up"))
        workflow.add("two", hooked.new("two"), deps=["gives_up"])
        run = await client.insert(workflow)
        await run.cancel("gives_up")
    assert len(await execute(baton_dsn, "SELECT * FROM workflow_deliveries")) == 1
    await execute(baton_dsn, "DELETE FROM oban_jobs")
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.05):
        await eventually(lambda: nothing_due(baton_dsn))
    assert stage.happened == []


async def nothing_due(dsn: str) -> bool:
    return await execute(dsn, "SELECT * FROM workflow_deliveries") == []
