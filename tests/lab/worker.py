"""The process under test: a Baton with queues, the lab's steps, and now and then an answer that is lost after its commit."""

import argparse
import asyncio
import ctypes
import logging
import os
import random
import signal
import sys

import psycopg

from baton import Baton
from baton._engine import Acked, Claim, Engine, Outcome
from baton.errors import BatonError
from tests.lab.schedule import QUEUES

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--rescue-after", type=float, required=True)
    parser.add_argument("--luck", required=True, help="seed of the lost answers")
    parser.add_argument("--lose", type=float, default=0.0, help="share of acks whose answer is lost")
    parser.add_argument("--without-rare", action="store_true")
    options = parser.parse_args()
    _die_with(options.parent)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    if not options.without_rare:
        import tests.lab.rare
    import tests.lab.steps  # noqa: F401

    if options.lose:
        _lose_answers(random.Random(options.luck), options.lose)
    asyncio.run(_work(options.dsn, options.rescue_after))


async def _work(dsn: str, rescue_after: float) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    while not told.is_set():
        baton = Baton(dsn, rescue_after=rescue_after, queues=QUEUES, pool_size=5, shutdown_grace_period=1.0)
        try:
            await baton.start()
        except (BatonError, psycopg.Error, OSError):
            # The server is away just now. Whoever starts workers would start this one again.
            await asyncio.sleep(0.1)
            continue
        await told.wait()
        await baton.stop()


def _lose_answers(luck: random.Random, share: float) -> None:
    """An ack commits, and its caller is told that the connection broke."""
    from tests.lab.steps import witness

    original = Engine.ack

    async def ack(self: Engine, outcomes: list[Outcome], claim: Claim | None = None) -> Acked:
        done = await original(self, outcomes, claim)
        if (outcomes or done.claimed) and luck.random() < share:
            await asyncio.to_thread(witness.hit, "lost_answer")
            raise psycopg.OperationalError("the lab lost the answer of a statement that has committed")
        return done

    Engine.ack = ack  # type: ignore[method-assign, assignment]


def _die_with(parent: int) -> None:
    """End with the lab, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the lab has ended")


if __name__ == "__main__":
    main()
