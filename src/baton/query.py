"""Questions about runs and their steps, bounded, for a page, a dashboard or a script: `baton.query`.

Each is answered from one moment: a read-only transaction, of which no statement runs longer than two seconds. Lists come in
pages. Nothing here returns a result or an argument whole, but for `read_result_text` and the jobs themselves.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from oban.job import Job
from psycopg import AsyncConnection
from psycopg.errors import QueryCanceled
from psycopg.rows import class_row

from baton import _asked, _codec, _store, snapshot
from baton._declare import Ref
from baton._states import SETTLED, RunState, StepState
from baton.errors import InvalidOption, NoResult, QueryTimeout, ResultNotFound, RunNotFound
from baton.snapshot import Graph, RunSummary, StepStatus, StreamPage

type OneOrMore[T] = T | Collection[T]
type StepOrder = Literal["position", "started_at", "duration"]

_SECONDS = 2
# Pages are read in the order of an index and end early. To plan that, the database must not hope to read fewer rows by sorting
# all of them, nor compile what runs for a millisecond.
_ONE_MOMENT = (
    b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '%ds'; "
    b"SET LOCAL jit = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off" % _SECONDS
)
_MOST_RUNS = 1_000
_MOST_STEPS = 1_000
_MOST_JOBS = 10_000
_MOST_POSITIONS = 100_000
_MOST_COUNTED = 10_000
_MOST_CHARACTERS = 1_000_000
_MOST_CHUNKS = 1_000
_STREAM_BYTES = 256 * 1024
_MOST_NEIGHBOURS = 1_000
_MOST_LOGS = 100
_LOGS_BYTES = 1024 * 1024
_ORDERS: tuple[StepOrder, ...] = ("position", "started_at", "duration")
# The others are the job's.
_OF_THE_ROW = SETTLED | {StepState.HELD}
_LATEST_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class StepPage:
    """Some steps of a run.

    Attributes:
        steps: In the order that was asked for.
        next: What the next page is asked for with, as `after`; None when this is the last.
    """

    steps: tuple[StepStatus, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that ended with an error.

    Attributes:
        attempt: Which one, from 1.
        at: When it failed.
        error: What it raised, with the traceback; cut.
    """

    attempt: int
    at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A step that another waits for, or that waits for it."""

    position: int
    name: str
    state: StepState


@dataclass(frozen=True, slots=True)
class StepDetail:
    """One step of a run, with all that is known of it.

    What is the job's (arguments, worker, node, attempts) is gone when Oban has pruned the job. Sizes are in characters of
    the whole text, so a text that is shorter than its size was cut.

    Attributes:
        status: As in a list.
        arguments: What its function is called with, as JSON; null stands where the result of another step is filled in. Of a
            worker class, the job's args.
        arguments_size: None without a job.
        references: Which argument is filled in with which result, such as `documents` with `fetch_sources.result`; the first
            100.
        result: What it returned, as JSON; None while it has stored nothing.
        result_size: None without a result.
        attempts: Those that failed, the last 20, oldest first.
        attempts_failed: How many failed in all.
        captured: Whether calls of models that it made were captured.
        worker: Oban's name of the class that runs it.
        node: Where its last attempt began.
        dependencies: Steps it waits for, the first in the order they were added.
        dependencies_count: How many there are.
        dependents: Steps that wait for it, the first in the order they were added.
        dependents_count: How many there are.
    """

    status: StepStatus
    arguments: str | None
    arguments_size: int | None
    references: Mapping[str, str]
    result: str | None
    result_size: int | None
    attempts: tuple[FailedAttempt, ...]
    attempts_failed: int
    captured: bool
    worker: str | None
    node: str | None
    dependencies: tuple[Neighbour, ...]
    dependencies_count: int
    dependents: tuple[Neighbour, ...]
    dependents_count: int


@dataclass(frozen=True, slots=True)
class DebugLog:
    """A captured call of a model; see `baton.debug`. Its texts are without secrets, and cut.

    Attributes:
        id: Where it stands among all of them.
        step: Name of the step that made it.
        position: Of that step in its run.
        attempt: Which attempt of it, from 1.
        model: What the request named, or the step.
        call_id: Id of what the call used in `baton_llm_calls`, if that is known.
        call_key: Key of the stored call, of those made with `once`.
        request: What was sent, as JSON; None if the step did not say.
        response: What came back, as JSON; None if nothing did.
        context: Results of other steps that the attempt had read by then and no earlier call has, by step name, as JSON.
        error: What the call raised in place of an answer, or why nothing is stored of it.
        at: When it had ended, by the server's clock.
    """

    id: int
    step: str
    position: int
    attempt: int
    model: str | None
    call_id: str | None
    call_key: str | None
    request: str | None
    response: str | None
    context: str | None
    error: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class DebugLogPage:
    """Some captured calls of a run.

    Attributes:
        logs: In the order in which they were written.
        next: What the next page is asked for with, as `after`; None when this is the last.
    """

    logs: tuple[DebugLog, ...]
    next: int | None


class Query:
    """Reads runs and steps. `baton.query` is one; it works while its Baton does.

    `name_prefix` narrows any question to runs whose name begins so: others are not there. It is asked of the database, so
    that what one tenant may see can be left to it.
    """

    def __init__(
        self, connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]], prefix: str
    ) -> None:
        self._connection = connection
        self._prefix = prefix

    # --- runs ---------------------------------------------------------------------------------------

    async def list_runs(
        self,
        *,
        state: OneOrMore[RunState | str] | None = None,
        name: str | None = None,
        key: str | None = None,
        search: str | None = None,
        inserted_after: datetime | None = None,
        inserted_before: datetime | None = None,
        name_prefix: str = "",
        before: str | UUID | None = None,
        limit: int = 50,
    ) -> list[RunSummary]:
        """Runs, newest first, without their steps.

        Lists by state, name or key, and lists of all, take the same time on a million runs. A `search` reads the runs that the
        other filters leave, from the newest on, until it has found enough.

        Args:
            state: Only those in this state, or in one of several.
            name: Only those of exactly this name.
            key: Only those of exactly this key, live or not.
            search: Only those with this text in their name or key, in upper or lower case, or at the beginning of their id.
            inserted_after: Only those inserted at this moment or later, by the server's clock; aware.
            inserted_before: Only those inserted earlier than this; aware.
            name_prefix: Only those whose name begins so.
            before: Only those older than the run with this id: the last of one page begins the next.
            limit: 1 to 1,000.

        Raises:
            InvalidOption: A filter that cannot work.
            QueryTimeout: A search went through too many runs.
            NotStarted: Baton is not running.
        """
        filters = _filters(name, key, search, inserted_after, inserted_before, name_prefix)
        states = _states(RunState, state)
        older_than = None if before is None else _asked.run_id_option("before", before)
        _asked.check_range("limit", limit, _MOST_RUNS)
        # A list of each state comes out of the index in order; one of several would have to be sorted as a whole.
        each = [None] if states is None else states
        found: list[RunSummary] = []
        async with self._reading("the list of runs") as conn:
            for one in each:
                found += await snapshot.list_runs(
                    conn, self._prefix, {**filters, "state": one, "before": older_than, "limit": limit}
                )
        return sorted(found, key=lambda run: run.id, reverse=True)[:limit]

    async def count_runs(
        self,
        *,
        state: OneOrMore[RunState | str] | None = None,
        name: str | None = None,
        key: str | None = None,
        search: str | None = None,
        inserted_after: datetime | None = None,
        inserted_before: datetime | None = None,
        name_prefix: str = "",
        limit: int = _MOST_COUNTED,
    ) -> dict[RunState, int]:
        """How many runs are in each state; of each, `limit` are counted at most: as many means that many or more.

        Args:
            state: Only this state, or these.
            name: As in `list_runs`, as are the other filters.
            limit: 1 to 10,000.

        Raises:
            InvalidOption: A filter that cannot work.
            QueryTimeout: A search went through too many runs.
        """
        filters = _filters(name, key, search, inserted_after, inserted_before, name_prefix)
        states = _states(RunState, state)
        _asked.check_range("limit", limit, _MOST_COUNTED)
        async with self._reading("the number of runs") as conn:
            return {
                one: await self._count(conn, {**filters, "state": one, "limit": limit})
                for one in (RunState if states is None else states)
            }

    async def get_run(self, run_id: str | UUID, *, name_prefix: str = "") -> RunSummary:
        """One run without its steps.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._reading_run(run_id, name_prefix) as (_, run):
            return run

    # --- steps --------------------------------------------------------------------------------------

    async def get_workflow_jobs(
        self, run_id: str | UUID, *, after: int | None = None, limit: int = _MOST_JOBS, name_prefix: str = ""
    ) -> list[Job]:
        """Oban's jobs of a run's steps, in the order the steps were added.

        Steps whose job Oban has pruned are left out, as are steps that a re-run copied: these never had one. What does not go
        away is in `list_steps`.

        Args:
            after: Id of a job of this run: only those after it. The last of one page begins the next.
            limit: 1 to 10,000.

        Raises:
            RunNotFound: There is no such run.
            InvalidOption: `after` is no job of this run.
        """
        _asked.check_range("limit", limit, _MOST_JOBS)
        if after is not None:
            _asked.check_range("after", after, 2**63 - 1)
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            position = None if after is None else await self._position_of_job(conn, run, after)
            async with conn.cursor(row_factory=class_row(Job)) as cursor:
                await cursor.execute(
                    self._sql("read_jobs"), {"id": run.id, "after": position, "limit": limit}, prepare=False
                )
                return await cursor.fetchall()

    async def list_steps(
        self,
        run_id: str | UUID,
        *,
        state: OneOrMore[StepState | str] | None = None,
        search: str | None = None,
        positions: Collection[int] | None = None,
        order_by: StepOrder = "position",
        after: str | None = None,
        limit: int = 100,
        name_prefix: str = "",
    ) -> StepPage:
        """Steps of a run, a page at a time.

        By position, a page of a run of 100,000 steps takes as long as one of a small run. The other orders look at each of its
        steps.

        Args:
            state: Only those in this state, or in one of several.
            search: Only those with this text in their name or their function's, in upper or lower case.
            positions: Only those at these positions, 100,000 at most.
            order_by: `position`: as they were added. `started_at`: those that began first; those that have not begun come
                last. `duration`: those that took longest, or have been running for longest; the others last.
            after: `next` of the page before, which was asked for in the same order.
            limit: 1 to 1,000.

        Raises:
            RunNotFound: There is no such run.
            InvalidOption: A filter that cannot work, or an `after` of another order.
            QueryTimeout: It took too long.
        """
        _asked.check_range("limit", limit, _MOST_STEPS)
        if order_by not in _ORDERS:
            raise InvalidOption(f"order_by is {order_by!r}; it must be one of {', '.join(_ORDERS)}")
        states = _states(StepState, state)
        cursor = _Cursor.parse(order_by, after)
        asked = {
            "states": states,
            "settles": _columns(states),
            "search": _asked.containing("search", search),
            "positions": None if positions is None else _positions(positions),
            "limit": limit + 1,
            **cursor.params(),
        }
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            name = "find_steps" if order_by == "position" else "find_steps_by"
            found = await (
                await conn.execute(self._sql(name), {"id": run.id, **asked}, prepare=False)
            ).fetchall()
            names = [name for name, *_ in found[:limit]]
            steps = {step.name: step for step in await self._steps(conn, run, names)}
        return StepPage(
            tuple(steps[name] for name in names),
            cursor.at(*found[limit - 1][1:]) if len(found) > limit else None,
        )

    async def count_steps(self, run_id: str | UUID, *, name_prefix: str = "") -> dict[StepState, int]:
        """How many steps of a run are in each state; a state that none is in is left out.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            rows = await (
                await conn.execute(self._sql("count_steps"), {"id": run.id}, prepare=False)
            ).fetchall()
        counts = {StepState(state): count for state, count in rows}
        return {state: counts[state] for state in StepState if state in counts}

    async def get_step(
        self,
        run_id: str | UUID,
        step: str | int | Ref[Any],
        *,
        characters: int = 20_000,
        neighbours: int = 50,
        name_prefix: str = "",
    ) -> StepDetail:
        """One step with its arguments, its result, what its attempts raised, and its neighbours.

        Args:
            step: Its name, its ref or its position.
            characters: Where the texts are cut: arguments, result, and each error; 1 to 1,000,000.
            neighbours: How many dependencies, and how many dependents, at most; 1 to 1,000.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: It has no such step.
        """
        _asked.check_range("characters", characters, _MOST_CHARACTERS)
        _asked.check_range("neighbours", neighbours, _MOST_NEIGHBOURS)
        which = _which(step)
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            async with conn.cursor(row_factory=class_row(_DetailRow)) as cursor:
                await cursor.execute(
                    self._sql("read_step"), {"id": run.id, **which, "characters": characters}, prepare=False
                )
                row = await cursor.fetchone()
            if row is None:
                raise _no_step(run, step)
            (status,) = await self._steps(conn, run, [row.name])
            dependencies = await self._neighbours(conn, "read_dependencies", row.step_id, neighbours)
            dependents = await self._neighbours(conn, "read_dependents", row.step_id, neighbours)
        return row.detail(status, dependencies, dependents)

    async def read_result_text(
        self, run_id: str | UUID, step: str | int | Ref[Any], *, name_prefix: str = ""
    ) -> str:
        """What a step returned, whole, as JSON. No longer than `result_limit` let it be when it was stored.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: It has no such step.
            NoResult: That step has stored nothing.
        """
        which = _which(step)
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            row = await (
                await conn.execute(self._sql("read_result_text"), {"id": run.id, **which}, prepare=False)
            ).fetchone()
        if row is None:
            raise _no_step(run, step)
        name, text = row
        if text is None:
            raise NoResult(f"step {name!r} of run {run.id} has stored no result: it has not completed")
        return str(text)

    async def read_stream(
        self,
        run_id: str | UUID,
        step: str | int | Ref[Any],
        *,
        attempt: int | None = None,
        after: int = -1,
        limit: int = 500,
        name_prefix: str = "",
    ) -> StreamPage:
        """Some of what one attempt of a step has streamed; `run.stream` follows it all.

        Args:
            step: Its name, its ref or its position.
            attempt: Which attempt's; None for the newest that has streamed.
            after: Position of the last chunk of the page before; -1 for the start.
            limit: Chunks at most, 1 to 1,000. A page ends as well with the chunk that makes it 256 KB of JSON.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: It has no such step.
        """
        _asked.check_range("limit", limit, _MOST_CHUNKS)
        if attempt is not None:
            _asked.check_range("attempt", attempt, _LATEST_POSITION)
        if after != -1:
            _check_position(after)
        which = _which(step)
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            page = await snapshot.read_stream(
                conn,
                self._prefix,
                UUID(run.id),
                which,
                attempt=attempt,
                after=after,
                on=False,
                limit=limit,
                most_bytes=_STREAM_BYTES,
            )
        if page is None:
            raise _no_step(run, step)
        return page

    async def list_debug_logs(
        self,
        run_id: str | UUID,
        step: str | int | Ref[Any] | None = None,
        *,
        attempt: int | None = None,
        after: int = 0,
        limit: int = 20,
        name_prefix: str = "",
    ) -> DebugLogPage:
        """Captured calls of a run, or of one of its steps, a page at a time; see `baton.debug`.

        They may hold what people wrote and what the run read, so think of who sees them.

        Args:
            step: Only those of this step: its name, its ref or its position.
            attempt: Only those of this attempt.
            after: `next` of the page before; 0 for the start.
            limit: 1 to 100. A page ends as well with the call that makes it a megabyte of JSON.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: It has no such step.
        """
        _asked.check_range("limit", limit, _MOST_LOGS)
        if attempt is not None:
            _asked.check_range("attempt", attempt, _LATEST_POSITION)
        if after != 0 or isinstance(after, bool):
            _asked.check_range("after", after, 2**63 - 1)
        asked = {"attempt": attempt, "after": after, "limit": limit + 1, "bytes": _LOGS_BYTES}
        name, which = ("find_debug_logs", {}) if step is None else ("find_debug_logs_of_step", _which(step))
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            cursor = await conn.execute(self._sql(name), {"id": run.id, **which, **asked}, prepare=False)
            rows = await cursor.fetchall()
            if not rows and step is not None:
                raise _no_step(run, step)
        found = [row for row in rows if row[0] is not None]
        # Where it ended because of its size, the next may turn out to be empty.
        more = len(found) > limit or sum(size for *_, size in found) >= _LOGS_BYTES
        logs = tuple(_debug_log(row) for row in found[:limit])
        return DebugLogPage(logs, logs[-1].id if more else None)

    async def read_graph(self, run_id: str | UUID, *, name_prefix: str = "") -> Graph:
        """All steps with what they wait for, their functions and their states, ready to draw.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._reading_run(run_id, name_prefix) as (conn, run):
            rows = await (
                await conn.execute(self._sql("read_graph"), {"id": run.id}, prepare=False)
            ).fetchall()
        return Graph(
            name=run.name,
            deps={name: tuple(deps) for name, deps, *_ in rows},
            states={name: StepState(state) for name, _, state, *_ in rows},
            functions={name: function for name, _, _, function, _ in rows},
            positions={name: position for name, *_, position in rows},
        )

    # --- how it is read -----------------------------------------------------------------------------

    def _sql(self, name: str) -> bytes:
        return _store.load(name, self._prefix)

    @asynccontextmanager
    async def _reading(self, what: str) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads one moment, and that the server ends when it takes too long."""
        async with self._connection() as conn:
            try:
                async with conn.transaction():
                    await conn.execute(_ONE_MOMENT)
                    yield conn
            except QueryCanceled as error:
                raise QueryTimeout(
                    f"reading {what} took longer than {_SECONDS} seconds, and the database gave it up; ask for less: "
                    "narrow it by state, name, key or time, or leave the search out"
                ) from error

    @asynccontextmanager
    async def _reading_run(
        self, run_id: str | UUID, name_prefix: str
    ) -> AsyncIterator[tuple[AsyncConnection, RunSummary]]:
        id_ = _asked.run_id(run_id)
        beginning = _asked.beginning(name_prefix)
        async with self._reading(f"run {id_}") as conn:
            run = await snapshot.read_run(conn, self._prefix, id_, beginning)
            if run is None:
                raise RunNotFound(
                    f"there is no run {id_}; it may have been pruned, or inserted in a transaction rolled back"
                )
            yield conn, run

    async def _count(self, conn: AsyncConnection, asked: Mapping[str, object]) -> int:
        row = await (await conn.execute(self._sql("count_runs"), asked, prepare=False)).fetchone()
        assert row is not None
        return int(row[0])

    async def _steps(
        self, conn: AsyncConnection, run: RunSummary, names: list[str]
    ) -> tuple[StepStatus, ...]:
        return await snapshot.read_steps(conn, self._prefix, UUID(run.id), names)

    async def _position_of_job(self, conn: AsyncConnection, run: RunSummary, job_id: int) -> int:
        cursor = await conn.execute(self._sql("read_position_of_job"), {"id": run.id, "job_id": job_id})
        row = await cursor.fetchone()
        if row is None:
            raise InvalidOption(
                f"after is {job_id}, which is no job of run {run.id}; pass the id of the last job of the page before"
            )
        return int(row[0])

    async def _neighbours(self, conn: AsyncConnection, name: str, step_id: int, limit: int) -> "_Neighbours":
        cursor = await conn.execute(self._sql(name), {"step_id": step_id, "limit": limit}, prepare=False)
        rows = await cursor.fetchall()
        return _Neighbours(
            tuple(Neighbour(position, name, StepState(state)) for position, name, state, _ in rows),
            rows[0][3] if rows else 0,
        )


@dataclass(frozen=True, slots=True)
class _Neighbours:
    first: tuple[Neighbour, ...]
    count: int


@dataclass(frozen=True, slots=True)
class _DetailRow:
    step_id: int
    name: str
    arguments: str | None
    arguments_size: int | None
    refs: list[Any] | None
    result: str | None
    result_size: int | None
    errors: list[list[Any]]
    attempts_failed: int
    captured: bool
    worker: str | None
    node: str | None

    def detail(self, status: StepStatus, dependencies: _Neighbours, dependents: _Neighbours) -> StepDetail:
        return StepDetail(
            status=status,
            arguments=self.arguments,
            arguments_size=self.arguments_size,
            references=dict(filter(None, map(_reference, self.refs or []))),
            result=self.result,
            result_size=self.result_size,
            attempts=tuple(_failed_attempt(*error) for error in self.errors),
            attempts_failed=self.attempts_failed,
            captured=self.captured,
            worker=self.worker,
            node=self.node,
            dependencies=dependencies.first,
            dependencies_count=dependencies.count,
            dependents=dependents.first,
            dependents_count=dependents.count,
        )


# Whoever may write a job may have written anything into its arguments and its errors. What is none is left out.


def _reference(ref: object) -> tuple[str, str] | None:
    """An argument and the result that is filled in there, as a step's job has them."""
    match ref:
        case [[str(argument), *inside], str(step), [*path]]:
            return _path(argument, inside), _path(f"{step}.result", path)
    return None


