"""A worker in a process of its own that traces into a file: `python -m tests.kit.traced DSN FILE`, until its input ends."""

import asyncio
import json
import sys
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton import Baton, otel, step


@step(name="tests.traced.first")
async def first() -> int:
    return 1


@step(name="tests.traced.second")
def second(value: int) -> int:
    return value + 1


async def work(dsn: str) -> None:
    async with Baton(dsn, queues={"traced": 2}):
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.instrument(tracer_provider=provider)
    asyncio.run(work(sys.argv[1]))
    Path(sys.argv[2]).write_text(
        json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()])
    )
