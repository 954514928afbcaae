"""The handle on an inserted workflow."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, overload
from uuid import UUID

from psycopg import AsyncConnection

from baton import _codec, snapshot
from baton._declare import Ref, registered
from baton._states import RunState, StepState
from baton._waiting import Waiters
from baton.errors import NoResult, ResultNotFound, RunNotFound, StepCancelled, StepFailed, WorkflowTimeout
from baton.snapshot import Graph, RunStatus, RunSummary, StepStatus


@dataclass(frozen=True, slots=True)
class Access:
    """How a handle reaches the database."""

    connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    waiters: Waiters
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
            The outcome: `completed`, or `failed` when a step ended cancelled or discarded and not all of its dependents
            were told to ignore that.

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
            StepCancelled: It was cancelled, or doomed by a dependency; `error` says why.
            WorkflowTimeout: It had not settled after `timeout` seconds.
            ResultNotFound: The run has no such step.
            ResultMismatch: What it stored does not fit its annotation.
            NoResult: The run was pruned in between.
            RunNotFound: There is no such run.
        """
        name = step if isinstance(step, str) else step.name

        async def look() -> StepStatus | None:
            status = await self._step(name)
            return status if status.state.settled else None

        status = await self._until(
            "workflow", look, timeout, f"step {name!r} of run {self.id} has not settled"
        )
        if status.state is StepState.DISCARDED:
            raise StepFailed(
                f"step {name!r} was discarded after {status.attempt} of {status.max_attempts} attempts: "
                f"{_last_line(status.error)}",
                step=name,
                error=status.error,
            )
        if status.state is StepState.CANCELLED:
            raise StepCancelled(
                f"step {name!r} was cancelled: {_last_line(status.error)}", step=name, error=status.error
            )
        found = await self.results(name)
        if name not in found:
            raise NoResult(
                f"step {name!r} of run {self.id} settled, and its result is gone: the run was pruned meanwhile"
            )
        return found[name]

    async def results(self, *steps: str) -> dict[str, Any]:
        """Results stored so far, by step name: of the steps named, or of all. Does not wait.

        A step that has not completed is left out. Values are restored as in `result`.

        Raises:
            ResultMismatch: One of them does not fit its step's annotation; ask for the others by name.
        """
        async with self._access.connection() as conn:
            rows = await snapshot.read_results(conn, self._access.prefix, self._id, steps or None)
        return {name: _restore(name, function, text) for name, function, text in rows}

    async def summary(self) -> RunSummary:
        """The run without its steps.

        Raises:
            RunNotFound: There is no such run.
        """
        async with self._access.connection() as conn:
            summary = await snapshot.read_run(conn, self._access.prefix, self._id)
        if summary is None:
            raise RunNotFound(
                f"there is no run {self.id}; it may have been pruned, or inserted in a transaction rolled back"
            )
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
                raise RunNotFound(f"there is no run {self.id}; it may have been pruned")
            return RunStatus(summary, await snapshot.read_steps(conn, self._access.prefix, self._id))

    async def graph(self) -> Graph:
        """The steps with their states, ready to draw.

        Raises:
            RunNotFound: There is no such run.
        """
        status = await self.status()
        return Graph(
            name=status.run.name, deps={step.name: step.deps for step in status.steps}, states=status.states()
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


def _restore(name: str, function: str, text: str) -> Any:
    value = _codec.decode(text)
    step = registered(function)
    return value if step is None else _codec.restore(value, step.returns, where=f"result of step {name!r}")


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no reason was recorded"
