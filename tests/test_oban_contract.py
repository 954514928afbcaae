"""What Baton takes for granted about Oban: its private names, its slots, its statements, its table. Fails on an upgrade."""

import ast
import asyncio
import hashlib
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import oban._backoff
import oban._executor
import oban._extensions
import oban._leader
import oban._lifeline
import oban._notifier
import oban._producer
import oban._pruner
import oban._query
import oban._stager
import oban.schema
import psycopg
import pytest
from oban import Oban
from oban._executor import AckAction
from oban.job import Cancel, Job, Record, Snooze
from oban.telemetry import core
from oban.worker import resolve_worker
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

import baton
from baton import Baton, Workflow, _acks, step, testing
from baton import _oban as seam_module
from baton._deadline import end
from baton._engine import Engine
from baton.errors import StepCancelled
from tests.kit.reused import Reused
from tests.kit.wait import eventually

SOURCE = Path(baton.__file__).parent


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def stock(baton_dsn: str) -> AsyncIterator[Oban]:
    """Oban on its own, not started."""
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=4, open=False) as pool:
        yield Oban(pool=pool, name=str(uuid4()), queues={"default": 2})


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as db:
        yield db


async def one(db: AsyncConnection, sql: str, *params: Any) -> Any:
    row = await (await db.execute(sql.encode(), params or None)).fetchone()
    return row[0] if row else None


def test_oban_is_of_the_version_that_was_read() -> None:
    assert version("oban").startswith("0.7.")


# --- names and signatures ----------------------------------------------------------------------------

