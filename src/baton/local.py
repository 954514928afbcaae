"""A real PostgreSQL of your own, for development, demos and tests. Production passes a DSN.

A data folder holds `data/` (PostgreSQL's own), `server.log`, `lock` and `lease`, and any number of
processes share it. What is true is read off the kernel, never off a file that a crash leaves behind:

- *Who uses the server*: each user holds a shared flock on `lease`. Whoever can turn theirs into an
  exclusive one was the last, and stops the server. `lock` is held meanwhile, and while starting.
- *Whether a server lives*: `server.log` is its standard output and carries an exclusive flock, which
  every process of the server (or of initdb) inherits. It is free when the last of them has ended.
- *Whether it is ready*: a connection succeeds. Its pid is that of the socket's listener.

So `kill -9` of a user, of the server or of both heals at the next start, and so does an interrupt half
way. A user who was killed stops nothing: the server stays until another one starts and ends. Data is as
durable as PostgreSQL makes it (fsync cannot be turned off in its configuration); only the creation of a
folder, before anything is in it, is not synced.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import quote

from ._pgbin import Account, Programs, choose_account, find_programs, give
from .errors import LocalServerError, MissingExtra

if TYPE_CHECKING:
    from psycopg import Connection

_PATIENCE = 60.0  # seconds; a crash recovery takes its time
_POLL = 0.005
_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET = 100  # bytes; the system's own limit is 107 on Linux and 103 on macOS
_LONGEST_LOG = 10_000_000
_OURS = {"lock", "lease", "server.log", "data.making"}
_HARMLESS = {".gitignore", ".gitkeep", ".DS_Store", "lost+found"}  # in a folder that is otherwise empty

_SETTINGS = """
# Written once by Baton for a server on a developer's machine; change what you like.
shared_buffers = 64MB
max_connections = 200
log_lock_waits = on
log_line_prefix = '%m [%p] %q%a '
"""
# What we rely on goes on the command line, where the file cannot change it.
_FIXED = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "logging_collector": "off",
    "log_destination": "stderr",
    "fsync": "on",
    "full_page_writes": "on",
}


def default_data_dir() -> Path:
    """`$BATON_DATA`, else `postgres` in the user's data folder for Baton. Nothing is created.

    Raises:
        MissingExtra: `BATON_DATA` is not set and platformdirs is not installed.
    """
    if chosen := os.environ.get("BATON_DATA"):
        return Path(chosen)
    try:
        from platformdirs import user_data_path
    except ImportError as error:
        raise MissingExtra(
            "the local server needs platformdirs to choose its folder. "
            'Install it with: pip install "oban-baton[local]", or set BATON_DATA'
        ) from error
    return user_data_path("baton", appauthor=False) / "postgres"


class LocalServer:
    """A lease on a real PostgreSQL server in `data_dir`, shared with other processes.

    It lasts until `stop`, the end of a `with` block or the end of the process; the last lease stops the
    server. A process that dies without its exit handlers (`kill -9`, an unhandled SIGTERM) loses its lease
    but stops nothing; the next one to start and end does. A forked child has no lease: it starts its own.

    Attributes:
        dsn: Connection URL of the database, over the unix socket.
        data_dir: The folder, absolute and with links resolved.
        version: PostgreSQL's major version.
        pid: The server's process, as it was at `start`; 0 when it belongs to another container.
    """

    dsn: str
    data_dir: Path
    version: int
    pid: int

    def __init__(self, data_dir: Path, lease: BinaryIO, database: str) -> None:
        """Use `start`: this wants the lease taken and the server running."""
        self.data_dir = data_dir
        self.version = _data_version(data_dir)
        self.pid = _listener(data_dir) or 0
        self._socket_dir = _socket_dir(data_dir)
        self.dsn = self.dsn_for(database)
        self._lease: BinaryIO | None = lease
        self._process = os.getpid()
        self._stopping = threading.Lock()

    @classmethod
    def start(cls, data_dir: Path | str | None = None, *, database: str = "baton") -> Self:
        """Take a lease. The server is started, and folder and database are created, where missing.

        Blocks: about 1 s the first time, 50 ms when the server must be started, 5 ms when it runs. Starting
        twice, in one process or in many, gives two leases on one server. After a crash of anybody involved
        it waits for the rest of the old server to end, and PostgreSQL recovers. Interrupted, it leaves
        nothing that the next start does not heal.

        Args:
            data_dir: `default_data_dir()` if not given. Missing, empty, or made by an earlier start.
            database: Its name.

        Raises:
            LocalServerError: the folder cannot be used, or holds data of another major version, or the
                server did not start, in which case the message shows the end of its log.
            MissingExtra: no PostgreSQL programs were found.
        """
        root = default_data_dir() if data_dir is None else Path(data_dir)
        try:
            root = _prepared(root)
            with _starting_or_stopping(root):
                lease = os.fdopen(_opened(root, "lease"), "rb")
                try:
                    fcntl.flock(lease, fcntl.LOCK_SH)
                    with _running(root) as connection:
                        _create_database(connection, database)
                    server = cls(root, lease, database)
                except BaseException:
                    with contextlib.suppress(LocalServerError):  # the first failure is the one to show
                        _give_back(root, lease)
                    raise
        except OSError as error:
            raise LocalServerError(
                f"{root} cannot hold a local PostgreSQL: {error}; "
                "name another folder as data_dir or in BATON_DATA"
            ) from error
        atexit.register(server.stop)
        return server

    def dsn_for(self, database: str) -> str:
        """Connection URL of another database on this server. It is not created."""
        host = quote(os.fsencode(self._socket_dir), safe="/")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port=5432"

    def stop(self) -> None:
        """Give the lease back. The last one cuts all connections, stops the server and waits for its end.

        Nothing happens the second time, nor in a forked child. If the folder was deleted or replaced in the
        meantime, whatever is there now is left alone.

        Raises:
            LocalServerError: the server did not end within a minute. The lease is given back nevertheless.
        """
        if os.getpid() != self._process:
            return
        with self._stopping:
            lease, self._lease = self._lease, None
        if lease is None:
            return
        atexit.unregister(self.stop)
        if not _is_lease_of(self.data_dir, lease):
            lease.close()
            _end_child(self.pid)
            return
        with lease, _starting_or_stopping(self.data_dir):
            _give_back(self.data_dir, lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<LocalServer {self.data_dir} PostgreSQL {self.version}, pid {self.pid}>"


# --- the folder -----------------------------------------------------------------------------------


def _prepared(path: Path) -> Path:
    root = path.expanduser().resolve()
    if root.exists() and not root.is_dir():
        raise LocalServerError(f"{root} is not a directory; name another as data_dir or in BATON_DATA")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = root / "data"
    uid = os.geteuid()
    if (data / "PG_VERSION").is_file():
        if uid not in (0, owner := data.stat().st_uid):
            raise LocalServerError(f"{data} belongs to user id {owner}, you are {uid}; name another data_dir")
        return root
    names = {entry.name for entry in root.iterdir() if not entry.name.startswith(("programs-", "socket-"))}
    if foreign := sorted(names - _OURS - _HARMLESS):
        raise LocalServerError(
            f"{root} is none of Baton's: it contains {', '.join(foreign[:5])} and no data/PG_VERSION. "
            "Name an empty or a new folder as data_dir or in BATON_DATA"
        )
    return root


def _opened(root: Path, name: str) -> int:
    """Open a file of ours, created when missing, which belongs to the owner of the folder."""
    fd = os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:  # through sudo, say: the owner must be able to open it next time
        owner = root.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def _data_version(root: Path) -> int:
    return int((root / "data" / "PG_VERSION").read_text().split(".")[0])


def _socket_dir(root: Path) -> Path:
    """Where the server of this very data listens: in the folder, or in /tmp if that path is too long.

    A server whose folder is deleted notices within a minute, and then removes its socket. The inode in the
    name, which it keeps in use until then, sees to it that this is not the socket of a folder made anew.
    """
    data = (root / "data").stat()
    inside = root / f"socket-{data.st_ino:x}"
    # libpq takes a comma for the end of a host.
    if len(os.fsencode(inside / _SOCKET)) <= _LONGEST_SOCKET and "," not in str(root):
        return inside
    uid = os.geteuid() or root.stat().st_uid
    # Not $TMPDIR, which may differ between the processes that are to meet here.
    return Path("/tmp") / f"baton-{uid}-{data.st_dev:x}-{data.st_ino:x}"  # noqa: S108


def _make_socket_dir(root: Path, account: Account) -> Path:
    place = _socket_dir(root)
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(place, account.uid, account.gid)
    if place.is_symlink() or not place.is_dir() or place.stat().st_uid != account.uid:
        raise LocalServerError(
            f"{place} must be a folder of {account.name}, for the server's socket; remove it"
        )
    place.chmod(0o700)
    # No server lives, so these are left over; the pid in them may be anybody's by now.
    for name in (_SOCKET, f"{_SOCKET}.lock"):
        (place / name).unlink(missing_ok=True)
    return place


# --- facts ----------------------------------------------------------------------------------------


def _until[T](fact: Callable[[], T], problem: str, *, log: int | None = None, since: int = 0) -> T:
    """Ask until the answer is true, for a minute; then LocalServerError with `problem` and the log's end."""
    deadline = time.monotonic() + _PATIENCE
    while not (answer := fact()):
        if time.monotonic() > deadline:
            raise _failure(f"{problem} for {_PATIENCE:.0f} s", log, since)
        time.sleep(_POLL)
    return answer


