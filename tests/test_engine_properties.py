"""The engine against a model of it, on random graphs; and against itself, where two transactions meet.

The state machine draws workflows and what may happen to them: workers, Oban's own calls, pairs of transactions that
overlap. After every rule the whole database must be what the model says, and the audit must find nothing.

The examples are the same each time. `BATON_PROPERTY=long` draws others, and twenty times as many. A failure says how to
reproduce it, with the graphs as they were.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
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
from psycopg.errors import DeadlockDetected, SerializationFailure

from baton import _store
from baton._engine import Acked, Outcome
from baton.errors import KeyConflict
from baton.workflow import Workflow
from tests.kit.database import END_OF_TIME, PRODUCER, Database, Session
from tests.kit.graphs import HOOKED, QUEUE, Vertex, build, dags, name_of
from tests.kit.model import ENDED, Delivery, Job, Model, Run, Step

LONG = os.environ.get("BATON_PROPERTY") == "long"
LONG_ONLY = pytest.mark.skipif(not LONG, reason="takes long; BATON_PROPERTY=long")
EXAMPLES = settings(
    max_examples=2400 if LONG else 120,
    stateful_step_count=50,
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
CONSUMER = "mail"
ENDINGS = ["completed", "completed", "cancelled", "discarded", "retryable", "snoozed"]


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
        self.model = Model(consumers=(CONSUMER,))
        self.workflows: dict[UUID, Workflow] = {}
        self.graphs: dict[UUID, tuple[Vertex, ...]] = {}
        self.claims: list[Claimed] = []

    @initialize(dag=dags(min_steps=3))
    def begin(self, dag: tuple[Vertex, ...]) -> None:
        self.run(self.db.clear())
        self.run(self.db.main.conn.execute(_store.load("add_consumer"), {"name": CONSUMER}))
        self._insert(build(dag, key="a"), dag)

    # --- inserting ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.runs) < 4)
    @rule(dag=dags(), key=st.sampled_from([None, "a", "b"]), in_time=st.booleans())
    def insert(self, dag: tuple[Vertex, ...], key: str | None, in_time: bool) -> None:
        self._insert(build(dag, key=key, deadline=timedelta(days=1) if in_time else None), dag)

    @precondition(lambda self: self.model.live("a"))
    @rule()
    def insert_the_same_again(self) -> None:
        live = self.model.live("a")
        assert live is not None
        inserted = self.run(self.db.main.insert(self.workflows[live]))
        assert (inserted.id, inserted.inserted) == (live, False)

    @rule(dag=dags(max_steps=4), key=st.sampled_from([None, "a"]))
    def insert_then_rollback(self, dag: tuple[Vertex, ...], key: str | None) -> None:
        async def both() -> None:
            await self.first.begin()
            try:
                await self.first.insert(build(dag, key=key))
            except KeyConflict:
                # The transaction goes on; what it had written before is not lost.
                assert await self.first.rows("SELECT 1") == [(1,)]
            await self.first.end(False)

        self.run(both())

    def _insert(self, workflow: Workflow, dag: tuple[Vertex, ...]) -> None:
        live = self.model.live(workflow.key)
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
        self.workflows[inserted.id], self.graphs[inserted.id] = workflow, dag
        self.model.insert(
            inserted.id,
            Run(workflow.key, jobs, overdue=None if workflow.deadline is None else False),
            {
                jobs[place]: Step(
                    name=name_of(place),
                    deps=tuple(jobs[dep] for dep in vertex.deps),
                    ignores=vertex.ignores,
                    state="held" if vertex.deps else "released",
                    runs_on=vertex.runs_on,
                    hooked=vertex.hooked,
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

    @precondition(lambda self: self.model.claimable())
    @rule(demand=st.integers(1, 6))
    def claim(self, demand: int) -> None:
        self._claimed(self.run(self.db.main.claim(demand)), demand)

    @precondition(lambda self: self.model.claimable())
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        claims = self._claimed(self.run(self.db.main.claim(3)), 3)
        batch = [
            self._outcome(claim, data.draw(st.sampled_from(["completed", *ENDINGS])), data)
            for claim in claims
        ]
        self._acked(self.run(self.db.main.ack(batch, 3)), self.model.ack(batch), 3)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), demand=st.integers(0, 3))
    def finish(self, data: st.DataObject, demand: int) -> None:
        batch = self._batch(data, self._live())
        self._acked(self.run(self.db.main.ack(batch, demand)), self.model.ack(batch), demand)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), mixed=st.booleans(), overtaken=st.sampled_from([True, True, False]))
    def finish_late_or_again(self, data: st.DataObject, mixed: bool, overtaken: bool) -> None:
        """Outcomes of attempts that no longer hold their jobs, in a batch with some that do, or alone."""
        if overtaken:
            self.oban_housekeeping("rescue")
            self.claim(6)
        if not (stale := self._stale()):
            return
        batch = self._batch(data, stale)
        running = {outcome.job_id for outcome in batch} & {claim.job_id for claim in self._live()}
        self.seen["late ack while the next attempt runs"] += bool(running)
        if mixed and (live := self._live()):
            batch = data.draw(st.permutations(batch + self._batch(data, live)))
        self._acked(self.run(self.db.main.ack(batch)), self.model.ack(batch))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(sorted(ENDED)))
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
        outcome = Outcome(claim.job_id, claim.attempted_at, state)
        assert hit == len(self.model.ack([outcome], plain=True)[0])

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        stored = self.run(self.db.main.engine.store(claim.job_id, claim.attempted_at, "key", "1"))
        assert stored == self.model.holds(claim.job_id, claim.attempted_at)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), answer_was_lost=st.booleans())
    def give_back(self, data: st.DataObject, answer_was_lost: bool) -> None:
        live = self._live()
        claims = data.draw(st.lists(st.sampled_from(self.claims), min_size=1, max_size=3, unique=True))
        if answer_was_lost:
            claims = [claim for claim in claims if claim in live]
            known = [claim.job_id for claim in live if claim not in claims]
            assert self.run(self.db.main.engine.reclaim(QUEUE, PRODUCER, known)) == len(claims)
        else:
            self.run(self.db.main.engine.give_back([(claim.job_id, claim.attempted_at) for claim in claims]))
        for claim in claims:
            self.model.give_back(claim.job_id, claim.attempted_at)

    @precondition(lambda self: (self._live() or self.model.claimable()) and self._jobs("suspended"))
    @rule(data=st.data())
    def finish_while_somebody_holds_jobs_that_must_follow(self, data: st.DataObject) -> None:
        if self.model.claimable():
            self.claim(3)
        batch = self._batch(data, self._live())
        ending = {outcome.job_id for outcome in batch}
        suspended = self._jobs("suspended")
        following = [job for job in suspended if ending & set(self.model.steps[job].deps)] or suspended
        locked = data.draw(st.lists(st.sampled_from(following), min_size=1, max_size=4, unique=True))

        async def both() -> tuple[bool, Acked]:
            await self.first.begin()
            for job in locked:
                await self.first.update(job, args={"touched": True})
            acking = asyncio.ensure_future(self.db.main.ack(batch))
            waits = await self.db.waits_or_ends(acking, self.db.main)
            await self.first.end()
            return waits, await acking

        before = self._owed()
        waits, done = self.run(both())
        assert not waits
        self._acked(done, self.model.ack(batch, locked))
        assert done.owed or self._owed() == before

    @precondition(lambda self: self._owed())
    @rule()
    def sweep(self) -> None:
        assert len(self.run(self.db.main.engine.sweep())) == self.model.sweep()

    # --- Oban's own calls -----------------------------------------------------------------------------

    @precondition(lambda self: any(job > 0 for job in self.model.steps))
    @rule(data=st.data(), call=st.sampled_from(["retry", "cancel", "delete"]))
    def oban(self, data: st.DataObject, call: str) -> None:
        ids = self._any_jobs(data)
        self.run(getattr(self.db.main, call)(*ids))
        getattr(self.model, call)(ids)

    @precondition(lambda self: self._live() or self.model.claimable())
    @rule(data=st.data())
    def oban_cancels_what_runs(self, data: st.DataObject) -> None:
        if self.model.claimable():
            self.claim(2)
        ids = data.draw(st.permutations([*self._any_jobs(data), self._live()[0].job_id]))
        assert self.run(self.db.main.cancel_many(*ids)) == self.model.cancel_many(ids)

    @precondition(lambda self: self._live())
    @rule(data=st.data())
    def a_node_dies(self, data: st.DataObject) -> None:
        dead = [
            claim.job_id
            for claim in data.draw(st.lists(st.sampled_from(self._live()), min_size=1, unique=True))
        ]

        async def rescue() -> None:
            await self.db.main.run(
                "UPDATE oban_jobs SET attempted_at = attempted_at - interval '1 hour' WHERE id = ANY(%s)",
                dead,
            )
            await self.db.main.oban("rescue_jobs", rescue_after=1800)

        self.run(rescue())
        self.model.rescue(dead)

    @precondition(lambda self: any(step.job for step in self.model.steps.values()))
    @rule(data=st.data(), later=st.booleans(), spare=st.integers(0, 2))
    def oban_update(self, data: st.DataObject, later: bool, spare: int) -> None:
        job = data.draw(st.sampled_from([job for job, step in self.model.steps.items() if step.job]))
        max_attempts = max(1, self.model.job(job).attempt + spare)
        scheduled_at = datetime.now(UTC) + timedelta(days=1 if later else -1)
        self.run(self.db.main.update(job, scheduled_at=scheduled_at, max_attempts=max_attempts, meta={}))
        self.model.update(job, later=later, max_attempts=max_attempts)

    @precondition(lambda self: self.claims)
    @rule(call=st.sampled_from(["rescue", "stage all", "stage", "prune"]))
    def oban_housekeeping(self, call: str) -> None:
        if call == "rescue":
            self.run(self.db.main.oban("rescue_jobs", rescue_after=0))
            self.model.rescue()
        elif call == "prune":
            self.run(self.db.main.oban("prune_jobs", max_age=0, limit=10_000))
            self.model.prune()
        else:
            self.run(self.db.main.stage(END_OF_TIME if call == "stage all" else None))
            self.model.stage(due_only=call == "stage")

    # --- the verbs on runs ----------------------------------------------------------------------------

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), whole=st.booleans())
    def cancel(self, data: st.DataObject, whole: bool) -> None:
        run_id = self._any_run(data)
        steps = [self.model.steps[job].name for job in self.model.runs[run_id].steps]
        names = None if whole else data.draw(st.lists(st.sampled_from([*steps, "nobody"]), max_size=2))
        self._control(self._cancel(run_id, names))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), verb=st.sampled_from(["pause", "resume"]))
    def pause_or_resume(self, data: st.DataObject, verb: str) -> None:
        self._control(self._verb(verb, self._any_run(data)))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data())
    def retry_a_run(self, data: st.DataObject) -> None:
        self._control(self._verb("retry", self._any_run(data)))

    @precondition(lambda self: self._failed())
    @rule(data=st.data())
    def retry_a_run_that_failed(self, data: st.DataObject) -> None:
        """The more often, the more generations."""
        self._control(self._verb("retry", data.draw(st.sampled_from(self._failed()))))

    @precondition(lambda self: self._failed(with_key=True))
    @rule()
    def retry_a_run_whose_key_is_taken(self) -> None:
        run_id = self._failed(with_key=True)[0]
        workflow = self.workflows[run_id]
        if not self.model.live(workflow.key):
            self._insert(workflow, self.graphs[run_id])
        self._control(self._verb("retry", run_id))

    @precondition(lambda self: 0 < len(self.model.runs) < 5)
    @rule(data=st.data())
    def rerun(self, data: st.DataObject) -> None:
        run_id, new_id = self._any_run(data), uuid4()
        steps = [self.model.steps[job].name for job in self.model.runs[run_id].steps]
        names = (
            data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=2))
            if steps and data.draw(st.booleans())
            else None
        )
        cone = self.model.rerun(run_id, names)
        answer = self.run(self.db.main.rerun(run_id, new_id, names))
        self.seen[f"rerun: {answer}"] += 1
        if isinstance(cone, str):
            assert answer == cone
            return
        assert answer is True
        self.model.insert_rerun(run_id, new_id, cone, self.run(self.db.jobs(new_id)))

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), nobody=st.uuids(version=4))
    def there_is_no_such_run(self, data: st.DataObject, nobody: UUID) -> None:
        verb = data.draw(st.sampled_from(["pause", "resume", "retry"]))
        assert self.run(self.db.main.control(verb, nobody)) is None
        assert self.run(self.db.main.control("cancel", nobody, None, "request")) is None
        assert self.run(self.db.main.rerun(nobody, uuid4(), None)) is False
        steps = self.run(self.db.main.rerun(self._any_run(data), uuid4(), ["nobody"]))
        assert steps == "BT004"

    @precondition(lambda self: any(run.overdue is False for run in self.model.runs.values()))
    @rule(data=st.data(), at_once=st.booleans())
    def a_deadline_passes(self, data: st.DataObject, at_once: bool) -> None:
        ahead = [run_id for run_id, run in self.model.runs.items() if run.overdue is False]
        run_id = data.draw(st.sampled_from(ahead))
        moved = ", ".join(
            f"{column} = {column} - interval '2 days'"
            for column in ("inserted_at", "revived_at", "deadline_at")
        )
        self.run(self.db.main.run(f"UPDATE workflows SET {moved} WHERE id = %s", run_id))
        self.model.runs[run_id].overdue = True
        if at_once:
            self.expire()

    @precondition(lambda self: any(run.overdue for run in self.model.runs.values()))
    @rule()
    def expire(self) -> None:
        assert self.run(self.db.main.engine.expire()) == self.model.expire()

    @precondition(lambda self: any(run.finished for run in self.model.runs.values()))
    @rule(obans_too=st.booleans())
    def prune_runs(self, obans_too: bool) -> None:
        if obans_too:
            self.oban_housekeeping("prune")
            self.deliver(False)
        ((deleted, stopped_at),) = self.run(
            self.db.main.rows("SELECT deleted, stopped_at FROM baton_prune(1000, 0, NULL)")
        )
        gone = self.model.prune_runs()
        self.seen["pruned run"] += len(gone)
        assert (deleted.get("workflows", 0), stopped_at) == (len(gone), None)
        for run_id in gone:
            self.workflows.pop(run_id, None)

    @rule(fails=st.booleans())
    def deliver(self, fails: bool) -> None:
        """Both kinds, a few at a time; what fails is due again at once."""
        for consumer, functions in ((CONSUMER, []), (None, [HOOKED])):
            wanted = {told for told in self.model.deliveries if told.consumer == consumer}
            rows = [orjson.loads(row) for row in self.run(self._take_deliveries(consumer, functions))]
            assert len(rows) == min(len(wanted), 100)
            for row in rows:
                told = Delivery(UUID(row["workflow_id"]), row["generation"], row["consumer"], row["job_id"])
                assert told in wanted
                if told.consumer:
                    ends = self.model.runs[told.run_id].completions[told.generation - 1]
                    assert [row["generation"], row["outcome"], row["failed_steps"]] == ends
                self.seen["delivery to a consumer" if consumer else "delivery to a step"] += 1
                self.run(self._end_delivery(row, fails))
                self.model.deliveries -= set() if fails else {told}

    async def _take_deliveries(self, consumer: str | None, functions: list[str]) -> list[str]:
        ((rows,),) = await self.db.main.rows(
            "SELECT baton_deliver(%s, %s::text[], 100, 3600)", consumer, functions
        )
        return list(rows)

    async def _end_delivery(self, row: Mapping[str, Any], fails: bool) -> None:
        params = {"id": row["id"], "tries": row["tries"], "seconds": 0.0}
        await self.db.main.conn.execute(
            _store.load("postpone_delivery" if fails else "delete_delivery"), params
        )

    def _control(self, operation: Operation) -> None:
        assert operation.answer(self.run(operation.run(self.db.main))) == operation.model()

    def _cancel(self, run_id: UUID, names: list[str] | None) -> Operation:
        return Operation(
            lambda session: session.control("cancel", run_id, names, "request"),
            lambda: self.model.cancel_run(run_id, names),
            lambda answer: answer,
        )

    def _verb(self, verb: str, run_id: UUID) -> Operation:
        def answer(found: Any) -> Any:
            if isinstance(found, str) and found[:2] in {"BT", "23"}:
                self.seen[f"{verb}: {found}"] += 1
            return found

        method = self.model.retry_run if verb == "retry" else getattr(self.model, verb)
        return Operation(lambda session: session.control(verb, run_id), lambda: method(run_id), answer)

    def _failed(self, *, with_key: bool = False) -> list[UUID]:
        """Runs with failed steps; those with a key have finished, so that it is free."""
        return [
            run_id
            for run_id, run in self.model.runs.items()
            if self.model.failed_steps(run_id) and (not with_key or (run.key and run.finished))
        ]

    def _any_run(self, data: st.DataObject) -> UUID:
        return data.draw(st.sampled_from(list(self.model.runs)))

    # --- two transactions -----------------------------------------------------------------------------

    @precondition(lambda self: self._live() or self.model.claimable())
    @rule(data=st.data(), outcomes=st.tuples(st.booleans(), st.booleans()), second_ends_first=st.booleans())
    def overlap(self, data: st.DataObject, outcomes: tuple[bool, bool], second_ends_first: bool) -> None:
        if self.model.claimable():
            self.claim(3)
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
        await self.second.begin()
        try:
            one = await operations[0].run(self.first)
            running = asyncio.ensure_future(operations[1].run(self.second))
            waits = await self.db.waits_or_ends(running, self.second)
            self.seen["overlapping transactions, one waiting"] += waits
            self.seen["overlapping transactions, neither waiting"] += not waits
            if second_ends_first and not waits:
                await self.second.end(commit[1])
            await self.first.end(commit[0])
            try:
                other = await running
            except SerializationFailure:
                # The first has revived steps whose jobs the second did not hold: it is sent again, as the engine does.
                self.seen["overlapping transactions, one sent again"] += 1
                await self.second.end(False)
                await self.second.begin()
                other = await operations[1].run(self.second)
            await self.second.end(commit[1])
        finally:
            await self.first.end(False)
            await self.second.end(False)
        return one, other

    def _operation(self, data: st.DataObject) -> Operation:
        kind = data.draw(st.sampled_from(["ack", "ack", "oban", "cancel", "pause", "resume", "retry"]))
        if kind == "oban":
            ids = self._any_jobs(data)
            return Operation(
                lambda session: session.cancel(*ids), lambda: self.model.cancel(ids), lambda _answer: None
            )
        if kind == "cancel":
            return self._cancel(self._any_run(data), None)
        if kind != "ack":
            return self._verb(kind, self._any_run(data))
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
        assert Counter(self.run(self.db.deliveries())) == Counter(
            (told.run_id, told.generation, told.consumer, told.step) for told in self.model.deliveries
        )
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
            self.seen["running step that was cancelled"] += step["asked"] and step["job"] == "executing"
        for run in runs:
            self.seen[f"{run['outcome'] or 'live'} workflow"] += 1
            self.seen["completed workflow with failed steps"] += (
                run["outcome"] == "completed" and run["failed"] > 0
            )
            self.seen["run in a later generation"] += run["generation"] > 1
            self.seen["rerun that finished"] += bool(run["rerun_of"] and run["outcome"])
            self.seen["paused run"] += run["paused"] and not run["outcome"]
            self.seen["run past its deadline"] += run["cause"] == "deadline"

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
            "asked": step.asked,
        }

    def _run_row(self, run_id: UUID) -> dict[str, Any]:
        run = self.model.runs[run_id]
        return {
            "unsettled": sum(not self.model.steps[job].settled for job in run.steps),
            "failed": len(self.model.failed_steps(run_id)),
            "excused": len(self.model.excused_steps(run_id)),
            "outcome": self.model.outcome(run_id),
            "generation": run.generation,
            "paused": run.paused,
            "cause": run.cause,
            "rerun_of": run.rerun_of,
            "overdue": run.overdue,
            "completions": run.completions,
        }

    # --- the end --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """A perfect worker drains everything: every workflow finishes, as the model does."""
        if sys.exception() is not None:
            for run_id in self.model.runs.keys() & self.workflows.keys():
                workflow = self.workflows[run_id]
                states = {
                    self.model.steps[job].name: self.model.steps[job].state
                    for job in self.model.runs[run_id].steps
                }
                note(f"{run_id}\n{workflow.to_dot(states)}")
            return
        for _ in range(100):
            self.sweep()
            for run_id in self.model.runs:
                self._control(self._verb("resume", run_id))
            self.oban_housekeeping("stage all")
            self.oban_housekeeping("rescue")
            rows = self.run(self.db.main.claim(100))
            if not rows and all(self.model.outcome(run_id) for run_id in self.model.runs):
                break
            batch = [self._outcome(claim, "completed") for claim in self._claimed(rows, 100)]
            self._acked(self.run(self.db.main.ack(batch)), self.model.ack(batch))
        assert self.run(self.db.main.engine.reconcile()) == 0
        self.the_database_is_what_the_model_says()
        self.the_audit_finds_nothing()
        assert all(row["outcome"] for row in self.run(self.db.runs()).values())
        assert not any(row["owed"] for row in self.run(self.db.steps()).values())
        self.prune_runs(True)
        assert self.model.runs == {}
        assert self.run(self.db.leftovers()) == []

    # --- helpers --------------------------------------------------------------------------------------

    def _claimed(self, jobs: list[str], demand: int) -> list[Claimed]:
        """Check what a claim brought: S1, the gate, and S11, the inputs."""
        rows = [orjson.loads(job) for job in jobs]
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

    def _jobs(self, *states: str) -> list[int]:
        return [job for job, step in self.model.steps.items() if step.job and step.job.state in states]

    def _owed(self) -> set[int]:
        return {job for job, step in self.model.steps.items() if step.owed}

    def _any_jobs(self, data: st.DataObject) -> list[int]:
        return data.draw(
            st.lists(
                st.sampled_from([job for job in self.model.steps if job > 0]),
                min_size=1,
                max_size=2,
                unique=True,
            )
        )

    def _batch(self, data: st.DataObject, claims: list[Claimed]) -> list[Outcome]:
        batch = data.draw(st.lists(st.sampled_from(claims), min_size=1, max_size=4, unique=True))
        return [self._outcome(claim, data.draw(st.sampled_from(ENDINGS)), data) for claim in batch]

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


# What only a run that went deep enough has come to. Without it there are more examples, then a failure.
WORTH_SEEING = (
    "completed workflow",
    "failed workflow",
    "completed workflow with failed steps",
    "doomed step",
    "release owed",
    "doom owed",
    "settled step whose job ran again",
    "settled step whose job is gone",
    "late ack while the next attempt runs",
    "running step that was cancelled",
    "skipped step",
    "cancelled workflow",
    "run in a later generation",
    "rerun that finished",
    "paused run",
    "run past its deadline",
    "pruned run",
    "delivery to a consumer",
    "delivery to a step",
    "retry: BT002",
    "retry: BT003",
    "retry: 23505",
    "rerun: BT002",
    "overlapping transactions, one waiting",
    "overlapping transactions, neither waiting",
)


def differences(
    found: Mapping[Any, dict[str, Any]], expected: Mapping[Any, dict[str, Any]]
) -> dict[Any, Any]:
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
            run_state_machine_as_test(
                lambda: EngineMachine(db, first, second, runner.run, seen), settings=examples
            )
        finally:
            runner.run(opening.__aexit__(None, None, None))
    return seen


@pytest.mark.timeout(7200 if LONG else 600)
def test_the_engine_does_what_the_model_does_whatever_happens(baton_dsn: str) -> None:
    seen = check(baton_dsn, EXAMPLES)
    if any(not seen[fact] for fact in WORTH_SEEING):
        # The strategies have changed: go deeper into the same examples.
        seen = check(baton_dsn, settings(EXAMPLES, max_examples=500))
    never = [fact for fact in WORTH_SEEING if not seen[fact]]
    assert not never, f"no example came to it, so this run proves nothing about it: {never}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "broken",
    [
        # Found after many examples only.
        pytest.param("ack_deaf_to_cancel", marks=LONG_ONLY),
        "ack_unfenced",
        "cancel_forgets_held",
        "cancel_without_always",
        pytest.param("doom_one_level", marks=LONG_ONLY),
        "doom_whatever_happens",
        "finish_tells_nobody",
        "pause_of_what_is_released",
        "retry_keeps_the_rest",
        "retry_same_generation",
        "retry_under_running_steps",
        "take_jobs_waiting",
    ],
)
def test_the_machine_catches_a_broken_function(broken: str, baton_dsn: str) -> None:
    examples = settings(EXAMPLES, max_examples=1000, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises(AssertionError):
        check(baton_dsn, examples, broken)


# --- where two transactions meet ----------------------------------------------------------------------

FAN_IN = (Vertex(), Vertex(), Vertex(deps=(0, 1)))


@dataclass(frozen=True, slots=True)
class Meeting:
    """A database and two sessions that are to meet in it; `breakpoint` holds a row to stop them there."""

    db: Database
    first: Session
    second: Session
    breakpoint: Session

    async def insert(self, dag: Sequence[Vertex]) -> list[int]:
        """Insert a graph; returns the ids of its jobs, by place."""
        inserted = await self.db.main.insert(build(dag))
        return list((await self.db.jobs(inserted.id)).values())

    async def stop_at_workflow_of(self, *jobs: int) -> None:
        """Hold the workflows' rows: whoever settles a step of theirs waits there, until the breakpoint commits."""
        await self.breakpoint.begin()
        await self.breakpoint.rows(
            "SELECT workflow.id FROM workflows AS workflow JOIN workflow_nodes AS step ON step.workflow_id = workflow.id "
            "WHERE step.job_id = ANY(%s) FOR UPDATE OF workflow",
            list(jobs),
        )

    async def waits(self, running: Awaitable[Any], session: Session) -> "asyncio.Future[Any]":
        """Start a statement, and follow it until it waits for a lock."""
        task = asyncio.ensure_future(running)
        assert await self.db.waits_or_ends(task, session), "it should have met the other transaction"
        return task