SIGNATURES = {
    oban._query.Query.ack_jobs: "(self, acks: 'list[AckAction]') -> 'list[int]'",
    oban._query.Query.stage_jobs: (
        "(self, limit: 'int', queues: 'list[str]', before: 'datetime | None' = None) -> 'tuple[int, list[str]]'"
    ),
    oban._query.Query.update_producer: "(self, uuid: 'str', meta: 'dict[str, Any]') -> 'None'",
    oban._query.Query.cancel_many_jobs: "(self, ids: 'list[int]') -> 'tuple[int, list[int]]'",
    oban._query.Query.dsn: "(self) -> 'str'",
    oban._query.Query.refresh_producers: "(self, uuids: 'list[str]') -> 'list[str]'",
    oban._query.Query.cleanup_expired_producers: "(self, max_age: 'float') -> 'int'",
    oban._query.Query.delete_producer: "(self, uuid: 'str') -> 'None'",
    oban._producer._init: "(producer: 'Producer') -> 'dict'",
    resolve_worker: "(path: str) -> type",
    oban._query.unwrap_connection: "(conn: 'ConnectionLike') -> 'AsyncConnection | AsyncCursor'",
    oban._query._ack_jobs: "(query: 'Query', acks: 'list[AckAction]') -> 'list[int]'",
    oban._query.Query.connection: "(self)",
    oban._query.Query.insert_jobs: "(self, jobs: 'list[Job]', conn: 'ConnectionLike' = None) -> 'list[Job]'",
    oban._query._insert_jobs: "(query: 'Query', jobs: 'list[Job]', conn: 'ConnectionLike' = None) -> 'list[Job]'",
    oban._pruner._prune: "(query: 'Query', max_age: 'int', limit: 'int') -> 'None'",
    oban._lifeline._rescue: "(query: 'Query', rescue_after: 'float') -> 'None'",
    oban._leader.Leader.__init__: (
        "(self, *, enabled: 'bool' = True, interval: 'float' = 30.0, name: 'str' = 'Oban', node: 'str', "
        "notifier: 'Notifier', query: 'Query') -> 'None'"
    ),
    oban._leader.Leader._loop: "(self) -> 'None'",
    oban._leader.Leader._election: "(self) -> 'None'",
    oban._leader.Leader._on_notification: "(self, _channel: 'str', _payload: 'dict') -> 'None'",
    oban._producer._get_jobs: "(producer: 'Producer') -> 'list[Job]'",
    oban._producer.Producer.notify: "(self) -> 'None'",
    oban._producer.LocalDispatcher.dispatch: "(self, producer: 'Producer', job: 'Job') -> 'asyncio.Task'",
    oban._producer.LocalDispatcher.cancel: "(self, producer: 'Producer', job: 'Job') -> 'None'",
    oban._executor.Executor.__init__: "(self, job: 'Job', safe: 'bool' = True)",
    oban._executor.Executor.execute: "(self) -> 'Executor'",
    oban._executor.Executor._process: "(self) -> 'None'",
    oban._executor.Executor._record_stopped: "(self) -> 'None'",
    oban._executor.Executor._report_stopped: "(self) -> 'None'",
    oban._executor.Executor._retry_backoff: "(self) -> 'int'",
    oban._executor.Executor._format_error: "(self, error: 'Exception | str') -> 'dict'",
    oban._executor.AckAction: (
        "(job: 'Job', state: 'str', attempt_change: 'int | None' = None, error: 'dict | None' = None, "
        "meta: 'dict | None' = None, schedule_in: 'int | None' = None) -> None"
    ),
    oban._notifier.PostgresNotifier.listen: (
        "(self, channel: 'str', callback: 'Callable[[str, dict], Any]', wait: 'bool' = True, "
        "timeout: 'float | None' = None) -> 'str'"
    ),
    oban._notifier.PostgresNotifier.unlisten: "(self, token: 'str') -> 'None'",
    oban._notifier.PostgresNotifier.__init__: (
        "(self, *, query: 'Query', prefix: 'str' = 'public', beat_interval: 'float' = 30.0, "
        "connect_timeout: 'float' = 5.0, notify_timeout: 'float' = 0.1) -> 'None'"
    ),
    oban._notifier.PostgresNotifier._connect: "(self) -> 'None'",
    oban._notifier.PostgresNotifier._to_full_channel: "(self, channel: 'str') -> 'str'",
    oban._notifier.PostgresNotifier._from_full_channel: "(self, full_channel: 'str') -> 'str'",
    oban._notifier.decode_payload: "(payload: 'str') -> 'dict'",
    oban._stager.Stager._on_notification: "(self, channel: 'str', payload: 'dict') -> 'None'",
    oban._backoff.jittery_clamped: "(attempt: int, max_attempts: int, *, clamped_max: int = 20) -> int",
    Snooze: "(seconds: 'int', meta: 'dict | None' = None) -> None",
    Cancel: "(reason: 'str') -> None",
    Record: "(value: 'Any', limit: 'int' = 64000000) -> None",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_signature_is_as_it_was(function: Any) -> None:
    assert str(inspect.signature(function)) == SIGNATURES[function]


EXTENSIONS = {
    "get_ext": ["name", "default"],
    "put_ext": ["name", "func"],
    "use_ext": ["name", "default", "args", "kwargs"],
}


def test_extensions_are_kept_by_name_and_called_with_what_they_are_given() -> None:
    parameters = {
        name: list(inspect.signature(getattr(oban._extensions, name)).parameters) for name in EXTENSIONS
    }
    assert parameters == EXTENSIONS
    assert oban.schema.install_sql().startswith("-- Types")


def test_handlers_of_telemetry_are_kept_by_the_event() -> None:
    def handler(_name: str, _meta: dict[str, Any]) -> None: ...

    assert not core._handlers.get("tests.contract")
    oban.telemetry.attach("tests-contract", ["tests.contract"], handler)
    assert core._handlers.get("tests.contract") == [("tests-contract", handler)]
    oban.telemetry.detach("tests-contract")
    assert not core._handlers.get("tests.contract")


# Attributes of live objects, by the name under which the code holds them.
ATTRIBUTES = {
    "oban": {
        "_dispatcher",
        "_leader",
        "_lifeline",
        "_metrics",
        "_pruner",
        "_refresher",
        "_scheduler",
        "_shutdown_grace_period",
        "_query",
        "_producers",
        "_notifier",
        "_stager",
        "_prefix",
        "_signal_token",
    },
    "query": {"_pool", "_prefix"},
    "producer": {
        "_debounce_interval",
        "_dispatcher",
        "_limit",
        "_name",
        "_node",
        "_paused",
        "_pending_acks",
        "_query",
        "_queue",
        "_running_jobs",
        "_on_job_complete",
        "_shutdown_grace_period",
        "_stopping",
        "_uuid",
    },
    "pruner": {"_max_age"},
    "stager": {"_listen_token", "_on_notification", "_stopping"},
    # Of these two Baton makes its own kind, in place, so it relies on all that they hold.
    "leader": {
        "_election_lock",
        "_enabled",
        "_interval",
        "_is_leader",
        "_listen_token",
        "_loop_task",
        "_name",
        "_node",
        "_notifier",
        "_query",
        "_started",
        "_stopping",
    },
    "notifier": {
        "_beat_interval",
        "_beat_task",
        "_conn",
        "_connect_timeout",
        "_listen_events",
        "_loop_task",
        "_notify_timeout",
        "_pending_listen",
        "_pending_unlisten",
        "_prefix",
        "_query",
        "_reconnect_attempts",
        "_subscriptions",
        "_tokens",
    },
    "job": {"_cancellation"},
}


async def test_every_private_attribute_that_is_used_is_there(stock: Oban) -> None:
    holders: dict[str, Any] = {
        "oban": stock,
        "query": stock._query,
        "producer": stock._producers["default"],
        "pruner": stock._pruner,
        "stager": stock._stager,
        "leader": stock._leader,
        "notifier": stock._notifier,
        "job": Job("W"),
    }
    for name, attributes in ATTRIBUTES.items():
        missing = {attribute for attribute in attributes if not hasattr(holders[name], attribute)}
        assert missing == set(), name
        if name in ("leader", "notifier"):
            assert vars(holders[name]).keys() == attributes, "one that is new is not known to our kind of it"
    producer = stock._producers["default"]
    assert (producer._running_jobs, producer._pending_acks, producer._paused) == ({}, [], False)
    assert isinstance(producer._stopping, asyncio.Event)
    assert stock._signal_token is None, "not started"


# Where private names of others are used.
SEAM = {
    "_acks.py",
    "_leader.py",
    "_lifecycle.py",
    "_notifier.py",
    "_oban.py",
    "_queries.py",
    "_step.py",
    "_waiting.py",
    "client.py",
    "testing.py",
}


def private_attributes() -> set[str]:
    """Private attributes that Baton's code reads from objects which are not its own."""
    own: set[str] = set()
    used: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if "examples" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if mine:
                    own.add(node.attr)
                elif path.name in SEAM:
                    used.add(node.attr)
    return used - own


def test_no_other_private_attribute_is_used() -> None:
    listed = set().union(*ATTRIBUTES.values())
    assert private_attributes() <= listed, "add what is new above, and read what Oban does with it"


async def test_each_part_of_obans_is_started_and_stopped_by_its_own_methods(stock: Oban) -> None:
    parts = [
        stock._leader,
        stock._stager,
        stock._lifeline,
        stock._pruner,
        stock._refresher,
        stock._scheduler,
        stock._notifier,
        *stock._producers.values(),
    ]
    source = inspect.getsource(Oban.start) + inspect.getsource(Oban.stop)
    for part in parts:
        for name in ("start", "stop"):
            assert inspect.iscoroutinefunction(getattr(part, name))
    found = set(re.findall(r"self\._(\w+)\.(?:start|stop)\(\)", source))
    assert found == {
        "dispatcher", "leader", "lifeline", "metrics", "notifier", "pruner", "refresher", "scheduler", "stager"
    }  # fmt: skip


async def test_the_kinds_that_baton_takes_the_place_of_are_those_that_oban_builds(stock: Oban) -> None:
    assert type(stock._leader) is oban._leader.Leader
    assert type(stock._notifier) is oban._notifier.PostgresNotifier
    assert vars(stock._query).keys() == {"_pool", "_prefix"}, "its methods can be replaced on one instance"
    assert "shutdown_started_at" in inspect.getsource(oban._producer.Producer.stop)


# --- statements --------------------------------------------------------------------------------------

STATEMENTS = {
    "ack_job.sql": "c51916cb856f8995",
    "all_jobs.sql": "9fec09f3f7632f8e",
    "cancel_many_jobs.sql": "3c46618585c84c5a",
    "cleanup_expired_leaders.sql": "58cd80a4f3e1b791",
    "cleanup_expired_producers.sql": "aaef2bd2bce4adb7",
    "count_jobs.sql": "2d3b2ee4ba0f3c40",
    "delete_many_jobs.sql": "7aa04f2455266161",
    "delete_producer.sql": "34f37c19adc2ab25",
    "elect_leader.sql": "1f0010fd03904f62",
    "estimate_counts.sql": "18091072bdfe597d",
    "fetch_jobs.sql": "642fa5c97e57e104",
    "get_job.sql": "1c5cd3bc537fe7d1",
    "insert_job.sql": "8e0a54921d06c95f",
    "insert_producer.sql": "c0453409aa6b60de",
    "install.sql": "2c22de7516f36a60",
    "prune_jobs.sql": "3266164296f8a7c7",
    "refresh_producers.sql": "c68e0a5d77a0e59c",
    "rescue_jobs.sql": "80ac2f02ff8b5148",
    "reset.sql": "d275436f7af363be",
    "resign_leader.sql": "deac10563701a345",
    "retry_many_jobs.sql": "c0582d90cf7385b1",
    "stage_jobs.sql": "d10979bbd10c22d5",
    "uninstall.sql": "12d09d443c53bab0",
    "update_job.sql": "771423eba2c4b8a4",
    "update_producer.sql": "860e0bff247d42c5",
    "verify_structure.sql": "ab58f4706755728e",
}


def test_obans_statements_are_those_that_were_read() -> None:
    found = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()[:16]
        for entry in files("oban.queries").iterdir()
        if entry.name.endswith(".sql")
    }
    assert found == STATEMENTS, (
        "a statement changed: read it, see what the triggers make of it, then record it here"
    )


