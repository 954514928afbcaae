"""Spans and metrics by OpenTelemetry: one trace from the insert through every process, with an SDK and without."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from psycopg import AsyncConnection

import baton
from baton import Baton, Cancel, Snooze, Workflow, otel, step, telemetry
from baton._plan import plan_insert
from baton.errors import KeyConflict, MissingExtra
from tests.kit import traced
from tests.kit.reused import Reused

ROOT = Path(__file__).parents[1]


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


class Spans:
    """What was traced so far."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def of_step(self, name: str) -> list[ReadableSpan]:
        """Its attempts, in order."""
        attempts = [
            span
            for span in self.exporter.get_finished_spans()
            if attributes(span).get("baton.step.name") == name
        ]
        return sorted(attempts, key=lambda span: span.start_time or 0)

    def attempts_of(self, name: str) -> list[ReadableSpan]:
        """Without the calls of models that were made in them."""
        return [span for span in self.of_step(name) if span.name.startswith("baton.step ")]


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def key(span: ReadableSpan) -> SpanContext:
    assert span.context is not None
    return span.context


def ids(span: ReadableSpan) -> tuple[int, int]:
    return key(span).trace_id, key(span).span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return (span.parent.trace_id, span.parent.span_id) if span.parent else None


def linked(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    otel.instrument(tracer_provider=spans.provider)
    yield spans
    otel.uninstrument()


@step(name="tests.otel.gives")
async def gives() -> int:
    return 1


@step(name="tests.otel.recovers", max_attempts=3, backoff=lambda _attempt: 0)
async def recovers() -> int | Snooze:
    if baton.current().attempt == 1:
        raise ValueError("not yet " + "x" * 10_000)
    if "snoozed" not in baton.current().job.meta:
        return Snooze(0)
    return 1


@step(name="tests.otel.fails", max_attempts=1)
def fails() -> None:
    raise LookupError("no hope")


@step(name="tests.otel.declines")
async def declines() -> Cancel:
    return Cancel("not needed")


def chain(name: str = "chain", queue: str = "default") -> Workflow:
    workflow = Workflow(name)
    value = workflow.add("first", traced.first.with_options(queue=queue).new())
    workflow.add("second", traced.second.with_options(queue=queue).new(value.result))
    return workflow


# --- one trace ------------------------------------------------------------------------------------


async def test_a_trace_goes_on_from_the_insert_through_another_process(
    baton_dsn: str, spans: Spans, tmp_path: Path
) -> None:
    found = tmp_path / "spans.json"
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.traced", baton_dsn, str(found)), cwd=ROOT, stdin=subprocess.PIPE
    )
    try:
        async with Baton(baton_dsn) as client:
            with spans.provider.get_tracer("app").start_as_current_span("request") as request:
                run = await client.insert(chain(queue="traced"))
            assert await run.wait(timeout=60) == "completed"
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        await worker.wait()
    (insert,) = spans.named("baton.insert")
    assert parent(insert) == (request.get_span_context().trace_id, request.get_span_context().span_id)
    first, second = sorted(json.loads(found.read_text()), key=lambda span: span["start_time"])
    assert first["name"] == "baton.step tests.traced.first"
    assert second["attributes"]["baton.step.name"] == "second"
    trace_id, insert_id = ids(insert)
    for span in (first, second):
        assert int(span["context"]["trace_id"], 16) == trace_id
        assert int(span["parent_id"], 16) == insert_id
    assert first["links"] == []
    (link,) = second["links"]
    assert link["context"]["span_id"] == first["context"]["span_id"]
    assert link["context"]["trace_id"] == first["context"]["trace_id"]


async def test_a_fan_in_is_linked_to_the_last_attempts_of_its_dependencies(
    baton_dsn: str, spans: Spans
) -> None:
    workflow = Workflow("fan")
    for name in ("a", "b"):
        workflow.add(name, gives.new())
    workflow.add("late", recovers.new())
    workflow.add("bad", fails.new())
    workflow.add("join", gives.new(), deps=["a", "b", "late", "bad"], ignore_discarded=True)
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        run = await worker.insert(workflow)
        await run.wait(timeout=20)
    (join,) = spans.of_step("join")
    assert linked(join) == {ids(spans.of_step(name)[-1]) for name in ("a", "b", "late", "bad")}
    assert parent(join) == ids(spans.named("baton.insert")[0])


