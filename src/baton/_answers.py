"""What the outcome of an LLM step means: usage that a result carries is recorded, a provider that is full is waited for."""

import logging
import math
import random
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from oban.job import Job, Record
from oban.job import Snooze as ObanSnooze

from baton import _overload, _reading
from baton._accounts import Accounts, Entry
from baton._codec import clean_text
from baton._error_line import error_line
from baton._outcomes import Cancel, Snooze
from baton._usage import Usage
from baton.errors import BatonError, InvalidUsage

logger = logging.getLogger("baton.step")

_KEY = "llm_usage"
# Of a provider that does not say how long: twice as long each time, up to this.
_LONGEST_PAUSE = 60.0
_LONGEST_LINE = 200


def read_entries(
    accounts: Accounts,
    response: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    cost: object = None,
    latency: float | None = None,
    asked_for: str | None = None,
) -> tuple[Usage, list[Entry]]:
    """What a response says was used, and an entry for each call of it: an agent's run is several. See `record_usage`.

    Raises:
        InvalidUsage: Nothing that was used can be read from it.
    """
    usage = _reading.read_usage(
        response, model=model, provider=provider, latency=latency, asked_for=asked_for
    )
    stated = _reading.read_cost(response) if cost is None else _reading.checked_cost(cost)
    if stated is not None:
        # One cost cannot be told apart by its calls.
        return usage, [Entry(accounts, usage, stated)]
    calls: Sequence[Usage] = _reading.read_calls(
        response, model=model, provider=provider, latency=latency, asked_for=asked_for
    )
    return usage, [Entry(accounts, one) for one in calls]


async def of_llm_step(job: Job, accounts: Accounts | None, work: Awaitable[Any]) -> Any:
    """What `work` returns, without the usage that it may carry; or a snooze, where the provider has no room now.

    Args:
        accounts: Of the attempt; None for an ordinary job, of which nothing is recorded.
    """
    try:
        return await without_usage(job, accounts, work)
    except (Snooze, Cancel, BatonError):
        raise
    except Exception as error:
        if not _overload.is_overloaded(error):
            raise
        return _snooze(job, error)


async def without_usage(job: Job, accounts: Accounts | None, work: Awaitable[Any]) -> Any:
    """What `work` returns; the usage that it may carry is recorded, and left out."""
    result = await work
    if isinstance(result, Record) and isinstance(result.value, Mapping) and _KEY in result.value:
        return Record(_without_usage(result.value, job, accounts))
    if isinstance(result, dict) and _KEY in result:
        return _without_usage(result, job, accounts)
    return result


def _without_usage(result: Mapping[Any, Any], job: Job, accounts: Accounts | None) -> dict[Any, Any]:
    rest = {key: value for key, value in result.items() if key != _KEY}
    used = result[_KEY]
    if accounts is None or used is None:
        return rest
    try:
        entries = read_entries(accounts, used)[1]
    except InvalidUsage as error:
        # The result was paid for, and is worth more than its bill.
        logger.warning(
            "llm_usage in the result of job %s cannot be read, so what it used is unknown: %s", job.id, error
        )
        entries = [Entry(accounts, Usage())]
    accounts.ledger.add(entries)
    return rest


def _snooze(job: Job, error: Exception) -> ObanSnooze:
    asked = _overload.retry_after(error)
    if asked is None:
        snoozed = job.meta.get("snoozed", 0)
        doublings = min(snoozed, 10) if isinstance(snoozed, int) and snoozed >= 0 else 0
        seconds = min(2.0 ** (doublings + 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
    else:
        # Never earlier than asked for, and not all at once.
        seconds = asked + random.uniform(0.0, max(1.0, 0.1 * asked))  # noqa: S311
    told = error_line(f"{type(error).__name__}: {error}")[:_LONGEST_LINE]
    logger.warning(
        "job %s: the model's provider has no room (%s); it is tried again in %.0f s, which uses no attempt",
        job.id,
        told,
        seconds,
    )
    # Oban's, which a job outside of any workflow may return as well.
    return ObanSnooze(math.ceil(seconds), {"no_room": clean_text(told, _LONGEST_LINE)})
