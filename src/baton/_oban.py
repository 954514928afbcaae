"""The one seam to Oban: imports its private modules and fills its extension slots.

Slots are global to a process and the last writer wins, so each is filled once, dispatches on the `Query` it is called with, and
passes everything else on to whoever filled it before.
"""

import asyncio
import logging
import random
import traceback
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor as ThreadPool
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from oban import Oban
from oban._backoff import jittery_clamped
from oban._executor import AckAction, Executor
from oban._extensions import get_ext, put_ext, use_ext
from oban._producer import Producer
from oban._producer import _get_jobs as oban_get_jobs
from oban._query import Query
from oban._query import _ack_jobs as oban_ack_jobs
from oban.job import Job

from baton import _step
from baton._codec import clean_text, encode
from baton._engine import Acked, Claim, Engine, Outcome
from baton._outcomes import Cancel, Snooze
from baton.errors import InvalidResult

logger = logging.getLogger("baton.engine")

# SQLSTATE classes that say "not these values": data, constraints, limits, raised by a function. Any other error may pass, be it
# because the server restarts or because somebody is in the middle of a migration, and an outcome waits for that.
_REFUSED = ("21", "22", "23", "54", "P0")
_TRIES_WHILE_STOPPING = 5
_LARGEST_DELAY = 2**31 - 1
# A protocol message ends at 1 GB; a batch of results well before.
_BATCH_BYTES = 64 * 1024 * 1024

_seams: weakref.WeakKeyDictionary[Query, "Seam"] = weakref.WeakKeyDictionary()


class StepExecutor(Executor):
    """Oban's executor, for which every BaseException is an outcome and nothing in the recording of one raises."""

    # Oban sets them to None first and has no annotations, so a checker takes None for their type.
    action: AckAction | None  # type: ignore[assignment]
    result: Any
    _traceback: str | None  # type: ignore[assignment]
    given_back = False

    def __init__(self, job: Job, stopping: Callable[[], bool]) -> None:
        super().__init__(job=job, safe=True)
        self._stopping = stopping

    async def _process(self) -> None:
        try:
            await super()._process()
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                if self._stopping():
                    # The queue's own doing, at the end of its grace: the attempt does not count.
                    self.given_back = True
                    raise
                # The step cancelled the task it runs in.
                while task.uncancel():
                    pass
            self._fail(error)
        if isinstance(self.result, (Snooze, Cancel)):
            # Raised, it is still no error: Oban would store where it came from instead of its reason.
            self._traceback = None
        elif isinstance(self.result, Exception):
            self._fail(self.result)

    def _fail(self, error: BaseException) -> None:
        self.result = _step.as_exception(error)
        self._traceback = "".join(traceback.format_exception(error))

    def _record_stopped(self) -> None:
        try:
            super()._record_stopped()
            assert self.action is not None
            _delay(self.action.schedule_in)
        except Exception as error:
            # A snooze whose seconds are no number, a hook of somebody else's: the attempt fails, the queue goes on.
            self._fail(error)
            last = self.job.attempt >= self.job.max_attempts
            self.action = AckAction(
                job=self.job,
                state="discarded" if last else "retryable",
                error=self._format_error(error),
                schedule_in=None if last else self._retry_backoff(),
            )

    def _report_stopped(self) -> None:
        if self.status in ("retryable", "discarded") and not isinstance(self.result, BaseException):
            # A result that was refused: report the refusal. The value's own text may raise, or have no end.
            assert self.action is not None
            self.result = InvalidResult(str((self.action.error or {}).get("error")))
        super()._report_stopped()

    def _retry_backoff(self) -> int:
        try:
            seconds = super()._retry_backoff()
            float(seconds)
            return seconds
        except Exception:
            logger.warning("backoff of %s is broken; Oban's default is used", self.job.worker, exc_info=True)
            return jittery_clamped(self.job.attempt, self.job.max_attempts)