@pytest.fixture
async def meeting(baton_dsn: str) -> AsyncIterator[Meeting]:
    async with Database.opened(baton_dsn) as db:
        yield Meeting(db, await db.session(), await db.session(), await db.session())


async def last_two_dependencies(meeting: Meeting, first_to_end: int = 0) -> int:
    """Ack the last two dependencies of a join, one held open while the other comes; returns how often it was released."""
    *ends, join = await meeting.insert(FAN_IN)
    outcomes = await meeting.db.main.start(*ends)
    await meeting.first.begin()
    one = await meeting.first.ack([outcomes[first_to_end]])
    other = await meeting.waits(meeting.second.ack([outcomes[1 - first_to_end]]), meeting.second)
    await meeting.first.end()
    released = one.queues + (await other).queues
    assert ((await meeting.db.steps())[join]["job"] == "available") == bool(released)
    return len(released)


async def two_acks_in_opposite_order(meeting: Meeting) -> list[BaseException]:
    """Acks of steps of the same two workflows, named in opposite order, each stopped in a third one on its way."""
    here, stop_first, stop_second, there = [await meeting.insert([Vertex(), Vertex()]) for _ in range(4)]
    one = await meeting.db.main.start(here[0], stop_first[0], there[0])
    other = await meeting.db.main.start(there[1], stop_second[0], here[1])
    await meeting.stop_at_workflow_of(stop_first[0], stop_second[0])
    tasks = [
        await meeting.waits(meeting.first.ack(one), meeting.first),
        await meeting.waits(meeting.second.ack(other), meeting.second),
    ]
    await meeting.breakpoint.end()
    return await raised(*tasks)


