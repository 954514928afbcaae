"""The crash lab judges itself: its schedule, its oracle, its proxy, its controls, and a short run of all of it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from baton import testing
from tests.kit.wait import eventually
from tests.lab import chaos, schedule, storm
from tests.lab.controls import CONTROLS, Control
from tests.lab.invariants import ALL, Finding
from tests.lab.oracle import Belief, Contradiction, expect
from tests.lab.processes import Guard
from tests.lab.proxy import Proxy
from tests.lab.report import GREEN, INCONCLUSIVE, VIOLATION, Report, percentile
from tests.lab.schedule import Action, Flow, StepPlan, value_of
from tests.lab.server import Server

ROOT = Path(__file__).parent.parent

# --- the schedule -------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_schedule_again_and_another_seed_another_one() -> None:
    assert schedule.make(7, 30).as_json() == schedule.make(7, 30).as_json()
    assert schedule.make(7, 30).as_json() != schedule.make(8, 30).as_json()


@pytest.mark.parametrize("seconds", [15.0, 30.0, 120.0])
def test_every_kind_of_fault_is_scheduled_and_none_in_the_last_part(seconds: float) -> None:
    made = schedule.make(1, seconds)
    assert {fault.kind for fault in made.faults} == set(schedule.FAULTS)
    assert max(fault.at for fault in made.faults) < seconds
    assert {step.kind for flow in schedule.make(1, 120.0).flows for step in flow.steps} == {
        *("ok", "thread", "class", "flaky", "snooze", "fail", "cancel", "block", "rare")
    }


def test_a_step_comes_after_what_it_waits_for() -> None:
    for flow in schedule.make(3, 60).flows:
        seen: set[str] = set()
        for step in flow.steps:
            assert set(step.deps) <= seen
            seen.add(step.name)


# --- the oracle ---------------------------------------------------------------------------------------


def flow(*steps: StepPlan, actions: tuple[Action, ...] = ()) -> Flow:
    return Flow(0.0, "f0", steps, actions)


DIAMOND = flow(StepPlan("s0"), StepPlan("s1", ("s0",)), StepPlan("s2", ("s0",)), StepPlan("s3", ("s1", "s2")))


def test_the_end_of_a_flow_is_known_before_it_begins() -> None:
    expected = expect(DIAMOND)
    assert expected is not None
    assert set(expected.states.values()) == {"completed"}
    assert expected.outcome == "completed"
    first = value_of("f0", "s0", {})
    assert expected.values["s1"] == value_of("f0", "s1", {"s0": first})


@pytest.mark.parametrize(
    ("after", "options", "ends", "outcome"),
    [
        ("fail", {}, "cancelled", "failed"),
        ("fail", {"ignore_discarded": True}, "completed", "completed"),
        ("fail", {"ignore_cancelled": True}, "cancelled", "failed"),
        ("cancel", {"ignore_cancelled": True}, "completed", "completed"),
        ("fail", {"runs_on": "always"}, "completed", "failed"),
        ("fail", {"runs_on": "failure"}, "completed", "failed"),
        ("ok", {"runs_on": "failure"}, "skipped", "completed"),
    ],
)
def test_the_oracle_knows_the_policies(
    after: schedule.Kind, options: dict[str, object], ends: str, outcome: str
) -> None:
    expected = expect(flow(StepPlan("s0", kind=after), StepPlan("s1", ("s0",), **options)))  # type: ignore[arg-type]
    assert expected is not None
    assert (expected.states["s1"], expected.outcome) == (ends, outcome)


def test_what_hangs_on_an_order_has_no_single_end() -> None:
    either = flow(
        StepPlan("s0", kind="fail"),
        StepPlan("s1"),
        StepPlan("s2", ("s1",), runs_on="failure"),
        StepPlan("s3", ("s0", "s2")),
    )
    assert Belief.inserted(either).finals()["s3"] == {"cancelled", "skipped"}
    assert expect(either) is None


def test_an_observation_narrows_what_may_be() -> None:
    belief = Belief.inserted(DIAMOND)
    belief.observe({"s0": "released", "s1": "held", "s2": "held", "s3": "held"})
    belief.observe({"s0": "completed", "s1": "completed", "s2": "released", "s3": "held"})
    assert belief.states["s1"] == {"completed"}
    with pytest.raises(Contradiction, match="f0/s1 is released; it can only be completed"):
        belief.observe({"s1": "released"})


def test_nothing_is_released_before_its_dependencies_may_have_settled() -> None:
    stuck = flow(StepPlan("s0", kind="fail"), StepPlan("s1", ("s0",)))
    with pytest.raises(Contradiction, match="s1 is released; it can only be cancelled or held"):
        Belief.inserted(stuck).observe({"s1": "released"})


def test_a_cancel_may_have_come_through_until_it_is_answered_and_then_it_has() -> None:
    belief = Belief.inserted(DIAMOND)
    belief.cancel_called()
    assert belief.finals()["s0"] == {"completed", "cancelled"}
    belief.observe({name: "held" if name != "s0" else "released" for name in ("s0", "s1", "s2", "s3")})
    belief.cancel_answered()
    belief.observe({"s0": "cancelled", "s1": "cancelled"})
    assert belief.finals()["s3"] >= {"cancelled"}
    with pytest.raises(Contradiction):
        belief.observe({"s1": "completed"})


def test_after_the_answer_to_a_cancel_what_was_seen_running_can_only_end_cancelled() -> None:
    belief = Belief.inserted(flow(StepPlan("s0")))
    belief.cancel_called()
    belief.cancel_answered()
    belief.observe({"s0": "released"})
    with pytest.raises(Contradiction, match="it can only be cancelled or released"):
        belief.observe({"s0": "completed"})


def test_a_retry_takes_back_what_hangs_on_a_failure_and_nothing_else() -> None:
    belief = Belief.inserted(
        flow(
            *(StepPlan("s0", kind="fail"), StepPlan("s1", ("s0",)), StepPlan("s2")),
            actions=(Action("retry", 0.0),),
        )
    )
    belief.observe({"s0": "discarded", "s1": "cancelled", "s2": "completed"})
    belief.retry_called()
    belief.observe({"s0": "released", "s1": "held"})
    assert belief.finals()["s1"] == {"completed", "cancelled"}
    with pytest.raises(Contradiction):
        belief.observe({"s2": "released"})


# --- the controls -------------------------------------------------------------------------------------


@pytest.fixture
def two_databases(baton_dsn: str, _baton_server: tuple[object, str]) -> Iterator[tuple[str, str]]:
    server, template = _baton_server
    with testing.copy(server, template) as second:  # type: ignore[arg-type]
        yield baton_dsn, second


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
async def test_a_broken_engine_is_caught_and_the_real_one_is_clean(
    control: Control, two_databases: tuple[str, str]
) -> None:
    real, broken = two_databases
    assert await control.judge(real, broken=False) == []
    found = {finding.invariant for finding in await control.judge(broken, broken=True)}
    assert found & set(control.caught_by), f"caught by {found or 'nobody'} instead"


def test_every_invariant_has_its_name_and_says_what_it_is() -> None:
    assert len(ALL) >= 16
    assert all(text.startswith(f"-- {name}: ") for name, text in ALL.items())


# --- the proxy ----------------------------------------------------------------------------------------


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """A server on a unix socket that answers with what it is told."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    path = tmp_path / "echo"
    server = await asyncio.start_unix_server(answer, path)
    yield path
    server.close()


