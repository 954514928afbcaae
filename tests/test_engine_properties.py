"""The engine against a model of it, on random graphs; and against itself, where two transactions meet.

The state machine draws workflows and what may happen to them: workers, Oban's own calls, pairs of transactions that
overlap. After every rule the whole database must be what the model says, and the audit must find nothing.

`BATON_PROPERTY=long` draws twenty times as many examples.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from baton._engine import Acked, Outcome
from baton.errors import KeyConflict
from baton.workflow import Workflow
from tests.kit.database import PRODUCER, Database, Session, at_once
from tests.kit.graphs import QUEUE, Vertex, build, dags, name_of
from tests.kit.model import SETTLED, Job, Model, Run, Step

LONG = os.environ.get("BATON_PROPERTY") == "long"
EXAMPLES = settings(
    max_examples=int(os.environ.get("EX","60")),
    stateful_step_count=40,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """An attempt in the hands of a pretend worker, for ever: it may come back late, or twice."""

    job_id: int
    attempted_at: datetime
    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that can overlap with something else: what a session does, what it answers, what the model says."""

    run: Callable[[Session], Awaitable[Any]]
    model: Callable[[], Any]
    answer: Callable[[Any], Any]


class EngineMachine(RuleBasedStateMachine):
    """Random workflows under everything that may happen to them."""

    def __init__(
        self, db: Database, first: Session, second: Session, run: Callable[[Any], Any], seen: Counter[str]
    ) -> None:
        super().__init__()
        self.seen = seen
        self.db = db
        self.first = first
        self.second = second
        self.run = run
        self.model = Model()
        self.workflows: dict[UUID, Workflow] = {}
        self.claims: list[Claimed] = []

    @initialize()
    def clear(self) -> None:
        self.run(self.db.clear())

    # --- inserting ------------------------------------------------------------------------------------

    @rule(dag=dags(), key=st.sampled_from([None, "a", "b"]))
    def insert(self, dag: tuple[Vertex, ...], key: str | None) -> None:
        self._insert(build(dag, key=key), dag)

    @precondition(lambda self: any(run.key for run in self.model.runs.values()))
    @rule(data=st.data())
    def insert_same_key(self, data: st.DataObject) -> None:
        keyed = [run_id for run_id, run in self.model.runs.items() if run.key]
        run_id = data.draw(st.sampled_from(keyed))
        again = self.workflows[run_id]
        if self.model.live(again.key) == run_id:
            inserted = self.run(self.db.main.insert(again))
            assert (inserted.id, inserted.inserted) == (run_id, False)

    @rule(dag=dags(max_steps=4), key=st.sampled_from([None, "a"]))
    def insert_then_rollback(self, dag: tuple[Vertex, ...], key: str | None) -> None:
        async def both() -> None:
            await self.first.begin()
            try:
                await self.first.insert(build(dag, key=key))
            except KeyConflict:
                # The transaction goes on; what it had written before is not lost.
                assert await self.first.rows("SELECT 1") == [(1,)]
            await self.first.rollback()

        self.run(both())

    def _insert(self, workflow: Workflow, dag: tuple[Vertex, ...]) -> None:
        live = self.model.live(workflow.key)
        if live is not None and not dag: return
        if live is not None and self.workflows[live].definition_hash != workflow.definition_hash:
            with pytest.raises(KeyConflict) as refused:
                self.run(self.db.main.insert(workflow))
            assert refused.value.run_id == str(live)
            return
        inserted = self.run(self.db.main.insert(workflow))
        assert inserted.inserted == (live is None)
        if live is not None:
            assert inserted.id == live
            return
        jobs = list(self.run(self.db.jobs(inserted.id)).values())
        assert len(jobs) == len(dag)
        self.workflows[inserted.id] = workflow
        self.model.insert(
            inserted.id,
            Run(workflow.key, jobs),
            {
                jobs[place]: Step(
                    name=name_of(place),
                    deps=tuple(jobs[dep] for dep in vertex.deps),
                    ignores=vertex.ignores,
                    state="held" if vertex.deps else "released",
                    job=Job(
                        state="suspended" if vertex.deps else "scheduled" if vertex.later else "available",
                        max_attempts=vertex.max_attempts,
                        later=vertex.later,
                    ),
                )
                for place, vertex in enumerate(dag)
            },
        )

    # --- workers --------------------------------------------------------------------------------------

    @rule(demand=st.integers(1, 6))
    def claim(self, demand: int) -> None:
        self._claimed(self.run(self.db.main.claim(demand)), demand)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), demand=st.integers(0, 3))
    def finish(self, data: st.DataObject, demand: int) -> None:
        batch = self._batch(data, self._live())
        self._acked(self.run(self.db.main.ack(batch, demand)), self.model.ack(batch), demand)

    @precondition(lambda self: self._stale())
    @rule(data=st.data())
    def finish_late_or_again(self, data: st.DataObject) -> None:
        batch = self._batch(data, self._stale())
        self._acked(self.run(self.db.main.ack(batch)), ([], 0))
        self.seen["late ack while the next attempt runs"] += any(
            self.model.steps[outcome.job_id].job is not None
            and self.model.job(outcome.job_id).state == "executing" for outcome in batch)

    @precondition(lambda self: self._live() and self._stale())
    @rule(data=st.data())
    def finish_some_late_and_some_not(self, data: st.DataObject) -> None:
        batch = self._batch(data, self._stale()) + self._batch(data, self._live())
        batch = data.draw(st.permutations(batch))
        self._acked(self.run(self.db.main.ack(batch)), self.model.ack(batch))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(sorted(SETTLED)))
    def finish_on_a_node_without_baton(self, data: st.DataObject, state: str) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        hit = self.run(
            self.db.main.oban(
                "ack_job",
                id=claim.job_id,
                attempted_at=claim.attempted_at.replace(tzinfo=None),
                state=state,
                **dict.fromkeys(("schedule_in", "attempt_change", "error", "meta")),
            )
        )
        assert hit == len(self.model.ack([Outcome(claim.job_id, claim.attempted_at, state)])[0])

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        self.run(self.db.main.engine.give_back([(claim.job_id, claim.attempted_at)]))
        self.model.give_back(claim.job_id, claim.attempted_at)

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def reclaim(self, data: st.DataObject) -> None:
        """The producer learns that answers were lost: what it does not know of goes back."""
        live = self._live()
        lost = data.draw(st.lists(st.sampled_from(live), min_size=1, unique=True))
        known = [claim.job_id for claim in live if claim not in lost]
        assert self.run(self.db.main.engine.reclaim(QUEUE, PRODUCER, known)) == len(lost)
        for claim in lost:
            self.model.give_back(claim.job_id, claim.attempted_at)

    @precondition(lambda self: self._live() and self._jobs("suspended"))
    @rule(data=st.data())
    def finish_while_somebody_holds_jobs_that_must_follow(self, data: st.DataObject) -> None:
        batch = self._batch(data, self._live())
        locked = data.draw(st.lists(st.sampled_from(self._jobs("suspended")), min_size=1, max_size=4, unique=True))

        async def both() -> Acked:
            await self.first.begin()
            for job in locked:
                await self.first.update(job, args={"touched": True})
            acking = asyncio.ensure_future(self.db.main.ack(batch))
            try:
                assert not await self.db.waits_or_ends(acking, self.db.main)
            finally:
                await self.first.commit()
            return await acking

        done = self.run(both())
        self._acked(done, self.model.ack(batch, locked))
        assert done.owed or not any(self.model.steps[job].owed for job in locked)

    @rule()
    def sweep(self) -> None:
        assert len(self.run(self.db.main.engine.sweep())) == self.model.sweep()

    # --- Oban's own calls -----------------------------------------------------------------------------

    @precondition(lambda self: self.model.steps)
    @rule(data=st.data())
    def oban_cancel(self, data: st.DataObject) -> None:
        ids = self._any_jobs(data)
        self.run(self.db.main.cancel(*ids))
        self.model.cancel(ids)

    @precondition(lambda self: self.model.steps)
    @rule(data=st.data())
    def oban_retry(self, data: st.DataObject) -> None:
        ids = self._any_jobs(data)
        self.run(self.db.main.retry(*ids))
        self.model.retry(ids)

    @precondition(lambda self: self.model.steps)
    @rule(data=st.data())
    def oban_delete(self, data: st.DataObject) -> None:
        ids = self._any_jobs(data)
        self.run(self.db.main.delete(*ids))
        self.model.delete(ids)

    @precondition(lambda self: self._live())
    @rule()
    def oban_rescue(self) -> None:
        self.run(self.db.main.oban("rescue_jobs", rescue_after=0))
        self.model.rescue()

    @rule(due_only=st.booleans())
    def oban_stage(self, due_only: bool) -> None:
        self.run(self.db.main.stage(None) if due_only else self.db.main.stage())
        self.model.stage(due_only=due_only)

    @precondition(lambda self: any(step.job for step in self.model.steps.values()))
    @rule(data=st.data(), later=st.booleans(), spare=st.integers(0, 2))
    def oban_update(self, data: st.DataObject, later: bool, spare: int) -> None:
        job = data.draw(st.sampled_from([job for job, step in self.model.steps.items() if step.job]))
        max_attempts = max(1, self.model.job(job).attempt + spare)
        scheduled_at = datetime.now(UTC) + timedelta(days=1 if later else -1)
        self.run(self.db.main.update(job, scheduled_at=scheduled_at, max_attempts=max_attempts, meta={}))
        self.model.update(job, later=later, max_attempts=max_attempts)

    @rule()
    def oban_prune(self) -> None:
        self.run(self.db.main.oban("prune_jobs", max_age=0, limit=10_000))
        self.model.prune()

    # --- two transactions -----------------------------------------------------------------------------

    @precondition(lambda self: self._live())
    @rule(data=st.data(), outcomes=st.tuples(st.booleans(), st.booleans()), second_ends_first=st.booleans())
    def overlap(self, data: st.DataObject, outcomes: tuple[bool, bool], second_ends_first: bool) -> None:
        operations = (self._operation(data), self._operation(data))
        answers = self.run(self._overlap(operations, outcomes, second_ends_first))
        for operation, commits, answer in zip(operations, outcomes, answers, strict=True):
            if commits:
                assert operation.answer(answer) == operation.model()

    async def _overlap(
        self, operations: tuple[Operation, Operation], commit: tuple[bool, bool], second_ends_first: bool
    ) -> tuple[Any, Any]:
        """One is held open while the other runs, until that has ended or waits. Then they end, as drawn."""
        await self.first.begin()
        one = await operations[0].run(self.first)
        await self.second.begin()
        running = asyncio.ensure_future(operations[1].run(self.second))
        waits = await self.db.waits_or_ends(running, self.second)
        self.seen["overlapping transactions, one waiting"] += waits
        self.seen["overlapping transactions, neither waiting"] += not waits
        if second_ends_first and not waits:
            other = await running
            await _end(self.second, commit[1])
            await _end(self.first, commit[0])
        else:
            await _end(self.first, commit[0])
            other = await running
            await _end(self.second, commit[1])
        return one, other

    def _operation(self, data: st.DataObject) -> Operation:
        if data.draw(st.booleans()):
            ids = self._any_jobs(data)
            return Operation(
                lambda session: session.cancel(*ids), lambda: self.model.cancel(ids), lambda _answer: None
            )
        batch = self._batch(data, self._live())
        return Operation(
            lambda session: session.ack(batch),
            lambda: self.model.ack(batch),
            lambda acked: (sorted(acked.acked), len(acked.queues)),
        )

    # --- what must be true after every rule -----------------------------------------------------------

    @invariant()
    def the_database_is_what_the_model_says(self) -> None:
        steps = {job: self._row(step) for job, step in self.model.steps.items()}
        assert differences(self.run(self.db.steps()), steps) == {}
        runs = {run_id: self._run_row(run_id) for run_id in self.model.runs}
        assert differences(self.run(self.db.runs()), runs) == {}
        self._look(steps.values(), runs.values())

    @invariant()
    def the_audit_finds_nothing(self) -> None:
        assert self.run(self.db.audit()) == []

    def _look(self, steps: Iterable[dict[str, Any]], runs: Iterable[dict[str, Any]]) -> None:
        """Count what there is to see: an example that never comes to it proves nothing."""
        for step in steps:
            self.seen[f"{step['state']} step"] += 1
            self.seen["release owed"] += step["owed"] and step["state"] == "released"
            self.seen["doom owed"] += step["owed"] and step["doomed"]
            self.seen["doomed step"] += step["doomed"]
            self.seen["settled step whose job ran again"] += step["reruns"] > 0
            self.seen["settled step whose job is gone"] += step["job"] is None
        for run in runs:
            self.seen[f"{run['outcome'] or 'live'} workflow"] += 1
            self.seen["completed workflow with failed steps"] += run["outcome"] == "completed" and run["failed"] > 0

    def _row(self, step: Step) -> dict[str, Any]:
        job = step.job
        return {
            "state": step.state,
            "waiting_on": self.model.waiting_on(step),
            "owed": step.owed,
            "doomed": step.doomed,
            "reruns": step.reruns,
            "attempt": step.attempt,
            "result": step.result,
            "job": job and job.state,
            "job_attempt": job and job.attempt,
            "max_attempts": job and job.max_attempts,
            "later": job and job.later,
        }

    def _run_row(self, run_id: UUID) -> dict[str, Any]:
        outcome = self.model.outcome(run_id)
        failed = self.model.failed_steps(run_id)
        return {
            "unsettled": sum(not self.model.steps[job].settled for job in self.model.runs[run_id].steps),
            "failed": len(failed),
            "excused": len(self.model.excused_steps(run_id)),
            "outcome": outcome,
            "completed_as": outcome,
            "failed_steps": failed if outcome else None,
        }

    # --- the end --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """A perfect worker drains everything: every workflow finishes, as the model does."""
        if sys.exception() is not None:
            for run_id, workflow in self.workflows.items():
                states = {self.model.steps[job].name: self.model.steps[job].state for job in self.model.runs[run_id].steps}
                note(f"{run_id}\n{workflow.to_dot(states)}")
            return
        for _ in range(100):
            self.oban_rescue()
            self.oban_stage(due_only=False)
            self.sweep()
            rows = self.run(self.db.main.claim(100))
            if not rows:
                break
            batch = [self._outcome(claim, "completed") for claim in self._claimed(rows, 100)]
            self._acked(self.run(self.db.main.ack(batch)), self.model.ack(batch))
        self.the_database_is_what_the_model_says()
        self.the_audit_finds_nothing()
        assert all(row["outcome"] for row in self.run(self.db.runs()).values())
        assert not any(row["owed"] for row in self.run(self.db.steps()).values())

    # --- helpers --------------------------------------------------------------------------------------

    def _claimed(self, rows: list[dict[str, Any]], demand: int) -> list[Claimed]:
        """Check what a claim brought: S1, the gate, and S11, the inputs."""
        able = self.model.claimable()
        assert {row["id"] for row in rows} <= able
        assert len(rows) == min(demand, len(able))
        claims = []
        for row in rows:
            step = self.model.steps[row["id"]]
            deps = [self.model.steps[dep] for dep in step.deps]
            assert all(dep.settled and step.accepts(dep.state) for dep in deps) or step.settled
            completed = {dep.name: dep.result for dep in deps if dep.state == "completed"}
            assert row["step"]["inputs"] == (completed if deps else None)
            assert (row["step"]["name"], row["step"]["state"]) == (step.name, step.state)
            claim = Claimed(
                row["id"],
                datetime.fromisoformat(row["attempted_at"]).replace(tzinfo=UTC),
                row["attempt"],
                row["max_attempts"],
            )
            self.model.claim(claim.job_id, claim.attempted_at)
            assert claim.attempt == self.model.job(claim.job_id).attempt
            claims.append(claim)
        self.claims += claims
        return claims

    def _acked(self, done: Acked, expected: tuple[list[int], int], demand: int = 0) -> None:
        assert (sorted(done.acked), len(done.queues)) == expected
        self._claimed(done.claimed, demand)

    def _live(self) -> list[Claimed]:
        return [claim for claim in self.claims if self.model.holds(claim.job_id, claim.attempted_at)]

    def _stale(self) -> list[Claimed]:
        return [claim for claim in self.claims if not self.model.holds(claim.job_id, claim.attempted_at)]

    def _jobs(self, state: str) -> list[int]:
        return [job for job, step in self.model.steps.items() if step.job and step.job.state == state]

    def _any_jobs(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(list(self.model.steps)), min_size=1, max_size=3, unique=True))

    def _batch(self, data: st.DataObject, claims: list[Claimed]) -> list[Outcome]:
        batch = data.draw(st.lists(st.sampled_from(claims), min_size=1, max_size=4, unique=True))
        endings = ["completed", "completed", "cancelled", "discarded", "retryable", "snoozed"]
        return [self._outcome(claim, data.draw(st.sampled_from(endings)), data) for claim in batch]

    @staticmethod
    def _outcome(claim: Claimed, ending: str, data: st.DataObject | None = None) -> Outcome:
        """An outcome as `_oban` makes it; each result can be told from every other."""
        if ending == "retryable" and claim.attempt >= claim.max_attempts:
            ending = "discarded"
        delay = None
        if ending in {"retryable", "snoozed"} and data is not None:
            delay = data.draw(st.sampled_from([0.0, 3600.0]))
        failed = ending not in {"completed", "snoozed"}
        return Outcome(
            claim.job_id,
            claim.attempted_at,
            "scheduled" if ending == "snoozed" else ending,
            attempt_change=-1 if ending == "snoozed" else None,
            delay=delay,
            error={"attempt": claim.attempt, "error": "because"} if failed else None,
            meta='{"snoozed":1}' if ending == "snoozed" else None,
            result=f'"{claim.job_id}/{claim.attempted_at}"' if ending == "completed" else None,
            reason="because" if failed else None,
        )


