"""Budgets without a database: what may be declared, what a call may come to, and the words for one that is exhausted."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from baton import Budget, Reserve, Workflow, step
from baton._budget import DEFAULT_OUTPUT_TOKENS, Shortage, estimate
from baton.errors import InvalidName, InvalidOption


@step(name="tests.budget.nothing")
async def nothing() -> None:
    return None


def workflow(**options: Any) -> Workflow:
    made = Workflow("w", **options)
    made.add("a", nothing.new())
    return made


@pytest.mark.parametrize("usd", [2.5, "2.50", Decimal("2.5"), "2.5e0"])
def test_dollars_are_exact_however_they_are_written(usd: Any) -> None:
    assert Budget(usd=usd).usd == Decimal("2.50")
    assert Budget(usd=0.1).usd == Decimal("0.1")
    assert Budget(usd=3).usd == Decimal(3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "day"},
        {"usd": -1},
        {"usd": "much"},
        {"usd": float("nan")},
        {"usd": Decimal("Infinity")},
        {"usd": True},
        {"usd": "1e41"},
        {"usd": "1e-41"},
        {"tokens": -1},
        {"tokens": 1.5},
        {"calls": True},
        {"calls": 10**16},
        {"usd": 1, "on_exhausted": "wait"},
        {"usd": 1, "unpriced": "ignore"},
    ],
)
def test_what_is_no_budget_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Budget(**options)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "x" * 201, 5, "01890a5d-ac96-774b-bcce-b302099a8057"])
def test_a_key_is_printable_and_no_runs_id(key: Any) -> None:
    with pytest.raises(InvalidName):
        Budget(usd=1, key=key)


def test_a_budget_is_a_value() -> None:
    assert Budget(usd="1.0", key="day") == Budget(usd=1, key="day")
    assert len({Budget(usd=1), Budget(usd="1")}) == 1
    with pytest.raises(AttributeError):
        Budget(usd=1).usd = Decimal(2)  # type: ignore[misc]
    assert "usd=Decimal('1')" in repr(Budget(usd=1))


def test_a_reserve_says_something() -> None:
    assert Reserve(usd=0.5).usd == Decimal("0.5")
    assert Reserve(tokens=5).usd is None
    for options in ({}, {"usd": -1}, {"tokens": "many"}):
        with pytest.raises(InvalidOption):
            Reserve(**options)


def test_a_workflow_has_one_budget_of_its_own_and_one_of_each_key() -> None:
    assert workflow().budgets == ()
    assert workflow(budget=Budget(usd=1)).budgets == (Budget(usd=1),)
    both = [Budget(usd=1), Budget(usd=5, key="day")]
    assert workflow(budget=both).budgets == tuple(both)
    for wrong in ([Budget(usd=1), Budget(calls=1)], [both[1], both[1]], 5, "2.50", [2.50]):
        with pytest.raises(InvalidOption):
            workflow(budget=wrong)


def test_a_budget_is_no_part_of_the_definition() -> None:
    assert workflow(budget=Budget(usd=1)).definition_hash == workflow().definition_hash


# --- estimates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "output"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 10, "max_tokens": 99}, 10),
        ({"max_output_tokens": 10}, 10),
        ({"config": {"max_output_tokens": 10}}, 10),
        ({"generationConfig": {"maxOutputTokens": 10}}, 10),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": None}, DEFAULT_OUTPUT_TOKENS),
        ({"max_tokens": "10"}, DEFAULT_OUTPUT_TOKENS),
        ({}, DEFAULT_OUTPUT_TOKENS),
        (None, DEFAULT_OUTPUT_TOKENS),
        ("a question", DEFAULT_OUTPUT_TOKENS),
    ],
)
def test_a_request_says_how_long_its_answer_may_be(request_: Any, output: int) -> None:
    assert estimate(request_, None).output_tokens == output


def test_the_model_is_the_requests_unless_it_is_named() -> None:
    assert estimate({"model": "m"}, None).model == "m"
    assert estimate({"model": "m"}, "n").model == "n"
    assert estimate({"model": 5}, None).model is None


def test_three_bytes_of_text_count_as_a_token() -> None:
    assert estimate("abcdef", None).input_tokens == 2
    assert estimate("日本", None).input_tokens == 2
    messages = [{"role": "user", "content": "word " * 600}]
    assert 1000 <= estimate({"messages": messages}, None).input_tokens <= 1010


def test_an_image_that_is_sent_along_does_not_count_by_its_bytes() -> None:
    image = "data:image/png;base64," + "A" * 1_000_000
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"data": "Ab9/" * 100_000}, b"\0" * 10**6]
    assert 6_000 <= estimate({"messages": [{"content": parts}]}, None).input_tokens <= 6_100


def test_a_request_may_be_a_model_of_pydantics_or_hold_some() -> None:
    class Request(BaseModel):
        model: str = "m"
        max_tokens: int = 7
        prompt: str = "x" * 300

    assert (estimate(Request(), None).model, estimate(Request(), None).output_tokens) == ("m", 7)
    assert estimate({"messages": [Request()]}, None).input_tokens >= 100
    assert estimate(Request, None).model is None


def test_hostile_requests_are_estimated_as_well() -> None:
    class Broken:
        def model_dump(self, **_: object) -> object:
            raise RuntimeError

    cycle: list[Any] = []
    cycle += [cycle, cycle, "x"]
    for hostile in (
        Broken(),
        [Broken()],
        cycle,
        {1: {2: object()}},
        "\ud800",
        5,
        {"n": 10**30, "max_tokens": 10**30},
    ):
        found = estimate(hostile, None)
        assert 0 <= found.tokens <= 10**15


# --- words ------------------------------------------------------------------------------------------


def test_a_shortage_has_all_figures_in_words() -> None:
    short = Shortage(1, None, "usd", "stop", Decimal("2.5"), Decimal("2.1"), Decimal(0), Decimal("0.6"))
    assert short.text == (
        "the run's budget is exhausted: $2.10 of $2.50 spent, and this call may come to $0.60"
    )
    calls = Shortage(1, "day", "calls", "stop", Decimal(1000), Decimal(999), Decimal(1), Decimal(0))
    assert (
        calls.text
        == "budget 'day' is exhausted: 999 calls of 1,000 calls spent, 1 call reserved by calls under way"
    )
