"""Who may see and do what: the answer of the app's `authorize`, and the proof that a request is of our own page."""

import base64
import hashlib
import hmac
import inspect
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from baton.errors import InvalidOption
from baton.web._errors import Refused

ACTIONS = frozenset({"cancel", "retry", "rerun", "pause", "resume", "add_budget"})

_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Access:
    """What one caller may see and do.

    Attributes:
        user: Who it is, for the log, the limit of open streams and the page's corner. Empty: nobody in particular.
        actions: Those of `ACTIONS` that they may use; none unless given.
        name_prefix: They see runs whose name begins with this, and no others. Empty: all.
        prompts: Whether they see captured calls of models: what was asked, what came back, and what the step had read.
    """

    user: str
    actions: frozenset[str] = field(default=frozenset())
    name_prefix: str = ""
    prompts: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.user, str) or not isinstance(self.name_prefix, str):
            raise InvalidOption("user and name_prefix of an Access are text")
        if not isinstance(self.prompts, bool):
            raise InvalidOption(f"prompts is {self.prompts!r}; it must be True or False")
        given: object = self.actions
        if isinstance(given, str) or not isinstance(given, Collection):
            raise InvalidOption(f"actions is {given!r}; pass a set, such as {{'cancel', 'retry'}}")
        if unknown := set(self.actions) - ACTIONS:
            raise InvalidOption(
                f"there is no action {min(map(str, unknown))!r}; there are {', '.join(sorted(ACTIONS))}"
            )
        object.__setattr__(self, "actions", frozenset(self.actions))


type Authorize = Callable[[Request], Access | Awaitable[Access | None] | None]


def read_only(request: Request) -> Access:
    """Let everybody see everything and do nothing: for a mount that the app guards itself."""
    return Access(user="")


async def granted(authorize: Authorize, request: Request) -> Access | None:
    """Ask the app. A plain function is asked in a thread: it may look into a database.

    Raises:
        TypeError: It answered something else than an Access or None, which grants nothing.
    """
    call = getattr(authorize, "__call__", authorize)  # noqa: B004 - an object may be a function, too
    if inspect.iscoroutinefunction(authorize) or inspect.iscoroutinefunction(call):
        answer = authorize(request)
    else:
        answer = await run_in_threadpool(authorize, request)
    access = await answer if inspect.isawaitable(answer) else answer
    if access is None or isinstance(access, Access):
        return access
    raise TypeError(f"authorize answered {type(access).__name__}; it must answer a baton.web.Access or None")


class Forgery:
    """Refuses what another site's page makes a browser send.

    Args:
        secret: Of all processes behind one balancer; the token of one then holds at the others.
        origins: Where the page is reached at, when the Host header that arrives here is another.
    """

    def __init__(self, secret: bytes, origins: Collection[str]) -> None:
        self._secret = secret
        self._origins = frozenset(map(_origin, origins))

    def token(self, user: str) -> str:
        """What the page of this user sends along with each action."""
        mac = hmac.digest(self._secret, b"baton.web csrf\0" + user.encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")

    def check(self, request: Request, user: str) -> None:
        """Let an action through that our own page sent.

        Raises:
            Refused: It came from elsewhere, or there is no saying where from.
        """
        site = request.headers.get("sec-fetch-site", "same-origin")
        if site != "same-origin" or not self._ours(request):
            raise Refused(403, "actions are taken from this page alone, not from another site")
        given = request.headers.get("x-baton-csrf", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token(user).encode()):
            raise Refused(403, "the page is out of date; load it again")

    def _ours(self, request: Request) -> bool:
        sent = request.headers.getlist("origin")
        if len(sent) != 1:
            return False
        try:
            origin = _origin(sent[0])
        except InvalidOption:
            return False
        # Not the scheme: a proxy may have ended TLS. A page of the same host on plain HTTP is told by Sec-Fetch-Site.
        host = request.headers.get("host", "").lower()
        return origin in self._origins or any(
            origin == _origin(f"{scheme}://{host}") for scheme in _PORTS if host and _is_host(host)
        )


def _origin(text: str) -> str:
    """Scheme, host and port in one spelling.

    Raises:
        InvalidOption: It is no origin.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidOption(f"{text!r} is no origin; one looks like https://ops.example.com") from None
    if (
        parts.scheme not in _PORTS
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
    ):
        raise InvalidOption(f"{text!r} is no origin; one looks like https://ops.example.com")
    return f"{parts.scheme}://{parts.hostname}:{port or _PORTS[parts.scheme]}"


def _is_host(text: str) -> bool:
    try:
        _origin(f"http://{text}")
    except InvalidOption:
        return False
    return True
