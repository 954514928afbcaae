"""States of steps and runs, as data.

    held ──▶ released ──▶ available ⇄ executing ⇄ scheduled / retryable      (the job's own states, by join)
      │          │             └──────────┴──▶ completed | cancelled | discarded
      ├──────────┴──▶ cancelled (doomed, or by hand)
      └──▶ skipped (it runs only after a failure, and there was none)

A settled step leaves its state only by an explicit retry of the run.
"""

from enum import StrEnum


class StepState(StrEnum):
    """Where a step is. The last four are settled: they are counted off the dependents, once."""

    HELD = "held"
    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    EXECUTING = "executing"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    SKIPPED = "skipped"

    @property
    def settled(self) -> bool:
        """Whether the step has ended."""
        return self in SETTLED


SETTLED = frozenset({StepState.COMPLETED, StepState.CANCELLED, StepState.DISCARDED, StepState.SKIPPED})


class RunState(StrEnum):
    """Where a run is: on its way, or its outcome."""

    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
