"""What calls of models used and cost, added up. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal

_CENTS = Decimal("0.01")
_FINE = Decimal("0.0001")
_FINEST = Decimal("0.000001")
# No sum of money is longer, so nothing is rounded when they are added up.
_EXACT = Context(prec=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What calls of models used and cost, together.

    Attributes:
        calls: How many there were.
        input_tokens: All that went in, as far as it is known; so are the other tokens.
        output_tokens: All that came out, reasoning included.
        cache_read_tokens: Of the input, those that a cache held.
        cache_write_tokens: Of the input, those that were put into a cache.
        reasoning_tokens: Of the output, those of reasoning.
        cost_usd: Of the calls whose cost is known; None where there were calls and no cost is known.
        unpriced: Of the calls, those whose cost is not known.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal | None = Decimal(0)
    unpriced: int = 0

    @property
    def is_lower_bound(self) -> bool:
        """Whether more was spent than `cost_usd` says: the cost of some calls is not known."""
        return self.unpriced > 0

    @property
    def cost_text(self) -> str:
        """`$1.20`, `at least $1.20` or `unknown`, rounded to cents, or to as many digits as a small sum needs."""
        if self.cost_usd is None:
            return "unknown"
        return f"at least {_dollars(self.cost_usd, ROUND_DOWN)}" if self.unpriced else dollars(self.cost_usd)

    def __str__(self) -> str:
        return self.cost_text

    def __add__(self, other: Totals) -> Totals:
        return self._with(other, 1)

    def __sub__(self, other: Totals) -> Totals:
        """Take away what was added."""
        return self._with(other, -1)

    def _with(self, other: Totals, sign: int) -> Totals:
        calls = self.calls + sign * other.calls
        unpriced = self.unpriced + sign * other.unpriced
        change = (other.cost_usd or Decimal(0)) * sign
        cost = _EXACT.add(self.cost_usd or Decimal(0), change)
        return Totals(
            calls=calls,
            input_tokens=self.input_tokens + sign * other.input_tokens,
            output_tokens=self.output_tokens + sign * other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + sign * other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + sign * other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + sign * other.reasoning_tokens,
            cost_usd=None if calls and unpriced == calls else cost,
            unpriced=unpriced,
        )


def add_up(each: Iterable[Totals | None]) -> Totals | None:
    """All of them together; None where there are none."""
    found = [one for one in each if one is not None]
    return sum(found, Totals()) if found else None


def moved(total: Totals | None, before: Totals | None, now: Totals | None) -> Totals | None:
    """A sum in which something was counted as it was before, as it is now."""
    if before == now:
        return total
    changed = (total or Totals()) - (before or Totals()) + (now or Totals())
    return changed if changed.calls else None


def dollars(amount: Decimal) -> str:
    """`$1,234.50`, `$0.0312`, `$0.000015`: cents, or as many digits as a small sum needs."""
    return _dollars(amount, ROUND_HALF_EVEN)


def _dollars(amount: Decimal, rounding: str) -> str:
    step = _CENTS if amount >= 1 else _FINE if amount >= _FINE else _FINEST
    if 0 < amount < _FINEST:
        return f"less than ${_FINEST:f}"
    rounded = amount.quantize(step, rounding, context=_EXACT)
    cents = rounded.quantize(_CENTS, context=_EXACT)
    return f"${cents if rounded == cents else rounded:,f}"
