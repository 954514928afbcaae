"""The deadlock storm: everything that locks, at once, on five shared workflows, and PostgreSQL looks for deadlocks each 50 ms.

What a user calls must never fail by a deadlock: not Baton's verbs, not Oban's own, as another node that knows nothing of Baton
sends them. What goes by the clock (ack, sweep, rescue, prune, Oban's stager) may be a victim, and is sent again; that is
counted, and so is what the server saw.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from oban._query import Query
from oban.job import Job
from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected, SerializationFailure

from baton import Workflow
from baton._engine import Claim, Engine, Outcome
from baton._names import uuid7
from baton._plan import plan_insert
from baton.errors import BatonError
from tests.lab import invariants
from tests.lab.invariants import Finding

_WORKFLOWS = 5
_STEPS = 12
_QUEUE = "storm"


@dataclass(slots=True)
class Storm:
    """What it came to.

    Attributes:
        calls: How often each was called.
        seen: Deadlocks that a user's call ended with.
        resent: Deadlocks of statements that are sent again anyway.
        server: Deadlocks that the server counted.
    """

    calls: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    resent: Counter[str] = field(default_factory=Counter)
    server: int = 0
    findings: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls.total(),
            "deadlocks_seen_by_users": self.seen.total(),
            "deadlocks_sent_again": self.resent.total(),
            "deadlocks_in_the_server": self.server,
        }


async def run(dsn: str, seconds: float, seed: int) -> Storm:
    """Storm for so long on a migrated database, then look whether anything broke."""
    storm = Storm()
    async with AsyncExitStack() as stack:
        users = [
            await stack.enter_async_context(_User(dsn, f"{seed}/{number}", storm)) for number in range(12)
        ]
        before = await users[0].deadlocks()
        runs: list[UUID] = [await users[0].insert() for _ in range(_WORKFLOWS)]
        deadline = asyncio.get_running_loop().time() + seconds
        acts = [
            *([_User.ack] * 4),
            *(_User.cancel, _User.retry, _User.oban_cancel, _User.oban_retry),
            *(_User.pause, _User.sweep, _User.prune, _User.rerun),
        ]
        async with asyncio.TaskGroup() as tasks:
            for user, act in zip(users, acts, strict=True):
                tasks.create_task(user.keep(act, runs, deadline))
        # A backend reports what it saw when it is idle for a second, or ends.
        storm.server = await users[0].deadlocks() - before
        async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
            while await (await conn.execute("SELECT FROM workflow_nodes WHERE owed LIMIT 1")).fetchone():
                await users[0].sweep(runs)
            storm.findings += await invariants.audit(conn)
    storm.findings += [
        Finding(
            "deadlock", None, None, f"{count} of {storm.calls[call]} calls of {call} ended with a deadlock"
        )
        for call, count in storm.seen.items()
    ]
    return storm


class _User:
    """One of those who act at once: an engine and a connection of its own."""

    def __init__(self, dsn: str, luck: str, storm: Storm) -> None:
        self._dsn = dsn
        self._luck = random.Random(luck)
        self._storm = storm
        self._producer = uuid4()

        async def conninfo() -> str:
            return dsn

        self._engine = Engine(
            conninfo,
            kwargs={"options": "-c deadlock_timeout=50ms"},
            prefix="public",
            origin="storm",
            pool_size=1,
        )

    async def __aenter__(self) -> "_User":
        self._conn = await AsyncConnection.connect(
            self._dsn, autocommit=True, options="-c deadlock_timeout=50ms"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._conn.close()
        await self._engine.close()

    async def keep(
        self, act: "Callable[[_User, list[UUID]], Awaitable[None]]", runs: list[UUID], deadline: float
    ) -> None:
        while asyncio.get_running_loop().time() < deadline:
            await act(self, runs)

    async def deadlocks(self) -> int:
        row = await (
            await self._conn.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
        ).fetchone()
        assert row is not None
        return int(row[0])

    async def _try(self, what: str, call: Awaitable[Any], *, users: bool = True) -> Any:
        self._storm.calls[what] += 1
        try:
            return await call
        except (DeadlockDetected, SerializationFailure):
            (self._storm.seen if users else self._storm.resent)[what] += 1
        except BatonError:
            return None  # an answer: it cannot be retried now, its jobs are gone
        return None

    # --- Baton ----------------------------------------------------------------------------------------

    async def insert(self) -> UUID:
        workflow = Workflow("storm")
        names: list[str] = []
        for place in range(_STEPS):
            deps = self._luck.sample(names, min(len(names), self._luck.choice([0, 1, 2, 3])))
            workflow.add(
                f"s{place}",
                Job("tests.Nobody", queue=_QUEUE, max_attempts=3),
                deps=deps,
                ignore_cancelled=self._luck.random() < 0.5,
                ignore_discarded=self._luck.random() < 0.5,
            )
            names.append(f"s{place}")
        (inserted,) = await self._engine.insert(plan_insert([workflow]))
        return inserted.id

    async def ack(self, runs: list[UUID]) -> None:
        """Claim some, end them in one batch, in any order, and claim the next: as a worker does."""
        claim = Claim(queue=_QUEUE, demand=self._luck.randint(1, 6), node="storm", producer=self._producer)
        rows = await (
            await self._conn.execute(
                "SELECT id, attempted_at AT TIME ZONE 'UTC' FROM oban_jobs WHERE state = 'executing' AND attempted_by[2] = %s",
                (str(self._producer),),
            )
        ).fetchall()
        self._luck.shuffle(rows)
        outcomes = [self._outcome(job, at) for job, at in rows]
        for place in range(len(runs)):
            if self._luck.random() < 0.02:
                runs[place] = await self._try("insert", self.insert()) or runs[place]
        await self._try("ack", self._engine.ack(outcomes, claim), users=False)

    def _outcome(self, job: int, at: Any) -> Outcome:
        state = self._luck.choices(
            ["completed", "retryable", "cancelled", "discarded", "scheduled"], [70, 10, 5, 10, 5]
        )[0]
        return Outcome(
            job,
            at,
            state,
            result='"x"' if state == "completed" else None,
            delay=0.0 if state in ("retryable", "scheduled") else None,
        )

    async def cancel(self, runs: list[UUID]) -> None:
        steps = None if self._luck.random() < 0.3 else self._luck.sample([f"s{n}" for n in range(_STEPS)], 3)
        await self._try("cancel", self._engine.cancel(self._luck.choice(runs), steps, "storm"))
        await asyncio.sleep(0.01)

    async def retry(self, runs: list[UUID]) -> None:
        await self._try("retry", self._engine.retry(self._luck.choice(runs)))

    async def pause(self, runs: list[UUID]) -> None:
        run = self._luck.choice(runs)
        await self._try("pause", self._engine.pause(run))
        await self._try("resume", self._engine.resume(run))
        await asyncio.sleep(0.01)

    async def rerun(self, runs: list[UUID]) -> None:
        place, new = self._luck.randrange(len(runs)), uuid7()
        names = self._luck.sample([f"s{n}" for n in range(_STEPS)], 2)
        if await self._try("rerun", self._engine.rerun(runs[place], new, names)):
            runs[place] = new
        await asyncio.sleep(0.05)

    async def sweep(self, _runs: list[UUID]) -> None:
        """What Baton does by the clock: pay what is owed, rescue, reconcile."""
        await self._try("sweep", self._engine.sweep(), users=False)
        await self._try("rescue", self._engine.rescue_all(0.01), users=False)
        await self._try("reconcile", self._engine.reconcile(), users=False)
        await self._stock("stage_jobs", users=False, queues=[_QUEUE], limit=100, before=None)

    async def prune(self, runs: list[UUID]) -> None:
        """What retention does: jobs go first, then the runs that are left without."""
        await self._try("prune of jobs", self._engine.prune_jobs(0, 50), users=False)
        await self._try("prune", self._engine.prune(100, 0, None), users=False)
        for place, run in enumerate(runs):
            gone = await (
                await self._conn.execute(
                    "SELECT 1 FROM workflows WHERE id = %s AND finished_at IS NULL", (run,)
                )
            ).fetchone()
            if gone is None:
                runs[place] = await self._try("insert", self.insert()) or run
        await asyncio.sleep(0.05)

    # --- Oban's own statements, as any other node sends them ------------------------------------------

    async def oban_cancel(self, runs: list[UUID]) -> None:
        await self._stock("cancel_many_jobs", ids=[await self._job(runs)])
        await self._try(
            "oban cancel by Baton", self._engine.cancel_many([await self._job(runs) for _ in range(3)])
        )
        await asyncio.sleep(0.01)

    async def oban_retry(self, runs: list[UUID]) -> None:
        await self._stock("retry_many_jobs", ids=[await self._job(runs)])
        await asyncio.sleep(0.01)

    async def _stock(self, name: str, *, users: bool = True, **params: Any) -> None:
        statement = self._conn.execute(Query._load_file(f"{name}.sql", "public"), params)
        await self._try(f"Oban's {name}", statement, users=users)

    async def _job(self, runs: list[UUID]) -> int:
        """A job of one of the runs, whatever its state."""
        row = await (
            await self._conn.execute(
                "SELECT job_id FROM workflow_nodes WHERE workflow_id = %s ORDER BY random() LIMIT 1",
                (self._luck.choice(runs),),
            )
        ).fetchone()
        return int(row[0]) if row else 0
