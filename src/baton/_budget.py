"""What calls of models may use: `Budget` and `Reserve`, what a call may come to by its request, and the words for a budget that
is exhausted. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from baton import _dollars
from baton._names import budget_key
from baton.errors import InvalidOption

type OnExhausted = Literal["stop", "pause"]
type Unpriced = Literal["strict", "warn"]
type Dollars = Decimal | str | int | float

# As much as any budget needs, and sums of it still fit the database's type.
_MOST = 10**15
DEFAULT_OUTPUT_TOKENS = 4_096
"""What a call is taken to answer at most where its request does not say."""
_BYTES_PER_TOKEN = 3
_MEDIA_TOKENS = 2_000
_MEDIA = re.compile(r"data:[\w.+-]+/|[A-Za-z0-9+/_=-]{2000}")
_MEDIA_END = re.compile(r"[A-Za-z0-9+/_=%-]+")
_MOST_PARTS = 100_000
_OUTPUT_KEYS = (
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "maxOutputTokens",
    "maxTokens",
    "max_tokens_to_sample",
)
_SETTINGS = ("config", "generation_config", "generationConfig", "inferenceConfig", "model_settings")
_CHOICES = ("n", "candidate_count", "candidateCount")
_MOST_CHOICES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Budget:
    """What calls of models may use, in one run or in all that share a key. At least one limit; each of them holds.

    A call asks for leave before it is made: what it may come to is set aside, and settled with what it used.

    Attributes:
        usd: Dollars: a Decimal, a string, or a number, which counts as it is written.
        tokens: Input and output tokens together.
        calls: Calls.
        key: Shared by all runs that name it, in all processes, for good: a tenant, a day. What was declared last are its
            limits. None for the run's own.
        on_exhausted: `stop` raises BudgetExhausted in the step, which ends it as cancelled unless it is caught. `pause` pauses
            the run until something is added.
        unpriced: What a limit in dollars does with a call whose price is not known: `strict` refuses it, `warn` lets it
            pass, logs it, and counts it as unpriced.

    Raises:
        InvalidOption: No limit, or one that is no such number.
        InvalidName: `key` is outside the grammar.
    """

    usd: Decimal | None = None
    tokens: int | None = None
    calls: int | None = None
    key: str | None = None
    on_exhausted: OnExhausted = "stop"
    unpriced: Unpriced = "strict"

    # Not the generated one: dollars may be given in several types, and are one Decimal.
    def __init__(
        self,
        *,
        usd: Dollars | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        key: str | None = None,
        on_exhausted: OnExhausted = "stop",
        unpriced: Unpriced = "strict",
    ) -> None:
        if usd is None and tokens is None and calls is None:
            raise InvalidOption("Budget() has no limit; give it at least one of usd=, tokens= and calls=")
        if on_exhausted not in ("stop", "pause"):
            raise InvalidOption(f"Budget(on_exhausted={on_exhausted!r}) cannot work; use 'stop' or 'pause'")
        if unpriced not in ("strict", "warn"):
            raise InvalidOption(f"Budget(unpriced={unpriced!r}) cannot work; use 'strict' or 'warn'")
        put = object.__setattr__
        put(self, "usd", None if usd is None else dollars("Budget(usd=)", usd))
        put(self, "tokens", None if tokens is None else count("Budget(tokens=)", tokens))
        put(self, "calls", None if calls is None else count("Budget(calls=)", calls))
        put(self, "key", None if key is None else budget_key(key))
        put(self, "on_exhausted", on_exhausted)
        put(self, "unpriced", unpriced)


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Reserve:
    """What one call may come to, set aside of its run's budgets while it is made.

    Attributes:
        usd: Dollars; None leaves it to the request and the pricing.
        tokens: Input and output tokens together; None leaves it to the request.

    Raises:
        InvalidOption: Neither, or what is no such number.
    """

    usd: Decimal | None = None
    tokens: int | None = None

    def __init__(self, *, usd: Dollars | None = None, tokens: int | None = None) -> None:
        if usd is None and tokens is None:
            raise InvalidOption("Reserve() sets nothing aside; give it usd=, tokens= or both")
        object.__setattr__(self, "usd", None if usd is None else dollars("Reserve(usd=)", usd))
        object.__setattr__(self, "tokens", None if tokens is None else count("Reserve(tokens=)", tokens))


def dollars(option: str, value: object) -> Decimal:
    """An exact amount from what people write; a float counts as it is written.

    Raises:
        InvalidOption: It is no number of dollars from 0 up.
    """
    return _dollars.exact(option, value, floats=True)


def count(option: str, value: object) -> int:
    """A number of tokens or calls.

    Raises:
        InvalidOption: It is no whole number from 0 up, or too large.
    """
    if type(value) is not int or not 0 <= value <= _MOST:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "far too large"
        raise InvalidOption(f"{option} is {shown}; it must be a whole number from 0 to {_MOST:,}")
    return value


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call may come to, by its request."""

    model: str | None
    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        return min(self.input_tokens + self.output_tokens, _MOST)


