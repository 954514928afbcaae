"""The page under attack: what docs/securing-the-page.md promises, line by line. What needs a browser is in test_page.py."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import httpx
import psycopg
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

import baton.web
from baton import Baton, Budget, Run, Workflow, step
from baton.errors import InvalidOption
from baton.web import ACTIONS, Access
from baton.web import _app as web_app
from baton.web._serve import Login
from tests.kit.hostile import NAMES
from tests.kit.reused import Reused
from tests.kit.spent import spend
from tests.kit.visitor import HOST, Visitor

ROOT = Path(__file__).parent.parent
ADA = {"X-User": "ada"}
SOMEBODY = str(uuid4())


@step(name="tests.web_security.echo")
async def echo(value: str) -> str:
    return value


@step(name="tests.web_security.fail", max_attempts=1)
async def fail(value: str) -> str:
    raise ValueError(value)


def users(request: Request) -> Access | None:
    """Ada may do everything to what is hers and see its prompts, Bob may look at what is his, root sees all runs."""
    match request.headers.get("x-user"):
        case "ada":
            return Access("ada", ACTIONS, name_prefix="ada:", prompts=True)
        case "bob":
            return Access("bob", name_prefix="bob:")
        case "root":
            return Access("root", ACTIONS)
    return None


def echoes(name: str, value: str = "hello") -> Workflow:
    workflow = Workflow(name)
    workflow.add("echo", echo.new(value))
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
    async with Baton(baton_dsn, queues={"default": 10}) as workflows:
        yield workflows


@pytest.fixture
def page(workflows: Baton) -> Any:
    return baton.web.app(workflows, authorize=users)


@pytest.fixture
def shut() -> Any:
    """The page of a Baton that has not started: who is refused is refused before that matters."""
    return baton.web.app(Baton("postgresql://nowhere/app"), authorize=users)


@asynccontextmanager
async def visiting(page: Any, user: str | None = "ada", **options: Any) -> AsyncIterator[Visitor]:
    async with Visitor(page, headers={"X-User": user} if user else {}, **options) as visitor:
        yield visitor


async def finished(workflows: Baton, workflow: Workflow) -> Run:
    run = await workflows.insert(workflow)
    await run.wait(timeout=30)
    return run


# --- every route -----------------------------------------------------------------------------------


def routes() -> list[web_app.Endpoint]:
    return web_app._endpoints()


def method(route: web_app.Endpoint) -> str:
    (only,) = route.methods
    return only


def url(route: web_app.Endpoint, run_id: str = SOMEBODY, position: int = 1) -> str:
    return route.path.replace("{run:uuid}", run_id).replace("{position:int}", str(position))


def named(route: web_app.Endpoint) -> str:
    return f"{method(route)} {route.path}"


EVERY_ROUTE = pytest.mark.parametrize("route", routes(), ids=named)


def test_the_app_has_these_routes_and_no_others(shut: Any) -> None:
    assert [named(route) for route in shut.routes] == [named(route) for route in routes()]
    assert all(isinstance(route, web_app.Endpoint) for route in shut.routes)


def test_a_route_without_a_policy_is_refused() -> None:
    async def handler(call: Any) -> Any: ...

    with pytest.raises(TypeError):
        web_app.Endpoint("GET", "/new", handler)  # type: ignore[call-arg]
    with pytest.raises(AssertionError):
        web_app.Endpoint("GET", "/new", handler, policy="anybody")
    with pytest.raises(AssertionError):
        web_app.Endpoint("POST", "/new", handler, policy=web_app.VIEW)
    with pytest.raises(AssertionError):
        web_app.Endpoint("GET", "/new", handler, policy="cancel")
    with pytest.raises(AssertionError):
        web_app.Endpoint("POST", "/new", handler, policy=web_app.PROMPTS)


@EVERY_ROUTE
async def test_a_route_is_closed_to_who_is_nobody(shut: Any, route: web_app.Endpoint) -> None:
    async with visiting(shut, None) as visitor:
        answer = await visitor.http.request(method(route), url(route))
    assert answer.status_code == 401
    assert set(answer.json()) == {"error", "id"}


@EVERY_ROUTE
async def test_a_route_takes_its_own_method_alone(shut: Any, route: web_app.Endpoint) -> None:
    async with visiting(shut) as visitor, visiting(shut, None) as nobody:
        for verb in {"HEAD", "OPTIONS", "GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "X"} - {
            method(route)
        }:
            answer = await visitor.http.request(verb, url(route))
            assert answer.status_code == 405
            assert answer.headers["allow"] == method(route)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert (await nobody.http.request(verb, url(route))).status_code == 401


SPELLINGS = [
    "{}/",
    "/{}",
    "{}/health",
    "{}/ready",
    "{};a=b",
    "{}%2f",
    "{}%2F..",
    "{}%00",
    "{}/%2e%2e",
    "{}/..",
    "{}/../health",
    "{}%5c",
    "/.{}",
    "/%2e{}",
    "/static/..{}",
    "/x/..{}",
]


@EVERY_ROUTE
async def test_a_path_that_is_spelled_otherwise_leads_nowhere(shut: Any, route: web_app.Endpoint) -> None:
    for spelling in SPELLINGS:
        target = spelling.format(url(route))
        assert await _status(shut, method(route), target, None) == 401, target
        assert await _status(shut, method(route), target, "ada") == 404, target


async def _status(page: Any, verb: str, target: str, user: str | None, root_path: str = "") -> int:
    """The status of a request whose path no client tidies up before it is sent."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    headers = [(b"host", HOST.encode())] + ([(b"x-user", user.encode())] if user else [])
    await page(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": verb,
            "scheme": "http",
            "path": root_path + unquote(target),
            "raw_path": root_path.encode() + target.encode(),
            "query_string": b"",
            "root_path": root_path,
            "headers": headers,
            "client": ("192.0.2.1", 40000),
            "server": (HOST, 80),
        },
        receive,
        send,
    )
    return status


