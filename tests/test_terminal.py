import io
import json
import math
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from baton import Progress, RunState, RunStatus, RunSummary, StepState, StepStatus, Totals, _terminal
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
    step("summary", "discarded", ("fetch",), error='Traceback\n  File "a.py"\nValueError: no\n'),
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
        ["step", "state", "tries", "took"],
        ["1", "✓", "fetch", "completed", "1/3", "0.50s"],
        ["2", "●", "keywords", "executing", "2/3", lines[2].split()[5], "after", "fetch"],
        ["✗", "summary", "discarded", "1/3", "after", "fetch;", "ValueError:", "no"],
        ["3", "·", "brief", "held", "after", "keywords,", "summary"],
    ]


def test_every_state_has_a_word_and_a_sign_of_its_own_also_in_ascii():
    for encoding in ("utf-8", "ascii"):
        signs = {_terminal.LOOKS[state][encoding == "ascii"] for state in StepState}
        assert len(signs) == len(StepState)
    assert all(sign.isascii() for _, sign, _ in _terminal.LOOKS.values())


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
        step(name, "discarded", error=f'Traceback\n  File "a.py"\n{name}'),
        step("[bold]x[/bold]", "held", (name,)),
        name=name,
    )
    screen = console()
    text = "\n".join(drawn(_terminal.picture(screen, hostile), screen))
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


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ((370, 1000, "pages"), "37% (370/1000) pages"),
        ((370, None, "pages"), "370 pages"),
        ((0.5, 3.0, None), "16% (0.5/3)"),
        ((999.9, 1000, None), "99% (999.9/1000)"),
        ((2000, 1000, None), "200% (2000/1000)"),
        ((5, 0, "\x1b[2Jx"), "5 \\x1b[2Jx"),
        ((math.nan, 10, None), "nan"),
        ((math.inf, math.inf, None), "inf"),
    ],
    ids=repr,
)
def test_progress_is_a_share_of_a_total_where_there_is_one(told, text):
    assert _terminal.progress(Progress(*told, updated_at=NOW)) == text


def test_an_error_is_one_line_that_says_what_happened():
    assert (
        _terminal.one_line('Traceback (most recent call last):\n  File "x"\nValueError: no\n\n')
        == "ValueError: no"
    )
    assert _terminal.one_line(None) == "no reason was recorded"
    assert len(_terminal.one_line("x" * 10_000)) == 300


UNPRICED = Totals(1, 7, None, None, None, None, None, 1)
SPENT = Totals(2, 1_200, 34, None, None, None, Decimal("0.0123"), 1)


def test_what_steps_cost_is_a_column_where_anything_does():
    screen = console()
    assert not any("cost" in line for line in drawn(_terminal.picture(screen, DIAMOND), screen))
    fetch, keywords, *rest = DIAMOND.steps
    some = RunStatus(DIAMOND.run, (replace(fetch, usage=SPENT), replace(keywords, usage=UNPRICED), *rest))
    screen = console()
    head, titles, first, second, *_ = drawn(_terminal.picture(screen, some), screen)
    assert head.endswith("at least $0.012, 1,241 tokens")
    assert titles.split() == ["step", "state", "tries", "took", "cost"]
    assert "≥$0.012" in first
    assert "unknown" in second


def test_without_a_known_cost_none_is_said():
    screen = console()
    only = status(step("only", "completed", usage=UNPRICED))
    head, *_ = drawn(_terminal.picture(screen, only), screen)
    assert head.endswith("cost unknown, 7 tokens")


def test_what_was_spent_is_exact_in_json():
    shown = json.loads(_terminal.as_json(asdict(step("only", "completed", usage=SPENT))))
    assert shown["usage"]["cost_usd"] == "0.0123"
    assert json.loads(_terminal.as_json({"cost": Decimal("1E-8")})) == {"cost": "0.00000001"}
