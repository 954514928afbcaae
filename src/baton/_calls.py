"""Calls of models in a step: `baton.record_usage`, `baton.call_llm` and `baton.once`.

What a call used is only noted here, `_accounts` writes it. `once` alone waits for the database: its value must be there before
the step goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import time
import typing
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from baton import _codec, _reserving, _step
from baton._accounts import Accounts, Entry, Log
from baton._answers import read_entries
from baton._budget import Reserve
from baton._declare import resolved_hints
from baton._fit import describe, is_unknown
from baton._names import call_key, uuid7
from baton._usage import Usage
from baton.errors import InvalidOption, InvalidResult, InvalidUsage, ResultError

logger = logging.getLogger("baton.step")

_PLAIN = (bool, int, float, str, type(None))


def record_usage(
    response: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    cost: Decimal | int | str | float | None = None,
    latency: float | None = None,
) -> Usage:
    """Record what a call of a model used, for `baton.stats`, budgets and the page. As often as there are calls.

    It never waits and touches no database: about 100 ms later it is written, and before the step's outcome. It is written
    whatever becomes of the attempt: the call was made. Works in an `async` step, in the tasks that it starts, in the thread of
    a plain step and in worker classes.

    Args:
        response: The answer of a model, an object or a dict: of OpenAI (chat and responses), Anthropic, Google or litellm, the
            last chunk of their streams, or a result of Pydantic AI; or a `Usage`; or a dict with the keys of `llm_usage`.
        model: The model, where the response does not name it, or not the one that is paid for.
        provider: Whose model it is, where its name does not tell.
        cost: What it cost in USD, where that is known better than from a table of prices.
        latency: Seconds that the call took.

    Returns:
        What was read from the response; of an agent's run the sum.

    Raises:
        InvalidUsage: Nothing that was used can be read from it.
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.record_usage()")
    return record_for(accounts, response, model=model, provider=provider, cost=cost, latency=latency)


def record_for(
    accounts: Accounts,
    response: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    cost: object = None,
    latency: float | None = None,
) -> Usage:
    """Record what a call used, of an attempt that is named; see `record_usage`."""
    usage, entries = read_entries(
        accounts, response, model=model, provider=provider, cost=cost, latency=latency
    )
    call = _under_way.get()
    if call is None or call.accounts is not accounts or not call.take(entries):
        accounts.ledger.add(entries)
    return usage


