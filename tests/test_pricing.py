"""What calls cost: to the last digit by hand, and None wherever it is not known."""

import logging
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baton import _dollars, pricing
from baton._usage import Usage
from baton.errors import InvalidOption
from baton.pricing import GenaiPrices, ModelPrice, Price, PriceTable, Pricing, price_of

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def cost(*, at: datetime = NOW, pricing: Pricing | None = None, **used: Any) -> Decimal | None:
    price = (pricing or GenaiPrices()).cost(Usage(**used), at=at)
    return None if price is None else price.cost


# --- genai-prices ---------------------------------------------------------------------------------

# 600 at 2, 400 from the cache at 0.1, and 500 out at 10 dollars for a million.
SOL: dict[str, Any] = {
    "model": "gpt-6.1-sol",
    "input_tokens": 1_000,
    "cache_read_tokens": 400,
    "output_tokens": 500,
    "reasoning_tokens": 300,
}


@pytest.mark.parametrize(
    ("used", "by_hand"),
    [
        (SOL, "0.00624"),
        (SOL | {"service_tier": "default"}, "0.00624"),
        (SOL | {"service_tier": "flex"}, "0.00312"),
        (SOL | {"service_tier": "priority"}, "0.01248"),
        (SOL | {"service_tier": "batch"}, "0.00312"),
        # Above 272,000 tokens all of them cost more: 300,000 at 4, 500 at 15.
        ({"model": "gpt-6.1-sol", "input_tokens": 300_000, "output_tokens": 500}, "1.2075"),
        # Above 200,000: 250,000 at 2.5, 850 at 15.
        ({"model": "gemini-2.5-pro", "input_tokens": 250_000, "output_tokens": 850}, "0.63775"),
        # 500 at 4, 1,000 read at 0.2, 300 written for five minutes at 5 and 600 for an hour at 8, 400 at 20.
        (
            {
                "model": "claude-opus-5-5",
                "input_tokens": 2_400,
                "cache_read_tokens": 1_000,
                "cache_write_tokens": 900,
                "output_tokens": 400,
                "units": {"cache_write_1h_tokens": 600},
            },
            "0.0165",
        ),
        ({"model": "gpt-5", "input_tokens": 0, "output_tokens": 0}, "0"),
        # 1,000 at 1.25, 100 at 10, and three searches at 10 for a thousand.
        (
            {"model": "gpt-5", "input_tokens": 1_000, "output_tokens": 100, "units": {"web_searches": 3}},
            "0.03225",
        ),
        # Nothing comes out of it, so that nobody counts it.
        ({"model": "text-embedding-3-small", "provider": "openai", "input_tokens": 1_000}, "0.00002"),
    ],
)
def test_a_call_costs_what_the_hand_sum_says(used: dict[str, Any], by_hand: str) -> None:
    assert str(cost(**used)) == by_hand


def test_a_call_costs_what_it_did_when_it_was_made() -> None:
    used = {"model": "o3", "input_tokens": 1_000_000, "output_tokens": 0}
    assert cost(**used, at=datetime(2025, 5, 1, tzinfo=UTC)) == 10
    assert cost(**used) == 2


@pytest.mark.parametrize(
    ("model", "provider", "by_hand"),
    [
        ("gpt-5", None, "0.00225"),
        ("GPT-5", "OpenAI", "0.00225"),
        ("openai/gpt-5", None, "0.00225"),
        ("openai/gpt-5", "openai", "0.00225"),
        ("openai:gpt-5", None, "0.00225"),
        ("gpt-5-2025-08-07", None, "0.00225"),
        ("gpt-5-2031-01-31", None, "0.00225"),
        ("openai/gpt-5-20310131", None, "0.00225"),
        ("gpt-5", "litellm", "0.00225"),
        ("azure/gpt-4o", None, "0.0035"),
        ("models/gemini-2.5-pro", None, "0.00225"),
        ("vertex_ai/gemini-2.5-pro", None, "0.00225"),
        ("projects/p/locations/l/publishers/google/models/gemini-2.5-pro", "google", "0.00225"),
        ("claude-sonnet-4@20250514", None, "0.0045"),
        ("anthropic/claude-sonnet-4.5", "openrouter", "0.0045"),
        ("openrouter/anthropic/claude-sonnet-4.5", None, "0.0045"),
        # A region of Bedrock's costs a tenth more.
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", None, "0.00825"),
        ("ca.anthropic.claude-opus-4-5-20251101-v1:0", "bedrock", "0.00825"),
        ("global.anthropic.claude-opus-4-5-20251101-v1:0", None, "0.0075"),
        ("ca.anthropic.claude-opus-4-5-20251101-v1:0", "amazon-bedrock", "0.00825"),
        ("bedrock/eu.anthropic.claude-opus-4-5-20251101-v1:0", None, "0.00825"),
        (
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-opus-4-5-20251101-v1:0",
            None,
            "0.00825",
        ),
    ],
)
def test_a_model_is_found_however_its_name_is_written(model: str, provider: str | None, by_hand: str) -> None:
    assert str(cost(model=model, provider=provider, input_tokens=1_000, output_tokens=100)) == by_hand