async def test_the_proxy_forwards_and_drops(echo: Path) -> None:
    async with Proxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert proxy.drop() == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_a_stalled_proxy_accepts_and_forwards_later(echo: Path) -> None:
    async with Proxy(echo) as proxy:
        proxy.stall()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        answer = asyncio.create_task(reader.readexactly(5))
        await eventually(lambda: proxy.withheld == 1)
        assert not answer.done()
        proxy.resume()
        assert await answer == b"hello"
        writer.close()


async def test_a_slow_proxy_holds_back_in_both_directions(echo: Path) -> None:
    async with Proxy(echo) as proxy:
        proxy.delay = 0.05
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began = time.monotonic()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert time.monotonic() - began >= 0.1
        assert proxy.delayed == 2
        writer.close()


async def test_the_proxy_tells_a_client_that_nobody_is_there(tmp_path: Path) -> None:
    async with Proxy(tmp_path / "nobody") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        writer.close()


# --- the server and the processes ---------------------------------------------------------------------


def test_a_server_comes_back_with_what_it_had_committed(tmp_path: Path) -> None:
    server = Server(tmp_path / "pg")
    try:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE kept (number integer)")
            conn.execute("INSERT INTO kept VALUES (1)")
        for hurt in (server.restart_immediately, server.crash):
            hurt()
            assert _rows(server.dsn) == [(1,)]
    finally:
        server.stop()


