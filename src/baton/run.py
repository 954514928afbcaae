"""The handle on an inserted workflow."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, overload
from uuid import UUID

from psycopg import AsyncConnection

from baton import _codec, snapshot, why
from baton._declare import Ref, registered
from baton._engine import Engine
from baton._error_line import error_line
from baton._following import Following
from baton._names import uuid7
from baton._states import RunState, StepState
from baton._stream import Follower
from baton._waiting import Waiters
from baton.errors import (
    InvalidOption,
    NoResult,
    ResultNotFound,
    RunNotFound,
    StepCancelled,
    StepFailed,
    WorkflowTimeout,
)
from baton.events import Event
from baton.snapshot import Chunk, Graph, RunChange, RunStatus, RunSummary, StepStatus
from baton.why import Explanation, RunExplanation


@dataclass(frozen=True, slots=True)
class Access:
    """How a handle reaches the database."""

    connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    waiters: Waiters
    following: Following
    engine: Engine
    prefix: str


class Run:
    """An inserted workflow. Holds its id and nothing else, so it may be made anew anywhere with `baton.get_run(id)`.

    Attributes:
        id: Id of the run, as text.
        inserted: False when `insert` found a live run with the same key and returned that one.
    """

    def __init__(self, run_id: UUID, access: Access, *, inserted: bool = True) -> None:
        self.id = str(run_id)
        self.inserted = inserted
        self._id = run_id
        self._access = access

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    async def wait(self, *, timeout: float | None = None) -> RunState:
        """Wait until every step has settled.

        Returns:
            The outcome: `completed`; `failed` when a step ended cancelled or discarded and not all of its dependents
            were told to ignore that, or when the deadline passed; `cancelled` when the run was.

        Raises:
            WorkflowTimeout: It was not finished after `timeout` seconds. The run goes on.
            RunNotFound: There is no such run.
        """

        async def look() -> RunState | None:
            summary = await self.summary()
            return None if summary.state is RunState.EXECUTING else summary.state

        return await self._until("finished", look, timeout, f"run {self.id} has not finished")

    @overload
    async def result[R](self, step: Ref[R], *, timeout: float | None = None) -> R: ...
    @overload
    async def result(self, step: str, *, timeout: float | None = None) -> Any: ...

    async def result(self, step: Ref[Any] | str, *, timeout: float | None = None) -> Any:
        """Wait until a step has settled, and return its result.

        The value has the type that the step's function is annotated to return, where this process knows the function, and
        is plain JSON otherwise.

        Raises:
            StepFailed: The step was discarded; `error` is its last error.
            StepCancelled: It was cancelled, doomed by a dependency, or skipped; `error` says why.
            WorkflowTimeout: It had not settled after `timeout` seconds.
            ResultNotFound: The run has no such step.
            ResultMismatch: What it stored does not fit its annotation.
            NoResult: The run was retried in between.
            RunNotFound: There is no such run.
        """
        name = _name(step)

        async def look() -> StepStatus | None:
            status = await self._step(name)
            return status if status.state.settled else None

        status = await self._until(
            "settled", look, timeout, f"step {name!r} of run {self.id} has not settled"
        )
        if status.state is StepState.DISCARDED:
            raise StepFailed(
                f"step {name!r} was discarded after {status.attempt} of {status.max_attempts} attempts: "
                f"{_reason(status.error)}",
                step=name,
                error=status.error,
            )
        if status.state in (StepState.CANCELLED, StepState.SKIPPED):
            raise StepCancelled(
                f"step {name!r} was {status.state}: {_reason(status.error)}", step=name, error=status.error
            )
        found = await self.results(name)
        if name not in found:
            raise NoResult(
                f"step {name!r} of run {self.id} settled, and its result is gone: the run was retried meanwhile"
            )
        return found[name]

    async def results(self, *steps: str) -> dict[str, Any]:
        """Results stored so far, by step name: of the steps named, or of all. Does not wait.

        A step that has not completed is left out. Values are restored as in `result`.

        Raises:
            ResultMismatch: One of them does not fit its step's annotation; ask for the others by name.
            RunNotFound: There is no such run.
        """
        async with self._access.connection() as conn:
            rows = await snapshot.read_results(conn, self._access.prefix, self._id, steps or None)
        if not rows:
            await self.summary()
        return {name: _restore(name, function, text) for name, function, text in rows}

    async def summary(self) -> RunSummary:
        """The run without its steps.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._access.connection() as conn:
            summary = await snapshot.read_run(conn, self._access.prefix, self._id)
        if summary is None:
            raise self._not_found()
        return summary

    async def status(self) -> RunStatus:
        """The run and each of its steps, at one moment.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._access.connection() as conn, conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            summary = await snapshot.read_run(conn, self._access.prefix, self._id)
            if summary is None:
                raise self._not_found()
            return RunStatus(summary, await snapshot.read_steps(conn, self._access.prefix, self._id))

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[RunChange]]:
        """Follow the run: first all of it, then what changed, until you leave.

            async with run.changes() as changes:
                async for change in changes:
                    show(change.run, change.steps)

        Each change tells what holds when you ask for it: whoever asks seldom is told less often, and of each step only how it
        is by then. All who follow a run in this process share one reader. It ends when the run is pruned or this Baton stops.

        Raises:
            RunNotFound: There is no such run; raised on entering.
            NotStarted: Outside of `async with`, or Baton is not running.
        """
        return self._access.following.run_changes(self._id)

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What happens in the run, to its end: first what holds already, last a WorkflowFinished.

            async with run.events() as events:
                async for event in events:
                    print(event)

        As `baton.subscribe(run.id)`, but over when the run has finished: of one that has, you get what became of it.

        Raises:
            RunNotFound: There is no such run; raised on entering.
            NotStarted: Outside of `async with`, or Baton is not running.
        """
        return self._access.following.run_events(self._id)

    def stream(self, step: str | Ref[Any], *, attempt: int | None = None) -> AsyncIterator[Chunk]:
        """What a step writes with `baton.stream.write`: all there is from the start, then what comes until it has settled.

            async for chunk in run.stream("write_brief"):
                print(chunk.value, end="")

        Each chunk comes once and in order; one that comes late misses nothing. When the step is retried, the chunks of its next
        attempt follow, from position 0: `Chunk.attempt` tells.

        Args:
            step: Its name or ref.
            attempt: Only what this attempt streams. By default it begins with the newest that has streamed.

        Raises:
            ResultNotFound: The run has no such step.
            RunNotFound: There is no such run.
        """
        if attempt is not None and (type(attempt) is not int or not 1 <= attempt < 2**31):
            raise InvalidOption(f"attempt is {attempt!r}; attempts are counted from 1")
        access = self._access
        follower = Follower(
            access.connection,
            access.prefix,
            access.waiters,
            run_id=self._id,
            step=_name(step),
            attempt=attempt,
        )
        return follower.chunks()

    async def graph(self) -> Graph:
        """The steps with their states, ready to draw.

        Raises:
            RunNotFound: There is no such run.
        """
        status = await self.status()
        return Graph(
            name=status.run.name,
            deps={step.name: step.deps for step in status.steps},
            states=status.states(),
            functions={step.name: step.function for step in status.steps},
            positions={step.name: step.position for step in status.steps},
        )

    @overload
    async def why(self, step: None = None, *, limit: int = ...) -> RunExplanation: ...
    @overload
    async def why(self, step: Ref[Any] | str, *, limit: int = ...) -> Explanation: ...

    async def why(
        self, step: Ref[Any] | str | None = None, *, limit: int = 50
    ) -> RunExplanation | Explanation:
        """Say why nothing is happening: what a step waits for, or each step that has not settled.

        It is what holds at one moment, by the columns that decide it; nothing is guessed and nothing changed.

        Args:
            step: Which one; it may have settled. Without, the run's unsettled steps, those that could run first.
            limit: How many of those at most, 1 to 1,000.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: The run has no such step.
            InvalidOption: `limit` is out of range.
        """
        if not 1 <= limit <= 1000:
            raise InvalidOption(f"limit is {limit}; it must be from 1 to 1,000")
        async with self._access.connection() as conn, conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            run = await snapshot.read_run(conn, self._access.prefix, self._id)
            if run is None:
                raise self._not_found()
            names = None if step is None else [_name(step)]
            steps = await why.read_obstacles(conn, self._access.prefix, self._id, names, limit)
        if step is None:
            return RunExplanation(run, steps)
        if not steps:
            raise ResultNotFound(f"run {self.id} has no step {_name(step)!r}")
        return steps[0]

    @overload
    async def cancel(self, step: None = None, *, reason: str = ...) -> RunState: ...
    @overload
    async def cancel(self, step: Ref[Any] | str, *, reason: str = ...) -> StepState: ...

    async def cancel(
        self, step: Ref[Any] | str | None = None, *, reason: str = "cancelled on request"
    ) -> RunState | StepState:
        """End the run, or one step of it with what waits for that step.

        When this returns, nothing that was cancelled will start any more, whatever crashes. Steps that do not run have ended.
        One that does run gets CancelledError if it is `async`, and finds `baton.current().cancelled` true if it is plain;
        either ends as cancelled whatever it does. Steps with `always=True` still run at the end, unless named here.

        Returns:
            Who won: `cancelled`, or the outcome (the state) that was reached before, which stays. Calling it again returns the
            same. A run whose deadline passed before ends as `failed`.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: The run has no such step.
        """
        if not isinstance(reason, str):
            raise InvalidOption(f"reason is {reason!r}; it must be text")
        names = None if step is None else [_name(step)]
        ends = await self._access.engine.cancel(self._id, names, _codec.clean_text(reason, 1_000))
        if ends is None:
            raise self._not_found()
        (end,) = ends
        if end is None:
            raise ResultNotFound(f"run {self.id} has no step {_name(step or '')!r}")
        return RunState(end) if step is None else StepState(end)

    async def retry(self) -> list[str]:
        """Run what failed again, in place: the steps that ended cancelled or discarded, and all that waits for them.

        Steps that completed and do not hang on a failure keep their results. Attempts are counted anew. A finished run becomes
        live again as its next generation, and ends again with an outcome of its own; a live one goes on.

        Returns:
            Names of the steps that run again, in the order they were added; none if nothing had failed, so calling it twice, or
            twice at once, retries once.

        Raises:
            RunNotFound: There is no such run.
            RunEnding: It is being cancelled, and steps of it still run; or a step runs that goes on without what failed.
                Nothing was changed.
            JobsGone: Oban has pruned jobs that would have to run again. Nothing was changed.
            KeyConflict: Another live run has the key of this one.
        """
        names = await self._access.engine.retry(self._id)
        if names is None:
            raise self._not_found()
        return names

    async def rerun(self, *, from_: str | Ref[Any] | Sequence[str | Ref[Any]] | None = None) -> "Run":
        """Insert a new run that does this one again from some steps on; this one stays as it is, live or finished.

        Those steps, all that waits for them and all that has not completed run, with the arguments they had. The others are
        copied with their results, as settled. The new run's summary names this one in `rerun_of`; it has no key.

        Args:
            from_: Where to begin: one step or several. Without, all of it runs again.

        Returns:
            The new run. Calling it twice makes two.

        Raises:
            RunNotFound: There is no such run.
            ResultNotFound: It has no such step.
            JobsGone: Oban has pruned jobs that would have to run again. Nothing was written.
        """
        names = None
        if from_ is not None:
            one_or_more = [from_] if isinstance(from_, str) or not isinstance(from_, Sequence) else from_
            names = [_name(step) for step in one_or_more]
            if not names:
                raise InvalidOption("rerun(from_=[]) names no step; leave from_ out to run all of it again")
        new_id = uuid7()
        if not await self._access.engine.rerun(self._id, new_id, names):
            raise self._not_found()
        return Run(new_id, self._access)

    async def pause(self) -> RunState:
        """Let nothing more of the run start until `resume`. What runs goes on and settles. Pausing twice is pausing once.

        Returns:
            `executing` if it is paused now, or the outcome of a run that had finished.

        Raises:
            RunNotFound: There is no such run.
        """
        return self._state(await self._access.engine.pause(self._id))

    async def resume(self) -> RunState:
        """Let a paused run go on. Does nothing to one that is not paused.

        Raises:
            RunNotFound: There is no such run.
        """
        return self._state(await self._access.engine.resume(self._id))

    def _state(self, state: str | None) -> RunState:
        if state is None:
            raise self._not_found()
        return RunState(state)

    def _not_found(self) -> RunNotFound:
        return RunNotFound(
            f"there is no run {self.id}; it may have been pruned, or inserted in a transaction rolled back"
        )

    async def _step(self, name: str) -> StepStatus:
        async with self._access.connection() as conn:
            steps = await snapshot.read_steps(conn, self._access.prefix, self._id, [name])
        if not steps:
            await self.summary()
            raise ResultNotFound(f"run {self.id} has no step {name!r}")
        return steps[0]

    async def _until[T](
        self, kind: str, look: Callable[[], Awaitable[T | None]], timeout: float | None, what: str
    ) -> T:
        try:
            return await self._access.waiters.until(self._id, kind, look, timeout)
        except TimeoutError as error:
            raise WorkflowTimeout(
                f"{what} after {timeout} seconds; it goes on, and may be waited for again"
            ) from error


def _name(step: str | Ref[Any]) -> str:
    if isinstance(step, Ref):
        return step.name
    if not isinstance(step, str):
        raise InvalidOption(f"a step is named by its name or its Ref, not by {type(step).__name__}")
    return step


def _restore(name: str, function: str, text: str) -> Any:
    value = _codec.decode(text)
    step = registered(function)
    return value if step is None else _codec.restore(value, step.returns, where=f"result of step {name!r}")


def _reason(error: str | None) -> str:
    return error_line(error) or "no reason was recorded"
