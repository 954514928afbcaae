"""What must never be, one statement each in sql/s*.sql, and what must be at the end.

`MOMENTS` holds at every committed moment, so the watcher looks while everything is going on, in one snapshot. `TRACES` reads
what the witness wrote, which only grows, so it is looked at less often. Baton's own audit counts among the first.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from baton import _store

_SQL = Path(__file__).with_name("sql")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must never be. `run` and `step` say where, if it can be told."""

    invariant: str
    run: str | None
    step: str | None
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.run or ''} {self.step or ''}: {self.detail}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def load(name: str) -> str:
    """The statement in sql/<name>.sql."""
    return (_SQL / f"{name}.sql").read_text()


def _named() -> dict[str, str]:
    statements = {}
    for path in sorted(_SQL.glob("s[0-9]*.sql")):
        text = path.read_text()
        head = re.match(r"-- (S\d+ \w+):", text)
        assert head is not None, f"{path.name} does not begin with its name"
        statements[head[1]] = text
    return statements


ALL = _named()
_TRACES = {
    "S1 gate",
    "S2 once",
    "S7 fence",
    "S11 provenance",
    "S14 cancel",
    "S16 prune",
    "S17 attempts",
    "S18 overlap",
    "S19 limit",
}
MOMENTS = {name: text for name, text in ALL.items() if name not in _TRACES}
TRACES = {name: text for name, text in ALL.items() if name in _TRACES}


async def look(conn: AsyncConnection, *, traces: bool) -> list[Finding]:
    """What is wrong at this moment, in the transaction of the connection or in one statement's snapshot each."""
    wanted = ALL if traces else MOMENTS
    found = []
    for name, text in wanted.items():
        found += [Finding(name, _text(run), step, detail) for run, step, detail in await _rows(conn, text)]
    return found + await audit(conn)


async def audit(conn: AsyncConnection) -> list[Finding]:
    """What Baton's own audit finds."""
    rows = await _rows(conn, _store.load("audit").decode())
    return [Finding(f"audit {invariant}", _text(run), step, detail) for invariant, run, step, detail in rows]


async def stuck(conn: AsyncConnection) -> list[Finding]:
    """What has not come to its end."""
    return [
        Finding("L1 end", _text(run), step, detail) for run, step, detail in await _rows(conn, load("stuck"))
    ]


async def _rows(conn: AsyncConnection, text: str) -> list[tuple[Any, ...]]:
    return await (await conn.execute(text.encode())).fetchall()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