async def oban_cancels_what_an_ack_releases(meeting: Meeting) -> list[BaseException]:
    """Oban's cancel holds a held step's job and wants the workflow; the ack holds that and wants the job."""
    fetch, report = await meeting.insert([Vertex(), Vertex(deps=(0,))])
    outcomes = await meeting.db.main.start(fetch)
    await meeting.stop_at_workflow_of(fetch)
    tasks = [
        await meeting.waits(meeting.first.ack(outcomes), meeting.first),
        await meeting.waits(meeting.second.cancel(report), meeting.second),
    ]
    await meeting.breakpoint.end()
    return await raised(*tasks)


async def outcome_of_an_earlier_attempt(meeting: Meeting) -> list[int]:
    """A rescued attempt comes back while the next one runs, in the same batch and alone; returns what counted."""
    (fetch,) = await meeting.insert([Vertex()])
    (late,) = await meeting.db.main.start(fetch)
    await meeting.db.main.oban("rescue_jobs", rescue_after=0)
    (current,) = await meeting.db.main.start(fetch)
    counted = (await meeting.first.ack([replace(late, result='"late"')])).acked
    counted += (await meeting.first.ack([replace(late, state="discarded"), current])).acked
    return counted + (await meeting.first.ack([current])).acked


async def raised(*tasks: Awaitable[Any]) -> list[BaseException]:
    """Wait for all; returns what they raised."""
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, BaseException)]