async def test_an_encoded_letter_is_not_decoded_into_a_route(shut: Any) -> None:
    for target in ("/api/%72uns", "/%61pi/session", f"/api/runs/{SOMEBODY}%2Fsteps"):
        assert await _status(shut, "GET", target, "ada") == 404
        assert await _status(shut, "GET", target, None) == 401
        assert await _status(shut, "GET", target, "ada", "/caf\u00e9") == 404
    assert await _status(shut, "GET", "/api/session", "ada", "/baton") == 200


async def test_a_websocket_is_turned_away(shut: Any) -> None:
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/api/runs/events", "headers": [(b"x-user", b"root")]}
    await shut(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# --- headers ---------------------------------------------------------------------------------------


def assert_protected(answer: httpx.Response) -> None:
    headers = answer.headers
    assert headers["cache-control"] == "no-store"
    assert headers["vary"] == "Cookie"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "http" not in policy


@EVERY_ROUTE
@pytest.mark.parametrize("user", [None, "ada", "bob"])
async def test_every_answer_has_its_headers(
    page: Any, workflows: Baton, route: web_app.Endpoint, user: str | None
) -> None:
    run = await finished(workflows, echoes("ada:1"))
    async with visiting(page, user) as visitor:
        for run_id in (run.id, SOMEBODY):
            target = url(route, run_id)
            if target.endswith("/events"):
                async with visitor.stream(target.removeprefix("/")) as events:
                    if (user and "runs/events" in target) or (user == "ada" and run_id == run.id):
                        await events.next()
                    else:
                        await events.task
                assert_protected(httpx.Response(events.status, headers=events.headers))
            else:
                assert_protected(await visitor.http.request(method(route), target))


async def test_the_headers_are_there_when_something_breaks(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("postgresql://ada:s3cret@db.internal/app at /srv/app/secret.py")

    monkeypatch.setattr(type(workflows.query), "list_runs", broken)
    page = baton.web.app(workflows, authorize=users)
    async with visiting(page) as visitor:
        answer = await visitor.get("api/runs")
        assert answer.status_code == 500
        assert_protected(answer)
        assert set(answer.json()) == {"error", "id"}
        assert not re.search("s3cret|postgresql|srv|Traceback|RuntimeError", answer.text)
        assert_protected(await visitor.get("nowhere"))
        assert_protected(await visitor.send("DELETE", "api/runs"))


async def test_an_error_has_an_id_and_the_log_has_it_with_the_cause(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("the cause")

    monkeypatch.setattr(type(workflows.query), "list_runs", broken)
    page = baton.web.app(workflows, authorize=users)
    async with visiting(page) as visitor:
        told = await visitor.json("api/runs", 500)
    (record,) = [record for record in caplog.records if told["id"] in record.getMessage()]
    assert record.name == "baton.web"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "the cause" in str(record.exc_info[1])


async def test_a_database_that_is_away_is_one_line_in_the_log_for_each_request(
    workflows: Baton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*_: object, **__: object) -> Any:
        raise psycopg.OperationalError("connection is bad:\n\tno such socket")

    monkeypatch.setattr(type(workflows.query), "list_runs", away)
    page = baton.web.app(workflows, authorize=users)
    async with visiting(page) as visitor:
        told = await visitor.json("api/runs", 503)
    assert "no such socket" not in told["error"]
    (record,) = [record for record in caplog.records if told["id"] in record.getMessage()]
    assert (record.name, record.levelno, record.exc_info) == ("baton.web", logging.WARNING, None)
    assert record.getMessage().endswith("(OperationalError: connection is bad: no such socket)")


# --- P1: what others wrote -------------------------------------------------------------------------

STORABLE = [name for name in NAMES if "\x00" not in name and "\ud800" not in name]


async def test_hostile_text_arrives_as_data_in_json_and_never_in_html(workflows: Baton, page: Any) -> None:
    run = await workflows.insert(echoes("hostile"))
    await run.wait(timeout=30)
    async with visiting(page, "root") as visitor:
        for text in STORABLE:
            async with await psycopg.AsyncConnection.connect(workflows.dsn, autocommit=True) as conn:
                await conn.execute("UPDATE workflows SET name = %s, key = %s", (text or "x", text or "x"))
                await conn.execute(
                    "UPDATE workflow_nodes SET error = %s, result = jsonb_build_object('value', %s::text)",
                    (text, text),
                )
            for path in ("api/runs", f"api/runs/{run.id}/steps", f"api/runs/{run.id}/steps/1"):
                answer = await visitor.get(path)
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "application/json"
                json.loads(answer.content)
            shown = (await visitor.json("api/runs"))["runs"][0]
            assert shown["name"] == (text or "x")
            html = await visitor.get(f"runs/{run.id}")
            assert _without_nonce(html) == _without_nonce(await visitor.get())


def _without_nonce(html: httpx.Response) -> str:
    return re.sub(r'nonce="[^"]*"', "", html.text)


async def test_the_page_has_a_policy_for_its_own_scripts_alone(page: Any) -> None:
    async with visiting(page) as visitor:
        first, second = await visitor.get(), await visitor.get()
    nonces = []
    for answer in (first, second):
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"]
        nonce = re.fullmatch(r"'nonce-([\w-]{20,})'", policy["script-src"])
        assert nonce
        nonces.append(nonce[1])
        assert policy["connect-src"] == policy["base-uri"] == "'self'"
        assert policy["form-action"] == policy["frame-ancestors"] == "'none'"
        for tag in re.findall(r"<(?:script|style)\b[^>]*>", answer.text):
            assert f'nonce="{nonce[1]}"' in tag
        assert not re.search(r"""\b(src|href)=["']?(https?:)?//""", answer.text)
        assert not re.search(
            r"<[^>]+\s(on\w+|style)=", re.sub(r"(?s)<(script|style)\b.*?</\1>", "", answer.text)
        )
    assert nonces[0] != nonces[1]


@pytest.mark.parametrize("mount", ['/"><script>alert(1)</script>', "//evil.test", "/a b/\u00e9"])
async def test_a_mount_cannot_break_out_of_the_base(page: Any, mount: str) -> None:
    async with visiting(page, root_path=mount, mount=mount + "/") as visitor:
        answer = await visitor.http.send(
            httpx.Request("GET", f"http://{HOST}/", headers={"X-User": "ada", "Host": HOST})
        )
    base = re.search(r'<base href="([^"]*)">', answer.text)
    assert base
    assert re.fullmatch(r"/([\w%~.-]+/)*", base[1])


# --- P4: ids ---------------------------------------------------------------------------------------

OF_A_RUN = [route for route in routes() if "{run" in route.path and route.path.startswith("/api")]


@pytest.mark.parametrize("route", OF_A_RUN, ids=named)
async def test_a_run_of_another_is_not_there(workflows: Baton, page: Any, route: web_app.Endpoint) -> None:
    theirs = await finished(workflows, echoes("bob:1"))
    before = await theirs.status()
    async with visiting(page, "ada") as visitor:
        target = url(route, theirs.id).removeprefix("/")
        unknown = url(route, SOMEBODY).removeprefix("/")
        if method(route) == "POST":
            answer, other = await visitor.act(target), await visitor.act(unknown)
        else:
            answer, other = await visitor.get(target), await visitor.get(unknown)
    assert answer.status_code == other.status_code == 404
    assert answer.json()["error"] == other.json()["error"]
    assert await theirs.status() == before


@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_a_body_cannot_name_another_run(workflows: Baton, page: Any, action: str) -> None:
    mine = await finished(workflows, echoes("ada:1"))
    theirs = await finished(workflows, echoes("bob:1"))
    before = await theirs.status()
    async with visiting(page, "ada") as visitor:
        for name in ("id", "run", "run_id", "__proto__", "name_prefix"):
            answer = await visitor.act(f"api/runs/{mine.id}/{action}", {name: theirs.id})
            assert answer.status_code == 400
    assert await theirs.status() == before


async def test_lists_and_their_numbers_are_of_ones_own_runs(workflows: Baton, page: Any) -> None:
    mine = [await finished(workflows, echoes(f"ada:{n}")) for n in range(2)]
    await finished(workflows, echoes("bob:secret"))
    async with visiting(page, "ada") as visitor:
        for query in ("", "?q=bob", "?name=bob:secret", "?q=secret"):
            found = await visitor.json(f"api/runs{query}")
            assert {run["id"] for run in found["runs"]} <= {run.id for run in mine}
            assert "secret" not in json.dumps(found)
        assert (await visitor.json("api/runs"))["counts"]["completed"] == 2


async def test_events_are_of_ones_own_runs(workflows: Baton, page: Any) -> None:
    async with visiting(page, "ada") as visitor, visitor.stream("api/runs/events") as events:
        await events.named("resync")
        theirs = await finished(workflows, echoes("bob:secret"))
        mine = await finished(workflows, echoes("ada:1"))
        while True:
            told = await events.named("runs")
            assert theirs.id not in json.dumps(told)
            assert "secret" not in json.dumps(told)
            if any(run["id"] == mine.id and run["state"] == "completed" for run in told["runs"]):
                break


async def test_a_name_prefix_is_no_pattern(workflows: Baton) -> None:
    await finished(workflows, echoes("a_b"))
    await finished(workflows, echoes("axb"))
    page = baton.web.app(workflows, authorize=lambda _: Access("ada", name_prefix="a_"))
    async with Visitor(page) as visitor:
        assert [run["name"] for run in (await visitor.json("api/runs"))["runs"]] == ["a_b"]


# --- P5: other sites -------------------------------------------------------------------------------

FORGED: dict[str, dict[str, str | None]] = {
    "another site's fetch": {"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"},
    "a sister site": {"Origin": "http://www.example.com", "Sec-Fetch-Site": "same-site"},
    "an old browser on another site": {"Origin": "https://evil.test", "Sec-Fetch-Site": None},
    "another port": {"Origin": f"http://{HOST}:8080", "Sec-Fetch-Site": None},
    "a name that begins alike": {"Origin": f"http://{HOST}.evil.test", "Sec-Fetch-Site": None},
    "a user in front": {"Origin": f"http://{HOST}@evil.test", "Sec-Fetch-Site": None},
    "a sandboxed frame": {"Origin": "null", "Sec-Fetch-Site": None},
    "no origin": {"Origin": None},
    "no origin and no site": {"Origin": None, "Sec-Fetch-Site": None},
    "an origin that is none": {"Origin": "http://[", "Sec-Fetch-Site": None},
    "typed into the address bar": {"Sec-Fetch-Site": "none"},
    "a lying origin": {"Sec-Fetch-Site": "cross-site"},
    "no token": {"X-Baton-CSRF": None},
    "an empty token": {"X-Baton-CSRF": ""},
    "a wrong token": {"X-Baton-CSRF": "A" * 43},
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_an_action_that_another_site_sends_is_refused(
    workflows: Baton, page: Any, action: str, headers: dict[str, str | None]
) -> None:
    run = await finished(workflows, echoes("ada:1"))
    before = await run.status()
    async with visiting(page) as visitor:
        answer = await visitor.act(f"api/runs/{run.id}/{action}", headers=headers)
    assert answer.status_code == 403
    assert await run.status() == before
    assert len(await workflows.query.list_runs()) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data",
        "text/plain; application/json",
        None,
    ],
)
async def test_an_action_that_a_form_could_send_is_refused(
    workflows: Baton, page: Any, kind: str | None
) -> None:
    run = await finished(workflows, echoes("ada:1"))
    async with visiting(page) as visitor:
        answer = await visitor.act(f"api/runs/{run.id}/rerun", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert len(await workflows.query.list_runs()) == 1


async def test_a_token_is_of_one_user_and_of_one_secret(workflows: Baton) -> None:
    def page(secret: str | None) -> Any:
        return baton.web.app(workflows, authorize=users, secret=secret)

    first, same, other, own = (page(secret) for secret in ("s" * 16, "s" * 16, "t" * 16, None))
    run = await finished(workflows, echoes("ada:1"))
    async with visiting(first) as ada, visiting(first, "root") as root:
        token = (await ada.json("api/session"))["csrf"]
        assert token != (await root.json("api/session"))["csrf"]
        path = f"api/runs/{run.id}/retry"
        assert (await root.act(path, headers={"X-Baton-CSRF": token})).status_code == 403
    for served, status in ((same, 200), (other, 403), (own, 403)):
        async with visiting(served) as visitor:
            assert (await visitor.act(path, headers={"X-Baton-CSRF": token})).status_code == status


@pytest.mark.parametrize("route", [route for route in routes() if method(route) == "POST"], ids=named)
async def test_nothing_is_done_by_get(workflows: Baton, page: Any, route: web_app.Endpoint) -> None:
    run = await finished(workflows, echoes("ada:1"))
    before = await run.status()
    async with visiting(page) as visitor:
        assert (await visitor.get(url(route, run.id).removeprefix("/"))).status_code == 405
    assert await run.status() == before


@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_who_may_only_look_does_nothing(workflows: Baton, page: Any, action: str) -> None:
    run = await finished(workflows, echoes("bob:1"))
    before = await run.status()
    async with visiting(page, "bob") as visitor:
        assert (await visitor.json("api/session"))["actions"] == []
        assert (await visitor.act(f"api/runs/{run.id}/{action}")).status_code == 403
    assert await run.status() == before
    assert len(await workflows.query.list_runs()) == 1


async def test_an_action_needs_to_be_named_itself(workflows: Baton) -> None:
    page = baton.web.app(workflows, authorize=lambda _: Access("ada", {"retry"}))  # type: ignore[arg-type]
    run = await finished(workflows, echoes("any"))
    async with Visitor(page) as visitor:
        for action in sorted(ACTIONS):
            status = (await visitor.act(f"api/runs/{run.id}/{action}")).status_code
            assert status == (200 if action == "retry" else 403)


async def test_behind_a_proxy_that_changes_the_host_the_page_is_told_its_origin(workflows: Baton) -> None:
    run = await finished(workflows, echoes("ada:1"))
    page = baton.web.app(workflows, authorize=users, origins=["https://Public.example:443"])
    sent = {"Origin": "https://public.example"}
    async with visiting(page) as visitor:
        assert (await visitor.act(f"api/runs/{run.id}/retry", headers=sent)).status_code == 200
        plain = {"Origin": "http://public.example"}
        assert (await visitor.act(f"api/runs/{run.id}/retry", headers=plain)).status_code == 403
        forwarded = {"Origin": "https://evil.test", "X-Forwarded-Host": "evil.test"}
        assert (await visitor.act(f"api/runs/{run.id}/retry", headers=forwarded)).status_code == 403


# --- P6: names for this machine --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("ops.example.com", 200),
        ("OPS.example.com:8443", 200),
        ("[::1]:80", 200),
        ("evil.test", 421),
        ("ops.example.com.evil.test", 421),
        ("ops.example.com:80@evil.test", 421),
        ("ops.example.com:", 421),
        ("", 421),
    ],
)
async def test_a_host_that_is_not_named_is_refused_before_anything_else(
    workflows: Baton, host: str, status: int
) -> None:
    asked = []

    def authorize(request: Request) -> Access:
        asked.append(request)
        return Access("ada")

    page = baton.web.app(workflows, authorize=authorize, hosts=["Ops.example.com", "[::1]"])
    async with Visitor(page, headers={"Host": host}) as visitor:
        answer = await visitor.get("api/session")
    assert answer.status_code == status
    assert bool(asked) == (status == 200)
    assert_protected(answer)


# --- the login of `baton ui` -----------------------------------------------------------------------


@pytest.fixture
def login() -> Login:
    return Login(ACTIONS, False, "baton_ui_1", lambda: None)


@asynccontextmanager
async def at_the_door(workflows: Baton, login: Login) -> AsyncIterator[Visitor]:
    async with Visitor(baton.web.app(workflows, authorize=login.authorize)) as visitor:
        yield visitor


async def test_a_token_becomes_a_cookie_and_leaves_the_address(
    workflows: Baton, login: Login, caplog: pytest.LogCaptureFixture
) -> None:
    token = login.token
    caplog.set_level(logging.DEBUG)
    async with at_the_door(workflows, login) as visitor:
        answer = await visitor.get(f"runs/{SOMEBODY}?token={token}")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/runs/{SOMEBODY}"
        assert_protected(answer)
        cookie = answer.headers["set-cookie"]
        assert re.fullmatch(r"baton_ui_1=[\w-]{43}; Path=/; HttpOnly; SameSite=Strict", cookie)
        assert (await visitor.get("api/session")).status_code == 200
    assert token not in cookie
    assert not [one for one in caplog.records if one.name != "httpx" and token in one.getMessage()]


async def test_a_token_is_good_once_and_then_there_is_another(workflows: Baton, login: Login) -> None:
    token = login.token
    async with at_the_door(workflows, login) as first, at_the_door(workflows, login) as second:
        assert (await first.get(f"?token={token}")).status_code == 303
        assert (await second.get(f"?token={token}")).status_code == 401
        assert (await second.get()).status_code == 401
        assert login.token != token
        assert (await second.get(f"?token={login.token}")).status_code == 303
        assert (await first.get()).status_code == (await second.get()).status_code == 200


async def test_a_used_address_that_is_opened_again_leads_whom_it_let_in_to_the_page(
    workflows: Baton, login: Login
) -> None:
    token = login.token
    async with at_the_door(workflows, login) as visitor:
        await visitor.get(f"?token={token}")
        unused = login.token
        answers = [await visitor.get(f"?token={token}") for _ in range(12)]
        assert {(answer.status_code, answer.headers["location"]) for answer in answers} == {(303, "/")}
        assert "set-cookie" not in answers[0].headers
        assert login.token == unused


@pytest.mark.parametrize("path", ["//evil.test/", "/\\evil.test", "/%2fevil.test", "//evil.test/%2e%2e"])
async def test_the_login_sends_nobody_to_another_site(workflows: Baton, login: Login, path: str) -> None:
    page = baton.web.app(workflows, authorize=login.authorize)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=page), base_url="http://x") as http:
        answer = await http.get(
            httpx.URL("http://x").copy_with(raw_path=f"{path}?token={login.token}".encode())
        )
    assert "location" not in answer.headers
    assert answer.status_code == 401