class Dispatcher:
    """Runs claimed jobs, Baton's and plain ones alike: a job that ran always leaves an ack."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurried = False

    async def start(self) -> None:
        """Nothing to start: tasks begin with their jobs."""

    async def stop(self) -> None:
        """Wait until cancelled jobs have let go."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def hurry(self) -> None:
        """Cancel what runs, and wait for no thread of it."""
        self._hurried = True
        for task in self._tasks:
            task.cancel()

    def dispatch(self, producer: Producer, job: Job) -> "asyncio.Task[None]":
        """Run a job in a task of its own."""
        task = asyncio.create_task(self._run(producer, job), name=f"baton-job-{job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self, producer: Producer, job: Job) -> None:
        """Set the flag that the job's code looks at."""
        if job._cancellation:
            job._cancellation.set()

    async def _run(self, producer: Producer, job: Job) -> None:
        job._cancellation = asyncio.Event()
        attempt = _step.attempt_of(job)
        if attempt is None:
            action = await _execute(job, producer)
            producer._pending_acks.append(action)
            return
        token = _step.enter(job, attempt)
        try:
            # Not in one expression: the producer may replace its list while the job runs.
            action = _gate(job, attempt) or await _execute(job, producer)
            producer._pending_acks.append(action)
        finally:
            _step.leave(token)
        if attempt.thread is not None and not attempt.thread.done() and not self._hurried:
            # The outcome is written now; the slot stays taken until the thread is done.
            producer.notify()
            await asyncio.wait({attempt.thread})


async def _execute(job: Job, producer: Producer) -> AckAction:
    executor = StepExecutor(job, producer._stopping.is_set)
    try:
        await executor.execute()
    except asyncio.CancelledError:
        if not executor.given_back:
            raise
        return AckAction(job=job, state="available", attempt_change=-1)
    assert executor.action is not None
    return executor.action


def _gate(job: Job, attempt: _step.Attempt) -> AckAction | None:
    """The outcome of a step that must not run, None for one that may."""
    if attempt.state == "held":
        return AckAction(job=job, state="suspended", attempt_change=-1)
    if attempt.doomed:
        return AckAction(job=job, state="cancelled")
    if attempt.stored is not None and attempt.state == "released":
        # An earlier attempt stored the result and died before its ack.
        _step.keep_result(job, None)
        return AckAction(job=job, state="completed")
    return None


class Seam:
    """Baton's hold on one Oban instance: what its slots do for that instance's `Query`."""

    def __init__(self, oban: Oban, engine: Engine, *, threads: ThreadPool, result_limit: int) -> None:
        self.oban = oban
        self.engine = engine
        self.dispatcher = Dispatcher()
        self.stopping = False
        self._threads = threads
        self._result_limit = result_limit
        self._claimed: dict[str, list[Job]] = {}
        self._just_claimed: set[str] = set()
        self._uncertain: set[str] = set()
        self._by_uuid: dict[str, Producer] = {}

    def attach(self) -> None:
        """Take over dispatch and wake-ups, and make the slots find this instance. Before or after Oban's start."""
        _fill_slots()
        _seams[self.oban._query] = self
        for producer in self.oban._producers.values():
            self.adopt(producer)
        stager = self.oban._stager
        original = stager._on_notification

        async def on_notification(channel: str, payload: dict[str, Any]) -> None:
            # What this process announced it has already acted on.
            if payload.get("origin") != self.engine.origin:
                await original(channel, payload)

        token = stager._listen_token
        stager._on_notification = on_notification
        if token is not None:
            self.oban._notifier._subscriptions["insert"][token] = on_notification

    def detach(self) -> None:
        """Forget the instance; its slots pass on to Oban's own behaviour."""
        _seams.pop(self.oban._query, None)

    def adopt(self, producer: Producer) -> None:
        """Run a queue's jobs through our dispatcher, without waiting for company before it fetches."""
        producer._dispatcher = self.dispatcher
        # Acks gather while a statement is under way; sleeping for more would only add to the hop between two steps.
        producer._debounce_interval = 0.0
        self._by_uuid[producer._uuid] = producer
        self.engine.local_producers.append(UUID(producer._uuid))

    def wake(self, queues: Sequence[str]) -> None:
        """Let the local producers of these queues look for jobs."""
        for queue in set(queues):
            producer = self.oban._producers.get(queue)
            if producer is not None:
                producer.notify()

    async def sweep(self) -> None:
        """Pay what is owed; see `baton_sweep`."""
        self.wake(await self.engine.sweep())

    async def flush(self) -> None:
        """Write what ended while the queues stopped, and give back what never started."""
        await self.dispatcher.stop()
        for producer in self._by_uuid.values():
            pending, producer._pending_acks = producer._pending_acks, []
            if pending:
                await self.ack_jobs(pending)
            await self._return_surplus(producer)

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
                done = await self._call(outcomes, producer)
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, psycopg.Error) and not _may_pass(error):
                    return await self._divide(outcomes, producer, error)
                tries += 1
                if self.stopping and tries > _TRIES_WHILE_STOPPING:
                    raise
                logger.warning(
                    "could not write %d outcomes (%s); trying again", len(outcomes), _one_line(error)
                )
            else:
                await self._after_ack(done, producer)
                return done.acked
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**tries, 2.0))  # noqa: S311

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
                await self.sweep()
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
            return self._claimed.pop(producer._uuid, [])
        if self._claim(producer) is None:
            return []
        done = await self._call([], producer)
        self._keep(producer, done.claimed)
        await self._return_surplus(producer)
        return self._claimed.pop(producer._uuid, [])

    async def _return_surplus(self, producer: Producer) -> None:
        """Give back what was claimed if the queue paused, shrank or stopped while the statement was under way."""
        claimed = self._claimed.get(producer._uuid)
        if not claimed:
            return
        room = self._room(producer, claimed=0)
        surplus = claimed[room:]
        if surplus:
            self._claimed[producer._uuid] = claimed[:room]
            await self.engine.give_back(
                [(job.id or 0, job.attempted_at or datetime.now(UTC)) for job in surplus]
            )

    def _room(self, producer: Producer, *, claimed: int) -> int:
        if self.stopping or producer._paused or producer._stopping.is_set():
            return 0
        return max(0, producer._limit - len(producer._running_jobs) - claimed)

    def _claim(self, producer: Producer | None) -> Claim | None:
        if producer is None:
            return None
        room = self._room(producer, claimed=len(self._claimed.get(producer._uuid, ())))
        if room == 0:
            return None
        return Claim(queue=producer._queue, demand=room, node=producer._node, producer=UUID(producer._uuid))

    def _keep(self, producer: Producer | None, rows: list[dict[str, Any]]) -> None:
        if rows and producer is not None:
            self._claimed.setdefault(producer._uuid, []).extend(self._job(row) for row in rows)

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
            delay=_delay(action.schedule_in),
            error=error,
            meta=_meta(action.meta),
            result=attempt.result if attempt and action.state == "completed" else None,
            reason=error["error"] if error and action.state in ("cancelled", "discarded") else None,
        )


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


