import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict, TypeVar, Union
from uuid import UUID

import pydantic
import pytest

from baton._fit import describe, fits


@dataclass
class Document:
    title: str
    words: int = 0


@dataclass
class Score:
    value: float


class Row(TypedDict):
    title: str
    note: NotRequired[str]


class Model(pydantic.BaseModel):
    value: int


class Color(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Mixed(Enum):
    A = "a"
    B = 1


class Opaque: ...


T = TypeVar("T")
UserId = NewType("UserId", int)
type Titles = list[str]
type Pair[X] = tuple[X, X]
type Tree = dict[str, Tree]
type OtherTree = dict[str, OtherTree]


FIT = [
    (int, int),
    (int, float),
    (bool, int),
    (int, Any),
    (Any, int),
    (int, object),
    (T, int),
    (int, T),
    ("Unresolved", int),
    (int, "Unresolved"),
    (str, int | str),
    (int | str, str),
    (str | None, str),
    (str, Optional[str]),  # noqa: UP045
    (Union[int, str], Union[str, bytes]),  # noqa: UP007
    (None, type(None)),
    (None, str | None),
    (list[int], list[int]),
    (list[int], list[float]),
    (list, list[int]),
    (list[int], Sequence[int]),
    (list[int], Iterable[float]),
    (tuple[int, ...], list[int]),
    (list[int], tuple[int, ...]),
    (tuple[int, str], tuple[int, str]),
    (tuple[int, str], list[int | str]),
    (set[int], Collection[int]),
    (str, Sequence[str]),
    (dict[str, int], Mapping[str, float]),
    (dict[str, int], Iterable[str]),
    (dict[str, Any], Document),
    (Document, dict),
    (Document, dict[str, Any]),
    (Document, Row),
    (Row, Document),
    (Model, Document),
    (Document, Model),
    (list[Document], list[Row]),
    (str, datetime),
    (datetime, str),
    (datetime, date),
    (UUID, str),
    (Decimal, str),
    (float, Decimal),
    (str, Color),
    (Color, str),
    (Level, int),
    (Mixed, str),
    (Literal["a", "b"], Literal["b", "c"]),
    (Literal["a"], str),
    (str, Literal["a"]),
    (Literal[Color.RED], Literal["red"]),
    (Annotated[int, "positive"], int),
    (UserId, int),
    (int, UserId),
    (Titles, list[str]),
    (Pair[int], tuple[int, int]),
    (Tree, OtherTree),
    (Opaque, int),
    (int, Opaque),
    (int, Callable[[int], int]),
]

MISFIT = [
    (int, str),
    (str, int),
    (float, int),
    (int, bool),
    (list[int], int),
    (int, list[int]),
    (str, list[str]),
    (list[str], str),
    (list[int], list[str]),
    (list[Document], list[int]),
    (list[int], Sequence[str]),
    (tuple[int, int], tuple[int]),
    (tuple[int, str], list[int]),
    (dict[str, int], dict[str, str]),
    (dict[str, int], list[int]),
    (Document, str),
    (str, Document),
    (Document, list[Document]),
    (Model, int),
    (int, Model),
    (Row, int),
    (Score, Document),
    (dict, Sequence[int]),
    (None, str),
    (int | None, str),
    (int | float, str | list[int]),
    (Decimal, float),
    (UUID, int),
    (int, datetime),
    (Color, int),
    (Level, str),
    (Literal["a"], Literal["b"]),
    (Literal["a"], int),
    (Annotated[int, "positive"], Annotated[str, "short"]),
    (UserId, str),
    (Titles, list[int]),
    (Pair[int], tuple[str, str]),
]


@pytest.mark.parametrize(("source", "target"), FIT, ids=str)
def test_it_may_fit(source, target):
    assert fits(source, target)


@pytest.mark.parametrize(("source", "target"), MISFIT, ids=str)
def test_it_certainly_does_not_fit(source, target):
    assert not fits(source, target)


def test_a_required_field_that_the_source_lacks_is_a_misfit():
    wider = dataclasses.make_dataclass("Wider", [("title", str), ("author", str)])
    assert not fits(Document, wider)
    assert fits(wider, Document)


@pytest.mark.parametrize("annotation", [3, [int], {"a": int}, lambda: 0, Ellipsis])
def test_what_is_no_annotation_fits(annotation):
    assert fits(annotation, int)
    assert fits(int, annotation)


def test_a_type_is_described_as_written():
    assert describe(list[int]) == "list[int]"
    assert describe(int | None) == "int | None"
    assert describe(Document) == "Document"
    assert describe(type(None)) == "None"
    assert describe(Any) == "Any"
