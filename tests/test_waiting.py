"""Waiting: who listens to a topic while others join and leave it, and how long an outage may last."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest

from baton import Baton, Workflow, _waiting, step
from baton._deadline import pause_after
from baton._reports import Heard, Reports, Told
from baton._waiting import Waiters
from tests.kit.following import leases, rest_of, sql
from tests.kit.wait import eventually


@step(name="tests.waiting.quiet")
async def quiet() -> None:
    return None


@pytest.fixture
async def client(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, poll_interval=600) as client:
        yield client


# Broken, it holds the event loop for ever.
@pytest.mark.timeout(30)
async def test_who_joins_in_the_very_moment_in_which_the_last_one_has_left_is_heard(
    client: Baton, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiters = client._access.waiters  # type: ignore[union-attr]
    topic, heard = f"workflow:{uuid4()}", asyncio.Event()
    joined: list[asyncio.Task[None]] = []
    leave = Waiters._unsubscribe

    async def left(waiters: Waiters, name: str) -> None:
        await leave(waiters, name)
        # It runs before whoever is told that this task has ended.
        joined.append(asyncio.create_task(waiters.join(topic, lambda _: heard.set())))

    monkeypatch.setattr(Waiters, "_unsubscribe", left)

    def listener(_: object) -> None:
        return None

    await waiters.join(topic, listener)
    await waiters.renew(topic)
    waiters.leave(topic, listener)
    leaving = waiters._leaving[topic]
    await leaving
    await joined[0]
    monkeypatch.undo()
    await waiters.renew(topic)
    payload = json.dumps({"id": topic.removeprefix("workflow:")})
    await sql(baton_dsn, "SELECT pg_notify('public.oban_workflow', %s)", payload)
    async with asyncio.timeout(10):
        await heard.wait()


@pytest.mark.parametrize("failures", [1, 3, 1_023, 1_024, 100_000])
def test_a_pause_is_doubled_up_to_a_bound_however_long_an_outage_lasts(failures: int) -> None:
    assert pause_after(failures, first=0.2, longest=5.0) == {1: 0.2, 3: 0.8}.get(failures, 5.0)


async def test_what_steps_report_is_sent_after_an_outage_of_any_length() -> None:
    sent: list[Told] = []

    async def send(told: list[Told]) -> Heard:
        if not sent:
            sent.extend(told)
            raise psycopg.OperationalError("away")
        sent.extend(told)
        return Heard([one.job_id for one in told], [])

    reports = Reports(send, limit=1_000)  # type: ignore[arg-type]
    # As many as there are in an hour.
    reports._failures = 2_000
    report = reports.begin(1, datetime.now(UTC), "a step")
    report.tell(1.0, None, None)
    async with asyncio.timeout(20):
        await reports.finish(report)
    assert report.is_sent
    await reports.stop()


async def test_who_follows_a_quiet_stream_sees_to_its_lease_however_rare_the_polls_are(
    client: Baton, baton_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting, "_RENEWED_SECONDS", 0.2)
    workflow = Workflow("quiet")
    workflow.add("quiet", quiet.new())
    run = await client.insert(workflow)
    following = asyncio.create_task(rest_of(run.stream("quiet")))
    await eventually(lambda: leases(baton_dsn))
    await sql(baton_dsn, "DELETE FROM workflow_subscribers")
    await eventually(lambda: leases(baton_dsn))
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_nobody_looks_before_the_lease_that_another_is_taking_is_in_force(
    client: Baton, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiters = client._access.waiters  # type: ignore[union-attr]
    topic, order = f"finished:{uuid4()}", []

    async def subscribe(_: Waiters, name: str) -> None:
        for _turn in range(10):
            await asyncio.sleep(0)
        order.append("lease")

    async def look() -> None:
        await waiters.renew(topic)
        order.append("look")

    def listener(_: object) -> None:
        return None

    monkeypatch.setattr(Waiters, "_subscribe", subscribe)
    await waiters.join(topic, listener)
    await asyncio.gather(look(), look(), look())
    waiters.leave(topic, listener)
    assert order == ["lease", "look", "look", "look"]
