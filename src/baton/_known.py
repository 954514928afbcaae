"""What a reader knows of one run: its steps as they were read, and the facts that they make. No I/O."""

from collections.abc import Iterator
from datetime import UTC, datetime

from baton._states import StepState
from baton.events import Event, StepProgress, StepStreamed, StepUpdated, Transition, WorkflowFinished
from baton.snapshot import Marked, RunSummary, StepStatus

type Key = tuple[str, int | str]
"""What an event is about: a later one about the same takes its place."""

# What moves by itself, or may start.
_MOVING = frozenset({StepState.SCHEDULED, StepState.AVAILABLE, StepState.EXECUTING, StepState.RETRYABLE})


class Known:
    """One run, as it was read last, and what of it was not told yet."""

    def __init__(self, run: RunSummary) -> None:
        self.run = run
        self.steps: dict[int, Marked] = {}
        self.unsettled = 0
        self.facts: dict[Key, Event] = {}
        """What holds, as events, in the order it came to be."""
        self.told_generation = run.generation - 1
        """The last generation whose end need not be told any more."""
        self._seen: dict[int, datetime] = {}
        self._changed: dict[int, None] = {}
        self._news: dict[Key, Event] = {}

    def keep(self, step: Marked) -> None:
        """Take note of a step as it was read now."""
        before = self.steps.get(step.id)
        self.steps[step.id] = step
        self.unsettled += not step.status.state.settled
        if before is not None:
            self.unsettled -= not before.status.state.settled
            if before.status == step.status:
                return
        self._changed[step.id] = None
        self._fact(("updated", step.id), self._updated(step, before))
        self._fact(("progress", step.id), self._progress(step.status))
        self._fact(("streamed", step.id), self._streamed(step.status))

    def finish(self, end: WorkflowFinished) -> None:
        """Take note of the end of one generation; the next may have begun since."""
        self.told_generation = end.generation
        self._fact(("finished", end.id), end)
        if end.generation < self.run.generation:
            del self.facts["finished", end.id]

    def revive(self, run: RunSummary) -> None:
        """Take note of the run as it is now. The end of a generation before holds no longer."""
        if run.generation != self.run.generation:
            for key in [key for key in self.facts if key[0] == "finished"]:
                del self.facts[key]
        self.run = run

    def moving(self) -> Iterator[Marked]:
        """Steps that run, or may start: what they come to needs no other step."""
        return (step for step in self.steps.values() if step.status.state in _MOVING)

    def live(self) -> Iterator[Marked]:
        """Steps that have not settled."""
        return (step for step in self.steps.values() if not step.status.state.settled)

    def take(self) -> tuple[dict[int, None], dict[Key, Event]]:
        """Steps that changed since the last call, and events that came to be."""
        changed, self._changed = self._changed, {}
        news, self._news = self._news, {}
        return changed, news

    def _fact(self, key: Key, event: Event | None) -> None:
        if event is None:
            self.facts.pop(key, None)
        elif self.facts.get(key) != event:
            self.facts.pop(key, None)
            self.facts[key] = event
            self._news.pop(key, None)
            self._news[key] = event

    def _updated(self, step: Marked, before: Marked | None) -> StepUpdated | None:
        status = step.status
        state = transition(status)
        if state is None:
            return None
        if state in (Transition.SNOOZED, Transition.RETRYABLE):
            # Its row does not say since when.
            if (
                before is None
                or transition(before.status) != state
                or before.status.attempt != status.attempt
            ):
                self._seen[step.id] = datetime.now(UTC)
            moment = self._seen[step.id]
        else:
            self._seen.pop(step.id, None)
            moment = (
                status.started_at if state is Transition.EXECUTING else status.settled_at
            ) or datetime.now(UTC)
        return StepUpdated(
            workflow_id=self.run.id,
            workflow_label=self.run.name,
            step_name=status.name,
            worker=status.function,
            state=state,
            job_id=status.job_id,
            attempt=status.attempt,
            has_result=status.has_result,
            error=status.error,
            timestamp=moment,
        )

    def _progress(self, status: StepStatus) -> StepProgress | None:
        if status.progress is None:
            return None
        return StepProgress(
            workflow_id=self.run.id,
            workflow_label=self.run.name,
            step_name=status.name,
            job_id=status.job_id,
            attempt=status.attempt,
            done=status.progress.done,
            total=status.progress.total,
            message=status.progress.message,
            timestamp=status.progress.updated_at,
        )

    def _streamed(self, status: StepStatus) -> StepStreamed | None:
        if not status.chunks:
            return None
        return StepStreamed(
            workflow_id=self.run.id,
            workflow_label=self.run.name,
            step_name=status.name,
            job_id=status.job_id,
            attempt=status.attempt,
            chunks=status.chunks,
        )


def transition(status: StepStatus) -> Transition | None:
    """What the step came to, None while it waits or may start."""
    if status.state is StepState.SCHEDULED:
        return Transition.SNOOZED if status.snoozed else None
    if status.state in (StepState.HELD, StepState.AVAILABLE):
        return None
    return Transition(status.state)
