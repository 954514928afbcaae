"""Calls of models that are on record, without anybody having made them."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from baton._names import uuid7

_CALL = """
INSERT INTO workflow_step_stats (id, workflow_id, workflow_label, step_id, step_name, attempt, call_key, provider, model,
  service_tier, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, units, latency_ms,
  cost_usd, price_source, price_version, inserted_at)
SELECT %(id)s, %(run_id)s, coalesce((SELECT name FROM workflows WHERE id = %(run_id)s), %(label)s),
  coalesce((SELECT id FROM workflow_nodes WHERE workflow_id = %(run_id)s AND name = %(step)s), 0), %(step)s, %(attempt)s,
  %(key)s, %(provider)s, %(model)s, %(service_tier)s, %(input_tokens)s, %(output_tokens)s, %(cache_read_tokens)s,
  %(cache_write_tokens)s, %(reasoning_tokens)s, %(units)s, %(latency_ms)s, %(cost)s::numeric, %(source)s, %(version)s, %(at)s
RETURNING baton_announce(ARRAY[step_id])
"""
_UNKNOWN: dict[str, Any] = dict.fromkeys(
    [
        *(
            "key",
            "provider",
            "service_tier",
            "input_tokens",
            "output_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
        ),
        *("reasoning_tokens", "units", "latency_ms", "source", "version"),
    ]
)


async def spend(
    dsn: str,
    run_id: str | UUID,
    step: str,
    cost: Decimal | str | None = None,
    *,
    model: str | None = "gpt-5",
    attempt: int = 1,
    label: str = "gone",
    at: datetime | None = None,
    **known: Any,
) -> str:
    """Record a call of a model by a step of a run, which may be pruned, tell who follows it, and return the call's id."""
    row = _UNKNOWN | {
        "id": uuid7(),
        "run_id": run_id,
        "step": step,
        "model": model,
        "attempt": attempt,
        "label": label,
        "cost": cost,
        "at": at or datetime.now(UTC),
        **({"source": "genai-prices", "version": "0.2.3"} if cost is not None else {}),
        **known,
    }
    row["units"] = None if row["units"] is None else Jsonb(row["units"])
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(_CALL.encode(), row)
    return str(row["id"])
