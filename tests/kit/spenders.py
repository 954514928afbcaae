"""An app for workers in processes of their own whose steps pay for calls of a model, and say in the table `effects` what.

What they write there does not roll back with anything, so it is a witness of what was really spent. A call is a row there; its
price in thousandths of a dollar is the row's attempt.
"""

import asyncio
import json
import os
import random
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import psycopg

import baton
from baton import Baton, Price, Reserve, Usage, call_llm, step

RESERVED = Reserve(usd="0.030")


class Thousandths:
    """A thousandth of a dollar for each token."""

    def cost(self, usage: Usage, *, at: datetime) -> Price | None:
        return Price(Decimal(usage.output_tokens or 0) / 1_000, "tests", "1")


async def _pay(thousandths: int) -> Usage:
    async with await psycopg.AsyncConnection.connect(os.environ["APP_DSN"], autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO effects (step, attempt, phase, pid) VALUES (%s, %s, 'paid', %s)",
            (baton.current().step, thousandths, os.getpid()),
        )
    return Usage(model="m", input_tokens=0, output_tokens=thousandths)


@step(max_attempts=3)
async def spends(calls: int, most: int) -> None:
    """Makes so many calls, some side by side, each of up to so many thousandths of a dollar."""
    chance = random.Random(baton.current().idempotency_key)
    for _ in range(calls):
        prices = [chance.randint(most // 2, most) for _ in range(chance.randint(1, 3))]
        await asyncio.gather(
            *(call_llm(lambda price=price: _pay(price), model="m", reserve=RESERVED) for price in prices)
        )


@step(max_attempts=3)
async def hangs(gate: str) -> None:
    """Pays for a call of which the answer never comes while there is no file `gate`."""

    async def call() -> Usage:
        answer = await _pay(20)
        while not await asyncio.to_thread(Path(gate).exists):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return answer

    await call_llm(call, model="m", reserve=RESERVED)


def make() -> Baton:
    """The worker, with the options that its starter gave."""
    return Baton(os.environ["APP_DSN"], pricing=Thousandths(), **json.loads(os.environ["CREW_OPTIONS"]))
