"""The command line, as a user types it: in this process where nothing but words are at stake, in its own where signals are."""

import asyncio
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click.testing
import psycopg
import pytest

from baton import Baton, Workflow, __version__, testing
from baton._names import uuid7
from baton.cli import cli
from tests.kit import app
from tests.kit.hostile import NAMES
from tests.kit.providers import Providers, Reply, Request, Slow
from tests.kit.spent import spend

ROOT = Path(__file__).parent.parent
NOT_HERE = "postgresql://ada:s3cret@127.0.0.1:1/app"
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u2028-\u202e\u2066-\u2069\ufeff]")
# What PostgreSQL can hold.
STORABLE = [name for name in NAMES if "\x00" not in name and "\ud800" not in name]


# --- helpers --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_database_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_DSN", "DATABASE_URL", "BATON_DATA", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def baton(*arguments: object, code: int = 0, **options: Any) -> click.testing.Result:
    """Run a command here, and expect an exit code and no traceback."""
    done = click.testing.CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)
    told = f"{done.stdout}\n{done.stderr}\n{done.exception!r}"
    assert done.exit_code == code, told
    assert done.exception is None or isinstance(done.exception, SystemExit), told
    assert "Traceback" not in done.stderr, told
    if code:
        assert done.stderr.strip(), "an exit code without a word"
    return done


class Command:
    """`baton` in a process of its own; what it writes is in `out` and `err` as it comes."""

    def __init__(self, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self._files = [cwd / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "baton", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=os.environ | dict(env or {}),
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def until(self, fact: Callable[[], object]) -> None:
        """Wait for a fact, for as long as the process lives."""
        deadline = time.monotonic() + 30
        while not fact():
            assert self.process.poll() is None, (
                f"it ended with {self.process.returncode}:\n{self.out}\n{self.err}"
            )
            assert time.monotonic() < deadline, f"it never became true:\n{self.out}\n{self.err}"
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        assert "Traceback" not in self.err, self.err
        return code


def inserted(dsn: str, workflow: Workflow) -> str:
    async def insert() -> str:
        async with Baton(dsn) as baton:
            return (await baton.insert(workflow)).id

    return asyncio.run(insert())


def ran(dsn: str, message: str = "no luck") -> testing.Finished:
    """A run of which one step completed, one was discarded, and one was never run."""
    workflow = Workflow("three")
    told = workflow.add("told", app.echo.new(value={"of": ["the", "result"]}))
    bad = workflow.add("bad", app.raises.new(message=message), deps=[told])
    workflow.add("never", app.echo.new(value=1), deps=[bad])
    return asyncio.run(testing.run(workflow, dsn=dsn))


def run_id(dsn: str) -> str:
    """The id of the only run."""
    (only,) = json.loads(baton("list", "--dsn", dsn, "--json").stdout)
    return str(only["id"])


def job(dsn: str) -> tuple[str, int]:
    """State and attempt of the only job."""
    with psycopg.connect(dsn) as conn:
        ((state, attempt),) = conn.execute("SELECT state::text, attempt FROM oban_jobs").fetchall()
    return state, attempt


# --- help and usage -------------------------------------------------------------------------------


def test_help_is_fast_and_imports_no_database_driver(tmp_path):
    script = (
        "import sys, baton.cli\n"
        "try: baton.cli.main()\n"
        "finally: print([name for name in ('psycopg', 'oban', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("[]\n")
    assert "Exit codes:" in done.stdout
    for command in (
        "migrate",
        "start",
        "list",
        "show",
        "why",
        "cancel",
        "retry",
        "rerun",
        "pause",
        "resume",
        "doctor",
        "demo",
    ):
        assert f"  {command} " in done.stdout
        assert "Usage:" in baton(command, "-h").stdout


def test_the_version_is_that_of_the_package():
    assert baton("--version").stdout == f"baton, version {__version__}\n"


def test_python_m_baton_is_the_same_command(tmp_path):
    with Command("--version", cwd=tmp_path) as command:
        assert command.end() == 0
        assert command.out == f"baton, version {__version__}\n"


def test_a_database_must_be_named_and_is_taken_from_the_environment(baton_dsn, monkeypatch):
    for command in (["migrate"], ["list"], ["show", "x"]):
        told = baton(*command, code=2).stderr
        assert all(way in told for way in ("--dsn", "BATON_DSN", "DATABASE_URL", "--local"))
    monkeypatch.setenv("DATABASE_URL", NOT_HERE)
    baton("list", code=3)
    monkeypatch.setenv("BATON_DSN", baton_dsn)
    baton("list")
    monkeypatch.setenv("BATON_DSN", NOT_HERE)
    baton("list", "--dsn", baton_dsn)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["lst"], 2, "lst"),
        (["list", "--dsn", NOT_HERE], 3, "refused"),
        (["list", "--dsn", "postgres:s3cret@host"], 2, "postgresql://user@localhost"),
        (["list", "--dsn", "postgresql+psycopg://ada:s3cret@host/app"], 2, "driver"),
        (["list", "--dsn", "postgresql://ada:s3%ZZcret@host/app"], 2, "connection string"),
        (["list", "--dsn", "postgresql://a\udcffb/app"], 2, "connection string"),
        (["list", "--dsn", NOT_HERE, "--local"], 2, "exclude"),
        (["list", "--dsn", NOT_HERE, "--data-dir", "x"], 2, "--local"),
        (["list", "--dsn", NOT_HERE, "--prefix", 'a"b'], 2, "prefix"),
        (["list", "--dsn", NOT_HERE, "--state", "held"], 2, "executing"),
        (["list", "--dsn", NOT_HERE, "--limit", "0"], 2, "1<=x<=1000"),
        (["list", "--dsn", NOT_HERE, "--since", "yesterday"], 2, "12h or 7d"),
        (["list", "--dsn", NOT_HERE, "--until", "999999999d"], 2, "12h or 7d"),
        (["migrate", "--dsn", NOT_HERE, "--check", "--grant-read", "x"], 2, "--grant-read"),
        (["list", "--local", "--data-dir", "/proc/nowhere"], 3, "/proc/nowhere"),
        (["show", "--dsn", NOT_HERE], 2, "RUN"),
        (["graph", "x", "--dsn", NOT_HERE, "--output", "/"], 2, "directory"),
        (["migrate", "--dsn", NOT_HERE, "--check", "--down"], 2, "exclude"),
        (["migrate", "--dsn", NOT_HERE, "--yes"], 2, "--down"),
        (["migrate", "--dsn", NOT_HERE], 3, "refused"),
        (["migrate", "--check", "--dsn", NOT_HERE], 3, "refused"),
        (["migrate", "--down", "--dsn", NOT_HERE], 3, "refused"),
        (["demo", "--resume", "x", "README.md"], 2, "--resume"),
        (["demo", "--output", "/nowhere/brief.md"], 2, "/nowhere"),
        (["demo", "--output", "/"], 2, "directory"),
        (["demo", "--data-dir", "/proc/nowhere"], 3, "/proc/nowhere"),
        (["start"], 2, "--app"),
        (["start", "--app", "nothing_here:baton"], 2, "no module 'nothing_here'"),
        (["start", "--app", "tests.kit.nothing:baton"], 2, "no module 'tests.kit.nothing'"),
        (["start", "--app", "tests.kit.app"], 2, "package.module:attribute"),
        (["start", "--app", "tests/kit/app.py:baton"], 2, "package.module:attribute"),
        (["start", "--app", "tests.kit.app:nothing"], 2, "it has the Baton 'baton', 'without_queues'"),
        (["start", "--app", "tests.kit.app:number"], 2, "is int, no Baton"),
        (["start", "--app", "tests.kit.app:make_later"], 2, "is coroutine, no Baton"),
        (["start", "--app", "tests.kit.app:fail"], 2, "RuntimeError: no\\x1b[31m luck"),
        (["start", "--app", "tests.kit.app:without_queues"], 2, "works on no queue"),
        (["start", "--app", "tests.kit.app:make", "--queue", "default"], 2, "name=limit"),
        (["start", "--app", "tests.kit.app:without_queues", "--queue", "default=0"], 2, "from 1 up"),
        (["start", "--app", "tests.kit.app:without_queues", "--queue", "a b=1"], 2, "a b"),
        (["start", "--app", "tests.kit.app:baton", "--app-dir", "/nowhere"], 2, "/nowhere"),
        (["start", "--app", "tests.kit.app:baton"], 3, "refused"),
    ],
    ids=lambda value: ascii(" ".join(value))[:70] if isinstance(value, list) else "",
)
def test_a_mistake_gets_its_exit_code_and_a_message_and_no_traceback(arguments, code, words):
    done = baton(*arguments, code=code)
    assert words in done.stderr
    assert "cret" not in done.output
    assert not _OBEYED.search(done.stderr)


