"""Plans of the hot statements: by index on empty and on large tables, and work that does not grow with the tables."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest

from baton import _store, query, testing
from baton._engine import Outcome
from tests.kit.engine import Steps

LARGE = 200_000
TABLES = (
    "oban_jobs",
    "workflow_nodes",
    "workflow_edges",
    "workflows",
    "workflow_completions",
    "workflow_deliveries",
    "workflow_debug_logs",
    "workflow_progress",
    "workflow_streams",
    "workflow_step_stats",
)

# Old work beside what a test does: workflows of ten steps, all settled, one in a hundred of them still running.
FILL = """
INSERT INTO workflows (id, name, definition_hash, steps, unsettled, outcome, finished_at)
SELECT md5(n::text)::uuid, 'old', '', 10, 0, 'completed', now() - make_interval(secs => n)
FROM generate_series(1, {n} / 10) AS n;
INSERT INTO workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at)
SELECT id, 1, outcome, '{{}}', finished_at FROM workflows;
INSERT INTO workflow_deliveries (workflow_id, generation, consumer, due_at)
SELECT id, 1, 'old', now() + interval '1 hour' FROM workflows;
INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt) SELECT id, row_number() OVER (), 1 FROM workflows;
INSERT INTO oban_jobs (state, queue, worker, attempt, attempted_at, completed_at)
SELECT CASE WHEN n % 100 = 0 THEN 'available' ELSE 'completed' END::oban_job_state, 'old', 'W', 1, now(), now()
FROM generate_series(1, {n}) AS n;
INSERT INTO workflow_nodes (workflow_id, position, name, job_id, deps, ignore_cancelled, ignore_discarded, state, waiting_on,
                            result, settled_at, function)
SELECT md5((1 + (job.id - 1) / 10)::text)::uuid, job.id % 10, 'old' || job.id, job.id, '{{}}', false, false, 'completed', 0,
       '{{"value": null}}', now(), ''
FROM oban_jobs AS job WHERE job.queue = 'old';
INSERT INTO workflow_progress (step_id, workflow_id, attempt, attempted_at, done, chunks)
SELECT id, workflow_id, 1, now(), 1, 1 FROM workflow_nodes;
INSERT INTO workflow_streams (step_id, attempt, position, workflow_id, chunk, bytes)
SELECT id, 1, 0, workflow_id, '1', 1 FROM workflow_nodes;
INSERT INTO workflow_step_stats (id, workflow_id, workflow_label, step_id, step_name, attempt, cost_usd, price_source)
SELECT gen_random_uuid(), workflow_id, 'old', id, name, 1, 0.01, 'old' FROM workflow_nodes;
INSERT INTO workflow_edges SELECT id - 1, id FROM workflow_nodes WHERE position > 1;
ANALYZE;
"""


@contextmanager
def database(server: Any, name: str, fill: str) -> Iterator[str]:
    with testing.copy(server, name) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("SET session_replication_role = replica")
            conn.execute(fill.encode())
        yield dsn


@pytest.fixture(scope="module")
def large_dsn(_baton_server: Any) -> Iterator[str]:
    server, name = _baton_server
    with database(server, name, FILL.format(n=LARGE)) as dsn:
        yield dsn


@pytest.fixture(params=["near-empty", "large"])
async def steps(request: pytest.FixtureRequest, baton_dsn: str) -> AsyncIterator[Steps]:
    dsn = request.getfixturevalue("large_dsn") if request.param == "large" else baton_dsn
    async with Steps.opened(dsn) as steps:
        steps.audited = False
        yield steps


async def scans(steps: Steps) -> dict[str, int]:
    """Sequential scans of each table so far; those of this session are all in."""
    await steps.run("SELECT pg_stat_force_next_flush()")
    rows = await steps.rows(
        "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname = ANY(%s)", list(TABLES)
    )
    return dict(rows)


def plans(text: str) -> list[dict[str, Any]]:
    """Every node of a plan."""
    found = []

    def walk(node: dict[str, Any]) -> None:
        found.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(json.loads(text)[0]["Plan"])
    return found


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


# Settings under which the engine's functions run, to look at their statements one by one.
PINNED = re.findall(r"SET (\w+) = ([^S]+?)(?= SET|$)", _store._PINNED)


async def pinned(steps: Steps) -> Any:
    """A session with the settings of the engine's functions."""
    session = await steps.session(autocommit=True)
    for name, value in PINNED:
        if name != "search_path":
            await session.execute(f"SET {name} = {value}".encode())
    return session