@pytest.mark.parametrize("first_to_end", [0, 1])
async def test_two_acks_of_the_last_two_dependencies_release_once(
    meeting: Meeting, first_to_end: int
) -> None:
    assert [await last_two_dependencies(meeting, first_to_end) for _ in range(50)] == [1] * 50
    assert await meeting.db.audit() == []


async def test_two_acks_of_the_last_two_dependencies_at_once_release_once(meeting: Meeting) -> None:
    for _ in range(50):
        *ends, join = await meeting.insert(FAN_IN)
        one, other = await meeting.db.main.start(*ends)
        acks = await asyncio.gather(meeting.first.ack([one]), meeting.second.ack([other]))
        assert [queue for ack in acks for queue in ack.queues] == [QUEUE]
        assert (await meeting.db.steps())[join]["job"] == "available"
    assert await meeting.db.audit() == []


async def test_releasing_by_looking_loses_the_release(meeting: Meeting) -> None:
    await meeting.db.install("settle_by_looking")
    assert await last_two_dependencies(meeting) == 0
    assert await meeting.db.audit() != []


async def test_a_late_outcome_changes_nothing_whoever_it_comes_with(meeting: Meeting) -> None:
    (job,) = await outcome_of_an_earlier_attempt(meeting)
    step = (await meeting.db.steps())[job]
    assert (step["state"], step["job"], step["result"]) == ("completed", "completed", {"value": 1})
    assert await meeting.db.audit() == []


