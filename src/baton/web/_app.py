"""The ASGI app: every request passes the guard, every endpoint names what it takes to use it."""

import re
import secrets
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final

from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton import Baton
from baton.errors import InvalidOption
from baton.web import _actions, _api
from baton.web._access import ACTIONS, Authorize, Forgery, granted
from baton.web._board import Boards
from baton.web._errors import Refused, answer, logger
from baton.web._runs import RunsBoard
from baton.web._site import ACCESS, Call, Site
from baton.web._streams import Seats

type Handler = Callable[[Call], Awaitable[Response]]

# What it takes to use an endpoint: to be let in, to be let in with `prompts`, or with one of ACTIONS.
VIEW: Final = "view"
PROMPTS: Final = "prompts"

_SHORTEST_SECRET = 16
# Nothing that is served has another path, so none needs to be decoded or tidied up.
_PATH = re.compile(r"(/[A-Za-z0-9_-]+)*/?")
_LONGEST_PATH = 200
_HEADERS = {
    "Cache-Control": "no-store",
    "Vary": "Cookie",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY_OF_DATA = "default-src 'none'; frame-ancestors 'none'"


class Endpoint(Route):
    """One method of one path, and what it takes to use it.

    Attributes:
        policy: `VIEW`, `PROMPTS`, or an action that the caller's Access must name; then the request must be our page's own.
    """

    def __init__(self, method: str, path: str, handler: Handler, *, policy: str) -> None:
        assert policy in (VIEW, PROMPTS) or policy in ACTIONS
        assert (method == "GET") == (policy not in ACTIONS)
        super().__init__(path, partial(_call, handler, policy), methods=[method])
        # Not HEAD, which would open streams for nobody.
        self.methods = {method}
        self.policy = policy


async def _call(handler: Handler, policy: str, request: Request) -> Response:
    site: Site = request.app.state.site
    call = Call(site, request, request.scope[ACCESS])
    if policy == PROMPTS and not call.access.prompts:
        raise Refused(403, "you may look, but not at what models were asked and answered")
    if policy in ACTIONS:
        site.forgery.check(request, call.access.user)
        if policy not in call.access.actions:
            raise Refused(403, f"you may look, but not {policy}")
    return await handler(call)


_RUN = "/api/runs/{run:uuid}"
_STEP = _RUN + "/steps/{position:int}"


def _endpoints() -> list[Endpoint]:
    read = partial(Endpoint, "GET", policy=VIEW)
    return [
        read("/", _api.html),
        read("/runs/{run:uuid}", _api.html),
        read("/api/session", _api.session),
        read("/api/runs", _api.list_runs),
        read("/api/runs/events", _api.watch_runs),
        read(_RUN, _api.get_run),
        read(f"{_RUN}/events", _api.watch_run),
        read(f"{_RUN}/models", _api.list_models),
        read(f"{_RUN}/steps", _api.list_steps),
        read(_STEP, _api.get_step),
        read(f"{_STEP}/result", _api.get_result),
        read(f"{_STEP}/stream", _api.get_stream),
        read(f"{_STEP}/calls", _api.list_calls),
        Endpoint("GET", f"{_STEP}/prompts", _api.list_prompts, policy=PROMPTS),
        *(
            Endpoint("POST", f"{_RUN}/{action}", partial(_actions.act, action), policy=action)
            for action in sorted(ACTIONS)
        ),
    ]


def app(
    baton: Baton,
    *,
    authorize: Authorize,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
    secret: str | None = None,
    max_streams: int = 500,
    max_streams_per_user: int = 20,
) -> Starlette:
    """The live page as an ASGI app, to mount at any path of yours, or to serve alone.

    The Baton is yours to start and stop, in the event loop that serves the page; until it has started, requests are answered
    with 503. A mounted app gets no lifespan and needs none.

    Args:
        baton: Whose runs are shown.
        authorize: Is asked at each request who the caller is: an `Access`, or None for nobody, who gets nothing. It may be
            `async`; a plain function is called in a thread. What it raises as Starlette's HTTPException is answered so: a
            redirect to a login page, for instance. `read_only` lets everybody look, for a mount that the app guards itself.
        hosts: Host names, without the port, that the page is reached at; requests to others are refused. Without, the app
            around it decides.
        origins: Where browsers reach the page at, such as `https://ops.example.com`, if a proxy changes the Host header.
            Actions are taken from pages of the request's host, and of these.
        secret: At least 16 characters, the same in all processes that serve the page behind one balancer, and over restarts:
            an action that one process's page offers then works at the others. Without, each process has its own.
        max_streams: How many pages may follow at once in this process; more get 503.
        max_streams_per_user: How many of one user, by `Access.user`; more get 429. A user without a name is not bounded so.

    Raises:
        InvalidOption: A setting that cannot work.
    """
    if not isinstance(baton, Baton):
        raise InvalidOption(f"baton is of type {type(baton).__name__}; pass your Baton")
    if not callable(authorize):
        raise InvalidOption(
            "authorize must be a function of a request that returns a baton.web.Access or None; "
            "baton.web.read_only is one that lets everybody look"
        )
    if isinstance(hosts, str) or isinstance(origins, str):
        raise InvalidOption("hosts and origins are lists of text")
    if secret is not None and len(secret) < _SHORTEST_SECRET:
        raise InvalidOption(f"secret is too short; pass {_SHORTEST_SECRET} random characters or more")
    for option, value in (("max_streams", max_streams), ("max_streams_per_user", max_streams_per_user)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidOption(f"{option} is {value!r}; it must be a whole number from 1 up")
    site = Site(
        baton=baton,
        authorize=authorize,
        forgery=Forgery(secret.encode() if secret is not None else secrets.token_bytes(32), origins),
        hosts=None if hosts is None else frozenset(host.lower() for host in hosts),
        seats=Seats(max_streams, max_streams_per_user),
        boards=Boards(baton),
        runs=RunsBoard(baton),
    )
    made = Starlette(
        routes=_endpoints(),
        middleware=[Middleware(_Guard, site=site)],
        exception_handlers={HTTPException: _refused},
    )
    made.router.redirect_slashes = False
    made.state.site = site
    return made


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 404 and error.detail == "Not Found":
        error = Refused(404, "there is nothing here")
    return answer(error, _where(request.scope))


class _Guard:
    """Lets in who may come in, to what is really there; nothing leaves without its headers, and no error with its traceback."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _protect(MutableHeaders(scope=message))
            await send(message)

        try:
            request = Request(scope, receive)
            scope[ACCESS] = await self._admit(request)
            await self._app(scope, receive, guarded)
        except SendTimeoutError:
            logger.info("dropped a page that takes no data: %s", _where(scope))
        except Exception as error:
            response = answer(error, _where(scope))
            if not started:
                await response(scope, receive, guarded)

    async def _admit(self, request: Request) -> Any:
        hosts = self._site.hosts
        if hosts is not None and _host(request) not in hosts:
            raise Refused(421, "this page is not served under that host name")
        access = await granted(self._site.authorize, request)
        if access is None:
            raise Refused(401, "you are not signed in, or may not see this")
        if not is_plain(request.scope):
            raise Refused(404, "there is nothing here")
        return access


def _host(request: Request) -> str:
    """Name in the Host header, without the port; empty unless there is exactly one header."""
    given = request.headers.getlist("host")
    if len(given) != 1:
        return ""
    name, colon, port = given[0].lower().rpartition(":")
    return name if colon and port.isascii() and port.isdigit() else given[0].lower()


def is_plain(scope: Scope) -> bool:
    """Whether the path below the mount was sent as it is compared: nothing encoded, doubled or hidden in it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :]
    raw: bytes | None = scope.get("raw_path")
    return (
        len(path) <= _LONGEST_PATH
        and _PATH.fullmatch(path) is not None
        and (raw is None or raw.endswith(path.encode()))
    )


def _protect(headers: MutableHeaders) -> None:
    for name, value in _HEADERS.items():
        headers[name] = value
    headers.setdefault("Content-Security-Policy", _POLICY_OF_DATA)


def _where(scope: Scope) -> str:
    return f"{ascii(scope['method'])[1:-1]} {ascii(scope['path'])[1:-1][:200]}"
