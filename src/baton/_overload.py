"""Tells what an exception of a model's client means: the provider has no room now, or was never reached. Pure.

By the attributes that the exceptions of OpenAI, Anthropic, Google, litellm, Pydantic AI, httpx and aiohttp have; none of them
is imported. What an exception was raised from counts as well, so it may be wrapped.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

LONGEST_WAIT: Final = 3_600.0
"""Seconds. A provider that asks for more is asked again then."""

_TOO_MANY = 429
_UNAVAILABLE = 503
# Anthropic's own, for one that has too much to do.
_OVERLOADED = 529
_DEPTH = 8
_MOST_GROUPS = 100
_LOOKED_AT = 2_000

# What providers call it, where the status says nothing: in an answer that began as a stream it is 200, or there is none.
_CODES = frozenset(
    {
        "overloaded_error",
        "overloaded",
        "server_is_overloaded",
        "engine_overloaded",
        "rate_limit_error",
        "rate_limit_exceeded",
        "too_many_requests",
        "resource_exhausted",
        "throttlingexception",
    }
)
# Also a 429, and no wait helps: somebody has to pay first.
_UNPAID = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "credit_exhausted",
    }
)
# OpenAI's 429 for what is over the limit by itself.
_TOO_LARGE = "request too large"
# Raised before anything of the request was sent. By name, as they are httpx's, its forks', aiohttp's and requests'.
_UNSENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "InvalidURL",
        "ClientConnectorError",
        "ConnectionRefusedError",
        "gaierror",
    }
)
_DELAY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


def is_overloaded(error: BaseException) -> bool:
    """Whether the provider said that it has no room now: 429, 529, overloaded, or 503 with a time to come back.

    Not where a quota is used up that no wait fills, nor of a request that is over the limit by itself. Of a group, all of its
    exceptions must be that.
    """
    return _of_all(error, _says_overloaded)


def retry_after(error: BaseException) -> float | None:
    """Seconds after which the provider wants to be asked again, from 0 to `LONGEST_WAIT`; None if it did not say.

    Of a group, the longest.
    """
    waits = [wait for one in _leaves(error) if (wait := next(_waits(one), None)) is not None]
    return max(waits, default=None)


def never_sent(error: BaseException) -> bool:
    """Whether the request cannot have reached the provider: refused, no such host, no connection in time.

    False where that is not known, as of an answer that was cut. Of a group, it must be so of all of its exceptions.
    """
    return _of_all(error, _was_never_sent)


def is_free(error: BaseException) -> bool:
    """Whether no provider takes money for it: the request was never sent, or was answered with an error instead of an answer.

    False where that is not known, as of a stream that began and then failed: what came of it may be paid for. Of a group, it
    must be so of all of its exceptions.
    """
    return _of_all(error, _was_free)


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the provider answered with, None if there was no answer. Of a group, the first one's."""
    for one in _leaves(error):
        for cause in _causes(one):
            if (status := _status(cause)) is not None:
                return status
    return None


# --- what one exception says ----------------------------------------------------------------------


def _says_overloaded(error: BaseException) -> bool:
    causes = list(_causes(error))
    if any(_is_unpaid(cause) or _TOO_LARGE in _text(cause) for cause in causes):
        return False
    return any(_is_full(cause) for cause in causes)


def _is_unpaid(error: BaseException) -> bool:
    return not _UNPAID.isdisjoint(_codes(error)) or _is_of_pydantic_ai(error, "ModelQuotaExceededError")


def _is_full(error: BaseException) -> bool:
    status = _status(error)
    if status in (_TOO_MANY, _OVERLOADED) or not _CODES.isdisjoint(_codes(error)):
        return True
    if _is_of_pydantic_ai(error, "ModelRateLimitError", "ModelOverloadedError"):
        return True
    if status == _UNAVAILABLE and next(_waits(error), None) is not None:
        return True
    # Google's 503, and litellm's 500 for what was Anthropic's 529, say it in words only.
    return status is not None and status >= 500 and "overloaded" in _text(error)


def _was_never_sent(error: BaseException) -> bool:
    return any(
        _get(cause, "phase") in ("pool", "connect")
        or not _UNSENT.isdisjoint(kind.__name__ for kind in type(cause).__mro__)
        for cause in _causes(error)
    )


def _was_free(error: BaseException) -> bool:
    causes = list(_causes(error))
    if any(_get(cause, "in_stream") is True for cause in causes):
        # Pydantic AI gives these the status that they would have had.
        return False
    return _was_never_sent(error) or any(
        _status(cause) is not None and not _has_no_status_of_its_own(cause) for cause in causes
    )