async def test_links_are_those_of_128_dependencies_at_most(
    baton_dsn: str, db: AsyncConnection, spans: Spans
) -> None:
    workflow = Workflow("wide")
    for n in range(150):
        workflow.add(f"s{n}", gives.new())
    workflow.add("join", gives.new(), deps=[f"s{n}" for n in range(150)])
    async with Baton(baton_dsn, queues={"default": 50}) as worker:
        assert await (await worker.insert(workflow)).wait(timeout=60) == "completed"
    (join,) = spans.of_step("join")
    assert len(linked(join)) == 128
    # Not only because the SDK takes no more.
    cursor = await db.execute("SELECT cardinality(baton_spans(id)) FROM workflow_nodes WHERE name = 'join'")
    assert await cursor.fetchone() == (128,)


async def test_the_spans_of_a_steps_own_code_are_under_its_attempt(baton_dsn: str, spans: Spans) -> None:
    tracer = spans.provider.get_tracer("app")

    @step(name="tests.otel.awaits")
    async def awaits() -> None:
        with tracer.start_as_current_span("inside"):
            await asyncio.sleep(0)

    @step(name="tests.otel.blocks")
    def blocks() -> None:
        tracer.start_span("inside").end()

    workflow = Workflow("own")
    workflow.add("awaits", awaits.new())
    workflow.add("blocks", blocks.new())
    async with Baton(baton_dsn, queues={"default": 2}) as worker:
        assert await (await worker.insert(workflow)).wait(timeout=10) == "completed"
    attempts = {ids(spans.of_step(name)[0]) for name in ("awaits", "blocks")}
    assert {parent(span) for span in spans.named("inside")} == attempts


async def test_a_worker_that_was_started_inside_a_span_runs_nothing_under_it(
    baton_dsn: str, spans: Spans
) -> None:
    with spans.provider.get_tracer("app").start_as_current_span("main") as main:
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            # Inserted by somebody who does not trace.
            otel.uninstrument()
            run = await worker.insert(chain())
            otel.instrument(tracer_provider=spans.provider)
            assert await run.wait(timeout=10) == "completed"
    for span in spans.of_step("first"):
        assert parent(span) is None
        assert key(span).trace_id != main.get_span_context().trace_id


# --- what a span says -----------------------------------------------------------------------------


async def test_an_attempts_span_says_what_ran_where(baton_dsn: str, spans: Spans) -> None:
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(chain("said"))
        assert await run.wait(timeout=10) == "completed"
        job_id = (await run.status()).step("first").job_id
    (span,) = spans.of_step("first")
    assert (span.name, span.kind) == ("baton.step tests.traced.first", SpanKind.CONSUMER)
    assert span.status.status_code == StatusCode.UNSET
    assert dict(attributes(span)) == {
        "messaging.system": "baton",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": str(job_id),
        "baton.workflow.id": run.id,
        "baton.workflow.name": "said",
        "baton.step.name": "first",
        "baton.step.function": "tests.traced.first",
        "baton.step.attempt": 1,
        "baton.step.max_attempts": 20,
        "baton.step.state": "completed",
    }
    (insert,) = spans.named("baton.insert")
    assert insert.kind == SpanKind.PRODUCER
    assert dict(attributes(insert)) == {
        "messaging.system": "baton",
        "messaging.operation.name": "insert",
        "messaging.operation.type": "send",
        "messaging.destination.name": "default",
        "messaging.batch.message_count": 2,
        "baton.workflow.name": "said",
        "baton.workflow.id": run.id,
    }


async def test_retries_snoozes_and_ends_can_be_told_apart(baton_dsn: str, spans: Spans) -> None:
    workflow = Workflow("ends")
    workflow.add("late", recovers.new())
    workflow.add("bad", fails.new())
    workflow.add("no", declines.new())
    async with Baton(baton_dsn, queues={"default": 3}) as worker:
        await (await worker.insert(workflow)).wait(timeout=20)

    def told(name: str) -> list[tuple[Any, Any, StatusCode]]:
        return [
            (
                attributes(span)["baton.step.state"],
                attributes(span)["baton.step.attempt"],
                span.status.status_code,
            )
            for span in spans.of_step(name)
        ]

    assert told("late") == [
        ("retryable", 1, StatusCode.ERROR),
        ("snoozed", 2, StatusCode.UNSET),
        ("completed", 2, StatusCode.UNSET),
    ]
    assert told("bad") == [("discarded", 1, StatusCode.ERROR)]
    assert told("no") == [("cancelled", 1, StatusCode.UNSET)]
    (bad,) = spans.of_step("bad")
    assert bad.status.description == "LookupError: no hope"
    assert attributes(bad)["error.type"] == "LookupError"
    (event,) = bad.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "LookupError"
    assert event.attributes["exception.message"] == "no hope"
    assert "in fails\n" in str(event.attributes["exception.stacktrace"])
    long, *_ = spans.of_step("late")
    assert len(str(long.status.description)) < 400
    assert len(str((long.events[0].attributes or {})["exception.stacktrace"])) <= 8_000