async def _end(session: Session, commit: bool) -> None:
    await (session.commit() if commit else session.rollback())


def differences(found: Mapping[Any, dict[str, Any]], expected: Mapping[Any, dict[str, Any]]) -> dict[Any, Any]:
    """Rows that differ, as what the database says and what the model says."""
    return {
        key: {
            name: (found.get(key, {}).get(name), expected.get(key, {}).get(name))
            for name in found.get(key, {}).keys() | expected.get(key, {}).keys()
            if found.get(key, {}).get(name) != expected.get(key, {}).get(name)
        }
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    }


def check(dsn: str, examples: settings, broken: str | None = None) -> Counter[str]:
    """Run the machine on a database, with one function broken or none. Returns how often what was seen."""
    seen: Counter[str] = Counter()
    with asyncio.Runner() as runner:

        async def prepare(opening: Any) -> tuple[Database, Session, Session]:
            db = await opening.__aenter__()
            if broken:
                await db.install(broken)
            return db, await db.session(), await db.session()

        opening = Database.opened(dsn)
        db, first, second = runner.run(prepare(opening))
        try:
            run_state_machine_as_test(lambda: EngineMachine(db, first, second, runner.run, seen), settings=examples)
        finally:
            runner.run(opening.__aexit__(None, None, None))
    return seen


@pytest.mark.timeout(7200 if LONG else 120)
def test_the_engine_does_what_the_model_does_whatever_happens(baton_dsn: str) -> None:
    seen = check(baton_dsn, EXAMPLES)
    print(seen)
