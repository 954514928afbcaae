"""Running a step: its context, its outcomes, its results, on real workers."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import psycopg
import pytest
from oban.job import Cancel as ObanCancel
from oban.job import Job, Record
from oban.job import Snooze as ObanSnooze

import baton
from baton import Baton, Cancel, Snooze, StepLogFilter, Workflow, _declare, _step, step, testing
from baton.errors import (
    NoResult,
    NotADependency,
    NoWorkflow,
    ResultNotFound,
    StepCancelled,
    StepFailed,
)
from baton.run import Run
from baton.testing import Finished
from tests.kit.reused import Reused
from tests.kit.wait import eventually


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


async def finish(dsn: str, job: Any, **options: Any) -> Finished:
    """Run a workflow of one step, which is called `it`."""
    workflow = Workflow("one")
    workflow.add("it", job)
    return await testing.run(workflow, dsn=dsn, timeout=20, **options)


@asynccontextmanager
async def working(dsn: str, **options: Any) -> AsyncIterator[Baton]:
    options.setdefault("queues", {"default": 10})
    async with Baton(dsn, poll_interval=0.05, **options) as baton_:
        yield baton_


async def insert(baton_: Baton, **jobs: Any) -> Run:
    """Insert a workflow of independent steps."""
    workflow = Workflow("several")
    for name, job in jobs.items():
        workflow.add(name, job)
    return await baton_.insert(workflow)


async def states(run: Run) -> dict[str, str]:
    return {name: str(state) for name, state in (await run.status()).states().items()}


# --- functions ---------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: int = 0


@step
async def make(x: int) -> Point:
    return Point(x)


@step
def shift(point: Point, by: int = 1) -> Point:
    return Point(point.x + by, point.y)


@step
def one() -> int:
    return 1


async def test_results_travel_from_async_to_plain_steps_as_the_annotated_type(baton_dsn: str) -> None:
    workflow = Workflow("points")
    made = workflow.add("made", make.new(3))
    shifted = workflow.add("shifted", shift.new(made.result, by=4))
    workflow.add("x", shift.new(shifted.result))
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.outcome == "completed"
    assert finished.results == {"made": Point(3), "shifted": Point(7), "x": Point(8)}


@step
async def describe(values: list[int], options: dict[str, Any]) -> str:
    return f"{values} {options['deep'][0]['x']}"


async def test_references_are_filled_in_at_any_depth_and_lead_into_results(baton_dsn: str) -> None:
    workflow = Workflow("deep")
    a = workflow.add("a", one.new())
    p = workflow.add("p", make.new(5))
    workflow.add("d", describe.new([a.result, 2, a.result], {"deep": [{"x": p.result.x}]}))
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.results["d"] == "[1, 2, 1] 5"


async def test_a_plain_step_runs_in_a_thread_and_does_not_block_the_loop(baton_dsn: str) -> None:
    opened = threading.Event()

    @step
    def waits() -> bool:
        assert threading.current_thread().name.startswith("baton-step")
        return opened.wait(10)

    @step
    async def opens() -> None:
        opened.set()

    workflow = Workflow("threads")
    workflow.add("waits", waits.new())
    workflow.add("opens", opens.new())
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.results == {"waits": True, "opens": None}


@baton.worker(queue="default", max_attempts=3)
class Adds:
    async def process(self, job: Job) -> int:
        return int(await baton.results.get(job, "a")) + job.args["n"]


async def test_a_worker_class_reads_results_by_name(baton_dsn: str) -> None:
    workflow = Workflow("class")
    workflow.add("a", one.new())
    workflow.add("sum", Adds.new({"n": 2}), deps=["a"])
    workflow.add("after", shift.new(Point(0)), deps=["sum"])
    assert (await testing.run(workflow, dsn=baton_dsn)).results["sum"] == 3


@baton.worker()
class Records:
    async def process(self, job: Job) -> Record:
        return Record({"kept": 1})


async def test_a_recorded_value_is_the_result_too(baton_dsn: str) -> None:
    assert (await finish(baton_dsn, Records.new())).results == {"it": {"kept": 1}}


# --- the context -------------------------------------------------------------------------------------


def described() -> tuple[str, str, int, int, str]:
    here = baton.current()
    assert here.idempotency_key == f"{here.workflow_id}/{here.step}"
    assert here.workflow_id == here.job.meta["workflow_id"]
    return here.workflow, here.step, here.attempt, here.max_attempts, here.idempotency_key


async def test_a_step_knows_where_it_is_in_tasks_and_in_threads(baton_dsn: str) -> None:
    seen = []

    @step(max_attempts=2)
    async def asynchronous() -> None:
        seen.append(described())
        seen.append(await asyncio.create_task(asyncio.to_thread(described)))
        if baton.current().attempt == 1:
            raise ValueError

    @step
    def plain() -> list[Any]:
        return list(described())

    workflow = Workflow("where")
    workflow.add("a", asynchronous.new())
    workflow.add("p", plain.new(), deps=["a"])
    finished = await testing.run(workflow, dsn=baton_dsn)
    key = f"{finished.run.id}/a"
    assert seen == [("where", "a", n, 2, key) for n in (1, 1, 2, 2)]
    assert finished.results["p"] == ["where", "p", 1, 20, f"{finished.run.id}/p"]


def test_outside_of_a_step_there_is_no_current_one() -> None:
    with pytest.raises(NoWorkflow, match=r"baton\.current\(\) is for code that a step runs"):
        baton.current()


@baton.worker()
class Alone:
    asked = 0

    async def process(self, job: Job) -> None:
        with pytest.raises(NoWorkflow, match="no step of a workflow is running here"):
            baton.current()
        with pytest.raises(NoWorkflow, match=f"job {job.id} belongs to no workflow"):
            await baton.results.get(job, "x")
        with pytest.raises(NoWorkflow):
            await baton.results.get_all(job)
        with pytest.raises(NoWorkflow):
            await baton.results.store(job, 1)
        with pytest.raises(NoResult):
            await baton.results.get_own(job)
        type(self).asked += 1


async def test_an_ordinary_job_has_no_context_and_no_results(baton_dsn: str) -> None:
    Alone.asked = 0
    async with working(baton_dsn) as baton_:
        job = await baton_.oban.enqueue(Alone.new())
        await eventually(lambda: job_state(baton_dsn, job.id, "completed"))
    assert Alone.asked == 1


async def job_state(dsn: str, job_id: int | None, state: str) -> bool:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        row = await (
            await conn.execute("SELECT state::text FROM oban_jobs WHERE id = %s", (job_id,))
        ).fetchone()
    return row == (state,)


async def test_log_records_carry_workflow_step_and_attempt(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(fields := StepLogFilter())

    @step
    def plain() -> None:
        logging.getLogger("somebody.else").warning("from a thread")
        baton.current().logger.warning("by the step's own logger", extra={"step": "mine"})

    try:
        finished = await finish(baton_dsn, plain.new())
        logging.getLogger("somebody.else").warning("outside")
    finally:
        caplog.handler.removeFilter(fields)
    told = {record.message: (record.workflow, record.step, record.attempt) for record in caplog.records}  # type: ignore[attr-defined]
    assert told["from a thread"] == (finished.run.id, "it", 1)
    assert told["by the step's own logger"] == (finished.run.id, "mine", 1)
    assert told["outside"] == (None, None, None)


# --- outcomes: whatever is raised ----------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class OfNoKind(BaseException):
    pass


RAISED: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("boom"),
    "CancelledError": asyncio.CancelledError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "TimeoutError": TimeoutError,
    "Unspeakable": Unspeakable,
    "OfNoKind": OfNoKind,
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("boom")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [OfNoKind()]),
}


@step(max_attempts=1, name="tests.raise_async")
async def raise_async(what: str) -> None:
    raise RAISED[what]()


@step(max_attempts=1, name="tests.raise_plain")
def raise_plain(what: str) -> None:
    raise RAISED[what]()


@step(max_attempts=1, name="tests.raise_in_group")
async def raise_in_group(what: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(_raise(what))


@step(max_attempts=1, name="tests.raise_beside_group")
async def raise_beside_group(what: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        raise RAISED[what]()


async def _raise(what: str) -> NoReturn:
    raise RAISED[what]()


@baton.worker(max_attempts=1)
class Raises:
    async def process(self, job: Job) -> None:
        raise RAISED[job.args["what"]]()


# asyncio itself ends the loop when SystemExit or KeyboardInterrupt leaves a task, and one that is cancelled by hand
# leaves its group without a word.
IN_GROUP = sorted(RAISED.keys() - {"SystemExit", "KeyboardInterrupt", "CancelledError"})


async def test_whatever_a_step_raises_is_an_outcome_and_the_worker_lives_on(baton_dsn: str) -> None:
    jobs: dict[str, Any] = {}
    for what in RAISED:
        jobs[f"{what}-async"] = raise_async.new(what)
        jobs[f"{what}-plain"] = raise_plain.new(what)
        jobs[f"{what}-beside"] = raise_beside_group.new(what)
        jobs[f"{what}-class"] = Raises.new({"what": what})
    for what in IN_GROUP:
        jobs[f"{what}-group"] = raise_in_group.new(what)
    async with working(baton_dsn) as baton_:
        run = await insert(baton_, **jobs)
        assert await run.wait(timeout=15) == "failed"
        status = await run.status()
        assert {step.name for step in status.steps if step.state != "discarded"} == set()
        assert [step.name for step in status.steps if not step.error] == []
        for what, said in (
            ("SystemExit", "raised SystemExit: 3"),
            ("Unspeakable", "Unspeakable"),
            ("ValueError", "boom"),
        ):
            for how in ("async", "plain", "class"):
                assert said in str(status.step(f"{what}-{how}").error), f"{what}-{how}"
        after = await insert(baton_, it=one.new())
        assert await after.result("it", timeout=5) == 1


async def test_a_cancelled_child_of_a_task_group_is_not_the_steps_end(baton_dsn: str) -> None:
    @step(max_attempts=1)
    async def group_with_a_cancelled_child() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(_raise("CancelledError"))
        return "went on"

    assert (await finish(baton_dsn, group_with_a_cancelled_child.new())).results == {"it": "went on"}


async def test_a_step_that_cancels_its_own_task_fails_its_attempt(baton_dsn: str) -> None:
    runs = []

    @step(max_attempts=2)
    async def cancels_itself() -> None:
        runs.append(baton.current().attempt)
        task = asyncio.current_task()
        assert task is not None
        if len(runs) > 5:
            return
        task.cancel()
        await asyncio.sleep(60)

    finished = await finish(baton_dsn, cancels_itself.new())
    assert runs == [1, 2]
    assert finished.states == {"it": "discarded"}


async def test_the_error_of_a_failed_step_is_kept_with_its_traceback(baton_dsn: str) -> None:
    finished = await finish(baton_dsn, raise_async.new("ValueError"))
    error = str(finished.errors["it"])
    assert "in raise_async" in error
    assert error.rstrip().endswith("ValueError: boom")


async def test_result_raises_what_became_of_the_step_with_the_evidence(baton_dsn: str) -> None:
    async with working(baton_dsn) as baton_:
        workflow = Workflow("evidence")
        workflow.add("fails", raise_plain.new("ValueError"))
        workflow.add("doomed", one.new(), deps=["fails"])
        run = await baton_.insert(workflow)
        with pytest.raises(
            StepFailed, match=r"'fails' was discarded after 1 of 1 attempts: ValueError: boom"
        ) as failed:
            await run.result("fails", timeout=10)
        assert failed.value.step == "fails"
        assert "Traceback" in str(failed.value.error)
        with pytest.raises(StepCancelled, match="its dependency 'fails' was discarded") as cancelled:
            await run.result("doomed", timeout=10)
        assert cancelled.value.step == "doomed"
        assert await run.wait(timeout=10) == "failed"


# --- snooze and cancel ---------------------------------------------------------------------------------

SNOOZES: dict[str, Callable[[], Any]] = {
    "Baton's": lambda: Snooze(30, {"why": "later"}),
    "Oban's": lambda: ObanSnooze(30, {"why": "later"}),
}


# Oban's are plain dataclasses, which Python does not raise.
@pytest.mark.parametrize(
    ("whose", "how"), [("Baton's", "returned"), ("Baton's", "raised"), ("Oban's", "returned")]
)
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_snoozed_step_runs_again_without_using_an_attempt(
    baton_dsn: str, whose: str, how: str, kind: str
) -> None:
    attempts = []

    def body() -> Any:
        attempts.append(baton.current().attempt)
        assert baton.current().job.meta.get("snoozed", 0) == len(attempts) - 1
        if len(attempts) == 3:
            assert baton.current().job.meta["why"] == "later"
            return "done"
        outcome = SNOOZES[whose]()
        if how == "raised":
            raise outcome
        return outcome

    @step(max_attempts=1, name=f"tests.snoozes_{kind}_{how}_{whose[0]}")
    async def asynchronous() -> str:
        return body()

    @step(max_attempts=1, name=f"tests.snoozes_{kind}_{how}_{whose[0]}.plain")
    def plain() -> str:
        return body()

    finished = await finish(baton_dsn, (asynchronous if kind == "async" else plain).new())
    assert attempts == [1, 1, 1]
    assert (finished.results, finished.attempts) == ({"it": "done"}, {"it": 1})


CANCELS: dict[str, Callable[[], Any]] = {
    "Baton's": lambda: Cancel("no longer wanted"),
    "Oban's": lambda: ObanCancel("no longer wanted"),
}


@pytest.mark.parametrize(
    ("whose", "how"), [("Baton's", "returned"), ("Baton's", "raised"), ("Oban's", "returned")]
)
async def test_a_step_that_cancels_itself_ends_with_its_reason(baton_dsn: str, whose: str, how: str) -> None:
    @step(name=f"tests.cancels_{how}_{whose[0]}")
    async def cancels() -> int:
        outcome = CANCELS[whose]()
        if how == "raised":
            raise outcome
        return outcome

    finished = await finish(baton_dsn, cancels.new())
    assert finished.states == {"it": "cancelled"}
    assert finished.errors == {"it": "no longer wanted"}
    assert finished.attempts == {"it": 1}


def test_a_parked_job_does_not_come_back_in_step_with_the_node_that_parked_it() -> None:
    """A node stages what is due each second. In whole seconds a job would always be due just before that node's own turn."""
    delays = [_step.park(Job("baton.StepWorker", meta={"snoozed": 3}), "no code").seconds for _ in range(20)]
    assert all(4 <= delay <= 8 for delay in delays)
    assert len({delay % 1 for delay in delays}) > 10


