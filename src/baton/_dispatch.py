"""Runs claimed jobs so that each leaves an outcome, whatever its code raises, and whatever stops it.

Part of the seam to Oban: a subclass of its executor, and the dispatcher that its producers hand jobs to.
"""

import asyncio
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from oban._backoff import jittery_clamped
from oban._executor import AckAction, Executor
from oban._producer import Producer
from oban.job import Cancel as ObanCancel
from oban.job import Job
from oban.worker import WorkerResolutionError, resolve_worker

from baton import _signals, _step
from baton._accounts import Ledger
from baton._outcomes import Cancel, Snooze, unhandled
from baton._reports import Reports
from baton.errors import InvalidResult

logger = logging.getLogger("baton.engine")

_LET_GO = 0.5
_LARGEST_DELAY = 2**31 - 1


def seconds_of(delay: Any) -> float | None:
    """A snooze or backoff as the database can hold it; raises what float() raises where that is no number."""
    if delay is None:
        return None
    seconds = float(delay)
    return 0.0 if seconds != seconds else min(max(seconds, 0.0), float(_LARGEST_DELAY))


class StepExecutor(Executor):
    """Oban's executor, for which every BaseException is an outcome and nothing in the recording of one raises."""

    # Oban sets them to None first and has no annotations, so a checker takes None for their type.
    action: AckAction | None  # type: ignore[assignment]
    result: Any
    _traceback: str | None  # type: ignore[assignment]
    given_back = False

    def __init__(self, job: Job, giving_back: Callable[[], bool]) -> None:
        super().__init__(job=job, safe=True)
        self._giving_back = giving_back

    async def _process(self) -> None:
        try:
            if _step.attempt_of(self.job) is not None:
                try:
                    resolve_worker(self.job.worker)
                except WorkerResolutionError as error:
                    self.result = _step.park(
                        self.job, f"no code for worker {self.job.worker!r} here: {error}"
                    )
                    return
            await super()._process()
        except BaseException as error:
            task = asyncio.current_task()
            asked = _step.attempt_of(self.job)
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                if asked is not None and asked.cancel_requested:
                    # Its run's doing, or that of Oban's cancel; the reason is in the step's row.
                    while task.uncancel():
                        pass
                    self.result = ObanCancel("cancelled while it ran")
                    return
                if self._giving_back():
                    # The queue's own doing, at the end of its grace: the attempt does not count.
                    self.given_back = True
                    raise
                # The step cancelled the task it runs in.
                while task.uncancel():
                    pass
            self._fail(error)
        if isinstance(self.result, Exception) and _step.attempt_of(self.job) is not None:
            self.result = unhandled(self.result)
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
            seconds_of(self.action.schedule_in)
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
        attempt = _step.attempt_of(self.job)
        if attempt is not None:
            attempt.duration = time.monotonic_ns() - self._start_time
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

    def __init__(self, reports: Reports, ledger: Ledger) -> None:
        self._reports = reports
        self._ledger = ledger
        self._tasks: dict[asyncio.Task[None], Producer] = {}
        self._ending: set[Producer] = set()
        self._hurried = asyncio.Event()
        self._slots = itertools.count(1)

    async def start(self) -> None:
        """Nothing to start: tasks begin with their jobs."""

    async def stop(self) -> None:
        """Let running jobs go on; `drain` ends them."""

    async def drain(self, grace: float | None, producer: Producer | None = None) -> None:
        """Wait until what runs has ended, at most for the grace; then cancel it, so that it is given back."""
        clock = asyncio.get_running_loop().time
        give_back_at = clock() + grace if grace is not None else None
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            # Again: a claim that was under way may have brought more.
            while (tasks := self._of(producer)) and not self._hurried.is_set():
                left = None if give_back_at is None else give_back_at - clock()
                if left is not None and left <= 0:
                    break
                ended = asyncio.create_task(_all_ended(tasks))
                await asyncio.wait({ended, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
        finally:
            hurried.cancel()
        self._ending.update([producer] if producer is not None else self._tasks.values())
        late = self._of(producer)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_LET_GO)

    def forget(self, producer: Producer) -> None:
        """Its jobs are not given back any more."""
        self._ending.discard(producer)

    def _of(self, producer: Producer | None) -> list["asyncio.Task[None]"]:
        return [task for task, owner in self._tasks.items() if producer in (None, owner)]

    def hurry(self) -> None:
        """Cancel what runs, and wait for no thread of it."""
        self._hurried.set()
        for task in self._tasks:
            task.cancel()

    def dispatch(self, producer: Producer, job: Job) -> "asyncio.Task[None]":
        """Run a job in a task of its own."""
        assert job.id is not None
        earlier = producer._running_jobs.pop(job.id, None)
        if earlier is not None:
            # This process was taken for dead meanwhile, by a freeze for instance, and has claimed what it still runs.
            self._stand_by(producer, *earlier)
        # Before its task begins, so that a cancel that comes at once finds it.
        job._cancellation = asyncio.Event()
        task = asyncio.create_task(self._run(producer, job), name=f"baton-job-{job.id}")
        self._tasks[task] = producer
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def cancel(self, producer: Producer, job: Job) -> None:
        """Set the flag that the job's code looks at; an `async` step gets CancelledError as well, once."""
        if job._cancellation:
            job._cancellation.set()
        attempt = _step.attempt_of(job)
        if attempt is None or attempt.cancel_requested:
            return
        attempt.cancel_requested = attempt.cancelled = True
        # A thread cannot be interrupted. Its step looks at the flag.
        if attempt.thread is None:
            for task in self._tasks:
                if task.get_name() == f"baton-job-{job.id}":
                    task.cancel()

    async def _run(self, producer: Producer, job: Job) -> None:
        attempt = _step.attempt_of(job)
        if attempt is None:
            action = await self._execute(job, producer)
            producer._pending_acks.append(action)
            return
        assert job.id is not None
        assert job.attempted_at is not None
        what = f"step {attempt.name!r} of {attempt.label!r}"
        attempt.report = self._reports.begin(job.id, job.attempted_at, what)
        attempt.accounts = self._ledger.begin(
            job,
            step_id=attempt.step_id,
            workflow_id=attempt.workflow_id,
            label=attempt.label,
            name=attempt.name,
            debug=attempt.debug,
            budgeted=attempt.budgeted,
        )
        token = _step.enter(job, attempt)
        try:
            action = _gate(job, attempt) or await self._told(job, attempt, producer)
            # Not in one expression: the producer may replace its list while the job runs.
            await _in_spite_of_cancels(self._reports.finish(attempt.report))
            await _in_spite_of_cancels(self._ledger.finish(attempt.accounts))
            producer._pending_acks.append(action)
        finally:
            _step.leave(token)
        given_back = action.state == "available"
        if attempt.thread is not None and not attempt.thread.done() and not given_back:
            self._linger(producer, job, attempt.thread)

    async def _told(self, job: Job, attempt: _step.Attempt, producer: Producer) -> AckAction:
        _signals.began(job, attempt)
        return await self._execute(job, producer)

    def _linger(self, producer: Producer, job: Job, thread: "asyncio.Future[Any]") -> None:
        """Keep a slot taken until a thread is done, although its attempt's outcome is written and the next one may begin."""
        task = asyncio.create_task(_ended(thread), name=f"baton-thread-{job.id}")
        self._tasks[task] = producer
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        self._stand_by(producer, job, task)

    def _stand_by(self, producer: Producer, job: Job, task: "asyncio.Task[None]") -> None:
        """Keep a slot taken until a task is done, under a number that is no job's: the next attempt stands under the job's."""
        slot = -next(self._slots)
        producer._running_jobs[slot] = (job, task)

        def free(_: "asyncio.Task[None]") -> None:
            producer._running_jobs.pop(slot, None)
            producer.notify()

        task.add_done_callback(free)

    async def _execute(self, job: Job, producer: Producer) -> AckAction:
        def giving_back() -> bool:
            return producer in self._ending or self._hurried.is_set() or producer._stopping.is_set()

        executor = StepExecutor(job, giving_back)
        with _signals.Traced(job) as traced:
            try:
                await executor.execute()
            except asyncio.CancelledError:
                if not executor.given_back:
                    raise
                return AckAction(job=job, state="available", attempt_change=-1)
            assert executor.action is not None
            attempt = _step.attempt_of(job)
            if attempt is not None and attempt.accounts is not None:
                # While the tracer still has the step.
                await _in_spite_of_cancels(self._ledger.finish(attempt.accounts))
            raised = executor.result if isinstance(executor.result, BaseException) else None
            return traced.came_to(executor.action, raised)


async def _in_spite_of_cancels(last: Coroutine[Any, Any, None]) -> None:
    try:
        await last
    except asyncio.CancelledError:
        # The grace is over, or somebody cancels what has ended already. Its outcome is to be written all the same.
        task = asyncio.current_task()
        assert task is not None
        while task.uncancel():
            pass


async def _all_ended(tasks: list["asyncio.Task[None]"]) -> None:
    await asyncio.wait(tasks)


async def _ended(thread: "asyncio.Future[Any]") -> None:
    await asyncio.wait({thread})


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
