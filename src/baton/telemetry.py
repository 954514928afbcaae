"""What Baton tells of steps and runs while they happen: names of the events, a logger for them, and a hook for tracers.

Events go through Oban's telemetry, so that one handler hears both:

    from oban import telemetry

    telemetry.attach("alerts", [baton.telemetry.STEP_DISCARDED], lambda name, meta: page_somebody(meta["error"]))

A handler gets the event's name and one dict, measurements and metadata together. It is called in the event loop, after the
commit that made the event true, and must not block; what it raises is logged and changes nothing. An event is told by the
process whose statement caused it, and goes unsaid if that process dies between its commit and the telling.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oban import telemetry
from oban.telemetry.core import _handlers

from baton.errors import InvalidOption

STEP_EXECUTING: Final = "baton.step.executing"
STEP_SNOOZED: Final = "baton.step.snoozed"
STEP_COMPLETED: Final = "baton.step.completed"
STEP_RETRYABLE: Final = "baton.step.retryable"
STEP_DISCARDED: Final = "baton.step.discarded"
STEP_CANCELLED: Final = "baton.step.cancelled"
LLM_CALL: Final = "baton.llm.call"
WORKFLOW_FINISHED: Final = "baton.workflow.finished"
WORKFLOW_FAILED: Final = "baton.workflow.failed"
RESCUED: Final = "baton.plugin.rescued"
SWEEP_START: Final = "baton.plugin.sweep.start"
SWEEP_STOP: Final = "baton.plugin.sweep.stop"
SWEEP_EXCEPTION: Final = "baton.plugin.sweep.exception"

STEP_EVENTS: Final = (
    STEP_EXECUTING,
    STEP_SNOOZED,
    STEP_COMPLETED,
    STEP_RETRYABLE,
    STEP_DISCARDED,
    STEP_CANCELLED,
)
EVENTS: Final = (
    *STEP_EVENTS,
    WORKFLOW_FINISHED,
    WORKFLOW_FAILED,
    RESCUED,
    SWEEP_START,
    SWEEP_STOP,
    SWEEP_EXCEPTION,
    LLM_CALL,
)

FAILED_STEPS: Final = 100
"""So many names of failed steps an event has at most."""

logger = logging.getLogger("baton.telemetry")

_LOGGER = "baton-logger"
# A log line is for people. What is left out is in the database.
_NAMES_SHOWN = 5
_JOBS_SHOWN = 20
_LONGEST = 300


def attach_default_logger(level: str | int = "INFO") -> None:
    """Log what goes wrong, and the end of each run, to the logger `baton.telemetry`. Called again, only the level changes.

    Attempts that will be repeated are warnings, discarded steps and failed runs errors, rescued jobs warnings. Each record
    has the event's fields in `extra` (`event`, `workflow`, `step`, `attempt` and so on). No argument and no result of a step
    is logged; of an error the line with its type and message, cut to 300 characters, and nothing in it can begin a line of its
    own.

    Args:
        level: Of what is no failure: cancelled steps, and runs that completed or were cancelled. A name or a number of
            `logging`.

    Raises:
        InvalidOption: `logging` knows no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidOption(f"level is {level!r}; it must be one of logging's, such as 'INFO'")
    detach_default_logger()
    events = [STEP_RETRYABLE, STEP_DISCARDED, STEP_CANCELLED, WORKFLOW_FINISHED, RESCUED]
    telemetry.attach(_LOGGER, events, _Log(number))


def detach_default_logger() -> None:
    """Log no more. Nothing happens if nothing was attached."""
    telemetry.detach(_LOGGER)


def has_default_logger() -> bool:
    """Whether `attach_default_logger` is in force."""
    return any(handler_id == _LOGGER for handler_id, _ in _handlers.get(RESCUED, ()))


def is_heard(event: str) -> bool:
    """Whether a handler is attached to an event: what nobody hears need not be made."""
    return bool(_handlers.get(event))