def test_an_app_that_cannot_be_imported_is_named_with_the_line(tmp_path):
    (tmp_path / "broken_app.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "wrong_app.py").write_text("x = 1\ny = x +\n")
    (tmp_path / "late_app.py").write_text("def f():\n    raise SystemExit('bye')\nf()\n")
    for name, words in (
        ("broken_app", "No module named 'nowhere_to_be_found'"),
        ("wrong_app", "line 2"),
        ("late_app", "line 2"),
    ):
        told = baton("start", "--app", f"{name}:baton", "--app-dir", tmp_path, code=2).stderr
        assert f"importing '{name}' failed" in told
        assert words in told
        assert len(told.splitlines()) == 1


def test_debug_shows_the_traceback_of_what_is_wrong_with_an_app(tmp_path):
    (tmp_path / "wrong_app.py").write_text("raise ValueError('no')\n")
    with Command("start", "--app", "wrong_app:baton", "--log-level", "debug", cwd=tmp_path) as command:
        assert command.process.wait(timeout=30) == 2
        assert "Traceback" in command.err


# --- migrate --------------------------------------------------------------------------------------


@pytest.fixture
def empty_dsn(baton_dsn: str) -> str:
    """A database without any table."""
    with psycopg.connect(baton_dsn) as conn:
        conn.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return baton_dsn


def test_migrate_creates_once_checks_and_removes(empty_dsn):
    told = baton("migrate", "--check", "--dsn", empty_dsn, code=3).stderr
    assert "no tables of Oban's" in told
    assert "run: baton migrate" in told
    assert "no Baton tables; run `baton migrate`" in baton("list", "--dsn", empty_dsn, code=3).stderr
    assert "applied version 1" in baton("migrate", "--dsn", empty_dsn).stdout
    assert "up to date (version" in baton("migrate", "--dsn", empty_dsn).stdout
    assert "up to date (version" in baton("migrate", "--check", "--dsn", empty_dsn).stdout
    assert "removed" in baton("migrate", "--down", "--yes", "--dsn", empty_dsn).stdout
    assert "no tables of Baton's" in baton("migrate", "--check", "--dsn", empty_dsn, code=3).stderr
    assert "nothing to remove" in baton("migrate", "--down", "--yes", "--dsn", empty_dsn).stdout


def test_check_says_what_is_outdated_and_migrate_repairs_it(baton_dsn):
    with psycopg.connect(baton_dsn, autocommit=True) as conn:
        conn.execute("UPDATE workflow_migrations SET name = 'other' WHERE version = 0")
    assert "of another build" in baton("migrate", "--check", "--dsn", baton_dsn).stdout
    assert "renewed" in baton("migrate", "--dsn", baton_dsn).stdout
    baton("migrate", "--check", "--dsn", baton_dsn)
    with psycopg.connect(baton_dsn, autocommit=True) as conn:
        ((trigger,), *_) = conn.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'oban_jobs'::regclass AND NOT tgisinternal"
        ).fetchall()
        conn.execute(f"DROP TRIGGER {trigger} ON oban_jobs")
    assert trigger in baton("migrate", "--check", "--dsn", baton_dsn, code=3).stderr
    assert "renewed" in baton("migrate", "--dsn", baton_dsn).stdout
    assert "another build" not in baton("migrate", "--check", "--dsn", baton_dsn).stdout


