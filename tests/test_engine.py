"""The engine in the database: steps follow their jobs, whoever changes them, in the same transaction."""

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from oban._executor import AckAction
from oban._query import _ack_jobs as stock_ack
from oban.job import Job
from psycopg import AsyncConnection, errors, sql

import baton
from baton import _engine, _store, migration
from baton._engine import Outcome
from tests.kit.engine import Steps, chain, claim, claimed_by, sqlstate_of
from tests.kit.reused import Reused
from tests.kit.wait import eventually

FUNCTIONS = dict(_store.functions())
LATER = datetime.now(UTC) + timedelta(hours=1)


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


# --- held steps -------------------------------------------------------------------------------------


async def test_a_step_with_dependencies_waits_suspended_and_a_root_is_available(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"], "later": []}, scheduled={"later": LATER})
    assert await steps.jobs() == {"a": "available", "b": "suspended", "later": "scheduled"}
    assert await steps.states() == {"a": "available", "b": "held", "later": "scheduled"}


async def test_a_held_step_is_neither_claimed_nor_staged(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    oban = await steps.oban()
    assert len((await steps.engine.ack([], claim())).claimed) == 1
    await oban._query.stage_jobs(100, ["default"], datetime(9999, 1, 1, tzinfo=UTC))
    assert (await steps.engine.ack([], claim())).claimed == []
    assert (await steps.jobs())["b"] == "suspended"


async def test_scheduled_at_is_honoured_when_a_step_is_released(steps: Steps) -> None:
    await steps.insert({"a": [], "now": ["a"], "later": ["a"]}, scheduled={"later": LATER})
    await steps.finish("a")
    assert await steps.jobs() == {"a": "completed", "now": "available", "later": "scheduled"}


async def test_a_step_is_released_by_its_last_dependency_and_no_earlier(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "c": [], "join": ["a", "b", "c"]})
    for name, left in (("b", 2), ("c", 1)):
        await steps.finish(name)
        assert (await steps.step("join"))["waiting_on"] == left
        assert (await steps.jobs())["join"] == "suspended"
    await steps.finish("a")
    assert (await steps.jobs())["join"] == "available"


async def test_dependencies_that_settle_in_one_ack_are_counted_one_by_one(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "join": ["a", "b"]})
    await steps.finish("a", "b")
    assert await steps.states() == {"a": "completed", "b": "completed", "join": "available"}


@pytest.mark.parametrize("first", ["a", "b"])
async def test_two_dependencies_that_settle_at_once_release_their_dependent_once(
    steps: Steps, first: str
) -> None:
    second = {"a": "b", "b": "a"}[first]
    await steps.insert({"a": [], "b": [], "join": ["a", "b"]})
    one, other = await steps.session(), await steps.session()
    complete = "UPDATE oban_jobs SET state = 'completed' WHERE id = %s"
    await one.execute(complete, (await steps.job_id(first),))
    waiting = asyncio.create_task(other.execute(complete, (await steps.job_id(second),)))
    await eventually(steps.blocked)
    await one.commit()
    await waiting
    assert (await steps.jobs())["join"] == "suspended"
    await other.commit()
    assert (await steps.jobs())["join"] == "available"
    assert (await steps.step("join"))["waiting_on"] == 0


async def test_many_acks_at_once_on_one_fan_in_release_it_once(steps: Steps) -> None:
    branches = [f"b{n}" for n in range(24)]
    await steps.insert({**{name: [] for name in branches}, "join": branches})
    acked = await asyncio.gather(*(steps.engine.ack([outcome]) for outcome in await steps.start(*branches)))
    assert sum(len(done.queues) for done in acked) == 1
    assert (await steps.jobs())["join"] == "available"


# --- the ack ----------------------------------------------------------------------------------------