async def call_llm[T](
    call: Callable[[], Awaitable[T]],
    *,
    request: object = None,
    model: str | None = None,
    reserve: Reserve | None = None,
) -> T:
    """Make one call of a model: with leave of the run's budgets, its usage recorded, captured if the run is.

        answer = await call_llm(lambda: client.chat.completions.create(**request), request=request)

    Args:
        call: Makes it. What its value says of its usage is recorded, unless the call records that itself.
        request: What is sent: for the estimate of what it may cost, and to be captured. A dict or anything that JSON can hold.
        model: Its model, where the request does not name it.
        reserve: What to reserve for it with the run's budgets, in place of the estimate.

    Returns:
        What the call returned, as it is.

    Raises:
        InvalidOption: `call` is no function, or one that returns nothing to await, or a stream; `model` is no text, or
            `reserve` no `Reserve`.
        BudgetExhausted: A budget does not allow it. Nothing was called.
        UnpricedModel: A budget is strict about prices, and there is none for this model. Nothing was called.
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.call_llm()")
    _check(call, model, reserve)
    made = await _make(accounts, call, request=request, model=model, reserve=reserve)
    accounts.ledger.add(made.entries, made.logs)
    return made.value


async def once[T](
    key: str,
    call: Callable[[], Awaitable[T]],
    *,
    returns: object = None,
    request: object = None,
    model: str | None = None,
    reserve: Reserve | None = None,
) -> T:
    """As `call_llm`, and never paid twice: the value is stored, together with its usage, before this returns.

    An attempt that comes to the same key later, after a failure or a crash, gets the stored value, and calls nothing.

        draft = await once("draft", lambda: client.chat.completions.create(**request), request=request, returns=ChatCompletion)

    Two calls with one key at once in an attempt are one call. What a step stored goes with its run, and when the run is retried
    because something before the step failed.

    Args:
        key: 1 to 200 printable characters, the step's own. What it stands for is yours to say: another prompt, another key.
        call: Makes the call.
        returns: Type of the value, such as `ChatCompletion`; else it is the call's return annotation, else plain JSON. The
            value is always made anew from the stored JSON, the first time as well; NUL characters and lone surrogates in it,
            which PostgreSQL refuses, are U+FFFD then.
        request: As for `call_llm`.
        model: As for `call_llm`.
        reserve: As for `call_llm`.

    Raises:
        InvalidName: The key is none.
        InvalidOption: As for `call_llm`; or `returns` is no type.
        InvalidResult: JSON cannot hold the value; then nothing is stored. Or it is no plain JSON and nothing says what type it
            is; then it is stored, and the next attempt with a `returns` gets it.
        ResultMismatch: What is stored is not of the type.
        ResultTooLarge: The value is over the limit of results. Nothing is stored.
        ResultError: Another attempt holds the job by now. Nothing is stored.
        BudgetExhausted: As for `call_llm`.
        UnpricedModel: As for `call_llm`.
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.once()")
    call_key(key)
    _check(call, model, reserve)
    if isinstance(returns, str):
        raise InvalidOption(f"returns is the text {returns!r:.100}; pass the type itself")
    annotation = _returned_by(call) if returns is None else returns
    value = await _in_one_flight(
        accounts,
        key,
        lambda: _stored_or_made(accounts, key, call, request=request, model=model, reserve=reserve),
    )
    outer = _under_way.get()
    if outer is not None and outer.accounts is accounts:
        # It is recorded, by whoever made it: here, in an earlier attempt, or in another task that was faster.
        outer.is_recorded = True
    if is_unknown(annotation):
        if value.foreign is not None:
            raise InvalidResult(
                f"the value of call {key!r} of step {accounts.name!r} is of type {value.foreign}, which does not come back "
                f"from JSON by itself; it is stored, and nothing is paid twice: pass its type, once({key!r}, ..., "
                f"returns={value.foreign}), and the next attempt gets it"
            )
        return cast("T", _codec.decode(value.text))
    decoded = _codec.decode(value.text)
    if _is_answer(annotation) and isinstance(decoded, dict):
        return cast("T", cast("Any", annotation).construct(**decoded))
    where = f"the value of call {key!r} of step {accounts.name!r}"
    return cast("T", _codec.restore(decoded, annotation, where=where))


def _is_answer(kind: Any) -> bool:
    """Whether a type is a model of an SDK's such as OpenAI's or Anthropic's, which make their answers without validation.

    What a provider sent may not fit its own SDK's types, and a field that it did not send is not one that it sent as null:
    passed on in the next request, that can be refused. So they are stored as they were sent, and made as the SDK makes them.
    """
    made_by = getattr(getattr(kind, "construct", None), "__module__", "")
    return isinstance(kind, type) and hasattr(kind, "to_dict") and made_by.endswith("._models")


@dataclass(frozen=True, slots=True)
class _Value:
    """A stored value: its JSON text, and what type it was made as, if that is no plain JSON."""

    text: str
    foreign: str | None = None


@dataclass(slots=True, eq=False)
class _Call:
    """A call that is under way, and what is recorded while it is."""

    accounts: Accounts
    key: str | None
    reservation: UUID | None
    outer: _Call | None
    """The call that this one is a part of."""
    asked_for: str | None
    entries: list[Entry] = field(default_factory=list)
    is_recorded: bool = False
    """Whether anything was, be it by a stored call within this one, which has written it already."""
    is_lost: bool = False
    """Whether it may be paid for, or a call within this one, and nobody knows what it used: it failed without an answer."""
    is_open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, entries: Sequence[Entry]) -> bool:
        """Keep them for the end of the call; False when it has ended."""
        with self.lock:
            if not self.is_open:
                return False
            self.is_recorded = True
            for entry in entries:
                entry.key, entry.asked_for = self.key, self.asked_for
            self.entries.extend(entries)
        if self.reservation is None:
            # Nothing is to be settled with them, so they need not wait for the call, which may be long.
            self.accounts.ledger.add(entries)
        return True

    def close(self) -> list[Entry]:
        """What was recorded. Tasks that outlive the call record for themselves."""
        with self.lock:
            self.is_open = False
            return self.entries


_under_way: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("baton_call", default=None)


