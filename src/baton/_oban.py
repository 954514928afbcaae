"""The one seam to Oban: imports its private modules and fills its extension slots.

Slots are global to a process and the last writer wins, so each is filled once, dispatches on the `Query` it is called with, and
passes everything else on to whoever filled it before.
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor as ThreadPool
from datetime import datetime
from typing import Any
from uuid import UUID

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

from baton import _acks, _signals, _step
from baton._accounts import Ledger
from baton._acks import Acks
from baton._deadline import within
from baton._dispatch import Dispatcher
from baton._engine import Engine
from baton._heartbeat import Heart, Heartbeat
from baton._leader import LeasedLeader
from baton._lifecycle import Lifecycle
from baton._maintenance import Maintenance
from baton._notifier import Listener
from baton._queries import insert_jobs as insert_many_jobs
from baton._reports import Reports
from baton.errors import InvalidOption

logger = logging.getLogger("baton.engine")

_TICK_SECONDS = 60.0
_UNSTARTED_SECONDS = 5
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
        reports: Reports,
        ledger: Ledger,
    ) -> None:
        self.oban = oban
        self.engine = engine
        self.maintenance = maintenance
        self.heartbeat = heart(hearts=self._hearts, on_the_loop=self._on_the_loop)
        self.dispatcher = Dispatcher(reports, ledger)
        self.acks = Acks(engine, wake=self.wake, threads=threads, result_limit=result_limit)
        engine.on_finished = _signals.finished
        self.on_reconnect: Callable[[], object] = _nothing
        """Called when notifications may have been missed and are heard again."""
        self.started = False
        """Whether the Baton was started, and not only its Oban."""
        self._seconds_unstarted = 0
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
        if producer._uuid in self.acks.producers or self.acks.is_ending(producer):
            return
        self._before[producer._uuid] = {name: getattr(producer, name) for name in _REPLACED}
        producer._dispatcher = self.dispatcher
        # Acks gather while a statement is under way; sleeping for more would only add to the hop between two steps.
        producer._debounce_interval = 0.0
        self.acks.producers[producer._uuid] = producer
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

    async def every_second(self) -> None:
        """Sweep; restart producers that an error left with something to do; run again what died."""
        for producer in self.oban._producers.values():
            # One that was started after Baton was attached.
            self.adopt(producer)
        for producer in self.acks.producers.values():
            if self.acks.has_more(producer):
                producer.notify()
        self._warn_if_unstarted()
        await self.acks.sweep()
        await self.engine.expire()
        await self._tell_cancelled()
        await self.maintenance.rescue()

    def _warn_if_unstarted(self) -> None:
        # An app starts its Oban first and its Baton a moment later.
        if self.started or not self.oban._producers:
            return
        self._seconds_unstarted += 1
        if self._seconds_unstarted == _UNSTARTED_SECONDS:
            logger.warning(
                "this Oban runs jobs, and the Baton(oban=...) that has it was never started: there are no heartbeats, so its "
                "jobs may be taken for those of a dead process, and nobody prunes or is told of ends. Start it beside the "
                "Oban: `async with baton:`, or `await baton.start()`"
            )

    async def _cancel_many_jobs(self, ids: list[int]) -> tuple[int, list[int]]:
        """In place of Oban's query; Oban notifies those that run."""
        hit = await self.engine.cancel_many(ids)
        return len(hit), [job_id for job_id, state in hit if state == "executing"]

    async def _stage_jobs(
        self, limit: int, queues: list[str], before: datetime | None = None
    ) -> tuple[int, list[str]]:
        """In place of Oban's query."""
        return await within(_acks.CALL_SECONDS, self.engine.stage_jobs(limit, queues, before))

    async def _tell_cancelled(self) -> None:
        """End running jobs that were cancelled, should the notification have been lost."""
        running = {
            job_id: (producer, job)
            for producer in self.acks.producers.values()
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
            for producer in list(self.acks.producers.values())
        ]

    def _on_the_loop(self) -> list[str]:
        """Called in the heartbeat's thread."""
        named = []
        for producer in list(self.acks.producers.values()):
            for job, _ in list(producer._running_jobs.values()):
                attempt = _step.attempt_of(job)
                if attempt is None:
                    named.append(f"job {job.id} ({job.worker})")
                elif attempt.thread is None:
                    named.append(f"{attempt.name!r} of {attempt.label!r}")
        return named

    async def _refresh_producers(self, uuids: list[str]) -> list[str]:
        """In place of Oban's query: the heartbeat's rows are the heartbeat's business, unless it is late itself."""
        own = [uuid for uuid in uuids if self.heartbeat.on_time and uuid in self.acks.producers]
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
        if producer._uuid not in self.acks.producers:
            await stop()
            return
        if self.acks.is_ending(producer):
            return
        grace = producer._shutdown_grace_period
        self.acks.begin_stop(producer, grace)
        await self.dispatcher.drain(grace, producer)
        if grace is None:
            self.acks.hurry(producer)
        # There is nothing left that it should wait for.
        producer._shutdown_grace_period = 0.0
        try:
            await self.acks.in_time(producer, stop())
        except TimeoutError:
            logger.warning("queue %s did not stop in good order; it is given up", producer._queue)
        await self._let_go(producer)

    async def drain(self, grace: float | None) -> None:
        """Let what runs end and write it, while Oban goes on without us."""
        producers = list(self.acks.producers.values())
        for producer in producers:
            self.acks.begin_stop(producer, grace)
        await self.dispatcher.drain(grace)
        for producer in producers:
            if grace is None:
                self.acks.hurry(producer)
            await self._let_go(producer)

    def hurry(self) -> None:
        """Give back what runs now, whatever is left of its grace."""
        self.dispatcher.hurry()
        for producer in self.acks.producers.values():
            if self.acks.is_ending(producer):
                self.acks.hurry(producer)

    async def _let_go(self, producer: Producer) -> None:
        """A queue that has stopped, or goes on without Baton: its last outcomes are written, and it is ours no more."""
        await self.acks.flush(producer)
        if self.acks.producers.pop(producer._uuid, None) is not None:
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
            return await seam.acks.ack_jobs(actions)
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
        return await seam.acks.get_jobs(producer)

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
