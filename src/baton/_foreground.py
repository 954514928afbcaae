"""Runs a Baton in the foreground for the command line: loads the app, logs, stops by signals.

The first signal stops in good order, the second gives back what runs, the third ends the process.
"""

import asyncio
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from baton import Baton, StepLogFilter, __version__
from baton._terminal import safe
from baton.errors import InvalidOption, NotStarted

logger = logging.getLogger("baton.cli")

INTERRUPTED = 130
_START_GRACE = 1.0


class InvalidApp(InvalidOption):
    """What `--app` names is not there, cannot be imported or is no Baton."""


# --- the app --------------------------------------------------------------------------------------


def load(spec: str, folder: Path) -> Baton:
    """Import a module, looked for in `folder` first, and return the Baton that it holds or makes.

    Args:
        spec: `package.module:attribute`; the attribute may be dotted, and may be a function without arguments.

    Raises:
        InvalidApp: There is none; the message says at which step.
    """
    module_name, _, path = spec.partition(":")
    if not path or not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise InvalidApp(
            f"--app {spec!r} is not of the form package.module:attribute, such as shop.workflows:baton"
        )
    found: Any = _import(module_name, folder.absolute())
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidApp(f"module {module_name!r} has no {path!r}{_batons_in(found)}") from None
    if not isinstance(found, Baton) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise InvalidApp(f"calling {spec} failed: {_told(error)}") from error
    if not isinstance(found, Baton):
        if isinstance(found, Coroutine):
            found.close()
        raise InvalidApp(
            f"{spec} is {type(found).__name__}, no Baton; name a Baton, or a plain function without arguments that returns one"
        )
    return found


def _import(name: str, folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidApp(
                f"there is no module {error.name!r} in {folder} or among the installed packages; "
                "--app-dir says where else to look"
            ) from error
        raise InvalidApp(f"importing {name!r} failed: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise InvalidApp(f"importing {name!r} failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An exception in one line, with the place in the user's code."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
    ]
    ours = str(Path(__file__))
    place = next(
        (frame for frame in reversed(frames) if frame.filename != ours and Path(frame.filename).exists()),
        None,
    )
    return f"{text} ({place.filename}, line {place.lineno})" if place and place.filename not in text else text


def _batons_in(found: Any) -> str:
    names = (
        [name for name, value in vars(found).items() if isinstance(value, Baton)]
        if hasattr(found, "__dict__")
        else []
    )
    return f"; it has the Baton {', '.join(map(repr, names))}" if names else ""


def parse_queues(given: Sequence[str]) -> dict[str, int]:
    """`name=limit` each; `Baton` checks the names.

    Raises:
        InvalidOption: One is of another form.
    """
    queues: dict[str, int] = {}
    for text in given:
        name, equals, limit = text.partition("=")
        if not equals or not limit.isascii() or not limit.isdigit():
            raise InvalidOption(f"--queue {text!r} is not of the form name=limit, such as default=10")
        queues[name] = int(limit)
    return queues


# --- logging --------------------------------------------------------------------------------------


class _Formatter(logging.Formatter):
    """Names the step that logged; a message cannot forge lines of the log or steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        step = getattr(record, "step", None)
        record.where = ""
        if step is not None:
            record.where = (
                f" [{getattr(record, 'workflow', None)}/{step} attempt {getattr(record, 'attempt', None)}]"
            )
        return safe(super().format(record), lines=True)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = safe(record.message)
        return super().formatMessage(record)


def log_to_stderr(level: str) -> None:
    """Log everything to standard error, with the workflow, step and attempt that it belongs to."""
    handler = logging.StreamHandler()
    handler.addFilter(StepLogFilter())
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s%(where)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


# --- signals --------------------------------------------------------------------------------------


class Signals:
    """SIGINT and SIGTERM, counted. Made in the loop that is to hear of them.

    Attributes:
        first: Set by the first.
        second: Set by the second.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._arrived)

    def _arrived(self) -> None:
        if self.second.is_set():
            os._exit(INTERRUPTED)
        (self.second if self.first.is_set() else self.first).set()


@asynccontextmanager
async def running(baton: Baton, signals: Signals) -> AsyncIterator[bool]:
    """A Baton that works meanwhile; False if a signal came before it had started.

    Leaving stops it, and gives back what runs at the second signal.
    """
    starting = asyncio.create_task(baton.start())
    await _either(starting, signals.first)
    # A start that is nearly done may run steps already: rather stop in good order than in the middle.
    await asyncio.wait({starting}, timeout=_START_GRACE)
    if not starting.done():
        starting.cancel()
        await _ended(starting, baton, signals)
        yield False
        return
    await starting
    try:
        yield True
    finally:
        stopping = asyncio.create_task(baton.stop())
        await _ended(stopping, baton, signals)
        await stopping


async def _ended(task: asyncio.Task[Any], baton: Baton, signals: Signals) -> None:
    """Wait for a task that stops the Baton; not for the Baton's steps from the second signal on."""
    await _either(task, signals.second)
    if not task.done():
        baton.hurry()
    await asyncio.wait({task})


async def _either(task: asyncio.Task[Any], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def work(baton: Baton, check: Callable[[str], object]) -> bool:
    """Work on the queues until a signal.

    Args:
        check: Raises if a connection string is none.

    Returns:
        Whether the stop was in good order: a second signal did not cut it short.
    """
    signals = Signals()
    with suppress(NotStarted):  # an embedded server, or the app's own Oban
        check(baton.dsn)
    async with running(baton, signals) as started:
        if started:
            shown = ", ".join(f"{name}={limit}" for name, limit in baton.queues.items())
            logger.info("baton %s is working on %s", __version__, shown)
            await signals.first.wait()
            logger.info("stopping: waiting for running steps; another signal gives them back at once")
    logger.info("stopped")
    return not signals.second.is_set()


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop where it is installed (Oban brings it)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
