"""Budgets as a user has them: calls that ask for leave, runs that stop or pause, topping up, and what `baton.budgets` says."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import click.testing
import psycopg
import pytest

import baton
from baton import (
    Baton,
    Budget,
    Price,
    Reserve,
    Run,
    Usage,
    Workflow,
    call_llm,
    llm_step,
    once,
    record_usage,
    step,
)
from baton.cli import cli
from baton.errors import (
    BudgetExhausted,
    BudgetNotFound,
    InvalidName,
    InvalidOption,
    RunNotFound,
    StepCancelled,
    UnpricedModel,
)
from tests.kit import fixtures
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

REQUEST = {"model": "m", "max_tokens": 1_000}


def used(tokens: int, model: str = "m") -> dict[str, Any]:
    """An answer as OpenAI's."""
    return {"model": model, "usage": {"prompt_tokens": 0, "completion_tokens": tokens}}


ANSWER = used(100)
# Of the test: what the steps do, and what they did.
script: dict[str, Callable[[], Awaitable[Any]]] = {}
calls: list[str] = []


class Flat:
    """A dollar for a thousand tokens of the model `m`; no price for others."""

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        if usage.model != "m":
            return None
        return Price(Decimal((usage.input_tokens or 0) + (usage.output_tokens or 0)) / 1_000, "flat", "1")


@pytest.fixture
async def app(baton_dsn: str) -> AsyncIterator[Baton]:
    script.clear()
    calls.clear()
    async with Baton(baton_dsn, queues={"default": 10, "llm": 10}, pricing=Flat(), poll_interval=0.2) as app:
        yield app


@step(name="tests.budgets.scripted", max_attempts=3)
async def scripted(name: str) -> Any:
    return await script[name]()


@llm_step(name="tests.budgets.modelled", max_attempts=3, backoff=lambda _: 0)
async def modelled(name: str) -> Any:
    return await script[name]()


async def answer(usage: dict[str, Any] = ANSWER, name: str = "call") -> dict[str, Any]:
    calls.append(name)
    return usage


def asking(usage: dict[str, Any] = ANSWER, **options: Any) -> Callable[[], Awaitable[Any]]:
    async def ask() -> None:
        await call_llm(lambda: answer(usage), **{"request": REQUEST, **options})

    return ask


def workflow(*names: str, made: Any = scripted, chain: bool = False, **options: Any) -> Workflow:
    built = Workflow("w", **options)
    before: list[Any] = []
    for name in names:
        ref = built.add(name, made.new(name=name), deps=before)
        before = [ref] if chain else []
    return built


async def states(run: Run) -> dict[str, str]:
    return {one.name: str(one.state) for one in (await run.status()).steps}


async def attempts(run: Run, name: str) -> int:
    (found,) = [one.attempt for one in (await run.status()).steps if one.name == name]
    return found


async def paused(run: Run) -> bool:
    return (await run.summary()).paused_at is not None


async def test_a_call_is_settled_with_what_it_used(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", budget=Budget(usd=2, tokens=5_000)))
    assert await run.wait() == "completed"
    status = await app.budgets.get(run)
    assert (status.usd.spent, status.usd.reserved, status.usd.left) == (Decimal("0.1"), 0, Decimal("1.9"))
    assert (status.tokens.spent, status.calls.spent, status.calls.limit) == (100, 1, None)
    assert status.text == "$0.10 of $2.00 spent; 100 of 5,000 tokens spent"
    assert not status.is_exhausted
    assert (status.run_id, status.key) == (run.id, None)


async def test_what_a_call_may_come_to_is_set_aside_while_it_is_made(
    app: Baton, db: psycopg.AsyncConnection
) -> None:
    seen: list[tuple[str, int]] = []

    async def look() -> dict[str, Any]:
        newest = await db.execute(
            "SELECT usd::text, tokens FROM workflow_reservations ORDER BY inserted_at DESC LIMIT 1"
        )
        seen.extend(await newest.fetchall())
        return ANSWER

    async def asks() -> None:
        await call_llm(look, request={"model": "m", "max_tokens": 700, "prompt": "x" * 264})
        await call_llm(look, reserve=Reserve(usd="0.5"))
        await once("kept", look, request=REQUEST)

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=10)))
    assert await run.wait() == "completed"
    # The first one's prompt and keys, a model and a number in it are 286 letters, the last one's 19.
    assert seen == [("0.797", 797), ("0.5", 4_096), ("1.007", 1_007)]
    assert (await app.budgets.get(run)).usd.spent == Decimal("0.3")


