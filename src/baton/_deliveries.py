"""Tells an app that its runs have ended, and steps' code that a dependency doomed them, at least once each.

What is to be told is a row, written by the commit that made it true and deleted when it was told. Whoever takes one holds it
for a while; after a crash, or an error, it is due again.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from oban import Oban
from oban.worker import _registry as oban_workers

from baton import _declare
from baton._deadline import pause_after
from baton._engine import Engine
from baton._loop import Loop
from baton._states import RunState
from baton.events import WorkflowFinished

logger = logging.getLogger("baton.deliveries")

type OnFinished = Callable[[WorkflowFinished], Awaitable[None]]

_BATCH = 20
# Nobody else takes a delivery this long; a call must be over before.
_LEASE_SECONDS = 60.0
_CALL_SECONDS = 50.0
_LONGEST_DELAY = 3600.0
# For what became due while the last steps ended; the rest is told by another process, or at the next start.
_LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A fact and whom to tell: a consumer that a run ended, or the code of a step that it was doomed."""

    id: int
    tries: int
    event: WorkflowFinished | None
    function: str
    hook: str
    reason: str
    job_id: int | None


def read_delivery(text: str) -> Delivery:
    """One row as `baton_deliver` returns it."""
    row = orjson.loads(text)
    event = None
    if row["consumer"] is not None:
        event = WorkflowFinished(
            id=row["event_id"],
            workflow_id=row["workflow_id"],
            workflow_label=row["workflow_label"],
            generation=row["generation"],
            outcome=RunState(row["outcome"]),
            failed_steps=tuple(row["failed_steps"]),
            timestamp=datetime.fromisoformat(row["timestamp"]).astimezone(UTC),
        )
    return Delivery(
        id=row["id"],
        tries=row["tries"],
        event=event,
        function=row["function"] or "",
        hook=f"on_dep_{row['cause']}",
        reason=row["reason"] or "",
        job_id=row["job_id"],
    )


def delay_after(tries: int) -> float:
    """Seconds until the next try: two minutes after the first, doubled each time, an hour at most."""
    return pause_after(tries, first=120.0, longest=_LONGEST_DELAY)


class Deliveries:
    """Delivers to one consumer, if there is one, and to the hooks of the steps that this process knows, if it works."""

    def __init__(
        self,
        engine: Engine,
        oban: Oban,
        threads: Executor,
        *,
        consumer: str,
        on_finished: OnFinished | None,
        interval: float,
    ) -> None:
        self._engine = engine
        self._oban = oban
        self._threads = threads
        self._consumer = consumer if on_finished is not None else None
        self._on_finished = on_finished
        self._loop = Loop("deliveries", self.run_once, interval=interval)

    async def start(self) -> None:
        """Have runs that end from now on delivered, and begin to."""
        if self._consumer is not None:
            await self._engine.add_consumer(self._consumer)
        self._loop.start()

    async def stop(self) -> None:
        """End after a last look; what is not told by then stays due."""
        await self._loop.stop()
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self.run_once()
        except Exception as error:
            logger.info("what is left to deliver waits for the next start (%s)", type(error).__name__)

    async def run_once(self) -> int:
        """Deliver all that is due; returns how many were told."""
        told = 0
        while True:
            hooks = _hooked() if self._oban._producers else {}
            if self._consumer is None and not hooks:
                return told
            due = await self._engine.deliver(self._consumer, list(hooks), _BATCH, _LEASE_SECONDS)
            # All of them, also when one raises: a callback that was begun is waited for.
            ends = await asyncio.gather(
                *(self._tell(read_delivery(text), hooks) for text in due), return_exceptions=True
            )
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
                told += end
            if len(due) < _BATCH:
                return told

    async def _tell(self, delivery: Delivery, hooks: dict[str, Any]) -> bool:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                if delivery.event is not None:
                    assert self._on_finished is not None
                    await self._on_finished(delivery.event)
                else:
                    await self._call_hook(delivery, hooks[delivery.function])
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Something that it waited for was cancelled. That ends its call, not ours.
            again = delay_after(delivery.tries)
            logger.exception(
                "%s failed at try %d; trying again in %g s", _what(delivery), delivery.tries, again
            )
            await self._engine.postpone_delivery(delivery.id, delivery.tries, again)
            return False
        await self._engine.delete_delivery(delivery.id, delivery.tries)
        return True

    async def _call_hook(self, delivery: Delivery, owner: Any) -> None:
        hook = getattr(owner() if isinstance(owner, type) else owner, delivery.hook, None)
        if hook is None:
            return
        job = await self._oban.get_job(delivery.job_id) if delivery.job_id is not None else None
        if job is None:
            logger.warning("%s is left out: its job was deleted meanwhile", _what(delivery))
            return
        if inspect.iscoroutinefunction(hook):
            await hook(delivery.reason, job)
            return
        value = await asyncio.get_running_loop().run_in_executor(self._threads, hook, delivery.reason, job)
        if inspect.isawaitable(value):
            await value


def _hooked() -> dict[str, Any]:
    """What has a hook, by the name that steps carry: options of declared steps, and worker classes."""
    hooked: dict[str, Any] = {
        step.name: step.options for step in _declare.all_steps() if _has_hook(step.options)
    }
    hooked.update((name, worker) for name, worker in list(oban_workers.items()) if _has_hook(worker))
    return hooked


def _has_hook(owner: Any) -> bool:
    return any(callable(getattr(owner, hook, None)) for hook in _declare.DOOM_HOOKS)


def _what(delivery: Delivery) -> str:
    if delivery.event is not None:
        return f"on_finished for run {delivery.event.workflow_id}"
    return f"{delivery.hook} of {delivery.function} for job {delivery.job_id}"
