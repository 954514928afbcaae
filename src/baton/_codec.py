"""The one strict JSON codec: what a step takes and returns passes here, and nothing changes silently.

`encode` refuses what JSON or PostgreSQL cannot hold and says where it is. orjson does the work; a walk in
Python, which knows paths, follows only if orjson refused, or if its output has a null or a NUL: orjson writes
NaN as null, and PostgreSQL refuses a NUL. `restore` makes the annotated type of a decoded value.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Protocol, get_args, get_origin
from uuid import UUID

import msgspec
import orjson

from baton._fit import describe, is_unknown
from baton.errors import BatonError, InvalidResult, ResultMismatch, ResultTooLarge

type JsonValue = bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None
type Path = tuple[str | int, ...]

MAX_DEPTH = 200

# orjson itself refuses the 255th level. A value wrapped this deep meets that limit at our own, in C.
_PADDING = 254 - MAX_DEPTH

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Refused(Exception):
    """A value that JSON cannot hold: where it is below the root, and what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class Attribute(str):
    """A segment of a path that is an attribute, not a key."""

    __slots__ = ()


class Claim(Protocol):
    """Told of each value that is no plain JSON; True claims it, and null takes its place."""

    def __call__(self, value: object, path: Path, /) -> bool: ...


def encode(
    value: object,
    *,
    root: str,
    limit: int | None = None,
    error: type[BatonError] = InvalidResult,
    mend: bool = False,
) -> str:
    """Write a value as JSON that PostgreSQL can store and that reads back as the same value.

    Takes str, int of 64 bits, finite float, bool, None, dict with str keys, list and tuple, and by way of
    these: dataclasses, Pydantic models, msgspec structs, enums (by value), date, time and datetime
    (RFC 3339), UUID, and Decimal (as a string).

    Args:
        root: What the value is called in messages, such as `result`.
        limit: Largest size allowed, in bytes of UTF-8.
        error: Raised for a refused value; InvalidResult also gets the path.
        mend: Put U+FFFD in place of NUL characters and lone surrogates, instead of refusing them.

    Raises:
        InvalidResult: JSON cannot hold the value; the message begins with the path to the culprit.
        ResultTooLarge: The text is over `limit`.
    """
    try:
        text = dump(value, mend=mend)
    except Refused as refused:
        path = render_path(root, refused.path)
        message = f"{path}: {refused.reason}"
        if issubclass(error, InvalidResult):
            raise error(message, path=path) from None
        raise error(message) from None
    if limit is not None and len(text) > limit:
        raise ResultTooLarge(
            f"{root} is {len(text):,} bytes as JSON, over the limit of {limit:,}; store it elsewhere and "
            f"return where it is, or raise the limit with Baton(result_limit=)"
        )
    return text.decode()


def dump(value: object, claim: Claim | None = None, *, mend: bool = False) -> bytes:
    """Write a value as JSON. `claim` sees what is not JSON, with its path, and may leave a null there. `mend` is `encode`'s.

    Raises:
        Refused: JSON cannot hold the value.
    """
    padded = value
    for _ in range(_PADDING):
        padded = [padded]
    try:
        text = orjson.dumps(padded, _simplify, _OPTIONS)[_PADDING:-_PADDING]
    except TypeError:
        return orjson.dumps(_plain(value, claim, mend=mend))
    if b"\\u0000" in text or (b"null" in text and not _reads_back(text, value)):
        plain = _plain(value, claim, mend=mend)
        return orjson.dumps(plain) if mend else text
    return text


def decode(text: str | bytes) -> JsonValue:
    """Read JSON.

    Raises:
        InvalidResult: `text` is not JSON.
    """
    try:
        value: JsonValue = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidResult(f"stored text is not JSON: {error}; it was not written by Baton") from None
    return value


