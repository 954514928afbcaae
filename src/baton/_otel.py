"""The tracer and the handler of metrics behind `baton.otel`. Imports opentelemetry's API, built on Baton's public names.

The trace of an insert travels in the meta of the jobs, as W3C's `traceparent` and `tracestate`. What an attempt leaves for
those that follow it is its own span, in the same form.
"""

import re
import traceback
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from datetime import datetime
from decimal import Decimal
from typing import Any

from oban import telemetry as oban_telemetry
from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton import __version__, telemetry

_HANDLER = "baton-otel"
_CALLS = "baton-otel-calls"
_SYSTEM = "baton"
# From a step that does next to nothing to one that asks a model all night.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
# As the conventions for models have them.
_CALL_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4.0**power for power in range(14))
# No convention has a cost yet. This is what is proposed for one (semantic-conventions-genai, number 443); should another come,
# it is here to be changed.
_COST = "gen_ai.usage.cost"
_STEP_COST = "baton.cost.usd"
_STEP_UNPRICED = "baton.cost.unpriced_calls"
_LONGEST_MESSAGE = 300
_LONGEST_TRACEBACK = 8_000

# What the conventions call the providers that pricing and SDKs have other names for, and whose a model is by its name.
_PROVIDERS = {
    "google": "gcp.gemini",
    "google-gla": "gcp.gemini",
    "gemini": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
    "xai": "x_ai",
}
_MODELS = (
    (re.compile(r"(chat)?gpt-|o[0-9]"), "openai"),
    (re.compile(r"claude"), "anthropic"),
    (re.compile(r"gemini"), "gcp.gemini"),
)

_propagator = TraceContextTextMapPropagator()
# The span of the attempt that runs here; what is current may be one of the step's own.
_step_span: ContextVar["StepSpan | None"] = ContextVar("baton_step_span", default=None)


def attach(
    tracer_provider: trace.TracerProvider | None,
    meter_provider: metrics.MeterProvider | None,
    *,
    model_calls: bool,
) -> None:
    """See `baton.otel.instrument`."""
    detach()
    tracer = trace.get_tracer("baton", __version__, tracer_provider)
    meter = metrics.get_meter("baton", __version__, meter_provider)
    telemetry.trace_with(OtelTracer(tracer))
    oban_telemetry.attach(_HANDLER, [*telemetry.STEP_EVENTS, telemetry.WORKFLOW_FINISHED], Measure(meter))
    calls = CallSpans(tracer, meter) if model_calls else None
    oban_telemetry.attach(_CALLS, [telemetry.LLM_CALL], Costs(calls))


def detach() -> None:
    """See `baton.otel.uninstrument`."""
    oban_telemetry.detach(_HANDLER)
    oban_telemetry.detach(_CALLS)
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
        self._mine = _step_span.set(self)
        self._cost: Decimal | None = None
        self._unpriced = 0
        self.carried: str = _carrier(span).get("traceparent", "")

    def add_cost(self, cost: Decimal | None) -> None:
        """Of one more call of a model. What is not known is counted, not taken for nothing."""
        if cost is None:
            self._unpriced += 1
            self._span.set_attribute(_STEP_UNPRICED, self._unpriced)
        else:
            self._cost = cost + (self._cost or 0)
            self._span.set_attribute(_STEP_COST, float(self._cost))

    def end(self, state: str, error: BaseException | None) -> None:
        """A failure is one whether or not there are attempts left."""
        _step_span.reset(self._mine)
        context.detach(self._token)
        self._span.set_attribute("baton.step.state", state)
        if state in ("retryable", "discarded"):
            _fail(self._span, error)
        self._span.end()


class Costs:
    """The handler of calls of models, called in the context in which each was recorded."""

    def __init__(self, calls: "CallSpans | None") -> None:
        self._calls = calls

    def __call__(self, name: str, meta: dict[str, Any]) -> None:
        step = _step_span.get()
        if step is not None:
            step.add_cost(meta["cost_usd"])
        if self._calls is not None:
            self._calls.add(meta)


class CallSpans:
    """Spans and metrics of calls of models, by the conventions for generative AI.

    The names are written here, as no release of the conventions has them: they moved to a place of their own.
    """

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens that a call of a model used",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="How long a call of a model took",
            explicit_bucket_boundaries_advisory=_CALL_SECONDS,
        )

    def add(self, meta: Mapping[str, Any]) -> None:
        """A call that is over: its span is made at once, with the times that it had."""
        shared = _known(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": _provider(meta["provider"], meta["model"]),
                "gen_ai.request.model": meta["requested_model"],
                "gen_ai.response.model": meta["model"],
            }
        )
        cost = meta["cost_usd"]
        ended, duration = _nanoseconds(meta["timestamp"]), meta.get("duration")
        model = meta["requested_model"] or meta["model"]
        span = self._tracer.start_span(
            f"chat {model}" if model else "chat",
            kind=SpanKind.CLIENT,
            start_time=ended - (duration or 0),
            attributes={
                **shared,
                **_known(
                    {
                        "gen_ai.workflow.name": meta["workflow_label"],
                        "gen_ai.usage.input_tokens": meta["input_tokens"],
                        "gen_ai.usage.output_tokens": meta["output_tokens"],
                        "gen_ai.usage.cache_read.input_tokens": meta["cache_read_tokens"],
                        "gen_ai.usage.cache_creation.input_tokens": meta["cache_write_tokens"],
                        "gen_ai.usage.reasoning.output_tokens": meta["reasoning_tokens"],
                        "baton.workflow.id": meta["workflow_id"],
                        "baton.step.name": meta["step_name"],
                        "baton.step.attempt": meta["attempt"],
                        "baton.call.key": meta["call_key"],
                        "baton.call.service_tier": meta["service_tier"],
                    }
                ),
                **({} if cost is None else _cost(cost)),
            },
        )
        span.end(ended)
        for kind in ("input", "output"):
            if (count := meta[f"{kind}_tokens"]) is not None:
                self._tokens.record(count, {**shared, "gen_ai.token.type": kind})
        if duration is not None:
            self._duration.record(duration / 1e9, shared)


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


def _cost(cost: Decimal) -> dict[str, Any]:
    return {f"{_COST}.amount": float(cost), f"{_COST}.currency": "USD", f"{_COST}.source": "local"}


def _provider(provider: str | None, model: str | None) -> str | None:
    """As the conventions name it; of a model by its name, where nobody said whose it is."""
    if provider is not None:
        return _PROVIDERS.get(provider, provider)
    return next((whose for pattern, whose in _MODELS if pattern.match(model or "")), None)


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    # Not by its float, which has too few digits for that.
    return int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1_000


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
