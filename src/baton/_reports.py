"""What running steps tell, on its way to the database: kept here until one writer for all steps of the process has sent it.

Whoever tells never waits and never touches the database. The writer sends what is new of all steps in one statement, at most
so often, and keeps it while the database is away. Before an attempt's outcome is written the rest of what it told is, but an
outcome is worth more than that, and waits for it only so long.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from baton._deadline import end, pause_after, within

logger = logging.getLogger("baton.step")

# Between the beginnings of two statements.
_INTERVAL = 0.1
# For one statement, and for the pause after one that failed.
_CALL_SECONDS = 10.0
_LONGEST_PAUSE = 2.0
# How long an outcome waits for what its attempt told: a failover's time, in which the outcome could not be written either.
_PATIENCE = 30.0
_STOP_SECONDS = 1.0
# Of one statement.
_MOST_CHUNKS = 5_000
_MOST_CHARACTERS = 4_000_000
# SQLSTATE classes of what passes: the server is away, full or a standby, or somebody was faster. Any other says that this
# cannot be written, and nobody waits for it.
_PASSING = ("08", "25", "40", "53", "55", "57", "58")


@dataclass(frozen=True, slots=True)
class Told:
    """What is sent of one attempt: how far it is by now, and chunks from the place `first` since its claim."""

    job_id: int
    attempted_at: datetime
    done: float | None
    total: float | None
    message: str | None
    first: int
    chunks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Heard:
    """Jobs whose report was written, and those whose attempt is over. The rows of the others were locked."""

    written: Sequence[int]
    late: Sequence[int]


@dataclass(slots=True, eq=False)
class Report:
    """What one attempt has told since its claim, and how much of that the database knows.

    Attributes:
        what: The step, in words.
        open: Whether what it tells counts.
        changes: How often it told how far it is, and `changes_sent` what of that is known.
        chunks: Those that are not known, after `sent` others.
        weight: What all its chunks come to, in bytes.
        all_sent: Set when there is nothing left to send; None while nobody waits for that.
    """

    job_id: int
    attempted_at: datetime
    what: str
    _reports: "Reports"
    _loop: asyncio.AbstractEventLoop
    open: bool = True
    warned: bool = False
    done: float | None = None
    total: float | None = None
    message: str | None = None
    changes: int = 0
    changes_sent: int = 0
    chunks: deque[str] = field(default_factory=deque)
    sent: int = 0
    weight: int = 0
    all_sent: asyncio.Event | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the database knows all of it."""
        return not self.chunks and self.changes == self.changes_sent

    def tell(self, done: float, total: float | None, message: str | None) -> None:
        """How far the attempt is. From any thread."""
        self._reports.note_progress(self, done, total, message)

    def stream(self, text: str, weight: int) -> bool:
        """A chunk, as JSON; False when that is more than an attempt may stream. From any thread."""
        return self._reports.note_chunk(self, text, weight)

    @property
    def limit(self) -> int:
        """Bytes that the attempt may stream."""
        return self._reports.limit

    def wake(self, writer: Callable[[], None]) -> None:
        """Call the writer in the loop that runs the step."""
        try:
            self._loop.call_soon_threadsafe(writer)
        except RuntimeError:
            # The loop has ended, and this thread of its step has not.
            self.open = False

    def cut(self, count: int, *, known: bool) -> None:
        """Forget the first chunks, because the database knows them, or must do without."""
        for _ in range(min(count, len(self.chunks))):
            self.chunks.popleft()
        if known:
            self.sent += count


# A report, how many changes what is sent of it comprises, and that.
type _Batch = list[tuple[Report, int, Told]]


