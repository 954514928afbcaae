"""What `baton.doctor` looks for, and what it says about what it finds: a table of checks, without a database.

A check is a statement that returns a row for each thing that is wrong, and the words for such a row. Where words alone will
not do, a function judges the rows.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from baton import _store


class Level(StrEnum):
    """How bad it is: nothing is wrong; something will be or is slow; something does not work or may be lost."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check, as in the documentation.
        level: `ok`, `warning` or `error`.
        found: What was found, with numbers and names.
        remedy: A command or a setting to type, or what to do; None where nothing is to be done.
    """

    check: str
    level: Level
    found: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is worth a word; seconds unless the name says otherwise."""

    idle: float = 60.0
    busy: float = 1800.0
    strong: float = 2.0
    weak: float = 300.0
    transactions: int = 5_000_000
    dead_rows: int = 10_000
    deadlocks_a_day: float = 1.0
    connections_share: float = 0.8
    notify_share: float = 0.01
    clock: float = 2.0
    owed: float = 10.0
    tries: int = 3
    late: float = 300.0
    overdue: float = 30.0
    cancelling: float = 300.0
    paused: float = 86_400.0
    live: float = 60.0
    lease_left: float = 2.0
    waiting: float = 30.0
    lost: float = 180.0


_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of the connection before anything is asked."""

    prefix: str
    role: str
    options: str
    server_version: int
    session: int

    def command(self, name: str) -> str:
        """A command of Baton's that is about this database."""
        prefix = "" if self.prefix == "public" else f" --prefix {self.prefix}"
        return f"baton {name}{prefix}{self.options and ' '}{self.options}"

    def words(self) -> dict[str, str]:
        """What texts may name."""
        return {
            "prefix": self.prefix,
            "role": self.role if _PLAIN.fullmatch(self.role) else '"' + self.role.replace('"', '""') + '"',
            "migrate": self.command("migrate"),
        }


