"""The tracer and the handler of metrics behind `baton.otel`. Imports opentelemetry's API, built on Baton's public names.

The trace of an insert travels in the meta of the jobs, as W3C's `traceparent` and `tracestate`. What an attempt leaves for
those that follow it is its own span, in the same form.
"""

import traceback
from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import Any

from oban import telemetry as oban_telemetry
from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton import __version__, telemetry

_HANDLER = "baton-otel"
_SYSTEM = "baton"
# From a step that does next to nothing to one that asks a model all night.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_LONGEST_MESSAGE = 300
_LONGEST_TRACEBACK = 8_000

_propagator = TraceContextTextMapPropagator()


def attach(
    tracer_provider: trace.TracerProvider | None, meter_provider: metrics.MeterProvider | None
) -> None:
    """See `baton.otel.instrument`."""
    detach()
    telemetry.trace_with(OtelTracer(trace.get_tracer("baton", __version__, tracer_provider)))
    events = [*telemetry.STEP_EVENTS, telemetry.WORKFLOW_FINISHED]
    oban_telemetry.attach(_HANDLER, events, Measure(metrics.get_meter("baton", __version__, meter_provider)))


def detach() -> None:
    """See `baton.otel.uninstrument`."""
    oban_telemetry.detach(_HANDLER)
    if isinstance(telemetry.current_tracer(), OtelTracer):
        telemetry.trace_with(None)


class OtelTracer:
    """A `baton.telemetry.Tracer` that makes spans."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def begin_insert(self, workflows: Sequence[str], *, steps: int, queues: Sequence[str]) -> "InsertSpan":
        """A span under what is current here."""
        attributes: dict[str, Any] = {
            "messaging.system": _SYSTEM,
            "messaging.operation.name": "insert",
            "messaging.operation.type": "send",
            "messaging.batch.message_count": steps,
            "baton.workflow.name": list(workflows) if len(workflows) != 1 else workflows[0],
        }
        if len(queues) == 1:
            attributes["messaging.destination.name"] = queues[0]
        span = self._tracer.start_span("baton.insert", kind=SpanKind.PRODUCER, attributes=attributes)
        return InsertSpan(span)

    def begin_step(self, attempt: telemetry.StepAttempt) -> "StepSpan":
        """A span under that of the insert, linked to those of the attempts it follows."""
        # Not under what is current: the tasks of a worker inherit whatever was when it was started.
        parent = _propagator.extract(attempt.carried, context=Context())
        span = self._tracer.start_span(
            f"baton.step {attempt.worker}",
            context=parent,
            kind=SpanKind.CONSUMER,
            links=_links(attempt.dependencies),
            attributes={
                "messaging.system": _SYSTEM,
                "messaging.operation.name": "run",
                "messaging.operation.type": "process",
                "messaging.destination.name": attempt.queue,
                "messaging.message.id": str(attempt.job_id),
                "baton.workflow.id": attempt.workflow_id,
                "baton.workflow.name": attempt.workflow_label,
                "baton.step.name": attempt.step_name,
                "baton.step.function": attempt.worker,
                "baton.step.attempt": attempt.attempt,
                "baton.step.max_attempts": attempt.max_attempts,
            },
        )
        return StepSpan(span, parent)


class InsertSpan:
    """The span of an insert, current until its end."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))
        self.carried: Mapping[str, str] = _carrier(span)

    def end(self, run_ids: Sequence[str], error: BaseException | None) -> None:
        """With the ids of the runs."""
        context.detach(self._token)
        if run_ids:
            self._span.set_attribute("baton.workflow.id", run_ids[0] if len(run_ids) == 1 else list(run_ids))
        if error is not None:
            _fail(self._span, error)
        self._span.end()


class StepSpan:
    """The span of an attempt, current in its task until its end."""

    def __init__(self, span: Span, parent: Context) -> None:
        self._span = span
        self._token: Token[Context] = context.attach(trace.set_span_in_context(span, parent))
        self.carried: str = _carrier(span).get("traceparent", "")

    def end(self, state: str, error: BaseException | None) -> None:
        """A failure is one whether or not there are attempts left."""
        context.detach(self._token)
        self._span.set_attribute("baton.step.state", state)
        if state in ("retryable", "discarded"):
            _fail(self._span, error)
        self._span.end()


class Measure:
    """The handler of events that counts and measures."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._steps = meter.create_counter(
            "baton.steps", unit="{step}", description="Attempts by what became of them"
        )
        self._runs = meter.create_counter(
            "baton.runs", unit="{run}", description="Runs finished, by their outcome"
        )
        self._duration = meter.create_histogram(
            "baton.step.duration",
            unit="s",
            description="How long the code of an attempt ran",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._queue_time = meter.create_histogram(
            "baton.step.queue_time",
            unit="s",
            description="How long a step that could run waited for a worker",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def __call__(self, name: str, meta: dict[str, Any]) -> None:
        if name == telemetry.WORKFLOW_FINISHED:
            self._runs.add(1, {"baton.workflow.outcome": meta["outcome"]})
            return
        step = {"messaging.destination.name": meta["queue"], "baton.step.function": meta["worker"]}
        state = {**step, "baton.step.state": meta["state"]}
        self._steps.add(meta["count"], state)
        if name == telemetry.STEP_EXECUTING:
            if "queue_time" in meta:
                self._queue_time.record(max(0, meta["queue_time"]) / 1e9, step)
        elif "duration" in meta:
            self._duration.record(meta["duration"] / 1e9, state)


def _carrier(span: Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=trace.set_span_in_context(span, Context()))
    return carrier


def _links(carried: Sequence[str]) -> list[Link]:
    links = []
    for traceparent in carried:
        extracted = _propagator.extract({"traceparent": traceparent}, context=Context())
        linked = trace.get_current_span(extracted).get_span_context()
        if linked.is_valid:
            links.append(Link(linked))
    return links


def _fail(span: Span, error: BaseException | None) -> None:
    """Mark a span as failed. Not by `record_exception`, which cuts nothing."""
    if error is None:
        span.set_status(StatusCode.ERROR)
        return
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    message = str(error)[:_LONGEST_MESSAGE]
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, f"{kind}: {message}" if message else kind)
    span.add_event(
        "exception",
        {
            "exception.type": kind,
            "exception.message": message,
            "exception.stacktrace": "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:],
        },
    )
