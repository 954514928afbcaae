"""The grammar of names, checked once, where a name enters Baton.

A name ends up in SQL parameters, log lines, diagrams, terminals and web pages. Everything that makes one of
those lie (control characters, bidirectional overrides, lone surrogates) is refused here, so that nothing
behind this module has to think about it again.
"""

import re
import secrets
import sys
import time
import uuid

from baton.errors import InvalidName

_STEP = re.compile(r"[A-Za-z0-9_-]{1,64}(\[[0-9]{1,6}\])?")
_FUNCTION = re.compile(r"[A-Za-z0-9_.<>-]{1,200}")
_QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,60}")

# Control characters, line and paragraph separators, bidirectional embeddings, overrides and isolates, and
# surrogates. Joiners and combining marks stay: emoji and many scripts cannot be written without them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def step_name(value: object) -> str:
    """Check the name of a step: 1 to 64 letters, digits, `_` or `-`, then `[index]` if it is a branch.

    Raises:
        InvalidName: `value` is anything else.
    """
    return _matching(_STEP, value, "step", "1 to 64 ASCII letters, digits, '_' or '-'")


def function_name(value: object) -> str:
    """Check the name a step function is registered under, usually `module.qualname`.

    Raises:
        InvalidName: `value` is not 1 to 200 ASCII letters, digits or `_.<>-`.
    """
    allowed = "1 to 200 ASCII letters, digits, '_', '.', '<', '>' or '-', or give one with @step(name=...)"
    return _matching(_FUNCTION, value, "step function", allowed)


def queue_name(value: object) -> str:
    """Check the name of a queue: 1 to 60 letters, digits, `_`, `.` or `-`.

    Raises:
        InvalidName: `value` is anything else.
    """
    return _matching(_QUEUE, value, "queue", "1 to 60 ASCII letters, digits, '_', '.' or '-'")


def workflow_name(value: object) -> str:
    """Check the name of a workflow: 1 to 200 printable characters, at most 400 bytes of UTF-8.

    Raises:
        InvalidName: `value` is blank, too long, or has characters that cannot be shown.
    """
    name = _printable(value, "workflow")
    if (size := len(name.encode())) > 400:
        raise InvalidName(f"workflow name {_shown(name)} has {size} bytes of UTF-8; use at most 400")
    return name


def workflow_key(value: object) -> str:
    """Check a workflow's key: 1 to 200 printable characters, not all blank.

    Raises:
        InvalidName: `value` is blank, too long, or has characters that cannot be shown.
    """
    return _printable(value, "workflow key")


def budget_key(value: object) -> str:
    """Check the key of a shared budget: 1 to 200 printable characters, not all blank, and not those of a run's id.

    Raises:
        InvalidName: `value` is anything else.
    """
    key = _printable(value, "budget key")
    try:
        uuid.UUID(key)
    except ValueError:
        return key
    raise InvalidName(f"budget key {key!r} looks like a run's id; put a word before it: 'tenant:{key}'")


def call_key(value: object) -> str:
    """Check the key of a stored call: 1 to 200 printable characters, not all blank.

    Raises:
        InvalidName: `value` is blank, too long, or has characters that cannot be shown.
    """
    return _printable(value, "call key")


def model_name(value: object) -> str:
    """Check the name of a model: 1 to 200 printable characters, not all blank.

    Raises:
        InvalidName: `value` is blank, too long, or has characters that cannot be shown.
    """
    return _printable(value, "model")


if sys.version_info >= (3, 14):
    uuid7 = uuid.uuid7
else:

    def uuid7() -> uuid.UUID:
        """Make an id that sorts by the time of its making (RFC 9562, version 7)."""
        milliseconds, rest = divmod(time.time_ns(), 1_000_000)
        fraction = rest * 4096 // 1_000_000  # method 3 of section 6.2: orders ids within a millisecond
        high = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | fraction << 64
        return uuid.UUID(int=high | 0b10 << 62 | secrets.randbits(62))


def _matching(pattern: re.Pattern[str], value: object, kind: str, allowed: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return str.__str__(value)
    raise InvalidName(f"{kind} name {_shown(value)} is not allowed; use {allowed}")


def _printable(value: object, kind: str) -> str:
    if not isinstance(value, str):
        raise InvalidName(f"{kind} {_shown(value)} is not a string; use 1 to 200 printable characters")
    if found := _UNPRINTABLE.search(value):
        at = f"U+{ord(found[0]):04X} at position {found.start()}"
        raise InvalidName(f"{kind} {_shown(value)} has the unprintable character {at}; remove it")
    if not 1 <= len(value) <= 200 or value.isspace():
        raise InvalidName(f"{kind} {_shown(value)} is not allowed; use 1 to 200 characters, not all blank")
    return str.__str__(value)


def _shown(value: object) -> str:
    """Quote a refused value in ASCII, so that the message cannot lie either."""
    if not isinstance(value, str):
        return f"of type {type(value).__name__}"
    return ascii(value if len(value) <= 80 else f"{value[:60]}...{value[-17:]}")
