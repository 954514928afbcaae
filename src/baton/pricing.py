"""What a call of a model costs: prices of genai-prices, prices of your own, or a `Pricing` that you write.

Costs are exact decimals in US dollars. A cost that is not known is None, never 0: a model without a price, a service tier
without one, a count that the provider did not tell.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from baton import _asked, _dollars
from baton._usage import Usage
from baton.errors import InvalidOption

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

logger = logging.getLogger("baton.pricing")

_MILLION = Decimal(1_000_000)
_LONGEST_TEXT = 200
# What no text of the database's can hold.


@dataclass(frozen=True, slots=True)
class Price:
    """What one call cost, and who says so.

    Attributes:
        cost: US dollars.
        source: Where the price is from, such as `genai-prices`; what is stored beside the cost.
        version: Which state of that source.

    Raises:
        InvalidOption: A cost that is no number of dollars from 0 up, or a float; a source without a name.
    """

    cost: Decimal
    source: str
    version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", _dollars.exact("cost", self.cost))
        for name, value in (("source", self.source), ("version", self.version)):
            if not isinstance(value, str) or len(value) > _LONGEST_TEXT or _asked.UNSTORABLE.search(value):
                raise InvalidOption(
                    f"{name} is {value!r:.300}; it must be text of at most {_LONGEST_TEXT} characters that can be stored"
                )
        if not self.source:
            raise InvalidOption("source is ''; name where the price is from")


@runtime_checkable
class Pricing(Protocol):
    """Says what calls cost; `Baton(pricing=)` takes any object with this method."""

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        """What a call cost; None where that is not known.

        Called in a thread, by several at once. What it raises is logged, and means that the cost is not known.

        Args:
            usage: What the call used.
            at: When it was made; prices change.
        """
        ...


def given(cost: Decimal | int | str | float) -> Price:
    """The cost of a call that the caller knows, such as one in the provider's answer. A float counts as it is written.

    Raises:
        InvalidOption: It is no number of dollars from 0 up.
    """
    return Price(_dollars.exact("cost", cost, floats=True), "given")


def price_of(pricing: Pricing, usage: Usage, *, at: datetime) -> Price | None:
    """What `pricing` says that a call cost; None too where it raises, or says what is no price: then that is logged."""
    try:
        price: object = pricing.cost(usage, at=at)
    except Exception:
        logger.exception(
            "%s could not price a call of %r; its cost is not known", type(pricing).__name__, usage.model
        )
        return None
    if price is None or isinstance(price, Price):
        return price
    logger.error(
        "%s priced a call of %r at %.100r, which is no Price; its cost is not known",
        type(pricing).__name__,
        usage.model,
        price,
    )
    return None


def _lacks(usage: Usage, *, priced_input: bool, priced_output: bool) -> bool:
    """Whether the provider did not tell what must be known: with a part of it, the cost would be too low."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return True
    return (usage.input_tokens is None and priced_input) or (usage.output_tokens is None and priced_output)


# --- prices of genai-prices -----------------------------------------------------------------------

_STANDARD_TIERS = frozenset({"", "default", "standard", "on_demand"})
_FINE_TUNED = re.compile(
    r"(?:^|[/:])ft[:/-]|:ft-|(?:^|/)tunedmodels/|custom-model/|application-inference-profile/"
)
_DATE = re.compile(r"[-@](?:20\d{2}-\d{2}-\d{2}|20\d{6})$")
# Such as `us.anthropic.claude-opus-4-5-20251101-v1:0`, where the region may be left out.
_BEDROCK = re.compile(
    r"(?:(?P<region>[a-z]{2,6}(?:-gov)?)\.)?(?P<rest>[a-z0-9]{2,20}\.[a-z][a-z0-9.-]*(?::\d+)?(?::\d+k)?)"
)
_BEDROCK_MAKERS = re.compile(
    "ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|moonshotai|nvidia|openai|qwen|stability"
    "|twelvelabs|writer|zai"
)
_PARTS = 4
_PLACES = 30