# --- the job table -----------------------------------------------------------------------------------


async def test_the_job_table_is_as_the_engine_expects(db: AsyncConnection) -> None:
    columns = await (
        await db.execute(
            "SELECT column_name, udt_name, is_nullable, is_identity FROM information_schema.columns "
            "WHERE table_name = 'oban_jobs' ORDER BY ordinal_position"
        )
    ).fetchall()
    assert columns == [
        ("id", "int8", "NO", "YES"),
        ("state", "oban_job_state", "NO", "NO"),
        ("queue", "text", "NO", "NO"),
        ("worker", "text", "NO", "NO"),
        ("attempt", "int2", "NO", "NO"),
        ("max_attempts", "int2", "NO", "NO"),
        ("priority", "int2", "NO", "NO"),
        ("args", "jsonb", "NO", "NO"),
        ("meta", "jsonb", "NO", "NO"),
        ("tags", "_text", "NO", "NO"),
        ("errors", "jsonb", "NO", "NO"),
        ("attempted_by", "_text", "NO", "NO"),
        ("inserted_at", "timestamp", "NO", "NO"),
        ("scheduled_at", "timestamp", "NO", "NO"),
        ("attempted_at", "timestamp", "YES", "NO"),
        ("cancelled_at", "timestamp", "YES", "NO"),
        ("completed_at", "timestamp", "YES", "NO"),
        ("discarded_at", "timestamp", "YES", "NO"),
    ]
    checks = await (
        await db.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'oban_jobs'::regclass AND contype = 'c' ORDER BY 1"
        )
    ).fetchall()
    assert [name for (name,) in checks] == [
        "attempt_range",
        "non_negative_priority",
        "positive_max_attempts",
        "queue_length",
        "worker_length",
    ]
    states = await one(
        db, "SELECT array_agg(s::text ORDER BY s::text) FROM unnest(enum_range(NULL::oban_job_state)) AS s"
    )
    assert states == [
        "available",
        "cancelled",
        "completed",
        "discarded",
        "executing",
        "retryable",
        "scheduled",
        "suspended",
    ]
    index = await one(
        db,
        "SELECT indexdef FROM pg_indexes WHERE indexname = 'oban_jobs_state_queue_priority_scheduled_at_id_index'",
    )
    assert "(state, queue, priority, scheduled_at, id)" in index