def estimate(request: Any, model: str | None) -> Estimate:
    """What a call may come to: a token for every three bytes of its text, and as many as it may answer at most.

    An image or a file that is sent along counts as 2,000 tokens. A request that does not say how long the answer may be counts
    as 4,096 tokens of output.
    """
    plain = plain_request(request)
    asked = plain if isinstance(plain, Mapping) else {}
    named = asked.get("model")
    output = _most(asked, _OUTPUT_KEYS)
    choices = min(_most(asked, _CHOICES) or 1, _MOST_CHOICES)
    return Estimate(
        model=model or (named if isinstance(named, str) else None),
        input_tokens=_input_tokens(plain),
        output_tokens=min((DEFAULT_OUTPUT_TOKENS if output is None else output) * choices, _MOST),
    )


def plain_request(request: Any) -> Any:
    """A request as plain data: what has `model_dump` is asked for it."""
    dump = getattr(request, "model_dump", None)
    if callable(dump) and not isinstance(request, type):
        try:
            return dump(mode="json")
        except Exception:
            return None
    return request


def _most(asked: Mapping[Any, Any], keys: tuple[str, ...]) -> int | None:
    places = [asked, *(asked[name] for name in _SETTINGS if isinstance(asked.get(name), Mapping))]
    for place in places:
        for key in keys:
            value = place.get(key)
            if type(value) is int and value >= 0:
                return value
    return None


def _input_tokens(plain: Any) -> int:
    tokens = size = 0
    left, seen = [plain], 0
    while left and seen < _MOST_PARTS:
        seen += 1
        part = left.pop()
        if isinstance(part, str):
            if _MEDIA.match(part) and _MEDIA_END.fullmatch(part[-200:].split(",")[-1]):
                tokens += _MEDIA_TOKENS
            else:
                size += len(part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, bytes | bytearray):
            tokens += _MEDIA_TOKENS
        elif isinstance(part, Mapping):
            left += part.values()
            size += sum(len(key) for key in part if isinstance(key, str))
        elif isinstance(part, list | tuple):
            left += part
        elif callable(getattr(part, "model_dump", None)):
            left.append(plain_request(part))
        elif part is not None:
            size += 4
    return min(tokens + math.ceil(size / _BYTES_PER_TOKEN), _MOST)


def spent_text(
    *,
    usd: tuple[Decimal | None, Decimal, Decimal],
    tokens: tuple[int | None, int, int],
    calls: tuple[int | None, int, int],
    unpriced: int,
) -> str:
    """What is spent of each limit. Of each kind: its limit with what was added, what is spent, what is reserved."""
    parts = []
    total, spent, reserved = usd
    if total is not None:
        least = "at least " if unpriced else ""
        held = f", {_dollars.text(reserved)} reserved" if reserved else ""
        parts.append(f"{least}{_dollars.text(spent)} of {_dollars.text(total)} spent{held}")
    for kind, (most, used, kept) in (("tokens", tokens), ("calls", calls)):
        if most is not None:
            held = f", {kept:,} reserved" if kept else ""
            parts.append(f"{used:,} of {most:,} {kind} spent{held}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Shortage:
    """Which limit of which budget stands in the way of a call, and by how much.

    Attributes:
        budget_id: Row of the budget.
        key: Of a shared one, None for the run's own.
        kind: `usd`, `tokens` or `calls`.
        on_exhausted: What the budget says to do.
        limit: What was added included.
        spent: Settled.
        reserved: Set aside for calls that are under way.
        asked: What the call would have had set aside.
    """

    budget_id: int
    key: str | None
    kind: str
    on_exhausted: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    asked: Decimal

    @property
    def name(self) -> str:
        return named(self.key)

    @property
    def text(self) -> str:
        """In words, with all figures."""
        figures = f"{self._shown(self.spent)} of {self._shown(self.limit)} spent"
        if self.reserved:
            figures += f", {self._shown(self.reserved)} reserved by calls under way"
        if self.asked:
            figures += f", and this call may come to {self._shown(self.asked)}"
        return f"{self.name} is exhausted: {figures}"

    def _shown(self, amount: Decimal) -> str:
        if self.kind == "usd":
            return _dollars.text(amount)
        return f"{amount:,f} {self.kind if amount != 1 else self.kind[:-1]}"


def shortage(said: Mapping[str, Any]) -> Shortage:
    """What `baton_short_of` said."""
    return Shortage(
        budget_id=int(said["budget"]),
        key=said["key"],
        kind=said["kind"],
        on_exhausted=said["on_exhausted"],
        limit=Decimal(said["limit"]),
        spent=Decimal(said["spent"]),
        reserved=Decimal(said["reserved"]),
        asked=Decimal(said["asked"]),
    )


def named(key: str | None) -> str:
    """A budget in words."""
    return "the run's budget" if key is None else f"budget {key!r}"
