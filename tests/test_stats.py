"""What `baton.stats` answers: totals that never make an unknown cost a 0, reports, bounds, and what a tenant may see."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from oban import worker
from oban.job import Job

from baton import Baton, Totals, Usage, Workflow, _store, current, record_usage, stats, step
from baton._names import uuid7
from baton.errors import InvalidOption, NotStarted, NoWorkflow, QueryTimeout, RunNotFound
from baton.pricing import GenaiPrices, ModelPrice, Price, PriceTable
from tests.kit import fixtures
from tests.kit.spent import spend

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@step(name="tests.stats.nothing")
async def nothing() -> None: ...


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    """One that inserts and reads, and runs nothing."""
    async with Baton(baton_dsn, poll_interval=0.05) as client:
        yield client


async def inserted(
    client: Baton, name: str = "research", steps: tuple[str, ...] = ("draft", "review")
) -> str:
    workflow = Workflow(name)
    for one in steps:
        workflow.add(one, nothing.new())
    return (await client.insert(workflow)).id


def totals(calls: int, cost: str | None, unpriced: int = 0, **known: int | None) -> Totals:
    kinds = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    tokens = dict.fromkeys(kinds, 0 if calls == 0 else None) | known
    return Totals(calls=calls, cost_usd=None if cost is None else Decimal(cost), unpriced=unpriced, **tokens)


# --- totals ---------------------------------------------------------------------------------------


async def test_a_run_without_calls_cost_nothing(client: Baton) -> None:
    found = await client.stats.workflow_totals(await inserted(client))
    assert found == totals(0, "0")
    assert (found.cost_text, found.is_lower_bound) == ("$0.00", False)


async def test_the_hand_sums_come_out_of_the_database_to_the_last_digit(
    client: Baton, baton_dsn: str
) -> None:
    run_id = await inserted(client)
    used = {
        "gpt-6.1-sol": {
            "input_tokens": 1_000,
            "cache_read_tokens": 400,
            "output_tokens": 500,
            "reasoning_tokens": 300,
        },
        "gemini-2.5-pro": {"input_tokens": 250_000, "output_tokens": 850},
        "claude-opus-5-5": {
            "input_tokens": 2_400,
            "cache_read_tokens": 1_000,
            "cache_write_tokens": 900,
            "output_tokens": 400,
            "units": {"cache_write_1h_tokens": 600},
        },
    }
    for model, counts in used.items():
        price = GenaiPrices().cost(Usage(model=model, **counts), at=NOON)  # type: ignore[arg-type]
        assert price is not None
        await spend(baton_dsn, run_id, "draft", price.cost, model=model, **counts)
    found = await client.stats.workflow_totals(run_id)
    assert str(found.cost_usd) == "0.66049"  # 0.00624 + 0.63775 + 0.0165
    assert found == totals(
        3,
        "0.66049",
        input_tokens=253_400,
        output_tokens=1_750,
        cache_read_tokens=1_400,
        cache_write_tokens=900,
        reasoning_tokens=300,
    )
    assert [str(call.cost_usd) for call in await client.stats.calls_for_workflow(run_id)] == [
        "0.00624",
        "0.63775",
        "0.0165",
    ]


async def test_an_unknown_cost_makes_the_total_the_least_that_was_spent(
    client: Baton, baton_dsn: str
) -> None:
    run_id = await inserted(client)
    await spend(baton_dsn, run_id, "draft", "1.20", input_tokens=10)
    await spend(baton_dsn, run_id, "draft", None, model="no-such-model", input_tokens=5, output_tokens=3)
    found = await client.stats.workflow_totals(run_id)
    assert found == totals(2, "1.2", 1, input_tokens=15, output_tokens=3)
    assert (found.cost_text, found.is_lower_bound) == ("at least $1.20", True)


async def test_where_no_cost_is_known_the_total_is_unknown_and_not_0(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client)
    await spend(baton_dsn, run_id, "draft", None)
    found = await client.stats.workflow_totals(run_id)
    assert found == totals(1, None, 1)
    assert (found.cost_text, found.is_lower_bound) == ("unknown", True)
    await spend(baton_dsn, run_id, "draft", "0")
    assert (await client.stats.workflow_totals(run_id)).cost_text == "at least $0.00"


async def test_tiny_and_huge_numbers_keep_all_their_digits(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client)
    for cost in ("0.0000000000000000000000000001", "12345678901234567890", "0.9"):
        await spend(baton_dsn, run_id, "draft", cost, input_tokens=2**63 - 1)
    found = await client.stats.workflow_totals(run_id)
    assert str(found.cost_usd) == "12345678901234567890.9000000000000000000000000001"
    assert found.input_tokens == 3 * (2**63 - 1)


async def test_several_runs_are_read_at_once(client: Baton, baton_dsn: str) -> None:
    first, second = await inserted(client), await inserted(client)
    await spend(baton_dsn, second, "draft", "0.5")
    gone = str(uuid7())
    found = await client.stats.totals_for_workflows([first, second, second, gone])
    assert found == {first: totals(0, "0"), second: totals(1, "0.5")}
    assert await client.stats.totals_for_workflows([]) == {}


async def test_what_a_pruned_run_cost_stays(client: Baton, baton_dsn: str) -> None:
    gone = str(uuid7())
    await spend(baton_dsn, gone, "draft", "0.5")
    assert (await client.stats.workflow_totals(gone)).cost_text == "$0.50"
    (row,) = await client.stats.steps_for_workflow(gone)
    assert (row.step, row.position, row.totals.cost_text) == ("draft", None, "$0.50")
    assert len(await client.stats.calls_for_workflow(gone)) == 1


# --- steps and calls ------------------------------------------------------------------------------


async def test_steps_come_in_their_order_with_each_attempt_and_model(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client)
    await spend(baton_dsn, run_id, "review", "0.1", latency_ms=500.0)
    await spend(baton_dsn, run_id, "draft", "0.2", attempt=2, at=NOON + DAY)
    await spend(baton_dsn, run_id, "draft", "0.3", attempt=1, latency_ms=1_500.0, at=NOON)
    await spend(baton_dsn, run_id, "draft", "0.4", attempt=1, at=NOON, source="given", version="")
    await spend(baton_dsn, run_id, "draft", None, attempt=1, model="m", provider="acme", at=NOON + DAY)
    found = await client.stats.steps_for_workflow(run_id)
    assert [
        (row.step, row.position, row.attempt, row.provider, row.model, row.totals.cost_text, row.latency)
        for row in found
    ] == [
        ("draft", 1, 1, None, "gpt-5", "$0.70", 1.5),
        ("draft", 1, 1, "acme", "m", "unknown", None),
        ("draft", 1, 2, None, "gpt-5", "$0.20", None),
        ("review", 2, 1, None, "gpt-5", "$0.10", 0.5),
    ]
    assert [row.prices for row in found] == [
        ("genai-prices 0.2.3", "given"),
        (),
        ("genai-prices 0.2.3",),
        ("genai-prices 0.2.3",),
    ]
    assert await client.stats.steps_for_workflow(run_id, limit=2) == found[:2]


async def test_calls_come_one_by_one_in_pages(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client)
    ids = [await spend(baton_dsn, run_id, name, "0.1") for name in ("draft", "review", "draft", "draft")]
    first = await client.stats.calls_for_workflow(run_id, limit=3)
    assert [call.call_id for call in first] == ids[:3]
    (last,) = await client.stats.calls_for_workflow(run_id, after=first[-1].call_id)
    assert last.call_id == ids[3]
    assert await client.stats.calls_for_workflow(run_id, after=ids[3]) == ()
    of_step = await client.stats.calls_for_workflow(run_id, "draft", after=ids[0])
    assert [call.call_id for call in of_step] == [ids[2], ids[3]]
    assert await client.stats.calls_for_workflow(run_id, "no such step") == ()


async def test_a_call_says_all_that_is_known_of_it(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client)
    await spend(
        baton_dsn,
        run_id,
        "draft",
        "0.0062400",
        attempt=2,
        key="outline",
        provider="openai",
        service_tier="flex",
        input_tokens=10,
        output_tokens=5,
        cache_read_tokens=3,
        cache_write_tokens=2,
        reasoning_tokens=1,
        units={"web_searches": 1},
        latency_ms=250.0,
        at=NOON,
    )
    (call,) = await client.stats.calls_for_workflow(run_id)
    assert (call.step, call.attempt, call.key, call.provider, call.model, call.service_tier) == (
        "draft",
        2,
        "outline",
        "openai",
        "gpt-5",
        "flex",
    )
    assert (call.input_tokens, call.output_tokens, call.cache_read_tokens) == (10, 5, 3)
    assert (call.cache_write_tokens, call.reasoning_tokens, call.units) == (2, 1, {"web_searches": 1})
    assert (str(call.cost_usd), call.cost_text, call.price_source, call.price_version) == (
        "0.00624",
        "$0.0062",
        "genai-prices",
        "0.2.3",
    )
    assert (call.latency, call.at, call.at.tzinfo) == (0.25, NOON, UTC)
    await spend(baton_dsn, run_id, "review", None, model=None)
    (unknown,) = await client.stats.calls_for_workflow(run_id, "review")
    assert (unknown.model, unknown.cost_usd, unknown.cost_text, unknown.units, unknown.latency) == (
        None,
        None,
        "unknown",
        {},
        None,
    )


# --- reports --------------------------------------------------------------------------------------


async def some_spending(dsn: str) -> None:
    run = uuid7()
    for at, label, name, model, cost in (
        (NOON - DAY, "a:import", "draft", "gpt-5", "0.1"),
        (NOON, "a:import", "review", "gpt-5", "0.2"),
        (NOON, "a:import", "draft", "claude-opus-5-5", "5"),
        (NOON, "b%:export", "draft", "no-such-model", None),
        (NOON + DAY, "b%:export", "draft", "gpt-5", "0.05"),
    ):
        await spend(dsn, run, name, cost, model=model, label=label, at=at, input_tokens=10)


async def test_reports_put_the_dearest_first_and_the_unknown_last(client: Baton, baton_dsn: str) -> None:
    await some_spending(baton_dsn)
    stats = client.stats
    assert [(row.model, row.totals.calls, row.totals.cost_text) for row in await stats.cost_by_model()] == [
        ("claude-opus-5-5", 1, "$5.00"),
        ("gpt-5", 3, "$0.35"),
        ("no-such-model", 1, "unknown"),
    ]
    assert [(row.label, row.totals.cost_text) for row in await stats.cost_by_label()] == [
        ("a:import", "$5.30"),
        ("b%:export", "at least $0.05"),
    ]
    assert [(row.label, row.step, row.totals.cost_text) for row in await stats.cost_by_step()] == [
        ("a:import", "draft", "$5.10"),
        ("a:import", "review", "$0.20"),
        ("b%:export", "draft", "at least $0.05"),
    ]
    assert [(row.day, row.totals.cost_text) for row in await stats.cost_by_day()] == [
        (date(2026, 11, 21), "$0.05"),
        (date(2026, 11, 20), "at least $5.20"),
        (date(2026, 11, 19), "$0.10"),
    ]
    assert await stats.totals() == totals(5, "5.35", 1, input_tokens=50)


async def test_a_report_is_of_a_time_and_of_what_a_tenant_may_see(client: Baton, baton_dsn: str) -> None:
    await some_spending(baton_dsn)
    stats = client.stats
    assert (await stats.totals(NOON)).calls == 4
    assert (await stats.totals(to=NOON)).calls == 1
    assert (await stats.totals(NOON, NOON + DAY)).calls == 3
    assert await stats.totals(NOON, NOON) == totals(0, "0")
    assert (await stats.totals(name_prefix="b%:")).calls == 2
    assert (await stats.totals(name_prefix="%")).calls == 0
    assert [row.model for row in await stats.cost_by_model(NOON, NOON + DAY, name_prefix="a:")] == [
        "claude-opus-5-5",
        "gpt-5",
    ]
    assert [row.label for row in await stats.cost_by_label(name_prefix="b")] == ["b%:export"]
    assert [row.step for row in await stats.cost_by_step(name_prefix="b")] == ["draft"]
    assert [row.day.day for row in await stats.cost_by_day(name_prefix="b", limit=1)] == [21]


async def test_models_are_told_apart_in_one_run(client: Baton, baton_dsn: str) -> None:
    run_id, other = str(uuid7()), str(uuid7())
    for run, model, cost in ((run_id, "a", "1"), (run_id, "b", "2"), (run_id, "a", "4"), (other, "a", "8")):
        await spend(baton_dsn, run, "draft", cost, model=model)
    found = await client.stats.models_for_workflow(run_id)
    assert [(row.model, row.totals.cost_text) for row in found] == [("a", "$5.00"), ("b", "$2.00")]
    with pytest.raises(RunNotFound):
        await client.stats.models_for_workflow(run_id, name_prefix="x")


async def test_days_are_those_of_utc_whatever_the_session_says(
    client: Baton, baton_dsn: str, db: psycopg.AsyncConnection
) -> None:
    await db.execute("ALTER ROLE CURRENT_USER SET timezone = 'Pacific/Kiritimati'")
    try:
        await spend(baton_dsn, uuid7(), "draft", "1", at=datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC))
        async with Baton(baton_dsn) as other:
            (row,) = await other.stats.cost_by_day()
        assert row.day == date(2026, 11, 20)
    finally:
        await db.execute("ALTER ROLE CURRENT_USER RESET timezone")


# --- from a step on -------------------------------------------------------------------------------


@step(name="tests.stats.drafts", max_attempts=2, backoff=lambda _: 0)
async def drafts() -> str:
    record_usage(
        Usage(
            model="gpt-6.1-sol",
            input_tokens=1_000,
            cache_read_tokens=400,
            output_tokens=500,
            reasoning_tokens=300,
        )
    )
    if current().attempt == 1:
        raise ValueError("it was paid for all the same")
    record_usage({"model": "no-such-model", "input_tokens": 3, "output_tokens": 2})
    record_usage({"model": "gpt-5", "input_tokens": 3, "output_tokens": 2}, cost="0.25")
    return "draft"


@worker(queue="default", max_attempts=1)
class Reviews:
    async def process(self, job: Job) -> str:
        stats.record(job, {"model": "our-llama", "input_tokens": 10, "output_tokens": 1, "latency_ms": 20})
        return stats.record(job, Usage(model="our-llama"), cost=1).model or ""


async def test_what_steps_use_is_priced_and_counted_also_of_attempts_that_failed(baton_dsn: str) -> None:
    workflow = Workflow("research")
    workflow.add("draft", drafts.new())
    workflow.add("review", Reviews.new(), deps=["draft"])
    prices = PriceTable({"our-llama": ModelPrice(input=1, output=2)})
    async with Baton(baton_dsn, queues={"default": 2}, pricing=prices, poll_interval=0.05) as baton:
        run = await baton.insert(workflow)
        assert await run.wait(timeout=20) == "completed"
        found = await baton.stats.workflow_totals(run.id)
        # Twice 0.00624, one that the step said itself, 12 millionths of our own prices, one given, and one unknown.
        assert str(found.cost_usd) == "1.262492"
        assert (found.calls, found.unpriced, found.input_tokens) == (6, 1, 2_016)
        rows = await baton.stats.steps_for_workflow(run.id)
        assert [
            (row.step, row.attempt, row.model, row.totals.calls, row.totals.cost_text) for row in rows
        ] == [
            ("draft", 1, "gpt-6.1-sol", 1, "$0.0062"),
            ("draft", 2, "gpt-6.1-sol", 1, "$0.0062"),
            ("draft", 2, "no-such-model", 1, "unknown"),
            ("draft", 2, "gpt-5", 1, "$0.25"),
            ("review", 1, "our-llama", 2, "$1.00"),
        ]
        assert rows[-1].latency == 0.02
        assert [call.price_source for call in await baton.stats.calls_for_workflow(run.id)] == [
            "genai-prices",
            "genai-prices",
            None,
            "given",
            "own",
            "given",
        ]


async def test_usage_is_recorded_of_no_job_but_one_that_runs_here(client: Baton) -> None:
    with pytest.raises(NoWorkflow, match="is not the job of a workflow's step that runs here"):
        client.stats.record(Job("tests.Nobody", id=7), Usage(model="gpt-5"))


# --- repricing ------------------------------------------------------------------------------------


async def costs(baton: Baton, run_id: str) -> dict[str, tuple[str, str | None, str | None]]:
    """Cost, source and version of the one call of each step."""
    return {
        call.step: (call.cost_text, call.price_source, call.price_version)
        for call in await baton.stats.calls_for_workflow(run_id)
    }


OURS = PriceTable({"m": ModelPrice(input=1, output=1)}, source="ours", version="2", otherwise=None)


async def test_calls_without_a_price_get_one_when_there_is_one(baton_dsn: str) -> None:
    run_id = str(uuid7())
    used = {"input_tokens": 500_000, "output_tokens": 0}
    await spend(baton_dsn, run_id, "unknown", None, model="m", **used)
    await spend(baton_dsn, run_id, "not counted", None, model="m")
    await spend(baton_dsn, run_id, "another", None, model="other", **used)
    await spend(baton_dsn, run_id, "priced", "7", model="m", source="ours", version="1", **used)
    await spend(baton_dsn, run_id, "given", "8", model="m", source="given", version="", **used)
    async with Baton(baton_dsn, pricing=OURS) as baton:
        assert await baton.stats.reprice() == 1
        before = {
            "unknown": ("$0.50", "ours", "2"),
            "not counted": ("unknown", None, None),
            "another": ("unknown", None, None),
            "priced": ("$7.00", "ours", "1"),
            "given": ("$8.00", "given", ""),
        }
        assert await costs(baton, run_id) == before
        assert await baton.stats.reprice() == 0
        assert await baton.stats.reprice(only_unpriced=False) == 1
        assert await costs(baton, run_id) == before | {"priced": ("$0.50", "ours", "2")}
        assert await baton.stats.reprice(only_unpriced=False) == 0


async def test_a_call_is_repriced_as_of_its_own_time_and_only_in_the_time_asked_for(
    client: Baton, baton_dsn: str
) -> None:
    run_id = str(uuid7())
    used = {"input_tokens": 1_000_000, "output_tokens": 0}
    await spend(baton_dsn, run_id, "old", None, model="o3", at=datetime(2025, 5, 1, tzinfo=UTC), **used)
    await spend(baton_dsn, run_id, "new", None, model="o3", at=NOON, **used)
    assert await client.stats.reprice(NOON, NOON) == 0
    assert await client.stats.reprice(to=NOON) == 1
    assert await client.stats.reprice(NOON) == 1
    found = await costs(client, run_id)
    assert {step: cost for step, (cost, *_) in found.items()} == {"old": "$10.00", "new": "$2.00"}


async def test_many_calls_are_repriced_in_batches(
    baton_dsn: str, db: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.stats._BATCH", 3)
    # Some of one moment, so that the time alone does not tell where a batch ended; some that stay unknown.
    await db.execute(
        "INSERT INTO workflow_step_stats (id, workflow_id, workflow_label, step_id, step_name, attempt, model, input_tokens, "
        "output_tokens, units, inserted_at) SELECT gen_random_uuid(), gen_random_uuid(), 'l', 0, 's', 1, "
        "CASE WHEN n %% 2 = 0 THEN 'm' ELSE 'other' END, 1, 1, '{\"input_audio_tokens\": 1}', "
        "%s::timestamptz + n / 5 * interval '1 s' "
        "FROM generate_series(1, 20) AS n",
        (NOON,),
    )
    async with Baton(baton_dsn, pricing=OURS) as baton:
        assert await baton.stats.reprice() == 10
        assert await baton.stats.totals() == totals(20, "0.00002", 10, input_tokens=20, output_tokens=20)


async def test_two_who_reprice_at_once_write_each_call_once(baton_dsn: str) -> None:
    for _ in range(5):
        await spend(baton_dsn, uuid7(), "s", None, model="m", input_tokens=1, output_tokens=1)
    async with Baton(baton_dsn, pricing=OURS) as one, Baton(baton_dsn, pricing=OURS) as two:
        assert sum(await asyncio.gather(one.stats.reprice(), two.stats.reprice())) == 5


async def test_a_pricing_that_fails_leaves_calls_as_they_are(
    baton_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def cost(self, usage: Usage, *, at: datetime) -> Price | None:
            if usage.model == "m":
                raise ZeroDivisionError
            return OURS.cost(Usage(model="m", input_tokens=1, output_tokens=0), at=at)

    run_id = str(uuid7())
    for model in ("m", "other"):
        await spend(baton_dsn, run_id, model, None, model=model)
    async with Baton(baton_dsn, pricing=Broken()) as baton:
        assert await baton.stats.reprice() == 1
        assert (await costs(baton, run_id))["m"] == ("unknown", None, None)
    assert "Broken could not price a call of 'm'" in caplog.text


async def test_repricing_reads_by_the_index(baton_dsn: str, db: psycopg.AsyncConnection) -> None:
    await some_rows(db)
    asked = {
        "from": None,
        "to": None,
        "only_unpriced": True,
        "after_at": NOON + timedelta(days=10),
        "after_id": uuid7(),
        "limit": 1_000,
    }
    assert "Seq Scan" not in await plan(db, "read_calls_to_price", asked)


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_run_of_another_tenant_is_not_there(client: Baton, baton_dsn: str) -> None:
    run_id = await inserted(client, "a:import")
    for spent in (False, True):
        if spent:
            await spend(baton_dsn, run_id, "draft", "1")
        stats = client.stats
        for ask in (
            stats.workflow_totals,
            stats.steps_for_workflow,
            stats.models_for_workflow,
            stats.calls_for_workflow,
        ):
            await ask(run_id, name_prefix="a:")
            with pytest.raises(RunNotFound):
                await ask(run_id, name_prefix="b:")
        assert await stats.totals_for_workflows([run_id], name_prefix="b:") == {}


async def test_a_run_that_is_not_there_is_said_to_be_none(client: Baton) -> None:
    stats = client.stats
    for ask in (
        stats.workflow_totals,
        stats.steps_for_workflow,
        stats.models_for_workflow,
        stats.calls_for_workflow,
    ):
        with pytest.raises(RunNotFound, match="no call of a model is recorded"):
            await ask(uuid7())
        with pytest.raises(RunNotFound, match="no run's id"):
            await ask("../etc")


@pytest.mark.parametrize(
    "ask",
    [
        lambda stats, run: stats.totals(datetime(2026, 1, 1)),
        lambda stats, run: stats.cost_by_day(to="yesterday"),
        lambda stats, run: stats.cost_by_model(limit=0),
        lambda stats, run: stats.cost_by_model(name_prefix=None),
        lambda stats, run: stats.steps_for_workflow(run, limit=10_001),
        lambda stats, run: stats.calls_for_workflow(run, limit=1_001),
        lambda stats, run: stats.calls_for_workflow(run, after="x"),
        lambda stats, run: stats.calls_for_workflow(run, "\0"),
        lambda stats, run: stats.totals_for_workflows(["x"]),
        lambda stats, run: stats.totals_for_workflows([run] * 1_001),
    ],
)
async def test_what_cannot_be_asked_is_refused(client: Baton, ask: Any) -> None:
    with pytest.raises(InvalidOption):
        await ask(client.stats, str(uuid7()))


async def test_a_report_that_takes_too_long_is_given_up(
    client: Baton, monkeypatch: pytest.MonkeyPatch, db: psycopg.AsyncConnection
) -> None:
    monkeypatch.setattr("baton.stats._REPORT_SECONDS", 1)
    async with db.transaction():
        await db.execute("LOCK TABLE workflow_step_stats IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(QueryTimeout, match="longer than 1 seconds"):
            await client.stats.totals()


async def test_nothing_is_read_before_the_start(baton_dsn: str) -> None:
    with pytest.raises(NotStarted):
        _ = Baton(baton_dsn).stats


async def some_rows(db: psycopg.AsyncConnection) -> None:
    await db.execute(
        "INSERT INTO workflow_step_stats (id, workflow_id, workflow_label, step_id, step_name, attempt, inserted_at) "
        "SELECT gen_random_uuid(), gen_random_uuid(), 'label', 0, 'step', 1, %s::timestamptz + n * interval '1 minute' "
        "FROM generate_series(1, 20000) AS n",
        (NOON,),
    )
    await db.execute("ANALYZE workflow_step_stats")


async def plan(db: psycopg.AsyncConnection, name: str, asked: dict[str, Any]) -> str:
    cursor = await db.execute(b"EXPLAIN " + _store.load(name), asked)
    return "\n".join(row[0] for row in await cursor.fetchall())


@pytest.mark.parametrize(
    "name",
    ["read_cost_by_model", "read_cost_of_runs", "read_cost_of_steps", "read_cost_of_models", "list_calls"],
)
async def test_what_is_read_often_is_read_by_an_index(
    baton_dsn: str, db: psycopg.AsyncConnection, name: str
) -> None:
    await some_rows(db)
    run_id = uuid7()
    asked = {
        "from": NOON,
        "to": NOON + timedelta(hours=1),
        "name_prefix": None,
        "limit": 10,
        "id": run_id,
        "ids": [run_id],
        "step": None,
        "after": None,
    }
    assert "Seq Scan on workflow_step_stats" not in await plan(db, name, asked)
