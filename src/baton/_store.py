"""Loads the statements in `sql/`, puts the schema's name into them, and returns typed rows. Decides nothing.

A statement is a file; `/* schema */` before a name stands for the quoted schema, `/* prefix */` inside a string for the
bare one, `/* functions */` for the names of our functions, and `/* name */` for the text of `sql/parts/<name>.sql`, which
several statements have in common.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from baton.errors import InvalidOption

# Stable plans whatever the tables looked like when a session first ran the function: an index look-up per row is right for
# every statement of the engine, on an empty table and on a large one. Without jit, whose cost check the last three would fool.
#
# The trigger functions alone run with their owner's rights, and on a search path of their own: whoever may write a job need not
# have rights on Baton's tables. What Baton calls itself has its caller's rights and search path, so that a trigger of the
# user's on the job table finds its tables as it does with Oban alone.
_PINNED = (
    "SET plan_cache_mode = force_generic_plan SET jit = off "
    "SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off"
)
_PART = re.compile(r"/\* (\w+) \*/")
_PREFIX = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,39}")


def validate_prefix(prefix: str) -> str:
    """Return the schema name, or say what one looks like.

    Oban pastes it into its statements unquoted, so only names that need no quotes will do.

    Raises:
        InvalidOption: It has other characters than a-z, 0-9 and `_`, starts with a digit or pg_, or is too long.
    """
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise InvalidOption(
            f"prefix {prefix!r} is not a schema Baton can use: 1 to 40 of a-z, 0-9 and _, not starting with a digit "
            "or pg_"
        )
    return prefix


@cache
def load(name: str, prefix: str = "public") -> bytes:
    """The statement in `sql/<name>.sql` for a schema that `validate_prefix` has seen."""
    return statement(files("baton").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8"), prefix)


@cache
def statement(text: str, prefix: str) -> bytes:
    """A statement ready to execute."""
    return render(text, prefix).encode()


def render(text: str, prefix: str) -> str:
    """Put what statements have in common, a validated schema name and the pinned settings into a statement."""
    parts = _parts()
    # Twice: a part may be made of parts.
    for _ in range(2):
        text = _PART.sub(lambda found: parts.get(found[1], found[0]), text)
    text = text.replace("/* schema */", f'"{prefix}".').replace("/* prefix */", prefix)
    if "/* functions */" in text:
        text = text.replace("/* functions */", ", ".join(f"'baton_{name}'" for name, _ in functions()))
    return text.replace("/* pinned */", _PINNED)


@cache
def _parts() -> dict[str, str]:
    return {name: text.rstrip() for name, text in _folder("parts")}


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered, forward-only step of the schema."""

    version: int
    name: str
    text: str


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations in this library, by version."""
    found = []
    for entry in files("baton").joinpath("sql", "migrations").iterdir():
        version, _, name = entry.name.removesuffix(".sql").partition("_")
        found.append(Migration(int(version), name, entry.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


def functions() -> tuple[tuple[str, str], ...]:
    """Name and text of every database function, in the order to create them."""
    return _folder("functions")


def views() -> tuple[tuple[str, str], ...]:
    """Name and text of every view."""
    return _folder("views")


@cache
def _folder(name: str) -> tuple[tuple[str, str], ...]:
    folder = files("baton").joinpath("sql", name)
    return tuple(
        (entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
    )
