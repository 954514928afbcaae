"""One run, from its schedule to its verdict."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from baton import Baton, migration
from tests.kit.wait import eventually
from tests.lab import invariants, report
from tests.lab.faults import Monkey
from tests.lab.inserter import Inserter
from tests.lab.invariants import Finding
from tests.lab.ledger import Direct, Ledger
from tests.lab.processes import Guard, Worker
from tests.lab.proxy import Proxy
from tests.lab.report import Report
from tests.lab.schedule import QUEUES, Schedule
from tests.lab.server import DATABASE, Server
from tests.lab.storm import run as deadlock_storm
from tests.lab.watcher import Watcher

WORKERS = 3
LOSE = 0.05
# From the last insert until all must have come to its end. A step that came to the worker without its code may wait a minute.
PATIENCE = 150.0


async def run(schedule: Schedule, folder: Path, *, storm_seconds: float = 0.0) -> Report:
    """Run a schedule on a server of its own, then the deadlock storm.

    Everything that was started has ended when this returns or raises.
    """
    (folder / "schedule.json").write_text(json.dumps(schedule.as_json(), indent=1))
    result = Report(schedule.seed, schedule.seconds, schedule.rescue_after)
    async with AsyncExitStack() as stack:
        server = await asyncio.to_thread(Server, folder / "pg")
        stack.push_async_callback(asyncio.to_thread, server.stop)
        guard = stack.enter_context(Guard())
        guard.watch(server.pid)
        await prepare(server.dsn)
        proxy = await stack.enter_async_context(Proxy(server.socket))
        direct = await stack.enter_async_context(Direct(server.dsn))
        through = f"postgresql://postgres@127.0.0.1:{proxy.port}/{DATABASE}"
        workers = [_worker(number, schedule, through, server.dsn, folder) for number in range(WORKERS)]
        for worker in workers:
            stack.callback(worker.kill)
        ledger = Ledger(direct)
        watcher = Watcher(server.dsn, ledger)
        monkey = Monkey(schedule, server, proxy, workers, ledger, guard)
        for worker in workers:
            worker.start()
        baton = Baton(through, rescue_after=schedule.rescue_after)
        await baton.start()
        stack.push_async_callback(baton.stop)
        await _until_all_work(direct)
        ledger.start_clock()
        async with _background(watcher.run()):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(Inserter(schedule, baton, through, ledger).run())
                tasks.create_task(monkey.run())
            ledger.note("the last fault is over, nothing more is inserted")
            last = ledger.now
            result.stuck = await _quiet(direct)
            result.quiet_after = round(ledger.now - last, 1)
        ledger.note("quiet" if not result.stuck else "still not quiet")
        for worker in workers:
            worker.terminate()
        await asyncio.gather(*(monkey.await_end(worker) for worker in workers))
        await watcher.look_once()
        await report.gather(result, schedule.kinds, direct)
        result.looks, result.findings, result.timeline = watcher.looks, ledger.findings, ledger.timeline
        if storm_seconds:
            # In a database of its own, with no worker to end what it stirs up.
            await direct.rows("CREATE DATABASE storm")
            await _storm(result, server.dsn_for("storm"), storm_seconds)
    return result


async def _storm(result: Report, dsn: str, seconds: float) -> None:
    await prepare(dsn)
    storm = await deadlock_storm(dsn, seconds, result.seed)
    result.storm = storm.as_json()
    for finding in storm.findings:
        result.findings.setdefault(finding, result.seconds)


async def prepare(dsn: str) -> None:
    """Oban's and Baton's tables, and the lab's own."""
    await migration.up(dsn)
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(invariants.load("schema").encode())
        for queue, jobs in QUEUES.items():
            await conn.execute("INSERT INTO lab.limits VALUES (%s, %s)", (queue, jobs))


def _worker(number: int, schedule: Schedule, dsn: str, witness: str, folder: Path) -> Worker:
    arguments = ["--dsn", dsn, "--rescue-after", str(schedule.rescue_after), "--lose", str(LOSE)]
    if number == WORKERS - 1:
        arguments.append("--without-rare")
    return Worker(number, folder, arguments, witness, luck=str(schedule.seed))


async def _until_all_work(direct: Direct) -> None:
    async def all_work() -> bool:
        return bool(await direct.value("SELECT count(*) FROM oban_producers") >= WORKERS * len(QUEUES))

    await eventually(all_work, timeout=60)


async def _quiet(direct: Direct) -> list[Finding]:
    """Wait until all has come to its end; what has not in time."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        async with direct.connection() as conn:
            left = await invariants.stuck(conn)
        if not left or asyncio.get_running_loop().time() > deadline:
            return left
        await asyncio.sleep(0.25)


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
