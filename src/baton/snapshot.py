"""The one read model: a run, its steps, their states and times, for the client, the terminal and tests.

Lists never read results; those are read one by one, by name.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, kwargs_row

from baton import _codec, _fold, _layout, _store, render
from baton._layout import Layout
from baton._states import RunState, StepState
from baton._totals import TOKENS, Totals, add_up
from baton.events import WorkflowFinished


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run without its steps.

    Attributes:
        id: The run's id, a uuid of version 7: ids are ordered by time.
        name: As given to `Workflow`.
        key: As given to `Workflow`.
        generation: 1, and one more for each retry of the whole run.
        steps: How many it has.
        unsettled: How many have not ended.
        failed: How many ended cancelled or discarded.
        state: `executing`, or the outcome.
        inserted_at: When it was inserted, aware, UTC.
        finished_at: When its last step settled.
        paused_at: Since when nothing more of it starts; None while it is not paused.
        cancel_requested_at: When it was cancelled, or its deadline passed; steps that ran then may still be running.
        cancel_reason: What was given as the reason.
        deadline_at: When it must have finished.
        rerun_of: Id of the run whose settled steps it copied.
        paused_by_budget: Whether a budget that is exhausted paused it.
    """

    id: str
    name: str
    key: str | None
    generation: int
    steps: int
    unsettled: int
    failed: int
    state: RunState
    inserted_at: datetime
    finished_at: datetime | None
    paused_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    cancel_reason: str | None = None
    deadline_at: datetime | None = None
    rerun_of: str | None = None
    paused_by_budget: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step said it is, with `baton.progress`.

    Attributes:
        done: How much is done, in whatever the step counts.
        total: Of how much; None where the step does not know.
        message: What it is doing.
        updated_at: When that was written, aware, UTC.
    """

    done: float
    total: float | None
    message: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step of a run.

    Attributes:
        name: Its name in the run.
        deps: Names of the steps it waits for.
        state: `held`, its job's state, or as it settled.
        function: Registered name of the `@step`, or the worker class's path.
        queue: Oban's queue; empty once the job is pruned.
        attempt: Attempts begun.
        max_attempts: How many it may have.
        job_id: Id of its Oban job.
        waiting_on: How many of `deps` have not settled.
        has_result: Whether it stored one.
        error: The last error or the reason for its end.
        scheduled_at: When the job may run.
        started_at: When its last attempt began.
        settled_at: When it ended.
        runs_on: When its dependencies have settled: after `success`, `always`, or only after a `failure`.
        cancel_requested_at: When it was cancelled while it ran.
        position: Its place in the order in which steps were added.
        snoozed: How many times it snoozed; 0 once the job is pruned.
        progress: How far its present attempt said it is, or its last one; None if that said nothing.
        chunks: How many chunks that attempt has streamed.
        usage: What calls of models used and cost, in all of its attempts; None without calls.
    """

    name: str
    deps: tuple[str, ...]
    state: StepState
    function: str
    queue: str
    attempt: int
    max_attempts: int
    job_id: int
    waiting_on: int
    has_result: bool
    error: str | None
    scheduled_at: datetime | None
    started_at: datetime | None
    settled_at: datetime | None
    runs_on: str = "success"
    cancel_requested_at: datetime | None = None
    position: int = 0
    snoozed: int = 0
    progress: Progress | None = None
    chunks: int = 0
    usage: Totals | None = None

    @property
    def seconds(self) -> float | None:
        """How long the attempt that settled it took, None while it has not."""
        if self.started_at is None or self.settled_at is None:
            return None
        return max(0.0, (self.settled_at - self.started_at).total_seconds())


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of what a step streamed, with `baton.stream.write`.

    Attributes:
        attempt: Of the attempt that wrote it.
        position: Its place in the stream of that attempt, from 0 on and without gaps.
        value: As JSON holds it.
    """

    attempt: int
    position: int
    value: Any


@dataclass(frozen=True, slots=True)
class StreamPage:
    """Some of what a step has streamed.

    Attributes:
        step_id: Of the step.
        attempt: The one that was asked for, or the newest that has streamed; None while none has.
        chunks: In order.
        more: Whether there may be more behind these already.
        ended: Whether there is nothing behind these, and never will be.
    """

    step_id: int
    attempt: int | None
    chunks: tuple[Chunk, ...]
    more: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run and its steps at one moment."""

    run: RunSummary
    steps: tuple[StepStatus, ...]

    @property
    def usage(self) -> Totals | None:
        """What calls of models used and cost, in all steps; None without calls."""
        return add_up(step.usage for step in self.steps)

    @property
    def state(self) -> RunState:
        """`executing`, or the outcome."""
        return self.run.state

    def step(self, name: str) -> StepStatus:
        """The step of that name; KeyError if there is none."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def states(self) -> dict[str, StepState]:
        """State by step name, in the order steps were added."""
        return {step.name: step.state for step in self.steps}


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps, what they wait for, and their states; renders as text and as a picture.

    Attributes:
        name: Of the run.
        deps: Names of the steps that each waits for, in the order they were added.
        states: State by step name.
        functions: Registered name of the function by step name.
        positions: Position by step name; counted from 0 where there is none.
    """

    name: str
    deps: dict[str, tuple[str, ...]]
    states: dict[str, StepState]
    functions: dict[str, str] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def layout(self, expand: Collection[str] = ()) -> Layout:
        """Lay the graph out from left to right, with steps that are alike as one box.

        Four or more steps are alike when they stand in the same layer and have the same function, the same name but for its
        numbers, and neighbours that are alike; so parallel chains become a chain of groups. A graph of more than 1,000 boxes
        is folded further, by layer.

        Args:
            expand: Ids of groups to show singly. Of a large group 200 steps are shown, and the rest as a group again,
                which may be expanded in turn. Ids that are of no group are passed over.
        """
        return _layout.layout(_fold.fold(self.deps, self.functions, positions=self.positions, expand=expand))

    def to_svg(self, expand: Collection[str] = ()) -> str:
        """An SVG file of its own, light or dark as its reader has it, with steps that are alike as one box.

        Args:
            expand: As for `layout`.
        """
        positions = {name: self.positions.get(name, number) for number, name in enumerate(self.deps)}
        states = {positions[name]: state for name, state in self.states.items() if name in positions}
        return render.to_svg(self.layout(expand), states, title=self.name)

    def to_mermaid(self) -> str:
        """A Mermaid flowchart with a class per state; of more than 500 edges, with steps that are alike as one."""
        return render.to_mermaid(self.deps, self.states, self.functions)

    def to_dot(self) -> str:
        """A Graphviz digraph."""
        return render.to_dot(self.deps, self.states)

    def to_text(self) -> str:
        """A listing for the terminal; of more than 60 steps, with those that are alike on one line."""
        return render.to_text(self.deps, self.states, self.functions)


