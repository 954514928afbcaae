"""The library of schema version 1, as far as a database can tell: its statements, with parameters as it sent them.

`schema_1.sql` is what its `migration.sql()` returned. Both were recorded from that version and do not change any more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
from oban.schema import install_sql
from psycopg import AsyncConnection
from psycopg.rows import dict_row

ACK = (
    "SELECT acked, queues, owed, claimed FROM baton_ack("
    "%s::jsonb, %s::text[], %s::text, %s::integer, %s::text, %s::uuid, %s::uuid[], %s::text)"
)
INSERT = (
    "SELECT id, inserted FROM baton_insert("
    "%s::uuid[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::integer[], %s::text[], %s::text[], "
    "%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::integer[], %s::timestamptz[], "
    "%s::text[], %s::boolean[], %s::boolean[], %s::integer[], %s::integer[], %s::integer[], %s::uuid[], %s::text)"
)
GIVE_BACK = "SELECT baton_give_back(%s::bigint[], %s::timestamp[])"
RECLAIM = "SELECT baton_reclaim(%s, %s, %s::bigint[])"
SWEEP = "SELECT baton_sweep(%s::uuid[], %s)"
RECONCILE = "SELECT baton_reconcile()"
RESCUE = "SELECT baton_rescue(%s)"
STORE = "SELECT baton_store(%s, %s::timestamp, %s, %s)"
SUBSCRIBE = """
INSERT INTO workflow_subscribers (topic, subscriber, expires_at)
VALUES (%(topic)s, %(subscriber)s, clock_timestamp() + make_interval(secs => %(seconds)s))
ON CONFLICT (topic, subscriber) DO UPDATE SET expires_at = excluded.expires_at"""
READ_RUN = """
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at
FROM workflows WHERE id = %(id)s"""
LIST_RUNS = """
SELECT id, name, key, generation, steps, unsettled, failed, outcome, inserted_at, finished_at
FROM workflows
WHERE (%(state)s::text IS NULL OR coalesce(outcome, 'executing') = %(state)s::text)
  AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
ORDER BY id DESC LIMIT %(limit)s"""
READ_STEPS = """
SELECT
  step.name,
  step.deps,
  step.job_id,
  CASE WHEN step.state = 'released'
       THEN CASE job.state::text WHEN 'suspended' THEN 'available' ELSE coalesce(job.state::text, 'cancelled') END
       ELSE step.state END AS state,
  step.function,
  coalesce(job.queue, '') AS queue,
  coalesce(step.attempt, job.attempt, 0) AS attempt,
  coalesce(job.max_attempts, 0) AS max_attempts,
  step.waiting_on,
  step.result IS NOT NULL AS has_result,
  CASE WHEN step.settled_at IS NULL THEN job.errors -> -1 ->> 'error' ELSE step.error END AS error,
  job.scheduled_at AT TIME ZONE 'UTC' AS scheduled_at,
  coalesce(step.started_at, job.attempted_at AT TIME ZONE 'UTC') AS started_at,
  step.settled_at
FROM workflow_nodes AS step
LEFT JOIN oban_jobs AS job ON job.id = step.job_id
WHERE step.workflow_id = %(id)s AND (%(names)s::text[] IS NULL OR step.name = ANY(%(names)s::text[]))
ORDER BY step.position"""
READ_RESULTS = """
SELECT step.name, step.function, (step.result -> 'value')::text
FROM workflow_nodes AS step
WHERE step.workflow_id = %(id)s AND step.result IS NOT NULL
  AND (%(names)s::text[] IS NULL OR step.name = ANY(%(names)s::text[]))
