"""Budgets in the database: reserved before a call, settled after it, and what becomes of them with their runs."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from baton import Budget
from baton._engine import Outcome
from baton._plan import plan_insert
from tests.kit import fixtures
from tests.kit.engine import Steps, graph
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn

ONE_STEP: dict[str, list[str]] = {"a": []}


@pytest.fixture
async def steps(baton_dsn: str) -> AsyncIterator[Steps]:
    async with Steps.opened(baton_dsn) as steps:
        yield steps


async def reserve(
    steps: Steps, attempt: Outcome, usd: str | None = "0", tokens: int = 0, *, id_: UUID | None = None
) -> tuple[str, UUID]:
    """The status that a reservation came to, and its id."""
    id_ = id_ or uuid4()
    said = await steps.engine.reserve(
        id_, attempt.job_id, attempt.attempted_at, None if usd is None else Decimal(usd), tokens
    )
    return said["status"], id_


async def charge(
    steps: Steps, run: UUID, reservation: UUID | None, usd: str | None, tokens: int | None = None
) -> None:
    await charge_all(steps, [(run, reservation, usd, tokens)])


async def charge_all(steps: Steps, used: Sequence[tuple[UUID, UUID | None, str | None, int | None]]) -> None:
    calls = [
        {"workflow_id": str(run), "reservation": id_ and str(id_), "cost_usd": usd, "output_tokens": tokens}
        for run, id_, usd, tokens in used
    ]
    await steps.run("SELECT baton_charge(%s::jsonb)", json.dumps(calls))


async def figures(steps: Steps, key: str | None = None) -> tuple[Any, ...]:
    """Spent and reserved dollars, tokens and calls of the shared budget, or of the only run's own."""
    where = "workflow_id IS NOT NULL" if key is None else f"key = '{key}'"
    ((*found,),) = await steps.rows(
        "SELECT spent_usd::text, reserved_usd::text, spent_tokens, reserved_tokens, spent_calls, reserved_calls "
        f"FROM workflow_budgets WHERE {where}"
    )
    return tuple(found)


async def status(steps: Steps, attempt: Outcome) -> str:
    """Whether a step may start."""
    return str((await steps.engine.reserve(None, attempt.job_id, attempt.attempted_at, None, 0))["status"])


# --- reserve and settle -----------------------------------------------------------------------------


async def test_what_a_call_may_come_to_is_set_aside_and_settled_with_what_it_used(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd="1", tokens=1_000, calls=5))
    (attempt,) = await steps.start("a")
    said, id_ = await reserve(steps, attempt, "0.40", 100)
    assert said == "ok"
    assert await figures(steps) == ("0", "0.40", 0, 100, 0, 1)
    await charge(steps, run, id_, "0.123456789", 42)
    assert await figures(steps) == ("0.123456789", "0.00", 42, 0, 1, 0)
    assert await steps.value("SELECT count(*) FROM workflow_reservations") == 0


async def test_a_reservation_that_is_sent_again_is_made_once(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.6")
    assert await reserve(steps, attempt, "0.6", id_=id_) == ("ok", id_)
    assert (await figures(steps))[:2] == ("0", "0.6")


@pytest.mark.parametrize(
    ("budget", "asked", "used", "kind"),
    [
        (Budget(usd=1), ("0.6", 5), ("0.6", 5), "usd"),
        (Budget(tokens=10), ("0.6", 6), ("0.6", 6), "tokens"),
        (Budget(calls=1), ("0.6", 6), ("0.6", 6), "calls"),
    ],
)
async def test_a_call_waits_for_those_under_way_and_finds_the_budget_exhausted_after_them(
    steps: Steps, budget: Budget, asked: tuple[str, int], used: tuple[str, int], kind: str
) -> None:
    run = await steps.insert(ONE_STEP, budget=budget)
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, *asked)
    said = await steps.engine.reserve(
        uuid4(), attempt.job_id, attempt.attempted_at, Decimal(asked[0]), asked[1]
    )
    assert (said["status"], said["kind"], said["key"]) == ("waiting", kind, None)
    await charge(steps, run, id_, *used)
    assert (await reserve(steps, attempt, *asked))[0] == "exhausted"


