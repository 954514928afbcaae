"""What exceptions of the real SDKs say: that a provider has no room now, how long to wait, that nothing was sent."""

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from google.genai import errors as google
from pydantic_ai import exceptions as pydantic_ai

from baton._overload import LONGEST_WAIT, is_free, is_overloaded, never_sent, retry_after, status_of

REQUEST = httpx2.Request("POST", "http://localhost/v1")


def response(status: int, headers: Mapping[str, str] | None = None) -> httpx2.Response:
    return httpx2.Response(status, headers=dict(headers or {}), request=REQUEST)


def of_openai(status: int, body: object = None, **headers: str) -> openai.APIStatusError:
    kinds: dict[int, type[openai.APIStatusError]] = {429: openai.RateLimitError}
    kind = kinds.get(status, openai.InternalServerError)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return kind("it said so", response=response(status, named), body=body)


def of_anthropic(status: int, kind: str | None = None, **headers: str) -> anthropic.APIStatusError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None if kind is None else {"type": "error", "error": {"type": kind, "message": "..."}}
    return anthropic.APIStatusError("it said so", response=response(status, named), body=body)


def of_google(status: int, name: str, message: str = "", details: Any = ()) -> google.APIError:
    return google.APIError(
        status, {"error": {"code": status, "status": name, "message": message, "details": list(details)}}
    )


def raised_from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}

FULL = {
    "openai 429": (of_openai(429, retry_after="7"), 7),
    "openai 429, in milliseconds": (of_openai(429, retry_after_ms="250", retry_after="7"), 0.25),
    "openai 429, without a time": (of_openai(429), None),
    "openai 503 with a time": (of_openai(503, retry_after="3"), 3),
    "openai, in a stream": (
        openai.APIError("slow down", REQUEST, body={"code": "rate_limit_exceeded", "message": "..."}),
        None,
    ),
    "anthropic 429": (of_anthropic(429, "rate_limit_error", retry_after="12"), 12),
    "anthropic 529": (of_anthropic(529, "overloaded_error"), None),
    "anthropic, in a stream that began well": (of_anthropic(200, "overloaded_error"), None),
    "google 429": (of_google(429, "RESOURCE_EXHAUSTED", details=[RETRY_INFO]), 34.5),
    "google 503": (of_google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), None),
    "pydantic ai 429": (
        pydantic_ai.ModelHTTPError(429, "gpt", None, headers={"retry-after": "5"}),
        5,
    ),
    "pydantic ai without a status": (
        pydantic_ai.ModelRateLimitError("gpt", "slow down", retry_after=2.5),
        2.5,
    ),
    "pydantic ai overloaded": (pydantic_ai.ModelOverloadedError("claude", "no room"), None),
    "httpx 429": (
        httpx.HTTPStatusError(
            "429",
            request=httpx.Request("POST", "http://x"),
            response=httpx.Response(429, headers={"Retry-After": "9"}),
        ),
        9,
    ),
    "wrapped": (raised_from(RuntimeError("the model failed"), of_openai(429, retry_after="4")), 4),
    "a group of them": (
        ExceptionGroup("two", [of_openai(429, retry_after="4"), of_anthropic(529, retry_after="6")]),
        6,
    ),
    "a group that led to another": (
        raised_from(RuntimeError("no model answered"), ExceptionGroup("one", [of_anthropic(529)])),
        None,
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_a_provider_that_has_no_room_is_asked_again_when_it_wants_to_be(name: str) -> None:
    error, wait = FULL[name]
    assert is_overloaded(error)
    assert retry_after(error) == wait


NOT_FULL = {
    "no money left": of_openai(429, {"code": "insufficient_quota", "type": "insufficient_quota"}),
    "no money left, wrapped": raised_from(
        pydantic_ai.ModelHTTPError(429, "gpt"), of_openai(429, {"code": "insufficient_quota"})
    ),
    "no money left, by pydantic ai": pydantic_ai.ModelQuotaExceededError("gpt", "pay first"),
    "too large by itself": openai.RateLimitError(
        "Request too large for gpt on tokens per min (TPM): Limit 10, Requested 20",
        response=response(429),
        body=None,
    ),
    "a mistake of the server": of_openai(500),
    "gone for a while, and nobody knows how long": of_openai(503),
    "a wrong key": of_anthropic(401, "authentication_error"),
    "no answer": openai.APIConnectionError(request=REQUEST),
    "too late": openai.APITimeoutError(request=REQUEST),
    "of a group, one": ExceptionGroup("two", [of_openai(429), ValueError("no JSON")]),
    "nothing of the kind": ValueError("429"),
    "an exit": SystemExit(429 - 400),
}


@pytest.mark.parametrize("name", NOT_FULL)
def test_other_failures_are_failures(name: str) -> None:
    assert not is_overloaded(NOT_FULL[name])


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry_after": "Fri, 27 Nov 2026 10:00:30 GMT", "date": "Fri, 27 Nov 2026 10:00:00 GMT"}, 30),
        ({"retry_after": "Fri, 27 Nov 2026 09:00:00 GMT", "date": "Fri, 27 Nov 2026 10:00:00 GMT"}, 0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry_after": "Fri, 27 Nov 9999 10:00:30 GMT"}, LONGEST_WAIT),
        ({"retry_after": "86400"}, LONGEST_WAIT),
        ({"retry_after": "1e300"}, LONGEST_WAIT),
        ({"retry_after": "-5"}, 0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "1" * 500}, None),
        ({"retry_after": "Fri, 99 Nov 2026 10:00:30 GMT"}, None),
        ({"retry_after_ms": "x", "retry_after": "2"}, 2),
    ],
)
def test_the_time_to_come_back_is_read_in_every_form_and_capped(
    headers: dict[str, str], wait: float | None
) -> None:
    error = of_openai(429, **headers)
    assert is_overloaded(error)
    assert retry_after(error) == wait


