import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from baton import RunState, RunStatus, RunSummary, StepState, StepStatus, _terminal
from tests.kit.hostile import NAMES

NOW = datetime.now(UTC)
OBEYED = [
    chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200E, 0x2028, 0xFEFF, 0xD800)
]


def run(**fields: Any) -> RunSummary:
    known = {
        "id": "01a20475-b054-78f9-a1d8-37410d08bb20",
        "name": "brief",
        "key": None,
        "generation": 1,
        "steps": 5,
        "unsettled": 5,
        "failed": 0,
        "state": RunState.EXECUTING,
        "inserted_at": NOW - timedelta(seconds=2),
        "finished_at": None,
    }
    return RunSummary(**known | fields)


def step(name: str, state: str, deps: tuple[str, ...] = (), **fields: Any) -> StepStatus:
    known = {
        "function": "f",
        "queue": "default",
        "attempt": 0 if state in ("held", "available") else 1,
        "max_attempts": 3,
        "job_id": 1,
        "waiting_on": 0,
        "has_result": state == "completed",
        "error": None,
        "scheduled_at": None,
        "started_at": None,
        "settled_at": None,
    }
    return StepStatus(name=name, deps=deps, state=StepState(state), **known | fields)


def status(*steps: StepStatus, **fields: Any) -> RunStatus:
    return RunStatus(run(**fields), steps)


DIAMOND = status(
    step(
        "fetch", "completed", started_at=NOW - timedelta(seconds=2), settled_at=NOW - timedelta(seconds=1.5)
    ),
    step("keywords", "executing", ("fetch",), attempt=2, started_at=NOW),
    step("summary", "discarded", ("fetch",), error="Traceback\n  ...\nValueError: no\n"),
    step("brief", "held", ("keywords", "summary")),
)


def console(width: int = 100, **options: Any) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=20, markup=False, highlight=False, emoji=False, **options
    )


def drawn(what: object, screen: Console) -> list[str]:
    screen.print(what)
    assert isinstance(screen.file, io.StringIO)
    return [line.rstrip() for line in screen.file.getvalue().splitlines()]


@pytest.mark.parametrize("char", OBEYED, ids=ascii)
def test_what_a_terminal_obeys_is_written_as_an_escape(char):
    shown = _terminal.safe(f"a{char}b")
    assert (
        shown == f"a{ascii(char)[1:-1] if char not in chr(9) + chr(10) + chr(13) else f'\\x{ord(char):02x}'}b"
    )


def test_text_of_several_lines_keeps_them():
    assert _terminal.safe("a\n\tb\r\x1b[2J", lines=True) == "a\n\tb\\x0d\\x1b[2J"


def test_what_people_write_stays_as_it_is():
    for text in (
        "café",
        "cafe\u0301",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "[bold]x[/bold]",
        "日本語",
        "{}",
    ):
        assert _terminal.safe(text) == text


def test_json_is_safe_and_means_the_same():
    value = {"names": [name for name in NAMES if "\ud800" not in name], "at": NOW, "state": StepState.HELD}
    text = _terminal.as_json(value)
    assert not any(char in text for char in OBEYED if char != "\n")
    assert json.loads(text) == {"names": value["names"], "at": NOW.isoformat(), "state": "held"}
    assert json.loads(_terminal.as_json("\U000e0041")) == "\U000e0041"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0ms"),
        (0.0312, "31ms"),
        (0.314, "0.31s"),
        (12.34, "12.3s"),
        (185, "3m05s"),
        (7620, "2h07m"),
    ],
)
def test_durations_are_short(seconds, text):
    assert _terminal.duration(seconds) == text


