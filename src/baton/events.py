"""Facts about runs, as they are told to whoever listens. Each was committed before it is told."""

from dataclasses import dataclass
from datetime import datetime

from baton._states import RunState


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