async def test_without_the_fence_a_late_outcome_counts(meeting: Meeting) -> None:
    await meeting.db.install("ack_unfenced")
    assert len(await outcome_of_an_earlier_attempt(meeting)) > 1


async def test_acks_that_name_their_workflows_in_opposite_order_queue_up(meeting: Meeting) -> None:
    assert await two_acks_in_opposite_order(meeting) == []
    assert await meeting.db.audit() == []


async def test_unsorted_locks_deadlock(meeting: Meeting) -> None:
    await meeting.db.install("settle_unsorted")
    assert any(isinstance(error, DeadlockDetected) for error in await two_acks_in_opposite_order(meeting))


async def test_a_release_does_not_wait_for_a_job_that_oban_is_cancelling(meeting: Meeting) -> None:
    assert await oban_cancels_what_an_ack_releases(meeting) == []
    await meeting.db.main.engine.sweep()
    assert await meeting.db.audit() == []
    assert [run["outcome"] for run in (await meeting.db.runs()).values()] == ["failed"]
    assert not any(step["owed"] for step in (await meeting.db.steps()).values())


async def test_a_release_that_waits_for_the_job_deadlocks_with_oban(meeting: Meeting) -> None:
    await meeting.db.install("take_jobs_waiting")
    assert any(
        isinstance(error, DeadlockDetected) for error in await oban_cancels_what_an_ack_releases(meeting)
    )


