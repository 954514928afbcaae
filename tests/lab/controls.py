"""Negative controls: known-bad variants of the engine, and for each a small scenario in which the lab must catch it.

A harness that has never failed proves nothing. So each scenario is run twice, with the engine as it is and with the variant,
and judged by the same statements as a run of the lab. Most variants are one function of the database with a fault, made from
today's function by an edit in tests/kit/broken; the others are a switch here.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from baton._engine import Outcome
from tests.kit.database import PRODUCER, Database, Session
from tests.kit.graphs import QUEUE
from tests.lab import invariants
from tests.lab.invariants import Finding
from tests.lab.oracle import Belief, Contradiction
from tests.lab.schedule import Action, Flow, StepPlan, value_of
from tests.lab.steps import END, START, build

TAG = "f0"
_RESCUE_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """An attempt in the hands of a pretended process."""

    job_id: int
    step: str
    attempt: int
    attempted_at: datetime
    inputs: dict[str, str | None]
    pid: int


class Stage:
    """One workflow in a database, pretended processes, the witness and the judges."""

    def __init__(self, db: Database, *, broken: bool) -> None:
        self.db = db
        self.broken = broken
        self.run: UUID
        self.belief: Belief

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str, *, broken: bool) -> AsyncIterator["Stage"]:
        async with Database.opened(dsn) as db:
            await db.main.run(invariants.load("schema"))
            yield cls(db, broken=broken)

    async def insert(self, *steps: StepPlan, retried: bool = False) -> None:
        flow = Flow(0.0, TAG, steps, (Action("retry", 0.0),) if retried else ())
        self.belief = Belief.inserted(flow)
        self.run = (await self.db.main.insert(build(TAG, steps))).id
        await self.db.main.run("INSERT INTO lab.flows (tag, run) VALUES (%s, %s)", TAG, self.run)

    async def claim(self, demand: int = 10, *, pid: int = 1) -> dict[str, Claimed]:
        """Claim what is available, and let it start; by name."""
        claimed = {}
        for text in await self.db.main.claim(demand):
            job = json.loads(text)
            given = job["step"]["inputs"] or {}
            attempt = Claimed(
                job_id=job["id"],
                step=job["step"]["name"],
                attempt=job["attempt"],
                attempted_at=datetime.fromisoformat(job["attempted_at"]).replace(tzinfo=UTC),
                inputs={dep: given[dep]["value"] if dep in given else None for dep in job["step"]["deps"]},
                pid=pid,
            )
            await self.db.main.conn.execute(START.encode(), self._row(attempt))
            claimed[attempt.step] = attempt
        return claimed

    def _row(self, attempt: Claimed) -> dict[str, Any]:
        return {
            "run": self.run,
            "step": attempt.step,
            "job": attempt.job_id,
            "attempt": attempt.attempt,
            "attempted_at": attempt.attempted_at.replace(tzinfo=None),
            "pid": attempt.pid,
            "queue": QUEUE,
        }

    async def end(self, attempt: Claimed, state: str = "completed") -> Outcome:
        """The code of an attempt ends, and its process knows how; nothing is acked."""
        value = value_of(TAG, attempt.step, attempt.inputs)
        phase = "end" if state == "completed" else "error"
        await self.db.main.conn.execute(
            END.encode(), {**self._row(attempt), "phase": phase, "value": value if phase == "end" else None}
        )
        result = json.dumps(value) if state == "completed" else None
        return Outcome(attempt.job_id, attempt.attempted_at, state, result=result)

    async def finish(self, attempt: Claimed, state: str = "completed") -> None:
        await self.db.main.ack([await self.end(attempt, state)])

    async def work(self, *, fails: tuple[str, ...] = ()) -> None:
        """A worker that nothing happens to, until there is nothing left to do."""
        while claimed := await self.claim():
            for attempt in claimed.values():
                await self.finish(attempt, "discarded" if attempt.step in fails else "completed")

    async def beat(self, producer: UUID = PRODUCER) -> None:
        """A process says that it lives, as it has done for an hour."""
        heart = {"uuid": str(producer), "name": "Oban", "node": "test", "queue": QUEUE, "meta": {}}
        await self.db.main.rows("SELECT baton_beat(%s::jsonb, %s)", json.dumps([heart]), _RESCUE_AFTER)
        await self.db.main.run(
            "UPDATE oban_producers SET meta = jsonb_set(meta, '{baton,since}', "
            "to_jsonb(timezone('UTC', clock_timestamp()) - interval '1 hour'))"
        )

    async def note_fault(self, kind: str, pid: int) -> None:
        await self.db.main.run("INSERT INTO lab.faults (kind, pid) VALUES (%s, %s)", kind, pid)

    async def act(self, what: str, call: Awaitable[Any]) -> None:
        """What a user does, with when they were answered."""
        ((number,),) = await self.db.main.rows(
            "INSERT INTO lab.actions (run, what) VALUES (%s, %s) RETURNING id", self.run, what
        )
        answer = await call
        answer = answer[0] if isinstance(answer, list) and answer else answer
        await self.db.main.run(
            "UPDATE lab.actions SET answered_at = clock_timestamp(), answer = %s WHERE id = %s",
            str(answer),
            number,
        )

    async def look(self, *, at_the_end: bool = False) -> list[Finding]:
        """All that the lab's judges find."""
        found = await invariants.look(self.db.main.conn, traces=True)
        rows = await self.db.main.rows(
            "SELECT name, state FROM workflow_nodes WHERE workflow_id = %s", self.run
        )
        try:
            self.belief.observe(dict(rows))
        except Contradiction as contradiction:
            found.append(Finding("oracle", str(self.run), contradiction.step, str(contradiction)))
        if at_the_end:
            found += await invariants.stuck(self.db.main.conn)
        return found


