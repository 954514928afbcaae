import json
import math
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton._codec import clean_text, decode, encode, restore
from baton.errors import InvalidArgument, InvalidResult, ResultMismatch, ResultTooLarge
from tests.kit.hostile import LEGAL, VALUES, Broken, nested

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner))


class Color(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Odd(Enum):
    PAIR = (1, 2)
    DAY = date(2026, 1, 2)
    NAN = math.nan


@dataclass
class Document:
    title: str
    score: float = 0.0
    _private: int = 1
    tags: list[str] = field(default_factory=list)


class Model(pydantic.BaseModel):
    count: int
    at: datetime | None = None
    aliased: str = pydantic.Field("x", alias="aliasedName")

    @pydantic.computed_field
    def double(self) -> int:
        return self.count * 2


class Strict(pydantic.BaseModel, extra="forbid"):
    value: float


class Nested(pydantic.BaseModel):
    parts: list[Strict]


@dataclass
class Report:
    model: Strict
    documents: list[Document]


class Struct(msgspec.Struct, rename="camel", tag=True):
    some_field: int


class Row(TypedDict):
    title: str


Point = namedtuple("Point", "x y")


class Text(str): ...


class Number(int): ...


class Fraction(float): ...


def path_of(value: object) -> str:
    with pytest.raises(InvalidResult) as caught:
        encode(value, root="result")
    assert str(caught.value).startswith(f"{caught.value.path}: ")
    return caught.value.path


@given(json_values)
def test_a_json_value_reads_back_as_it_was(value):
    assert decode(encode(value, root="result")) == value
    assert json.loads(encode(value, root="result")) == value


@given(json_values)
def test_plain_python_reads_back_whole_floats_as_floats(value):
    def shape(value):
        if isinstance(value, dict):
            return {key: shape(member) for key, member in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else (type(value), repr(value))

    assert shape(decode(encode(value, root="result"))) == shape(value)


@pytest.mark.parametrize("label", VALUES)
def test_a_hostile_value_is_refused_with_its_path(label):
    value = VALUES[label]()
    expected = ResultTooLarge if label == "20 MB of text" else InvalidResult
    with pytest.raises(expected, match=r"^result"):
        encode(value, root="result", limit=1_000_000)


@pytest.mark.parametrize("label", [label for label in VALUES if label != "20 MB of text"])
def test_a_hostile_value_is_refused_wherever_it_hides(label):
    path = path_of({"rows": [None, (VALUES[label](),)]})
    assert path.startswith('result["rows"][1][0]')


@pytest.mark.parametrize("label", LEGAL)
def test_an_unusual_value_is_stored_as_it_is(label):
    value = LEGAL[label]()
    assert repr(decode(encode(value, root="result"))) == repr(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "result"),
        ({"rows": [{}, {}, {}, Document("x", math.nan)]}, 'result["rows"][3].score'),
        ([{'quo"te': b""}], 'result[0]["quo\\"te"]'),
        (Document("x", tags=["a", "\0"]), "result.tags[1]"),
        ({"m": Strict(value=math.inf)}, 'result["m"].value'),
        ({"e": Odd.NAN}, 'result["e"]'),
        (Point(1, {2}), "result[1]"),
        ({"a": {"b\0": 1}}, 'result["a"]'),
    ],
    ids=str,
)
def test_the_path_leads_to_the_culprit(value, path):
    assert path_of(value) == path


def test_201_levels_are_too_deep_with_or_without_a_null():
    assert encode(nested(200), root="result")
    assert path_of(nested(201)).count("[0]") == 200
    deep = nested(200)
    assert encode([None, deep[0]], root="result")
    with pytest.raises(InvalidResult, match="nested deeper than 200"):
        encode([None, deep], root="result")


def test_models_200_levels_deep_are_not_too_deep():
    value = None
    for _ in range(200):
        value = Wrapper(value)
    assert encode(value, root="result").count("inner") == 200
    with pytest.raises(InvalidResult, match="deeper"):
        encode(Wrapper(value), root="result")


@dataclass
class Wrapper:
    inner: object


def test_a_key_that_is_no_string_is_named():
    with pytest.raises(InvalidResult, match=r"the key 3 is int, not str; convert it yourself"):
        encode({3: 1}, root="result")