def restore(value: JsonValue, annotation: object, *, where: str) -> object:
    """Make the annotated type of a decoded value, strictly: "3" is no int, but an ISO string is a datetime.

    Args:
        annotation: Any type hint. One that says nothing, such as Any, returns the value as it is.
        where: What the value is, for the message: `result of step 'fetch'`.

    Raises:
        ResultMismatch: The value does not fit, or nothing here can make such a type.
    """
    if is_unknown(annotation):
        return value
    try:
        if _wants_pydantic(annotation):
            return _validate(annotation, value)
        try:
            return msgspec.convert(value, annotation, builtin_types=_NOT_FROM_TEXT, dec_hook=_from_json)
        except msgspec.ValidationError:
            raise
        except TypeError:
            # msgspec takes no union of two classes, or of str and datetime. Pydantic does.
            return _validate(annotation, value)
    except Exception as error:  # validators are the user's code and may raise anything
        raise ResultMismatch(
            f"{where} is not {describe(annotation)}: {_told(error)}; change the annotation, or what is stored"
        ) from error


def clean_text(text: str, limit: int = 16_384) -> str:
    """Make an error text storable: NUL and lone surrogates replaced, the middle cut to fit `limit`."""
    text = _SURROGATE.sub("\ufffd", text.replace("\0", "\u2400"))
    if len(text) <= limit:
        return text
    kept = limit - 40  # room for the marker, whatever it counts
    if kept < 2:
        return text[:limit]
    head = kept // 2
    tail = len(text) - kept + head
    return f"{text[:head]}\n... {len(text) - kept:,} characters cut ...\n{text[tail:]}"


def render_path(root: str, path: Sequence[str | int]) -> str:
    """Write a path as Python would: `result["rows"][3].score`."""
    parts = [root]
    for segment in path:
        if isinstance(segment, Attribute):
            parts.append(f".{segment}")
        elif isinstance(segment, str):
            parts.append(f"[{json.dumps(segment if len(segment) <= 60 else segment[:57] + '...')}]")
        else:
            parts.append(f"[{segment}]")
    return "".join(parts)


def _reads_back(text: bytes, value: object) -> bool:
    """Whether plain JSON came out as it went in, in C: a None is then a None, and no NaN. Models never do."""
    try:
        return bool(orjson.loads(text) == value)
    except Exception:  # comparing asks the user's classes, which may raise anything
        return False


def _plain(value: object, claim: Claim | None, *, mend: bool = False) -> JsonValue:
    """Rebuild a value from plain types, or raise Refused with the path to what cannot be.

    The walk keeps one path and one set of containers, and goes down before it goes on: a structure that
    contains itself ends at MAX_DEPTH, whatever its width.
    """
    path: list[str | int] = []

    def refuse(reason: str) -> Refused:
        return Refused(tuple(path), reason)

    def walk(value: object, depth: int) -> JsonValue:
        as_attributes = False
        if type(value) not in _NATIVE:
            if claim is not None and claim(value, tuple(path)):
                return None
            try:
                value, as_attributes = _simplified(value)
            except Exception as error:  # properties, serializers and enums are the user's code
                raise refuse(_told(error)) from None
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return checked(value, "text")
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise refuse("an int beyond 64 bits; JSON readers would round it, so store it as a string")
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise refuse(f"{value} is not JSON; use None, or leave it out")
            return value
        if depth == MAX_DEPTH:
            raise refuse(f"nested deeper than {MAX_DEPTH} levels, or containing itself; flatten it")
        if isinstance(value, list | tuple):
            items = []
            for index, item in enumerate(value):
                path.append(index)
                items.append(walk(item, depth + 1))
                path.pop()
            return items
        assert isinstance(value, dict)
        members: dict[str, JsonValue] = {}
        for key, member in value.items():
            if not isinstance(key, str):
                raise refuse(f"the key {_shown(key)} is {type(key).__name__}, not str; convert it yourself")
            name = checked(str.__str__(key), "the key")
            if name in members:
                raise refuse(f"two keys are both {_shown(name)} as text; rename one")
            path.append(Attribute(name) if as_attributes else name)
            members[name] = walk(member, depth + 1)
            path.pop()
        return members

    def checked(text: str, what: str) -> str:
        if mend:
            return _UNSTORABLE.sub("\ufffd", text)
        if "\0" in text:
            raise refuse(f"{what} {_shown(text)} has a NUL character, which PostgreSQL refuses; remove it")
        if not text.isascii() and (found := _SURROGATE.search(text)):
            at = f"U+{ord(found[0]):04X} at position {found.start()}"
            raise refuse(f"{what} {_shown(text)} has the lone surrogate {at}, which is not text; remove it")
        return text

    try:
        return walk(value, 0)
    except RecursionError:
        raise refuse("nested too deeply for what is left of the stack; flatten it") from None


