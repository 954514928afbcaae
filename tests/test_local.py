"""The launcher of the embedded PostgreSQL, with real servers and real processes.

Every test is valid for root and for an ordinary user; what differs is computed from `os.geteuid()`.
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from baton import _pgbin, local
from baton.errors import LocalServerError, MissingExtra
from baton.local import LocalServer, default_data_dir

ROOT = os.geteuid() == 0

CLIENT = """
import sys
from baton.local import LocalServer
server = LocalServer.start(sys.argv[1])
print(server.pid, server.dsn, flush=True)
sys.stdin.read()
server.stop()
"""


# --- helpers --------------------------------------------------------------------------------------


def until[T](fact: Callable[[], T], seconds: float = 30) -> T:
    """Wait for a fact."""
    deadline = time.monotonic() + seconds
    while not (answer := fact()):
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.002)
    return answer


class Client:
    """Another process with a lease on the server in `folder`; it gives it back when told to `leave`."""

    all: ClassVar[list["Client"]] = []

    def __init__(self, folder: Path, script: str = CLIENT) -> None:
        self.all.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> tuple[int, str]:
        """Pid and DSN of the server, once it is there."""
        assert self.process.stdout is not None
        pid, dsn = self.process.stdout.readline().split()
        return int(pid), dsn

    def leave(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        if self.process.stdin and not self.process.stdin.closed:
            self.process.communicate(timeout=60)


def is_down(folder: Path) -> bool:
    """No process of a server, nor of initdb, is left: the log that they inherit is free."""
    if not (folder / "server.log").exists():
        return True
    with (folder / "server.log").open() as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[call-overload]
        return cursor.fetchone()[0] if cursor.description else None


def crash(pid: int, folder: Path) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_down(folder))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fake_programs(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path. Whatever was started below it is killed at the end."""
    root = Path(tempfile.mkdtemp(prefix="bt-", dir="/tmp")).resolve()
    yield root
    for client in Client.all:
        client.kill()
    Client.all.clear()
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        pid, _, args = line.strip().partition(" ")
        if str(root) in args:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for log in root.rglob("server.log"):
        until(lambda folder=log.parent: is_down(folder))
    local._reap()
    shutil.rmtree(root)


@pytest.fixture
def cold(place: Path) -> Path:
    """A data folder that does not exist yet."""
    return place / "pg"


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="bt-", dir="/tmp"))
    LocalServer.start(root / "pg").stop()
    yield root / "pg"
    shutil.rmtree(root)


@pytest.fixture
def warm(template: Path, cold: Path) -> Path:
    """A data folder that was used before, with no server running."""
    return Path(shutil.copytree(template, cold))


# --- start and stop -------------------------------------------------------------------------------


def test_a_cold_folder_becomes_a_private_durable_server(cold: Path) -> None:
    with LocalServer.start(cold) as server:
        assert ask(server.dsn, "SELECT current_database()") == "baton"
        assert ask(server.dsn, "SHOW fsync") == "on"
        assert ask(server.dsn, "SHOW full_page_writes") == "on"
        assert ask(server.dsn, "SHOW synchronous_commit") == "on"
        assert ask(server.dsn, "SHOW listen_addresses") == ""
        assert ask(server.dsn, "SHOW shared_buffers") == "64MB"
        assert ask(server.dsn, "SHOW max_connections") == "200"
        assert ask(server.dsn, "SHOW server_encoding") == "UTF8"
        assert ask(server.dsn, "SHOW data_directory") == str(cold / "data")
        assert ask(server.dsn, "SELECT current_setting('server_version_num')::int / 10000") == server.version
        socket_dir = Path(str(ask(server.dsn, "SHOW unix_socket_directories")).strip('"'))
        assert socket_dir.parent == server.data_dir == cold
        assert [mode(cold), mode(socket_dir), mode(cold / "data")] == [0o700] * 3
        assert os.getsid(server.pid) == server.pid  # out of reach of the terminal's Ctrl-C
    assert is_down(cold)
    assert {entry.name for entry in cold.iterdir()} == {"data", "lease", "lock", "server.log"}


