"""What a step says while it runs: `baton.progress` and `baton.stream`.

Both only note what is said; `_reports` sends it.
"""

import math
from numbers import Real
from typing import Any

from baton import _codec, _step
from baton._reports import Report
from baton.errors import InvalidOption, NoWorkflow, StreamTooLarge

_MESSAGE_CHARACTERS = 500
_CHUNK_BYTES = 1_000_000
# What a chunk costs besides its text, here and as a row: many small ones are no way around the limit.
_CHUNK_OVERHEAD = 64


def progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Say how far the step is, for whoever watches: `StepStatus.progress`, events and the page.

    It never waits and touches no database, so a loop may call it at every turn: about every 100 ms the last that was said is
    written, and the very last before the step's outcome. Works in an `async` step, in the tasks that it starts, in the thread
    of a plain step and in worker classes. An attempt that has lost its job says nothing any more.

    Args:
        done: How much is done, from 0 up, in whatever the step counts.
        total: Of how much, above 0; None when the step does not know.
        message: What it is doing, of which the first 500 characters are kept.

    Raises:
        NoWorkflow: No step of a workflow is running here.
        InvalidOption: `done` or `total` is no such number, or `message` no text.
    """
    report = _report("baton.progress()")
    amount = _number("done", done)
    of = None if total is None else _number("total", total)
    if amount < 0:
        raise InvalidOption(f"progress has done={done!r}; it must be from 0 up")
    if of is not None and of <= 0:
        raise InvalidOption(f"progress has total={total!r}; it must be above 0, or None when it is not known")
    if message is not None and not isinstance(message, str):
        raise InvalidOption(f"progress has a message of type {type(message).__name__}; it must be text")
    text = None if message is None else _codec.clean_text(message[:_MESSAGE_CHARACTERS], _MESSAGE_CHARACTERS)
    report.tell(amount, of, text)


class Stream:
    """The stream of the step that runs here, read with `run.stream`: tokens, rows, lines of a log."""

    def write(self, chunk: Any) -> None:
        """Append a chunk to the stream of this attempt.

        As `baton.progress` it never waits. Chunks are kept in the order in which they were written, numbered from 0 in each
        attempt, and sent together about every 100 ms, the last of them before the step's outcome. While the database is away
        they are kept here. A process that dies takes along what it had not sent.

        Args:
            chunk: What JSON can hold, as for a result; text for tokens. Up to a megabyte: it is for pieces.

        Raises:
            NoWorkflow: No step of a workflow is running here.
            InvalidResult: JSON cannot hold the chunk; `path` says where.
            StreamTooLarge: The chunk is over a megabyte, or the attempt has streamed more than `Baton(stream_limit=)`.
        """
        report = _report("baton.stream")
        text = _codec.encode(chunk, root="chunk")
        size = len(text) if text.isascii() else len(text.encode())
        if size > _CHUNK_BYTES:
            raise StreamTooLarge(
                f"a chunk of {size:,} bytes as JSON is over the limit of {_CHUNK_BYTES:,}; write it in pieces, or store it "
                "elsewhere and stream where it is"
            )
        if not report.stream(text, size + _CHUNK_OVERHEAD):
            raise StreamTooLarge(
                f"{report.what} has streamed {report.weight:,} bytes in this attempt, and {size + _CHUNK_OVERHEAD:,} more are "
                f"over the limit of {report.limit:,}; stream less, or raise the limit with Baton(stream_limit=)"
            )


stream = Stream()


def _report(what: str) -> Report:
    try:
        context = _step.current()
    except NoWorkflow:
        raise NoWorkflow(
            f"{what} is for code that a step runs; no step of a workflow is running here"
        ) from None
    attempt = _step.attempt_of(context.job)
    assert attempt is not None
    assert attempt.report is not None
    return attempt.report


def _number(name: str, value: object) -> float:
    number = math.nan
    if type(value) is not bool and isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if math.isfinite(number):
        return number
    raise InvalidOption(f"progress has {name}={_shown(value)}; it must be a finite number")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (float, str)) else f"a {type(value).__name__}"
