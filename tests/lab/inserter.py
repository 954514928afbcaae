"""The users of the system: they insert workflows and plain jobs, cancel, retry, pause and prune them.

Whatever the lab does to server and wire, they call again until they are answered.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg_pool import PoolTimeout

from baton import Baton, Run
from baton.errors import BatonError
from tests.lab.ledger import Ledger, Tracked
from tests.lab.oracle import Belief, expect
from tests.lab.schedule import Action, Flow, PlainJobs, Schedule
from tests.lab.steps import Plain, build

# However a call fails while the server is away or the wire is cut.
_AGAIN = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, OSError, TimeoutError)

# A run whose steps still run cannot be retried yet.
_RETRIES = 10


class Inserter:
    """Does what the schedule says its users do. `dsn` leads through the proxy."""

    def __init__(self, schedule: Schedule, baton: Baton, dsn: str, ledger: Ledger) -> None:
        self._schedule = schedule
        self._baton = baton
        self._dsn = dsn
        self._ledger = ledger

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for flow in self._schedule.flows:
                tasks.create_task(self._live(flow))
            for plain in self._schedule.plain:
                tasks.create_task(self._enqueue(plain))

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self._ledger.now))

    # --- inserting ------------------------------------------------------------------------------------

    async def _live(self, flow: Flow) -> None:
        await self._until(flow.at)
        joined = int(flow.tag[1:]) % 2 == 0
        await patiently(lambda: self._insert_joining(flow) if joined else self._insert(flow))
        runs = await self._ledger.direct.rows(
            "SELECT run::text FROM lab.flows WHERE tag = %s OR tag LIKE %s", flow.tag, f"{flow.tag}#%"
        )
        tracked = [self._track(run, flow, Belief.inserted(flow)) for (run,) in runs]
        for action in flow.actions:
            await asyncio.sleep(action.after)
            await self._act(tracked[0], action)
        for each in tracked:
            each.busy = False

    def _track(self, run: str, flow: Flow, belief: Belief) -> Tracked:
        tracked = Tracked(run, flow, belief, expect(flow))
        self._ledger.runs[run] = tracked
        return tracked

    async def _insert_joining(self, flow: Flow) -> None:
        """In a transaction of the user's own, which also writes a row of theirs."""
        async with await AsyncConnection.connect(self._dsn, connect_timeout=5) as conn:
            try:
                await conn.execute("INSERT INTO lab.flows (tag) VALUES (%s)", (flow.tag,))
            except UniqueViolation:
                return  # it had come through, and only the answer was lost
            run = await self._baton.insert(build(flow.tag, flow.steps), conn=conn)
            await conn.execute("UPDATE lab.flows SET run = %s WHERE tag = %s", (run.id, flow.tag))

    async def _insert(self, flow: Flow) -> None:
        """With a key: after a lost answer it is the same run, or another one if that has finished meanwhile."""
        workflow = build(flow.tag, flow.steps)
        workflow.key = flow.tag
        await self._baton.insert(workflow)
        await self._ledger.direct.rows(
            "INSERT INTO lab.flows (tag, run) "
            "SELECT CASE row_number() OVER (ORDER BY id) WHEN 1 THEN name ELSE name || '#' || id END, id "
            "FROM workflows WHERE name = %s AND rerun_of IS NULL ON CONFLICT DO NOTHING",
            flow.tag,
        )

    async def _enqueue(self, plain: PlainJobs) -> None:
        """Ordinary jobs, in a transaction of the user's own."""
        await self._until(plain.at)

        async def enqueue() -> None:
            async with await AsyncConnection.connect(self._dsn, connect_timeout=5) as conn:
                jobs = [Plain.new({"seconds": 0.05 * n}, max_attempts=20) for n in range(plain.count)]  # type: ignore[attr-defined]
                for job in await self._baton.oban.enqueue_many(jobs, conn=conn):
                    await conn.execute("INSERT INTO lab.plain (job_id) VALUES (%s)", (job.id,))

        await patiently(enqueue)

    # --- what is done to a run ------------------------------------------------------------------------

    async def _act(self, tracked: Tracked, action: Action) -> None:
        run, step = self._baton.get_run(tracked.run), action.step or ""
        match action.what:
            case "cancel":
                tracked.belief.cancel_called()
                if await self._call(tracked, "cancel", run.cancel) == "cancelled":
                    tracked.belief.cancel_answered()
            case "cancel_step":
                tracked.belief.cancel_step_called(step)
                await self._call(tracked, "cancel_step", lambda: run.cancel(step), step)
            case "oban_cancel":
                tracked.belief.cancel_step_called(step)
                job = await self._job(tracked, step)
                await self._call(tracked, "oban_cancel", lambda: self._oban_cancel(job), step)
            case "oban_retry":
                job = await self._job(tracked, step)
                await self._call(tracked, "oban_retry", lambda: self._baton.oban.retry_many_jobs([job]), step)
            case "pause":
                await self._call(tracked, "pause", run.pause)
                await asyncio.sleep(action.lasts)
                await self._call(tracked, "resume", run.resume)
            case "retry":
                tracked.belief.retry_called()
                for _ in range(_RETRIES):
                    if await self._call(tracked, "retry", run.retry) != "RunEnding":
                        break
                    await asyncio.sleep(0.5)
            case "rerun":
                await self._rerun(tracked, run, step)
            case "prune":
                await self._prune(tracked)

    async def _call(
        self, tracked: Tracked, what: str, call: Callable[[], Awaitable[Any]], step: str | None = None
    ) -> str:
        """Do something to a run until it is answered, and write down when it was called and what the answer was."""
        tracked.epoch += 1
        number = await self._ledger.called(tracked.run, what, step)
        try:
            answer = str(await patiently(call))
        except BatonError as error:
            answer = type(error).__name__
        await self._ledger.answered(number, answer)
        tracked.epoch += 1
        return answer

    async def _job(self, tracked: Tracked, step: str) -> int:
        return int(
            await self._ledger.direct.value(
                "SELECT job_id FROM workflow_nodes WHERE workflow_id = %s AND name = %s", tracked.run, step
            )
        )

    async def _oban_cancel(self, job: int) -> str:
        return "cancelled" if await self._baton.oban.cancel_many_jobs([job]) else "settled before"

    async def _rerun(self, tracked: Tracked, run: Run, step: str) -> None:
        await self._call(tracked, "rerun", lambda: run.rerun(from_=step), step)
        copies = await self._ledger.direct.rows(
            "SELECT id::text FROM workflows WHERE rerun_of = %s", tracked.run
        )
        for number, (copy,) in enumerate(copies):
            await self._ledger.direct.rows(
                "INSERT INTO lab.flows (tag, run) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                f"{tracked.flow.tag}~{number}",
                copy,
            )
            self._track(copy, tracked.flow, Belief.rerun(tracked.flow)).busy = False

    async def _prune(self, tracked: Tracked) -> None:
        """Delete a run that has finished and was judged, as retention would."""
        tracked.busy = False
        deadline = time.monotonic() + 20
        while not tracked.closed:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)
        direct = self._ledger.direct
        await direct.rows(
            "UPDATE lab.flows SET prune_called_at = clock_timestamp() WHERE run = %s", tracked.run
        )
        await direct.rows(
            "DELETE FROM oban_jobs WHERE state IN ('completed', 'cancelled', 'discarded') "
            "AND id IN (SELECT job_id FROM workflow_nodes WHERE workflow_id = %s)",
            tracked.run,
        )
        while (
            await direct.value("SELECT 1 FROM workflows WHERE id = %s", tracked.run)
            and time.monotonic() < deadline
        ):
            await direct.rows("SELECT baton_prune(100, 0, NULL)")
            await asyncio.sleep(0.1)
        await direct.rows(
            "UPDATE lab.flows SET pruned_at = clock_timestamp() "
            "WHERE run = %s AND NOT EXISTS (SELECT FROM workflows WHERE id = %s)",
            tracked.run,
            tracked.run,
        )


async def patiently[T](call: Callable[[], Awaitable[T]]) -> T:
    """Call again until there is an answer."""
    while True:
        try:
            async with asyncio.timeout(20):
                return await call()
        except _AGAIN:
            await asyncio.sleep(random.uniform(0.05, 0.2))