def test_keys_that_become_equal_are_refused():
    class Key(str):
        def __hash__(self):
            return id(self)

        def __eq__(self, other):
            return self is other

    with pytest.raises(InvalidResult, match="two keys are both 'a'"):
        encode({Key("a"): 1, Key("a"): 2}, root="result")


class Treacherous:
    @property
    def __class__(self):
        raise RuntimeError("no class")


@dataclass
class Lazy:
    value: int = 0

    def __getattribute__(self, name):
        if name == "value":
            raise ZeroDivisionError
        return super().__getattribute__(name)


@pytest.mark.parametrize("make", [Broken, Treacherous, Lazy, lambda: [Lazy()]])
def test_an_object_that_raises_when_looked_at_is_refused(make):
    with pytest.raises(InvalidResult):
        encode(make(), root="result")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ((1, (2,)), [1, [2]]),
        (Color.RED, "red"),
        (Level.LOW, 1),
        (Odd.PAIR, [1, 2]),
        (Odd.DAY, "2026-01-02"),
        ({Color.RED: 1, Text("k"): 2}, {"red": 1, "k": 2}),
        (Text("x"), "x"),
        (Number(3), 3),
        (Fraction(1.5), 1.5),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (Point(1, 2), [1, 2]),
        (Document("x"), {"title": "x", "score": 0.0, "_private": 1, "tags": []}),
        (Model(count=1, aliasedName="y"), {"count": 1, "at": None, "aliased": "y"}),
        (Struct(3), {"type": "Struct", "someField": 3}),
        (date(2026, 1, 2), "2026-01-02"),
        (time(1, 2, 3), "01:02:03"),
        (time(1, 2, tzinfo=UTC), "01:02:00+00:00"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006+00:00"),
        (datetime(2026, 7, 2, tzinfo=ZoneInfo("Europe/Berlin")), "2026-07-02T00:00:00+02:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
    ],
    ids=repr,
)
def test_a_rich_type_is_stored_as(value, stored):
    assert decode(encode(value, root="result")) == stored
    assert decode(encode({"v": [value, None]}, root="result")) == {"v": [stored, None]}


def test_an_instant_with_seconds_in_its_offset_stays_that_instant():
    moment = datetime(1890, 1, 1, tzinfo=timezone(timedelta(seconds=3208)))
    text = decode(encode(moment, root="result"))
    assert text == "1889-12-31T23:06:32+00:00"
    assert restore(text, datetime, where="it") == moment


def test_the_limit_counts_bytes():
    assert encode("é" * 4, root="result", limit=10)
    with pytest.raises(
        ResultTooLarge, match=r"result is 11 bytes as JSON, over the limit of 10; .*result_limit"
    ):
        encode("é" * 4 + "x", root="result", limit=10)


def test_another_error_may_be_asked_for():
    with pytest.raises(InvalidArgument, match=r"^meta: a set has no order"):
        encode({1}, root="meta", error=InvalidArgument)


@pytest.mark.parametrize("stored", ["", "NaN", "{", b"\xff", "[" * 5_000 + "]" * 5_000])
def test_what_is_not_json_is_not_decoded(stored):
    with pytest.raises(InvalidResult, match="not JSON"):
        decode(stored)


ROUND_TRIPS = [
    (3, int),
    (3, float),
    (1.5, float),
    ("x", str),
    (None, None),
    (None, str | None),
    (["a"], list[str]),
    ((1, "a"), tuple[int, str]),
    ((1, 2), tuple[int, ...]),
    (Point(1, 2), tuple[int, int]),
    ({"a": [1]}, dict[str, list[int]]),
    ({"title": "x"}, Row),
    (Document("x", 1.5, 3, ["a"]), Document),
    ([Document("x")], list[Document]),
    (Model(count=3, aliasedName="y", at=datetime(2026, 1, 2, tzinfo=UTC)), Model),
    ([Model(count=3)], list[Model]),
    ({"a": Strict(value=1.5)}, dict[str, Strict]),
    (Nested(parts=[Strict(value=1)]), Nested),
    (Strict(value=1), Model | Strict),
    (Report(Strict(value=2), [Document("x")]), Report),
    (Struct(3), Struct),
    (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), datetime),
    (datetime(2026, 1, 2), datetime),
    (date(2026, 1, 2), date),
    (time(1, 2, 3), time),
    (UUID(int=5), UUID),
    (Decimal("1.10"), Decimal),
    (Color.RED, Color),
    (Level.LOW, Level),
    (Odd.DAY, Literal["2026-01-02"] | Odd),
    ("a", Literal["a", "b"]),
    ([1], Sequence[int]),
    ([1], Iterable[int]),
    ({"a": date(2026, 1, 2)}, dict[str, date | None]),
    (3, Annotated[int, ["unhashable"]]),
    ([Strict(value=1)], Annotated[list[Strict], ["unhashable"]]),
]


