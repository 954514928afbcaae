"""Runs a step: its context, the results of its dependencies, and `StepWorker`, the one Oban worker behind every `@step`.

An attempt travels with its job, in `job.extra["baton"]`, which Oban does not store: the claim puts it there and the ack
takes the result from it. A job without one is an ordinary Oban job.
"""

import asyncio
import contextvars
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol, cast

from oban._backoff import jittery_clamped
from oban.job import Cancel as ObanCancel
from oban.job import Job, Record
from oban.job import Snooze as ObanSnooze

from baton import _codec
from baton._accounts import Accounts
from baton._answers import of_llm_step
from baton._declare import Step, registered
from baton._outcomes import Cancel, Snooze
from baton._reports import Report
from baton.errors import (
    NoResult,
    NotADependency,
    NoWorkflow,
    ResultError,
    ResultMismatch,
    ResultNotFound,
    StepCrashed,
    StepTimeout,
)

logger = logging.getLogger("baton.step")

EXTRA = "baton"
# How long a step that this process has no code for waits before it is offered again, to a process that may have it: twice as
# long each time, up to this.
_LONGEST_PARKING = 60


class ResultStore(Protocol):
    """What a running step needs of the engine."""

    async def dependency_results(self, step_id: int, names: list[str] | None) -> dict[str, Any]: ...

    async def store(self, job_id: int, attempted_at: datetime, key: str, value: str) -> bool: ...

    async def dependency_failures(self, step_id: int) -> dict[str, str]: ...

    async def has_step(self, workflow_id: str, name: str) -> bool: ...


@dataclass(slots=True)
class Attempt:
    """One attempt of a step, from its claim to its ack."""

    store: ResultStore
    threads: Executor
    step_id: int
    workflow_id: str
    label: str
    name: str
    deps: tuple[str, ...]
    state: str
    doomed: bool
    inputs: dict[str, Any] | None
    stored: dict[str, Any] | None
    result_limit: int
    result: str | None = None
    cancelled: bool = False
    cancel_requested: bool = False
    thread: "asyncio.Future[Any] | None" = field(default=None)
    report: Report | None = None
    duration: int | None = None
    """Nanoseconds that its code took, once it has ended."""
    released_at: datetime | None = None
    """When the last of its dependencies settled."""
    spans: tuple[str, ...] = ()
    """What the attempts that it follows left for a tracer."""
    debug: bool = False
    """Whether its calls of models are captured."""
    budgeted: bool = False
    """Whether its run has a budget."""
    accounts: Accounts | None = None
    """What it uses of models, once it runs."""

    async def load(self, names: list[str] | None) -> dict[str, Any]:
        """Values of dependencies by name; those that stored nothing are left out."""
        if self.inputs is None and names is not None:
            found = _unwrap(await self.store.dependency_results(self.step_id, names))
        else:
            if self.inputs is None:
                self.inputs = await self.store.dependency_results(self.step_id, None)
            found = _unwrap(
                {name: value for name, value in self.inputs.items() if names is None or name in names}
            )
        if self.accounts is not None:
            self.accounts.saw(found)
        return found


def _unwrap(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: wrapped["value"] for name, wrapped in stored.items()}


def attempt_of(job: Job) -> Attempt | None:
    """The attempt that a claimed job carries, None for an ordinary Oban job."""
    return cast("Attempt | None", job.extra.get(EXTRA))


