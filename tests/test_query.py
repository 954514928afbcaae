"""What `baton.query` answers: pages, filters, counts, one step, bounds; and the views, for whoever may read them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from baton import Baton, RunState, StepPage, StepState, Workflow, migration, query, step
from baton._names import uuid7, workflow_key
from baton.errors import (
    InvalidName,
    InvalidOption,
    NoResult,
    NotStarted,
    QueryTimeout,
    ResultNotFound,
    RunNotFound,
    SchemaConflict,
)
from tests.kit.hostile import NAMES
from tests.kit.reused import Reused
from tests.kit.spent import spend

NOWHERE = "01890a5d-ac96-774b-bcce-b302099a8057"


@step(name="tests.query.echo", max_attempts=2, backoff=lambda _: 0)
async def echo(value: Any) -> Any:
    return value


@step(name="tests.query.fails", max_attempts=2, backoff=lambda _: 0)
async def fails(message: str) -> None:
    raise ValueError(message)


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    """One that inserts and reads, and runs nothing."""
    async with Baton(baton_dsn, poll_interval=0.05) as client:
        yield client


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 5}) as worker:
        yield worker


async def rows(dsn: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(sql.encode(), params or None)
        return await cursor.fetchall() if cursor.description else []


def chain(name: str = "chain", length: int = 3, *, key: str | None = None) -> Workflow:
    workflow = Workflow(name, key=key)
    for n in range(length):
        workflow.add(f"s{n}", echo.new(n), deps=[f"s{n - 1}"] if n else [])
    return workflow


RUNS = """
INSERT INTO workflows (id, name, key, definition_hash, steps, unsettled, failed, outcome, inserted_at, finished_at)
SELECT id, name, key, '', 1, CASE WHEN state = 'executing' THEN 1 ELSE 0 END, CASE WHEN state = 'failed' THEN 1 ELSE 0 END,
       NULLIF(state, 'executing'), at, CASE WHEN state <> 'executing' THEN at END
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::timestamptz[]) AS run (id, name, key, state, at)
"""


async def runs(dsn: str, *given: tuple[str, str | None, str, datetime]) -> list[str]:
    """Runs without steps, oldest first: name, key, state, and when they were inserted. Returns their ids."""
    ids = [uuid7() for _ in given]
    await rows(dsn, RUNS, sorted(ids), *(list(column) for column in zip(*given, strict=True)))
    return [str(one) for one in sorted(ids)]


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def some_runs(dsn: str) -> list[str]:
    return await runs(
        dsn,
        ("import", "k1", "completed", NOON),
        ("import", "k1", "failed", NOON + timedelta(hours=1)),
        ("Export 100%", None, "executing", NOON + timedelta(hours=2)),
        ("import_daily", "k1", "executing", NOON + timedelta(hours=3)),
    )


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [3, 2, 1, 0]),
        ({"state": "executing"}, [3, 2]),
        ({"state": RunState.FAILED}, [1]),
        ({"state": ["completed", RunState.FAILED, "failed"]}, [1, 0]),
        ({"state": []}, []),
        ({"name": "import"}, [1, 0]),
        ({"name": "impor_"}, []),
        ({"name": ""}, []),
        ({"key": "k1"}, [3, 1, 0]),
        ({"key": "k1", "state": "executing", "name": "import_daily"}, [3]),
        ({"search": "IMPORT"}, [3, 1, 0]),
        ({"search": ""}, [3, 2, 1, 0]),
        ({"search": "K1"}, [3, 1, 0]),
        ({"search": "0%"}, [2]),
        ({"search": "%"}, [2]),
        ({"search": "t_d"}, [3]),
        ({"search": "\\"}, []),
        ({"name_prefix": "import"}, [3, 1, 0]),
        ({"name_prefix": "import_"}, [3]),
        ({"name_prefix": "mport"}, []),
        ({"name_prefix": "Export 100%", "search": "x"}, [2]),
        ({"inserted_after": NOON + timedelta(hours=1)}, [3, 2, 1]),
        ({"inserted_before": NOON + timedelta(hours=1)}, [0]),
        ({"inserted_after": NOON, "inserted_before": NOON + timedelta(hours=3)}, [2, 1, 0]),
        ({"limit": 2}, [3, 2]),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
async def test_runs_are_listed_by_what_is_asked_and_counted_alike(
    client: Baton, baton_dsn: str, asked: dict[str, Any], found: list[int]
) -> None:
    ids = await some_runs(baton_dsn)
    listed = await client.query.list_runs(**asked)
    assert [ids.index(run.id) for run in listed] == found
    asked.pop("limit", None)
    counts = await client.query.count_runs(**asked)
    assert {state: count for state, count in counts.items() if count} == {
        state: count
        for state in RunState
        if (count := [run.state for run in await client.query.list_runs(**asked)].count(state))
    }


async def test_pages_of_runs_have_each_once(client: Baton, baton_dsn: str) -> None:
    ids = await some_runs(baton_dsn)
    for asked in ({}, {"state": ["executing", "completed", "failed"]}, {"search": "o"}):
        found: list[str] = []
        while page := await client.query.list_runs(
            limit=1, before=UUID(found[-1]) if found else None, **asked
        ):
            found += [run.id for run in page]
        assert found == ids[::-1]


async def test_a_run_is_found_by_the_beginning_of_its_id(client: Baton, baton_dsn: str) -> None:
    (id_,) = await runs(baton_dsn, ("hello", None, "executing", NOON))
    for length in (1, 8, 9, 13, 20, 36):
        for text in (id_[:length], id_[:length].upper()):
            assert [run.id for run in await client.query.list_runs(search=text)] == [id_], text
    for text in (id_[1:], id_[:8].replace("-", "") + id_[9:10], f"{id_}-", "f" + id_[1:], "-"):
        assert await client.query.list_runs(search=text) == [], text


async def test_no_more_runs_are_counted_than_asked_for(client: Baton, baton_dsn: str) -> None:
    await runs(baton_dsn, *[("many", None, "failed", NOON)] * 5, ("one", None, "executing", NOON))
    assert await client.query.count_runs(limit=3) == {
        RunState.EXECUTING: 1,
        RunState.COMPLETED: 0,
        RunState.FAILED: 3,
        RunState.CANCELLED: 0,
    }
    assert await client.query.count_runs(state="failed", limit=5) == {RunState.FAILED: 5}


async def test_a_hostile_text_finds_what_has_it_and_nothing_else(client: Baton, baton_dsn: str) -> None:
    kept = []
    for name in NAMES:
        try:
            await client.insert(Workflow(f"<{workflow_key(name)}>", key=name))
        except InvalidName:
            continue
        kept.append(name)
    assert len(kept) > 20
    for name in kept:
        (run,) = await client.query.list_runs(key=name)
        assert run.key == name
        for asked in ({"name": run.name}, {"name_prefix": run.name}, {"search": run.name}):
            assert [found.key for found in await client.query.list_runs(**asked)] == [name], asked
    for text in NAMES:
        for option in ("name", "key", "search", "name_prefix"):
            try:
                found = await client.query.list_runs(**{option: text})  # type: ignore[arg-type]
            except InvalidOption:
                assert len(text) > 200 or "\0" in text or "\ud800" in text
            else:
                assert all(text.lower() in f"{one.name} {one.key}".lower() for one in found)


REFUSED: list[Callable[[query.Query, str], Awaitable[object]]] = [
    lambda q, _: q.list_runs(limit=0),
    lambda q, _: q.list_runs(limit=1001),
    lambda q, _: q.list_runs(limit=True),
    lambda q, _: q.list_runs(state="held"),
    lambda q, _: q.list_runs(state=["completed", None]),
    lambda q, _: q.list_runs(state=3),
    lambda q, _: q.list_runs(name=3),
    lambda q, _: q.list_runs(search="x" * 201),
    lambda q, _: q.list_runs(key="nul\0"),
    lambda q, _: q.list_runs(name_prefix="\ud800"),
    lambda q, _: q.list_runs(before="nonsense"),
    lambda q, _: q.list_runs(inserted_after=datetime(2026, 1, 1)),
    lambda q, _: q.list_runs(inserted_before="2026-01-01"),
    lambda q, _: q.count_runs(limit=10_001),
    lambda q, run: q.list_steps(run, limit=0),
    lambda q, run: q.list_steps(run, state="unheard of"),
    lambda q, run: q.list_steps(run, order_by="name"),
    lambda q, run: q.list_steps(run, order_by=["position"]),
    lambda q, run: q.list_steps(run, after="3"),
    lambda q, run: q.list_steps(run, after="position~-3"),
    lambda q, run: q.list_steps(run, after="position~3~1.0~2026-01-01"),
    lambda q, run: q.list_steps(run, after="duration~3~1.0~2026-01-01"),
    lambda q, run: q.list_steps(run, order_by="duration", after="position~3"),
    lambda q, run: q.list_steps(run, order_by="duration", after="duration~3~x~2026-01-01"),
    lambda q, run: q.list_steps(run, order_by="duration", after="duration~3~1.0~'; DROP TABLE x"),
    lambda q, run: q.list_steps(run, order_by="duration", after="duration~3~1.0~9999-12-31T23:59:59-14:00"),
    lambda q, run: q.list_steps(run, after=3),
    lambda q, run: q.list_steps(run, positions=[-1]),
    lambda q, run: q.list_steps(run, positions=["1"]),
    lambda q, run: q.list_steps(run, positions=range(100_001)),
    lambda q, run: q.list_steps(run, positions=5),
    lambda q, run: q.list_runs(search=5),
    lambda q, run: q.count_runs(search=b"x"),
    lambda q, run: q.list_runs(name_prefix=None),
    lambda q, run: q.get_run(run, name_prefix=None),
    lambda q, run: q.get_workflow_jobs(run, limit=10_001),
    lambda q, run: q.get_workflow_jobs(run, after="x"),
    lambda q, run: q.get_workflow_jobs(run, after=999_999),
    lambda q, run: q.get_step(run, True),
    lambda q, run: q.get_step(run, -1),
    lambda q, run: q.get_step(run, 2**31),
    lambda q, run: q.get_step(run, None),
    lambda q, run: q.get_step(run, "s0", characters=0),
    lambda q, run: q.get_step(run, "s0", neighbours=1001),
    lambda q, run: q.list_debug_logs(run, limit=101),
    lambda q, run: q.list_debug_logs(run, after=-1),
    lambda q, run: q.list_debug_logs(run, after=False),
    lambda q, run: q.list_debug_logs(run, attempt=0),
    lambda q, run: q.list_debug_logs(run, -1),
]


@pytest.mark.parametrize("ask", REFUSED, ids=range(len(REFUSED)))
async def test_what_cannot_be_asked_is_refused_with_what_can(
    client: Baton, ask: Callable[[query.Query, str], Awaitable[object]]
) -> None:
    run = await client.insert(chain())
    with pytest.raises(InvalidOption) as refused:
        await ask(client.query, run.id)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isascii()


ABOUT_A_RUN: dict[str, Callable[..., Awaitable[Any]]] = {
    "get_run": query.Query.get_run,
    "get_workflow_jobs": query.Query.get_workflow_jobs,
    "list_steps": query.Query.list_steps,
    "count_steps": query.Query.count_steps,
    "get_step": lambda q, run, **scope: q.get_step(run, "s0", **scope),
    "read_result_text": lambda q, run, **scope: q.read_result_text(run, "s0", **scope),
    "read_stream": lambda q, run, **scope: q.read_stream(run, "s0", **scope),
    "read_graph": query.Query.read_graph,
    "list_debug_logs": query.Query.list_debug_logs,
}


@pytest.mark.parametrize("name", ABOUT_A_RUN)
async def test_a_run_that_is_not_there_or_is_somebody_elses_is_not_found(worker: Baton, name: str) -> None:
    ask = ABOUT_A_RUN[name]
    run = await worker.insert(chain("ac_me/chain"))
    await run.wait(timeout=10)
    for wrong in (NOWHERE, uuid4(), "nonsense", "", "\0", None, f"{run.id}'"):
        with pytest.raises(RunNotFound):
            await ask(worker.query, wrong)
    for scope in ("acme/", "ac_me/chain2", "c_me", "%", "ac%"):
        with pytest.raises(RunNotFound):
            await ask(worker.query, run.id, name_prefix=scope)
    for scope in ("", "ac_me/", "ac_me/chain"):
        assert await ask(worker.query, run.id, name_prefix=scope)


def test_every_question_can_be_narrowed_to_a_tenant() -> None:
    questions = {name for name in vars(query.Query) if not name.startswith("_")}
    assert questions == {*ABOUT_A_RUN, "list_runs", "count_runs"}


async def test_nothing_is_asked_before_the_start(baton_dsn: str) -> None:
    stopped = Baton(baton_dsn)
    with pytest.raises(NotStarted):
        _ = stopped.query
    async with stopped:
        asked = stopped.query
    with pytest.raises(NotStarted):
        await asked.list_runs()


# --- how it is read -------------------------------------------------------------------------------


async def test_a_question_that_takes_too_long_is_given_up(
    client: Baton, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await client.insert(chain())
    monkeypatch.setattr(query, "_ONE_MOMENT", query._ONE_MOMENT.replace(b"'2s'", b"'20ms'"))
    async with await AsyncConnection.connect(baton_dsn) as busy:
        await busy.execute("LOCK TABLE workflows IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(QueryTimeout, match="the list of runs took longer than 2 seconds"):
            await client.query.list_runs()
        with pytest.raises(QueryTimeout, match=f"run {run.id} took longer"):
            await client.query.count_steps(run.id)
    # The connection is as it was.
    assert [found.id for found in await client.query.list_runs()] == [run.id]
    async with client._connection() as conn:
        assert await (await conn.execute("SHOW statement_timeout")).fetchone() == ("0",)


async def test_a_question_cannot_write_and_sees_one_moment(
    client: Baton, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await client.insert(chain())
    async with client.query._reading_run(run.id, "") as (conn, _):
        await rows(baton_dsn, "DELETE FROM workflow_nodes")
        cursor = await conn.execute("SELECT count(*) FROM workflow_nodes")
        assert await cursor.fetchone() == (3,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with conn.transaction():
                await conn.execute("DELETE FROM workflows")


# --- steps ----------------------------------------------------------------------------------------

# State of the step, of its job (None: pruned), whether that is due, and what users see.
STATES: list[tuple[str, str | None, bool, StepState]] = [
    ("held", "suspended", True, StepState.HELD),
    ("released", "suspended", True, StepState.AVAILABLE),
    ("released", "suspended", False, StepState.SCHEDULED),
    ("released", "scheduled", False, StepState.SCHEDULED),
    ("released", "available", True, StepState.AVAILABLE),
    ("released", "executing", True, StepState.EXECUTING),
    ("released", "retryable", False, StepState.RETRYABLE),
    ("released", None, True, StepState.CANCELLED),
    ("completed", "completed", True, StepState.COMPLETED),
    ("completed", None, True, StepState.COMPLETED),
    ("cancelled", "cancelled", True, StepState.CANCELLED),
    ("discarded", "discarded", True, StepState.DISCARDED),
    ("skipped", "cancelled", True, StepState.SKIPPED),
]

STEPS = """
WITH given AS (
  SELECT * FROM unnest(%(steps)s::text[], %(jobs)s::text[], %(due)s::boolean[]) WITH ORDINALITY AS given (step, job, due, place)
), jobs AS (
  INSERT INTO oban_jobs (id, state, queue, worker, args, attempt, attempted_at, scheduled_at)
  OVERRIDING SYSTEM VALUE
  SELECT place, job::oban_job_state, 'default', 'W', '{}', 1, timezone('UTC', now()) - make_interval(secs => place),
         timezone('UTC', now()) + CASE WHEN due THEN interval '-1 hour' ELSE interval '1 hour' END
  FROM given WHERE job IS NOT NULL
), run AS (
  INSERT INTO workflows (id, name, definition_hash, steps, unsettled) VALUES (%(id)s, 'states', '', %(count)s, %(count)s)
)
INSERT INTO workflow_nodes (workflow_id, position, name, function, job_id, deps, ignore_cancelled, ignore_discarded, state,
                            waiting_on, result, started_at, settled_at)