async def test_wrong_tokens_are_counted(workflows: Baton, login: Login) -> None:
    async with at_the_door(workflows, login) as visitor:
        seen = [(await visitor.get("?token=wrong")).status_code for _ in range(12)]
        assert seen == [401] * 10 + [429] * 2
        assert (await visitor.get(f"?token={login.token}")).status_code == 429


async def test_a_token_is_taken_by_get_alone_and_no_cookie_is_guessed(workflows: Baton, login: Login) -> None:
    async with at_the_door(workflows, login) as visitor:
        assert (await visitor.send("POST", f"?token={login.token}")).status_code == 401
        for cookie in ("", "x", login.token):
            headers = {"Cookie": f"baton_ui_1={cookie}"}
            assert (await visitor.get("api/session", headers=headers)).status_code == 401


# --- P7: names of files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../pyproject.toml",
        "..%2fpyproject.toml",
        "%2e%2e/%2e%2e/etc/passwd",
        "..\\..\\etc\\passwd",
        "static/ui.html",
        "static/../_app.py",
        "ui.html",
        "/etc/passwd",
        "%00",
        "ui.html%00.js",
        "_app.py",
        "ui.html.map",
    ],
)
async def test_no_path_reaches_a_file(shut: Any, path: str) -> None:
    assert await _status(shut, "GET", f"/{path}", "root") == 404


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", 'a"; filename="b.html', "a\r\nSet-Cookie: a=b", "\u202egpj.exe", ""]
)
async def test_a_file_to_save_has_a_harmless_name(workflows: Baton, page: Any, name: str) -> None:
    run = await finished(workflows, echoes("ada:1", "saved"))
    async with await psycopg.AsyncConnection.connect(workflows.dsn, autocommit=True) as conn:
        await conn.execute("ALTER TABLE workflow_nodes DISABLE TRIGGER USER")
        await conn.execute("UPDATE workflow_nodes SET name = %s", (name,))
    async with visiting(page) as visitor:
        answer = await visitor.get(f"api/runs/{run.id}/steps/1/result")
    assert answer.status_code == 200
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9_-]+\.json"', answer.headers["content-disposition"])
    assert answer.json() == "saved"
    assert "set-cookie" not in answer.headers