@dataclass(frozen=True, slots=True)
class Control:
    """A scenario that is clean with the engine as it is, and in which a variant of it must be caught.

    Attributes:
        variant: Name of the broken function in tests/kit/broken; None if the scenario itself has the switch.
        caught_by: Judges of whom at least one must find it.
    """

    name: str
    scenario: Callable[[Stage], Awaitable[list[Finding]]]
    caught_by: tuple[str, ...]
    variant: str | None = None

    async def judge(self, dsn: str, *, broken: bool) -> list[Finding]:
        """What is found; nothing, if not `broken`."""
        async with Stage.opened(dsn, broken=broken) as stage:
            if broken and self.variant:
                await stage.db.install(self.variant)
            return await self.scenario(stage)


def _step(name: str, *deps: str, **options: Any) -> StepPlan:
    return StepPlan(name, deps, queue=QUEUE, **options)


# --- scenarios ------------------------------------------------------------------------------------


async def _two_dependencies_settle_at_once(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0"), _step("s1"), _step("s2", "s0", "s1"))
    claimed = await stage.claim()
    first, second = await stage.db.session(), await stage.db.session()
    outcomes = [await stage.end(claimed["s0"]), await stage.end(claimed["s1"])]
    await first.begin()
    await first.ack([outcomes[0]])
    await _let_wait(stage.db, second, second.ack([outcomes[1]]), first)
    await stage.work()
    return await stage.look(at_the_end=True)


async def _let_wait(db: Database, session: Session, call: Awaitable[Any], holder: Session) -> None:
    """Run a call until it waits for the holder's transaction or has ended; then the holder commits."""
    task = asyncio.ensure_future(call)
    await db.waits_or_ends(task, session)
    await holder.end()
    await task


async def _a_zombie_acks(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0"), _step("s1", "s0"))
    zombie = (await stage.claim(pid=1))["s0"]
    await stage.note_fault("freeze", 1)
    await stage.db.main.run("UPDATE oban_jobs SET state = 'available' WHERE state = 'executing'")
    again = (await stage.claim(pid=2))["s0"]
    await stage.db.main.ack([await stage.end(zombie)])
    found = await stage.look()
    await stage.finish(again)
    await stage.work()
    return found + await stage.look(at_the_end=True)


async def _a_run_ends(stage: Stage) -> list[Finding]:
    # Or the second row could not even be written.
    await stage.db.main.run("ALTER TABLE workflow_completions DROP CONSTRAINT workflow_completions_pkey")
    await stage.insert(_step("s0"), _step("s1", "s0"))
    await stage.work()
    return await stage.look(at_the_end=True)


async def _a_failure_that_one_ignores(stage: Stage) -> list[Finding]:
    await stage.insert(
        _step("s0", kind="fail"),
        _step("s1", "s0", ignore_discarded=True),
        _step("s2", "s0"),
        _step("s3", "s2"),
    )
    await stage.work(fails=("s0",))
    return await stage.look(at_the_end=True)


async def _one_of_two_dependencies_settles(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0"), _step("s1"), _step("s2", "s0", "s1"))
    claimed = await stage.claim()
    await stage.finish(claimed["s0"])
    await stage.claim()
    return await stage.look()


async def _a_cancel_is_answered_before_the_claim(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0"), _step("s1", "s0"))
    stage.belief.cancel_called()
    await stage.act("cancel", stage.db.main.engine.cancel(stage.run, None, "no more"))
    stage.belief.cancel_answered()
    await stage.work()
    return await stage.look(at_the_end=True)


async def _a_prune_meets_a_retry(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0", kind="fail"))
    await stage.work(fails=("s0",))
    retrying, pruning = await stage.db.session(), await stage.db.session()
    await retrying.begin()
    stage.belief.retry_called()
    await stage.act("retry", retrying.engine.retry(stage.run))
    prune = pruning.rows("SELECT baton_prune(100, 0, NULL)")
    await _let_wait(stage.db, pruning, prune, retrying)
    return await stage.look()


async def _a_retry_with_something_downstream(stage: Stage) -> list[Finding]:
    await stage.insert(_step("s0", kind="fail"), _step("s1", "s0", ignore_discarded=True), retried=True)
    await stage.work(fails=("s0",))
    stage.belief.retry_called()
    await stage.act("retry", stage.db.main.engine.retry(stage.run))
    await stage.work()
    return await stage.look(at_the_end=True)


async def _a_crash_between_two_commits(stage: Stage) -> list[Finding]:
    """Broken: the result is written after the state, in a commit that the crash keeps from happening."""
    await stage.insert(_step("s0"))
    outcome = await stage.end((await stage.claim())["s0"])
    if stage.broken:
        outcome = Outcome(outcome.job_id, outcome.attempted_at, outcome.state)
    await stage.db.main.ack([outcome])
    return await stage.look(at_the_end=True)


async def _stale_inputs(stage: Stage) -> list[Finding]:
    """Broken: a step is given what its dependency returned before it was run again."""
    await stage.insert(_step("s0"), _step("s1", "s0"))
    await stage.finish((await stage.claim())["s0"])
    attempt = (await stage.claim())["s1"]
    if stage.broken:
        attempt.inputs["s0"] = "what it was yesterday"
    await stage.finish(attempt)
    return await stage.look(at_the_end=True)


async def _somebody_retries_a_held_steps_job(stage: Stage) -> list[Finding]:
    """Broken: steps follow their jobs by a hook of the worker's, not by a trigger."""
    await stage.insert(_step("s0"), _step("s1", "s0"))
    if stage.broken:
        await stage.db.main.run("ALTER TABLE oban_jobs DISABLE TRIGGER baton_jobs_updated")
    jobs = await stage.db.jobs(stage.run)
    await stage.db.main.retry(jobs["s1"])
    await stage.claim()
    return await stage.look()


async def _a_slow_step_of_a_living_process(stage: Stage) -> list[Finding]:
    await _run_for_long(stage)
    await stage.beat()
    return await _rescue_and_claim(stage)


async def _a_server_that_came_back(stage: Stage) -> list[Finding]:
    """Its table of producers is empty: nobody has been heard yet but one."""
    await _run_for_long(stage)
    await stage.db.main.run("DELETE FROM oban_producers")
    await stage.beat(UUID(int=2))
    return await _rescue_and_claim(stage)


async def _run_for_long(stage: Stage) -> None:
    await stage.insert(_step("s0"))
    await stage.claim(pid=1)
    for table in ("oban_jobs", "lab.effects"):
        await stage.db.main.run(f"UPDATE {table} SET attempted_at = attempted_at - interval '1 hour'")


async def _rescue_and_claim(stage: Stage) -> list[Finding]:
    await stage.db.main.engine.rescue(_RESCUE_AFTER)
    await stage.claim(pid=2)
    return await stage.look()


CONTROLS = (
    Control(
        "fan-in by looking", _two_dependencies_settle_at_once, ("L1 end", "S5 held"), "settle_by_looking"
    ),
    Control("unfenced ack", _a_zombie_acks, ("S7 fence",), "ack_unfenced"),
    Control("no completion row", _a_run_ends, ("S9 finish",), "complete_silent"),
    Control("two completion rows", _a_run_ends, ("S9 finish",), "complete_twice"),
    Control("doom of one level", _a_failure_that_one_ignores, ("S8 doom", "L1 end"), "doom_one_level"),
    Control("doom without the policy", _a_failure_that_one_ignores, ("S8 doom",), "doom_without_policy"),
    Control("release one too early", _one_of_two_dependencies_settles, ("S1 gate",), "release_one_early"),
    Control(
        "cancel as a message", _a_cancel_is_answered_before_the_claim, ("S14 cancel",), "cancel_by_message"
    ),
    Control("prune without looking again", _a_prune_meets_a_retry, ("S12 insert",), "prune_without_looking"),
    Control(
        "retry of the failed alone",
        _a_retry_with_something_downstream,
        ("S11 provenance",),
        "retry_keeps_the_rest",
    ),
    Control("rescue by age", _a_slow_step_of_a_living_process, ("S18 overlap",), "rescue_by_age"),
    Control("no grace after a restart", _a_server_that_came_back, ("S18 overlap",), "rescue_without_grace"),
    Control("result outside the commit", _a_crash_between_two_commits, ("S3 together",)),
    Control("stale inputs", _stale_inputs, ("S11 provenance",)),
    Control("hooks instead of a trigger", _somebody_retries_a_held_steps_job, ("S1 gate",)),
)
