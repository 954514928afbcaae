"""`baton ui`: the page alone, for whoever can read this terminal.

The address that is printed has a token, which is good once: it is exchanged for a cookie, and leaves the address bar. Then
another one is made.
"""

import asyncio
import errno
import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request

from baton import Baton
from baton.errors import InvalidOption, MissingExtra, StartError
from baton.web._access import ACTIONS, Access
from baton.web._app import app, is_plain
from baton.web._errors import Refused

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise MissingExtra(
        f'the page needs {error.name}; install it with: pip install "oban-baton[web]"'
    ) from error

PORT = 4321

_PORTS_TRIED = 20
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_MOST_SESSIONS = 100
_WRONG_TOKENS = 10
_WRONG_SECONDS = 60.0
_MOST_CLIENTS = 1_000
# A peer that acknowledges nothing, or keeps its window shut, is cut off by the kernel; a closed stream would wait for it.
_SILENT_MILLISECONDS = 20_000
_GRACE = 1


class Login:
    """One user, known by a cookie that the token of the printed address was exchanged for.

    Attributes:
        token: The one that is good now.
        used: Called when it was used, and there is a new one.
    """

    def __init__(self, actions: frozenset[str], prompts: bool, cookie: str, used: Callable[[], None]) -> None:
        self.token = secrets.token_urlsafe(32)
        self._access = Access(user="local", actions=actions, prompts=prompts)
        self._cookie = cookie
        self.used = used
        self._sessions: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    async def authorize(self, request: Request) -> Access:
        """Let in who has the cookie; exchange the token for one.

        Raises:
            Refused: No cookie; a redirect to the same page without the token; or too many wrong tokens came from there.
        """
        known = _digest(request.cookies.get(self._cookie, "")) in self._sessions
        if "token" in request.query_params and request.method == "GET" and is_plain(request.scope):
            if known:  # the address that was used before, opened once more
                raise Refused(303, "signed in", {"Location": request.url.path})
            self._exchange(request)
        if known:
            return self._access
        raise Refused(401, "this page is opened with the address that `baton` printed in its terminal")

    def _exchange(self, request: Request) -> None:
        wrong = self._wrong_of(request.client.host if request.client else "")
        if len(wrong) == _WRONG_TOKENS and time.monotonic() - wrong[0] < _WRONG_SECONDS:
            raise Refused(
                429, "too many wrong tokens; wait a minute", {"Retry-After": str(round(_WRONG_SECONDS))}
            )
        given = request.query_params.getlist("token")[-1]
        if not hmac.compare_digest(_digest(given), _digest(self.token)):
            wrong.append(time.monotonic())
            raise Refused(
                401, "that address was used before, or is of an earlier start; the terminal has the newest"
            )
        self.token = secrets.token_urlsafe(32)
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = None
        if len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        self.used()
        raise Refused(
            303,
            "signed in",
            {
                "Location": request.url.path,
                "Set-Cookie": f"{self._cookie}={session}; Path=/; HttpOnly; SameSite=Strict",
            },
        )

    def _wrong_of(self, client: str) -> deque[float]:
        """When the last wrong tokens came from there."""
        wrong = self._wrong.setdefault(client, deque(maxlen=_WRONG_TOKENS))
        self._wrong.move_to_end(client)
        if len(self._wrong) > _MOST_CLIENTS:
            self._wrong.popitem(last=False)
        return wrong


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


class Page:
    """The page of one Baton on an address of its own.

    Args:
        baton: Whose runs are shown; it is started and stopped elsewhere.
        host: Address to listen at. Any but the loopback's needs `allow_hosts`.
        port: 0 for any.
        search: Take one of the next ports if this one is taken.
        actions: Whether the page may cancel, retry and so on.
        prompts: Whether it shows captured calls of models.
        allow_hosts: Host names that browsers reach it at, besides those of the loopback.
        used: Called when the printed address was used, and there is a new one.

    Raises:
        InvalidOption: A host that others reach without `allow_hosts`, or one that is none.
        StartError: The port is taken.
    """

    def __init__(
        self,
        baton: Baton,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        search: bool = True,
        actions: bool = False,
        prompts: bool = False,
        allow_hosts: Collection[str] = (),
        used: Callable[[], None] = lambda: None,
    ) -> None:
        local = _is_loopback(host)
        if not local and not allow_hosts:
            raise InvalidOption(
                f"{host} is reached from elsewhere: name the hosts that browsers may ask for, --allow-host ops.example.com, "
                "and let a proxy with TLS stand before it; or mount baton.web.app in your app, behind its login"
            )
        self._socket = _bound(host, port, _PORTS_TRIED if search else 1)
        self.port: int = self._socket.getsockname()[1]
        self._address = f"http://{_bracketed(host if local else next(iter(allow_hosts)))}:{self.port}"
        self.login = Login(ACTIONS if actions else frozenset(), prompts, f"baton_ui_{self.port}", used)
        hosts = {_bracketed(name.lower()) for name in (*allow_hosts, *([host] if local else []))}
        self._app = app(
            baton, authorize=self.login.authorize, hosts=_LOOPBACK | hosts, max_streams_per_user=500
        )

    def address(self, path: str = "/") -> str:
        """Where a browser is let in, once."""
        return f"{self._address}{path}?token={self.login.token}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve meanwhile. Leaving takes a little more than a second at most, also with pages open."""
        config = uvicorn.Config(
            self._app,
            # The token stands in an address: no access log. What goes wrong is logged by `baton.web`.
            access_log=False,
            log_config=None,
            log_level="critical",
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve([self._socket]))
        try:
            yield
        finally:
            self._app.state.site.close()
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the command."""
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _bound(host: str, port: int, tries: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidOption(f"{host!r} is no address of this machine: {error}") from error
    for candidate in range(port, port + tries):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MILLISECONDS)
            sock.bind((address[0], candidate, *address[2:]))
            # At once: only then is it ours alone.
            sock.listen(100)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and candidate + 1 < port + tries:
                continue
            option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
            raise StartError(
                f"cannot listen on {host} port {candidate}: {error.strerror}; name another with {option}"
            ) from error
        sock.setblocking(False)
        return sock
    raise AssertionError("no port was tried")