# --- P9: secrets -----------------------------------------------------------------------------------

SECRETS = [
    "sk-ant-api03-AAAABBBBCCCCDDDD",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "postgresql://ada:hunter2@db.internal/app",
    "Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
    "xoxb-1234-5678-abcdef",
    "-----BEGIN PRIVATE KEY-----",
    "password=correcthorse",
]


async def test_what_steps_were_given_and_made_is_shown_in_the_step_alone(
    workflows: Baton, page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="baton.web")
    run = await finished(workflows, echoes("ada:1", " ".join(SECRETS)))
    async with visiting(page) as visitor:
        own = await visitor.get(f"api/runs/{run.id}/steps/1")
        told = [
            (await visitor.get(path)).text
            for path in (
                "",
                "api/session",
                "api/runs",
                f"api/runs/{run.id}",
                f"api/runs/{run.id}/steps",
                f"api/runs/{run.id}/steps?q=sk-ant",
                f"api/runs/{run.id}/steps/9",
            )
        ]
        told.append((await visitor.act(f"api/runs/{run.id}/retry")).text)
        async with visitor.stream(f"api/runs/{run.id}/events") as events:
            told.append(json.dumps(await events.named("change")))
    for secret in SECRETS:
        assert secret in own.text
        assert not any(secret in text for text in told)
        assert secret not in caplog.text