@pytest.mark.parametrize(("value", "annotation"), ROUND_TRIPS, ids=repr)
def test_a_value_comes_back_as_its_annotated_type(value, annotation):
    restored = restore(decode(encode(value, root="result")), annotation, where="result of step 'a'")
    if annotation == Literal["2026-01-02"] | Odd:
        assert restored in ("2026-01-02", Odd.DAY)
    else:
        assert restored == value


@pytest.mark.parametrize("annotation", [Any, object, TypeVar("T"), "Unresolved"], ids=str)
def test_an_annotation_that_says_nothing_changes_nothing(annotation):
    value = {"a": [1, None]}
    assert restore(value, annotation, where="it") is value


MISMATCHES = [
    ("3", int),
    (3, str),
    (1.5, int),
    (True, int),
    (None, str),
    ({}, Document),
    ({"title": 3}, Document),
    ([{"title": "a"}, {"title": 3}], list[Document]),
    ({"count": "3"}, Model),
    ({"value": 1, "more": 2}, Strict),
    ({"model": {"value": "1"}, "documents": []}, Report),
    ("green", Color),
    ("c", Literal["a", "b"]),
    ("yesterday", datetime),
    (1_700_000_000, datetime),
    ("aGk=", bytes),
    ([1, 2, 3], tuple[int, int]),
    ("x", Broken),
    ({"a": 1}, type),
]


@pytest.mark.parametrize(("value", "annotation"), MISMATCHES, ids=repr)
def test_a_value_that_does_not_fit_is_a_mismatch(value, annotation):
    with pytest.raises(ResultMismatch, match=r"^result of step 'a' is not "):
        restore(value, annotation, where="result of step 'a'")


def test_a_mismatch_names_the_place_in_the_value():
    with pytest.raises(ResultMismatch, match=r"list\[.*Document\]: .*\$\[1\]\.title"):
        restore([{"title": "a"}, {"title": 3}], list[Document], where="it")
    with pytest.raises(ResultMismatch, match=r"parts\.1\.value"):
        restore({"parts": [{"value": 1}, {"value": "x"}]}, Nested, where="it")


def test_a_validator_that_raises_anything_is_a_mismatch():
    class Angry(pydantic.BaseModel):
        value: int

        @pydantic.field_validator("value")
        @classmethod
        def refuse(cls, value: int) -> int:
            raise KeyError(value)

    with pytest.raises(ResultMismatch, match="KeyError"):
        restore({"value": 3}, Angry, where="it")


def test_an_error_text_is_made_storable():
    assert clean_text("a\0b\ud800c") == "a\u2400b\ufffdc"
    assert clean_text("x" * 16_384) == "x" * 16_384


@pytest.mark.parametrize("length", [101, 110, 999, 1_000, 1_050, 100_000])
def test_a_long_error_text_keeps_both_ends(length):
    cut = clean_text("<" + "x" * (length - 2) + ">", limit=100)
    assert cut.startswith("<x")
    assert cut.endswith("x>")
    assert len(cut) <= 100
    kept = cut.split("\n... ")[0] + cut.split(" ...\n")[1]
    assert f"{length - len(kept):,} characters cut" in cut


@given(st.text(), st.integers(0, 60))
def test_a_cleaned_text_is_never_over_its_limit(text, limit):
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit or len(text) <= limit
    assert cleaned.encode().count(0) == 0