def _path(root: str, path: list[object]) -> str:
    return _codec.render_path(root, [segment for segment in path if isinstance(segment, str | int)])


def _debug_log(row: tuple[Any, ...]) -> DebugLog:
    """A row of `find_debug_logs`, which ends with its size."""
    id_, step, position, attempt, model, call_id, key, request, response, context, error, at, _ = row
    shown = None if call_id is None else str(call_id)
    return DebugLog(
        id_, step, position, attempt, model, shown, key, request, response, context, error, at.astimezone(UTC)
    )


def _failed_attempt(attempt: object, at: object, error: str | None) -> FailedAttempt:
    number = attempt if isinstance(attempt, int) else 0
    return FailedAttempt(number, _moment(at), error or "")


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where a page of steps begins: after the step with this place in the order, as it was at a moment.

    Durations of running steps grow between two pages, all of them alike: with the moment of the first page they do not.
    """

    order_by: StepOrder
    position: int | None = None
    place: float | None = None
    moment: str | None = None

    @classmethod
    def parse(cls, order_by: StepOrder, after: str | None) -> "_Cursor":
        if after is None:
            return cls(order_by)
        try:
            order, position, *rest = after.split("~")
            if order != order_by or len(rest) != (0 if order == "position" else 2):
                raise ValueError
            place, moment = (float(rest[0]), _utc(rest[1])) if rest else (None, None)
            if not 0 <= int(position) <= _LATEST_POSITION:
                raise ValueError
            return cls(order_by, int(position), place, moment)
        except (ValueError, OverflowError, AttributeError):
            raise InvalidOption(
                f"after is {_asked.shown(after)}, which is no page of steps by {order_by}; pass `next` of the page before, and "
                "the same order"
            ) from None

    def params(self) -> dict[str, object]:
        return {
            "order_by": self.order_by,
            "after": self.position,
            "place": self.place,
            "moment": self.moment,
        }

    def at(self, position: int, place: float | None = None, moment: datetime | None = None) -> str:
        if moment is None:
            return f"position~{position}"
        return f"{self.order_by}~{position}~{place!r}~{moment.astimezone(UTC).isoformat()}"


def _utc(text: str) -> str:
    """A time in UTC, where the last hours of the calendar have no place; a ValueError or OverflowError if it is none."""
    return datetime.fromisoformat(text).astimezone(UTC).isoformat()


def _filters(
    name: str | None,
    key: str | None,
    search: str | None,
    inserted_after: datetime | None,
    inserted_before: datetime | None,
    name_prefix: str,
) -> dict[str, object]:
    """What `list_runs` and `count_runs` have in common, as the statements take it."""
    searched = _asked.text("search", search)
    first, last = _asked.ids_beginning(searched) if searched else (None, None)
    return {
        "name": _asked.text("name", name),
        "key": _asked.text("key", key),
        "search": _asked.containing("search", searched),
        "first_id": first,
        "last_id": last,
        "inserted_after": _asked.aware("inserted_after", inserted_after),
        "inserted_before": _asked.aware("inserted_before", inserted_before),
        "name_prefix": _asked.beginning(name_prefix),
    }


def _states[S: (RunState, StepState)](kind: type[S], given: OneOrMore[S | str] | None) -> list[S] | None:
    """One state or several as a list without repeats, None for all."""
    if given is None:
        return None
    each = [given] if isinstance(given, str) or not isinstance(given, Collection) else list(given)
    try:
        return list(dict.fromkeys(kind(one) for one in each))
    except ValueError:
        allowed = ", ".join(kind)
        raise InvalidOption(
            f"state is {_asked.shown(given)}; it must be one of {allowed}, or several of them"
        ) from None


def _columns(states: list[StepState] | None) -> list[str] | None:
    """What `workflow_nodes.state` may be for a step in one of these states."""
    if states is None:
        return None
    # A step that has not settled and has no job left is as good as cancelled.
    live = (state is StepState.CANCELLED or state not in _OF_THE_ROW for state in states)
    return [*(state for state in states if state in _OF_THE_ROW), *(["released"] if any(live) else [])]


def _positions(positions: Collection[int]) -> list[int]:
    if not isinstance(positions, Collection):
        raise InvalidOption(
            f"positions is {_asked.shown(positions)}; it must be a list of whole numbers from 0 up"
        )
    if len(positions) > _MOST_POSITIONS:
        raise InvalidOption(f"there are {len(positions):,} positions; give {_MOST_POSITIONS:,} at most")
    for position in positions:
        _check_position(position)
    return list(positions)


def _check_position(position: object) -> None:
    if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position <= _LATEST_POSITION:
        raise InvalidOption(f"a position is a whole number from 0 up, not {_asked.shown(position)}")


def _which(step: str | int | Ref[Any]) -> dict[str, object]:
    """A step by its name or by its position, as the statements take it."""
    if isinstance(step, Ref):
        return {"name": step.name, "position": None}
    if isinstance(step, str):
        # No step has such a name, and PostgreSQL has no such text.
        return {"name": _asked.UNSTORABLE.sub("\ufffd", step), "position": None}
    _check_position(step)
    return {"name": None, "position": step}


def _no_step(run: RunSummary, step: str | int | Ref[Any]) -> ResultNotFound:
    if isinstance(step, int):
        return ResultNotFound(f"run {run.id} has no step at position {step}")
    return ResultNotFound(
        f"run {run.id} has no step {_asked.shown(step.name if isinstance(step, Ref) else step)}"
    )