async def captured(workflows: Baton, name: str) -> Run:
    """A run with a captured call that nobody should come across."""
    run = await finished(workflows, echoes(name))
    async with await psycopg.AsyncConnection.connect(workflows.dsn, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO workflow_debug_logs (workflow_id, step_id, attempt, model, request, response, context, error) "
            "SELECT workflow_id, id, 1, 'gpt-5', %s, %s, %s, 'sk-raised' FROM workflow_nodes WHERE workflow_id = %s",
            ('{"prompt": "sk-asked"}', '{"text": "sk-answered"}', '{"before": "sk-read"}', run.id),
        )
    return run


async def test_captured_calls_are_shown_to_those_alone_who_may_see_prompts(
    workflows: Baton, page: Any
) -> None:
    run = await captured(workflows, "ada:1")
    theirs = await captured(workflows, "bob:1")
    async with visiting(page, "root") as root, visiting(page, "ada") as ada, visiting(page, "bob") as bob:
        assert [(await each.json("api/session"))["prompts"] for each in (root, ada, bob)] == [
            False,
            True,
            False,
        ]
        for visitor, target in ((root, run), (root, theirs), (bob, theirs), (ada, run)):
            for route in routes():
                path = url(route, target.id).removeprefix("/")
                if method(route) != "GET" or route.path.endswith("/events"):
                    continue
                if route.policy == web_app.PROMPTS and visitor is ada:
                    continue
                answer = await visitor.get(path)
                assert answer.status_code == (403 if route.policy == web_app.PROMPTS else answer.status_code)
                assert "sk-" not in answer.text
        for visitor, target in ((root, run), (bob, theirs)):
            assert "captured" not in await visitor.json(f"api/runs/{target.id}/steps/1")
        assert (await ada.json(f"api/runs/{run.id}/steps/1"))["captured"] is True
        (shown,) = (await ada.json(f"api/runs/{run.id}/steps/1/prompts"))["prompts"]
        # Theirs is not there for her, prompts or not.
        assert (await ada.get(f"api/runs/{theirs.id}/steps/1/prompts")).status_code == 404
        assert (await ada.get(f"api/runs/{run.id}/steps/9/prompts")).status_code == 404
    assert json.loads(shown["request"]) == {"prompt": "sk-asked"}
    assert json.loads(shown["response"]) == {"text": "sk-answered"}
    assert json.loads(shown["context"]) == {"before": "sk-read"}
    assert shown["error"] == "sk-raised"


