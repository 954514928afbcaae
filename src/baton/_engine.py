"""The engine's statements, called from Python: ack, claim, give back, sweep, store, insert, cancel, retry and the like.

One database function per call, each its own transaction unless a connection is handed in. The pool is the engine's own,
so steps that hold every connection of the app's pool do not keep a result from being written. Retrying, and what to do
with an outcome the database refuses, is decided in `_acks`.
"""

import asyncio
import inspect
import random
import select
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from psycopg import AsyncConnection, DatabaseError, IsolationLevel, OperationalError, ProgrammingError
from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, dict_row
from psycopg.types.numeric import Int8, Int8Dumper
from psycopg_pool import AsyncConnectionPool

from baton import _store
from baton._plan import InsertPlan, array_literal
from baton._reports import Heard, Told
from baton.errors import (
    BatonError,
    DatabaseUnreachable,
    InvalidOption,
    JobsGone,
    KeyConflict,
    ResultNotFound,
    RunEnding,
)

_TRIES = 6
# Runs that one look resumes; those behind them are for the next.
_MOST_FUNDED = 1_000
# A server that went away without a word is noticed within half a minute, whether we wait for it or not.
CONNECT: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt came to. `result` and `meta` are JSON text."""

    job_id: int
    attempted_at: datetime
    state: str
    attempt_change: int | None = None
    delay: float | None = None
    error: Mapping[str, object] | None = None
    meta: str | None = None
    result: str | None = None
    reason: str | None = None

    def row(self) -> dict[str, object]:
        """The outcome as `ack` takes it, without the result, which would be parsed again at every look."""
        row: dict[str, object] = {
            "id": self.job_id,
            "attempted_at": naive_utc(self.attempted_at),
            "state": self.state,
        }
        if self.attempt_change is not None:
            row["attempt_change"] = self.attempt_change
        if self.delay is not None:
            row["delay"] = self.delay
        if self.error is not None:
            row["error"] = self.error
        if self.meta is not None:
            row["meta"] = orjson.Fragment(self.meta)
        if self.reason is not None:
            row["reason"] = self.reason
        return row


@dataclass(frozen=True, slots=True)
class Claim:
    """How many jobs a producer can take, and who it is."""

    queue: str
    demand: int
    node: str
    producer: UUID


@dataclass(frozen=True, slots=True)
class Notes:
    """What a statement told of besides what it returns; see `note.sql`."""

    finished: Sequence[Mapping[str, Any]] = ()
    """The runs that it finished."""
    stopped: Mapping[str, str | None] = field(default_factory=dict)
    """Why, by the job's id, for steps that end cancelled whatever their attempts came to."""


def read_notes(text: str | None) -> Notes:
    """What `current_setting('baton.notes', true)` said."""
    if not text:
        return _NO_NOTES
    lines = [orjson.loads(line) for line in text.split("\n")]
    stopped: dict[str, str | None] = {}
    for line in lines:
        stopped |= line.get("stopped", {})
    return Notes([line for line in lines if "stopped" not in line], stopped)


_NO_NOTES = Notes()


@dataclass(frozen=True, slots=True)
class Acked:
    """What one call of `ack` did."""

    acked: list[int]
    queues: list[str]
    owed: bool
    claimed: list[str]
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one call of `prune` deleted, rows by table, and where the next goes on; None at the end."""

    deleted: Mapping[str, int]
    stopped_at: datetime | None


@dataclass(frozen=True, slots=True)
class Inserted:
    """One workflow after `insert`: its id, or the id of the live one that has its key."""

    id: UUID
    inserted: bool
    notes: str | None = None
    """Of the whole statement: the runs that it finished because they are empty."""


_ACK = (
    "SELECT acked, queues, owed, claimed, current_setting('baton.notes', true) FROM /* schema */baton_ack("
    "%s::jsonb, %s::text[], %s::text, %s::integer, %s::text, %s::uuid, %s::uuid[], %s::text)"
)
_REPORT = (
    "SELECT written, late FROM /* schema */baton_report("
    "%s::bigint[], %s::timestamp[], %s::double precision[], %s::double precision[], %s::text[], %s::integer[], "
    "%s::bigint[], %s::integer[], %s::text[])"
)
_INSERT = (
    "SELECT id, inserted, current_setting('baton.notes', true) AS notes FROM /* schema */baton_insert("
    "%s::uuid[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::integer[], %s::text[], %s::text[], "
    "%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::integer[], %s::timestamptz[], "
    "%s::text[], %s::boolean[], %s::boolean[], %s::integer[], %s::integer[], %s::integer[], %s::uuid[], %s::text, "
    "%s::timestamptz[], %s::double precision[], %s::text[], %s::boolean[], %s::boolean[], "
    "%s::integer[], %s::text[], %s::numeric[], %s::bigint[], %s::bigint[], %s::text[], %s::text[])"
)


def naive_utc(moment: datetime) -> datetime:
    """Oban's columns are timestamps without a zone, in UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None)