def _delay(seconds: Any) -> float | None:
    if seconds is None:
        return None
    return float(min(max(float(seconds), 0.0), _LARGEST_DELAY)) if seconds == seconds else 0.0


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

    async def ack_jobs(query: Query, actions: list[AckAction]) -> list[int]:
        seam = _seams.get(query)
        return await (seam.ack_jobs(actions) if seam else previous_ack(query, actions))

    async def get_jobs(producer: Producer) -> list[Job]:
        seam = _seams.get(producer._query)
        if seam is None:
            return list(await previous_get(producer))
        if producer._uuid not in seam._by_uuid:
            # A queue that was started after Baton was attached.
            seam.adopt(producer)
        return await seam.get_jobs(producer)

    def wrap_result(job: Job, result: Any) -> Any:
        return _step.keep_result(job, previous_wrap(job, result))

    async def before_stage(query: Query) -> None:
        await _maybe(previous_stage(query))
        seam = _seams.get(query)
        if seam is not None:
            try:
                await seam.sweep()
            except Exception:
                # Staging is Oban's business and goes on without us.
                logger.warning("could not sweep; trying again in a second", exc_info=True)

    _filled.update(
        {
            "query.ack_jobs": ack_jobs,
            "producer.get_jobs": get_jobs,
            "executor.wrap_result": wrap_result,
            "stager.before_stage": before_stage,
        }
    )
    for name, function in _filled.items():
        put_ext(name, function)


async def _maybe(value: Awaitable[Any] | None) -> None:
    if value is not None:
        await value


def _nothing(*_args: Any) -> None:
    return None
