"""The one seam to Oban: imports its private modules and fills its extension slots.

Slots are global to a process and the last writer wins, so each is filled once, dispatches on the `Query` it is called with, and
passes everything else on to whoever filled it before.
"""

import asyncio
import json
import logging
import math
import random
import re
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor as ThreadPool
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg
from oban import Oban, telemetry
from oban._executor import AckAction
from oban._extensions import get_ext, put_ext, use_ext
from oban._lifeline import _rescue as oban_rescue
from oban._producer import Producer
from oban._producer import _get_jobs as oban_get_jobs
from oban._producer import _init as oban_producer_meta
from oban._pruner import _prune as oban_prune
from oban._query import Query
from oban._query import _ack_jobs as oban_ack_jobs
from oban._query import _insert_jobs as oban_insert_jobs
from oban._query import _reset as oban_reset
from oban.job import Job

from baton import _step
from baton._codec import clean_text, encode
from baton._deadline import within
from baton._dispatch import Dispatcher, seconds_of
from baton._engine import Acked, Claim, Engine, Outcome
from baton._heartbeat import Heart, Heartbeat
from baton._leader import LeasedLeader
from baton._lifecycle import Lifecycle
from baton._maintenance import Maintenance
from baton._notifier import Listener
from baton._queries import insert_jobs as insert_many_jobs
from baton.errors import InvalidOption, InvalidResult

logger = logging.getLogger("baton.engine")

# SQLSTATE classes that say "not these values": data, constraints, limits, raised by a function. Any other error may pass, be it
# because the server restarts or because somebody is in the middle of a migration, and an outcome waits for that.
_REFUSED = ("21", "22", "23", "54", "P0")
# A statement that takes longer is cancelled and sent again, which changes nothing if it had come through: a lock held by
# somebody else, a connection that is half open. While stopping, outcomes that cannot be written are given up after a while.
_CALL_SECONDS = 20.0
_STOP_SECONDS = 1.0
_LAST_CALL = 0.2
_TICK_SECONDS = 60.0
# A protocol message ends at 1 GB; a batch of results well before.
_BATCH_BYTES = 64 * 1024 * 1024

# Of a producer, while Baton has it.
_REPLACED = ("_dispatcher", "_debounce_interval", "_on_job_complete", "stop")

_seams: weakref.WeakKeyDictionary[Query, "Seam"] = weakref.WeakKeyDictionary()