def _failure(problem: str, log: int | None, since: int) -> LocalServerError:
    if log is None:
        return LocalServerError(problem)
    size = os.fstat(log).st_size
    lines = os.pread(log, 16_384, max(since, size - 16_384)).decode(errors="replace").splitlines()
    shown = "\n".join(f"    {line}" for line in lines[-10:]) or "    (nothing)"
    return LocalServerError(f"{problem}. The end of its server.log:\n{shown}")


def _flocked(fd: int) -> bool:
    """Try to take the exclusive lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _starting_or_stopping(root: Path) -> Iterator[None]:
    fd = _opened(root, "lock")
    try:
        _until(lambda: _flocked(fd), f"another process has held {root / 'lock'}, starting or stopping,")
        yield
    finally:
        os.close(fd)


def _is_lease_of(root: Path, lease: BinaryIO) -> bool:
    try:
        return os.path.samestat((root / "lease").stat(), os.fstat(lease.fileno()))
    except FileNotFoundError:
        return False


def _listener(root: Path) -> int | None:
    """Pid of the server, from its socket; None when nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(_socket_dir(root) / _SOCKET))
            if sys.platform == "darwin":
                return probe.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _connected(root: Path) -> "Connection | None":
    """A connection to the server, None while there is none to be had."""
    if _listener(root) is None:
        return None
    import psycopg

    host = str(_socket_dir(root))
    try:
        return psycopg.connect(
            host=host, port=5432, user="postgres", dbname="postgres", connect_timeout=5, autocommit=True
        )
    except psycopg.OperationalError:
        return None


