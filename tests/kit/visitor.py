"""A browser, as far as a server can tell: requests of the page in the test's own event loop, and streams read bit by bit."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

HOST = "ops.example.com"


class Visitor:
    """Sends requests to an ASGI app as the page does, which it opens first for its CSRF token.

    Args:
        app: What is served.
        mount: Path of the page in it, with a slash at its end.
        headers: Sent along with each request.
    """

    def __init__(
        self, app: Any, mount: str = "/", headers: dict[str, str] | None = None, *, root_path: str = ""
    ) -> None:
        self._app = app
        self._mount = mount
        self._headers = headers or {}
        self._root_path = root_path
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, root_path=root_path),
            base_url=f"http://{HOST}",
            headers=self._headers,
        )

    async def get(self, path: str = "", **options: Any) -> httpx.Response:
        return await self.http.get(self._mount + path, **options)

    async def json(self, path: str, status: int = 200, **options: Any) -> Any:
        answer = await self.get(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.http.request(method, self._mount + path, **options)

    async def act(
        self, path: str, body: Any = None, *, headers: dict[str, str | None] | None = None
    ) -> httpx.Response:
        """What the page does at a click. A header that is None is left out."""
        sent: dict[str, str | None] = {
            "Origin": f"http://{HOST}",
            "Sec-Fetch-Site": "same-origin",
            "X-Baton-CSRF": (await self.json("api/session"))["csrf"],
            "Content-Type": "application/json",
            **(headers or {}),
        }
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return await self.http.post(
            self._mount + path,
            content=content,
            headers={name: value for name, value in sent.items() if value is not None},
        )

    @asynccontextmanager
    async def stream(self, path: str, *, reads: bool = True) -> AsyncIterator["Events"]:
        """A stream of events, open meanwhile."""
        events = Events(reads)
        url = urlsplit(self._mount + path)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": url.path,
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "root_path": self._root_path,
            "headers": [
                (name.lower().encode(), value.encode("utf-8"))
                for name, value in {"Host": HOST, **self._headers}.items()
            ],
            "client": ("192.0.2.1", 40000),
            "server": (HOST, 80),
        }
        events.task = asyncio.create_task(self._app(scope, events.receive, events.send))
        try:
            yield events
        finally:
            events.left.set()
            await asyncio.wait({events.task}, timeout=10)
            assert events.task.done(), "the stream did not end when its reader left"

    async def __aenter__(self) -> "Visitor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()


class Events:
    """One stream, as its reader has it."""

    task: "asyncio.Task[None]"

    def __init__(self, reads: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.sent = 0
        self.left = asyncio.Event()
        self._reads = reads
        self._asked = False
        self._buffer = b""
        self._found: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        self.sent += len(message["body"])
        self._buffer += message["body"].replace(b"\r\n", b"\n")
        while b"\n\n" in self._buffer:
            block, _, self._buffer = self._buffer.partition(b"\n\n")
            fields = dict(line.partition(": ")[::2] for line in block.decode().splitlines())
            if "event" in fields:
                self._found.put_nowait((fields["event"], json.loads(fields["data"])))
        if not message.get("more_body"):
            self._found.put_nowait(None)
        if not self._reads and self.sent:
            await asyncio.Event().wait()

    async def next(self) -> tuple[str, Any] | None:
        """The next event, None at the end of the stream."""
        async with asyncio.timeout(20):
            return await self._found.get()

    async def named(self, name: str) -> Any:
        """Data of the next event of that name; others before it are passed over."""
        while True:
            found = await self.next()
            assert found is not None, f"the stream ended before {name}"
            if found[0] == name:
                return found[1]
