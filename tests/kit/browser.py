"""A real browser that looks at the page: Debian's Chromium, and a server that can be counted and stopped."""

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

# A machine may be busy; a fact that does not come in this time does not come.
_PATIENCE = 20_000
expect.set_options(timeout=_PATIENCE)

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing that the browser does of its own accord: it talks to the test's server and to nobody else.
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What the page must never make the browser say.
_WATCH = """
    window.reports = [];
    addEventListener("securitypolicyviolation", (event) =>
        reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def find() -> str:
    """Path of a Chromium; skips the test where there is none: `tools/browser.sh` has said so, or put one there."""
    named = os.environ.get("BATON_CHROMIUM")
    for name in [named] if named else _NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(
        "no Chromium: install it (Debian: apt-get install chromium), or set BATON_CHROMIUM to its path"
    )


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A browser with an empty profile."""
    path = find()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """A page in a browser, and all that it complained of.

    Attributes:
        page: Playwright's page.
        errors: What was written to the console as an error, and what was raised and not caught.
        dialogs: Texts of alerts and the like.
    """

    def __init__(self, page: Page, root: str) -> None:
        self.page = page
        self.root = root
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._dismiss)

    @classmethod
    @asynccontextmanager
    async def opened(cls, browser: Browser, root: str, **options: Any) -> AsyncIterator[Self]:
        """A tab with a profile of its own. `options`: of playwright's `new_context`."""
        context: BrowserContext = await browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, **options}
        )
        context.set_default_timeout(_PATIENCE)
        await context.add_init_script(_WATCH)
        try:
            yield cls(await context.new_page(), root)
        finally:
            await context.close()

    async def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    async def go(self, path: str = "") -> None:
        await self.page.goto(self.root + path, wait_until="commit")

    async def complaints(self) -> list[str]:
        """Everything that a clean page has none of."""
        return [*await self.page.evaluate("window.reports"), *self.errors, *self.dialogs]

    async def texts(self, selector: str) -> list[str]:
        """Text of all that match, as the DOM has it."""
        return await self.page.eval_on_selector_all(selector, "all => all.map((one) => one.textContent)")


class Served:
    """An app behind a port, which it keeps when it is stopped and started again. Counts the streams that are open."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._server: uvicorn.Server
        self._task: asyncio.Task[None]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.streams = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = _Quiet(
            uvicorn.Config(
                self._count,
                host="127.0.0.1",
                port=self.port,
                log_level="error",
                lifespan="off",
                timeout_graceful_shutdown=1,
                interface="asgi3",
            )
        )
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            assert not self._task.done(), "the server did not start"
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._task

    async def _count(self, scope: Any, receive: Any, send: Any) -> None:
        stream = scope["type"] == "http" and scope["path"].endswith("/events")
        self.streams += stream
        try:
            await self._app(scope, receive, send)
        finally:
            self.streams -= stream


class _Quiet(uvicorn.Server):
    """Leaves the signals to the test."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