@pytest.mark.parametrize("commits", [True, False])
async def test_a_second_insert_waits_until_the_key_is_taken_or_free(meeting: Meeting, commits: bool) -> None:
    await meeting.first.begin()
    one = await meeting.first.insert(build(FAN_IN, key="order 1"))
    waiting = await meeting.waits(meeting.second.insert(build(FAN_IN, key="order 1")), meeting.second)
    await meeting.first.end(commits)
    other = await waiting
    assert (other.id == one.id, other.inserted) == (commits, not commits)
    assert len(await meeting.db.runs()) == 1
    assert await meeting.db.audit() == []


async def test_an_empty_workflow_does_not_pass_by_the_live_one_that_has_its_key(meeting: Meeting) -> None:
    live = await meeting.db.main.insert(build(FAN_IN, key="order 1"))
    with pytest.raises(KeyConflict) as refused:
        await meeting.db.main.insert(build((), key="order 1"))
    assert refused.value.run_id == str(live.id)


# --- many at once -------------------------------------------------------------------------------------


# Four roots, and twelve steps of which each waits for two or three; every other one ignores that one was cancelled.
WEB = tuple(
    Vertex(
        deps=() if place < 4 else tuple({place % 4, (place + 1) % 4} | ({place - 4} if place > 7 else set())),
        ignore_cancelled=place % 2 == 0,
    )
    for place in range(16)
)