ORDER BY step.position"""
READ_DEPENDENCY_RESULTS = """
SELECT dependency.name, dependency.result::text
FROM workflow_edges AS edge
JOIN workflow_nodes AS dependency ON dependency.id = edge.dependency_id
WHERE edge.dependent_id = %(step_id)s
  AND dependency.result IS NOT NULL
  AND (%(names)s::text[] IS NULL OR dependency.name = ANY(%(names)s::text[]))"""

# What it made `Job(**row)` of: a column more, and it could not read its jobs.
CLAIMED = {
    *("id", "attempted_at", "state", "queue", "worker", "attempt", "max_attempts", "priority", "args", "meta", "errors"),
    *("tags", "attempted_by", "inserted_at", "scheduled_at", "cancelled_at", "completed_at", "discarded_at", "step"),
}  # fmt: skip
# Of these it took each by its name, so others may stand beside them.
CLAIMED_STEP = {"id", "workflow_id", "name", "state", "deps", "doomed", "stored", "inputs"}

# A diamond, as it laid one out after the ids: two -> double, double -> add, by steps of these names.
_DIAMOND = (
    '{"diamond"}',
    "{NULL}",
    '{"9dc8772974def76f0df87aaf039333788a7fd5f9a0b49703180ae7e89b35beb8"}',
    "{4}",
    "{1,1,1,1}",
    '{"top","left","right","bottom"}',
    '{"tests.versions.two","tests.versions.double","tests.versions.double","tests.versions.add"}',
    '{"baton.StepWorker","baton.StepWorker","baton.StepWorker","baton.StepWorker"}',
    '{"default","default","default","default"}',
    r'{"{\"step\":\"tests.versions.two\",\"args\":{}}",'
    r'"{\"step\":\"tests.versions.double\",\"args\":{\"value\":null},\"refs\":[[[\"value\"],\"top\",[]]]}",'
    r'"{\"step\":\"tests.versions.double\",\"args\":{\"value\":null},\"refs\":[[[\"value\"],\"top\",[]]]}",'
    r'"{\"step\":\"tests.versions.add\",\"args\":{\"left\":null,\"right\":null},'
    r'\"refs\":[[[\"left\"],\"left\",[]],[[\"right\"],\"right\",[]]]}"}',
    '{"{}","{}","{}","{}"}',
    '{"{}","{}","{}","{}"}',
    "{20,20,20,20}",
    "{0,0,0,0}",
    "{NULL,NULL,NULL,NULL}",
    '{"{}","{\\"top\\"}","{\\"top\\"}","{\\"left\\",\\"right\\"}"}',
    "{f,f,f,f}",
    "{f,f,f,f}",
    "{0,1,1,2}",
    "{1,1,2,3}",
    "{2,3,4,4}",
    "{}",
    "an old node",
)
RESULTS = {"top": 2, "left": 4, "right": 4, "bottom": 8}


async def install(dsn: str) -> None:
    """Make the schema of version 1, with its functions, in place of whatever is there."""
    async with await AsyncConnection.connect(dsn) as conn:
        await conn.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await conn.execute(install_sql().encode())
        await conn.execute(Path(__file__).with_name("schema_1.sql").read_bytes())


class Library:
    """A process of version 1 on one connection: its inserts, one queue of its worker, its reads."""

    def __init__(self, conn: AsyncConnection) -> None:
        self.conn = conn
        self.producer = uuid4()

    async def insert(self) -> UUID:
        """Insert the diamond."""
        new = uuid4()
        ((run_id, inserted),) = await self.rows(INSERT, f"{{{new}}}", *_DIAMOND)
        assert (run_id, inserted) == (new, True)
        return new

    async def claim(self, demand: int = 10) -> list[dict[str, Any]]:
        """Take jobs, as the queue's first look does."""
        return await self.ack([], demand=demand)

    async def ack(self, outcomes: Sequence[dict[str, Any]], *, demand: int = 0) -> list[dict[str, Any]]:
        """Write outcomes, each of which must still count, and claim in the same statement."""
        ((acked, queues, owed, claimed),) = await self.rows(
            ACK,
            orjson.dumps([{k: v for k, v in given.items() if k != "result"} for given in outcomes]).decode(),
            [given.get("result") for given in outcomes],
            "default",
            demand,
            "an old node",
            self.producer,
            [self.producer],
            "an old node",
        )
        assert sorted(acked) == sorted(given["id"] for given in outcomes)
        assert (queues is not None, owed) == (True, False)
        jobs = [orjson.loads(text) for text in claimed or []]
        for job in jobs:
            assert job.keys() == CLAIMED
            assert job["step"].keys() >= CLAIMED_STEP
        return jobs

    async def work(self, *, failing: str = "") -> list[str]:
        """Run jobs until the queue has none; returns names of the steps that ran. The step called `failing` is discarded."""
        ran = []
        jobs = await self.claim()
        while jobs:
            ran += [job["step"]["name"] for job in jobs]
            jobs = await self.ack([outcome(job, failing=failing) for job in jobs], demand=10)
        return ran

    async def states(self, run_id: UUID) -> dict[str, str]:
        return {row[0]: row[3] for row in await self.rows(READ_STEPS, id=run_id, names=None)}

    async def results(self, run_id: UUID) -> dict[str, Any]:
        return {
            name: orjson.loads(value)
            for name, _, value in await self.rows(READ_RESULTS, id=run_id, names=None)
        }

    async def run(self, run_id: UUID) -> dict[str, Any]:
        async with self.conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(READ_RUN, {"id": run_id})
            row = await cursor.fetchone()
        assert row is not None
        return row

    async def value(self, statement: str, *params: object) -> Any:
        ((value,),) = await self.rows(statement, *params)
        return value

    async def rows(self, statement: str, *params: object, **named: object) -> list[tuple[Any, ...]]:
        return await (await self.conn.execute(statement.encode(), named or params)).fetchall()


def outcome(job: dict[str, Any], *, failing: str = "") -> dict[str, Any]:
    """What an attempt at a step of the diamond comes to, computed of what the claim brought along."""
    ended: dict[str, Any] = {"id": job["id"], "attempted_at": job["attempted_at"]}
    step = job["step"]
    if step["name"] == failing:
        error = {"attempt": job["attempt"], "at": "2026-11-26T00:00:00+00:00", "error": "no luck"}
        return {**ended, "state": "discarded", "error": error, "reason": "no luck"}
    inputs = {name: result["value"] for name, result in (step["inputs"] or {}).items()}
    match job["args"]["step"]:
        case "tests.versions.two":
            value = 2
        case "tests.versions.double":
            value = 2 * inputs["top"]
        case _:
            value = inputs["left"] + inputs["right"]
    return {**ended, "state": "completed", "result": str(value)}
