"""What the engine must do, written a second time and in another way: pure, without a database, without counting.

The engine counts dependencies down and follows what changed. The model looks at every step of a workflow after
every change, in the order in which they were added. A step is known by the id of its job.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import orjson

from baton._engine import Outcome

ENDED = frozenset({"completed", "cancelled", "discarded"})
SETTLED = ENDED | {"skipped"}


@dataclass(slots=True)
class Job:
    """A row of oban_jobs.

    `later`: it is scheduled for the future. `token`: when its last attempt began. `marked`: that attempt was cancelled.
    """

    state: str
    max_attempts: int
    later: bool
    attempt: int = 0
    token: object = None
    marked: bool = False


@dataclass(slots=True)
class Step:
    """A step and its job, None once that was deleted. `deps` are ids of jobs, of steps added earlier."""

    name: str
    deps: tuple[int, ...]
    ignores: frozenset[str]
    job: Job | None
    state: str
    runs_on: str = "success"
    hooked: bool = False
    doomed: bool = False
    owed: bool = False
    asked: bool = False
    reruns: int = 0
    attempt: int | None = None
    result: dict[str, object] | None = None

    @property
    def settled(self) -> bool:
        return self.state in SETTLED

    def accepts(self, state: str) -> bool:
        """Whether it may run after a dependency that settled so."""
        excuse = "cancelled" if state == "skipped" else state
        return self.runs_on != "success" or state == "completed" or excuse in self.ignores


@dataclass(slots=True)
class Run:
    """An inserted workflow: its steps in the order they were added. `overdue`: whether its deadline has passed."""

    key: str | None
    steps: list[int]
    rerun_of: UUID | None = None
    generation: int = 1
    finished: bool = False
    paused: bool = False
    cause: str | None = None
    overdue: bool | None = None
    completions: list[list[object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What somebody is to hear: a consumer that a run has finished, or a step that it was doomed."""

    run_id: UUID
    generation: int
    consumer: str | None = None
    step: int | None = None