class Engine:
    """The engine's own few connections, and its statements for one schema."""

    def __init__(
        self,
        conninfo: Callable[[], Awaitable[str]],
        *,
        kwargs: object,
        prefix: str,
        origin: str,
        pool_size: int,
    ) -> None:
        self._conninfo = conninfo
        self._kwargs = kwargs
        self._pool_size = pool_size
        self._pool: AsyncConnectionPool[AsyncConnection] | None = None
        self._opening = asyncio.Lock()
        self.prefix = prefix
        self.origin = origin
        # Somebody's open transaction may hold a budget for long. Whoever waits for it leaves connections to acks and claims.
        self._waiting_for_budgets = asyncio.Semaphore(max(1, pool_size // 2))
        self.local_producers: list[UUID] = []
        """Producers of this process, which are woken here and need no notification."""
        self.on_finished: Callable[[Sequence[Mapping[str, Any]]], object] = _ignored
        """Called with the runs that a statement finished, other than an ack, after its commit."""

    async def open(self) -> AsyncConnectionPool[AsyncConnection]:
        """The pool, opened at first use. Waits until one connection is there."""
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
                        await self._conninfo(),
                        kwargs={
                            **await connect_options(self._kwargs),
                            "application_name": "baton engine",
                            "autocommit": True,
                        },
                        min_size=1,
                        max_size=self._pool_size,
                        configure=_configure,
                        check=check_connection,
                        open=False,
                        name="baton-engine",
                    )
                    await pool.open()
                    self._pool = pool
        return self._pool

    async def close(self) -> None:
        """Close the connections. The engine opens them again when it is used again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _sql(self, text: str) -> bytes:
        return _store.statement(text, self.prefix)

    async def ack(self, outcomes: Sequence[Outcome], claim: Claim | None = None) -> Acked:
        """Write outcomes, settle, release and claim, in one statement and one commit."""
        pool = await self.open()
        async with pool.connection() as conn:
            row = await (
                await conn.execute(
                    self._sql(_ACK),
                    (
                        orjson.dumps([outcome.row() for outcome in outcomes]).decode(),
                        [outcome.result for outcome in outcomes],
                        claim.queue if claim else "",
                        claim.demand if claim else 0,
                        claim.node if claim else "",
                        claim.producer if claim else None,
                        self.local_producers,
                        self.origin,
                    ),
                )
            ).fetchone()
        assert row is not None
        acked, queues, owed, claimed, noted = row
        return Acked(acked, queues, owed, claimed or [], read_notes(noted))

    async def _value(self, text: str, *params: object) -> Any:
        """The one value that a statement returns, in a transaction of its own."""
        pool = await self.open()
        async with pool.connection() as conn:
            row = await (await conn.execute(self._sql(text), params)).fetchone()
        assert row is not None
        return row[0]

    async def _call(self, function: str, *params: object) -> Any:
        """The one value that a database function returns, in a transaction of its own. Runs that it finished are told of."""
        pool = await self.open()
        text = f"SELECT done, current_setting('baton.notes', true) FROM /* schema */{function} AS done"
        async with pool.connection() as conn:
            row = await (await conn.execute(self._sql(text), params)).fetchone()
        assert row is not None
        self.on_finished(read_notes(row[1]).finished)
        return row[0]

    async def _rows(self, name: str, /, **params: object) -> list[tuple[Any, ...]]:
        """What the statement in `sql/<name>.sql` returns, in a transaction of its own."""
        pool = await self.open()
        async with pool.connection() as conn:
            cursor = await conn.execute(_store.load(name, self.prefix), params)
            return await cursor.fetchall() if cursor.description else []

    async def give_back(self, jobs: Sequence[tuple[int, datetime]]) -> None:
        """Return claimed jobs that never started, with their attempt."""
        await self._value(
            "SELECT /* schema */baton_give_back(%s::bigint[], %s::timestamp[])",
            [job_id for job_id, _ in jobs],
            [naive_utc(attempted_at) for _, attempted_at in jobs],
        )

    async def reclaim(self, queue: str, producer: UUID, known: Sequence[int]) -> int:
        """Return jobs that a producer claimed without learning of it."""
        return int(
            await self._value(
                "SELECT /* schema */baton_reclaim(%s, %s, %s::bigint[])", queue, producer, list(known)
            )
        )

    async def sweep(self) -> list[str]:
        """Pay what is owed and repair what could not be settled; returns queues to wake."""
        return list(await self._call("baton_sweep(%s::uuid[], %s)", self.local_producers, self.origin))

    async def missing_triggers(self) -> list[str]:
        """Triggers on the job table that are absent or disabled."""
        return [name for (name,) in await self._rows("read_missing_triggers")]

    async def reconcile(self) -> int:
        """Make steps follow jobs that changed while no trigger was looking; returns how many there were."""
        return int(await self._call("baton_reconcile()"))

    async def rescue(self, rescue_after: float) -> list[int]:
        """Run jobs again whose process is dead; returns them. See `baton_rescue_dead`."""
        return list(await self._call("baton_rescue_dead(%s)", rescue_after))

    async def rescue_all(self, rescue_after: float) -> int:
        """`rescue`, and discard what could never be claimed again; returns how many there were."""
        return int(await self._call("baton_rescue(%s)", rescue_after))

    async def delete_silent_producers(self, max_age: float) -> int:
        """Remove the rows of processes that are dead for long; returns how many."""
        return len(await self._rows("delete_silent_producers", max_age=max_age))

    async def prune(self, limit: int, age: float, after: datetime | None) -> Pruned:
        """Delete finished runs whose jobs are gone, the oldest first. See `baton_prune`."""
        pool = await self.open()
        async with pool.connection() as conn:
            row = await (
                await conn.execute(
                    self._sql("SELECT deleted, stopped_at FROM /* schema */baton_prune(%s::integer, %s, %s)"),
                    (limit, age, after),
                )
            ).fetchone()
        assert row is not None
        return Pruned(*row)

    async def prune_debug_logs(self, age: float, limit: int) -> int:
        """Delete captured calls older than `age` seconds; returns how many."""
        return int(
            await self._value("SELECT /* schema */baton_prune_debug_logs(%s, %s::integer)", age, limit)
        )

    async def prune_stats(self, age: float, limit: int) -> int:
        """Delete what is recorded of calls older than `age` seconds, of runs that have ended; returns how many."""
        return int(await self._value("SELECT /* schema */baton_prune_stats(%s, %s::integer)", age, limit))

    async def read_calls_to_price(self, **asked: object) -> list[dict[str, Any]]:
        """Calls of models whose cost may be another by the prices of today; see `read_calls_to_price.sql`."""
        pool = await self.open()
        async with pool.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_store.load("read_calls_to_price", self.prefix), asked, prepare=False)
            return await cursor.fetchall()

    async def price_calls(self, **columns: Sequence[object]) -> int:
        """Write what calls cost by other prices, where nobody was faster; returns how many. See `price_calls.sql`."""
        ((count,),) = await self._rows("price_calls", **columns)
        return int(count)

    async def elect(
        self, name: str, node: str, elected_at: datetime | None, seconds: float
    ) -> datetime | None:
        """Take the leader's lease, or renew that of `elected_at`; when it was taken, None while somebody else has it."""
        rows = await self._rows("elect", name=name, node=node, elected_at=elected_at, seconds=seconds)
        return rows[0][0] if rows else None

    async def resign(self, name: str, node: str, elected_at: datetime | None) -> None:
        """Give up a lease that was taken."""
        await self._rows("resign", name=name, node=node, elected_at=elected_at)

    async def prune_jobs(self, max_age: int, limit: int) -> int:
        """Delete jobs that ended more than `max_age` seconds ago; returns how many."""
        ((pruned,),) = await self._rows("prune_jobs", max_age=max_age, limit=limit)
        return int(pruned)

    async def stage_jobs(
        self, limit: int, queues: Sequence[str], before: datetime | None = None
    ) -> tuple[int, list[str]]:
        """Make due jobs available; returns how many, and the queues that have something to do."""
        rows = await self._rows(
            "stage_jobs",
            limit=limit,
            queues=list(queues),
            before=None if before is None else naive_utc(before),
        )
        return sum(staged for _, staged in rows), [queue for queue, _ in rows]

    async def reset(self) -> None:
        """Forget every workflow."""
        await self._rows("reset")

    async def store(self, job_id: int, attempted_at: datetime, key: str, value: str) -> bool:
        """Keep a value before the ack; False when the attempt no longer holds its job."""
        return bool(
            await self._value(
                "SELECT /* schema */baton_store(%s, %s::timestamp, %s, %s)",
                Int8(job_id),
                naive_utc(attempted_at),
                key,
                value,
            )
        )

    async def record(self, usage: str, logs: str) -> None:
        """Write what calls of models used, and captured calls; both JSON arrays. See `baton_record`."""
        async with self._waiting_for_budgets:
            await self._value("SELECT /* schema */baton_record(%s::jsonb, %s::jsonb)::text", usage, logs)

    async def store_call(self, job_id: int, attempted_at: datetime, key: str, value: str, usage: str) -> bool:
        """Keep a call's value with what it used; False when the attempt no longer holds its job. See `baton_store_call`."""
        async with self._waiting_for_budgets:
            held = await self._value(
                "SELECT /* schema */baton_store_call(%s, %s::timestamp, %s, %s, %s::jsonb)",
                Int8(job_id),
                naive_utc(attempted_at),
                key,
                value,
                usage,
            )
        return bool(held)

    async def read_stored(self, step_id: int, key: str) -> str | None:
        """JSON text of what a step stored under a key, None where it stored nothing."""
        rows = await self._rows("read_stored", step_id=Int8(step_id), key=key)
        return rows[0][0] if rows else None

    async def report(self, told: Sequence[Told]) -> Heard:
        """Write what running steps tell, in one statement. See `baton_report`."""
        chunks = [
            (one.job_id, one.first + place, chunk) for one in told for place, chunk in enumerate(one.chunks)
        ]
        pool = await self.open()
        async with pool.connection() as conn:
            row = await (
                await conn.execute(
                    self._sql(_REPORT),
                    (
                        [one.job_id for one in told],
                        [naive_utc(one.attempted_at) for one in told],
                        [one.done for one in told],
                        [one.total for one in told],
                        [one.message for one in told],
                        [one.first + len(one.chunks) for one in told],
                        [job_id for job_id, _, _ in chunks],
                        [position for _, position, _ in chunks],
                        [chunk for _, _, chunk in chunks],
                    ),
                )
            ).fetchone()
        assert row is not None
        return Heard(*row)

    async def dependency_results(self, step_id: int, names: Sequence[str] | None) -> dict[str, Any]:
        """Stored results of a step's dependencies, by name, wrapped as {"value": ...}; all of them for None."""
        rows = await self._rows(
            "read_dependency_results", step_id=step_id, names=None if names is None else list(names)
        )
        return {name: orjson.loads(result) for name, result in rows}

    async def dependency_failures(self, step_id: int) -> dict[str, str]:
        """Errors of a step's dependencies that ended cancelled or discarded, by name."""
        return {
            name: error or "" for name, error in await self._rows("read_dependency_failures", step_id=step_id)
        }

    async def has_step(self, workflow_id: str, name: str) -> bool:
        """Whether a run has a step of that name."""
        return bool(
            await self._value(
                "SELECT EXISTS (SELECT FROM /* schema */workflow_nodes WHERE workflow_id = %s::uuid AND name = %s)",
                workflow_id,
                name,
            )
        )

    # --- runs as a whole ------------------------------------------------------------------------------

    async def cancel(
        self, run_id: UUID, steps: Sequence[str] | None, reason: str, cause: str = "request"
    ) -> list[str | None] | None:
        """End a run, or steps of it; what each one ends as, None where there is no such run. See `baton_cancel`."""
        names = None if steps is None else list(steps)
        ends: list[str | None] | None = await self._patiently(
            "baton_cancel(%s, %s::text[], %s, %s)", run_id, names, reason, cause
        )
        return ends

    async def expire(self) -> int:
        """End the runs whose deadline has passed; returns how many there were."""
        expired = [run_id for (run_id,) in await self._rows("read_expired")]
        for run_id in expired:
            await self.cancel(run_id, None, "the deadline of its run has passed", "deadline")
        return len(expired)

    async def pause(self, run_id: UUID) -> str | None:
        """Let nothing more of a run start; its state, None where there is no such run."""
        state: str | None = await self._patiently("baton_pause(%s)", run_id)
        return state

    async def resume(self, run_id: UUID) -> str | None:
        """Let a paused run go on; its state, None where there is no such run."""
        state: str | None = await self._patiently("baton_resume(%s)", run_id)
        return state

    async def retry(self, run_id: UUID) -> list[str] | None:
        """Revive what failed in a run; names of the steps, None where there is no such run."""
        try:
            names: list[str] | None = await self._patiently("baton_retry(%s)", run_id)
        except DatabaseError as error:
            raise _refusal(error, run_id) or error from None
        return names

    async def rerun(self, run_id: UUID, new_id: UUID, names: Sequence[str] | None) -> bool:
        """Insert a run that does part of another again; whether there is that other."""
        wanted = None if names is None else list(names)
        try:
            return bool(await self._patiently("baton_rerun(%s, %s, %s::text[])", run_id, new_id, wanted))
        except DatabaseError as error:
            raise _refusal(error, run_id) or error from None

    # --- budgets --------------------------------------------------------------------------------------

    async def reserve(
        self,
        reservation_id: UUID | None,
        job_id: int,
        attempted_at: datetime,
        usd: Decimal | None,
        tokens: int,
    ) -> dict[str, Any]:
        """Set aside what a call may come to, of all budgets of its run or of none; None asks whether a step may start.

        See `baton_reserve` for what it says.
        """
        try:
            async with self._waiting_for_budgets:
                said = await self._value(
                    "SELECT /* schema */baton_reserve(%s::uuid, %s, %s::timestamp, %s::numeric, %s)",
                    reservation_id,
                    Int8(job_id),
                    naive_utc(attempted_at),
                    usd,
                    Int8(tokens),
                )
        except LockNotAvailable:
            return {"status": "waiting"}
        return dict(said)

    async def release_reservation(self, reservation_id: UUID) -> None:
        """Give back what was set aside for a call that used nothing."""
        async with self._waiting_for_budgets:
            await self._value("SELECT /* schema */baton_release_reservation(%s::uuid[])", [reservation_id])

    async def pause_for(
        self, run_id: UUID, budget_id: int, usd: Decimal | None, tokens: int, *, start: bool
    ) -> str:
        """Pause a run whose budget is exhausted: `paused`, `room` if there is some now, or `ended`."""
        return str(
            await self._patiently(
                "baton_pause_for(%s::uuid, %s, %s::numeric, %s, %s)",
                run_id,
                Int8(budget_id),
                usd,
                Int8(tokens),
                start,
            )
        )

    async def resume_funded(self) -> int:
        """Let runs go on that a budget paused and that was raised since; returns how many there were."""
        resumed = 0
        for (run_id,) in await self._rows("find_funded_runs", limit=_MOST_FUNDED):
            resumed += bool(await self._patiently("baton_resume_for(%s::uuid)", run_id))
        return resumed

    async def charge_dead(self) -> int:
        """Charge what attempts had set aside that died; returns how many calls that were."""
        return int(await self._value("SELECT /* schema */baton_charge_dead()"))

    async def add_to_budget(
        self, key: str | None, run_id: UUID | None, usd: Decimal, tokens: int, calls: int
    ) -> bool:
        """Raise a budget, then let the runs go on that it had paused; whether there is such a budget."""
        try:
            found = await self._value(
                "SELECT /* schema */baton_add_to_budget(%s, %s::uuid, %s::numeric, %s, %s)",
                key,
                run_id,
                usd,
                Int8(tokens),
                Int8(calls),
            )
        except DatabaseError as error:
            if error.sqlstate != "BT005":
                raise
            kind = error.diag.message_detail
            raise InvalidOption(
                f"budget {key or run_id} has no limit in {kind}, so nothing can be added to that; declare one with "
                f"Budget({kind}=...)"
            ) from None
        await self.resume_funded()
        return found is not None

    async def delete_budget(self, key: str) -> bool:
        """Forget a shared budget, then let the runs go on that it had paused; whether there was one."""
        deleted = bool(await self._value("SELECT /* schema */baton_delete_budget(%s)", key))
        await self.resume_funded()
        return deleted

    async def add_consumer(self, name: str) -> None:
        """Have the end of every run delivered to a consumer from now on."""
        await self._rows("add_consumer", name=name)

    async def remove_consumer(self, name: str) -> bool:
        """Deliver nothing to a consumer any more, and forget what it was not told; whether there was one."""
        return bool(await self._rows("remove_consumer", name=name))

    async def deliver(
        self, consumer: str | None, functions: Sequence[str], limit: int, lease: float
    ) -> list[str]:
        """Take deliveries that are due, for `lease` seconds. See `baton_deliver`."""
        return list(
            await self._value(
                "SELECT /* schema */baton_deliver(%s, %s::text[], %s::integer, %s::double precision)",
                consumer,
                list(functions),
                limit,
                lease,
            )
        )

    async def delete_delivery(self, delivery_id: int, tries: int) -> None:
        """It was delivered."""
        await self._rows("delete_delivery", id=Int8(delivery_id), tries=tries)

    async def postpone_delivery(self, delivery_id: int, tries: int, seconds: float) -> None:
        """It failed, and is due again in some seconds."""
        await self._rows("postpone_delivery", id=Int8(delivery_id), tries=tries, seconds=seconds)

    async def cancel_many(self, job_ids: Sequence[int]) -> list[tuple[int, str]]:
        """Oban's cancel of jobs, durable for those that run; id and state before of each that had not ended."""
        pool = await self.open()
        async with pool.connection() as conn:
            rows = await (
                await conn.execute(
                    self._sql(
                        "SELECT id, state, current_setting('baton.notes', true) "
                        "FROM /* schema */baton_cancel_many(%s::bigint[])"
                    ),
                    (list(job_ids),),
                )
            ).fetchall()
        if rows:
            self.on_finished(read_notes(rows[0][2]).finished)
        return [(job_id, state) for job_id, state, _ in rows]

    async def cancelled(self, job_ids: Sequence[int]) -> list[int]:
        """Which of these running jobs were cancelled meanwhile."""
        return list(await self._value("SELECT /* schema */baton_cancelled(%s::bigint[])", list(job_ids)))

    async def _patiently(self, function: str, *params: object) -> Any:
        """A function that may be the victim of a deadlock, or meet a lock that lasts: it is sent again, a few times."""
        for attempt in range(1, _TRIES):
            try:
                return await self._call(function, *params)
            except (SerializationFailure, DeadlockDetected, LockNotAvailable):
                await asyncio.sleep(random.uniform(0.5, 1.0) * 0.02 * 2**attempt)  # noqa: S311
        return await self._call(function, *params)

    async def insert(self, plan: InsertPlan) -> list[Inserted]:
        """Write workflows in one statement and one commit."""
        pool = await self.open()
        async with pool.connection() as conn:
            inserted = await self._insert(plan, conn, self.local_producers, self.origin)
        if inserted:
            self.on_finished(read_notes(inserted[0].notes).finished)
        if any(plan.budget_keys):
            # A limit that was declared anew may be higher.
            await self.resume_funded()
        return inserted

    async def insert_into(self, plan: InsertPlan, conn: AsyncConnection) -> list[Inserted]:
        """Write workflows in the transaction of a caller's connection, which stays usable whatever happens here."""
        if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
            return await self._insert(plan, conn, [], None)
        await conn.execute("SAVEPOINT baton_insert")
        try:
            # Whether and when the caller commits is not for us to know, so this process is notified like any other.
            inserted = await self._insert(plan, conn, [], None)
        except BaseException:
            await conn.execute("ROLLBACK TO SAVEPOINT baton_insert")
            raise
        await conn.execute("RELEASE SAVEPOINT baton_insert")
        return inserted

    async def _insert(
        self, plan: InsertPlan, conn: AsyncConnection, local: list[UUID], origin: str | None
    ) -> list[Inserted]:
        async with conn.cursor(row_factory=class_row(Inserted)) as cursor:
            try:
                await cursor.execute(
                    self._sql(_INSERT),
                    (
                        *(array_literal(column) for column in plan.columns),
                        array_literal(local),
                        origin,
                        *(array_literal(column) for column in plan.later_columns),
                    ),
                )
            except DatabaseError as error:
                if error.sqlstate != "BT001":
                    raise
                raise KeyConflict(
                    f"key {error.diag.column_name!r} belongs to the live run {error.diag.message_detail}, whose definition "
                    "differs from this workflow's; wait for that run, or use another key",
                    run_id=error.diag.message_detail or "",
                ) from error
            return await cursor.fetchall()


def _refusal(error: DatabaseError, run_id: UUID) -> BatonError | None:
    """What one of our functions said no to, in words; None for any other error."""
    detail = error.diag.message_detail or ""
    if error.sqlstate == "BT002":
        steps = detail.split()
        return JobsGone(
            f"run {run_id}: the Oban jobs of {', '.join(map(repr, steps))} were pruned, and with them their arguments; "
            "insert the workflow anew, and keep jobs longer with the max_age of Oban's pruner",
            steps=steps,
        )
    if error.sqlstate == "BT003" and detail:
        running = ", ".join(map(repr, detail.split()))
        return RunEnding(
            f"run {run_id}: {running} runs on what failed; wait for its end, or cancel it, then retry"
        )
    if error.sqlstate == "BT003":
        return RunEnding(f"run {run_id} is being cancelled; wait for its end, then retry it")
    if error.sqlstate == "BT004":
        return ResultNotFound(f"run {run_id} has no step {detail!r}")
    if error.sqlstate == "23505":
        return KeyConflict(
            f"run {run_id} cannot be live again: another live run has its key; wait for that run, or cancel it"
        )
    return None


async def connect(dsn: str, **options: Any) -> AsyncConnection:
    """One connection, at once or not at all: a pool would try for half a minute, whatever the reason.

    Raises:
        DatabaseUnreachable: With the server's or the resolver's reason.
    """
    try:
        return await AsyncConnection.connect(dsn, connect_timeout=10, **options)
    except ProgrammingError:
        # Not libpq's words, nor as the cause: they repeat the string, and with it the password.
        raise DatabaseUnreachable(
            "the connection string cannot be understood; one looks like postgresql://user@localhost:5432/database"
        ) from None
    except (OperationalError, UnicodeError) as error:
        raise DatabaseUnreachable(f"cannot connect to PostgreSQL: {' '.join(str(error).split())}") from error


async def connect_options(kwargs: object) -> dict[str, Any]:
    """What to connect with besides the string: a pool's own arguments, which may come from a function, before ours."""
    given: Any = kwargs() if callable(kwargs) else kwargs
    if inspect.isawaitable(given):
        given = await given
    own = {key: value for key, value in (given or {}).items() if key not in ("autocommit", "row_factory")}
    return {**CONNECT, **own}


async def check_connection(conn: AsyncConnection) -> None:
    """Let a pool hand out no connection that the server has ended, at no round trip for those it has not.

    An idle connection has nothing to say. One with something to read was told the end, or is about to be.
    """
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(conn)


async def behind_a_pooler(conn: AsyncConnection) -> bool:
    """Whether another program speaks to the server for us: the process that greeted us is not the one that answers."""
    row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
    return row is not None and row[0] != conn.info.backend_pid


async def read_committed(conn: AsyncConnection) -> None:
    """For connections of a pool: a role's or a database's default must not make statements fail that wait for each other."""
    await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)


def _ignored(_runs: object) -> None:
    return None


async def _configure(conn: AsyncConnection) -> None:
    # Lists of integers would otherwise be sent as int2[], int4[] or int8[] by their values, each a plan of its own.
    conn.adapters.register_dumper(int, Int8Dumper)
    # Settling counts under row locks and reads what others committed meanwhile; a role's default must not change that.
    await conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
