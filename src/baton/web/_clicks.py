"""Double clicks: what does something each time it is asked for, as a re-run does, is done once for one click."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

# Of a click without a key, and of one with: a page that lost the answer may ask again for so long.
_SECONDS = 5.0
_SECONDS_WITH_KEY = 600.0
_MOST = 1_000


class Clicks:
    """What was asked lately in this process, and what came of it."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[object, ...], tuple[float, asyncio.Task[str]]] = OrderedDict()

    async def once(
        self, click: tuple[object, ...], key: str | None, act: Callable[[], Awaitable[str]]
    ) -> tuple[str, bool]:
        """What came of it, and whether that was for an earlier request of the same click.

        Args:
            click: Who asked for what.
            key: What the page calls this click; without one, a click is the same for some seconds.
            act: Does it.
        """
        now = time.monotonic()
        asked = (*click, key)
        until, task = self._asked.get(asked, (0.0, None))
        known = task is not None and now < until and not (task.done() and _failed(task))
        if task is None or not known:
            task = asyncio.ensure_future(_done(act))
            self._asked[asked] = (now + (_SECONDS if key is None else _SECONDS_WITH_KEY), task)
            self._asked.move_to_end(asked)
            if len(self._asked) > _MOST:
                self._asked.popitem(last=False)
        # Whoever goes away does not take it from the other.
        return await asyncio.shield(task), known


async def _done(act: Callable[[], Awaitable[str]]) -> str:
    return await act()


def _failed(task: asyncio.Task[str]) -> bool:
    return task.cancelled() or task.exception() is not None