class GenaiPrices:
    """The prices that the package genai-prices brings: `pip install "oban-baton[llm]"`. It asks no network.

    A model is found by its name as providers, litellm, OpenRouter and Bedrock write it: `openai/gpt-5`, `openai:gpt-5`,
    `models/gemini-2.5-pro`, `us.anthropic.claude-opus-4-5-20251101-v1:0`; a dated name that is not known costs what the
    name without the date does. Fine-tuned models have no price, since theirs is another than their base's. A service tier
    that has no price of its own there (a batch of some providers, capacity that was paid for beforehand) makes the cost
    unknown, as does a count that is not known of what has a price.

    Importing the package takes some tenths of a second, and is done by the first call that is priced. Without the package,
    no price is known; that is logged once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._missing = False

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        """What a call cost; None where that is not known."""
        if usage.model is None or self._missing:
            return None
        try:
            import genai_prices
            from genai_prices import data_snapshot
        except ImportError:
            self._say_missing()
            return None
        found = _find_model(usage.provider, usage.model, data_snapshot)
        if found is None:
            return None
        provider, model = found
        context = _context(provider, model, usage.service_tier, at)
        if context is None:
            return None
        counts = _counts(usage, model, context, at)
        if counts is None:
            return None
        with localcontext(_dollars.EXACT):
            done = model.calc_price(
                genai_prices.Usage(**counts), provider, genai_request_timestamp=at, price_context=context
            )
            snapshot = data_snapshot.get_snapshot()
            updated = f" of {snapshot.timestamp:%Y-%m-%d}" if snapshot.from_auto_update else ""
            # Hours of sound may make a third of something.
            cost = round(done.total_price, _PLACES)
            return Price(cost, "genai-prices", f"{genai_prices.__version__}{updated}")

    def _say_missing(self) -> None:
        with self._lock:
            if self._missing:
                return
            self._missing = True
        logger.warning(
            "genai-prices is not installed, so what calls of models cost is not known; install it with "
            'pip install "oban-baton[llm]", or pass prices of your own, Baton(pricing=PriceTable(...))'
        )


def _find_model(provider: str | None, model: str, snapshots: Any) -> tuple[Provider, ModelInfo] | None:
    snapshot = snapshots.get_snapshot()

    def known(name: str) -> bool:
        return snapshots.find_provider_by_id(snapshot.providers, name) is not None

    if len(model) > _LONGEST_TEXT or _FINE_TUNED.search(model.lower()):
        return None
    whose = None if provider is None or provider.lower() == "litellm" else provider
    if whose is not None and not known(whose):
        # Some server of one's own, which may well serve a model of a name that has a price elsewhere.
        return None
    names = list(_names(whose, model.strip().lower(), known, _PARTS))
    dateless = [(one, bare) for one, name in names if (bare := _DATE.sub("", name)) != name]
    for one, name in (*names, *dateless):
        try:
            found: tuple[Provider, ModelInfo] = snapshot.find_provider_model(name, None, one, None)
        except LookupError:
            continue
        return found
    return None


def _names(provider: str | None, model: str, known: Any, parts: int) -> Iterator[tuple[str | None, str]]:
    """The provider and the name by which a model may be listed, the likeliest first."""
    if model.startswith("arn:"):
        _, slash, name = model.rpartition("/")
        if slash and parts:
            yield from _names("aws", name, known, parts - 1)
        return
    yield provider, model
    if "models/" in model:
        yield provider or "google", model.rpartition("models/")[2]
        return
    on_bedrock = provider is None or provider.lower() == "aws" or "bedrock" in provider.lower()
    if on_bedrock and (found := _BEDROCK.fullmatch(model)):
        rest = found["rest"]
        if _BEDROCK_MAKERS.fullmatch(rest.partition(".")[0]):
            yield "aws", model
            yield "aws", rest
    # As litellm, OpenRouter and Pydantic AI write them.
    for mark in "/:":
        first, found_mark, rest = model.partition(mark)
        if found_mark and rest and parts and known(first):
            yield from _names(first, rest, known, parts - 1)


def _context(provider: Provider, model: ModelInfo, tier: str | None, at: datetime) -> dict[str, str] | None:
    """What tells genai-prices the service tier; None if that has no price there, which must not become the standard one."""
    tier = (tier or "").lower()
    if tier in _STANDARD_TIERS:
        return {}
    wanted = ({"service_tier": tier}, {"processing": tier}, {"speed": tier})
    # A provider that has the model from another has no prices for tiers.
    variants = (model.price_variants or []) if any(one is model for one in provider.models) else []
    for context in wanted:
        for variant in variants:
            active = variant.constraint is None or variant.constraint.active(at)
            if active and dict(variant.when) == context:
                return context
    return None


def _counts(
    usage: Usage, model: ModelInfo, context: Mapping[str, str], at: datetime
) -> dict[str, int] | None:
    """By the names of genai-prices; None if something that costs was not counted, or has no price."""
    from genai_prices.data_units import unit_data

    price = model.get_prices(at, context)
    if _lacks(usage, priced_input=bool(price.input_mtok), priced_output=bool(price.output_mtok)):
        return None
    for name, count in usage.units.items():
        unit = unit_data.get(name)
        if not count or (unit is not None and unit["dimensions"]["family"] == "tokens"):
            # Tokens of a kind that has no price of its own cost what the others do.
            continue
        if unit is None or getattr(price, unit["price_key"], None) is None:
            return None
    kinds = {
        **{name: count for name, count in usage.units.items() if count},
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
    }
    return {name: count for name, count in kinds.items() if count is not None}


_GENAI = GenaiPrices()

# --- prices of one's own --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """US dollars for a million tokens of each kind, as Decimal, text or int.

    Attributes:
        input: Those that went in, without those of a cache where these have a price of their own.
        output: Those that came out, without those of reasoning where these have one.
        cache_read: Those read from a cache; None: they cost what the others do.
        cache_write: Those put into a cache; None: the same.
        reasoning: Those of reasoning; None: they cost what the others do.

    Raises:
        InvalidOption: A float, which is not exact, or no number of dollars from 0 up.
    """

    input: Decimal | str | int
    output: Decimal | str | int
    cache_read: Decimal | str | int | None = None
    cache_write: Decimal | str | int | None = None
    reasoning: Decimal | str | int | None = None

    def __post_init__(self) -> None:
        for kind in ("input", "output", "cache_read", "cache_write", "reasoning"):
            value = getattr(self, kind)
            if value is not None:
                object.__setattr__(self, kind, _dollars.exact(kind, value))
            elif kind in ("input", "output"):
                raise InvalidOption(f"{kind} is None; say what a million tokens cost, 0 if they cost nothing")


class PriceTable:
    """Prices of your own, before those of another `Pricing`.

        PriceTable({"our-llama": ModelPrice(input="0.20", output="0.60")}, source="the contract", version="2026-01")

    A price holds for all service tiers. A call that used what has no price here, such as a search, has a cost that is not
    known.

    Args:
        prices: By the model's name as it is in the usage, or by `provider/model`, which goes first.
        source: Stored beside each cost.
        version: Stored too; without one, it is made of the prices, so that it changes with them.
        otherwise: Asked for the models that are not here; None: for them no price is known.

    Raises:
        InvalidOption: Something else than `ModelPrice` for a model.
    """

    def __init__(
        self,
        prices: Mapping[str, ModelPrice],
        *,
        source: str = "own",
        version: str | None = None,
        otherwise: Pricing | None = _GENAI,
    ) -> None:
        if not isinstance(prices, Mapping):
            raise InvalidOption(
                f"the prices are of type {type(prices).__name__}; give a dict of model name to ModelPrice"
            )
        for model, price in prices.items():
            if not isinstance(model, str) or not isinstance(price, ModelPrice):
                raise InvalidOption(
                    f"the price of {model!r} is {price!r}; give ModelPrice(input=..., output=...) by the model's name"
                )
        self._prices = dict(prices)
        self._source = source
        self._version = _version(self._prices) if version is None else version
        self._otherwise = otherwise
        # What cannot be stored is said here, not at the first call.
        Price(Decimal(0), self._source, self._version)

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        """What a call cost; None where that is not known."""
        price = self._find(usage)
        if price is None:
            return self._otherwise.cost(usage, at=at) if self._otherwise is not None else None
        cost = _sum(usage, price)
        return None if cost is None else Price(cost, self._source, self._version)

    def _find(self, usage: Usage) -> ModelPrice | None:
        if usage.model is None:
            return None
        names = (f"{usage.provider}/{usage.model}", usage.model, usage.model.partition("/")[2])
        return next((self._prices[name] for name in names if name in self._prices), None)


def _version(prices: Mapping[str, ModelPrice]) -> str:
    listed = "\n".join(f"{model} {price}" for model, price in sorted(prices.items()))
    return hashlib.sha256(listed.encode(errors="surrogatepass")).hexdigest()[:12]


def _sum(usage: Usage, price: ModelPrice) -> Decimal | None:
    """By the prices of a table; None if something that costs was not counted, or has no price there."""
    other = any(count and not name.endswith("_tokens") for name, count in usage.units.items())
    if other or _lacks(usage, priced_input=bool(price.input), priced_output=bool(price.output)):
        return None
    read, write = usage.cache_read_tokens or 0, usage.cache_write_tokens or 0
    reasoning = usage.reasoning_tokens or 0
    with localcontext(_dollars.EXACT):
        dollars = (
            ((usage.input_tokens or 0) - read - write) * Decimal(price.input)
            + read * _or(price.cache_read, price.input)
            + write * _or(price.cache_write, price.input)
            + ((usage.output_tokens or 0) - reasoning) * Decimal(price.output)
            + reasoning * _or(price.reasoning, price.output)
        )
        return dollars / _MILLION


def _or(price: Decimal | str | int | None, other: Decimal | str | int) -> Decimal:
    return Decimal(other if price is None else price)