def _has_no_status_of_its_own(error: BaseException) -> bool:
    """litellm gives 500 to whatever had no answer, a connection that was cut among it."""
    return type(error).__module__.startswith("litellm") and _status(error) == 500 and not _is_full(error)


def _status(error: BaseException) -> int | None:
    response = _get(error, "response")
    for place, name in (
        (error, "status_code"),
        (response, "status_code"),
        (response, "status"),
        (error, "status"),
        (error, "code"),
    ):
        status = _get(place, name)
        if isinstance(status, int) and not isinstance(status, bool) and 400 <= status <= 599:
            return int(status)
    return None


def _codes(error: BaseException) -> set[str]:
    """What the provider calls the error, by its body and by what the client made of it."""
    found = [
        _get(error, name) for name in ("code", "type", "status", "provider_error_code", "provider_error_type")
    ]
    for body in (_get(error, "body"), _get(error, "details")):
        for place in (body, _get(body, "error")):
            found += [_get(place, name) for name in ("code", "type", "status")]
    return {code.lower() for code in found if isinstance(code, str) and len(code) < 100}


def _is_of_pydantic_ai(error: BaseException, *names: str) -> bool:
    """Its exceptions without a status tell by their classes alone."""
    return any(
        kind.__name__ in names and kind.__module__.startswith("pydantic_ai") for kind in type(error).__mro__
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_LOOKED_AT].lower()
    except Exception:
        return ""


# --- how long to wait -----------------------------------------------------------------------------


def _waits(error: BaseException) -> Iterator[float]:
    for cause in _causes(error):
        response = _get(cause, "response")
        for headers in (
            _get(response, "headers"),
            _get(cause, "headers"),
            _get(cause, "litellm_response_headers"),
        ):
            lowered = _lowered(headers)
            if (milliseconds := _number(lowered.get("retry-after-ms"))) is not None:
                yield _capped(milliseconds / 1_000)
            said = lowered.get("retry-after")
            seconds = _number(said)
            if seconds is None:
                seconds = _until(said, lowered.get("date"))
            if seconds is not None:
                yield _capped(seconds)
        if (seconds := _number(_get(cause, "retry_after"))) is not None:
            yield _capped(seconds)
        if (seconds := _google_delay(cause)) is not None:
            yield _capped(seconds)


def _lowered(headers: object) -> dict[str, object]:
    if not isinstance(headers, Mapping):
        # aiohttp's and httpx's are mappings, those of urllib's errors are not.
        headers = {
            name: _called(_get(headers, "get"), name) for name in ("retry-after-ms", "retry-after", "date")
        }
    try:
        return {str(name).lower(): value for name, value in headers.items() if value is not None}
    except Exception:
        return {}


def _called(get: Any, name: str) -> object:
    try:
        return get(name)
    except Exception:
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or len(str(value)) > 30:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _until(moment: object, now: object) -> float | None:
    """From an HTTP date. By the provider's clock, if it says what that shows: ours may be another."""
    then = _date(moment)
    if then is None:
        return None
    return (then - (_date(now) or datetime.now(UTC))).total_seconds()


def _date(value: object) -> datetime | None:
    if not isinstance(value, str) or len(value) > 100:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _google_delay(error: BaseException) -> float | None:
    """Google says it in the body: `{"@type": ".../google.rpc.RetryInfo", "retryDelay": "34.5s"}`."""
    body = _get(error, "details")
    details = _get(_get(body, "error"), "details") or _get(body, "details")
    for detail in details[:20] if isinstance(details, list) else ():
        said = _get(detail, "retryDelay")
        if isinstance(said, str) and (matched := _DELAY.fullmatch(said)):
            return float(matched[1])
    return None


def _capped(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_WAIT)


# --- exceptions, what they came from, and groups --------------------------------------------------


def _of_all(error: BaseException, test: Callable[[BaseException], bool]) -> bool:
    return all(test(one) for one in _leaves(error))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, those of a group in it, and so on; an exception that is no group by itself.

    Groups beyond the hundredth are not opened, and are themselves nothing that is known.
    """
    left, opened = [error], 0
    while left:
        one = left.pop(0)
        group = next((cause for cause in _causes(one) if isinstance(cause, BaseExceptionGroup)), None)
        if group is None or opened == _MOST_GROUPS:
            yield one
        else:
            left += group.exceptions
            opened += 1


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it was raised from."""
    cause: BaseException | None = error
    for _ in range(_DEPTH):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _get(value: object, name: str) -> Any:
    """A key of a mapping or an attribute of an object, None if it is not there or cannot be read."""
    try:
        if isinstance(value, Mapping):
            return value.get(name)
        return getattr(value, name, None)
    except Exception:
        return None
