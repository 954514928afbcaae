"""Where Oban for Python 0.7.0 is weak, and that an Oban with Baton is not: one scenario for each, run on both.

A test that sees no weakness on Oban alone fails as well: then Oban has mended it, and Baton's part can go. They are listed
in `docs/weak-points.md`.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import psycopg.types.json
import pytest
from oban import Oban, _extensions
from oban._executor import AckAction
from oban._extensions import put_ext, use_ext
from oban._leader import Leader
from oban._notifier import PostgresNotifier
from oban._producer import LocalDispatcher
from oban._recorded import decode_recorded, encode_recorded
from oban.job import Job, JobState, Record, Snooze
from oban.schema import install
from packaging.specifiers import SpecifierSet
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from baton import Baton, Workflow, _acks, migration, step
from baton import _oban as seam_module
from baton._engine import Engine
from baton.errors import StepFailed
from tests.kit.engine import graph
from tests.kit.gate import Gate
from tests.kit.reused import Reused
from tests.kit.wait import eventually

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "weak-points.md"

both = pytest.mark.parametrize("with_baton", [False, True], ids=["oban", "baton"])
# Baton may be attached to an Oban that is about to start, or to one that runs.
whenever = pytest.mark.parametrize("with_baton", [False, "before", "after"], ids=["oban", "before", "after"])


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@pytest.fixture
async def db(baton_dsn: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(baton_dsn, autocommit=True) as db:
        yield db


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    Worker.reset()
    yield
    Worker.reset()


async def one(db: AsyncConnection, sql: str, *params: Any) -> Any:
    row = await (await db.execute(sql.encode(), params or None)).fetchone()
    return row[0] if row else None


@asynccontextmanager
async def an_oban(
    dsn: str,
    with_baton: bool | str,
    *,
    start: bool = True,
    pool_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Oban]:
    """An app's Oban: alone, or with Baton attached before or after its start."""
    options = {"queues": {"default": 5}, "name": str(uuid4()), **options}
    async with AsyncConnectionPool(
        dsn, **{"min_size": 1, "max_size": 5, "open": False, **(pool_options or {})}
    ) as pool:
        oban = Oban(pool=pool, **options)
        if not with_baton:
            if start:
                await oban.start()
            try:
                yield oban
            finally:
                await oban.stop()
            return
        if with_baton == "after" and start:
            await oban.start()
        attached = Baton(oban=oban)
        if start:
            await attached.start()
        try:
            yield oban
        finally:
            await attached.stop()
            if with_baton == "after":
                await oban.stop()
            if not start:
                await attached._release()


class Worker:
    """An ordinary worker of Oban's, whose job the test holds in its hands by the name in its arguments."""

    began: dict[str, asyncio.Event]
    told: dict[str, asyncio.Event]

    @classmethod
    def reset(cls) -> None:
        cls.began, cls.told = {}, {}

    @classmethod
    def new(cls, name: str = "job", **options: Any) -> Job:
        cls.began[name], cls.told[name] = asyncio.Event(), asyncio.Event()
        return Job(f"{cls.__module__}.{cls.__name__}", args={"name": name}, **options)

    async def process(self, job: Job) -> Any:
        name = job.args["name"]
        Worker.began[name].set()
        return await self.work(name)

    async def work(self, name: str) -> Any:
        return None


class Held(Worker):
    async def work(self, name: str) -> Any:
        await Worker.told[name].wait()


class Poisonous(Worker):
    async def work(self, name: str) -> Any:
        raise ValueError("a NUL: \0")


class BrokenBackoff(Worker):
    async def work(self, name: str) -> Any:
        raise ValueError("first attempt")

    def backoff(self, job: Job) -> int:
        raise RuntimeError("no backoff")


class Verbose(Worker):
    async def work(self, name: str) -> Any:
        raise ValueError("begin" + "x" * 1_000_000 + "the end")


class Recording(Worker):
    async def work(self, name: str) -> Any:
        return Record("kept")


class Snoozing(Worker):
    async def work(self, name: str) -> Any:
        return Snooze(60)


async def state(oban: Oban, job: Job | int | None) -> str | None:
    found = await oban.get_job((job.id if isinstance(job, Job) else job) or 0)
    return str(found.state) if found is not None else None


async def becomes(oban: Oban, job: Job, wanted: str) -> None:
    async def is_it() -> bool:
        return await state(oban, job) == wanted

    await eventually(is_it)


# --- leader ------------------------------------------------------------------------------------------


async def pass_time(db: AsyncConnection, seconds: int) -> None:
    await db.execute(
        "UPDATE oban_leaders SET expires_at = expires_at - make_interval(secs => %s)", (seconds,)
    )


async def elect(oban: Oban) -> None:
    leader: Any = oban._leader
    await leader._election()


@whenever
async def test_w01_two_nodes_lead_at_once(
    baton_dsn: str, db: AsyncConnection, with_baton: bool | str
) -> None:
    options: dict[str, Any] = {"name": "both", "queues": {}, "leadership": True}
    async with (
        an_oban(baton_dsn, with_baton, node="a", **options) as first,
        an_oban(baton_dsn, with_baton, node="b", **options) as second,
    ):
        await pass_time(db, 60)
        await elect(first)
        assert first.is_leader
        assert await one(db, "SELECT node FROM oban_leaders") == "a", "the name that people know"
        # The first renews its lease each 15 seconds.
        await pass_time(db, 14)
        await elect(second)
        assert second.is_leader is not bool(with_baton)
        assert first.is_leader
        await elect(first)
        await pass_time(db, 60)
        await elect(second)
        assert second.is_leader, "a leader that does not renew its lease loses it"
        await elect(first)
        assert first.is_leader is False