@dataclass(frozen=True, slots=True)
class _Made[T]:
    """A call's value, and what is to be written of it."""

    value: T
    entries: Sequence[Entry]
    logs: Sequence[Log]


async def _make[T](
    accounts: Accounts,
    call: Callable[[], Awaitable[T]],
    *,
    request: object,
    model: str | None,
    reserve: Reserve | None,
    key: str | None = None,
) -> _Made[T]:
    asked_for = model if model is not None else _model_of(request)
    outer = _under_way.get()
    if outer is not None and (outer.accounts is not accounts or not outer.is_open):
        outer = None
    # A call within a call is part of what was reserved for that.
    reservation = (
        await _there(accounts, accounts.reserve(request=request, model=asked_for, reserve=reserve))
        if outer is None
        else None
    )
    sent = None if request is None else accounts.snapshot(request)
    under_way = _Call(accounts, key, reservation, outer, asked_for)
    token = _under_way.set(under_way)
    began = time.monotonic()
    try:
        value = await _awaited(call)
        _check_whole(value)
    except BaseException as error:
        _under_way.reset(token)
        entries = under_way.close()
        if not under_way.is_recorded and not _reserving.is_free(error):
            under_way.is_lost = True
        entries = [*entries, *_lost(under_way)]
        call_id = entries[0].id if entries else uuid7()
        logs = accounts.capture(call_id, key=key, model=asked_for, request=sent, error=error)
        if entries:
            accounts.settle(entries, reservation)
            _pass_on(outer, entries)
        accounts.ledger.add(entries, logs)
        if not entries:
            await _there(accounts, accounts.release(reservation))
        raise
    latency = time.monotonic() - began
    _under_way.reset(token)
    entries = under_way.close()
    if not under_way.is_recorded:
        entries = _read_value(accounts, value, latency=latency, asked_for=asked_for)
        for entry in entries:
            entry.key, entry.asked_for = key, asked_for
    entries = [*entries, *_lost(under_way)]
    if entries:
        accounts.settle(entries, reservation)
    else:
        await _there(accounts, accounts.release(reservation))
    _pass_on(outer, entries)
    call_id = entries[0].id if entries else uuid7()
    logs = accounts.capture(
        call_id, key=key, model=asked_for, request=sent, response=accounts.snapshot(value)
    )
    return _Made(value, entries, logs)


def _lost(call: _Call) -> list[Entry]:
    """What a call used that failed without an answer: unknown. Of one within another, it is told with that."""
    if not call.is_lost:
        return []
    if call.outer is not None:
        call.outer.is_lost = True
        return []
    usage = Usage(model=call.asked_for)
    # No pricing can know, and one that takes nothing for zero would say that it was free.
    return [Entry(call.accounts, usage, key=call.key, asked_for=call.asked_for, is_priced=True)]


def _pass_on(outer: _Call | None, entries: Sequence[Entry]) -> None:
    """What a call within a call used counts for that: it has no usage of its own to be read then."""
    if outer is not None and entries:
        outer.is_recorded = True


def _check(call: object, model: object, reserve: object) -> None:
    """Say what cannot work before anything is set aside for it, and whether the run has a budget or not."""
    if not callable(call):
        if inspect.iscoroutine(call):
            call.close()
        raise InvalidOption(
            f"the call is of type {type(call).__name__}: pass a function that makes it, such as "
            "`lambda: client.chat.completions.create(...)`"
        )
    if model is not None and not isinstance(model, str):
        raise InvalidOption(f"model is {model!r:.100}; pass its name")
    if reserve is not None and not isinstance(reserve, Reserve):
        raise InvalidOption(
            f"reserve is {reserve!r:.100}; pass Reserve(usd=0.50), Reserve(tokens=2_000), or both"
        )


async def _awaited[T](call: Callable[[], Awaitable[T]]) -> T:
    made = call()
    if not inspect.isawaitable(made):
        raise InvalidOption(
            f"the call returned {type(made).__name__}, and nothing to await: pass a function that makes the call, such as "
            "`lambda: client.chat.completions.create(...)` of an async client"
        )
    return await made


def _check_whole(value: object) -> None:
    """Refuse a stream: its call has only begun, and what it used is told at its end."""
    if isinstance(value, (AsyncIterable, Iterator)):
        raise InvalidOption(
            f"the call returned a stream, {type(value).__name__}: read it to its end within the call, and return what it said"
        )


