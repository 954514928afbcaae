"""OpenTelemetry: one span for each attempt of a step, in the trace of whoever inserted the run, and metrics. Extra `otel`.

    baton.otel.instrument()         # after the SDK was set up, in each process that inserts or works

Only the API is needed. Without an SDK nothing is recorded, and a trace that an inserter is in is still carried on. See
`docs/telemetry.md` for the names of spans, attributes and metrics.
"""

from typing import TYPE_CHECKING

from baton.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def instrument(
    *,
    tracer_provider: "TracerProvider | None" = None,
    meter_provider: "MeterProvider | None" = None,
    model_calls: bool = True,
) -> None:
    """Trace and measure from now on, in this process. Called again, the providers are those of the last call.

    Args:
        tracer_provider: Where spans go; None for OpenTelemetry's global one.
        meter_provider: Where metrics go; None for OpenTelemetry's global one.
        model_calls: Spans and metrics of the calls of models that steps record. False where the clients of the providers are
            instrumented themselves: each call would be counted twice.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """
    try:
        from baton import _otel
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise MissingExtra(
            'tracing needs opentelemetry-api; install it with: pip install "oban-baton[otel]"'
        ) from error
    _otel.attach(tracer_provider, meter_provider, model_calls=model_calls)


def uninstrument() -> None:
    """Trace and measure no more. What runs now ends its span. Nothing happens if nothing was instrumented."""
    try:
        from baton import _otel
    except ModuleNotFoundError:
        return
    _otel.detach()
