"""What calls used and cost, added up: exactly, and never as if what is not known were nothing."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton import Totals
from baton._totals import add_up, moved

ONE = Totals(calls=1, input_tokens=100, output_tokens=20, cost_usd=Decimal("0.00624"))
UNPRICED = Totals(calls=1, input_tokens=7, cost_usd=None, unpriced=1)

counts = st.integers(0, 10**6)


@st.composite
def totals(draw: st.DrawFn) -> Totals:
    """Of some calls, of which some have a known cost."""
    calls = draw(st.integers(1, 9))
    unpriced = draw(st.integers(0, calls))
    cost = draw(st.decimals(0, 10**9, places=12)) if unpriced < calls else None
    return Totals(calls=calls, input_tokens=draw(counts), cost_usd=cost, unpriced=unpriced)


@pytest.mark.parametrize(
    ("spent", "text"),
    [
        (Totals(), "$0.00"),
        (ONE, "$0.0062"),
        (Totals(calls=1, cost_usd=Decimal(0)), "$0.00"),
        (Totals(calls=1, cost_usd=Decimal("0.5")), "$0.50"),
        (Totals(calls=1, cost_usd=Decimal("0.0000154")), "$0.000015"),
        (Totals(calls=1, cost_usd=Decimal("1e-300")), "less than $0.000001"),
        (Totals(calls=1, cost_usd=Decimal("1234.567")), "$1,234.57"),
        (Totals(calls=2, cost_usd=Decimal("1234.567"), unpriced=1), "at least $1,234.56"),
        (Totals(calls=2, cost_usd=Decimal("0.00999"), unpriced=1), "at least $0.0099"),
        (UNPRICED, "unknown"),
    ],
)
def test_a_cost_is_said_as_far_as_it_is_known(spent: Totals, text: str) -> None:
    assert spent.cost_text == str(spent) == text


def test_what_has_no_price_makes_the_sum_a_lower_bound() -> None:
    both = ONE + UNPRICED
    assert both == Totals(
        calls=2, input_tokens=107, output_tokens=20, cost_usd=Decimal("0.00624"), unpriced=1
    )
    assert both.is_lower_bound
    assert not ONE.is_lower_bound


def test_without_calls_there_is_nothing_to_add_up() -> None:
    assert add_up([]) is None
    assert add_up([None, None]) is None
    assert add_up([None, UNPRICED]) == UNPRICED


@given(st.lists(totals()), totals(), totals())
def test_a_sum_in_which_something_changes_is_the_sum_of_what_there_is_then(
    others: list[Totals], before: Totals, now: Totals
) -> None:
    rest = add_up(others)
    assert moved(add_up([*others, before]), before, now) == add_up([*others, now])
    assert moved(add_up([*others, before]), before, None) == rest
    assert moved(rest, None, now) == add_up([*others, now])
    assert moved(rest, now, now) == rest
