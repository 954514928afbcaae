"""The page in a real browser, on a real Baton: what people see and do. The server alone: test_web.py."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Iterator
from string import ascii_lowercase
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from psycopg.types.json import Jsonb
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

import baton
import baton.web
from baton import Baton, Budget, Run, Workflow, step
from baton.web import ACTIONS, Access
from tests.kit import browser as kit
from tests.kit.browser import Served, Tab
from tests.kit.hostile import NAMES
from tests.kit.reused import Reused
from tests.kit.spent import spend
from tests.kit.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

GATES: dict[str, asyncio.Event] = {}


@step(name="tests.page.number")
async def number(n: int) -> int:
    return n


@step(name="tests.page.total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@step(name="tests.page.wait")
async def wait(gate: str) -> str:
    await GATES[gate].wait()
    return gate


@step(name="tests.page.echo")
async def echo(value: Any) -> Any:
    return value


@step(name="tests.page.fail", max_attempts=1)
async def fail(text: str) -> None:
    raise ValueError(text)


@step(name="tests.page.tell")
async def tell(gate: str) -> None:
    baton.progress(3, 10, "reading page 3")
    baton.stream.write("once ")
    baton.stream.write("upon")
    await GATES[gate].wait()
    baton.stream.write(" a time")
    baton.stream.write({"row": 1})


def one(job: Any, name: str = "one", **options: Any) -> Workflow:
    workflow = Workflow(name, **options)
    workflow.add("only", job)
    return workflow


def fan(width: int = 6, gate: str = "") -> Workflow:
    """One step, `width` alike, one that takes them all together."""
    workflow = Workflow("fan")
    first = workflow.add("first", wait.new(gate) if gate else number.new(1))
    each = [workflow.add(f"part_{n}", number.new(n), deps=[first]) for n in range(width)]
    workflow.add("last", total.new([ref.result for ref in each]))
    return workflow


def connected(workflows: Baton) -> Any:
    """A connection to write what the API refuses."""
    return psycopg.AsyncConnection.connect(workflows.dsn, autocommit=True)


def gate(name: str) -> asyncio.Event:
    return GATES.setdefault(name, asyncio.Event())


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with kit.launched() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def workflows(database: Reused, chromium: Browser) -> AsyncIterator[Baton]:
    GATES.clear()
    async with Baton(database.clean(), queues={"default": 10}, shutdown_grace_period=0) as workflows:
        yield workflows
        for each in GATES.values():
            each.set()


def everything(_: Request) -> Access:
    return Access("ada", ACTIONS)


@pytest_asyncio.fixture(loop_scope="module")
async def served(workflows: Baton) -> AsyncIterator[Served]:
    async with Served(baton.web.app(workflows, authorize=everything)) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def tab(chromium: Browser, served: Served) -> AsyncIterator[Tab]:
    async with Tab.opened(chromium, served.root) as tab:
        yield tab
        assert await tab.complaints() == []


async def finished(workflows: Baton, workflow: Workflow) -> Run:
    run = await workflows.insert(workflow)
    await run.wait(timeout=30)
    return run


def box(tab: Tab, label: str) -> Any:
    return tab.page.locator(".box", has=tab.page.locator(f".label:text-is({label!r})"))


# --- runs ------------------------------------------------------------------------------------------


async def test_the_list_follows_runs_as_they_begin_and_end(tab: Tab, workflows: Baton) -> None:
    await tab.go()
    await expect(tab.page.get_by_role("heading", name="No runs yet")).to_be_visible()
    opened = gate("a")
    await workflows.insert(one(wait.new("a"), "nightly", key="2026-11-26"))
    row = tab.page.get_by_role("listitem")
    await expect(row).to_contain_text("nightly")
    await expect(row).to_contain_text("2026-11-26")
    await expect(row.locator(".run-icon")).to_have_class(re.compile("s-executing"))
    await expect(row).to_contain_text("0 / 1")
    opened.set()
    await expect(row.locator(".run-icon")).to_have_class(re.compile("s-completed"))
    await expect(row).to_contain_text("1 step")
    await expect(tab.page.get_by_role("tab", name="Completed")).to_contain_text("1")


async def test_a_new_run_does_not_move_what_one_reads(tab: Tab, workflows: Baton) -> None:
    for n in range(30):
        await workflows.insert(one(number.new(n), f"run {n}"))
    await tab.go()
    await expect(tab.page.get_by_role("listitem")).to_have_count(30)
    await tab.page.evaluate("scrollTo(0, 400)")
    before = await tab.page.get_by_role("listitem").nth(10).bounding_box()
    await workflows.insert(one(number.new(1), "the newest"))
    pill = tab.page.get_by_role("button", name="1 new run")
    await expect(pill).to_be_visible()
    assert await tab.page.get_by_role("listitem").nth(10).bounding_box() == before
    await pill.click()
    await expect(tab.page.get_by_role("listitem").first).to_contain_text("the newest")
    await expect(pill).to_be_hidden()


async def test_filters_are_in_the_address(tab: Tab, workflows: Baton) -> None:
    await finished(workflows, one(number.new(1), "import"))
    await finished(workflows, one(fail.new("no"), "export"))
    await tab.go()
    rows = tab.page.get_by_role("listitem")
    await expect(rows).to_have_count(2)
    await tab.page.get_by_role("tab", name="Failed").click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("export")
    assert tab.page.url.endswith("?state=failed")
    await tab.page.get_by_label("Search runs").fill("imp")
    await expect(tab.page.get_by_role("heading", name="No run matches")).to_be_visible()
    await tab.page.go_back()
    await expect(rows).to_have_count(2)
    await tab.go("?q=imp&since=24h")
    await expect(rows).to_have_count(1)
    await expect(tab.page.get_by_label("Search runs")).to_have_value("imp")
    await expect(tab.page.get_by_label("Inserted")).to_have_value("24h")
    await workflows.insert(one(number.new(1), "an import too"))
    await workflows.insert(one(number.new(1), "nothing to see"))
    await expect(rows).to_have_count(2)


async def test_older_runs_come_when_asked_for_and_stay(tab: Tab, workflows: Baton) -> None:
    for n in range(60):
        await workflows.insert(one(number.new(n), f"run {n}"))
    await tab.go()
    rows = tab.page.get_by_role("listitem")
    await expect(rows).to_have_count(50)
    await tab.page.get_by_role("button", name="Load more").click()
    await expect(rows).to_have_count(60)
    await tab.page.evaluate("scrollTo(0, 0)")
    await workflows.insert(one(number.new(1), "the newest"))
    await expect(rows).to_have_count(61)
    await expect(rows.first).to_contain_text("the newest")
    await expect(rows.last).to_contain_text("run 0")


# --- a run -----------------------------------------------------------------------------------------


async def test_boxes_go_through_their_states(tab: Tab, workflows: Baton) -> None:
    opened = gate("a")
    workflow = Workflow("two")
    first = workflow.add("first", wait.new("a"))
    workflow.add("second", number.new(1), deps=[first])
    run = await workflows.insert(workflow)
    await tab.go(f"runs/{run.id}")
    await expect(box(tab, "first")).to_have_class(re.compile("s-executing"))
    await expect(box(tab, "second")).to_have_class(re.compile("s-held"))
    await expect(box(tab, "second")).to_contain_text("waits for 1 step")
    opened.set()
    await expect(box(tab, "first")).to_have_class(re.compile("s-completed"))
    await expect(box(tab, "second")).to_have_class(re.compile("s-completed"))
    await expect(tab.page.locator(".run-head .state").first).to_have_text("Completed")
    await expect(tab.page).to_have_title("two · Baton")


async def test_a_group_unfolds_and_folds(tab: Tab, workflows: Baton) -> None:
    opened = gate("a")
    run = await workflows.insert(fan(6, "a"))
    await tab.go(f"runs/{run.id}")
    boxes = tab.page.locator(".box")
    await expect(boxes).to_have_count(3)
    group = tab.page.locator(".box.group")
    await expect(group).to_contain_text("0 / 6")
    await group.locator("[data-unfold]").click()
    await expect(boxes).to_have_count(8)
    opened.set()
    await expect(box(tab, "part_4")).to_have_class(re.compile("s-completed"))
    await expect(box(tab, "last")).to_have_class(re.compile("s-completed"))
    await tab.page.locator(".folds button").click()
    await expect(boxes).to_have_count(3)
    await expect(group).to_contain_text("6 / 6")
    await tab.page.go_back()
    await expect(boxes).to_have_count(8)


async def test_a_group_lists_its_steps_the_failed_ones_first(tab: Tab, workflows: Baton) -> None:
    workflow = Workflow("some fail")
    first = workflow.add("first", number.new(1))
    for n in range(8):
        workflow.add(f"good_{n}", number.new(n), deps=[first])
    for n in range(4):
        workflow.add(f"bad_{n}", fail.new(f"bad {n}"), deps=[first])
    run = await finished(workflows, workflow)
    await tab.go(f"runs/{run.id}")
    await tab.page.locator(".box.group", has_text="bad").locator(".frame").click()
    panel = tab.page.get_by_role("complementary")
    await expect(panel.get_by_role("button", name="Discarded 4")).to_have_attribute("aria-pressed", "true")
    await panel.get_by_role("link", name="bad_2").click()
    await expect(panel.locator(".raw")).to_contain_text("ValueError: bad 2")


async def test_the_panel_shows_what_is_known_of_a_step(tab: Tab, workflows: Baton) -> None:
    workflow = Workflow("reading")
    source = workflow.add("source", echo.new({"title": "A text", "pages": [1, 2, 3], "big": 2**60 + 1}))
    workflow.add("broken", fail.new("the disk is full"), deps=[source])
    run = await finished(workflows, workflow)
    await tab.go(f"runs/{run.id}")
    panel = tab.page.get_by_role("complementary")
    await box(tab, "source").click()
    await expect(panel.get_by_role("heading", name="Result")).to_be_visible()
    await expect(panel.locator(".json").first).to_contain_text(f"big: {2**60 + 1}")
    await expect(panel.locator(".json").first).to_contain_text('title: "A text"')
    assert re.search(r"[?&]step=1$", tab.page.url)
    await panel.get_by_role("link", name="broken").click()
    await expect(panel.locator(".raw")).to_contain_text("ValueError: the disk is full")
    await expect(panel).to_contain_text("Attempt 1")
    await expect(panel.get_by_role("link", name="source")).to_be_visible()
    await expect(box(tab, "broken")).to_have_class(re.compile("selected"))
    await tab.page.keyboard.press("Escape")
    await expect(panel).to_be_hidden()
    await tab.go(f"runs/{run.id}?step=2")
    await expect(panel.locator(".step-name")).to_have_text("broken")


async def test_the_panel_says_why_a_step_does_not_run(tab: Tab, workflows: Baton) -> None:
    gate("a")
    workflow = Workflow("two")
    first = workflow.add("first", wait.new("a"))
    workflow.add("second", number.new(1), deps=[first])
    run = await workflows.insert(workflow)
    await tab.go(f"runs/{run.id}?step=2")
    await expect(tab.page.get_by_role("note")).to_contain_text("first")


async def test_progress_and_stream_grow_while_one_looks(tab: Tab, workflows: Baton) -> None:
    opened = gate("a")
    run = await workflows.insert(one(tell.new("a")))
    await tab.go(f"runs/{run.id}?step=1")
    panel = tab.page.get_by_role("complementary")
    await expect(panel.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "3")
    await expect(panel).to_contain_text("reading page 3")
    await expect(panel.get_by_role("log")).to_have_text("once upon")
    await expect(box(tab, "only")).to_contain_text("30 %")
    opened.set()
    await expect(panel.get_by_role("log")).to_have_text('once upon a time{"row":1}')


async def test_a_large_result_is_read_on_demand(tab: Tab, workflows: Baton) -> None:
    run = await finished(workflows, one(echo.new([f"line {n}" for n in range(5000)])))
    await tab.go(f"runs/{run.id}?step=1")
    panel = tab.page.get_by_role("complementary")
    await panel.get_by_role("button", name="Show all").click()
    tree = panel.locator(".json").first
    await tree.locator(".j-toggle").first.click()
    await expect(tree.locator(".j-row")).to_have_count(100)
    await tree.locator(".j-more").click()
    await expect(tree.locator(".j-row")).to_have_count(200)
    async with tab.page.expect_download() as download:
        await panel.get_by_role("link", name="Download the result").click()
    path = await (await download.value).path()
    assert path.read_text().endswith('"line 4999"]')


async def test_json_as_deep_as_it_may_be_opens_level_by_level(tab: Tab, workflows: Baton) -> None:
    value: Any = "the bottom"
    for _ in range(150):
        value = [value]
    run = await finished(workflows, one(echo.new(value)))
    await tab.go(f"runs/{run.id}?step=1")
    tree = tab.page.locator(".json").first
    closed = ".j-toggle[aria-expanded=false]"
    await expect(tree.locator(closed)).to_have_count(1)
    await tree.evaluate(
        "(tree, closed) => { for (let one; (one = tree.querySelector(closed)); ) one.click(); }", closed
    )
    await expect(tree).to_contain_text("the bottom")
    assert await tree.evaluate("(element) => element.scrollWidth") < 2000


async def test_the_table_sorts_filters_and_finds(tab: Tab, workflows: Baton) -> None:
    workflow = Workflow("table")
    first = workflow.add("first", number.new(1))
    workflow.add("broken", fail.new("the disk is full"), deps=[first])
    workflow.add("third", number.new(3), deps=[first])
    run = await finished(workflows, workflow)
    await tab.go(f"runs/{run.id}?tab=table")
    rows = tab.page.locator("tbody tr")
    await expect(rows).to_have_count(3)
    await expect(rows.nth(1)).to_contain_text("ValueError: the disk is full")
    await tab.page.locator(".table-box .chips a", has_text="Completed").click()
    await expect(rows).to_have_count(2)
    await tab.page.get_by_label("Find a step").fill("thi")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("third")
    await rows.get_by_role("link").click()
    await expect(tab.page.locator(".step-name")).to_have_text("third")
    await tab.go(f"runs/{run.id}?tab=table&sort=duration")
    await expect(rows).to_have_count(3)
    await expect(tab.page.get_by_role("columnheader", name="Duration")).to_have_attribute(
        "aria-sort", "descending"
    )


async def test_the_timeline_has_a_line_for_each_step_and_opens_groups(tab: Tab, workflows: Baton) -> None:
    run = await finished(workflows, fan(6))
    await tab.go(f"runs/{run.id}?tab=timeline")
    lines = tab.page.locator(".line")
    await expect(lines).to_have_count(3)
    await expect(lines.filter(has_text="part").locator(".ran")).to_be_visible()
    await tab.page.get_by_role("button", name="part").click()
    await expect(lines).to_have_count(9)
    assert len(await tab.texts(".line.inner .line-name bdi")) == 6
    await tab.page.locator(".line", has_text="last").get_by_role("link").click()
    await expect(tab.page.locator(".step-name")).to_have_text("last")


async def test_what_models_cost_is_shown_and_grows_while_one_looks(tab: Tab, workflows: Baton) -> None:
    gate("a")
    workflow = fan(gate="a")
    run = await workflows.insert(workflow)
    await tab.go(f"runs/{run.id}")
    await expect(box(tab, "first")).to_have_class(re.compile("s-executing"))
    await expect(tab.page.locator(".cost-link")).to_have_count(0)
    await spend(workflows.dsn, run.id, "first", "0.0062", input_tokens=1_000, output_tokens=500)
    await expect(tab.page.locator(".cost-link")).to_have_text("$0.0062 · 1.5K tokens")
    await expect(box(tab, "first").locator(".sub")).to_contain_text("$0.0062")
    await spend(workflows.dsn, run.id, "first", None, model="unheard-of")
    await expect(tab.page.locator(".cost-link")).to_have_text("≥ $0.0062 · 1.5K tokens")
    await spend(workflows.dsn, run.id, "part_2", None, model="unheard-of")
    GATES["a"].set()
    await expect(box(tab, "part").locator(".sub")).to_have_text("all completed · cost unknown")

    await tab.page.click(".cost-link")
    await expect(tab.page.locator(".panel h2")).to_have_text("Cost")
    await expect(tab.page.locator(".models li")).to_have_count(2)
    assert await tab.texts(".models bdi") == ["gpt-5", "unheard-of"]
    assert await tab.texts(".models b") == ["$0.0062", "cost unknown"]
    await spend(workflows.dsn, run.id, "first", "0.50", model="opus")
    await expect(tab.page.locator(".models bdi").first).to_have_text("opus")

    await tab.page.click(".tab[data-tab=table]")
    await expect(tab.page.locator("td.c-cost").first).to_have_text("≥ $0.51")


async def test_without_models_there_is_no_word_of_costs(tab: Tab, workflows: Baton) -> None:
    run = await finished(workflows, fan())
    await tab.go(f"runs/{run.id}?tab=table")
    await expect(tab.page.locator("td.c-state")).to_have_count(8)
    await expect(tab.page.locator("th.c-cost")).to_be_hidden()
    await expect(tab.page.locator(".budgets")).to_be_hidden()
    assert "$" not in await tab.page.locator("#app").inner_text()


async def test_the_panel_lists_the_calls_of_a_step_and_those_that_come(tab: Tab, workflows: Baton) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    for n in range(60):
        await spend(workflows.dsn, run.id, "only", "0.001", model=f"model-{n}", input_tokens=100)
    await tab.go(f"runs/{run.id}?step=1")
    calls = tab.page.locator(".call")
    await expect(calls).to_have_count(50)
    await tab.page.get_by_text("Show 10 more").click()
    await expect(calls).to_have_count(60)
    await spend(
        workflows.dsn,
        run.id,
        "only",
        "0.25",
        model="opus",
        provider="anthropic",
        input_tokens=2_000,
        cache_read_tokens=400,
        output_tokens=300,
        reasoning_tokens=200,
        key="draft",
        latency_ms=1_500,
    )
    await expect(calls).to_have_count(61)
    last = calls.last
    await expect(last.locator("summary b")).to_have_text("$0.25")
    await expect(last.locator("summary .num").first).to_have_text("2,000 → 300")
    await last.locator("summary").click()
    shown = await last.locator(".facts").inner_text()
    for text in (
        "anthropic",
        "draft",
        "2,000, of which 400 from a cache",
        "300, of which 200 reasoning",
        "1.5 s",
    ):
        assert text in shown
    await expect(tab.page.locator(".panel-part .facts.inner")).to_contain_text("$0.31")


async def test_a_budget_has_a_bar_and_is_added_to(tab: Tab, workflows: Baton) -> None:
    gate("a")
    workflow = one(
        wait.new("a"),
        budget=[Budget(usd=2, on_exhausted="pause"), Budget(key="tenant:<b>acme</b>", calls=100)],
    )
    run = await workflows.insert(workflow)
    await eventually(lambda: is_executing(run))
    async with await connected(workflows) as conn:
        await conn.execute(
            "UPDATE workflow_budgets SET spent_usd = 0.5, reserved_usd = 0.25 WHERE key IS NULL"
        )
    await tab.go(f"runs/{run.id}")
    budgets = tab.page.locator(".run-head .budget")
    await expect(budgets).to_have_count(2)
    await expect(budgets.first).to_contain_text("$0.50 of $2.00")
    await expect(budgets.first).to_contain_text("$0.25 reserved")
    spent, reserved = await budgets.first.locator(".bar i").all()
    assert await spent.evaluate("(one) => one.style.width") == "25%"
    assert await reserved.evaluate("(one) => one.style.width") == "12.5%"
    await expect(budgets.last).to_contain_text("tenant:<b>acme</b>")
    await expect(budgets.last).to_contain_text("0 of 100 calls")
    async with await connected(workflows) as conn:
        await conn.execute("UPDATE workflow_budgets SET spent_usd = 2, reserved_usd = 0 WHERE key IS NULL")
        await conn.execute(
            "UPDATE workflows SET paused_at = clock_timestamp(), "
            "paused_for = (SELECT id FROM workflow_budgets WHERE key IS NULL)"
        )
    await expect(budgets.first).to_contain_text("exhausted")
    await expect(tab.page.locator(".banner")).to_contain_text("its budget is exhausted")
    await budgets.first.get_by_role("button").click()
    await tab.page.keyboard.type("1.5x")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator("dialog")).to_be_visible()
    await tab.page.keyboard.press("Backspace")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator(".toast")).to_contain_text("$1.50 added")
    await expect(budgets.first).to_contain_text("$2.00 of $3.50")
    await expect(tab.page.locator(".banner")).to_have_count(0)


async def is_executing(run: Run) -> bool:
    return (await run.status()).states()["only"] == "executing"


async def test_who_may_only_look_is_offered_nothing_to_add(chromium: Browser, workflows: Baton) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a"), budget=Budget(usd=2)))
    app = baton.web.app(workflows, authorize=baton.web.read_only)
    async with Served(app) as served, Tab.opened(chromium, served.root) as tab:
        await tab.go(f"runs/{run.id}")
        await expect(tab.page.locator(".budget")).to_contain_text("$0.00 of $2.00")
        await expect(tab.page.locator(".budget button")).to_have_count(0)
        assert await tab.complaints() == []


HOSTILE_PROMPT = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


async def test_prompts_are_read_when_asked_for_by_who_may_see_them(
    chromium: Browser, workflows: Baton
) -> None:
    run = await finished(workflows, one(echo.new("hello")))
    async with await connected(workflows) as conn:
        for n in range(12):
            await conn.execute(
                "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt, model, request, response, context) "
                "SELECT workflow_id, id, 1, %s, %s, %s, %s FROM workflow_nodes",
                (
                    f"model-{n}",
                    Jsonb({"messages": [{"role": "user", "content": HOSTILE_PROMPT}]}),
                    Jsonb({"choices": [{"message": {"role": "assistant", "content": f"answer {n}"}}]}),
                    Jsonb({"before": [1, 2]}),
                ),
            )
    for prompts in (False, True):
        access = Access("ada", prompts=prompts)
        app = baton.web.app(workflows, authorize=lambda _, access=access: access)
        async with Served(app) as served, Tab.opened(chromium, served.root) as tab:
            await tab.go(f"runs/{run.id}?step=1")
            await expect(tab.page.locator(".panel-part h3").first).to_be_visible()
            await expect(tab.page.get_by_text("Show what was asked")).to_have_count(int(prompts))
            if prompts:
                await tab.page.get_by_text("Show what was asked").click()
                await expect(tab.page.locator(".panel details.attempt")).to_have_count(10)
                await tab.page.get_by_text("Load more").click()
                await expect(tab.page.locator(".panel details.attempt")).to_have_count(12)
                last = tab.page.locator(".panel details.attempt", has_text="model-11")
                # The newest is open.
                for text in (HOSTILE_PROMPT, "answer 11", "before"):
                    await expect(last.locator(".prompt")).to_contain_text(text)
                assert await tab.texts(".panel details.attempt[open] .said-role") == ["user", "assistant"]
            assert await tab.complaints() == []


async def test_a_run_that_is_not_there_is_said_not_to_be(tab: Tab) -> None:
    await tab.go("runs/01900000-0000-7000-8000-000000000000")
    await expect(tab.page.get_by_role("heading", name="Not found")).to_be_visible()
    tab.errors.clear()  # the browser itself reports the 404


# --- doing -----------------------------------------------------------------------------------------


async def test_a_run_is_cancelled_only_when_confirmed(tab: Tab, workflows: Baton) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    await tab.go(f"runs/{run.id}")
    await tab.page.get_by_role("button", name="Cancel", exact=True).click()
    await tab.page.get_by_role("button", name="Keep as it is").click()
    assert (await run.summary()).cancel_requested_at is None
    await tab.page.get_by_role("button", name="Cancel", exact=True).click()
    await tab.page.get_by_label("Reason").fill("a wrong <b>date</b>")
    await tab.page.get_by_role("button", name="Cancel run").click()
    await expect(tab.page.locator(".toast")).to_contain_text("cancelled")
    await expect(tab.page.locator(".run-head .state").first).to_have_text("Cancelled")
    await expect(tab.page.locator(".banner")).to_contain_text("a wrong <b>date</b>")


async def test_a_run_is_paused_resumed_retried_and_run_again(tab: Tab, workflows: Baton) -> None:
    opened = gate("a")
    workflow = Workflow("verbs")
    first = workflow.add("first", wait.new("a"))
    workflow.add("broken", fail.new("no"), deps=[first])
    run = await workflows.insert(workflow)
    await tab.go(f"runs/{run.id}")
    state = tab.page.locator(".run-head .state").first
    await tab.page.get_by_role("button", name="Pause").click()
    await expect(state).to_have_text("Paused")
    await tab.page.get_by_role("button", name="Resume").click()
    await expect(state).to_have_text("Running")
    opened.set()
    await expect(state).to_have_text("Failed")
    await tab.page.get_by_role("button", name="Retry failed").click()
    await expect(tab.page.locator(".meta")).to_contain_text("Retried1 time")
    await expect(state).to_have_text("Failed")
    await box(tab, "broken").click()
    await tab.page.get_by_role("complementary").get_by_role("button", name="Re-run from here").click()
    await tab.page.get_by_role("dialog").get_by_role("button", name="Re-run from here").click()
    await expect(tab.page.locator(".meta")).to_contain_text(f"Re-run of{run.id[-8:]}")
    assert run.id not in tab.page.url


async def test_who_may_only_look_sees_no_actions(chromium: Browser, workflows: Baton) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    app = baton.web.app(workflows, authorize=lambda _: Access("ada"))
    async with Served(app) as served, Tab.opened(chromium, served.root) as tab:
        await tab.go(f"runs/{run.id}?step=1")
        await expect(tab.page.locator(".step-name")).to_have_text("only")
        await expect(tab.page.locator(".user")).to_have_text("ada")
        await expect(tab.page.locator(".actions button")).to_have_count(0)
        assert await tab.complaints() == []


# --- keys ------------------------------------------------------------------------------------------


async def test_all_of_it_works_without_a_mouse(tab: Tab, workflows: Baton) -> None:
    await finished(workflows, one(number.new(1), "older"))
    run = await finished(workflows, fan(6))
    await tab.go()
    await expect(tab.page.get_by_role("listitem")).to_have_count(2)
    press = tab.page.keyboard.press
    await press("/")
    await expect(tab.page.get_by_label("Search runs")).to_be_focused()
    await press("Escape")
    await press("j")
    await press("j")
    await press("k")
    await press("Enter")
    await expect(tab.page.locator(".box")).to_have_count(3)
    assert run.id in tab.page.url
    await press("ArrowRight")
    await press("ArrowLeft")
    await press("ArrowLeft")
    await expect(box(tab, "first")).to_be_focused()
    await press("Enter")
    await expect(tab.page.locator(".step-name")).to_have_text("first")
    await press("Escape")
    await expect(box(tab, "first")).to_be_focused()
    await press("ArrowRight")
    await press("e")
    await expect(tab.page.locator(".box")).to_have_count(8)
    await press("f")
    await press("2")
    await expect(tab.page.locator("tbody tr")).to_have_count(8)
    await press("j")
    await press("Enter")
    await expect(tab.page.locator(".step-name")).to_have_text("first")
    await press("?")
    await expect(tab.page.get_by_role("dialog")).to_contain_text("Keyboard")
    await press("Escape")
    await expect(tab.page.get_by_role("dialog")).to_be_hidden()
    await press("Escape")
    await press("Escape")
    await expect(tab.page.get_by_role("heading", name="Runs")).to_be_visible()


# --- hostile ---------------------------------------------------------------------------------------


def storable(text: str) -> bool:
    """Whether an error or a result can hold it, and whether there is something to see."""
    return (
        bool(text.strip())
        and "\x00" not in text
        and not any("\ud800" <= letter <= "\udfff" for letter in text)
    )


async def test_hostile_names_and_keys_are_shown_as_they_are_and_do_nothing(
    tab: Tab, workflows: Baton
) -> None:
    texts = {
        (await workflows.insert(one(number.new(1)))).id: text[:1_000] for text in NAMES if storable(text)
    }
    async with await connected(workflows) as conn:
        for run_id, text in texts.items():
            await conn.execute(
                "UPDATE workflows SET name = %s, key = %s WHERE id = %s", (text, text[:500], run_id)
            )
    await tab.go()
    rows = tab.page.get_by_role("listitem")
    await expect(rows).to_have_count(len(texts))
    newest_first = [texts[run_id] for run_id in sorted(texts, reverse=True)]
    assert await tab.texts(".run-name") == newest_first
    assert await tab.texts(".run-sub .chip") == [text[:500] for text in newest_first]
    for n, text in enumerate(newest_first):
        if re.search("[<\"&'\u202e]", text):
            await rows.nth(n).get_by_role("link").click()
            await expect(tab.page.locator(".box")).to_have_count(1)
            assert await tab.texts("h1 bdi") == [text]
            assert await tab.texts(".meta .chip") == [text[:500]]
            await tab.page.go_back()
            await expect(rows).to_have_count(len(texts))
            assert await tab.complaints() == [], ascii(text[:100])


async def test_hostile_results_and_errors_are_shown_as_they_are_and_do_nothing(
    tab: Tab, workflows: Baton
) -> None:
    texts = [text[:5_000] for text in NAMES if storable(text)]
    workflow = Workflow("hostile")
    for n, text in enumerate(texts):
        workflow.add(f"echo_{n}", echo.new({text: text}))
        workflow.add(f"fail_{n}", fail.new(text))
    run = await finished(workflows, workflow)
    await tab.go(f"runs/{run.id}?tab=table")
    panel = tab.page.get_by_role("complementary")
    for n, text in enumerate(texts):
        await tab.page.get_by_role("link", name=f"echo_{n}", exact=True).click()
        await panel.locator(f".panel-head:has-text('echo_{n}') ~ section .j-key").first.wait_for()
        assert (await tab.texts(".panel .j-key"))[0] == text
        await tab.page.get_by_role("link", name=f"fail_{n}", exact=True).click()
        await panel.locator(f".panel-head:has-text('fail_{n}') ~ section .raw").first.wait_for()
        assert text in (await tab.texts(".panel .raw"))[0]
        assert await tab.complaints() == [], ascii(text[:100])


async def test_a_step_may_have_any_name_that_a_database_holds(tab: Tab, workflows: Baton) -> None:
    names = [
        "__proto__",
        "constructor",
        "x" * 300,
        "</script><script>alert(1)</script>",
        "right\u202eleft",
        "<img src=x onerror=alert(1)>",
    ]
    workflow = Workflow("names")
    for n in range(len(names)):
        workflow.add(f"step{'abcdef'[n]}", number.new(n))
    run = await finished(workflows, workflow)
    async with await connected(workflows) as conn:
        for n, text in enumerate(names):
            await conn.execute(
                "UPDATE workflow_nodes SET name = %s WHERE workflow_id = %s AND name = %s",
                (text, run.id, f"step{'abcdef'[n]}"),
            )
    await tab.go(f"runs/{run.id}?tab=table")
    await expect(tab.page.locator("tbody tr")).to_have_count(len(names))
    assert await tab.texts("tbody .row-link bdi") == names
    await tab.go(f"runs/{run.id}?step=3")
    await expect(tab.page.locator(".step-name")).to_have_text("x" * 300)
    labels = {await each.get_attribute("aria-label") for each in await tab.page.locator(".box").all()}
    assert {label.split("\n")[0] for label in labels if label} == set(names)


# --- surroundings ----------------------------------------------------------------------------------


async def test_dark_follows_the_system_until_told_otherwise(chromium: Browser, served: Served) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    async with Tab.opened(chromium, served.root, color_scheme="dark") as tab:
        await tab.go()
        await expect(tab.page.get_by_role("heading", name="No runs yet")).to_be_visible()
        assert await tab.page.evaluate(ground) == "rgb(12, 13, 16)"
        await tab.page.keyboard.press("t")
        assert await tab.page.evaluate(ground) == "rgb(247, 248, 249)"
        await tab.go()
        await expect(tab.page.get_by_role("button", name="Theme: light")).to_be_visible()
        assert await tab.page.evaluate(ground) == "rgb(247, 248, 249)"


@pytest.mark.parametrize("path", ["", "?step=1", "?tab=table&step=2", "?tab=timeline"])
async def test_a_narrow_screen_is_not_wider_than_it_is(
    chromium: Browser, served: Served, workflows: Baton, path: str
) -> None:
    workflow = Workflow("a name that is longer than a telephone is wide, by far" * 3, key="and-a-key-" * 8)
    first = workflow.add("first", number.new(1))
    workflow.add(
        "a_step_with_a_long_name_that_has_no_place_to_be_broken_at", fail.new("x" * 400), deps=[first]
    )
    run = await finished(workflows, workflow)
    async with Tab.opened(
        chromium, served.root, viewport={"width": 360, "height": 740}, has_touch=True
    ) as tab:
        await tab.go(f"runs/{run.id}{path}" if path else "")
        await expect(tab.page.locator(".run, .run-view .box, .line, tbody tr").first).to_be_visible()
        if "step" in path:
            await expect(tab.page.locator(".step-name")).to_be_visible()
        assert await tab.page.evaluate("document.documentElement.scrollWidth") == 360
        for each in await tab.page.locator(".actions button, .run-tools input, .panel-head button").all():
            place = await each.bounding_box()
            assert place
            assert place["x"] + place["width"] <= 360, await each.text_content()
        assert await tab.complaints() == []


async def test_a_long_name_leaves_room_for_what_can_be_done(tab: Tab, workflows: Baton) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a"), "a very long name " * 10))
    await tab.go(f"runs/{run.id}")
    place = await tab.page.get_by_role("button", name="Cancel", exact=True).bounding_box()
    assert place
    assert place["x"] + place["width"] <= 1280


async def test_the_page_comes_back_with_its_server(chromium: Browser, workflows: Baton) -> None:
    async with (
        Served(baton.web.app(workflows, authorize=everything)) as served,
        Tab.opened(chromium, served.root) as tab,
    ):
        opened = gate("a")
        run = await workflows.insert(one(wait.new("a")))
        await tab.go(f"runs/{run.id}")
        await expect(box(tab, "only")).to_have_class(re.compile("s-executing"))
        await expect(tab.page.locator(".conn")).to_have_text("Live")
        await served.stop()
        await expect(tab.page.locator(".conn")).to_have_text(re.compile("Reconnecting|Offline"))
        opened.set()
        await run.wait(timeout=30)
        await served.start()
        await expect(box(tab, "only")).to_have_class(re.compile("s-completed"))
        await expect(tab.page.locator(".conn")).to_have_text("Live")


async def test_a_hidden_tab_holds_no_stream_and_catches_up_when_it_is_shown(
    tab: Tab, served: Served, workflows: Baton
) -> None:
    opened = gate("a")
    run = await workflows.insert(one(wait.new("a")))
    await tab.go(f"runs/{run.id}")
    await expect(box(tab, "only")).to_have_class(re.compile("s-executing"))
    assert await eventually(lambda: served.streams == 1)
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    await tab.page.evaluate(hide, True)
    assert await eventually(lambda: served.streams == 0)
    opened.set()
    await run.wait(timeout=30)
    await tab.page.evaluate(hide, False)
    await expect(box(tab, "only")).to_have_class(re.compile("s-completed"))


async def test_going_from_view_to_view_leaves_one_stream_open(
    tab: Tab, served: Served, workflows: Baton
) -> None:
    run = await finished(workflows, fan(6))
    await tab.go()
    for _ in range(3):
        await tab.page.get_by_role("listitem").get_by_role("link").click()
        await expect(tab.page.locator(".box")).to_have_count(3)
        assert run.id in tab.page.url
        await tab.page.go_back()
        await expect(tab.page.get_by_role("listitem")).to_have_count(1)
    assert await eventually(lambda: served.streams == 1)


async def test_it_works_below_any_mount(chromium: Browser, workflows: Baton) -> None:
    run = await finished(workflows, fan(6))
    app = Starlette(routes=[Mount("/deep/down", baton.web.app(workflows, authorize=everything))])
    async with Served(app) as served, Tab.opened(chromium, f"{served.root}deep/down/") as tab:
        await tab.go()
        await tab.page.get_by_role("listitem").get_by_role("link").click()
        await expect(tab.page.locator(".box")).to_have_count(3)
        assert tab.page.url == f"{served.root}deep/down/runs/{run.id}"
        await tab.page.reload()
        await expect(tab.page.locator(".box")).to_have_count(3)
        await tab.page.get_by_role("link", name="Runs", exact=True).click()
        await expect(tab.page.get_by_role("listitem")).to_have_count(1)
        assert await tab.complaints() == []


async def test_of_many_boxes_only_those_in_view_are_elements(tab: Tab, workflows: Baton) -> None:
    chance = random.Random(7)
    workflow = Workflow("wide")
    layer: list[str] = []
    # No two that are alike, or they would be folded.
    for _ in range(25):
        names = ["".join(chance.choices(ascii_lowercase, k=12)) for _ in range(40)]
        for name in names:
            workflow.add(name, number.new(1), deps=chance.sample(layer, 2) if layer else [])
        layer = names
    run = await workflows.insert(workflow)
    await tab.go(f"runs/{run.id}")
    await expect(tab.page.locator(".box").first).to_be_visible()
    assert await tab.page.locator(".box").count() < 200
    await tab.page.keyboard.press("f")
    await expect(tab.page.locator(".box")).to_have_count(0)
    await expect(tab.page.locator(".far-box").first).to_be_attached()
    await run.wait(timeout=60)
    await expect(tab.page.locator(".far-box")).to_have_count(1)
    await expect(tab.page.locator(".far-box")).to_have_class(re.compile("s-completed"))