_NATIVE = frozenset({type(None), bool, int, float, str, list, tuple, dict})


def _simplified(value: object) -> tuple[object, bool]:
    """Simplify until a native type comes out (an enum's value may be a date); say if it has attributes."""
    simple = _simplify(value)
    for _ in range(8):
        if type(simple) in _NATIVE:
            return simple, isinstance(simple, dict) and not isinstance(value, dict | Enum)
        simple = _simplify(simple)
    raise TypeError(f"{type(value).__name__} does not become JSON")


def _simplify(value: object) -> object:
    """Take one step towards JSON, for types that orjson does not know or would not write as we want."""
    if (fields := _fields(value)) is not None:
        return fields
    match value:
        case Enum():
            return value.value
        case datetime():
            offset = value.utcoffset()
            # RFC 3339 has no seconds in an offset, as local mean times before 1900 have; keep the instant.
            if offset is not None and (offset.seconds % 60 or offset.microseconds):
                value = value.astimezone(UTC)
            return value.isoformat()
        case date() | time():
            return value.isoformat()
        case UUID() | Decimal():
            return str(value)
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case tuple() | list():
            return list(value)
        case dict():
            return dict(value)
        case bytes() | bytearray() | memoryview():
            raise TypeError("bytes are not JSON; decode them, or store base64 text")
        case set() | frozenset():
            raise TypeError("a set has no order, so it is not JSON; use sorted(...) or list(...)")
        case type():
            raise TypeError(f"the class {value.__name__} itself is not JSON; return an instance")
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} is not JSON; use a dict, a dataclass or a model"
    )


def _fields(value: object) -> dict[str, object] | None:
    """Name and value of each field of a Pydantic model, dataclass or msgspec struct; None for the rest."""
    kind = type(value)
    if issubclass(kind, type):
        return None
    if (model_dump := getattr(kind, "model_dump", None)) is not None:
        # Field names, and no computed fields: what validation takes back.
        fields: dict[str, object] = model_dump(value, mode="json", round_trip=True)
        return fields
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if isinstance(value, msgspec.Struct):
        kind = type(value)
        names = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
        fields = {encoded: getattr(value, name) for encoded, name in names}
        config = kind.__struct_config__
        return fields if config.tag is None else {str(config.tag_field): config.tag} | fields
    return None


# msgspec would read text as base64 where bytes are wanted. Nothing here has written that text.
_NOT_FROM_TEXT = (bytes, bytearray, memoryview)


def _from_json(annotation: object, value: JsonValue) -> object:
    """Make a type that msgspec does not know, inside one that it does."""
    if _wants_pydantic(annotation):
        return _validate(annotation, value)
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and isinstance(value, origin):
        return value
    return _validate(annotation, value)


def _wants_pydantic(annotation: object) -> bool:
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_validator__"):
        return True
    return any(_wants_pydantic(member) for member in get_args(annotation))


def _validate(annotation: object, value: JsonValue) -> object:
    try:
        validator = _validator(annotation)
    except TypeError:  # an annotation that cannot be hashed, so not cached
        validator = _validator.__wrapped__(annotation)
    return validator(orjson.dumps(value))


@functools.lru_cache(maxsize=1024)
def _validator(annotation: object) -> Callable[[bytes], object]:
    # Optional, so found at run time. Strict JSON mode takes an ISO string for a datetime, but no "3" for 3.
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise TypeError(f"{describe(annotation)} needs Pydantic to be made from JSON") from None
    adapter: TypeAdapter[object] = TypeAdapter(annotation)  # type: ignore[arg-type]
    return functools.partial(adapter.validate_json, strict=True, by_alias=True, by_name=True)


def _told(error: Exception) -> str:
    """What an exception says, on one line; exceptions of the user's code may fail to say anything."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    if isinstance(error, TypeError | msgspec.ValidationError) and text:
        return clean_text(text, 500)
    return clean_text(f"{type(error).__name__}: {text}" if text else type(error).__name__, 500)


def _shown(value: object) -> str:
    try:
        text = ascii(value)
    except Exception:
        return f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