async def test_the_producers_table_is_as_wake_expects(db: AsyncConnection) -> None:
    assert await one(
        db,
        "SELECT array_agg(column_name::text ORDER BY column_name::text) FROM information_schema.columns "
        "WHERE table_name = 'oban_producers'",
    ) == ["meta", "name", "node", "queue", "started_at", "updated_at", "uuid"]


# --- what Oban does ------------------------------------------------------------------------------------


async def test_the_ack_of_a_job_that_was_rescued_returns_no_id(stock: Oban, db: AsyncConnection) -> None:
    await db.execute("INSERT INTO oban_jobs (worker) VALUES ('W')")
    (job,) = await stock._query.fetch_jobs(demand=1, queue="default", node="n", uuid="u")
    await db.execute("UPDATE oban_jobs SET attempted_at = attempted_at - interval '1 hour'")
    assert await stock._query.rescue_jobs(60) == 1
    assert await oban._query._ack_jobs(stock._query, [AckAction(job=job, state="completed")]) == []


async def test_what_is_extra_to_a_job_is_not_stored(stock: Oban) -> None:
    job = Job("W", extra={"baton": object()})
    await stock.enqueue(job)
    found = await stock.get_job(job.id or 0)
    assert found is not None
    assert found.extra == {}


async def test_a_job_carries_who_attempted_it(stock: Oban, db: AsyncConnection) -> None:
    await db.execute("INSERT INTO oban_jobs (worker) VALUES ('W')")
    (job,) = await stock._query.fetch_jobs(demand=1, queue="default", node="n", uuid="u")
    assert job.attempted_by == ["n", "u"]
    assert job.attempted_at is not None
    assert job.attempted_at.tzinfo is not None


