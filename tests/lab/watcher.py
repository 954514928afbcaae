"""The eyes: look at everything at once, many times a second, while it goes on; compare with what may be."""

import asyncio

import psycopg
from psycopg import AsyncConnection

from tests.lab import invariants
from tests.lab.invariants import Finding
from tests.lab.ledger import Ledger, Tracked
from tests.lab.oracle import SETTLED, Contradiction, digest

_EVERY = 0.15
# The traces only grow, and nothing in them passes by.
_TRACES_EVERY = 10

_STATES = "SELECT workflow_id::text, name, state FROM workflow_nodes WHERE workflow_id = ANY(%s::uuid[])"
_OUTCOMES = "SELECT id::text, outcome FROM workflows WHERE id = ANY(%s::uuid[]) AND finished_at IS NOT NULL"
_VALUES = "SELECT name, result ->> 'value' FROM workflow_nodes WHERE workflow_id = %s AND state = 'completed'"


class Watcher:
    """Looks in one snapshot, so whatever it finds was true at a committed moment."""

    def __init__(self, dsn: str, ledger: Ledger) -> None:
        self._dsn = dsn
        self._ledger = ledger
        self.looks = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                async with await AsyncConnection.connect(self._dsn, application_name="lab watcher") as conn:
                    while True:
                        await self.look(conn, traces=self.looks % _TRACES_EVERY == 0)
                        await asyncio.sleep(_EVERY)
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)  # the server is away

    async def look_once(self) -> None:
        """At everything, with the runs that were judged before."""
        for tracked in self._ledger.runs.values():
            tracked.busy = tracked.closed = False
        async with await AsyncConnection.connect(self._dsn, application_name="lab watcher") as conn:
            await self.look(conn, traces=True)

    async def look(self, conn: AsyncConnection, *, traces: bool) -> None:
        open_runs = {run: tracked for run, tracked in self._ledger.runs.items() if not tracked.closed}
        epochs = {run: tracked.epoch for run, tracked in open_runs.items()}
        async with conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._ledger.find(*await invariants.look(conn, traces=traces))
            states: dict[str, dict[str, str]] = {}
            for run, name, state in await (await conn.execute(_STATES, (list(open_runs),))).fetchall():
                states.setdefault(run, {})[name] = state
            outcomes = dict(await (await conn.execute(_OUTCOMES, (list(open_runs),))).fetchall())
            for run, seen in states.items():
                tracked = open_runs[run]
                # What its users did meanwhile may have come before or after this snapshot.
                if tracked.epoch == epochs[run]:
                    self._observe(tracked, seen)
                    if run in outcomes and not tracked.busy:
                        await self._judge(conn, tracked, seen, outcomes[run])
        self.looks += 1

    def _observe(self, tracked: Tracked, seen: dict[str, str]) -> None:
        try:
            tracked.belief.observe(seen)
        except Contradiction as contradiction:
            self._ledger.find(Finding("oracle", tracked.run, contradiction.step, str(contradiction)))
            tracked.belief.states = {name: frozenset({state}) for name, state in seen.items()}

    async def _judge(
        self, conn: AsyncConnection, tracked: Tracked, seen: dict[str, str], outcome: str
    ) -> None:
        """A run has come to its end: is it the one that was known before?"""
        assert set(seen.values()) <= SETTLED
        tracked.closed = True
        if tracked.expected is None:
            return
        values = dict(await (await conn.execute(_VALUES, (tracked.run,))).fetchall())
        expected = tracked.expected
        if (outcome, digest(values)) != (expected.outcome, expected.digest) or seen != expected.states:
            self._ledger.find(
                Finding(
                    "digest",
                    tracked.run,
                    None,
                    f"{tracked.flow.tag} ended {outcome} as {seen}, not {expected.outcome} as {expected.states}",
                )
            )
