"""What users ask of the database: checked, and as the statements take it. Pure."""

import re
from datetime import datetime
from uuid import UUID

from baton.errors import InvalidOption, RunNotFound

# No name and no key is longer.
LONGEST_TEXT = 200
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_BEGINNING_OF_AN_ID = re.compile("[0-9a-f-]{1,36}")


def text(option: str, value: str | None) -> str | None:
    """Text that the database can hold, None for none."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or UNSTORABLE.search(value):
        raise InvalidOption(
            f"{option} is {shown(value)}; it must be text of at most {LONGEST_TEXT} characters, without NUL and surrogates"
        )
    return str.__str__(value)


def _escaped(part: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", part)


def containing(option: str, value: str | None) -> str | None:
    """A pattern of LIKE for what contains the text; None for no text."""
    part = text(option, value)
    return f"%{_escaped(part)}%" if part else None


def beginning(name_prefix: str) -> str | None:
    """A pattern of LIKE for what begins with the text; None for the empty one."""
    start = text("name_prefix", name_prefix)
    if start is None:  # a tenant that somebody has not found must not see what all have
        raise InvalidOption("name_prefix is None; it must be text, '' for all runs")
    return f"{_escaped(start)}%" if start else None


def ids_beginning(start: str) -> tuple[UUID | None, UUID | None]:
    """The first and the last id that could begin with this text."""
    start = start.lower()
    if _BEGINNING_OF_AN_ID.fullmatch(start):
        digits = start.replace("-", "")
        if digits and len(digits) <= 32:
            first, last = (UUID(digits.ljust(32, filler)) for filler in "0f")
            if str(first).startswith(start):
                return first, last
    return None, None


def aware(option: str, moment: datetime | None) -> datetime | None:
    """A moment with a time zone, None for none."""
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOption(
            f"{option} is {shown(moment)}; it must be a datetime with a time zone, such as datetime.now(UTC)"
        )
    return moment


def run_id(given: str | UUID) -> UUID:
    """A run's id; RunNotFound if it is none, since there is no such run."""
    try:
        return UUID(str(given))
    except ValueError as error:
        raise RunNotFound(
            f"{shown(given)} is no run's id; ids look like 01890a5d-ac96-774b-bcce-b302099a8057"
        ) from error


def run_id_option(option: str, given: str | UUID) -> UUID:
    """A run's id, as an option."""
    try:
        return run_id(given)
    except RunNotFound as error:
        raise InvalidOption(f"{option}: {error}") from error


def check_range(option: str, value: object, most: int) -> None:
    """A whole number from 1 up to the most."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidOption(f"{option} is {shown(value)}; it must be a whole number from 1 to {most:,}")


def shown(value: object) -> str:
    """What was given, in ASCII and not at length: it may come from anywhere."""
    written = ascii(value)
    return written if len(written) <= 80 else f"{written[:60]}...{written[-17:]}"
