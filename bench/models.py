"""Measure what accounting for calls of models costs: the call itself is made in the process and takes no time.

    make bench ARGS=models

A run of 1,000 independent steps each, with the pool and concurrency of the other benchmarks; the first row is the same steps
without any call. A budget is the run's own, so all of its calls draw on one row.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from baton import (
    Baton,
    Budget,
    ModelPrice,
    PriceTable,
    Workflow,
    call_llm,
    migration,
    once,
    record_usage,
    step,
)
from baton.local import LocalServer
from bench.__main__ import CONCURRENCY, POOL, RUNS, STEPS, Bench

PRICES = PriceTable({"m": ModelPrice(input=1, output=1)}, otherwise=None)
ANSWER = {"model": "m", "usage": {"prompt_tokens": 100, "completion_tokens": 50}, "text": "x" * 200}
REQUEST = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "x" * 300}]}


async def answer() -> dict[str, object]:
    return ANSWER


@step
async def silent() -> int:
    return 1


@step
async def records() -> int:
    record_usage(ANSWER)
    return 1


@step
async def calls() -> int:
    await call_llm(answer, request=REQUEST)
    return 1


@step
async def stores() -> int:
    await once("call", answer, request=REQUEST)
    return 1


def wide(build: Callable[[], object], budget: Budget | None, *, debug: bool = False) -> Workflow:
    workflow = Workflow("models", budget=budget, debug=debug)
    for number in range(STEPS):
        workflow.add(f"step{number}", build())  # type: ignore[call-overload]
    return workflow


ROWS: dict[str, Callable[[], Workflow]] = {
    "no call": lambda: wide(silent.new, None),
    "`record_usage`": lambda: wide(records.new, None),
    "`call_llm`": lambda: wide(calls.new, None),
    "`call_llm`, captured": lambda: wide(calls.new, None, debug=True),
    "`call_llm`, on one budget": lambda: wide(calls.new, Budget(usd=1_000)),
    "`once`": lambda: wide(stores.new, None),
    "`once`, on one budget": lambda: wide(stores.new, Budget(usd=1_000)),
}


async def _measure(dsn: str, build: Callable[[], Workflow]) -> float:
    bench = Bench(dsn)
    workflow = build()
    async with (
        Baton(dsn, queues={"default": CONCURRENCY}, pool_size=POOL, pricing=PRICES) as baton,
        bench.watcher() as conn,
    ):
        await baton.oban.pause_queue("default")
        run = await baton.insert(workflow)
        started = time.perf_counter()
        await baton.oban.resume_queue("default")
        await bench.drained(conn)
        taken = time.perf_counter() - started
        await run.wait()
        return STEPS / taken


def main() -> None:
    """Measure and print."""
    results: dict[str, list[float]] = {name: [] for name in ROWS}
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        LocalServer.start(Path(folder) / "pg") as server,
    ):
        uvloop.run(migration.up(server.dsn))
        for turn in range(RUNS + 1):
            for name, build in ROWS.items():
                uvloop.run(Bench(server.dsn).clear())
                value = uvloop.run(_measure(server.dsn, build))
                if turn:
                    results[name].append(value)
                print(
                    f"{f'run {turn}' if turn else 'warm-up'}: {name} {value:,.0f}",
                    file=sys.stderr,
                    flush=True,
                )
    bare = statistics.median(results["no call"])
    print("| each step | steps/s, median of", RUNS, "| of those without a call |\n|---|---|---|")
    for name, values in results.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {median / bare:.2f} × |")
