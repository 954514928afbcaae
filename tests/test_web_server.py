"""`baton ui` and `baton demo --ui` in processes of their own, and what only sockets show: who never reads, who comes back."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import click.testing
import httpx
import psycopg
import pytest

from baton import Baton, Run, Workflow, step
from baton.cli import cli
from tests.kit.processes import until
from tests.kit.reused import Reused
from tests.kit.wait import eventually

# The same command, with less patience, so that the test needs less of it, too.
_IMPATIENT = (
    "from baton.web import _serve, _streams; _streams._STALLED = 0.5; _serve._SILENT_MILLISECONDS = 1_000; "
    "from baton.cli import main; main()"
)
_ROUNDS = 50
_WIDTH = 1_000
_STALLED_CLIENTS = 20


@step(name="tests.web_server.idle")
async def idle(n: int) -> int:
    return n


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


class Ui:
    """`baton ui`, or another command that serves the page. Leave the `with` block to be sure that it is gone."""

    def __init__(self, folder: Path, *arguments: object, impatient: bool = False) -> None:
        start = ["-c", _IMPATIENT] if impatient else ["-m", "baton"]
        self._files = [folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *start, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    @property
    def addresses(self) -> list[str]:
        return re.findall(r"http://\S+token=[\w-]+", self.out)

    def serving(self) -> Self:
        until(lambda: self.addresses or self.process.poll() is not None)
        assert self.process.poll() is None, self.err
        return self

    @property
    def port(self) -> int:
        port = httpx.URL(self.addresses[-1]).port
        assert port is not None
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cookie(self) -> str:
        """What a browser gets for the newest address."""
        answer = httpx.get(self.addresses[-1])
        assert answer.status_code == 303, answer.text
        return answer.headers["set-cookie"].partition(";")[0]

    def memory(self) -> int:
        """Bytes that the process has in memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found
        return 1024 * int(found[1])

    def stop(self) -> int:
        """Its exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=10)
        assert "Traceback" not in self.err, self.err
        return code


def ui(folder: Path, dsn: str, *arguments: object, **options: Any) -> Ui:
    return Ui(folder, "ui", "--dsn", dsn, *(arguments or ("--port", 0)), **options)


class Stream:
    """One page's stream of events over a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def of(cls, ui: Ui, cookie: str, path: str) -> AsyncIterator["Stream"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", ui.port, limit=2**24)
        writer.write(_request(ui, cookie, path))
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def named(self, name: str) -> Any:
        """Data of the next event of that name."""
        async with asyncio.timeout(30):
            while True:
                line = await self._reader.readline()
                assert line, "the stream ended"
                if line == b"event: %s\n" % name.encode():
                    return json.loads((await self._reader.readline()).removeprefix(b"data: "))

    async def ended(self) -> None:
        async with asyncio.timeout(30):
            await self._reader.read()