class _Log:
    """The handler of the default logger."""

    def __init__(self, level: int) -> None:
        self._level = level

    def __call__(self, name: str, meta: dict[str, Any]) -> None:
        if name == RESCUED:
            self._rescued(meta)
        elif name == WORKFLOW_FINISHED:
            self._finished(meta)
        else:
            self._step(name, meta)

    def _step(self, name: str, meta: dict[str, Any]) -> None:
        level, what = {
            STEP_RETRYABLE: (logging.WARNING, "failed and will be tried again"),
            STEP_DISCARDED: (logging.ERROR, "failed for good"),
            STEP_CANCELLED: (self._level, "was cancelled"),
        }[name]
        logger.log(
            level,
            "step %s of %s %s, attempt %d of %d: %s",
            _printable(meta["step_name"]),
            _printable(meta["workflow_label"]),
            what,
            meta["attempt"],
            meta["max_attempts"],
            _printable(meta["error"] or "no reason was given"),
            extra={
                "event": name,
                "workflow": meta["workflow_id"],
                "step": meta["step_name"],
                "attempt": meta["attempt"],
                **_fields(meta, "workflow_label", "worker", "queue", "job_id", "state", "error", "duration"),
            },
        )

    def _finished(self, meta: dict[str, Any]) -> None:
        failed = meta["outcome"] == "failed"
        total, names = meta["total_count"], meta["failed_steps"]
        count = f"{total} step{'' if total == 1 else 's'}"
        if meta["failed_count"]:
            shown = ", ".join(_printable(name) for name in names[:_NAMES_SHOWN])
            more = meta["failed_count"] - len(names[:_NAMES_SHOWN])
            count = f"{meta['failed_count']} of {count} did not complete: {shown}{f' and {more} more' if more else ''}"
        logger.log(
            logging.ERROR if failed else self._level,
            "run %s of %s %s, %s",
            meta["workflow_id"],
            _printable(meta["workflow_label"]),
            {"completed": "completed", "failed": "failed", "cancelled": "was cancelled"}[meta["outcome"]],
            count,
            extra={
                "event": WORKFLOW_FINISHED,
                "workflow": meta["workflow_id"],
                **_fields(meta, "workflow_label", "outcome", "failed_steps", "failed_count", "total_count"),
            },
        )

    def _rescued(self, meta: dict[str, Any]) -> None:
        logger.warning(
            "%d jobs of dead processes run again, or have ended: %s",
            meta["count"],
            meta["job_ids"][:_JOBS_SHOWN],
            extra={"event": RESCUED, **_fields(meta, "count", "job_ids")},
        )


def _fields(meta: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: meta[name] for name in names if name in meta}


def _printable(text: str, limit: int = _LONGEST) -> str:
    """A text as one line that shows what it is: characters that would end the line, or hide or turn others, by their codes."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit]
    )
    return shown if len(text) <= limit else f"{shown}..."


# --- tracing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepAttempt:
    """One attempt of a step, as a tracer sees it.

    Attributes:
        workflow_id: Id of the run.
        workflow_label: Name of the workflow.
        step_name: Name of the step in it.
        worker: Registered name of the step's function, or the Oban worker.
        queue: Its queue.
        job_id: Id of its Oban job.
        attempt: 1 for the first.
        max_attempts: The attempt with this number is the last.
        carried: The texts in the job's meta, among them what `TracedInsert.carried` was.
        dependencies: What `TracedStep.carried` was in the last attempts of the steps that it waited for, of 128 of them at
            most.
    """

    workflow_id: str
    workflow_label: str
    step_name: str
    worker: str
    queue: str
    job_id: int
    attempt: int
    max_attempts: int
    carried: Mapping[str, str]
    dependencies: tuple[str, ...]


class TracedStep(Protocol):
    """An attempt that runs now."""

    @property
    def carried(self) -> str:
        """Kept with the job, for the steps that wait for it."""
        ...

    def end(self, state: str, error: BaseException | None) -> None:
        """Its code has ended; called once, in the task in which it began.

        Args:
            state: completed, retryable, discarded, cancelled, snoozed, or available for one that was given back.
            error: What it raised, if it failed.
        """
        ...


class TracedInsert(Protocol):
    """An insert under way."""

    @property
    def carried(self) -> Mapping[str, str]:
        """Put into the meta of all jobs; what a job's own meta has under the same key stays."""
        ...

    def end(self, run_ids: Sequence[str], error: BaseException | None) -> None:
        """It is over; called once, in the task in which it began.

        Args:
            run_ids: The runs, or the live ones that have their keys. In a caller's transaction they are not committed yet.
            error: What the insert raised; then there are no runs.
        """
        ...


class Tracer(Protocol):
    """Follows runs from their insert through all processes. What it raises is logged, and everything goes on without it.

    What it makes current in `begin_step` is current in the step's code, in a thread as well.
    """

    def begin_insert(self, workflows: Sequence[str], *, steps: int, queues: Sequence[str]) -> TracedInsert:
        """Workflows of these names are about to be inserted.

        Args:
            workflows: Their names.
            steps: How many steps they have together.
            queues: The queues of those that can run at once.
        """
        ...

    def begin_step(self, attempt: StepAttempt) -> TracedStep:
        """An attempt begins, in this task."""
        ...


_tracer: Tracer | None = None


def trace_with(tracer: Tracer | None) -> None:
    """Have a tracer called from now on, in this process, in place of any other; None for no tracer. `baton.otel` is one."""
    global _tracer
    _tracer = tracer


def current_tracer() -> Tracer | None:
    """The tracer in use."""
    return _tracer
