"""Names and values that break what does not expect them, for the builder, the codec, the page and the CLI."""

import math
from collections.abc import Callable
from typing import Any

NAMES: list[str] = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "`",
    "'; DROP TABLE oban_jobs; --",
    "</script><script>alert(1)</script>",
    '"]; click s0 "javascript:alert(1)"',
    "%s",
    "%(name)s",
    "{}",
    "{0.__class__}",
    "${HOME}",
    "..",
    "/",
    "../../etc/passwd",
    "__proto__",
    "constructor",
    "null",
    "line\nbreak",
    "return\r\nSet-Cookie: a=b",
    "\x1b[31mred\x1b[0m",
    "\x07",
    "nul\x00",
    "\x9bC1",
    "right\u202eleft",
    "\u2066isolate",
    "sep\u2028arator",
    "caf\u00e9",  # NFC
    "cafe\u0301",  # NFD of the same
    "\U0001f389" * 300,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ud800",
    "\u0661",  # a digit, but not an ASCII one
    "a" * 65,
    "a" * 100_000,
    "name[3]x",
    "name[]",
    "trailing\n",
]


class Broken:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class BrokenModel:
    """Looks like a Pydantic model until it is asked for its contents."""

    def model_dump(self, **_: object) -> dict[str, object]:
        raise RuntimeError("no dump")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def self_reference() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def self_reference_in_dict() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = {"again": value}
    return value


# Each is refused by the codec; the last by its size limit alone.
VALUES: dict[str, Callable[[], object]] = {
    "NUL in a string": lambda: "a\x00b",
    "NUL in a key": lambda: {"a\x00": 1},
    "lone surrogate": lambda: "a\ud800b",
    "lone surrogate in a key": lambda: {"\udfff": 1},
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "negative infinity": lambda: -math.inf,
    "int beyond 64 bits": lambda: 10**40,
    "int below 64 bits": lambda: -(2**63) - 1,
    "10,000 levels": lambda: nested(10_000),
    "self-reference": self_reference,
    "self-reference in a dict": self_reference_in_dict,
    "int key": lambda: {1: "a"},
    "None key": lambda: {None: "a"},
    "tuple key": lambda: {(1, 2): "a"},
    "bytes": lambda: b"abc",
    "set": lambda: {1, 2},
    "object": object,
    "class": lambda: int,
    "function": lambda: nested,
    "generator": lambda: (n for n in range(3)),
    "complex": lambda: 1j,
    "broken object": Broken,
    "broken model": BrokenModel,
    "key whose repr raises": lambda: {Broken(): 1},
    "20 MB of text": lambda: "x" * 20_000_000,
}

# Unusual, but what JSON can hold: to be stored and read back as they are.
LEGAL: dict[str, Callable[[], object]] = {
    "negative zero": lambda: -0.0,
    "text that looks like an escape": lambda: "\\u0000 null NaN",
    "the largest int": lambda: 2**64 - 1,
    "the smallest int": lambda: -(2**63),
    "the largest float": lambda: 1.7976931348623157e308,
    "the smallest float": lambda: 5e-324,
    "None": lambda: None,
    "empty": lambda: {"": [[], {}, ""]},
    "200 levels": lambda: nested(200),
    "hostile keys": lambda: {"__proto__": 1, "%s": 2, "'; --": 3, "\x1b[31m": 4, "\u202e": 5},
    "emoji": lambda: "\U0001f468\u200d\U0001f469\u200d\U0001f467",
}
