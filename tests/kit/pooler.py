"""A pooler between a client and a server, as small as one can be: it speaks PostgreSQL's protocol and shares sessions."""

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg.conninfo

_READY = b"Z"
_KEY = b"K"
_ENDS_A_REQUEST = b"QS"


@contextlib.asynccontextmanager
async def pooler(dsn: str, folder: Path, *, sessions: int, version: str | None = None) -> AsyncIterator[str]:
    """Connection string of a pooler before the server of `dsn`, which is on a unix socket.

    Args:
        folder: Short path for its socket.
        sessions: Sessions that each client gets, by turns, a transaction each; 1 is session mode.
        version: What it says the server's version is.
    """
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    server = f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            size = await reader.readexactly(4)
            startup = size + await reader.readexactly(struct.unpack("!i", size)[0] - 4)
            for _ in range(sessions):
                upstream.append(await asyncio.open_unix_connection(server))
                upstream[-1][1].write(startup)
            greetings = [await _until_ready(session[0]) for session in upstream]
            writer.write(b"".join(_disguised(message, version) for message in greetings[0]))
            turns = itertools.cycle(upstream)
            up_reader, up_writer = next(turns)
            while (message := await _message(reader))[:1] != b"X":
                up_writer.write(message)
                if message[:1] in _ENDS_A_REQUEST:
                    answer = await _until_ready(up_reader)
                    writer.write(b"".join(answer))
                    if answer[-1][-1:] == b"I":
                        up_reader, up_writer = next(turns)
        for each in (writer, *(session[1] for session in upstream)):
            each.close()

    listener = await asyncio.start_unix_server(serve, folder / ".s.PGSQL.5432")
    async with listener:
        yield psycopg.conninfo.make_conninfo(dsn, host=str(folder), port="5432")


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


async def _until_ready(reader: asyncio.StreamReader) -> list[bytes]:
    messages = [await _message(reader)]
    while messages[-1][:1] != _READY:
        messages.append(await _message(reader))
    return messages


def _disguised(message: bytes, version: str | None) -> bytes:
    """The key to cancel with is the pooler's own, as a rule; the version is the server's unless told otherwise."""
    if message[:1] == _KEY:
        return message[:5] + struct.pack("!i", 99_999_999) + message[9:]
    if version is not None and message[5:].startswith(b"server_version\0"):
        body = b"server_version\0" + version.encode() + b"\0"
        return b"S" + struct.pack("!i", len(body) + 4) + body
    return message
