import asyncio
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from baton import Baton, Progress, RunChange, RunState, StepState, StepStatus, Totals, Workflow, _watch, step
from baton._watch import Board, watch, watch_live, watch_runs
from baton.errors import RunNotFound
from tests.kit.hostile import NAMES
from tests.kit.wait import eventually
from tests.test_terminal import NOW, OBEYED, console, drawn, run
from tests.test_terminal import step as status_of


def change(*steps: StepStatus, **fields: Any) -> RunChange:
    """A change of a run, whose steps stand in the order given."""
    placed = tuple(replace(status, position=place) for place, status in enumerate(steps))
    return RunChange(run(steps=len(steps), **fields), placed)


def fan(states: Sequence[str], **fields: Any) -> RunChange:
    """A plan, as many fetches as there are states, and their sum."""
    names = [f"fetch[{n}]" for n in range(len(states))]
    fetches = [
        status_of(name, state, ("plan",), started_at=None if state in ("held", "available") else NOW)
        for name, state in zip(names, states, strict=True)
    ]
    return change(status_of("plan", "completed"), *fetches, status_of("sum", "held", tuple(names)), **fields)


def shown(board: Board, screen: Console, rows: int = 20) -> list[str]:
    return drawn(board.picture(screen, rows), screen)


def told(board: Board, *changes: RunChange) -> list[str]:
    """The lines that are said of some changes, without their times."""
    said: list[str] = []
    for news in changes:
        board.tell(board.apply(news), said.append)
    return [" ".join(line.split()[1:]) for line in said]


def test_steps_that_are_alike_are_one_line_with_a_bar():
    states = ["completed"] * 60 + ["executing"] * 30 + ["discarded"] * 1 + ["available"] * 29
    head, plan, group, total = shown(Board(fan(states, unsettled=60)), console(140))
    assert head.startswith("● brief  executing")
    assert head.endswith("62 of 122")
    assert plan.split() == ["1", "✓", "plan", "completed", "1/3"]
    assert group.split()[:6] == ["2", "●", "fetch", "(120)", "executing", "50%"]
    assert "███████████▒▒▒▒▒▒✗░░░░░░" in group
    assert "30 executing, 1 discarded, 29 available, 60 completed" in group
    assert total.split() == ["3", "·", "sum", "held", "waits", "for", "fetch", "(59)"]


@pytest.mark.parametrize(
    "states",
    [
        ["completed"] * 2000,
        ["completed"] * 1999 + ["discarded"],
        ["completed", "executing", "discarded", "cancelled", "retryable", "skipped", "held", "scheduled"] * 9,
        ["available"] * 7,
    ],
    ids=["all", "one bad", "of each", "few"],
)
def test_every_bar_is_as_long_and_shows_every_state(states):
    group = shown(Board(fan(states)), console(200))[2]
    (bar,) = [word for word in group.split() if len(word) == 24 and set(word) <= set("█▓▒↻⊘✗░")]
    assert ("✗" in bar) == ("discarded" in states)
    assert ("█" in bar) == ("completed" in states)


def test_only_ascii_is_written_where_nothing_else_can_be():
    class Ascii(io.StringIO):
        encoding = "ascii"

    screen = Console(file=Ascii(), width=120, height=20, markup=False, highlight=False, emoji=False)
    assert screen.options.ascii_only
    states = ["completed", "executing", "discarded", "cancelled", "retryable", "held"] * 9
    text = "\n".join(shown(Board(fan(states)), screen))
    assert text.isascii()
    assert "*" in text


def test_only_what_changed_is_counted_anew():
    board = Board(fan(["available"] * 100))
    for n in range(50):
        board.apply(RunChange(run(), (status_of(f"fetch[{n}]", "completed", ("plan",), position=n + 1),)))
    assert "50 available, 50 completed" in shown(board, console(140))[2]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_what_matters_most_stays_in_sight_in_any_width(width):
    steps = [
        *[status_of(f"{chr(97 + n % 26)}{'x' * n}", "completed") for n in range(50)],
        *[status_of(f"wait_{'y' * n}", "held", ("busy",)) for n in range(40)],
        status_of("busy", "executing", started_at=NOW),
        status_of("bad", "discarded", error="no " * 100),
    ]
    screen = console(width)
    board = Board(change(*[replace(status, function=status.name) for status in steps]))
    lines = shown(board, screen, rows=10)
    assert len(lines) == 12
    assert lines[-1] == "and 82 more: 32 held, 50 completed"
    assert any("● busy" in line for line in lines)
    assert any("✗ bad" in line for line in lines)


