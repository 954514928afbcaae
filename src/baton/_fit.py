"""Whether a step's result can be what another step's parameter wants, judged by their annotations.

What flows between steps is JSON, so two types are compared by the kinds of JSON they are written as: a str
may become a datetime, a dict a dataclass, but an int never a list. Only a certain misfit counts; whatever is
not understood fits.
"""

import dataclasses
import typing
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import Parameter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NewType, TypeAliasType, TypeVar, Union, get_args, get_origin
from uuid import UUID

_QUALIFIERS = frozenset(
    getattr(typing, name)
    for name in ("Final", "ClassVar", "Required", "NotRequired", "ReadOnly")
    if hasattr(typing, name)
)


def fits(source: object, target: object) -> bool:
    """Say whether a value annotated `source` could be passed on as `target`.

    Returns:
        False only when that certainly fails. Annotations that are missing, unresolved or unknown fit.
    """
    try:
        return _fits(source, target)
    except (TypeError, AttributeError, NameError, RecursionError):
        return True  # an annotation that cannot be taken apart proves nothing


def is_unknown(annotation: object) -> bool:
    """Say whether an annotation tells nothing: Any, object, a type variable, unresolved, or not there."""
    return (
        annotation is Any
        or annotation is object
        or annotation is Parameter.empty
        or isinstance(annotation, str | TypeVar | typing.ForwardRef)
    )


def describe(annotation: object) -> str:
    """Name a type as its author would write it."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return "None" if annotation is NoneType else annotation.__qualname__
    return str(annotation).replace("typing.", "")


def members(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _fits(source: object, target: object) -> bool:
    source, target = _bare(source), _bare(target)
    if source == target or is_unknown(source) or is_unknown(target):
        return True
    sources, targets = _alternatives(source), _alternatives(target)
    if len(sources) > 1 or len(targets) > 1:
        return any(_fits(one, other) for one in sources for other in targets)
    if get_origin(source) is Literal and get_origin(target) is Literal:
        return _values(source) == _values(target)
    written, wanted = _written(source), _accepted(target)
    if written is None or wanted is None:
        return True
    if not written & wanted:
        return False
    if "list" in written & wanted:
        return _elements_fit(source, target)
    if "dict" in written & wanted:
        return _fields_fit(source, target)
    return True


def _bare(annotation: object) -> object:
    """Take off what says nothing about the value: Annotated, NewType, aliases and qualifiers."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated or origin in _QUALIFIERS:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif isinstance(origin, TypeAliasType):
            annotation = origin.__value__[get_args(annotation)]
        else:
            return NoneType if annotation is None else annotation


def _alternatives(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) is Literal:
        return tuple(Literal[value] for value in get_args(annotation))
    return members(annotation)


def _written(annotation: object) -> set[str] | None:
    """The kinds of JSON that a value of this type is written as; None if unknown."""
    if get_origin(annotation) is Literal:
        return _kinds_of(_values(annotation))
    kind = get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Enum):
        return _kinds_of([member.value for member in kind])
    if issubclass(kind, Decimal):
        return {"str"}
    if _has_fields(kind):
        return {"dict"}
    for name, classes in _KINDS.items():
        if issubclass(kind, classes):
            return {name}
    if kind.__module__ in ("collections.abc", "collections", "typing"):
        # An abstract class is written as whichever of its subclasses the value is: a Sequence may be a str.
        found = {name for name, classes in _KINDS.items() if any(issubclass(one, kind) for one in classes)}
        return found or None
    return None


def _accepted(annotation: object) -> set[str] | None:
    """The kinds of JSON from which a value of this type can be made; None if unknown."""
    kinds = _written(annotation)
    if kinds is None:
        return None
    if isinstance(annotation, type) and issubclass(annotation, Decimal):
        return {"str", "int", "float"}
    if "float" in kinds:
        kinds = kinds | {"int"}
    if "int" in kinds:
        kinds = kinds | {"bool"}
    return kinds


_KINDS: dict[str, tuple[type, ...]] = {
    "null": (NoneType,),
    "bool": (bool,),
    "int": (int,),
    "float": (float,),
    "str": (str, date, time, timedelta, UUID),
    "list": (list, tuple, set, frozenset),
    "dict": (dict, Mapping),
}


def _values(literal: object) -> list[object]:
    return [value.value if isinstance(value, Enum) else value for value in get_args(literal)]


def _kinds_of(values: list[object]) -> set[str] | None:
    kinds: set[str] = set()
    for value in values:
        found = _written(type(value))
        if found is None:
            return None
        kinds |= found
    return kinds or None


def _has_fields(kind: type) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or hasattr(kind, "__pydantic_fields__")
        or hasattr(kind, "__struct_fields__")
    )


def _elements_fit(source: object, target: object) -> bool:
    sources, targets = _elements(source), _elements(target)
    if isinstance(sources, tuple) and isinstance(targets, tuple):
        return len(sources) == len(targets) and all(map(_fits, sources, targets))
    ours = sources if isinstance(sources, tuple) else (sources,)
    theirs = targets if isinstance(targets, tuple) else (targets,)
    return all(_fits(one, other) for one in ours for other in theirs)


def _elements(annotation: object) -> object:
    """The type of all elements, or a tuple with the type of each."""
    arguments: tuple[object, ...] = get_args(annotation)
    if not arguments:
        return Any
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        return () if arguments == ((),) else arguments
    return arguments[0]


def _fields_fit(source: object, target: object) -> bool:
    ours, theirs = _field_names(source), _field_names(target)
    if ours is not None and theirs is not None:
        return theirs[1] <= ours[0]
    if len(get_args(source)) == len(get_args(target)) == 2:
        return all(map(_fits, get_args(source), get_args(target)))
    return True


def _field_names(annotation: object) -> tuple[set[str], set[str]] | None:
    """All fields of a dataclass or TypedDict, and those that must be there; None for other types."""
    kind: Any = get_origin(annotation) or annotation
    if typing.is_typeddict(kind):
        return set(kind.__annotations__), set(kind.__required_keys__)
    if not dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_fields__"):
        return None
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = {
        field.name
        for field in fields
        if field.init and field.default is missing and field.default_factory is missing
    }
    return {field.name for field in fields}, required