async def test_obans_snooze_cannot_be_raised_and_the_attempt_says_so(baton_dsn: str) -> None:
    @step(max_attempts=1)
    async def raises_a_dataclass() -> None:
        raise ObanSnooze(1)  # type: ignore[misc]

    finished = await finish(baton_dsn, raises_a_dataclass.new())
    assert "exceptions must derive from BaseException" in str(finished.errors["it"])


@baton.worker()
class SnoozesPlainly:
    runs = 0

    async def process(self, job: Job) -> None:
        type(self).runs += 1
        if type(self).runs == 1:
            raise Snooze(60)


async def test_an_ordinary_job_may_raise_a_snooze_too(baton_dsn: str) -> None:
    SnoozesPlainly.runs = 0
    async with working(baton_dsn) as baton_:
        job = await baton_.oban.enqueue(SnoozesPlainly.new())
        await eventually(lambda: job_state(baton_dsn, job.id, "scheduled"))
        skipping = asyncio.create_task(testing._skip_time(baton_))
        await eventually(lambda: job_state(baton_dsn, job.id, "completed"))
        skipping.cancel()
    assert SnoozesPlainly.runs == 2


# --- attempts ------------------------------------------------------------------------------------------


async def test_a_step_is_tried_again_until_it_succeeds(baton_dsn: str) -> None:
    @step(max_attempts=5)
    def third_time_lucky() -> int:
        if baton.current().attempt < 3:
            raise ValueError("not yet")
        return baton.current().attempt

    finished = await finish(baton_dsn, third_time_lucky.new())
    assert (finished.results, finished.attempts) == ({"it": 3}, {"it": 3})


