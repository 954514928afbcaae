"""The monkey: makes the faults of the schedule, and counts how often each hit its window.

A fault that found nobody at work proves nothing, so each waits a moment for its window, and says how much it hit.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import AsyncConnection

from tests.lab.invariants import Finding
from tests.lab.ledger import Ledger
from tests.lab.processes import Guard, Worker
from tests.lab.proxy import Proxy
from tests.lab.schedule import Fault, Schedule
from tests.lab.server import Server

_WINDOW = 4.0
_SLOWEST_STOP = 30.0
_CHANNELS = ("insert", "signal", "gossip", "leader", "sonar", "workflow")
_GARBAGE = (
    "x",
    "",
    '{"',
    "[]",
    "null",
    '{"queue": 7}',
    '{"queue": "fast", "origin": []}',
    '{"action": "pkill"}',
    "\x7f" * 200,
)

# By what a backend did last. The listener looks now and then whether it is still connected.
_LISTENING = "(query ILIKE 'LISTEN%' OR query = 'SELECT 1')"

_EXECUTING = """
    SELECT attempt.pid, array_agg(attempt.job_id) FROM lab.attempts AS attempt
    WHERE attempt.phase IS NULL AND attempt.pid = ANY(%s) AND attempt.started_at > clock_timestamp() - interval '1 minute'
      AND EXISTS (SELECT FROM oban_jobs AS job WHERE job.id = attempt.job_id AND job.state = 'executing'
                  AND job.attempted_at = attempt.attempted_at)
    GROUP BY attempt.pid"""


class Monkey:
    """Hurts workers, server and wire as scheduled; each fault in a task of its own, so they overlap."""

    def __init__(
        self,
        schedule: Schedule,
        server: Server,
        proxy: Proxy,
        workers: list[Worker],
        ledger: Ledger,
        guard: Guard,
    ) -> None:
        self._schedule = schedule
        self._server = server
        self._proxy = proxy
        self._workers = workers
        self._ledger = ledger
        self._guard = guard
        self._hurt: set[int] = set()
        self._restarting = asyncio.Lock()
        self._luck = random.Random(f"monkey/{schedule.seed}")

    async def run(self) -> None:
        """All of the schedule, and everything undone at the end."""
        watch = asyncio.create_task(self._notice_deaths())
        try:
            async with asyncio.TaskGroup() as tasks:
                for fault in self._schedule.faults:
                    tasks.create_task(self._make(fault))
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _make(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at - self._ledger.now))
        make: Callable[[Fault], Awaitable[None]] = getattr(self, f"_{fault.kind}")
        self._ledger.note(f"{fault.kind} begins")
        await make(fault)
        self._ledger.note(f"{fault.kind} is over")

    async def _began(self, kind: str, pid: int | None = None, jobs: list[int] | None = None) -> int:
        return int(
            await self._ledger.direct.value(
                "INSERT INTO lab.faults (kind, pid, jobs) VALUES (%s, %s, %s::bigint[]) RETURNING id",
                kind,
                pid,
                jobs or [],
            )
        )

    async def _ended(self, fault: int, hits: int) -> None:
        await self._ledger.direct.rows(
            "UPDATE lab.faults SET ended_at = clock_timestamp(), hits = %s WHERE id = %s", hits, fault
        )

    async def _executing(self, *, everywhere: bool = False) -> dict[int, list[int]]:
        """Jobs that run just now, by process; of those not hurt by another fault. Waits a moment for one."""
        deadline = self._ledger.now + _WINDOW
        while True:
            pids = [
                each.pid
                for each in self._workers
                if not each.ended() and (everywhere or each.number not in self._hurt)
            ]
            found: dict[int, list[int]] = dict(await self._ledger.direct.rows(_EXECUTING, pids))
            if found or self._ledger.now > deadline:
                return found
            await asyncio.sleep(0.02)

    async def _victim(self, fault: Fault) -> tuple[Worker, list[int]] | None:
        executing = await self._executing()
        able = [each for each in self._workers if each.number not in self._hurt and each.pid in executing]
        if not able:
            return None
        worker = min(able, key=lambda each: (each.number - fault.worker) % len(self._workers))
        self._hurt.add(worker.number)
        return worker, executing[worker.pid]

    # --- processes ------------------------------------------------------------------------------------

    async def _kill(self, fault: Fault) -> None:
        if (victim := await self._victim(fault)) is None:
            return
        worker, jobs = victim
        row = await self._began("kill", worker.pid, jobs)
        await asyncio.to_thread(worker.kill)
        await self._ended(row, len(jobs))
        worker.start()
        self._hurt.discard(worker.number)

    async def _freeze(self, fault: Fault) -> None:
        """Longer than it takes to be thought dead; then it wakes, and knows nothing of that."""
        if (victim := await self._victim(fault)) is None:
            return
        worker, jobs = victim
        row = await self._began("freeze", worker.pid, jobs)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.lasts)
        worker.signal(signal.SIGCONT)
        await self._ended(row, len(jobs))
        self._hurt.discard(worker.number)

    async def _term(self, fault: Fault) -> None:
        if (victim := await self._victim(fault)) is None:
            return
        worker, jobs = victim
        row = await self._began("term", worker.pid, jobs)
        worker.signal(signal.SIGTERM)
        await self.await_end(worker)
        await self._ended(row, len(jobs))
        worker.start()
        self._hurt.discard(worker.number)

    async def await_end(self, worker: Worker) -> None:
        """A worker was told to stop: it does, in good order."""
        deadline = self._ledger.now + _SLOWEST_STOP
        while not worker.ended():
            if self._ledger.now > deadline:
                self._ledger.find(
                    Finding(
                        "L6 stop", None, None, f"worker {worker.number} did not stop in {_SLOWEST_STOP} s"
                    )
                )
                await asyncio.to_thread(worker.kill)
                return
            await asyncio.sleep(0.02)
        if worker.status != 0:
            self._ledger.find(
                Finding(
                    "L6 stop",
                    None,
                    None,
                    f"worker {worker.number} was told to stop and exited with {worker.status}",
                )
            )

    async def _notice_deaths(self) -> None:
        while True:
            for worker in self._workers:
                if worker.number not in self._hurt and worker.ended():
                    self._ledger.find(
                        Finding(
                            "process", None, None, f"worker {worker.number} ended by itself: {worker.status}"
                        )
                    )
                    worker.start()
            await asyncio.sleep(0.2)

    # --- the server -----------------------------------------------------------------------------------

    async def _pg_restart(self, _fault: Fault) -> None:
        await self._server_fault("pg_restart", self._server.restart_immediately)

    async def _pg_crash(self, _fault: Fault) -> None:
        await self._server_fault("pg_crash", self._server.crash)

    async def _server_fault(self, kind: str, make: Callable[[], None]) -> None:
        async with self._restarting:
            jobs = [job for some in (await self._executing(everywhere=True)).values() for job in some]
            row = await self._began(kind, None, jobs)
            await asyncio.to_thread(make)
            self._guard.watch(self._server.pid)
            await self._ended(row, len(jobs))

    async def _end_listener(self, _fault: Fault) -> None:
        await self._terminate("end_listener", _LISTENING)

    async def _end_engine(self, _fault: Fault) -> None:
        await self._terminate("end_engine", "query ILIKE '%baton_ack%'")

    async def _end_pool(self, _fault: Fault) -> None:
        await self._terminate(
            "end_pool",
            f"application_name LIKE 'baton%' AND query NOT ILIKE '%baton_%' AND NOT ({_LISTENING})",
        )

    async def _end_heartbeat(self, _fault: Fault) -> None:
        await self._terminate("end_heartbeat", "query ILIKE '%baton_beat%'")

    async def _terminate(self, kind: str, which: str) -> None:
        """End backends, those in the middle of a statement first, at most half of them."""
        row = await self._began(kind)
        deadline = self._ledger.now + _WINDOW
        hits = 0
        while not hits and self._ledger.now < deadline:
            hits = await self._ledger.direct.value(
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
                f"WHERE datname = current_database() AND application_name NOT LIKE 'lab%' AND {which} "
                "ORDER BY state = 'active' DESC, random() LIMIT 4) AS chosen"
            )
            await asyncio.sleep(0.02)
        await self._ended(row, hits)

    async def _snapshot(self, fault: Fault) -> None:
        """A session that forgot its transaction: nothing is cleaned up behind it."""
        moves = "SELECT count(*) FROM lab.moves"
        row = await self._began("snapshot")
        before = await self._ledger.direct.value(moves)
        try:
            async with await AsyncConnection.connect(
                self._server.dsn, application_name="lab snapshot"
            ) as conn:
                await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await conn.execute("SELECT count(*) FROM workflow_nodes")
                await asyncio.sleep(fault.lasts)
        except psycopg.OperationalError:
            pass  # another fault took the server away; what it held back until then counts
        await self._ended(row, await self._ledger.direct.value(moves) - before)

    async def _garbage(self, _fault: Fault) -> None:
        """What anybody who may connect can send to Oban's channels."""
        row = await self._began("garbage")
        listening = await self._ledger.direct.value(
            f"SELECT count(*) FROM pg_stat_activity WHERE {_LISTENING}"
        )
        for channel in _CHANNELS:
            for payload in self._luck.sample(_GARBAGE, 4):
                await self._ledger.direct.rows("SELECT pg_notify(%s, %s)", f"public.oban_{channel}", payload)
        await self._ended(row, listening)

    # --- the wire -------------------------------------------------------------------------------------

    async def _stall(self, fault: Fault) -> None:
        row = await self._began("stall")
        before = self._proxy.withheld
        self._proxy.stall()
        await asyncio.sleep(fault.lasts)
        self._proxy.resume()
        await self._ended(row, self._proxy.withheld - before)

    async def _delay(self, fault: Fault) -> None:
        row = await self._began("delay")
        before = self._proxy.delayed
        self._proxy.delay = 0.02
        await asyncio.sleep(fault.lasts)
        self._proxy.delay = 0.0
        await self._ended(row, self._proxy.delayed - before)

    async def _drop(self, _fault: Fault) -> None:
        row = await self._began("drop")
        await self._ended(row, self._proxy.drop())