class Results:
    """Results of the steps that a step waits for, and its own. All reads are from the database or the claim.

    In a worker class: `await baton.results.get(job, "fetch_sources")`. In a `@step`, references do this by themselves.
    """

    async def get(self, job: Job, step: str) -> Any:
        """The stored result of one dependency.

        Returns:
            The value as JSON holds it, None included.

        Raises:
            NoWorkflow: The job belongs to no workflow.
            NotADependency: The step does not wait for `step`, though there may be such a step.
            ResultNotFound: The workflow has no step of that name.
            NoResult: The dependency stored nothing: it was cancelled or discarded, and that is ignored here.
        """
        attempt = _require(job)
        if step not in attempt.deps:
            if not await attempt.store.has_step(attempt.workflow_id, step):
                raise ResultNotFound(
                    f"workflow {attempt.label!r} has no step {step!r}; {attempt.name!r} waits for {_listed(attempt.deps)}"
                )
            raise NotADependency(
                f"step {attempt.name!r} does not wait for {step!r}; it waits for {_listed(attempt.deps)}. "
                "Add it to deps to read its result"
            )
        found = await attempt.load([step])
        if step not in found:
            raise NoResult(
                f"step {step!r} has stored no result: it ended cancelled or discarded, which {attempt.name!r} ignores"
            )
        return found[step]

    async def get_all(self, job: Job) -> dict[str, Any]:
        """Results of all dependencies by step name; one that stored nothing is left out.

        Raises:
            NoWorkflow: The job belongs to no workflow.
        """
        return await _require(job).load(None)

    async def failures(self, job: Job) -> dict[str, str]:
        """Dependencies that ended cancelled or discarded, with their last error or the reason, by step name.

        For steps that run all the same: those with `always`, `on_failure` or an ignore flag.

        Raises:
            NoWorkflow: The job belongs to no workflow.
        """
        attempt = _require(job)
        return await attempt.store.dependency_failures(attempt.step_id)

    async def get_own(self, job: Job) -> Any:
        """What this step stored with `store`, in this attempt or an earlier one.

        Raises:
            NoResult: It has stored nothing, or the job belongs to no workflow.
        """
        attempt = attempt_of(job)
        if attempt is None or attempt.stored is None:
            raise NoResult("this step has stored no result of its own yet")
        return attempt.stored["value"]

    async def store(self, job: Job, value: Any) -> None:
        """Store the step's result now, in a commit of its own, before the step ends.

        After a crash the step is not run again: it completes with this value. The first value stored stays; what the
        step returns afterwards is ignored. An attempt that lost its job stores nothing.

        Raises:
            NoWorkflow: The job belongs to no workflow.
            InvalidResult: JSON cannot hold the value.
            ResultTooLarge: It is over the limit.
            ResultError: Another attempt holds the job by now.
        """
        attempt = _require(job)
        text = _codec.encode(value, root="result", limit=attempt.result_limit)
        assert job.id is not None
        assert job.attempted_at is not None
        if attempt.stored is not None:
            return
        if not await attempt.store.store(job.id, job.attempted_at, "", text):
            raise ResultError(f"step {attempt.name!r} stored nothing: this attempt no longer holds its job")
        attempt.stored = {"value": _codec.decode(text)}


def _require(job: Job) -> Attempt:
    attempt = attempt_of(job)
    if attempt is None:
        raise NoWorkflow(f"job {job.id} belongs to no workflow, so it has no results to read or store")
    return attempt


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no step"


results = Results()


class StepLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds `workflow`, `step` and `attempt` to every record."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the step's fields with the caller's `extra`, whose own win."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


@dataclass(frozen=True, slots=True)
class StepContext:
    """The step that is running here; see `baton.current`.

    Attributes:
        workflow_id: Id of the run.
        workflow: Name of the run.
        step: Name of the step in it.
        attempt: 1 for the first.
        max_attempts: The attempt with this number is the last.
        job: The Oban job, as the claim returned it.
    """

    workflow_id: str
    workflow: str
    step: str
    attempt: int
    max_attempts: int
    job: Job

    @property
    def idempotency_key(self) -> str:
        """`<workflow id>/<step>`: the same in every attempt, for calls outside that must count once."""
        return f"{self.workflow_id}/{self.step}"

    @property
    def cancelled(self) -> bool:
        """Whether the step was asked to stop: its timeout passed, or it was cancelled. For plain functions to look at."""
        attempt = attempt_of(self.job)
        return (attempt is not None and attempt.cancelled) or self.job.cancelled()

    @property
    def logger(self) -> StepLogger:
        """`baton.step`, whose records carry `workflow`, `step` and `attempt`."""
        return StepLogger(logger, {"workflow": self.workflow_id, "step": self.step, "attempt": self.attempt})

    async def result(self, step: str) -> Any:
        """As `baton.results.get` for this step."""
        return await results.get(self.job, step)

    async def failures(self) -> dict[str, str]:
        """As `baton.results.failures` for this step."""
        return await results.failures(self.job)


_current: contextvars.ContextVar[StepContext | None] = contextvars.ContextVar("baton_step", default=None)


def current() -> StepContext:
    """The step that runs here: in the task of an async one, or in the thread of a plain one.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    context = _current.get()
    if context is None:
        raise NoWorkflow(
            "baton.current() is for code that a step runs; no step of a workflow is running here"
        )
    return context


def attempt_here() -> Attempt:
    """The attempt that runs here, as `current`.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    attempt = attempt_of(current().job)
    assert attempt is not None
    return attempt