def from_httpx(kind: type[Exception]) -> Exception:
    return raised_from(openai.APIConnectionError(request=REQUEST), kind("it did not work"))


UNSENT = {
    "refused": ConnectionRefusedError(111, "refused"),
    "no such host": socket.gaierror(-2, "Name or service not known"),
    "openai, refused": from_httpx(httpx2.ConnectError),
    "openai, not connected in time": from_httpx(httpx2.ConnectTimeout),
    "anthropic, no connection free": raised_from(
        anthropic.APITimeoutError(request=REQUEST), httpx2.PoolTimeout("none free")
    ),
    "httpx, refused": httpx.ConnectError("refused"),
    "pydantic ai": pydantic_ai.ModelConnectionError("gpt", "refused", phase="connect"),
    "two": ExceptionGroup("two", [httpx.ConnectError("refused"), ConnectionRefusedError()]),
}
PERHAPS_SENT = {
    "cut": raised_from(openai.APIConnectionError(request=REQUEST), httpx2.RemoteProtocolError("cut")),
    "no answer in time": raised_from(openai.APITimeoutError(request=REQUEST), httpx2.ReadTimeout("slow")),
    "while it was written": raised_from(
        pydantic_ai.ModelConnectionError("gpt", "cut", phase="write"), httpx2.WriteError("cut")
    ),
    "answered": of_openai(500),
    "of a group, one": ExceptionGroup("two", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow")]),
    "who knows": RuntimeError("?"),
    "reset": ConnectionResetError(),
    "a broken TLS connection": ssl.SSLEOFError(),
}


@pytest.mark.parametrize("name", UNSENT)
def test_what_never_reached_the_provider_is_known(name: str) -> None:
    assert never_sent(UNSENT[name])
    assert status_of(UNSENT[name]) is None


@pytest.mark.parametrize("name", PERHAPS_SENT)
def test_what_may_have_reached_it_may_be_paid(name: str) -> None:
    assert not never_sent(PERHAPS_SENT[name])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (of_openai(429), 429),
        (of_google(503, "UNAVAILABLE"), 503),
        (pydantic_ai.ModelHTTPError(401, "gpt"), 401),
        (raised_from(RuntimeError(), of_anthropic(529)), 529),
        (of_anthropic(200, "overloaded_error"), None),
        (openai.APIConnectionError(request=REQUEST), None),
        (OSError(2, "no such file"), None),
    ],
)
def test_the_status_is_that_of_the_answer(error: Exception, status: int | None) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(
    "error",
    [of_openai(400), of_openai(429), of_anthropic(529), of_google(503, "UNAVAILABLE"), *UNSENT.values()],
)
def test_an_error_instead_of_an_answer_is_not_paid_for(error: Exception) -> None:
    assert is_free(error)
    assert is_free(raised_from(RuntimeError("wrapped"), error))
    assert is_free(ExceptionGroup("two", [error, of_openai(500)]))


@pytest.mark.parametrize(
    "error",
    [
        *(error for name, error in PERHAPS_SENT.items() if name != "answered"),
        of_anthropic(200, "overloaded_error"),
        openai.APIError("slow down", REQUEST, body={"code": "rate_limit_exceeded"}),
        pydantic_ai.ModelHTTPError(529, "claude", in_stream=True),
        ExceptionGroup("two", [of_openai(429), httpx.ReadTimeout("slow")]),
    ],
)
def test_a_stream_that_failed_late_and_what_nobody_knows_may_be_paid_for(error: Exception) -> None:
    assert not is_free(error)


def of_litellm(message: str) -> Exception:
    """As litellm 1.110 raises it: of Anthropic's 529, and of a connection that was cut."""
    kind = type("InternalServerError", (Exception,), {"__module__": "litellm.exceptions", "status_code": 500})
    made: Exception = kind(message)
    return made


def test_litellms_500_means_an_answer_only_where_it_says_so() -> None:
    full = of_litellm('AnthropicException - {"type":"error","error":{"type":"overloaded_error"}}')
    assert is_overloaded(full)
    assert is_free(full)
    cut = of_litellm("OpenAIException - Connection error.")
    assert not is_overloaded(cut)
    assert not is_free(cut)


class Broken(Exception):
    """Nothing about it can be read."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError("not for you")

    def __str__(self) -> str:
        raise RuntimeError("nor this")


def circle() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def deep() -> Exception:
    error: Exception = ValueError("the first")
    for _ in range(1_000):
        error = ExceptionGroup("deeper", [error])
    return error


@pytest.mark.parametrize("made", [Broken, circle, deep])
def test_an_odd_exception_is_only_a_failure(made: Callable[[], Exception]) -> None:
    error = made()
    assert not is_overloaded(error)
    assert retry_after(error) is None
    assert status_of(error) is None
    assert not never_sent(error)