Row = Mapping[str, Any]
Judge = Callable[[Sequence[Row], Context, Limits], Iterator[tuple[Level, str, str]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at.

    Attributes:
        name: What it is called.
        asks: What must be so, in words for when it is.
        statement: The file in `sql`.
        level: Of what it finds, unless a row has a `level` of its own.
        found: Text for a row, with its columns in braces.
        remedy: What to do about it, likewise.
        judge: Instead of the texts: makes findings of the rows.
        seconds: How long the statement may take.
        needs_schema: It reads tables, which must be there.
        separately: How often it is asked, each time in a transaction of its own.
    """

    name: str
    asks: str
    statement: str
    level: Level = Level.ERROR
    found: str = ""
    remedy: str = ""
    judge: Judge | None = None
    seconds: float = 5.0
    needs_schema: bool = True
    separately: int = 1


def params(limits: Limits) -> dict[str, Any]:
    """Parameters by name, for every statement."""
    return {
        "tables": [*OURS, *OBAN],
        "ours": list(OURS),
        "oban": list(OBAN),
        "durable": [*OURS, "oban_jobs"],
        "indexes": indexes(),
        "idle": limits.idle,
        "busy": limits.busy,
        "strong": limits.strong,
        "weak": limits.weak,
        "transactions": limits.transactions,
        "dead": limits.dead_rows,
        "a_day": limits.deadlocks_a_day,
        "tries": limits.tries,
        "late": limits.late,
        "live": limits.live,
        "remaining": limits.lease_left,
        "waiting": limits.waiting,
    }


# A parameter that means another thing in each statement that has it.
OWN_PARAMS: Mapping[str, Callable[[Limits], dict[str, Any]]] = {
    "connections": lambda limits: {"share": limits.connections_share},
    "notify-queue": lambda limits: {"share": limits.notify_share},
    "owed": lambda limits: {"seconds": limits.owed},
    "deadlines": lambda limits: {"seconds": limits.overdue},
    "cancelling": lambda limits: {"seconds": limits.cancelling},
    "paused-runs": lambda limits: {"seconds": limits.paused},
    "lost-jobs": lambda limits: {"seconds": limits.lost},
}

OBAN = ("oban_jobs", "oban_leaders", "oban_producers")
_CREATED = re.compile(
    r"^CREATE (?:UNIQUE )?(TABLE|INDEX) (?:IF NOT EXISTS )?(?:/\* schema \*/)?(\w+)", re.MULTILINE
)


def _created(kind: str) -> tuple[str, ...]:
    """Names of what the migrations create."""
    return tuple(
        found[2]
        for migration in _store.migrations()
        for found in _CREATED.finditer(migration.text)
        if found[1] == kind
    )


OURS = (*_created("TABLE"), "workflow_migrations")


def indexes() -> list[str]:
    """Those of the migrations, and Oban's that every claim uses."""
    return [*_created("INDEX"), "oban_jobs_state_queue_priority_scheduled_at_id_index"]


def findings(check: Check, rows: Sequence[Row], context: Context, limits: Limits) -> list[Finding]:
    """What a check says about the rows of its statement; that all is well, if there is nothing to say."""
    judged = check.judge or _in_words(check)
    found = [
        Finding(check.name, level, text, remedy or None)
        for level, text, remedy in judged(rows, context, limits)
    ]
    return found or [Finding(check.name, Level.OK, check.asks)]


def unknown(check: str, error: str, context: Context) -> Finding:
    """A check that could not look."""
    if "permission denied" in error:
        remedy = f"{context.command('migrate')} --grant {context.role}, as the owner of the tables"
    elif "during recovery" in error:
        remedy = "ask the primary: a standby does not have the tables of leaders and producers"
    elif "timeout" in error:
        remedy = "the database is busy, or somebody holds a lock; see the checks `locks` and `transactions`, and try again"
    else:
        remedy = f"{context.command('migrate')}, and try again"
    return Finding(check, Level.WARNING, f"this could not be looked at: {error}", remedy)


def _in_words(check: Check) -> Judge:
    def judge(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
        for row in rows:
            words = {**context.words(), **row}
            yield (
                Level(row.get("level", check.level)),
                check.found.format(**words),
                check.remedy.format(**words),
            )

    return judge


# What a judge says beyond the words of a table.


def _version(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    if context.server_version < 140000:
        version = f"{context.server_version // 10000}.{context.server_version % 10000}"
        yield Level.ERROR, f"the server is PostgreSQL {version}", "upgrade it to PostgreSQL 14 or newer"


def _pooler(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    sessions = {row["pid"] for row in rows}
    remedy = "give Baton a connection string of the server itself, or of a pool in session mode"
    if len(sessions) > 1:
        yield (
            Level.ERROR,
            f"statements of one connection were answered by {len(sessions)} sessions of the server: a pooler in transaction "
            "mode stands in between, through which no notification arrives and prepared statements fail",
            remedy,
        )
    elif context.session not in sessions:
        yield (
            Level.WARNING,
            "a pooler stands between here and the server; in transaction mode, no notification would arrive and prepared "
            "statements would fail",
            remedy,
        )


def _clock(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    # The database's time lies between the moments before and after. What they leave open does not count.
    early = min((row["asked_at"] - row["now"]).total_seconds() for row in rows)
    late = max((row["answered_at"] - row["now"]).total_seconds() for row in rows)
    offset = early if early > 0 else late if late < 0 else 0.0
    if abs(offset) > limits.clock:
        yield (
            Level.WARNING,
            f"the clock of this machine is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} the database's; steps "
            "that are scheduled from here start that much too late or too early",
            "timedatectl set-ntp true, on both machines",
        )


def _functions(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    wanted = {name: _body(_store.render(text, context.prefix)) for name, text in _store.functions()}
    present = [row["name"] for row in rows]
    forget = f"UPDATE {context.prefix}.workflow_migrations SET name = '' WHERE version = 0"
    remedy = f"{forget}; then {context.command('migrate')}, which renews them"
    missing = sorted(wanted.keys() - present)
    if missing:
        yield Level.ERROR, f"functions are missing: {_few(missing)}", remedy
    twice = sorted({name for name in present if present.count(name) > 1})
    if twice:
        yield Level.ERROR, f"functions are there more than once: {_few(twice)}", remedy
    other = sorted(
        row["name"] for row in rows if row["name"] not in twice and row["source"] != wanted[row["name"]]
    )
    if other:
        yield (
            Level.WARNING,
            f"{len(other)} functions are not those of this version: {_few(other)}; another build of it made them, or somebody "
            "changed them",
            remedy,
        )


def _body(text: str) -> str:
    return text.split("$$")[1]


def _rights_of_others(
    rows: Sequence[Row], context: Context, limits: Limits
) -> Iterator[tuple[Level, str, str]]:
    for row in rows:
        if row["everybody"]:
            yield (
                Level.ERROR if row["definer"] else Level.WARNING,
                f"everybody may call {row['signature']}"
                + (", which has its owner's rights" if row["definer"] else ""),
                f"REVOKE ALL ON FUNCTION {row['signature']} FROM PUBLIC",
            )


def _definers(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    triggers = [row for row in rows if row["name"].startswith("on_jobs_")]
    for row in triggers:
        if not row["definer"]:
            yield (
                Level.ERROR,
                f"{row['signature']} has its caller's rights: whoever may write a job but none of Baton's tables cannot",
                f"ALTER FUNCTION {row['signature']} SECURITY DEFINER",
            )
    for row in rows:
        if row["definer"] and row["search_path"] != "search_path=pg_catalog, pg_temp":
            yield (
                Level.ERROR,
                f"{row['signature']} has its owner's rights and finds tables by its caller's search path",
                f"ALTER FUNCTION {row['signature']} SET search_path = pg_catalog, pg_temp",
            )


def _rights(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    if rows:
        yield (
            Level.ERROR,
            f"role {context.role} may not work here; it lacks {_few([row['what'] for row in rows])}",
            f"{context.command('migrate')} --grant {context.role}, as the owner of the tables",
        )


def _audit(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    for row in rows:
        where = f"run {row['run']}" + (f", step {row['step']}" if row["step"] else "")
        yield (
            Level.ERROR,
            f"{row['count']} times, {row['invariant']} is not as it must be, for instance in {where}: it {row['detail']}",
            "let a worker run for two minutes, which repairs what changes of others left behind; report what is still there "
            "then, with this text",
        )


def _unserved(rows: Sequence[Row], context: Context, limits: Limits) -> Iterator[tuple[Level, str, str]]:
    for row in rows:
        count = "1,000 or more" if row["count"] >= 1000 else row["count"]
        waiting = f"{count} jobs wait in queue {row['queue']}, the first for {row['seconds']} s, and "
        if row["paused"]:
            yield (
                Level.WARNING,
                f"{waiting}it is paused on all of its workers ({row['paused']})",
                f"await baton.oban.resume_queue({row['queue']!r})",
            )
        else:
            yield (
                Level.ERROR,
                f"{waiting}no worker serves it",
                f"baton start --app MODULE:ATTRIBUTE --queue {shlex.quote(row['queue'])}=10",
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"])


# The order is that of an examination: the way to the server, the server, the tables, what is in them, who works.
CHECKS: tuple[Check, ...] = (
    Check(
        "server-version",
        "the server is PostgreSQL 14 or newer",
        "doctor/read_session",
        judge=_version,
        needs_schema=False,
    ),
    Check(
        "pooler",
        "no pooler stands between here and the server",
        "doctor/read_session",
        judge=_pooler,
        needs_schema=False,
        separately=4,
    ),
    Check(
        "clock",
        "this machine and the database agree on the time",
        "doctor/read_session",
        judge=_clock,
        needs_schema=False,
        separately=3,
    ),
    Check(
        "read-only",
        "the server takes writes",
        "doctor/read_read_only",
        found="nothing can be written: {reason}",
        remedy="give Baton the connection string of the primary, or ALTER ROLE {role} SET default_transaction_read_only = off",
        needs_schema=False,
    ),
    Check(
        "encoding",
        "the database holds every text",
        "doctor/read_encoding",
        found="the database is encoded in {encoding}, which cannot hold every text: such a result fails its step",
        remedy="dump it, CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and restore",
        needs_schema=False,
    ),
    Check(
        "durability",
        "what is committed survives a crash of the server",
        "doctor/read_durability",
        found="{name} is off: a crash of the server may lose or damage what was committed",
        remedy="ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf(); and look whether a role or database sets it otherwise",
        needs_schema=False,
    ),
    Check(
        "isolation",
        "transactions are READ COMMITTED unless they say otherwise",
        "doctor/read_isolation",
        level=Level.WARNING,
        found="transactions are {isolation} unless they say otherwise, and statements of Oban's then fail now and then",
        remedy="ALTER ROLE {role} SET default_transaction_isolation = 'read committed'",
        needs_schema=False,
    ),
    Check(
        "replication-role",
        "triggers fire for sessions of this role",
        "doctor/read_replication_role",
        found="session_replication_role is {setting}: no trigger fires, and runs do not follow their jobs",
        remedy="ALTER ROLE {role} RESET session_replication_role, and the same for the database",
        needs_schema=False,
    ),
    Check(
        "search-path",
        "Oban finds its tables",
        "doctor/read_search_path",
        found="with the search path {search_path}, Oban finds the table {found} instead of {prefix}.oban_jobs",
        remedy="ALTER ROLE {role} SET search_path = public",
    ),
    Check(
        "connections",
        "there is room for more connections",
        "doctor/read_connections",
        found="{whose} has {used} of {allowed} connections in use",
        remedy="lower pool_size, stop what idles (SELECT * FROM pg_stat_activity), or raise the limit",
        needs_schema=False,
    ),
    Check(
        "transactions",
        "no transaction has been open for long",
        "doctor/read_transactions",
        level=Level.WARNING,
        found="session {pid} of {usename} ({application}) has been {state} in one transaction for {seconds} s",
        remedy="SELECT pg_terminate_backend({pid}); against the next one: "
        "ALTER ROLE {usename} SET idle_in_transaction_session_timeout = '1min'",
        needs_schema=False,
    ),
    Check(
        "old-snapshots",
        "vacuum can remove dead rows",
        "doctor/read_old_snapshots",
        level=Level.WARNING,
        found="{what} keeps vacuum from removing what died in the last {age} transactions",
        remedy="{command}",
        needs_schema=False,
    ),
    Check(
        "locks",
        "nobody has held a lock on the tables for long",
        "doctor/read_locks",
        found="session {pid} ({application}) has held {mode} on {relation} for {seconds} s",
        remedy="SELECT pg_terminate_backend({pid})",
        needs_schema=False,
    ),
    Check(
        "deadlocks",
        "there are hardly any deadlocks",
        "doctor/read_deadlocks",
        level=Level.WARNING,
        found="{deadlocks} deadlocks in this database since {since}",
        remedy="look for `deadlock detected` in the server's log; statements that change many jobs must take them in the order "
        "of their ids",
        needs_schema=False,
    ),
    Check(
        "autovacuum",
        "autovacuum looks after the tables",
        "doctor/read_autovacuum",
        found="autovacuum does not do its work: {what}",
        remedy="{command}",
        needs_schema=False,
    ),
    Check(
        "bloat",
        "the tables consist of living rows for the most part",
        "doctor/read_bloat",
        level=Level.WARNING,
        found="{relation} has {dead} dead rows and {live} living ones",
        remedy="{command}; if they stay, see the checks `old-snapshots` and `autovacuum`",
        needs_schema=False,
    ),
    Check(
        "notify-queue",
        "notifications are taken as they come",
        "doctor/read_notify_queue",
        found="the queue of notifications is {percent} % full; when it is full, whoever notifies fails",
        remedy="a session that listens sits in a transaction: end those of the check `transactions`",
        needs_schema=False,
    ),
    Check(
        "oban-tables",
        "Oban's tables are as Baton needs them",
        "doctor/read_missing_columns",
        found="{what}",
        remedy="upgrade Oban's tables: python -c \"from oban.schema import install_sql; print(install_sql('{prefix}'))\"",
    ),
    Check(
        "tables",
        "Baton's tables and indexes are all there",
        "doctor/read_missing_tables",
        found="{what}",
        remedy="restore it from a backup, or create it as in {migrate} --sql",
    ),
    Check(
        "unlogged",
        "the tables survive a crash of the server",
        "doctor/read_unlogged",
        found="table {relation} is unlogged: a crash of the server empties it",
        remedy="{command}",
    ),
    Check(
        "triggers",
        "the triggers on oban_jobs are there and enabled",
        "read_missing_triggers",
        found="trigger {name} on oban_jobs is missing or disabled: runs do not follow what others do to their jobs",
        remedy="{migrate}",
    ),
    Check(
        "functions",
        "the database functions are those of this version",
        "doctor/read_functions",
        judge=_functions,
    ),
    Check(
        "function-rights", "nobody may call them uninvited", "doctor/read_functions", judge=_rights_of_others
    ),
    Check(
        "function-owners", "the trigger functions are safe to call", "doctor/read_functions", judge=_definers
    ),
    Check("rights", "this role may do what a worker does", "doctor/read_missing_rights", judge=_rights),
    Check("audit", "steps, jobs and runs agree", "doctor/count_audit", judge=_audit, seconds=30.0),
    Check(
        "owed",
        "no release has been owed for long",
        "doctor/read_owed",
        found="{count} steps may run and their jobs have not been released, for {seconds} s",
        remedy="start a worker, which releases them: baton start --app MODULE:ATTRIBUTE; if one runs, see the check `locks`",
    ),
    Check(
        "repairs",
        "nothing waits to be repaired",
        "doctor/read_repairs",
        found="{count} steps could not be settled when their jobs ended ({sqlstate}): {error}",
        remedy="start a worker, which tries again each second, once the cause is gone; see the checks `functions` and `rights`",
    ),
    Check(
        "unfinished",
        "each run without a step to settle has finished",
        "doctor/read_unfinished",
        found="{count} runs have no step left and have not finished, for instance {id}",
        remedy="report it, with what the check `audit` says; no verb ends such a run",
    ),
    Check(
        "orphans",
        "every row has what it belongs to",
        "doctor/read_orphans",
        level=Level.WARNING,
        found="{count} {what}",
        remedy="steps end by themselves while a worker runs; the others were left by a DELETE by hand and can be deleted so",
    ),
    Check(
        "deliveries",
        "ends of runs are delivered",
        "doctor/read_deliveries",
        level=Level.WARNING,
        found="{count} ends wait to be delivered {what}, tried up to {tries} times, due for {seconds} s",
        remedy="start the app that takes them, and look for its errors in the log; or forget a consumer that is gone: "
        "await baton.remove_consumer(NAME)",
    ),
    Check(
        "deadlines",
        "every deadline that passed was kept",
        "doctor/read_overdue",
        found="{count} runs are past their deadline, by {seconds} s, and have not ended, for instance {id}",
        remedy="start a worker, which ends them: baton start --app MODULE:ATTRIBUTE",
    ),
    Check(
        "cancelling",
        "what was cancelled has ended",
        "doctor/read_cancelling",
        level=Level.WARNING,
        found="step {step} of run {run} was cancelled {seconds} s ago and still runs",
        remedy="its code must look at baton.current().cancelled, or be stopped with its worker",
    ),
    Check(
        "parked",
        "workers know the code of all that they took",
        "doctor/read_parked",
        level=Level.WARNING,
        found="{count} jobs wait for a worker that knows their code: {reason}",
        remedy="deploy the code, or start a worker that has it: baton start --app MODULE:ATTRIBUTE",
    ),
    Check(
        "paused-runs",
        "no run has been paused for long",
        "doctor/read_paused_runs",
        level=Level.WARNING,
        found="{count} runs are paused, {id} since {since}",
        remedy="run.resume() or run.cancel(); add to the budget of one that is paused for that: `baton budget add`",
    ),
    Check(
        "leader",
        "one node leads",
        "doctor/read_leaders",
        level=Level.WARNING,
        found="{what}; maintenance is done late, or twice",
        remedy="run workers with this version of Baton on all nodes, whose leases last until they are renewed; give instances "
        "of Oban one name",
    ),
    Check(
        "producers",
        "all workers give signs of life",
        "doctor/read_stale_producers",
        level=Level.WARNING,
        found="the worker of queue {queue} on node {node} has given no sign of life for {seconds} s",
        remedy="if its process is alive, something blocks it: restart it; if not, another worker removes its row and runs its "
        "jobs again",
    ),
    Check(
        "workers",
        "every queue with jobs is worked on",
        "doctor/read_unserved_queues",
        judge=_unserved,
    ),
    Check(
        "lost-jobs",
        "every job that runs has a process",
        "doctor/read_lost_jobs",
        level=Level.WARNING,
        found="{count} jobs are executing, and of the processes on {nodes} nothing is known; {producers} workers are, and the "
        "server, whose crash empties their table, has run since {started_at}",
        remedy="start a worker, which runs them again: baton start --app MODULE:ATTRIBUTE",
    ),
    Check(
        "queue-names",
        "all queues can be named in a notification",
        "doctor/read_queue_names",
        found="queue {queue} ({bytes} bytes) has a name that breaks notifications",
        remedy="UPDATE {prefix}.oban_jobs SET queue = 'a-plain-name' WHERE queue = '...'; and rename it where it comes from",
    ),
)
