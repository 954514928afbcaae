"""Captured calls: where they are asked for, what is stored of them and when, that no secret is, and how long they stay."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from oban.job import Job

import baton
from baton import Baton, DebugLog, Run, Snooze, Workflow, call_llm, debug, llm_step, once, step, worker
from baton._capture import Captured, Redactor, show
from baton.errors import InvalidOption, NoWorkflow, ResultNotFound, RunNotFound
from tests.kit import fixtures
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

REQUEST: dict[str, Any] = {
    "model": "gpt-6.1-sol",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 20,
}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-6.1-sol",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


async def answer() -> dict[str, Any]:
    return ANSWER


@step(name="tests.capture.nothing")
async def nothing() -> None:
    pass


@step(name="tests.capture.documents")
async def documents(count: int = 2) -> list[str]:
    return [f"document {number}" for number in range(count)]


@llm_step(name="tests.capture.ask", queue="default")
async def ask() -> str:
    value = await call_llm(answer, request=REQUEST)
    return str(value["choices"][0]["message"]["content"])


@asynccontextmanager
async def running(dsn: str, **options: Any) -> AsyncIterator[Baton]:
    async with Baton(dsn, queues={"default": 4}, poll_interval=0.05, **options) as one:
        yield one


async def finished(one: Baton, workflow: Workflow, *, outcome: str = "completed") -> Run:
    run = await one.insert(workflow)
    assert await run.wait(timeout=20) == outcome
    return run


async def logs(one: Baton, run: Run, step: str | None = None) -> tuple[DebugLog, ...]:
    return (await one.query.list_debug_logs(run.id, step)).logs


def alone(job: Any, *, debug: bool = True, name: str = "alone") -> Workflow:
    workflow = Workflow(name, debug=debug)
    workflow.add("a", job)
    return workflow


async def flags(db: psycopg.AsyncConnection, run: str) -> dict[str, bool]:
    cursor = await db.execute("SELECT name, debug FROM workflow_nodes WHERE workflow_id = %s", (run,))
    return dict(await cursor.fetchall())


def loads(text: str | None) -> Any:
    assert text is not None
    return json.loads(text)


# --- where it is asked for --------------------------------------------------------------------------


async def test_a_workflow_says_that_its_steps_are_captured(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    plain, debugged = Workflow("plain"), Workflow("debugged", debug=True)
    for workflow in (plain, debugged):
        workflow.add("a", nothing.new())
        workflow.add("b", nothing.new(), deps=["a"])
    async with Baton(baton_dsn) as one:
        first, second = await one.insert_many([plain, debugged])
    assert await flags(db, first.id) == {"a": False, "b": False}
    assert await flags(db, second.id) == {"a": True, "b": True}


async def test_a_rerun_is_captured_as_its_run_was(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    workflow = Workflow("debugged", debug=True)
    workflow.add("a", nothing.new())
    workflow.add("b", nothing.new(), deps=["a"])
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        again = await run.rerun(from_="b")
        await again.wait(timeout=20)
    assert await flags(db, again.id) == {"a": True, "b": True}


def test_that_a_run_is_captured_is_no_part_of_its_definition() -> None:
    assert Workflow("same", debug=True).definition_hash == Workflow("same").definition_hash


def test_options_that_cannot_work_are_refused() -> None:
    async def hook(value: Any) -> Any:
        return value

    with pytest.raises(InvalidOption, match="debug='yes' is no bool"):
        Workflow(debug="yes")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="debug is 'yes'"):
        Baton("postgresql://x", debug="yes")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="redact must be a function"):
        Baton("postgresql://x", redact=hook)
    with pytest.raises(InvalidOption, match="redact must be a function"):
        Baton("postgresql://x", redact="x")  # type: ignore[arg-type]


async def test_a_process_says_that_all_its_steps_are_captured(baton_dsn: str) -> None:
    async with running(baton_dsn) as one:
        run = await finished(one, alone(ask.new(), debug=False))
        assert await logs(one, run) == ()
    async with running(baton_dsn, debug=True) as one:
        run = await finished(one, alone(ask.new(), debug=False))
        assert len(await logs(one, run)) == 1


# --- what is stored ---------------------------------------------------------------------------------


async def test_a_call_is_captured_with_request_and_response(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    async with running(baton_dsn) as one:
        run = await finished(one, alone(ask.new()))
        (log,) = await logs(one, run)
    assert (log.step, log.position, log.attempt, log.model) == ("a", 1, 1, "gpt-6.1-sol")
    assert loads(log.request) == REQUEST
    assert loads(log.response) == ANSWER
    assert (log.context, log.error, log.call_key) == (None, None, None)
    # It leads to what the call used.
    row = await (await db.execute("SELECT id::text, input_tokens FROM workflow_step_stats")).fetchone()
    assert row == (log.call_id, 10)


async def test_a_stored_call_is_captured_once_with_its_key(baton_dsn: str) -> None:
    called = []

    async def call() -> dict[str, Any]:
        called.append(1)
        return ANSWER

    @step(name="tests.capture.twice", max_attempts=2, backoff=lambda _: 0)
    async def twice() -> None:
        await once("draft", call, request=REQUEST)
        if baton.current().attempt == 1:
            raise ValueError("not yet")

    async with running(baton_dsn) as one:
        run = await finished(one, alone(twice.new()))
        (log,) = await logs(one, run)
    assert len(called) == 1
    assert (log.attempt, log.call_key) == (1, "draft")
    assert loads(log.response) == ANSWER


async def test_a_call_that_fails_is_captured_with_its_error(baton_dsn: str) -> None:
    async def call() -> None:
        raise RuntimeError("no answer for sk-" + "a1" * 20)

    @step(name="tests.capture.fails", max_attempts=1)
    async def fails() -> None:
        await call_llm(call, request=REQUEST)

    async with running(baton_dsn) as one:
        run = await finished(one, alone(fails.new()), outcome="failed")
        (log,) = await logs(one, run)
    assert loads(log.request) == REQUEST
    assert log.response is None
    assert log.error == "RuntimeError: no answer for [redacted]"


async def test_the_results_that_a_step_saw_go_with_its_first_call(baton_dsn: str) -> None:
    @step(name="tests.capture.uses")
    async def uses(texts: list[str]) -> None:
        texts.clear()
        await call_llm(answer, request=REQUEST)
        await call_llm(answer, request=REQUEST)
        await baton.current().result("b")
        await call_llm(answer, request=REQUEST)

    workflow = Workflow(debug=True)
    first = workflow.add("a", documents.new())
    workflow.add("b", documents.new(1))
    workflow.add("c", uses.new(first.result), deps=["b"])
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        found = [None if log.context is None else loads(log.context) for log in await logs(one, run)]
    assert found == [{"a": ["document 0", "document 1"]}, None, {"b": ["document 0"]}]


async def test_a_worker_class_and_a_plain_step_are_captured_too(baton_dsn: str) -> None:
    @step(name="tests.capture.plain")
    def plain() -> None:
        asked = debug.log_request(REQUEST)
        debug.log_response(ANSWER, to=asked)

    workflow = Workflow(debug=True)
    workflow.add("a", documents.new())
    workflow.add("b", Reads.new(), deps=["a"])
    workflow.add("c", plain.new())
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        (read,) = await logs(one, run, "b")
        (told,) = await logs(one, run, "c")
    assert loads(read.context) == {"a": ["document 0", "document 1"]}
    assert (loads(told.request), loads(told.response)) == (REQUEST, ANSWER)


@worker(queue="default")
class Reads:
    """Reads all results, then calls a model."""

    async def process(self, job: Job) -> None:
        await baton.results.get_all(job)
        await call_llm(answer, request=REQUEST)


async def test_what_the_step_changes_later_is_not_seen(baton_dsn: str) -> None:
    @step(name="tests.capture.changes")
    async def changes() -> None:
        request = {"messages": [{"role": "user", "content": "first"}]}
        await call_llm(answer, request=request)
        request["messages"][0]["content"] = "second"

    async with running(baton_dsn) as one:
        run = await finished(one, alone(changes.new()))
        (log,) = await logs(one, run)
    assert loads(log.request) == {"messages": [{"role": "user", "content": "first"}]}


async def test_each_part_is_cut(baton_dsn: str) -> None:
    @step(name="tests.capture.large")
    async def large() -> None:
        await call_llm(answer, request={"prompt": "word " * 200_000})

    async with running(baton_dsn) as one:
        run = await finished(one, alone(large.new()))
        (log,) = await logs(one, run)
    assert log.request is not None
    assert len(log.request) < 66_000
    assert "characters cut]" in log.request


async def test_what_json_cannot_hold_is_captured_all_the_same(baton_dsn: str) -> None:
    @step(name="tests.capture.odd")
    async def odd() -> None:
        await call_llm(answer, request={"nul": "a\0b\ud800", "nan": float("nan"), "object": object()})

    async with running(baton_dsn) as one:
        run = await finished(one, alone(odd.new()))
        (log,) = await logs(one, run)
    assert loads(log.request) == {"nul": "a\ufffdb\ufffd", "nan": "nan", "object": "[builtins.object]"}


async def test_without_debug_nothing_is_copied_and_nothing_stored(
    baton_dsn: str, db: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("baton._accounts.weighed", never)

    @step(name="tests.capture.silent")
    async def silent(texts: list[str]) -> None:
        assert not debug.is_on()
        await call_llm(answer, request=REQUEST)
        debug.log_response(ANSWER, to=debug.log_request(REQUEST))
        debug.log_upstream_context({"a": 1})

    workflow = Workflow()
    first = workflow.add("a", documents.new())
    workflow.add("b", silent.new(first.result))
    async with running(baton_dsn) as one:
        await finished(one, workflow)
    row = await (await db.execute("SELECT count(*) FROM workflow_debug_logs")).fetchone()
    assert row == (0,)


# --- by hand ----------------------------------------------------------------------------------------


async def test_requests_and_responses_are_logged_by_hand(baton_dsn: str) -> None:
    @step(name="tests.capture.by_hand")
    async def by_hand() -> None:
        first = debug.log_request({"n": 1}, model="m-1")
        debug.log_request({"n": 2, "model": "m-2"})
        debug.log_response({"answer": 2})
        debug.log_response({"answer": 1}, to=first)
        debug.log_response({"answer": "again"}, to=first)
        debug.log_response(ValueError("alone"))
        debug.log_request({"n": 3})

    async with running(baton_dsn) as one:
        run = await finished(one, alone(by_hand.new()))
        found = await logs(one, run)
    assert sorted((log.model, log.request, log.response, log.error) for log in found if log.model) == [
        ("m-1", '{"n": 1}', '{"answer": 1}', None),
        ("m-2", '{"n": 2, "model": "m-2"}', '{"answer": 2}', None),
    ]
    assert sorted(str((log.request, log.response, log.error)) for log in found if not log.model) == [
        str(('{"n": 3}', None, None)),
        str((None, '{"answer": "again"}', None)),
        str((None, None, "ValueError: alone")),
    ]


async def test_results_are_logged_by_hand(baton_dsn: str) -> None:
    @step(name="tests.capture.context")
    async def context(texts: list[str]) -> None:
        debug.log_upstream_context()
        debug.log_upstream_context()
        debug.log_upstream_context({"elsewhere": {"api_key": "hunter2"}})

    workflow = Workflow(debug=True)
    first = workflow.add("a", documents.new(1))
    workflow.add("b", context.new(first.result))
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        found = [loads(log.context) for log in await logs(one, run)]
    assert found == [{"a": ["document 0"]}, {"elsewhere": {"api_key": "[redacted]"}}]


@pytest.mark.parametrize(
    "log",
    [
        debug.is_on,
        lambda: debug.log_request({}),
        lambda: debug.log_response({}),
        debug.log_upstream_context,
    ],
)
def test_outside_of_a_step_there_is_nothing_to_log_for(log: Callable[[], object]) -> None:
    with pytest.raises(NoWorkflow, match="no step of a workflow is running here"):
        log()


# --- secrets ----------------------------------------------------------------------------------------

PLANTED = "PLANTEDn0tT0BeSt0red"


async def test_no_secret_is_anywhere_in_the_database(baton_dsn: str) -> None:
    secret = f"sk-proj-{PLANTED}{PLANTED}"

    async def fails() -> None:
        raise RuntimeError(f"401: Incorrect API key provided: {secret}. Authorization: Bearer {secret}")

    async def headers() -> dict[str, Any]:
        return {
            **ANSWER,
            "headers": {"Set-Cookie": f"sid={PLANTED}"},
            "url": f"https://u:{PLANTED}@h/?key={PLANTED}",
        }

    @step(name="tests.capture.careless")
    async def careless(texts: list[str]) -> int:
        request = {
            **REQUEST,
            "extra_headers": {"Authorization": f"Bearer {secret}", "X-Api-Key": PLANTED, secret: "as a key"},
            "tools": [{"function": {"arguments": json.dumps({"password": f'"{PLANTED}"', "at": [secret]})}}],
            "model": secret,
            "long": f"{'word ' * 40_000}{secret} {'word ' * 40_000}",
            "pem": f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n-----END PRIVATE KEY-----",
        }
        await call_llm(headers, request=request, model="gpt-6.1-sol")
        with pytest.raises(RuntimeError):
            await call_llm(fails, request=request, model="gpt-6.1-sol")
        debug.log_request(request)
        debug.log_upstream_context({"seen": {"client_secret": PLANTED}, secret: 1})
        return len(texts)

    @step(name="tests.capture.sees")
    async def sees() -> list[str]:
        return ["nothing of the kind"]

    workflow = Workflow(debug=True)
    first = workflow.add("a", sees.new())
    workflow.add("b", careless.new(first.result))
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        assert len(await logs(one, run)) == 4
    dump = await asyncio.to_thread(_dump, baton_dsn)
    # What was captured is in it, the secrets are not, whole or in part.
    assert "Say hello." in dump
    assert dump.count("[redacted]") > 10
    for part in (PLANTED, PLANTED[:12], PLANTED[-12:], secret):
        assert part not in dump


def _dump(dsn: str) -> str:
    """All rows of all tables, as text."""
    with psycopg.connect(dsn) as conn:
        tables = conn.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        found = []
        for (table,) in tables.fetchall():
            with conn.cursor().copy(f'COPY "{table}" TO STDOUT'.encode()) as copy:
                found += [bytes(data).decode() for data in copy]
    return "".join(found)


# --- the hook ---------------------------------------------------------------------------------------


async def test_the_hook_has_the_last_word(baton_dsn: str) -> None:
    def redact(value: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        return json.loads(json.dumps(value).replace("Jane", "[name]"))

    async def fails() -> None:
        raise ValueError("no Jane")

    @step(name="tests.capture.jane")
    async def jane() -> None:
        await call_llm(answer, request={"content": "Jane asks", "api_key": "hunter2"})
        with pytest.raises(ValueError, match="Jane"):
            await call_llm(fails)

    async with running(baton_dsn, redact=redact) as one:
        run = await finished(one, alone(jane.new()))
        first, second = await logs(one, run)
    assert loads(first.request) == {"content": "[name] asks", "api_key": "[redacted]"}
    assert second.error == "ValueError: no [name]"


async def test_a_hook_that_raises_stores_nothing_but_that(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(value: Any) -> Any:
        raise KeyError(value)

    async with running(baton_dsn, redact=redact) as one:
        run = await finished(one, alone(ask.new()))
        (log,) = await logs(one, run)
    assert (log.request, log.response, log.context, log.model) == (None, None, None, None)
    assert log.error is not None
    assert log.error.startswith("not stored: redact() raised KeyError at ")
    told = [record for record in caplog.records if "is not stored" in record.getMessage()]
    assert len(told) == 1
    assert told[0].levelno == logging.ERROR
    # The text of the error is what was to be hidden.
    assert "Say hello" not in caplog.text


async def test_a_hook_that_never_returns_keeps_nothing_from_going_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    def redact(value: Any) -> Any:
        release.wait(60)
        return value

    redactor = Redactor(redact, seconds=0.05)
    call = Captured("step 'a' of 'w'", {"request": {"a": 1}}, "m", None)
    try:
        first, second = await redactor.redact([call, call])
        assert first.error == "not stored: redact() took longer than 0.05 seconds"
        assert second.error == "not stored: redact() has not returned from an earlier call"
        assert (first.parts, first.model) == ({}, None)
    finally:
        release.set()
    await eventually(lambda: redactor._stuck is not None and redactor._stuck.done())
    redactor = Redactor(None)
    assert [shown.parts for shown in await redactor.redact([call])] == [{"request": '{"a":1}'}]


async def test_usage_does_not_wait_for_the_hook(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    release = threading.Event()

    def redact(value: Any) -> Any:
        release.wait(60)
        return value

    async def stored() -> Any:
        cursor = await db.execute(
            "SELECT (SELECT count(*) FROM workflow_step_stats), (SELECT count(*) FROM workflow_checkpoints)"
        )
        row = await cursor.fetchone()
        return row == (2, 1)

    @step(name="tests.capture.waits")
    async def waits() -> None:
        await call_llm(answer, request=REQUEST)
        await once("draft", answer, request=REQUEST)

    async with running(baton_dsn, redact=redact) as one:
        run = await one.insert(alone(waits.new()))
        try:
            await eventually(stored)
            assert (await run.status()).state == "executing"
        finally:
            release.set()
        assert await run.wait(timeout=20) == "completed"
        # Before the outcome, what is captured is there.
        assert len(await logs(one, run)) == 2


def test_whatever_a_hook_raises_the_thread_goes_on() -> None:
    def redact(value: Any) -> Any:
        raise SystemExit

    shown = show(Captured("step 'a' of 'w'", {"request": 1}, None, None), redact)
    assert shown.error is not None
    assert shown.error.startswith("not stored: redact() raised SystemExit at ")
    assert show(Captured("x", {"response": None}, "sk-" + "a1" * 20, "e" * 9_000), lambda _: None).parts == {
        "response": "null"
    }


# --- reading ----------------------------------------------------------------------------------------


async def test_captured_calls_are_read_in_pages_by_run_step_and_attempt(baton_dsn: str) -> None:
    @step(name="tests.capture.several", max_attempts=2, backoff=lambda _: 0)
    async def several(name: str) -> None:
        for n in range(3):
            await call_llm(answer, request={"of": name, "attempt": baton.current().attempt, "n": n})
        if baton.current().attempt == 1:
            raise ValueError("again")

    workflow = Workflow("tenant-a:x", debug=True)
    workflow.add("a", several.new("a"))
    workflow.add("b", several.new("b"), deps=["a"])
    workflow.add("c", nothing.new())
    async with running(baton_dsn) as one:
        run = await finished(one, workflow)
        seen = []
        after, pages = 0, 0
        while True:
            page = await one.query.list_debug_logs(run.id, after=after, limit=5)
            seen += [loads(log.request) for log in page.logs]
            pages += 1
            if page.next is None:
                break
            after = page.next
        assert pages == 3
        assert seen == [
            {"of": of, "attempt": attempt, "n": n} for of in "ab" for attempt in (1, 2) for n in range(3)
        ]
        page = await one.query.list_debug_logs(run.id, "b", attempt=2)
        assert [log.attempt for log in page.logs] == [2, 2, 2]
        assert page.next is None
        by_position = await one.query.list_debug_logs(run.id, 2, attempt=2)
        assert by_position == page
        assert (await one.query.list_debug_logs(run.id, "c")).logs == ()
        assert (await one.query.list_debug_logs(run.id, name_prefix="tenant-a:")).logs
        with pytest.raises(ResultNotFound):
            await one.query.list_debug_logs(run.id, "d")
        with pytest.raises(RunNotFound):
            await one.query.list_debug_logs(run.id, name_prefix="tenant-b:")
        with pytest.raises(InvalidOption):
            await one.query.list_debug_logs(run.id, limit=101)
        with pytest.raises(InvalidOption):
            await one.query.list_debug_logs(run.id, after=-1)


async def test_a_page_ends_with_the_call_that_makes_it_a_megabyte(baton_dsn: str) -> None:
    @step(name="tests.capture.heavy")
    async def heavy() -> None:
        for _ in range(20):
            debug.log_request({"text": "word " * 12_000})

    async with running(baton_dsn) as one:
        run = await finished(one, alone(heavy.new()))
        first = await one.query.list_debug_logs(run.id, limit=100)
        assert first.next is not None
        second = await one.query.list_debug_logs(run.id, after=first.next, limit=100)
    assert len(first.logs) == 18
    assert len(second.logs) == 2
    assert second.next is None


# --- how long it stays ------------------------------------------------------------------------------


async def test_captured_calls_have_a_clock_of_their_own(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    async with running(baton_dsn) as one:
        old = await finished(one, alone(ask.new(), name="old"))
        new = await finished(one, alone(ask.new(), name="new"))
        await db.execute(
            "UPDATE workflow_debug_logs SET inserted_at = now() - interval '2 hours' WHERE workflow_id = %s",
            (old.id,),
        )
    async with running(baton_dsn, debug_log_max_age=3_600, interval=0.05) as one:

        async def gone() -> bool:
            return not await logs(one, old)

        await eventually(gone)
        assert len(await logs(one, new)) == 1
        # Its run stays, and so does what it used.
        assert await one.get_run(old.id).result("a") == "Hello."
    row = await (await db.execute("SELECT count(*) FROM workflow_step_stats")).fetchone()
    assert row == (2,)


async def test_captured_calls_go_with_their_run(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    async with running(baton_dsn) as one:
        run = await finished(one, alone(ask.new()))
        await db.execute("DELETE FROM oban_jobs")
        await db.execute("SELECT * FROM baton_prune(100, 0, NULL)")
        # One that comes later has no run, and nobody would delete it.
        text = json.dumps(
            [{"call_id": run.id, "workflow_id": run.id, "step_id": 1, "step_name": "a", "attempt": 1}]
        )
        await db.execute("SELECT baton_record('[]', %s)", (text,))
    row = await (await db.execute("SELECT count(*) FROM workflow_debug_logs")).fetchone()
    assert row == (0,)


async def test_an_attempt_that_snoozes_has_its_calls_captured(baton_dsn: str) -> None:
    snoozed: list[int] = []

    @step(name="tests.capture.snoozes")
    async def snoozes() -> Any:
        await call_llm(answer, request={"turn": len(snoozed)})
        if not snoozed:
            snoozed.append(1)
            return Snooze(0)
        return None

    async with running(baton_dsn) as one:
        run = await finished(one, alone(snoozes.new()))
        found = [(log.attempt, loads(log.request)) for log in await logs(one, run)]
    assert found == [(1, {"turn": 0}), (1, {"turn": 1})]
