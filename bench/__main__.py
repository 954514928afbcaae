"""Measure Baton beside plain Oban on one embedded PostgreSQL, and print the table of the README.

Each measurement is warmed up, then taken five times, all of them in turn, so that both sides see the same moods of the machine;
the median counts. Both run in one process with uvloop, concurrency 50 and pools of ten connections on the same server, fsync
and synchronous_commit on. Ratios within one run mean something, absolute numbers are this machine's.

    make bench                   print the table
    make bench ARGS=--write      put it into README.md as well
    make bench ARGS=page         measure the page in a browser instead: bench/page.py
    make bench ARGS=models       measure what calls of models cost besides: bench/models.py
"""

import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import uvloop
from oban import Oban, worker
from psycopg_pool import AsyncConnectionPool

from baton import Baton, Ref, Workflow, migration, step
from baton.events import Event, WorkflowFinished
from baton.local import LocalServer

RUNS = 5
CONCURRENCY = 50
POOL = 10
STEPS = 1000

ended: list[float] = []
hops: list[float] = []


@step
async def work() -> dict[str, int]:
    return {"value": 1}


@step
async def hop() -> dict[str, int]:
    now = time.perf_counter()
    if ended:
        hops.append(now - ended[-1])
    ended.append(time.perf_counter())
    return {"value": 1}


@worker(queue="default")
class Work:
    async def process(self, job: object) -> None:
        return None


def diamond() -> Workflow:
    workflow = Workflow("diamond")
    root = workflow.add("fetch_sources", work.new())
    branches = [
        workflow.add(name, work.new(), deps=[root]) for name in ("summarize", "keywords", "credibility")
    ]
    workflow.add("compile_brief", work.new(), deps=branches)
    return workflow


def chain(length: int) -> Workflow:
    workflow = Workflow("chain")
    previous: list[Ref[dict[str, int]]] = []
    for number in range(length):
        previous = [workflow.add(f"step{number}", hop.new(), deps=previous)]
    return workflow


def wide(width: int) -> Workflow:
    workflow = Workflow("wide")
    root = workflow.add("root", work.new())
    branches = [workflow.add(f"branch{number}", work.new(), deps=[root]) for number in range(width)]
    workflow.add("join", work.new(), deps=branches)
    return workflow