@pytest.mark.parametrize(
    "used",
    [
        {"model": None},
        {"model": ""},
        {"model": "no-such-model"},
        {"model": "gpt-5-but-ours"},
        {"model": "ft:gpt-4o-mini:acme::abc"},
        {"model": "openai/ft:gpt-4o-mini-2024-07-18:acme::abc", "provider": "openai"},
        {"model": "tunedModels/gemini-2.5-pro", "provider": "google"},
        {"model": "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc"},
        # A server of one's own may call its models as it likes.
        {"model": "gpt-5", "provider": "ollama"},
        {"model": "acme/gpt-5"},
        {"model": "gpt-5", "service_tier": "scale"},
        {"model": "claude-opus-5-5", "service_tier": "priority"},
        {"model": "gpt-4o-mini", "provider": "azure", "service_tier": "flex"},
        {"model": "gpt-5", "units": {"no_such_unit": 1}},
        {"model": "gpt-5", "units": {"social_searches": 1}},
        {"model": "gpt-5" * 1_000},
        {"model": "gpt-5\0"},
    ],
)
def test_what_has_no_price_costs_nobody_knows_what(used: dict[str, Any]) -> None:
    assert cost(**used, input_tokens=1_000, output_tokens=100) is None


@pytest.mark.parametrize("counted", [{}, {"input_tokens": 1_000}, {"output_tokens": 100}])
def test_what_was_not_counted_costs_nobody_knows_what(counted: dict[str, int]) -> None:
    assert cost(model="gpt-5", **counted) is None
    table = PriceTable({"gpt-5": ModelPrice(input=1, output=1)}, otherwise=None)
    assert cost(model="gpt-5", **counted, pricing=table) is None


def test_a_price_says_its_source_and_version() -> None:
    import genai_prices

    price = GenaiPrices().cost(Usage(**SOL), at=NOW)
    assert price == Price(Decimal("0.00624"), "genai-prices", genai_prices.__version__)


def test_costs_are_exact_whatever_the_program_does_with_its_own_decimals() -> None:
    with localcontext(prec=2):
        assert cost(**SOL) == Decimal("0.00624")
        table = PriceTable({"m": ModelPrice(input="1.234567", output=0)})
        assert str(cost(model="m", input_tokens=999_999, pricing=table)) == "1.234565765433"


def test_thirds_are_rounded_at_the_30th_place() -> None:
    price = cost(
        model="whisper-large-v3",
        provider="groq",
        input_tokens=0,
        output_tokens=0,
        units={"audio_seconds": 11},
    )
    assert price is not None
    assert abs(price - Decimal("0.111") * 11 / 3600) < Decimal("1e-25")