async def test_prompts_are_shown_to_nobody_unless_it_is_said(workflows: Baton) -> None:
    run = await captured(workflows, "any")
    for access in (Access("ada", ACTIONS), baton.web.read_only(None)):  # type: ignore[arg-type]
        assert access.prompts is False
        async with Visitor(baton.web.app(workflows, authorize=lambda _, access=access: access)) as visitor:
            assert (await visitor.get(f"api/runs/{run.id}/steps/1/prompts")).status_code == 403


async def test_who_looks_at_prompts_is_in_the_log_and_what_they_saw_is_not(
    workflows: Baton, page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="baton.web")
    run = await captured(workflows, "ada:1")
    async with visiting(page) as visitor:
        await visitor.json(f"api/runs/{run.id}/steps/1/prompts")
    (line,) = [record.message for record in caplog.records if record.message.startswith("prompts")]
    assert line == f"prompts by 'ada' from '127.0.0.1': run {run.id} step 'echo': '1 shown'"
    assert "sk-" not in caplog.text


async def test_costs_are_of_ones_own_runs(workflows: Baton, page: Any) -> None:
    mine = await finished(workflows, echoes("ada:1"))
    theirs = await finished(workflows, echoes("bob:1"))
    await spend(workflows.dsn, mine.id, "echo", "0.10", model="mine")
    await spend(workflows.dsn, theirs.id, "echo", "0.20", model="secret-model")
    async with visiting(page) as visitor:
        for path in ("", "/models", "/steps", "/steps/1", "/steps/1/calls"):
            assert (await visitor.get(f"api/runs/{theirs.id}{path}")).status_code == 404
            assert "secret-model" not in (await visitor.get(f"api/runs/{mine.id}{path}")).text
        assert [one["model"] for one in (await visitor.json(f"api/runs/{mine.id}/models"))["models"]] == [
            "mine"
        ]


