"""Starts and stops an Oban so that nothing of it is left behind, whatever the database does meanwhile.

Part of the seam to Oban: wrappers around `start` and `stop` of one instance and of its parts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from oban import Oban

from baton._deadline import end, within

logger = logging.getLogger("baton.engine")

# A loop's turn that is under way ends in this time, or is given up: the next process does what it was about.
_STOP_SECONDS = 2.0
_ROW_SECONDS = 1.0


class Lifecycle:
    """One Oban's parts, and their starts under way."""

    def __init__(self, oban: Oban) -> None:
        self._oban = oban
        self._starts: set[asyncio.Task[Any]] = set()
        self._wrapped: list[tuple[Any, str]] = []
        start = oban.start

        async def start_or_undo() -> Oban:
            try:
                return await start()
            except BaseException:
                await self._undo()
                raise

        self._wrap(oban, "start", start_or_undo)
        for part in self._parts():
            self._wrap(part, "start", self._noted(part.start))
            self._wrap(part, "stop", _in_time(part.stop))
        for producer in oban._producers.values():
            self._wrap(producer, "start", self._noted(producer.start))
        self._wrap_rows_of_producers()

    def release(self) -> None:
        """Give the instance its own methods back."""
        for holder, name in self._wrapped:
            vars(holder).pop(name, None)

    def _parts(self) -> list[Any]:
        oban = self._oban
        parts = [oban._leader, oban._stager, oban._lifeline, oban._pruner, oban._refresher, oban._scheduler]
        # Last, for the others tell it that they go.
        return [*parts, *([oban._metrics] if oban._metrics is not None else []), oban._notifier]

    def _wrap_rows_of_producers(self) -> None:
        """A queue that stops says so in its row. Without a database that is not worth the half minute that a pool waits."""
        query = self._oban._query
        update, delete = query.update_producer, query.delete_producer

        async def update_producer(uuid: str, meta: dict[str, Any]) -> None:
            if "shutdown_started_at" in meta:
                await within(_ROW_SECONDS, update(uuid, meta))
            else:
                await update(uuid, meta)

        async def delete_producer(uuid: str) -> None:
            await within(_ROW_SECONDS, delete(uuid))

        self._wrap(query, "update_producer", update_producer)
        self._wrap(query, "delete_producer", delete_producer)

    def _wrap(self, holder: Any, name: str, method: Callable[..., Any]) -> None:
        setattr(holder, name, method)
        self._wrapped.append((holder, name))

    def _noted(self, start: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def noted() -> None:
            task = asyncio.current_task()
            assert task is not None
            self._starts.add(task)
            try:
                await start()
            finally:
                self._starts.discard(task)

        return noted

    async def _undo(self) -> None:
        """Stop what a failed start had begun: Oban starts all parts at once, and when one fails it forgets the others."""
        for task in list(self._starts):
            await end(task)
        for part in [*self._oban._producers.values(), *self._parts()]:
            try:
                await part.stop()
            except Exception:
                logger.warning("%s did not stop in good order", type(part).__name__, exc_info=True)
            for event in ("_stopping", "_started"):
                # It may be started again, when whatever made it fail is over.
                if isinstance(flag := getattr(part, event, None), asyncio.Event):
                    flag.clear()
        if self._oban._dispatcher is not None:
            await self._oban._dispatcher.stop()


def _in_time(stop: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A `stop` that neither raises nor lasts: Oban's waits for them all, and forgets the rest when one raises."""

    async def stop_it() -> None:
        await stop()

    async def stop_in_time() -> None:
        try:
            await within(_STOP_SECONDS, stop_it())
        except Exception:
            logger.warning("a part of Oban did not stop in good order; it is given up", exc_info=True)

    return stop_in_time
