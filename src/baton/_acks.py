"""Claims and acks of one Oban's queues: outcomes are written until each is durable or known to be stale, and what the same
statement claimed is handed over.

Part of the seam to Oban, which asks for both: `_oban` fills the slots that lead here.
"""

import asyncio
import json
import logging
import math
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg
from oban._executor import AckAction
from oban._extensions import use_ext
from oban._producer import Producer
from oban.job import Job

from baton import _signals, _step
from baton._codec import clean_text, encode
from baton._deadline import pause_after, within
from baton._dispatch import seconds_of
from baton._engine import Acked, Claim, Engine, Outcome
from baton.errors import InvalidResult

logger = logging.getLogger("baton.engine")

# SQLSTATE classes that say "not these values": data, constraints, limits, raised by a function. Any other error may pass, be it
# because the server restarts or because somebody is in the middle of a migration, and an outcome waits for that.
_REFUSED = ("21", "22", "23", "54", "P0")
# A statement that takes longer is cancelled and sent again, which changes nothing if it had come through: a lock held by
# somebody else, a connection that is half open. While stopping, outcomes that cannot be written are given up after a while.
CALL_SECONDS = 20.0
_STOP_SECONDS = 1.0
_LAST_CALL = 0.2
# A protocol message ends at 1 GB; a batch of results well before.
_BATCH_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt's outcome, as Oban has it and as the engine writes it."""

    action: AckAction
    outcome: Outcome


