"""What calls of models used and cost, added up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from baton import _dollars

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class Totals:
    """What some calls of models came to.

    A number of tokens is the sum of those that are known, and None where none is.

    Attributes:
        calls: How many calls.
        input_tokens: All that went in, those of caches included.
        output_tokens: All that came out, reasoning included.
        cache_read_tokens: Of the input, those read from a cache.
        cache_write_tokens: Of the input, those put into one.
        reasoning_tokens: Of the output, those of reasoning.
        cost_usd: What the calls with a known cost came to, to the last digit; None where no cost is known.
        unpriced: Calls whose cost is not known.
    """

    calls: int
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: Decimal | None
    unpriced: int

    @property
    def is_lower_bound(self) -> bool:
        """Whether more may have been spent than `cost_usd`: a call has no known cost."""
        return self.unpriced > 0

    @property
    def cost_text(self) -> str:
        """The cost as people read it: `$1.20`, `at least $1.20`, `unknown`."""
        if self.cost_usd is None:
            return "unknown"
        return ("at least " if self.is_lower_bound else "") + _dollars.text(self.cost_usd)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Totals:
        """As the database has added it up, in columns of these names."""
        cost = row["cost_usd"]
        return cls(
            calls=row["calls"],
            # The database's sum of whole numbers may be larger than its whole numbers.
            **{kind: None if row[kind] is None else int(row[kind]) for kind in TOKENS},
            cost_usd=None if cost is None else _dollars.plain(cost),
            unpriced=row["unpriced"],
        )


NOTHING = Totals(calls=0, **dict.fromkeys(TOKENS), cost_usd=None, unpriced=0)


def add_up(each: Iterable[Totals | None]) -> Totals | None:
    """All of them together; None where there are none."""
    total = None
    for one in each:
        total = moved(total, None, one)
    return total


def moved(total: Totals | None, before: Totals | None, now: Totals | None) -> Totals | None:
    """A sum in which something was counted as it was before, as it is now: what was known of it still is."""
    if before == now:
        return total
    total, old, new = total or NOTHING, before or NOTHING, now or NOTHING
    calls = total.calls - old.calls + new.calls
    unpriced = total.unpriced - old.unpriced + new.unpriced
    if not calls:
        return None
    cost = None
    if unpriced < calls:
        known = (total.cost_usd or Decimal(0), new.cost_usd or Decimal(0), old.cost_usd or Decimal(0))
        cost = _dollars.plain(_dollars.EXACT.subtract(_dollars.EXACT.add(*known[:2]), known[2]))
    return Totals(
        calls=calls,
        **{kind: _moved(getattr(total, kind), getattr(old, kind), getattr(new, kind)) for kind in TOKENS},
        cost_usd=cost,
        unpriced=unpriced,
    )


def _moved(total: int | None, old: int | None, new: int | None) -> int | None:
    return None if total is None and new is None else (total or 0) - (old or 0) + (new or 0)
