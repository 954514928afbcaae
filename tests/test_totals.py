"""What calls used and cost, added up: exactly, and never as if what is not known were nothing."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from baton import Totals
from baton._totals import TOKENS, add_up, moved


def spent(cost: str | None = None, *, calls: int = 1, unpriced: int | None = None, **tokens: int) -> Totals:
    """Of some calls; those whose cost is not known are all, if there is no cost."""
    return Totals(
        calls=calls,
        **{**dict.fromkeys(TOKENS), **tokens},
        cost_usd=None if cost is None else Decimal(cost),
        unpriced=unpriced if unpriced is not None else 0 if cost is not None else calls,
    )


ONE = spent("0.00624", input_tokens=100, output_tokens=20)
UNPRICED = spent(input_tokens=7)

counts = st.integers(0, 10**6)


@st.composite
def totals(draw: st.DrawFn) -> Totals:
    """Of some calls, of which some have a known cost."""
    calls = draw(st.integers(1, 9))
    unpriced = draw(st.integers(0, calls))
    cost = draw(st.decimals(0, 10**9, places=12)).normalize() if unpriced < calls else None
    return spent(
        None if cost is None else str(cost), calls=calls, unpriced=unpriced, input_tokens=draw(counts)
    )


def test_what_has_no_price_makes_the_sum_a_lower_bound() -> None:
    both = add_up([ONE, UNPRICED])
    assert both is not None
    assert both == spent("0.00624", calls=2, unpriced=1, input_tokens=107, output_tokens=20)
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


def test_what_is_not_known_does_not_become_nothing() -> None:
    blind = spent("0.01")
    assert add_up([blind, blind]) == spent("0.02", calls=2)
    seen = spent("0.02", calls=2, input_tokens=5)
    assert moved(add_up([blind, blind]), blind, seen) == spent("0.03", calls=3, input_tokens=5)
