"""What the page reads: runs and steps as JSON."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from baton import (
    BudgetLine,
    BudgetStatus,
    ModelCall,
    ModelCost,
    RunState,
    RunSummary,
    StepState,
    StepStatus,
    Totals,
    _dollars,
)
from baton._error_line import error_line

_LONGEST_ERROR = 300
_LARGEST = 2**53 - 1


def dumps(value: Any) -> bytes:
    """JSON with times in UTC, as `2026-11-26T08:00:00Z`."""
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


def run(summary: RunSummary) -> dict[str, Any]:
    """A run without its steps."""
    return {
        "id": summary.id,
        "name": summary.name,
        "key": summary.key,
        "state": summary.state,
        "generation": summary.generation,
        "steps": summary.steps,
        "unsettled": summary.unsettled,
        "failed": summary.failed,
        "inserted_at": summary.inserted_at,
        "finished_at": summary.finished_at,
        "paused_at": summary.paused_at,
        "paused_by_budget": summary.paused_by_budget,
        "cancel_requested_at": summary.cancel_requested_at,
        "cancel_reason": summary.cancel_reason,
        "deadline_at": summary.deadline_at,
        "rerun_of": summary.rerun_of,
    }


def step(status: StepStatus) -> dict[str, Any]:
    """A step as lists, boxes and the timeline show it."""
    progress = status.progress
    return {
        "position": status.position,
        "name": status.name,
        "state": status.state,
        "function": status.function,
        "queue": status.queue,
        "attempt": status.attempt,
        "max_attempts": status.max_attempts,
        "error": _one_line(status.error),
        "scheduled_at": status.scheduled_at,
        "started_at": status.started_at,
        "settled_at": status.settled_at,
        "waiting_on": status.waiting_on,
        "snoozed": status.snoozed,
        "runs_on": status.runs_on,
        "cancel_requested_at": status.cancel_requested_at,
        "progress": progress
        and {"done": progress.done, "total": progress.total, "message": progress.message},
        "chunks": status.chunks,
        "usage": usage(status.usage),
    }


def usage(totals: Totals | None) -> dict[str, Any] | None:
    """What calls of models used and cost; money as text, exactly. None without calls."""
    if totals is None:
        return None
    return {
        "calls": totals.calls,
        "input_tokens": _number(totals.input_tokens),
        "output_tokens": _number(totals.output_tokens),
        "cache_read_tokens": _number(totals.cache_read_tokens),
        "cache_write_tokens": _number(totals.cache_write_tokens),
        "reasoning_tokens": _number(totals.reasoning_tokens),
        "cost_usd": money(totals.cost_usd),
        "cost": totals.cost_text,
        "unpriced": totals.unpriced,
    }


def models(costs: Sequence[ModelCost]) -> list[dict[str, Any]]:
    """What each model cost."""
    return [{"provider": one.provider, "model": one.model, "usage": usage(one.totals)} for one in costs]


def call(made: ModelCall) -> dict[str, Any]:
    """One call of a model."""
    return {
        "id": made.call_id,
        "attempt": made.attempt,
        "key": made.key,
        "provider": made.provider,
        "model": made.model,
        "service_tier": made.service_tier,
        "input_tokens": _number(made.input_tokens),
        "output_tokens": _number(made.output_tokens),
        "cache_read_tokens": _number(made.cache_read_tokens),
        "cache_write_tokens": _number(made.cache_write_tokens),
        "reasoning_tokens": _number(made.reasoning_tokens),
        "latency": made.latency,
        "cost_usd": money(made.cost_usd),
        "cost": made.cost_text,
        "prices": " ".join(filter(None, (made.price_source, made.price_version))) or None,
        "at": made.at,
    }


def budget(status: BudgetStatus) -> dict[str, Any]:
    """A budget of a run: of each limit that it has, what is spent and set aside. Not whose else it is."""
    lines: list[tuple[str, BudgetLine[Decimal] | BudgetLine[int]]] = [
        ("usd", status.usd),
        ("tokens", status.tokens),
        ("calls", status.calls),
    ]
    return {
        "key": status.key,
        "name": status.name,
        "text": status.text,
        "exhausted": status.is_exhausted,
        "on_exhausted": status.on_exhausted,
        "unpriced_calls": status.unpriced_calls,
        "lines": [
            {
                "kind": kind,
                "total": _amount(line.total),
                "spent": _amount(line.spent),
                "reserved": _amount(line.reserved),
                # As people read them.
                "text": [_said(line.total), _said(line.spent), _said(line.reserved)],
            }
            for kind, line in lines
            if line.total is not None
        ],
    }


def _amount(value: Decimal | int) -> str | int | None:
    return money(value) if isinstance(value, Decimal) else _number(value)


def _said(value: Decimal | int) -> str:
    return _dollars.text(value) if isinstance(value, Decimal) else f"{value:,}"


def money(amount: Decimal | None) -> str | None:
    """All digits of it."""
    return None if amount is None else _dollars.digits(amount)


def _number(value: int | None) -> int | None:
    """As large as a browser counts."""
    return None if value is None else min(value, _LARGEST)


def counts(by_state: Mapping[RunState, int] | Mapping[StepState, int]) -> dict[str, int]:
    """How many by state, of the states that there are."""
    return {state.value: count for state, count in by_state.items() if count}


def _one_line(error: str | None) -> str | None:
    """The line of an error that says what it is, cut to a length. None for none."""
    return error_line(error)[:_LONGEST_ERROR] or None
