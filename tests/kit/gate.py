"""A gate in front of the test's PostgreSQL: shut, or passing nothing on, it is a database that is away or does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# How a server says which of its processes is at the other end: a letter, a length of 12, and the process id.
_PROCESS = b"K\x00\x00\x00\x0c"


class Gate:
    """Passes connections on. `dsn` leads through it."""

    def __init__(self, dsn: str, *, pooling: bool) -> None:
        self._target = conninfo_to_dict(dsn)
        self._pooling = pooling
        self._open = True
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server
        self.dsn: str

    @classmethod
    @asynccontextmanager
    async def before(cls, dsn: str, *, pooling: bool = False) -> AsyncIterator[Self]:
        """A gate that is open. With `pooling` it hides, as a pooler does, which process of the server answers."""
        gate = cls(dsn, pooling=pooling)
        gate._server = await asyncio.start_server(gate._accept, "127.0.0.1", 0)
        port = gate._server.sockets[0].getsockname()[1]
        gate.dsn = make_conninfo("", **{**gate._target, "host": "127.0.0.1", "port": port})
        try:
            yield gate
        finally:
            gate.shut()
            gate._server.close()

    def shut(self) -> None:
        """End every connection, and let none in."""
        self._open = False
        for connection in list(self._connections):
            connection.close()

    def stall(self) -> None:
        """Pass nothing on any more on the connections there are; new ones work."""
        for connection in self._connections:
            connection.stalled = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.close()
            return
        path = f"{self._target['host']}/.s.PGSQL.{self._target['port']}"
        connection = _Connection(writer, *await asyncio.open_unix_connection(path))
        self._connections.add(connection)
        try:
            await connection.pass_on(reader, pooling=self._pooling)
        finally:
            connection.close()
            self._connections.discard(connection)


class _Connection:
    def __init__(
        self, client: asyncio.StreamWriter, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        self.stalled = False
        self._client = client
        self._reader = reader
        self._server = server

    def close(self) -> None:
        self._client.close()
        self._server.close()

    async def pass_on(self, reader: asyncio.StreamReader, *, pooling: bool) -> None:
        both = {
            asyncio.create_task(self._pump(reader, self._server, pooling=False)),
            asyncio.create_task(self._pump(self._reader, self._client, pooling=pooling)),
        }
        _, late = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, pooling: bool
    ) -> None:
        while data := await reader.read(65536):
            if self.stalled:
                continue
            if pooling and (place := data.find(_PROCESS)) >= 0:
                start = place + len(_PROCESS)
                data = data[:start] + b"\x00\x00\x00\x01" + data[start + 4 :]
            writer.write(data)
            await writer.drain()
