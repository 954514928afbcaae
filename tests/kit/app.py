"""An app for `baton start`: steps that tell when they have begun, and what `--app` may name, right and wrong."""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from baton import Baton, Workflow, step

DSN = os.environ.get("APP_DSN", "postgresql://nobody@127.0.0.1:1/none")

baton = Baton(DSN, queues={"default": 2}, shutdown_grace_period=60)
without_queues = Baton(DSN)
number = 3


def make() -> Baton:
    return baton


async def make_later() -> Baton:
    return baton


def fail() -> Baton:
    raise RuntimeError("no\x1b[31m luck")


def touch(path: str) -> None:
    Path(path).touch()


@step
def until_told(begun: str, told: str) -> str:
    """Ends when the file `told` is there."""
    touch(begun)
    while not Path(told).exists():
        time.sleep(0.01)
    return "done"


@step
def stuck_in_a_thread(begun: str, told: str) -> None:
    touch(begun)
    while not Path(told).exists():
        time.sleep(0.01)


@step
async def stuck_in_a_task(begun: str, told: str) -> None:
    touch(begun)
    await asyncio.Event().wait()


@step
async def deaf(begun: str, told: str) -> None:
    """Hears of no cancellation."""
    touch(begun)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@step(max_attempts=1)
def raises(message: str) -> None:
    raise ValueError(message)


@step
def echo(value: Any) -> Any:
    return value


@step
def logs(message: str) -> None:
    logging.getLogger("shop").warning(message)


def workflow(name: str, folder: Path) -> Workflow:
    """One step of the name, which touches `begun` in the folder, and may wait for `told`."""
    made = Workflow("app")
    function = {"until_told": until_told, "thread": stuck_in_a_thread, "task": stuck_in_a_task, "deaf": deaf}[
        name
    ]
    made.add("only", function.new(begun=str(folder / "begun"), told=str(folder / "told")))
    return made
