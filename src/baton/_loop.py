"""A background loop: `run_once` at an interval, in a task that has an owner, until it is asked to stop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("baton")

# A turn that was under way when the loop is stopped gets this long; what it was about is done by the next process.
_STOP_SECONDS = 5.0


class Loop:
    """Calls `run_once` at once and then at each interval. An error is logged and the loop goes on.

    Started twice it is one loop; stopped twice, or before its start, nothing happens.
    """

    def __init__(self, name: str, run_once: Callable[[], Awaitable[object]], *, interval: float) -> None:
        self.name = name
        self.run_once = run_once
        self.interval = interval
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = False

    def start(self) -> None:
        if self._task is None:
            self._stopping = False
            self._task = asyncio.create_task(self._run(), name=f"baton-{self.name}")

    def wake(self) -> None:
        """Do not wait for the interval to end."""
        self._wake.set()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        # Ask, do not cancel: a cancelled query can leave its connection inside a transaction.
        self._stopping = True
        self._wake.set()
        _, late = await asyncio.wait([task], timeout=_STOP_SECONDS)
        for each in late:
            each.cancel()
            await asyncio.wait([each], timeout=1.0)

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self.run_once()
            except Exception:
                logger.warning("%s failed; trying again in %g s", self.name, self.interval, exc_info=True)
            try:
                async with asyncio.timeout(self.interval):
                    await self._wake.wait()
            except TimeoutError:
                pass