async def storm(meeting: Meeting, rounds: int) -> tuple[list[BaseException], int]:
    """Acks of four roots and Oban's cancels of the steps behind them, all at once, again and again.

    Meanwhile a watcher audits what has been committed so far. Returns what was raised, and in how many rounds an ack
    left a job to the sweep because Oban held it.
    """
    db = meeting.db
    sessions = [await db.session() for _ in range(8)]
    watching = asyncio.create_task(_watch(meeting.breakpoint))
    errors: list[BaseException] = []
    owed = 0
    try:
        deadline = time.monotonic() + 10
        for turn in range(rounds):
            if time.monotonic() > deadline:
                break
            if turn % 30 == 29:
                # What has finished would only slow the watcher down.
                await settle_down(meeting)
            jobs = await meeting.insert(WEB)
            outcomes = await db.main.start(*jobs[:4])
            outcomes[turn % 4] = replace(outcomes[turn % 4], state="cancelled", result=None)
            calls: list[Awaitable[Any]] = [
                session.ack([outcome]) for session, outcome in zip(sessions, outcomes, strict=False)
            ]
            for place, session in enumerate(sessions[4:]):
                calls.append(
                    session.cancel(*{jobs[4 + (turn + place) % 12], jobs[4 + (turn * 5 + place * 7) % 12]})
                )
            answers = await asyncio.gather(*calls[turn % 8 :], *calls[: turn % 8], return_exceptions=True)
            errors += [answer for answer in answers if isinstance(answer, BaseException)]
            owed += any(isinstance(answer, Acked) and answer.owed for answer in answers)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return errors, owed


