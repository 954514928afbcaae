"""Tells of steps and runs by Oban's telemetry, each time after the commit that made it true; and calls the tracer.

Where nobody listens, each of these costs a look-up in a dict.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from oban import telemetry as oban_telemetry
from oban._executor import AckAction
from oban.job import Job

from baton import _step, telemetry
from baton._accounts import Entry
from baton._codec import clean_text
from baton._error_line import error_line
from baton.workflow import Workflow

logger = logging.getLogger("baton.telemetry")

_LONGEST_ERROR = 300
# Under which a job's meta has what its last attempt left for a tracer; see `spans.sql`.
_SPAN = "span"
# Oban's state of the job after an attempt, and what that attempt came to. A job that was given back came to nothing.
_STATES = {
    "completed": "completed",
    "scheduled": "snoozed",
    "retryable": "retryable",
    "discarded": "discarded",
    "cancelled": "cancelled",
}


def began(job: Job, attempt: _step.Attempt) -> None:
    """An attempt begins; its claim is committed."""
    if telemetry.is_heard(telemetry.STEP_EXECUTING):
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
    if state is not None and telemetry.is_heard(event):
        meta = _described(action.job, attempt, state, error=error, at=datetime.now(UTC))
        if attempt.duration is not None:
            meta["duration"] = attempt.duration
        oban_telemetry.execute(event, meta)


def called(entry: Entry) -> None:
    """What a call of a model used is written. In the context in which it was recorded."""
    attempt = _step.attempt_of(entry.accounts.job)
    if attempt is None or not telemetry.is_heard(telemetry.LLM_CALL):
        return
    job, usage, price = entry.accounts.job, entry.usage, entry.price
    meta: dict[str, Any] = {
        "count": 1,
        "workflow_id": attempt.workflow_id,
        "workflow_label": attempt.label,
        "step_name": attempt.name,
        "worker": _worker(job),
        "queue": job.queue,
        "job_id": job.id,
        "attempt": job.attempt,
        "call_key": entry.key,
        "provider": usage.provider,
        "model": usage.model,
        "requested_model": entry.asked_for,
        "service_tier": usage.service_tier,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": None if price is None else price.cost,
        "price_source": None if price is None else price.source,
        "timestamp": entry.at,
    }
    if usage.latency is not None:
        meta["duration"] = round(usage.latency * 1e9)
    oban_telemetry.execute(telemetry.LLM_CALL, meta)


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
        "error": None if error is None else _one_line(error),
        "timestamp": at,
    }
    if job.attempted_at is not None and job.scheduled_at is not None:
        could_run = max(job.scheduled_at, attempt.released_at or job.scheduled_at)
        waited = job.attempted_at - could_run
        meta["queue_time"] = max(0, waited // timedelta(microseconds=1)) * 1_000
    return meta


def _worker(job: Job) -> str:
    """The step's function where Oban knows only ours for all of them."""
    return str(job.args.get("step", "")) if job.worker == "baton.StepWorker" else job.worker


def _one_line(text: str) -> str:
    """The line of an error that says what it was, cut to a length."""
    return clean_text(error_line(text), _LONGEST_ERROR)


def finished(runs: Iterable[Mapping[str, Any]]) -> None:
    """These runs were finished by a statement of ours, which is committed."""
    if telemetry.is_heard(telemetry.WORKFLOW_FINISHED):
        for run in runs:
            at = datetime.fromisoformat(run["timestamp"]).astimezone(UTC)
            oban_telemetry.execute(telemetry.WORKFLOW_FINISHED, {**run, "timestamp": at})


class Traced:
    """The tracer's part in one attempt: `with Traced(job) as traced: ...`. Without a tracer, none."""

    __slots__ = ("_error", "_span", "_state")

    def __init__(self, job: Job) -> None:
        self._span: telemetry.TracedStep | None = None
        self._state = "available"
        self._error: BaseException | None = None
        tracer, attempt = telemetry.current_tracer(), _step.attempt_of(job)
        if tracer is not None and attempt is not None:
            with _harmless():
                self._span = tracer.begin_step(_described_to_tracer(job, attempt))

    def __enter__(self) -> Self:
        return self

    def came_to(self, action: AckAction, error: BaseException | None) -> AckAction:
        """The attempt's outcome, with what the tracer has it carry."""
        self._state, self._error = _STATES.get(action.state, action.state), error
        if self._span is not None:
            with _harmless():
                if carried := str(self._span.carried or ""):
                    return replace(action, meta={**(action.meta or {}), _SPAN: carried})
        return action

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            with _harmless():
                self._span.end(self._state, self._error)


class TracedInsert:
    """The tracer's part in an insert: `with TracedInsert(workflows) as traced: ...`. Without a tracer, none."""

    __slots__ = ("_runs", "_span", "carried")

    def __init__(self, workflows: Sequence[Workflow]) -> None:
        self.carried: Mapping[str, str] = {}
        self._span: telemetry.TracedInsert | None = None
        self._runs: list[str] = []
        tracer = telemetry.current_tracer()
        if tracer is not None:
            with _harmless():
                self._span = tracer.begin_insert(
                    [workflow.name for workflow in workflows],
                    steps=sum(len(workflow.steps) for workflow in workflows),
                    queues=sorted(
                        {step.queue for flow in workflows for step in flow.steps.values() if not step.deps}
                    ),
                )
                self.carried = dict(self._span.carried)

    def __enter__(self) -> Self:
        return self

    def inserted(self, run_ids: Iterable[object]) -> None:
        """These are the runs."""
        self._runs = [str(run_id) for run_id in run_ids]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            with _harmless():
                self._span.end(self._runs, error)


@contextmanager
def _harmless() -> Iterator[None]:
    """A tracer that raises is logged. What it traces goes on."""
    try:
        yield
    except Exception:
        logger.exception("the tracer failed; what it traces goes on")


def _described_to_tracer(job: Job, attempt: _step.Attempt) -> telemetry.StepAttempt:
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