# --- budgets ---------------------------------------------------------------------------------------


def funded(name: str, *budgets: Budget) -> Workflow:
    workflow = Workflow(name, budget=list(budgets))
    workflow.add("echo", echo.new("hello"))
    return workflow


async def test_a_budget_that_the_run_does_not_draw_on_is_not_there(workflows: Baton, page: Any) -> None:
    mine = await finished(workflows, funded("ada:1", Budget(key="shared", usd=1)))
    theirs = await finished(workflows, funded("bob:1", Budget(usd=1), Budget(key="theirs", usd=1)))
    async with visiting(page) as visitor:
        path = f"api/runs/{mine.id}/add_budget"
        for key in ("theirs", "unknown", "", "shared%", theirs.id, mine.id, None):
            answer = await visitor.act(path, {"budget": key, "usd": "5"})
            assert answer.status_code == 404, key
        assert (await visitor.act(f"api/runs/{theirs.id}/add_budget", {"usd": "5"})).status_code == 404
        assert (await visitor.act(path, {"budget": "shared", "usd": "5"})).status_code == 200
        assert "theirs" not in (await visitor.get(f"api/runs/{mine.id}")).text
    assert [one.usd.added for one in await workflows.budgets.for_run(theirs)] == [0, 0]
    assert [one.usd.added for one in await workflows.budgets.for_run(mine)] == [5]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"usd": 5},
        {"usd": 0.1},
        {"usd": "-1"},
        {"usd": "NaN"},
        {"usd": "Infinity"},
        {"usd": "1e999999999"},
        {"usd": "1" * 31},
        {"usd": "1000000.01"},
        {"usd": "0.0000001"},
        {"usd": "\u0665"},
        {"usd": "five"},
        {"usd": "0"},
        {"usd": True},
        {"tokens": "5"},
        {"tokens": -5},
        {"tokens": 1.5},
        {"tokens": True},
        {"tokens": 10**30},
        {"calls": 10**13},
        {"usd": "5", "budget": 1},
        {"usd": "5", "budget": ["shared"]},
        {"usd": "5", "key": "shared"},
        {"usd": "5", "position": 1},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
async def test_an_addition_that_cannot_be_changes_nothing(workflows: Baton, page: Any, body: Any) -> None:
    run = await finished(workflows, funded("ada:1", Budget(usd=1, tokens=1, calls=1)))
    async with visiting(page) as visitor:
        answer = await visitor.act(f"api/runs/{run.id}/add_budget", body)
    assert answer.status_code == 400, answer.text
    (now,) = await workflows.budgets.for_run(run)
    assert (now.usd.added, now.tokens.added, now.calls.added) == (0, 0, 0)


async def test_an_addition_is_logged_with_who_and_what(
    workflows: Baton, page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="baton.web")
    run = await finished(workflows, funded("ada:1", Budget(key="tenant:ada", usd=1)))
    async with visiting(page) as visitor:
        await visitor.act(f"api/runs/{run.id}/add_budget", {"budget": "tenant:ada", "usd": "5"})
    (line,) = [record.message for record in caplog.records if record.message.startswith("add_budget")]
    assert line.startswith(f"add_budget by 'ada' from '127.0.0.1': run {run.id}: ")
    assert "budget 'tenant:ada'" in line
    assert "$5.00 added" in line


# --- what is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "limit=0x10",
        "limit=-1",
        "limit=201",
        "limit=99999999999999999999",
        "limit=\u0661",
        "state=none",
        "state=completed,none",
        "after=yesterday",
        "before=2026-01-01T00:00:00",
        "cursor=1",
        "cursor='; DROP TABLE workflows; --",
        "name=" + "a" * 1001,
        "q=" + "a" * 500,
        "q=%00",
        "q=a&q=b",
    ],
)
async def test_a_question_that_cannot_be_answered_is_a_mistake_of_the_caller(page: Any, query: str) -> None:
    async with visiting(page) as visitor:
        answer = await visitor.get(f"api/runs?{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "id"}


@pytest.mark.parametrize("text", ["%", "_", "\\", "a%", "'", "$1", "%(x)s", ".*", "(" * 50])
async def test_what_is_searched_for_is_text_and_no_pattern(workflows: Baton, page: Any, text: str) -> None:
    await finished(workflows, echoes("ada:plain"))
    async with visiting(page) as visitor:
        found = await visitor.json("api/runs", params={"q": text})
        assert found["runs"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"reason"', 400),
        (b"{", 400),
        (b'{"reason": 1}', 400),
        (b'{"reason": "' + b"a" * 1001 + b'"}', 400),
        (b'{"position": "0"}', 400),
        (b'{"position": true}', 400),
        (b'{"position": -1}', 400),
        (b'{"position": 1e3}', 400),
        (b'{"position": 99999999999999999999}', 400),
        (b'{"unknown": 1}', 400),
        (b"[" * 100_000, 413),
        (b"[" * 60_000, 400),
        (b" " * 64_001, 413),
        (b'{"reason": "' + b"a" * 64_000 + b'"}', 413),
        (b"\xff", 400),
        (b'{"position": 7}', 404),
    ],
    ids=lambda value: ascii(value)[:40],
)
async def test_a_body_that_cannot_work_changes_nothing(
    workflows: Baton, page: Any, body: bytes, status: int
) -> None:
    run = await finished(workflows, echoes("ada:1"))
    before = await run.status()
    async with visiting(page) as visitor:
        answer = await visitor.act(f"api/runs/{run.id}/cancel", body)
    assert answer.status_code == status, answer.text
    assert await run.status() == before