@dataclass(slots=True)
class Model:
    """Every workflow there is, and what each operation makes of them."""

    consumers: tuple[str, ...] = ()
    runs: dict[UUID, Run] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    deliveries: set[Delivery] = field(default_factory=set)

    def insert(self, run_id: UUID, run: Run, steps: Mapping[int, Step]) -> None:
        self.runs[run_id] = run
        self.steps.update(steps)
        self.settle({})

    def live(self, key: str | None) -> UUID | None:
        """The unfinished workflow with this key."""
        mine = (run_id for run_id, run in self.runs.items() if key is not None and run.key == key)
        return next((run_id for run_id in mine if not self.runs[run_id].finished), None)

    # --- what a workflow comes to ---------------------------------------------------------------------

    def failed_steps(self, run_id: UUID) -> list[str]:
        steps = [self.steps[job] for job in self.runs[run_id].steps]
        return [step.name for step in steps if step.state in {"cancelled", "discarded"}]

    def excused_steps(self, run_id: UUID) -> list[str]:
        """Failed, and of those who wait for success somebody waits for it, and all of them were told to ignore just this."""
        excused = []
        for job in self.runs[run_id].steps:
            step = self.steps[job]
            dependents = [other for other in self._dependents(job) if other.runs_on == "success"]
            minded = not dependents or any(step.state not in other.ignores for other in dependents)
            if step.state in {"cancelled", "discarded"} and not minded:
                excused.append(step.name)
        return excused

    def outcome(self, run_id: UUID) -> str | None:
        run = self.runs[run_id]
        if not all(self.steps[job].settled for job in run.steps):
            return None
        if run.cause == "request":
            return "cancelled"
        failed = set(self.failed_steps(run_id)) - set(self.excused_steps(run_id))
        return "failed" if failed or run.cause == "deadline" else "completed"

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
        for run_id, run in self.runs.items():
            for job in run.steps:
                released += self._follows(run_id, job, locked)
            if not run.finished and (outcome := self.outcome(run_id)):
                run.finished = True
                run.completions.append([run.generation, outcome, self.failed_steps(run_id)])
                self.deliveries |= {
                    Delivery(run_id, run.generation, consumer=name) for name in self.consumers
                }
        return released

    def _follows(self, run_id: UUID, job: int, locked: Collection[int]) -> bool:
        """Whether a held step may now run; it is released, doomed or skipped if its dependencies say so."""
        step = self.steps[job]
        if step.state != "held":
            return False
        settled = [self.steps[dep].state for dep in step.deps if self.steps[dep].settled]
        against = {state for state in settled if not step.accepts(state)}
        if against:
            step.state = "cancelled" if against - {"skipped"} else "skipped"
            if step.hooked and step.state == "cancelled":
                self.deliveries.add(Delivery(run_id, self.runs[run_id].generation, step=job))
        elif len(settled) == len(step.deps):
            idle = step.runs_on == "failure" and not {"cancelled", "discarded"} & set(settled)
            step.state = "skipped" if idle else "released"
        if step.state == "held":
            return False
        step.doomed = step.state != "released"
        step.owed = job in locked
        return not step.owed and self._job_follows(run_id, step)

    def _job_follows(self, run_id: UUID, step: Step) -> bool:
        """Whether a step's job may now run, but for a pause of its run, which holds it back."""
        job = step.job
        if job is not None and step.doomed and job.state not in {*ENDED, "executing"}:
            job.state = "cancelled"
        elif job is not None and step.state == "released" and job.state == "suspended":
            job.state = "suspended" if self.runs[run_id].paused else "scheduled" if job.later else "available"
            return not job.later
        return False

    def sweep(self) -> int:
        """Pay what is owed; returns how many may now run."""
        released = 0
        for run_id, run in self.runs.items():
            for step in (self.steps[job] for job in run.steps):
                released += step.owed and self._job_follows(run_id, step)
                step.owed = False
        return released

    def _jobs_changed(self, ids: Iterable[int]) -> None:
        """What becomes of jobs that somebody made runnable: those of steps which may not run go back or end."""
        dead = {}
        for job_id in ids:
            step, job = self.steps[job_id], self.job(job_id)
            if job.state in {*ENDED, "executing", "suspended"}:
                continue
            if step.doomed or (step.state == "released" and step.asked):
                job.state = dead[job_id] = "cancelled"
            elif step.state == "held" or (step.state == "released" and self._run_of(job_id).paused):
                job.state = "suspended"
        self.settle(dead)

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
        job.state, job.attempt, job.token, job.marked = "executing", job.attempt + 1, token, False

    def holds(self, job_id: int, token: object) -> bool:
        """Whether the attempt that began at `token` still holds its job."""
        step = self.steps.get(job_id)
        job = step.job if step else None
        return job is not None and job.state == "executing" and job.token == token

    def give_back(self, job_id: int, token: object) -> None:
        if self.holds(job_id, token):
            job = self.job(job_id)
            job.state, job.attempt = "available", job.attempt - 1
            self._jobs_changed([job_id])

    def ack(
        self, outcomes: Iterable[Outcome], locked: Collection[int] = (), *, plain: bool = False
    ) -> tuple[list[int], int]:
        """Returns the jobs whose outcome counted, and how many steps may now run. `plain`: by Oban's own ack."""
        counted = [outcome for outcome in outcomes if self.holds(outcome.job_id, outcome.attempted_at)]
        if not plain:
            counted = [
                replace(outcome, state="cancelled", result=None) if self._stopped(outcome.job_id) else outcome
                for outcome in counted
            ]
        ended = {outcome.job_id: outcome.state for outcome in counted if outcome.state in ENDED}
        for outcome in counted:
            step = self.steps[outcome.job_id]
            if outcome.state in ENDED and step.settled:
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
        self._jobs_changed(outcome.job_id for outcome in counted)
        return sorted(outcome.job_id for outcome in counted), released

    def _stopped(self, job_id: int) -> bool:
        """Whether what runs there was cancelled, so that it ends so whatever it comes to."""
        step = self.steps[job_id]
        return self.job(job_id).marked or (step.state == "released" and step.asked)

    # --- runs as a whole ------------------------------------------------------------------------------

    def cancel_run(
        self, run_id: UUID, names: Sequence[str] | None, cause: str = "request"
    ) -> list[str | None]:
        """Returns what the run, or each step, ends as."""
        run = self.runs[run_id]
        if not run.finished and (cause == "request" or run.overdue):
            lifted = names is None and run.cause is None and run.paused
            if names is None and run.cause is None:
                run.cause, run.paused = cause, False
            hit = [
                job
                for job in run.steps
                if not self.steps[job].settled
                and (self.steps[job].runs_on != "always" if names is None else self.steps[job].name in names)
            ]
            running = [job for job in hit if self._state(job) == "executing"]
            for job in running:
                self.steps[job].asked = True
            ended = [job for job in hit if job not in running]
            self.settle(dict.fromkeys(ended, "cancelled"))
            for job in ended:
                self.steps[job].owed = False
                self.job(job).state = "cancelled"
            if lifted:
                self._let_go(run_id)
        if names is None:
            return [
                self.outcome(run_id)
                or {"request": "cancelled", "deadline": "failed"}.get(run.cause or "", "executing")
            ]
        states = {self.steps[job].name: self.steps[job].state for job in run.steps}
        return [
            "cancelled" if states.get(name) in {"held", "released"} else states.get(name) for name in names
        ]

    def expire(self) -> int:
        """End what is overdue; returns how many runs there were."""
        late = [
            run_id for run_id, run in self.runs.items() if run.overdue and not run.finished and not run.cause
        ]
        for run_id in late:
            self.cancel_run(run_id, None, "deadline")
        return len(late)

    def pause(self, run_id: UUID) -> str:
        run = self.runs[run_id]
        if not run.finished:
            run.paused = True
            self._jobs_changed(
                job for job in run.steps if self.steps[job].state == "released" and self.steps[job].job
            )
        return self.outcome(run_id) or "executing"

    def resume(self, run_id: UUID) -> str:
        run = self.runs[run_id]
        if run.paused:
            run.paused = False
            self._let_go(run_id)
        return self.outcome(run_id) or "executing"

    def _let_go(self, run_id: UUID) -> None:
        for job in self.runs[run_id].steps:
            if self.steps[job].state == "released":
                self._job_follows(run_id, self.steps[job])

    def retry_run(self, run_id: UUID) -> list[str] | str:
        """Returns the names of the steps revived, or the code of the error."""
        run = self.runs[run_id]
        if not run.finished and run.cause:
            return "BT003"
        failed = {job for job in run.steps if self.steps[job].state in {"cancelled", "discarded"}}
        if not failed:
            return []
        cone = [job for job in self._cone(run, failed) if self.steps[job].state != "held"]
        if any(self.steps[job].job is None for job in cone):
            return "BT002"
        if any(self._state(job) == "executing" for job in cone):
            return "BT003"
        if run.finished and self.live(run.key) is not None:
            return "23505"
        names = [self.steps[job].name for job in cone if self.steps[job].settled]
        self.deliveries -= {told for told in self.deliveries if told.step in cone}
        if run.finished:
            run.generation, run.finished, run.paused, run.cause = run.generation + 1, False, False, None
            run.overdue = False if run.overdue is not None else None
        for job_id in cone:
            step, job = self.steps[job_id], self.job(job_id)
            step.state, step.doomed, step.owed, step.asked = "held", False, False, False
            step.attempt = step.result = None
            job.state, job.attempt, job.marked, job.later = (
                "suspended",
                0,
                False,
                job.later and job.token is None,
            )
        self.settle({})
        return names

    def rerun(self, run_id: UUID, names: Sequence[str] | None) -> str | list[str]:
        """Returns the code of the error, or the names of the steps that run again."""
        run = self.runs[run_id]
        again = {job for job in run.steps if names is None or self.steps[job].name in names}
        again |= {job for job in run.steps if self.steps[job].state not in {"completed", "skipped"}}
        cone = self._cone(run, again)
        if any(self.steps[job].job is None for job in cone):
            return "BT002"
        return [self.steps[job].name for job in cone]

    def insert_rerun(
        self, run_id: UUID, new_id: UUID, cone: Collection[str], jobs: Mapping[str, int]
    ) -> None:
        """`jobs`: the new run's, by the name of the step; those of copied steps are no jobs."""
        run = self.runs[run_id]
        self.runs[new_id] = Run(
            None, list(jobs.values()), rerun_of=run_id, overdue=None if run.overdue is None else False
        )
        for job_id in run.steps:
            step = self.steps[job_id]
            copy = replace(
                step,
                deps=tuple(jobs[self.steps[dep].name] for dep in step.deps),
                reruns=0,
                owed=False,
                job=None,
            )
            if step.name in cone:
                copy = Step(step.name, copy.deps, step.ignores, None, "held", step.runs_on, step.hooked)
                copy.job = Job("suspended", self.job(job_id).max_attempts, later=False)
            self.steps[jobs[step.name]] = replace(copy, asked=False)
        self.settle({})

    def prune_runs(self) -> set[UUID]:
        """Forget finished runs whose jobs are gone and whose ends were delivered; returns which."""
        told = {delivery.run_id for delivery in self.deliveries}
        gone = {
            run_id
            for run_id, run in self.runs.items()
            if run.finished and run_id not in told and not any(self.steps[job].job for job in run.steps)
        }
        for run_id in gone:
            for job in self.runs.pop(run_id).steps:
                del self.steps[job]
        return gone

    def _cone(self, run: Run, roots: Collection[int]) -> list[int]:
        """Steps of a run that are among `roots` or downstream of them."""
        found: list[int] = []
        for job in run.steps:
            if job in roots or set(self.steps[job].deps) & set(found):
                found.append(job)
        return found

    # --- Oban's own statements ------------------------------------------------------------------------

    def cancel(self, ids: Sequence[int]) -> None:
        """An executing job is only asked to end; everything else that has not ended is cancelled."""
        hit = [job_id for job_id in ids if self._state(job_id) not in {None, "executing", *ENDED}]
        for job_id in hit:
            self.job(job_id).state = "cancelled"
        self.settle(dict.fromkeys(hit, "cancelled"))

    def cancel_many(self, ids: Sequence[int]) -> dict[int, str]:
        """The same, but an executing one ends cancelled whatever it does. Returns the states before."""
        states = {job_id: state for job_id in ids if (state := self._state(job_id)) not in {None, *ENDED}}
        for job_id, state in states.items():
            if state == "executing":
                self.job(job_id).marked = True
                step = self.steps[job_id]
                step.asked = step.asked or step.state == "released"
        self.cancel(ids)
        return {job_id: str(state) for job_id, state in states.items()}

    def retry(self, ids: Sequence[int]) -> None:
        """Everything not running becomes available; but a held step goes on waiting, a doomed one stays dead."""
        for job_id in ids:
            if self._state(job_id) in {None, "available", "executing"}:
                continue
            job = self.job(job_id)
            job.max_attempts, job.later = max(job.max_attempts, job.attempt + 1), False
            job.state = "available"
            self._jobs_changed([job_id])

    def delete(self, ids: Sequence[int]) -> None:
        """Gone is cancelled, unless it had ended."""
        hit = [job_id for job_id in ids if self._state(job_id) not in {None, "executing"}]
        for job_id in hit:
            self.steps[job_id].job = None
        self.settle(dict.fromkeys(hit, "cancelled"))

    def rescue(self, dead: Collection[int] | None = None) -> None:
        """Every executing job, or those of the dead, runs again, or never if it has had its attempts."""
        hit = {}
        for job_id, step in self.steps.items():
            job = step.job
            if job is None or not (
                job.state == "available" or (job.state == "executing" and (dead is None or job_id in dead))
            ):
                continue
            if job.state == "executing" or job.attempt >= job.max_attempts:
                hit[job_id] = job.state = "discarded" if job.attempt >= job.max_attempts else "available"
        self.settle({job_id: state for job_id, state in hit.items() if state == "discarded"})
        self._jobs_changed(hit)

    def stage(self, *, due_only: bool) -> None:
        for step in self.steps.values():
            job = step.job
            if job and job.state in {"scheduled", "retryable"} and not (due_only and job.later):
                job.state = "available"

    def update(self, job_id: int, *, later: bool, max_attempts: int) -> None:
        job = self.job(job_id)
        job.later, job.max_attempts, job.marked = later, max_attempts, False
        if job.state in {"available", "scheduled"}:
            job.state = "scheduled" if later else "available"

    def prune(self) -> None:
        for step in self.steps.values():
            if step.job is not None and step.job.state in ENDED:
                step.job = None

    def job(self, job_id: int) -> Job:
        job = self.steps[job_id].job
        assert job is not None
        return job

    def _state(self, job_id: int) -> str | None:
        step = self.steps.get(job_id)
        return step.job.state if step and step.job else None

    def _dependents(self, job_id: int) -> list[Step]:
        return [step for step in self.steps.values() if job_id in step.deps]

    def _run_of(self, job_id: int) -> Run:
        return next(run for run in self.runs.values() if job_id in run.steps)
