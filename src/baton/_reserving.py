"""Asks the budgets of a run for leave before a call of a model is made, and gives back what was set aside for one that
came to nothing. What a call used, or may have used, is settled with its row, by `_accounts`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import psycopg
from psycopg.errors import LockNotAvailable

from baton import _budget, _overload
from baton._budget import Reserve, Shortage, named, shortage
from baton._deadline import pause_after
from baton._names import uuid7
from baton._outcomes import Snooze
from baton._usage import Usage
from baton.errors import BudgetExhausted, ResultError, UnpricedModel

logger = logging.getLogger("baton.step")

# Calls that are under way may turn out cheaper than what is set aside for them. So long a call waits for that where it is, as
# beginning the step anew would make its earlier calls again; it looks half as often each time.
_PATIENCE = 30.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# Then the step waits in its queue.
_SNOOZE = 5.0
# Nothing was called yet, so a database that is away is waited for, a failover's time.
_AWAY = 30.0


class Treasury(Protocol):
    """What is asked of the engine."""

    async def reserve(
        self,
        reservation_id: UUID | None,
        job_id: int,
        attempted_at: datetime,
        usd: Decimal | None,
        tokens: int,
    ) -> Mapping[str, Any]: ...

    async def release_reservation(self, reservation_id: UUID) -> None: ...

    async def pause_for(
        self, run_id: UUID, budget_id: int, usd: Decimal | None, tokens: int, *, start: bool
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Claimant:
    """The attempt that asks."""

    treasury: Treasury
    step: str
    workflow_id: str
    job_id: int
    attempted_at: datetime


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a call may come to; dollars are None where no price is known."""

    usd: Decimal | None
    tokens: int
    model: str | None


