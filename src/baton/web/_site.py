"""What the endpoints share: the Baton, who may come, what is watched, and one request as an endpoint sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson
from starlette.requests import Request

from baton import Baton
from baton.web._access import Access, Authorize, Forgery
from baton.web._board import Boards
from baton.web._clicks import Clicks
from baton.web._errors import Refused
from baton.web._runs import RunsBoard
from baton.web._streams import Seats

ACCESS: Final = "baton.access"

# The page reads on the pool that runs are waited on: it takes no more than some of it.
_READS = 4
_READ_SECONDS = 10.0
_LONGEST_BODY = 64_000
_LONGEST_PARAMETER = 1_000
_LATEST_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Site:
    """One mounted page."""

    baton: Baton
    authorize: Authorize
    forgery: Forgery
    hosts: frozenset[str] | None
    seats: Seats
    boards: Boards
    runs: RunsBoard
    clicks: Clicks = field(default_factory=Clicks)
    _reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READS))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """One of the few reads at a time; raises TimeoutError when none is free, or no connection is to be had, for long."""
        async with asyncio.timeout(_READ_SECONDS), self._reads:
            yield

    def close(self) -> None:
        """End what is watched, so that every stream ends."""
        self.boards.close()
        self.runs.close()


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was let in, with what its URL says."""

    site: Site
    request: Request
    access: Access

    @property
    def run_id(self) -> str:
        return str(self.request.path_params["run"])

    @property
    def position(self) -> int:
        position: int = self.request.path_params["position"]
        if position > _LATEST_POSITION:
            raise Refused(404, "there is no such step")
        return position

    def text(self, name: str) -> str | None:
        """A parameter of the query, None if it is missing or empty."""
        given = self.request.query_params.getlist(name)
        if len(given) > 1:
            raise Refused(400, f"{name} is given more than once")
        if given and len(given[0]) > _LONGEST_PARAMETER:
            raise Refused(400, f"{name} is too long")
        return given[0] or None if given else None

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from the query, 0 to `most`."""
        text = self.text(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > most:
            raise Refused(400, f"{name} must be a whole number up to {most:,}")
        return int(text)

    def moment(self, name: str) -> datetime | None:
        """A time from the query, with a time zone."""
        text = self.text(name)
        try:
            moment = datetime.fromisoformat(text) if text else None
        except ValueError:
            moment = None
        if text and (moment is None or moment.tzinfo is None):
            raise Refused(400, f"{name} must be a time such as 2026-11-26T08:00:00Z")
        return moment

    def expand(self) -> frozenset[str]:
        """Ids of the groups that are shown unfolded."""
        # A plus in a query is a space to whoever reads it.
        text = (self.text("expand") or "").replace(" ", "+")
        return frozenset(part for part in text.split(",") if part)

    async def json(self) -> dict[str, Any]:
        """The body, an object of JSON that is not too long."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "the body must be application/json")
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > _LONGEST_BODY:
                raise Refused(413, f"the body is longer than {_LONGEST_BODY:,} bytes")
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            given = None
        if not isinstance(given, dict):
            raise Refused(400, "the body must be an object of JSON")
        return given