def test_importing_baton_does_not_import_the_prices_and_without_them_no_price_is_known() -> None:
    code = (
        "import sys, logging; logging.basicConfig(format='%(message)s'); import baton, baton.pricing as pricing\n"
        "from datetime import *\n"
        "from baton._usage import Usage\n"
        "assert 'genai_prices' not in sys.modules and 'pydantic' not in sys.modules\n"
        "sys.modules['genai_prices'] = None\n"
        "prices = pricing.GenaiPrices()\n"
        "used = Usage(model='gpt-5', input_tokens=1, output_tokens=1)\n"
        "assert [prices.cost(used, at=datetime.now(UTC)) for _ in range(2)] == [None, None]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("genai-prices is not installed") == 1
    assert 'pip install "oban-baton[llm]"' in done.stderr


# --- prices of one's own --------------------------------------------------------------------------

OURS = PriceTable(
    {
        "our-llama": ModelPrice(
            input="0.20", output="0.60", cache_read="0.02", cache_write="0.25", reasoning=1
        ),
        "plain": ModelPrice(input=1, output=Decimal(2)),
        "azure/gpt-5": ModelPrice(input=7, output=7),
        "free": ModelPrice(input=0, output=0),
    },
    source="the contract",
    version="2026-01",
)


@pytest.mark.parametrize(
    ("used", "by_hand"),
    [
        # 500 at 0.20, 400 at 0.02, 100 at 0.25, 300 at 0.60, 200 at 1.
        (
            {
                "model": "our-llama",
                "input_tokens": 1_000,
                "cache_read_tokens": 400,
                "cache_write_tokens": 100,
                "output_tokens": 500,
                "reasoning_tokens": 200,
            },
            "0.000513",
        ),
        # What has no price of its own costs what the others do.
        (
            {
                "model": "plain",
                "input_tokens": 1_000,
                "cache_read_tokens": 400,
                "output_tokens": 500,
                "reasoning_tokens": 200,
            },
            "0.002",
        ),
        ({"model": "acme/plain", "input_tokens": 1, "output_tokens": 1}, "0.000003"),
        ({"model": "gpt-5", "provider": "azure", "input_tokens": 1, "output_tokens": 0}, "0.000007"),
        ({"model": "azure/gpt-5", "input_tokens": 1, "output_tokens": 0}, "0.000007"),
        ({"model": "free", "input_tokens": 5, "output_tokens": 5}, "0"),
    ],
)
def test_own_prices_are_summed_exactly(used: dict[str, Any], by_hand: str) -> None:
    price = OURS.cost(Usage(**used), at=NOW)
    assert price is not None
    assert (str(price.cost), price.source, price.version) == (by_hand, "the contract", "2026-01")


def test_what_a_table_does_not_have_is_asked_of_the_other() -> None:
    assert cost(**SOL, pricing=OURS) == Decimal("0.00624")
    assert cost(**SOL, pricing=PriceTable({}, otherwise=None)) is None
    assert cost(
        **SOL, pricing=PriceTable({}, otherwise=PriceTable({"gpt-6.1-sol": ModelPrice(input=1, output=1)}))
    ) == Decimal("0.0015")


def test_what_a_table_has_no_price_for_is_unknown() -> None:
    used: dict[str, Any] = {"model": "plain", "input_tokens": 1, "output_tokens": 1}
    assert cost(**used, units={"web_searches": 1}, pricing=OURS) is None
    assert cost(**used, units={"web_searches": 0, "input_audio_tokens": 1}, pricing=OURS) == Decimal(
        "0.000003"
    )


def test_a_table_without_a_version_makes_one_of_its_prices() -> None:
    def version(price: str) -> str:
        found = PriceTable({"m": ModelPrice(input=price, output=1)}).cost(
            Usage(model="m", input_tokens=1, output_tokens=1), at=NOW
        )
        assert found is not None
        assert found.source == "own"
        return found.version

    assert version("0.20") == version("0.2") != version("0.3")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelPrice(input=0.1, output=1),  # type: ignore[arg-type]
        lambda: ModelPrice(input="ten", output=1),
        lambda: ModelPrice(input=-1, output=1),
        lambda: ModelPrice(input=1, output="NaN"),
        lambda: ModelPrice(input=1, output="Infinity"),
        lambda: ModelPrice(input=1, output=None),  # type: ignore[arg-type]
        lambda: ModelPrice(input=1, output=True),
        lambda: ModelPrice(input="1e999999", output=1),
        lambda: ModelPrice(input="1" * 10_000, output=1),
        lambda: PriceTable({"m": "0.10"}),  # type: ignore[dict-item]
        lambda: PriceTable([]),  # type: ignore[arg-type]
        lambda: PriceTable({}, source=""),
        lambda: PriceTable({}, version="\0"),
        lambda: PriceTable({}, version="\ud800"),
        lambda: Price(Decimal(1), "\udfff"),
        lambda: ModelPrice(input=10**5_000, output=1),
        lambda: Price(0.1, "me"),  # type: ignore[arg-type]
        lambda: Price(Decimal(-1), "me"),
        lambda: Price(Decimal(1), ""),
        lambda: pricing.given("free"),
        lambda: pricing.given(float("nan")),
        lambda: pricing.given(-0.1),
    ],
)
def test_what_is_no_price_is_refused(make: Any) -> None:
    with pytest.raises(InvalidOption):
        make()


