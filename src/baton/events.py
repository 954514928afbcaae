"""Facts about runs and their steps, as they are told to whoever listens. Each was committed before it is told."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from baton._states import RunState


class Transition(StrEnum):
    """What a step came to. Of a step that waits or may start nothing is told."""

    EXECUTING = "executing"
    SNOOZED = "snoozed"
    COMPLETED = "completed"
    RETRYABLE = "retryable"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class StepUpdated:
    """A step is in this state. One that went through several between two looks is told of once, in the last.

    Attributes:
        workflow_id: The run's id.
        workflow_label: The workflow's name.
        step_name: Its name in the run.
        worker: Registered name of the `@step`, or the worker class's path.
        state: `snoozed`: it asked to run again later. `retryable`: it failed and is tried again. The others are the step's.
        job_id: Id of its Oban job.
        attempt: Attempts begun.
        has_result: Whether it stored one; it is read with `run.result`.
        error: The last error, or the reason for its end.
        timestamp: When it began or ended, aware, UTC; of one snoozed or to be tried again, when that was seen.
    """

    workflow_id: str
    workflow_label: str
    step_name: str
    worker: str
    state: Transition
    job_id: int
    attempt: int
    has_result: bool
    error: str | None
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A step said how far it is, with `baton.progress`. Of what it said between two looks, the last.

    Attributes:
        workflow_id: The run's id.
        workflow_label: The workflow's name.
        step_name: Its name in the run.
        job_id: Id of its Oban job.
        attempt: Attempts begun.
        done: How much is done, in whatever the step counts.
        total: Of how much; None where the step does not know.
        message: What it is doing.
        timestamp: When that was written, aware, UTC.
    """

    workflow_id: str
    workflow_label: str
    step_name: str
    job_id: int
    attempt: int
    done: float
    total: float | None
    message: str | None
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class StepStreamed:
    """A step has written to its stream; what it wrote is read with `run.stream`. Told to those who follow its run alone.

    Attributes:
        workflow_id: The run's id.
        workflow_label: The workflow's name.
        step_name: Its name in the run.
        job_id: Id of its Oban job.
        attempt: Attempts begun.
        chunks: How many chunks there are of this attempt by now.
    """

    workflow_id: str
    workflow_label: str
    step_name: str
    job_id: int
    attempt: int
    chunks: int


@dataclass(frozen=True, slots=True)
class WorkflowFinished:
    """A run has ended: every step of it has settled.

    Written by the commit that settled the last step, whatever crashed, and delivered at least once. Whoever must act once keeps
    the ids it has acted on.

    Attributes:
        id: The event's own id, the same at every delivery; another one for each generation of a run.
        workflow_id: The run's id.
        workflow_label: The workflow's name.
        generation: 1, and one more for each retry of the finished run.
        outcome: `completed`, `failed` or `cancelled`.
        failed_steps: Names of the steps that ended cancelled or discarded, in the order they were added.
        timestamp: When its last step settled, aware, UTC.
    """

    id: str
    workflow_id: str
    workflow_label: str
    generation: int
    outcome: RunState
    failed_steps: tuple[str, ...]
    timestamp: datetime


type Event = StepUpdated | StepProgress | StepStreamed | WorkflowFinished
"""What a subscriber is told."""
