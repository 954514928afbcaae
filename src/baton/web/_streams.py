"""Server-sent events: who is connected, how long, and what happens to those who do not read.

A stream ends after half a minute with `bye`, and the page opens the next one: so an access that was taken back ends soon, and
nothing hangs in a server that stops. A new stream begins with everything, so `Last-Event-ID` is not needed, and is ignored.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

from baton.web._board import Moves, View
from baton.web._errors import Refused
from baton.web._runs import RunsBoard

_SECONDS = 30.0
_PING = 15
# A client whose socket takes nothing for so long is dropped.
_STALLED = 10.0
# Most that one client is sent, on average: above it, changes are told of together.
_BYTES_PER_SECOND = 4_000_000
# After a break; jittered, so that all who lost a server do not come back at once.
_RETRY_MILLISECONDS = (1_000, 4_000)


class Seats:
    """Bounds how many streams are open, by user and in all."""

    def __init__(self, most: int, most_per_user: int) -> None:
        self._most = most
        self._most_per_user = most_per_user
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, user: str) -> Iterator[None]:
        """Take a seat meanwhile. The user without a name may be many, and is bounded by all.

        Raises:
            Refused: There is none left.
        """
        if self._taken.total() >= self._most:
            raise Refused(503, "too many pages are open here; close some, or wait", {"Retry-After": "10"})
        if user and self._taken[user] >= self._most_per_user:
            raise Refused(429, "you have too many pages open; close some", {"Retry-After": "10"})
        self._taken[user] += 1
        try:
            yield
        finally:
            self._taken[user] -= 1
            if not self._taken[user]:
                del self._taken[user]


class Stream(EventSourceResponse):
    """A response of events. Its seat and what it watches are held while it is sent, and no longer."""

    def __init__(
        self,
        seats: Seats,
        user: str,
        messages: Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]],
    ) -> None:
        super().__init__(
            # What is sent is opened with the seat.
            iter(()),
            ping=_PING,
            send_timeout=_STALLED,
            ping_message_factory=lambda: ServerSentEvent(comment="ping"),
        )
        self._seats = seats
        self._user = user
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._seats.taken(self._user):
            async with self._messages() as messages:
                self.body_iterator = messages
                await self._complete(scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and its end also when the server stops: a server takes a response without one for an error of ours."""
        ended = False

        async def told(message: Message) -> None:
            nonlocal ended
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        await super().__call__(scope, receive, told)
        if not ended:
            await self._send_with_timeout(
                send, {"type": "http.response.body", "body": b"", "more_body": False}
            )


async def of_run(view: View) -> AsyncGenerator[bytes]:
    """All boxes, then those that change."""
    time = _Time()
    seen = 0
    yield _retry()
    while not view.over:
        message, seen = view.message(seen), view.version
        yield _event("change", message)
        await time.pause(len(message))
        if not await time.until_moved(view, seen):
            yield _event("bye")
            return
    yield _event("resync")


async def of_runs(board: RunsBoard, name_prefix: str) -> AsyncGenerator[bytes]:
    """`resync`, as the list may have changed while nobody looked; then runs that change."""
    time = _Time()
    seen = board.version
    yield _retry()
    yield _event("resync")
    while not board.over:
        if not await time.until_moved(board, seen):
            yield _event("bye")
            return
        message, seen = board.message(seen, name_prefix), board.version
        if message is None:
            yield _event("resync")
        elif message:
            yield _event("runs", message)
            await time.pause(len(message))
    yield _event("resync")


class _Time:
    """The time of one stream. It is asked, and interrupts nothing that is being sent."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._end = self._clock() + _SECONDS

    async def until_moved(self, moves: Moves, seen: int) -> bool:
        """Wait for something new; False when the time is over."""
        if self._clock() >= self._end:
            return False
        try:
            async with asyncio.timeout_at(self._end):
                await moves.beyond(seen)
        except TimeoutError:
            return False
        return True

    async def pause(self, sent: int) -> None:
        """Let a client take in what it was sent."""
        await asyncio.sleep(min(sent / _BYTES_PER_SECOND, max(0.0, self._end - self._clock())))


def _event(name: str, members: bytes = b"") -> bytes:
    return b"event: %s\ndata: {%s}\n\n" % (name.encode(), members)


def _retry() -> bytes:
    return b"retry: %d\n\n" % random.randint(*_RETRY_MILLISECONDS)  # noqa: S311 - it spreads load, and hides nothing