async def test_a_step_is_discarded_when_its_attempts_are_used_up(baton_dsn: str) -> None:
    @step(max_attempts=3)
    async def never() -> None:
        raise ValueError(f"attempt {baton.current().attempt}")

    finished = await finish(baton_dsn, never.new())
    assert (finished.states, finished.attempts) == ({"it": "discarded"}, {"it": 3})
    assert "attempt 3" in str(finished.errors["it"])


async def retry_delay(baton_: Baton, job: Any) -> float:
    """Seconds from a failed first attempt to the second."""
    run = await insert(baton_, it=job)
    status = await eventually(lambda: retrying(run))
    return float((status.scheduled_at - datetime.now(UTC)).total_seconds())


async def retrying(run: Run) -> Any:
    status = (await run.status()).step("it")
    return status if status.state == "retryable" else None


async def test_the_next_attempt_comes_after_the_steps_own_backoff(baton_dsn: str) -> None:
    @step(backoff=lambda attempt: 1000 * attempt)
    async def fails() -> None:
        raise ValueError

    async with working(baton_dsn) as baton_:
        assert 990 < await retry_delay(baton_, fails.new()) <= 1000


BACKOFFS: dict[str, Callable[[int], Any]] = {
    "raises": lambda attempt: 1 / 0,
    "NaN": lambda attempt: float("nan"),
    "infinity": lambda attempt: float("inf"),
    "negative": lambda attempt: -5,
    "None": lambda attempt: None,
    "text": lambda attempt: "soon",
    "huge": lambda attempt: 10**30,
}


