"""Feeds: one reader for many subscribers, what is read when, and what no subscriber can do to another."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncCursor

from baton import Baton, StepState, Workflow, step
from baton.errors import NotStarted
from tests.kit import crew
from tests.kit.engine import Steps
from tests.kit.following import leases, next_of, rest_of, sql, until, words
from tests.kit.gate import Gate
from tests.kit.processes import Witness, Worker
from tests.kit.wait import eventually


@step(name="tests.feed.double")
async def double(n: int) -> int:
    return 2 * n


def fan_out(width: int) -> Workflow:
    workflow = Workflow("wide")
    root = workflow.add("root", double.new(1))
    for n in range(width):
        workflow.add(f"s{n}", double.new(root.result))
    return workflow


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, poll_interval=600) as client:
        yield client


@pytest.fixture
async def polling(baton_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Baton]:
    """A Baton that no notification reaches."""
    monkeypatch.setattr("baton._waiting.Waiters._on_notification", lambda *_: None)
    async with Baton(baton_dsn, poll_interval=0.05) as polling:
        yield polling


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


def feeds() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("baton-feed")]


async def nothing_left(dsn: str) -> None:
    async def given_up() -> bool:
        return await leases(dsn) == [] and feeds() == []

    await eventually(given_up)


# --- a run's changes ---------------------------------------------------------------------------------


async def test_who_follows_a_run_is_told_all_of_it_first_and_then_what_changes(
    client: Baton, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": ["a"], "c": ["b"]}))
    async with run.changes() as changes:
        first = await next_of(changes)
        assert [(step.name, step.state) for step in first.steps] == [
            ("a", "available"),
            ("b", "held"),
            ("c", "held"),
        ]
        assert first.run == await run.summary()
        await steps.finish("a")
        seen: dict[str, StepState] = {}
        while seen.get("b") is not StepState.AVAILABLE:
            change = await next_of(changes)
            seen |= {step.name: step.state for step in change.steps}
        assert seen == {"a": StepState.COMPLETED, "b": StepState.AVAILABLE}
        assert change.run.unsettled == 2
        await run.pause()
        while change.run.paused_at is None:
            change = await next_of(changes)
        assert change.run == await run.summary()


async def test_a_fan_out_of_2000_arrives_whole(baton_dsn: str) -> None:
    async with Baton(baton_dsn, queues={"default": 50}, poll_interval=600) as worker:
        run = await worker.insert(fan_out(2_000))
        async with run.changes() as changes, worker.subscribe() as events:
            seen: dict[str, StepState] = {}
            async with asyncio.timeout(60):
                async for change in changes:
                    seen |= {step.name: step.state for step in change.steps}
                    if change.run.finished_at is not None:
                        break
            assert set(seen.values()) == {StepState.COMPLETED}
            assert len(seen) == 2_001
            last = {
                words(event)[0]: words(event)[1] for event in await until(events, ("finished", "completed"))
            }
            assert len(last) == 2_002
            assert set(last.values()) == {"completed"}


async def test_two_followers_in_two_processes_are_told_what_a_third_does(
    baton_dsn: str, tmp_path: Path
) -> None:
    Witness(baton_dsn)
    gate = tmp_path / "gate"
    async with Baton(baton_dsn, poll_interval=600) as one, Baton(baton_dsn, poll_interval=600) as other:
        workflow = Workflow("across")
        workflow.add("waits", crew.waits.new(gate=str(gate)))
        run = await one.insert(workflow)
        async with run.events() as events, other.subscribe() as everything:
            with Worker(baton_dsn, tmp_path) as worker:
                for each in (events, everything):
                    assert words(await next_of(each)) == ("waits", "executing"), worker.log
                gate.touch()
                for each in (events, everything):
                    assert {words(event) for event in await until(each, ("finished", "completed"))} == {
                        ("waits", "completed"),
                        ("finished", "completed"),
                    }


# --- one reader for many -----------------------------------------------------------------------------


class Statements:
    """Counts the statements of this process."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    counted = Statements()
    execute = AsyncCursor.execute

    async def counting(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        counted.count += b"workflow" in (query if isinstance(query, bytes) else b"")
        return await execute(self, query, *args, **kwargs)

    monkeypatch.setattr(AsyncCursor, "execute", counting)
    return counted


@pytest.mark.parametrize("what", ["changes", "events", "all changes", "all events"])
async def test_two_hundred_subscribers_share_one_reader(
    client: Baton, steps: Steps, baton_dsn: str, statements: Statements, what: str
) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": ["a"]}))
    follow: Any = {
        "changes": run.changes,
        "events": lambda: client.subscribe(run.id),
        "all changes": client.changes,
        "all events": client.subscribe,
    }[what]

    async def cost_of(number: int, name: str) -> int:
        async with contextlib.AsyncExitStack() as stack:
            following = [await stack.enter_async_context(follow()) for _ in range(number)]
            if what != "events" and what != "all events":
                for each in following:
                    await next_of(each)
            assert len(feeds()) == len(await leases(baton_dsn)) == 1
            before = statements.count
            await sql(
                baton_dsn, "UPDATE oban_jobs SET state = 'completed' WHERE id = %s", await steps.job_id(name)
            )
            for each in following:
                await next_of(each)
            return statements.count - before

    for name, number in (("a", 1), ("b", 200)):
        # Two looks at most: the commit may be seen in the middle of one that is under way.
        assert await cost_of(number, name) <= 12, number
        await nothing_left(baton_dsn)


async def test_a_subscriber_that_never_reads_delays_nobody_and_keeps_one_entry_for_each_step(
    client: Baton, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": []}, max_attempts=100))
    (outcome,) = await steps.start("a")
    async with (
        run.changes() as idle_changes,
        client.subscribe(run.id) as idle_events,
        client.changes() as idle_runs,
        client.subscribe() as idle_all,
        client.subscribe(run.id) as events,
        client.subscribe() as everything,
    ):
        for n in range(1, 51):
            await steps.run("UPDATE oban_jobs SET attempt = %s WHERE id = %s", n, outcome.job_id)
            await steps.run("UPDATE workflows SET name = %s", f"n{n}")
            while (await next_of(events)).attempt != n:
                pass
        while (await next_of(everything)).attempt != 50:
            pass
        idle: Any = (idle_changes, idle_events, idle_runs, idle_all)
        assert [len(idle[0]._steps), len(idle[1]._events), len(idle[2]._runs), len(idle[3]._events)] == [
            2,
            1,
            1,
            1,
        ]
        assert [(await next_of(each)).attempt for each in (idle_events, idle_all)] == [50, 50]
        assert {step.name: step.attempt for step in (await next_of(idle_changes)).steps} == {"a": 50, "b": 0}


async def test_of_all_runs_a_subscriber_that_never_reads_keeps_the_last(
    client: Baton, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton._subscription.MOST_PENDING", 3)
    async with client.subscribe() as idle, client.changes() as changes, client.subscribe() as events:
        await next_of(changes)
        for n in range(5):
            await steps.insert({f"a{n}": []})
            await steps.finish(f"a{n}")
            await until(events, ("finished", "completed"))
        assert [words(await next_of(idle)) for _ in range(3)] == [
            ("finished", "completed"),
            ("a4", "completed"),
            ("finished", "completed"),
        ]


# --- what may be lost --------------------------------------------------------------------------------


async def test_what_no_notification_told_is_found_by_polling(polling: Baton, steps: Steps) -> None:
    run = polling.get_run(await steps.insert({"a": [], "b": ["a"], "c": ["b"]}))
    async with run.changes() as changes, run.events() as events, polling.subscribe() as everything:
        await next_of(changes)
        for name in ("a", "b", "c"):
            await steps.start(name)
            for each in (events, everything):
                await until(each, (name, "executing"))
            await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'executing'")
            await until(everything, (name, "completed"))
        assert words((await rest_of(events))[-1]) == ("finished", "completed")
        change = await next_of(changes)
        while change.run.finished_at is None:
            change = await next_of(changes)
        await until(everything, ("finished", "completed"))


async def test_a_run_that_came_and_went_unheard_of_is_told_all_the_same(polling: Baton, steps: Steps) -> None:
    async with polling.subscribe() as events, polling.changes() as changes:
        await next_of(changes)
        async with steps.db.transaction():
            run = await steps.session()
            await run.close()
            await steps.run(
                "INSERT INTO workflows (id, name, definition_hash, steps, unsettled, outcome, finished_at) "
                "VALUES (%s, 'brief', '', 1, 0, 'completed', clock_timestamp())",
                gone := uuid4(),
            )
            await steps.run(
                "INSERT INTO workflow_nodes (workflow_id, position, name, function, job_id, deps, ignore_cancelled, "
                "ignore_discarded, state, waiting_on, result, settled_at) VALUES (%s, 1, 'a', 'f', -1, '{}', false, false, "
                "'completed', 0, '{\"value\": 1}', clock_timestamp())",
                gone,
            )
            await steps.run(
                "INSERT INTO workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at) "
                "VALUES (%s, 1, 'completed', '{}', clock_timestamp())",
                gone,
            )
        told = await until(events, ("a", "completed"), ("finished", "completed"))
        assert {event.workflow_id for event in told} == {str(gone)}
        assert [run.id for run in (await next_of(changes)).runs] == [str(gone)]


async def test_many_runs_that_finished_at_one_moment_are_all_found_by_polling(
    polling: Baton, steps: Steps
) -> None:
    async with polling.changes() as changes:
        await next_of(changes)
        await steps.run(
            "WITH ended AS (INSERT INTO workflows (id, name, definition_hash, steps, unsettled, outcome, finished_at) "
            "SELECT gen_random_uuid(), 'empty', '', 0, 0, 'completed', now() FROM generate_series(1, 2500) RETURNING id) "
            "INSERT INTO workflow_completions (workflow_id, generation, outcome, failed_steps, finished_at) "
            "SELECT id, 1, 'completed', '{}', now() FROM ended"
        )
        told: set[str] = set()
        while len(told) < 2_500:
            told |= {run.id for run in (await next_of(changes)).runs}


async def test_one_notification_of_many_may_be_lost(
    baton_dsn: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = await steps.insert({"a": [], "b": [], "c": []})
    async with Baton(baton_dsn, poll_interval=0.1) as client:
        run = client.get_run(lost)
        (id_,) = (await steps.rows("SELECT id FROM workflow_nodes WHERE name = 'a'"))[0]
        hear = client._access.waiters._on_notification  # type: ignore[union-attr]

        def without_a(channel: str, payload: dict[str, Any]) -> None:
            if id_ not in payload.get("steps", ()):
                hear(channel, payload)

        async with run.events() as events, client.subscribe() as everything:
            monkeypatch.setattr(client._access.waiters, "_on_notification", without_a)  # type: ignore[union-attr]
            for subscription in list(client.oban._notifier._subscriptions["workflow"]):
                client.oban._notifier._subscriptions["workflow"][subscription] = without_a
            for name in ("a", "b"):
                await steps.finish(name)
            for each in (events, everything):
                await until(each, ("a", "completed"), ("b", "completed"))


@pytest.mark.parametrize("kind", ["ended", "shut"])
async def test_a_reconnect_catches_up(baton_dsn: str, steps: Steps, kind: str) -> None:
    async with Gate.before(baton_dsn) as gate, Baton(gate.dsn, poll_interval=600) as client:
        run = client.get_run(await steps.insert({"a": [], "b": ["a"]}))
        async with run.events() as events, client.subscribe() as everything, client.changes() as changes:
            await next_of(changes)
            if kind == "ended":
                await steps.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'baton listen' AND datname = current_database()"
                )
            else:
                gate.shut()
            await steps.finish("a")
            await steps.finish("b")
            gate._open = True
            told = [words(event) for event in await rest_of(events)]
            assert told[-1] == ("finished", "completed")
            await until(everything, ("finished", "completed"))
            assert (await next_of(changes)).runs[0].state == "completed"


HOSTILE = [
    "no json",
    "[]",
    "{}",
    "null",
    '"x"',
    '{"id": 5}',
    '{"id": null}',
    '{"id": "nonsense", "steps": [1]}',
    '{"id": {"a": 1}}',
    '{"id": "RUN"}',
    '{"id": "RUN", "steps": "all"}',
    '{"id": "RUN", "steps": [1e99, -1, true, null, "x", []]}',
    '{"id": "RUN", "steps": [99999999999999999999999999]}',
    '{"id": "RUN", "steps": [9223372036854775807, 0]}',
    '{"id": "RUN", "steps": {"a": 1}}',
    '{"id": "RUN", "fact": "workflow"}',
    '{"id": "all", "fact": {"a": []}}',
    '{"fact": "finished"}',
    json.dumps({"id": "00000000-0000-0000-0000-000000000000", "steps": list(range(1_000))}),
    json.dumps({"id": "RUN", "steps": list(range(1, 1_200))}),
    json.dumps({"id": "x" * 7_000}),
]


async def test_whatever_is_sent_to_the_channel_tells_nothing_that_is_not_so(
    client: Baton, steps: Steps, baton_dsn: str
) -> None:
    run = client.get_run(await steps.insert({"a": []}))
    other = await steps.insert({"o": []})
    others = [id_ for (id_,) in await steps.rows("SELECT id FROM workflow_nodes WHERE name = 'o'")]
    async with run.events() as events, client.subscribe() as everything, client.changes() as changes:
        await next_of(changes)
        foreign = json.dumps({"id": run.id, "steps": others})
        for payload in [*HOSTILE, foreign] * 20:
            await sql(
                baton_dsn, "SELECT pg_notify('public.oban_workflow', %s)", payload.replace("RUN", run.id)
            )
        await steps.finish("a")
        told = [words(event) for event in await rest_of(events)]
        assert dict(told) == {"a": "completed", "finished": "completed"}
        assert {event.workflow_id for event in await until(everything, ("finished", "completed"))} == {run.id}
        assert {changed.id for changed in (await next_of(changes)).runs} == {run.id}
    assert str(other) != run.id


async def test_more_is_named_than_is_remembered(
    client: Baton, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton._run_feed.MOST_HINTS", 1)
    monkeypatch.setattr("baton._all_feed.MOST_HINTS", 0)
    run = client.get_run(await steps.insert({"a": [], "b": []}))
    async with run.events() as events, client.subscribe() as everything:
        await steps.finish("a", "b")
        for each in (events, everything):
            await until(each, ("a", "completed"), ("b", "completed"), ("finished", "completed"))


# --- the end -----------------------------------------------------------------------------------------


async def test_who_leaves_gives_up_the_lease_however_it_left(
    client: Baton, steps: Steps, baton_dsn: str
) -> None:
    run = client.get_run(await steps.insert({"a": []}))
    for follow in (run.changes, run.events, client.subscribe, client.changes):
        entered = asyncio.Event()

        async def following(follow: Any = follow, entered: asyncio.Event = entered) -> None:
            async with follow() as news:
                entered.set()
                async for _ in news:
                    pass

        task = asyncio.create_task(following())
        await entered.wait()
        assert len(await leases(baton_dsn)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_left(baton_dsn)
        # Cancelled before it has entered.
        task = asyncio.create_task(following())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_left(baton_dsn)


async def test_whoever_comes_while_the_last_one_leaves_is_told(
    client: Baton, steps: Steps, baton_dsn: str
) -> None:
    run = client.get_run(await steps.insert({"a": []}))
    for _ in range(10):
        async with run.changes() as changes:
            await next_of(changes)
    async with run.changes() as changes:
        await next_of(changes)
        await steps.finish("a")
        while (await next_of(changes)).run.finished_at is None:
            pass


async def test_a_stop_ends_the_iteration_after_what_was_told(baton_dsn: str, steps: Steps) -> None:
    client = await Baton(baton_dsn, poll_interval=600).start()
    run = client.get_run(await steps.insert({"a": []}))
    async with (
        run.changes() as changes,
        client.subscribe(run.id) as events,
        client.subscribe() as everything,
        client.changes() as runs,
    ):
        rest = [asyncio.create_task(rest_of(each)) for each in (changes, events, everything, runs)]
        await steps.start("a")

        async def seen() -> bool:
            return (await run.summary()) is not None and len(feeds()) == 2

        await eventually(seen)
        await client.stop()
        told = await asyncio.gather(*rest)
        assert told[0][0].run.id == run.id
        assert told[3][0].runs[0].id == run.id
        assert feeds() == []
        with pytest.raises(NotStarted):
            await run.changes().__aenter__()
    assert await leases(baton_dsn) == []


async def test_a_stop_ends_the_iteration_also_while_the_database_is_away(
    baton_dsn: str, steps: Steps
) -> None:
    async with Gate.before(baton_dsn) as gate:
        client = await Baton(gate.dsn, poll_interval=0.01).start()
        run = client.get_run(await steps.insert({"a": []}))
        async with run.changes() as changes, client.subscribe() as everything:
            rest = [asyncio.create_task(rest_of(each)) for each in (changes, everything)]
            gate.shut()
            await client.stop()
            await asyncio.gather(*rest)
        assert feeds() == []


async def test_while_the_database_is_away_nobody_enters_and_whoever_is_in_stays(
    baton_dsn: str, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    async with Gate.before(baton_dsn) as gate, Baton(gate.dsn, poll_interval=0.01, pool_size=2) as client:
        run = client.get_run(await steps.insert({"a": []}))
        async with run.events() as events:
            gate.shut()
            client.oban._query._pool.timeout = 0.2
            with pytest.raises(psycopg.OperationalError):
                async with client.subscribe():
                    pass
            with pytest.raises(psycopg.OperationalError):
                async with run.changes():
                    pass
            await steps.finish("a")
            gate._open = True
            assert words((await rest_of(events))[-1]) == ("finished", "completed")


async def test_a_reader_that_fails_goes_on_and_misses_nothing(
    client: Baton, steps: Steps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from baton import snapshot

    read_marked = snapshot.read_marked
    failures = iter(range(4))

    async def failing(*args: Any) -> Any:
        if next(failures, None) is not None:
            raise ValueError("a step that cannot be read")
        return await read_marked(*args)

    run = client.get_run(await steps.insert({"a": []}))
    async with run.events() as events, client.subscribe() as everything:
        monkeypatch.setattr("baton.snapshot.read_marked", failing)
        await steps.finish("a")
        for each in (events, everything):
            await until(each, ("a", "completed"), ("finished", "completed"))
    assert "could not look at workflow:" in caplog.text