HOT = {
    "claim": (
        "SELECT job.id FROM oban_jobs AS job WHERE job.state = 'available' AND job.queue = $1 AND job.attempt < "
        "job.max_attempts ORDER BY job.priority, job.scheduled_at, job.id LIMIT $2 FOR UPDATE SKIP LOCKED",
        "(text, integer)",
        "('default', 10)",
    ),
    "steps of jobs": (
        "SELECT step.id FROM unnest($1) AS job (id) JOIN workflow_nodes AS step ON step.job_id = job.id",
        "(bigint[])",
        "('{1,2,3}')",
    ),
    "workflows of steps": (
        "SELECT 1 FROM workflows AS workflow WHERE workflow.id IN (SELECT step.workflow_id FROM workflow_nodes AS step "
        "WHERE step.id = ANY($1)) ORDER BY workflow.id FOR NO KEY UPDATE",
        "(bigint[])",
        "('{1,2,3}')",
    ),
    "dependents": (
        "SELECT edge.dependent_id, count(*) FROM workflow_edges AS edge WHERE edge.dependency_id = ANY($1) GROUP BY 1",
        "(bigint[])",
        "('{1,2,3}')",
    ),
    "dependencies": (
        "SELECT dependency.result FROM workflow_edges AS edge JOIN workflow_nodes AS dependency "
        "ON dependency.id = edge.dependency_id WHERE edge.dependent_id = $1",
        "(bigint)",
        "(1)",
    ),
    "owed": ("SELECT node.id, node.job_id FROM workflow_nodes AS node WHERE node.owed LIMIT 10000", "", ""),
    "dead": (
        "SELECT job.id FROM oban_jobs AS job JOIN oban_producers AS producer "
        "ON producer.uuid = baton_claimant(job.attempted_by) "
        "WHERE job.state = 'executing' AND producer.updated_at < $1 ORDER BY job.id FOR UPDATE OF job SKIP LOCKED",
        "(timestamp)",
        "(now()::timestamp)",
    ),
    "anything available": (
        "SELECT EXISTS (SELECT FROM oban_jobs AS job WHERE job.state = 'available' AND job.queue = $1)",
        "(text)",
        "('default')",
    ),
    "key": ("SELECT id FROM workflows WHERE key = $1 AND finished_at IS NULL", "(text)", "('k')"),
}


@pytest.mark.parametrize("what", HOT)
async def test_a_hot_statement_reads_no_table_as_a_whole(steps: Steps, what: str) -> None:
    session = await pinned(steps)
    statement, types, values = HOT[what]
    await session.execute(f"PREPARE hot{types} AS {statement}".encode())
    row = await (await session.execute(f"EXPLAIN (FORMAT JSON) EXECUTE hot{values}".encode())).fetchone()
    found = plans(json.dumps(row[0]))
    for node in found:
        if node.get("Relation Name") in TABLES and "Scan" in node["Node Type"]:
            assert (
                "Index Cond" in node
                or "Recheck Cond" in node
                or node.get("Index Name") == "workflow_nodes_owed"
            ), node