async def test_positions_and_ids_beyond_all_bounds_lead_nowhere(workflows: Baton, page: Any) -> None:
    run = await finished(workflows, echoes("ada:1"))
    async with visiting(page) as visitor:
        for path in (
            f"runs/{run.id}/steps/2147483648",
            f"runs/{run.id}/steps/{'9' * 150}",
            f"runs/{run.id}/steps/{'9' * 5000}",
            f"runs/{run.id}/steps/-1",
            f"runs/{run.id}/steps/0",
            "runs/1",
            f"runs/{run.id}x",
            "runs/" + "a" * 3000,
        ):
            assert (await visitor.get(f"api/{path}")).status_code == 404


# --- who is asked ----------------------------------------------------------------------------------


async def test_authorize_is_asked_at_each_request_and_may_take_access_back(workflows: Baton) -> None:
    granted: Access | None = Access("ada", ACTIONS)

    async def authorize(request: Request) -> Access | None:
        return granted

    async with Visitor(baton.web.app(workflows, authorize=authorize)) as visitor:
        assert (await visitor.get("api/session")).status_code == 200
        granted = None
        assert (await visitor.get("api/session")).status_code == 401


@pytest.mark.parametrize(
    "answer", [True, "ada", {"user": "ada"}, 1, object()], ids=["true", "text", "dict", "int", "object"]
)
async def test_an_answer_of_authorize_that_is_no_access_lets_nobody_in(workflows: Baton, answer: Any) -> None:
    async with Visitor(baton.web.app(workflows, authorize=lambda _: answer)) as visitor:
        assert (await visitor.get("api/session")).status_code == 500


async def test_an_authorize_that_breaks_lets_nobody_in(workflows: Baton) -> None:
    def authorize(_: Request) -> Access:
        raise ValueError("the session store is away")

    async with Visitor(baton.web.app(workflows, authorize=authorize)) as visitor:
        answer = await visitor.get("api/session")
    assert answer.status_code == 500
    assert "session store" not in answer.text


async def test_authorize_may_send_the_caller_to_a_login(workflows: Baton) -> None:
    def authorize(_: Request) -> Access:
        raise HTTPException(303, headers={"Location": "/login"})

    async with Visitor(baton.web.app(workflows, authorize=authorize)) as visitor:
        answer = await visitor.get("runs/x")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert_protected(answer)


@pytest.mark.parametrize(
    "options",
    [
        {"authorize": None},
        {"authorize": "read_only"},
        {"hosts": "ops.example.com"},
        {"origins": "https://ops.example.com"},
        {"origins": ["ops.example.com"]},
        {"origins": ["https://ops.example.com/path"]},
        {"secret": "short"},
        {"max_streams": 0},
        {"max_streams_per_user": True},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        baton.web.app(Baton("postgresql://"), **{"authorize": baton.web.read_only, **options})


def test_authorize_must_be_given() -> None:
    with pytest.raises(TypeError):
        baton.web.app(Baton("postgresql://"))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "options",
    [{"actions": {"delete"}}, {"actions": "cancel"}, {"actions": 1}, {"user": None}, {"name_prefix": None}],
    ids=str,
)
def test_an_access_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Access(**{"user": "ada", **options})


def test_an_access_lets_nobody_do_anything_unless_it_says_so() -> None:
    assert Access("ada").actions == frozenset()
    assert baton.web.read_only(Request({"type": "http"})) == Access("")


# --- the record ------------------------------------------------------------------------------------


async def test_an_action_is_logged_with_who_what_and_where_from(
    workflows: Baton, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="baton.web")
    user = "ada\n2026-01-01 INFO baton.web cancel by 'root'"
    page = baton.web.app(workflows, authorize=lambda _: Access(user, ACTIONS))
    run = await finished(workflows, echoes("any"))
    async with Visitor(page) as visitor:
        assert (await visitor.act(f"api/runs/{run.id}/retry")).status_code == 200
    (line,) = [record.getMessage() for record in caplog.records if "retry by" in record.getMessage()]
    assert "\n" not in line
    assert line.startswith(f"retry by {user!a} from '127.0.0.1': run {run.id}")


# --- the table -------------------------------------------------------------------------------------


def test_each_line_of_the_table_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "securing-the-page.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (P\d+) \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    assert [line for line, _ in rows] == [f"P{n}" for n in range(1, 11)]
    there = {
        (file.name, name)
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for line, cell in rows:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cell)
        assert tests, line
        assert set(tests) <= there, line


async def test_nothing_is_left_running_for_who_is_gone(page: Any) -> None:
    async with visiting(page) as visitor:
        async with visitor.stream("api/runs/events") as events:
            await events.named("resync")
        assert page.state.site.seats._taken.total() == 0
    # One task of the library's watches for the end of a server, for all streams that will ever be.
    left = [task for task in asyncio.all_tasks() if "EventSource" in repr(task)]
    assert not left