async def test_an_exhausted_budget_that_nobody_catches_cancels_the_step_at_once(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", budget=Budget(usd="0.5")))
    assert await run.wait() == "failed"
    with pytest.raises(StepCancelled, match=r"the run's budget is exhausted: \$0.00 of \$0.50 spent"):
        await run.result("a")
    assert calls == []
    assert await attempts(run, "a") == 1


async def test_a_step_may_catch_it_and_ask_for_less(app: Baton) -> None:
    async def asks() -> str:
        try:
            await call_llm(answer, request={"model": "m", "max_tokens": 10_000})
        except BudgetExhausted as error:
            calls.append(str(error.budget))
            await call_llm(answer, request={"model": "m", "max_tokens": 100})
            return "less"
        return "all"

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=1, key="day")))
    assert await run.result("a") == "less"
    assert calls == ["day", "call"]


async def test_a_run_that_its_budget_ended_goes_on_after_a_top_up_and_a_retry(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", "b", chain=True, budget=Budget(usd="0.5")))
    script["b"] = asking()
    assert await run.wait() == "failed"
    await app.budgets.add(run, usd=2)
    await run.retry()
    assert await run.wait() == "completed"
    assert (await app.budgets.get(run)).usd.spent == Decimal("0.2")


async def test_calls_side_by_side_that_find_it_exhausted_end_the_step_as_cancelled(app: Baton) -> None:
    async def asks() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(call_llm(answer, request=REQUEST))

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(calls=0)))
    assert await run.wait() == "failed"
    with pytest.raises(StepCancelled, match="exhausted"):
        await run.result("a")


async def test_a_call_waits_in_its_step_for_the_calls_under_way(app: Baton) -> None:
    release = asyncio.Event()

    async def slow() -> dict[str, Any]:
        await release.wait()
        return ANSWER

    script["a"] = lambda: call_llm(slow, request=REQUEST, model="m")
    script["b"] = asking()
    run = await app.insert(workflow("a", "b", budget=Budget(usd="1.5")))
    await eventually(lambda: reserved(app, run, Decimal("1.0")))
    await eventually(lambda: executing(run, "a", "b"))
    release.set()
    assert await run.wait() == "completed"
    assert (await app.budgets.get(run)).usd.spent == Decimal("0.2")
    assert await attempts(run, "b") == 1


async def reserved(app: Baton, run: Run, at_least: Decimal) -> bool:
    return (await app.budgets.get(run)).usd.reserved >= at_least


async def executing(run: Run, *names: str) -> bool:
    found = await states(run)
    return all(found[name] == "executing" for name in names)


# --- pausing and topping up -------------------------------------------------------------------------


async def test_a_run_pauses_until_its_budget_is_topped_up_and_pays_nothing_twice(app: Baton) -> None:
    async def asks() -> None:
        await once("first", lambda: answer(name="first"), request=REQUEST)
        await once("second", lambda: answer(name="second"), request=REQUEST)

    script["a"] = asks
    script["b"] = asking()
    run = await app.insert(workflow("a", "b", chain=True, budget=Budget(usd="1.05", on_exhausted="pause")))
    await eventually(lambda: paused(run))
    await eventually(lambda: suspended(run, "a"))
    status = await app.budgets.get(run.id)
    assert (status.paused_runs, status.usd.spent) == (1, Decimal("0.1"))
    topped = await app.budgets.add(run, usd=5)
    assert (topped.usd.limit, topped.usd.added) == (Decimal("1.05"), 5)
    assert await run.wait() == "completed"
    assert calls == ["first", "second", "call"]
    assert await attempts(run, "a") == 1, "waiting uses no attempt"


async def suspended(run: Run, name: str) -> bool:
    return (await states(run))[name] in ("available", "scheduled")