def _rows(dsn: str) -> list[tuple[int]]:
    """After a crash of a backend the server is not to be had for a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(dsn) as conn:
                return conn.execute("SELECT number FROM kept").fetchall()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_guard_ends_the_server_of_a_lab_that_was_killed(tmp_path: Path) -> None:
    server = Server(tmp_path / "pg")
    try:
        code = (
            "import os, signal, sys\nfrom tests.lab.processes import Guard\n"
            "Guard().watch(int(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        killed = subprocess.run(
            [sys.executable, "-c", code, str(server.pid)], cwd=ROOT, check=False, timeout=60
        )
        assert killed.returncode == -signal.SIGKILL
        _until_gone(server.pid)
    finally:
        server.stop()


def test_the_guard_of_a_lab_that_ended_well_ends_nothing() -> None:
    with Guard() as guard:
        guard.watch(os.getpid())


def _until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while _lives(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


# --- the report ---------------------------------------------------------------------------------------


def test_a_fault_that_never_hit_makes_a_run_inconclusive_and_a_finding_a_violation() -> None:
    report = Report(seed=1, seconds=1.0, rescue_after=2.0, hits={"kill": 1, "drop": 0})
    assert (report.verdict, report.missed) == (INCONCLUSIVE, ["drop"])
    assert "INCONCLUSIVE: nothing was hit by drop" in str(report)
    report.hits["drop"] = 3
    assert report.verdict == GREEN
    report.findings[Finding("S5 held", None, "s1", "waits for nothing")] = 1.5
    assert report.verdict == VIOLATION
    assert "VIOLATION at 1.5 s: S5 held" in str(report)


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([], 50) is None
    assert percentile([1.0, 2.0, 3.0, 10.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 10.0], 99) == 10.0


# --- all of it ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_short_storm_shows_no_user_a_deadlock(tmp_path: Path) -> None:
    server = await asyncio.to_thread(Server, tmp_path / "pg")
    try:
        await chaos.prepare(server.dsn)
        report = await storm.run(server.dsn, 5.0, seed=1)
    finally:
        await asyncio.to_thread(server.stop)
    assert report.findings == []
    assert report.calls["ack"] > 20


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("BATON_PROPERTY") != "long", reason="`make chaos` does more of it")
@pytest.mark.timeout(300)
async def test_a_short_run_of_everything_shows_no_violation(tmp_path: Path) -> None:
    report = await chaos.run(schedule.make(1, 18.0), tmp_path)
    story = f"{report}\n" + "\n".join(f"{at:9.3f} {text}" for at, text in report.timeline)
    assert report.verdict != VIOLATION, story
    # Of the others one may miss its window on a machine that is busy with something else.
    assert not {"kill", "freeze", "pg_restart", "lost_answer"} & set(report.missed), story
    assert len(report.missed) <= 2, story
