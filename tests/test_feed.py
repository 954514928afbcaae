"""Following runs: one reader for many subscribers, what is read when, and what is kept for whom."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import AsyncConnection

from baton import Baton, RunChange, StepState, Workflow, step
from baton.errors import NotStarted, RunNotFound
from tests.kit.wait import eventually


@step(name="tests.feed.double")
async def double(n: int) -> int:
    return 2 * n


def chain(length: int = 2, name: str = "chain") -> Workflow:
    workflow = Workflow(name)
    value: Any = 1
    for n in range(length):
        value = workflow.add(f"s{n}", double.new(value)).result
    return workflow


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn) as client:
        yield client


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"default": 10}) as worker:
        yield worker


async def sql(dsn: str, text: str, *params: Any) -> list[tuple[Any, ...]]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(text.encode(), params or None)
        return await cursor.fetchall() if cursor.description else []


async def next_of[T](news: AsyncIterator[T]) -> T:
    async with asyncio.timeout(10):
        return await anext(news)


async def test_who_follows_a_run_is_told_all_of_it_first_and_then_what_changes(worker: Baton) -> None:
    run = await worker.insert(chain(3))
    seen: dict[str, list[StepState]] = {f"s{n}": [] for n in range(3)}
    async with run.changes() as changes:
        first = await next_of(changes)
        assert [step.name for step in first.steps] == ["s0", "s1", "s2"]
        last: RunChange = first
        while last.run.finished_at is None:
            last = await next_of(changes)
            for each in last.steps:
                seen[each.name].append(each.state)
    assert last.run.state == "completed"
    assert all(states[-1] == StepState.COMPLETED for states in seen.values())


async def test_what_cannot_be_followed_is_refused_on_entering(client: Baton, baton_dsn: str) -> None:
    nobody = client.get_run("01890a5d-ac96-774b-bcce-b302099a8057")
    with pytest.raises(RunNotFound):
        async with nobody.changes():
            pass
    run = await client.insert(chain())
    with pytest.raises(NotStarted, match="async with"):
        await anext(run.changes())
    changes = run.changes()
    async with changes:
        await next_of(changes)  # type: ignore[arg-type]
    with pytest.raises(NotStarted, match="async with"):
        await anext(changes)  # type: ignore[call-overload]
    await client.stop()
    with pytest.raises(NotStarted):
        async with run.changes():
            pass
    assert await sql(baton_dsn, "SELECT topic FROM workflow_subscribers") == []


async def test_who_leaves_gives_up_the_lease(client: Baton, baton_dsn: str) -> None:
    run = await client.insert(chain())
    async with run.changes() as changes:
        await next_of(changes)
        assert await sql(baton_dsn, "SELECT topic FROM workflow_subscribers") == [(f"workflow:{run.id}",)]

    async def given_up() -> bool:
        return await sql(baton_dsn, "SELECT topic FROM workflow_subscribers") == []

    await eventually(given_up)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("baton-feed")]