async def test_a_top_up_that_is_too_small_pauses_the_run_again(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", budget=Budget(usd="0.1", on_exhausted="pause")))
    await eventually(lambda: paused(run))
    await app.budgets.add(run, usd="0.2")
    await eventually(lambda: pauses(app, run, 1))
    assert calls == []
    await app.budgets.add(run, usd=1)
    assert await run.wait() == "completed"


async def pauses(app: Baton, run: Run, runs: int) -> bool:
    return (await app.budgets.get(run)).paused_runs == runs


async def test_a_shared_budget_pauses_all_that_draw_on_it_and_a_higher_limit_lets_them_go_on(
    app: Baton,
) -> None:
    script["a"] = asking()
    day = Budget(usd="0.5", key="day", on_exhausted="pause")
    runs = [await app.insert(workflow("a", budget=day)) for _ in range(2)]
    for run in runs:
        await eventually(lambda run=run: paused(run))
    other = await app.insert(workflow("a", budget=Budget(usd=50, key="day")))
    for run in (*runs, other):
        assert await run.wait() == "completed"
    assert (await app.budgets.get("day")).usd.spent == Decimal("0.3")


async def test_an_llm_step_does_not_begin_on_an_exhausted_budget(app: Baton) -> None:
    script["a"] = asking()
    script["b"] = lambda: answer(name="began")
    built = workflow("a", "b", made=modelled, chain=True, budget=Budget(calls=1))
    run = await app.insert(built)
    assert await run.wait() == "failed"
    assert (await states(run)) == {"a": "completed", "b": "cancelled"}
    assert calls == ["call"]


async def test_an_llm_step_that_has_paid_for_its_call_may_end_on_an_exhausted_budget(app: Baton) -> None:
    async def pays() -> Any:
        value = await once("answer", answer, request=REQUEST)
        if baton.current().attempt == 1:
            raise ValueError("after the answer")
        return value

    script["a"] = pays
    run = await app.insert(workflow("a", made=modelled, budget=Budget(calls=1)))
    assert await run.wait() == "completed"
    assert calls == ["call"]


async def test_a_step_that_makes_no_calls_may_run_on_an_exhausted_budget(app: Baton) -> None:
    script["a"] = lambda: answer(name="began")
    run = await app.insert(workflow("a", budget=Budget(calls=0)))
    assert await run.wait() == "completed"


async def test_a_paused_budget_does_not_hold_up_the_steps_of_a_cancelled_run(app: Baton) -> None:
    async def cleans() -> None:
        await call_llm(answer, request=REQUEST)

    script["a"] = asyncio.Event().wait
    script["clean"] = cleans
    built = Workflow("w", budget=Budget(calls=0, on_exhausted="pause"))
    first = built.add("a", scripted.new(name="a"))
    built.add("clean", scripted.new(name="clean"), deps=[first], always=True)
    run = await app.insert(built)
    await eventually(lambda: executing(run, "a"))
    await run.cancel()
    assert await run.wait() == "cancelled"
    assert (await states(run)) == {"a": "cancelled", "clean": "cancelled"}


# --- calls that come to nothing ----------------------------------------------------------------------


class StatusError(Exception):
    """As the SDKs raise it for an answer that is an error."""

    status_code = 400


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (StatusError("bad request"), 0),
        (ConnectionRefusedError(), 0),
        (TimeoutError(), 1),
        (ValueError("the answer makes no sense"), 1),
    ],
)
async def test_a_call_that_failed_is_charged_unless_nobody_can_have_been_paid(
    app: Baton, error: Exception, spent: int
) -> None:
    async def fails() -> dict[str, Any]:
        raise error

    async def asks() -> None:
        with pytest.raises(type(error)):
            await call_llm(fails, request={"model": "m", "max_tokens": 995})

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    assert await run.wait() == "completed"
    status = await app.budgets.get(run)
    assert (round(status.usd.spent, 1), status.usd.reserved, status.calls.spent) == (spent, 0, spent)


async def test_a_call_that_fails_when_calls_within_it_told_what_they_used_is_charged_that_alone(
    app: Baton,
) -> None:
    async def fails() -> None:
        await call_llm(answer, request=REQUEST)
        raise ValueError("after the answer")

    async def asks() -> None:
        with pytest.raises(ValueError, match="after"):
            await call_llm(fails, request=REQUEST)

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    assert await run.wait() == "completed"
    status = await app.budgets.get(run)
    assert (status.usd.spent, status.usd.reserved, status.calls.spent, status.unpriced_calls) == (
        (await app.stats.workflow_totals(run.id)).cost_usd,
        0,
        1,
        0,
    )


async def test_a_call_that_is_cancelled_is_charged(app: Baton) -> None:
    began = asyncio.Event()

    async def endless() -> None:
        began.set()
        await asyncio.Event().wait()

    async def asks() -> None:
        call = asyncio.create_task(call_llm(endless, request=REQUEST))
        await began.wait()
        call.cancel()
        await asyncio.wait({call})

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    assert await run.wait() == "completed"
    status = await app.budgets.get(run)
    assert (status.usd.spent, status.usd.reserved, status.unpriced_calls) == (Decimal("1.007"), 0, 1)
    assert (await app.stats.workflow_totals(run.id)).cost_text == "unknown"


