"""What changes among all runs, kept once per process for all who look at the list."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from baton import Baton, BatonError, RunsChange
from baton.web import _shapes
from baton.web._board import Moves

logger = logging.getLogger("baton.web")

# Runs that changed lately. Whoever has seen less is told to fetch the list.
_KEPT = 1_000
_MESSAGES = 16
_LINGER = 10.0


@dataclass(frozen=True, slots=True)
class _Change:
    """The last change of a run: how it is now, or that it is gone. The name is None where it never was known."""

    version: int
    name: str | None
    written: bytes | None


class RunsBoard(Moves):
    """The changes of all runs, while somebody looks."""

    def __init__(self, baton: Baton) -> None:
        super().__init__()
        self._baton = baton
        self._changes: OrderedDict[str, _Change] = OrderedDict()
        self._forgotten = 0
        self._messages: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._users = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._task is None or self._task.done()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Follow the runs meanwhile."""
        if self.over:
            self._task = asyncio.create_task(self._follow(), name="baton-web-runs")
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                asyncio.get_running_loop().call_later(_LINGER, self._close_idle)

    def message(self, since: int, name_prefix: str) -> bytes | None:
        """Runs that changed after `since` and those that went, as JSON without its braces; None if that was too long ago."""
        if since < self._forgotten:
            return None
        key = since, name_prefix
        found = self._messages.get(key)
        if found is None:
            runs: list[bytes] = []
            removed: list[bytes] = []
            for run_id, change in reversed(self._changes.items()):
                if change.version <= since:
                    break
                if not (change.name or "").startswith(name_prefix):
                    continue
                if change.written is None:
                    removed.append(_shapes.dumps(run_id))
                else:
                    runs.append(change.written)
            found = (
                b'"runs":[%s],"removed":[%s]' % (b",".join(runs), b",".join(removed))
                if runs or removed
                else b""
            )
            self._messages[key] = found
            if len(self._messages) > _MESSAGES:
                self._messages.popitem(last=False)
        return found

    def close(self) -> None:
        """Stop following; whoever looks is told."""
        if self._task is not None:
            self._task.cancel()
        self.wake()

    async def _follow(self) -> None:
        try:
            async with self._baton.changes() as changes:
                async for change in changes:
                    self._apply(change)
        except BatonError as error:
            logger.info("runs are not followed any more: %s", error)
        except Exception:
            logger.exception("runs are not followed any more")
        finally:
            # What happens until somebody looks again is not seen.
            self._changes.clear()
            self._forgotten = self.version
            self.moved()

    def _apply(self, change: RunsChange) -> None:
        self.version += 1
        self._messages.clear()
        for run in change.runs:
            self._keep(run.id, _Change(self.version, run.name, _shapes.dumps(_shapes.run(run))))
        for run_id in change.removed:
            known = self._changes.get(run_id)
            self._keep(run_id, _Change(self.version, known.name if known else None, None))
        while len(self._changes) > _KEPT:
            self._forgotten = self._changes.popitem(last=False)[1].version
        self.wake()

    def _keep(self, run_id: str, change: _Change) -> None:
        self._changes[run_id] = change
        self._changes.move_to_end(run_id)

    def _close_idle(self) -> None:
        if not self._users:
            self.close()