def test_the_picture_lists_steps_by_layer_with_state_tries_time_and_cause():
    screen = console()
    head, *lines = drawn(_terminal.picture(screen, DIAMOND), screen)
    assert head.startswith("● brief  executing  ")
    assert [line.split() for line in lines] == [
        ["1", "✓", "fetch", "completed", "1/3", "0.50s"],
        ["2", "●", "keywords", "executing", "2/3", lines[1].split()[-1]],
        ["✗", "summary", "discarded", "1/3", "ValueError:", "no"],
        ["3", "·", "brief", "held", "waits", "for", "keywords"],
    ]


def test_every_state_has_a_word_and_a_sign_of_its_own_also_in_ascii():
    for encoding in ("utf-8", "ascii"):
        signs = {_terminal._LOOKS[state][encoding == "ascii"] for state in StepState}
        assert len(signs) == len(StepState)
    assert all(sign.isascii() for _, sign, _ in _terminal._LOOKS.values())


def test_no_color_leaves_the_same_text(monkeypatch):
    plain = drawn(_terminal.picture(screen := console(), DIAMOND), screen)
    monkeypatch.setenv("NO_COLOR", "1")
    colourless = console(force_terminal=True)
    assert colourless.no_color
    screen = console()
    assert [line.split()[:3] for line in drawn(_terminal.picture(screen, DIAMOND), screen)] == [
        line.split()[:3] for line in plain
    ]
    assert "\x1b[3" not in "\n".join(drawn(_terminal.picture(colourless, DIAMOND), colourless))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_picture_with_a_limit_of_rows_keeps_to_it_in_any_width(width):
    many = status(
        *[step(f"part[{n}]", "completed", error=None) for n in range(50)],
        *[step(f"next_{n}_{'x' * 40}", "held", tuple(f"part[{n}]" for n in range(9))) for n in range(40)],
        step("busy", "executing", started_at=NOW),
        step("bad", "discarded", error="no " * 100),
    )
    screen = console(width)
    lines = drawn(_terminal.picture(screen, many, rows=10), screen)
    assert len(lines) == 12
    assert lines[-1] == "and 82 more: 50 completed, 32 held"
    assert any("● busy" in line for line in lines)
    assert any("✗ bad" in line for line in lines)
    assert all(state in "\n".join(lines) for state in ("executing", "discarded", "held"))


def test_a_list_of_runs_never_cuts_ids():
    runs = [run(name="a name that is long " * 5), run(state=RunState.FAILED)]
    for width in (60, 76, 100, 200):
        screen = console(width)
        lines = drawn(_terminal.runs_table(screen, runs), screen)
        assert len(lines) == 3
        assert all(run.id in line for run, line in zip(runs, lines[1:], strict=True))
        assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_hostile_names_and_errors_are_shown_and_not_obeyed(name):
    hostile = status(
        step(name, "discarded", error=f"Traceback\n{name}"),
        step("[bold]x[/bold]", "held", (name,)),
        name=name,
    )
    for dependencies in (False, True):
        screen = console()
        text = "\n".join(drawn(_terminal.picture(screen, hostile, dependencies=dependencies), screen))
        assert not any(char in text for char in OBEYED if char != "\n")
        assert "[bold]x[/bold]" in text
    screen = console()
    assert not any(
        char in "".join(drawn(_terminal.runs_table(screen, [run(name=name)]), screen)) for char in OBEYED
    )


def test_markdown_cannot_smuggle_in_what_a_terminal_obeys(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Console(markup=False, force_terminal=False)
    _terminal.show_markdown(screen, "# Title\n\n&#x202e;left and \x1b[31m, [text](javascript:alert(1))")
    shown = capsys.readouterr().out
    assert not any(char in shown for char in OBEYED if char != "\n")
    assert "\\u202eleft and \\x1b[31m" in shown
    assert "javascript:alert(1)" in shown


def test_the_last_line_of_an_error_is_what_happened():
    assert _terminal.last_line("Traceback\n  x\nValueError: no\n\n") == "ValueError: no"
    assert _terminal.last_line(None) == "no reason was recorded"
    assert len(_terminal.last_line("x" * 10_000)) == 300