def _read_value(accounts: Accounts, value: object, *, latency: float, asked_for: str | None) -> list[Entry]:
    try:
        return read_entries(accounts, value, latency=latency, asked_for=asked_for)[1]
    except InvalidUsage as error:
        logger.warning(
            "what a call of %s in step %r used is not known: %s. Call baton.record_usage() in it with the model's answer",
            asked_for or "a model",
            accounts.name,
            error,
        )
    return [Entry(accounts, Usage(model=asked_for, latency=latency))]


async def _stored_or_made(
    accounts: Accounts,
    key: str,
    call: Callable[[], Awaitable[object]],
    *,
    request: object,
    model: str | None,
    reserve: Reserve | None,
) -> _Value:
    ledger = accounts.ledger
    stored = await _there(accounts, ledger.read_stored(accounts, key))
    if stored is not None:
        return _Value(stored)
    made = await _make(accounts, call, request=request, model=model, reserve=reserve, key=key)
    # What is captured is redacted first, which takes its time. The value must not wait for that.
    ledger.add([], made.logs)
    try:
        text = _codec.encode(
            cast("Any", made.value).to_dict(mode="json") if _is_answer(type(made.value)) else made.value,
            root=f"value of call {key!r}",
            limit=_step.attempt_here().result_limit,
            # What a model wrote is paid for, whatever characters are in it.
            mend=True,
        )
    except BaseException:
        ledger.add(made.entries)
        raise
    if not await _there(accounts, ledger.store(accounts, key, text, made.entries)):
        raise ResultError(
            f"step {accounts.name!r} did not store the value of call {key!r}: this attempt no longer holds its job. What the "
            "call used is recorded"
        )
    return _Value(text, None if _is_plain(made.value) else describe(type(made.value)))


async def _in_one_flight(
    accounts: Accounts, key: str, begin: Callable[[], Coroutine[Any, Any, _Value]]
) -> _Value:
    """What `begin` comes to; of several at once, one begins, and the others get what it got."""
    enclosing = _under_way.get()
    while enclosing is not None:
        if enclosing.key == key and enclosing.accounts is accounts and enclosing.is_open:
            raise InvalidOption(
                f"call {key!r} of step {accounts.name!r} is made within itself, and would wait for its own value; give one of "
                "the two another key"
            )
        enclosing = enclosing.outer
    while True:
        with accounts.lock:
            flight = accounts.flights.get(key)
            if flight is None:
                mine: Future[_Value] = Future()
                accounts.flights[key] = mine
                break
        try:
            return cast("_Value", await asyncio.shield(asyncio.wrap_future(flight)))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flight.cancelled() or (task is not None and task.cancelling()):
                raise
            # Whoever began it was cancelled, and not we.
    try:
        value = await begin()
    except BaseException as error:
        with accounts.lock:
            del accounts.flights[key]
        if isinstance(error, asyncio.CancelledError):
            mine.cancel()
        else:
            mine.set_exception(error)
        raise
    with accounts.lock:
        del accounts.flights[key]
    mine.set_result(value)
    return value


async def _there[T](accounts: Accounts, work: Coroutine[Any, Any, T]) -> T:
    """Do what needs the database in the loop that has it: the thread of a plain step may run one of its own."""
    if asyncio.get_running_loop() is accounts.loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, accounts.loop))


def _model_of(request: object) -> str | None:
    named = request.get("model") if isinstance(request, Mapping) else getattr(request, "model", None)
    return named if isinstance(named, str) else None


def _returned_by(call: Callable[..., object]) -> object:
    """What awaiting a call gives, by its annotation; Any where that says nothing."""
    function: object = call
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        function = inspect.getattr_static(type(function), "__call__", None)
    if not inspect.isfunction(function):
        return Any
    annotation = resolved_hints(function).get("return", Any)
    if inspect.iscoroutinefunction(function):
        return annotation
    inside = typing.get_args(annotation)
    if typing.get_origin(annotation) in (Awaitable, Coroutine) and inside:
        return inside[-1]
    return Any


def _is_plain(value: object) -> bool:
    """Whether a value that JSON can hold comes back from it as it is."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and _is_plain(member) for key, member in value.items())
    return type(value) in _PLAIN