def test_a_running_step_says_how_far_it_is():
    progress = Progress(370, 1000, "pages", NOW)
    board = Board(change(status_of("fetch", "executing", started_at=NOW, progress=progress)))
    assert shown(board, console())[1].endswith("37% (370/1000) pages")


def test_a_line_is_said_for_each_change_of_a_step_and_each_tenth_of_its_progress():
    at = [
        change(status_of("fetch", state, attempt=attempt, progress=progress))
        for state, attempt, progress in [
            ("available", 0, None),
            ("executing", 1, None),
            ("executing", 1, Progress(10, 100, None, NOW)),
            ("executing", 1, Progress(12, 100, None, NOW)),
            ("executing", 1, Progress(25, 100, "pages", NOW)),
            ("retryable", 1, Progress(25, 100, "pages", NOW)),
            ("executing", 2, None),
            ("completed", 2, None),
        ]
    ]
    assert told(Board(at[0]), *at) == [
        "fetch available",
        "fetch executing",
        "fetch executing: 10% (10/100)",
        "fetch executing: 25% (25/100) pages",
        "fetch retryable",
        "fetch executing (attempt 2 of 3)",
        "fetch completed in",
    ]


def test_of_a_run_that_has_ended_a_line_tells_how_long_it_took_and_not_how_long_ago_it_began():
    news = change(
        status_of("fetch", "completed"),
        state=RunState.COMPLETED,
        inserted_at=NOW,
        finished_at=NOW + timedelta(seconds=2),
    )
    said: list[str] = []
    board = Board(news)
    board.tell(board.apply(news), said.append)
    assert said[0].split()[0] == "2.00s"


def test_a_group_of_thousands_is_told_in_some_lines():
    board = Board(fan(["available"] * 5000))
    steps = [
        RunChange(
            run(),
            (
                status_of(
                    f"fetch[{n}]",
                    "discarded" if n % 100 == 0 else "completed",
                    position=n + 1,
                    started_at=NOW,
                    error="ValueError: no" if n % 100 == 0 else None,
                ),
            ),
        )
        for n in range(5000)
    ]
    lines = told(board, *steps)
    assert len(lines) < 20
    assert lines[0] == "fetch (5,000) 1 discarded, 4,999 available: fetch[0]: ValueError: no"
    assert lines[-1] == "fetch (5,000) 50 discarded, 4,950 completed: fetch[4900]: ValueError: no"


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_hostile_names_and_errors_are_shown_and_not_obeyed(name):
    steps = [
        status_of(f"{name}{n}", "discarded", error=f'Traceback\n  File "a.py"\n{name}') for n in range(4)
    ]
    steps += [status_of("[bold]x[/bold]", "held", (f"{name}0", name))]
    for number in (4, 5):
        board = Board(change(*steps[5 - number :], name=name))
        screen = console(300)
        text = "\n".join(shown(board, screen))
        said: list[str] = []
        board.tell(board.lines, said.append)
        text += "\n".join(said)
        assert not any(char in text for char in OBEYED if char != "\n")
        assert "[bold]x[/bold]" in text


def test_a_group_says_how_long_it_has_taken_from_its_first_step_on():
    begun = NOW - timedelta(minutes=5)
    steps = [
        status_of(f"s{n}", "completed", started_at=begun, settled_at=begun + timedelta(seconds=n + 1))
        for n in range(4)
    ]
    assert "4.00s" in shown(Board(change(*steps)), console())[1]


@step(max_attempts=1)
async def double(value: int) -> int:
    if value == 13:
        raise ValueError("no luck")
    return value * 2


def doubles(count: int) -> Workflow:
    workflow = Workflow("doubles", ignore_discarded=True)
    parts = [workflow.add(f"part-{n}", double.new(value=n)) for n in range(count)]
    workflow.add("sum", double.new(value=0), deps=parts)
    return workflow


async def test_a_run_is_watched_in_lines_until_it_has_ended(baton_dsn):
    said: list[str] = []
    async with Baton(baton_dsn, queues={"default": 10}) as baton:
        run = await baton.insert(doubles(30))
        status = await asyncio.wait_for(watch(run, asyncio.Event(), said.append), 30)
    assert status is not None
    assert status.run.unsettled == 0
    assert any("sum" in line and "completed in" in line for line in said)
    assert "1 discarded, 29 completed: part-13: ValueError: no luck" in "".join(said)
    assert len(said) < 30


