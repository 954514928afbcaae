"""What calls of models used, on its way to the database: kept here until one writer for all steps of a process has written it.

Like `_reports`, with one difference: what a call used is a fact, whatever becomes of its attempt. So nothing is dropped because
an attempt is late or failed; it is kept while the database is away, and written once however often it is sent, by an id that is
made here.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import orjson
import psycopg
from oban.job import Job

from baton import _reserving
from baton._budget import Reserve
from baton._capture import Captured, Hook, Redactor, Shown
from baton._codec import clean_text
from baton._deadline import end, pause_after, within
from baton._names import uuid7
from baton._redact import Copy, JsonValue, error_text, weighed
from baton._usage import Usage
from baton.errors import ResultError
from baton.pricing import Price, Pricing, given, price_of

logger = logging.getLogger("baton.step")

# Between the beginnings of two statements.
_INTERVAL = 0.1
# For one statement, and for the pause after one that failed.
_CALL_SECONDS = 10.0
_LONGEST_PAUSE = 2.0
# How long an outcome waits for what its attempt used: a failover's time, in which the outcome could not be written either.
_PATIENCE = 30.0
_STOP_SECONDS = 1.0
# Of one statement.
_MOST_ENTRIES = 500
_MOST_BYTES = 4_000_000
# For the prices of one statement's calls. A pricing of the user's that takes longer holds up no usage, and no stored call.
_PRICING_SECONDS = 10.0
# Kept while the database is away. Captured calls, which are large and no facts, are the first to go.
_MOST_KEPT = 100_000
_MOST_KEPT_BYTES = 64_000_000
# Of the results that one attempt reads and that wait for a captured call.
_MOST_SEEN = 1_000_000
# SQLSTATE classes of what passes by itself: the server is away, full or a standby, or somebody was faster.
_PASSING = ("08", "25", "40", "53", "55", "57", "58")
# Those that say "not these values". What is neither, such as a right that is missing, passes when somebody has seen to it.
_REFUSED = ("21", "22", "23", "54", "P0")


class Books(_reserving.Treasury, Protocol):
    """What the ledger needs of the engine."""

    async def record(self, usage: str, logs: str) -> None: ...

    async def store_call(
        self, job_id: int, attempted_at: datetime, key: str, value: str, usage: str
    ) -> bool: ...

    async def read_stored(self, step_id: int, key: str) -> str | None: ...


@dataclass(slots=True, eq=False)
class Entry:
    """What one call used.

    Attributes:
        cost: In USD, where the step said so itself.
        key: Of the stored call, of those made with `once`.
        reservation: What was reserved for it with the run's budgets.
        asked_for: The model of the request, where that is known beside the answer's.
        price: What it cost, once `is_priced`; None is unknown.
        age: Since when, for the database to count back from its own clock.
    """

    accounts: Accounts
    usage: Usage
    cost: Decimal | None = None
    key: str | None = None
    reservation: UUID | None = None
    asked_for: str | None = None
    id: UUID = field(default_factory=uuid7)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    price: Price | None = None
    is_priced: bool = False
    is_told: bool = False

    def row(self) -> dict[str, object]:
        """As `baton_record` takes it; see there."""
        usage, accounts, price = self.usage, self.accounts, self.price
        return {
            "id": self.id,
            "workflow_id": accounts.workflow_id,
            "workflow_label": accounts.label,
            "step_id": accounts.step_id,
            "step_name": accounts.name,
            "attempt": accounts.job.attempt,
            "call_key": self.key,
            "provider": _text(usage.provider),
            "model": _text(usage.model),
            "service_tier": _text(usage.service_tier),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "units": {_text(name): count for name, count in usage.units.items()} or None,
            "latency_ms": None if usage.latency is None else max(0.0, usage.latency * 1_000),
            "cost_usd": None if price is None else str(price.cost),
            "price_source": None if price is None else price.source,
            "price_version": None if price is None else price.version,
            "age": max(0.0, time.monotonic() - self.began),
            "budgeted": accounts.budgeted,
            "reservation": self.reservation,
        }


def _text(value: str | None) -> str | None:
    return None if value is None else clean_text(value, 200)


@dataclass(slots=True, eq=False)
class Log:
    """One captured call.

    Attributes:
        id: Of the call's row in the statistics, where it has one.
        parts: Copies of `request`, `response` and `context`, as far as there are any.
        shown: What is stored of all that, once it is redacted.
    """

    accounts: Accounts
    id: UUID
    key: str | None = None
    model: str | None = None
    parts: dict[str, Copy] = field(default_factory=dict)
    error: str | None = None
    shown: Shown | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """About how many bytes it takes, redacted or not."""
        return sum(part.weight for part in self.parts.values()) + len(self.error or "")

    def captured(self) -> Captured:
        """As it is redacted."""
        parts = {name: part.value for name, part in self.parts.items()}
        return Captured(_what(self), parts, self.model, self.error)

    def row(self) -> dict[str, object]:
        """As `baton_record` takes it; see there."""
        accounts, shown = self.accounts, self.shown
        assert shown is not None
        return {
            "call_id": self.id,
            "workflow_id": accounts.workflow_id,
            "step_id": accounts.step_id,
            "step_name": accounts.name,
            "attempt": accounts.job.attempt,
            "call_key": self.key,
            "model": _text(shown.model),
            "request": _json(shown.parts.get("request")),
            "response": _json(shown.parts.get("response")),
            "error": shown.error,
            "context": _json(shown.parts.get("context")),
            "age": max(0.0, time.monotonic() - self.began),
        }


def _json(text: str | None) -> object:
    return None if text is None else orjson.Fragment(text)


@dataclass(slots=True, eq=False)
class Accounts:
    """What one attempt uses of models, and what that draws on.

    Attributes:
        loop: The event loop that runs the step. Its threads may have others.
        debug: Its calls are captured.
        budgeted: Its run has a budget.
        flights: Calls with a key that are under way in this attempt.
        seen: Steps whose results it has read, and `unlogged` what no captured call has taken along of these.
        open_logs: Requests that it has logged by itself and that have no response yet.
        unwritten: How much is not known to the database.
        gave_up: Its outcome has waited long enough for that.
    """

    ledger: Ledger
    loop: asyncio.AbstractEventLoop
    job: Job
    step_id: int
    workflow_id: str
    label: str
    name: str
    debug: bool
    budgeted: bool
    flights: dict[str, Future[Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    seen_weight: int = 0
    unlogged: dict[str, JsonValue] = field(default_factory=dict)
    open_logs: list[Log] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    unwritten: int = 0
    all_written: asyncio.Event | None = None
    gave_up: bool = False

    def record(self, usage: Usage, *, cost: Decimal | None = None) -> Entry:
        """Write what a call used, soon. From any thread."""
        entry = Entry(self, usage, cost)
        self.ledger.add([entry])
        return entry

    async def check(self) -> None:
        """Ask, before an LLM step begins, whether a budget of its run is exhausted; see `_reserving.may_start`."""
        if self.budgeted:
            await _reserving.may_start(self._claimant())

    async def reserve(self, *, request: object, model: str | None, reserve: Reserve | None) -> UUID | None:
        """Ask the run's budgets for leave to make a call; the id of what is reserved for it, None where nothing is."""
        if not self.budgeted:
            return None
        return await _reserving.reserve(
            self._claimant(), self.ledger.cost, request=request, model=model, reserve=reserve
        )

    def _claimant(self) -> _reserving.Claimant:
        assert self.job.id is not None
        assert self.job.attempted_at is not None
        return _reserving.Claimant(
            self.ledger.books, self.name, self.workflow_id, self.job.id, self.job.attempted_at
        )

    def settle(self, entries: Sequence[Entry], reservation: UUID | None) -> None:
        """What was reserved comes to what these used; with their rows, in one commit."""
        for entry in entries:
            entry.reservation = reservation

    async def release(self, reservation: UUID | None) -> None:
        """A call used nothing of what was reserved for it: free that."""
        if reservation is not None:
            await _reserving.end(self.ledger.books, reservation)

    def snapshot(self, value: object) -> Copy | None:
        """A copy of a value as it is now; None where nothing is captured."""
        return weighed(value) if self.debug else None

    def saw(self, results: Mapping[str, object]) -> None:
        """Results of other steps that the attempt has read, by step name; each counts once."""
        if self.debug:
            with self.lock:
                fresh = {name: value for name, value in results.items() if name not in self.seen}
                self.seen.update(fresh)
                if fresh and self.seen_weight < _MOST_SEEN:
                    copy = weighed(fresh)
                    self.seen_weight += copy.weight
                    assert isinstance(copy.value, dict)
                    self.unlogged.update(copy.value)

    def closed_logs(self) -> list[Log]:
        """Requests that will have no response any more."""
        with self.lock:
            logs, self.open_logs = self.open_logs, []
        return logs

    def capture(
        self,
        call_id: UUID,
        *,
        key: str | None = None,
        model: str | None = None,
        request: Copy | None = None,
        response: Copy | None = None,
        error: BaseException | None = None,
    ) -> list[Log]:
        """What is written of a captured call beside what it used; nothing where nothing is captured.

        With it go the results of other steps that no call before has taken along.
        """
        if not self.debug:
            return []
        parts = {
            name: part for name, part in (("request", request), ("response", response)) if part is not None
        }
        with self.lock:
            context, self.unlogged = self.unlogged, {}
        if context:
            parts["context"] = weighed(context)
        told = None if error is None else error_text(error)
        return [Log(self, call_id, key, model, parts, told)]