def test_a_prefix_is_named_in_the_command_to_run(baton_dsn):
    told = baton("migrate", "--check", "--dsn", baton_dsn, "--prefix", "jobs", code=3).stderr
    assert "run: baton migrate --prefix jobs" in told
    assert "'jobs': applied" in baton("migrate", "--dsn", baton_dsn, "--prefix", "jobs").stdout
    baton("list", "--dsn", baton_dsn, "--prefix", "jobs")


def test_a_role_that_owns_nothing_can_be_let_in(baton_dsn):
    dsn = psycopg.conninfo.make_conninfo(baton_dsn, user="clerk")
    with psycopg.connect(baton_dsn, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS clerk; CREATE ROLE clerk LOGIN")
    try:
        assert "`baton migrate --grant clerk`" in baton("list", "--dsn", dsn, code=3).stderr
        assert "granted to clerk" in baton("migrate", "--grant", "clerk", "--dsn", baton_dsn).stdout
        baton("list", "--dsn", dsn)
        assert '"clerk"' in baton("migrate", "--sql", "--grant", "clerk").stdout
        assert "granted to clerk" in baton("migrate", "--grant-read", "clerk", "--dsn", baton_dsn).stdout
        assert 'baton_llm_calls TO "clerk"' in baton("migrate", "--sql", "--grant-read", "clerk").stdout
        baton("migrate", "--sql", "--grant", 'a"b', code=2)
    finally:
        with psycopg.connect(baton_dsn, autocommit=True) as conn:
            conn.execute("DROP OWNED BY clerk; DROP ROLE clerk")


def test_tables_of_somebody_else_are_refused(empty_dsn):
    with psycopg.connect(empty_dsn) as conn:
        conn.execute("CREATE TABLE workflow_nodes (id int)")
    for options in ([], ["--check"], ["--down", "--yes"]):
        told = baton("migrate", *options, "--dsn", empty_dsn, code=3).stderr
        assert "workflow_nodes" in told


def test_sql_needs_no_database_and_does_what_migrate_does(empty_dsn):
    from oban.schema import install_sql

    text = baton("migrate", "--sql").stdout
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(install_sql("public"))
        conn.execute(text)
    baton("migrate", "--check", "--dsn", empty_dsn)
    assert '"jobs".workflow_nodes' in baton("migrate", "--sql", "--prefix", "jobs").stdout


def test_down_says_what_is_lost_and_removes_it_only_when_told(baton_dsn):
    ran(baton_dsn)
    name = psycopg.conninfo.conninfo_to_dict(baton_dsn)["dbname"]
    for typed in ("", "y\n", "another\n"):
        done = baton("migrate", "--down", "--dsn", baton_dsn, input=typed, code=1)
        assert (
            f"database {name!r}: 1 workflows with their results will be lost, 0 of them unfinished"
            in done.stderr
        )
        assert "nothing was removed" in done.stderr
    baton("migrate", "--check", "--dsn", baton_dsn)
    assert "removed" in baton("migrate", "--down", "--dsn", baton_dsn, input=f"{name}\n").stdout
    baton("migrate", "--check", "--dsn", baton_dsn, code=3)


def test_a_missing_permission_is_told_in_a_line(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(
            "DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC"
        )
    try:
        dsn = psycopg.conninfo.make_conninfo(empty_dsn, user="guest")
        assert "permission denied" in baton("migrate", "--dsn", dsn, code=3).stderr
        missing = psycopg.conninfo.make_conninfo(empty_dsn, dbname="not_there")
        assert "does not exist" in baton("list", "--dsn", missing, code=3).stderr
    finally:
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            conn.execute("DROP ROLE guest")


# --- list and show --------------------------------------------------------------------------------


def test_list_shows_runs_newest_first(baton_dsn):
    assert baton("list", "--dsn", baton_dsn).stderr == "no runs\n"
    assert baton("list", "--dsn", baton_dsn, "--json").stdout == "[]\n"
    failed = ran(baton_dsn).run.id
    waiting = inserted(baton_dsn, app.workflow("until_told", Path("/nowhere")))
    title, *lines = baton("list", "--dsn", baton_dsn).stdout.splitlines()
    assert title.split() == ["id", "state", "name", "settled", "inserted", "took"]
    assert [line.split()[:5] for line in lines] == [
        [waiting, "●", "executing", "app", "0/1"],
        [failed, "✗", "failed", "three", "3/3"],
    ]
    assert [
        row["id"] for row in json.loads(baton("list", "--dsn", baton_dsn, "--json", "--limit", 1).stdout)
    ] == [waiting]
    assert failed in baton("list", "--dsn", baton_dsn, "--state", "failed").stdout
    assert waiting not in baton("list", "--dsn", baton_dsn, "--state", "failed").stdout
    for asked, found in [
        (["--state", "failed", "--state", "executing"], [waiting, failed]),
        (["--name", "three"], [failed]),
        (["--key", "three"], []),
        (["--search", "HRE"], [failed]),
        (["--search", waiting], [waiting]),
        (["--since", "1h"], [waiting, failed]),
        (["--until", "1h"], []),
        (["--since", "2020-01-01", "--until", "2020-01-01T12:00"], []),
        (["--before", waiting], [failed]),
    ]:
        listed = json.loads(baton("list", "--dsn", baton_dsn, "--json", *asked).stdout)
        assert [row["id"] for row in listed] == found, asked


def test_show_has_the_steps_their_states_dependencies_and_errors(baton_dsn):
    run = ran(baton_dsn).run.id
    head, titles, *lines = baton("show", run, "--dsn", baton_dsn).stdout.splitlines()
    assert head.startswith("✗ three  failed")
    assert titles.split() == ["step", "state", "tries", "took"]
    assert [line.split()[:5] for line in lines] == [
        ["1", "✓", "told", "completed", "1/20"],
        ["2", "✗", "bad", "discarded", "1/1"],
        ["3", "⊘", "never", "cancelled", "after"],
    ]
    assert "after told; " in lines[1]
    assert "ValueError: no luck" in lines[1]


def test_show_is_json_with_all_there_is(baton_dsn):
    run = ran(baton_dsn).run.id
    found = json.loads(baton("show", run, "--dsn", baton_dsn, "--json").stdout)
    assert set(found) == {"run", "steps"}
    assert found["run"]["id"] == run
    assert [step["state"] for step in found["steps"]] == ["completed", "discarded", "cancelled"]
    assert found["steps"][1]["error"].rstrip().endswith("ValueError: no luck")
    with_results = json.loads(baton("show", run, "--dsn", baton_dsn, "--json", "--results").stdout)
    assert with_results["results"] == {"told": {"of": ["the", "result"]}}
    assert '"of": [' in baton("show", run, "--dsn", baton_dsn, "--results").stdout


def test_graph_is_text_or_a_drawing_for_another_tool(baton_dsn, tmp_path):
    run = ran(baton_dsn).run.id
    assert baton("graph", run, "--dsn", baton_dsn).stdout.splitlines() == [
        "1  told   completed",
        "2  bad    discarded  <- told",
        "3  never  cancelled  <- bad",
    ]
    assert baton("graph", run, "--dsn", baton_dsn, "--mermaid").stdout.startswith("flowchart LR")
    assert baton("graph", run, "--dsn", baton_dsn, "--dot").stdout.startswith("digraph")
    drawing = baton("graph", run, "--dsn", baton_dsn, "--svg").stdout
    assert drawing.startswith("<svg")
    file = tmp_path / "run.svg"
    assert baton("graph", run, "--dsn", baton_dsn, "--svg", "-o", file).stdout == ""
    assert file.read_text() == drawing
    missing = tmp_path / "not" / "there.svg"
    told = baton("graph", run, "--dsn", baton_dsn, "--svg", "-o", missing, code=1).stderr
    assert "No such file or directory; name another file with --output" in told


def test_watch_ends_with_the_run_and_says_how_it_went(baton_dsn, tmp_path):
    workflow = Workflow("fine")
    workflow.add("told", app.echo.new(value=1))
    fine = asyncio.run(testing.run(workflow, dsn=baton_dsn)).run.id
    assert re.search(r"told +completed in ", baton("watch", fine, "--dsn", baton_dsn).stdout)
    failed = ran(baton_dsn).run.id
    with Command("watch", failed, "--dsn", baton_dsn, cwd=tmp_path) as command:
        assert command.end() == 1
    assert "never  cancelled" in command.out


def test_an_interrupted_watch_leaves_the_run_alone(baton_dsn, tmp_path):
    workflow = Workflow("slow")
    workflow.add("told", app.echo.new(value=1))
    run = inserted(baton_dsn, workflow)
    with Command("watch", run, "--dsn", baton_dsn, cwd=tmp_path) as command:
        command.until(lambda: "told  available" in command.out)
        command.send(signal.SIGINT)
        assert command.end() == 130
    assert command.err == "baton: interrupted; the run goes on\n"
    assert job(baton_dsn) == ("available", 0)


def test_a_run_that_is_not_there_is_told_in_a_line(baton_dsn):
    assert (
        "there is no run"
        in baton("show", "01a20475-b054-78f9-a1d8-37410d08bb20", "--dsn", baton_dsn, code=2).stderr
    )
    assert "is no run's id" in baton("show", "\x1b]0;x\x07", "--dsn", baton_dsn, code=2).stderr


def test_a_run_is_paused_resumed_cancelled_retried_and_run_again(baton_dsn):
    workflow = Workflow("ruled")
    first = workflow.add("first", app.until_told.new("", ""))
    workflow.add("second", app.until_told.new("", ""), deps=[first])
    run = inserted(baton_dsn, workflow)
    target = ("--dsn", baton_dsn)
    assert baton("pause", run, *target).stdout == f"run {run}: paused\n"
    assert baton("resume", run, *target).stdout == f"run {run}: goes on\n"
    assert baton("cancel", run, "second", *target).stdout == f"step second of run {run}: cancelled\n"
    assert baton("retry", run, *target).stdout == f"run {run}: 1 step runs again: second\n"
    assert baton("retry", run, *target).stdout == f"run {run}: nothing had failed\n"
    assert baton("cancel", run, "--reason", "enough", *target).stdout == f"run {run}: cancelled\n"
    assert baton("cancel", run, *target).stdout == f"run {run}: cancelled\n"
    assert "had ended before: it is cancelled" in baton("pause", run, *target, code=1).stderr
    assert run in baton("list", "--state", "cancelled", *target).stdout
    assert "enough" in baton("show", run, *target).stdout
    new = baton("rerun", run, "--from", "second", *target).stdout.strip()
    assert json.loads(baton("show", new, "--json", *target).stdout)["run"]["rerun_of"] == run


def test_verbs_print_json_and_say_who_won(baton_dsn):
    empty = inserted(baton_dsn, Workflow("empty"))
    target = ("--json", "--dsn", baton_dsn)
    for verb in ("cancel", "pause", "resume"):
        done = baton(verb, empty, *target, code=1)
        assert json.loads(done.stdout)["state"] == "completed"
        assert done.stderr == f"baton: run {empty} had ended before: it is completed\n"
    assert json.loads(baton("retry", empty, *target).stdout) == {"run": empty, "steps": []}
    again = json.loads(baton("rerun", empty, *target).stdout)
    assert (again["rerun_of"], again["run"] != empty) == (empty, True)
    for arguments in (("cancel", empty, "nobody"), ("rerun", empty, "--from", "nobody")):
        assert "has no step 'nobody'" in baton(*arguments, *target, code=2).stderr
    for verb in ("cancel", "retry", "rerun", "pause", "resume"):
        assert (
            "there is no run" in baton(verb, "01890a5d-ac96-774b-bcce-b302099a8057", *target, code=2).stderr
        )


def test_hostile_names_errors_and_results_are_shown_and_not_obeyed(baton_dsn):
    everything = "".join(name for name in STORABLE if len(name) < 100) + "[bold]x[/bold]"
    workflow = Workflow("three")
    told = workflow.add("told", app.echo.new(value={everything: everything}))
    workflow.add("bad", app.raises.new(message=everything), deps=[told])
    run = asyncio.run(testing.run(workflow, dsn=baton_dsn)).run.id
    with psycopg.connect(baton_dsn, autocommit=True) as conn:
        conn.execute("UPDATE workflows SET name = %s", [everything])
        conn.execute("UPDATE workflow_nodes SET name = name || %s", [everything])
    for arguments in (
        ["list"], ["list", "--json"], ["show", run], ["show", run, "--json"], ["show", run, "--results"],
        ["show", run, "--json", "--results"], ["graph", run], ["graph", run, "--mermaid"], ["graph", run, "--dot"],
        ["graph", run, "--svg"],
    ):  # fmt: skip
        done = baton(*arguments, "--dsn", baton_dsn)
        assert not _OBEYED.search(done.output), arguments
        if "--json" in arguments:
            assert everything in done.stdout or json.loads(done.stdout)
    assert json.loads(baton("list", "--json", "--dsn", baton_dsn).stdout)[0]["name"] == everything
    shown = json.loads(baton("show", run, "--json", "--results", "--dsn", baton_dsn).stdout)
    assert shown["results"] == {f"told{everything}": {everything: everything}}
    assert "[bold]" in "".join(baton("show", run, "--dsn", baton_dsn).stdout.split())


# --- start ----------------------------------------------------------------------------------------


@pytest.fixture
def begun(baton_dsn: str, tmp_path: Path) -> Iterator[Callable[[str], Command]]:
    """Starts workers on a run of one step of `tests.kit.app`, and returns when the step has begun."""
    commands = []

    def start(step: str) -> Command:
        inserted(baton_dsn, app.workflow(step, tmp_path))
        command = Command(
            "start",
            "--app",
            "tests.kit.app:make",
            "--app-dir",
            ROOT,
            cwd=tmp_path,
            env={"APP_DSN": baton_dsn},
        )
        commands.append(command)
        command.until((tmp_path / "begun").exists)
        return command

    yield start
    for command in commands:
        command.__exit__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_steps_end(begun, baton_dsn, tmp_path, number):
    command = begun("until_told")
    command.until(lambda: "is working on default=2" in command.err)
    command.send(number)
    command.until(lambda: "stopping: waiting for running steps" in command.err)
    assert job(baton_dsn) == ("executing", 1)
    (tmp_path / "told").touch()
    assert command.end() == 0
    assert "stopped" in command.err
    assert job(baton_dsn) == ("completed", 1)
    assert command.out == ""


@pytest.mark.parametrize("step", ["task", "thread"])
def test_a_second_signal_gives_running_steps_back_at_once(begun, baton_dsn, step):
    command = begun(step)
    command.send(signal.SIGTERM)
    command.until(lambda: "stopping" in command.err)
    command.send(signal.SIGTERM)
    assert command.end() == 130
    assert job(baton_dsn) == ("available", 0)


def test_a_third_signal_ends_the_process_whatever_runs(begun, baton_dsn):
    command = begun("deaf")
    for _ in range(2):
        command.send(signal.SIGTERM)
        command.until(lambda: "stopping" in command.err)
    deadline = time.monotonic() + 20
    # Two signals that arrive at the same moment are one, so how many it takes is not ours to know.
    while command.process.poll() is None:
        assert time.monotonic() < deadline
        command.send(signal.SIGTERM)
        time.sleep(0.005)
    assert command.end() == 130
    assert job(baton_dsn) == ("executing", 1)


def test_what_a_step_logs_names_the_workflow_the_step_and_the_attempt(baton_dsn, tmp_path):
    workflow = Workflow("shop")
    workflow.add("say", app.logs.new(message="two\nlines \x1b[31m"))
    run = inserted(baton_dsn, workflow)
    queues = ("--queue", "default=3", "--queue", "mail=1")
    with Command(
        *("start", "--app", "tests.kit.app:without_queues", "--app-dir", ROOT, *queues),
        cwd=tmp_path,
        env={"APP_DSN": baton_dsn},
    ) as command:
        command.until(lambda: "working on default=3, mail=1" in command.err)
        command.until(lambda: job(baton_dsn)[0] == "completed")
        command.send(signal.SIGINT)
        assert command.end() == 0
    assert f"WARNING shop [{run}/say attempt 1] two\\x0alines \\x1b[31m\n" in command.err


def test_start_says_what_is_missing_before_it_works(empty_dsn, tmp_path):
    with Command(
        "start", "--app", "tests.kit.app:baton", "--app-dir", ROOT, cwd=tmp_path, env={"APP_DSN": empty_dsn}
    ) as command:
        assert command.end() == 3
        assert command.err.splitlines()[-1].endswith("run `baton migrate` (or await baton.migration.up(dsn))")


# --- demo -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment with a data folder that all demos share."""
    folder = tmp_path_factory.mktemp("demo") / "pg"
    yield {"BATON_DATA": str(folder)}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slow_page() -> Iterator[tuple[str, threading.Event]]:
    """URL of a page that is not sent before the event is set."""
    told = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.wait(30)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(
                b"Lighthouses\n\nA lighthouse warns ships of rocks. Its lamp burns all night.\n" * 3
            )

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/lighthouses.txt", told
        told.set()
        server.shutdown()


def written(command: Command, folder: Path) -> str:
    """The brief in the file that a demo says it wrote."""
    (name,) = re.findall(r"^written  (research-brief-\w{8}\.md)$", command.out, re.MULTILINE)
    return (folder / name).read_text()


def test_two_demos_at_once_write_two_different_briefs(data, tmp_path):
    texts = {
        "tides": "The moon raises the tides of the sea.",
        "bread": "Yeast makes the dough of bread rise.",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(
            f"About {name}\n\n" + f"{text} More about {name} follows. " * 20
        )
    (tmp_path / "odd.txt").write_bytes("Über Brot\n\nBrot ist gut für alle.".encode("latin-1"))
    with (
        Command("demo", "tides.txt", "--topic", "the sea", cwd=tmp_path, env=data) as tides,
        Command("demo", "bread.txt", "odd.txt", cwd=tmp_path, env=data) as bread,
    ):
        assert [tides.end(), bread.end()] == [0, 0]
        for command, title in ((tides, "# Research brief: the sea\n"), (bread, "# Research brief: ")):
            brief = written(command, tmp_path)
            assert brief.startswith(title)
            assert brief in command.out
            assert f"data     {Path(data['BATON_DATA']).resolve()}\n" in command.out
            for step in ("fetch_sources", "summarize", "keywords", "credibility", "compile_brief"):
                assert re.search(rf"s  {step} +completed in ", command.out)
                assert re.search(rf"^times .*\b{step} \d", command.out, re.MULTILINE)
            assert not _OBEYED.search(command.out)
        assert "tides" in written(tides, tmp_path)
        assert "tides" not in written(bread, tmp_path)


def test_the_demo_as_json_has_standard_output_to_itself(data, tmp_path):
    with Command("demo", "--json", "--output", "out.md", cwd=tmp_path, env=data) as command:
        assert command.end() == 0
        found = json.loads(command.out)
    assert found["run"]["state"] == "completed"
    assert found["file"] == "out.md"
    assert found["brief"].startswith("# Research brief: surviving a power failure")
    assert (tmp_path / "out.md").read_text() == found["brief"] or (tmp_path / "out.md").read_text() == found[
        "brief"
    ] + "\n"
    assert "fetch_sources" in command.err


def answer_about_tides(request: Request) -> Reply:
    """What a model says to each of the three questions about `tides.txt`."""
    rules = request.body["messages"][0]["content"]
    said: dict[str, Any] = {"assessments": [{"source": 1, "score": 0.5, "reasons": ["short"]}]}
    if "sentences" in rules:
        said = {"sentences": [{"source": 1, "text": "The moon raises the tides of the sea, twice a day."}]}
    elif "keywords" in rules:
        said = {"keywords": ["tides"]}
    return Reply(json.dumps(said))


def test_the_demo_asks_models_and_says_what_they_cost(data, tmp_path):
    (tmp_path / "tides.txt").write_text("Tides\n\nThe moon raises the tides of the sea, twice a day.\n")
    with Providers(answer_about_tides) as providers:
        env = data | {
            "BATON_LLM_URL": providers.openai_url,
            "BATON_LLM_MODEL": "gpt-6.1-sol, openai/gpt-6.1",
            "BATON_LLM_KEY": "sk-planted",
        }
        with Command("demo", "tides.txt", cwd=tmp_path, env=env) as command:
            assert command.end() == 0
            host = providers.url.removeprefix("http://")
            assert f"models   gpt-6.1-sol, openai/gpt-6.1 at {host}\n" in command.out
            assert re.search(r"s  summarize_gpt_6_1 +completed in ", command.out)
            (cost,) = re.findall(r"^cost     (.*)$", command.out, re.MULTILINE)
            assert cost.endswith(" for 6 calls, 6,000 tokens in, 3,000 tokens out")
            assert written(command, tmp_path).endswith(f"- Cost: {cost}.\n")
            assert "planted" not in command.out + command.err
        assert len(providers.requests) == 6


def test_a_run_that_asks_models_goes_on_where_one_can_be_asked(data, tmp_path):
    (tmp_path / "tides.txt").write_text("Tides\n\nThe moon raises the tides of the sea, twice a day.\n")
    with Providers(Slow()) as providers:
        env = data | {"BATON_LLM_URL": providers.openai_url, "BATON_LLM_MODEL": "gpt-6.1-sol"}
        with Command("demo", "tides.txt", cwd=tmp_path, env=env) as command:
            command.until(lambda: providers.waiting == 3)
            command.send(signal.SIGINT)
            assert command.end() == 130
        (run,) = re.findall(r"baton demo --resume (\S+)$", command.err, re.MULTILINE)
        with Command("demo", "--resume", run, cwd=tmp_path, env=data) as command:
            assert command.end() == 2
            assert "set BATON_LLM_URL and BATON_LLM_MODEL" in command.err
        providers.default = answer_about_tides
        with Command("demo", "--resume", run, "--json", cwd=tmp_path, env=env) as command:
            assert command.end() == 0
            found = json.loads(command.out)
        assert Decimal(found["cost"]["cost_usd"]) == 3 * Decimal("0.00624")
        assert found["cost"]["calls"] >= 3


def test_half_an_endpoint_is_refused_before_anything_is_begun(monkeypatch):
    monkeypatch.setenv("BATON_LLM_URL", "http://127.0.0.1:1/v1")
    assert "BATON_LLM_MODEL is not" in baton("demo", code=2).stderr


def test_a_step_that_fails_is_shown_and_makes_the_exit_code_1(data, tmp_path):
    with Command("demo", "not_there.txt", cwd=tmp_path, env=data) as command:
        assert command.end() == 1
    assert re.fullmatch(
        r"baton: step 'fetch_sources' was cancelled: .*not_there.txt.* does not exist.*\n", command.err
    )
    assert not list(tmp_path.glob("*.md"))


def test_an_interrupted_demo_says_how_to_go_on_and_goes_on(data, tmp_path, slow_page):
    url, told = slow_page
    with Command("demo", url, cwd=tmp_path, env=data) as command:
        command.until(lambda: re.search("fetch_sources +executing", command.out))
        command.send(signal.SIGINT)
        assert command.end() == 130
    (run,) = re.findall(r"baton demo --resume (\S+)$", command.err, re.MULTILINE)
    assert f"baton show {run} --local" in command.err
    told.set()
    with Command("demo", "--resume", run, cwd=tmp_path, env=data) as again:
        assert again.end() == 0
        assert "lighthouse" in written(again, tmp_path)
    with Command("demo", "--resume", run, cwd=tmp_path, env=data) as shown:
        assert shown.end() == 0
    assert len(list(tmp_path.glob("research-brief-*.md"))) == 1
    with Command("show", run, "--local", cwd=tmp_path, env=data) as command:
        assert command.end() == 0
        assert "compile_brief  completed" in command.out


def test_a_brief_is_never_written_over_another_file(tmp_path, monkeypatch):
    from baton._demo import _write

    monkeypatch.chdir(tmp_path)
    run = "01a20475-b054-78f9-a1d8-37410d08bb20"
    assert _write("mine", None, run) == Path("research-brief-0d08bb20.md")
    Path("research-brief-0d08bb20.md").write_text("yours")
    assert _write("mine", None, run) == Path("research-brief-0d08bb20-2.md")
    assert _write("mine", None, run) == Path("research-brief-0d08bb20-2.md")
    assert Path("research-brief-0d08bb20.md").read_text() == "yours"
    assert _write("mine", Path("chosen.md"), run) == Path("chosen.md")


def test_a_missing_extra_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "oban-baton[demo]"' in baton("demo", code=3).stderr


# --- cost -----------------------------------------------------------------------------------------


def spent(dsn: str) -> str:
    """A run with calls of models, and others long gone."""
    workflow = Workflow("research")
    workflow.add("draft", app.echo.new(value=1))
    run_id = inserted(dsn, workflow)

    async def calls() -> None:
        monday, tuesday = (datetime(2026, 1, day, 12, tzinfo=UTC) for day in (5, 6))
        used: dict[str, Any] = {"input_tokens": 1_200, "output_tokens": 30}
        await spend(dsn, run_id, "draft", "0.0062400", provider="openai", at=tuesday, **used)
        await spend(dsn, run_id, "draft", None, model="ours\x1b[31m", attempt=2, at=tuesday)
        await spend(dsn, uuid7(), "parse", "12.5", label="import\u202e", at=monday, input_tokens=5)

    asyncio.run(calls())
    return run_id


def test_the_cost_of_a_run_is_shown_by_step_attempt_and_model(baton_dsn: str) -> None:
    run_id = spent(baton_dsn)
    shown = [" ".join(line.split()) for line in baton("cost", run_id, "--dsn", baton_dsn).stdout.splitlines()]
    assert shown == [
        "step attempt model calls input output cost",
        "draft 1 openai/gpt-5 1 1,200 30 $0.0062",
        r"draft 2 ours\x1b[31m 1 ? ? unknown",
        "all 2 1,200 30 at least $0.0062",
    ]
    shown = baton("cost", run_id, "--by", "model", "--dsn", baton_dsn).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["model", "openai/gpt-5", r"ours\x1b[31m", "all"]


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ((), ["gpt-5", "openai/gpt-5", r"ours\x1b[31m", "all"]),
        (("--by", "model"), ["gpt-5", "openai/gpt-5", r"ours\x1b[31m", "all"]),
        (("--by", "label"), [r"import\u202e", "research", "all"]),
        (("--by", "step"), [r"import\u202e", "research", "all"]),
        (("--by", "day"), ["2026-01-06", "2026-01-05", "all"]),
        (("--by", "day", "--from", "2026-01-06T00:00:00Z"), ["2026-01-06", "all"]),
        (("--by", "day", "--to", "2026-01-06T00:00:00Z"), ["2026-01-05", "all"]),
        (("--by", "label", "--name-prefix", "res"), ["research", "all"]),
        (("--by", "label", "--limit", "1"), [r"import\u202e", "all"]),
    ],
)
def test_the_costs_of_all_runs_are_shown_by_what_is_asked(
    baton_dsn: str, asked: tuple[str, ...], first: list[str]
) -> None:
    spent(baton_dsn)
    done = baton("cost", *asked, "--dsn", baton_dsn)
    _, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == first
    assert not _OBEYED.search(done.stdout)
    assert ("raise --limit" in done.stderr) == ("--limit" in asked)


def test_costs_are_exact_text_in_json(baton_dsn: str) -> None:
    run_id = spent(baton_dsn)
    of_run = json.loads(baton("cost", run_id, "--json", "--dsn", baton_dsn).stdout)
    assert (of_run["run"], of_run["by"]) == (run_id, "step")
    assert of_run["totals"] == {
        "calls": 2,
        "input_tokens": 1_200,
        "output_tokens": 30,
        "cache_read_tokens": None,
        "cache_write_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": "0.00624",
        "unpriced": 1,
        "is_lower_bound": True,
    }
    assert [(row["step"], row["attempt"], row["model"], row["cost_usd"]) for row in of_run["rows"]] == [
        ("draft", 1, "gpt-5", "0.00624"),
        ("draft", 2, "ours\x1b[31m", None),
    ]
    by_day = json.loads(baton("cost", "--by", "day", "--json", "--dsn", baton_dsn).stdout)
    assert by_day["totals"]["cost_usd"] == "12.50624"
    assert [(row["day"], row["cost_usd"]) for row in by_day["rows"]] == [
        ("2026-01-06", "0.00624"),
        ("2026-01-05", "12.5"),
    ]


def test_without_calls_there_is_nothing_to_show(baton_dsn: str) -> None:
    done = baton("cost", "--dsn", baton_dsn)
    assert (done.stdout, done.stderr) == ("", "no calls of models are recorded\n")
    nothing = json.loads(baton("cost", "--json", "--dsn", baton_dsn).stdout)
    assert (nothing["totals"]["cost_usd"], nothing["rows"]) == ("0", [])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("x",), "no run's id"),
        ((str(uuid7()),), "there is no run"),
        ((str(uuid7()), "--by", "day"), "--by day is for the costs of all runs"),
        ((str(uuid7()), "--from", "7d"), "--from and --to are for the costs of all runs"),
        (("--from", "yesterday"), "is no time"),
        (("--by", "colour"), "Invalid value for '--by'"),
        (("--limit", "0"), "Invalid value for '--limit'"),
        (("--name-prefix", "x" * 300), "name_prefix"),
    ],
)
def test_what_cannot_be_asked_of_cost_is_said(baton_dsn: str, asked: tuple[str, ...], said: str) -> None:
    assert said in baton("cost", *asked, "--dsn", baton_dsn, code=2).stderr