async def test_a_run_is_watched_in_place_until_it_has_ended(baton_dsn):
    screen = Console(file=io.StringIO(), width=100, height=20, force_terminal=True, markup=False)
    async with Baton(baton_dsn, queues={"default": 10}) as baton:
        run = await baton.insert(doubles(30))
        await asyncio.wait_for(watch_live(run, asyncio.Event(), screen), 30)
    assert isinstance(screen.file, io.StringIO)
    last = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue()).rpartition("doubles")[2]
    assert "31 of 31" in last
    assert "part (30)" in last


async def test_whoever_stops_watching_leaves_the_run_as_it_is(baton_dsn):
    stop = asyncio.Event()

    def say(line: str) -> None:
        stop.set()

    async with Baton(baton_dsn) as baton:
        run = await baton.insert(doubles(3))
        assert await asyncio.wait_for(watch(run, stop, say), 30) is None
        assert (await run.summary()).unsettled == 4


async def test_a_run_that_is_not_there_cannot_be_watched(baton_dsn):
    async with Baton(baton_dsn) as baton:
        run = baton.get_run("01a20475-b054-78f9-a1d8-37410d08bb20")
        with pytest.raises(RunNotFound):
            await watch(run, asyncio.Event(), lambda line: None)


async def test_runs_are_listed_as_they_come_and_end(baton_dsn):
    said: list[str] = []
    stop = asyncio.Event()

    def say(line: str) -> None:
        said.append(line)
        if "completed" in line:
            stop.set()

    async with Baton(baton_dsn, queues={"default": 10}) as baton:
        watching = asyncio.create_task(watch_runs(baton, stop, say))
        run = await baton.insert(doubles(3))
        await asyncio.wait_for(watching, 30)
    assert said[-1] == f"{run.id}  completed  4/4  doubles"


async def test_the_list_of_runs_on_a_terminal_is_drawn_in_place(baton_dsn, monkeypatch):
    screen = Console(file=io.StringIO(), width=100, height=12, force_terminal=True, markup=False)
    stop = asyncio.Event()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(_watch, "open_console", lambda: screen)
    async with Baton(baton_dsn) as baton:
        names = [f"run-{number}" for number in range(9)]
        for name in names:
            workflow = Workflow(name)
            workflow.add("only", double.new(value=1))
            await baton.insert(workflow)
        watching = asyncio.create_task(watch_runs(baton, stop, names.append))
        assert isinstance(screen.file, io.StringIO)
        await eventually(lambda: "run-8" in screen.file.getvalue())
        stop.set()
        await asyncio.wait_for(watching, 30)
    text = screen.file.getvalue()
    assert [name for name in names if name in text] == names[-7:]


def test_what_steps_spend_is_added_up_as_they_go_on():
    cost = Totals(1, 10, 5, None, None, None, Decimal("0.10"), 0)
    two = Totals(2, 20, 10, None, None, None, Decimal("0.20"), 0)
    begun = fan(["executing"] * 6)
    board = Board(begun)
    assert "$" not in " ".join(shown(board, console(140)))
    plan, first, second, *_ = begun.steps
    board.apply(RunChange(begun.run, (replace(plan, usage=cost), replace(first, usage=cost))))
    board.apply(RunChange(begun.run, (replace(first, usage=two), replace(second, usage=cost))))
    head, plan_line, group, total = shown(board, console(140))
    assert head.endswith("$0.40, 60 tokens  3 of 8")
    assert "$0.10" in plan_line
    assert "$0.30" in group
    assert "$" not in total


def test_the_line_of_a_step_that_has_completed_says_what_it_cost():
    cost = Totals(1, None, None, None, None, None, Decimal("0.10"), 0)
    only = status_of("only", "executing", started_at=NOW)
    board = Board(change(only))
    done = replace(only, state=StepState.COMPLETED, usage=cost, settled_at=NOW + timedelta(seconds=2))
    unknown = replace(done, state=StepState.COMPLETED, usage=replace(cost, cost_usd=None, unpriced=1))
    assert told(board, change(done)) == ["only completed in 2.00s for $0.10"]
    board = Board(change(only))
    assert told(board, change(unknown)) == ["only completed in 2.00s, cost unknown"]