async def test_a_call_that_used_less_than_was_set_aside_leaves_the_rest_to_others(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.9")
    await charge(steps, run, id_, "0.1")
    assert (await reserve(steps, attempt, "0.9"))[0] == "ok"


async def test_a_call_that_is_dearer_than_the_whole_budget_finds_it_exhausted_at_once(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    await reserve(steps, attempt, "0.5")
    assert (await reserve(steps, attempt, "1.01"))[0] == "exhausted"
    assert (await figures(steps))[1] == "0.5"


async def test_of_several_budgets_all_are_asked_or_none(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=[Budget(usd=10), Budget(key="tenant", calls=1)])
    (attempt,) = await steps.start("a")
    assert (await reserve(steps, attempt, "1"))[0] == "ok"
    assert (await reserve(steps, attempt, "1"))[0] == "waiting"
    assert (await figures(steps))[1] == "1"
    assert (await figures(steps, "tenant"))[5] == 1


async def test_what_nobody_asked_leave_for_is_charged_all_the_same(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    await charge(steps, run, None, "3", 7)
    assert await figures(steps) == ("3", "0", 7, 0, 1, 0)
    assert (await reserve(steps, attempt, "0.01"))[0] == "exhausted"


async def test_a_call_whose_cost_is_not_known_is_charged_what_it_had_set_aside(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.4", 9)
    await charge(steps, run, id_, None)
    assert await figures(steps) == ("0.4", "0.0", 9, 0, 1, 0)
    assert await steps.value("SELECT unpriced_calls FROM workflow_budgets") == 1


async def test_what_a_provider_says_never_leads_beyond_what_the_database_counts(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    largest = 2**63 - 1
    await charge_all(steps, [(run, None, "0", largest)] * 3)
    await steps.run(
        "SELECT baton_charge(%s::jsonb)",
        json.dumps([{"workflow_id": str(run), "input_tokens": largest, "output_tokens": largest}]),
    )
    assert (await figures(steps))[2] == 4 * 10**15


async def test_several_calls_of_one_reservation_settle_it_once_and_all_count(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.4")
    await charge_all(steps, [(run, id_, "0.1", 1), (run, id_, "0.1", 1), (run, None, "0.1", None)])
    await charge(steps, run, id_, "0.1", 1)
    assert await figures(steps) == ("0.4", "0.0", 3, 0, 4, 0)


async def test_a_call_that_used_nothing_gives_back_what_was_set_aside(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.4", 4)
    await steps.engine.release_reservation(id_)
    await steps.engine.release_reservation(id_)
    assert await figures(steps) == ("0.0", "0.0", 0, 0, 0, 0)


# --- prices that are not known ----------------------------------------------------------------------


async def test_a_strict_budget_in_dollars_refuses_a_call_whose_price_is_not_known(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=[Budget(usd=1, unpriced="warn"), Budget(key="tenant", usd=5)])
    (attempt,) = await steps.start("a")
    said = await steps.engine.reserve(uuid4(), attempt.job_id, attempt.attempted_at, None, 10)
    assert said == {"status": "unpriced", "key": "tenant"}


async def test_a_lenient_one_lets_it_pass_and_says_so(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(usd=1, unpriced="warn"))
    (attempt,) = await steps.start("a")
    said = await steps.engine.reserve(uuid4(), attempt.job_id, attempt.attempted_at, None, 10)
    assert said == {"status": "ok", "blind": True}
    assert await figures(steps) == ("0", "0", 0, 10, 0, 1)


async def test_a_budget_without_dollars_asks_for_no_price(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(tokens=100))
    (attempt,) = await steps.start("a")
    said = await steps.engine.reserve(uuid4(), attempt.job_id, attempt.attempted_at, None, 10)
    assert said == {"status": "ok", "blind": False}


# --- the start of a step ----------------------------------------------------------------------------


async def test_a_step_may_start_while_something_is_left_and_not_afterwards(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    assert await status(steps, attempt) == "ok"
    await reserve(steps, attempt, "1")
    assert await status(steps, attempt) == "ok", "what is reserved may turn out cheaper"
    await charge(steps, run, None, "1")
    assert await status(steps, attempt) == "exhausted"
    assert await steps.engine.add_to_budget(None, run, Decimal("0.01"), 0, 0)
    assert await status(steps, attempt) == "ok"


# --- attempts that died -----------------------------------------------------------------------------


async def test_what_a_dead_attempt_had_set_aside_counts_as_spent_once_another_needs_it(steps: Steps) -> None:
    await steps.insert({"a": [], "b": []}, budget=Budget(usd=1))
    dead, other = await steps.start("a", "b")
    await reserve(steps, dead, "0.6", 6)
    await (await steps.oban())._query.rescue_jobs(0.0)
    (again, _) = await steps.start("a", "b")
    assert (await reserve(steps, again, "0.3"))[0] == "ok"
    assert (await figures(steps))[:2] == ("0", "0.9"), "there was room, so nobody looked"
    assert (await reserve(steps, again, "0.3"))[0] == "waiting", "for a call that may turn out cheaper"
    assert await figures(steps) == ("0.6", "0.3", 6, 0, 1, 1)
    assert (await reserve(steps, again, "0.5"))[0] == "exhausted"
    assert await status(steps, other) == "late"


async def test_an_attempt_that_lives_after_all_is_charged_what_it_used(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (dead,) = await steps.start("a")
    _, id_ = await reserve(steps, dead, "0.6", 6)
    _, other = await reserve(steps, dead, "0.2", 2)
    await (await steps.oban())._query.rescue_jobs(0.0)
    (again,) = await steps.start("a")
    assert (await reserve(steps, again, "0.6"))[0] == "exhausted"
    assert await figures(steps) == ("0.8", "0.0", 8, 0, 2, 0)
    await charge(steps, run, id_, "0.1", 1)
    await steps.engine.release_reservation(other)
    assert await figures(steps) == ("0.1", "0.0", 1, 0, 1, 0)
    assert await steps.value("SELECT unpriced_calls FROM workflow_budgets") == 0


async def test_an_attempt_that_lost_its_job_gets_no_leave(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    await steps.engine.ack([attempt])
    assert (await reserve(steps, attempt, "0.1"))[0] == "late"
    assert (await figures(steps))[1] == "0"


# --- declaring --------------------------------------------------------------------------------------


async def test_runs_that_name_a_key_share_a_budget_and_the_limits_declared_last_hold(steps: Steps) -> None:
    await steps.insert({"a": []}, budget=Budget(key="day", usd=1))
    (attempt,) = await steps.start("a")
    await reserve(steps, attempt, "0.6")
    await steps.insert({"b": []}, budget=Budget(key="day", usd=1))
    (other,) = await steps.start("b")
    assert (await reserve(steps, other, "0.6"))[0] == "waiting"
    await steps.engine.add_to_budget("day", None, Decimal("0.1"), 0, 0)
    await steps.insert({"c": []}, budget=Budget(key="day", usd=2, on_exhausted="pause"))
    assert (await reserve(steps, other, "0.6"))[0] == "ok"
    assert await steps.rows(
        "SELECT limit_usd::text, added_usd::text, reserved_usd::text, on_exhausted FROM workflow_budgets"
    ) == [("2", "0.1", "1.2", "pause")]


async def test_an_insert_that_changes_no_limit_waits_for_nobody_who_holds_the_budget(steps: Steps) -> None:
    await steps.insert({"a": []}, budget=Budget(key="day", usd=1))
    ours = await steps.session()
    await ours.execute("SELECT FROM workflow_budgets FOR NO KEY UPDATE")
    await steps.insert({"b": []}, budget=Budget(key="day", usd="1.00"))
    changing = asyncio.create_task(steps.insert({"c": []}, budget=Budget(key="day", usd=3)))
    await eventually(steps.blocked)
    await ours.commit()
    await changing


async def test_two_inserts_of_a_new_key_at_once_make_one_budget(steps: Steps) -> None:
    ours = await steps.session()
    first = graph({"a": []}, budget=[Budget(key="x", usd=1), Budget(key="y", usd=1)])
    await steps.engine.insert_into(plan_insert([first]), ours)
    other = asyncio.create_task(
        steps.insert({"b": []}, budget=[Budget(key="y", usd=1), Budget(key="x", usd=2)])
    )
    await eventually(steps.blocked)
    await ours.commit()
    await other
    assert await steps.rows("SELECT key, limit_usd::text FROM workflow_budgets ORDER BY key") == [
        ("x", "2"),
        ("y", "1"),
    ]
    assert await steps.value("SELECT count(*) FROM workflow_budget_runs") == 4


async def test_a_run_that_is_there_already_declares_nothing(steps: Steps) -> None:
    await steps.insert(ONE_STEP, key="once", budget=[Budget(usd=1), Budget(key="day", usd=1)])
    await steps.insert(ONE_STEP, key="once", budget=[Budget(usd=2), Budget(key="day", usd=2)])
    assert await steps.rows("SELECT limit_usd::text FROM workflow_budgets") == [("1",), ("1",)]


async def test_steps_know_whether_their_run_has_a_budget(steps: Steps) -> None:
    await steps.insert({"a": []}, budget=Budget(calls=1))
    await steps.insert({"b": []})
    assert await steps.rows("SELECT name, budgeted FROM workflow_nodes ORDER BY name") == [
        ("a", True),
        ("b", False),
    ]
    assert await steps.value("SELECT count(*) FROM workflow_budgets") == 1


# --- what becomes of them with their runs ------------------------------------------------------------


async def test_a_rerun_has_a_new_budget_of_its_own_and_shares_the_shared_ones(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=[Budget(usd=1), Budget(key="day", usd=5)])
    (attempt,) = await steps.start("a")
    _, id_ = await reserve(steps, attempt, "0.5")
    await charge(steps, run, id_, "0.5")
    await steps.engine.ack([attempt])
    new = uuid4()
    assert await steps.engine.rerun(run, new, None)
    assert await steps.rows(
        "SELECT budget.key, budget.limit_usd::text, budget.spent_usd::text FROM workflow_budget_runs AS drawn "
        "JOIN workflow_budgets AS budget ON budget.id = drawn.budget_id WHERE drawn.workflow_id = %s ORDER BY 1",
        new,
    ) == [("day", "5", "0.5"), (None, "1", "0")]
    assert await steps.value("SELECT budgeted FROM workflow_nodes WHERE workflow_id = %s", new)


async def test_a_retry_goes_on_with_what_is_left(steps: Steps) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1))
    (attempt,) = await steps.start("a")
    await charge(steps, run, None, "0.7")
    await steps.engine.ack([replace(attempt, state="discarded", result=None)])
    await steps.engine.retry(run)
    (again,) = await steps.start("a")
    assert (await reserve(steps, again, "0.4"))[0] == "exhausted"


async def test_a_runs_own_budget_is_pruned_with_it_and_shared_ones_stay(steps: Steps) -> None:
    await steps.insert(ONE_STEP, budget=[Budget(usd=1), Budget(key="day", usd=5)])
    (attempt,) = await steps.start("a")
    await reserve(steps, attempt, "0.5")
    await steps.engine.ack([attempt])
    await steps.run("DELETE FROM oban_jobs")
    await steps.engine.prune(100, 0, None)
    assert await steps.rows("SELECT key, spent_usd::text, reserved_usd::text FROM workflow_budgets") == [
        ("day", "0.5", "0.0")
    ]
    for table in ("workflow_reservations", "workflow_budget_runs", "workflows"):
        assert await steps.value(f"SELECT count(*) FROM {table}") == 0


async def test_a_shared_budget_is_deleted_with_what_it_paused(steps: Steps) -> None:
    run = await steps.insert({"a": [], "b": []}, budget=Budget(key="day", calls=0, on_exhausted="pause"))
    await steps.start("a")
    budget = await steps.value("SELECT id FROM workflow_budgets")
    assert await steps.engine.pause_for(run, budget, None, 0, start=True) == "paused"
    assert await steps.engine.delete_budget("day")
    assert not await steps.engine.delete_budget("day")
    assert await steps.jobs() == {"a": "executing", "b": "available"}
    assert await steps.value("SELECT count(*) FROM workflow_budget_runs") == 0


# --- pausing and topping up -------------------------------------------------------------------------


async def exhausted_run(steps: Steps, **shape: list[str]) -> tuple[UUID, int]:
    """A run whose step `a` is executing, and the id of its exhausted budget."""
    run = await steps.insert(shape or {"a": [], "b": []}, budget=Budget(usd=1, on_exhausted="pause"))
    await steps.start("a")
    await charge(steps, run, None, "1")
    return run, int(await steps.value("SELECT id FROM workflow_budgets"))


async def test_a_run_that_its_budget_paused_starts_nothing_until_something_is_added(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    assert await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False) == "paused"
    assert await steps.jobs() == {"a": "executing", "b": "suspended"}
    assert (await steps.workflow(run))["paused_for"] == budget
    await steps.engine.resume_funded()
    assert (await steps.jobs())["b"] == "suspended", "nothing was added"
    await steps.engine.add_to_budget(None, run, Decimal("0.01"), 0, 0)
    assert (await steps.jobs())["b"] == "available"
    row = await steps.workflow(run)
    assert (row["paused_at"], row["paused_for"]) == (None, None)


async def test_a_budget_that_was_raised_meanwhile_pauses_nothing(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    await steps.engine.add_to_budget(None, run, Decimal(5), 0, 0)
    assert await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False) == "room"
    assert await steps.engine.pause_for(run, budget, Decimal(6), 0, start=False) == "paused"


async def test_what_somebody_paused_stays_paused_when_something_is_added(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    await steps.engine.pause(run)
    assert await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False) == "paused"
    await steps.engine.add_to_budget(None, run, Decimal(5), 0, 0)
    assert (await steps.jobs())["b"] == "suspended"
    await steps.engine.resume(run)
    await steps.engine.add_to_budget(None, run, Decimal(-5), 0, 0)
    assert await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False) == "paused"
    paused_at = (await steps.workflow(run))["paused_at"]
    await steps.engine.pause(run)
    await steps.engine.add_to_budget(None, run, Decimal(5), 0, 0)
    row = await steps.workflow(run)
    assert (row["paused_at"], row["paused_for"]) == (paused_at, None), "a pause of one's own comes after it"


async def test_a_manual_resume_a_cancel_and_a_retry_forget_what_paused_a_run(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False)
    await steps.engine.resume(run)
    assert (await steps.workflow(run))["paused_for"] is None
    await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False)
    await steps.engine.cancel(run, None, "enough")
    assert (await steps.workflow(run))["paused_for"] is None
    assert await steps.engine.pause_for(run, budget, Decimal(1), 0, start=False) == "ended"
    assert await steps.engine.pause_for(uuid4(), budget, Decimal(1), 0, start=False) == "ended"


@pytest.mark.parametrize("charged", [False, True])
async def test_a_run_that_paused_for_a_lost_call_goes_on_when_that_turns_out_cheaper(
    steps: Steps, charged: bool
) -> None:
    run = await steps.insert(ONE_STEP, budget=Budget(usd=1, on_exhausted="pause"))
    (dead,) = await steps.start("a")
    _, id_ = await reserve(steps, dead, "0.6", 6)
    await (await steps.oban())._query.rescue_jobs(0.0)
    (again,) = await steps.start("a")
    assert (await reserve(steps, again, "0.6"))[0] == "exhausted"
    (budget,) = await steps.rows("SELECT id FROM workflow_budgets")
    assert await steps.engine.pause_for(run, budget[0], Decimal("0.6"), 0, start=False) == "paused"
    assert await steps.engine.resume_funded() == 0
    if charged:
        await charge(steps, run, id_, "0.1", 1)
    else:
        await steps.engine.release_reservation(id_)
    assert await steps.engine.resume_funded() == 1


async def test_a_top_up_that_meets_a_pause_under_way_resumes_what_that_paused(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    pausing = await steps.session()
    await pausing.execute("SELECT baton_pause_for(%s, %s, 1, 0, false)", (run, budget))
    adding = asyncio.create_task(steps.engine.add_to_budget(None, run, Decimal(5), 0, 0))
    await eventually(steps.blocked)
    await pausing.commit()
    assert await adding
    assert (await steps.jobs())["b"] == "available"


async def test_a_pause_that_meets_a_top_up_under_way_finds_room(steps: Steps) -> None:
    run, budget = await exhausted_run(steps)
    adding = await steps.session()
    await adding.execute("SELECT baton_add_to_budget(NULL, %s, 5, 0, 0)", (run,))
    pausing = asyncio.create_task(steps.engine.pause_for(run, budget, Decimal(1), 0, start=False))
    await eventually(steps.blocked)
    await adding.commit()
    assert await pausing == "room"
    assert (await steps.jobs())["b"] == "available"


async def test_pausing_acking_reserving_and_settling_at_once_meet_in_one_order(steps: Steps) -> None:
    run, budget = await exhausted_run(steps, a=[], b=[], c=["b"])
    (b,) = await steps.start("b")
    for held in ("oban_jobs", "workflows", "workflow_budgets"):
        ours = await steps.session()
        await ours.execute(f"SELECT FROM {held} FOR UPDATE".encode())
        at_once = [
            steps.engine.pause_for(run, budget, Decimal(1), 0, start=False),
            steps.engine.resume(run),
            steps.engine.charge_dead(),
            reserve(steps, b, "0.5"),
            charge(steps, run, None, "0.1"),
            steps.engine.add_to_budget(None, run, Decimal("0.1"), 0, 0),
            steps.engine.prune(10, 0, None),
        ]
        tasks = [asyncio.create_task(one) for one in at_once]
        await eventually(others_blocked(steps))
        await ours.commit()
        await asyncio.gather(*tasks)
    assert (await steps.engine.ack([b])).acked == [b.job_id]


def others_blocked(steps: Steps) -> Any:
    async def look() -> list[int]:
        async with Steps.opened(steps.dsn) as other:
            other.audited = False
            return await other.blocked()

    return look