class Acks:
    """What the queues of one Oban have claimed and not yet begun, and how their outcomes reach the database.

    Attributes:
        producers: Those that Baton has, by uuid.
        stopping: Nothing is claimed any more, for any of them.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        wake: Callable[[Sequence[str]], object],
        threads: ThreadPool,
        result_limit: int,
    ) -> None:
        self.producers: dict[str, Producer] = {}
        self.stopping = False
        self._engine = engine
        self._wake = wake
        self._threads = threads
        self._result_limit = result_limit
        self._give_up_at: dict[str, float] = {}
        self._claimed: dict[str, list[Job]] = {}
        self._just_claimed: set[str] = set()
        self._uncertain: set[str] = set()

    def has_more(self, producer: Producer) -> bool:
        """Whether an error left a queue with something to do."""
        uuid = producer._uuid
        return uuid in self._uncertain or bool(producer._pending_acks or self._claimed.get(uuid))

    def is_ending(self, producer: Producer) -> bool:
        """Whether `begin_stop` was called for a queue."""
        return producer._uuid in self._give_up_at

    def begin_stop(self, producer: Producer, grace: float | None) -> None:
        """From now on a queue claims nothing, and its outcomes are tried until the grace, and a moment more, has passed."""
        self._give_up_at[producer._uuid] = _clock() + (math.inf if grace is None else grace) + _STOP_SECONDS

    def hurry(self, producer: Producer) -> None:
        """Give the outcomes of a queue that stops a moment from now, whatever is left of its grace."""
        self._give_up_at[producer._uuid] = min(self._give_up_at[producer._uuid], _clock() + _STOP_SECONDS)

    async def in_time(self, producer: Producer, work: Coroutine[Any, Any, None]) -> None:
        """What `work` returns, in the time that a queue which stops has left.

        Raises:
            TimeoutError: It did not end in time.
        """
        await within(self._left(producer), work, asked=_LAST_CALL)

    def _left(self, producer: Producer) -> float:
        """Seconds that a stopping queue has for its outcomes."""
        return max(_LAST_CALL, self._give_up_at[producer._uuid] - _clock())

    async def flush(self, producer: Producer) -> None:
        """Write what ended while a queue stopped, and give back what never started."""
        try:
            if producer._pending_acks:
                # They stay with the queue until they are written: what it knows of, `_reclaim` leaves alone.
                pending = list(producer._pending_acks)
                await self.ack_jobs(pending)
                written = set(map(id, pending))
                producer._pending_acks = [one for one in producer._pending_acks if id(one) not in written]
            await self.in_time(producer, self._return_surplus(producer))
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.error(
                "outcomes of queue %s were not written (%s); its jobs will run again",
                producer._queue,
                _one_line(error),
            )
        except Exception:
            logger.exception(
                "outcomes of queue %s were not written; its jobs will run again", producer._queue
            )

    async def sweep(self) -> None:
        """Pay what is owed; see `baton_sweep`."""
        self._wake(await self._engine.sweep())

    async def ack_jobs(self, actions: list[AckAction]) -> list[int]:
        """Write outcomes until each is durable or known to be stale, and claim what may run next."""
        producer = self._producer_of(actions)
        claims = producer is not None and self._claim(producer) is not None
        acked: list[int] = []
        for batch in _batches([_Ended(action, self._outcome(action)) for action in actions]):
            acked += await self._ack_batch(batch, producer)
        if producer is not None:
            await self._return_surplus(producer)
            if claims and self._room(producer, claimed=0):
                self._just_claimed.add(producer._uuid)
        return acked

    async def _ack_batch(self, batch: list[_Ended], producer: Producer | None) -> list[int]:
        tries = 0
        while True:
            try:
                done = await within(self._patience(producer), self._call(batch, producer), asked=_LAST_CALL)
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, psycopg.Error) and not _may_pass(error):
                    return await self._divide(batch, producer, error)
                tries += 1
                if producer is not None and _clock() >= self._give_up_at.get(producer._uuid, math.inf):
                    raise
                logger.warning("could not write %d outcomes (%s); trying again", len(batch), _one_line(error))
            else:
                await self._after_ack(batch, done, producer)
                return done.acked
            pause = random.uniform(0.5, 1.0) * pause_after(tries, first=0.1, longest=2.0)  # noqa: S311
            await asyncio.sleep(min(pause, self._patience(producer)))

    def _patience(self, producer: Producer | None) -> float:
        """Seconds that one statement gets."""
        if producer is None or producer._uuid not in self._give_up_at:
            return CALL_SECONDS
        return min(CALL_SECONDS, self._left(producer))

    async def _call(self, batch: Sequence[_Ended], producer: Producer | None) -> Acked:
        """Ack and claim; after a call whose answer was lost, first return what that one may have claimed."""
        claim = self._claim(producer)
        outcomes = [ended.outcome for ended in batch]
        if producer is not None and producer._uuid in self._uncertain:
            await self._reclaim(producer, outcomes)
        if producer is not None and claim is not None:
            self._uncertain.add(producer._uuid)
        try:
            done = await self._engine.ack(outcomes, claim)
        except psycopg.Error as error:
            # With an SQLSTATE the server said no, and claimed nothing.
            if error.sqlstate is not None and producer is not None:
                self._uncertain.discard(producer._uuid)
            raise
        if producer is not None:
            self._uncertain.discard(producer._uuid)
        return done

    async def _reclaim(self, producer: Producer, outcomes: Sequence[Outcome]) -> None:
        known = [
            *producer._running_jobs,
            *(job.id for job in self._claimed.get(producer._uuid, ()) if job.id),
        ]
        known += [outcome.job_id for outcome in outcomes]
        known += [action.id for action in producer._pending_acks if action.id is not None]
        returned = await self._engine.reclaim(producer._queue, UUID(producer._uuid), known)
        if returned:
            logger.info(
                "returned %d jobs that a lost answer had claimed for queue %s", returned, producer._queue
            )
        self._uncertain.discard(producer._uuid)

    async def _after_ack(self, batch: Sequence[_Ended], done: Acked, producer: Producer | None) -> None:
        self._keep(producer, done.claimed)
        # Its own queue the ack has just claimed from: there is nothing left, or no room until the next job ends.
        self._wake([queue for queue in done.queues if producer is None or queue != producer._queue])
        written = set(done.acked)
        for ended in batch:
            # What was not written is an attempt's that no longer held its job: of that one, somebody else tells.
            if ended.outcome.job_id in written:
                _signals.ended(ended.action, done.notes.stopped)
        _signals.finished(done.notes.finished)
        if done.owed:
            try:
                await within(self._patience(producer), self.sweep())
            except Exception:
                logger.warning(
                    "could not pay what is owed right after an ack; the next sweep will", exc_info=True
                )

    async def _divide(
        self, batch: list[_Ended], producer: Producer | None, error: psycopg.Error
    ) -> list[int]:
        """One outcome that the database refuses must not take the others with it: halve until it is alone."""
        if len(batch) > 1:
            middle = len(batch) // 2
            first = await self._ack_batch(batch[:middle], producer)
            return first + await self._ack_batch(batch[middle:], producer)
        job = batch[0].action.job
        logger.error("the database refused the outcome of job %d: %s", job.id, _one_line(error))
        action = AckAction(
            job=job,
            state="discarded",
            error={
                "attempt": job.attempt,
                "at": datetime.now(UTC).isoformat(),
                "error": f"its outcome could not be written: {_one_line(error)}",
            },
        )
        refused = [_Ended(action, self._outcome(action))]
        try:
            done = await self._call(refused, producer)
        except psycopg.Error as again:
            if _may_pass(again):
                raise
            # Not even that it failed can be written. The job stays executing, for the lifeline; the queue goes on.
            logger.error("the database refused the failure of job %d as well: %s", job.id, _one_line(again))
            return []
        await self._after_ack(refused, done, producer)
        return done.acked

    async def get_jobs(self, producer: Producer) -> list[Job]:
        """Hand over what the last ack claimed, or claim now."""
        if producer._uuid in self._just_claimed:
            # The ack of this same turn looked, and nothing has run in between.
            self._just_claimed.discard(producer._uuid)
        elif self._claim(producer) is not None:
            done = await within(CALL_SECONDS, self._call([], producer))
            self._keep(producer, done.claimed)
        await self._return_surplus(producer)
        return self._claimed.pop(producer._uuid, [])

    async def _return_surplus(self, producer: Producer) -> None:
        """Give back what was claimed if the queue paused, shrank or stopped while the statement was under way."""
        claimed = self._claimed.get(producer._uuid, [])
        room = self._room(producer, claimed=0)
        if len(claimed) <= room:
            return
        self._claimed[producer._uuid], surplus = claimed[:room], claimed[room:]
        try:
            await self._engine.give_back(
                [(job.id or 0, job.attempted_at or datetime.now(UTC)) for job in surplus]
            )
        except Exception:
            # From here on they are jobs that were claimed and are not known of.
            self._uncertain.add(producer._uuid)
            logger.warning("could not give back %d jobs; trying again", len(surplus), exc_info=True)

    def _room(self, producer: Producer, *, claimed: int) -> int:
        if (
            self.stopping
            or producer._paused
            or producer._stopping.is_set()
            or producer._uuid in self._give_up_at
        ):
            return 0
        return max(0, producer._limit - len(producer._running_jobs) - claimed)

    def _claim(self, producer: Producer | None) -> Claim | None:
        if producer is None:
            return None
        room = self._room(producer, claimed=len(self._claimed.get(producer._uuid, ())))
        if room == 0:
            return None
        return Claim(queue=producer._queue, demand=room, node=producer._node, producer=UUID(producer._uuid))

    def _keep(self, producer: Producer | None, claimed: list[str]) -> None:
        if producer is None:
            return
        for text in claimed:
            try:
                job = self._job(_read_claim(text))
            except Exception as error:
                # Whatever somebody wrote into the row: the others are claimed as well, and must run.
                self._refuse(producer, text, error)
            else:
                self._claimed.setdefault(producer._uuid, []).append(job)

    @staticmethod
    def _refuse(producer: Producer, text: str, error: Exception) -> None:
        """Discard a job that cannot even be read, so that it does not stop the queue at each claim."""
        head = _HEAD.match(text)
        assert head is not None
        job = Job(
            "baton.StepWorker", id=int(head[1]), attempted_at=datetime.fromisoformat(head[2]), _validate=False
        )
        job.attempted_by = [producer._node, producer._uuid]
        logger.error("job %d cannot be read and is discarded: %s", job.id, _one_line(error))
        record = {
            "attempt": None,
            "at": datetime.now(UTC).isoformat(),
            "error": f"it cannot be read: {_one_line(error)}",
        }
        producer._pending_acks.append(AckAction(job=job, state="discarded", error=record))
        producer.notify()

    def _job(self, row: dict[str, Any]) -> Job:
        step = row.pop("step")
        for name in (
            "inserted_at",
            "attempted_at",
            "scheduled_at",
            "cancelled_at",
            "completed_at",
            "discarded_at",
        ):
            if row[name] is not None:
                row[name] = datetime.fromisoformat(row[name])
        job = Job(**row, _validate=False)
        try:
            use_ext("job.after_new", _unchanged, job)
        except Exception:
            logger.warning(
                "an extension refused job %s after it was claimed; it runs all the same",
                job.id,
                exc_info=True,
            )
        if step is not None:
            job.extra[_step.EXTRA] = _step.Attempt(
                store=self._engine,
                threads=self._threads,
                step_id=step["id"],
                workflow_id=step["workflow_id"],
                label=str(job.meta.get("workflow_label", "")),
                name=step["name"],
                deps=tuple(step["deps"]),
                state=step["state"],
                doomed=step["doomed"],
                inputs=step["inputs"] if step["deps"] else {},
                stored=step["stored"],
                result_limit=self._result_limit,
                released_at=datetime.fromisoformat(step["released_at"]) if step["released_at"] else None,
                spans=tuple(step["spans"] or ()),
                debug=step["debug"],
                budgeted=step["budgeted"],
            )
        return job

    def _producer_of(self, actions: list[AckAction]) -> Producer | None:
        for action in actions:
            if len(action.job.attempted_by) > 1:
                return self.producers.get(action.job.attempted_by[1])
        return None

    @staticmethod
    def _outcome(action: AckAction) -> Outcome:
        job = action.job
        attempt = _step.attempt_of(job)
        assert job.id is not None
        error = dict(action.error, error=clean_text(str(action.error["error"]))) if action.error else None
        return Outcome(
            job_id=job.id,
            attempted_at=job.attempted_at or datetime.now(UTC),
            state=action.state,
            attempt_change=action.attempt_change,
            delay=seconds_of(action.schedule_in),
            error=error,
            meta=_meta(action.meta),
            result=attempt.result if attempt and action.state == "completed" else None,
            reason=error["error"] if error and action.state in ("cancelled", "discarded") else None,
        )


def _read_claim(text: str) -> dict[str, Any]:
    """A claimed job. A step's values were written by our codec, which has no integers beyond 64 bits: what looks like one is a
    large float. An ordinary job's are read by the standard library, as in Oban; orjson would make floats of large integers."""
    try:
        row: dict[str, Any] = orjson.loads(text)
        if row["step"] is not None:
            return row
    except orjson.JSONDecodeError:
        # Nested deeper, or larger, than orjson takes.
        pass
    ordinary: dict[str, Any] = json.loads(text)
    return ordinary


def _batches(outcomes: list[_Ended]) -> list[list[_Ended]]:
    batches: list[list[_Ended]] = [[]]
    size = 0
    for ended in outcomes:
        weight = len(ended.outcome.result or "")
        if batches[-1] and size + weight > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(ended)
        size += weight
    return batches


def _meta(meta: dict[str, Any] | None) -> str | None:
    if meta is None:
        return None
    try:
        return encode(meta, root="meta")
    except InvalidResult as error:
        logger.warning("the meta of a snooze is left out: %s", error)
        return None


def _may_pass(error: psycopg.Error) -> bool:
    return error.sqlstate is None or not error.sqlstate.startswith(_REFUSED)


def _one_line(error: BaseException) -> str:
    return clean_text(" ".join(str(error).split()), 300) or type(error).__name__


# How the text of a claimed job begins; see claim.sql.
_HEAD = re.compile(r'\{"id" : (\d+), "attempted_at" : "([^"]+)"')


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _unchanged(_job: Job) -> None:
    return None
