"""The page's server: mounted beside an app, what it answers and streams, what its actions do. Attacks: test_web_security.py."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from oban import telemetry
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

import baton.web
from baton import Baton, Budget, Run, Workflow, call_llm, llm_step, step
from baton.budgets import Budgets
from baton.query import Query
from baton.stats import Stats
from baton.web import ACTIONS, Access, _board, _runs, _site, _streams
from tests.kit.reused import Reused
from tests.kit.spent import spend
from tests.kit.visitor import HOST, Visitor
from tests.kit.wait import eventually

GATES: dict[str, asyncio.Event] = {}


@step(name="tests.web.double")
async def double(n: int) -> int:
    return 2 * n


@step(name="tests.web.total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@step(name="tests.web.fail", max_attempts=1)
async def fail(text: str) -> None:
    raise ValueError(text)


@step(name="tests.web.wait")
async def wait(gate: str) -> str:
    await GATES[gate].wait()
    return gate


@step(name="tests.web.tell")
async def tell(chunks: int, gate: str) -> None:
    for n in range(chunks):
        baton.stream.write({"n": n})
    baton.progress(chunks, 2 * chunks, "half way")
    await GATES[gate].wait()


@llm_step(name="tests.web.ask")
async def ask(gate: str) -> None:
    async def call() -> dict[str, Any]:
        return {"model": "gpt-5", "usage": {"prompt_tokens": 90, "completion_tokens": 10}}

    await call_llm(call, request={"model": "gpt-5", "messages": [{"role": "user", "content": "why?"}]})
    await GATES[gate].wait()


@step(name="tests.web.big")
async def big(size: int) -> str:
    return "x" * size


def fan(name: str = "fan", width: int = 6) -> Workflow:
    """One step, `width` alike, one that takes them all together."""
    workflow = Workflow(name)
    first = workflow.add("first", double.new(1))
    each = [workflow.add(f"part_{n}", double.new(n), deps=[first]) for n in range(width)]
    workflow.add("last", total.new([part.result for part in each]))
    return workflow


def alike(jobs: Iterable[Any], name: str = "alike") -> Workflow:
    """Steps side by side, which are one box."""
    workflow = Workflow(name)
    for n, job in enumerate(jobs):
        workflow.add(f"part_{n}", job)
    return workflow


def one(job: Any, name: str = "one", **options: Any) -> Workflow:
    workflow = Workflow(name, **options)
    workflow.add("only", job)
    return workflow


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def workflows(baton_dsn: str) -> AsyncIterator[Baton]:
    GATES.clear()
    async with Baton(baton_dsn, queues={"default": 10}, shutdown_grace_period=0) as workflows:
        yield workflows
        for gate in GATES.values():
            gate.set()


def everything(_: Request) -> Access:
    return Access("ada", ACTIONS)


@pytest.fixture
async def page(workflows: Baton) -> AsyncIterator[Visitor]:
    async with Visitor(baton.web.app(workflows, authorize=everything)) as visitor:
        yield visitor


async def finished(workflows: Baton, workflow: Workflow) -> Run:
    run = await workflows.insert(workflow)
    await run.wait(timeout=30)
    return run


def utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def gate(name: str) -> asyncio.Event:
    return GATES.setdefault(name, asyncio.Event())


# --- where it is mounted ---------------------------------------------------------------------------


def with_fastapi(workflows: Baton, mount: str) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with workflows:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/own")
    async def own() -> str:
        return "the app's own"

    app.mount(mount, baton.web.app(workflows, authorize=everything))
    return app


def with_starlette(workflows: Baton, mount: str) -> Any:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workflows:
            yield

    return Starlette(routes=[Mount(mount, baton.web.app(workflows, authorize=everything))], lifespan=lifespan)


def nested(workflows: Baton, mount: str) -> Any:
    outer, _, inner = mount.rpartition("/")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workflows:
            yield

    return Starlette(routes=[Mount(outer, with_fastapi(workflows, f"/{inner}"))], lifespan=lifespan)


@pytest.mark.parametrize(
    ("make", "mount", "root_path"),
    [
        (with_fastapi, "/baton", ""),
        (with_fastapi, "/ops/baton", ""),
        (with_fastapi, "/baton", "/behind/a/proxy"),
        (with_starlette, "/baton", ""),
        (with_starlette, "/", ""),
        (nested, "/admin/baton", ""),
        (nested, "/admin/tools/baton", ""),
    ],
)
async def test_the_page_works_wherever_it_is_mounted(
    baton_dsn: str, make: Any, mount: str, root_path: str
) -> None:
    workflows = Baton(baton_dsn, queues={"default": 5})
    app = make(workflows, mount)
    base = f"{root_path}{mount.rstrip('/')}/"
    async with started(app), Visitor(app, base, root_path=root_path) as visitor:
        run = await finished(workflows, fan())
        for path in ("", f"runs/{run.id}"):
            html = await visitor.get(path)
            assert html.status_code == 200
            assert html.headers["content-type"] == "text/html; charset=utf-8"
            assert f'<base href="{base}">' in html.text
        assert [one["id"] for one in (await visitor.json("api/runs"))["runs"]] == [run.id]
        async with visitor.stream(f"api/runs/{run.id}/events") as events:
            assert (await events.named("change"))["run"]["id"] == run.id


@asynccontextmanager
async def started(app: Any) -> AsyncIterator[None]:
    """The lifespan of an app, as a server runs it."""
    to_app: asyncio.Queue[Any] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put)
    )
    for phase in ("startup", "shutdown"):
        await to_app.put({"type": f"lifespan.{phase}"})
        assert await from_app.get() == {"type": f"lifespan.{phase}.complete"}
        if phase == "startup":
            yield
    await task


async def test_alone_it_takes_part_in_a_servers_lifespan(workflows: Baton) -> None:
    app = baton.web.app(workflows, authorize=everything)
    async with started(app), Visitor(app) as visitor:
        assert (await visitor.get()).status_code == 200


async def test_before_its_baton_starts_and_after_it_stops_it_says_so(baton_dsn: str) -> None:
    workflows = Baton(baton_dsn)
    async with Visitor(baton.web.app(workflows, authorize=everything)) as visitor:
        run = "api/runs/018bcfe5-687b-7fff-bfff-ffffffffffff"
        paths = ("api/runs", run, f"{run}/events")
        for path in paths:
            assert "not started" in (await visitor.json(path, 503))["error"]
        assert (await visitor.get()).status_code == 200
        async with workflows:
            assert (await visitor.json("api/runs"))["runs"] == []
        for path in paths:
            assert "has stopped" in (await visitor.json(path, 503))["error"]
        async with workflows:
            assert (await visitor.json("api/runs"))["runs"] == []


def test_without_its_packages_it_says_what_to_install() -> None:
    for missing in ("starlette", "sse_starlette"):
        code = f"import sys; sys.modules[{missing!r}] = None\nimport baton\nbaton.web.app"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "MissingExtra" in done.stderr
        assert 'pip install "oban-baton[web]"' in done.stderr


# --- what it answers -------------------------------------------------------------------------------


async def test_the_session_says_who_looks_and_what_they_may(page: Visitor) -> None:
    session = await page.json("api/session")
    assert session["user"] == "ada"
    assert session["actions"] == sorted(ACTIONS)
    assert session["version"] == baton.__version__
    assert re.fullmatch(r"[\w-]{43}", session["csrf"])


async def test_runs_are_listed_by_pages_newest_first(workflows: Baton, page: Visitor) -> None:
    runs = await workflows.insert_many([Workflow(f"run {n}") for n in range(5)])
    newest_first = [run.id for run in reversed(runs)]
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        found = await page.json("api/runs", params={"limit": 2, "cursor": cursor})
        seen += [run["id"] for run in found["runs"]]
        assert found["counts"] == {"completed": 5}
        cursor = found["next"]
    assert seen == newest_first


async def test_a_run_in_the_list_has_all_that_the_page_shows(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, one(fail.new("no"), key="k"))
    (shown,) = (await page.json("api/runs"))["runs"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", shown.pop("inserted_at"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", shown.pop("finished_at"))
    assert shown == {
        "id": run.id,
        "name": "one",
        "key": "k",
        "state": "failed",
        "generation": 1,
        "steps": 1,
        "unsettled": 0,
        "failed": 1,
        "paused_at": None,
        "cancel_requested_at": None,
        "cancel_reason": None,
        "deadline_at": None,
        "rerun_of": None,
        "paused_by_budget": False,
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"state": "failed"}, ["bad"]),
        ({"state": "failed,completed"}, ["good", "bad"]),
        ({"state": "executing"}, []),
        ({"name": "good"}, ["good"]),
        ({"key": "k1"}, ["bad"]),
        ({"q": "OO"}, ["good"]),
        ({"q": ""}, ["good", "bad"]),
        ({"after": "2020-01-01T00:00:00Z"}, ["good", "bad"]),
        ({"before": "2020-01-01T00:00:00+02:00"}, []),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
async def test_runs_are_filtered(
    workflows: Baton, page: Visitor, query: dict[str, str], found: list[str]
) -> None:
    await finished(workflows, one(fail.new("no"), "bad", key="k1"))
    await finished(workflows, one(double.new(1), "good"))
    shown = await page.json("api/runs", params=query)
    assert [run["name"] for run in shown["runs"]] == found


async def test_a_run_is_drawn_with_a_fan_out_as_one_box(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    shown = await page.json(f"api/runs/{run.id}")
    boxes = {box["label"]: box for box in shown["layout"]["boxes"]}
    assert set(boxes) == {"first", "part", "last"}
    assert (boxes["part"]["group"], boxes["part"]["total"], boxes["part"]["position"]) == (True, 6, None)
    assert (boxes["first"]["group"], boxes["first"]["total"]) == (False, 1)
    assert boxes["first"]["function"] == "tests.web.double"
    assert all(
        box["x"] >= 0 and box["x"] + box["width"] <= shown["layout"]["width"] for box in boxes.values()
    )
    ends = {(edge["source"], edge["target"]) for edge in shown["layout"]["edges"]}
    assert ends == {
        (boxes["first"]["id"], boxes["part"]["id"]),
        (boxes["part"]["id"], boxes["last"]["id"]),
    }
    assert shown["groups"] == [{"id": boxes["part"]["id"], "label": "part", "total": 6, "expanded": False}]
    assert shown["counts"] == {"completed": 8}
    group = shown["boxes"][boxes["part"]["id"]]
    assert (group["counts"], group["failed"]) == ({"completed": 6}, [])
    steps = [step for step in (await run.status()).steps if step.name.startswith("part")]
    assert group["started_at"] == utc(min(step.started_at for step in steps if step.started_at))
    assert group["settled_at"] == utc(max(step.settled_at for step in steps if step.settled_at))
    assert shown["boxes"][boxes["last"]["id"]]["state"] == "completed"
    assert shown["run"]["id"] == run.id


async def test_a_group_is_shown_unfolded_when_asked(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    (group,) = (await page.json(f"api/runs/{run.id}"))["groups"]
    for expand in (group["id"], f"unknown,{group['id']},", f"{group['id']},{group['id']}"):
        shown = await page.json(f"api/runs/{run.id}", params={"expand": expand})
        assert len(shown["layout"]["boxes"]) == len(shown["boxes"]) == 8
        assert [one["expanded"] for one in shown["groups"]] == [True]


async def test_a_group_names_the_first_steps_that_failed(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, alike(fail.new(str(n)) for n in range(9)))
    shown = await page.json(f"api/runs/{run.id}")
    (box,) = shown["boxes"].values()
    assert box["counts"] == {"discarded": 9}
    positions = [one["position"] for one in (await page.json(f"api/runs/{run.id}/steps"))["steps"]]
    assert box["failed"] == positions[:5]


async def test_steps_are_listed_by_pages_filtered_and_sorted(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    path = f"api/runs/{run.id}/steps"
    names = [f"part_{n}" for n in range(6)]

    async def listed(**query: Any) -> list[str]:
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            found = await page.json(path, params={**query, "cursor": cursor})
            seen += [one["name"] for one in found["steps"]]
            cursor = found["next"]
        return seen

    assert await listed(limit=3) == ["first", *names, "last"]
    assert await listed(q="part", limit=4) == names
    assert await listed(state="completed,discarded") == ["first", *names, "last"]
    assert await listed(state="discarded") == []
    assert (await listed(sort="started_at"))[0] == "first"
    assert len(await listed(sort="duration", limit=3)) == 8
    (group,) = (await page.json(f"api/runs/{run.id}"))["groups"]
    assert await listed(box=group["id"], limit=4) == names
    assert (await page.get(path, params={"box": "g999"})).status_code == 404
    assert (await page.get(path, params={"sort": "name"})).status_code == 400


async def test_a_step_is_shown_with_all_that_is_known_of_it(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    listed = {one["name"]: one for one in (await page.json(f"api/runs/{run.id}/steps"))["steps"]}
    shown = await page.json(f"api/runs/{run.id}/steps/{listed['part_2']['position']}")
    assert shown.items() >= listed["part_2"].items()
    assert [one["name"] for one in shown["dependencies"]] == ["first"]
    assert [one["name"] for one in shown["dependents"]] == ["last"]
    assert json.loads(shown["arguments"]) == {"n": 2}
    assert shown["arguments_size"] == len(shown["arguments"])
    assert (shown["result"], shown["result_cut"]) == ("4", False)
    assert shown["attempts"] == []
    assert shown["errors_hidden"] == 0
    assert shown["why"]
    assert shown["job_id"]


async def test_a_failed_attempt_is_shown_with_its_traceback_and_in_lists_in_one_line(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, one(fail.new("x" * 1000 + "\nline" * 3)))
    (listed,) = (await page.json(f"api/runs/{run.id}/steps"))["steps"]
    assert listed["state"] == "discarded"
    assert len(listed["error"]) == 300
    assert listed["error"].startswith("ValueError: xxx")
    shown = await page.json(f"api/runs/{run.id}/steps/{listed['position']}")
    (attempt,) = shown["attempts"]
    assert attempt["attempt"] == 1
    assert "Traceback" in attempt["error"]
    assert "ValueError: xxx" in attempt["error"]


async def test_a_large_result_is_cut_in_the_panel_and_whole_in_the_file(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, one(big.new(100_000)))
    (listed,) = (await page.json(f"api/runs/{run.id}/steps"))["steps"]
    path = f"api/runs/{run.id}/steps/{listed['position']}"
    shown = await page.json(path)
    assert (len(shown["result"]), shown["result_size"], shown["result_cut"]) == (20_000, 100_002, True)
    answer = await page.get(f"{path}/result")
    assert answer.json() == "x" * 100_000
    assert answer.headers["content-disposition"] == f'attachment; filename="only-{run.id[-8:]}.json"'


async def test_what_a_step_streams_is_read_in_pages_while_it_runs(workflows: Baton, page: Visitor) -> None:
    gate("a")
    run = await workflows.insert(one(tell.new(1_200, "a")))
    async with page.stream(f"api/runs/{run.id}/events") as events:
        while True:
            ((_, box),) = (await events.named("change"))["boxes"].items()
            if box["chunks"] == 1_200 and box["progress"]:
                break
    assert box["progress"] == {"done": 1200.0, "total": 2400.0, "message": "half way"}
    path = f"api/runs/{run.id}/steps/{box['position']}/stream"
    seen: list[int] = []
    pages = 0
    while (found := await page.json(path, params={"after": len(seen), "attempt": box["attempt"]}))["chunks"]:
        assert [chunk["position"] for chunk in found["chunks"]] == list(
            range(len(seen), len(seen) + len(found["chunks"]))
        )
        seen += [chunk["value"]["n"] for chunk in found["chunks"]]
        assert found["next"] == len(seen)
        pages += 1
    assert (pages, seen) == (3, list(range(1_200)))
    assert found == {"attempt": 1, "chunks": [], "next": 1_200}
    assert (await page.json(path))["attempt"] == 1
    GATES["a"].set()


async def test_a_step_without_a_result_has_no_file(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, one(fail.new("no")))
    (listed,) = (await page.json(f"api/runs/{run.id}/steps"))["steps"]
    assert (await page.get(f"api/runs/{run.id}/steps/{listed['position']}/result")).status_code == 404


# --- what models cost ------------------------------------------------------------------------------


async def test_a_step_a_group_and_a_run_say_what_they_cost(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    await spend(
        workflows.dsn,
        run.id,
        "first",
        "0.00624",
        input_tokens=1_000,
        output_tokens=500,
        cache_read_tokens=400,
        reasoning_tokens=300,
    )
    await spend(workflows.dsn, run.id, "part_1", "1.5")
    await spend(workflows.dsn, run.id, "part_4", None, attempt=2)
    await spend(workflows.dsn, run.id, "part_4", "0.25")
    shown = await page.json(f"api/runs/{run.id}")
    usage = {one["label"]: shown["boxes"][one["id"]]["usage"] for one in shown["layout"]["boxes"]}
    assert usage["first"] == {
        "calls": 1,
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_read_tokens": 400,
        "cache_write_tokens": None,
        "reasoning_tokens": 300,
        "cost_usd": "0.00624",
        "cost": "$0.0062",
        "unpriced": 0,
    }
    assert (usage["part"]["calls"], usage["part"]["cost"]) == (3, "at least $1.75")
    assert usage["last"] is None
    assert (shown["usage"]["calls"], shown["usage"]["cost_usd"]) == (4, "1.75624")
    listed = {one["name"]: one["usage"] for one in (await page.json(f"api/runs/{run.id}/steps"))["steps"]}
    assert listed["first"] == usage["first"]
    assert listed["part_4"]["cost"] == "at least $0.25"
    assert listed["part_0"] is None


async def test_what_costs_nothing_that_is_known_says_so(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, one(double.new(1)))
    async with page.stream(f"api/runs/{run.id}/events") as events:
        assert (await events.named("change"))["usage"] is None
        await spend(workflows.dsn, run.id, "only", None, model=None)
        usage = (await events.named("change"))["usage"]
    assert (usage["calls"], usage["cost_usd"], usage["cost"], usage["unpriced"]) == (1, None, "unknown", 1)


async def test_a_sum_that_no_browser_counts_is_cut(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, one(double.new(1)))
    for _ in range(2):
        await spend(workflows.dsn, run.id, "only", "999999999999", input_tokens=2**63 - 1)
    usage = (await page.json(f"api/runs/{run.id}"))["usage"]
    assert (usage["input_tokens"], usage["cost_usd"]) == (2**53 - 1, "1999999999998")


async def test_what_a_running_step_spends_is_seen_at_once(workflows: Baton, page: Visitor) -> None:
    run = await workflows.insert(alike(wait.new("a") for _ in range(5) if gate("a")))
    async with page.stream(f"api/runs/{run.id}/events") as events:
        while (await events.named("change"))["counts"] != {"executing": 5}:
            pass
        for calls in (1, 2, 3):
            await spend(workflows.dsn, run.id, "part_3", "0.10")
            while True:
                change = await events.named("change")
                ((_, box),) = change["boxes"].items() or ((None, {"usage": None}),)
                if box["usage"] and box["usage"]["calls"] == calls:
                    break
            assert box["usage"]["cost"] == change["usage"]["cost"] == f"$0.{calls}0"
            assert box["counts"] == {"executing": 5}
    GATES["a"].set()


async def test_the_calls_of_a_step_are_listed_in_pages_the_oldest_first(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, fan())
    made = [
        await spend(workflows.dsn, run.id, "part_1", f"0.0{n}", attempt=n, key=f"k{n}", latency_ms=812.5)
        for n in range(1, 6)
    ]
    await spend(workflows.dsn, run.id, "part_2", None)
    (position,) = (
        one["position"]
        for one in (await page.json(f"api/runs/{run.id}/steps"))["steps"]
        if one["name"] == "part_1"
    )
    path = f"api/runs/{run.id}/steps/{position}/calls"
    seen: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        found = await page.json(path, params={"limit": 2, "cursor": cursor})
        assert len(found["calls"]) <= 2
        seen += found["calls"]
        cursor = found["next"]
    assert [call["id"] for call in seen] == made
    assert [(call["attempt"], call["key"], call["cost_usd"]) for call in seen] == [
        (n, f"k{n}", f"0.0{n}") for n in range(1, 6)
    ]
    assert (seen[0]["latency"], seen[0]["prices"]) == (0.8125, "genai-prices 0.2.3")
    (other,) = (await page.json(f"api/runs/{run.id}/steps/{position + 1}/calls"))["calls"]
    assert (other["cost_usd"], other["cost"], other["input_tokens"], other["prices"]) == (
        None,
        "unknown",
        None,
        None,
    )
    assert (await page.json(f"api/runs/{run.id}/steps/1/calls")) == {"calls": [], "next": None}
    await page.json(f"api/runs/{run.id}/steps/99/calls", 404)
    assert (await page.get(path, params={"cursor": "x"})).status_code == 400


async def test_what_each_model_cost_is_read_once_for_all_who_look(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = Stats.models_for_workflow

    async def counted(stats: Stats, run_id: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await read(stats, run_id, **options)

    monkeypatch.setattr(Stats, "models_for_workflow", counted)
    monkeypatch.setattr(_board, "_MODEL_SECONDS", 0.01)
    run = await finished(workflows, fan())
    path = f"api/runs/{run.id}/models"
    async with page.stream(f"api/runs/{run.id}/events") as events:
        await events.named("change")
        assert await page.json(path) == {"models": []}
        assert asked == 0
        await spend(workflows.dsn, run.id, "first", "0.10", model="gpt-5", provider="openai")
        await spend(workflows.dsn, run.id, "last", "0.30", model="opus", provider="anthropic")
        await spend(workflows.dsn, run.id, "last", None, model="opus", provider="anthropic")
        while (change := await events.named("change"))["usage"]["calls"] < 3:
            pass
        answers = await asyncio.gather(*(page.json(path) for _ in range(20)))
    assert asked == 1
    assert answers == 20 * [answers[0]]
    assert [(one["provider"], one["model"], one["usage"]["cost"]) for one in answers[0]["models"]] == [
        ("anthropic", "opus", "at least $0.30"),
        ("openai", "gpt-5", "$0.10"),
    ]
    assert change["usage"]["cost"] == "at least $0.40"


async def test_what_a_call_of_a_running_step_used_and_was_asked_is_on_the_page_before_the_step_ends(
    baton_dsn: str,
) -> None:
    gate("asked")
    access = Access("ada", prompts=True)
    async with Baton(baton_dsn, queues={"llm": 1}, shutdown_grace_period=0) as workflows:
        app = baton.web.app(workflows, authorize=lambda _: access)
        run = await workflows.insert(one(ask.new("asked"), budget=Budget(calls=3), debug=True))
        async with Visitor(app) as page, page.stream(f"api/runs/{run.id}/events") as events:
            while True:
                change = await events.named("change")
                if change["usage"] and change["budgets"][0]["lines"][0]["spent"]:
                    break
            ((_, box),) = (await page.json(f"api/runs/{run.id}"))["boxes"].items()
            assert (box["state"], box["usage"]["calls"], box["usage"]["input_tokens"]) == ("executing", 1, 90)
            assert change["budgets"][0]["lines"][0]["spent"] == 1
            (call,) = (await page.json(f"api/runs/{run.id}/steps/1/calls"))["calls"]
            assert (call["model"], call["output_tokens"]) == ("gpt-5", 10)
            assert (await page.json(f"api/runs/{run.id}/steps/1"))["captured"]
            (prompt,) = (await page.json(f"api/runs/{run.id}/steps/1/prompts"))["prompts"]
            assert json.loads(prompt["request"])["messages"] == [{"role": "user", "content": "why?"}]
            assert json.loads(prompt["response"])["usage"]["prompt_tokens"] == 90
            GATES["asked"].set()


# --- budgets ---------------------------------------------------------------------------------------


def on_budgets(*budgets: Budget, gate: str = "a") -> Workflow:
    """A step that waits, in a run with budgets."""
    GATES.setdefault(gate, asyncio.Event())
    return one(wait.new(gate), budget=list(budgets))


async def charge(workflows: Baton, text: str, *params: object) -> None:
    """Change rows of budgets, as calls do."""
    async with workflows._connection() as conn:
        await conn.execute(f"UPDATE workflow_budgets SET {text}".encode(), params)


async def test_the_budgets_of_a_run_are_shown_with_what_is_spent_and_reserved(
    workflows: Baton, page: Visitor
) -> None:
    run = await workflows.insert(
        on_budgets(
            Budget(usd="2.50", calls=10), Budget(key="tenant:acme", tokens=1_000, on_exhausted="pause")
        )
    )
    await charge(workflows, "spent_usd = 1.25, spent_calls = 3, reserved_usd = 0.0125 WHERE key IS NULL")
    own, shared = (await page.json(f"api/runs/{run.id}"))["budgets"]
    assert own == {
        "key": None,
        "name": "the run's budget",
        "text": "$1.25 of $2.50 spent, $0.013 reserved; 3 of 10 calls spent",
        "exhausted": False,
        "on_exhausted": "stop",
        "unpriced_calls": 0,
        "lines": [
            {
                "kind": "usd",
                "total": "2.5",
                "spent": "1.25",
                "reserved": "0.0125",
                "text": ["$2.50", "$1.25", "$0.013"],
            },
            {"kind": "calls", "total": 10, "spent": 3, "reserved": 0, "text": ["10", "3", "0"]},
        ],
    }
    assert (shared["key"], shared["on_exhausted"], [line["kind"] for line in shared["lines"]]) == (
        "tenant:acme",
        "pause",
        ["tokens"],
    )
    assert (await page.json(f"api/runs/{(await finished(workflows, fan())).id}"))["budgets"] == []


async def test_what_others_spend_of_a_shared_budget_is_seen_and_read_once_for_all_who_look(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = Budgets.for_run

    async def counted(budgets: Budgets, run: Any) -> Any:
        nonlocal asked
        asked += 1
        return await read(budgets, run)

    monkeypatch.setattr(Budgets, "for_run", counted)
    monkeypatch.setattr(_board, "_BUDGET_SECONDS", 0.05)
    run = await workflows.insert(on_budgets(Budget(key="day", calls=10)))
    async with AsyncExitStack() as stack:
        path = f"api/runs/{run.id}/events"
        many = [await stack.enter_async_context(page.stream(path)) for _ in range(10)]
        for events in many:
            assert (await events.named("change"))["budgets"][0]["lines"][0]["spent"] == 0
        before = asked
        await charge(workflows, "spent_calls = 10")
        for events in many:
            (budget,) = (await events.named("change"))["budgets"]
            assert (budget["lines"][0]["spent"], budget["exhausted"]) == (10, True)
        assert asked - before < len(many)


async def test_the_budgets_of_a_run_without_any_are_looked_for_once(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_board, "_BUDGET_SECONDS", 0.0)
    run = await workflows.insert(one(wait.new("a"))) if gate("a") else None
    assert run is not None
    async with page.stream(f"api/runs/{run.id}/events") as events:
        await events.named("change")
        (board,) = page._app.state.site.boards._boards.values()
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert board._task.get_name() in names
        assert f"baton-web-budgets-{run.id}" not in names


async def test_a_budget_is_topped_up_and_what_it_had_paused_goes_on(workflows: Baton, page: Visitor) -> None:
    gate("a")
    run = await workflows.insert(on_budgets(Budget(usd=1, tokens=10, on_exhausted="pause")))
    await eventually(lambda: _executes(run))
    async with workflows._connection() as conn:
        await conn.execute(
            b"UPDATE workflows SET paused_at = clock_timestamp(), paused_for = (SELECT id FROM workflow_budgets)"
        )
    shown = await page.json(f"api/runs/{run.id}")
    assert (shown["run"]["paused_by_budget"], shown["run"]["paused_at"] is None) == (True, False)
    answer = await page.act(f"api/runs/{run.id}/add_budget", {"budget": None, "usd": "2.50", "tokens": 5})
    assert answer.json() == {
        "run": run.id,
        "message": "the run's budget: $2.50 and 5 tokens added, $0.00 of $3.50 spent; 0 of 15 tokens spent",
    }
    summary = await workflows.query.get_run(run.id)
    assert (summary.paused_at, summary.paused_by_budget) == (None, False)


async def _executes(run: Run) -> bool:
    return (await run.status()).states()["only"] == "executing"


async def test_a_double_click_adds_once(workflows: Baton, page: Visitor) -> None:
    run = await workflows.insert(on_budgets(Budget(usd=1), Budget(key="day", usd=1)))
    path = f"api/runs/{run.id}/add_budget"
    same = {"headers": {"Idempotency-Key": "click"}}
    first, second = await asyncio.gather(
        page.act(path, {"usd": "2"}, **same), page.act(path, {"usd": "2"}, **same)
    )
    said = [first.json()["message"], second.json()["message"]]
    assert sorted(text.endswith(", a moment ago") for text in said) == [False, True]
    await page.act(path, {"usd": "2", "budget": "day"}, **same)
    await page.act(path, {"usd": "2"}, headers={"Idempotency-Key": "another"})
    assert [one.usd.added for one in await workflows.budgets.for_run(run)] == [4, 2]


async def test_a_limit_that_a_budget_does_not_have_is_not_added_to(workflows: Baton, page: Visitor) -> None:
    run = await workflows.insert(on_budgets(Budget(usd=1)))
    answer = await page.act(f"api/runs/{run.id}/add_budget", {"calls": 5})
    assert answer.status_code == 400
    assert "calls" in answer.json()["error"]


# --- what it streams -------------------------------------------------------------------------------


async def test_a_stream_begins_with_every_box_and_goes_on_with_those_that_change(
    workflows: Baton, page: Visitor
) -> None:
    gate("a")
    workflow = Workflow("two")
    first = workflow.add("first", wait.new("a"))
    workflow.add("second", double.new(1), deps=[first])
    run = await workflows.insert(workflow)
    async with page.stream(f"api/runs/{run.id}/events") as events:
        assert events.status == 0
        begun = await events.named("change")
        assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert events.headers["x-accel-buffering"] == "no"
        boxes = {one["name"]: box for box, one in begun["boxes"].items()}
        assert set(boxes) == {"first", "second"}
        GATES["a"].set()
        states = {name: begun["boxes"][box]["state"] for name, box in boxes.items()}
        run_state = begun["run"]["state"]
        while set(states.values()) != {"completed"} or run_state != "completed":
            change = await events.named("change")
            states |= {one["name"]: one["state"] for one in change["boxes"].values()}
            run_state = change["run"]["state"]
            counts = change["counts"]
        assert counts == {"completed": 2}
        assert change["run"]["unsettled"] == 0


async def test_groups_change_by_their_numbers(workflows: Baton, page: Visitor) -> None:
    run = await workflows.insert(alike(wait.new(name) for name in "abcde" if gate(name)))
    async with page.stream(f"api/runs/{run.id}/events") as events:
        for done, name in enumerate("abcde", 1):
            GATES[name].set()
            while True:
                ((_, box),) = (await events.named("change"))["boxes"].items()
                assert sum(box["counts"].values()) == 5
                if box["counts"].get("completed") == done:
                    break


async def test_what_one_sees_unfolded_another_sees_folded(workflows: Baton, page: Visitor) -> None:
    gate("a")
    run = await workflows.insert(alike(wait.new("a") for _ in range(5)))
    (group,) = (await page.json(f"api/runs/{run.id}"))["groups"]
    async with (
        page.stream(f"api/runs/{run.id}/events") as folded,
        page.stream(f"api/runs/{run.id}/events?expand={group['id']}") as unfolded,
    ):
        assert len((await folded.named("change"))["boxes"]) == 1
        assert len((await unfolded.named("change"))["boxes"]) == 5
        GATES["a"].set()
        while (await folded.named("change"))["counts"] != {"completed": 5}:
            pass
        while (change := await unfolded.named("change"))["counts"] != {"completed": 5}:
            pass
        assert all(box["state"] == "completed" for box in change["boxes"].values())


async def test_all_who_look_share_one_board_that_ends_when_the_last_has_gone(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_board, "_LINGER", 0.0)
    app = baton.web.app(workflows, authorize=everything)
    boards = app.state.site.boards._boards
    run = await finished(workflows, fan())
    async with Visitor(app) as page:
        path = f"api/runs/{run.id}/events"
        async with page.stream(path) as first, page.stream(path) as second:
            await first.named("change")
            await second.named("change")
            ((_, board),) = boards.items()
            assert board.users == 2
        await eventually(lambda: not boards)
        await eventually(lambda: board._task.done())
        assert (await page.json(f"api/runs/{run.id}"))["counts"] == {"completed": 8}


async def test_a_stream_says_goodbye_after_its_time(
    page: Visitor, workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streams, "_SECONDS", 0.2)
    run = await finished(workflows, fan())
    for path in (f"api/runs/{run.id}/events", "api/runs/events"):
        async with page.stream(path) as events:
            await events.named("bye")
            assert await events.next() is None


async def test_a_stream_of_a_run_that_is_pruned_tells_the_page_to_look_again(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, fan())
    async with page.stream(f"api/runs/{run.id}/events") as events:
        await events.named("change")
        async with workflows._connection() as conn:
            await conn.execute("DELETE FROM workflow_edges")
            await conn.execute("DELETE FROM workflow_completions")
            await conn.execute("DELETE FROM workflow_nodes")
            await conn.execute("DELETE FROM workflows")
        await events.named("resync")
        assert await events.next() is None
    await page.json(f"api/runs/{run.id}", 404)


async def test_streams_end_when_baton_stops(baton_dsn: str) -> None:
    workflows = Baton(baton_dsn)
    async with Visitor(baton.web.app(workflows, authorize=everything)) as page, workflows:
        run = await workflows.insert(Workflow("empty"))
        async with (
            page.stream(f"api/runs/{run.id}/events") as one_run,
            page.stream("api/runs/events") as all_runs,
        ):
            await one_run.named("change")
            await all_runs.named("resync")
            await workflows.stop()
            for events in (one_run, all_runs):
                await events.named("resync")
                assert await events.next() is None


async def test_the_last_event_id_changes_nothing(workflows: Baton) -> None:
    run = await finished(workflows, fan())
    app = baton.web.app(workflows, authorize=everything)
    for value in ("5", "-1", "x" * 10_000):
        async with (
            Visitor(app, headers={"Last-Event-ID": value}) as page,
            page.stream(f"api/runs/{run.id}/events") as events,
        ):
            assert len((await events.named("change"))["boxes"]) == 3


async def test_the_list_hears_of_new_runs_and_of_their_ends(workflows: Baton, page: Visitor) -> None:
    async with page.stream("api/runs/events") as events:
        await events.named("resync")
        run = await workflows.insert(fan())
        while True:
            change = await events.named("runs")
            if any(one["id"] == run.id and one["state"] == "completed" for one in change["runs"]):
                break


async def test_who_has_missed_too_much_is_told_to_fetch_the_list(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runs, "_KEPT", 2)
    board = _runs.RunsBoard(workflows)
    async with board.watched():
        seen = board.version
        await workflows.insert_many([Workflow(str(n)) for n in range(5)])
        await eventually(lambda: board.message(seen, "") is None)


async def test_who_does_not_read_is_dropped_and_others_are_not(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_streams, "_STALLED", 0.2)
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    path = f"api/runs/{run.id}/events"
    async with page.stream(path) as reads, page.stream(path, reads=False) as does_not:
        await reads.named("change")
        await asyncio.wait({does_not.task}, timeout=10)
        assert does_not.task.done()
        assert does_not.task.exception() is None
        GATES["a"].set()
        while (await reads.named("change"))["run"]["state"] != "completed":
            pass


async def test_open_pages_are_bounded_by_user_and_in_all(workflows: Baton) -> None:
    def authorize(request: Request) -> Access:
        return Access(request.headers.get("x-user", ""))

    app = baton.web.app(workflows, authorize=authorize, max_streams=3, max_streams_per_user=2)
    path = "api/runs/events"
    async with (
        Visitor(app, headers={"X-User": "ada"}) as ada,
        Visitor(app, headers={"X-User": "bob"}) as bob,
        ada.stream(path) as first,
        ada.stream(path) as second,
    ):
        await first.named("resync")
        await second.named("resync")
        refused = await ada.get(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        async with bob.stream(path) as third:
            await third.named("resync")
            assert (await bob.get(path)).status_code == 503
        async with bob.stream(path) as again:
            await again.named("resync")


async def test_a_stream_has_an_end_also_when_the_server_stops(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    never = asyncio.Event()

    async def receive() -> Any:
        await never.wait()

    # What uvicorn's signal handler sets.
    monkeypatch.setattr(AppStatus, "should_exit", True)
    scope = {"type": "http", "method": "GET", "path": "/api/runs/events", "query_string": b"", "headers": []}
    await baton.web.app(workflows, authorize=everything)(scope, receive, send)
    assert (sent[0]["status"], sent[-1]["more_body"]) == (200, False)


async def test_a_read_that_gets_no_connection_is_given_up(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def list_runs(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(_site, "_READ_SECONDS", 0.05)
        patched.setattr(Query, "list_runs", list_runs)
        assert "does not answer" in (await page.json("api/runs", 503))["error"]
    assert (await page.json("api/runs"))["runs"] == []


async def test_users_without_a_name_are_bounded_in_all_alone(workflows: Baton) -> None:
    app = baton.web.app(workflows, authorize=baton.web.read_only, max_streams=3, max_streams_per_user=1)
    path = "api/runs/events"
    async with Visitor(app) as page, page.stream(path) as first, page.stream(path) as second:
        await first.named("resync")
        await second.named("resync")


async def test_a_step_that_the_drawing_has_not_ends_a_view_so_that_it_is_drawn_anew(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, fan())
    app = baton.web.app(workflows, authorize=everything)
    async with app.state.site.boards.board(run.id) as board:
        async with board.view(frozenset()) as view:
            known = (await run.status()).steps[0]
            new = replace(known, position=999, name="new")
            view.apply(await run.summary(), [(None, new)])
            assert view.over
        async with board.view(frozenset()) as again:
            assert again is not view
            assert not again.over


async def test_runs_and_ways_to_look_at_them_are_bounded(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_board, "_MOST_BOARDS", 1)
    monkeypatch.setattr(_board, "_MOST_VIEWS", 1)
    monkeypatch.setattr(_board, "_KEPT_VIEWS", 0)
    first, second = [await finished(workflows, fan()) for _ in range(2)]
    async with Visitor(baton.web.app(workflows, authorize=everything)) as page:
        (group,) = (await page.json(f"api/runs/{first.id}"))["groups"]
        async with page.stream(f"api/runs/{first.id}/events") as events:
            await events.named("change")
            assert (await page.json(f"api/runs/{first.id}"))["counts"] == {"completed": 8}
            await page.json(f"api/runs/{first.id}?expand={group['id']}", 503)
            await page.json(f"api/runs/{second.id}", 503)
        await page.json(f"api/runs/{first.id}?expand={group['id']}")
        await page.json(f"api/runs/{second.id}")


async def test_two_hundred_pages_follow_one_run_on_one_subscription(workflows: Baton, page: Visitor) -> None:
    app = baton.web.app(workflows, authorize=everything, max_streams_per_user=300)
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    path = f"api/runs/{run.id}/events"

    async def follow(visitor: Visitor, ready: asyncio.Semaphore) -> None:
        async with visitor.stream(path) as events:
            await events.named("change")
            ready.release()
            while (await events.named("change"))["run"]["state"] != "completed":
                pass

    async with Visitor(app) as visitor:
        ready = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(follow(visitor, ready))
            for _ in range(200):
                await ready.acquire()
            async with workflows._connection() as conn:
                cursor = await conn.execute("SELECT count(*) FROM workflow_subscribers")
                assert await cursor.fetchone() == (1,)
            GATES["a"].set()


# --- what its actions do ---------------------------------------------------------------------------


async def test_a_run_is_cancelled_with_the_users_name_as_the_reason(workflows: Baton, page: Visitor) -> None:
    gate("a")
    run = await workflows.insert(one(wait.new("a")))
    answer = await page.act(f"api/runs/{run.id}/cancel")
    assert answer.json() == {"run": run.id, "message": "cancelled"}
    assert await run.wait(timeout=30) == "cancelled"
    assert (await run.summary()).cancel_reason == "cancelled by ada"
    again = await page.act(f"api/runs/{run.id}/cancel", {"reason": "again"})
    assert again.status_code == 200
    assert (await run.summary()).cancel_reason == "cancelled by ada"


async def test_one_step_is_cancelled_by_its_position(workflows: Baton, page: Visitor) -> None:
    gate("a")
    workflow = Workflow("two")
    for name in ("one", "two"):
        workflow.add(name, wait.new("a"))
    run = await workflows.insert(workflow)
    steps = (await page.json(f"api/runs/{run.id}/steps"))["steps"]
    position = {one["name"]: one["position"] for one in steps}["two"]
    answer = await page.act(f"api/runs/{run.id}/cancel", {"position": position, "reason": "not needed"})
    assert answer.json()["message"] == "two: cancelled"
    GATES["a"].set()
    await run.wait(timeout=30)
    assert {name: str(state) for name, state in (await run.status()).states().items()} == {
        "one": "completed",
        "two": "cancelled",
    }


async def test_an_action_that_comes_too_late_says_how_it_ended(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    for action in ("cancel", "pause", "resume"):
        answer = await page.act(f"api/runs/{run.id}/{action}")
        assert answer.json()["message"] == "the run had ended before: it is completed"
    assert (await page.act(f"api/runs/{run.id}/retry")).json()["message"] == "nothing had failed"


async def test_what_failed_is_retried_once_however_often_it_is_clicked(
    workflows: Baton, page: Visitor
) -> None:
    run = await finished(workflows, one(fail.new("no")))
    answers = await asyncio.gather(*(page.act(f"api/runs/{run.id}/retry") for _ in range(2)))
    assert sorted(answer.json()["message"] for answer in answers) == [
        "1 step runs again: only",
        "nothing had failed",
    ]


async def test_a_run_is_paused_and_goes_on(workflows: Baton, page: Visitor) -> None:
    gate("a")
    workflow = Workflow("two")
    first = workflow.add("first", wait.new("a"))
    workflow.add("second", double.new(1), deps=[first])
    run = await workflows.insert(workflow)
    assert (await page.act(f"api/runs/{run.id}/pause")).status_code == 200
    assert (await page.json(f"api/runs/{run.id}/steps"))["steps"]
    assert (await run.summary()).paused_at
    assert (await page.act(f"api/runs/{run.id}/resume")).status_code == 200
    GATES["a"].set()
    assert await run.wait(timeout=30) == "completed"


async def test_a_run_is_run_again_from_a_step(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    steps = {one["name"]: one["position"] for one in (await page.json(f"api/runs/{run.id}/steps"))["steps"]}
    answer = (await page.act(f"api/runs/{run.id}/rerun", {"position": steps["last"]})).json()
    again = workflows.get_run(answer["run"])
    await again.wait(timeout=30)
    assert (await again.summary()).rerun_of == run.id
    attempts = {one.name: one.attempt for one in (await again.status()).steps}
    assert attempts["last"] == 1


async def test_a_double_click_makes_one_new_run(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    answers = await asyncio.gather(*(page.act(f"api/runs/{run.id}/rerun") for _ in range(5)))
    assert len({answer.json()["run"] for answer in answers}) == 1
    assert len(await workflows.query.list_runs()) == 2


async def test_clicks_with_keys_of_their_own_make_a_run_each(workflows: Baton, page: Visitor) -> None:
    run = await finished(workflows, fan())
    keys = ["a", "b", "a", "a"]
    answers = [await page.act(f"api/runs/{run.id}/rerun", headers={"Idempotency-Key": key}) for key in keys]
    made = [answer.json()["run"] for answer in answers]
    assert made[0] == made[2] == made[3] != made[1]
    assert len(await workflows.query.list_runs()) == 3


async def test_a_rerun_that_failed_may_be_tried_again(
    workflows: Baton, page: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await finished(workflows, fan())
    real = Run.rerun

    async def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(Run, "rerun", away)
    assert (await page.act(f"api/runs/{run.id}/rerun")).status_code == 500
    monkeypatch.setattr(Run, "rerun", real)
    assert (await page.act(f"api/runs/{run.id}/rerun")).status_code == 200


async def test_an_action_is_an_event_of_telemetry(workflows: Baton, page: Visitor) -> None:
    heard: list[dict[str, Any]] = []
    run = await finished(workflows, fan())
    telemetry.attach("tests.web", ["baton.web.action"], lambda _, metadata: heard.append(metadata))
    try:
        await page.act(f"api/runs/{run.id}/retry")
    finally:
        telemetry.detach("tests.web")
    (event,) = heard
    assert (
        event.items()
        >= {
            "action": "retry",
            "user": "ada",
            "from": "127.0.0.1",
            "run_id": run.id,
            "step": None,
            "outcome": "nothing had failed",
        }.items()
    )


# --- who is asked ----------------------------------------------------------------------------------


async def test_a_plain_authorize_is_asked_in_a_thread_and_an_async_one_in_the_loop(workflows: Baton) -> None:
    threads: list[int] = []

    def plain(_: Request) -> Access:
        threads.append(threading.get_ident())
        return Access("ada")

    async def in_loop(_: Request) -> Access:
        threads.append(threading.get_ident())
        return Access("ada")

    class Session:
        async def __call__(self, _: Request) -> Access:
            threads.append(threading.get_ident())
            return Access("ada")

    for authorize in (plain, in_loop, Session()):
        async with Visitor(baton.web.app(workflows, authorize=authorize)) as page:
            assert (await page.get("api/session")).status_code == 200
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, True]


async def test_authorize_sees_the_request_as_the_app_does(workflows: Baton) -> None:
    seen: list[Any] = []

    async def authorize(request: Request) -> Access:
        seen.append((request.url.path, request.headers["host"], request.cookies.get("session")))
        return Access("ada")

    app = FastAPI()
    app.mount("/baton", baton.web.app(workflows, authorize=authorize))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"http://{HOST}") as http:
        await http.get("/baton/api/session", headers={"Cookie": "session=abc"})
    assert seen == [("/baton/api/session", HOST, "abc")]
