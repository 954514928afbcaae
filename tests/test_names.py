import re
import time

import pytest

from baton import _names
from baton.errors import InvalidName
from tests.kit.hostile import NAMES

CHECKS = [
    _names.step_name,
    _names.function_name,
    _names.queue_name,
    _names.workflow_name,
    _names.workflow_key,
]
LEGAL_EVERYWHERE = ["__proto__", "constructor", "null"]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LEGAL_EVERYWHERE], ids=ascii)
def test_a_hostile_name_is_no_name_of_a_step(name):
    with pytest.raises(InvalidName):
        _names.step_name(name)


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64, "branch[0]", "branch[123456]", *LEGAL_EVERYWHERE])
def test_a_plain_name_is_a_name_of_a_step(name):
    assert _names.step_name(name) == name


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [None, 3, b"a", ["a"], object()])
def test_what_is_no_string_is_no_name(check, value):
    with pytest.raises(InvalidName, match=type(value).__name__):
        check(value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_check_returns_the_name_or_refuses_it_in_printable_ascii(check, name):
    try:
        checked = check(name)
    except InvalidName as error:
        message = str(error)
    else:
        assert checked == name
        return
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1_000


@pytest.mark.parametrize(
    "name", ["\x1b[31m", "a\nb", "nul\x00", "right\u202eleft", "\u2066x", "\u2028", "\ud800", "\x9b"]
)
@pytest.mark.parametrize("check", [_names.workflow_name, _names.workflow_key])
def test_what_cannot_be_shown_is_refused_by_its_code(check, name):
    with pytest.raises(InvalidName, match=r"U\+[0-9A-F]{4} at position"):
        check(name)


@pytest.mark.parametrize(
    "name", ["research: durable <execution>", "caf\u00e9", "cafe\u0301", "\U0001f389" * 100, "''"]
)
def test_a_workflow_may_be_called_anything_printable(name):
    assert _names.workflow_name(name) == name
    assert _names.workflow_key(name) == name


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "\u00a0"])
def test_a_workflow_name_is_neither_blank_nor_endless(name):
    with pytest.raises(InvalidName):
        _names.workflow_name(name)
    with pytest.raises(InvalidName):
        _names.workflow_key(name)


def test_a_workflow_name_fits_400_bytes():
    with pytest.raises(InvalidName, match="404 bytes"):
        _names.workflow_name("\U0001f389" * 101)


def test_a_subclass_of_str_becomes_a_plain_str():
    class Fancy(str):
        def __str__(self):
            return "another"

    assert type(_names.step_name(Fancy("fetch"))) is str
    assert _names.workflow_name(Fancy("fetch")) == "fetch"


def test_function_names_may_be_nested():
    assert _names.function_name("app.steps.make.<locals>.fetch") == "app.steps.make.<locals>.fetch"
    with pytest.raises(InvalidName, match=re.escape("@step(name=...)")):
        _names.function_name("app.caf\u00e9")


def test_uuid7_sorts_by_time_and_is_unique():
    before = time.time_ns() // 1_000_000
    made = [_names.uuid7() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    assert all(one.version == 7 and one.variant == "specified in RFC 4122" for one in made)
    assert all(before <= one.int >> 80 <= after for one in made)
    assert [one.int >> 80 for one in made] == sorted(one.int >> 80 for one in made)
