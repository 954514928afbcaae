"""Why nothing is happening: what stands between a step and its end, as the database sees it at one moment.

The facts are the columns that the claim, the release and the rescue look at, so what is said here is what they will do. One
statement reads them, one function without a database turns them into words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from baton import _store
from baton._budget import named, spent_text
from baton._error_line import error_line
from baton._states import StepState
from baton.snapshot import RunSummary

# After that long without a sign, Oban removes a producer.
_LIVE_SECONDS = 60.0


class Reason(StrEnum):
    """What a step waits for, the most decisive first."""

    SETTLED = "settled"
    JOB_GONE = "job_gone"
    OUT_OF_STEP = "out_of_step"
    CANCELLING = "cancelling"
    RUNNING = "running"
    PROCESS_GONE = "process_gone"
    BUDGET_EXHAUSTED = "budget_exhausted"
    RUN_PAUSED = "run_paused"
    DEPENDENCIES = "dependencies"
    RELEASE_OWED = "release_owed"
    EXHAUSTED = "exhausted"
    PARKED = "parked"
    RETRY = "retry"
    SCHEDULED = "scheduled"
    NO_WORKER = "no_worker"
    QUEUE_PAUSED = "queue_paused"
    QUEUE_FULL = "queue_full"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason, in words that name what it is about."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a step is where it is.

    Attributes:
        step: Its name.
        state: As in `StepStatus`.
        causes: All that holds at this moment, the most decisive first; never empty.
        waits_for: Dependencies that have not settled, the first 50 in the order they were added.
        waiting_on: How many they are.
        queue: Queue of its job; empty once the job is gone.
        attempt: Attempts begun.
        max_attempts: How many it may have.
        until: When its job may run, where that is in the future.
        since: When it settled, was asked to end, or began to run; or since when its run is paused.
        node: Where it runs.
    """

    step: str
    state: StepState
    causes: tuple[Cause, ...]
    waits_for: tuple[str, ...] = ()
    waiting_on: int = 0
    queue: str = ""
    attempt: int = 0
    max_attempts: int = 0
    until: datetime | None = None
    since: datetime | None = None
    node: str | None = None

    @property
    def reason(self) -> Reason:
        """The most decisive reason."""
        return self.causes[0].reason

    @property
    def text(self) -> str:
        """All causes in one line."""
        return "; ".join(cause.text for cause in self.causes)