class Seam:
    """Baton's hold on one Oban instance: what its slots do for that instance's `Query`."""

    def __init__(
        self,
        oban: Oban,
        engine: Engine,
        maintenance: Maintenance,
        *,
        heart: Callable[..., Heartbeat],
        threads: ThreadPool,
        result_limit: int,
    ) -> None:
        self.oban = oban
        self.engine = engine
        self.maintenance = maintenance
        self.heartbeat = heart(hearts=self._hearts, on_the_loop=self._on_the_loop)
        self.dispatcher = Dispatcher()
        self.stopping = False
        self.on_reconnect: Callable[[], object] = _nothing
        """Called when notifications may have been missed and are heard again."""
        self._give_up_at: dict[str, float] = {}
        self._threads = threads
        self._result_limit = result_limit
        self._claimed: dict[str, list[Job]] = {}
        self._just_claimed: set[str] = set()
        self._uncertain: set[str] = set()
        self._by_uuid: dict[str, Producer] = {}
        self._before: dict[str, dict[str, Any]] = {}

    def attach(self) -> None:
        """Take over dispatch and wake-ups, and make the slots find this instance. Before or after Oban's start.

        Raises:
            InvalidOption: Another Baton has this instance.
        """
        if self.oban._query in _seams:
            raise InvalidOption("this Oban instance has a Baton already; share that one, or stop it first")
        _fill_slots()
        query = self.oban._query
        _seams[query] = self
        self._leader = LeasedLeader.take_over(self.oban._leader, self.engine)
        self._listener = Listener.take_over(self.oban._notifier, self._catch_up)
        self._lifecycle = Lifecycle(self.oban)
        for producer in self.oban._producers.values():
            self.adopt(producer)
        stager = self.oban._stager
        original = stager._on_notification

        async def on_notification(channel: str, payload: dict[str, Any]) -> None:
            # What this process announced it has already acted on.
            if payload.get("origin") != self.engine.origin:
                await original(channel, payload)

        # No slot for these. Without, the cancel of a job that runs is a notification, and lost with it; and what was staged
        # just now waits for the next turn.
        query.cancel_many_jobs = self._cancel_many_jobs  # type: ignore[method-assign]
        query.stage_jobs = self._stage_jobs  # type: ignore[method-assign]
        # Nor for the rows by which a process is known to live.
        query.refresh_producers = self._refresh_producers  # type: ignore[method-assign]
        query.cleanup_expired_producers = self.engine.delete_silent_producers  # type: ignore[method-assign]
        token = stager._listen_token
        stager._on_notification = on_notification
        if token is not None:
            self.oban._notifier._subscriptions["insert"][token] = on_notification

    def detach(self) -> None:
        """Forget the instance; its slots pass on to Oban's own behaviour."""
        if _seams.get(self.oban._query) is self:
            del _seams[self.oban._query]
            del self.oban._query.cancel_many_jobs
            del self.oban._query.stage_jobs
            del self.oban._query.refresh_producers
            del self.oban._query.cleanup_expired_producers
            self._lifecycle.release()
            if self._leader is not None:
                self._leader.give_back()
            if self._listener is not None:
                # It goes on listening, for it needs nothing of ours.
                self._listener.on_reconnect = _nothing

    def adopt(self, producer: Producer) -> None:
        """Run a queue's jobs through our dispatcher, without waiting for company before it fetches. Once."""
        if producer._uuid in self._by_uuid or producer._uuid in self._give_up_at:
            return
        self._before[producer._uuid] = {name: getattr(producer, name) for name in _REPLACED}
        producer._dispatcher = self.dispatcher
        # Acks gather while a statement is under way; sleeping for more would only add to the hop between two steps.
        producer._debounce_interval = 0.0
        self._by_uuid[producer._uuid] = producer
        self.engine.local_producers.append(UUID(producer._uuid))
        self.heartbeat.look()
        stop = producer.stop

        async def stop_in_order() -> None:
            await self._stop(producer, stop)

        producer.stop = stop_in_order  # type: ignore[method-assign]

        def on_job_complete(job_id: int) -> None:
            _, task = producer._running_jobs.get(job_id, (None, None))
            if task is None or task.done():
                complete(job_id)
            else:
                # An earlier attempt ended; the one that stands under the job's id goes on.
                producer.notify()

        complete = producer._on_job_complete
        producer._on_job_complete = on_job_complete  # type: ignore[method-assign]

    def wake(self, queues: Sequence[str]) -> None:
        """Let the local producers of these queues look for jobs."""
        for queue in set(queues):
            producer = self.oban._producers.get(queue)
            if producer is not None:
                producer.notify()

    def _catch_up(self) -> None:
        """LISTEN is in force again: whatever was announced meanwhile was not heard."""
        for producer in self.oban._producers.values():
            producer.notify()
        self.on_reconnect()

    async def sweep(self) -> None:
        """Pay what is owed; see `baton_sweep`."""
        self.wake(await self.engine.sweep())

    async def every_second(self) -> None:
        """Sweep; restart producers that an error left with something to do; run again what died."""
        for producer in self.oban._producers.values():
            # One that was started after Baton was attached.
            self.adopt(producer)
        for producer in self._by_uuid.values():
            uuid = producer._uuid
            if uuid in self._uncertain or producer._pending_acks or self._claimed.get(uuid):
                producer.notify()
        await self.sweep()
        await self.engine.expire()
        await self._tell_cancelled()
        await self.maintenance.rescue()

    async def _cancel_many_jobs(self, ids: list[int]) -> tuple[int, list[int]]:
        """In place of Oban's query; Oban notifies those that run."""
        hit = await self.engine.cancel_many(ids)
        return len(hit), [job_id for job_id, state in hit if state == "executing"]

    async def _stage_jobs(
        self, limit: int, queues: list[str], before: datetime | None = None
    ) -> tuple[int, list[str]]:
        """In place of Oban's query."""
        return await within(_CALL_SECONDS, self.engine.stage_jobs(limit, queues, before))

    async def _tell_cancelled(self) -> None:
        """End running jobs that were cancelled, should the notification have been lost."""
        running = {
            job_id: (producer, job)
            for producer in self._by_uuid.values()
            for job_id, (job, _) in producer._running_jobs.items()
            if job_id > 0
        }
        if running:
            for job_id in await self.engine.cancelled(list(running)):
                self.dispatcher.cancel(*running[job_id])

    def _hearts(self) -> list[Heart]:
        """Called in the heartbeat's thread."""
        return [
            Heart(producer._uuid, producer._name, producer._node, producer._queue, _row_meta(producer))
            for producer in list(self._by_uuid.values())
        ]

    def _on_the_loop(self) -> list[str]:
        """Called in the heartbeat's thread."""
        named = []
        for producer in list(self._by_uuid.values()):
            for job, _ in list(producer._running_jobs.values()):
                attempt = _step.attempt_of(job)
                if attempt is None:
                    named.append(f"job {job.id} ({job.worker})")
                elif attempt.thread is None:
                    named.append(f"{attempt.name!r} of {attempt.label!r}")
        return named

    async def _refresh_producers(self, uuids: list[str]) -> list[str]:
        """In place of Oban's query: the heartbeat's rows are the heartbeat's business, unless it is late itself."""
        own = [uuid for uuid in uuids if self.heartbeat.on_time and uuid in self._by_uuid]
        others = [uuid for uuid in uuids if uuid not in own]
        return own + (await Query.refresh_producers(self.oban._query, others) if others else [])

    async def stop_producers(self) -> None:
        """Stop the queues, in good order, before anything else of Oban's stops."""
        stopped = await asyncio.gather(
            *(producer.stop() for producer in self.oban._producers.values()), return_exceptions=True
        )
        for error in stopped:
            if isinstance(error, BaseException):
                logger.error("a queue did not stop in good order", exc_info=error)

    async def _stop(self, producer: Producer, stop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stop a queue. Its loop goes on without claiming, so outcomes are written as its jobs end; what outlives the grace is
        given back. Oban ends the loop first, writes outcomes at the end of the grace, and leaves the rest executing."""
        if producer._uuid not in self._by_uuid:
            await stop()
            return
        if producer._uuid in self._give_up_at:
            return
        grace = producer._shutdown_grace_period
        self._begin_stop(producer, grace)
        await self.dispatcher.drain(grace, producer)
        if grace is None:
            self._hurry(producer)
        # There is nothing left that it should wait for.
        producer._shutdown_grace_period = 0.0
        try:
            await within(self._left(producer), stop(), asked=_LAST_CALL)
        except TimeoutError:
            logger.warning("queue %s did not stop in good order; it is given up", producer._queue)
        await self._flush(producer)

    async def drain(self, grace: float | None) -> None:
        """Let what runs end and write it, while Oban goes on without us."""
        producers = list(self._by_uuid.values())
        for producer in producers:
            self._begin_stop(producer, grace)
        await self.dispatcher.drain(grace)
        for producer in producers:
            if grace is None:
                self._hurry(producer)
            await self._flush(producer)

    def _begin_stop(self, producer: Producer, grace: float | None) -> None:
        """From now on it claims nothing, and its outcomes are tried until the grace, and a moment more, has passed."""
        self._give_up_at[producer._uuid] = (
            self._clock() + (math.inf if grace is None else grace) + _STOP_SECONDS
        )

    def hurry(self) -> None:
        """Give back what runs now, whatever is left of its grace."""
        self.dispatcher.hurry()
        for producer in self._by_uuid.values():
            if producer._uuid in self._give_up_at:
                self._hurry(producer)

    def _hurry(self, producer: Producer) -> None:
        soon = self._clock() + _STOP_SECONDS
        self._give_up_at[producer._uuid] = min(self._give_up_at[producer._uuid], soon)

    def _left(self, producer: Producer) -> float:
        """Seconds that a stopping queue has for its outcomes."""
        return max(_LAST_CALL, self._give_up_at[producer._uuid] - self._clock())

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    async def _flush(self, producer: Producer) -> None:
        """Write what ended while a queue stopped, and give back what never started."""
        try:
            pending, producer._pending_acks = producer._pending_acks, []
            if pending:
                await self.ack_jobs(pending)
            await within(self._left(producer), self._return_surplus(producer), asked=_LAST_CALL)
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
        if self._by_uuid.pop(producer._uuid, None) is not None:
            self.engine.local_producers.remove(UUID(producer._uuid))
            self._leave(producer)
            self.heartbeat.leave(producer._uuid, gone=producer._stopping.is_set())

    def _leave(self, producer: Producer) -> None:
        """A queue that goes on without Baton has again what it had before."""
        before = self._before.pop(producer._uuid)
        if not producer._stopping.is_set():
            for name, value in before.items():
                setattr(producer, name, value)
            self.dispatcher.forget(producer)

    async def ack_jobs(self, actions: list[AckAction]) -> list[int]:
        """Write outcomes until each is durable or known to be stale, and claim what may run next."""
        producer = self._producer_of(actions)
        claims = producer is not None and self._claim(producer) is not None
        acked: list[int] = []
        for batch in _batches([self._outcome(action) for action in actions]):
            acked += await self._ack_batch(batch, producer)
        if producer is not None:
            await self._return_surplus(producer)
            if claims and self._room(producer, claimed=0):
                self._just_claimed.add(producer._uuid)
        return acked

    async def _ack_batch(self, outcomes: list[Outcome], producer: Producer | None) -> list[int]:
        tries = 0
        while True:
            try:
                done = await within(
                    self._patience(producer), self._call(outcomes, producer), asked=_LAST_CALL
                )
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, psycopg.Error) and not _may_pass(error):
                    return await self._divide(outcomes, producer, error)
                tries += 1
                if producer is not None and self._clock() >= self._give_up_at.get(producer._uuid, math.inf):
                    raise
                logger.warning(
                    "could not write %d outcomes (%s); trying again", len(outcomes), _one_line(error)
                )
            else:
                await self._after_ack(done, producer)
                return done.acked
            pause = random.uniform(0.5, 1.0) * min(0.05 * 2**tries, 2.0)  # noqa: S311
            await asyncio.sleep(min(pause, self._patience(producer)))

    def _patience(self, producer: Producer | None) -> float:
        """Seconds that one statement gets."""
        if producer is None or producer._uuid not in self._give_up_at:
            return _CALL_SECONDS
        return min(_CALL_SECONDS, self._left(producer))

    async def _call(self, outcomes: Sequence[Outcome], producer: Producer | None) -> Acked:
        """Ack and claim; after a call whose answer was lost, first return what that one may have claimed."""
        claim = self._claim(producer)
        if producer is not None and producer._uuid in self._uncertain:
            await self._reclaim(producer, outcomes)
        if producer is not None and claim is not None:
            self._uncertain.add(producer._uuid)
        try:
            done = await self.engine.ack(outcomes, claim)
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
        returned = await self.engine.reclaim(producer._queue, UUID(producer._uuid), known)
        if returned:
            logger.info(
                "returned %d jobs that a lost answer had claimed for queue %s", returned, producer._queue
            )
        self._uncertain.discard(producer._uuid)

    async def _after_ack(self, done: Acked, producer: Producer | None) -> None:
        self._keep(producer, done.claimed)
        # Its own queue the ack has just claimed from: there is nothing left, or no room until the next job ends.
        self.wake([queue for queue in done.queues if producer is None or queue != producer._queue])
        if done.owed:
            try:
                await within(self._patience(producer), self.sweep())
            except Exception:
                logger.warning(
                    "could not pay what is owed right after an ack; the next sweep will", exc_info=True
                )

    async def _divide(
        self, outcomes: list[Outcome], producer: Producer | None, error: psycopg.Error
    ) -> list[int]:
        """One outcome that the database refuses must not take the others with it: halve until it is alone."""
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            first = await self._ack_batch(outcomes[:middle], producer)
            return first + await self._ack_batch(outcomes[middle:], producer)
        (refused,) = outcomes
        logger.error("the database refused the outcome of job %d: %s", refused.job_id, _one_line(error))
        job = self._running(refused.job_id, producer)
        action = AckAction(
            job=job
            or Job("baton.StepWorker", id=refused.job_id, attempted_at=refused.attempted_at, _validate=False),
            state="discarded",
            error={
                "attempt": job.attempt if job else None,
                "at": datetime.now(UTC).isoformat(),
                "error": f"its outcome could not be written: {_one_line(error)}",
            },
        )
        try:
            done = await self._call([self._outcome(action)], producer)
        except psycopg.Error as again:
            if _may_pass(again):
                raise
            # Not even that it failed can be written. The job stays executing, for the lifeline; the queue goes on.
            logger.error(
                "the database refused the failure of job %d as well: %s", refused.job_id, _one_line(again)
            )
            return []
        await self._after_ack(done, producer)
        return done.acked

    @staticmethod
    def _running(job_id: int, producer: Producer | None) -> Job | None:
        entry = producer._running_jobs.get(job_id) if producer is not None else None
        return entry[0] if entry else None

    async def get_jobs(self, producer: Producer) -> list[Job]:
        """Hand over what the last ack claimed, or claim now."""
        if producer._uuid in self._just_claimed:
            # The ack of this same turn looked, and nothing has run in between.
            self._just_claimed.discard(producer._uuid)
        elif self._claim(producer) is not None:
            done = await within(_CALL_SECONDS, self._call([], producer))
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
            await self.engine.give_back(
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
            use_ext("job.after_new", _nothing, job)
        except Exception:
            logger.warning(
                "an extension refused job %s after it was claimed; it runs all the same",
                job.id,
                exc_info=True,
            )
        if step is not None:
            job.extra[_step.EXTRA] = _step.Attempt(
                store=self.engine,
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
            )
        return job

    def _producer_of(self, actions: list[AckAction]) -> Producer | None:
        for action in actions:
            if len(action.job.attempted_by) > 1:
                return self._by_uuid.get(action.job.attempted_by[1])
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


def _batches(outcomes: list[Outcome]) -> list[list[Outcome]]:
    batches: list[list[Outcome]] = [[]]
    size = 0
    for outcome in outcomes:
        weight = len(outcome.result or "")
        if batches[-1] and size + weight > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(outcome)
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

_filled: dict[str, Callable[..., Any]] = {}


def _fill_slots() -> None:
    """Put Baton's functions into the slots, in front of what is there. Again only where somebody took one over without
    passing on."""
    if _filled:
        for name, function in _filled.items():
            if get_ext(name, _nothing) is not function:
                logger.warning(
                    "the Oban extension %s was replaced after Baton filled it; Baton relies on it being passed on",
                    name,
                )
        return
    previous_ack = get_ext("query.ack_jobs", oban_ack_jobs)
    previous_get = get_ext("producer.get_jobs", oban_get_jobs)
    previous_wrap = get_ext("executor.wrap_result", lambda _job, result: result)
    previous_stage = get_ext("stager.before_stage", _nothing)
    previous_rescue = get_ext("lifeline.rescue", oban_rescue)
    previous_reset = get_ext("query.reset", oban_reset)
    previous_prune = get_ext("pruner.prune", oban_prune)
    previous_insert = get_ext("query.insert_jobs", oban_insert_jobs)

    async def ack_jobs(query: Query, actions: list[AckAction]) -> list[int]:
        seam = _seams.get(query)
        if seam is not None:
            return await seam.ack_jobs(actions)
        steps = [action.id for action in actions if _step.attempt_of(action.job) is not None]
        if steps:
            # Oban would complete them without their results. They run again where there is a Baton.
            logger.error(
                "jobs %s are steps and ended after their Baton had stopped; they will run again", steps
            )
        return list(await previous_ack(query, [action for action in actions if action.id not in steps]))

    async def get_jobs(producer: Producer) -> list[Job]:
        seam = _seams.get(producer._query)
        if seam is None:
            return list(await previous_get(producer))
        seam.adopt(producer)
        return await seam.get_jobs(producer)

    def wrap_result(job: Job, result: Any) -> Any:
        return _step.keep_result(job, previous_wrap(job, result))

    async def before_stage(query: Query) -> None:
        await _maybe(previous_stage(query))
        seam = _seams.get(query)
        if seam is not None:
            try:
                await within(_TICK_SECONDS, seam.every_second())
            except Exception:
                # Staging is Oban's business and goes on without us.
                logger.warning("could not sweep; trying again in a second", exc_info=True)

    async def rescue(query: Query, rescue_after: float) -> None:
        seam = _seams.get(query)
        if seam is None or previous_rescue is not oban_rescue:
            await previous_rescue(query, rescue_after)
        if seam is not None:
            with telemetry.span("oban.lifeline.rescue", {}) as context:
                context.add({"rescued_count": await seam.maintenance.rescue_all()})

    async def prune(query: Query, max_age: int, limit: int) -> None:
        seam = _seams.get(query)
        if seam is None or previous_prune is not oban_prune:
            # Somebody who prunes in their own way goes on doing so.
            await previous_prune(query, max_age, limit)
            return
        with telemetry.span("oban.pruner.prune", {}) as context:
            context.add({"pruned_count": await seam.engine.prune_jobs(max_age, limit)})

    async def insert_jobs(query: Query, jobs: list[Job], conn: Any = None) -> list[Job]:
        if query not in _seams or previous_insert is not oban_insert_jobs:
            # Whoever inserts in their own way may look for duplicates first, or write more than the rows.
            return list(await previous_insert(query, jobs, conn))
        return await insert_many_jobs(query, jobs, conn)

    async def reset(query: Query) -> None:
        await previous_reset(query)
        seam = _seams.get(query)
        if seam is not None:
            await seam.engine.reset()

    _filled.update(
        {
            "lifeline.rescue": rescue,
            "pruner.prune": prune,
            "query.insert_jobs": insert_jobs,
            "query.reset": reset,
            "query.ack_jobs": ack_jobs,
            "producer.get_jobs": get_jobs,
            "executor.wrap_result": wrap_result,
            "stager.before_stage": before_stage,
        }
    )
    for name, function in _filled.items():
        put_ext(name, function)


def _row_meta(producer: Producer) -> dict[str, Any]:
    try:
        return dict(use_ext("producer.restore", oban_producer_meta, producer))
    except Exception:
        logger.warning("an extension cannot describe queue %s", producer._queue, exc_info=True)
        return {}


async def _maybe(value: Awaitable[Any] | None) -> None:
    if value is not None:
        await value


def _nothing(*_args: Any) -> None:
    return None
