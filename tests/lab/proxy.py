"""A TCP forwarder between workers and PostgreSQL that can be told to drop, to stall and to be slow."""

import asyncio
import contextlib
from pathlib import Path
from typing import Self

_CHUNK = 65_536


class Proxy:
    """Listens on a port of its own on loopback and forwards to a unix socket.

    Attributes:
        port: Where it listens.
        delay: Seconds that each piece of data is held back, in both directions.
        withheld: Pieces of data that came in while it stalled.
        delayed: Pieces of data that were held back by `delay`.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.delay = 0.0
        self.withheld = 0
        self.delayed = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._open.set()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> int:
        """Cut every connection, without a goodbye to either side; returns how many clients had one."""
        dropped = len(self._connections) // 2
        for writer in self._connections:
            writer.transport.abort()
        return dropped

    def stall(self) -> None:
        """Accept, and forward nothing, until `resume`. What comes in meanwhile is forwarded then."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_unix_connection(self._target)
            self._connections.add(upstream)
            pumps = [
                asyncio.create_task(self._pump(*pair)) for pair in ((reader, upstream), (answers, writer))
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is away: the client learns it by the end of its connection
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self._connections.discard(each)
                    each.close()
                    with contextlib.suppress(OSError, asyncio.CancelledError):
                        await each.wait_closed()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if not self._open.is_set():
                    self.withheld += 1
                    await self._open.wait()
                if self.delay:
                    self.delayed += 1
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