SELECT %(id)s, place, 's' || place, CASE WHEN place %% 2 = 0 THEN 'app.Even' ELSE 'app.odd' END, place, '{}', false, false,
       step, CASE WHEN step = 'held' THEN 1 ELSE 0 END, CASE WHEN step = 'completed' THEN '{"value": 1}'::jsonb END,
       CASE WHEN step NOT IN ('held', 'released', 'skipped') THEN now() - make_interval(secs => place) END,
       CASE WHEN step NOT IN ('held', 'released') THEN now() END
FROM given
"""


async def placed(dsn: str, states: list[tuple[str, str | None, bool, StepState]]) -> str:
    """A run with a step in each of these states, at positions from 1."""
    run = uuid7()
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("SET session_replication_role = replica")
        columns = dict(
            zip(("steps", "jobs", "due"), map(list, zip(*[s[:3] for s in states], strict=True)), strict=True)
        )
        await conn.execute(STEPS.encode(), {"id": run, "count": len(states), **columns})
    return str(run)


async def test_whoever_is_asked_says_the_same_state(client: Baton, baton_dsn: str) -> None:
    run = await placed(baton_dsn, STATES)
    expected = {f"s{place}": state for place, (*_, state) in enumerate(STATES, 1)}
    assert (await client.get_run(run).status()).states() == expected
    assert {step.name: step.state for step in (await client.query.list_steps(run)).steps} == expected
    assert (await client.query.read_graph(run)).states == expected
    assert dict(await rows(baton_dsn, "SELECT name, state FROM baton_steps")) == expected
    assert {name: (await client.query.get_step(run, name)).status.state for name in expected} == expected
    for state in StepState:
        found = await client.query.list_steps(run, state=state)
        assert {step.name for step in found.steps} == {name for name, s in expected.items() if s is state}, (
            state
        )
        for order in ("started_at", "duration"):
            found = await client.query.list_steps(run, state=state, order_by=order)  # type: ignore[arg-type]
            assert {step.name for step in found.steps} == {name for name, s in expected.items() if s is state}
    counts = await client.query.count_steps(run)
    assert counts == {state: list(expected.values()).count(state) for state in StepState}
    assert list(counts) == list(StepState)


async def every(client: Baton, run: str, **asked: Any) -> list[str]:
    """Names of the steps on all pages of two."""
    found: list[str] = []
    page = StepPage((), "")
    while page.next is not None:
        page = await client.query.list_steps(run, limit=2, after=page.next or None, **asked)
        assert len(page.steps) == 2 or page.next is None
        found += [step.name for step in page.steps]
    return found


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        ({}, range(1, 14)),
        ({"state": ["completed", "cancelled"]}, [8, 9, 10, 11]),
        ({"search": "S1"}, [1, 10, 11, 12, 13]),
        ({"search": "even"}, range(2, 14, 2)),
        ({"search": "%"}, []),
        ({"search": "app_"}, []),
        ({"positions": [3, 1, 3, 99]}, [1, 3]),
        ({"positions": []}, []),
        ({"state": []}, []),
        ({"positions": range(9, 12), "state": "completed", "search": "odd"}, [9]),
        # Of what has begun, the last began first; what has not begun comes last: a held one, one without a job, a skipped one.
        ({"order_by": "started_at"}, [12, 11, 10, 9, 7, 6, 5, 4, 3, 2, 1, 8, 13]),
        ({"order_by": "duration"}, [12, 11, 10, 9, 6, 1, 2, 3, 4, 5, 7, 8, 13]),
        ({"order_by": "duration", "state": "executing"}, [6]),
        ({"order_by": "started_at", "positions": [1, 5, 13]}, [5, 1, 13]),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
async def test_steps_are_listed_by_what_is_asked_on_pages(
    client: Baton, baton_dsn: str, asked: dict[str, Any], places: list[int]
) -> None:
    run = await placed(baton_dsn, STATES)
    assert await every(client, run, **asked) == [f"s{place}" for place in places]


async def test_a_running_step_is_not_passed_over_though_its_duration_grows(
    client: Baton, baton_dsn: str
) -> None:
    run = await placed(baton_dsn, [STATES[8], STATES[5]])
    # The one that has settled took a little longer than the other has been running for.
    await rows(
        baton_dsn,
        "UPDATE workflow_nodes SET started_at = settled_at - interval '2.5 seconds' WHERE name = 's1'",
    )
    page = await client.query.list_steps(run, order_by="duration", limit=1)
    assert [step.name for step in page.steps] == ["s1"]
    assert page.next is not None
    # Ten seconds pass.
    await rows(
        baton_dsn,
        "UPDATE workflow_nodes SET started_at = started_at - interval '10 seconds', "
        "settled_at = settled_at - interval '10 seconds'",
    )
    await rows(baton_dsn, "UPDATE oban_jobs SET attempted_at = attempted_at - interval '10 seconds'")
    *where, moment = page.next.split("~")
    earlier = datetime.fromisoformat(moment) - timedelta(seconds=10)
    page = await client.query.list_steps(
        run, order_by="duration", limit=1, after="~".join([*where, earlier.isoformat()])
    )
    assert [step.name for step in page.steps] == ["s2"]
    assert page.next is None


async def test_steps_of_runs_inserted_together_keep_apart(client: Baton) -> None:
    first, second = await client.insert_many([chain("a"), chain("b", 5)])
    page = await client.query.list_steps(second.id)
    assert [step.name for step in page.steps] == ["s0", "s1", "s2", "s3", "s4"]
    for found in page.steps:
        assert (await client.query.get_step(second.id, found.position)).status.name == found.name
    graph = await client.query.read_graph(second.id)
    assert graph.name == "b"
    assert graph.deps == {"s0": (), "s1": ("s0",), "s2": ("s1",), "s3": ("s2",), "s4": ("s3",)}
    assert graph.positions == {step.name: step.position for step in page.steps}
    assert set(graph.functions.values()) == {"tests.query.echo"}
    assert await client.query.count_steps(first.id) == {StepState.HELD: 2, StepState.AVAILABLE: 1}
    empty = await client.insert(Workflow("empty"))
    assert await client.query.count_steps(empty.id) == {}
    assert await client.query.list_steps(empty.id) == StepPage((), None)


async def test_jobs_come_in_the_order_of_the_steps_on_pages(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(chain(length=5))
    jobs = await client.query.get_workflow_jobs(run.id)
    assert [job.meta["workflow_name"] for job in jobs] == ["s0", "s1", "s2", "s3", "s4"]
    assert [job.args for job in jobs] == [
        {"step": "tests.query.echo", "args": {"value": n}} for n in range(5)
    ]
    assert {str(job.scheduled_at.tzinfo) for job in jobs if job.scheduled_at} == {"UTC"}
    found = []
    page = await client.query.get_workflow_jobs(run.id, limit=2)
    while page:
        found += [job.id for job in page]
        page = await client.query.get_workflow_jobs(run.id, limit=2, after=found[-1])
    assert found == [job.id for job in jobs]

    await rows(
        baton_dsn, f"SET session_replication_role = replica; DELETE FROM oban_jobs WHERE id = {found[1]}"
    )
    left = await client.query.get_workflow_jobs(run.id)
    assert [job.id for job in left] == [found[0], *found[2:]], "pruned ones are left out"
    after = await client.query.get_workflow_jobs(run.id, after=found[1])
    assert [job.id for job in after] == found[2:], "a page may begin after one that was pruned"
    other = await client.insert(chain())
    with pytest.raises(InvalidOption, match="no job of run"):
        await client.query.get_workflow_jobs(other.id, after=found[0])


# --- one step -------------------------------------------------------------------------------------


async def test_a_step_has_its_arguments_its_result_and_its_neighbours(worker: Baton) -> None:
    workflow = Workflow("detail")
    first = workflow.add("first", echo.new({"rows": [{"score": "é🎉"}]}))
    workflow.add("second", echo.new([1, first.result["rows"][0]["score"]]))
    workflow.add("third", echo.new(None), deps=["second", "first"])
    run = await worker.insert(workflow)
    await run.wait(timeout=10)

    detail = await worker.query.get_step(run.id, "second")
    assert detail == await worker.query.get_step(run.id, detail.status.position)
    assert detail.status == (await run.status()).step("second")
    assert detail.arguments == '{"value": [1, null]}'
    assert detail.references == {"value[1]": 'first.result["rows"][0]["score"]'}
    assert detail.result == '[1, "é🎉"]'
    assert detail.result_size == 9
    assert detail.worker == "baton.StepWorker"
    assert detail.node
    assert detail.attempts == ()
    assert [(one.name, one.state) for one in detail.dependencies] == [("first", "completed")]
    assert [(one.name, one.state) for one in detail.dependents] == [("third", "completed")]

    first_detail = await worker.query.get_step(run.id, first)
    assert first_detail.dependencies == ()
    assert first_detail.dependencies_count == 0
    assert first_detail.dependents_count == 2
    assert first_detail.dependents[0] == query.Neighbour(
        detail.status.position, "second", StepState.COMPLETED
    )
    one = await worker.query.get_step(run.id, first, neighbours=1)
    assert (one.dependents, one.dependents_count) == (first_detail.dependents[:1], 2)

    third = await worker.query.get_step(run.id, "third")
    assert (third.result, third.result_size) == ("null", 4)
    assert await worker.query.read_result_text(run.id, "third") == "null"
    for wrong in ("fourth", "", "\0", "first'", 99):
        for ask in (worker.query.get_step, worker.query.read_result_text):
            with pytest.raises(ResultNotFound):
                await ask(run.id, wrong)  # type: ignore[operator]


async def test_what_attempts_raised_is_kept_with_its_traceback(worker: Baton, baton_dsn: str) -> None:
    workflow = Workflow("fails")
    workflow.add("only", fails.new("no luck"))
    run = await worker.insert(workflow)
    assert await run.wait(timeout=10) == "failed"
    detail = await worker.query.get_step(run.id, "only")
    assert [attempt.attempt for attempt in detail.attempts] == [1, 2]
    assert detail.attempts_failed == 2
    for attempt in detail.attempts:
        assert "Traceback" in attempt.error
        assert attempt.error.rstrip().endswith("ValueError: no luck")
        assert attempt.at is not None
        assert attempt.at.utcoffset() == timedelta(0)
    assert (detail.result, detail.result_size) == (None, None)
    with pytest.raises(NoResult, match="'only'"):
        await worker.query.read_result_text(run.id, "only")
    cut = await worker.query.get_step(run.id, "only", characters=5)
    assert [attempt.error for attempt in cut.attempts] == [detail.attempts[0].error[:5]] * 2


async def test_errors_that_anybody_wrote_into_a_job_are_shown_as_far_as_they_go(
    client: Baton, baton_dsn: str
) -> None:
    run = await client.insert(chain(length=1))
    await rows(
        baton_dsn,
        """UPDATE oban_jobs SET errors = (
             SELECT jsonb_agg(jsonb_build_object('attempt', n, 'at', '2026-01-01T00:00:00', 'error', n::text))
             FROM generate_series(1, 30) AS n
           ) || '[{}, null, 3, {"at": "noon", "attempt": "x", "error": {"a": 1}}]'""",
    )
    detail = await client.query.get_step(run.id, "s0")
    assert detail.attempts_failed == 34
    assert [attempt.attempt for attempt in detail.attempts] == [*range(15, 31), 0, 0, 0, 0]
    assert detail.attempts[0] == query.FailedAttempt(15, datetime(2026, 1, 1, tzinfo=UTC), "15")
    assert [(attempt.at, attempt.error) for attempt in detail.attempts[-4:]] == [(None, "")] * 3 + [
        (None, '{"a": 1}')
    ]
    for errors in ("'{}'", "'3'", "'null'"):
        await rows(baton_dsn, f"UPDATE oban_jobs SET errors = {errors}")
        assert (await client.query.get_step(run.id, "s0")).attempts == ()


async def test_long_texts_are_cut_by_characters_and_their_sizes_are_told(worker: Baton) -> None:
    workflow = Workflow("long")
    workflow.add("only", echo.new("🎉" * 50_000))
    run = await worker.insert(workflow)
    await run.wait(timeout=10)
    detail = await worker.query.get_step(run.id, "only")
    assert detail.result == '"' + "🎉" * 19_999
    assert detail.result_size == 50_002
    assert detail.arguments == '{"value": "' + "🎉" * 19_989
    assert detail.arguments_size == 50_013
    assert await worker.query.read_result_text(run.id, "only") == '"' + "🎉" * 50_000 + '"'


async def test_a_step_whose_job_is_pruned_keeps_what_is_its_own(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain())
    await run.wait(timeout=10)
    await rows(baton_dsn, "DELETE FROM oban_jobs")
    detail = await worker.query.get_step(run.id, "s1")
    assert (detail.status.state, detail.result) == (StepState.COMPLETED, "1")
    assert (detail.arguments, detail.arguments_size, detail.worker, detail.node) == (None, None, None, None)
    assert (detail.attempts, dict(detail.references)) == ((), {})
    assert [one.name for one in detail.dependencies] == ["s0"]
    assert (await worker.query.read_graph(run.id)).deps["s1"] == ("s0",)


# --- a large run ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_run_of_100_000_steps_is_read_page_by_page_and_counted(client: Baton, baton_dsn: str) -> None:
    run = await placed(baton_dsn, STATES[:1] + STATES[4:6] * 49_999 + STATES[-1:])
    page = await client.query.list_steps(run, after="position~99990", limit=1000)
    assert [step.position for step in page.steps] == list(range(99_991, 100_001))
    assert page.next is None
    page = await client.query.list_steps(run, state="executing", order_by="duration", limit=2)
    assert [step.position for step in page.steps] == [99_999, 99_997]
    assert await client.query.count_steps(run) == {
        StepState.HELD: 1,
        StepState.AVAILABLE: 49_999,
        StepState.EXECUTING: 49_999,
        StepState.SKIPPED: 1,
    }
    assert len((await client.query.read_graph(run)).deps) == 100_000
    assert len(await client.query.get_workflow_jobs(run)) == 10_000
    positions = range(50_000, 90_000)
    page = await client.query.list_steps(run, positions=positions, limit=1)
    assert [step.position for step in page.steps] == [50_000]


# --- views ----------------------------------------------------------------------------------------

# Public: a column is never changed nor taken away, and a new one comes at the end.
VIEWS = {
    "baton_workflows": "workflow_id uuid, name text, key text, state text, generation int4, steps int4, unsettled int4, "
    "failed int4, inserted_at timestamptz, finished_at timestamptz, duration_seconds float8, paused_at timestamptz, "
    "cancel_requested_at timestamptz, cancel_reason text, deadline_at timestamptz, rerun_of uuid",
    "baton_steps": "workflow_id uuid, workflow_name text, step_id int8, position int4, name text, state text, function text, "
    "queue text, attempt int4, max_attempts int4, waiting_on int4, runs_on text, has_result bool, error text, "
    "scheduled_at timestamptz, started_at timestamptz, settled_at timestamptz, duration_seconds float8, lag_seconds float8, "
    "node text, job_id int8, progress_done float8, progress_total float8, progress_message text",
    "baton_edges": "workflow_id uuid, dependency_id int8, dependency text, dependent_id int8, dependent text",
    "baton_llm_calls": "call_id uuid, called_at timestamptz, workflow_id uuid, workflow_name text, step_id int8, step text, "
    "attempt int4, call_key text, provider text, model text, service_tier text, input_tokens int8, output_tokens int8, "
    "cache_read_tokens int8, cache_write_tokens int8, reasoning_tokens int8, latency_seconds float8, cost_usd numeric, "
    "price_source text, price_version text, units jsonb",
}


@pytest.mark.parametrize("view", VIEWS)
async def test_a_view_has_the_columns_that_were_promised(baton_dsn: str, view: str) -> None:
    found = await rows(
        baton_dsn,
        "SELECT string_agg(column_name || ' ' || udt_name, ', ' ORDER BY ordinal_position) "
        "FROM information_schema.columns WHERE table_name = %s",
        view,
    )
    assert found == [(VIEWS[view],)]


async def test_the_views_say_what_the_library_says(worker: Baton, baton_dsn: str) -> None:
    run = await worker.insert(chain("views", key="k"))
    await run.wait(timeout=10)
    summary = await run.summary()
    found = await rows(
        baton_dsn,
        "SELECT workflow_id::text, name, key, state, generation, steps, unsettled, failed, inserted_at, finished_at, "
        "paused_at, rerun_of FROM baton_workflows",
    )
    assert found == [
        (run.id, "views", "k", "completed", 1, 3, 0, 0, summary.inserted_at, summary.finished_at, None, None)
    ]
    status = await run.status()
    found = await rows(
        baton_dsn,
        "SELECT name, workflow_name, position, state, function, queue, attempt, max_attempts, waiting_on, has_result, error, "
        "started_at, settled_at, job_id, scheduled_at FROM baton_steps ORDER BY position",
    )
    assert found == [
        (
            *(
                one.name,
                "views",
                one.position,
                one.state,
                one.function,
                one.queue,
                one.attempt,
                one.max_attempts,
            ),
            *(
                one.waiting_on,
                one.has_result,
                one.error,
                one.started_at,
                one.settled_at,
                one.job_id,
                one.scheduled_at,
            ),
        )
        for one in status.steps
    ]
    assert await rows(baton_dsn, "SELECT dependency, dependent FROM baton_edges ORDER BY dependent") == [
        ("s0", "s1"),
        ("s1", "s2"),
    ]
    seconds = await rows(baton_dsn, "SELECT duration_seconds, lag_seconds FROM baton_steps ORDER BY position")
    assert [duration for duration, _ in seconds] == pytest.approx([one.seconds for one in status.steps])
    for step_, before, (_, lag) in zip(status.steps[1:], status.steps, seconds[1:], strict=False):
        assert step_.started_at is not None
        assert before.settled_at is not None
        assert lag == pytest.approx(max((step_.started_at - before.settled_at).total_seconds(), 0), abs=1e-3)


async def test_a_step_waits_in_its_queue_since_it_could_run(client: Baton, baton_dsn: str) -> None:
    await placed(baton_dsn, STATES)
    found = dict(await rows(baton_dsn, "SELECT name, lag_seconds FROM baton_steps"))
    assert found["s1"] is None, "held"
    assert found["s5"] == pytest.approx(3600, abs=60), "due an hour ago, and available"
    assert found["s6"] == pytest.approx(3594, abs=1), "it waited until it began"
    assert found["s7"] == 0, "to be retried in an hour"
    assert found["s10"] is None, "its job is gone"


@pytest.fixture
async def reader(baton_dsn: str) -> AsyncIterator[str]:
    """Connection string of a role that may read the views."""
    role = f"reader_{uuid4().hex[:8]}"
    await rows(baton_dsn, f"CREATE ROLE {role} LOGIN")
    try:
        await migration.up(baton_dsn, grant_read=[role])
        yield baton_dsn.replace("postgres@", f"{role}@")
    finally:
        await rows(baton_dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_reader_may_read_the_views_and_nothing_else(
    client: Baton, baton_dsn: str, reader: str
) -> None:
    run = await client.insert(chain())
    assert await rows(reader, "SELECT name, state FROM baton_workflows") == [("chain", "executing")]
    assert await rows(
        reader, "SELECT name, state, lag_seconds >= 0 FROM baton_steps WHERE name <> 's2' ORDER BY 1"
    ) == [
        ("s0", "available", True),
        ("s1", "held", None),
    ]
    assert len(await rows(reader, "SELECT * FROM baton_edges")) == 2
    await spend(baton_dsn, run.id, "s0", "0.25", latency_ms=1_500.0, input_tokens=10)
    assert await rows(
        reader,
        "SELECT workflow_name, step, model, input_tokens, cost_usd::text, latency_seconds FROM baton_llm_calls",
    ) == [("chain", "s0", "gpt-5", 10, "0.25", 1.5)]
    relations = await rows(
        reader,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S')",
    )
    assert len(relations) > 12
    for (relation,) in relations:
        if relation not in VIEWS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await rows(reader, f"SELECT * FROM {relation}")
    for view in VIEWS:
        for statement in (f"DELETE FROM {view}", f"UPDATE {view} SET workflow_id = workflow_id"):
            with pytest.raises(psycopg.Error) as refused:
                await rows(reader, statement)
            assert isinstance(
                refused.value,
                (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState),
            )
    functions = await rows(
        reader,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'baton%%' "
        "AND has_function_privilege(oid, 'EXECUTE')",
    )
    assert functions == []


async def test_a_reader_keeps_its_rights_when_the_views_are_replaced(baton_dsn: str, reader: str) -> None:
    await rows(baton_dsn, "UPDATE workflow_migrations SET name = 'another build' WHERE version = 0")
    await migration.up(baton_dsn)
    assert await rows(reader, "SELECT * FROM baton_workflows") == []
    with pytest.raises(InvalidOption, match="cannot be granted to"):
        await migration.up(baton_dsn, grant_read=['x" TO public; --'])


async def test_a_view_that_is_gone_is_made_again_and_one_that_is_there_is_left_alone(baton_dsn: str) -> None:
    await rows(baton_dsn, "DROP VIEW baton_steps")
    async with await AsyncConnection.connect(baton_dsn) as looking:
        # It could not be replaced now.
        await looking.execute("SELECT * FROM baton_edges")
        assert await migration.up(baton_dsn) == []
    assert await rows(baton_dsn, "SELECT * FROM baton_steps") == []


async def test_a_table_with_a_views_name_is_refused_and_left_alone(baton_dsn: str) -> None:
    await migration.down(baton_dsn)
    assert await rows(baton_dsn, "SELECT to_regclass('baton_steps')") == [(None,)]
    await rows(baton_dsn, "CREATE TABLE baton_steps (mine text)")
    with pytest.raises(SchemaConflict, match="baton_steps"):
        await migration.up(baton_dsn)
    assert await rows(baton_dsn, "SELECT mine FROM baton_steps") == []


async def test_the_views_of_another_schema_show_its_rows(baton_dsn: str) -> None:
    await migration.up(baton_dsn, prefix="jobs")
    async with Baton(baton_dsn, prefix="jobs") as other:
        run = await other.insert(chain())
        assert (await other.query.list_runs(search="CHAIN"))[0].id == run.id
        assert await other.query.count_steps(run.id) == {StepState.HELD: 2, StepState.AVAILABLE: 1}
        assert (await other.query.get_step(run.id, "s1")).dependencies[0].name == "s0"
    assert await rows(baton_dsn, "SELECT count(*) FROM jobs.baton_steps") == [(3,)]
    assert await rows(baton_dsn, "SELECT count(*) FROM baton_steps") == [(0,)]
