"""Why nothing is happening: each reason is brought about for real, and is what is said."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from baton import Baton, Budget, Explanation, Reason, Run, RunExplanation, StepState, Workflow, step
from baton.errors import InvalidOption, ResultNotFound, RunNotFound
from baton.why import Facts, explain
from tests.kit.hostile import NAMES
from tests.kit.reused import Reused
from tests.kit.wait import eventually
from tests.test_cli import _OBEYED
from tests.test_cli import baton as command


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


_told: dict[str, asyncio.Event] = {}


@step(name="tests.why.good")
async def good(value: Any = None) -> Any:
    return value


@step(name="tests.why.stuck")
async def stuck(key: str) -> None:
    while not _told[key].is_set():
        try:
            await _told[key].wait()
        except asyncio.CancelledError:
            continue


@step(name="tests.why.bad", max_attempts=3, backoff=lambda attempt: 3600)
async def bad() -> None:
    raise ValueError("no luck")


@step(name="tests.why.hopeless", max_attempts=1)
async def hopeless() -> None:
    raise ValueError("no hope")


def one(job: Any) -> Workflow:
    workflow = Workflow("one")
    workflow.add("only", job)
    return workflow


def two() -> Workflow:
    workflow = Workflow("two")
    workflow.add("first", good.new())
    workflow.add("second", good.new(), deps=["first"])
    return workflow


@asynccontextmanager
async def at_work(dsn: str, **queues: int) -> AsyncIterator[Baton]:
    """A worker; what is stuck is told to end when the test is over."""
    async with Baton(dsn, queues=queues or {"default": 2}, poll_interval=0.05) as worker:
        try:
            yield worker
        finally:
            for event in _told.values():
                event.set()
            _told.clear()


async def begun(worker: Baton, name: str = "only") -> Run:
    """A run whose step has begun and does not end before the test does."""
    key = uuid4().hex
    _told[key] = asyncio.Event()
    workflow = Workflow("stuck")
    workflow.add(name, stuck.new(key=key))
    run = await worker.insert(workflow)
    await until(run, name, Reason.RUNNING)
    return run


async def until(run: Run, name: str, reason: Reason) -> Explanation:
    async def look() -> Explanation | None:
        found = await run.why(name)
        return found if reason in reasons(found) else None

    return await eventually(look, timeout=30)


def reasons(found: Explanation) -> list[Reason]:
    return [cause.reason for cause in found.causes]


def change(dsn: str, sql: str, *params: object, unseen: bool = False) -> None:
    """Do what somebody else might; `unseen` by the triggers."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        if unseen:
            conn.execute("SET session_replication_role = replica")
        conn.execute(sql.encode(), params or None)


# --- one test for each reason -------------------------------------------------------------------------


async def test_settled(baton_dsn: str) -> None:
    async with at_work(baton_dsn) as worker:
        workflow = Workflow("three")
        workflow.add("told", good.new())
        workflow.add("lost", hopeless.new())
        workflow.add("never", good.new(), deps=["lost"])
        run = await worker.insert(workflow)
        await run.wait(timeout=30)
        found = {name: await run.why(name) for name in ("told", "lost", "never")}
    assert {name: reasons(each) for name, each in found.items()} == {name: [Reason.SETTLED] for name in found}
    assert found["told"].state is StepState.COMPLETED
    assert "it completed at 20" in found["told"].text
    assert found["lost"].text.endswith("ValueError: no hope")
    assert "was cancelled" in found["never"].text
    assert "'lost' was discarded" in found["never"].text
    assert found["told"].since is not None


