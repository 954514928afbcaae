"""Captured calls: where they are asked for, what is stored of them, and that no secret is."""

import psycopg
import pytest

from baton import Baton, Workflow, step
from baton.errors import InvalidOption
from tests.kit import fixtures

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db


@step(name="tests.capture.nothing")
async def nothing() -> None:
    pass


async def captured(db: psycopg.AsyncConnection, run: str) -> dict[str, bool]:
    cursor = await db.execute("SELECT name, debug FROM workflow_nodes WHERE workflow_id = %s", (run,))
    return dict(await cursor.fetchall())


# --- where it is asked for --------------------------------------------------------------------------


async def test_a_workflow_says_that_its_steps_are_captured(
    baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    plain, debugged = Workflow("plain"), Workflow("debugged", debug=True)
    for workflow in (plain, debugged):
        workflow.add("a", nothing.new())
        workflow.add("b", nothing.new(), deps=["a"])
    async with Baton(baton_dsn) as baton:
        first, second = await baton.insert_many([plain, debugged])
    assert await captured(db, first.id) == {"a": False, "b": False}
    assert await captured(db, second.id) == {"a": True, "b": True}


async def test_a_rerun_is_captured_as_its_run_was(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    workflow = Workflow("debugged", debug=True)
    workflow.add("a", nothing.new())
    workflow.add("b", nothing.new(), deps=["a"])
    async with Baton(baton_dsn, queues={"default": 2}) as baton:
        run = await baton.insert(workflow)
        await run.wait(timeout=10)
        again = await run.rerun(from_="b")
        await again.wait(timeout=10)
    assert await captured(db, again.id) == {"a": True, "b": True}


def test_that_a_run_is_captured_is_no_part_of_its_definition() -> None:
    assert Workflow("same", debug=True).definition_hash == Workflow("same").definition_hash


def test_debug_is_a_flag() -> None:
    with pytest.raises(InvalidOption, match="debug='yes' is no bool"):
        Workflow(debug="yes")  # type: ignore[arg-type]
