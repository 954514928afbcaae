"""What `baton.query` answers: pages, filters, counts, one step, bounds; and the views, for whoever may read them."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from baton import Baton, RunState, Workflow, step
from baton._names import uuid7
from tests.kit.reused import Reused


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
    ids=lambda value: ", ".join(value) or "nothing" if isinstance(value, dict) else None,
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