async def settle_down(meeting: Meeting) -> None:
    """Sweep once and work everything off: every workflow finishes, nothing is owed. Then clear the tables."""
    db = meeting.db
    await db.main.engine.sweep()
    while rows := [orjson.loads(job) for job in await db.main.claim(1000)]:
        began = [datetime.fromisoformat(row["attempted_at"]).replace(tzinfo=UTC) for row in rows]
        await db.main.ack(
            [Outcome(row["id"], at, "completed", result="1") for row, at in zip(rows, began, strict=True)]
        )
    assert await db.audit() == []
    assert not any(step["owed"] for step in (await db.steps()).values())
    assert all(run["outcome"] for run in (await db.runs()).values())
    await db.clear()


async def _watch(session: Session) -> None:
    """Each look is one statement and so one moment; what is wrong there is wrong."""
    while True:
        assert await session.rows(_store.load("audit")) == []
        await asyncio.sleep(0)


@pytest.mark.slow
async def test_oban_cancels_held_steps_while_their_dependencies_are_acked(meeting: Meeting) -> None:
    errors, owed = await storm(meeting, rounds=300)
    await settle_down(meeting)
    assert errors == []
    assert owed, "no ack ever met a job that Oban held: inconclusive"


@pytest.mark.slow
async def test_the_same_storm_deadlocks_a_release_that_waits(meeting: Meeting) -> None:
    await meeting.db.install("take_jobs_waiting")
    errors, _ = await storm(meeting, rounds=20)
    assert any(isinstance(error, DeadlockDetected) for error in errors)


@pytest.mark.slow
async def test_ten_thousand_steps_fan_in_once_and_none_costs_more_than_another(meeting: Meeting) -> None:
    width, batch = 10_000, 500
    dag = (Vertex(), *[Vertex(deps=(0,))] * width, Vertex(deps=tuple(range(1, width + 1))))
    root, *middle, join = await meeting.insert(dag)
    main = meeting.db.main
    fanned_out = await main.ack(await main.start(root))
    assert len(fanned_out.queues) == width
    released = 0
    work = []
    for start in range(0, width, batch):
        outcomes = await main.start(*middle[start : start + batch])
        await main.begin()
        before = await rows_touched(main)
        released += len((await main.ack(outcomes)).queues)
        work.append(await rows_touched(main) - before)
        await main.end()
    assert released == 1
    assert (await meeting.db.steps())[join]["job"] == "available"
    await main.ack(await main.start(join))
    assert [run["outcome"] for run in (await meeting.db.runs()).values()] == ["completed"]
    assert await meeting.db.audit() == []
    assert max(work) <= 20 * batch
    assert max(work) <= 1.2 * min(work)


async def rows_touched(session: Session) -> int:
    """Rows of Baton's and Oban's tables that this session has read or written so far, from a start of its own."""
    ((rows,),) = await session.rows(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd + n_tup_del)::bigint "
        "FROM pg_stat_xact_user_tables"
    )
    return int(rows)