class Reports:
    """The reports of the steps that run in this process, and the task that sends them, which lives while there is something.

    Args:
        send: Writes reports, each whole or not at all.
        limit: Bytes that an attempt may stream between its claim and its end.
    """

    def __init__(self, send: Callable[[Sequence[Told]], Awaitable[Heard]], *, limit: int) -> None:
        self.limit = limit
        self._send = send
        # Plain steps tell from their threads. Held for moments only.
        self._lock = threading.Lock()
        self._unsent: dict[Report, None] = {}
        self._writer: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._failures = 0

    def begin(self, job_id: int, attempted_at: datetime, what: str) -> Report:
        """The report of an attempt, in the event loop that runs it."""
        return Report(job_id, attempted_at, what, self, asyncio.get_running_loop())

    def note_progress(self, report: Report, done: float, total: float | None, message: str | None) -> None:
        """See `Report.tell`."""
        with self._lock:
            if self._counts(report):
                report.done, report.total, report.message = done, total, message
                report.changes += 1
                self._note(report)

    def note_chunk(self, report: Report, text: str, weight: int) -> bool:
        """See `Report.stream`."""
        with self._lock:
            if self._counts(report):
                if report.weight + weight > self.limit:
                    return False
                report.weight += weight
                report.chunks.append(text)
                self._note(report)
            return True

    def _counts(self, report: Report) -> bool:
        if not report.open and not report.warned:
            report.warned = True
            logger.warning(
                "%s reported after its attempt had ended or lost its job; that, and what it reports from now on, is dropped",
                report.what,
            )
        return report.open

    def _note(self, report: Report) -> None:
        if report not in self._unsent:
            self._unsent[report] = None
            report.wake(self._ensure_writer)

    async def finish(self, report: Report) -> None:
        """Take nothing more of an attempt that has ended, and wait until the rest is sent, or given up."""
        with self._lock:
            report.open = False
            if report.is_sent:
                return
            report.all_sent = asyncio.Event()
        self._ensure_writer()
        self._hurried.set()
        try:
            async with asyncio.timeout(_PATIENCE):
                await report.all_sent.wait()
        except TimeoutError:
            pass
        finally:
            self._give_up(report)

    def _give_up(self, report: Report) -> None:
        with self._lock:
            self._unsent.pop(report, None)
            lost = len(report.chunks)
            report.chunks.clear()
        if lost:
            logger.warning(
                "the last %d chunks that %s streamed could not be written in time, and are lost",
                lost,
                report.what,
            )

    async def stop(self) -> None:
        """End the writer. What it has is sent, if that is a matter of a moment: the attempts have ended by now."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._hurried.set()
            await asyncio.wait({writer}, timeout=_STOP_SECONDS)
            await end(writer)

    def _ensure_writer(self) -> None:
        if self._writer is None or self._writer.done():
            self._hurried = asyncio.Event()
            self._writer = asyncio.create_task(self._write(), name="baton-reports")

    async def _write(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            batch, whole = self._take()
            if not batch:
                return
            next_at = clock() + (_INTERVAL if whole else 0)
            self._hurried.clear()
            try:
                await self._deliver(batch)
                self._failures = 0
            except (psycopg.Error, OSError, TimeoutError) as error:
                self._failures += 1
                if self._failures == 1:
                    logger.warning(
                        "what steps report cannot be written (%s); it is kept, and tried again",
                        " ".join(str(error).split()),
                    )
                await asyncio.sleep(pause_after(self._failures, first=2 * _INTERVAL, longest=_LONGEST_PAUSE))
            except Exception:
                logger.exception("what steps reported is lost")
                self._drop(batch)
            try:
                async with asyncio.timeout_at(next_at):
                    await self._hurried.wait()
            except TimeoutError:
                pass

    def _take(self) -> tuple[_Batch, bool]:
        """What is to be sent, and whether that is all there is."""
        batch: _Batch = []
        count = characters = 0
        whole = True
        with self._lock:
            for report in list(self._unsent):
                chunks = []
                for text in report.chunks:
                    if count == _MOST_CHUNKS or characters > _MOST_CHARACTERS:
                        whole = False
                        break
                    chunks.append(text)
                    count += 1
                    characters += len(text)
                told = Told(
                    report.job_id,
                    report.attempted_at,
                    report.done,
                    report.total,
                    report.message,
                    report.sent,
                    chunks,
                )
                batch.append((report, report.changes, told))
                # The next turn begins with those that had no room in this one.
                if len(chunks) < len(report.chunks) and chunks:
                    self._unsent[report] = self._unsent.pop(report)
        return batch, whole

    async def _deliver(self, batch: _Batch) -> None:
        try:
            heard = await within(_CALL_SECONDS, self._sending(batch))
        except psycopg.Error as error:
            if _may_pass(error):
                raise
            if len(batch) == 1:
                logger.error(
                    "the database refused what %s reported: %s",
                    batch[0][0].what,
                    " ".join(str(error).split()),
                )
                self._drop(batch)
                return
            # One that is refused must not take the others with it.
            for one in batch:
                await self._deliver([one])
            return
        written, late = set(heard.written), set(heard.late)
        with self._lock:
            for report, changes, told in batch:
                if told.job_id in late:
                    report.open = False
                    self._counts(report)
                    report.chunks.clear()
                    report.changes_sent = report.changes
                elif told.job_id in written:
                    report.cut(len(told.chunks), known=True)
                    report.changes_sent = changes
                self._settle(report)

    async def _sending(self, batch: _Batch) -> Heard:
        return await self._send([told for _, _, told in batch])

    def _drop(self, batch: _Batch) -> None:
        with self._lock:
            for report, changes, told in batch:
                report.cut(len(told.chunks), known=False)
                report.changes_sent = changes
                self._settle(report)

    def _settle(self, report: Report) -> None:
        if report.is_sent:
            self._unsent.pop(report, None)
            if report.all_sent is not None:
                report.all_sent.set()


def _may_pass(error: psycopg.Error) -> bool:
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate.startswith(_PASSING)