class Connections(Protocol):
    """Where a snapshot gets its connection."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]: ...


@dataclass(frozen=True, slots=True)
class _RunRow:
    id: UUID
    name: str
    key: str | None
    generation: int
    steps: int
    unsettled: int
    failed: int
    outcome: str | None
    inserted_at: datetime
    finished_at: datetime | None
    paused_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    deadline_at: datetime | None
    rerun_of: UUID | None
    paused_by_budget: bool

    def summary(self) -> RunSummary:
        return RunSummary(
            id=str(self.id),
            name=self.name,
            key=self.key,
            generation=self.generation,
            steps=self.steps,
            unsettled=self.unsettled,
            failed=self.failed,
            state=RunState(self.outcome or "executing"),
            inserted_at=self.inserted_at.astimezone(UTC),
            finished_at=_utc(self.finished_at),
            paused_at=_utc(self.paused_at),
            cancel_requested_at=_utc(self.cancel_requested_at),
            cancel_reason=self.cancel_reason,
            deadline_at=_utc(self.deadline_at),
            rerun_of=str(self.rerun_of) if self.rerun_of else None,
            paused_by_budget=self.paused_by_budget,
        )


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment else None


async def read_run(
    conn: AsyncConnection, prefix: str, run_id: UUID, name_prefix: str | None = None
) -> RunSummary | None:
    """One run without its steps, None if there is none, or none whose name is like `name_prefix`, a pattern of LIKE."""
    async with conn.cursor(row_factory=class_row(_RunRow)) as cursor:
        await cursor.execute(_store.load("read_run", prefix), {"id": run_id, "name_prefix": name_prefix})
        row = await cursor.fetchone()
    return row.summary() if row else None


async def list_runs(conn: AsyncConnection, prefix: str, asked: Mapping[str, object]) -> list[RunSummary]:
    """Runs, newest first; `asked` are the parameters of the statement."""
    async with conn.cursor(row_factory=class_row(_RunRow)) as cursor:
        # Planned for what is asked: which of its conditions are there decides which index is right.
        await cursor.execute(_store.load("list_runs", prefix), asked, prepare=False)
        return [row.summary() for row in await cursor.fetchall()]


async def read_steps(
    conn: AsyncConnection, prefix: str, run_id: UUID, names: Sequence[str] | None = None
) -> tuple[StepStatus, ...]:
    """Steps of a run in the order they were added; all of them, or those named."""
    async with conn.cursor(row_factory=kwargs_row(_step_status)) as cursor:
        # A plan for any names would be one for all of them.
        await cursor.execute(
            _store.load("read_steps", prefix),
            {"id": run_id, "names": None if names is None else list(names)},
            prepare=False,
        )
        return tuple(await cursor.fetchall())


def _step_status(
    *,
    deps: list[str],
    state: str,
    done: float | None,
    total: float | None,
    message: str | None,
    progress_at: datetime | None,
    **fields: Any,
) -> StepStatus:
    for name in ("scheduled_at", "started_at", "settled_at", "cancel_requested_at"):
        fields[name] = _utc(fields[name])
    progress = None
    if done is not None and progress_at is not None:
        progress = Progress(done, total, message, progress_at.astimezone(UTC))
    spent = {name: fields.pop(name) for name in ("calls", *TOKENS, "cost_usd", "unpriced")}
    usage = Totals.of(spent) if spent["calls"] else None
    return StepStatus(deps=tuple(deps), state=StepState(state), progress=progress, usage=usage, **fields)


async def read_stream(
    conn: AsyncConnection,
    prefix: str,
    run_id: UUID,
    which: Mapping[str, object],
    *,
    attempt: int | None,
    after: int,
    on: bool,
    limit: int,
    most_bytes: int,
) -> StreamPage | None:
    """What a step has streamed behind a place in an attempt, None if there is no such step.

    Args:
        which: Its `name`, or its `position` and None.
        attempt: None for the newest that has streamed.
        on: Go on with later attempts.
        most_bytes: Of the page, which is over it by one chunk at most.
    """
    cursor = await conn.execute(
        _store.load("read_stream", prefix),
        {
            "id": run_id,
            **which,
            "attempt": attempt,
            "after": after,
            "on": on,
            "limit": limit,
            "bytes": most_bytes,
        },
    )
    rows = await cursor.fetchall()
    if not rows:
        return None
    step_id, over, begins_in = rows[0][:3]
    found = [row[3:] for row in rows if row[3] is not None]
    more = len(found) == limit or sum(size for _, _, size, _ in found) >= most_bytes
    chunks = tuple(Chunk(attempt, position, _codec.decode(text)) for attempt, position, _, text in found)
    return StreamPage(step_id, begins_in, chunks, more, over and not more)


async def read_results(
    conn: AsyncConnection, prefix: str, run_id: UUID, names: Sequence[str] | None
) -> list[tuple[str, str, str]]:
    """Name, function and JSON text of what steps of a run stored."""
    cursor = await conn.execute(
        _store.load("read_results", prefix), {"id": run_id, "names": None if names is None else list(names)}
    )
    return [(name, function, text) for name, function, text in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class RunChange:
    """What is new about a run: the run as it is now, and those of its steps that are not as they were told before.

    Attributes:
        run: Without its steps.
        steps: In the order they changed; the first time all of them, in the order they were added.
    """

    run: RunSummary
    steps: tuple[StepStatus, ...]


@dataclass(frozen=True, slots=True)
class RunsChange:
    """What is new about the runs.

    Attributes:
        runs: As they are now: the first time the newest, then those that changed or are new.
        removed: Ids of runs that are gone.
    """

    runs: tuple[RunSummary, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A step as it was read, with a mark that is another one whenever a row it is read from was changed."""

    id: int
    run_id: str
    mark: str
    status: StepStatus


