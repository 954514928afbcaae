"""Makes what was captured fit to be stored, in a thread of its own: without secrets, as the user's hook leaves it, cut.

The hook is the user's code: it may raise, take its time, or never end. Then nothing is stored but that, and nothing else waits.
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from baton._redact import JsonValue, redacted_text, storable

logger = logging.getLogger("baton.step")

type Hook = Callable[[Any], Any]

_SECONDS = 10.0
_MOST_OF_AN_ERROR = 4_000
_MOST_OF_A_MODEL = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """What is stored of a captured call: JSON texts by column, and texts."""

    parts: Mapping[str, str]
    model: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Captured:
    """What is known of a call, copied when it was made. `what` names its step in messages."""

    what: str
    parts: Mapping[str, JsonValue]
    model: str | None
    error: str | None


class Redactor:
    """Redacts captured calls, one after the other.

    Args:
        hook: Called with each part after our own rules, and returns what is stored of it.
    """

    def __init__(self, hook: Hook | None, *, seconds: float = _SECONDS) -> None:
        self._hook = hook
        self._seconds = seconds
        self._stuck: asyncio.Future[Shown] | None = None

    async def redact(self, calls: Sequence[Captured]) -> list[Shown]:
        """What is stored of each. Raises nothing."""
        return [await self._redact(call) for call in calls]

    async def _redact(self, call: Captured) -> Shown:
        if self._stuck is not None and not self._stuck.done():
            return _withheld(call, "redact() has not returned from an earlier call")
        future = _in_a_thread(lambda: show(call, self._hook))
        done, _ = await asyncio.wait({future}, timeout=self._seconds)
        if done:
            return future.result()
        self._stuck = future
        return _withheld(call, f"redact() took longer than {self._seconds:g} seconds")


def _in_a_thread(work: Callable[[], Shown]) -> "asyncio.Future[Shown]":
    """As `asyncio.to_thread`, but what never ends keeps no process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Shown] = loop.create_future()

    def run() -> None:
        shown = work()
        # The loop may have ended, and nobody waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, future, shown)

    threading.Thread(target=run, name="baton-capture", daemon=True).start()
    return future


def _set(future: "asyncio.Future[Shown]", shown: Shown) -> None:
    if not future.done():
        future.set_result(shown)


def show(call: Captured, hook: Hook | None) -> Shown:
    """What is stored of a captured call; of one that cannot be redacted, only that."""
    try:
        return Shown(
            {name: storable(part, hook) for name, part in call.parts.items()},
            None if call.model is None else redacted_text(call.model)[:_MOST_OF_A_MODEL],
            None if call.error is None else _error(call.error, hook),
        )
    except BaseException as error:
        # Its text is not told: it may hold what should have been hidden.
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = "redacting it" if hook is None else "redact()"
        return _withheld(call, f"{what} raised {type(error).__name__} at {last.filename}:{last.lineno}")


def _error(text: str, hook: Hook | None) -> str:
    shown = redacted_text(text)
    if hook is not None:
        shown = redacted_text(str(hook(shown)))
    return shown if len(shown) <= _MOST_OF_AN_ERROR else f"{shown[: _MOST_OF_AN_ERROR - 20]}[cut]"


def _withheld(call: Captured, why: str) -> Shown:
    logger.error("what was captured of a call of %s is not stored: %s", call.what, why)
    return Shown({}, None, f"not stored: {why}")
