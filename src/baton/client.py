"""`Baton`: inserts workflows, runs workers, hands out runs. The facade that opens transactions, or joins the caller's."""

import asyncio
import inspect
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

from oban import Oban
from oban._query import unwrap_connection
from oban.oban import _instances as oban_instances
from psycopg import AsyncConnection, AsyncCursor
from psycopg_pool import AsyncConnectionPool

from baton import _plan, _signals, migration
from baton._accounts import Ledger
from baton._capture import Hook
from baton._deadline import within
from baton._deliveries import Deliveries, OnFinished
from baton._engine import (
    CONNECT,
    Engine,
    behind_a_pooler,
    check_connection,
    connect,
    connect_options,
    read_committed,
)
from baton._feed import Reading
from baton._following import Following
from baton._heartbeat import Heartbeat
from baton._maintenance import Maintenance, Upkeep
from baton._names import queue_name, workflow_key
from baton._oban import Seam
from baton._reports import Reports
from baton._store import validate_prefix
from baton._waiting import Waiters
from baton.budgets import Budgets
from baton.errors import InvalidOption, NotStarted, RunNotFound, StartError
from baton.events import Event
from baton.pricing import GenaiPrices, Pricing
from baton.query import Query
from baton.run import Access, Run
from baton.snapshot import RunsChange
from baton.stats import Stats
from baton.telemetry import WORKFLOW_FAILED
from baton.workflow import Workflow

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection as SQLAlchemyConnection
    from sqlalchemy.ext.asyncio import AsyncSession as SQLAlchemySession

    from baton.local import LocalServer

    type CallersConnection = (
        AsyncConnection[Any] | AsyncCursor[Any] | SQLAlchemyConnection | SQLAlchemySession
    )

logger = logging.getLogger("baton")

_ENGINE_CONNECTIONS = 4
_MOST_THREADS = 10_000
# Of seconds and of rows, as the database can count with them: one process's endless `rescue_after` would end all rescues.
_MOST = 1e9
# What a stop takes besides the grace of what runs, and what each of its parts gets however little of that is left.
_STOP_SECONDS = 1.5
_LEAST_SECONDS = 0.2
_MOST_SECONDS = 20.0


