"""Calls of models in a step: what they used is written whatever becomes of the attempt, and a stored call is made once."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from anthropic.types import Message
from oban.job import Job
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from psycopg import AsyncCursor

import baton
from baton import (
    Baton,
    Cancel,
    Snooze,
    Usage,
    Workflow,
    _accounts,
    call_llm,
    once,
    record_usage,
    step,
)
from baton._accounts import Entry
from baton.errors import (
    InvalidName,
    InvalidOption,
    InvalidResult,
    InvalidUsage,
    NoWorkflow,
    ResultError,
    ResultMismatch,
    ResultTooLarge,
)
from baton.pricing import Price
from tests.kit import crew, fixtures
from tests.kit.engine import Steps
from tests.kit.gate import Gate
from tests.kit.processes import Witness, Worker, until
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

# What the steps of a test do, by name.
scripts: dict[str, Callable[[], Any]] = {}


@pytest.fixture(autouse=True)
def _no_scripts() -> None:
    scripts.clear()


@step(name="tests.calls.act", max_attempts=3, backoff=lambda _: 0)
async def act(script: str) -> Any:
    return await scripts[script]()


@step(name="tests.calls.act_in_a_thread", max_attempts=3, backoff=lambda _: 0)
def act_in_a_thread(script: str) -> Any:
    return scripts[script]()


@baton.worker(queue="default")
class ActAsWorker:
    async def process(self, job: Job) -> Any:
        return await scripts[job.args["script"]]()


class PerToken:
    """A token costs a cent, of any model but `unknown`."""

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        if usage.model == "unknown" or usage.output_tokens is None:
            return None
        return Price(Decimal("0.01") * usage.output_tokens, "the test", "1")


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.05, pricing=PerToken()) as worker:
        yield worker


def workflow(*jobs: Any, **named: Callable[[], Any]) -> Workflow:
    """A workflow of independent steps: scripts by name, each an async step."""
    scripts.update(named)
    made = Workflow("calls")
    for name in named:
        made.add(name, act.new(name))
    return made


async def results(worker: Baton, **named: Callable[[], Any]) -> dict[str, Any]:
    run = await worker.insert(workflow(**named))
    assert await run.wait(timeout=60) == "completed", [step.error for step in (await run.status()).steps]
    return await run.results()


async def rows(db: psycopg.AsyncConnection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    return await (await db.execute(sql.encode(), params or None)).fetchall()


async def used(db: psycopg.AsyncConnection) -> list[tuple[Any, ...]]:
    """Of each call that is written: step, attempt, key, model, tokens that came out, cost."""
    return await rows(
        db,
        "SELECT step_name, attempt, call_key, model, output_tokens, cost_usd FROM workflow_step_stats ORDER BY id",
    )


async def stored(db: psycopg.AsyncConnection) -> dict[str, Any]:
    return {
        key: value["value"] for key, value in await rows(db, "SELECT key, value FROM workflow_checkpoints")
    }


async def steal(db: psycopg.AsyncConnection) -> None:
    """Give the job to another attempt, as a rescue does that takes its process for dead."""
    await db.execute("UPDATE oban_jobs SET attempt = 2, attempted_at = attempted_at + interval '1 ms'")


CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_780_000_000,
    "model": "gpt-6.1-sol",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": "hello",
                "refusal": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hello", "citations": None},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 1}},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 12, "cache_read_input_tokens": 4},
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_780_000_000.0,
    "model": "gpt-6.1-sol",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
    ],
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 21,
    },
}


# --- record_usage ------------------------------------------------------------------------------------


def record() -> str:
    record_usage(Usage(model="a", input_tokens=1, output_tokens=2))
    return "recorded"


async def in_place() -> str:
    return record()


async def in_a_task() -> str:
    return await asyncio.create_task(in_place())


async def in_a_thread_that_it_asks_for() -> str:
    return await asyncio.to_thread(record)


@pytest.mark.parametrize("script", [in_place, in_a_task, in_a_thread_that_it_asks_for])
async def test_usage_is_recorded_from_wherever_a_step_runs(
    worker: Baton, db: psycopg.AsyncConnection, script: Callable[[], Awaitable[str]]
) -> None:
    assert await results(worker, step=script) == {"step": "recorded"}
    assert await used(db) == [("step", 1, None, "a", 2, Decimal("0.02"))]


async def test_usage_is_recorded_from_plain_steps_and_worker_classes(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    scripts["plain"], scripts["class"] = record, in_place
    made = Workflow("calls")
    made.add("plain", act_in_a_thread.new("plain"))
    made.add("class", ActAsWorker.new({"script": "class"}), deps=["plain"])
    run = await worker.insert(made)
    assert await run.wait(timeout=60) == "completed"
    assert [row[0] for row in await used(db)] == ["plain", "class"]


async def test_what_is_recorded_is_written_with_all_that_is_known_of_it(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        told = record_usage(CHAT, latency=0.25)
        assert told == Usage(
            model="gpt-6.1-sol", provider=told.provider, input_tokens=9, output_tokens=12, latency=0.25
        )
        record_usage(Usage(model="unknown", output_tokens=3, units={"web_searches": 2}, service_tier="flex"))
        record_usage({"model": "m", "input_tokens": 1, "output_tokens": 1, "latency_ms": 7}, cost="1.230")

    run = await worker.insert(workflow(step=script))
    assert await run.wait(timeout=60) == "completed"
    assert await rows(
        db,
        "SELECT model, input_tokens, output_tokens, cache_read_tokens, units, service_tier, latency_ms, cost_usd::text, "
        "price_source, workflow_id::text, workflow_label FROM workflow_step_stats ORDER BY id",
    ) == [
        ("gpt-6.1-sol", 9, 12, None, None, None, 250, "0.12", "the test", run.id, "calls"),
        ("unknown", None, 3, None, {"web_searches": 2}, "flex", None, None, None, run.id, "calls"),
        ("m", 1, 1, None, None, None, 7, "1.23", "given", run.id, "calls"),
    ]


async def test_what_cannot_be_read_is_refused_in_the_step(worker: Baton, db: psycopg.AsyncConnection) -> None:
    async def script() -> None:
        for nothing in (None, 3, "text", object()):
            with pytest.raises(InvalidUsage):
                record_usage(nothing)
        with pytest.raises(InvalidUsage):
            record_usage({"model": "m", "input_tokens": -1})

    await results(worker, step=script)
    assert await used(db) == []


async def test_outside_of_a_step_there_is_nothing_to_record_to() -> None:
    with pytest.raises(NoWorkflow, match="record_usage"):
        record_usage(CHAT)
    with pytest.raises(NoWorkflow, match="call_llm"):
        await call_llm(in_place)
    with pytest.raises(NoWorkflow, match="once"):
        await once("key", in_place)


async def test_usage_is_written_while_the_step_goes_on(worker: Baton, db: psycopg.AsyncConnection) -> None:
    async def script() -> None:
        record()
        await eventually(lambda: used(db))

    await results(worker, step=script)


@pytest.mark.parametrize("end", [ValueError("no"), Snooze(0), Cancel("enough")])
async def test_what_an_attempt_used_counts_however_it_ends(
    worker: Baton, db: psycopg.AsyncConnection, end: Exception
) -> None:
    turns: list[int] = []

    async def script() -> None:
        record()
        turns.append(1)
        if len(turns) == 1:
            raise end

    run = await worker.insert(workflow(step=script))
    await run.wait(timeout=60)
    assert len(await used(db)) == len(turns)


async def test_what_an_attempt_used_that_lost_its_job_is_written(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        await steal(db)
        record()
        await eventually(lambda: used(db))
        await db.execute("UPDATE oban_jobs SET state = 'cancelled', cancelled_at = now()")

    run = await worker.insert(workflow(step=script))
    assert await run.wait(timeout=60) == "failed"
    assert await used(db) == [("step", 1, None, "a", 2, Decimal("0.02"))]


async def test_what_a_thread_records_after_its_attempt_timed_out_is_written(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    timed_out = threading.Event()

    @step(name="tests.calls.slow", timeout=0.05, max_attempts=1)
    def slow() -> None:
        timed_out.wait(60)
        record()

    made = Workflow("slow")
    made.add("slow", slow.new())
    run = await worker.insert(made)
    assert await run.wait(timeout=60) == "failed"
    timed_out.set()
    assert [row[0] for row in await eventually(lambda: used(db))] == ["slow"]


async def test_what_was_used_is_written_before_the_outcome(
    worker: Baton, baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with await psycopg.AsyncConnection.connect(baton_dsn) as holding:
        await holding.execute("LOCK TABLE workflow_step_stats IN SHARE MODE")
        run = await worker.insert(workflow(step=in_place))
        await eventually(lambda: rows(db, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        assert (await run.status()).states() == {"step": "executing"}
    assert await run.wait(timeout=60) == "completed"


# --- when it cannot be written -------------------------------------------------------------------------


async def test_what_is_used_while_the_database_is_away_is_kept_and_written_once(
    baton_dsn: str,
    db: psycopg.AsyncConnection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_accounts, "_CALL_SECONDS", 0.5)
    go_on = asyncio.Event()

    async def script() -> None:
        await go_on.wait()
        for _ in range(1_200):
            record()
        await eventually(lambda: "used of models cannot be written" in caplog.text, timeout=60)
        gate._open = True

    async with (
        Gate.before(baton_dsn) as gate,
        Baton(gate.dsn, queues={"default": 1}, pricing=PerToken()) as worker,
    ):
        run = await worker.insert(workflow(step=script))
        await eventually(lambda: worker._seam and worker._seam.dispatcher._tasks)
        gate.shut()
        go_on.set()
        async with Baton(baton_dsn) as reader:
            assert await reader.get_run(run.id).wait(timeout=60) == "completed"
    assert len(await used(db)) == 1_200


async def test_what_was_written_by_a_call_whose_answer_was_lost_is_not_written_again(
    worker: Baton, db: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = worker._ledger.books.record
    lost: list[int] = []

    async def losing(usage: str, logs: str) -> None:
        await sent(usage, logs)
        if not lost:
            lost.append(1)
            raise psycopg.OperationalError("the answer was lost")

    monkeypatch.setattr(worker._ledger.books, "record", losing)
    await results(worker, step=in_place)
    assert lost
    assert len(await used(db)) == 1


async def test_an_outcome_waits_only_so_long_and_what_was_used_is_written_all_the_same(
    worker: Baton,
    db: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_accounts, "_PATIENCE", 0.2)
    send = worker._ledger.books.record
    back = asyncio.Event()

    async def away(usage: str, logs: str) -> None:
        if not back.is_set():
            raise psycopg.OperationalError("the server is away")
        await send(usage, logs)

    monkeypatch.setattr(worker._ledger.books, "record", away)
    await results(worker, step=in_place)
    assert caplog.text.count("its outcome does not wait for it any longer") == 1
    back.set()
    assert len(await eventually(lambda: used(db))) == 1


async def test_outcomes_do_not_wait_for_somebody_who_must_see_to_the_database_first(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await db.execute("ALTER TABLE workflow_step_stats RENAME TO elsewhere")
    await results(worker, a=in_place, b=in_place)
    assert 'relation "public.workflow_step_stats" does not exist' in caplog.text
    assert "any longer" not in caplog.text
    await db.execute("ALTER TABLE elsewhere RENAME TO workflow_step_stats")
    await eventually(lambda: _are(2, used(db)))


async def _are(count: int, found: Awaitable[list[Any]]) -> bool:
    return len(await found) == count


async def test_a_call_that_the_database_refuses_takes_no_other_along_and_is_logged_with_all_it_used(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await db.execute("ALTER TABLE workflow_step_stats ADD CHECK (model <> 'cursed')")

    async def script() -> None:
        record()
        record_usage(Usage(model="cursed", output_tokens=77))
        record()

    await results(worker, step=script)
    await db.execute("ALTER TABLE workflow_step_stats DROP CONSTRAINT workflow_step_stats_model_check")
    assert [row[3] for row in await used(db)] == ["a", "a"]
    assert "output_tokens=77" in caplog.text


async def test_a_call_that_cannot_be_written_at_all_takes_no_other_along(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    async def script() -> None:
        record()
        usage = Usage(model="odd", output_tokens=77)
        # No constructor lets this through, so it stands for a mistake of ours.
        object.__setattr__(usage, "output_tokens", 2**70)
        baton.current().job.extra["baton"].accounts.record(usage)
        record()

    await results(worker, step=script)
    assert [row[3] for row in await used(db)] == ["a", "a"]
    assert str(2**70) in caplog.text


async def test_a_cost_that_the_database_does_not_hold_is_refused_in_the_step(worker: Baton) -> None:
    async def script() -> None:
        with pytest.raises(InvalidUsage, match="40 digits at most"):
            record_usage(Usage(model="m"), cost=Decimal("1e-50"))

    await results(worker, step=script)


async def test_what_is_kept_has_a_limit_and_what_is_over_it_is_logged(
    worker: Baton,
    db: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_accounts, "_MOST_KEPT", 2)

    async def script() -> None:
        for n in range(3):
            record_usage(Usage(model=f"m{n}", output_tokens=n))

    await results(worker, step=script)
    assert [row[3] for row in await used(db)] == ["m0", "m1"]
    assert "model='m2'" in caplog.text


async def test_a_pricing_that_raises_leaves_the_cost_unknown(
    baton_dsn: str, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def cost(self, usage: Usage, *, at: datetime) -> Price | None:
            raise RuntimeError("no prices today")

    async with Baton(baton_dsn, queues={"default": 1}, pricing=Broken()) as worker:
        await results(worker, step=in_place)
    assert await used(db) == [("step", 1, None, "a", 2, None)]
    assert "no prices today" in caplog.text


async def test_a_pricing_that_does_not_answer_leaves_the_cost_unknown_and_holds_up_nothing(
    baton_dsn: str,
    db: psycopg.AsyncConnection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_accounts, "_PRICING_SECONDS", 0.1)
    answers = threading.Event()

    class Silent:
        def cost(self, usage: Usage, *, at: datetime) -> Price | None:
            answers.wait()
            return Price(Decimal(1), "late")

    try:
        async with Baton(baton_dsn, queues={"default": 1}, pricing=Silent()) as worker:
            await results(worker, step=in_place)
    finally:
        answers.set()
    assert await used(db) == [("step", 1, None, "a", 2, None)]
    assert "the pricing did not answer in 0.1 seconds" in caplog.text


async def test_a_pricing_is_an_object_with_a_cost() -> None:
    with pytest.raises(InvalidOption, match="pricing"):
        Baton("postgresql://", pricing=3)  # type: ignore[arg-type]


async def test_what_was_used_is_written_when_baton_stops(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    started = asyncio.Event()

    async def script() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            record()

    async with Baton(
        baton_dsn, queues={"default": 1}, shutdown_grace_period=0.1, pricing=PerToken()
    ) as worker:
        await worker.insert(workflow(step=script))
        await started.wait()
    assert len(await used(db)) == 1


async def test_what_comes_when_baton_has_stopped_is_logged(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, over = threading.Event(), threading.Event()

    def script() -> None:
        stopped.wait(60)
        record()
        over.set()

    scripts["late"] = script
    made = Workflow("late")
    made.add("late", act_in_a_thread.new("late"))
    async with Baton(baton_dsn, queues={"default": 1}, shutdown_grace_period=0.05) as worker:
        await worker.insert(made)
        await eventually(lambda: worker._seam and worker._seam.dispatcher._tasks)
        await eventually(lambda: any(name.name.startswith("baton-step") for name in threading.enumerate()))
    stopped.set()
    await asyncio.to_thread(over.wait, 60)
    assert "is not written, as its Baton has stopped" in caplog.text
    assert "output_tokens=2" in caplog.text


# --- steps without models ---------------------------------------------------------------------------------


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The statements of this process that have to do with calls."""
    seen: list[bytes] = []
    execute = AsyncCursor.execute

    async def noting(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        text = query if isinstance(query, bytes) else b""
        if any(name in text for name in (b"baton_record", b"baton_store_call", b"checkpoints AS checkpoint")):
            seen.append(text)
        return await execute(self, query, *args, **kwargs)

    monkeypatch.setattr(AsyncCursor, "execute", noting)
    return seen


async def test_a_step_without_models_costs_no_statement_more(worker: Baton, statements: list[bytes]) -> None:
    async def script() -> str:
        return "plain"

    await results(worker, a=script, b=script)
    assert statements == []


async def test_a_stored_call_is_two_statements_and_one_when_it_is_there_already(
    worker: Baton, statements: list[bytes]
) -> None:
    counts: list[int] = []

    async def script() -> None:
        await once("key", lambda: _later(CHAT))
        counts.append(len(statements))
        await once("key", lambda: _later(CHAT))
        counts.append(len(statements))

    await results(worker, step=script)
    assert counts == [2, 3]


# --- call_llm ------------------------------------------------------------------------------------------


async def test_a_call_returns_its_value_as_it_is_and_its_usage_is_recorded(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    answer = ChatCompletion.model_validate(CHAT)

    async def script() -> None:
        async def call() -> ChatCompletion:
            return answer

        assert await call_llm(call, request={"model": "asked-for"}) is answer

    await results(worker, step=script)
    assert await used(db) == [("step", 1, None, "gpt-6.1-sol", 12, Decimal("0.12"))]
    ((latency,),) = await rows(db, "SELECT latency_ms FROM workflow_step_stats")
    assert latency > 0


async def test_a_call_that_records_its_usage_itself_is_recorded_once(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def call() -> dict[str, Any]:
        record()
        await asyncio.create_task(in_place())
        return CHAT

    async def script() -> None:
        await call_llm(call)
        await once("key", call)

    await results(worker, step=script)
    assert [row[:4] for row in await used(db)] == [
        ("step", 1, key, "a") for key in (None, None, "key", "key")
    ]


async def test_a_call_that_does_not_tell_what_it_used_is_recorded_as_unknown(
    worker: Baton, db: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    async def call() -> str:
        return "hello"

    async def script() -> None:
        await call_llm(call, request={"model": "quiet", "messages": []})
        await call_llm(call, model="named")

    await results(worker, step=script)
    assert await used(db) == [
        ("step", 1, None, "quiet", None, None),
        ("step", 1, None, "named", None, None),
    ]
    assert "what a call of quiet in step 'step' used is not known" in caplog.text


async def test_a_call_that_raises_leaves_what_it_recorded(worker: Baton, db: psycopg.AsyncConnection) -> None:
    async def call() -> None:
        record()
        raise RuntimeError("in the middle")

    async def script() -> None:
        with pytest.raises(RuntimeError, match="in the middle"):
            await call_llm(call)
        with pytest.raises(RuntimeError, match="in the middle"):
            await once("key", call)
        await call_llm(in_place)

    await results(worker, step=script)
    assert [row[2] for row in await used(db)] == [None, "key", None]


async def test_a_call_that_may_be_paid_for_and_gave_no_answer_is_recorded_as_unknown(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    class Refused(Exception):
        status_code = 400

    def raising(error: BaseException) -> Callable[[], Awaitable[Any]]:
        async def call() -> None:
            raise error

        return call

    async def script() -> None:
        for error in (TimeoutError("cut"), ValueError("no JSON")):
            with pytest.raises(type(error)):
                await call_llm(raising(error), model="paid")
            with pytest.raises(type(error)):
                await once("key", raising(error), model="paid")
        # Nobody is paid for these.
        for error in (Refused(), ConnectionRefusedError(), Snooze(1)):
            with pytest.raises(type(error)):
                await call_llm(raising(error), model="free")

    run = await worker.insert(workflow(step=script))
    assert await run.wait(timeout=60) == "completed"
    assert [row[2:] for row in await used(db)] == [
        (None, "paid", None, None),
        ("key", "paid", None, None),
    ] * 2
    assert (await worker.stats.workflow_totals(run.id)).cost_text == "unknown"


async def test_of_a_call_within_a_call_what_may_be_paid_for_is_recorded_once(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def cut() -> None:
        raise TimeoutError

    async def both() -> dict[str, Any]:
        with pytest.raises(TimeoutError):
            await call_llm(cut, model="inner")
        return CHAT

    async def known() -> None:
        await call_llm(in_place, model="inner")
        raise ValueError("after the answer")

    async def script() -> None:
        with pytest.raises(TimeoutError):
            await call_llm(lambda: call_llm(cut, model="inner"), model="outer")
        await call_llm(both, model="second")
        with pytest.raises(ValueError, match="after"):
            await call_llm(known, model="third")

    await results(worker, step=script)
    assert [row[3:5] for row in await used(db)] == [
        ("outer", None),
        (CHAT["model"], CHAT["usage"]["completion_tokens"]),
        ("second", None),
        ("a", 2),
    ]


async def test_what_a_call_records_that_takes_long_is_written_meanwhile(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def call() -> str:
        record()
        assert [row[2] for row in await eventually(lambda: used(db))] == ["key"]
        return "over"

    async def script() -> None:
        await once("key", call)

    await results(worker, step=script)
    assert len(await used(db)) == 1


async def test_a_task_that_outlives_its_call_records_for_itself(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await go_on.wait()
        record()

    async def call() -> str:
        record()
        tasks.append(asyncio.create_task(later()))
        return "over"

    async def script() -> None:
        await once("key", call)
        go_on.set()
        await tasks[0]

    await results(worker, step=script)
    assert [row[2] for row in await used(db)] == ["key", None]


async def test_a_call_within_a_call_is_recorded_once(worker: Baton, db: psycopg.AsyncConnection) -> None:
    async def call() -> dict[str, Any]:
        return CHAT

    async def script() -> None:
        await once("outer", lambda: call_llm(call), returns=dict)
        await call_llm(lambda: once("inner", call))
        # The second time, too, when nothing is called any more.
        await call_llm(lambda: once("inner", call))

    await results(worker, step=script)
    assert sorted(str(row[2]) for row in await used(db)) == ["None", "inner"]


async def test_calls_around_one_stored_call_count_it_once_though_they_make_it_at_once(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    under_way = asyncio.Event()

    async def call() -> dict[str, Any]:
        await under_way.wait()
        return CHAT

    async def script() -> None:
        asked = [asyncio.create_task(call_llm(lambda: once("inner", call))) for _ in range(2)]
        await asyncio.sleep(0)
        under_way.set()
        await asyncio.gather(*asked)

    await results(worker, step=script)
    assert [row[2] for row in await used(db)] == ["inner"]


async def test_a_call_within_itself_is_refused_instead_of_waiting_for_ever(worker: Baton) -> None:
    async def script() -> None:
        with pytest.raises(InvalidOption, match="made within itself"):
            await once("key", lambda: once("key", in_place))

    await results(worker, step=script)


async def test_what_cannot_be_a_call_is_refused_before_it_costs_anything(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        for make in (call_llm, lambda call, **options: once("key", call, **options)):
            with pytest.raises(InvalidOption, match="of type coroutine: pass a function that makes it"):
                await make(in_place())  # type: ignore[operator]
            with pytest.raises(InvalidOption, match="model is 5"):
                await make(in_place, model=5)  # type: ignore[operator]
            with pytest.raises(InvalidOption, match=r"reserve is 0.5; pass Reserve"):
                await make(in_place, reserve=0.5)  # type: ignore[operator]
        with pytest.raises(InvalidOption, match="pass the type itself"):
            await once("key", in_place, returns="ChatCompletion")

    await results(worker, step=script)
    assert await used(db) == []


async def test_a_stream_or_what_cannot_be_awaited_is_no_call(worker: Baton) -> None:
    async def chunks() -> AsyncIterator[str]:
        yield "x"

    async def streaming() -> AsyncIterator[str]:
        return chunks()

    async def generating() -> Iterator[int]:
        return iter([1])

    async def script() -> None:
        for call in (streaming, generating):
            with pytest.raises(InvalidOption, match="read it to its end within the call"):
                await call_llm(call)
        with pytest.raises(InvalidOption, match="nothing to await"):
            await call_llm(record)  # type: ignore[arg-type]

    await results(worker, step=script)


# --- once ------------------------------------------------------------------------------------------------


async def test_a_stored_call_is_made_once_for_all_attempts(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    calls: list[int] = []

    async def call() -> dict[str, Any]:
        calls.append(1)
        return {**CHAT, "said": len(calls)}

    async def script() -> int:
        answer = await once("draft", call)
        assert answer["said"] == 1
        if baton.current().attempt < 3:
            raise ValueError("after the call")
        return len(calls)

    assert await results(worker, step=script) == {"step": 1}
    assert await used(db) == [("step", 1, "draft", "gpt-6.1-sol", 12, Decimal("0.12"))]


async def test_a_value_is_stored_in_one_commit_with_what_it_used(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def call() -> dict[str, Any]:
        return CHAT

    async def script() -> None:
        await once("draft", call)
        await once("other", call)
        commits = await rows(
            db,
            "SELECT key, stats.xmin = checkpoint.xmin FROM workflow_checkpoints AS checkpoint "
            "JOIN workflow_step_stats AS stats ON stats.call_key = key ORDER BY key",
        )
        assert commits == [("draft", True), ("other", True)]

    await results(worker, step=script)


@dataclass
class Point:
    x: int
    y: tuple[int, ...] = ()


async def point() -> Point:
    return Point(1, (2, 3))


class Caller:
    async def method(self) -> Point:
        return Point(4)

    async def __call__(self) -> Point:
        return Point(5)


def promised() -> Awaitable[Point]:
    return point()


async def test_values_come_back_as_what_the_call_or_returns_says(worker: Baton) -> None:
    from functools import partial

    async def script() -> int:
        assert await once("a", point) == Point(1, (2, 3))
        assert await once("b", lambda: point(), returns=Point) == Point(1, (2, 3))
        assert await once("c", Caller().method) == Point(4)
        assert await once("d", Caller()) == Point(5)
        assert await once("e", partial(Caller.method, Caller())) == Point(4)
        assert await once("f", promised) == Point(1, (2, 3))
        if baton.current().attempt < 2:
            raise ValueError("again")
        return baton.current().attempt

    assert await results(worker, step=script) == {"step": 2}


@pytest.mark.parametrize(
    ("model", "made"),
    [(ChatCompletion, CHAT), (Message, MESSAGE), (Response, RESPONSE)],
    ids=["openai chat", "anthropic", "openai responses"],
)
async def test_answers_of_the_sdks_come_back_as_they_were(
    worker: Baton, db: psycopg.AsyncConnection, model: Any, made: dict[str, Any]
) -> None:
    # Of a field that no type has, and of a value that none allows, the SDKs make no fuss.
    whole = model.construct(**{**made, "a_field_of_tomorrow": {"x": [1]}, "object": "of tomorrow"})

    async def script() -> None:
        answer = await once("draft", lambda: _later(whole), returns=model)
        assert type(answer) is model
        assert answer.to_dict() == whole.to_dict()
        assert answer == whole
        if baton.current().attempt < 2:
            raise ValueError("again")

    await results(worker, step=script)
    assert [row[4] for row in await used(db)] == [12]


async def _later[T](value: T) -> T:
    return value


@pytest.mark.parametrize("value", [Point(1), (1, 2), {"a": Point(1)}])
async def test_a_value_of_no_known_type_is_stored_and_the_first_run_says_what_to_do(
    worker: Baton, db: psycopg.AsyncConnection, value: Any
) -> None:
    calls: list[int] = []

    async def call() -> Any:
        calls.append(1)
        return value

    async def script() -> None:
        if baton.current().attempt == 1:
            await once("draft", call)
        await once("draft", call, returns=type(value))

    run = await worker.insert(workflow(step=script))
    assert await run.wait(timeout=60) == "completed"
    ((error,),) = await rows(db, "SELECT errors[0]->>'error' FROM oban_jobs")
    assert f"returns={type(value).__name__}" in error
    assert "nothing is paid twice" in error
    assert len(calls) == 1


@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"a": [1, 2.5, None, True, "é"]}])
async def test_plain_json_comes_back_as_it_is(worker: Baton, value: Any) -> None:
    async def script() -> None:
        for _ in range(2):
            assert await once("key", lambda: _later(value)) == value

    await results(worker, step=script)


async def test_characters_that_postgres_refuses_do_not_lose_what_was_paid_for(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        for _ in range(2):
            said = await once("key", lambda: _later({"te\0xt": "a\0b\ud800 \\u0000"}))
            assert said == {"te\ufffdxt": "a\ufffdb\ufffd \\u0000"}

    await results(worker, step=script)
    assert await stored(db) == {"key": {"te\ufffdxt": "a\ufffdb\ufffd \\u0000"}}


async def test_what_json_cannot_hold_is_not_stored_but_what_it_used_is_recorded(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        with pytest.raises(InvalidResult, match=r"value of call 'key'.*score"):
            await once("key", lambda: _later({**CHAT, "score": float("nan")}))
        with pytest.raises(ResultTooLarge, match="value of call 'big'"):
            await once("big", lambda: _later({**CHAT, "text": "x" * 20_000_000}))

    await results(worker, step=script)
    assert await stored(db) == {}
    assert [row[2] for row in await used(db)] == ["key", "big"]


async def test_what_is_stored_must_be_of_the_type(worker: Baton, db: psycopg.AsyncConnection) -> None:
    async def script() -> None:
        with pytest.raises(ResultMismatch, match="call 'key' of step 'step' is not Point"):
            await once("key", lambda: _later({"z": 1}), returns=Point)
        assert await once("key", lambda: _later({"z": 2}), returns=dict) == {"z": 1}

    await results(worker, step=script)


@pytest.mark.parametrize("key", ["", " ", "x" * 201, "a\nb", "\u202e", 3, None])
async def test_a_key_is_text_that_can_be_shown(worker: Baton, key: Any) -> None:
    async def script() -> None:
        with pytest.raises(InvalidName, match="call key"):
            await once(key, in_place)

    await results(worker, step=script)


async def test_two_calls_under_one_key_at_once_are_one_call(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    calls: list[int] = []
    under_way = asyncio.Event()

    async def call() -> dict[str, Any]:
        calls.append(1)
        await under_way.wait()
        return CHAT

    async def script() -> None:
        asked = [asyncio.create_task(once("key", call)) for _ in range(20)]
        await eventually(lambda: calls)
        under_way.set()
        values = await asyncio.gather(*asked)
        assert values == [CHAT] * 20
        assert len({id(value) for value in values}) == 20

    await results(worker, step=script)
    assert len(calls) == len(await used(db)) == 1


async def test_of_two_at_once_both_hear_of_the_failure_and_the_next_calls_again(worker: Baton) -> None:
    under_way = asyncio.Event()

    async def failing() -> str:
        await under_way.wait()
        raise ValueError("no answer")

    async def script() -> None:
        asked = [asyncio.create_task(once("key", failing)) for _ in range(2)]
        await asyncio.sleep(0)
        under_way.set()
        raised = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(error) for error in raised] == ["no answer", "no answer"]
        assert await once("key", in_place) == "recorded"

    await results(worker, step=script)


async def test_when_the_one_that_calls_is_cancelled_another_calls(worker: Baton) -> None:
    calls: list[int] = []

    async def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "said"

    async def script() -> None:
        first = asyncio.create_task(once("key", call))
        await eventually(lambda: calls)
        second = asyncio.create_task(once("key", call))
        third = asyncio.create_task(once("key", call))
        await asyncio.sleep(0)
        first.cancel()
        third.cancel()
        assert await second == "said"
        for one in (first, third):
            with pytest.raises(asyncio.CancelledError):
                await one

    await results(worker, step=script)
    assert len(calls) == 2


async def test_the_thread_of_a_plain_step_may_make_stored_calls_in_a_loop_of_its_own(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    calls: list[int] = []

    async def call() -> dict[str, Any]:
        calls.append(1)
        return CHAT

    async def both() -> None:
        await asyncio.gather(once("key", call), once("key", call), call_llm(call))

    scripts["plain"] = lambda: asyncio.run(both())
    made = Workflow("plain")
    made.add("plain", act_in_a_thread.new("plain"))
    run = await worker.insert(made)
    assert await run.wait(timeout=60) == "completed"
    assert len(calls) == len(await used(db)) == 2


async def test_keys_are_the_steps_own(worker: Baton, db: psycopg.AsyncConnection) -> None:
    found = await results(
        worker,
        a=lambda: once("key", lambda: _later("of a")),
        b=lambda: once("key", lambda: _later("of b")),
    )
    assert found == {"a": "of a", "b": "of b"}


async def test_an_attempt_that_lost_its_job_stores_nothing_but_what_it_used_is_recorded(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    raised: list[BaseException] = []

    async def call() -> dict[str, Any]:
        await steal(db)
        return CHAT

    async def script() -> None:
        try:
            await once("key", call)
        except ResultError as error:
            raised.append(error)
        await db.execute("UPDATE oban_jobs SET state = 'cancelled', cancelled_at = now()")

    run = await worker.insert(workflow(step=script))
    assert await run.wait(timeout=60) == "failed"
    assert "no longer holds its job" in str(raised[0])
    assert await stored(db) == {}
    assert await used(db) == [("step", 1, "key", "gpt-6.1-sol", 12, Decimal("0.12"))]


async def test_a_step_that_is_cancelled_while_its_value_is_stored_leaves_the_value(
    worker: Baton, baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    calls: list[int] = []

    async def call() -> dict[str, Any]:
        calls.append(1)
        return CHAT

    @step(name="tests.calls.hurried", max_attempts=2, backoff=lambda _: 0)
    async def hurried() -> int:
        if baton.current().attempt == 1:
            async with asyncio.timeout(0.2):
                await once("key", call)
        await once("key", call)
        return len(calls)

    made = Workflow("hurried")
    made.add("hurried", hurried.new())
    async with await psycopg.AsyncConnection.connect(baton_dsn) as holding:
        await holding.execute("LOCK TABLE workflow_checkpoints IN SHARE MODE")
        run = await worker.insert(made)
        # The first attempt has given up waiting, and its outcome waits for what it used.
        await eventually(lambda: worker._ledger._stores)
        await eventually(
            lambda: [job for job in _running(worker) if job.extra["baton"].accounts.all_written is not None]
        )
    assert await run.result("hurried", timeout=60) == 1


def _running(worker: Baton) -> list[Job]:
    assert worker._seam is not None
    return [
        job for producer in worker._seam.acks.producers.values() for job, _ in producer._running_jobs.values()
    ]


async def test_a_value_is_stored_although_its_connection_is_ended(
    worker: Baton, baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async def script() -> None:
        assert await once("key", lambda: _later(CHAT)) == CHAT

    async with await psycopg.AsyncConnection.connect(baton_dsn) as holding:
        await holding.execute("LOCK TABLE workflow_step_stats IN SHARE MODE")
        run = await worker.insert(workflow(step=script))
        blocked = await eventually(
            lambda: rows(db, "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0")
        )
        await db.execute("SELECT pg_terminate_backend(%s)", blocked[0])
    assert await run.wait(timeout=60) == "completed"
    assert await stored(db) == {"key": CHAT}
    assert len(await used(db)) == 1


async def test_a_value_whose_store_was_answered_by_nobody_is_stored_once(
    worker: Baton, db: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = worker._ledger.books.store_call
    lost: list[int] = []

    async def losing(*params: Any) -> bool:
        held = await send(*params)
        if not lost:
            lost.append(1)
            raise psycopg.OperationalError("the answer was lost")
        return held

    monkeypatch.setattr(worker._ledger.books, "store_call", losing)

    async def script() -> None:
        await once("key", lambda: _later(CHAT))

    await results(worker, step=script)
    assert lost
    assert len(await used(db)) == 1


async def test_a_value_that_the_database_refuses_fails_the_attempt_and_what_it_used_is_recorded(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    await db.execute("ALTER TABLE workflow_checkpoints ADD CHECK (key <> 'cursed')")

    async def script() -> None:
        with pytest.raises(ResultError, match="refuses the value of call 'cursed'"):
            await once("cursed", lambda: _later(CHAT))

    await results(worker, step=script)
    await db.execute("ALTER TABLE workflow_checkpoints DROP CONSTRAINT workflow_checkpoints_key_check")
    assert [row[2] for row in await used(db)] == ["cursed"]


def test_after_a_crash_between_the_call_and_the_ack_nothing_is_called_again(
    baton_dsn: str, tmp_path: Path
) -> None:
    witness = Witness(baton_dsn)
    witness.insert(crew.one_step("pays", crew.pays.new()))
    with Worker(baton_dsn, tmp_path, rescue_after=1.0) as first:
        until(lambda: witness.ended("pays"), first)
        assert witness.rows("SELECT count(*) FROM workflow_checkpoints") == [(1,)]
        first.kill()
    with Worker(baton_dsn, tmp_path, rescue_after=1.0) as second:
        until(lambda: witness.job("pays")[0] == "completed", second)
    assert witness.result("pays") == first.pid
    assert witness.job("pays") == ("completed", 2)
    assert len(witness.rows("SELECT FROM effects WHERE phase = 'call'")) == 1
    assert witness.rows("SELECT attempt, call_key, output_tokens FROM workflow_step_stats") == [
        (1, "answer", 5)
    ]


async def test_what_a_retried_run_stored_is_there_unless_what_came_before_it_runs_again(
    worker: Baton,
) -> None:
    calls: list[str] = []
    failing = {"first", "second"}

    def paying(name: str) -> Callable[[], Awaitable[str]]:
        async def script() -> str:
            async def call() -> str:
                calls.append(name)
                return name

            await once("key", call)
            if name in failing:
                raise Cancel(f"{name} is not ready")
            return name

        return script

    scripts.update(first=paying("first"), second=paying("second"))
    made = Workflow("retried")
    made.add("first", act.new("first"))
    made.add("second", act.new("second"), deps=["first"])
    run = await worker.insert(made)
    await run.wait(timeout=60)
    failing.discard("first")
    await run.retry()
    await run.wait(timeout=60)
    failing.clear()
    await run.retry()
    assert await run.wait(timeout=60) == "completed"
    assert calls == ["first", "second"]


# --- told --------------------------------------------------------------------------------------------------


async def test_each_call_is_told_once_in_its_context_when_it_is_written(
    worker: Baton, db: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str | None, Decimal | None]] = []

    def called(entry: Entry) -> None:
        cost = None if entry.price is None else entry.price.cost
        told.append((baton.current().step, entry.usage.model, cost))

    monkeypatch.setattr(worker._ledger, "_told", called)

    async def script() -> None:
        record()
        await once("key", lambda: _later(CHAT))

    await results(worker, step=script)
    assert sorted(told) == [
        ("step", "a", Decimal("0.02")),
        ("step", "gpt-6.1-sol", Decimal("0.12")),
    ]


async def test_a_listener_that_raises_changes_nothing(
    worker: Baton,
    db: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def called(*_: object) -> None:
        raise RuntimeError("deaf")

    monkeypatch.setattr(worker._ledger, "_told", called)
    await results(worker, step=in_place)
    assert len(await used(db)) == 1
    assert "deaf" in caplog.text


# --- the functions in the database -------------------------------------------------------------------------


async def test_what_was_used_needs_no_run_that_is_still_there(steps: Steps) -> None:
    row = {
        "id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "workflow_id": "01890a5d-ac96-774b-bcce-b302099a8058",
        "workflow_label": "gone",
        "step_id": 7,
        "step_name": "gone",
        "attempt": 1,
        "age": 3600,
        "budgeted": False,
    }
    for _ in range(2):
        await steps.engine.record(json.dumps([row]), "[]")
    assert await steps.rows(
        "SELECT step_name, input_tokens, cost_usd, round(extract(epoch FROM now() - inserted_at) / 60) FROM workflow_step_stats"
    ) == [("gone", None, None, 60)]


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps
