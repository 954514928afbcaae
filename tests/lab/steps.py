"""What the lab's workers run, and the witness that each attempt writes to, over a connection of its own.

A step's plan travels in its arguments, so that what it does is known from the schedule: how long it takes, how often it fails.
Its value hangs on all of its inputs (`schedule.value_of`).
"""

import asyncio
import os
import threading
import time
from datetime import UTC
from typing import Any

import psycopg
from oban import worker
from oban.job import Job
from psycopg.types.numeric import Int8

import baton
from baton import Cancel, Snooze, Workflow, step
from tests.lab.schedule import StepPlan, value_of

START = """
    INSERT INTO lab.effects (run, step, job_id, attempt, attempted_at, pid, queue, phase, sees)
    SELECT %(run)s::uuid, %(step)s, %(job)s, %(attempt)s, %(attempted_at)s, %(pid)s, %(queue)s, 'start', (
      SELECT jsonb_object_agg(dependency.name, dependency.state)
      FROM workflow_nodes AS step JOIN workflow_edges AS edge ON edge.dependent_id = step.id
      JOIN workflow_nodes AS dependency ON dependency.id = edge.dependency_id WHERE step.job_id = %(job)s)
    ON CONFLICT DO NOTHING"""
END = """
    INSERT INTO lab.effects (run, step, job_id, attempt, attempted_at, pid, queue, phase, value)
    VALUES (%(run)s::uuid, %(step)s, %(job)s, %(attempt)s, %(attempted_at)s, %(pid)s, %(queue)s, %(phase)s, %(value)s)
    ON CONFLICT DO NOTHING"""
_HEALED = "SELECT EXISTS (SELECT FROM lab.actions WHERE run = %s::uuid AND what = 'retry')"


class Witness:
    """One autocommit connection, made again whenever it is lost. A write comes through, however long the server is away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._conn: psycopg.Connection | None = None

    def write(
        self, statement: str, params: dict[str, Any] | tuple[Any, ...], *, patience: float = 60.0
    ) -> None:
        self.ask(statement, params, patience=patience)

    def ask(self, statement: str, params: dict[str, Any] | tuple[Any, ...], *, patience: float = 60.0) -> Any:
        """The one value that a statement returns, if it returns any."""
        deadline = time.monotonic() + patience
        while True:
            try:
                with self._lock:
                    if self._conn is None or self._conn.closed:
                        self._conn = psycopg.connect(
                            self._dsn, autocommit=True, connect_timeout=5, application_name="lab witness"
                        )
                    cursor = self._conn.execute(statement.encode(), params)
                    row = cursor.fetchone() if cursor.description else None
                    return row[0] if row else None
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def hit(self, kind: str) -> None:
        """A fault of the workers' own has happened."""
        self.write("INSERT INTO lab.hits (kind, pid) VALUES (%s, %s)", (kind, os.getpid()))


witness = Witness(os.environ.get("LAB_WITNESS", ""))


class Attempt:
    """The witness's account of one attempt."""

    def __init__(self, job: Job) -> None:
        at = job.attempted_at
        assert at is not None
        self.row: dict[str, Any] = {
            "run": job.meta.get("workflow_id"),
            "step": job.meta.get("workflow_name"),
            "job": Int8(job.id or 0),
            "attempt": job.attempt,
            "attempted_at": at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at,
            "pid": os.getpid(),
            "queue": job.queue,
        }

    def start(self) -> None:
        witness.write(START, self.row)

    def end(self, phase: str, value: str | None = None, *, patience: float = 60.0) -> None:
        witness.write(END, {**self.row, "phase": phase, "value": value}, patience=patience)

    def healed(self) -> bool:
        return bool(witness.ask(_HEALED, (self.row["run"],)))


def _phase(plan: dict[str, Any], job: Job, attempt: Attempt) -> str:
    """What this attempt comes to, by its plan."""
    match plan["kind"]:
        case "flaky" if job.attempt <= plan["times"]:
            return "error"
        case "snooze" if job.meta.get("snoozed", 0) < plan["times"]:
            return "snooze"
        case "fail":
            return "end" if attempt.healed() else "error"
        case "cancel":
            return "cancel"
        case _:
            return "end"


def _come_to(phase: str, value: str) -> str | Snooze | Cancel:
    match phase:
        case "error":
            raise RuntimeError("as planned")
        case "snooze":
            return Snooze(0)
        case "cancel":
            return Cancel("as planned")
        case _:
            return value


async def _run(
    job: Job, tag: str, name: str, plan: dict[str, Any], inputs: dict[str, str | None]
) -> str | Snooze | Cancel:
    attempt = Attempt(job)
    try:
        await asyncio.to_thread(attempt.start)
        if plan["kind"] == "block":
            time.sleep(plan["seconds"])  # noqa: ASYNC251 - the fault
            await asyncio.to_thread(witness.hit, "blocked_loop")
        else:
            await asyncio.sleep(plan["seconds"])
        phase = await asyncio.to_thread(_phase, plan, job, attempt)
        value = value_of(tag, name, inputs)
        await asyncio.to_thread(attempt.end, phase, value if phase == "end" else None)
    except asyncio.CancelledError:
        # Not in a thread: whoever cancels does not wait long.
        attempt.end("stopped", patience=0.5)
        raise
    return _come_to(phase, value)


@step(name="lab.work", backoff=lambda _attempt: 0)
async def work(tag: str, plan: dict[str, Any], inputs: dict[str, str | None]) -> str | Snooze | Cancel:
    """Most steps."""
    context = baton.current()
    return await _run(context.job, tag, context.step, plan, inputs)


@step(name="lab.thread", backoff=lambda _attempt: 0)
def thread(tag: str, plan: dict[str, Any], inputs: dict[str, str | None]) -> str | Snooze | Cancel:
    """The same in a thread."""
    context = baton.current()
    attempt = Attempt(context.job)
    attempt.start()
    time.sleep(plan["seconds"])
    value = value_of(tag, context.step, inputs)
    attempt.end("end", value)
    return value


@worker(queue="fast")
class Classic:
    """The same as an Oban worker class in a workflow."""

    async def process(self, job: Job) -> Any:
        found = await baton.results.get_all(job)
        inputs = {name: found.get(name) for name in job.args["deps"]}
        return await _run(job, job.args["tag"], job.meta["workflow_name"], job.args["plan"], inputs)


@worker(queue="fast")
class Plain:
    """An ordinary Oban job, which no fault of Baton's may harm."""

    async def process(self, job: Job) -> None:
        attempt = Attempt(job)
        await asyncio.to_thread(attempt.start)
        await asyncio.sleep(job.args["seconds"])
        await asyncio.to_thread(attempt.end, "end")


def build(tag: str, steps: tuple[StepPlan, ...]) -> Workflow:
    """The workflow of a plan."""
    from tests.lab.rare import rare

    workflow = Workflow(tag)
    refs: dict[str, Any] = {}
    for each in steps:
        plan = {"kind": each.kind, "seconds": each.seconds, "times": each.times}
        options: dict[str, Any] = {"queue": each.queue, "max_attempts": each.max_attempts}
        if each.kind == "class":
            job: Any = Classic.new({"tag": tag, "plan": plan, "deps": list(each.deps)}, **options)  # type: ignore[attr-defined]
        else:
            function = {"thread": thread, "rare": rare}.get(each.kind, work)
            inputs = {dep: refs[dep].result for dep in each.deps}
            job = function.with_options(**options).new(tag=tag, plan=plan, inputs=inputs)
        refs[each.name] = workflow.add(
            each.name,
            job,
            deps=each.deps,
            ignore_cancelled=each.ignore_cancelled,
            ignore_discarded=each.ignore_discarded,
            always=each.runs_on == "always",
            on_failure=each.runs_on == "failure",
        )
    return workflow