@dataclass(frozen=True, slots=True)
class RunExplanation:
    """A run, and why its unsettled steps are where they are.

    Attributes:
        run: The run; `run.unsettled` says how many steps there are to explain.
        steps: The first of them: those that could run, then those that wait for others, each in the order they were added.
    """

    run: RunSummary
    steps: tuple[Explanation, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """A row of `read_obstacles`."""

    step: str
    settles: str
    owed: bool
    waiting_on: int
    waits_for: list[str]
    settled_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    error: str | None
    paused_at: datetime | None
    job: str | None
    queue: str
    attempt: int
    max_attempts: int
    scheduled_at: datetime | None
    attempted_at: datetime | None
    node: str
    parked: str | None
    no_room: str | None
    process_known: bool
    workers: int
    paused_workers: int
    room: int
    executing: int
    ahead: int
    now: datetime
    paused_for_budget: bool = False
    budget_key: str | None = None
    budget_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    budget_tokens: int | None = None
    spent_tokens: int | None = None
    reserved_tokens: int | None = None
    budget_calls: int | None = None
    spent_calls: int | None = None
    reserved_calls: int | None = None
    unpriced_calls: int | None = None

    @property
    def state(self) -> StepState:
        """As `read_steps` derives it."""
        if self.settles != "released":
            return StepState(self.settles)
        if self.job == "suspended":
            return StepState.SCHEDULED if self.is_later else StepState.AVAILABLE
        return StepState(self.job or "cancelled")

    @property
    def is_later(self) -> bool:
        return self.scheduled_at is not None and self.scheduled_at > self.now

    @property
    def ended_elsewhere(self) -> bool:
        """Whether step and job disagree: no trigger was looking when the job changed."""
        if self.job in ("completed", "cancelled", "discarded"):
            return True
        if self.settles == "held":
            return self.job != "suspended"
        if self.job == "suspended":
            return self.paused_at is None and not self.owed
        return self.job != "executing" and (
            self.paused_at is not None or self.cancel_requested_at is not None
        )


async def read_obstacles(
    conn: AsyncConnection, prefix: str, run_id: UUID, names: list[str] | None, limit: int
) -> tuple[Explanation, ...]:
    """Explain steps of a run: those named, or the first of those that have not settled."""
    async with conn.cursor(row_factory=class_row(Facts)) as cursor:
        await cursor.execute(
            _store.load("read_obstacles", prefix),
            {"id": run_id, "names": names, "limit": limit, "live": _LIVE_SECONDS},
        )
        return tuple(explain(facts) for facts in await cursor.fetchall())


def explain(facts: Facts) -> Explanation:
    """Put facts into words. Reads no clock and no database."""
    waiting = facts.state in (StepState.SCHEDULED, StepState.RETRYABLE) and facts.is_later
    return Explanation(
        step=facts.step,
        state=facts.state,
        causes=tuple(_causes(facts)),
        waits_for=tuple(facts.waits_for),
        waiting_on=facts.waiting_on,
        queue=facts.queue,
        attempt=facts.attempt,
        max_attempts=facts.max_attempts,
        until=_utc(facts.scheduled_at) if waiting else None,
        since=_utc(_since(facts)),
        node=facts.node if facts.job == "executing" and facts.node else None,
    )


def _since(facts: Facts) -> datetime | None:
    if facts.settled_at is not None:
        return facts.settled_at
    if facts.cancel_requested_at is not None:
        return facts.cancel_requested_at
    return facts.attempted_at if facts.job == "executing" else facts.paused_at


def _causes(facts: Facts) -> Iterator[Cause]:
    if facts.settled_at is not None:
        yield Cause(Reason.SETTLED, _settled(facts))
    elif facts.job is None:
        yield Cause(
            Reason.JOB_GONE,
            "its job was deleted while no trigger was looking; the step ends as cancelled within two minutes of a "
            "worker's start",
        )
    elif facts.ended_elsewhere:
        yield Cause(
            Reason.OUT_OF_STEP,
            f"its job is {facts.job}, which the step does not know: no trigger was looking; a worker makes it follow within "
            "two minutes, and `baton doctor` says what is wrong",
        )
    elif facts.job == "executing":
        yield from _while_running(facts)
    else:
        yield from _before_running(facts)


def _settled(facts: Facts) -> str:
    text = f"it {'was ' if facts.settles != 'completed' else ''}{facts.settles} at {_clock(facts.settled_at)}"
    return f"{text}: {error_line(facts.error)}" if facts.error else text


def _while_running(facts: Facts) -> Iterator[Cause]:
    if facts.cancel_requested_at is not None:
        reason = f" ({facts.cancel_reason})" if facts.cancel_reason else ""
        yield Cause(
            Reason.CANCELLING,
            f"it was asked to end at {_clock(facts.cancel_requested_at)}{reason} and still runs; it ends as cancelled when its "
            "code returns",
        )
    yield Cause(
        Reason.RUNNING,
        f"it has been running since {_clock(facts.attempted_at)} on node {facts.node or 'unknown'}, attempt "
        f"{facts.attempt} of {facts.max_attempts}",
    )
    if not facts.process_known:
        yield Cause(
            Reason.PROCESS_GONE,
            "the process that runs it gives no sign of life; a worker's rescue runs it again when that has lasted",
        )


def _before_running(facts: Facts) -> Iterator[Cause]:
    if facts.paused_at is not None and facts.paused_for_budget:
        yield Cause(Reason.BUDGET_EXHAUSTED, _short_of(facts))
    elif facts.paused_at is not None:
        yield Cause(
            Reason.RUN_PAUSED,
            f"the run has been paused since {_clock(facts.paused_at)}; nothing of it starts until it is resumed",
        )
    if facts.settles == "held":
        yield Cause(Reason.DEPENDENCIES, f"it waits for {_named(facts)}")
    elif facts.owed:
        yield Cause(
            Reason.RELEASE_OWED,
            "all it waited for has settled, and its job was locked by somebody else at that moment; a worker releases it "
            "within seconds",
        )
    elif facts.attempt >= facts.max_attempts:
        yield Cause(
            Reason.EXHAUSTED,
            f"its {facts.max_attempts} attempts are used up; a worker's rescue discards it within two minutes",
        )
    elif facts.parked is not None and facts.job == "scheduled":
        yield Cause(Reason.PARKED, _parked(facts))
    elif facts.job == "retryable":
        error = f": {error_line(facts.error)}" if facts.error else ""
        yield Cause(
            Reason.RETRY,
            f"attempt {facts.attempt} of {facts.max_attempts} failed{error}; the next is due {_when(facts)}",
        )
    elif facts.no_room is not None and facts.job == "scheduled":
        yield Cause(
            Reason.SCHEDULED,
            f"its model's provider has no room ({error_line(facts.no_room)}); it is asked again {_when(facts)}, which uses no "
            "attempt",
        )
    elif facts.state is StepState.SCHEDULED:
        yield Cause(Reason.SCHEDULED, f"it is scheduled for {_when(facts)}")
    yield from _queue(facts)


def _short_of(facts: Facts) -> str:
    spent = spent_text(
        usd=(facts.budget_usd, facts.spent_usd or Decimal(0), facts.reserved_usd or Decimal(0)),
        tokens=(facts.budget_tokens, facts.spent_tokens or 0, facts.reserved_tokens or 0),
        calls=(facts.budget_calls, facts.spent_calls or 0, facts.reserved_calls or 0),
        unpriced=facts.unpriced_calls or 0,
    )
    return (
        f"the run has been paused since {_clock(facts.paused_at)} by {named(facts.budget_key)}, which has too little left for "
        f"its next call{f' ({spent})' if spent else ''}; nothing of it starts until something is added: baton budget add"
    )


def _parked(facts: Facts) -> str:
    return f"no worker here knows its code: {facts.parked}; looked at again {_when(facts)}"


def _queue(facts: Facts) -> Iterator[Cause]:
    """What the queue has to say, which matters also to a step that must wait for something else first."""
    if facts.workers == 0:
        yield Cause(
            Reason.NO_WORKER, f"no worker serves queue {facts.queue}; start one: baton start --app ..."
        )
    elif facts.paused_workers == facts.workers:
        yield Cause(
            Reason.QUEUE_PAUSED, f"queue {facts.queue} is paused on all of its workers ({facts.workers})"
        )
    elif facts.job == "available":
        if facts.executing >= facts.room:
            yield Cause(
                Reason.QUEUE_FULL,
                f"queue {facts.queue} is full: {facts.executing} jobs run, its limit is {facts.room}; "
                f"{_ahead(facts)} before this one",
            )
        elif facts.attempt < facts.max_attempts:
            yield Cause(
                Reason.NEXT,
                f"nothing stands in its way: a worker of queue {facts.queue} takes it next; {_ahead(facts)} before it",
            )


def _ahead(facts: Facts) -> str:
    count = "1,000 or more" if facts.ahead >= 1000 else str(facts.ahead) if facts.ahead else "no"
    return f"{count} {'job waits' if facts.ahead == 1 else 'jobs wait'}"


def _named(facts: Facts) -> str:
    names = ", ".join(facts.waits_for)
    more = facts.waiting_on - len(facts.waits_for)
    return f"{names} and {more} more" if more > 0 else names


def _when(facts: Facts) -> str:
    if not facts.is_later:
        return f"now, since {_clock(facts.scheduled_at)}"
    assert facts.scheduled_at is not None
    seconds = round((facts.scheduled_at - facts.now).total_seconds())
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    parts = [f"{days} d"] * bool(days) + [f"{hours} h"] * bool(hours) + [f"{rest // 60} min"] * (rest >= 60)
    return f"{_clock(facts.scheduled_at)} (in {' '.join(parts[:2]) or f'{seconds} s'})"


def _clock(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment is not None else "an unknown time"


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment is not None else None
