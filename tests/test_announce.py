"""What the engine tells those who follow: of which steps, in which words, and nothing where nobody listens."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection

from baton._engine import Outcome
from tests.kit.engine import Steps

ALL = "workflow:all"
SILENT = """CREATE OR REPLACE FUNCTION baton_announce(p_steps bigint[]) RETURNS void LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'out of order' USING ERRCODE = '{code}'; END $$"""


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


class Ear:
    """A session that listens, and what it has heard since it was last asked."""

    def __init__(self, session: AsyncConnection, steps: Steps) -> None:
        self._session = session
        self._steps = steps

    async def raw(self) -> list[str]:
        await self._session.execute("SELECT pg_notify('mark', '')")
        found = []
        async for notification in self._session.notifies(timeout=10):
            if notification.channel == "mark":
                return found
            found.append(notification.payload)
        raise AssertionError("the mark never came")

    async def named(self) -> dict[str, set[str] | None]:
        """Names of the steps that were told of, by the run's id; None where it is to be read anew."""
        names = dict(await self._steps.rows("SELECT id, name FROM workflow_nodes"))
        found: dict[str, set[str] | None] = {}
        for payload in map(json.loads, await self.raw()):
            known = found.setdefault(payload["id"], set())
            told = payload.get("steps")
            found[payload["id"]] = (
                None if told is None or known is None else known | {names[id_] for id_ in told}
            )
        return found


@pytest.fixture
async def ear(steps: Steps) -> Ear:
    session = await steps.session(autocommit=True)
    await session.execute('LISTEN "public.oban_workflow"; LISTEN mark')
    return Ear(session, steps)


async def listen(steps: Steps, topic: str | UUID, seconds: int = 60) -> None:
    await steps.run(
        "INSERT INTO workflow_subscribers VALUES (%s, gen_random_uuid(), now() + %s * interval '1 second')",
        topic if isinstance(topic, str) else f"workflow:{topic}",
        seconds,
    )


async def test_nobody_is_told_where_nobody_follows(steps: Steps, ear: Ear) -> None:
    quiet, watched = await steps.insert({"q": []}), await steps.insert({"w": []})
    await listen(steps, watched)
    await listen(steps, quiet, seconds=-1)
    await steps.finish("q", "w")
    assert await ear.named() == {str(watched): {"w"}}
    await listen(steps, ALL, seconds=-1)
    await steps.run("UPDATE oban_jobs SET priority = 1")
    assert await ear.named() == {str(watched): {"w"}}


async def test_whoever_follows_all_is_told_of_every_run_once(steps: Steps, ear: Ear) -> None:
    await listen(steps, ALL)
    first, second = await steps.insert({"a": []}), await steps.insert({"b": []})
    assert await ear.named() == {str(first): set(), str(second): set()}
    await listen(steps, first)
    await steps.start("a", "b")
    told = sorted((json.loads(payload) for payload in await ear.raw()), key=str)
    expected = [
        {"id": str(first), "steps": await ids(steps, "a")},
        {"id": str(second), "steps": await ids(steps, "b")},
    ]
    assert told == sorted(expected, key=str)


async def ids(steps: Steps, *names: str) -> list[int]:
    return [
        id_
        for (id_,) in await steps.rows(
            "SELECT id FROM workflow_nodes WHERE name = ANY(%s) ORDER BY 1", list(names)
        )
    ]


async def test_each_change_of_a_job_is_told_whoever_makes_it(steps: Steps, ear: Ear) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"]})
    await listen(steps, run)

    (outcome,) = await steps.start("a")
    assert await ear.named() == {str(run): {"a"}}, "a claim"
    again = Outcome(
        outcome.job_id, outcome.attempted_at, "retryable", delay=0.0, error={"attempt": 1, "error": "no"}
    )
    await steps.engine.ack([again])
    assert await ear.named() == {str(run): {"a"}}, "a failure"
    oban = await steps.oban()
    await oban.retry_job(outcome.job_id)
    assert await ear.named() == {str(run): {"a"}}, "Oban's retry"
    await steps.finish("a")
    assert await ear.named() == {str(run): {"a", "b"}}, "an end, and what it releases"
    await steps.run("UPDATE oban_jobs SET state = 'discarded' WHERE id = %s", await steps.job_id("b"))
    assert await ear.named() == {str(run): {"b", "c"}}, "a DBA, and what was doomed by it"