def test_a_warm_start_finds_what_was_written(warm: Path) -> None:
    with LocalServer.start(warm) as server:
        ask(server.dsn, "CREATE TABLE kept AS SELECT 42 AS value")
    with LocalServer.start(warm) as again:
        assert again.pid != server.pid
        assert ask(again.dsn, "SELECT value FROM kept") == 42


def test_stopping_twice_is_stopping_once(warm: Path) -> None:
    server = LocalServer.start(warm)
    other = LocalServer.start(warm)
    server.stop()
    server.stop()
    assert ask(other.dsn, "SELECT 1") == 1
    other.stop()
    assert is_down(warm)


def test_starting_twice_in_one_process_gives_two_leases_on_one_server(warm: Path) -> None:
    with LocalServer.start(warm) as second:
        with LocalServer.start(warm / ".." / warm.name) as first:
            assert first.pid == second.pid
            assert first.dsn == second.dsn
        assert ask(second.dsn, "SELECT 1") == 1
    assert is_down(warm)


def test_databases_are_created_whatever_their_name(warm: Path) -> None:
    name = """odd name/%?&'"ü"""
    with LocalServer.start(warm, database=name) as server, LocalServer.start(warm, database=name) as again:
        assert ask(server.dsn, "SELECT current_database()") == name
        assert again.dsn == server.dsn
        assert ask(server.dsn_for("baton"), "SELECT current_database()") == "baton"


def test_open_connections_do_not_hold_up_the_last_stop(warm: Path) -> None:
    server = LocalServer.start(warm)
    with psycopg.connect(server.dsn) as connection:
        connection.execute("SELECT 1")
        server.stop()
        assert is_down(warm)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_the_configuration_cannot_turn_durability_off_or_tcp_on(warm: Path) -> None:
    with (warm / "data" / "postgresql.conf").open("a") as conf:
        conf.write("fsync = off\nlisten_addresses = '*'\nport = 1\nmax_connections = 33\n")
    with LocalServer.start(warm) as server:
        assert ask(server.dsn, "SHOW fsync") == "on"
        assert ask(server.dsn, "SHOW listen_addresses") == ""
        assert ask(server.dsn, "SHOW max_connections") == "33"


def test_postgres_variables_of_the_environment_change_nothing(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPORT", "PGDATA", "PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD"):
        monkeypatch.setenv(name, "12345")
    monkeypatch.setenv("LC_MESSAGES", "xx_YY.nonsense")
    with LocalServer.start(warm) as server:
        assert ask(server.dsn, "SELECT current_user::text") == "postgres"


# --- sharing --------------------------------------------------------------------------------------


def test_eight_processes_share_a_cold_folder_and_the_last_one_out_stops_it(cold: Path) -> None:
    clients = [Client(cold) for _ in range(8)]
    ready = [client.ready() for client in clients]
    assert len(set(ready)) == 1
    for client, (_, dsn) in zip(clients, ready, strict=True):
        assert ask(dsn, "SELECT 1") == 1
        client.leave()
    assert is_down(cold)


def test_eight_processes_leave_at_once_and_nothing_stays(warm: Path) -> None:
    clients = [Client(warm) for _ in range(8)]
    for client in clients:
        client.ready()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(Client.leave, clients))
    assert is_down(warm)


def test_the_end_of_a_process_gives_its_lease_back(warm: Path) -> None:
    client = Client(warm, CLIENT.replace("server.stop()", ""))
    client.ready()
    client.leave()
    assert is_down(warm)


def test_a_forked_child_cannot_stop_the_server(warm: Path) -> None:
    script = CLIENT.replace(
        "print(",
        "import os\nif (child := os.fork()) == 0: sys.exit(server.stop())\nos.waitpid(child, 0)\nprint(",
    )
    client = Client(warm, script)
    _, dsn = client.ready()
    assert ask(dsn, "SELECT 1") == 1
    client.leave()
    assert is_down(warm)