@step(max_attempts=3, name="tests.backs_off")
async def backs_off(how: str) -> None:
    raise ValueError(how)


@baton.worker(max_attempts=3)
class BacksOff:
    async def process(self, job: Job) -> None:
        raise ValueError(job.args["how"])

    def backoff(self, job: Job) -> Any:
        return BACKOFFS[job.args["how"]](job.attempt)


@pytest.mark.parametrize("how", BACKOFFS)
async def test_a_broken_backoff_costs_neither_the_step_nor_its_queue(
    baton_dsn: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(backs_off.options, "backoff", BACKOFFS[how])
    async with working(baton_dsn, queues={"default": 1}) as baton_:
        run = await insert(
            baton_, function=backs_off.new(how), worker=BacksOff.new({"how": how}), good=one.new()
        )
        assert await run.result("good", timeout=5) == 1

        async def settled() -> bool:
            return "executing" not in (await states(run)).values()

        await eventually(settled, timeout=5)
        found = await states(run)
        assert found["function"] in ("retryable", "available", "discarded", "executing")
        assert found["worker"] in ("retryable", "available", "discarded", "executing")
        later = await insert(baton_, good=one.new())
        assert await later.result("good", timeout=5) == 1


# --- timeouts ------------------------------------------------------------------------------------------


async def test_an_async_step_that_takes_too_long_is_stopped(baton_dsn: str) -> None:
    stopped = []

    @step(timeout=0.05, max_attempts=1)
    async def dawdles() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    finished = await finish(baton_dsn, dawdles.new())
    assert "StepTimeout" in str(finished.errors["it"])
    assert "longer than its timeout of 0.05s" in str(finished.errors["it"])
    assert stopped == [True]


async def test_a_timeout_given_with_the_options_of_one_job_counts_for_that_job(baton_dsn: str) -> None:
    @step(timeout=60, max_attempts=1)
    async def dawdles_longer() -> None:
        await asyncio.sleep(30)

    finished = await finish(baton_dsn, dawdles_longer.with_options(timeout=0.05).new())
    assert "timeout of 0.05s" in str(finished.errors["it"])


async def test_a_timeout_error_of_the_steps_own_is_an_ordinary_failure(baton_dsn: str) -> None:
    @step(timeout=60, max_attempts=1)
    async def own_timeout() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    assert "StepTimeout" not in str((await finish(baton_dsn, own_timeout.new())).errors["it"])


async def test_a_plain_step_that_takes_too_long_is_told_and_keeps_its_slot_until_it_returns(
    baton_dsn: str,
) -> None:
    let_go = threading.Event()
    told = threading.Event()
    others = []

    @step(timeout=0.05, max_attempts=1)
    def cannot_be_stopped() -> None:
        while not let_go.wait(0.01):
            if baton.current().cancelled:
                told.set()

    @step
    async def other() -> None:
        others.append(let_go.is_set())

    try:
        async with working(baton_dsn, queues={"default": 1}) as baton_:
            run = await insert(baton_, it=cannot_be_stopped.new())
            with pytest.raises(StepFailed, match="its thread goes on until it returns"):
                await run.result("it", timeout=10)
            second = await insert(baton_, it=other.new())
            await eventually(told.is_set)
            assert (await states(second)) == {"it": "available"}
            let_go.set()
            await second.result("it", timeout=10)
    finally:
        let_go.set()
    assert others == [True]


async def test_threads_that_go_on_count_against_the_limit_although_the_step_is_tried_again(
    baton_dsn: str,
) -> None:
    let_go = threading.Event()
    at_once = []
    running = threading.Semaphore(0)
    lock = threading.Lock()
    now = 0

    def count(change: int) -> None:
        nonlocal now
        with lock:
            now += change
            at_once.append(now)

    @step(timeout=0.05, max_attempts=3, backoff=lambda attempt: 0, name="tests.lingers")
    def lingers() -> None:
        count(1)
        running.release()
        let_go.wait(20)
        count(-1)

    @step(name="tests.counts")
    def counts() -> None:
        count(1)
        count(-1)

    async with working(baton_dsn, queues={"default": 2}) as baton_:
        try:
            run = await insert(baton_, it=lingers.new())
            # Two attempts, and with them two threads, fill both slots.
            await eventually(lambda: running.acquire(blocking=False))
            await eventually(lambda: running.acquire(blocking=False), timeout=5)
            other = await insert(baton_, a=counts.new(), b=counts.new())

            async def second_attempt_written() -> bool:
                it = (await run.status()).step("it")
                return it.attempt == 2 and it.state != "executing"

            await eventually(second_attempt_written)
            assert max(at_once) == 2, "more threads than the queue's limit"
            assert set((await states(other)).values()) == {"available"}
        finally:
            let_go.set()
        await other.wait(timeout=10)


# --- where and when --------------------------------------------------------------------------------------


async def test_steps_run_by_priority_on_their_own_queues_and_not_before_their_time(baton_dsn: str) -> None:
    order = []

    @step(name="tests.notes")
    async def notes(what: str) -> None:
        order.append(what)

    async with Baton(baton_dsn) as inserter:
        workflow = Workflow("order")
        workflow.add("low", notes.with_options(priority=9).new("low"))
        workflow.add("elsewhere", notes.with_options(queue="elsewhere").new("elsewhere"))
        workflow.add(
            "later", notes.with_options(scheduled_at=datetime.now(UTC) + timedelta(hours=1)).new("later")
        )
        workflow.add("high", notes.with_options(priority=0).new("high"))
        workflow.add("middle", notes.with_options(priority=4).new("middle"))
        run_id = (await inserter.insert(workflow)).id
    async with working(baton_dsn, queues={"default": 1}) as baton_:
        run = baton_.get_run(run_id)
        await run.result("low", timeout=10)
        assert order == ["high", "middle", "low"]
        found = await states(run)
        assert (found["elsewhere"], found["later"]) == ("available", "scheduled")


async def as_dba(dsn: str, statement: str, *params: Any) -> None:
    """Change rows behind the triggers' back."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute(statement.encode(), params or None)


async def test_a_held_step_whose_job_was_let_through_is_not_run_and_goes_back(baton_dsn: str) -> None:
    ran = []

    @step(name="tests.gated")
    async def gated() -> None:
        ran.append(True)

    async with Baton(baton_dsn) as inserter:
        workflow = Workflow("gate")
        workflow.add("first", one.with_options(queue="elsewhere").new())
        workflow.add("held", gated.new(), deps=["first"])
        run_id = (await inserter.insert(workflow)).id
    await as_dba(baton_dsn, "UPDATE oban_jobs SET state = 'available' WHERE state = 'suspended'")
    async with working(baton_dsn) as baton_:
        run = baton_.get_run(run_id)
        job_id = (await run.status()).step("held").job_id
        await eventually(lambda: job_state(baton_dsn, job_id, "suspended"))
        assert (await run.status()).step("held").attempt == 0
    assert ran == []


async def test_a_doomed_step_whose_job_was_let_through_is_not_run_and_stays_cancelled(baton_dsn: str) -> None:
    ran = []

    @step(name="tests.doomed")
    async def doomed() -> None:
        ran.append(True)

    workflow = Workflow("doom")
    workflow.add("fails", raise_async.new("ValueError"))
    workflow.add("doomed", doomed.new(), deps=["fails"])
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.states["doomed"] == "cancelled"
    await as_dba(baton_dsn, "UPDATE oban_jobs SET state = 'available' WHERE state = 'cancelled'")
    async with working(baton_dsn) as baton_:
        job_id = (await baton_.get_run(finished.run.id).status()).step("doomed").job_id
        await eventually(lambda: job_state(baton_dsn, job_id, "cancelled"))
    assert ran == []


async def test_a_step_without_code_here_waits_for_a_worker_that_has_it_and_uses_no_attempt(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @step(name="tests.elsewhere", max_attempts=1)
    async def elsewhere() -> int:
        return 5

    async with working(baton_dsn) as baton_:
        with monkeypatch.context() as without:
            without.delitem(_declare._registry, "tests.elsewhere")
            run = await insert(baton_, it=elsewhere.new(), good=one.new())
            assert await run.result("good", timeout=5) == 1

            async def snoozed() -> bool:
                return (await states(run))["it"] == "scheduled"

            await eventually(snoozed)
            assert (await run.status()).step("it").attempt == 0
        assert any("no code for step 'tests.elsewhere' here" in record.message for record in caplog.records)
        skipping = asyncio.create_task(testing._skip_time(baton_))
        assert await run.result("it", timeout=5) == 5
        assert (await run.status()).step("it").attempt == 1
        skipping.cancel()


async def test_a_step_of_a_script_says_that_only_its_own_process_can_run_it(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @step(name="__main__.scripted")
    async def scripted() -> None: ...

    monkeypatch.delitem(_declare._registry, "__main__.scripted")
    async with working(baton_dsn) as baton_:
        run = await insert(baton_, it=scripted.new())

        async def snoozed() -> bool:
            return (await states(run))["it"] == "scheduled"

        await eventually(snoozed)
    assert any("move it to a module that the workers import" in record.message for record in caplog.records)


# --- results -------------------------------------------------------------------------------------------


async def test_results_are_read_from_dependencies_and_each_way_to_miss_has_its_own_error(
    baton_dsn: str,
) -> None:
    seen: dict[str, Any] = {}

    @step(name="tests.reads")
    async def reads() -> None:
        job = baton.current().job
        seen["value"] = await baton.results.get(job, "a")
        seen["short"] = await baton.current().result("a")
        seen["all"] = await baton.results.get_all(job)
        for name, wanted in (("stranger", NotADependency), ("nobody", ResultNotFound), ("failed", NoResult)):
            with pytest.raises(wanted) as caught:
                await baton.results.get(job, name)
            seen[name] = str(caught.value)
        with pytest.raises(NoResult):
            await baton.results.get_own(job)

    workflow = Workflow("reading")
    workflow.add("a", one.new())
    workflow.add("nothing", raise_async.new("ValueError"))
    workflow.add("failed", raise_async.new("ValueError"))
    workflow.add("stranger", one.new())
    workflow.add("reads", reads.new(), deps=["a", "failed"], ignore_discarded=True)
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.states["reads"] == "completed", finished.errors
    assert (seen["value"], seen["short"], seen["all"]) == (1, 1, {"a": 1})
    assert seen["stranger"] == (
        "step 'reads' does not wait for 'stranger'; it waits for 'a', 'failed'. Add it to deps to read its result"
    )
    assert "has no step 'nobody'" in seen["nobody"]
    assert "has stored no result" in seen["failed"]


@step(name="tests.gives_none")
async def gives_none() -> None: ...


async def test_a_result_of_none_is_a_result(baton_dsn: str) -> None:
    @step(name="tests.reads_none")
    async def reads_none() -> list[Any]:
        job = baton.current().job
        return [await baton.results.get(job, "none"), await baton.results.get_all(job)]

    workflow = Workflow("none")
    workflow.add("none", gives_none.new())
    workflow.add("reads", reads_none.new(), deps=["none"])
    assert (await testing.run(workflow, dsn=baton_dsn)).results["reads"] == [None, {"none": None}]


@step(name="tests.gives_much")
async def gives_much(n: int) -> str:
    # Of random digits, so that it is large in the database too, which compresses.
    return random.Random(n).randbytes(25_000).hex()


async def test_large_results_are_read_one_by_one_as_often_as_wanted(baton_dsn: str) -> None:
    @step(name="tests.reads_much", max_attempts=1)
    async def reads_much(first: str) -> list[int]:
        job = baton.current().job
        found = [len(first)]
        for name in ("b", "a", "b"):
            found.append(len(await baton.results.get(job, name)))  # noqa: PERF401
        return [*found, len(await baton.results.get_all(job)), len(await baton.results.get(job, "a"))]

    workflow = Workflow("much")
    a = workflow.add("a", gives_much.new(1))
    workflow.add("b", gives_much.new(2))
    workflow.add("reads", reads_much.new(a.result), deps=["b"])
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.results.get("reads") == [50_000] * 4 + [2, 50_000], finished.errors


async def test_a_step_with_a_hundred_dependencies_reads_them_all(baton_dsn: str) -> None:
    @step(name="tests.reads_many", max_attempts=1)
    async def reads_many(last: int) -> int:
        return sum((await baton.results.get_all(baton.current().job)).values()) + last

    workflow = Workflow("many")
    refs = [workflow.add(f"n{n}", one.new()) for n in range(100)]
    workflow.add("sum", reads_many.new(refs[-1].result), deps=refs)
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.results.get("sum") == 101, finished.errors


async def test_what_is_stored_before_the_end_is_the_result_and_is_read_as_ones_own(baton_dsn: str) -> None:
    @step(name="tests.stores")
    async def stores() -> Any:
        job = baton.current().job
        await baton.results.store(job, {"kept": 1})
        await baton.results.store(job, "the first stays")
        assert await baton.results.get_own(job) == {"kept": 1}
        return "ignored"

    assert (await finish(baton_dsn, stores.new())).results == {"it": {"kept": 1}}


async def test_a_step_that_stored_its_result_and_crashed_is_not_run_again(baton_dsn: str) -> None:
    runs = []

    @step(name="tests.crashes_after_store")
    async def crashes_after_store() -> Any:
        runs.append(True)
        await baton.results.store(baton.current().job, "kept")
        await asyncio.sleep(60)

    async with working(baton_dsn, shutdown_grace_period=0.05) as baton_:
        run = await insert(baton_, it=crashes_after_store.new())

        async def stored() -> bool:
            async with await psycopg.AsyncConnection.connect(baton_dsn) as conn:
                return (
                    await (await conn.execute("SELECT 1 FROM workflow_checkpoints")).fetchone()
                ) is not None

        await eventually(stored)
    async with working(baton_dsn) as baton_:
        assert await baton_.get_run(run.id).result("it", timeout=10) == "kept"
    assert runs == [True]


async def test_an_ignored_failure_gives_none_where_the_parameter_allows_it_and_says_so_where_not(
    baton_dsn: str,
) -> None:
    @step(name="tests.fails_with_a_number", max_attempts=1)
    async def fails_with_a_number() -> int:
        raise ValueError

    @step(name="tests.accepts_none", max_attempts=1)
    async def accepts_none(number: int | None) -> str:
        return f"got {number}"

    @step(name="tests.needs_a_number", max_attempts=1)
    async def needs_a_number(number: int) -> int:
        return number

    workflow = Workflow("ignored", ignore_discarded=True)
    number = workflow.add("number", fails_with_a_number.new())
    workflow.add("accepts", accepts_none.new(number.result))
    workflow.add("needs", needs_a_number.new(number.result))
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.results == {"accepts": "got None"}
    assert "which this step ignores, so there is no result: annotate the parameter with `| None`" in str(
        finished.errors["needs"]
    )


async def test_a_result_that_does_not_lead_where_the_reference_goes_fails_the_step(baton_dsn: str) -> None:
    @step(name="tests.gives_a_dict")
    async def gives_a_dict() -> dict[str, int]:
        return {"there": 1}

    @step(name="tests.wants", max_attempts=1)
    async def wants(value: int) -> int:
        return value

    workflow = Workflow("paths")
    given = workflow.add("given", gives_a_dict.new())
    workflow.add("wants", wants.new(given.result["elsewhere"]))
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert "the result of 'given' has no ['elsewhere']" in str(finished.errors["wants"])


async def test_a_result_over_the_limit_fails_the_step_and_names_the_limit(baton_dsn: str) -> None:
    @step(name="tests.too_much", max_attempts=1)
    async def too_much() -> str:
        return "x" * 2000

    async with working(baton_dsn, result_limit=1000) as baton_:
        run = await insert(baton_, it=too_much.new())
        with pytest.raises(StepFailed, match="over the limit of 1,000"):
            await run.result("it", timeout=10)


async def test_a_result_that_is_no_json_fails_the_step_with_the_path_to_the_culprit(baton_dsn: str) -> None:
    @step(name="tests.no_json", max_attempts=1)
    async def no_json() -> Any:
        return {"rows": [1, float("nan")]}

    assert 'result["rows"][1]: nan is not JSON' in str((await finish(baton_dsn, no_json.new())).errors["it"])