# --- start, under `lock` --------------------------------------------------------------------------


class _Child(subprocess.Popen[bytes]):
    """A server that we started. To leave it to other users at exit is no mistake to warn about."""

    def __del__(self) -> None:
        pass


_children: dict[int, _Child] = {}


def _reap() -> None:
    """Collect servers of ours that ended, whoever stopped or killed them; else they stay as zombies."""
    for pid, child in tuple(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


def _running(root: Path) -> "Connection":
    """A connection to the server, which is started if there is none."""
    _reap()
    log = _opened(root, "server.log")
    try:
        # A locked log is a living server, but it may be on its way up (its starter was killed) or down.
        def settled() -> "bool | Connection | None":
            return _flocked(log) or _connected(root)

        found = _until(settled, f"a server in {root} (of another container?) has not answered", log=log)
        return _started(root, log) if not found or found is True else found
    finally:
        os.close(log)


def _started(root: Path, log: int) -> "Connection":
    if os.fstat(log).st_size > _LONGEST_LOG:
        os.ftruncate(log, 0)
    programs = find_programs()
    data = root / "data"
    if data.exists() and (version := _data_version(root)) != programs.major:
        raise LocalServerError(
            f"{data} was made by PostgreSQL {version}, and PostgreSQL {programs.major} in {programs.bin} "
            f"cannot read it. Set BATON_PG_BIN to the bin folder of a PostgreSQL {version}, or name another "
            f"data_dir (or BATON_DATA), or move the data: pg_dump with {version}, restore into a new folder"
        )
    account, programs = choose_account(root, programs)
    if root.stat().st_uid != account.uid and os.geteuid() == 0:
        give(root, account)
    if not data.exists():
        _create_data(root, log, programs, account)
    settings = {**_FIXED, "unix_socket_directories": _quoted(_make_socket_dir(root, account))}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    since = os.fstat(log).st_size
    child = _Child(
        account.command(programs.bin / "postgres", "-D", str(data), *options),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=_environment(PG_GRANDPARENT_PID=_stale_pid(data)),
        start_new_session=True,  # Ctrl-C in our terminal is not meant for the server
    )
    _children[child.pid] = child

    def ready() -> "Connection | None":
        if child.poll() is not None:
            raise _failure(f"PostgreSQL did not start in {root} (exit {child.returncode})", log, since)
        return _connected(root)

    connection = _until(ready, f"PostgreSQL in {root} has not been ready", log=log, since=since)
    assert connection is not None
    return connection


def _create_data(root: Path, log: int, programs: Programs, account: Account) -> None:
    making = root / "data.making"  # `data` appears when it is complete
    shutil.rmtree(making, ignore_errors=True)
    since = os.fstat(log).st_size
    options = ("-U", "postgres", "--locale=C", "--encoding=UTF8", "--auth=trust", "--no-sync")
    initdb = subprocess.run(
        account.command(programs.bin / "initdb", "-D", str(making), *options),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=_environment(),
        start_new_session=True,
        check=False,
    )
    if initdb.returncode != 0:
        raise _failure(f"initdb failed in {root} (exit {initdb.returncode})", log, since)
    conf = os.open(making / "postgresql.conf", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(conf, "w") as file:  # noqa: PTH123 - a descriptor, for O_NOFOLLOW
        file.write(_SETTINGS)
    making.rename(root / "data")


def _environment(**extra: str) -> dict[str, str]:
    """Ours without PGPORT, PGDATA and the like, which the programs would obey; messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C", **extra}


def _stale_pid(data: Path) -> str:
    """The pid in a left-over postmaster.pid, so that PostgreSQL ignores whatever process has it now.

    The log was free, so it is no server of ours; shared memory still in use PostgreSQL notices by itself.
    """
    try:
        return str(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
    except (FileNotFoundError, ValueError):
        return ""


def _quoted(path: Path) -> str:
    return '"' + str(path).replace('"', '""') + '"'


def _create_database(connection: "Connection", name: str) -> None:
    from psycopg import errors, sql

    if connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).rowcount == 0:
        # template0, because a connection to template1 would forbid the copy.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        with contextlib.suppress(errors.DuplicateDatabase):
            connection.execute(create)


# --- stop, under `lock` ---------------------------------------------------------------------------


def _give_back(root: Path, lease: BinaryIO) -> None:
    with lease:  # closed before `lock` is released, or the next to stop would take us for another user
        if _flocked(lease.fileno()):
            _shut_down(root)


def _shut_down(root: Path) -> None:
    log = _opened(root, "server.log")
    asked: int | None = None

    def down() -> bool:
        nonlocal asked
        _reap()
        if _flocked(log):
            return True
        pid = _listener(root)
        if pid and pid != asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)  # a fast stop
            asked = pid
        return pid == 0  # it belongs to another container: out of our reach

    try:
        _until(down, f"the server in {root} was told to stop and has been running", log=log)
    finally:
        os.close(log)
    _reap()
    with contextlib.suppress(OSError):  # initdb may have been interrupted, or the server be another's
        _socket_dir(root).rmdir()


def _end_child(pid: int) -> None:
    """End a server of ours whose data was deleted: there is nothing left to write, nor where to."""
    if child := _children.get(pid):
        child.send_signal(signal.SIGQUIT)
        child.wait(_PATIENCE)
        _reap()