def _request(ui: Ui, cookie: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{ui.port}\r\nCookie: {cookie}\r\n\r\n".encode()


async def inserted(dsn: str, width: int = 1) -> Run:
    """A run that nobody works on."""
    workflow = Workflow("idle")
    for n in range(width):
        workflow.add(f"part_{n}", idle.new(n))
    async with Baton(dsn) as baton:
        return await baton.insert(workflow)


# --- the command -----------------------------------------------------------------------------------


def test_the_printed_address_lets_a_browser_in_and_a_foreign_host_is_refused(
    baton_dsn: str, tmp_path: Path
) -> None:
    with ui(tmp_path, baton_dsn) as server:
        server.serving()
        assert re.match(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}\n", server.out)
        assert httpx.get(server.url).status_code == 401
        with httpx.Client(follow_redirects=True) as browser:
            page = browser.get(server.addresses[0])
            assert page.status_code == 200
            assert "token" not in str(page.url)
            assert browser.get(f"{server.url}/api/runs").json()["runs"] == []
            assert browser.get(f"{server.url}/api/session").json()["actions"] == []
            for host in ("evil.test", f"evil.test:{server.port}", "127.0.0.1.evil.test"):
                assert browser.get(server.url, headers={"Host": host}).status_code == 421
        assert httpx.get(server.addresses[0]).status_code == 401
        until(lambda: len(server.addresses) == 2)
        assert httpx.get(server.addresses[1]).status_code == 303
        assert server.stop() == 0
        assert not [token for token in re.findall(r"token=([\w-]+)", server.out) if token in server.err]


def test_actions_are_on_only_when_asked_for(baton_dsn: str, tmp_path: Path) -> None:
    with ui(tmp_path, baton_dsn, "--port", 0, "--actions") as server:
        cookie = server.serving().cookie()
        session = httpx.get(f"{server.url}/api/session", headers={"Cookie": cookie}).json()
        assert session["actions"] == ["add_budget", "cancel", "pause", "rerun", "resume", "retry"]
        assert session["prompts"] is False


def test_prompts_are_on_only_when_asked_for(baton_dsn: str, tmp_path: Path) -> None:
    with ui(tmp_path, baton_dsn, "--port", 0, "--prompts") as server:
        cookie = server.serving().cookie()
        session = httpx.get(f"{server.url}/api/session", headers={"Cookie": cookie}).json()
        assert (session["actions"], session["prompts"]) == ([], True)


def test_a_port_that_is_taken_is_passed_over_unless_it_was_named(baton_dsn: str, tmp_path: Path) -> None:
    with (
        ui(tmp_path, baton_dsn, "--host", "127.0.0.1") as first,
        ui(tmp_path, baton_dsn, "--host", "127.0.0.1") as second,
    ):
        assert first.serving().port != second.serving().port
        done = click.testing.CliRunner().invoke(cli, ["ui", "--dsn", baton_dsn, "--port", str(first.port)])
        assert done.exit_code == 3
        assert f"port {first.port}" in done.stderr
        assert "--port" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_another_host_needs_the_names_it_is_reached_by(baton_dsn: str, host: str) -> None:
    done = click.testing.CliRunner().invoke(cli, ["ui", "--dsn", baton_dsn, "--host", host])
    assert done.exit_code == 2
    assert "--allow-host" in done.stderr


def test_a_named_host_is_let_in_with_the_token_all_the_same(baton_dsn: str, tmp_path: Path) -> None:
    arguments = ("--port", 0, "--host", "0.0.0.0", "--allow-host", "ops.example.com")
    with ui(tmp_path, baton_dsn, *arguments) as server:
        server.serving()
        assert httpx.URL(server.addresses[0]).host == "ops.example.com"
        headers = {"Host": f"ops.example.com:{server.port}"}
        assert httpx.get(server.url, headers=headers).status_code == 401
        token = server.addresses[0].partition("?")[2]
        assert httpx.get(f"{server.url}/?{token}", headers=headers).status_code == 303
        assert httpx.get(server.url, headers={"Host": "evil.test"}).status_code == 421


def test_an_address_that_is_none_is_a_word_and_no_traceback(baton_dsn: str) -> None:
    for host, option in (("no such host", ""), ("192.0.2.1", "--host")):
        arguments = ["ui", "--dsn", baton_dsn, "--host", host, "--allow-host", "x"]
        done = click.testing.CliRunner().invoke(cli, arguments)
        assert done.exit_code in (2, 3)
        assert "Traceback" not in done.stderr
        assert host in done.stderr
        assert option in done.stderr


async def test_ctrl_c_ends_it_with_pages_open(baton_dsn: str, tmp_path: Path) -> None:
    run = await inserted(baton_dsn)
    with ui(tmp_path, baton_dsn) as server:
        cookie = server.serving().cookie()
        async with (
            Stream.of(server, cookie, f"/api/runs/{run.id}/events") as one,
            Stream.of(server, cookie, "/api/runs/events") as all_runs,
        ):
            await one.named("change")
            await all_runs.named("resync")
            # One that never reads.
            with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as silent:
                silent.sendall(_request(server, cookie, "/api/runs/events"))
                began = time.monotonic()
                assert await asyncio.to_thread(server.stop) == 0
                # What the command promises, with room for a busy machine.
                assert time.monotonic() - began < 6
            await one.ended()
            await all_runs.ended()


async def test_pages_come_back_after_a_restart(baton_dsn: str, tmp_path: Path) -> None:
    run = await inserted(baton_dsn)
    path = f"/api/runs/{run.id}/events"
    with ui(tmp_path, baton_dsn) as first:
        cookie, port = first.serving().cookie(), first.port
        async with Stream.of(first, cookie, path) as stream:
            await stream.named("change")
            first.process.kill()
            await stream.ended()
        first.process.wait()
    with ui(tmp_path, baton_dsn, "--port", port) as second:
        second.serving()
        # The page asks who it is, and is told that its session is of another server.
        address = f"{second.url}/api/session"
        old = await asyncio.to_thread(httpx.get, address, headers={"Cookie": cookie})
        assert old.status_code == 401
        async with Stream.of(second, second.cookie(), path) as stream:
            assert len((await stream.named("change"))["boxes"]) == 1


# --- who never reads -------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_client_that_never_reads_costs_no_memory_and_disturbs_nobody(
    baton_dsn: str, tmp_path: Path
) -> None:
    run = await inserted(baton_dsn, _WIDTH)
    expand = "g1," + ",".join(f"g1%2B{n}" for n in range(200, _WIDTH, 200))
    path = f"/api/runs/{run.id}/events?expand={expand}"
    with ui(tmp_path, baton_dsn, impatient=True) as server:
        cookie = server.serving().cookie()
        async with Stream.of(server, cookie, path) as reads:
            assert len((await reads.named("change"))["boxes"]) == _WIDTH
            await move(baton_dsn, reads)
            before = server.memory()
            silent = [_never_reads(server, cookie, path) for _ in range(_STALLED_CLIENTS)]
            await move(baton_dsn, reads)
            grown = server.memory() - before
            # A queue of what they were not sent would be twenty times twenty megabytes.
            assert grown < 20_000_000, f"{grown:,} bytes"
            await eventually(lambda: _connections(server) == 1, timeout=25)
            for client in silent:
                await asyncio.to_thread(_drain, client)