class Ledger:
    """What the steps of this process used, and the task that writes it, which lives while there is something.

    Args:
        books: Writes it.
        pricing: Tells what a call costs. It may take its time: it is asked in a thread.
        told: Called with each call once it is written, in the context in which it was recorded.
        debug: Capture calls of all steps, not only of those whose workflow says so.
        redact: The user's hook for what is captured.
    """

    def __init__(
        self,
        books: Books,
        *,
        pricing: Pricing,
        told: Callable[[Entry], object],
        debug: bool = False,
        redact: Hook | None = None,
    ) -> None:
        self.pricing = pricing
        self._debug = debug
        self._redactor = Redactor(redact)
        self.books = books
        self._told = told
        # Plain steps record from their threads. Held for moments only.
        self._lock = threading.Lock()
        self._entries: dict[UUID, Entry] = {}
        self._logs: dict[UUID, Log] = {}
        self._log_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._stores: set[asyncio.Task[bool]] = set()
        self._hurried = asyncio.Event()
        self._failures = 0
        # Outcomes do not: nobody knows how long that takes.
        self._waits_for_somebody = False
        self._stopped = False

    def begin(
        self, job: Job, *, step_id: int, workflow_id: str, label: str, name: str, debug: bool, budgeted: bool
    ) -> Accounts:
        """The accounts of an attempt, in the event loop that runs it."""
        loop = asyncio.get_running_loop()
        return Accounts(self, loop, job, step_id, workflow_id, label, name, debug or self._debug, budgeted)

    def add(self, entries: Sequence[Entry], logs: Sequence[Log] = ()) -> None:
        """Take what is to be written. From any thread, at any time."""
        if not entries and not logs:
            return
        loop = (entries[0] if entries else logs[0]).accounts.loop
        with self._lock:
            if self._stopped or len(self._entries) >= _MOST_KEPT:
                why = (
                    "its Baton has stopped" if self._stopped else f"{_MOST_KEPT:,} more wait for the database"
                )
                _lose(entries, why)
                return
            for entry in entries:
                if entry.id not in self._entries:
                    self._entries[entry.id] = entry
                    entry.accounts.unwritten += 1
            for log in logs:
                if self._log_bytes + log.size > _MOST_KEPT_BYTES:
                    logger.warning(
                        "a captured call of %s is lost: too many wait for the database", _what(log)
                    )
                elif log.id not in self._logs:
                    self._logs[log.id] = log
                    self._log_bytes += log.size
                    log.accounts.unwritten += 1
        try:
            loop.call_soon_threadsafe(self._ensure_writer)
        except RuntimeError:
            # The loop has ended, and this thread of its step has not.
            with self._lock:
                for entry in entries:
                    self._entries.pop(entry.id, None)
            _lose(entries, "its event loop has ended")

    async def read_stored(self, accounts: Accounts, key: str) -> str | None:
        """JSON text of what a step stored under a key, in this attempt or an earlier one; None where it stored nothing."""
        return await self.books.read_stored(accounts.step_id, key)

    async def store(self, accounts: Accounts, key: str, value: str, entries: Sequence[Entry]) -> bool:
        """Keep a call's value and what it used in one commit, and wait for that, also while the database is away. What was used
        is written whatever happens: after a cancel this goes on by itself.

        Returns:
            Whether the attempt holds its job; if not, only what was used is written.

        Raises:
            ResultError: The database refuses the value.
        """
        task = asyncio.create_task(self._store(accounts, key, value, entries), name="baton-store-call")
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
        return await asyncio.shield(task)

    async def _store(self, accounts: Accounts, key: str, value: str, entries: Sequence[Entry]) -> bool:
        with self._lock:
            accounts.unwritten += 1
        failures = 0
        try:
            await self._price(entries)
            usage = _rows(entries)
            assert accounts.job.id is not None
            assert accounts.job.attempted_at is not None
            while True:
                try:
                    held = await within(
                        _CALL_SECONDS,
                        _as_coroutine(
                            self.books.store_call(
                                accounts.job.id, accounts.job.attempted_at, key, value, usage
                            )
                        ),
                    )
                except (psycopg.Error, OSError, TimeoutError) as error:
                    if isinstance(error, psycopg.Error) and not _passes(error):
                        raise ResultError(
                            f"the database refuses the value of call {key!r} of step {accounts.name!r}: {_one_line(error)}"
                        ) from error
                    failures += 1
                    if failures == 1:
                        logger.warning(
                            "call %r of %s cannot be stored (%s); it is kept, and tried again",
                            key,
                            _what_of(accounts),
                            _one_line(error),
                        )
                    await asyncio.sleep(pause_after(failures, first=2 * _INTERVAL, longest=_LONGEST_PAUSE))
                else:
                    self._tell(entries)
                    return held
        except BaseException:
            self.add(entries)
            raise
        finally:
            self._less(accounts)

    async def finish(self, accounts: Accounts) -> None:
        """Wait until what an attempt used is written. Not for ever: what is not goes on being tried after that."""
        self.add([], accounts.closed_logs())
        if not accounts.unwritten or accounts.gave_up or self._waits_for_somebody:
            return
        accounts.all_written = asyncio.Event()
        self._ensure_writer()
        self._hurried.set()
        try:
            async with asyncio.timeout(_PATIENCE):
                while accounts.unwritten and not self._waits_for_somebody:
                    accounts.all_written.clear()
                    await accounts.all_written.wait()
        except TimeoutError:
            accounts.gave_up = True
            logger.warning(
                "what %s used could not be written for %g seconds; its outcome does not wait for it any longer, and it is kept",
                _what_of(accounts),
                _PATIENCE,
            )
        finally:
            accounts.all_written = None

    async def stop(self) -> None:
        """End the writer. What it has is written, if that is a matter of a moment."""
        if self._entries or self._logs:
            self._ensure_writer()
        writer = self._writer
        pending = {*self._stores, *([writer] if writer is not None else [])}
        if pending:
            self._hurried.set()
            await asyncio.wait(pending, timeout=_STOP_SECONDS)
            for task in pending:
                await end(task)
        with self._lock:
            self._stopped = True
            lost = list(self._entries.values())
            self._entries.clear()
            self._logs.clear()
        self._writer = None
        _lose(lost, "the database was away when its Baton stopped")

    def _ensure_writer(self) -> None:
        if not self._stopped and (self._writer is None or self._writer.done()):
            self._hurried = asyncio.Event()
            self._writer = asyncio.create_task(self._write(), name="baton-ledger")

    async def _write(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            entries, logs = self._take()
            if not entries and not logs:
                return
            next_at = clock() + _INTERVAL
            self._hurried.clear()
            try:
                if entries and any(log.shown is None for log in logs):
                    # The user's hook may take its time. What was used does not wait for that.
                    await self._deliver(entries, [])
                    entries = []
                await self._deliver(entries, logs)
                self._failures = 0
                self._waits_for_somebody = False
            except (psycopg.Error, OSError, TimeoutError) as error:
                self._failures += 1
                self._waits_for_somebody = isinstance(error, psycopg.Error) and not _passes(error)
                if self._failures == 1 or self._waits_for_somebody:
                    logger.log(
                        logging.ERROR if self._waits_for_somebody else logging.WARNING,
                        "what steps used of models cannot be written (%s); it is kept, and tried again",
                        _one_line(error),
                    )
                if self._waits_for_somebody:
                    self._let_go()
                await asyncio.sleep(pause_after(self._failures, first=2 * _INTERVAL, longest=_LONGEST_PAUSE))
            except Exception as error:
                logger.exception("what steps used of models cannot be written")
                _lose(entries, f"writing it failed: {_one_line(error)}")
                self._forget(entries, logs)
            try:
                async with asyncio.timeout_at(next_at):
                    await self._hurried.wait()
            except TimeoutError:
                pass

    def _take(self) -> tuple[list[Entry], list[Log]]:
        with self._lock:
            entries = [entry for entry, _ in zip(self._entries.values(), range(_MOST_ENTRIES), strict=False)]
            logs: list[Log] = []
            size = 0
            for log in self._logs.values():
                if logs and size + log.size > _MOST_BYTES:
                    break
                logs.append(log)
                size += log.size
        return entries, logs

    async def _deliver(self, entries: list[Entry], logs: list[Log]) -> None:
        try:
            await self._price(entries)
            await self._redact(logs)
            await within(_CALL_SECONDS, _as_coroutine(self.books.record(_rows(entries), _rows(logs))))
        except (OSError, TimeoutError):
            raise
        except Exception as error:
            if isinstance(error, psycopg.Error) and not _is_refused(error):
                raise
            if len(entries) + len(logs) > 1:
                # One that is refused must not take the others with it.
                for entry in entries:
                    await self._deliver([entry], [])
                for log in logs:
                    await self._deliver([], [log])
                return
            _lose(entries, f"it is refused: {_one_line(error)}")
            for log in logs:
                logger.error("a captured call of %s is refused: %s", _what(log), _one_line(error))
        else:
            self._tell(entries)
        self._forget(entries, logs)

    async def _price(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.cost is not None and not entry.is_priced:
                entry.price, entry.is_priced = given(entry.cost), True
        unpriced = [entry for entry in entries if not entry.is_priced]
        if unpriced:
            try:
                await within(_PRICING_SECONDS, asyncio.to_thread(self._ask_for_prices, unpriced))
            except TimeoutError:
                logger.error(
                    "the pricing did not answer in %g seconds; the cost of %d calls is unknown",
                    _PRICING_SECONDS,
                    len(unpriced),
                )
                for entry in unpriced:
                    entry.is_priced = True

    def cost(self, usage: Usage) -> Decimal | None:
        """What so much would cost now; None is unknown. It may take its time."""
        price = price_of(self.pricing, usage, at=datetime.now(UTC))
        return None if price is None else price.cost

    def _ask_for_prices(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            entry.price = price_of(self.pricing, entry.usage, at=entry.at)
            entry.is_priced = True

    async def _redact(self, logs: Sequence[Log]) -> None:
        hidden = [log for log in logs if log.shown is None]
        if hidden:
            found = await self._redactor.redact([log.captured() for log in hidden])
            for log, shown in zip(hidden, found, strict=True):
                log.shown = shown

    def _tell(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not entry.is_told:
                entry.is_told = True
                try:
                    entry.context.run(self._told, entry)
                except Exception:
                    logger.exception("telling of a call of %s failed; everything goes on", _what(entry))

    def _forget(self, entries: Sequence[Entry], logs: Sequence[Log]) -> None:
        with self._lock:
            for entry in entries:
                self._entries.pop(entry.id, None)
            for log in logs:
                if self._logs.pop(log.id, None) is not None:
                    self._log_bytes -= log.size
        for accounts in (*(entry.accounts for entry in entries), *(log.accounts for log in logs)):
            self._less(accounts)

    def _let_go(self) -> None:
        """Let no outcome wait any longer."""
        with self._lock:
            waiting = {entry.accounts for entry in self._entries.values()}
            waiting |= {log.accounts for log in self._logs.values()}
        for accounts in waiting:
            if accounts.all_written is not None:
                accounts.all_written.set()

    def _less(self, accounts: Accounts) -> None:
        with self._lock:
            accounts.unwritten -= 1
        if not accounts.unwritten and accounts.all_written is not None:
            accounts.all_written.set()


def _rows(things: Sequence[Entry] | Sequence[Log]) -> str:
    return orjson.dumps([one.row() for one in things]).decode()


async def _as_coroutine[T](work: Coroutine[Any, Any, T]) -> T:
    return await work


def _what_of(accounts: Accounts) -> str:
    return f"step {accounts.name!r} of {accounts.label!r}"


def _what(one: Entry | Log) -> str:
    return _what_of(one.accounts)


def _lose(entries: Sequence[Entry], why: str) -> None:
    for entry in entries:
        logger.error("what %s used is not written, as %s: %r", _what(entry), why, entry.usage)


def _one_line(error: BaseException) -> str:
    return clean_text(" ".join(str(error).split()), 300) or type(error).__name__


def _is_refused(error: psycopg.Error) -> bool:
    return not _passes(error) if error.sqlstate is None else error.sqlstate.startswith(_REFUSED)


def _passes(error: psycopg.Error) -> bool:
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate.startswith(_PASSING)