async def test_an_attempt_that_is_given_back_ends_its_span(baton_dsn: str, spans: Spans) -> None:
    began = asyncio.Event()

    @step(name="tests.otel.endless")
    async def endless() -> None:
        began.set()
        await asyncio.Event().wait()

    workflow = Workflow("endless")
    workflow.add("only", endless.new())
    async with Baton(baton_dsn, queues={"default": 1}, shutdown_grace_period=0) as worker:
        await worker.insert(workflow)
        await began.wait()
    (span,) = spans.of_step("only")
    assert attributes(span)["baton.step.state"] == "available"
    assert span.status.status_code == StatusCode.UNSET


async def test_an_insert_that_fails_is_a_span_that_failed(baton_dsn: str, spans: Spans) -> None:
    async with Baton(baton_dsn) as client:
        await client.insert(keyed("first"))
        with pytest.raises(KeyConflict):
            await client.insert(keyed("second"))
    good, bad = spans.named("baton.insert")
    assert (good.status.status_code, bad.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert attributes(bad)["error.type"] == "baton.errors.KeyConflict"
    assert trace.get_current_span(context.get_current()) is trace.INVALID_SPAN


def keyed(step_name: str) -> Workflow:
    workflow = Workflow("keyed", key="one")
    workflow.add(step_name, gives.new())
    return workflow


# --- what is carried ------------------------------------------------------------------------------


async def test_jobs_carry_the_trace_only_where_it_is_instrumented(
    baton_dsn: str, db: AsyncConnection, spans: Spans
) -> None:
    async with Baton(baton_dsn) as client:
        await client.insert(chain())
        (insert,) = spans.named("baton.insert")
        trace_id, span_id = ids(insert)
        found = await metas(db)
        assert [str(meta).rpartition("-")[0] for meta in found] == [f"00-{trace_id:032x}-{span_id:016x}"] * 2
        await db.execute("TRUNCATE oban_jobs, workflows, workflow_nodes, workflow_edges")
        otel.uninstrument()
        await client.insert(chain())
        assert await metas(db) == [None, None]
    assert spans.named("baton.insert") == [insert]


async def metas(db: AsyncConnection) -> list[str | None]:
    cursor = await db.execute("SELECT meta ->> 'traceparent' FROM oban_jobs ORDER BY id")
    return [row[0] for row in await cursor.fetchall()]


@pytest.mark.parametrize(
    "own", [{}, {"mine": 1}, {"traceparent": "mine"}], ids=["none", "other", "the same key"]
)
def test_what_a_jobs_own_meta_says_stays(own: dict[str, Any]) -> None:
    workflow = Workflow("meta")
    workflow.add("only", baton.worker()(Ordinary).new(meta=own))
    plan = plan_insert([workflow], carried={"traceparent": "ours"})
    (meta,) = plan.step_columns[6]
    # As PostgreSQL does, Python takes the last of two.
    assert json.loads(meta) == {"traceparent": "ours", **own}


class Ordinary:
    async def process(self, job: Any) -> None: ...


async def test_without_an_sdk_nothing_is_recorded_and_a_trace_is_carried_on(
    baton_dsn: str, db: AsyncConnection
) -> None:
    upstream = SpanContext(trace_id=7, span_id=9, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    otel.instrument(tracer_provider=trace.NoOpTracerProvider())
    try:
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            with trace.use_span(NonRecordingSpan(upstream)):
                run = await worker.insert(chain())
            assert await run.wait(timeout=10) == "completed"
            assert await metas(db) == [f"00-{7:032x}-{9:016x}-01"] * 2
            alone = await worker.insert(chain())
            assert await alone.wait(timeout=10) == "completed"
    finally:
        otel.uninstrument()


# --- metrics --------------------------------------------------------------------------------------


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data: Any = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_steps_and_runs_are_counted_and_measured_in_seconds(baton_dsn: str) -> None:
    reader = InMemoryMetricReader()
    otel.instrument(meter_provider=MeterProvider([reader]))
    try:
        async with Baton(baton_dsn, queues={"default": 2}) as worker:
            for workflow in (chain(), chain()):
                assert await (await worker.insert(workflow)).wait(timeout=10) == "completed"
            workflow = Workflow("bad")
            workflow.add("bad", fails.new())
            assert await (await worker.insert(workflow)).wait(timeout=10) == "failed"
    finally:
        otel.uninstrument()
    found = points(reader)
    steps = {
        (point.attributes["baton.step.function"], point.attributes["baton.step.state"]): point.value
        for point in found["baton.steps"]
    }
    assert steps == {
        ("tests.traced.first", "executing"): 2,
        ("tests.traced.first", "completed"): 2,
        ("tests.traced.second", "executing"): 2,
        ("tests.traced.second", "completed"): 2,
        ("tests.otel.fails", "executing"): 1,
        ("tests.otel.fails", "discarded"): 1,
    }
    runs = {point.attributes["baton.workflow.outcome"]: point.value for point in found["baton.runs"]}
    assert runs == {"completed": 2, "failed": 1}
    for name in ("baton.step.duration", "baton.step.queue_time"):
        assert sum(point.count for point in found[name]) == 5
        assert all(0 <= point.sum < 120 for point in found[name])
        assert found[name][0].explicit_bounds[-1] == 3600
    allowed = {"messaging.destination.name", "baton.step.function", "baton.step.state"}
    for name in ("baton.steps", "baton.step.duration", "baton.step.queue_time"):
        for point in found[name]:
            assert set(point.attributes) <= allowed, "nothing of which there may be any number"


# --- calls of models ------------------------------------------------------------------------------

USED = {
    "model": "gpt-6.1-sol",
    "input_tokens": 1_000,
    "output_tokens": 500,
    "cache_read_tokens": 400,
    "reasoning_tokens": 300,
    "latency_ms": 250,
}


@step(name="tests.otel.asks", max_attempts=1)
async def asks(provider: str | None = None) -> None:
    baton.record_usage(USED, provider=provider)
    with trace.get_tracer("app").start_as_current_span("mine"):
        baton.record_usage({"input_tokens": 10, "model": "gemini-of-nobody"})
    raise LookupError("no hope")


@step(name="tests.otel.asks_in_a_thread")
def asks_in_a_thread() -> None:
    baton.record_usage(USED)


async def asked(dsn: str, job: Any = None) -> None:
    workflow = Workflow("asked")
    workflow.add("ask", job or asks.new())
    async with Baton(dsn, queues={"default": 5}) as worker:
        await (await worker.insert(workflow)).wait(timeout=20)


async def test_a_call_of_a_model_is_a_span_under_the_attempt_with_the_names_of_the_conventions(
    baton_dsn: str, spans: Spans
) -> None:
    await asked(baton_dsn)
    (attempt,) = spans.attempts_of("ask")
    (call,) = spans.named("chat gpt-6.1-sol")
    assert parent(call) == ids(attempt)
    assert call.kind == SpanKind.CLIENT
    assert call.start_time is not None
    assert call.end_time is not None
    assert call.end_time - call.start_time == 250_000_000
    found = dict(attributes(call))
    assert found.pop("baton.workflow.id") == attributes(attempt)["baton.workflow.id"]
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-6.1-sol",
        "gen_ai.workflow.name": "asked",
        "gen_ai.usage.input_tokens": 1_000,
        "gen_ai.usage.output_tokens": 500,
        "gen_ai.usage.cache_read.input_tokens": 400,
        "gen_ai.usage.reasoning.output_tokens": 300,
        "gen_ai.usage.cost.amount": 0.00624,
        "gen_ai.usage.cost.currency": "USD",
        "gen_ai.usage.cost.source": "local",
        "baton.step.name": "ask",
        "baton.step.attempt": 1,
    }


async def test_what_is_not_known_is_no_attribute_and_the_step_says_how_many_calls_have_no_price(
    baton_dsn: str, spans: Spans
) -> None:
    await asked(baton_dsn)
    (call,) = spans.named("chat gemini-of-nobody")
    assert attributes(call)["gen_ai.provider.name"] == "gcp.gemini"
    assert not {name for name in attributes(call) if "cost" in name or "output" in name}
    (attempt,) = spans.attempts_of("ask")
    assert attributes(attempt)["baton.step.state"] == "discarded"
    assert attributes(attempt)["baton.cost.usd"] == 0.00624
    assert attributes(attempt)["baton.cost.unpriced_calls"] == 1


async def test_a_plain_step_in_its_thread_has_the_same_span(baton_dsn: str, spans: Spans) -> None:
    await asked(baton_dsn, asks_in_a_thread.new())
    (call,) = spans.named("chat gpt-6.1-sol")
    (attempt,) = spans.attempts_of("ask")
    assert parent(call) == ids(attempt)
    assert attributes(attempt)["baton.cost.usd"] == 0.00624


@pytest.mark.parametrize(
    ("said", "told"), [("google-vertex", "gcp.vertex_ai"), ("bedrock", "aws.bedrock"), ("ours", "ours")]
)
async def test_providers_have_the_names_of_the_conventions(
    baton_dsn: str, spans: Spans, said: str, told: str
) -> None:
    await asked(baton_dsn, asks.new(said))
    (call,) = spans.named("chat gpt-6.1-sol")
    assert attributes(call)["gen_ai.provider.name"] == told


async def test_tokens_and_seconds_of_calls_are_measured(baton_dsn: str) -> None:
    reader = InMemoryMetricReader()
    otel.instrument(tracer_provider=Spans().provider, meter_provider=MeterProvider([reader]))
    try:
        await asked(baton_dsn)
    finally:
        otel.uninstrument()
    found = points(reader)
    tokens = {
        (point.attributes["gen_ai.response.model"], point.attributes["gen_ai.token.type"]): point.sum
        for point in found["gen_ai.client.token.usage"]
    }
    assert tokens == {
        ("gpt-6.1-sol", "input"): 1_000,
        ("gpt-6.1-sol", "output"): 500,
        ("gemini-of-nobody", "input"): 10,
    }
    (duration,) = found["gen_ai.client.operation.duration"]
    assert (duration.count, duration.sum) == (1, 0.25)
    assert {name for point in found["gen_ai.client.token.usage"] for name in point.attributes} == {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.response.model",
        "gen_ai.token.type",
    }


async def test_where_the_clients_are_instrumented_themselves_only_the_steps_cost_is_told(
    baton_dsn: str,
) -> None:
    spans, reader = Spans(), InMemoryMetricReader()
    otel.instrument(tracer_provider=spans.provider, meter_provider=MeterProvider([reader]), model_calls=False)
    try:
        await asked(baton_dsn)
    finally:
        otel.uninstrument()
    assert not [span for span in spans.exporter.get_finished_spans() if span.name.startswith("chat")]
    assert "gen_ai.client.token.usage" not in points(reader)
    (attempt,) = spans.attempts_of("ask")
    assert attributes(attempt)["baton.cost.usd"] == 0.00624


# --- switching on and off -------------------------------------------------------------------------


async def test_instrumenting_twice_counts_once(baton_dsn: str, spans: Spans) -> None:
    others = Spans()
    otel.instrument(tracer_provider=others.provider)
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        assert await (await worker.insert(chain())).wait(timeout=10) == "completed"
    assert (len(others.of_step("first")), len(spans.of_step("first"))) == (1, 0)
    otel.uninstrument()
    otel.uninstrument()
    assert telemetry.current_tracer() is None


def test_without_the_package_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "baton._otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delattr(baton, "_otel", raising=False)
    with pytest.raises(MissingExtra, match=r'pip install "oban-baton\[otel\]"'):
        otel.instrument()
    otel.uninstrument()


class Broken:
    """A tracer of which nothing works."""

    def begin_insert(self, workflows: Sequence[str], *, steps: int, queues: Sequence[str]) -> Any:
        raise RuntimeError("no insert")

    def begin_step(self, attempt: telemetry.StepAttempt) -> Any:
        raise RuntimeError("no step")


class BrokenSpan:
    @property
    def carried(self) -> Any:
        return {}

    def end(self, *_: Any) -> None:
        raise RuntimeError("no end")


class HalfBroken:
    def begin_insert(self, workflows: Sequence[str], *, steps: int, queues: Sequence[str]) -> Any:
        return BrokenSpan()

    def begin_step(self, attempt: telemetry.StepAttempt) -> Any:
        return BrokenSpan()


@pytest.mark.parametrize("tracer", [Broken(), HalfBroken()], ids=["begin", "end"])
async def test_a_tracer_that_raises_is_logged_and_everything_goes_on(
    baton_dsn: str, tracer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry.trace_with(tracer)
    try:
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            assert await (await worker.insert(chain())).wait(timeout=10) == "completed"
    finally:
        telemetry.trace_with(None)
    assert "the tracer failed" in caplog.text