def accounts_for(what: str) -> Accounts:
    """The accounts of the attempt that runs here, for the function that is called `what`.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    try:
        accounts = attempt_here().accounts
    except NoWorkflow:
        raise NoWorkflow(
            f"{what} is for code that a step runs; no step of a workflow is running here"
        ) from None
    assert accounts is not None
    return accounts


class StepLogFilter(logging.Filter):
    """Puts `workflow`, `step` and `attempt` on every record logged while a step runs, and None elsewhere.

    Add it to a handler, so that it sees the records of all loggers: `handler.addFilter(StepLogFilter())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: it adds fields and drops nothing. Fields that a record has already are left alone."""
        context = _current.get()
        for name, value in (
            ("workflow", context.workflow_id if context else None),
            ("step", context.step if context else None),
            ("attempt", context.attempt if context else None),
        ):
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def enter(job: Job, attempt: Attempt) -> contextvars.Token[StepContext | None]:
    """Make a step the current one of this task."""
    return _current.set(
        StepContext(
            workflow_id=attempt.workflow_id,
            workflow=attempt.label,
            step=attempt.name,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            job=job,
        )
    )


def leave(token: contextvars.Token[StepContext | None]) -> None:
    """Undo `enter`."""
    _current.reset(token)


def keep_result(job: Job, result: Any) -> Any:
    """Encode what an attempt returned or raised, so that its ack carries it.

    Returns:
        What Oban is to make of it: `result`, Oban's form of a snooze or cancel, or the error that makes the attempt fail
        because JSON cannot hold the result.
    """
    if isinstance(result, Snooze):
        return ObanSnooze(math.ceil(result.seconds), None if result.meta is None else dict(result.meta))
    if isinstance(result, Cancel):
        return ObanCancel(str(result.reason))
    attempt = attempt_of(job)
    if attempt is None or isinstance(result, (ObanSnooze, ObanCancel, BaseException)):
        return result
    if attempt.stored is not None:
        attempt.result = _codec.encode(attempt.stored["value"], root="result")
        return result
    value = result.value if isinstance(result, Record) else result
    try:
        attempt.result = _codec.encode(value, root="result", limit=attempt.result_limit)
    except ResultError as error:
        return error
    return result


class StepWorker:
    """The Oban worker of every `@step`: finds the function by its registered name and calls it.

    What a row says is only ever looked up among the registered steps; nothing is imported because of it.
    """

    async def process(self, job: Job) -> Any:
        """Run the step; what it returns is its result."""
        name = str(job.args.get("step", ""))
        attempt = attempt_of(job)
        step = registered(name)
        if attempt is None or step is None:
            return park(job, _unknown(name, in_workflow=attempt is not None))
        if step.options.llm and attempt.accounts is not None:
            await attempt.accounts.check()
        arguments = await _arguments(step, job, attempt)
        if step.is_async:
            work = _run_async(step, arguments, _timeout(step, job))
        else:
            work = _run_plain(step, arguments, _timeout(step, job), attempt)
        return await (of_llm_step(job, attempt.accounts, work) if step.options.llm else work)

    def backoff(self, job: Job) -> int:
        """Seconds until the next attempt: the step's own rule, or Oban's default."""
        step = registered(str(job.args.get("step", "")))
        if step is not None and step.options.backoff is not None:
            return max(0, int(step.options.backoff(job.attempt)))
        return jittery_clamped(job.attempt, job.max_attempts)


def park(job: Job, reason: str) -> ObanSnooze:
    """Leave a job for a worker that can run it: later, without using an attempt, with the reason in `meta["parked"]`.

    The next claim of it takes the reason away.
    """
    node = job.attempted_by[0] if job.attempted_by else "unknown"
    told = f"{reason} (on node {node})"
    logger.warning("job %s is parked: %s", job.id, told)
    snoozed = job.meta.get("snoozed", 0)
    doublings = min(snoozed, 10) if isinstance(snoozed, int) and snoozed >= 0 else 0
    # No whole seconds: each node looks once a second for what is due, and this one would always be the first to find it.
    seconds = min(2**doublings, _LONGEST_PARKING) * random.uniform(0.5, 1.0)  # noqa: S311
    # Oban's, for an Oban without Baton would take ours for an error, and the attempt for used.
    return ObanSnooze(cast("int", seconds), {"parked": told})


def _unknown(name: str, *, in_workflow: bool) -> str:
    if not in_workflow:
        return (
            f"step {name!r} came to a process whose Oban has no Baton attached; it is left for one that has"
        )
    if name.startswith("__main__."):
        return (
            f"no code for step {name!r} here: it was defined in a script run as __main__, so only that process can run it; "
            "move it to a module that the workers import"
        )
    return f"no code for step {name!r} here; it is left for a worker that imports it"


async def _arguments(step: Step[..., Any], job: Job, attempt: Attempt) -> dict[str, Any]:
    given = dict(job.args.get("args", {}))
    references = job.args.get("refs", [])
    values = await attempt.load(sorted({name for _, name, _ in references})) if references else {}
    missing: set[str] = set()
    for path, name, inside in references:
        if name not in values:
            missing.add(str(path[0]))
        _put(given, path, _reach(values.get(name), inside, name))
    restored = {}
    for name, value in given.items():
        annotation = step.parameters.get(name, Any)
        try:
            restored[name] = _codec.restore(
                value, annotation, where=f"argument {name} of step {attempt.name!r}"
            )
        except ResultMismatch as error:
            if name in missing:
                raise ResultMismatch(
                    f"{error}; the dependency behind it was cancelled or discarded, which this step ignores, so there is "
                    f"no result: annotate the parameter with `| None` to accept that"
                ) from error
            raise
    return restored


def _put(arguments: dict[str, Any], path: list[Any], value: Any) -> None:
    place: Any = arguments
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, dict):
        # In the caller's order, in which the references are listed; jsonb has one of its own for keys.
        place.pop(path[-1], None)
    place[path[-1]] = value


def _reach(value: Any, path: list[Any], name: str) -> Any:
    for depth, key in enumerate(path):
        if value is None:
            return None
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            trail = "".join(f"[{part!r}]" for part in path[: depth + 1])
            raise ResultNotFound(f"the result of {name!r} has no {trail}") from error
    return value


def _timeout(step: Step[..., Any], job: Job) -> float | None:
    # In the job's meta where `with_options` set another than the function has.
    chosen = job.meta.get("timeout", step.options.timeout)
    return chosen if isinstance(chosen, (int, float)) else None


async def _run_async(step: Step[..., Any], arguments: dict[str, Any], timeout: float | None) -> Any:
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            return await cast("Awaitable[Any]", step.function(**arguments))
    except TimeoutError as error:
        if deadline.expired():
            raise StepTimeout(f"step {step.name!r} ran longer than its timeout of {timeout}s") from error
        raise


async def _run_plain(
    step: Step[..., Any], arguments: dict[str, Any], timeout: float | None, attempt: Attempt
) -> Any:
    call = partial(contextvars.copy_context().run, partial(_call, step.function, arguments))
    attempt.thread = asyncio.get_running_loop().run_in_executor(attempt.threads, call)
    try:
        done, _ = await asyncio.wait({attempt.thread}, timeout=timeout)
    except asyncio.CancelledError:
        # At shutdown: a call that waits for a thread never starts, one that runs is told.
        attempt.cancelled = True
        attempt.thread.cancel()
        raise
    if not done:
        # A thread cannot be killed. It is told, and keeps its slot of the queue until it returns; see `_dispatch`.
        attempt.cancelled = True
        raise StepTimeout(
            f"step {step.name!r} ran longer than its timeout of {timeout}s; its thread goes on until it returns "
            "(baton.current().cancelled tells it to)"
        )
    returned, value = attempt.thread.result()
    if returned:
        return value
    raise value


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[bool, Any]:
    # An executor's future cannot hold every exception: StopIteration would hang, SystemExit would be its own business.
    try:
        return True, function(**arguments)
    except BaseException as error:
        return False, error


def as_exception(error: BaseException) -> Exception:
    """An ordinary exception for what may be none, or whose text cannot be had, so that an outcome can be written."""
    try:
        text = str(error)
    except BaseException:
        return StepCrashed(f"raised {type(error).__name__}, whose text raised as well").with_traceback(
            error.__traceback__
        )
    if isinstance(error, Exception):
        return error
    return StepCrashed(f"raised {type(error).__name__}: {text}").with_traceback(error.__traceback__)