def test_a_float_among_prices_is_told_how_to_write_it() -> None:
    with pytest.raises(InvalidOption, match=r"Decimal\('0.1'\), because a float is not exact"):
        ModelPrice(input=0.1, output=1)  # type: ignore[arg-type]


def test_a_given_cost_counts_as_it_is_written() -> None:
    assert pricing.given(0.1) == pricing.given("0.10") == Price(Decimal("0.1"), "given")
    assert str(pricing.given(1e-07).cost) == "1E-7"
    assert _dollars.digits(pricing.given(1e-07).cost) == "0.0000001"


def test_there_is_no_cost_below_0_not_even_one_of_it() -> None:
    assert str(pricing.given("-0.00").cost) == "0"


counts = st.integers(0, 10**12)
prices = st.decimals(0, 10**6, places=6)


@given(prices, prices, st.tuples(counts, counts, counts), st.tuples(counts, counts))
def test_a_table_costs_what_whole_numbers_say(
    dear: Decimal, cheap: Decimal, went_in: tuple[int, int, int], came_out: tuple[int, int]
) -> None:
    fresh, read, write = went_in
    answer, thought = came_out
    table = PriceTable(
        {"m": ModelPrice(input=dear, output=cheap, cache_read=cheap, reasoning=dear)}, otherwise=None
    )
    used = Usage(
        model="m",
        input_tokens=fresh + read + write,
        output_tokens=answer + thought,
        cache_read_tokens=read,
        cache_write_tokens=write,
        reasoning_tokens=thought,
    )
    price = table.cost(used, at=NOW)
    assert price is not None
    # Millionths of a dollar for a million tokens: whole numbers.
    micros = {price: int(price * 10**6) for price in (dear, cheap)}
    assert Fraction(price.cost) == Fraction(
        (fresh + write + thought) * micros[dear] + (read + answer) * micros[cheap], 10**12
    )


@given(
    st.text(max_size=60),
    st.none() | st.text(max_size=20) | st.sampled_from(["openai", "aws", "google", "litellm"]),
)
@example("/" * 200, None)
@example(":" * 200, "openai")
@example("openai/" * 28, None)
@example("arn:" * 40, "aws")
@example("models/" * 20, "google")
def test_no_name_of_a_model_breaks_the_look_up(model: str, provider: str | None) -> None:
    price = GenaiPrices().cost(Usage(model=model, provider=provider, input_tokens=1, output_tokens=1), at=NOW)
    assert price is None or price.cost >= 0


# --- a pricing that does not keep its word --------------------------------------------------------


class Raises:
    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        raise ZeroDivisionError("prices are out")


class SaysANumber:
    def cost(self, usage: Usage, *, at: datetime) -> Any:
        return 0.25


@pytest.mark.parametrize(("pricing", "said"), [(Raises(), "prices are out"), (SaysANumber(), "is no Price")])
def test_a_pricing_that_fails_is_logged_and_means_unknown(
    pricing: Pricing, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "baton.pricing"):
        assert price_of(pricing, Usage(model="gpt-5", input_tokens=1), at=NOW) is None
    assert said in caplog.text
    assert isinstance(pricing, Pricing)


# --- dollars as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dollars", "digits", "text"),
    [
        ("0", "0", "$0.00"),
        ("0.0", "0", "$0.00"),
        ("1.20", "1.2", "$1.20"),
        ("1E+1", "10", "$10.00"),
        ("1234567.891", "1234567.891", "$1,234,567.89"),
        ("0.5", "0.5", "$0.50"),
        ("0.05", "0.05", "$0.05"),
        ("0.00624", "0.00624", "$0.0062"),
        ("0.000001", "0.000001", "$0.000001"),
        ("0.999", "0.999", "$1.00"),
        ("2.005", "2.005", "$2.01"),
    ],
)
def test_dollars_read_well_and_keep_their_digits(dollars: str, digits: str, text: str) -> None:
    assert _dollars.digits(Decimal(dollars)) == digits
    assert _dollars.text(Decimal(dollars)) == text