@both
async def test_w23_two_hosts_of_one_node_name_lead_at_once(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    options: dict[str, Any] = {"name": "both", "node": "web-1", "queues": {}, "leadership": True}
    async with (
        an_oban(baton_dsn, with_baton, **options) as first,
        an_oban(baton_dsn, with_baton, **options) as second,
    ):
        assert first.is_leader
        assert second.is_leader is not with_baton
        await elect(first)
        assert first.is_leader


async def test_a_leader_believes_in_its_lease_no_longer_than_the_server_does(baton_dsn: str) -> None:
    async with an_oban(baton_dsn, True, queues={}, leadership=True) as oban:
        leader: Any = oban._leader
        leader._interval = 1e-9
        await elect(oban)
        assert not oban.is_leader


async def test_a_leader_that_stops_lets_the_next_one_lead_at_once(baton_dsn: str) -> None:
    options: dict[str, Any] = {"name": "both", "queues": {}, "leadership": True}
    async with an_oban(baton_dsn, True, **options) as second:
        async with an_oban(baton_dsn, True, **options) as first:
            assert second.is_leader
            assert not first.is_leader
        async with an_oban(baton_dsn, True, **options) as third:
            await second.stop()
            await eventually(lambda: third.is_leader)


@both
async def test_w23_an_election_fails_under_another_isolation_level(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    name = psycopg.sql.Identifier(db.info.dbname)
    await db.execute(
        psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'").format(
            name
        )
    )
    async with (
        an_oban(baton_dsn, with_baton, start=False, queues={}, leadership=True, name="both") as oban,
        await AsyncConnection.connect(baton_dsn) as rival,
    ):
        await rival.execute(
            "INSERT INTO oban_leaders (name, node, elected_at, expires_at) "
            "VALUES ('both', 'rival', now(), now() + interval '1 hour')"
        )
        election = asyncio.create_task(elect(oban))
        await eventually(lambda: somebody_waits(db))
        await rival.commit()
        if with_baton:
            await election
            assert not oban.is_leader
        else:
            with pytest.raises(psycopg.errors.SerializationFailure):
                await election


async def somebody_waits(db: AsyncConnection) -> bool:
    return bool(
        await one(
            db,
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0",
        )
    )


@both
async def test_w12_a_stop_without_the_database_raises(baton_dsn: str, with_baton: bool) -> None:
    ended: list[str] = []

    class Dispatcher(LocalDispatcher):
        async def start(self) -> None: ...

        async def stop(self) -> None:
            ended.append("dispatcher")

    async with (
        Gate.before(baton_dsn) as gate,
        AsyncConnectionPool(gate.dsn, min_size=1, max_size=3, open=False, timeout=0.5) as pool,
    ):
        app = Oban(pool=pool, name=str(uuid4()), queues={"default": 1}, dispatcher=Dispatcher())
        attached = Baton(oban=app) if with_baton else None
        await app.start()
        assert app.is_leader
        gate.shut()
        if with_baton:
            await app.stop()
            assert ended == ["dispatcher"]
            assert obans_tasks() == set()
        else:
            with pytest.raises((psycopg.OperationalError, psycopg.InterfaceError)):
                await app.stop()
            assert ended == []
            await eventually(lambda: obans_tasks() == set(), timeout=30)
        if attached is not None:
            await attached._release()


@both
async def test_w12_a_stop_hangs_on_a_database_that_does_not_answer(baton_dsn: str, with_baton: bool) -> None:
    async with (
        Gate.before(baton_dsn) as gate,
        AsyncConnectionPool(gate.dsn, min_size=1, max_size=1, open=False, timeout=60) as pool,
    ):
        app = Oban(pool=pool, name=str(uuid4()), queues={}, leadership=True)
        attached = Baton(oban=app) if with_baton else None
        await app.start()
        assert app.is_leader
        gate.stall()
        stopping = asyncio.create_task(app.stop())
        # Oban has no deadline: whatever time we give it would be too short.
        await asyncio.wait({stopping}, timeout=20 if with_baton else 7)
        assert stopping.done() is with_baton
        gate.shut()
        await asyncio.gather(stopping, return_exceptions=True)
        if attached is not None:
            await attached._release()


def obans_tasks() -> set[str]:
    """Background tasks of any Oban in this loop."""
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("oban-")}


# --- notifications -----------------------------------------------------------------------------------


async def listener(db: AsyncConnection) -> int | None:
    """Process of the server at the other end of LISTEN, if it is in force."""
    return await one(
        db,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND state = 'idle' AND (query LIKE 'LISTEN%%' OR application_name = 'baton listen')",
    )


class Ear:
    """Hears the notifications it sends, if they come through."""

    def __init__(self, db: AsyncConnection) -> None:
        self._db = db
        self._sent = self._heard = self._since = 0

    @classmethod
    async def of(cls, oban: Oban, db: AsyncConnection) -> "Ear":
        """One that has heard something."""
        ear = cls(db)
        await oban._notifier.listen("test", ear._hear, wait=False)
        await eventually(ear.hears)
        return ear

    def _hear(self, _channel: str, payload: dict[str, Any]) -> None:
        self._heard = payload["n"]

    def forget(self) -> None:
        """From here on only what is sent from here on counts."""
        self._since = self._sent

    async def hears(self) -> bool:
        self._sent += 1
        await self._db.execute("SELECT pg_notify('public.oban_test', %s)", (json.dumps({"n": self._sent}),))
        return self._heard > self._since


GARBAGE = ["x", "", "{", "[1]", "1", "null", '"text"', '{"queue": }', "eJwDAAAAAAE=", "\x7f", "e" * 7000]