async def read_marked(conn: AsyncConnection, prefix: str, ids: Sequence[int]) -> list[Marked]:
    """Steps of whatever runs, by id, in no order; those that are there."""
    async with conn.cursor(row_factory=kwargs_row(_marked)) as cursor:
        await cursor.execute(_store.load("read_followed_steps", prefix), {"ids": list(ids)})
        return await cursor.fetchall()


def _marked(*, step_id: int, workflow_id: UUID, mark: str, **fields: Any) -> Marked:
    return Marked(step_id, str(workflow_id), mark, _step_status(**fields))


async def read_marked_runs(
    conn: AsyncConnection, prefix: str, ids: Collection[str]
) -> list[tuple[RunSummary, str]]:
    """Runs with a mark each, the newest first; those that are there."""
    async with conn.cursor(row_factory=kwargs_row(_marked_run)) as cursor:
        await cursor.execute(_store.load("read_followed_runs", prefix), {"ids": list(ids)})
        return await cursor.fetchall()


def _marked_run(*, mark: str, **fields: Any) -> tuple[RunSummary, str]:
    return _RunRow(**fields).summary(), mark


async def read_ends(conn: AsyncConnection, prefix: str, told: Mapping[str, int]) -> list[WorkflowFinished]:
    """Ends of runs, in generations after the one given for each, by run and generation."""
    async with conn.cursor(row_factory=kwargs_row(_end)) as cursor:
        await cursor.execute(
            _store.load("read_ends", prefix), {"ids": list(told), "after": list(told.values())}
        )
        return await cursor.fetchall()


def _end(
    *,
    event_id: UUID,
    workflow_id: UUID,
    outcome: str,
    failed_steps: list[str],
    timestamp: datetime,
    **fields: Any,
) -> WorkflowFinished:
    return WorkflowFinished(
        id=str(event_id),
        workflow_id=str(workflow_id),
        outcome=RunState(outcome),
        failed_steps=tuple(failed_steps),
        timestamp=timestamp.astimezone(UTC),
        **fields,
    )
