"""`LLMWorker`: worker classes for calls of models."""

import contextvars
import functools
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from oban.decorators import worker
from oban.job import Job

from baton import _answers, _step
from baton._declare import jittered
from baton.errors import InvalidOption

# What Oban takes of a worker. Any other keyword it keeps to itself.
_OPTIONS = frozenset(
    {"oban", "cron", "queue", "max_attempts", "priority", "tags", "meta", "scheduled_at", "schedule_in"}
)

type _Process = Callable[[Any, Job], Coroutine[Any, Any, Any]]


class LLMWorker:
    """Base of worker classes that call models. A subclass is registered with Oban by itself:

        class Summarize(LLMWorker, max_attempts=3, timeout=120):
            async def process(self, job):
                answer = await client.messages.create(...)
                return {"summary": answer.content[0].text, "llm_usage": {"model": answer.model, "input_tokens": ..., ...}}

        workflow.add("summary", Summarize.new({"topic": "tides"}))

    Its queue is `llm`, and failed attempts are tried again after a time that differs from job to job. The key `llm_usage` of a
    result is recorded and taken out of it; `baton.record_usage`, `call_llm` and `once` work as in a step. A provider that has
    no room is tried again when it says, which uses no attempt.

    Keywords of the class are Oban's options of a worker (`queue`, `max_attempts`, `priority`, `tags`...), which a subclass of a
    subclass inherits, and `timeout`: seconds that an attempt may run, None for no limit. `backoff(job)` and `timeout(job)` may
    be defined, as in any worker of Oban's.

    Raises:
        InvalidOption: `timeout` is no number of seconds above 0, or there is no such option.
    """

    _seconds: ClassVar[float | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        if "timeout" in options:
            cls._seconds = _checked(options.pop("timeout"))
        if "process" in cls.__dict__:
            cls.process = _answering(cls.process)  # type: ignore[assignment, method-assign]
        if unknown := options.keys() - _OPTIONS:
            raise InvalidOption(
                f"{cls.__name__} has no option {min(unknown)!r}; there are timeout, {', '.join(sorted(_OPTIONS))}"
            )
        inherited: dict[str, Any] = getattr(cls, "_opts", {"queue": "llm"})
        worker(**{"oban": getattr(cls, "_oban_name", "Oban"), **inherited, **options})(cls)

    async def process(self, job: Job) -> Any:
        """Do the work of a job: yours to define."""
        raise NotImplementedError(f"{type(self).__name__} has no process(self, job)")

    def backoff(self, job: Job) -> int:
        """Seconds until the next attempt."""
        return math.ceil(jittered(job.attempt))

    def timeout(self, job: Job) -> float | None:
        """Seconds that an attempt may run, None for no limit."""
        return self._seconds

    if TYPE_CHECKING:

        @classmethod
        def new(cls, args: dict[str, Any] | None = None, /, **params: Any) -> Job:
            """Build a job with these arguments, for `Workflow.add`."""
            ...

        @classmethod
        async def enqueue(
            cls, args: dict[str, Any] | None = None, /, conn: Any = None, **overrides: Any
        ) -> Job:
            """Insert an ordinary job, outside of any workflow."""
            ...


# The job whose `process` runs. One that this calls in its base is a part of it, whose error is no outcome yet.
_outermost: contextvars.ContextVar[Job | None] = contextvars.ContextVar("baton_llm_job", default=None)


def _answering(process: _Process) -> _Process:
    @functools.wraps(process)
    async def answers(self: LLMWorker, job: Job) -> Any:
        attempt = _step.attempt_of(job)
        accounts = None if attempt is None else attempt.accounts
        if _outermost.get() is job:
            return await _answers.without_usage(job, accounts, process(self, job))
        if accounts is not None:
            await accounts.check()
        token = _outermost.set(job)
        try:
            return await _answers.of_llm_step(job, accounts, process(self, job))
        finally:
            _outermost.reset(token)

    return answers


def _checked(seconds: object) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise InvalidOption(f"timeout={seconds!r} cannot work; use seconds above 0, or None for no limit")
    return float(seconds)
