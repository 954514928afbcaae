"""The verbs that act on whole runs, as functions in the database: each by itself, at nothing, twice, and in the wrong state."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection

from baton import _store
from baton._engine import Outcome
from baton._plan import plan_insert
from baton.errors import JobsGone, KeyConflict, ResultNotFound, RunEnding
from tests.kit.engine import Steps, claim, claimed_by, graph, sqlstate_of
from tests.kit.graphs import HOOKED
from tests.kit.reused import Reused
from tests.kit.wait import eventually

LATER = datetime.now(UTC) + timedelta(hours=1)
NOBODY = UUID(int=0)


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


async def cancel(steps: Steps, run: UUID, *names: str, reason: str = "enough") -> Any:
    return await steps.engine.cancel(run, list(names) or None, reason)


async def oban_prunes(steps: Steps, *names: str) -> None:
    """Delete the jobs of settled steps, as Oban's pruner does."""
    await steps.run(
        "DELETE FROM oban_jobs WHERE id IN (SELECT job_id FROM workflow_nodes WHERE name = ANY(%s))",
        list(names),
    )


async def expired(steps: Steps, run: UUID) -> None:
    """Let the deadline of a run have passed."""
    await steps.run("UPDATE workflows SET deadline_at = now() - interval '1 second' WHERE id = %s", run)


async def states_of(steps: Steps, run: UUID) -> dict[str, str]:
    """State of each step of one run; a released one's is its job's."""
    return dict(
        await steps.rows(
            "SELECT s.name, CASE WHEN s.state = 'released' THEN coalesce(j.state::text, 'gone') ELSE s.state END "
            "FROM workflow_nodes AS s LEFT JOIN oban_jobs AS j ON j.id = s.job_id WHERE s.workflow_id = %s ORDER BY s.position",
            run,
        )
    )


async def generations(steps: Steps, run: UUID) -> list[tuple[Any, ...]]:
    return await steps.rows(
        "SELECT generation, outcome, failed_steps FROM workflow_completions WHERE workflow_id = %s ORDER BY generation",
        run,
    )


async def prune(steps: Steps, limit: int = 100, age: float = 0.0, after: datetime | None = None) -> Any:
    ((deleted, stopped_at),) = await steps.rows(
        "SELECT deleted, stopped_at FROM baton_prune(%s::integer, %s::double precision, %s)",
        limit,
        age,
        after,
    )
    return deleted, stopped_at


# --- cancel of a run --------------------------------------------------------------------------------


