"""Tells of steps and runs by Oban's telemetry, each time after the commit that made it true; and calls the tracer.

Where nobody listens, each of these costs a look-up in a dict.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from oban import telemetry as oban_telemetry
from oban._executor import AckAction
from oban.job import Job
from oban.telemetry.core import _handlers

from baton import _step, telemetry
from baton._codec import clean_text

logger = logging.getLogger("baton.telemetry")

# What a step's events say of an error, and how long a span's own key in a job's meta is called.
_LONGEST_ERROR = 300
SPAN = "span"
# Oban's state of the job after an attempt, and what that attempt came to. A job that was given back came to nothing.
_STATES = {
    "completed": "completed",
    "scheduled": "snoozed",
    "retryable": "retryable",
    "discarded": "discarded",
    "cancelled": "cancelled",
}


def is_heard(event: str) -> bool:
    """Whether anybody would be told."""
    return bool(_handlers.get(event))


def began(job: Job, attempt: _step.Attempt) -> None:
    """An attempt begins; its claim is committed."""
    if is_heard(telemetry.STEP_EXECUTING):
        meta = _described(job, attempt, "executing", error=None, at=job.attempted_at)
        oban_telemetry.execute(telemetry.STEP_EXECUTING, meta)


def ended(action: AckAction, stopped: Mapping[str, str | None]) -> None:
    """An attempt's outcome is committed.

    Args:
        stopped: Why, by the job's id, for those that end cancelled although their code came to something else.
    """
    attempt = _step.attempt_of(action.job)
    if attempt is None or attempt.state == "held" or attempt.doomed:
        return
    state, error = _STATES.get(action.state), (action.error or {}).get("error")
    if str(action.id) in stopped:
        state, error = "cancelled", stopped[str(action.id)]
    event = f"baton.step.{state}"
    if state is not None and is_heard(event):
        meta = _described(action.job, attempt, state, error=error, at=datetime.now(UTC))
        if attempt.duration is not None:
            meta["duration"] = attempt.duration
        oban_telemetry.execute(event, meta)


def _described(
    job: Job, attempt: _step.Attempt, state: str, *, error: str | None, at: datetime | None
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "count": 1,
        "workflow_id": attempt.workflow_id,
        "workflow_label": attempt.label,
        "step_name": attempt.name,
        "worker": _worker(job),
        "queue": job.queue,
        "state": state,
        "job_id": job.id,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "has_result": state == "completed",
        "error": None if error is None else last_line(error),
        "timestamp": at,
    }
    if job.attempted_at is not None and job.scheduled_at is not None:
        meta["queue_time"] = int((job.attempted_at - job.scheduled_at).total_seconds() * 1_000_000_000)
    return meta


def _worker(job: Job) -> str:
    """The step's function where Oban knows only ours for all of them."""
    return str(job.args.get("step", "")) if job.worker == "baton.StepWorker" else job.worker


def last_line(text: str) -> str:
    """The line of an error that says what it was, below where it came from, cut to a length."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return clean_text(lines[-1] if lines else text.strip(), _LONGEST_ERROR)


def finished(runs: Iterable[Mapping[str, Any]]) -> None:
    """These runs were finished by a statement of ours, which is committed."""
    if is_heard(telemetry.WORKFLOW_FINISHED):
        for run in runs:
            at = datetime.fromisoformat(run["timestamp"]).astimezone(UTC)
            oban_telemetry.execute(telemetry.WORKFLOW_FINISHED, {**run, "timestamp": at})


def failed(meta: Mapping[str, Any]) -> None:
    """A run has failed; told by the sweep."""
    oban_telemetry.execute(telemetry.WORKFLOW_FAILED, dict(meta))


class Traced:
    """The tracer's part in one attempt, none without a tracer: `with Traced(job) as traced: ... traced.end(...)`."""

    __slots__ = ("_error", "_span", "_state")

    def __init__(self, job: Job) -> None:
        self._span: telemetry.TracedStep | None = None
        self._state = "available"
        self._error: BaseException | None = None
        tracer, attempt = telemetry.tracer(), _step.attempt_of(job)
        if tracer is not None and attempt is not None:
            try:
                self._span = tracer.begin(_attempt(job, attempt))
            except Exception:
                logger.exception("the tracer failed to begin; step %r runs without", attempt.name)

    def __enter__(self) -> Self:
        return self

    def came_to(self, action: AckAction, error: BaseException | None) -> AckAction:
        """The attempt's outcome, with what the tracer has it carry."""
        if self._span is None:
            return action
        self._state, self._error = _STATES.get(action.state, action.state), error
        return replace(action, meta={**(action.meta or {}), SPAN: self._span.carried})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            try:
                self._span.end(self._state, self._error)
            except Exception:
                logger.exception("the tracer failed to end an attempt")


def _attempt(job: Job, attempt: _step.Attempt) -> telemetry.StepAttempt:
    return telemetry.StepAttempt(
        workflow_id=attempt.workflow_id,
        workflow_label=attempt.label,
        step_name=attempt.name,
        worker=_worker(job),
        queue=job.queue,
        job_id=job.id or 0,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        carried={key: value for key, value in job.meta.items() if isinstance(value, str)},
        dependencies=attempt.spans,
    )