class Baton:
    """Durable workflows on a PostgreSQL of yours, or on an embedded one (`Baton.local`).

    With `queues` it works: it runs steps and ordinary Oban jobs of these queues. Without, it inserts and reads.

        async with Baton("postgresql://localhost/app", queues={"default": 20}) as baton:
            run = await baton.insert(workflow)
            await run.wait()

    Start and stop it once, in the event loop that uses it; `async with` does both. A forgotten DSN is an error here: this class
    never starts a server by itself.

    Args:
        dsn: Connection string of the database that has Oban's and Baton's tables (`baton migrate`).
        oban: Instead of `dsn`: the app's own Oban instance. Baton takes over how its jobs are run and acked, and starts and
            stops it unless the app does.
        queues: Queue name to how many jobs run at once in this process. With `oban`, the queues are that instance's.
        prefix: Schema of the tables.
        pool_size: Connections for Oban and for reads. The engine has up to 4 of its own, and LISTEN one.
        result_limit: Largest result of a step in bytes of JSON. A larger one fails the step.
        stream_limit: Most that an attempt of a step may stream, in bytes of JSON and 64 more for each chunk; also what it may
            hold in memory while the database is away. More raises StreamTooLarge in the step.
        shutdown_grace_period: Seconds that running jobs get when stopping; then they are given back.
        poll_interval: Seconds between looks while waiting for a run, should notifications be lost.
        rescue_after: Seconds of silence after which a process is dead and its steps run again elsewhere, from 1 up. A slow
            step or a blocked event loop is not silent: heartbeats come from a thread, four times as often. Set it alike in all
            processes.
        interval: Seconds between turns of the maintenance, which repairs and prunes.
        prune: Delete finished runs, each whole, once Oban's pruner has deleted their jobs. Without it they stay.
        prune_limit: About how many steps, and chunks that they streamed, a turn deletes at most. A backlog shrinks over several
            turns.
        debug: Capture the calls of models of all steps that this process runs, not only of workflows with `debug=True`. See
            `baton.debug`.
        redact: Called with what is captured of a call, part by part, after secrets were taken out; returns what is stored.
            It runs in a thread. When it raises, or takes 10 seconds, nothing is stored of the call but that.
        debug_log_max_age: Seconds that captured calls are kept, whatever their run does. None keeps them as long as their run.
        stats_max_age: Seconds that is kept what calls of models used and cost, of runs that have ended. None keeps it for ever,
            also when the run is pruned.
        on_finished: An `async` function that is called with a `WorkflowFinished` for each run that ends, whoever ran it, at
            least once: the row that says so is deleted when the call returns. After an error, or 50 seconds, it is called
            again later, here or in another process with the same `consumer`.
        consumer: Who is told: of the processes with the same one, one is called for each run. Runs that end between the first
            start with a name and `remove_consumer` are kept for it.
        pricing: What calls of models cost; see `baton.pricing`. Without one it is `GenaiPrices()`.

    Raises:
        InvalidOption: Neither or both of `dsn` and `oban`, or a setting that cannot work.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        oban: Oban | None = None,
        queues: Mapping[str, int] | None = None,
        prefix: str = "public",
        pool_size: int = 10,
        result_limit: int = 16_000_000,
        stream_limit: int = 16_000_000,
        shutdown_grace_period: float = 15.0,
        poll_interval: float = 1.0,
        rescue_after: float = 60.0,
        interval: float = 60.0,
        prune: bool = False,
        prune_limit: int = 10_000,
        debug: bool = False,
        redact: Hook | None = None,
        debug_log_max_age: float | None = None,
        stats_max_age: float | None = None,
        on_finished: OnFinished | None = None,
        consumer: str = "app",
        pricing: Pricing | None = None,
    ) -> None:
        if (dsn is None) == (oban is None):
            raise InvalidOption(
                "Baton needs a database: pass a DSN, Baton('postgresql://...'), or your Oban instance, Baton(oban=...); "
                "to try it without a server of your own, use Baton.local()"
            )
        if pricing is not None and not isinstance(pricing, Pricing):
            raise InvalidOption(
                f"pricing is of type {type(pricing).__name__}, which has no cost(usage, *, at); see baton.pricing"
            )
        if oban is not None and queues is not None:
            raise InvalidOption("with oban=, the queues are those of that Oban instance; leave queues= out")
        if dsn is not None and (not isinstance(dsn, str) or not dsn.strip()):
            raise InvalidOption(
                f"dsn is {dsn!r}; it must be a connection string, such as 'postgresql://localhost/app'"
            )
        if oban is not None and not isinstance(oban, Oban):
            raise InvalidOption(f"oban is of type {type(oban).__name__}; pass the app's Oban instance")
        _check_number("result_limit", result_limit, "bytes from 1 up", at_least=1, whole=True)
        _check_number("stream_limit", stream_limit, "bytes from 0 up", at_least=0, whole=True)
        _check_number("pool_size", pool_size, "connections from 1 up", at_least=1, whole=True)
        _check_number("poll_interval", poll_interval, "seconds above 0", at_least=0.001)
        _check_number("shutdown_grace_period", shutdown_grace_period, "seconds from 0 up", at_least=0)
        _check_number(
            "rescue_after", rescue_after, "seconds from 1 up, at most 1e9", at_least=1, at_most=_MOST
        )
        _check_number("interval", interval, "seconds above 0", at_least=0.001)
        if not isinstance(prune, bool):
            raise InvalidOption(f"prune is {prune!r}; it must be True or False")
        _check_number("prune_limit", prune_limit, "steps from 1 up, at most 1e9", at_least=1, at_most=_MOST)
        if not isinstance(debug, bool):
            raise InvalidOption(f"debug is {debug!r}; it must be True or False")
        if redact is not None and (not callable(redact) or inspect.iscoroutinefunction(redact)):
            raise InvalidOption(
                "redact must be a function, no `async` one, that takes what is captured and returns it"
            )
        for option, age in (("debug_log_max_age", debug_log_max_age), ("stats_max_age", stats_max_age)):
            if age is not None:
                wanted = "seconds from 0 up, at most 1e9, or None"
                _check_number(option, age, wanted, at_least=0, at_most=_MOST)
        if on_finished is not None and not inspect.iscoroutinefunction(on_finished):
            raise InvalidOption("on_finished must be an `async def` that takes a WorkflowFinished")
        if consumer == WORKFLOW_FAILED:
            raise InvalidOption(
                f"consumer {consumer!r} is what the telemetry of failed runs goes by; use another name"
            )
        self._dsn = dsn
        self._given = oban
        self._on_finished = on_finished
        self._pricing = GenaiPrices() if pricing is None else pricing
        self._debug = debug
        self._redact = redact
        self._consumer = workflow_key(consumer)
        self._queues = _validate_queues(queues or {})
        self._prefix = validate_prefix(oban._prefix if oban is not None else prefix)
        self._pool_size = pool_size
        self._result_limit = result_limit
        self._stream_limit = stream_limit
        self._grace = shutdown_grace_period
        self._poll_interval = poll_interval
        self._upkeep = Upkeep(
            interval=interval,
            rescue_after=rescue_after,
            prune=prune,
            prune_limit=int(prune_limit),
            debug_log_max_age=debug_log_max_age,
            stats_max_age=stats_max_age,
        )
        self._local: tuple[Path | None] | None = None
        self._server: LocalServer | None = None
        self._exit: AsyncExitStack | None = None
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._stop_by = float("inf")
        self._oban: Oban | None = None
        self._engine: Engine | None = None
        self._access: Access | None = None
        self._seam: Seam | None = None
        if oban is not None:
            # At once, so that no job runs without us if the app starts its Oban first.
            self._attach(oban)

    @classmethod
    def local(cls, data_dir: Path | str | None = None, **options: Any) -> Self:
        """A Baton on an embedded PostgreSQL, for development, demos and tests: `pip install "oban-baton[local]"`.

        The server is started when Baton starts, shared with other processes that use the same folder, and stopped by the
        last of them; the schema is migrated by itself. Everything in it is as durable as on any PostgreSQL.

        Args:
            data_dir: Folder of the data. Default: `BATON_DATA`, or the user's data folder.
            options: As for `Baton`; `queues` defaults to `{"default": 10}`.
        """
        options.setdefault("queues", {"default": 10})
        self = cls("postgresql://", **options)
        self._dsn = None
        self._local = (Path(data_dir) if data_dir is not None else None,)
        return self

    @property
    def dsn(self) -> str:
        """Connection string in use, once started.

        Raises:
            NotStarted: Not started, or attached to the app's Oban, whose pool knows it.
        """
        if not self._dsn:
            raise NotStarted("the DSN is known once Baton has started")
        return self._dsn

    @property
    def data_dir(self) -> Path | None:
        """Folder of the embedded PostgreSQL, None without one."""
        return self._server.data_dir if self._server is not None else None

    @property
    def queues(self) -> Mapping[str, int]:
        """Queues this process works on, by name, with how many jobs run at once."""
        if self._given is not None:
            return {name: producer._limit for name, producer in self._given._producers.items()}
        return dict(self._queues)

    @queues.setter
    def queues(self, queues: Mapping[str, int]) -> None:
        if self._given is not None:
            raise InvalidOption("the queues are those of the Oban instance that this Baton was given")
        if self._exit is not None:
            raise InvalidOption("queues are set before the start")
        self._queues = _validate_queues(queues)

    @property
    def oban(self) -> Oban:
        """The Oban instance underneath, for ordinary jobs: `await baton.oban.enqueue(...)`.

        Raises:
            NotStarted: Before the start.
        """
        if self._oban is None:
            raise _not_started("oban")
        return self._oban

    @property
    def query(self) -> Query:
        """Lists of runs and of steps, counts, and all that is known of a step: `await baton.query.list_runs()`.

        Raises:
            NotStarted: Before the start.
        """
        self._started()
        return Query(self._connection, self._prefix)

    @property
    def stats(self) -> Stats:
        """What calls of models used and cost: `await baton.stats.workflow_totals(run.id)`.

        Raises:
            NotStarted: Before the start.
        """
        engine, _, _ = self._started()
        return Stats(self._connection, self._prefix, engine, self._pricing or GenaiPrices())

    @property
    def budgets(self) -> Budgets:
        """What budgets have left, and adding to them: `await baton.budgets.add("tenant:acme", usd=50)`.

        Raises:
            NotStarted: Before the start.
        """
        engine, _, _ = self._started()
        return Budgets(self._connection, self._prefix, engine)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        """Connect, check the schema, start working on the queues. Returns itself; calling it again does nothing, and while it
        starts or stops, waits for that first.

        Raises:
            DatabaseUnreachable: PostgreSQL does not answer, refuses us, or the DSN is none.
            SchemaMissing: `baton migrate` was never run.
            SchemaOutdated: The schema is older than this library.
            LocalServerError: The embedded PostgreSQL could not be started.
        """
        async with self._in_turn():
            if self._exit is None:
                await self._start()
        return self

    def _in_turn(self) -> asyncio.Lock:
        """Starts and stops come one after the other: a second start would build a second Oban, which nobody stops."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            # A Baton may serve one event loop after the other, a lock may not.
            self._turn = loop, asyncio.Lock()
        return self._turn[1]

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                await self._start_parts(stack)
            except BaseException:
                # What has started has no longer to stop than in a stop, also while the database is away.
                self._stop_by = self._due()
                raise
            self._exit = stack.pop_all()

    async def _start_parts(self, stack: AsyncExitStack) -> None:
        self._stop_by = float("inf")
        if self._local is not None:
            await self._start_server(stack, self._local[0])
        oban = self._given or await self._build_oban(stack)
        if oban._query._pool.closed:
            await oban._query._pool.open()
            stack.push_async_callback(self._in_time, oban._query._pool.close)
        if self._seam is None:
            self._attach(oban)
        assert self._seam is not None
        assert self._access is not None
        stack.push_async_callback(self._release)
        async with self._access.connection() as conn:
            await migration.verify(conn, self._prefix)
            if await behind_a_pooler(conn):
                logger.warning(
                    "a connection pooler stands between Baton and PostgreSQL. If it pools by transaction, no "
                    "notification is heard and waiting falls back to polling; connect to PostgreSQL directly, or pool by "
                    "session"
                )
        stack.push_async_callback(self._in_time, partial(self._access.waiters.stop, oban))
        # After the queues, so that what their last steps came to is still told.
        stack.push_async_callback(self._in_time, self._access.following.stop)
        await self._start_deliveries(stack, oban)
        stack.push_async_callback(self._stop_heartbeat)
        if not bool(oban._signal_token):
            stack.push_async_callback(self._stop_oban, oban)
            await oban.start()
        else:
            if oban._stager._stopping.is_set():
                raise StartError(
                    "this Oban was stopped, and Oban cannot be started again; make a new instance"
                )
            stack.push_async_callback(self._seam.drain, oban._shutdown_grace_period)
        self._seam.started = True
        await self._seam.heartbeat.start()
        await self._access.waiters.start(oban)
        self._access.following.start()
        self._seam.maintenance.loop.start()
        stack.push_async_callback(self._seam.maintenance.loop.stop)

    async def stop(self) -> None:
        """Stop claiming, let running jobs end, give back the rest, disconnect. Calling it again does nothing, and while it
        stops, waits for the end.

        Outcomes are written as the jobs end, and heartbeats go on until the last has. It takes `shutdown_grace_period` and
        three seconds at most, also while the database is away: what cannot be written then runs again, `rescue_after` later.
        """
        async with self._in_turn():
            if self._exit is not None:
                await self._stop(self._exit)

    async def _stop(self, started: AsyncExitStack) -> None:
        assert self._seam is not None
        self._stop_by = self._due()
        # Steps that are still running may insert and read until they have ended.
        self._seam.acks.stopping = True
        try:
            await started.aclose()
        finally:
            self._exit = None
            self._stop_by = float("inf")

    def _due(self) -> float:
        """When a stop that begins now must have ended."""
        grace = self._oban._shutdown_grace_period if self._oban is not None else self._grace
        return time.monotonic() + (grace if grace is not None else float("inf")) + _STOP_SECONDS

    def hurry(self) -> None:
        """Cut short a `stop` under way: running jobs are cancelled and given back now, whatever is left of their grace.

        For a second signal. An attempt given back does not count. The thread of a plain function cannot be cancelled: it
        goes on until it returns or the process ends, while the job may run elsewhere already.
        """
        if self._seam is not None:
            self._seam.hurry()
            self._stop_by = min(self._stop_by, time.monotonic() + _STOP_SECONDS)

    async def _start_server(self, stack: AsyncExitStack, data_dir: Path | None) -> None:
        from baton.local import LocalServer

        server = await asyncio.to_thread(LocalServer.start, data_dir)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        self._server = server
        self._dsn = server.dsn
        await migration.up(server.dsn, prefix=self._prefix)

    async def _build_oban(self, stack: AsyncExitStack) -> Oban:
        assert self._dsn is not None
        await (await connect(self._dsn)).close()
        pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
            self._dsn,
            kwargs={**CONNECT, "application_name": "baton"},
            min_size=1,
            max_size=self._pool_size,
            configure=read_committed,
            check=check_connection,
            open=False,
            name="baton",
        )
        stack.push_async_callback(self._in_time, pool.close)
        await pool.open(wait=True, timeout=30.0)
        # Oban registers itself under its name, for `Worker.enqueue`. An instance of the app's own keeps the name.
        registered = oban_instances.get("Oban")
        oban = Oban(
            pool=pool,
            prefix=self._prefix,
            queues=dict(self._queues),
            shutdown_grace_period=self._grace,
            # Leadership is by node: two Batons in one process, or one pid on two hosts of one name, must differ.
            node=f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:6]}",
        )
        if registered is not None:
            oban_instances["Oban"] = registered
        return oban

    def _attach(self, oban: Oban) -> None:
        pool = oban._query._pool
        engine = Engine(
            oban._query.dsn,
            kwargs=pool.kwargs,
            prefix=self._prefix,
            origin=str(uuid4()),
            pool_size=_ENGINE_CONNECTIONS,
        )
        threads = ThreadPoolExecutor(
            # The queues' limits bound how many run, also when they are raised later; threads begin as they are needed.
            max_workers=_MOST_THREADS,
            thread_name_prefix="baton-step",
        )
        self._threads = threads
        self._oban = oban
        self._engine = engine
        self._reports = Reports(engine.report, limit=self._stream_limit)
        self._ledger = Ledger(
            engine, pricing=self._pricing, told=_signals.called, debug=self._debug, redact=self._redact
        )
        maintenance = Maintenance(
            engine,
            self._upkeep,
            is_leader=lambda: oban.is_leader,
            job_max_age=oban._pruner._max_age,
        )

        async def parameters() -> dict[str, Any]:
            return {**await connect_options(pool.kwargs), "conninfo": await oban._query.dsn()}

        self._seam = Seam(
            oban,
            engine,
            maintenance,
            heart=partial(
                Heartbeat,
                parameters=parameters,
                prefix=self._prefix,
                rescue_after=self._upkeep.rescue_after,
            ),
            threads=threads,
            result_limit=self._result_limit,
            reports=self._reports,
            ledger=self._ledger,
        )
        self._seam.attach()
        waiters = Waiters(self._connection, self._prefix, self._poll_interval)
        self._access = Access(
            self._connection,
            waiters,
            Following(Reading(self._connection, self._prefix, waiters)),
            engine,
            self._prefix,
        )
        self._seam.on_reconnect = self._access.waiters.wake

    async def _start_deliveries(self, stack: AsyncExitStack, oban: Oban) -> None:
        """Stopped after the queues, so that runs that end with them are told of at once."""
        assert self._engine is not None
        deliveries = Deliveries(
            self._engine,
            oban,
            self._threads,
            consumer=self._consumer,
            on_finished=self._on_finished,
            interval=self._poll_interval,
        )
        await deliveries.start()
        stack.push_async_callback(self._in_time, deliveries.stop)

    async def _stop_oban(self, oban: Oban) -> None:
        assert self._seam is not None
        await self._seam.stop_producers()
        await self._in_time(oban.stop)

    async def _stop_heartbeat(self) -> None:
        assert self._seam is not None
        await self._seam.heartbeat.stop(self._left())

    async def _in_time(self, stop: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Stop one part. It neither raises nor lasts: the database may be away, and the others stop as well."""
        try:
            await within(self._left(), stop(), asked=_LEAST_SECONDS)
        except Exception as error:
            logger.warning("a part of Baton did not stop in good order, and is given up: %s", error)

    def _left(self) -> float:
        """Seconds that a part has for its stop."""
        return max(_LEAST_SECONDS, min(_MOST_SECONDS, self._stop_by - time.monotonic()))

    async def _release(self) -> None:
        assert self._seam is not None
        assert self._engine is not None
        self._seam.detach()
        await self._in_time(self._reports.stop)
        await self._in_time(self._ledger.stop)
        await self._in_time(self._engine.close)
        self._threads.shutdown(wait=False)
        self._seam = None
        if self._given is None:
            if oban_instances.get("Oban") is self._oban:
                del oban_instances["Oban"]
            self._oban = None
            self._access = None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reads, a statement a transaction."""
        if self._oban is None:
            raise _not_started("this")
        async with self._oban._query._pool.connection() as conn:
            before = conn.autocommit
            await conn.set_autocommit(True)
            try:
                yield conn
            finally:
                if not conn.closed and not before:
                    await conn.set_autocommit(False)

    def _started(self) -> tuple[Engine, Access, Seam]:
        if self._exit is None or self._engine is None or self._access is None or self._seam is None:
            raise _not_started("this")
        return self._engine, self._access, self._seam

    async def insert(self, workflow: Workflow, *, conn: "CallersConnection | None" = None) -> Run:
        """Insert a workflow: all of its steps or none, in one transaction.

        Inserting the same `Workflow` again inserts another run, unless it has a `key`: a live run with that key is returned
        instead, with `run.inserted` False.

        Args:
            workflow: What to run. It may be empty; then the run is finished at once.
            conn: Insert in this connection's transaction: psycopg's AsyncConnection or AsyncCursor, or SQLAlchemy's
                AsyncSession or AsyncConnection on psycopg. Nothing is visible, and nothing starts, before it commits;
                after a rollback there is no trace.

        Raises:
            DefinitionError: Something is wrong with the workflow; nothing was written.
            KeyConflict: A live run has this key and another definition.
            NotStarted: Before the start.
        """
        (run,) = await self.insert_many([workflow], conn=conn)
        return run

    async def insert_many(
        self, workflows: Sequence[Workflow], *, conn: "CallersConnection | None" = None
    ) -> list[Run]:
        """Insert workflows, all of them or none, in one transaction and one statement; see `insert`.

        Returns:
            A run for each, in the same order. Two with the same key become one run.
        """
        engine, access, seam = self._started()
        for workflow in workflows:
            if not isinstance(workflow, Workflow):
                raise InvalidOption(f"insert takes a Workflow, not {type(workflow).__name__}")
            workflow.validate()
        if not workflows:
            return []
        with _signals.TracedInsert(workflows) as traced:
            plan = _plan.plan_insert(workflows, carried=traced.carried)
            if conn is None:
                inserted = await engine.insert(plan)
                seam.wake(list(plan.queues))
            else:
                inserted = await engine.insert_into(plan, await _callers_connection(conn))
            traced.inserted(row.id for row in inserted)
        return [Run(row.id, access, inserted=row.inserted) for row in inserted]

    def get_run(self, run_id: str | UUID) -> Run:
        """The handle on a run by its id. Reads nothing; a run that is not there shows at the first use.

        Raises:
            RunNotFound: That is no run's id.
            NotStarted: Before the start.
        """
        _, access, _ = self._started()
        try:
            return Run(UUID(str(run_id)), access)
        except ValueError as error:
            raise RunNotFound(
                f"{run_id!r} is no run's id; ids look like 01890a5d-ac96-774b-bcce-b302099a8057"
            ) from error

    def subscribe(
        self, run_id: str | UUID | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Be told what happens: first what holds already, then each event after the commit that made it true.

            async with baton.subscribe(run.id) as events:
                async for event in events:
                    print(event)

        Of each step, and of its progress, the last is told, however seldom you ask. All who subscribe to the same in this
        process share one reader.

        Args:
            run_id: Follow that run, until it is pruned. Without, all runs: told at first is what holds of the live ones (of the
                newest 1,000, 10,000 events at most). Who falls 10,000 events behind there loses the oldest: what must not be
                missed is what `on_finished` is for.

        Raises:
            RunNotFound: There is no such run; raised on entering.
            NotStarted: Outside of `async with`, or Baton is not running.
        """
        _, access, _ = self._started()
        return access.following.events(None if run_id is None else UUID(self.get_run(run_id).id))

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[RunsChange]]:
        """Follow the runs without their steps: first the 50 newest, then those that changed or are new, until you leave.

            async with baton.changes() as changes:
                async for change in changes:
                    show(change.runs, change.removed)

        Each change tells what holds when you ask for it. Of those that are removed it tells which this process knew: of the
        live ones the newest 1,000, and the 1,000 that changed last.

        Raises:
            NotStarted: Outside of `async with`, or Baton is not running.
        """
        _, access, _ = self._started()
        return access.following.runs_changes()

    async def remove_consumer(self, name: str) -> bool:
        """Keep no ends of runs for a consumer any more: one that no process starts with again.

        What it was not told yet is forgotten. Returns whether there was one; a second call finds none.

        Raises:
            NotStarted: Before the start.
        """
        engine, _, _ = self._started()
        return await engine.remove_consumer(name)


async def _callers_connection(conn: "CallersConnection") -> AsyncConnection:
    raw = await unwrap_connection(conn)
    callers = raw.connection if isinstance(raw, AsyncCursor) else raw
    if not isinstance(callers, AsyncConnection):
        raise InvalidOption(
            f"conn is a {type(callers).__module__}.{type(callers).__name__}; pass psycopg's AsyncConnection or "
            "AsyncCursor, or SQLAlchemy's AsyncSession or AsyncConnection on psycopg"
        )
    return callers


def _validate_queues(queues: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(queues, Mapping):
        raise InvalidOption(f"queues is {queues!r}; name each with its limit: queues={{'default': 20}}")
    for name, limit in queues.items():
        queue_name(name)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InvalidOption(
                f"queue {name!r} has the limit {limit!r}; it must be a whole number from 1 up"
            )
    return dict(queues)


def _check_number(
    option: str,
    value: object,
    wanted: str,
    *,
    at_least: float,
    at_most: float = float("inf"),
    whole: bool = False,
) -> None:
    if (
        not isinstance(value, int if whole else (int, float))
        or isinstance(value, bool)
        or not at_least <= value <= at_most
    ):
        raise InvalidOption(f"{option} is {value!r}; it must be a {'whole ' * whole}number of {wanted}")


def _not_started(what: str) -> NotStarted:
    return NotStarted(
        f"{what} needs a running Baton: use it inside `async with baton:`, or after `await baton.start()`"
    )