async def test_a_step_that_waits_for_one_less_is_told_of(steps: Steps, ear: Ear) -> None:
    run = await steps.insert({"a": [], "b": [], "c": ["a", "b"]})
    await listen(steps, run)
    await steps.finish("a")
    assert await ear.named() == {str(run): {"a", "c"}}


async def test_a_settled_step_without_a_job_is_told_of(steps: Steps, ear: Ear) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await listen(steps, run)
    await steps.run("DELETE FROM oban_jobs WHERE id = %s", await steps.job_id("a"))
    assert await ear.named() == {str(run): {"a", "b"}}


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retry"])
async def test_a_verb_is_told_to_whoever_follows_its_run(steps: Steps, ear: Ear, verb: str) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    if verb == "retry":
        await steps.finish("a", state="discarded")
    if verb == "resume":
        await steps.engine.pause(run)
    if verb == "cancel":
        await steps.start("a")
    await listen(steps, run)
    if verb == "cancel":
        await steps.engine.cancel(run, None, "enough")
        assert await ear.named() == {str(run): {"a", "b"}}, "the step that was asked to end as well"
        return
    await getattr(steps.engine, verb)(run)
    told = await ear.named()
    assert told == {str(run): None if verb == "retry" else {"a"}}


async def test_a_new_run_is_told_to_whoever_follows_all_also_if_nothing_of_it_starts(
    steps: Steps, ear: Ear
) -> None:
    await listen(steps, ALL)
    empty = await steps.insert({})
    assert await ear.named() == {str(empty): set()}
    run = await steps.insert({"a": []})
    await steps.finish("a")
    await ear.named()
    new = uuid4()
    await steps.engine.rerun(run, new, None)
    assert await ear.named() == {str(new): None}


async def test_what_is_rolled_back_is_not_told(steps: Steps, ear: Ear) -> None:
    run = await steps.insert({"a": []})
    await listen(steps, run)
    dba = await steps.session()
    await dba.execute("UPDATE oban_jobs SET state = 'completed'")
    assert await ear.raw() == [], "nor before its commit"
    await dba.rollback()
    assert await ear.raw() == []


async def test_many_steps_are_told_in_parts_that_fit_and_very_many_by_their_run(
    steps: Steps, ear: Ear
) -> None:
    wide = {"root": [], **{f"s{n}": ["root"] for n in range(2_000)}}
    # As long as ids get.
    await steps.value("SELECT setval(pg_get_serial_sequence('workflow_nodes', 'id'), 9000000000000000000)")
    run = await steps.insert(wide)
    await listen(steps, run)
    await steps.finish("root")
    told = await ear.raw()
    assert max(map(len, told)) < 8_000
    assert {id_ for payload in told for id_ in json.loads(payload)["steps"]} == {
        id_ for (id_,) in await steps.rows("SELECT id FROM workflow_nodes")
    }
    await steps.run(
        "SELECT baton_announce(array_agg(id) || array_agg(id) || array_agg(id) || array_agg(id) || array_agg(id) "
        "|| array_agg(id)) FROM workflow_nodes"
    )
    assert [json.loads(payload) for payload in await ear.raw()] == [{"id": str(run)}]


async def test_of_very_many_runs_none_is_named_to_whoever_follows_all(steps: Steps, ear: Ear) -> None:
    watched = uuid4()
    await listen(steps, ALL)
    await listen(steps, watched)
    runs: list[Any] = [watched, *(uuid4() for _ in range(1_000))]
    await steps.run("SELECT baton_announce_runs(%s::uuid[], true)", runs)
    assert sorted((json.loads(payload) for payload in await ear.raw()), key=str) == [
        {"id": str(watched)},
        {"id": None},
    ]


@pytest.mark.parametrize("code", ["P0001", "54000"])
async def test_a_statement_does_not_fail_because_followers_cannot_be_told(
    steps: Steps, ear: Ear, code: str
) -> None:
    run = await steps.insert({"a": [], "b": []})
    await listen(steps, run)
    await steps.run(SILENT.format(code=code))
    await steps.run("UPDATE oban_jobs SET priority = 1")
    assert await ear.raw() == []
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", await steps.job_id("a"))
    assert await steps.rows("SELECT sqlstate FROM workflow_repairs") == [(code,)], (
        "settling is repaired later"
    )
    steps.audited = False


async def test_an_error_of_nobodys_fault_reaches_whoever_made_the_change(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await listen(steps, run)
    await steps.run(SILENT.format(code="55P03"))
    with pytest.raises(Exception, match="out of order"):
        await steps.run("UPDATE oban_jobs SET priority = 1")