async def move(dsn: str, stream: Stream) -> None:
    """Change each step of the run, many times; `stream` keeps up with it and hears of the last state."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        hearing: asyncio.Task[Any] | None = None
        for n in range(_ROUNDS):
            state = ("scheduled", "available")[n % 2]
            await conn.execute("UPDATE oban_jobs SET state = %s::oban_job_state", (state,))
            hearing = hearing or asyncio.create_task(_hear(stream))
        assert hearing is not None
        await conn.execute("UPDATE oban_jobs SET state = 'retryable'")
        await hearing
        await conn.execute("UPDATE oban_jobs SET state = 'available'")
        while (await stream.named("change"))["counts"] != {"available": _WIDTH}:
            pass


async def _hear(stream: Stream) -> None:
    while (await stream.named("change"))["counts"] != {"retryable": _WIDTH}:
        pass


def _never_reads(server: Ui, cookie: str, path: str) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(_request(server, cookie, path))
    return client


def _drain(client: socket.socket) -> None:
    """Read what had been sent before the end."""
    client.settimeout(30)
    with client, contextlib.suppress(ConnectionResetError):
        while client.recv(65_536):
            pass


def _connections(server: Ui) -> int:
    """Connections to the server's port that are established, at its end."""
    local = f":{server.port:04X}"
    lines = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(local) and line.split()[3] == "01" for line in lines)


@pytest.mark.slow
async def test_two_hundred_pages_over_sockets_hear_of_a_change(baton_dsn: str, tmp_path: Path) -> None:
    run = await inserted(baton_dsn)
    path = f"/api/runs/{run.id}/events"
    with ui(tmp_path, baton_dsn) as server:
        cookie = server.serving().cookie()
        begun = asyncio.Semaphore(0)

        async def follow() -> None:
            async with Stream.of(server, cookie, path) as stream:
                await stream.named("change")
                begun.release()
                while (await stream.named("change"))["run"]["state"] != "cancelled":
                    pass

        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(follow())
            for _ in range(200):
                await begun.acquire()
            async with Baton(baton_dsn) as baton:
                await baton.get_run(run.id).cancel()


# --- the demo --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_shows_its_run_and_stays_until_ctrl_c(tmp_path: Path) -> None:
    with Ui(tmp_path, "demo", "--ui", "--data-dir", tmp_path / "data") as demo:
        demo.serving()
        assert re.search(r"^page +http://127\.0\.0\.1:\d+/runs/[\w-]+\?token=", demo.out, re.MULTILINE)
        cookie = demo.cookie()
        (run,) = httpx.get(f"{demo.url}/api/runs", headers={"Cookie": cookie}).json()["runs"]
        assert f"run      {run['id']}" in demo.out
        until(lambda: "written" in demo.out)
        page = httpx.get(f"{demo.url}/api/runs/{run['id']}", headers={"Cookie": cookie}).json()
        assert page["run"]["state"] == "completed"
        until(lambda: len(demo.addresses) == 2)
        demo.cookie()
        until(lambda: len(demo.addresses) == 3)
        assert demo.stop() == 0