@whenever
async def test_w09_a_garbage_notification_ends_listen(
    baton_dsn: str, db: AsyncConnection, with_baton: bool | str
) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        ear = await Ear.of(oban, db)
        ear.forget()
        for payload in GARBAGE:
            for channel in ("test", "insert", "signal", "leader"):
                await db.execute("SELECT pg_notify(%s, %s)", (f"public.oban_{channel}", payload))
        if with_baton:
            await eventually(ear.hears)
            return
        notifier: Any = oban._notifier
        await eventually(notifier._loop_task.done)
        assert not await ear.hears()


async def test_w09_a_callback_that_fails_is_reported_and_the_others_are_called(
    baton_dsn: str, db: AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    called = asyncio.Event()

    def fails(*_: Any) -> None:
        raise ValueError("in a callback")

    async def fails_later(*_: Any) -> None:
        raise ValueError("in a task")

    async def takes_apart(_channel: str, payload: dict[str, Any]) -> None:
        payload.pop("a")
        called.set()

    async with an_oban(baton_dsn, True) as oban:
        for callback in (fails, fails_later, takes_apart, takes_apart):
            await oban._notifier.listen("test", callback)
        await db.execute("SELECT pg_notify('public.oban_test', '{\"a\": 1}')")
        await called.wait()
        await eventually(lambda: "in a callback" in caplog.text and "in a task" in caplog.text)
        assert "KeyError" not in caplog.text


@whenever
async def test_w10_each_lost_connection_leaves_one_more_beat_and_nobody_catches_up(
    baton_dsn: str, db: AsyncConnection, with_baton: bool | str
) -> None:
    # Nothing but a notification would make the queue look for jobs.
    async with an_oban(baton_dsn, with_baton, stager={"interval": 3600}) as oban:
        ear = await Ear.of(oban, db)
        await db.execute("SELECT pg_terminate_backend(%s)", (await listener(db),))
        job = Worker.new()
        # Inserted by somebody whose notification nobody heard.
        await db.execute(
            "INSERT INTO oban_jobs (worker, args) VALUES (%s, %s)", (job.worker, json.dumps(job.args))
        )
        ear.forget()
        await eventually(ear.hears)
        beats = [task for task in asyncio.all_tasks() if task.get_name() == "oban-notifier-beat"]
        if with_baton:
            await eventually(Worker.began["job"].is_set)
            assert beats == []
        else:
            assert not Worker.began["job"].is_set()
            assert len(beats) == 2


@both
async def test_w10_a_frozen_listener_is_not_noticed(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with Gate.before(baton_dsn) as gate:
        notifier = {"beat_interval": 0.2, "connect_timeout": 1.0}
        async with an_oban(
            gate.dsn, with_baton, queues={}, notifier=notifier, pool_options={"min_size": 0}
        ) as oban:
            ear = await Ear.of(oban, db)
            gate.stall()
            ear.forget()
            if with_baton:
                await eventually(ear.hears, timeout=30)
            else:
                # No deadline, so no end to wait for.
                with pytest.raises(AssertionError):
                    await eventually(ear.hears, timeout=4)


async def test_who_waits_for_a_run_is_told_to_look_after_a_time_without_notifications(
    baton_dsn: str, db: AsyncConnection
) -> None:
    async with Baton(baton_dsn, poll_interval=3600) as client:
        workflow = Workflow("waited for")
        workflow.add("a", Job("tests.Nobody"))
        run = await client.insert(workflow)
        waiting = asyncio.create_task(run.wait(timeout=60))

        async def has_a_lease() -> bool:
            return bool(await one(db, "SELECT count(*) FROM workflow_subscribers"))

        await eventually(has_a_lease)
        await db.execute("SELECT pg_terminate_backend(%s)", (await listener(db),))
        # Settled while nobody listens.
        await db.execute("UPDATE oban_jobs SET state = 'cancelled'")
        assert await waiting == "failed"


@both
async def test_w11_listen_connects_without_what_the_pool_was_given_besides_its_string(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    given = conninfo_to_dict(baton_dsn)
    pool_options = {"kwargs": {"user": given["user"]}}
    dsn = make_conninfo("", **{**given, "user": "nobody_of_this_name"})
    if not with_baton:
        with pytest.raises(psycopg.OperationalError, match="nobody_of_this_name"):
            async with an_oban(dsn, with_baton, queues={}, pool_options=pool_options):
                raise AssertionError("it started")
        return
    async with an_oban(dsn, with_baton, pool_options=pool_options) as oban:
        await oban._notifier.listen("test", lambda *_: None, timeout=10)


@both
async def test_w11_a_start_fails_when_listen_alone_cannot_connect(
    baton_dsn: str, db: AsyncConnection, with_baton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server has no connection left for it; later there is one."""
    failures = 0
    connect = AsyncConnection.connect

    async def refuses_twice(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if kwargs.get("autocommit") and kwargs.get("application_name") != "baton engine" and failures < 2:
            failures += 1
            raise psycopg.OperationalError("sorry, too many clients already")
        return await connect(*args, **kwargs)

    monkeypatch.setattr(AsyncConnection, "connect", refuses_twice)
    if with_baton:
        async with an_oban(baton_dsn, with_baton) as oban:
            await oban._notifier.listen("test", lambda *_: None, timeout=10)
        assert failures == 2
    else:
        with pytest.raises(psycopg.OperationalError, match="too many"):
            async with an_oban(baton_dsn, with_baton, queues={}):
                raise AssertionError("it started")


# --- acks --------------------------------------------------------------------------------------------


@both
async def test_w02_one_value_that_cannot_be_stored_stops_its_queue(baton_dsn: str, with_baton: bool) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        poisonous, good = await oban.enqueue_many([Poisonous.new("bad"), Worker.new("good")])
        producer = oban._producers["default"]
        if with_baton:
            await becomes(oban, good, "completed")
            await becomes(oban, poisonous, "retryable")
            return
        await eventually(lambda: len(producer._pending_acks) == 2)
        for _ in range(2):
            with pytest.raises(psycopg.DataError):
                await producer._produce()
        assert await state(oban, good) == "executing"
        producer._pending_acks.clear()


@both
async def test_w03_a_failed_ack_is_not_tried_again(
    baton_dsn: str, db: AsyncConnection, with_baton: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = psycopg.sql.Identifier(db.info.dbname)
    await db.execute(psycopg.sql.SQL("ALTER DATABASE {} SET lock_timeout = '50ms'").format(name))
    async with an_oban(baton_dsn, with_baton) as oban, await AsyncConnection.connect(baton_dsn) as other:
        job = await oban.enqueue(Held.new())
        await Worker.began["job"].wait()
        await other.execute("SELECT FROM oban_jobs FOR UPDATE")
        Worker.told["job"].set()
        await eventually(lambda: "lock timeout" in caplog.text)
        await other.commit()
        if with_baton:
            await becomes(oban, job, "completed")
        else:
            for _ in range(3):
                stager: Any = oban._stager
                await stager._stage()
            producer = oban._producers["default"]
            assert not producer._notified.is_set()
            assert await state(oban, job) == "executing"


@both
async def test_w04_an_error_beside_the_worker_leaves_a_job_executing(
    baton_dsn: str, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        job = await oban.enqueue(BrokenBackoff.new())
        await Worker.began["job"].wait()
        producer = oban._producers["default"]
        if with_baton:
            await becomes(oban, job, "retryable")
        else:
            await eventually(lambda: not producer._running_jobs)
            assert producer._pending_acks == []
            assert await state(oban, job) == "executing"


@both
async def test_w30_the_text_of_an_error_has_no_bound(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        job = await oban.enqueue(Verbose.new())
        await becomes(oban, job, "retryable")
        error = await one(db, "SELECT errors -> 0 ->> 'error' FROM oban_jobs")
        assert (len(error) > 1_000_000) is not with_baton
        assert error.startswith("Traceback")
        assert error.rstrip().endswith("the end"), "the end says what it was"
        if with_baton:
            assert len(error.encode()) <= 16_384


# --- what others do to jobs --------------------------------------------------------------------------


async def without_triggers(db: AsyncConnection) -> None:
    """As if Baton had never been installed."""
    await db.execute("ALTER TABLE oban_jobs DISABLE TRIGGER USER")


async def insert(dsn: str, workflow: Workflow) -> None:
    async with Baton(dsn) as client:
        await client.insert(workflow)


@both
async def test_w06_what_changes_a_job_past_its_executor_is_not_followed(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    await insert(baton_dsn, graph({"a": [], "b": ["a"]}))
    if not with_baton:
        await without_triggers(db)
    await db.execute("DELETE FROM oban_jobs WHERE meta ->> 'workflow_name' = 'a'")
    after = await one(db, "SELECT state FROM oban_jobs")
    assert after == ("cancelled" if with_baton else "suspended")


@both
async def test_w07_a_cancel_is_lost_with_its_notification(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        job = await oban.enqueue(Held.new())
        await Worker.began["job"].wait()
        await oban._notifier.stop()
        assert await oban.cancel_many_jobs([job]) == 1
        Worker.told["job"].set()
        await becomes(oban, job, "cancelled" if with_baton else "completed")


@both
async def test_w08_a_retry_lets_a_held_job_go(baton_dsn: str, db: AsyncConnection, with_baton: bool) -> None:
    await insert(baton_dsn, graph({"a": [], "b": ["a"]}))
    if not with_baton:
        await without_triggers(db)
    held = await one(db, "SELECT id FROM oban_jobs WHERE state = 'suspended'")
    async with an_oban(baton_dsn, with_baton, start=False) as oban:
        await oban.retry_job(held)
        assert await state(oban, held) == ("suspended" if with_baton else "available")


@both
async def test_w18_an_update_of_a_stale_copy_loses_a_recorded_result(
    baton_dsn: str, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton) as oban:
        if not with_baton:
            stale = await oban.enqueue(Recording.new(scheduled_in=60))
            await oban.retry_job(stale)
            await becomes(oban, stale, "completed")
            await oban.update_job(stale, {"tags": ["seen"]})
            found = await oban.get_job(stale.id or 0)
            assert found is not None
            assert "return" not in found.meta
            return
        (attached,) = (seam for seam in seam_module._seams.values() if seam.oban is oban)
        workflow = Workflow("recorded")
        workflow.add("it", Recording.new())
        async with Baton(baton_dsn) as client:
            run = await client.insert(workflow)
            stale = await oban.get_job((await run.status()).step("it").job_id)
            attached.wake(["default"])
            assert await run.result("it", timeout=10) == "kept"
            assert stale is not None
            await oban.update_job(stale, {"tags": ["seen"]})
            assert await run.result("it") == "kept"


@step(name="tests.weak_points.bytes", max_attempts=1)
async def give_bytes() -> Any:
    return b"abc"


@step(name="tests.weak_points.nan", max_attempts=1)
async def give_nan() -> Any:
    return float("nan")


@both
async def test_w20_a_recorded_value_comes_back_as_another(baton_dsn: str, with_baton: bool) -> None:
    if not with_baton:
        assert decode_recorded(encode_recorded(b"abc")) == "abc"
        return
    workflow = Workflow("bytes")
    workflow.add("it", give_bytes.new())
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        run = await worker.insert(workflow)
        with pytest.raises(StepFailed, match="bytes"):
            await run.result("it", timeout=10)


@both
async def test_w21_a_codec_that_is_changed_for_all_turns_nan_into_null(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    """As Oban's command does, for all of psycopg and the whole process."""
    psycopg.types.json.set_json_dumps(orjson.dumps)
    try:
        if not with_baton:
            async with an_oban(baton_dsn, with_baton, start=False) as oban:
                await oban.enqueue(Job("tests.Nobody", args={"value": float("nan")}))
            assert await one(db, "SELECT args -> 'value' FROM oban_jobs") is None
            return
        workflow = Workflow("nan")
        workflow.add("it", give_nan.new())
        async with Baton(baton_dsn, queues={"default": 1}) as worker:
            run = await worker.insert(workflow)
            with pytest.raises(StepFailed, match="nan is not JSON"):
                await run.result("it", timeout=10)
    finally:
        psycopg.types.json.set_json_dumps(json.dumps)


@both
async def test_w31_a_reset_leaves_rows_about_jobs_that_are_gone(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    await insert(baton_dsn, graph({"a": [], "b": ["a"]}))
    async with an_oban(baton_dsn, with_baton, start=False) as oban:
        await oban._query.reset()
    assert await one(db, "SELECT count(*) FROM oban_jobs") == 0
    assert await one(db, "SELECT count(*) FROM workflow_nodes") == (0 if with_baton else 2)


# --- claiming, staging, pruning, inserting --------------------------------------------------------------


@both
async def test_w15_a_row_that_oban_cannot_load_stops_its_queue(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton, start=False) as oban:
        await db.execute(
            "INSERT INTO oban_jobs (worker, priority) VALUES ('tests.Odd', 12), ('tests.Good', 1)"
        )
        producer = oban._producers["default"]
        if with_baton:
            assert {job.worker for job in await producer._get_jobs()} == {"tests.Odd", "tests.Good"}
        else:
            with pytest.raises(ValueError, match="priority"):
                await producer._get_jobs()
            assert await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'executing'") == 0


@both
async def test_w16_exhausted_jobs_at_the_head_starve_their_queue(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton, start=False, queues={"default": 1}) as oban:
        await db.execute(
            "INSERT INTO oban_jobs (worker, attempt, max_attempts, priority) "
            "VALUES ('tests.Exhausted', 3, 3, 0), ('tests.Good', 0, 3, 1)"
        )
        jobs = await oban._producers["default"]._get_jobs()
        assert [job.worker for job in jobs] == (["tests.Good"] if with_baton else [])


@both
async def test_w17_a_job_that_is_retried_meanwhile_is_pruned(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    await db.execute(
        "INSERT INTO oban_jobs (worker, state, completed_at) VALUES ('tests.Retried', 'completed', '2000-01-01'), "
        "('tests.Old', 'completed', '2000-01-01'), ('tests.Recent', 'completed', timezone('UTC', now()))"
    )
    async with (
        an_oban(baton_dsn, with_baton, start=False) as oban,
        await AsyncConnection.connect(baton_dsn) as other,
    ):
        await other.execute(
            "UPDATE oban_jobs SET state = 'available', completed_at = NULL WHERE worker = 'tests.Retried'"
        )
        pruner: Any = oban._pruner
        pruning = asyncio.create_task(pruner._prune())

        async def waits_or_has_ended() -> bool:
            return pruning.done() or await somebody_waits(db)

        await eventually(waits_or_has_ended)
        await other.commit()
        await pruning
    left = await one(db, "SELECT array_agg(worker ORDER BY id) FROM oban_jobs")
    assert left == (["tests.Retried", "tests.Recent"] if with_baton else ["tests.Recent"])


@both
async def test_w19_what_was_staged_waits_for_the_next_turn(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with an_oban(baton_dsn, with_baton, start=False, queues={"default": 1, "idle": 1}) as oban:
        await db.execute(
            "INSERT INTO oban_jobs (worker, state, scheduled_at) VALUES ('tests.Due', 'scheduled', '2000-01-01')"
        )
        stager: Any = oban._stager
        await stager._stage()
        assert await one(db, "SELECT state FROM oban_jobs") == "available"
        assert oban._producers["default"]._notified.is_set() is with_baton
        assert not oban._producers["idle"]._notified.is_set()
        if with_baton:
            assert await oban._query.stage_jobs(10, ["default"]) == (0, ["default"])


class Counting:
    """A caller's connection that counts its round trips."""

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn
        self.trips = 0

    async def execute(self, *args: Any) -> Any:
        self.trips += 1
        return await self._conn.execute(*args)


@both
async def test_w29_each_job_is_a_round_trip(baton_dsn: str, db: AsyncConnection, with_baton: bool) -> None:
    async with an_oban(baton_dsn, with_baton, start=False) as oban:
        conn = Counting(db)
        jobs = await oban.enqueue_many([Job("tests.Nobody") for _ in range(100)], conn=conn)
        assert conn.trips == (1 if with_baton else 100)
        assert len({job.id for job in jobs}) == 100


async def described(db: AsyncConnection, ids: list[int | None]) -> list[dict[str, Any]]:
    async with db.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT state::text, queue, worker, args, meta, tags, priority, max_attempts, inserted_at < now(), "
            "       scheduled_at - timezone('UTC', now()) > interval '1 hour' AS later "
            "FROM unnest(%s::bigint[]) WITH ORDINALITY AS wanted (id, place) JOIN oban_jobs USING (id) ORDER BY place",
            (ids,),
        )
        return await cursor.fetchall()


def all_kinds() -> list[Job]:
    later = datetime.now(UTC) + timedelta(hours=2)
    return [
        Job(
            "tests.A", args={"n": 10**30, "text": 'quote " \\ {}', "deep": [{"a": None}]}, tags=["b", "a,{}"]
        ),
        Job("tests.B", queue="mail", priority=3, max_attempts=7, meta={"a": 1}),
        Job("tests.C", scheduled_at=later),
        Job("tests.D", state=JobState.SUSPENDED),
        Job("tests.E", inserted_at=datetime(2020, 1, 1, tzinfo=UTC)),
        Job("tests.F", scheduled_in=7200, queue='odd"queue\\'),
    ]


async def test_jobs_are_inserted_as_by_oban_alone(baton_dsn: str, db: AsyncConnection) -> None:
    async with (
        an_oban(baton_dsn, True, start=False) as oban,
        await AsyncConnection.connect(baton_dsn, row_factory=dict_row) as callers,
    ):
        as_oban_does = all_kinds()
        # Without its odd queue, whose notification would be garbage.
        await seam_module.oban_insert_jobs(oban._query, as_oban_does)
        ours, in_callers = all_kinds(), all_kinds()
        assert await oban.enqueue_many(ours) == ours
        await oban.enqueue_many(in_callers, conn=callers)
        assert len(await described(db, [job.id for job in in_callers])) == 0, "the caller has not committed"
        await callers.commit()
        wanted = await described(db, [job.id for job in as_oban_does])
        assert len(wanted) == 6
        for jobs in (ours, in_callers):
            assert await described(db, [job.id for job in jobs]) == wanted
            for job, theirs in zip(jobs, as_oban_does, strict=True):
                assert (job.state, job.queue) == (theirs.state, theirs.queue)
                assert type(job.scheduled_at) is type(theirs.scheduled_at)
        assert await oban.enqueue_many([]) == []
        many = await oban.enqueue_many([Job("tests.M", args={"n": n}) for n in range(12_000)])
        rows = await (
            await db.execute("SELECT id FROM oban_jobs WHERE worker = 'tests.M' ORDER BY (args ->> 'n')::int")
        ).fetchall()
        assert [job.id for job in many] == [id_ for (id_,) in rows]


async def test_an_insert_notifies_once_a_queue_and_only_of_what_may_run(
    baton_dsn: str, db: AsyncConnection
) -> None:
    await db.execute('LISTEN "public.oban_insert"')
    async with an_oban(baton_dsn, True, start=False) as oban:
        await oban.enqueue_many([*all_kinds(), *all_kinds()])
    told = [json.loads(note.payload) async for note in db.notifies(timeout=10, stop_after=2)]
    assert sorted(note["queue"] for note in told) == ["default", "mail"]


# --- start, schema, connections ------------------------------------------------------------------------


@both
async def test_w24_a_failed_start_leaves_its_tasks_running(
    baton_dsn: str, with_baton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncConnectionPool(baton_dsn, min_size=1, max_size=5, open=False) as pool:
        app = Oban(pool=pool, name=str(uuid4()), queues={"default": 1})
        attached = Baton(oban=app) if with_baton else None

        async def fails(**_: Any) -> None:
            raise psycopg.OperationalError("the database went away")

        with monkeypatch.context() as patch:
            patch.setattr(app._query, "insert_producer", fails)
            with pytest.raises(psycopg.OperationalError, match="went away"):
                await (attached or app).start()
        await app.stop()
        if attached is None:
            assert {"oban-stager", "oban-lifeline", "oban-pruner"} <= obans_tasks()
            for task in asyncio.all_tasks():
                if task.get_name().startswith("oban-"):
                    task.cancel()
            await asyncio.gather(
                *(t for t in asyncio.all_tasks() if t.get_name().startswith("oban-")), return_exceptions=True
            )
            return
        assert obans_tasks() == set()
        async with attached:
            job = await app.enqueue(Worker.new())
            await becomes(app, job, "completed")
            assert app.is_leader
        assert obans_tasks() == set()


@both
async def test_w22_a_second_schema_cannot_be_installed(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    await db.execute("CREATE SCHEMA other")
    try:
        async with AsyncConnectionPool(baton_dsn, min_size=1, open=False) as pool:
            if with_baton:
                for _ in range(2):
                    await migration.up(baton_dsn, prefix="other")
            else:
                with pytest.raises(psycopg.errors.UndefinedObject):
                    await install(pool, prefix="other")
    finally:
        await db.execute("DROP SCHEMA other CASCADE")


@both
async def test_w28_a_pool_hands_out_connections_that_are_gone(
    baton_dsn: str, db: AsyncConnection, with_baton: bool
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if with_baton:
            app = (await stack.enter_async_context(Baton(baton_dsn))).oban
        else:
            app = await stack.enter_async_context(an_oban(baton_dsn, False, queues={}))
        assert await app.get_job(1) is None
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await eventually(lambda: nobody_else(db))
        if with_baton:
            assert await app.get_job(1) is None
        else:
            with pytest.raises(psycopg.OperationalError):
                await app.get_job(1)


@both
async def test_w28_a_connection_that_does_not_answer_is_waited_for_without_end(
    baton_dsn: str, db: AsyncConnection, with_baton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_acks, "CALL_SECONDS", 0.5)
    # With Baton, not even a stop waits for a pool that has nothing to give.
    pool_options = {} if with_baton else {"timeout": 1.0}
    async with (
        Gate.before(baton_dsn) as gate,
        an_oban(gate.dsn, with_baton, pool_options=pool_options) as oban,
    ):
        await oban.enqueue(Held.new())
        await Worker.began["job"].wait()
        gate.stall()
        Worker.told["job"].set()

        async def is_completed() -> bool:
            return bool(await one(db, "SELECT count(*) FROM oban_jobs WHERE state = 'completed'"))

        if with_baton:
            await eventually(is_completed, timeout=30)
        else:
            with pytest.raises(AssertionError):
                await eventually(is_completed, timeout=4)
        gate.shut()
        if not with_baton:
            with pytest.raises(psycopg.Error):
                await oban.stop()
            oban._signal_token = None


async def nobody_else(db: AsyncConnection) -> bool:
    return (
        await one(
            db,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND application_name <> 'baton listen'",
        )
    ) == 0


async def test_batons_connections_notice_a_server_that_went_away_without_a_word(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as client:
        assert client._engine is not None
        for pool in (client.oban._query._pool, await client._engine.open()):
            async with pool.connection() as conn:
                given = conn.info.get_parameters()
                assert {
                    "connect_timeout",
                    "keepalives_idle",
                    "keepalives_count",
                    "tcp_user_timeout",
                } <= given.keys()
                level = await (await conn.execute("SHOW transaction_isolation")).fetchone()
                assert level == ("read committed",)


@pytest.mark.parametrize("pooling", [True, False])
async def test_a_pooler_in_between_is_named(
    baton_dsn: str, pooling: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Gate.before(baton_dsn, pooling=pooling) as gate, Baton(gate.dsn):
        assert ("pooler" in caplog.text) is pooling


# --- code and clocks -----------------------------------------------------------------------------------


@both
async def test_w26_a_row_says_what_is_imported(
    baton_dsn: str, db: AsyncConnection, with_baton: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap_of_w26.py").write_text(
        "import os\nos.environ['W26'] = 'sprung'\nclass Work:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("W26", raising=False)
    if not with_baton:
        async with an_oban(baton_dsn, with_baton) as oban:
            await oban.enqueue(Job("trap_of_w26.Work"))
            await eventually(lambda: os.environ.get("W26") == "sprung")
        return
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        workflow = Workflow("trapped")
        workflow.add("it", give_nan.new())
        workflow.add("then", give_nan.new(), deps=["it"])
        await worker.oban.pause_queue("default")
        run = await worker.insert(workflow)
        await db.execute('UPDATE oban_jobs SET args = args || \'{"step": "trap_of_w26.Work"}\'')
        await worker.oban.resume_queue("default")

        async def was_looked_at() -> bool:
            return await one(db, "SELECT count(*) FROM oban_jobs WHERE attempted_at IS NOT NULL") == 1

        await eventually(was_looked_at)
        await run.cancel()
        await run.wait(timeout=10)
    assert "W26" not in os.environ


class SlowClock(datetime):
    """A client whose clock is an hour behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) - timedelta(hours=1)

    @classmethod
    def fromisoformat(cls, text: str) -> datetime:
        return datetime.fromisoformat(text)


@both
async def test_w32_a_delay_is_counted_by_the_clients_clock(
    baton_dsn: str, db: AsyncConnection, with_baton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["oban.job"], "datetime", SlowClock)
    if not with_baton:
        async with an_oban(baton_dsn, with_baton, start=False) as app:
            await app.enqueue(Job("tests.Nobody", scheduled_in=600))
        assert await one(db, "SELECT scheduled_at < timezone('UTC', now()) FROM oban_jobs"), "due at once"
        return
    for module in list(sys.modules.values()):
        if (
            getattr(module, "__name__", "").startswith("baton.")
            and getattr(module, "datetime", None) is datetime
        ):
            monkeypatch.setattr(module, "datetime", SlowClock)
    async with Baton(baton_dsn, queues={"default": 1}) as worker:
        workflow = Workflow("by the server's clock", deadline=timedelta(seconds=600))
        workflow.add("it", Snoozing.new())
        run = await worker.insert(workflow)

        async def snoozes() -> bool:
            return (await run.status()).step("it").state == "scheduled"

        await eventually(snoozes)
    minutes = await one(
        db,
        "SELECT array[extract(epoch FROM scheduled_at - timezone('UTC', now())), extract(epoch FROM deadline_at - now())] "
        "FROM oban_jobs, workflows",
    )
    assert 0 < minutes[0] <= 60
    assert 300 < minutes[1] <= 600


# --- the slots -----------------------------------------------------------------------------------------

# These do on an Oban with Baton what Baton is for; every other one is done by whoever was there before as well.
REPLACED = {"producer.get_jobs", "query.ack_jobs"}
SLOTS: dict[str, Any] = {
    "executor.wrap_result": lambda _job, result: result,
    "lifeline.rescue": seam_module.oban_rescue,
    "producer.get_jobs": seam_module.oban_get_jobs,
    "pruner.prune": seam_module.oban_prune,
    "query.ack_jobs": seam_module.oban_ack_jobs,
    "query.insert_jobs": seam_module.oban_insert_jobs,
    "query.reset": seam_module.oban_reset,
    "stager.before_stage": seam_module._nothing,
}


def noting(called: list[str], name: str, function: Any) -> Any:
    """The extension of somebody else's that passes on."""

    def note(*args: Any) -> Any:
        called.append(name)
        return function(*args)

    return note


async def use_every_slot(oban: Oban) -> None:
    """What Oban does over time, at once."""
    await oban.enqueue(Worker.new())
    (job,) = await oban._producers["default"]._get_jobs()
    use_ext("executor.wrap_result", None, job, 1)
    await oban._query.ack_jobs([AckAction(job=job, state="completed")])
    stager, lifeline, pruner, leader = oban._stager, oban._lifeline, oban._pruner, oban._leader
    await stager._stage()  # type: ignore[attr-defined]
    leader._is_leader, leader._held_until = True, float("inf")  # type: ignore[attr-defined]
    await lifeline._rescue()  # type: ignore[attr-defined]
    await pruner._prune()  # type: ignore[attr-defined]
    await oban._query.reset()


@pytest.fixture
def _empty_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam_module, "_filled", {})
    monkeypatch.setattr(_extensions, "_extensions", {})


@pytest.mark.usefixtures("_empty_slots")
async def test_an_extension_that_was_there_before_baton_is_still_called(baton_dsn: str) -> None:
    called: list[str] = []
    for name, function in SLOTS.items():
        put_ext(name, noting(called, name, function))
    async with (
        an_oban(baton_dsn, True, start=False) as attached,
        an_oban(baton_dsn, False, start=False) as alone,
    ):
        assert seam_module._filled.keys() == SLOTS.keys()
        await use_every_slot(attached)
        assert set(called) == SLOTS.keys() - REPLACED
        called.clear()
        await use_every_slot(alone)
        assert sorted(called) == sorted(SLOTS), "each of them once"


@pytest.mark.usefixtures("_empty_slots")
async def test_baton_is_still_called_by_an_extension_that_came_after_it_and_passes_on(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        an_oban(baton_dsn, True, start=False) as first,
        an_oban(baton_dsn, True, start=False) as second,
        an_oban(baton_dsn, False, start=False) as alone,
    ):
        called: list[str] = []
        for name, function in list(seam_module._filled.items()):
            put_ext(name, noting(called, name, function))
        asked: list[tuple[str, Engine]] = []
        for name in ("ack", "sweep", "rescue", "prune_jobs", "reset"):
            monkeypatch.setattr(Engine, name, asking(asked, name, getattr(Engine, name)))
        for oban in (first, second):
            called.clear()
            asked.clear()
            await use_every_slot(oban)
            assert sorted(called) == sorted(SLOTS)
            assert {name for name, _ in asked} == {"ack", "sweep", "rescue", "prune_jobs", "reset"}
            assert {engine for _, engine in asked} == {seam_module._seams[oban._query].engine}
        asked.clear()
        await use_every_slot(alone)
        assert asked == []


def asking(asked: list[tuple[str, Engine]], name: str, method: Any) -> Any:
    async def ask(engine: Engine, *args: Any) -> Any:
        asked.append((name, engine))
        return await method(engine, *args)

    return ask


async def test_an_oban_that_baton_has_left_is_obans_own_again_and_goes_on(
    baton_dsn: str, db: AsyncConnection
) -> None:
    async with an_oban(baton_dsn, False) as oban:
        async with Baton(oban=oban):
            ear = await Ear.of(oban, db)
        assert type(oban._leader) is Leader
        assert oban._query not in seam_module._seams
        assert vars(oban._query).keys() == {"_pool", "_prefix"}
        for part in (oban, oban._stager, oban._refresher, oban._leader, oban._notifier):
            assert vars(part).keys().isdisjoint({"start", "stop"})
        ear.forget()
        await eventually(ear.hears)
        await elect(oban)
        assert oban.is_leader, "it renews what it was elected for with Baton"
    assert obans_tasks() == set()


async def test_a_leader_and_a_notifier_of_somebody_elses_are_left_alone(
    baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnLeader(Leader):
        pass

    class OwnNotifier(PostgresNotifier):
        pass

    monkeypatch.setattr(_extensions, "_extensions", dict(_extensions._extensions))
    put_ext("leader.build", lambda config, **options: OwnLeader(**options, **config))
    put_ext("notifier.build", lambda spec, query: OwnNotifier(query=query, **spec))
    async with an_oban(baton_dsn, True) as oban:
        assert type(oban._leader) is OwnLeader
        assert type(oban._notifier) is OwnNotifier


# --- the page ------------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| (W\d+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
OUT_OF_REACH = "none"


def rows() -> dict[str, tuple[str, str, str, str]]:
    """What the page says of each weak point: alone, with Baton, tests, for which Oban."""
    return {found[1]: (found[2], found[3], found[4], found[5]) for found in _ROW.finditer(PAGE.read_text())}


def every_test_there_is() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


def test_the_page_has_a_row_for_every_weak_point() -> None:
    assert list(rows()) == [f"W{n}" for n in range(1, 33)]


@pytest.mark.parametrize("point", [f"W{n}" for n in range(1, 33)])
def test_every_test_that_the_page_names_is_there(point: str) -> None:
    named = re.findall(r"`(test_\w+)`", rows()[point][2])
    files = re.findall(r"`(tests/test_\w+\.py)`", rows()[point][2])
    assert named or files or rows()[point][2] == OUT_OF_REACH
    assert set(named) <= every_test_there_is()
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_scenario_is_on_the_page() -> None:
    source = Path(__file__).read_text()
    scenarios = set(re.findall(r"^async def (test_w\d\d_\w+)\(", source, re.MULTILINE))
    named = {name for row in rows().values() for name in re.findall(r"`(test_\w+)`", row[2])}
    assert scenarios <= named
    for name in scenarios:
        point = f"W{int(name[6:8])}"
        assert f"`{name}`" in rows()[point][2], f"{name} is in another row than {point}"


@pytest.mark.parametrize("point", [f"W{n}" for n in range(1, 33)])
def test_the_installed_oban_is_one_that_the_row_was_written_for(point: str) -> None:
    assert version("oban") in SpecifierSet(rows()[point][3].strip("`")), (
        "is it still weak there? read, then say so"
    )