async def test_a_call_that_is_cancelled_while_it_asks_for_leave_leaves_nothing_set_aside(
    app: Baton, db: psycopg.AsyncConnection, baton_dsn: str
) -> None:
    async def asks() -> None:
        async with await psycopg.AsyncConnection.connect(baton_dsn) as ours:
            await ours.execute("SELECT FROM workflow_budgets FOR UPDATE")
            call = asyncio.create_task(call_llm(answer, request=REQUEST))
            await eventually(lambda: blocked(db))
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled()

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    assert await run.wait() == "completed"
    await eventually(lambda: untouched(app, run))
    assert calls == []


async def test_a_transaction_that_holds_a_budget_holds_up_nothing_but_the_calls_on_it(
    app: Baton, db: psycopg.AsyncConnection, baton_dsn: str
) -> None:
    script["a"] = asking()
    script["b"] = lambda: answer(name="other")
    async with await psycopg.AsyncConnection.connect(baton_dsn) as ours:
        first = await app.insert(workflow("b", budget=Budget(key="held", usd=50)))
        assert await first.wait() == "completed"
        await app.insert(workflow("b", budget=Budget(key="held", usd=60)), conn=ours)
        held = [await app.insert(workflow("a", budget=Budget(key="held", usd=50))) for _ in range(8)]
        await eventually(lambda: blocked(db))
        other = await app.insert(workflow("b"))
        assert await other.wait(timeout=20) == "completed"
        assert await states(held[0]) == {"a": "executing"}
    for run in held:
        assert await run.wait() == "completed"


async def blocked(db: psycopg.AsyncConnection) -> bool:
    found = await db.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    return bool(await found.fetchall())


async def untouched(app: Baton, run: Run) -> bool:
    status = await app.budgets.get(run)
    return (status.calls.spent, status.calls.reserved) == (0, 0)


# --- prices that are not known ----------------------------------------------------------------------


async def test_a_strict_budget_refuses_a_model_without_a_price_and_says_what_to_do(app: Baton) -> None:
    async def asks() -> list[str]:
        told = []
        for options in ({"model": "unheard-of"}, {}):
            with pytest.raises(UnpricedModel) as raised:
                await call_llm(answer, **options)  # type: ignore[arg-type]
            told.append(str(raised.value))
        await call_llm(answer, reserve=Reserve(usd=1))
        return told

    script["a"] = asks
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    unheard, nameless = await run.result("a")
    assert "no price is known for model 'unheard-of'" in unheard
    assert "nothing says what this call may cost" in nameless
    assert calls == ["call"]


async def test_a_lenient_one_lets_it_pass_logs_it_and_counts_it(
    app: Baton, caplog: pytest.LogCaptureFixture
) -> None:
    script["a"] = asking(used(10, "x"), request={"model": "x"})
    with caplog.at_level(logging.WARNING, "baton.step"):
        run = await app.insert(workflow("a", budget=Budget(usd=5, unpriced="warn")))
        assert await run.wait() == "completed"
    assert "calls x, whose price is not known, on a budget in dollars" in caplog.text
    status = await app.budgets.get(run)
    assert (status.unpriced_calls, status.usd.spent) == (1, 0)
    assert status.text == "at least $0.00 of $5.00 spent"


async def test_usage_that_a_step_records_by_itself_is_charged(app: Baton) -> None:
    async def records() -> None:
        record_usage(ANSWER)
        record_usage(ANSWER, cost="0.25")

    script["a"] = records
    run = await app.insert(workflow("a", budget=Budget(usd=5)))
    assert await run.wait() == "completed"
    assert (await app.budgets.get(run)).usd.spent == Decimal("0.35")


# --- what baton.budgets says ------------------------------------------------------------------------


async def test_budgets_are_found_by_key_by_run_and_listed(app: Baton) -> None:
    script["a"] = asking()
    keys = ["tenant:a", "tenant:b", "day%1"]
    run = await app.insert(
        workflow("a", budget=[Budget(calls=5), *(Budget(key=key, calls=5) for key in keys)])
    )
    assert await run.wait() == "completed"
    assert [one.key for one in await app.budgets.for_run(run)] == [None, "day%1", "tenant:a", "tenant:b"]
    assert [one.key for one in await app.budgets.list()] == ["day%1", "tenant:a", "tenant:b"]
    assert [one.key for one in await app.budgets.list(key_prefix="tenant:", limit=1)] == ["tenant:a"]
    assert [one.key for one in await app.budgets.list(after="tenant:a")] == ["tenant:b"]
    assert await app.budgets.list(key_prefix="day_") == ()
    assert (await app.budgets.get("tenant:b")).calls.spent == 1
    assert (await app.budgets.get(run.id)).calls == (await app.budgets.get(run)).calls
    assert await app.budgets.delete("tenant:b")
    assert not await app.budgets.delete("tenant:b")
    assert len(await app.budgets.for_run(run)) == 3