READ_STEPS = {"id": "01890a5d-ac96-774b-bcce-b302099a8057", "names": ["a"]}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("read_steps", READ_STEPS),
        ("read_results", READ_STEPS),
        ("read_run", {"id": READ_STEPS["id"], "name_prefix": None}),
        ("read_dependency_results", {"step_id": 1, "names": None}),
        ("read_expired", {}),
    ],
)
async def test_a_read_by_id_uses_its_index_on_a_large_table(
    large_dsn: str, name: str, params: dict[str, Any]
) -> None:
    async with Steps.opened(large_dsn) as steps:
        steps.audited = False
        cursor = await steps.db.execute(b"EXPLAIN (FORMAT JSON) " + _text(name), params)
        row = await cursor.fetchone()
        assert row is not None
        assert [
            node["Relation Name"] for node in plans(json.dumps(row[0])) if node["Node Type"] == "Seq Scan"
        ] == []


ASKED_OF_RUNS = {
    **dict.fromkeys(("state", "name", "key", "search", "first_id", "last_id", "name_prefix", "before")),
    **dict.fromkeys(("inserted_after", "inserted_before")),
    "limit": 50,
}
ASKED_OF_STEPS = {
    **dict.fromkeys(("states", "settles", "search", "positions", "after", "place", "moment")),
    "id": READ_STEPS["id"],
    "name": None,
    "position": 3,
    "order_by": "duration",
    "characters": 100,
    "limit": 50,
    "attempt": None,
    "bytes": 1_000_000,
}
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "asked", "index"),
    [
        ("list_runs", {}, "workflows_pkey"),
        ("list_runs", {"before": "80000000-0000-7000-8000-000000000000"}, "workflows_pkey"),
        ("list_runs", {"state": "failed"}, "workflows_state"),
        ("list_runs", {"state": "completed"}, "workflows_state"),
        ("list_runs", {"name": "new"}, "workflows_name"),
        ("list_runs", {"name": "new", "state": "failed"}, "workflows_name or workflows_state"),
        ("list_runs", {"name_prefix": "new/%"}, "workflows_name"),
        ("list_runs", {"key": "k"}, "workflows_key"),
        ("list_runs", {"inserted_before": LONG_AGO}, "workflows_inserted"),
        ("list_runs", {"search": "%new%"}, "workflows_pkey"),
        ("count_runs", {"state": "completed"}, "workflows_state"),
        ("count_runs", {"state": "failed", "name": "new"}, "workflows_name or workflows_state"),
        ("find_steps", {}, "workflow_nodes_position"),
        ("find_steps", {"after": 4}, "workflow_nodes_position"),
        ("find_steps", {"states": ["executing"], "settles": ["released"]}, "workflow_nodes_position"),
        ("find_steps", {"positions": [1, 2, 3]}, "workflow_nodes_position"),
        ("find_steps_by", {}, "workflow_nodes_position"),
        ("count_steps", {}, "workflow_nodes_position"),
        ("read_graph", {}, "workflow_nodes_position"),
        ("read_jobs", {}, "workflow_nodes_position"),
        ("read_step", {}, "workflow_nodes_position"),
        ("read_step", {"name": "a"}, "workflow_nodes_name"),
        ("read_result_text", {"name": "a"}, "workflow_nodes_name"),
        ("read_dependencies", {"step_id": 3}, "workflow_edges_dependent"),
        ("read_dependents", {"step_id": 3}, "workflow_edges_pkey"),
        ("find_debug_logs", {"after": 0}, "workflow_debug_logs_workflow"),
        ("find_debug_logs", {"after": 9, "attempt": 2}, "workflow_debug_logs_workflow"),
        ("find_debug_logs_of_step", {"after": 0}, "workflow_debug_logs_step"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
async def test_a_question_is_answered_from_an_index_in_the_order_of_its_pages(
    large_dsn: str, name: str, asked: dict[str, Any], index: str
) -> None:
    async with Steps.opened(large_dsn) as steps, steps.db.transaction():
        steps.audited = False
        await steps.db.execute(query._ONE_MOMENT)
        params = {**(ASKED_OF_RUNS if "runs" in name else ASKED_OF_STEPS), **asked}
        cursor = await steps.db.execute(b"EXPLAIN (FORMAT JSON) " + _text(name), params)
        row = await cursor.fetchone()
        assert row is not None
        found = plans(json.dumps(row[0]))
        assert not [node for node in found if node["Node Type"] in ("Seq Scan", "Bitmap Heap Scan")]
        assert {node.get("Index Name") for node in found} & set(index.split(" or "))
        if name in ("list_runs", "find_steps", "find_debug_logs") and not asked.keys() & {
            "name_prefix",
            "inserted_before",
        }:
            assert not [node for node in found if "Sort" in node["Node Type"]]


def _text(name: str) -> bytes:
    text = _store.load(name)
    return text if isinstance(text, bytes) else text.encode()


async def ack(steps: Steps, outcomes: list[Outcome], demand: int) -> list[dict[str, Any]]:
    """As the engine does it, on the test's own connection, whose statistics can be had at once."""
    row = await (
        await steps.db.execute(
            "SELECT claimed FROM baton_ack(%s::jsonb, %s::text[], 'default', %s, 'test', %s, '{}', '')",
            (
                orjson.dumps([o.row() for o in outcomes]).decode(),
                [o.result for o in outcomes],
                demand,
                uuid4(),
            ),
        )
    ).fetchone()
    assert row is not None
    return [json.loads(job) for job in row[0] or []]


async def test_acks_claims_and_sweeps_scan_no_table(steps: Steps) -> None:
    branches = names("xb", 5)
    await steps.insert({"xa": [], **{branch: ["xa"] for branch in branches}, "xz": branches})
    before = await scans(steps)
    claimed, done = await ack(steps, [], 1), 0
    while claimed:
        done += len(claimed)
        outcomes = [
            Outcome(
                job["id"],
                datetime.fromisoformat(job["attempted_at"]).replace(tzinfo=UTC),
                "completed",
                result="1",
            )
            for job in claimed
        ]
        claimed = await ack(steps, outcomes, 2)
        await steps.run("SELECT baton_sweep('{}', '')")
    assert done >= 7
    assert await scans(steps) == before


async def test_a_cancel_by_oban_scans_no_table(steps: Steps) -> None:
    await steps.insert({"ca": [], "cb": ["ca"], "cc": ["cb"]})
    # Only what the trigger does is looked at: Oban's own statement may scan a job table of three rows.
    await steps.run("SET enable_seqscan = off")
    ids = [await steps.job_id("ca"), await steps.job_id("cc")]
    before = await scans(steps)
    await steps.run("UPDATE oban_jobs SET state = 'cancelled' WHERE id = ANY(%s::bigint[])", ids)
    assert await scans(steps) == before
    assert set(await steps.rows("SELECT state FROM workflow_nodes WHERE name IN ('ca', 'cb', 'cc')")) == {
        ("cancelled",)
    }


@pytest.mark.parametrize(
    "call",
    [
        "SELECT baton_pause({run})",
        "SELECT baton_resume({run})",
        "SELECT baton_cancel({run}, '{{vb}}', '', 'request')",
        "SELECT baton_cancel({run}, NULL, '', 'request')",
        "SELECT baton_cancel({run}, NULL, '', 'deadline')",
        "SELECT baton_retry({failed})",
        "SELECT baton_rerun({failed}, gen_random_uuid(), '{{fa}}')",
        "SELECT baton_cancel_many({jobs})",
        "SELECT baton_cancelled({jobs})",
        "SELECT baton_deliver('mail', NULL, 100, 60)",
        "SELECT baton_deliver(NULL, '{{code}}', 100, 60)",
        "SELECT baton_prune(100, 0, NULL)",
        "SELECT baton_prune_debug_logs(60, 100)",
        "SELECT baton_prune_stats(60, 100)",
    ],
)
async def test_a_verb_on_a_run_scans_no_table(steps: Steps, call: str) -> None:
    run = await steps.insert({"va": [], "vb": ["va"], "vc": ["vb"]}, always=["vc"])
    failed = await steps.insert({"fa": [], "fb": ["fa"]})
    jobs = await steps.value(
        "SELECT array_agg(job_id) FROM workflow_nodes WHERE workflow_id IN (%s, %s)", run, failed
    )
    await steps.run("SELECT baton_cancel(%s, NULL, '', 'request')", failed)
    await steps.run("INSERT INTO workflow_consumers VALUES ('mail') ON CONFLICT DO NOTHING")
    text = call.format(run=f"'{run}'", failed=f"'{failed}'", jobs=f"'{set(jobs)}'")
    before = await scans(steps)
    await steps.run(text)
    assert await scans(steps) == before
    await steps.run("DELETE FROM oban_jobs WHERE id = ANY(%s)", jobs)
    for table, column in (("workflow_nodes", "workflow_id"), ("workflows", "id")):
        await steps.run(f"DELETE FROM {table} WHERE {column} IN (%s, %s)", run, failed)


async def test_a_prune_that_goes_on_does_not_read_again_what_it_has_passed(large_dsn: str) -> None:
    async with Steps.opened(large_dsn) as steps:
        steps.audited = False
        last = await steps.value("SELECT max(finished_at) FROM workflows WHERE name = 'old'")
        await steps.run("SELECT baton_prune(10, 0, %s)", last)
        before = await touched(steps)
        await steps.run("SELECT baton_prune(10, 0, %s)", last)
        looked_at = await touched(steps) - before
        assert looked_at < 150, "there are 20,000 before it, on 600 pages"


async def ack_cost(steps: Steps, prefix: str, width: int) -> int:
    """Buffers touched by one ack that settles the last of `width` dependencies of one step."""
    roots = names(f"{prefix}r", width)
    await steps.insert({**{name: [] for name in roots}, f"{prefix}join": roots})
    warm, *rest = await steps.start(*roots)
    await steps.engine.ack([warm])
    await steps.engine.ack(rest[:-1])
    return await explained(steps, rest[-1:])


async def explained(steps: Steps, outcomes: list[Outcome]) -> int:
    row = await (
        await steps.db.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT baton_ack(%s::jsonb, %s::text[], '', 0, '', NULL, '{}', '')",
            (orjson.dumps([o.row() for o in outcomes]).decode(), [o.result for o in outcomes]),
        )
    ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_the_work_of_an_ack_does_not_grow_with_the_tables(baton_dsn: str, large_dsn: str) -> None:
    async with Steps.opened(baton_dsn) as small, Steps.opened(large_dsn) as large:
        large.audited = False
        # The first ack of a session also reads the catalogue.
        for steps in (small, large):
            await ack_cost(steps, "warm", 2)
        small_cost = min([await ack_cost(small, f"s{n}", 3) for n in range(3)])
        large_cost = min([await ack_cost(large, f"l{n}", 3) for n in range(3)])
    # An index of 200,000 rows is two levels higher than one of ten.
    assert large_cost < 2.5 * small_cost, (small_cost, large_cost)


async def touched(steps: Steps) -> int:
    """Pages of our tables that this session has looked at so far."""
    await steps.run("SELECT pg_stat_force_next_flush()")
    return int(
        await steps.value(
            "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read) FROM pg_statio_user_tables "
            "WHERE relname = ANY(%s)",
            list(TABLES),
        )
    )


async def cost(steps: Steps, what: str, job: int) -> int:
    """Pages that one of the engine's ways to act on a step looks at."""
    if what in ("ack", "give back", "store"):
        await steps.run(
            "UPDATE oban_jobs SET state = 'executing', attempt = 1, attempted_at = now() WHERE id = %s", job
        )
    started = await steps.value("SELECT attempted_at FROM oban_jobs WHERE id = %s", job)
    before = await touched(steps)
    match what:
        case "ack":
            await ack(steps, [Outcome(job, started.replace(tzinfo=UTC), "completed", result="1")], 0)
        case "claim":
            assert len(await ack(steps, [], 1)) == 1
        case "give back":
            await steps.run("SELECT baton_give_back(ARRAY[%s::bigint], ARRAY[%s::timestamp])", job, started)
        case "store":
            await steps.run("SELECT baton_store(%s::bigint, %s::timestamp, '', '1')", job, started)
        case "sweep":
            await steps.run("SELECT baton_sweep('{}', '')")
        case "delete":
            await steps.run("DELETE FROM oban_jobs WHERE id = %s", job)
        case _:
            await steps.run("UPDATE oban_jobs SET state = %s::oban_job_state WHERE id = %s", what, job)
    return await touched(steps) - before


@pytest.mark.parametrize(
    "what", ["ack", "claim", "give back", "store", "sweep", "completed", "cancelled", "discarded", "delete"]
)
async def test_work_does_not_grow_with_what_was_inserted_since_its_plan_was_made(
    baton_dsn: str, what: str
) -> None:
    async with Steps.opened(baton_dsn) as steps:
        roots = names("r", 12)
        await steps.insert({**{name: [] for name in roots}, **{f"{name}d": [name] for name in roots}})
        jobs = [await steps.job_id(name) for name in roots]
        # The generic plans are made now, of tables that are nearly empty.
        small = min([await cost(steps, what, job) for job in jobs[:6]])
        others = names("other", 3000)
        await steps.insert({**{name: [] for name in others}, "join": others})
        large = min([await cost(steps, what, job) for job in jobs[6:]])
        assert large < 2.5 * small + 10, (small, large)


async def test_the_work_of_a_batch_is_less_than_that_of_its_acks_one_by_one(baton_dsn: str) -> None:
    async with Steps.opened(baton_dsn) as steps:
        roots = names("r", 100)
        await steps.insert({**{name: [] for name in roots}, "join": roots})
        outcomes = await steps.start(*roots)
        await explained(steps, outcomes[:1])
        single = await explained(steps, outcomes[1:2])
        batch = await explained(steps, outcomes[2:92])
        assert batch < 0.75 * 90 * single, (single, batch)
        await steps.engine.ack(outcomes[92:])


async def test_an_update_that_changes_no_state_costs_plain_jobs_one_look_each(baton_dsn: str) -> None:
    async with Steps.opened(baton_dsn) as steps:
        await steps.run("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 20000)")
        await steps.run("ANALYZE oban_jobs")
        before = await scans(steps)
        row = await (
            await steps.db.execute("EXPLAIN (ANALYZE, FORMAT JSON) UPDATE oban_jobs SET priority = 1")
        ).fetchone()
        assert row is not None
        (trigger,) = row[0][0]["Triggers"]
        assert trigger["Calls"] == 1
        after = await scans(steps)
        assert after["workflow_nodes"] == before["workflow_nodes"]


async def test_every_function_that_is_called_from_outside_has_its_plans_pinned(baton_dsn: str) -> None:
    texts = "".join(text for _, text in _store.functions())
    # Each is named once where it is made, and once more where another calls it. Python calls this one, too.
    entries = {name for name, _ in _store.functions() if len(re.findall(rf"baton_{name}\b", texts)) == 1} | {
        "store"
    }
    assert {"ack", "insert", "store_call", "sweep", "on_jobs_updated"} <= entries
    async with Steps.opened(baton_dsn) as steps:
        config = dict(
            await steps.rows("SELECT proname, proconfig FROM pg_proc WHERE proname LIKE 'baton\\_%%'")
        )
        for name in entries:
            for setting in ("plan_cache_mode=force_generic_plan", "enable_seqscan=off", "jit=off"):
                assert setting in config[f"baton_{name}"], name
