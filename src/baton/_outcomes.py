"""`Snooze` and `Cancel`: outcomes of a step that are neither a result nor a failure. Returned, or raised from any depth.

Oban's own, of the same names, may be returned as well; they are no exceptions.
"""

import math
from collections.abc import Mapping
from typing import Any

from baton.errors import BudgetExhausted, InvalidOption, UnpricedModel

_LARGEST_SNOOZE = 10 * 365 * 86_400


class Snooze(Exception):
    """Run the step again after `seconds`, without using an attempt.

    Args:
        seconds: From 0 to ten years.
        meta: Merged into the job's meta, beside Oban's count of snoozes.

    Raises:
        InvalidOption: `seconds` is no such number.
    """

    def __init__(self, seconds: float, meta: Mapping[str, Any] | None = None) -> None:
        number = (
            isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds)
        )
        if not number or not 0 <= seconds <= _LARGEST_SNOOZE:
            raise InvalidOption(
                f"a snooze of {seconds!r} seconds cannot be; give a number from 0 to {_LARGEST_SNOOZE}"
            )
        super().__init__(f"snoozed for {seconds} seconds")
        self.seconds = seconds
        self.meta = meta


class Cancel(Exception):
    """End the step as cancelled: no further attempt, and dependents that do not ignore it are cancelled too.

    Args:
        reason: Stored as the step's error.
    """

    def __init__(self, reason: str = "cancelled by the step") -> None:
        super().__init__(reason)
        self.reason = reason


def unhandled(error: Exception) -> Exception:
    """What an exception that a step let pass means: without leave of its budget, another attempt would fare no better.

    So does a group of such exceptions, which calls that are made side by side end in: its cancel comes first, then the longest
    of its snoozes.
    """
    leaves = _leaves(error) if isinstance(error, ExceptionGroup) else [error]
    meant = [Cancel(str(one)) if isinstance(one, BudgetExhausted | UnpricedModel) else one for one in leaves]
    if not all(isinstance(one, Cancel | Snooze) for one in meant):
        return error
    cancels = [one for one in meant if isinstance(one, Cancel)]
    snoozes = [one for one in meant if isinstance(one, Snooze)]
    return cancels[0] if cancels else max(snoozes, key=lambda one: one.seconds)


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    found: list[Exception] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, ExceptionGroup) else [one]
    return found
