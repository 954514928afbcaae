"""Steps and worker classes that call models: their defaults, usage in a result, and providers that have no room."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import psycopg
import pytest
from oban.job import Job, Record
from oban.job import Snooze as ObanSnooze
from openai.types.chat import ChatCompletion

import baton
from baton import Baton, LLMWorker, Snooze, Workflow, _declare, call_llm, llm_step, once, step, testing
from baton._answers import of_llm_step
from baton._declare import jittered
from baton.errors import InvalidOption
from tests.kit import fixtures
from tests.kit.providers import Cut, Providers, Refuse, Reply
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

USED = {"model": "m", "input_tokens": 3, "output_tokens": 4, "cache_read_tokens": 1, "cache_write_tokens": 0}


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"llm": 5, "default": 5}, poll_interval=0.05) as worker:
        yield worker


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with Providers() as providers:
        yield providers


def one(job: Any) -> Workflow:
    workflow = Workflow("llm")
    workflow.add("step", job)
    return workflow


async def rows(db: psycopg.AsyncConnection, sql: str) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql.encode())).fetchall()


USAGE = "SELECT model, input_tokens, output_tokens, cache_read_tokens, latency_ms FROM workflow_step_stats ORDER BY id"


# --- declared ----------------------------------------------------------------------------------------


@llm_step
async def plainly_declared() -> None: ...


@llm_step(queue="gpu", max_attempts=2, timeout=3, backoff=lambda _: 7, tags=["x"], name="tests.llm.declared")
def declared(n: int) -> int:
    return n


def test_an_llm_step_is_a_step_with_other_defaults() -> None:
    options = plainly_declared.options
    assert (options.queue, options.timeout, options.max_attempts, options.llm) == ("llm", None, 20, True)
    assert options.backoff is jittered
    assert declared.options == _declare.StepOptions(
        queue="gpu", max_attempts=2, timeout=3, backoff=declared.options.backoff, tags=("x",), llm=True
    )
    assert declared.with_options(queue="other").options.llm
    assert declared.name == "tests.llm.declared"
    assert declared(3) == 3


def test_its_backoff_grows_and_differs_for_those_that_failed_together() -> None:
    for attempt, longest in ((1, 2), (2, 4), (5, 32), (9, 300), (10_000, 300)):
        waits = {jittered(attempt) for _ in range(50)}
        assert len(waits) > 1
        assert all(longest / 2 <= wait <= longest for wait in waits)


class Ask(LLMWorker, max_attempts=3, timeout=30, tags=["asks"]):
    async def process(self, job: Job) -> Any:
        return {"said": job.args["say"], "llm_usage": {**USED, "latency_ms": 250}}


class AskAgain(Ask, priority=2):
    async def process(self, job: Job) -> Any:
        return await super().process(job)


def test_a_worker_class_has_the_options_of_its_base_and_its_own() -> None:
    job = AskAgain.new({"say": "x"})
    assert (job.queue, job.max_attempts, job.priority, job.tags) == ("llm", 3, 2, ["asks"])
    assert AskAgain().timeout(job) == 30
    assert LLMWorker().timeout(job) is None
    assert 0 < AskAgain().backoff(job) <= 2
    assert job.worker == f"{__name__}.AskAgain"


@pytest.mark.parametrize("timeout", [0, -1, True, "3", float("inf"), float("nan")])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidOption, match="timeout"):

        class Never(LLMWorker, timeout=timeout): ...


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"'max_attemps'; there are timeout, .*max_attempts"):

        class Misspelt(LLMWorker, max_attemps=3): ...


class Slow(LLMWorker, max_attempts=1, timeout=0.05):
    async def process(self, job: Job) -> None:
        await asyncio.Event().wait()


async def test_an_attempt_of_a_worker_class_ends_at_its_timeout(worker: Baton) -> None:
    run = await worker.insert(one(Slow.new()))
    assert await run.wait(timeout=60) == "failed"
    assert "timed out after 0.05s" in str((await run.status()).step("step").error)


class Unfinished(LLMWorker, max_attempts=1): ...


async def test_a_worker_class_without_process_says_so(worker: Baton) -> None:
    run = await worker.insert(one(Unfinished.new()))
    assert await run.wait(timeout=60) == "failed"
    assert "Unfinished has no process" in str((await run.status()).step("step").error)


# --- usage in a result -------------------------------------------------------------------------------


@llm_step(name="tests.llm.answers")
async def answers(used: Any) -> Any:
    return {"said": "x", "llm_usage": used}


@llm_step(name="tests.llm.answers_in_a_thread")
def answers_in_a_thread(used: Any) -> Any:
    return {"said": "x", "llm_usage": used}


@step(name="tests.llm.plain_step")
async def plain_step(used: Any) -> Any:
    return {"said": "x", "llm_usage": used}


class Records(LLMWorker):
    async def process(self, job: Job) -> Any:
        return Record({"said": "x", "llm_usage": USED})


@pytest.mark.parametrize("job", [answers.new(USED), answers_in_a_thread.new(USED), Records.new()])
async def test_usage_in_a_result_is_taken_out_and_recorded(
    worker: Baton, db: psycopg.AsyncConnection, job: Any
) -> None:
    run = await worker.insert(one(job))
    assert await run.result("step", timeout=60) == {"said": "x"}
    assert await rows(db, USAGE) == [("m", 3, 4, 1, None)]


async def test_usage_in_the_result_of_a_worker_class_is_recorded_once_though_a_class_calls_its_base(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    run = await worker.insert(one(AskAgain.new({"say": "hello"})))
    assert await run.result("step", timeout=60) == {"said": "hello"}
    assert await rows(db, USAGE) == [("m", 3, 4, 1, 250)]


async def test_a_plain_step_keeps_what_it_returns(worker: Baton, db: psycopg.AsyncConnection) -> None:
    run = await worker.insert(one(plain_step.new(USED)))
    assert await run.result("step", timeout=60) == {"said": "x", "llm_usage": USED}
    assert await rows(db, USAGE) == []


@pytest.mark.parametrize("used", [{"model": "m", "input_tokens": -1}, "much", [], 3])
async def test_usage_that_cannot_be_read_costs_no_result_and_is_unknown(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture, used: Any
) -> None:
    run = await worker.insert(one(answers.new(used)))
    assert await run.result("step", timeout=60) == {"said": "x"}
    assert await rows(db, USAGE) == [(None, None, None, None, None)]
    assert "llm_usage in the result" in caplog.text


async def test_no_usage_is_no_call(worker: Baton, db: psycopg.AsyncConnection) -> None:
    run = await worker.insert(one(answers.new(None)))
    assert await run.result("step", timeout=60) == {"said": "x"}
    assert await rows(db, USAGE) == []


# --- a provider without room -------------------------------------------------------------------------


class Full(Exception):
    """As the SDKs raise it."""

    status_code = 429

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("rate limited")
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


turns: list[int] = []


@pytest.fixture(autouse=True)
def _no_turns() -> None:
    turns.clear()


@llm_step(name="tests.llm.waits", max_attempts=1)
async def waits(retry_after: float | None) -> int:
    turns.append(1)
    if len(turns) < 4:
        raise Full(retry_after)
    return baton.current().attempt


@llm_step(name="tests.llm.waits_in_a_thread", max_attempts=1)
def waits_in_a_thread() -> int:
    turns.append(1)
    if len(turns) < 4:
        raise ValueError("wrapped") from Full(0)
    return baton.current().attempt


class Waits(LLMWorker, max_attempts=1):
    async def process(self, job: Job) -> int:
        turns.append(1)
        if len(turns) < 4:
            raise Full(0)
        return job.attempt


class WaitsInItsBase(Waits):
    async def process(self, job: Job) -> int:
        return int(await super().process(job))


@pytest.mark.parametrize(
    "job", [waits.new(0), waits.new(3_000), waits_in_a_thread.new(), Waits.new(), WaitsInItsBase.new()]
)
async def test_a_provider_without_room_is_waited_for_and_no_attempt_is_used(baton_dsn: str, job: Any) -> None:
    # `testing.run` skips the time.
    finished = await testing.run(one(job), dsn=baton_dsn)
    assert finished.results == {"step": 1}
    assert finished.attempts == {"step": 1}
    assert len(turns) == 4


async def test_it_is_waited_as_long_as_it_asks_and_not_all_come_back_at_once(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    workflow = Workflow("many")
    for n in range(12):
        workflow.add(f"step{n}", waits.with_options(max_attempts=3).new(1_000))
    turns.clear()
    await worker.insert(workflow)

    async def snoozed() -> list[float]:
        found = await rows(
            db,
            "SELECT extract(epoch FROM scheduled_at - attempted_at)::float8 FROM oban_jobs "
            "WHERE state = 'scheduled' AND meta ->> 'snoozed' = '1'",
        )
        return [seconds for (seconds,) in found] if len(found) >= 3 else []

    waited = await eventually(snoozed)
    assert min(waited) >= 1_000
    assert max(waited) < 1_130
    assert len({round(seconds) for seconds in waited}) > 1


async def test_without_a_time_it_is_waited_longer_each_time_up_to_a_minute() -> None:
    async def full() -> None:
        raise Full

    for snoozed, longest in ((0, 2), (3, 16), (50, 60)):
        job = Job("x", meta={"snoozed": snoozed})
        snooze = await of_llm_step(job, None, full())
        assert isinstance(snooze, ObanSnooze)
        assert longest / 2 <= snooze.seconds <= longest


async def test_why_tells_that_the_provider_has_no_room_until_the_step_is_claimed_again(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    run = await worker.insert(one(waits.new(1_000)))

    async def told() -> str:
        return (await run.why("step")).text

    async def waiting() -> bool:
        return "no room" in await told()

    await eventually(waiting)
    assert "its model's provider has no room (Full: rate limited); it is asked again" in await told()
    turns.extend([1, 1, 1])
    await db.execute("UPDATE oban_jobs SET state = 'available', scheduled_at = timezone('UTC', now())")
    assert await run.result("step", timeout=60) == 1
    assert await rows(db, "SELECT meta ? 'no_room' FROM oban_jobs") == [(False,)]


@step(name="tests.llm.a_step_that_is_none", max_attempts=1)
async def a_step_that_is_none() -> None:
    raise Full(0)


@llm_step(name="tests.llm.wrong", max_attempts=1)
async def wrong() -> None:
    raise ValueError("no such thing")


@llm_step(name="tests.llm.snoozes", max_attempts=1)
async def snoozes() -> int:
    turns.append(1)
    if len(turns) == 1:
        raise Snooze(0)
    return len(turns)


async def test_other_errors_and_other_steps_are_as_ever(baton_dsn: str) -> None:
    workflow = Workflow("others")
    workflow.add("none", a_step_that_is_none.new())
    workflow.add("wrong", wrong.new())
    workflow.add("snoozes", snoozes.new())
    finished = await testing.run(workflow, dsn=baton_dsn)
    assert finished.states == {"none": "discarded", "wrong": "discarded", "snoozes": "completed"}
    assert finished.results == {"snoozes": 2}


# --- with the real SDKs against a server ----------------------------------------------------------------


@llm_step(name="tests.llm.chat", max_attempts=2, backoff=lambda _: 0)
async def chat(url: str) -> str | None:
    request: Any = {"model": "gpt-6.1-sol", "messages": [{"role": "user", "content": "Is it durable?"}]}
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
        answer = await once(
            "draft",
            lambda: client.chat.completions.create(**request),
            request=request,
            returns=ChatCompletion,
        )
    if baton.current().attempt == 1:
        raise ValueError("after the answer")
    return answer.choices[0].message.content


@llm_step(name="tests.llm.message", max_attempts=1)
async def message(url: str) -> str:
    request: Any = {
        "model": "claude-opus-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Is it?"}],
    }
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-ant", max_retries=0) as client:
        answer = await call_llm(lambda: client.messages.create(**request), request=request)
    return "".join(block.text for block in answer.content if block.type == "text")


async def test_a_paid_answer_of_openai_is_asked_for_once_and_its_limits_are_waited_for(
    baton_dsn: str, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(
        Refuse(429, retry_after=0.2), Refuse(503, retry_after=1), Reply("Yes."), model="gpt-6.1-sol"
    )
    before = len(providers.asked("gpt-6.1-sol"))
    finished = await testing.run(one(chat.new(providers.openai_url)), dsn=baton_dsn)
    assert finished.results == {"step": "Yes."}
    assert finished.attempts == {"step": 2}
    assert len(providers.asked("gpt-6.1-sol")) - before == 3
    assert await rows(
        db,
        "SELECT attempt, call_key, model, input_tokens, output_tokens, cost_usd::text FROM workflow_step_stats",
    ) == [(1, "draft", "gpt-6.1-sol", 1_000, 500, "0.00624")]


async def test_an_overloaded_anthropic_is_waited_for_and_other_failures_use_attempts(
    baton_dsn: str, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(Refuse(529), Reply("It is."), model="claude-opus-5-5")
    finished = await testing.run(one(message.new(providers.url)), dsn=baton_dsn)
    assert finished.results == {"step": "It is."}
    assert [row[:3] for row in await rows(db, USAGE)] == [("claude-opus-5-5", 1_000, 500)]

    for failure in (Refuse(500), Refuse(400), Cut()):
        providers.script(failure, model="claude-opus-5-5")
        assert (await testing.run(one(message.new(providers.url)), dsn=baton_dsn)).outcome == "failed"
