"""What the lab knows: each run with what may have become of it, the calls of its users, and what was found wrong.

Written over connections straight to the server, past the proxy, and through its restarts.
"""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from psycopg import AsyncConnection, OperationalError
from psycopg_pool import AsyncConnectionPool

from tests.lab.invariants import Finding
from tests.lab.oracle import Belief, Expected
from tests.lab.schedule import Flow


@dataclass(slots=True)
class Tracked:
    """A run under observation. `epoch` counts what its users did, `busy` is true while they may do more."""

    run: str
    flow: Flow
    belief: Belief
    expected: Expected | None
    epoch: int = 0
    busy: bool = True
    closed: bool = False


class Direct:
    """Statements that come through, however often the server goes away. Each is a transaction and may be repeated."""

    def __init__(self, dsn: str) -> None:
        self._pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
            dsn,
            kwargs={"autocommit": True, "application_name": "lab"},
            min_size=1,
            max_size=8,
            open=False,
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=3600,
        )

    async def __aenter__(self) -> Self:
        await self._pool.open(wait=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def rows(self, statement: str, *params: object, patience: float = 60.0) -> list[tuple[Any, ...]]:
        deadline = time.monotonic() + patience
        while True:
            try:
                async with self._pool.connection() as conn:
                    cursor = await conn.execute(statement.encode(), params or None)
                    return await cursor.fetchall() if cursor.description else []
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """One of its connections."""
        return self._pool.connection()

    async def value(self, statement: str, *params: object) -> Any:
        rows = await self.rows(statement, *params)
        return rows[0][0] if rows else None


@dataclass(slots=True)
class Ledger:
    """Runs by id, findings by what they say, and the order in which things happened."""

    direct: Direct
    runs: dict[str, Tracked] = field(default_factory=dict)
    findings: dict[Finding, float] = field(default_factory=dict)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def start_clock(self) -> None:
        self.began = time.monotonic()

    def note(self, text: str) -> None:
        self.timeline.append((round(self.now, 3), text))

    def find(self, *findings: Finding) -> None:
        for finding in findings:
            if finding not in self.findings:
                self.findings[finding] = round(self.now, 3)
                self.note(f"VIOLATION {finding}")

    async def called(self, run: str, what: str, step: str | None = None) -> int:
        """Write down that a user is about to do something."""
        return int(
            await self.direct.value(
                "INSERT INTO lab.actions (run, what, step) VALUES (%s, %s, %s) RETURNING id", run, what, step
            )
        )

    async def answered(self, action: int, answer: str) -> None:
        await self.direct.rows(
            "UPDATE lab.actions SET answered_at = clock_timestamp(), answer = %s WHERE id = %s AND answered_at IS NULL",
            answer,
            action,
        )
