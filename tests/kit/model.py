"""What the engine must do, written a second time and in another way: pure, without a database, without counting.

The engine counts dependencies down and follows what changed. The model looks at every step of a workflow after
every change, in the order in which they were added. A step is known by the id of its job.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import orjson

from baton._engine import Outcome

SETTLED = frozenset({"completed", "cancelled", "discarded"})


@dataclass(slots=True)
class Job:
    """A row of oban_jobs. `later`: it is scheduled for the future. `token`: when its last attempt began."""

    state: str
    max_attempts: int
    later: bool
    attempt: int = 0
    token: object = None


@dataclass(slots=True)
class Step:
    """A step and its job, None once that was deleted. `deps` are ids of jobs, of steps added earlier."""

    name: str
    deps: tuple[int, ...]
    ignores: frozenset[str]
    job: Job | None
    state: str
    doomed: bool = False
    owed: bool = False
    reruns: int = 0
    attempt: int | None = None
    result: dict[str, object] | None = None

    @property
    def settled(self) -> bool:
        return self.state in SETTLED

    def accepts(self, state: str) -> bool:
        return state == "completed" or state in self.ignores


@dataclass(slots=True)
class Run:
    """An inserted workflow: its steps in the order they were added."""

    key: str | None
    steps: list[int]


@dataclass(slots=True)
class Model:
    """Every workflow there is, and what each operation makes of them."""

    runs: dict[UUID, Run] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)

    def insert(self, run_id: UUID, run: Run, steps: Mapping[int, Step]) -> None:
        self.runs[run_id] = run
        self.steps.update(steps)

    def live(self, key: str | None) -> UUID | None:
        """The unfinished workflow with this key."""
        mine = (run_id for run_id, run in self.runs.items() if key is not None and run.key == key)
        return next((run_id for run_id in mine if self.outcome(run_id) is None), None)

    # --- what a workflow comes to ---------------------------------------------------------------------

    def failed_steps(self, run_id: UUID) -> list[str]:
        steps = [self.steps[job] for job in self.runs[run_id].steps]
        return [step.name for step in steps if step.settled and step.state != "completed"]

    def excused_steps(self, run_id: UUID) -> list[str]:
        """Failed, and somebody waits for it, and everybody who does was told to ignore just this."""
        excused = []
        for job in self.runs[run_id].steps:
            step = self.steps[job]
            dependents = [other for other in self.steps.values() if job in other.deps]
            if step.settled and dependents and all(step.state in other.ignores for other in dependents):
                excused.append(step.name)
        return excused

    def outcome(self, run_id: UUID) -> str | None:
        if not all(self.steps[job].settled for job in self.runs[run_id].steps):
            return None
        return "failed" if set(self.failed_steps(run_id)) - set(self.excused_steps(run_id)) else "completed"

    def waiting_on(self, step: Step) -> int:
        return sum(not self.steps[dep].settled for dep in step.deps) if step.state == "held" else 0

    # --- settling -------------------------------------------------------------------------------------

    def settle(self, states: Mapping[int, str], locked: Collection[int] = ()) -> int:
        """End steps, at once, and let the rest follow; jobs in `locked` cannot. Returns how many may now run."""
        for job, state in states.items():
            step = self.steps[job]
            if not step.settled:
                step.state = state
                step.attempt = step.job.attempt if step.job else None
        released = 0
        for job, step in self.steps.items():
            if step.state != "held":
                continue
            settled = [self.steps[dep] for dep in step.deps if self.steps[dep].settled]
            step.doomed = not all(step.accepts(dep.state) for dep in settled)
            if step.doomed:
                step.state = "cancelled"
            elif len(settled) == len(step.deps):
                step.state = "released"
            if step.state != "held":
                step.owed = job in locked
                released += not step.owed and self._job_follows(step)
        return released

    @staticmethod
    def _job_follows(step: Step) -> bool:
        job = step.job
        if job is not None and step.doomed and job.state not in {*SETTLED, "executing"}:
            job.state = "cancelled"
        elif job is not None and step.state == "released" and job.state == "suspended":
            job.state = "scheduled" if job.later else "available"
            return not job.later
        return False

    def sweep(self) -> int:
        """Pay what is owed; returns how many may now run."""
        released = 0
        for step in self.steps.values():
            released += step.owed and self._job_follows(step)
            step.owed = False
        return released

    # --- workers --------------------------------------------------------------------------------------

    def claimable(self) -> set[int]:
        jobs = {job: step.job for job, step in self.steps.items() if step.job is not None}
        return {
            job_id
            for job_id, job in jobs.items()
            if job.state == "available" and job.attempt < job.max_attempts
        }

    def claim(self, job_id: int, token: object) -> None:
        job = self.job(job_id)
        job.state, job.attempt, job.token = "executing", job.attempt + 1, token

    def holds(self, job_id: int, token: object) -> bool:
        """Whether the attempt that began at `token` still holds its job."""
        job = self.steps[job_id].job
        return job is not None and job.state == "executing" and job.token == token

    def give_back(self, job_id: int, token: object) -> None:
        if self.holds(job_id, token):
            job = self.job(job_id)
            job.state, job.attempt = "available", job.attempt - 1

    def ack(
        self, outcomes: Iterable[Outcome], locked: Collection[int] = (), *, plain: bool = False
    ) -> tuple[list[int], int]:
        """Returns the jobs whose outcome counted, and how many steps may now run. `plain`: by Oban's own ack."""
        counted = [outcome for outcome in outcomes if self.holds(outcome.job_id, outcome.attempted_at)]
        ended = {outcome.job_id: outcome.state for outcome in counted if outcome.state in SETTLED}
        for outcome in counted:
            step = self.steps[outcome.job_id]
            if outcome.state in SETTLED and step.settled:
                step.reruns += not plain
            elif outcome.state == "completed":
                known = outcome.result is not None
                step.result = {"value": orjson.loads(outcome.result or "null")} | (
                    {} if known else {"foreign": True}
                )
        released = self.settle(ended, locked)
        for outcome in counted:
            job = self.job(outcome.job_id)
            job.state = outcome.state
            job.attempt += outcome.attempt_change or 0
            job.later = job.later if outcome.delay is None else outcome.delay > 0
        return sorted(outcome.job_id for outcome in counted), released

    # --- Oban's own statements ------------------------------------------------------------------------

    def cancel(self, ids: Sequence[int]) -> None:
        """An executing job is only asked to end; everything else that has not ended is cancelled."""
        hit = [job_id for job_id in ids if self._state(job_id) not in {None, "executing", *SETTLED}]
        for job_id in hit:
            self.job(job_id).state = "cancelled"
        self.settle(dict.fromkeys(hit, "cancelled"))

    def retry(self, ids: Sequence[int]) -> None:
        """Everything not running becomes available; but a held step goes on waiting, a doomed one stays dead."""
        for job_id in ids:
            if self._state(job_id) in {None, "available", "executing"}:
                continue
            step, job = self.steps[job_id], self.job(job_id)
            job.max_attempts, job.later = max(job.max_attempts, job.attempt + 1), False
            job.state = "suspended" if step.state == "held" else "cancelled" if step.doomed else "available"

    def delete(self, ids: Sequence[int]) -> None:
        """Gone is cancelled, unless it had ended."""
        hit = [job_id for job_id in ids if self._state(job_id) not in {None, "executing"}]
        for job_id in hit:
            self.steps[job_id].job = None
        self.settle(dict.fromkeys(hit, "cancelled"))

    def rescue(self) -> None:
        """Every executing job runs again, or never if it has had its attempts."""
        discarded = {}
        for job_id, step in self.steps.items():
            job = step.job
            if job is None or job.state not in {"executing", "available"}:
                continue
            job.state = "discarded" if job.attempt >= job.max_attempts else "available"
            if job.state == "discarded":
                discarded[job_id] = "discarded"
        self.settle(discarded)

    def stage(self, *, due_only: bool) -> None:
        for step in self.steps.values():
            job = step.job
            if job and job.state in {"scheduled", "retryable"} and not (due_only and job.later):
                job.state = "available"

    def update(self, job_id: int, *, later: bool, max_attempts: int) -> None:
        job = self.job(job_id)
        job.later, job.max_attempts = later, max_attempts
        if job.state in {"available", "scheduled"}:
            job.state = "scheduled" if later else "available"

    def prune(self) -> None:
        for step in self.steps.values():
            if step.job is not None and step.job.state in SETTLED:
                step.job = None

    def job(self, job_id: int) -> Job:
        job = self.steps[job_id].job
        assert job is not None
        return job

    def _state(self, job_id: int) -> str | None:
        job = self.steps[job_id].job
        return job.state if job else None
