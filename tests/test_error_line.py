"""The line of an error that says what happened."""

import asyncio
import traceback
from collections.abc import Callable

import pytest

from baton._codec import clean_text
from baton._error_line import error_line


def text_of(raising: Callable[[], object]) -> str:
    try:
        raising()
    except BaseException as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError("nothing was raised")


def several_lines() -> None:
    raise ValueError("no luck\n\nFor more, see https://example.com")


def noted() -> None:
    error = ValueError("no luck")
    error.add_note("while the moon was full")
    raise error


def caused() -> None:
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise ValueError("no luck") from error


def group() -> None:
    async def fail() -> None:
        raise ValueError("no luck")

    async def together() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    asyncio.run(together())


def group_in_a_group() -> None:
    raise ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("no luck")])])


def sum_over_lines() -> None:
    def luck() -> int:
        raise ValueError("no luck")

    print(
        1
        + luck()
    )  # fmt: skip


@pytest.mark.parametrize(
    "raising", [several_lines, noted, caused, group, sum_over_lines], ids=lambda case: case.__name__
)
def test_it_has_the_type_of_the_exception_and_what_it_says(raising: Callable[[], object]) -> None:
    assert error_line(text_of(raising)) == "ValueError: no luck"


def test_of_groups_in_groups_it_is_what_was_raised_innermost_or_the_group() -> None:
    assert error_line(text_of(group_in_a_group)) in {
        "ValueError: no luck",
        "ExceptionGroup: outer (1 sub-exception)",
    }


def test_a_message_so_long_that_its_middle_was_cut_still_begins_with_its_type() -> None:
    def long() -> None:
        raise ValueError("word " * 10_000)

    assert error_line(clean_text(text_of(long))).startswith("ValueError: word word")


def test_a_traceback_so_long_that_its_middle_was_cut_still_ends_with_it() -> None:
    frames = '  File "deep.py", line 1, in deep\n    deep()\n' * 1_000
    text = clean_text(f"Traceback (most recent call last):\n{frames}ValueError: no luck\n")
    assert error_line(text) == "ValueError: no luck"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("its dependency 'fetch' was discarded", "its dependency 'fetch' was discarded"),
        ("\n  not needed\nany more", "not needed"),
        ("** (RuntimeError) boom\n\n    (app 0.1.0) lib/app.ex:1: App.run/1", "** (RuntimeError) boom"),
        ("?!", "?!"),
        ("", ""),
        (None, ""),
    ],
    ids=["reason", "several lines", "of another language", "no letters", "empty", "none"],
)
def test_a_text_without_a_traceback_is_told_by_its_first_line(text: str | None, line: str) -> None:
    assert error_line(text) == line
