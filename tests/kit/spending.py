"""Calls of models that were made, as rows, told to whoever follows their run."""

from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg

_CALL = """
    WITH call AS (
      INSERT INTO workflow_step_stats (
        id, workflow_id, workflow_label, step_id, step_name, attempt, call_key, provider, model,
        input_tokens, output_tokens, cache_read_tokens, reasoning_tokens, latency_ms, cost_usd, price_source, price_version)
      SELECT %(id)s, step.workflow_id, run.name, step.id, step.name, %(attempt)s, %(key)s, %(provider)s, %(model)s,
             %(input)s, %(output)s, %(cached)s, %(reasoning)s, %(latency)s, %(cost)s, %(source)s, %(version)s
      FROM workflow_nodes AS step JOIN workflows AS run ON run.id = step.workflow_id
      WHERE step.workflow_id = %(run)s AND step.name = %(step)s
      RETURNING step_id
    ) SELECT baton_announce(array_agg(step_id)) FROM call"""


async def spend(
    dsn: str,
    run_id: str,
    step: str,
    cost: str | None = "0.0125",
    *,
    model: str | None = "gpt-6.1-sol",
    tokens: tuple[int | None, int | None] = (1000, 200),
    cached: int | None = None,
    reasoning: int | None = None,
    attempt: int = 1,
    key: str | None = None,
) -> str:
    """One call of a step; a cost of None is one that is not known. Returns its id."""
    call_id = str(uuid4())
    params: dict[str, Any] = {
        "id": call_id,
        "run": run_id,
        "step": step,
        "attempt": attempt,
        "key": key,
        "provider": "openai",
        "model": model,
        "input": tokens[0],
        "output": tokens[1],
        "cached": cached,
        "reasoning": reasoning,
        "latency": 812.5,
        "cost": None if cost is None else Decimal(cost),
        "source": None if cost is None else "table",
        "version": None if cost is None else "1",
    }
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(_CALL, params)
    return call_id