async def test_job_gone(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        change(baton_dsn, "DELETE FROM oban_jobs", unseen=True)
        found = await run.why("only")
    assert reasons(found) == [Reason.JOB_GONE]
    assert found.queue == ""


@pytest.mark.parametrize(
    ("name", "state"), [("first", "completed"), ("first", "suspended"), ("second", "available")]
)
async def test_out_of_step(baton_dsn: str, name: str, state: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(two())
        change(
            baton_dsn,
            "UPDATE oban_jobs SET state = %s::oban_job_state WHERE meta ->> 'workflow_name' = %s",
            state,
            name,
            unseen=True,
        )
        found = await run.why(name)
    assert reasons(found) == [Reason.OUT_OF_STEP]
    assert f"its job is {state}" in found.text


async def test_out_of_step_is_also_what_could_start_though_its_run_is_paused(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        await run.pause()
        change(baton_dsn, "UPDATE oban_jobs SET state = 'available'", unseen=True)
        assert (await run.why("only")).reason is Reason.OUT_OF_STEP


async def test_running_and_then_cancelling(baton_dsn: str) -> None:
    async with at_work(baton_dsn) as worker:
        run = await begun(worker)
        found = await run.why("only")
        assert reasons(found) == [Reason.RUNNING]
        assert found.node == worker.oban._node
        assert f"on node {found.node}, attempt 1 of 20" in found.text
        await run.cancel(reason="not wanted")
        found = await run.why("only")
        assert reasons(found) == [Reason.CANCELLING, Reason.RUNNING]
        assert "(not wanted) and still runs" in found.text


@pytest.mark.parametrize(
    ("silent", "meta", "gone"),
    [(None, "{}", True), (120, "{}", True), (10, "{}", False), (10, '{"baton": {"rescue_after": 5}}', True)],
    ids=["no row", "a silent one", "a living one", "silent for longer than it said"],
)
async def test_process_gone(baton_dsn: str, silent: int | None, meta: str, gone: bool) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        process = uuid4()
        change(
            baton_dsn,
            "UPDATE oban_jobs SET state = 'executing', attempt = 1, attempted_by = ARRAY['n1', %s::text], "
            "attempted_at = timezone('UTC', now()) - interval '3 min'",
            process,
        )
        if silent is not None:
            change(
                baton_dsn,
                "INSERT INTO oban_producers (uuid, node, queue, meta, updated_at) "
                "VALUES (%s, 'n1', 'default', %s::jsonb, timezone('UTC', now()) - make_interval(secs => %s))",
                process,
                meta,
                silent,
            )
        assert reasons(await run.why("only")) == [Reason.RUNNING, *[Reason.PROCESS_GONE] * gone]


async def test_run_paused(baton_dsn: str) -> None:
    async with at_work(baton_dsn) as worker:
        run = await worker.insert(two())
        await worker.oban.pause_queue("default")
        again = await worker.insert(two())
        await again.pause()
        found = await again.why("first")
        assert found.reason is Reason.RUN_PAUSED
        assert found.since is not None
        held = await again.why("second")
        assert reasons(held)[:2] == [Reason.RUN_PAUSED, Reason.DEPENDENCIES]
        assert Reason.RUN_PAUSED not in reasons(await run.why("second"))


async def test_budget_exhausted(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        workflow = two()
        workflow.budgets = (Budget(usd="0.5", calls=0, on_exhausted="pause"),)
        run = await client.insert(workflow)
        change(baton_dsn, "SELECT baton_pause_for(workflow_id, id, NULL, 0, true) FROM workflow_budgets")
        found = await run.why("first")
        assert found.reason is Reason.BUDGET_EXHAUSTED
        assert reasons(await run.why("second"))[:2] == [Reason.BUDGET_EXHAUSTED, Reason.DEPENDENCIES]
        assert found.since is not None
        assert "by the run's budget, which has too little left for its next call" in found.text
        assert "($0.00 of $0.50 spent; 0 of 0 calls spent)" in found.text
        assert "baton budget add" in found.text


async def test_dependencies(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        workflow = Workflow("many")
        for n in range(60):
            workflow.add(f"s{n}", good.new())
        workflow.add("last", good.new(), deps=[f"s{n}" for n in range(60)])
        workflow.add("few", good.new(), deps=["s1", "s0"])
        run = await client.insert(workflow)
        change(baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE meta ->> 'workflow_name' = 's0'")
        found = await run.why("last")
        assert found.reason is Reason.DEPENDENCIES
        assert (found.waiting_on, len(found.waits_for)) == (59, 50)
        assert "s50 and 9 more" in found.text
        few = await run.why("few")
        assert few.waits_for == ("s1",)
        assert few.causes[0].text == "it waits for s1"


async def test_release_owed(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(two())
        with psycopg.connect(baton_dsn) as other:
            other.execute("SELECT FROM oban_jobs WHERE meta ->> 'workflow_name' = 'second' FOR UPDATE")
            change(
                baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE meta ->> 'workflow_name' = 'first'"
            )
            found = await run.why("second")
        assert found.reason is Reason.RELEASE_OWED
        assert found.state is StepState.AVAILABLE


async def test_exhausted(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        change(baton_dsn, "UPDATE oban_jobs SET attempt = max_attempts")
        found = await run.why("only")
    assert reasons(found) == [Reason.EXHAUSTED, Reason.NO_WORKER]
    assert (found.attempt, found.max_attempts) == (20, 20)


async def test_parked(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        change(
            baton_dsn,
            "UPDATE oban_jobs SET state = 'scheduled', scheduled_at = timezone('UTC', now()) + interval '90 s', "
            "meta = meta || jsonb_build_object('parked', 'no step shop.pay in version 7')",
        )
        found = await run.why("only")
    assert found.reason is Reason.PARKED
    assert "shop.pay in version 7" in found.text
    assert "UTC (in 1 min)" in found.text
    assert found.until is not None


async def test_retry(baton_dsn: str) -> None:
    async with at_work(baton_dsn) as worker:
        run = await worker.insert(one(bad.new()))
        found = await until(run, "only", Reason.RETRY)
    assert reasons(found) == [Reason.RETRY]
    assert "attempt 1 of 3 failed: ValueError: no luck; the next is due 20" in found.text
    assert found.until is not None
    assert found.until > datetime.now(UTC)


async def test_scheduled(baton_dsn: str) -> None:
    at = datetime.now(UTC) + timedelta(days=3, hours=2, minutes=30)
    workflow = Workflow("later", scheduled_at=at)
    workflow.add("only", good.new())
    async with Baton(baton_dsn) as client:
        run = await client.insert(workflow)
        found = await run.why("only")
        assert reasons(found) == [Reason.SCHEDULED, Reason.NO_WORKER]
        assert found.until is not None
        assert abs(found.until - at) < timedelta(milliseconds=1)
        assert f"{at:%Y-%m-%d %H:%M:%S} UTC (in 3 d 2 h)" in found.text
        change(baton_dsn, "UPDATE oban_jobs SET scheduled_at = timezone('UTC', now()) - interval '1 min'")
        due = await run.why("only")
        assert (due.reason, due.until) == (Reason.SCHEDULED, None)
        assert "now, since 20" in due.text


async def test_no_worker(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client, at_work(baton_dsn, other=1):
        run = await client.insert(one(good.new()))
        found = await run.why("only")
        assert reasons(found) == [Reason.NO_WORKER]
        assert "no worker serves queue default" in found.text
        # One that gave no sign for long counts as none.
        change(
            baton_dsn,
            "INSERT INTO oban_producers (uuid, node, queue, updated_at) "
            "VALUES (gen_random_uuid(), 'dead', 'default', timezone('UTC', now()) - interval '2 min')",
        )
        assert reasons(await run.why("only")) == [Reason.NO_WORKER]


async def test_queue_paused(baton_dsn: str) -> None:
    async with at_work(baton_dsn) as worker:
        await worker.oban.pause_queue("default")
        await until(await worker.insert(one(good.new())), "only", Reason.QUEUE_PAUSED)


async def test_queue_full(baton_dsn: str) -> None:
    async with at_work(baton_dsn, default=1) as worker:
        await begun(worker)
        await worker.insert(one(good.new()))
        run = await worker.insert(one(good.new()))
        found = await run.why("only")
        assert reasons(found) == [Reason.QUEUE_FULL]
        assert "is full: 1 jobs run, its limit is 1; 1 job waits before this one" in found.text


async def test_next(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        with psycopg.connect(baton_dsn) as other:
            # Nobody can claim it.
            other.execute("SELECT FROM oban_jobs FOR UPDATE")
            async with at_work(baton_dsn):
                found = await run.why("only")
                assert reasons(found) == [Reason.NEXT]
                assert "no jobs wait before it" in found.text
                other.rollback()
                assert (await until(run, "only", Reason.SETTLED)).state is StepState.COMPLETED


def test_each_reason_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals()}
    assert {str(reason) for reason in Reason} - tested == {"running", "cancelling"}
    assert "running_and_then_cancelling" in tested


# --- a whole run --------------------------------------------------------------------------------------


async def test_a_run_explains_what_has_not_settled_beginning_with_what_could_run(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        workflow = Workflow("mixed")
        workflow.add("held", good.new(), deps=["ready"])
        workflow.add("done", good.new())
        workflow.add("ready", good.new())
        run = await client.insert(workflow)
        change(baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE meta ->> 'workflow_name' = 'done'")
        found = await run.why()
        assert [step.step for step in found.steps] == ["ready", "held"]
        assert found.run.unsettled == 2
        assert [step.step for step in (await run.why(limit=1)).steps] == ["ready"]
        for limit in (0, 1001):
            with pytest.raises(InvalidOption, match="limit"):
                await run.why(limit=limit)


def test_of_a_large_run_fifty_steps_are_explained(baton_dsn: str) -> None:
    workflow = Workflow("large")
    workflow.add("root", good.new())
    for n in range(3000):
        workflow.add(f"s{n}", good.new(), deps=["root"])

    async def look() -> tuple[Run, RunExplanation]:
        async with Baton(baton_dsn) as client:
            run = await client.insert(workflow)
            return run, await run.why()

    run, found = asyncio.run(look())
    assert (len(found.steps), found.run.unsettled) == (50, 3001)
    assert found.steps[0].step == "root"
    told = command("why", run.id, "--dsn", baton_dsn).stdout
    assert "and 2,951 more that have not ended" in told
    assert len(told.splitlines()) == 53


async def test_what_is_not_there_is_an_error(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        run = await client.insert(one(good.new()))
        for name in ("nope", *NAMES):
            if "\x00" not in name and "\ud800" not in name:
                with pytest.raises(ResultNotFound, match="has no step"):
                    await run.why(name)
        unknown = client.get_run(uuid4())
        for name in (None, "only"):
            with pytest.raises(RunNotFound, match="there is no run"):
                await unknown.why(name)


# --- the command --------------------------------------------------------------------------------------


async def inserted(dsn: str, workflow: Workflow) -> Run:
    async with Baton(dsn) as client:
        return await client.insert(workflow)


def test_the_command_says_a_cause_a_line(baton_dsn: str) -> None:
    run = asyncio.run(inserted(baton_dsn, two()))
    lines = command("why", run.id, "second", "--dsn", baton_dsn).stdout.splitlines()
    assert lines[0].endswith("second  held")
    assert lines[1] == "  it waits for first"
    assert "no worker serves queue default" in lines[2]
    listed = command("why", run.id, "--dsn", baton_dsn).stdout
    assert "it waits for first" in listed
    assert listed.index("first") < listed.index("second")


def test_the_command_speaks_json(baton_dsn: str) -> None:
    run = asyncio.run(inserted(baton_dsn, two()))
    found = json.loads(command("why", run.id, "second", "--dsn", baton_dsn, "--json").stdout)
    assert [cause["reason"] for cause in found["causes"]] == ["dependencies", "no_worker"]
    assert found["waits_for"] == ["first"]
    whole = json.loads(command("why", run.id, "--dsn", baton_dsn, "--json").stdout)
    assert whole["run"]["id"] == run.id
    assert [each["step"] for each in whole["steps"]] == ["first", "second"]


def test_the_command_has_nothing_to_say_of_a_finished_run(baton_dsn: str) -> None:
    run = asyncio.run(inserted(baton_dsn, Workflow("empty")))
    assert "nothing of it is left to happen" in command("why", run.id, "--dsn", baton_dsn).stdout


def test_the_command_refuses_what_is_not_there(baton_dsn: str) -> None:
    run = asyncio.run(inserted(baton_dsn, one(good.new())))
    assert "no step 'nope'" in command("why", run.id, "nope", "--dsn", baton_dsn, code=2).stderr
    assert "there is no run" in command("why", uuid4(), "--dsn", baton_dsn, code=2).stderr
    assert "no run's id" in command("why", "x", "--dsn", baton_dsn, code=2).stderr


def test_names_and_texts_of_others_cannot_command_a_terminal(baton_dsn: str) -> None:
    names = [name for name in NAMES if "\x00" not in name and "\ud800" not in name and len(name) <= 1000]
    workflow = Workflow("hostile")
    for n in range(len(names)):
        workflow.add(f"s{n}", good.new())
    workflow.add("last", good.new(), deps=[f"s{n}" for n in range(len(names))])
    run = asyncio.run(inserted(baton_dsn, workflow))
    change(
        baton_dsn,
        "UPDATE oban_jobs SET state = 'scheduled', scheduled_at = timezone('UTC', now()) + interval '1 h', "
        "queue = 'q' || given.name, meta = meta || jsonb_build_object('parked', given.name) "
        "FROM unnest(%s::text[]) WITH ORDINALITY AS given (name, place) WHERE meta ->> 'workflow_name' = 's' || place - 1",
        names,
    )
    change(
        baton_dsn,
        "UPDATE workflow_nodes SET name = given.name FROM unnest(%s::text[]) WITH ORDINALITY AS given (name, place) "
        "WHERE workflow_nodes.name = 's' || place - 1",
        names,
    )
    for arguments in ([], ["last"], ["\x1b[31mred\x1b[0m"]):
        assert not _OBEYED.search(command("why", run.id, *arguments, "--dsn", baton_dsn).stdout)
    text = command("why", run.id, "--dsn", baton_dsn, "--json").stdout
    assert not _OBEYED.search(text)
    found = json.loads(text)["steps"]
    assert [each["step"] for each in found] == [*names, "last"]
    assert found[-1]["waits_for"] == names


def test_facts_without_an_error_or_a_time_are_put_into_words_too() -> None:
    now = datetime(2026, 9, 1, tzinfo=UTC)
    facts = Facts(
        step="s",
        settles="released",
        owed=False,
        waiting_on=0,
        waits_for=[],
        settled_at=None,
        cancel_requested_at=None,
        cancel_reason=None,
        error=None,
        paused_at=None,
        job="retryable",
        queue="q",
        attempt=1,
        max_attempts=2,
        scheduled_at=None,
        attempted_at=None,
        node="",
        parked=None,
        no_room=None,
        process_known=False,
        workers=1,
        paused_workers=0,
        room=1,
        executing=0,
        ahead=0,
        now=now,
    )
    assert explain(facts).text == "attempt 1 of 2 failed; the next is due now, since an unknown time"
