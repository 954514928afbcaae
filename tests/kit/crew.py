"""An app for workers in processes of their own: its steps say in the table `effects` what they did and where.

What they write there does not roll back with anything, so it is a witness of what really ran.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
from oban import Oban
from psycopg_pool import AsyncConnectionPool

import baton
from baton import Baton, Workflow, step

TABLE = (
    "CREATE TABLE effects (id bigserial, step text, attempt int, phase text, pid int, "
    "at timestamptz DEFAULT clock_timestamp())"
)


def tell(phase: str) -> None:
    context = baton.current()
    with psycopg.connect(os.environ["APP_DSN"], autocommit=True) as conn:
        conn.execute(
            "INSERT INTO effects (step, attempt, phase, pid) VALUES (%s, %s, %s, %s)",
            (context.step, context.attempt, phase, os.getpid()),
        )


def _blocking(gate: str) -> int:
    tell("start")
    while not Path(gate).exists():
        time.sleep(0.01)
    return os.getpid()


@step(max_attempts=5)
def waits(gate: str) -> int:
    """Ends when the file `gate` is there, with the process that it ran in."""
    tell("start")
    while not Path(gate).exists():
        time.sleep(0.01)
    tell("end")
    return os.getpid()


@step(max_attempts=5)
async def never_ends() -> None:
    tell("start")
    await asyncio.Event().wait()


@step(max_attempts=5)
async def blocks(gate: str) -> int:
    """As `waits`, and the event loop with it."""
    return _blocking(gate)


@step(max_attempts=5)
def streams(gate: str) -> None:
    """Streams numbers until the file `gate` is there, at least two."""
    tell("start")
    n = 0
    while n < 2 or not Path(gate).exists():
        baton.stream.write(n)
        n += 1
        time.sleep(0.002)


@step(max_attempts=5)
async def pays() -> int:
    """Asks a model, once, which answers with the process that asked. The first attempt never ends."""

    async def call() -> int:
        tell("call")
        baton.record_usage(baton.Usage(model="m", input_tokens=1, output_tokens=5))
        return os.getpid()

    tell("start")
    answer = await baton.once("answer", call)
    if baton.current().attempt == 1:
        tell("end")
        await asyncio.Event().wait()
    return answer


@step(max_attempts=1)
def raises() -> None:
    raise ValueError("no hope")


@step(max_attempts=3)
def kills() -> None:
    tell("start")
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("CREW_KNOWS"):

    @step(name="crew.special")
    def special() -> int:
        tell("start")
        return os.getpid()


def one_step(name: str, made: Any) -> Workflow:
    workflow = Workflow(f"crew-{name}")
    workflow.add(name, made)
    return workflow


def make() -> Baton:
    """The worker, with the options that its starter gave."""
    return Baton(os.environ["APP_DSN"], **json.loads(os.environ["CREW_OPTIONS"]))


def make_on_node() -> Baton:
    """The same, on an Oban of the app's own with a name for its node."""
    options = json.loads(os.environ["CREW_OPTIONS"])
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        os.environ["APP_DSN"], min_size=1, max_size=5, open=False
    )
    oban = Oban(pool=pool, node=options.pop("node"), queues=options.pop("queues"))
    return Baton(oban=oban, **options)
