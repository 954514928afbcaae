"""Events: what subscribers are told of runs and steps, when, and in what order."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from psycopg import AsyncConnection

from baton import Baton, Snooze, Workflow, step
from baton._engine import Outcome
from baton.errors import NotStarted, RunNotFound
from baton.events import StepProgress, StepStreamed, StepUpdated, Transition, WorkflowFinished
from tests.kit.engine import Steps, graph
from tests.kit.following import leases, next_of, rest_of, sql, until, words

NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"
ROUNDS: list[int] = []


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, poll_interval=600) as client:
        yield client


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


@step(name="tests.events.naps", max_attempts=2)
async def naps() -> int:
    ROUNDS.append(0)
    return len(ROUNDS) if len(ROUNDS) > 1 else Snooze(0.0)  # type: ignore[return-value]


# --- what is told ------------------------------------------------------------------------------------


async def test_each_state_that_a_step_comes_to_is_told_with_what_is_known_of_it(
    client: Baton, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": ["a"]}, name="brief", max_attempts=3))
    async with run.events() as events:
        (first,) = await steps.start("a")
        event = await next_of(events)
        assert event == StepUpdated(
            workflow_id=run.id,
            workflow_label="brief",
            step_name="a",
            worker="tests.kit.Nobody",
            state=Transition.EXECUTING,
            job_id=first.job_id,
            attempt=1,
            has_result=False,
            error=None,
            timestamp=first.attempted_at.astimezone(UTC),
        )
        snooze = Outcome(
            first.job_id, first.attempted_at, "scheduled", -1, delay=3600.0, meta='{"snoozed": 1}'
        )
        await steps.engine.ack([snooze])
        event = await next_of(events)
        assert (event.state, event.attempt, event.error) == ("snoozed", 0, None)
        assert abs((datetime.now(UTC) - event.timestamp).total_seconds()) < 60

        await steps.run("UPDATE oban_jobs SET state = 'available' WHERE state = 'scheduled'")
        (again,) = await steps.start("a")
        assert words(await next_of(events)) == ("a", "executing")
        await steps.engine.ack(
            [
                Outcome(
                    again.job_id,
                    again.attempted_at,
                    "retryable",
                    delay=0.0,
                    error={"attempt": 1, "error": "no luck"},
                )
            ]
        )
        event = await next_of(events)
        assert (event.state, event.attempt, event.error) == ("retryable", 1, "no luck")

        await steps.run("UPDATE oban_jobs SET state = 'available' WHERE state = 'retryable'")
        await steps.finish("a", result='"done"')
        (event,) = (await until(events, ("a", "completed")))[-1:]
        assert (event.attempt, event.has_result, event.error) == (2, True, None)

        await steps.finish("b", state="discarded")
        *_, ended, finished = await rest_of(events)
        assert (ended.step_name, ended.state, ended.error, ended.has_result) == (
            "b",
            "discarded",
            "because",
            False,
        )
        assert finished == WorkflowFinished(
            id=finished.id,
            workflow_id=run.id,
            workflow_label="brief",
            generation=1,
            outcome=finished.outcome,
            failed_steps=("b",),
            timestamp=finished.timestamp,
        )
        assert finished.outcome == "failed"
    assert await steps.value("SELECT event_id::text FROM workflow_completions") == finished.id


async def test_what_was_cancelled_doomed_or_skipped_is_told_as_such(client: Baton, steps: Steps) -> None:
    run = client.get_run(
        await steps.insert({"a": [], "b": [], "c": ["b"], "clean": ["a"]}, on_failure=["clean"])
    )
    async with run.events() as events:
        await run.cancel("b", reason="no longer needed")
        told = {
            event.step_name: event for event in await until(events, ("b", "cancelled"), ("c", "cancelled"))
        }
        assert told["b"].error == "no longer needed"
        assert "'b' was cancelled" in str(told["c"].error)
        await steps.finish("a")
        rest = [words(event) for event in await rest_of(events)]
        assert rest[-1] == ("finished", "failed")
        assert dict(rest) == {"a": "completed", "clean": "skipped", "finished": "failed"}


async def test_who_comes_late_is_told_what_holds_and_nothing_that_does_no_more(
    client: Baton, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": [], "c": [], "d": ["b"]}))
    async with run.events() as early:
        await steps.finish("a")
        await steps.start("b")
        await until(early, ("a", "completed"), ("b", "executing"))
        async with client.subscribe(UUID(run.id)) as late:
            assert {words(await next_of(late)) for _ in range(2)} == {("a", "completed"), ("b", "executing")}
            await steps.finish("c")
            assert {event.step_name for event in await until(late, ("c", "completed"))} == {"c"}
    async with client.subscribe() as everything:
        told = [words(event) for event in await until(everything, ("c", "completed"), ("a", "completed"))]
        assert sorted(told) == [("a", "completed"), ("b", "executing"), ("c", "completed")]


async def test_a_finished_run_is_told_whole_and_its_events_end(client: Baton, steps: Steps) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": []}))
    await steps.finish("a", "b")
    async with run.events() as events:
        told = [words(event) for event in await rest_of(events)]
        assert sorted(told[:-1]) == [("a", "completed"), ("b", "completed")]
        assert told[-1] == ("finished", "completed")
    empty = client.get_run(await steps.insert({}))
    async with empty.events() as events:
        assert [words(event) for event in await rest_of(events)] == [("finished", "completed")]


async def test_a_retry_ends_again_with_an_end_of_its_own(client: Baton, steps: Steps) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": ["a"]}))
    async with client.subscribe(run.id) as events, client.subscribe() as everything:
        await steps.finish("a", state="discarded")
        ends = [(await until(each, ("finished", "failed")))[-1] for each in (events, everything)]
        await run.retry()
        await steps.finish("a")
        await steps.finish("b")
        again = [(await until(each, ("finished", "completed")))[-1] for each in (events, everything)]
        assert ends[0] == ends[1]
        assert again[0] == again[1]
        assert (ends[0].generation, again[0].generation) == (1, 2)
        assert ends[0].id != again[0].id
    async with run.events() as events:
        assert (await rest_of(events))[-1] == again[0], "the end that holds, and no former one"


async def test_progress_and_streams_are_told_by_step_the_last_of_each(
    baton_dsn: str, client: Baton, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": []}))
    (started,) = await steps.start("a")

    async def report(done: float, message: str, chunks: list[str]) -> None:
        await sql(
            baton_dsn,
            "SELECT baton_report(ARRAY[%s]::bigint[], ARRAY[%s]::timestamp[], ARRAY[%s]::float8[], ARRAY[10]::float8[], "
            "ARRAY[%s]::text[], ARRAY[%s]::integer[], %s::bigint[], %s::integer[], %s::text[])",
            started.job_id,
            started.attempted_at.replace(tzinfo=None),
            done,
            message,
            len(chunks),
            [started.job_id] * len(chunks),
            list(range(len(chunks))),
            chunks,
        )

    async with client.subscribe(run.id) as events, client.subscribe() as everything:
        await until(events, ("a", "executing"))
        await until(everything, ("a", "executing"))
        await report(3.0, "reading", ['"x"', '"y"'])
        progress, streamed = await next_of(events), await next_of(events)
        assert isinstance(progress, StepProgress)
        assert (progress.step_name, progress.attempt) == ("a", 1)
        assert (progress.done, progress.total, progress.message) == (3.0, 10.0, "reading")
        assert streamed == StepStreamed(run.id, "graph", "a", started.job_id, 1, 2)
        assert await next_of(everything) == progress
        await steps.engine.ack([started])
        assert words(await next_of(everything)) == ("a", "completed"), (
            "no stream is told to those who follow all"
        )
        async with run.events() as late:
            told = [words(event) for event in await rest_of(late)]
            assert {("StepProgress", "a"), ("StepStreamed", "a"), ("a", "completed")} < set(told)


async def test_a_step_that_naps_is_told_of_by_a_worker_as_by_hand(baton_dsn: str) -> None:
    ROUNDS.clear()
    async with Baton(baton_dsn, queues={"default": 2}, poll_interval=600) as worker:
        workflow = Workflow("naps")
        workflow.add("a", naps.new())
        async with worker.subscribe() as events:
            run = await worker.insert(workflow)
            told = await until(events, ("finished", "completed"))
    assert {event.workflow_id for event in told} == {run.id}
    assert words(told[-2]) == ("a", "completed")


# --- commits ------------------------------------------------------------------------------------------


async def test_nothing_is_told_before_its_commit_and_nothing_that_was_rolled_back(
    baton_dsn: str, client: Baton, steps: Steps
) -> None:
    marker = client.get_run(await steps.insert({"marker": []}))
    async with (
        client.subscribe() as events,
        client.changes() as changes,
        await AsyncConnection.connect(baton_dsn) as conn,
    ):
        await next_of(changes)
        undone = await client.insert(graph({"undone": []}, name="undone"), conn=conn)
        await conn.execute("UPDATE oban_jobs SET state = 'completed'")
        await conn.rollback()
        kept = await client.insert(graph({"kept": []}, name="kept"), conn=conn)
        await conn.execute("UPDATE oban_jobs SET state = 'completed' WHERE meta ->> 'workflow_name' = 'kept'")
        await steps.start("marker")
        # What came before the marker would have been told before it.
        assert [words(event) for event in await until(events, ("marker", "executing"))] == [
            ("marker", "executing")
        ]
        await marker.pause()
        assert {run.id for run in (await next_of(changes)).runs} == {marker.id}
        await conn.commit()
        told = await until(events, ("finished", "completed"))
        assert {event.workflow_id for event in told} == {kept.id}
        assert undone.id not in {run.id for run in (await next_of(changes)).runs}


async def test_what_an_ack_did_is_not_told_if_it_is_rolled_back(client: Baton, steps: Steps) -> None:
    run = client.get_run(await steps.insert({"a": [], "b": ["a"]}))
    async with run.events() as events:
        (outcome,) = await steps.start("a")
        assert words(await next_of(events)) == ("a", "executing")
        async with steps.db.transaction(force_rollback=True):
            await steps.run(
                "SELECT baton_ack(%s::jsonb, ARRAY['1'], '', 0, '', NULL, '{}', 'test')",
                orjson.dumps([outcome.row()]).decode(),
            )
            assert await steps.states() == {"a": "completed", "b": "available"}
        await steps.run("UPDATE oban_jobs SET state = 'cancelled' WHERE id = %s", outcome.job_id)
        told = [words(event) for event in await rest_of(events)]
        assert ("a", "completed") not in told
        assert told[-1] == ("finished", "failed")


async def test_what_foreign_statements_do_to_jobs_is_told(
    client: Baton, steps: Steps, baton_dsn: str
) -> None:
    first = client.get_run(await steps.insert({"a": [], "b": ["a"]}))
    second = client.get_run(await steps.insert({"c": []}))
    third = client.get_run(await steps.insert({"d": []}))
    async with client.subscribe() as events:
        await sql(
            baton_dsn, "UPDATE oban_jobs SET state = 'cancelled' WHERE id = %s", await steps.job_id("a")
        )
        await until(events, ("a", "cancelled"), ("b", "cancelled"), ("finished", "failed"))
        await sql(baton_dsn, "DELETE FROM oban_jobs WHERE id = %s", await steps.job_id("c"))
        told = await until(events, ("c", "cancelled"), ("finished", "failed"))
        assert told[-2].error == "its job was deleted"
        await sql(baton_dsn, "TRUNCATE oban_jobs")
        told = await until(events, ("d", "cancelled"), ("finished", "failed"))
        assert {event.workflow_id for event in told} == {third.id}
    assert first.id != second.id


# --- all runs -----------------------------------------------------------------------------------------


async def test_who_follows_the_runs_is_told_the_newest_and_then_what_changes(
    client: Baton, steps: Steps
) -> None:
    old = [await steps.insert({f"o{n}": []}) for n in range(51)]
    async with client.changes() as changes:
        first = await next_of(changes)
        assert [run.id for run in first.runs] == [str(id_) for id_ in reversed(old[1:])]
        assert first.removed == ()
        new = await steps.insert({"a": [], "b": []})
        (run,) = (await next_of(changes)).runs
        assert (run.id, run.unsettled, run.state) == (str(new), 2, "executing")
        await client.get_run(new).pause()
        (run,) = (await next_of(changes)).runs
        assert run.paused_at is not None
        await steps.finish("o0")
        (run,) = (await next_of(changes)).runs
        assert (run.id, run.state) == (str(old[0]), "completed"), "also one that is not among the newest"
        async with client.changes() as late:
            seen = (await next_of(late)).runs
            assert len(seen) == 50
            assert seen[0].id == str(new)


async def test_a_run_that_is_pruned_is_told_as_gone_and_whoever_followed_it_is_done(
    baton_dsn: str, steps: Steps
) -> None:
    run_id = await steps.insert({"a": []})
    await steps.finish("a")
    async with Baton(baton_dsn, poll_interval=0.05) as client:
        run = client.get_run(run_id)
        async with (
            client.changes() as changes,
            client.subscribe(run.id) as events,
            run.changes() as steps_of_it,
        ):
            await next_of(changes)
            await next_of(steps_of_it)
            await steps.run("DELETE FROM oban_jobs")
            await steps.run("SELECT baton_prune(10, 0, NULL)")
            change = await next_of(changes)
            assert (change.runs, change.removed) == ((), (run.id,))
            assert [words(event) for event in await rest_of(events)] == [
                ("a", "completed"),
                ("finished", "completed"),
            ]
            assert await rest_of(steps_of_it) == []
        with pytest.raises(RunNotFound):
            async with client.subscribe(run.id):
                pass


# --- wrong use -----------------------------------------------------------------------------------------


async def test_what_cannot_be_followed_is_refused_in_words(
    client: Baton, baton_dsn: str, steps: Steps
) -> None:
    run = client.get_run(await steps.insert({"a": []}))
    nobody = client.get_run(NOBODY)
    for follow in (nobody.changes, nobody.events, lambda: client.subscribe(NOBODY)):
        with pytest.raises(RunNotFound, match=NOBODY):
            async with follow():
                pass
    with pytest.raises(RunNotFound, match="no run's id"):
        client.subscribe("nonsense")
    follows: list[Any] = [run.changes, run.events, client.subscribe, client.changes]
    for follow in follows:
        outside: Any = follow()
        with pytest.raises(NotStarted, match="async with"):
            await anext(outside)
        async with outside:
            with pytest.raises(NotStarted, match="entered before"):
                await outside.__aenter__()
        with pytest.raises(NotStarted, match="async with"):
            await anext(outside)
    await client.stop()
    for follow in (run.changes, run.events):
        with pytest.raises(NotStarted, match="running Baton"):
            async with follow():
                pass
    for follow in (client.subscribe, client.changes):
        with pytest.raises(NotStarted):
            follow()
    assert await leases(baton_dsn) == []