def test_obans_outcomes_are_no_exceptions_and_are_matched_by_class() -> None:
    for outcome in (Snooze, Cancel, Record):
        assert not issubclass(outcome, BaseException)
    source = inspect.getsource(oban._executor.Executor._record_stopped)
    assert "case Exception() as error:" in source
    assert "case Snooze(" in source


async def test_acks_are_kept_when_the_slot_raises_and_dropped_when_it_returns(
    stock: Oban, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = stock._producers["default"]
    action = AckAction(job=Job("W", id=1), state="completed")
    producer._pending_acks.append(action)

    async def fails(*_: Any) -> list[int]:
        raise OSError

    async def returns_nothing(*_: Any) -> list[int]:
        return []

    monkeypatch.setitem(oban._extensions._extensions, "query.ack_jobs", fails)
    with pytest.raises(OSError):
        await producer._ack_jobs()
    assert producer._pending_acks == [action]
    monkeypatch.setitem(oban._extensions._extensions, "query.ack_jobs", returns_nothing)
    await producer._ack_jobs()
    assert producer._pending_acks == []


async def test_the_stager_calls_its_slot_before_it_stages_and_skips_a_turn_when_that_raises(
    stock: Oban, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    async def before(query: Any) -> None:
        assert query is stock._query
        order.append("before")

    async def stage(*_: Any) -> tuple[int, list[str]]:
        order.append("stage")
        return 0, []

    monkeypatch.setitem(oban._extensions._extensions, "stager.before_stage", before)
    monkeypatch.setattr(stock._query, "stage_jobs", stage)
    await stock._stager._stage()
    assert order == ["before", "stage"]


async def test_an_oban_with_no_queue_needs_no_schema_check_and_may_be_used_unstarted(stock: Oban) -> None:
    assert await stock.cancel_many_jobs([1]) == 0


# --- the slots, really called ----------------------------------------------------------------------------


@step(name="tests.contract.one")
async def give_one() -> int:
    return 1


def pair() -> Workflow:
    workflow = Workflow("pair")
    first = workflow.add("a", give_one.new())
    workflow.add("b", give_one.new(), deps=[first])
    return workflow


async def test_every_slot_is_filled_and_called_and_whoever_filled_it_before_is_called_too(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()

    def spy(name: str, default: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            called.add(f"before {name}")
            return default(*args)

        return wrapped

    monkeypatch.setattr(seam_module, "_filled", {})
    monkeypatch.setattr(
        oban._extensions,
        "_extensions",
        {
            "executor.wrap_result": spy("executor.wrap_result", lambda job, result: result),
            "stager.before_stage": spy("stager.before_stage", lambda query: None),
        },
    )
    async with Baton(baton_dsn, queues={"default": 2}) as worker:
        for name, function in list(oban._extensions._extensions.items()):
            oban._extensions.put_ext(name, _noting(called, name, function))
        run = await worker.insert(pair())
        assert await run.wait(timeout=10) == "completed"
        await eventually(lambda: "stager.before_stage" in called)
    assert called >= {
        "query.ack_jobs",
        "producer.get_jobs",
        "executor.wrap_result",
        "stager.before_stage",
        "before executor.wrap_result",
        "before stager.before_stage",
    }


def _noting(called: set[str], name: str, function: Any) -> Any:
    def noting(*args: Any) -> Any:
        called.add(name)
        return function(*args)

    return noting


async def test_an_oban_without_baton_in_the_same_process_keeps_its_own_ways(
    baton_dsn: str, stock: Oban, db: AsyncConnection
) -> None:
    async with Baton(baton_dsn):
        job = await stock.enqueue(Job("tests.test_oban_contract.Nothing"))
        (claimed,) = await stock._query.fetch_jobs(demand=1, queue="default", node="n", uuid="u")
        assert claimed.id == job.id
        assert await stock._query.ack_jobs([AckAction(job=claimed, state="completed")]) == [job.id]


async def test_batons_own_notifications_are_dropped_on_arrival(baton_dsn: str) -> None:
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        producer = worker.oban._producers["default"]
        assert worker._engine is not None
        woken: list[str] = []
        producer.notify = lambda: woken.append("woken")  # type: ignore[method-assign]
        callbacks = list(worker.oban._notifier._subscriptions["insert"].values())  # type: ignore[attr-defined]
        for callback in callbacks:
            await callback("insert", {"queue": "default", "origin": worker._engine.origin})
        assert woken == []
        for callback in callbacks:
            await callback("insert", {"queue": "default", "origin": "another"})
            await callback("insert", {"queue": "default"})
        assert woken == ["woken", "woken"]


async def test_a_hop_between_two_steps_waits_for_no_debounce_and_no_poll(baton_dsn: str) -> None:
    workflow = Workflow("hops")
    for n in range(100):
        workflow.add(f"s{n}", give_one.new(), deps=[f"s{n - 1}"] if n else [])
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        assert worker.oban._producers["default"]._debounce_interval == 0
        # Stager and producers poll each second: a hundred hops in ten are none of theirs.
        assert await (await worker.insert(workflow)).wait(timeout=10) == "completed"


# --- the seam under trouble --------------------------------------------------------------------------------


async def test_a_failed_ack_is_tried_again_although_nothing_wakes_the_queue(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        engine = worker._engine
        assert engine is not None
        write = engine.ack

        async def fails_three_times(outcomes: Any, claim: Any = None) -> Any:
            nonlocal failures
            if outcomes and failures < 3:
                failures += 1
                raise [psycopg.OperationalError("away"), OSError("gone"), TimeoutError("late")][failures - 1]
            return await write(outcomes, claim)

        monkeypatch.setattr(engine, "ack", fails_three_times)
        workflow = Workflow("alone")
        workflow.add("a", give_one.new())
        run = await worker.insert(workflow)
        assert await run.result("a", timeout=10) == 1
    assert failures == 3


async def test_an_ack_whose_commit_was_not_heard_of_is_not_counted_twice(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Baton(baton_dsn, queues={"default": 3}) as worker:
        engine = worker._engine
        assert engine is not None
        write = engine.ack
        lost = 0

        async def commits_then_raises(outcomes: Any, claim: Any = None) -> Any:
            nonlocal lost
            done = await write(outcomes, claim)
            if outcomes and lost < 2:
                lost += 1
                raise psycopg.OperationalError("the answer was lost")
            return done

        monkeypatch.setattr(engine, "ack", commits_then_raises)
        workflow = Workflow("lost")
        for name in "abc":
            workflow.add(name, give_one.new())
        workflow.add("join", give_one.new(), deps=list("abc"))
        run = await worker.insert(workflow)
        assert await run.wait(timeout=15) == "completed"
    assert lost == 2
    assert await one(db, "SELECT sum(reruns) FROM workflow_nodes") == 0
    assert await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'executing'") == 0


async def test_what_is_written_last_is_not_run_again_after_a_claim_whose_answer_was_lost(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: set[str] = set()
    door = asyncio.Event()

    @step(name="tests.contract.waits")
    async def waits() -> None:
        begun.add(baton.current().step)
        await door.wait()

    workflow = Workflow("last")
    workflow.add("a", waits.new())
    workflow.add("b", waits.new())
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        app = Oban(pool=pool, queues={"default": 3})
        async with app, Baton(oban=app) as worker:
            await worker.insert(workflow)
            await eventually(lambda: begun == {"a", "b"})
            assert worker._seam is not None
            assert worker._engine is not None
            producer: Any = app._producers["default"]
            # From now on nobody writes but the stop.
            await end(producer._loop_task)
            write = worker._engine.ack

            async def commits_then_raises(outcomes: Any, claim: Any = None) -> Any:
                await write(outcomes, claim)
                raise psycopg.OperationalError("the answer was lost")

            monkeypatch.setattr(worker._engine, "ack", commits_then_raises)
            with pytest.raises(psycopg.OperationalError):
                await worker._seam.acks.get_jobs(producer)
            monkeypatch.setattr(worker._engine, "ack", write)
            # Two statements, and the first asks for what the lost answer may have claimed.
            monkeypatch.setattr(_acks, "_BATCH_BYTES", 0)
            door.set()
            await eventually(lambda: len(producer._pending_acks) == 2)
        assert producer._pending_acks == []
    assert await one(db, "SELECT array_agg(state::text) FROM oban_jobs") == ["completed", "completed"]


@pytest.mark.parametrize("how", ["pause", "scale down", "stop"])
async def test_what_was_claimed_is_given_back_if_the_queue_changed_its_mind_before_the_hand_over(
    baton_dsn: str, db: AsyncConnection, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    workflow = Workflow("claimed")
    for n in range(4):
        workflow.add(f"s{n}", give_one.new())
    async with Baton(baton_dsn) as inserter:
        await inserter.insert(workflow)
    changed = False
    write = Engine.ack

    async def changes_meanwhile(engine: Engine, outcomes: Any, claim: Any = None) -> Any:
        nonlocal changed
        done = await write(engine, outcomes, claim)
        if done.claimed and not changed:
            changed = True
            assert len(done.claimed) == 4
            producer = next(
                seam.acks.producers[str(claim.producer)]
                for seam in list(seam_module._seams.values())
                if str(claim.producer) in seam.acks.producers
            )
            if how == "pause":
                producer._paused = True
            elif how == "stop":
                producer._stopping.set()
            else:
                producer._limit = 1
        return done

    async def given_back() -> bool:
        rest = 1 if how == "scale down" else 4
        back = await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'available' AND attempt = 0")
        done = await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'completed'")
        return changed and (back == rest or (how == "scale down" and done == 4))

    monkeypatch.setattr(Engine, "ack", changes_meanwhile)
    async with Baton(baton_dsn, queues={"default": 4}):
        await eventually(given_back)
    assert await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'executing'") == 0


async def test_a_job_is_asked_to_stop_by_obans_cancel(baton_dsn: str) -> None:
    began = asyncio.Event()

    @step(name="tests.contract.cancellable", max_attempts=1)
    async def cancellable() -> str:
        began.set()
        await eventually(lambda: baton.current().cancelled)
        raise AssertionError("an async step is interrupted where it waits")

    workflow = Workflow("told")
    workflow.add("it", cancellable.new())
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(workflow)
        await began.wait()
        await worker.oban.cancel_job((await run.status()).step("it").job_id)
        with pytest.raises(StepCancelled, match="its job was cancelled"):
            await run.result("it", timeout=10)


@baton.worker()
class Nobody:
    async def process(self, job: Job) -> None: ...


async def test_a_cancel_that_comes_before_the_job_has_begun_is_not_lost(baton_dsn: str) -> None:
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        assert worker._seam is not None
        producer = worker.oban._producers["default"]
        job = Nobody.new()
        job.id = 0
        task = worker._seam.dispatcher.dispatch(producer, job)
        worker._seam.dispatcher.cancel(producer, job)
        assert job.cancelled()
        await task


async def test_a_rescue_leaves_a_slow_step_of_a_live_process_alone(baton_dsn: str) -> None:
    began, let_go = asyncio.Event(), asyncio.Event()

    @step(name="tests.contract.slow")
    async def slow() -> int:
        began.set()
        await let_go.wait()
        return baton.current().attempt

    workflow = Workflow("slow")
    workflow.add("it", slow.new())
    async with Baton(baton_dsn, queues={"default": 2}) as worker:
        run = await worker.insert(workflow)
        await began.wait()
        try:
            lifeline: Any = worker.oban._lifeline
            await oban._extensions.use_ext("lifeline.rescue", _age, lifeline._query, 0)
            assert (await run.status()).step("it").state == "executing"
        finally:
            let_go.set()
            await run.wait(timeout=10)


async def _age(query: Any, rescue_after: float) -> int:
    return int(await query.rescue_jobs(rescue_after))


async def test_time_is_skipped_in_tests_by_obans_own_staging(baton_dsn: str) -> None:
    from datetime import UTC, datetime, timedelta

    workflow = Workflow("later", scheduled_at=datetime.now(UTC) + timedelta(days=30))
    workflow.add("a", give_one.new())
    assert (await testing.run(workflow, dsn=baton_dsn)).outcome == "completed"