async def test_sums_are_exact_however_many_digits_they_have(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", budget=Budget(usd=10**15)))
    await run.wait()
    await app.budgets.add(run, usd="1e-39")
    status = await app.budgets.add(run, usd="-0.5")
    assert str(status.usd.added) == "-0.499999999999999999999999999999999999999"
    assert str(status.usd.left) == "999999999999999.400000000000000000000000000000000000001"


async def test_what_is_not_there_or_cannot_be_is_refused_in_words(app: Baton) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a"))
    for missing in ("nobody", run, "01890a5d-ac96-774b-bcce-b302099a8057"):
        with pytest.raises(BudgetNotFound):
            await app.budgets.get(missing)
        with pytest.raises(BudgetNotFound):
            await app.budgets.add(missing, usd=1)
    assert await app.budgets.for_run(run) == ()
    with pytest.raises(RunNotFound):
        await app.budgets.for_run("no id")
    with pytest.raises(InvalidName):
        await app.budgets.get(" ")
    other = await app.insert(workflow("a", budget=Budget(calls=1)))
    for wrong in ({}, {"usd": 1}, {"calls": 1.5}, {"usd": "much"}, {"usd": Decimal("NaN")}):
        with pytest.raises(InvalidOption):
            await app.budgets.add(other, **wrong)  # type: ignore[arg-type]
    assert (await app.budgets.add(other, calls=-1)).calls.total == 0
    await run.wait()
    await other.wait()


async def test_a_run_goes_on_although_whoever_topped_up_died_before_it_could_resume_it(
    app: Baton, db: psycopg.AsyncConnection
) -> None:
    script["a"] = asking()
    run = await app.insert(workflow("a", budget=Budget(usd="0.5", on_exhausted="pause")))
    await eventually(lambda: paused(run))
    await db.execute("SELECT baton_add_to_budget(NULL, %s::uuid, 5, 0, 0)", (run.id,))
    assert await paused(run)
    assert app._seam is not None
    await app._seam.maintenance._settle_budgets()
    assert await run.wait() == "completed"
    assert baton.Budgets is type(app.budgets)


# --- the command line ----------------------------------------------------------------------------


async def test_the_command_line_shows_budgets_and_adds_to_them(app: Baton, baton_dsn: str) -> None:
    script["a"] = asking()
    limits = [Budget(usd="0.5", on_exhausted="pause"), Budget(key="tenant:a", calls=5)]
    run = await app.insert(workflow("a", budget=limits))
    await eventually(lambda: paused(run))
    plain = await app.insert(workflow())

    def told(*arguments: str, code: int = 0) -> str:
        done = click.testing.CliRunner().invoke(cli, ["budget", *arguments, "--dsn", baton_dsn])
        assert done.exit_code == code, done.output
        return done.output

    assert (await asyncio.to_thread(told, "show", run.id)).splitlines() == [
        f"run {run.id}: $0.00 of $0.50 spent; 1 run paused",
        "tenant:a: 0 of 5 calls spent",
    ]
    assert await asyncio.to_thread(told, "show") == "tenant:a: 0 of 5 calls spent\n"
    assert "has no budget" in await asyncio.to_thread(told, "show", plain.id)
    assert "there is no budget 'nobody'" in await asyncio.to_thread(lambda: told("show", "nobody", code=1))
    assert "nothing is added" in await asyncio.to_thread(lambda: told("add", run.id, code=2))
    added = await asyncio.to_thread(told, "add", run.id, "--usd", "2.5", "--json")
    usd = json.loads(added)["usd"]
    assert (usd["limit"], usd["added"], usd["spent"]) == ("0.5", "2.5", "0")
    assert await run.wait() == "completed"
    (shown,) = json.loads(await asyncio.to_thread(told, "show", "tenant:a", "--json"))
    assert (shown["calls"]["spent"], shown["calls"]["left"], shown["is_exhausted"]) == (1, 4, False)
    assert await asyncio.to_thread(told, "add", "tenant:a", "--calls=-4") == (
        "tenant:a: 1 of 1 calls spent (exhausted)\n"
    )