class Bench:
    """One database, and how long it takes until nothing is left to run in it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def drained(self, conn: psycopg.AsyncConnection) -> None:
        # Asked from outside, as neither side is to help the other's clock.
        left = "SELECT count(*) FROM oban_jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
        while (row := await (await conn.execute(left)).fetchone()) and row[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def watcher(self) -> AsyncIterator[psycopg.AsyncConnection]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            yield conn

    @asynccontextmanager
    async def plain_oban(self) -> AsyncIterator[Oban]:
        pool: AsyncConnectionPool = AsyncConnectionPool(self.dsn, max_size=POOL, min_size=1, open=False)
        await pool.open()
        try:
            async with Oban(pool=pool, queues={"default": CONCURRENCY}) as oban:
                yield oban
        finally:
            await pool.close()

    async def plain_jobs(self) -> float:
        """Jobs per second of stock Oban, from the insert to the last ack."""
        async with self.plain_oban() as oban, self.watcher() as conn:
            return await self._jobs(oban, conn)

    async def plain_jobs_beside_baton(self) -> float:
        """The same jobs with Baton attached."""
        async with (
            Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton,
            self.watcher() as conn,
        ):
            return await self._jobs(baton.oban, conn)

    async def _jobs(self, oban: Oban, conn: psycopg.AsyncConnection) -> float:
        await oban.pause_queue("default")
        await oban.enqueue_many([Work.new() for _ in range(STEPS)])
        started = time.perf_counter()
        await oban.resume_queue("default")
        await self.drained(conn)
        return STEPS / (time.perf_counter() - started)

    async def diamonds(self) -> float:
        """Steps per second of 200 diamonds, from the insert to the last ack."""
        async with (
            Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton,
            self.watcher() as conn,
        ):
            workflows = [diamond() for _ in range(STEPS // 5)]
            await baton.oban.pause_queue("default")
            await baton.insert_many(workflows)
            started = time.perf_counter()
            await baton.oban.resume_queue("default")
            await self.drained(conn)
            return STEPS / (time.perf_counter() - started)

    async def fan(self) -> float:
        """Steps per second of one step, then 998 at once, then one."""
        async with Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton:
            run = await baton.insert(wide(STEPS - 2))
            started = time.perf_counter()
            await run.wait(timeout=60)
            return STEPS / (time.perf_counter() - started)

    async def followed(self) -> float:
        """The same while another Baton, on the same event loop, is told of each step."""
        async with (
            Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton,
            Baton(self.dsn, pool_size=POOL) as client,
            client.subscribe() as events,
        ):
            run = await baton.insert(wide(STEPS - 2))
            started = time.perf_counter()
            told = asyncio.create_task(_told(events))
            await run.wait(timeout=60)
            ended_after = time.perf_counter() - started
            await told
            return STEPS / ended_after

    async def hop(self) -> float:
        """Milliseconds from a step's end to its dependent's start, median of a chain of 100."""
        async with Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton:
            ended.clear()
            hops.clear()
            run = await baton.insert(chain(100))
            await run.wait(timeout=60)
            return statistics.median(hops) * 1000

    async def insert(self) -> float:
        """Milliseconds to insert a graph of 1,000 steps and 1,996 dependencies, committed."""
        async with Baton(self.dsn, pool_size=POOL) as baton:
            # The first of a session makes its plans.
            await baton.insert(wide(STEPS - 2))
            workflow = wide(STEPS - 2)
            started = time.perf_counter()
            await baton.insert(workflow)
            return (time.perf_counter() - started) * 1000

    async def idle(self) -> float:
        """Milliseconds from inserting one diamond on an idle system to its outcome, median of 10."""
        async with Baton(self.dsn, queues={"default": CONCURRENCY}, pool_size=POOL) as baton:
            times = []
            for _ in range(10):
                started = time.perf_counter()
                run = await baton.insert(diamond())
                await run.wait(timeout=10)
                times.append((time.perf_counter() - started) * 1000)
                # Idle means idle: nothing of the last one is left to do.
                await asyncio.sleep(0.05)
            return statistics.median(times)

    async def clear(self) -> None:
        """Forget everything, so that each measurement starts on the same tables."""
        async with self.watcher() as conn:
            await conn.execute(
                "TRUNCATE workflows, workflow_nodes, workflow_edges, workflow_completions, workflow_progress, "
                "workflow_streams, workflow_step_stats, workflow_budgets, workflow_budget_runs, "
                "workflow_reservations, oban_jobs RESTART IDENTITY"
            )


async def _told(events: AsyncIterator[Event]) -> None:
    async for event in events:
        if isinstance(event, WorkflowFinished):
            return


def main() -> None:
    """Measure, print, and with --write put the table into the README."""
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        LocalServer.start(Path(folder) / "pg") as server,
    ):
        asyncio.run(migration.up(server.dsn))
        bench = Bench(server.dsn)
        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "plain": bench.plain_jobs,
            "beside": bench.plain_jobs_beside_baton,
            "diamonds": bench.diamonds,
            "fan": bench.fan,
            "followed": bench.followed,
            "hop": bench.hop,
            "insert": bench.insert,
            "idle": bench.idle,
        }
        results: dict[str, list[float]] = {name: [] for name in measures}
        for turn in range(RUNS + 1):
            for name, measure in measures.items():
                uvloop.run(bench.clear())
                value = uvloop.run(measure())
                if turn:
                    results[name].append(value)
                label = f"run {turn}" if turn else "warm-up"
                print(f"{label}: {name} {value:,.1f}", file=sys.stderr, flush=True)
        table = _table({name: statistics.median(values) for name, values in results.items()}, server.version)
    print(table)
    if "--write" in sys.argv:
        readme = Path(__file__).parent.parent / "README.md"
        pattern = re.compile(r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)", re.DOTALL)
        readme.write_text(pattern.sub(lambda match: match[1] + table + match[2], readme.read_text()))


def _table(median: dict[str, float], version: int) -> str:
    ratio = median["diamonds"] / median["plain"]
    beside = median["beside"] / median["plain"]
    followed = median["followed"] / median["fan"]
    return f"""\
| measured | median of {RUNS} | beside plain Oban 0.7 |
|---|---|---|
| 200 diamonds (1,000 steps) | {median["diamonds"]:,.0f} steps/s | **{ratio:.1f} ×** its {median["plain"]:,.0f} jobs/s |
| plain Oban jobs, Baton attached | {median["beside"]:,.0f} jobs/s | **{beside:.1f} ×** |
| 1 → 998 → 1 | {median["fan"]:,.0f} steps/s | |
| the same, each step told to a subscriber | {median["followed"]:,.0f} steps/s | {followed:.1f} × not followed |
| hop: a step's end to its dependent's start, p50 | {median["hop"]:.1f} ms | |
| insert a graph of 1,000 steps, durably | {median["insert"]:.0f} ms | |
| one diamond on an idle system, p50 | {median["idle"]:.1f} ms | |

{os.cpu_count()} cores, PostgreSQL {version} (embedded, fsync on), Python {sys.version.split()[0]}, \
{datetime.now(UTC):%Y-%m-%d}; `make bench` prints it anew.
"""


if __name__ == "__main__":
    if "page" in sys.argv:
        from bench import page

        page.main()
    elif "models" in sys.argv:
        from bench import models

        models.main()
    else:
        main()