def test_programs_started_meanwhile_do_not_inherit_the_lease(warm: Path) -> None:
    with LocalServer.start(warm):
        heir = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert is_down(warm)
    finally:
        heir.kill()
        heir.wait()


# --- crashes --------------------------------------------------------------------------------------


def test_the_next_user_takes_over_the_server_of_a_killed_one(warm: Path) -> None:
    client = Client(warm)
    pid, dsn = client.ready()
    client.kill()
    assert ask(dsn, "SELECT 1") == 1
    with LocalServer.start(warm) as server:
        assert server.pid == pid
    assert is_down(warm)


def test_a_killed_server_is_started_again_for_everybody(warm: Path) -> None:
    with LocalServer.start(warm) as first:
        ask(first.dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        crash(first.pid, warm)
        with LocalServer.start(warm) as second:
            assert second.pid != first.pid

            def collected() -> bool:
                local._reap()
                return first.pid not in local._children

            # It lets go of its socket a moment before it is gone; then it is no zombie.
            until(collected)
            assert ask(second.dsn, "SELECT value FROM kept") == 42
            assert ask(first.dsn, "SELECT value FROM kept") == 42
        assert ask(first.dsn, "SELECT 1") == 1
    assert is_down(warm)


def test_user_and_server_killed_together_heal(warm: Path) -> None:
    client = Client(warm)
    pid, dsn = client.ready()
    ask(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
    client.kill()
    os.kill(pid, signal.SIGKILL)
    with LocalServer.start(warm) as server:
        assert ask(server.dsn, "SELECT value FROM kept") == 42
    assert is_down(warm)


def test_stopping_a_killed_server_does_nothing(warm: Path) -> None:
    server = LocalServer.start(warm)
    crash(server.pid, warm)
    server.stop()
    assert is_down(warm)


def test_a_pid_file_that_names_another_living_process_is_seen_through(warm: Path) -> None:
    client = Client(warm)
    pid, _ = client.ready()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        crash(pid, warm)
        for left_over in (warm / "data" / "postmaster.pid", *warm.glob("socket-*/*.lock")):
            left_over.write_text(left_over.read_text().replace(str(pid), str(stranger.pid), 1))
        with LocalServer.start(warm) as server:
            assert ask(server.dsn, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    "moment", ["data.making/base", "data.making/postgresql.conf", "data", "data/postmaster.pid"]
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_is_killed_or_interrupted_is_healed_by_the_next(
    cold: Path, moment: str, how: signal.Signals
) -> None:
    client = Client(cold, "import os; os.close(2)\n" + CLIENT)
    until(lambda: (cold / moment).exists() or client.process.poll() is not None)
    client.kill(how)
    if how is signal.SIGINT:
        until(lambda: is_down(cold))
    with LocalServer.start(cold) as server:
        assert ask(server.dsn, "SELECT current_database()") == "baton"
    assert is_down(cold)


def test_a_stop_that_is_killed_is_waited_for_by_the_next_start(warm: Path) -> None:
    client = Client(warm)
    pid, _ = client.ready()
    client.kill()
    os.kill(pid, signal.SIGINT)
    with LocalServer.start(warm) as server:
        assert server.pid != pid
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_server_whose_folder_was_deleted_is_ended_by_its_starter(warm: Path) -> None:
    server = LocalServer.start(warm)
    shutil.rmtree(warm)
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_server_whose_folder_was_deleted_cannot_harm_its_successor(template: Path, cold: Path) -> None:
    client = Client(cold)
    orphan, _ = client.ready()
    client.kill()
    shutil.rmtree(cold)
    with LocalServer.start(cold) as server:
        os.kill(orphan, signal.SIGQUIT)  # what it does to itself when it notices, within a minute
        until(lambda: not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text())
        assert server.pid != orphan
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_lease_on_a_replaced_folder_stops_nothing(template: Path, cold: Path) -> None:
    stale = LocalServer.start(Path(shutil.copytree(template, cold)))
    shutil.rmtree(cold)
    with LocalServer.start(Path(shutil.copytree(template, cold))) as server:
        stale.stop()
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_server_that_cannot_start_shows_why_at_once(warm: Path) -> None:
    conf = warm / "data" / "postgresql.conf"
    good = conf.read_text()
    conf.write_text(good + "\nno_such_setting = 1\n")
    with pytest.raises(LocalServerError, match="no_such_setting"):
        LocalServer.start(warm)
    assert is_down(warm)
    conf.write_text(good)
    LocalServer.start(warm).stop()


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["long" * 40, "a,b", """with 'quotes" +%20ü"""], ids=["long", "comma", "odd"]
)
def test_any_path_will_do(template: Path, place: Path, name: str) -> None:
    folder = Path(shutil.copytree(template, place / name))
    with LocalServer.start(folder) as server:
        assert ask(server.dsn, "SELECT current_database()") == "baton"
        socket_dir = local._socket_dir(folder)
        assert (socket_dir.parent == folder) == name.startswith("with")
        assert mode(socket_dir) == 0o700
        assert len(os.fsencode(socket_dir / ".s.PGSQL.5432")) <= 100
    assert not socket_dir.exists()


def test_a_socket_folder_planted_by_others_is_refused(template: Path, place: Path) -> None:
    folder = Path(shutil.copytree(template, place / ("long" * 40)))
    socket_dir = local._socket_dir(folder)
    socket_dir.symlink_to(place)
    try:
        with pytest.raises(LocalServerError, match=rf"{socket_dir} must be a folder of .*remove it"):
            LocalServer.start(folder)
    finally:
        socket_dir.unlink()
    socket_dir.mkdir()
    socket_dir.chmod(0o777)
    with LocalServer.start(folder):
        assert mode(socket_dir) == 0o700


def test_a_file_is_no_data_folder(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(LocalServerError, match="not a directory"):
        LocalServer.start(place / "file")
    with pytest.raises(LocalServerError, match=r"Not a directory.*BATON_DATA"):
        LocalServer.start(place / "file" / "below")


def test_a_folder_that_cannot_be_written_is_named(place: Path) -> None:
    closed = Path("/sys") if ROOT else place / "closed"
    if not ROOT:
        closed.mkdir(mode=0o500)
    with pytest.raises(LocalServerError, match=rf"{closed}.* cannot hold .*BATON_DATA"):
        LocalServer.start(closed / "baton")


@pytest.mark.parametrize("foreign", ["notes.txt", "PG_VERSION", "data/notes.txt"])
def test_a_folder_with_other_files_is_left_alone(cold: Path, foreign: str) -> None:
    (cold / foreign).parent.mkdir(parents=True)
    (cold / foreign).write_text("18")
    before = sorted(cold.rglob("*"))
    with pytest.raises(LocalServerError, match=f"contains {foreign.split('/')[0]}"):
        LocalServer.start(cold)
    assert sorted(cold.rglob("*")) == before


def test_an_empty_folder_with_the_usual_lint_will_do(cold: Path) -> None:
    cold.mkdir()
    (cold / ".gitignore").write_text("*")
    LocalServer.start(cold).stop()
    assert mode(cold) & 0o077 == 0o055  # as it was


def test_data_of_another_major_version_is_refused_with_the_way_out(warm: Path) -> None:
    (warm / "data" / "PG_VERSION").write_text("13\n")
    programs = _pgbin.find_programs()
    with pytest.raises(LocalServerError) as refused:
        LocalServer.start(warm)
    for part in (str(warm), "PostgreSQL 13", f"PostgreSQL {programs.major}", "BATON_PG_BIN", "pg_dump"):
        assert part in str(refused.value)


def test_a_running_server_can_be_joined_without_any_programs(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalServer.start(warm) as server:
        monkeypatch.setenv("BATON_PG_BIN", str(warm))
        with LocalServer.start(warm) as joined:
            assert joined.pid == server.pid


def test_the_default_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_DATA", "/somewhere/else")
    assert default_data_dir() == Path("/somewhere/else")
    monkeypatch.delenv("BATON_DATA")
    assert default_data_dir().parts[-2:] == ("baton", "postgres")


def test_importing_it_imports_neither_driver_nor_wheel() -> None:
    script = "import sys, baton.local, baton._pgbin as b; b.find_programs(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"psycopg", "platformdirs", *_pgbin._WHEELS} & set(loaded.stdout.split())


# --- the programs ---------------------------------------------------------------------------------


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATON_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(_pgbin, "_WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(_pgbin, "_INSTALLS", ())


def test_the_named_programs_come_before_all_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PG_BIN", str(fake_programs(place / "bin", "16.2")))
    assert _pgbin.find_programs() == _pgbin.Programs(place / "bin", 16)
    monkeypatch.setenv("BATON_PG_BIN", str(fake_programs(place / "old", "13.22 (Debian 13.22-1)")))
    with pytest.raises(LocalServerError, match=r"is PostgreSQL 13; .* PostgreSQL 14 or newer"):
        _pgbin.find_programs()
    monkeypatch.setenv("BATON_PG_BIN", str(place / "nothing"))
    with pytest.raises(LocalServerError, match="no working initdb and postgres"):
        _pgbin.find_programs()


def test_a_wheel_comes_before_the_path_and_its_newest_server_first(
    place: Path, nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = place / "some_wheel"
    newest = fake_programs(package / "pginstall18" / "bin", "18.4")
    fake_programs(package / "pginstall" / "bin", "16.14")
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(_pgbin, "_WHEELS", ("no_such_wheel", "some_wheel"))
    monkeypatch.setenv("PATH", str(fake_programs(place / "path", "17.1")))
    assert _pgbin.find_programs() == _pgbin.Programs(newest, 18)


def test_initdb_on_the_path_is_followed_to_its_folder(
    place: Path, nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake_programs(place / "lib" / "17" / "bin", "17.1")
    (place / "path").mkdir()
    (place / "path" / "initdb").symlink_to(real / "initdb")
    monkeypatch.setenv("PATH", str(place / "path"))
    assert _pgbin.find_programs() == _pgbin.Programs(real, 17)


def test_pg_config_and_then_the_newest_system_install_are_asked(
    place: Path, nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("9", "13", "14", "16"):
        fake_programs(place / "lib" / version / "bin", f"{version}.1")
    monkeypatch.setattr(_pgbin, "_INSTALLS", ((str(place / "lib"), "*/bin"),))
    assert _pgbin.find_programs().major == 16
    (place / "path").mkdir()
    (place / "path" / "pg_config").write_text(f"#!/bin/sh\necho '{place}/lib/14/bin'\n")
    (place / "path" / "pg_config").chmod(0o755)
    monkeypatch.setenv("PATH", str(place / "path"))
    assert _pgbin.find_programs().major == 14


def test_without_programs_the_message_has_the_command(
    place: Path, nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingExtra, match=r'pip install "oban-baton\[local\]"'):
        LocalServer.start(place / "pg")
    fake_programs(place / "lib" / "12" / "bin", "12.3")
    monkeypatch.setattr(_pgbin, "_INSTALLS", ((str(place / "lib"), "*/bin"),))
    with pytest.raises(MissingExtra, match="12/bin is 12"):
        _pgbin.find_programs()


# --- as whom --------------------------------------------------------------------------------------

NOBODY = pwd.getpwnam("nobody")
# An ordinary user runs the server as themselves, whatever BATON_PG_AS says.
AS_NOBODY = NOBODY.pw_uid if ROOT else os.geteuid()


def server_uid(server: LocalServer) -> int:
    """Whom the kernel takes the server for."""
    asked = subprocess.run(
        ["ps", "-o", "uid=", "-p", str(server.pid)], capture_output=True, text=True, check=True
    )
    return int(asked.stdout)


def test_a_private_home_stays_private_and_the_files_stay_ours(place: Path) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in (home, *home.parents)]
    with LocalServer.start(home / "project" / "pg") as server:
        assert server_uid(server) == os.geteuid()
        assert {path.lstat().st_uid for path in server.data_dir.rglob("*")} == {os.geteuid()}
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in (home, *home.parents)] == before


def test_root_may_choose_another_user_and_the_folder_stays_theirs(
    warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm.parent.chmod(0o755)
    monkeypatch.setenv("BATON_PG_AS", "nobody")
    with LocalServer.start(warm) as server:
        assert server_uid(server) == AS_NOBODY
        assert {path.lstat().st_uid for path in (warm, *warm.rglob("*"))} == {AS_NOBODY}
    monkeypatch.delenv("BATON_PG_AS")
    with LocalServer.start(warm) as server:
        assert server_uid(server) == AS_NOBODY
    assert is_down(warm)


def test_where_namespaces_are_forbidden_root_runs_it_as_a_system_user(
    cold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold.parent.chmod(0o755)
    refusing = _pgbin.Account("root", 0, 0, ("/bin/sh", "-c", f"exit {_pgbin._FORBIDDEN}"))
    monkeypatch.setattr(_pgbin, "_renamed", lambda uid, gid: iter([refusing]))
    with LocalServer.start(cold) as server:
        assert server_uid(server) == cold.stat().st_uid != 0
        assert ask(server.dsn, "SELECT 1") == 1


def test_programs_out_of_the_users_reach_are_copied_once(
    warm: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.chmod(0o755)
    install = _pgbin.find_programs().bin.parent
    closed = place / "closed"
    (closed / install.parent.name).mkdir(mode=0o700, parents=True)
    closed.chmod(0o700)
    (closed / install.parent.name / install.name).symlink_to(install)
    (closed / f"{install.parent.name}.libs").symlink_to(install.parent.parent / f"{install.parent.name}.libs")
    monkeypatch.setenv("BATON_PG_BIN", str(closed / install.parent.name / install.name / "bin"))
    monkeypatch.setenv("BATON_PG_AS", "nobody")
    copies = []
    for _ in range(2):
        with LocalServer.start(warm) as server:
            assert ask(server.dsn, "SELECT 1") == 1
            copies.append([(path, path.stat().st_ino) for path in warm.glob("programs-*")])
    assert copies[0] == copies[1]
    assert len(copies[0]) == (1 if ROOT else 0)
    assert mode(closed) == 0o700


def test_a_folder_the_chosen_user_cannot_reach_is_refused_with_the_way_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_PG_AS", "nobody")
    folder = place / "project" / "pg"
    if ROOT:
        with pytest.raises(LocalServerError, match=rf"cannot enter {place}, .*BATON_DATA"):
            LocalServer.start(folder)
        assert not (folder / "data").exists()
    else:
        LocalServer.start(folder).stop()
    assert mode(place) == 0o700


def test_a_user_who_does_not_exist_is_named(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PG_AS", "no-such-user")
    if ROOT:
        with pytest.raises(LocalServerError, match="'no-such-user'"):
            LocalServer.start(warm)
    else:
        LocalServer.start(warm).stop()


def test_a_lock_held_for_ever_ends_in_a_message(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PATIENCE", 0.05)
    with (warm / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LocalServerError, match="another process has held"):
            LocalServer.start(warm)
    with (warm / "server.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(LocalServerError, match=r"has not answered for .*The end of its server.log"):
            LocalServer.start(warm)