async def reserve(
    claimant: Claimant,
    price: Callable[[Usage], Decimal | None],
    *,
    request: object,
    model: str | None,
    reserve: Reserve | None,
) -> UUID:
    """Set aside what a call may come to, with all budgets of its run; wait for calls under way where they alone are in its way.

    Args:
        claimant: The attempt that asks.
        price: What so much would cost; called in a thread.
        request: What is to be sent.
        model: Its model, where it does not name it.
        reserve: In place of what the request says.

    Raises:
        BudgetExhausted: A budget does not allow it, and says `stop`.
        UnpricedModel: A strict budget in dollars, and no price.
        Snooze: The run is paused for its budget, or others' calls stood in the way for long.
        ResultError: The attempt holds its job no longer.
    """
    asked = await _asked(price, request, model, reserve)
    reservation_id = uuid7()
    patient_until = time.monotonic() + _PATIENCE
    looks = 0
    while True:
        said = await _undone_if_cancelled(claimant, reservation_id, asked)
        match said["status"]:
            case "ok":
                if said["blind"]:
                    logger.warning(
                        "step %r calls %s, whose price is not known, on a budget in dollars: it counts as unpriced",
                        claimant.step,
                        asked.model or "a model that its request does not name",
                    )
                return reservation_id
            case "late":
                raise ResultError(
                    f"step {claimant.step!r} calls no model: this attempt no longer holds its job"
                )
            case "unpriced":
                raise UnpricedModel(_unpriced(said["key"], asked))
            case "exhausted":
                # Once more, if something was added meanwhile.
                await _exhausted(claimant, shortage(said), asked, start=False)
            case _:
                if time.monotonic() >= patient_until:
                    raise Snooze(_SNOOZE * random.uniform(0.5, 1.0))  # noqa: S311
                looks += 1
                await asyncio.sleep(
                    pause_after(looks, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
                )


async def may_start(claimant: Claimant) -> None:
    """Ask whether a step that will call models may start at all.

    Raises:
        BudgetExhausted: Nothing is left of a budget that says `stop`.
        Snooze: Nothing is left of one that says `pause`; the run is paused.
    """
    nothing = _Asked(None, 0, None)
    while True:
        said = await _patiently(
            lambda: claimant.treasury.reserve(None, claimant.job_id, claimant.attempted_at, None, 0)
        )
        if said["status"] != "exhausted":
            return
        await _exhausted(claimant, shortage(said), nothing, start=True)


def is_free(error: BaseException) -> bool:
    """Whether nobody is paid for a call that ended so: the provider answered with an error or was never reached, or the call
    says itself that it is to be made later. Of all else, such as a timeout or a stream that failed late, nobody knows.
    """
    return isinstance(error, Snooze) or _overload.is_free(error)


async def end(treasury: Treasury, reservation_id: UUID) -> None:
    """Give back what was set aside for a call that used nothing of it.

    Should the database be away, it is charged when the attempt has ended.
    """
    patient_until = time.monotonic() + _PATIENCE
    try:
        while True:
            try:
                return await treasury.release_reservation(reservation_id)
            except LockNotAvailable:
                if time.monotonic() >= patient_until:
                    raise
                await asyncio.sleep(_LONGEST_PAUSE)
    except (psycopg.Error, OSError, TimeoutError) as failure:
        logger.warning(
            "what was set aside for a call stays so until its attempt has ended, and is charged then: %s",
            failure,
        )


async def _asked(
    price: Callable[[Usage], Decimal | None], request: object, model: str | None, reserve: Reserve | None
) -> _Asked:
    # In a thread: a request may be large, and prices take their time the first time.
    return await asyncio.to_thread(_asked_for, price, request, model, reserve)


def _asked_for(
    price: Callable[[Usage], Decimal | None], request: object, model: str | None, reserve: Reserve | None
) -> _Asked:
    estimate = _budget.estimate(request, model)
    tokens = estimate.tokens if reserve is None or reserve.tokens is None else reserve.tokens
    if reserve is not None and reserve.usd is not None:
        return _Asked(reserve.usd, tokens, estimate.model)
    if estimate.model is None:
        return _Asked(None, tokens, None)
    usage = Usage(
        model=estimate.model, input_tokens=estimate.input_tokens, output_tokens=estimate.output_tokens
    )
    return _Asked(price(usage), tokens, estimate.model)


async def _undone_if_cancelled(claimant: Claimant, reservation_id: UUID, asked: _Asked) -> Mapping[str, Any]:
    """Reserve. A cancel that comes meanwhile must leave nothing set aside for a call that is never made."""

    async def ask() -> Mapping[str, Any]:
        return await claimant.treasury.reserve(
            reservation_id, claimant.job_id, claimant.attempted_at, asked.usd, asked.tokens
        )

    asking = asyncio.create_task(_patiently(ask))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        undoing = asyncio.create_task(_undo(claimant.treasury, asking, reservation_id))
        _undoing.add(undoing)
        undoing.add_done_callback(_undoing.discard)
        raise


_undoing: set[asyncio.Task[None]] = set()


async def _undo(treasury: Treasury, asking: asyncio.Task[Mapping[str, Any]], reservation_id: UUID) -> None:
    asking.cancel()
    await asyncio.wait({asking})
    await end(treasury, reservation_id)


async def _patiently[T](ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Ask until the database answers, for some time: the same question may be asked twice."""
    deadline = time.monotonic() + _AWAY
    failures = 0
    while True:
        try:
            return await ask()
        except (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError):
            if time.monotonic() >= deadline:
                raise
            failures += 1
            await asyncio.sleep(pause_after(failures, first=0.1, longest=2.0))


async def _exhausted(claimant: Claimant, short: Shortage, asked: _Asked, *, start: bool) -> None:
    """Stop, or pause the run; return only if there is room by now."""
    if short.on_exhausted == "pause":
        came_to = await _patiently(
            lambda: claimant.treasury.pause_for(
                UUID(claimant.workflow_id), short.budget_id, asked.usd, asked.tokens, start=start
            )
        )
        if came_to == "room":
            return
        if came_to == "paused":
            logger.warning("step %r waits, and its run is paused: %s", claimant.step, short.text)
            # Its job is put back by the pause, and let go by whoever adds to the budget.
            raise Snooze(0)
    raise BudgetExhausted(
        f"step {claimant.step!r} calls no model: {short.text}; add to the budget, or catch BudgetExhausted and ask for less",
        budget=short.key,
    )


def _unpriced(key: str | None, asked: _Asked) -> str:
    if asked.model is None:
        return (
            f"{named(key)} is in dollars, and nothing says what this call may cost; pass request= or model=, or "
            "reserve=Reserve(usd=...)"
        )
    return (
        f"{named(key)} is in dollars, and no price is known for model {asked.model!r}; give it one with "
        "Baton(pricing=PriceTable(...)), pass reserve=Reserve(usd=...), or declare the budget with unpriced='warn'"
    )