async def test_a_cancel_ends_what_does_not_run_and_says_how_the_run_ends(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"], "later": []}, scheduled={"later": LATER})
    assert await cancel(steps, run) == ["cancelled"]
    assert set((await steps.states()).values()) == {"cancelled"}
    assert set((await steps.jobs()).values()) == {"cancelled"}
    assert {(await steps.step(name))["error"] for name in "abc"} == {"enough"}
    assert await steps.completions() == [("cancelled", ["a", "b", "c", "later"])]


async def test_what_had_completed_before_a_cancel_keeps_its_result(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a", result='"kept"')
    await cancel(steps, run)
    assert (await steps.step("a"))["result"] == {"value": "kept"}
    assert await steps.completions() == [("cancelled", ["b"])]


@pytest.mark.parametrize("state", ["completed", "retryable", "scheduled", "discarded"])
async def test_a_step_that_ran_when_it_was_cancelled_ends_cancelled_whatever_it_comes_to(
    steps: Steps, state: str
) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    (outcome,) = await steps.start("a")
    assert await cancel(steps, run) == ["cancelled"]
    assert await steps.states() == {"a": "executing", "b": "cancelled"}
    assert (await steps.workflow(run))["outcome"] is None
    await steps.engine.ack(
        [replace(outcome, state=state, result="1" if state == "completed" else None, delay=0.0)]
    )
    assert await steps.jobs() == {"a": "cancelled", "b": "cancelled"}
    row = await steps.step("a")
    assert (row["state"], row["result"], row["error"]) == ("cancelled", None, "enough")
    assert await steps.completions() == [("cancelled", ["a", "b"])]


async def test_a_cancelled_step_whose_process_died_does_not_run_again(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await steps.start("a")
    await cancel(steps, run)
    await (await steps.oban())._query.rescue_jobs(0.0)
    assert await steps.states() == {"a": "cancelled"}
    assert (await steps.workflow(run))["outcome"] == "cancelled"


async def test_a_cancelled_step_that_is_given_back_does_not_run_again(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    (outcome,) = await steps.start("a")
    await cancel(steps, run)
    await steps.engine.give_back([(outcome.job_id, outcome.attempted_at)])
    assert await steps.states() == {"a": "cancelled"}
    assert (await steps.workflow(run))["outcome"] == "cancelled"


async def test_running_jobs_that_were_cancelled_are_named_to_who_runs_them(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": []})
    await steps.start("a", "b")
    ids = [await steps.job_id("a"), await steps.job_id("b")]
    assert await steps.engine.cancelled(ids) == []
    await cancel(steps, run, "b")
    assert await steps.engine.cancelled(ids) == ids[1:]
    assert await steps.engine.cancelled([]) == []


async def test_a_second_cancel_changes_nothing_and_says_the_same(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.start("a")
    assert await cancel(steps, run, reason="first") == ["cancelled"]
    before = await steps.workflow(run)
    assert await cancel(steps, run, reason="second") == ["cancelled"]
    assert await steps.workflow(run) == before
    assert (await steps.step("a"))["cancel_reason"] == "first"


@pytest.mark.parametrize("state", ["completed", "discarded"])
async def test_a_cancel_of_a_finished_run_says_what_it_came_to(steps: Steps, state: str) -> None:
    run = await steps.insert({"a": []})
    await steps.finish("a", state=state)
    before = await steps.workflow(run)
    assert await cancel(steps, run) == [before["outcome"]]
    assert await steps.workflow(run) == before
    assert await steps.states() == {"a": state}


async def test_a_cancel_of_no_run_says_so(steps: Steps) -> None:
    assert await cancel(steps, NOBODY) is None
    assert await cancel(steps, NOBODY, "a") is None


async def test_a_cancelled_run_frees_its_key(steps: Steps) -> None:
    run = await steps.insert({"a": []}, key="k")
    await cancel(steps, run)
    assert await steps.insert({"b": []}, key="k") != run


async def test_steps_that_always_run_do_so_after_a_cancel_and_then_the_run_ends(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "clean": ["a", "b"], "told": ["clean"]}, always=["clean"])
    assert await cancel(steps, run) == ["cancelled"]
    assert await steps.states() == {
        "a": "cancelled",
        "b": "cancelled",
        "clean": "available",
        "told": "cancelled",
    }
    assert await steps.completions() == []
    await steps.finish("clean")
    assert await steps.completions() == [("cancelled", ["a", "b", "told"])]


async def test_a_step_that_always_runs_waits_for_what_still_runs_after_a_cancel(steps: Steps) -> None:
    run = await steps.insert({"a": [], "clean": ["a"]}, always=["clean"])
    outcomes = await steps.start("a")
    await cancel(steps, run)
    assert await steps.states() == {"a": "executing", "clean": "held"}
    await steps.engine.ack(outcomes)
    assert await steps.states() == {"a": "cancelled", "clean": "available"}
    await steps.finish("clean")
    assert await steps.completions() == [("cancelled", ["a"])]


async def test_a_cancel_of_a_paused_run_lets_the_steps_run_that_always_do(steps: Steps) -> None:
    run = await steps.insert({"a": [], "clean": ["a"], "tidy": []}, always=["clean", "tidy"])
    await steps.engine.pause(run)
    await cancel(steps, run)
    assert await steps.states() == {"a": "cancelled", "clean": "available", "tidy": "available"}
    assert (await steps.workflow(run))["paused_at"] is None


async def test_a_cancel_that_waited_for_the_last_ack_says_that_the_run_completed(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    (outcome,) = await steps.start("a")
    ours = await steps.session()
    await ours.execute("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", (outcome.job_id,))
    waiting = asyncio.create_task(cancel(steps, run))
    await eventually(steps.blocked)
    await ours.commit()
    assert await waiting == ["completed"]
    assert await steps.completions() == [("completed", [])]


async def test_a_cancel_that_waited_for_a_retry_begins_again_with_the_jobs_that_were_revived(
    steps: Steps,
) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    for patient in (False, True):
        await cancel(steps, run)
        ours = await steps.session()
        await ours.execute("SELECT baton_retry(%s)", (run,))
        waiting = asyncio.create_task(
            cancel(steps, run)
            if patient
            else sqlstate_of(steps.db, "SELECT baton_cancel(%s, NULL, '', 'request')", run)
        )
        async with Steps.opened(steps.dsn) as others:
            others.audited = False
            await eventually(others.blocked)
        await ours.commit()
        assert await waiting == (["cancelled"] if patient else "40001")
    assert await steps.jobs() == {"a": "cancelled", "b": "cancelled"}
    assert (await steps.workflow(run))["generation"] == 3


# --- cancel of steps --------------------------------------------------------------------------------


async def test_a_cancel_of_a_step_dooms_what_waits_for_it_and_nothing_else(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"], "free": []})
    assert await cancel(steps, run, "b") == ["cancelled"]
    assert await steps.states() == {"a": "available", "b": "cancelled", "c": "cancelled", "free": "available"}
    assert (await steps.step("b"))["error"] == "enough"
    assert (await steps.step("c"))["error"] == "its dependency 'b' was cancelled"
    assert (await steps.workflow(run))["cancel_requested_at"] is None
    await steps.finish("a", "free")
    assert await steps.completions() == [("failed", ["b", "c"])]


async def test_a_cancel_of_steps_answers_for_each_in_the_order_asked(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": [], "c": [], "d": ["c"]})
    await steps.finish("a")
    await steps.start("b")
    assert await cancel(steps, run, "d", "nobody", "a", "b") == ["cancelled", None, "completed", "cancelled"]
    assert await steps.states() == {"a": "completed", "b": "executing", "c": "available", "d": "cancelled"}
    assert await cancel(steps, run, "d", "nobody", "a", "b") == ["cancelled", None, "completed", "cancelled"]
    assert await steps.engine.cancel(run, [], "none") == []


async def test_a_cancel_of_a_step_that_always_runs_ends_it(steps: Steps) -> None:
    run = await steps.insert({"a": [], "clean": ["a"]}, always=["clean"])
    assert await cancel(steps, run, "clean") == ["cancelled"]
    await steps.finish("a")
    assert await steps.completions() == [("failed", ["clean"])]


async def test_a_cancel_of_a_step_in_a_run_that_is_paused_settles_it(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.engine.pause(run)
    assert await cancel(steps, run, "a") == ["cancelled"]
    assert await steps.completions() == [("failed", ["a", "b"])]


# --- cancel of jobs ---------------------------------------------------------------------------------


async def test_jobs_are_cancelled_durably_also_while_they_run(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "c": ["b"], "done": []})
    await steps.finish("done")
    outcomes = await steps.start("a")
    ids = {name: await steps.job_id(name) for name in ("a", "b", "done")}
    hit = await steps.engine.cancel_many([ids["b"], ids["done"], ids["a"], 10**9])
    assert sorted(hit) == sorted([(ids["a"], "executing"), (ids["b"], "available")])
    assert await steps.states() == {"a": "executing", "b": "cancelled", "c": "cancelled", "done": "completed"}
    await (await steps.oban())._query.rescue_jobs(0.0)
    assert (await steps.states())["a"] == "cancelled"
    assert (await steps.engine.ack(outcomes)).acked == []
    assert await steps.engine.cancel_many(list(ids.values())) == []
    assert await steps.engine.cancel_many([]) == []


async def test_a_plain_job_that_was_cancelled_while_it_ran_ends_cancelled_and_may_run_again(
    steps: Steps,
) -> None:
    await steps.run("INSERT INTO oban_jobs (worker) VALUES ('W')")

    async def once(**change: Any) -> str:
        (job,) = claimed_by(await steps.engine.ack([], claim()))
        if change.pop("cancelled", False):
            assert await steps.engine.cancel_many([job["id"]]) == [(job["id"], "executing")]
            assert await steps.engine.cancelled([job["id"]]) == [job["id"]]
        at = datetime.fromisoformat(job["attempted_at"]).replace(tzinfo=UTC)
        await steps.engine.ack([outcome(job["id"], at, **change)])
        return str(await steps.value("SELECT state::text FROM oban_jobs"))

    assert await once(cancelled=True) == "cancelled"
    await (await steps.oban()).retry_many_jobs([await steps.value("SELECT id FROM oban_jobs")])
    assert await once() == "completed", "the mark was for the attempt that ran then"


def outcome(job_id: int, attempted_at: datetime, **change: Any) -> Any:
    return replace(Outcome(job_id, attempted_at, "completed", result="1"), **change)


# --- pause and resume -------------------------------------------------------------------------------


async def test_a_paused_run_starts_nothing_more_until_it_is_resumed(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "later": []}, scheduled={"later": LATER})
    outcomes = await steps.start("a")
    assert await steps.engine.pause(run) == "executing"
    assert await steps.jobs() == {"a": "executing", "b": "suspended", "later": "suspended"}
    await steps.engine.ack(outcomes)
    assert (await steps.step("b"))["state"] == "released"
    assert await steps.jobs() == {"a": "completed", "b": "suspended", "later": "suspended"}
    assert (await steps.engine.ack([], claim())).claimed == []
    assert await steps.engine.resume(run) == "executing"
    assert await steps.jobs() == {"a": "completed", "b": "available", "later": "scheduled"}


@pytest.mark.parametrize("state", ["retryable", "scheduled"])
async def test_a_step_that_would_run_again_waits_while_its_run_is_paused(steps: Steps, state: str) -> None:
    run = await steps.insert({"a": []})
    (done,) = await steps.start("a")
    await steps.engine.pause(run)
    await steps.engine.ack([replace(done, state=state, result=None, delay=0.0)])
    assert await steps.jobs() == {"a": "suspended"}
    await steps.engine.resume(run)
    assert await steps.jobs() == {"a": "available"}
    await steps.finish("a")
    assert await steps.completions() == [("completed", [])]


async def test_what_oban_would_start_of_a_paused_run_is_put_back(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": []})
    await steps.start("b")
    await steps.engine.pause(run)
    oban = await steps.oban()
    await oban.retry_job(await steps.job_id("a"))
    await oban._query.stage_jobs(100, ["default"], LATER)
    await oban._query.rescue_jobs(0.0)
    assert await steps.jobs() == {"a": "suspended", "b": "suspended"}


async def test_pausing_twice_is_pausing_once_and_so_is_resuming(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await steps.engine.pause(run)
    paused_at = (await steps.workflow(run))["paused_at"]
    assert await steps.engine.pause(run) == "executing"
    assert (await steps.workflow(run))["paused_at"] == paused_at
    assert await steps.engine.resume(run) == "executing"
    assert await steps.engine.resume(run) == "executing"
    assert await steps.jobs() == {"a": "available"}


async def test_a_finished_run_and_none_at_all_are_neither_paused_nor_resumed(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await steps.finish("a")
    assert await steps.engine.pause(run) == "completed"
    assert await steps.engine.resume(run) == "completed"
    assert (await steps.workflow(run))["paused_at"] is None
    assert await steps.engine.pause(NOBODY) is None
    assert await steps.engine.resume(NOBODY) is None


async def test_a_run_that_finished_while_it_was_paused_is_live_again_after_a_retry(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    (done,) = await steps.start("a")
    await steps.engine.pause(run)
    await steps.engine.ack([replace(done, state="discarded", result=None)])
    assert await steps.engine.retry(run) == ["a"]
    assert await steps.jobs() == {"a": "available"}


async def test_a_retry_of_a_live_run_leaves_it_paused(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": []})
    await steps.finish("a", state="discarded")
    await steps.engine.pause(run)
    assert await steps.engine.retry(run) == ["a"]
    assert await steps.jobs() == {"a": "suspended", "b": "suspended"}
    await steps.engine.resume(run)
    assert await steps.jobs() == {"a": "available", "b": "available"}


# --- retry ------------------------------------------------------------------------------------------


async def test_a_retry_revives_what_failed_with_all_behind_it_and_keeps_the_rest(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"], "d": ["a"]}, max_attempts=1)
    await steps.finish("a", result='"kept"')
    await steps.finish("b", state="discarded")
    await steps.finish("d")
    assert await generations(steps, run) == [(1, "failed", ["b", "c"])]
    assert await steps.engine.retry(run) == ["b", "c"]
    assert await steps.states() == {"a": "completed", "b": "available", "c": "held", "d": "completed"}
    row = await steps.step("b")
    assert (row["error"], row["attempt"], row["result"], row["settled_at"]) == (None, None, None, None)
    assert not (await steps.step("c"))["doomed"]
    assert (await steps.workflow(run))["generation"] == 2
    await steps.finish("b")
    await steps.finish("c")
    assert await generations(steps, run) == [(1, "failed", ["b", "c"]), (2, "completed", [])]
    assert (await steps.step("a"))["result"] == {"value": "kept"}


async def test_attempts_are_counted_anew_after_a_retry(steps: Steps) -> None:
    run = await steps.insert({"a": []}, max_attempts=1)
    await steps.finish("a", state="discarded")
    await steps.engine.retry(run)
    assert await steps.rows("SELECT attempt, max_attempts, discarded_at FROM oban_jobs") == [(0, 1, None)]
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    assert job["attempt"] == 1


async def test_a_retry_of_a_live_run_keeps_its_generation(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "free": []})
    await steps.finish("a", state="discarded")
    assert await steps.engine.retry(run) == ["a", "b"]
    assert (await steps.workflow(run))["generation"] == 1
    await steps.finish("a", "free")
    await steps.finish("b")
    assert await generations(steps, run) == [(1, "completed", [])]


async def test_a_retry_where_nothing_failed_does_nothing(steps: Steps) -> None:
    live, done, empty = await steps.insert({"a": []}), await steps.insert({"b": []}), await steps.insert({})
    await steps.finish("b")
    before = [await steps.workflow(run) for run in (live, done, empty)]
    assert [await steps.engine.retry(run) for run in (live, done, empty)] == [[], [], []]
    assert [await steps.workflow(run) for run in (live, done, empty)] == before
    assert await steps.engine.retry(NOBODY) is None


async def test_retrying_twice_retries_once(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await steps.finish("a", state="discarded")
    assert await asyncio.gather(*(steps.engine.retry(run) for _ in range(3))) in (
        [["a"], [], []],
        [[], ["a"], []],
        [[], [], ["a"]],
    )
    assert (await steps.workflow(run))["generation"] == 2


async def test_each_generation_has_a_completion_of_its_own(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    for generation in (1, 2, 3):
        assert (await steps.workflow(run))["generation"] == generation
        await steps.finish("a", state="discarded")
        assert await steps.engine.retry(run) == ["a"]
    await cancel(steps, run)
    assert await generations(steps, run) == [
        *((n, "failed", ["a"]) for n in (1, 2, 3)),
        (4, "cancelled", ["a"]),
    ]
    ids = await steps.rows("SELECT DISTINCT event_id FROM workflow_completions")
    assert len(ids) == 4


async def test_a_cancelled_run_is_retried_as_if_nobody_had_cancelled_it(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    outcomes = await steps.start("a")
    await cancel(steps, run)
    await steps.engine.ack(outcomes)
    assert await steps.engine.retry(run) == ["a", "b"]
    row = await steps.workflow(run)
    assert (row["cancel_requested_at"], row["cancel_reason"], row["cancel_cause"]) == (None, None, None)
    await steps.finish("a")
    await steps.finish("b")
    assert await generations(steps, run) == [(1, "cancelled", ["a", "b"]), (2, "completed", [])]


async def test_a_run_that_is_being_cancelled_is_not_retried(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.start("a")
    await cancel(steps, run)
    assert await sqlstate_of(steps.db, "SELECT baton_retry(%s)", run) == "BT003"
    with pytest.raises(RunEnding, match="being cancelled"):
        await steps.engine.retry(run)
    assert await steps.states() == {"a": "executing", "b": "cancelled"}


async def test_a_retry_without_the_jobs_names_the_steps_and_changes_nothing(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["a"], "ok": []})
    await steps.finish("a", state="discarded")
    await steps.finish("ok")
    await oban_prunes(steps, "ok")
    await oban_prunes(steps, "a", "c")
    before = await steps.workflow(run), await steps.states()
    assert await sqlstate_of(steps.db, "SELECT baton_retry(%s)", run) == "BT002"
    with pytest.raises(JobsGone) as refused:
        await steps.engine.retry(run)
    assert refused.value.steps == ("a", "c")
    assert (await steps.workflow(run), await steps.states()) == before


async def test_jobs_of_what_is_not_retried_may_be_gone(steps: Steps) -> None:
    run = await steps.insert({"ok": [], "a": ["ok"]})
    await steps.finish("ok")
    await steps.finish("a", state="discarded")
    await oban_prunes(steps, "ok")
    assert await steps.engine.retry(run) == ["a"]
    assert await steps.states() == {"ok": "completed", "a": "available"}


async def test_a_retry_is_refused_while_another_live_run_has_the_key(steps: Steps) -> None:
    run = await steps.insert({"a": []}, key="k")
    await steps.finish("a", state="discarded")
    other = await steps.insert({"b": []}, key="k")
    with pytest.raises(KeyConflict):
        await steps.engine.retry(run)
    assert (await steps.workflow(run))["outcome"] == "failed"
    await cancel(steps, other)
    assert await steps.engine.retry(run) == ["a"]


async def test_a_completed_step_behind_a_failure_runs_again_with_the_new_inputs(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"]}, ignore_discarded=["b"])
    await steps.finish("a", state="discarded")
    await steps.finish("b", result='"without"')
    await steps.finish("c")
    assert (await steps.workflow(run))["outcome"] == "completed"
    assert await steps.engine.retry(run) == ["a", "b", "c"]
    assert await steps.states() == {"a": "available", "b": "held", "c": "held"}
    await steps.finish("a", result='"input"')
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    assert job["step"]["inputs"] == {"a": {"value": "input"}}


async def test_a_dependent_that_has_not_started_waits_again_for_what_is_retried(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"]}, ignore_discarded=["b"])
    await steps.finish("a", state="discarded")
    assert (await steps.states())["b"] == "available"
    assert await steps.engine.retry(run) == ["a"]
    assert await steps.states() == {"a": "available", "b": "held", "c": "held"}
    assert (await steps.jobs())["b"] == "suspended"
    await steps.finish("a")
    assert (await steps.states())["b"] == "available"


async def test_nothing_is_retried_under_the_feet_of_a_step_that_runs(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]}, always=["b"])
    await steps.finish("a", state="discarded")
    outcomes = await steps.start("b")
    assert await sqlstate_of(steps.db, "SELECT baton_retry(%s)", run) == "BT003"
    with pytest.raises(RunEnding, match="'b'"):
        await steps.engine.retry(run)
    assert await steps.states() == {"a": "discarded", "b": "executing"}
    await steps.engine.ack(outcomes)
    assert await steps.engine.retry(run) == ["a", "b"]


async def test_nothing_is_retried_while_oban_runs_a_job_of_it_again(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    await steps.finish("a", state="discarded")
    await (await steps.oban()).retry_job(await steps.job_id("a"))
    outcomes = await steps.start("a")
    with pytest.raises(RunEnding, match="'a'"):
        await steps.engine.retry(run)
    assert (await steps.engine.ack(outcomes)).acked == [await steps.job_id("a")]
    assert await steps.engine.retry(run) == ["a"]


async def test_a_step_that_is_retried_finds_what_it_stored_unless_its_inputs_change(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"]}, ignore_discarded=["b"])
    for name, state in (("a", "discarded"), ("b", "completed"), ("c", "discarded")):
        (started,) = await steps.start(name)
        assert await steps.engine.store(started.job_id, started.attempted_at, "", '"stored"')
        await steps.engine.ack([replace(started, state=state, result="1" if state == "completed" else None)])
    await steps.engine.retry(run)
    kept = await steps.rows(
        "SELECT step.name FROM workflow_checkpoints AS kept JOIN workflow_nodes AS step ON step.id = kept.step_id"
    )
    assert kept == [("a",)]


async def test_a_retried_run_has_as_long_as_it_had_at_first_however_often(steps: Steps) -> None:
    run = await steps.insert({"a": []}, deadline=timedelta(hours=1))
    for _ in range(3):
        await steps.finish("a", state="discarded")
        # It failed a day ago.
        await steps.run(
            "UPDATE workflows SET inserted_at = inserted_at - interval '1 day', deadline_at = deadline_at - interval '1 day', "
            "revived_at = revived_at - interval '1 day'"
        )
        await steps.engine.retry(run)
        left = await steps.value("SELECT extract(epoch FROM deadline_at - now()) / 60 FROM workflows")
        assert 50 < left <= 60


async def test_a_step_that_never_ran_keeps_its_time_after_a_retry(steps: Steps) -> None:
    run = await steps.insert({"a": [], "later": []}, scheduled={"later": LATER})
    await cancel(steps, run)
    assert await steps.engine.retry(run) == ["a", "later"]
    assert await steps.states() == {"a": "available", "later": "scheduled"}


async def test_a_late_ack_of_an_earlier_generation_changes_nothing(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": []})
    (late,) = await steps.start("a")
    await (await steps.oban())._query.rescue_jobs(0.0)
    await steps.finish("a", state="discarded")
    await steps.engine.retry(run)
    (current,) = await steps.start("a")
    assert (await steps.engine.ack([late])).acked == []
    assert (await steps.engine.ack([current])).acked == [current.job_id]
    assert (await steps.engine.ack([current])).acked == []
    assert (await steps.step("a"))["reruns"] == 0


async def test_the_doom_of_a_step_that_is_retried_is_no_longer_told(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]}, hooked=["b"])
    await steps.finish("a", state="discarded")
    assert await steps.value("SELECT count(*) FROM workflow_deliveries") == 1
    await steps.engine.retry(run)
    assert await steps.value("SELECT count(*) FROM workflow_deliveries") == 0
    await steps.finish("a", state="discarded")
    assert await steps.rows("SELECT generation FROM workflow_deliveries") == [(2,)]


# --- rerun ------------------------------------------------------------------------------------------


async def rerun(steps: Steps, run: UUID, *names: str) -> UUID:
    new = uuid4()
    assert await steps.engine.rerun(run, new, list(names) or None)
    return new


async def test_a_rerun_copies_what_completed_before_its_start_and_runs_the_rest(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"], "side": ["a"]}, key="k")
    await steps.finish("a", result='"kept"')
    await steps.finish("b", "side")
    await steps.finish("c")
    before = await steps.workflow(run), await states_of(steps, run)
    new = await rerun(steps, run, "b")
    assert await states_of(steps, new) == {
        "a": "completed",
        "b": "available",
        "c": "held",
        "side": "completed",
    }
    row = await steps.workflow(new)
    assert (row["rerun_of"], row["key"], row["generation"], row["unsettled"]) == (run, None, 1, 2)
    assert (row["name"], row["definition_hash"]) == (before[0]["name"], before[0]["definition_hash"])
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    assert job["step"]["inputs"] == {"a": {"value": "kept"}}
    assert (job["meta"]["workflow_id"], job["attempt"]) == (str(new), 1)
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'executing'")
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    assert await generations(steps, new) == [(1, "completed", [])]
    assert (await steps.workflow(run), await states_of(steps, run)) == before


async def test_a_rerun_from_nowhere_runs_everything(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    await steps.finish("b")
    assert await states_of(steps, await rerun(steps, run)) == {"a": "available", "b": "held"}


async def test_a_rerun_of_a_live_run_runs_what_has_not_completed_and_leaves_that_run_alone(
    steps: Steps,
) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "side": []})
    await steps.finish("a")
    await steps.start("b")
    before = await steps.workflow(run), await states_of(steps, run)
    new = await rerun(steps, run, "side")
    assert await states_of(steps, new) == {"a": "completed", "b": "available", "side": "available"}
    assert (await steps.workflow(run), await states_of(steps, run)) == before


async def test_a_rerun_knows_the_last_of_several_generations(steps: Steps) -> None:
    first = await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    await steps.finish("b", state="discarded")
    second = await rerun(steps, first, "b")
    await steps.run("UPDATE oban_jobs SET state = 'discarded' WHERE state = 'available'")
    third = await rerun(steps, second, "b")
    lineage = await steps.rows(
        "SELECT id, rerun_of FROM workflows WHERE rerun_of IS NOT NULL ORDER BY inserted_at"
    )
    assert lineage == [(second, first), (third, second)]
    assert await states_of(steps, third) == {"a": "completed", "b": "available"}
    with pytest.raises(JobsGone, match="'a'"):
        await steps.engine.rerun(third, uuid4(), None)


async def test_a_rerun_of_no_run_or_no_step_writes_nothing(steps: Steps) -> None:
    run = await steps.insert({"a": []})
    assert not await steps.engine.rerun(NOBODY, uuid4(), None)
    assert await sqlstate_of(steps.db, "SELECT baton_rerun(%s, %s, '{a,nobody}')", run, uuid4()) == "BT004"
    with pytest.raises(ResultNotFound, match="'nobody'"):
        await steps.engine.rerun(run, uuid4(), ["a", "nobody"])
    assert await steps.value("SELECT count(*) FROM workflows") == 1


async def test_a_rerun_without_the_jobs_names_the_steps_and_writes_nothing(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"]})
    for name in "abc":
        await steps.finish(name)
    await oban_prunes(steps, "a", "c")
    assert await sqlstate_of(steps.db, "SELECT baton_rerun(%s, %s, '{b}')", run, uuid4()) == "BT002"
    with pytest.raises(JobsGone) as refused:
        await steps.engine.rerun(run, uuid4(), ["b"])
    assert refused.value.steps == ("c",)
    assert await steps.value("SELECT count(*) FROM workflows") == 1
    assert await steps.value("SELECT count(*) FROM oban_jobs") == 1


async def test_a_rerun_of_a_run_without_steps_has_finished(steps: Steps) -> None:
    run = await steps.insert({})
    new = await rerun(steps, run)
    assert await generations(steps, new) == [(1, "completed", [])]


async def test_a_rerun_keeps_what_its_steps_are_like(steps: Steps) -> None:
    run = await steps.insert(
        {"a": [], "b": ["a"], "n": ["a"], "clean": ["b"]},
        always=["clean"],
        on_failure=["n"],
        ignore_discarded=["b"],
        hooked=["b"],
        deadline=timedelta(hours=1),
    )
    await cancel(steps, run)
    new = await rerun(steps, run, "a")
    likeness = "SELECT name, function, deps, ignore_cancelled, ignore_discarded, runs_on, hooked FROM workflow_nodes "
    assert await steps.rows(likeness + "WHERE workflow_id = %s ORDER BY position", run) == await steps.rows(
        likeness + "WHERE workflow_id = %s ORDER BY position", new
    )
    left = await steps.value(
        "SELECT extract(epoch FROM deadline_at - now()) FROM workflows WHERE id = %s", new
    )
    assert 3000 < left <= 3600


async def test_a_skipped_step_is_copied_unless_what_it_waits_for_runs_again(steps: Steps) -> None:
    run = await steps.insert({"a": [], "n": ["a"], "b": []}, on_failure=["n"])
    await steps.finish("a", "b")
    assert (await steps.states())["n"] == "skipped"
    assert await states_of(steps, await rerun(steps, run, "b")) == {
        "a": "completed",
        "n": "skipped",
        "b": "available",
    }
    assert await states_of(steps, await rerun(steps, run, "a")) == {
        "a": "available",
        "n": "held",
        "b": "completed",
    }


async def test_a_step_behind_a_skipped_one_does_not_run_in_a_retry_or_a_rerun(steps: Steps) -> None:
    graph = {"a": [], "f": [], "n": ["a"], "j": ["n", "f"], "k": ["j"], "end": ["j"]}
    run = await steps.insert(graph, on_failure=["n"], always=["end"])
    outcomes = await steps.start("a", "f")
    await steps.engine.ack([outcomes[0], replace(outcomes[1], state="discarded", result=None)])
    await steps.finish("end")
    await steps.engine.retry(run)
    skipped = {"a": "completed", "n": "skipped", "j": "skipped", "k": "skipped", "end": "available"}
    assert await states_of(steps, run) == skipped | {"f": "available"}
    assert await states_of(steps, await rerun(steps, run, "j")) == skipped | {"f": "available"}
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    assert (await generations(steps, run))[1:] == [(2, "completed", [])]
    again = await rerun(steps, run, "j")
    assert await states_of(steps, again) == skipped | {"f": "completed"}
    assert (await steps.workflow(again))["unsettled"] == 1


async def test_a_step_that_runs_on_failure_is_skipped_in_a_retry_and_a_rerun_that_find_none(
    steps: Steps,
) -> None:
    run = await steps.insert({"a": [], "n": ["a"], "k": ["n"]}, on_failure=["n"])
    await cancel(steps, run, "n")
    await steps.finish("a")
    assert await steps.states() == {"a": "completed", "n": "cancelled", "k": "cancelled"}
    new = await rerun(steps, run, "n")
    assert await steps.engine.retry(run) == ["n", "k"]
    for each, last in ((run, 2), (new, 1)):
        assert await states_of(steps, each) == {"a": "completed", "n": "skipped", "k": "skipped"}
        assert (await generations(steps, each))[-1] == (last, "completed", [])
    assert await steps.rows("SELECT DISTINCT state::text FROM oban_jobs ORDER BY 1") == [
        ("cancelled",),
        ("completed",),
    ]


# --- deadlines --------------------------------------------------------------------------------------


async def test_a_run_whose_deadline_has_passed_is_ended_as_failed(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]}, deadline=timedelta(hours=1))
    assert await steps.engine.expire() == 0
    await expired(steps, run)
    assert await steps.engine.expire() == 1
    assert await steps.states() == {"a": "cancelled", "b": "cancelled"}
    assert (await steps.step("a"))["error"] == "the deadline of its run has passed"
    assert await steps.completions() == [("failed", ["a", "b"])]
    assert await steps.engine.expire() == 0


async def test_a_step_that_runs_past_the_deadline_is_cancelled_and_the_run_fails(steps: Steps) -> None:
    run = await steps.insert({"a": [], "clean": ["a"]}, deadline=timedelta(hours=1), always=["clean"])
    outcomes = await steps.start("a")
    await expired(steps, run)
    assert [await steps.engine.expire(), await steps.engine.expire()] == [1, 0]
    assert (await steps.workflow(run))["outcome"] is None
    await steps.engine.ack(outcomes)
    await steps.finish("clean")
    assert await steps.completions() == [("failed", ["a"])]


async def test_a_finished_run_and_one_that_was_cancelled_have_no_deadline_any_more(steps: Steps) -> None:
    done, cancelled = await steps.insert({"a": []}), await steps.insert({"b": []})
    await steps.start("b")
    await steps.finish("a")
    await cancel(steps, cancelled)
    for run in (done, cancelled):
        await expired(steps, run)
    assert await steps.engine.expire() == 0
    assert (await steps.workflow(cancelled))["cancel_cause"] == "request"


async def test_a_cancel_after_the_deadline_says_failed(steps: Steps) -> None:
    run = await steps.insert({"a": []}, deadline=timedelta(hours=1))
    await steps.start("a")
    await expired(steps, run)
    await steps.engine.expire()
    assert await cancel(steps, run) == ["failed"]


async def test_a_deadline_that_was_moved_meanwhile_ends_nothing(steps: Steps) -> None:
    # Somebody read that the deadline had passed; then the run finished and was retried, which gave it a new one.
    run = await steps.insert({"a": []}, deadline=timedelta(hours=1))
    assert await steps.engine.cancel(run, None, "late", "deadline") == ["executing"]
    assert await steps.states() == {"a": "available"}
    assert (await steps.workflow(run))["cancel_requested_at"] is None


# --- prune ------------------------------------------------------------------------------------------


async def rows_left(steps: Steps) -> dict[str, int]:
    """Tables of Baton's that are not empty."""
    tables = [
        name
        for (name,) in await steps.rows(
            "SELECT relname FROM pg_class "
            "WHERE relkind = 'r' AND relname LIKE 'workflow%%' AND relname <> 'workflow_migrations'"
        )
    ]
    counts = {table: int(await steps.value(f"SELECT count(*) FROM {table}")) for table in tables}
    return {table: count for table, count in counts.items() if count}


# Each step has said something, and streamed two chunks.
_REPORTS = """
INSERT INTO workflow_progress (step_id, workflow_id, attempt, attempted_at, done, chunks)
SELECT id, workflow_id, 1, now(), 1, 2 FROM workflow_nodes;
INSERT INTO workflow_streams (step_id, attempt, position, workflow_id, chunk, bytes)
SELECT id, 1, n, workflow_id, '"text"', 6 FROM workflow_nodes CROSS JOIN generate_series(0, 1) AS n"""


async def test_a_pruned_run_leaves_no_row_in_any_table(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"]})
    (started,) = await steps.start("a")
    await steps.engine.store(started.job_id, started.attempted_at, "", "1")
    await steps.engine.ack([started])
    await steps.run(
        "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt) SELECT workflow_id, id, 1 FROM workflow_nodes"
    )
    await steps.run(_REPORTS)
    await steps.finish("b")
    await steps.run("DELETE FROM oban_jobs")
    deleted, stopped_at = await prune(steps)
    assert deleted == {
        "workflows": 1,
        "workflow_nodes": 2,
        "workflow_edges": 1,
        "workflow_completions": 1,
        "workflow_checkpoints": 1,
        "workflow_debug_logs": 2,
        "workflow_progress": 2,
        "workflow_streams": 4,
    }
    assert stopped_at is None
    assert await rows_left(steps) == {}
    assert await steps.engine.cancel(run, None, "") is None
    assert await prune(steps) == ({}, None)


async def test_nothing_of_a_live_run_is_pruned_though_jobs_of_it_are_gone(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    await oban_prunes(steps, "a")
    before = await rows_left(steps)
    assert await prune(steps) == ({}, None)
    assert await rows_left(steps) == before


async def test_a_finished_run_stays_while_one_of_its_jobs_is_there(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    await steps.finish("b")
    await oban_prunes(steps, "a")
    assert await prune(steps) == ({}, None)
    await oban_prunes(steps, "b")
    assert (await prune(steps))[0]["workflows"] == 1


async def test_a_run_whose_end_is_not_delivered_stays(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    await steps.insert({"a": []})
    await steps.finish("a")
    await oban_prunes(steps, "a")
    assert await prune(steps) == ({}, None)
    await steps.run("DELETE FROM workflow_deliveries")
    assert (await prune(steps))[0]["workflows"] == 1


async def test_a_run_is_pruned_when_it_is_old_enough(steps: Steps) -> None:
    await steps.insert({"a": []})
    await steps.finish("a")
    await oban_prunes(steps, "a")
    assert await prune(steps, age=3600.0) == ({}, None)
    await steps.run("UPDATE workflows SET finished_at = finished_at - interval '2 hours'")
    assert (await prune(steps, age=3600.0))[0]["workflows"] == 1


async def test_runs_are_pruned_whole_and_the_oldest_first(steps: Steps) -> None:
    runs = [await steps.insert({f"{n}{name}": [] for name in "abc"}) for n in range(3)]
    for n in range(3):
        await steps.finish(*(f"{n}{name}" for name in "abc"))
    await steps.run("DELETE FROM oban_jobs")
    assert (await prune(steps, limit=4))[0]["workflow_nodes"] == 6, (
        "the one that reaches the limit goes whole"
    )
    assert await steps.rows("SELECT id FROM workflows") == [(runs[2],)]
    assert (await prune(steps, limit=1))[0]["workflow_nodes"] == 3, "but at least one"


async def test_a_run_that_keeps_its_jobs_does_not_bar_the_way(steps: Steps) -> None:
    """A call looks at a thousand runs, or at its limit; the next one goes on behind them."""
    await steps.engine.insert(plan_insert([graph({"kept": []}) for _ in range(1000)]))
    await steps.run("UPDATE oban_jobs SET state = 'completed', completed_at = now()")
    await steps.insert({"gone": []})
    await steps.finish("gone")
    await oban_prunes(steps, "gone")
    deleted, stopped_at = await prune(steps, limit=2)
    assert (deleted, stopped_at is not None) == ({}, True)
    deleted, stopped_at = await prune(steps, limit=2, after=stopped_at)
    assert deleted["workflows"] == 1


async def test_two_prunes_at_once_take_each_run_once(steps: Steps) -> None:
    for n in range(6):
        await steps.insert({f"s{n}": []})
        await steps.finish(f"s{n}")
    await steps.run("DELETE FROM oban_jobs")
    call = "SELECT deleted FROM baton_prune(100, 0, NULL)"
    pruned = await asyncio.gather(*(steps.engine._value(call) for _ in range(4)))
    assert sum(deleted.get("workflows", 0) for deleted in pruned) == 6
    assert await rows_left(steps) == {}


async def test_captured_calls_are_pruned_by_age_whatever_their_run_does(steps: Steps) -> None:
    await steps.insert({"a": []})
    for hours in (0, 2, 3):
        await steps.run(
            "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt, inserted_at) "
            "SELECT workflow_id, id, 1, now() - make_interval(hours => %s) FROM workflow_nodes",
            hours,
        )
    call = "SELECT baton_prune_debug_logs(3600.0, %s)"
    assert [await steps.value(call, limit) for limit in (0, 1, 10, 10)] == [0, 1, 1, 0]
    assert await steps.value("SELECT count(*) FROM workflow_debug_logs") == 1


# --- deliveries -------------------------------------------------------------------------------------


async def statement(steps: Steps, file: str, **params: Any) -> None:
    await steps.db.execute(_store.load(file), params)


async def add_consumer(steps: Steps, name: str) -> None:
    await statement(steps, "add_consumer", name=name)


async def deliver(
    steps: Steps,
    consumer: str | None = None,
    functions: list[str] | None = None,
    limit: int = 10,
    lease: float = 60,
) -> list[dict[str, Any]]:
    rows = await steps.value(
        "SELECT baton_deliver(%s, %s::text[], %s::integer, %s::double precision)",
        consumer,
        functions or [],
        limit,
        lease,
    )
    return [json.loads(row) for row in rows]


async def test_the_end_of_a_run_is_delivered_to_each_consumer_there_is(steps: Steps) -> None:
    await steps.insert({"before": []})
    await steps.finish("before")
    for name in ("mail", "audit", "mail"):
        await add_consumer(steps, name)
    run = await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a", state="discarded")
    empty = await steps.insert({})
    for consumer in ("mail", "audit"):
        first, second = await deliver(steps, consumer)
        assert (first["workflow_id"], first["generation"], first["outcome"]) == (str(run), 1, "failed")
        assert (first["failed_steps"], first["workflow_label"]) == (["a", "b"], "graph")
        assert first["event_id"] == str(
            await steps.value("SELECT event_id FROM workflow_completions WHERE workflow_id = %s", run)
        )
        assert (second["workflow_id"], second["outcome"]) == (str(empty), "completed")
        assert datetime.fromisoformat(first["timestamp"]) <= datetime.fromisoformat(second["timestamp"])
    assert await deliver(steps, "nobody") == []


async def test_what_a_rolled_back_settle_would_have_delivered_is_not(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    await steps.insert({"a": []})
    ours = await steps.session()
    await ours.execute("UPDATE oban_jobs SET state = 'completed'")
    await ours.rollback()
    assert await deliver(steps, "mail") == []


async def test_each_generation_is_delivered_with_its_own_end(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    run = await steps.insert({"a": []})
    await steps.finish("a", state="discarded")
    await steps.engine.retry(run)
    await steps.finish("a")
    told = await deliver(steps, "mail")
    assert [(one["generation"], one["outcome"]) for one in told] == [(1, "failed"), (2, "completed")]
    assert len({one["event_id"] for one in told}) == 2


async def test_a_delivery_is_in_one_hand_at_a_time_and_due_again_when_its_lease_ran_out(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    await steps.insert({"a": []})
    await steps.finish("a")
    ((first,), nothing) = (await deliver(steps, "mail"), await deliver(steps, "mail"))
    assert (first["tries"], nothing) == (1, [])
    await steps.run("UPDATE workflow_deliveries SET due_at = now()")
    (again,) = await deliver(steps, "mail")
    assert (again["id"], again["event_id"], again["tries"]) == (first["id"], first["event_id"], 2)
    await statement(steps, "delete_delivery", id=first["id"], tries=1)
    assert await steps.value("SELECT count(*) FROM workflow_deliveries") == 1, "its lease had run out"
    await statement(steps, "delete_delivery", id=first["id"], tries=2)
    assert await steps.value("SELECT count(*) FROM workflow_deliveries") == 0
    await statement(steps, "delete_delivery", id=first["id"], tries=2)


async def test_a_delivery_that_failed_is_due_again_when_it_was_put_off_to(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    await steps.insert({"a": []})
    await steps.finish("a")
    (first,) = await deliver(steps, "mail")
    await statement(steps, "postpone_delivery", id=first["id"], tries=7, seconds=0.0)
    assert await deliver(steps, "mail") == [], "only whoever has it may put it off"
    await statement(steps, "postpone_delivery", id=first["id"], tries=1, seconds=3600.0)
    assert await deliver(steps, "mail") == []
    await statement(steps, "postpone_delivery", id=first["id"], tries=1, seconds=0.0)
    (again,) = await deliver(steps, "mail")
    assert again["tries"] == 2


async def test_no_more_is_delivered_than_asked_for_and_the_oldest_first(steps: Steps) -> None:
    await add_consumer(steps, "mail")
    runs = [str(await steps.insert({})) for _ in range(5)]
    assert [one["workflow_id"] for one in await deliver(steps, "mail", limit=2)] == runs[:2]
    assert await deliver(steps, "mail", limit=0) == []
    assert [one["workflow_id"] for one in await deliver(steps, "mail")] == runs[2:]


async def test_a_step_that_asked_for_it_hears_that_a_dependency_doomed_it_in_the_same_commit(
    steps: Steps,
) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "c": ["b"], "deaf": ["a"]}, hooked=["b", "c"])
    await steps.finish("a", state="discarded")
    assert await deliver(steps, functions=["other"]) == []
    assert await deliver(steps, "mail") == []
    told = await deliver(steps, functions=["other", HOOKED])
    assert [(one["job_id"], one["cause"], one["reason"]) for one in told] == [
        (await steps.job_id("b"), "discarded", "its dependency 'a' was discarded"),
        (await steps.job_id("c"), "cancelled", "its dependency 'b' was cancelled"),
    ]
    assert {(one["workflow_id"], one["function"], one["consumer"]) for one in told} == {
        (str(run), HOOKED, None)
    }


async def test_a_step_that_was_cancelled_by_hand_or_skipped_was_not_doomed_and_hears_nothing(
    steps: Steps,
) -> None:
    run = await steps.insert(
        {"a": [], "b": ["a"], "n": ["a"], "k": ["n"]}, hooked=["b", "n", "k"], on_failure=["n"]
    )
    await cancel(steps, run, "b")
    await steps.finish("a")
    assert await steps.states() == {"a": "completed", "b": "cancelled", "n": "skipped", "k": "skipped"}
    assert await deliver(steps, functions=[HOOKED]) == []


# --- steps that always run, and those that run on failure --------------------------------------------


@pytest.mark.parametrize("state", ["completed", "cancelled", "discarded"])
async def test_a_step_that_always_runs_does_so_whatever_became_of_what_it_waits_for(
    steps: Steps, state: str
) -> None:
    run = await steps.insert({"a": [], "b": [], "clean": ["a", "b"]}, always=["clean"])
    await steps.finish("a", state=state)
    assert (await steps.states())["clean"] == "held"
    await steps.finish("b")
    assert (await steps.states())["clean"] == "available"
    await steps.finish("clean")
    assert (await steps.workflow(run))["outcome"] == ("completed" if state == "completed" else "failed")


@pytest.mark.parametrize("state", ["completed", "cancelled", "discarded"])
async def test_a_step_that_runs_on_failure_runs_after_one_and_is_skipped_after_none(
    steps: Steps, state: str
) -> None:
    await steps.insert({"a": [], "b": [], "n": ["a", "b"], "k": ["n"]}, on_failure=["n"])
    await steps.finish("a", state=state)
    assert (await steps.states())["n"] == "held", "it waits for all of them"
    await steps.finish("b")
    if state == "completed":
        assert await steps.states() == {"a": "completed", "b": "completed", "n": "skipped", "k": "skipped"}
        assert await steps.jobs() == {"a": "completed", "b": "completed", "n": "cancelled", "k": "cancelled"}
        assert (await steps.step("n"))["error"] == "none of its dependencies failed"
        assert (await steps.step("k"))["error"] == "its dependency 'n' was skipped"
        assert await steps.completions() == [("completed", [])]
    else:
        await steps.finish("n")
        await steps.finish("k")
        assert await steps.completions() == [("failed", ["a"])]


async def test_a_failure_that_ends_in_a_skipped_chain_of_any_depth_ends_the_run(steps: Steps) -> None:
    chain = {"n0": ["a"]} | {f"n{n}": [f"n{n - 1}"] for n in range(1, 200)}
    await steps.insert({"a": []} | chain, on_failure=list(chain))
    await steps.finish("a")
    assert set((await steps.states()).values()) == {"completed", "skipped"}
    assert await steps.completions() == [("completed", [])]


async def test_what_waits_for_a_skipped_step_goes_on_if_it_ignores_cancelled_ones(steps: Steps) -> None:
    await steps.insert({"a": [], "n": ["a"], "b": ["n"]}, on_failure=["n"], ignore_cancelled=["b"])
    await steps.finish("a")
    assert await steps.states() == {"a": "completed", "n": "skipped", "b": "available"}
    await steps.finish("b")
    assert await steps.completions() == [("completed", [])]


async def test_a_failure_excuses_more_than_a_skipped_step_does(steps: Steps) -> None:
    await steps.insert({"a": [], "f": [], "n": ["a"], "j": ["n", "f"]}, on_failure=["n"])
    await steps.finish("a")
    await steps.finish("f", state="discarded")
    assert (await steps.states())["j"] == "skipped", "it had settled before"
    await steps.insert({"a2": [], "f2": [], "n2": ["a2"], "j2": ["n2", "f2"]}, on_failure=["n2"])
    outcomes = await steps.start("a2", "f2")
    await steps.engine.ack([outcomes[0], replace(outcomes[1], state="discarded", result=None)])
    assert (await steps.states())["j2"] == "cancelled"


async def test_obans_retry_of_a_skipped_steps_job_leaves_it_cancelled(steps: Steps) -> None:
    await steps.insert({"a": [], "n": ["a"]}, on_failure=["n"])
    await steps.finish("a")
    await (await steps.oban()).retry_job(await steps.job_id("n"))
    assert await steps.jobs() == {"a": "completed", "n": "cancelled"}


async def test_a_skip_that_is_owed_to_a_job_is_found_by_the_sweep(steps: Steps) -> None:
    await steps.insert({"a": [], "n": ["a"]}, on_failure=["n"])
    ours: AsyncConnection = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE id = %s FOR UPDATE", (await steps.job_id("n"),))
    assert (await steps.finish("a")).owed
    assert (await steps.states())["n"] == "skipped"
    assert (await steps.jobs())["n"] == "suspended"
    await ours.rollback()
    await steps.engine.sweep()
    assert (await steps.jobs())["n"] == "cancelled"


async def test_steps_that_run_whatever_happens_do_not_excuse_a_failure(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": ["a"], "clean": ["a"]}, always=["clean"], ignore_discarded=["b"])
    await steps.finish("a", state="discarded")
    await steps.finish("b", "clean")
    assert (await steps.workflow(run))["outcome"] == "completed", "b, the only one to mind, ignores it"
    other = await steps.insert({"a3": [], "clean3": ["a3"]}, always=["clean3"])
    await steps.finish("a3", state="discarded")
    await steps.finish("clean3")
    assert (await steps.workflow(other))["outcome"] == "failed"


async def test_the_failed_steps_of_a_run_are_those_cancelled_or_discarded_in_their_order(
    steps: Steps,
) -> None:
    await steps.insert(
        {"z": [], "y": [], "x": ["y"], "ok": [], "n": ["ok"]}, on_failure=["n"], ignore_discarded=["x"]
    )
    await steps.finish("ok")
    await steps.finish("y", state="discarded")
    await steps.finish("x", state="cancelled")
    await steps.finish("z", state="discarded")
    assert await steps.completions() == [("failed", ["z", "y", "x"])]