async def test_an_ack_writes_state_result_and_release_in_one_commit(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    done = await steps.finish("a", result='{"n": 1}')
    row = await steps.step("a")
    assert done.acked == [await steps.job_id("a")]
    assert (row["state"], row["result"], row["attempt"]) == ("completed", {"value": {"n": 1}}, 1)
    assert row["started_at"] <= row["settled_at"]
    stamps = await steps.value(
        "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM oban_jobs UNION ALL SELECT xmin FROM workflow_nodes "
        "UNION ALL SELECT xmin FROM workflows) AS written"
    )
    assert stamps == 1


async def test_a_backend_that_dies_in_the_middle_of_an_ack_leaves_neither_state_nor_result(
    steps: Steps,
) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"]})
    outcomes = await steps.start("a")
    ours = await steps.session()
    # Our lock on the workflow is the breakpoint: the ack has its job by then.
    await ours.execute("SELECT FROM workflows WHERE id = %s FOR UPDATE", (workflow,))
    ack = asyncio.create_task(steps.engine.ack(outcomes))
    (pid,) = await eventually(steps.blocked)
    await steps.run("SELECT pg_terminate_backend(%s)", pid)
    with pytest.raises(psycopg.OperationalError):
        await ack
    await ours.rollback()
    assert await steps.jobs() == {"a": "executing", "b": "suspended"}
    assert (await steps.step("a"))["result"] is None
    await steps.engine.ack(outcomes)
    assert await steps.states() == {"a": "completed", "b": "available"}


async def test_a_late_ack_of_an_earlier_attempt_changes_nothing(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    (stale,) = await steps.start("a")
    await steps.run("UPDATE oban_jobs SET state = 'available' WHERE id = %s", stale.job_id)
    (current,) = await steps.start("a")
    assert stale.attempted_at != current.attempted_at
    assert (await steps.engine.ack([stale])).acked == []
    assert await steps.jobs() == {"a": "executing", "b": "suspended"}
    assert (await steps.step("a"))["result"] is None
    assert (await steps.engine.ack([current])).acked == [current.job_id]


async def test_the_same_ack_again_changes_nothing(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["a", "b"]})
    outcomes = await steps.start("a")
    await asyncio.gather(*(steps.engine.ack(outcomes) for _ in range(3)))
    assert (await steps.workflow(workflow))["unsettled"] == 2
    assert (await steps.step("c"))["waiting_on"] == 1
    assert (await steps.step("a"))["reruns"] == 0


async def test_results_are_written_from_fenced_rows_alone(steps: Steps) -> None:
    await steps.insert({"a": [], "b": []})
    good, stale = await steps.start("a", "b")
    await steps.run("UPDATE oban_jobs SET state = 'available' WHERE id = %s", stale.job_id)
    assert (await steps.engine.ack([good, stale])).acked == [good.job_id]
    assert (await steps.step("b"))["result"] is None


async def test_a_snooze_and_a_retry_release_nothing(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": [], "join": ["a", "b"]})
    snoozed, failed = await steps.start("a", "b")
    await steps.engine.ack(
        [
            Outcome(
                snoozed.job_id,
                snoozed.attempted_at,
                "scheduled",
                attempt_change=-1,
                delay=60,
                meta='{"snoozed": 1}',
            ),
            Outcome(
                failed.job_id,
                failed.attempted_at,
                "retryable",
                delay=60,
                error={"attempt": 1, "error": "boom"},
            ),
        ]
    )
    assert await steps.states() == {"a": "scheduled", "b": "retryable", "join": "held"}
    assert (await steps.step("join"))["waiting_on"] == 2
    assert (await steps.workflow(workflow))["unsettled"] == 3
    attempts = await steps.rows("SELECT attempt FROM oban_jobs WHERE id <= %s ORDER BY id", failed.job_id)
    assert attempts == [(0,), (1,)]


async def test_an_ack_brings_the_next_work_of_its_queue(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    outcomes = await steps.start("a")
    done = await steps.engine.ack(outcomes, claim())
    (job,) = claimed_by(done)
    assert (job["step"]["name"], job["step"]["inputs"]) == ("b", {"a": {"value": 1}})
    assert done.queues == ["default"]
    assert (await steps.jobs())["b"] == "executing"


async def test_a_claim_takes_jobs_in_obans_order_and_no_more_than_asked(steps: Steps) -> None:
    for name, priority in (("low", 3), ("high", 0), ("middle", 1)):
        await steps.run(
            "INSERT INTO oban_jobs (worker, priority, tags) VALUES ('W', %s, ARRAY[%s])", priority, name
        )
    done = await steps.engine.ack([], claim(demand=2))
    assert [job["tags"] for job in claimed_by(done)] == [["high"], ["middle"]]


async def test_two_claims_at_once_never_take_the_same_job(steps: Steps) -> None:
    await steps.run("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 60)")
    claims = await asyncio.gather(*(steps.engine.ack([], claim(demand=7)) for _ in range(12)))
    taken = [job["id"] for done in claims for job in claimed_by(done)]
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 60


async def test_a_claim_does_not_touch_the_workflow_row(steps: Steps) -> None:
    workflow = await steps.insert({"a": []})
    ours = await steps.session()
    await ours.execute("SELECT FROM workflows WHERE id = %s FOR UPDATE", (workflow,))
    async with asyncio.timeout(5):
        assert len((await steps.engine.ack([], claim())).claimed) == 1
    await ours.rollback()


async def test_a_claimed_job_that_never_started_goes_back_with_its_attempt(steps: Steps) -> None:
    await steps.insert({"a": []})
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    at = datetime.fromisoformat(job["attempted_at"]).replace(tzinfo=UTC)
    await steps.engine.give_back([(job["id"], at - timedelta(seconds=1))])
    assert (await steps.jobs())["a"] == "executing", "fenced like an ack"
    await steps.engine.give_back([(job["id"], at)])
    assert await steps.rows("SELECT state::text, attempt FROM oban_jobs") == [("available", 0)]


async def test_an_error_in_the_ack_propagates_and_undoes_all_of_it(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"]})
    await steps.run(
        f"ALTER TABLE workflows ADD CONSTRAINT broken CHECK (id <> '{workflow}' OR unsettled = 2)"
    )
    outcomes = await steps.start("a")
    with pytest.raises(errors.CheckViolation):
        await steps.engine.ack(outcomes)
    assert await steps.jobs() == {"a": "executing", "b": "suspended"}
    assert await steps.rows("SELECT * FROM workflow_repairs") == []


# --- who changes a job: everybody is followed in the same transaction --------------------------------


async def test_obans_cancel_of_a_released_step_dooms_its_dependents_at_once(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["b"]})
    await (await steps.oban()).cancel_job(await steps.job_id("a"))
    assert set((await steps.states()).values()) == {"cancelled"}
    assert set((await steps.jobs()).values()) == {"cancelled"}
    assert (await steps.workflow(workflow))["outcome"] == "failed"
    assert await steps.completions() == [("failed", ["a", "b", "c"])]
    assert (await steps.step("b"))["doomed"]
    assert (await steps.step("b"))["error"] == "its dependency 'a' was cancelled"


async def test_obans_cancel_of_a_held_step_settles_it_before_its_dependencies(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"], "c": ["b"]})
    await (await steps.oban()).cancel_job(await steps.job_id("b"))
    assert await steps.states() == {"a": "available", "b": "cancelled", "c": "cancelled"}
    await steps.finish("a")
    assert await steps.completions() == [("failed", ["b", "c"])]


async def test_obans_cancel_of_an_executing_step_leaves_it_to_its_worker(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    outcomes = await steps.start("a")
    await (await steps.oban()).cancel_job(await steps.job_id("a"))
    assert await steps.states() == {"a": "executing", "b": "held"}
    await steps.engine.ack(outcomes)
    assert await steps.states() == {"a": "completed", "b": "available"}


async def test_obans_retry_of_a_held_step_puts_its_job_back(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await (await steps.oban()).retry_job(await steps.job_id("b"))
    assert await steps.jobs() == {"a": "available", "b": "suspended"}
    await steps.finish("a")
    assert await steps.jobs() == {"a": "completed", "b": "available"}


async def test_obans_retry_of_a_doomed_step_leaves_it_cancelled(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    oban = await steps.oban()
    await oban.cancel_job(await steps.job_id("a"))
    await oban.retry_job(await steps.job_id("b"))
    assert (await steps.jobs())["b"] == "cancelled"


@pytest.mark.parametrize("state", ["available", "scheduled", "retryable", "executing"])
async def test_a_held_steps_job_is_put_back_from_any_state_in_the_same_statement(
    steps: Steps, state: str
) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.run("UPDATE oban_jobs SET state = %s WHERE id = %s", state, await steps.job_id("b"))
    assert await steps.jobs() == {"a": "available", "b": "suspended"}
    assert (await steps.step("b"))["waiting_on"] == 1


async def test_obans_delete_of_a_step_counts_as_its_cancel(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"], "free": []})
    await (await steps.oban()).delete_job(await steps.job_id("a"))
    assert await steps.states() == {"a": "cancelled", "b": "cancelled", "free": "available"}
    assert (await steps.step("a"))["error"] == "its job was deleted"


async def test_obans_delete_of_a_held_step_settles_it(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"], "c": ["b"]}, ignore_cancelled=["c"])
    await (await steps.oban()).delete_job(await steps.job_id("b"))
    assert await steps.states() == {"a": "available", "b": "cancelled", "c": "available"}


async def test_obans_rescue_makes_a_step_run_again_and_settles_an_exhausted_one(steps: Steps) -> None:
    await steps.insert({"a": [], "x": [], "b": ["x"]}, max_attempts=1)
    await steps.run("UPDATE oban_jobs SET max_attempts = 2 WHERE id = %s", await steps.job_id("a"))
    await steps.start("a", "x")
    oban = await steps.oban()
    await steps.run(
        "UPDATE oban_jobs SET attempted_at = attempted_at - interval '1 hour' WHERE attempted_at IS NOT NULL"
    )
    assert await oban._query.rescue_jobs(60.0) == 2
    assert await steps.states() == {"a": "available", "x": "discarded", "b": "cancelled"}


async def test_obans_pruner_takes_nothing_from_a_running_workflow(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["b"]})
    await steps.finish("a", result='"kept"')
    oban = await steps.oban()
    assert await oban._query.prune_jobs(0, 100) == 1
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    assert job["step"]["inputs"] == {"a": {"value": "kept"}}
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", job["id"])
    await steps.finish("c")
    assert (await steps.workflow(workflow))["outcome"] == "completed"


async def test_obans_update_of_a_job_may_overwrite_its_meta_without_losing_the_step(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await (await steps.oban()).update_job(
        await steps.job_id("a"), {"meta": {}, "priority": 2, "worker": "Other"}
    )
    await steps.finish("a")
    assert await steps.states() == {"a": "completed", "b": "available"}


async def test_obans_update_of_scheduled_at_does_not_start_a_held_step(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await (await steps.oban()).update_job(await steps.job_id("b"), {"scheduled_at": LATER})
    await steps.finish("a")
    assert (await steps.jobs())["b"] == "scheduled"


async def test_obans_staging_makes_a_scheduled_step_available_and_settles_nothing(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]}, scheduled={"a": LATER})
    oban = await steps.oban()
    await oban._query.stage_jobs(100, ["default"], LATER + timedelta(hours=1))
    assert await steps.states() == {"a": "available", "b": "held"}


async def test_a_dba_who_updates_a_thousand_jobs_at_once_is_followed_in_that_transaction(
    steps: Steps,
) -> None:
    await steps.insert({**{f"a{n}": [] for n in range(1000)}, "join": [f"a{n}" for n in range(1000)]})
    dba = await steps.session()
    await dba.execute("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    assert (await steps.states())["join"] == "held"
    await dba.commit()
    assert (await steps.states())["join"] == "available"


async def test_what_a_dba_rolls_back_never_happened(steps: Steps) -> None:
    workflow = await steps.insert({"a": []})
    dba = await steps.session()
    await dba.execute("UPDATE oban_jobs SET state = 'completed'")
    await dba.rollback()
    assert await steps.states() == {"a": "available"}
    assert (await steps.workflow(workflow))["unsettled"] == 1
    assert await steps.completions() == []


async def test_a_completion_by_another_node_gives_a_null_result_and_releases(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    (started,) = await steps.start("a")
    job = Job("W", id=started.job_id, attempted_at=started.attempted_at)
    oban = await steps.oban()
    assert await stock_ack(oban._query, [AckAction(job=job, state="completed")]) == [started.job_id]
    row = await steps.step("a")
    assert (row["state"], row["result"], row["attempt"]) == ("completed", {"value": None, "foreign": True}, 1)
    assert await steps.states() == {"a": "completed", "b": "available"}


async def test_obans_retry_of_a_completed_step_runs_it_again_without_counting_it_again(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": [], "join": ["a", "b"]})
    await steps.finish("a", result='"first"')
    await (await steps.oban()).retry_job(await steps.job_id("a"))
    assert (await steps.jobs())["a"] == "available"
    await steps.finish("a", result='"second"')
    row = await steps.step("a")
    assert (row["state"], row["result"], row["reruns"]) == ("completed", {"value": "first"}, 1)
    assert (await steps.step("join"))["waiting_on"] == 1
    assert (await steps.workflow(workflow))["unsettled"] == 2


async def test_truncating_the_job_table_cancels_what_had_not_settled(steps: Steps) -> None:
    done = await steps.insert({"done": []})
    await steps.finish("done")
    live = await steps.insert({"a": [], "b": ["a"]})
    await steps.run("TRUNCATE oban_jobs RESTART IDENTITY CASCADE")
    assert await steps.states() == {"done": "completed", "a": "cancelled", "b": "cancelled"}
    assert (await steps.workflow(done))["outcome"] == "completed"
    assert (await steps.workflow(live))["outcome"] == "failed"
    assert await steps.engine.sweep() == []


async def test_a_cancel_from_a_users_own_trigger_counts(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "c": ["b"]})
    await steps.run(
        "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.state = 'completed' AND pg_trigger_depth() = 1 THEN "
        "UPDATE public.oban_jobs SET state = 'cancelled' WHERE state = 'available'; END IF; RETURN NULL; END $$"
    )
    await steps.run("CREATE TRIGGER veto AFTER UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION veto()")
    outcomes = await steps.start("a")
    await steps.engine.ack(outcomes)
    assert await steps.states() == {"a": "completed", "b": "cancelled", "c": "cancelled"}


async def test_a_users_own_trigger_may_name_its_tables_without_their_schema(steps: Steps) -> None:
    # As it may with Oban alone, whose statements run on the session's own search path.
    await steps.run("CREATE TABLE history (job_id bigint)")
    await steps.run(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO history VALUES (NEW.id); RETURN NEW; END $$"
    )
    await steps.run("CREATE TRIGGER note BEFORE UPDATE ON oban_jobs FOR EACH ROW EXECUTE FUNCTION note()")
    await steps.run("INSERT INTO oban_jobs (worker) VALUES ('W')")
    assert len((await steps.engine.ack([], claim())).claimed) == 1
    assert await steps.value("SELECT count(*) FROM history") == 1


async def test_plain_jobs_have_no_step_and_cost_the_trigger_nothing_but_a_look(steps: Steps) -> None:
    await steps.run("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 10)")
    oban = await steps.oban()
    ids = [row[0] for row in await steps.rows("SELECT id FROM oban_jobs ORDER BY id")]
    done = await steps.engine.ack([], claim(demand=3))
    assert all(job["step"] is None for job in claimed_by(done))
    await steps.engine.ack(
        [
            Outcome(
                job["id"],
                datetime.fromisoformat(job["attempted_at"]).replace(tzinfo=UTC),
                "completed",
                result="7",
            )
            for job in claimed_by(done)
        ]
    )
    await oban.cancel_many_jobs(ids[3:5])
    await oban.retry_many_jobs(ids[:4])
    await oban.delete_many_jobs(ids[5:7])
    assert await steps.rows("SELECT state::text, count(*) FROM oban_jobs GROUP BY 1 ORDER BY 1") == [
        ("available", 7),
        ("cancelled", 1),
    ]
    assert await steps.value("SELECT count(*) FROM workflow_nodes") == 0


# --- doom, excuse, finish ---------------------------------------------------------------------------


async def test_a_doomed_subtree_is_cancelled_in_one_call_at_any_depth(steps: Steps) -> None:
    workflow = await steps.insert(chain(2000))
    await steps.finish("s0", state="discarded")
    assert await steps.rows("SELECT state, count(*) FROM workflow_nodes GROUP BY 1 ORDER BY 1") == [
        ("cancelled", 1999),
        ("discarded", 1),
    ]
    assert await steps.value("SELECT count(*) FROM oban_jobs WHERE state = 'cancelled'") == 1999
    assert (await steps.workflow(workflow))["outcome"] == "failed"


async def test_a_chain_that_is_completed_by_hand_from_within_recurses_no_deeper_than_its_statements(
    steps: Steps,
) -> None:
    await steps.insert(chain(300))
    await steps.run("SET max_stack_depth = '200kB'")
    for n in range(300):
        await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
        assert n < 299 or set((await steps.states()).values()) == {"completed"}


@pytest.mark.parametrize("state", ["cancelled", "discarded"])
@pytest.mark.parametrize("flag", ["ignore_cancelled", "ignore_discarded"])
async def test_a_dependent_goes_on_only_if_it_ignores_that_very_state(
    steps: Steps, state: str, flag: str
) -> None:
    await steps.insert({"a": [], "b": ["a"]}, **{flag: ["b"]})
    await steps.finish("a", state=state)
    accepted = flag.endswith(state)
    assert (await steps.states())["b"] == ("available" if accepted else "cancelled")


async def test_a_failure_that_every_dependent_ignores_is_excused(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["a"]}, ignore_discarded=["b", "c"])
    await steps.finish("a", state="discarded")
    await steps.finish("b", "c")
    row = await steps.workflow(workflow)
    assert (row["outcome"], row["failed"], row["excused"]) == ("completed", 1, 1)
    assert await steps.completions() == [("completed", ["a"])]


async def test_a_failure_that_one_dependent_minds_is_not_excused(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["a"]}, ignore_discarded=["b"])
    await steps.finish("a", state="discarded")
    assert await steps.states() == {"a": "discarded", "b": "available", "c": "cancelled"}
    await steps.finish("b")
    assert (await steps.workflow(workflow))["outcome"] == "failed"


async def test_a_failure_that_nobody_waits_for_fails_the_run(steps: Steps) -> None:
    workflow = await steps.insert({"a": []}, ignore_discarded=["a"])
    await steps.finish("a", state="discarded")
    assert (await steps.workflow(workflow))["outcome"] == "failed"


async def test_a_doomed_step_may_be_excused_in_turn(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["b"]}, ignore_cancelled=["c"])
    await steps.finish("a", state="cancelled")
    assert await steps.states() == {"a": "cancelled", "b": "cancelled", "c": "available"}
    await steps.finish("c")
    row = await steps.workflow(workflow)
    assert (row["outcome"], row["failed"], row["excused"]) == ("failed", 2, 1)


async def test_a_doomed_step_names_the_first_dependency_that_doomed_it(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "join": ["b", "a"]})
    await steps.finish("a", "b", state="discarded")
    assert (await steps.step("join"))["error"] == "its dependency 'a' was discarded"


async def test_a_step_of_a_diamond_is_doomed_once(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d", "a"]})
    await steps.finish("a", state="cancelled")
    assert (await steps.workflow(workflow))["failed"] == 5
    assert await steps.completions() == [("failed", ["a", "b", "c", "d", "e"])]


async def test_a_workflow_finishes_with_its_last_step_and_has_one_completion_row(steps: Steps) -> None:
    workflow = await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    row = await steps.workflow(workflow)
    assert (row["unsettled"], row["outcome"], row["finished_at"]) == (1, None, None)
    assert await steps.completions() == []
    await steps.finish("b")
    row = await steps.workflow(workflow)
    assert (row["unsettled"], row["outcome"]) == (0, "completed")
    assert row["finished_at"] is not None
    assert await steps.rows("SELECT workflow_id, generation, outcome FROM workflow_completions") == [
        (workflow, 1, "completed")
    ]


async def test_an_empty_workflow_is_finished_when_it_is_inserted(steps: Steps) -> None:
    workflow = await steps.insert({})
    assert (await steps.workflow(workflow))["outcome"] == "completed"
    assert await steps.completions() == [("completed", [])]


async def test_a_hundred_workflows_settled_in_one_statement_each_finish_once(steps: Steps) -> None:
    for n in range(100):
        await steps.insert({f"w{n}": []})
    await steps.finish(*(f"w{n}" for n in range(100)))
    assert await steps.value("SELECT count(*) FROM workflow_completions WHERE outcome = 'completed'") == 100


async def test_settling_a_step_that_has_settled_changes_nothing(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a", result='"kept"')
    id_ = (await steps.step("a"))["id"]
    queues = await steps.value(
        "SELECT baton_settle(ARRAY[%s::bigint], '{cancelled}', '{NULL}', '{late}')", id_
    )
    assert queues == []
    assert (await steps.step("a"))["result"] == {"value": "kept"}
    assert await steps.states() == {"a": "completed", "b": "available"}


# --- locks ------------------------------------------------------------------------------------------


async def test_workflows_are_locked_in_the_order_of_their_ids(steps: Steps) -> None:
    first, second = await steps.insert({"a": []}), await steps.insert({"b": []})
    assert first < second
    outcomes = await steps.start("a", "b")
    ours, probe = await steps.session(), await steps.session(autocommit=True)
    lock = "SELECT FROM workflows WHERE id = %s FOR UPDATE"
    for held, free, other_is_taken in ((second, first, True), (first, second, False)):
        await ours.execute(lock, (held,))
        ack = asyncio.create_task(steps.engine.ack(outcomes[::-1]))
        (pid,) = await eventually(steps.blocked)
        assert (await sqlstate_of(probe, lock + " NOWAIT", free) == "55P03") is other_is_taken
        await steps.run("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(psycopg.OperationalError):
            await ack
        await ours.rollback()


async def test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    ours = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE id = %s FOR UPDATE", (await steps.job_id("b"),))
    async with asyncio.timeout(5):
        done = await steps.finish("a")
    assert done.owed
    row = await steps.step("b")
    assert (row["state"], row["owed"]) == ("released", True)
    assert (await steps.jobs())["b"] == "suspended"
    assert await steps.audit() == []
    assert await steps.engine.sweep() == [], "still locked"
    await ours.rollback()
    assert await steps.engine.sweep() == ["default"]
    assert await steps.jobs() == {"a": "completed", "b": "available"}
    assert not (await steps.step("b"))["owed"]
    assert await steps.engine.sweep() == []


async def test_a_cancel_that_is_owed_to_a_doomed_steps_job_is_found_by_the_sweep(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    ours = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE id = %s FOR UPDATE", (await steps.job_id("b"),))
    assert (await steps.finish("a", state="cancelled")).owed
    assert await steps.jobs() == {"a": "cancelled", "b": "suspended"}
    await ours.rollback()
    await steps.engine.sweep()
    assert await steps.jobs() == {"a": "cancelled", "b": "cancelled"}
    assert not (await steps.step("b"))["owed"]


async def test_what_is_owed_to_a_deleted_job_is_forgotten(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    ours = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE id = %s FOR UPDATE", (await steps.job_id("b"),))
    await steps.finish("a", state="cancelled")
    await ours.execute("DELETE FROM oban_jobs WHERE id = %s", (await steps.job_id("b"),))
    await ours.commit()
    await steps.engine.sweep()
    assert not (await steps.step("b"))["owed"]


async def test_sweeps_at_once_on_many_nodes_pay_each_debt_once(steps: Steps) -> None:
    await steps.insert({"a": [], **{f"b{n}": ["a"] for n in range(40)}})
    ours = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE state = 'suspended' FOR UPDATE")
    await steps.finish("a")
    await ours.rollback()
    paid = await asyncio.gather(*(steps.engine.sweep() for _ in range(4)))
    assert sum(len(queues) for queues in paid) == 40
    assert await steps.value("SELECT count(*) FROM oban_jobs WHERE state = 'available'") == 40


async def test_obans_cancel_of_held_steps_and_acks_of_their_dependencies_do_not_deadlock(
    steps: Steps,
) -> None:
    oban = await steps.oban()
    for round_ in range(15):
        names = [f"{round_}-{n}" for n in range(4)]
        await steps.insert({names[0]: [], names[1]: [names[0]], names[2]: [names[0]], names[3]: names[1:3]})
        ids = [await steps.job_id(name) for name in names[1:]]
        outcomes = await steps.start(names[0])
        await asyncio.gather(
            steps.engine.ack(outcomes), oban.cancel_many_jobs(ids), oban.retry_many_jobs(ids[::-1])
        )
    await steps.engine.sweep()
    deadlocks = await steps.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks == 0


# --- errors of the trigger ---------------------------------------------------------------------------


def broken(workflow: UUID, sqlstate: str = "XX999") -> list[str]:
    """Statements that make every settle of one workflow fail with an SQLSTATE."""
    return [
        "CREATE FUNCTION break_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION 'broken' USING ERRCODE = '{sqlstate}'; END $$",
        "CREATE TRIGGER break_it BEFORE UPDATE ON workflows FOR EACH ROW "
        f"WHEN (NEW.id = '{workflow}') EXECUTE FUNCTION break_it()",
    ]


async def test_a_plain_statement_never_fails_because_a_step_could_not_settle(steps: Steps) -> None:
    bad = await steps.insert({"bad": [], "after": ["bad"]})
    good = await steps.insert({"good": []})
    for statement in broken(bad):
        await steps.run(statement)
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    assert await steps.jobs() == {"bad": "completed", "after": "suspended", "good": "completed"}
    assert (await steps.workflow(good))["outcome"] == "completed", "the others settle all the same"
    assert await steps.rows("SELECT step_id, state, sqlstate, error FROM workflow_repairs") == [
        ((await steps.step("bad"))["id"], "completed", "XX999", "broken")
    ]
    assert any(row[0] == "repairs" for row in await steps.audit())

    await steps.run("DROP TRIGGER break_it ON workflows")
    assert await steps.engine.sweep() == ["default"]
    assert await steps.states() == {"bad": "completed", "after": "available", "good": "completed"}
    assert await steps.rows("SELECT * FROM workflow_repairs") == []


async def test_a_sweep_that_still_cannot_repair_one_step_pays_and_repairs_the_others(steps: Steps) -> None:
    bad = await steps.insert({"bad": []})
    await steps.insert({"a": [], "b": ["a"]})
    for statement in broken(bad):
        await steps.run(statement)
    await steps.run("UPDATE oban_jobs SET state = 'cancelled' WHERE id = %s", await steps.job_id("bad"))
    ours = await steps.session()
    await ours.execute("SELECT FROM oban_jobs WHERE id = %s FOR UPDATE", (await steps.job_id("b"),))
    await steps.finish("a")
    await ours.rollback()

    assert await steps.engine.sweep() == ["default"]
    assert (await steps.states())["b"] == "available"
    assert await steps.engine.sweep() == []
    assert await steps.rows("SELECT sqlstate, error FROM workflow_repairs") == [("XX999", "broken")]
    await steps.run("DROP TRIGGER break_it ON workflows")
    await steps.engine.sweep()
    assert (await steps.states())["bad"] == "cancelled"


async def test_a_plain_delete_never_fails_because_a_step_could_not_settle(steps: Steps) -> None:
    bad = await steps.insert({"bad": []})
    for statement in broken(bad):
        await steps.run(statement)
    await (await steps.oban()).delete_job(await steps.job_id("bad"))
    assert await steps.jobs() == {"bad": "gone"}
    await steps.run("DROP TRIGGER break_it ON workflows")
    await steps.engine.sweep()
    assert await steps.states() == {"bad": "cancelled"}


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "53200", "55P03", "57P01"])
async def test_an_error_that_nobody_is_to_blame_for_reaches_the_caller(steps: Steps, sqlstate: str) -> None:
    workflow = await steps.insert({"a": []})
    for statement in broken(workflow, sqlstate):
        await steps.run(statement)
    assert await sqlstate_of(steps.db, "UPDATE oban_jobs SET state = 'completed'") == sqlstate
    assert await steps.jobs() == {"a": "available"}
    assert await steps.rows("SELECT * FROM workflow_repairs") == []


async def test_a_caller_in_repeatable_read_is_told_to_try_again(steps: Steps) -> None:
    await steps.insert({"a": [], "b": [], "join": ["a", "b"]})
    caller = await steps.session()
    await caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await caller.execute("SELECT count(*) FROM oban_jobs")
    await steps.finish("a")
    job = await steps.job_id("b")
    assert await sqlstate_of(caller, "UPDATE oban_jobs SET state = 'completed' WHERE id = %s", job) == "40001"
    await caller.rollback()
    await caller.execute("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", (job,))
    await caller.commit()
    assert (await steps.states())["join"] == "available"


async def test_the_engine_reads_committed_rows_whatever_the_databases_default_is(steps: Steps) -> None:
    await steps.run(
        sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'")
        .format(sql.Identifier(steps.db.info.dbname))
        .as_string()
    )
    branches = [f"b{n}" for n in range(12)]
    await steps.insert({**{name: [] for name in branches}, "join": branches})
    await asyncio.gather(*(steps.engine.ack([outcome]) for outcome in await steps.start(*branches)))
    assert (await steps.states())["join"] == "available"


# --- rights and structure ----------------------------------------------------------------------------


async def as_role(steps: Steps, role: str) -> AsyncConnection:
    session = await steps.session(autocommit=True)
    await session.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    return session


@pytest.fixture
async def stranger(steps: Steps) -> AsyncIterator[AsyncConnection]:
    """A connection of a role that may write Oban's tables and nothing of Baton's."""
    role = f"stranger_{uuid4().hex[:8]}"
    name = sql.Identifier(role).as_string()
    await steps.run(f"CREATE ROLE {name}")
    await steps.run(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON oban_jobs, oban_producers TO {name}")
    session = await as_role(steps, role)
    yield session
    await session.close()
    await steps.run(f"DROP OWNED BY {name}")
    await steps.run(f"DROP ROLE {name}")


async def test_a_role_that_may_only_write_jobs_can_end_steps(steps: Steps, stranger: AsyncConnection) -> None:
    await steps.insert({"a": [], "b": ["a"], "c": ["a"], "d": []})
    ids = {name: await steps.job_id(name) for name in "abcd"}
    assert await sqlstate_of(stranger, "SELECT FROM workflow_nodes") == "42501"
    await stranger.execute("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", (ids["a"],))
    await stranger.execute("UPDATE oban_jobs SET state = 'cancelled' WHERE id = %s", (ids["b"],))
    await stranger.execute("DELETE FROM oban_jobs WHERE id = %s", (ids["c"],))
    assert await steps.states() == {"a": "completed", "b": "cancelled", "c": "cancelled", "d": "available"}
    await stranger.execute("TRUNCATE oban_jobs")
    assert (await steps.states())["d"] == "cancelled"


async def test_nobody_calls_the_engines_functions_without_a_grant(
    steps: Steps, stranger: AsyncConnection
) -> None:
    assert await sqlstate_of(stranger, "SELECT baton_sweep('{}', '')") == "42501"
    assert (
        await sqlstate_of(stranger, "SELECT baton_settle('{1}', '{cancelled}', '{NULL}', '{NULL}')")
        == "42501"
    )
    assert await sqlstate_of(stranger, "SELECT baton_give_back('{1}', '{now}')") == "42501"


async def test_a_strangers_search_path_does_not_change_what_the_functions_read(
    steps: Steps, stranger: AsyncConnection
) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await stranger.execute("CREATE TEMP TABLE workflow_nodes (id int); CREATE TEMP TABLE unnest (id int)")
    await stranger.execute("SET search_path = pg_temp, public")
    await stranger.execute("UPDATE public.oban_jobs SET state = 'completed' WHERE state = 'available'")
    assert await steps.states() == {"a": "completed", "b": "available"}


async def test_triggers_have_their_owners_rights_and_a_fixed_search_path_and_nothing_else_has(
    steps: Steps,
) -> None:
    texts = "".join(FUNCTIONS.values())
    # Each is named once where it is made, and once more where another calls it.
    entries = {name for name in FUNCTIONS if len(re.findall(rf"baton_{name}\b", texts)) == 1}
    # Called by Python as well as by another.
    entries |= set(re.findall(r"baton_(\w+)\(", inspect.getsource(_engine)))
    assert {"ack", "insert", "store_call", "sweep", "on_jobs_updated"} <= entries
    triggers = {name for name in FUNCTIONS if name.startswith("on_")}
    found = await steps.rows(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE proname LIKE 'baton\\_%%'"
    )
    assert {f"baton_{name}" for name in FUNCTIONS} == {name for name, _, _ in found}
    assert {name.removeprefix("baton_") for name, definer, _ in found if definer} == triggers
    for name, definer, config in found:
        assert ("search_path=pg_catalog, pg_temp" in (config or ())) == definer, name
        pinned = name.removeprefix("baton_") in entries
        assert ("plan_cache_mode=force_generic_plan" in (config or ())) == pinned, name


def test_every_function_is_a_file_of_its_own_without_dynamic_sql_or_a_look_at_its_depth() -> None:
    for name, text in FUNCTIONS.items():
        code = re.sub(r"--.*", "", text)
        assert re.findall(r"CREATE OR REPLACE FUNCTION /\* schema \*/(\w+)", code) == [f"baton_{name}"]
        assert "pg_trigger_depth" not in code, name
        assert not re.search(r"\bEXECUTE\b", code), name


async def test_obans_type_and_tables_can_be_dropped_for_nothing_of_batons_depends_on_them(
    steps: Steps,
) -> None:
    columns = await steps.rows(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE udt_name IN ('oban_job_state', '_oban_job_state') AND table_name LIKE 'workflow%%'"
    )
    assert columns == []
    assert await steps.rows("SELECT conname FROM pg_constraint WHERE contype = 'f'") == []
    await steps.insert({"a": []})
    await steps.run("DROP TABLE oban_producers, oban_leaders CASCADE")
    await steps.run("DROP TABLE oban_jobs CASCADE")
    await steps.run("DROP TYPE oban_job_state CASCADE")
    assert await steps.value("SELECT count(*) FROM workflow_nodes") == 1
    steps.audited = False


async def test_there_is_one_trigger_for_each_event_and_none_for_columns(steps: Steps) -> None:
    assert await steps.rows(
        "SELECT tgname, tgattr::text FROM pg_trigger WHERE tgrelid = 'oban_jobs'::regclass AND NOT tgisinternal ORDER BY 1"
    ) == [("baton_jobs_deleted", ""), ("baton_jobs_truncated", ""), ("baton_jobs_updated", "")]


@pytest.mark.parametrize(
    "how",
    ["DISABLE TRIGGER baton_jobs_updated", "ENABLE REPLICA TRIGGER baton_jobs_updated"],
)
async def test_a_trigger_that_was_turned_off_is_found_by_check_and_mended_by_up(
    steps: Steps, how: str
) -> None:
    await steps.run(f"ALTER TABLE oban_jobs {how}")
    state = await migration.check(steps.dsn)
    assert not state.ready
    assert state.missing_triggers == ("baton_jobs_updated",)
    await migration.up(steps.dsn)
    assert (await migration.check(steps.dsn)).ready


async def test_illegal_rows_are_refused(steps: Steps) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    for change in (
        "waiting_on = -1",
        "waiting_on = 0",
        "state = 'completed', waiting_on = 0, settled_at = now()",
        "state = 'cancelled', waiting_on = 0",
        "state = 'unheard of'",
        "doomed = true",
        "owed = true",
    ):
        assert (
            await sqlstate_of(steps.db, f"UPDATE workflow_nodes SET {change} WHERE name = 'b'") == "23514"
        ), change
    for change in ("unsettled = 3", "unsettled = -1", "unsettled = 0", "failed = 3", "outcome = 'completed'"):
        assert await sqlstate_of(steps.db, f"UPDATE workflows SET {change}") == "23514", change
    assert await sqlstate_of(steps.db, "INSERT INTO workflow_edges VALUES (1, 1)") == "23514"


async def test_the_audit_finds_what_the_trigger_could_not_see(steps: Steps) -> None:
    steps.audited = False
    await steps.insert({"a": [], "b": ["a"]})
    await steps.run("SET session_replication_role = replica")
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    await steps.run("RESET session_replication_role")
    assert [(row[0], row[2]) for row in await steps.audit()] == [("pairing", "a")]


async def test_what_changed_behind_the_triggers_back_is_found_and_followed(steps: Steps) -> None:
    await steps.insert({"done": [], "gone": [], "b": ["done"], "c": ["gone"], "let": [], "through": ["let"]})
    await steps.run("SET session_replication_role = replica")
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", await steps.job_id("done"))
    await steps.run("UPDATE oban_jobs SET state = 'available' WHERE id = %s", await steps.job_id("through"))
    await steps.run("DELETE FROM oban_jobs WHERE id = %s", await steps.job_id("gone"))
    await steps.run("RESET session_replication_role")
    assert await steps.value("SELECT baton_reconcile()") == 3
    assert await steps.states() == {
        "done": "completed",
        "gone": "cancelled",
        "b": "available",
        "c": "cancelled",
        "let": "available",
        "through": "held",
    }
    assert await steps.value("SELECT baton_reconcile()") == 0


async def test_jobs_that_a_producer_claimed_without_knowing_go_back(steps: Steps) -> None:
    await steps.run("INSERT INTO oban_jobs (worker) SELECT 'W' FROM generate_series(1, 3)")
    ours, other = claim(), claim()
    known, lost = [job["id"] for job in claimed_by(await steps.engine.ack([], replace(ours, demand=2)))]
    await steps.engine.ack([], other)
    assert (
        await steps.value("SELECT baton_reclaim('default', %s, ARRAY[%s::bigint])", ours.producer, known) == 1
    )
    assert await steps.rows("SELECT id, state::text, attempt FROM oban_jobs WHERE state = 'available'") == [
        (lost, "available", 0)
    ]


# --- notifications -----------------------------------------------------------------------------------


async def heard(listener: AsyncConnection) -> list[tuple[str, dict[str, object]]]:
    """What was notified until now: a notification of our own marks the end."""
    await listener.execute("SELECT pg_notify('mark', '')")
    found = []
    async for notification in listener.notifies(timeout=5):
        if notification.channel == "mark":
            return found
        found.append((notification.channel, json.loads(notification.payload)))
    raise AssertionError("the mark never came")


@pytest.fixture
async def listener(steps: Steps) -> AsyncConnection:
    session = await steps.session(autocommit=True)
    await session.execute('LISTEN "public.oban_insert"; LISTEN "public.oban_workflow"; LISTEN mark')
    return session


async def test_nothing_is_notified_where_no_other_producer_listens(
    steps: Steps, listener: AsyncConnection
) -> None:
    ours = uuid4()
    await steps.run(
        "INSERT INTO oban_producers (uuid, name, node, queue) VALUES (%s, 'Oban', 'n', 'default')", ours
    )
    steps.engine.local_producers.append(ours)
    await steps.insert({"a": [], "b": ["a"]})
    await steps.finish("a")
    assert await heard(listener) == []


async def test_another_nodes_queue_is_woken_once_for_each_queue_and_transaction(
    steps: Steps, listener: AsyncConnection
) -> None:
    await steps.run(
        "INSERT INTO oban_producers (uuid, name, node, queue) SELECT gen_random_uuid(), 'Oban', 'n', q "
        "FROM unnest('{default,default,mail}'::text[]) AS q"
    )
    await steps.insert(
        {"a": [], **{f"b{n}": ["a"] for n in range(5)}, "m": ["a"], "q": ["a"]},
        queues={"m": "mail", "q": "quiet"},
    )
    origin = steps.engine.origin
    assert await heard(listener) == [("public.oban_insert", {"queue": "default", "origin": origin})]
    await steps.finish("a")
    assert sorted((payload["queue"], payload["origin"]) for _, payload in await heard(listener)) == [
        ("default", origin),
        ("mail", origin),
    ]


async def test_a_release_by_a_plain_statement_wakes_every_node(
    steps: Steps, listener: AsyncConnection
) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.run(
        "INSERT INTO oban_producers (uuid, name, node, queue) VALUES (gen_random_uuid(), 'Oban', 'n', 'default')"
    )
    await heard(listener)
    await steps.run("UPDATE oban_jobs SET state = 'completed' WHERE id = %s", await steps.job_id("a"))
    assert await heard(listener) == [("public.oban_insert", {"queue": "default", "origin": None})]


async def test_a_rolled_back_release_is_not_notified(steps: Steps, listener: AsyncConnection) -> None:
    await steps.insert({"a": [], "b": ["a"]})
    await steps.run(
        "INSERT INTO oban_producers (uuid, name, node, queue) VALUES (gen_random_uuid(), 'Oban', 'n', 'default')"
    )
    await heard(listener)
    dba = await steps.session()
    await dba.execute("UPDATE oban_jobs SET state = 'completed' WHERE state = 'available'")
    await dba.rollback()
    assert await heard(listener) == []


async def test_what_settles_is_notified_to_topics_with_a_live_lease_alone(
    steps: Steps, listener: AsyncConnection
) -> None:
    quiet, watched, awaited = [await steps.insert({name: [], f"{name}2": [name]}) for name in ("q", "w", "f")]
    lease = (
        "INSERT INTO workflow_subscribers VALUES (%s, gen_random_uuid(), now() + %s * interval '1 second')"
    )
    await steps.run(lease, f"settled:{quiet}", -1)
    await steps.run(lease, f"settled:{watched}", 60)
    await steps.run(lease, f"finished:{awaited}", 60)
    await steps.finish("q", "w", "f")
    settled = ("public.oban_workflow", {"id": str(watched), "fact": "settled"})
    assert await heard(listener) == [settled]
    await steps.finish("q2", "w2", "f2")
    finished = ("public.oban_workflow", {"id": str(awaited), "fact": "finished"})
    assert sorted(await heard(listener), key=str) == sorted([settled, finished], key=str)


# --- store -------------------------------------------------------------------------------------------


async def test_a_value_is_stored_in_its_own_commit_and_only_by_the_attempt_that_holds_the_job(
    steps: Steps,
) -> None:
    await steps.insert({"a": []})
    (first,) = await steps.start("a")
    assert await steps.engine.store(first.job_id, first.attempted_at, "", '"kept"')
    assert await steps.engine.store(first.job_id, first.attempted_at, "", '"later"'), "the first value stays"
    await steps.run("UPDATE oban_jobs SET state = 'available' WHERE id = %s", first.job_id)
    assert not await steps.engine.store(first.job_id, first.attempted_at, "", '"late"')
    assert await steps.rows("SELECT key, value, attempt FROM workflow_checkpoints") == [
        ("", {"value": "kept"}, 1)
    ]
    (job,) = claimed_by(await steps.engine.ack([], claim()))
    assert job["step"]["stored"] == {"value": "kept"}


# --- the files ---------------------------------------------------------------------------------------


async def test_a_cost_that_is_not_known_is_null_and_never_0(steps: Steps) -> None:
    run_id = await steps.insert({"a": []})
    call = {
        "workflow_id": str(run_id),
        "workflow_label": "w",
        "step_id": 1,
        "step_name": "a",
        "attempt": 1,
        "model": "no-such",
    }
    await steps.engine.record(json.dumps([{**call, "id": str(UUID(int=1)), "input_tokens": 5}]), "[]")
    assert await steps.rows("SELECT cost_usd, output_tokens, input_tokens FROM workflow_step_stats") == [
        (None, None, 5)
    ]
    with pytest.raises(errors.CheckViolation):
        await steps.rows("UPDATE workflow_step_stats SET cost_usd = 0 RETURNING id")


def test_every_statement_says_first_what_it_is() -> None:
    folder = Path(baton.__file__).parent / "sql"
    for path in folder.rglob("*.sql"):
        assert re.match(r"-- [\w]+: \S", path.read_text()), path
