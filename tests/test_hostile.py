"""Values that break what does not expect them, each beside good jobs on the same queue: all settle, the queue goes on."""

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import psycopg
import pytest
from oban.job import Cancel as ObanCancel
from oban.job import Job
from oban.job import Snooze as ObanSnooze

import baton
from baton import Baton, Workflow, step
from baton.errors import DefinitionError, InvalidArgument, InvalidName
from baton.run import Run
from tests.kit.hostile import LEGAL, NAMES, VALUES, Broken
from tests.kit.reused import Reused
from tests.kit.wait import eventually


@pytest.fixture(scope="module")
def database(_baton_server: Any) -> Iterator[Reused]:
    with Reused(*_baton_server) as database:
        yield database


@pytest.fixture
def baton_dsn(database: Reused) -> str:
    return database.clean()


@step(name="tests.hostile.good")
async def good(n: int) -> int:
    return n


@asynccontextmanager
async def beside_good_jobs(dsn: str, hostile: dict[str, Any], **options: Any) -> AsyncIterator[Run]:
    """Run hostile jobs and five good ones on one queue; at the end, the good ones have settled and the queue goes on."""
    async with Baton(dsn, queues={"default": 10}, poll_interval=0.05, **options) as worker:
        workflow = Workflow("hostile")
        for n, (name, job) in enumerate(hostile.items()):
            workflow.add(name, job)
            if n < 5:
                workflow.add(f"good-{n}", good.new(n))
        for n in range(len(hostile), 5):
            workflow.add(f"good-{n}", good.new(n))
        run = await worker.insert(workflow)
        yield run
        for n in range(5):
            assert await run.result(f"good-{n}", timeout=10) == n
        after = Workflow("after")
        after.add("good", good.new(7))
        assert await (await worker.insert(after)).result("good", timeout=10) == 7


def numbered(values: Any) -> dict[str, str]:
    """Step names for hostile keys."""
    return {f"h{n}": value for n, value in enumerate(values)}


# --- results -----------------------------------------------------------------------------------------


@step(name="tests.hostile.returns", max_attempts=1)
async def returns(what: str) -> Any:
    return {**VALUES, **LEGAL}[what]()


@step(name="tests.hostile.returns_plain", max_attempts=1)
def returns_plain(what: str) -> Any:
    return {**VALUES, **LEGAL}[what]()


@pytest.mark.parametrize("function", [returns, returns_plain], ids=["async", "plain"])
async def test_a_result_that_cannot_be_stored_fails_its_step_and_no_other(
    baton_dsn: str, function: Any
) -> None:
    steps = numbered(VALUES)
    async with beside_good_jobs(baton_dsn, {name: function.new(what) for name, what in steps.items()}) as run:
        assert await run.wait(timeout=30) == "failed"
        status = await run.status()
        assert {steps[name]: str(status.step(name).state) for name in steps} == dict.fromkeys(
            VALUES, "discarded"
        )
        for name, what in steps.items():
            assert "result" in str(status.step(name).error), what


async def test_an_unusual_result_that_json_can_hold_is_stored_as_it_is(baton_dsn: str) -> None:
    steps = numbered(LEGAL)
    async with beside_good_jobs(baton_dsn, {name: returns.new(what) for name, what in steps.items()}) as run:
        assert await run.wait(timeout=30) == "completed"
        results = await run.results()
        for name, what in steps.items():
            wanted = LEGAL[what]()
            assert results[name] == wanted, what
            assert type(results[name]) is type(wanted), what


# --- arguments ---------------------------------------------------------------------------------------


@step(name="tests.hostile.takes", max_attempts=1)
async def takes(value: Any) -> int:
    return len(json.dumps(value))


# JSON in PostgreSQL is numeric, which has no negative zero.
ARGUMENTS = LEGAL.keys() - {"200 levels", "negative zero"}


@pytest.mark.parametrize("what", sorted(VALUES.keys() - {"20 MB of text"}))
def test_an_argument_that_cannot_be_stored_is_refused_where_it_is_given(what: str) -> None:
    with pytest.raises(InvalidArgument, match="argument value"):
        takes.new(VALUES[what]())


async def test_unusual_arguments_and_large_ones_arrive_as_they_were(baton_dsn: str) -> None:
    # A level less than a result may have: arguments stand in a dict by name.
    steps = numbered(ARGUMENTS)
    jobs = {name: takes.new(LEGAL[what]()) for name, what in steps.items()}
    jobs["large"] = takes.new("x" * 20_000_000)
    async with beside_good_jobs(baton_dsn, jobs) as run:
        assert await run.wait(timeout=30) == "completed"
        results = await run.results()
        assert results["large"] == 20_000_002
        for name, what in steps.items():
            assert results[name] == len(json.dumps(LEGAL[what]())), what


# --- errors ------------------------------------------------------------------------------------------

ERRORS: dict[str, Callable[[], BaseException]] = {
    "NUL": lambda: ValueError("a\x00b"),
    "lone surrogate": lambda: ValueError("a\ud800b"),
    "20 MB": lambda: ValueError("x" * 20_000_000),
    "escape": lambda: ValueError("\\u0000 \\ud800 %s %(name)s {} \x1b[31m \u202e"),
    "bytes": lambda: ValueError(b"\xff\x00"),
    "broken text": lambda: ValueError(Broken()),
    "nested group": lambda: ExceptionGroup("a\x00", [ExceptionGroup("b\ud800", [ValueError("x" * 100_000)])]),
    "note": lambda: _noted(ValueError("noted")),
    "cause": lambda: _caused(),
    "no arguments": lambda: KeyError(),
    "syntax": lambda: SyntaxError("a\x00", ("f\ud800", 1, 1, "x\x00" * 100, 1, 2)),
    **{f"name {n}": lambda name=name: RuntimeError(name) for n, name in enumerate(NAMES)},
}


def _noted(error: BaseException) -> BaseException:
    error.add_note("a\x00\ud800")
    return error


def _caused() -> BaseException:
    error = ValueError("effect")
    error.__cause__ = ValueError("cause \x00 \udfff")
    return error


@step(name="tests.hostile.raises", max_attempts=1)
async def raises(what: str) -> None:
    raise ERRORS[what]()


@step(name="tests.hostile.raises_plain", max_attempts=1)
def raises_plain(what: str) -> None:
    raise ERRORS[what]()


@pytest.mark.parametrize("function", [raises, raises_plain], ids=["async", "plain"])
async def test_whatever_an_error_says_it_is_stored_clean_and_cut(baton_dsn: str, function: Any) -> None:
    steps = numbered(ERRORS)
    async with beside_good_jobs(baton_dsn, {name: function.new(what) for name, what in steps.items()}) as run:
        assert await run.wait(timeout=30) == "failed"
        status = await run.status()
        for name, what in steps.items():
            assert status.step(name).state == "discarded", what
            error = str(status.step(name).error)
            assert error, what
            assert "\0" not in error, what
            assert len(error) <= 16_384, what


@baton.worker(max_attempts=1)
class Raises:
    async def process(self, job: Job) -> None:
        raise ERRORS[job.args["what"]]()


@step(name="tests.hostile.cancels")
async def cancels(what: str) -> Any:
    return {
        "NUL": lambda: ObanCancel("a\x00"),
        "surrogate": lambda: baton.Cancel("\ud800"),
        "object": lambda: ObanCancel(Broken()),  # type: ignore[arg-type]
        "Baton's object": lambda: baton.Cancel(Broken()),  # type: ignore[arg-type]
        "huge": lambda: baton.Cancel("x" * 20_000_000),
        "None": lambda: ObanCancel(None),  # type: ignore[arg-type]
    }[what]()


async def test_a_cancel_with_a_hostile_reason_ends_its_step(baton_dsn: str) -> None:
    steps = numbered(["NUL", "surrogate", "object", "Baton's object", "huge", "None"])
    jobs = {name: cancels.with_options(max_attempts=1).new(what) for name, what in steps.items()}
    async with beside_good_jobs(baton_dsn, jobs) as run:
        assert await run.wait(timeout=20) == "failed"
        found = {
            steps[step.name]: str(step.state) for step in (await run.status()).steps if step.name in steps
        }
        assert found == {
            "NUL": "cancelled",
            "surrogate": "cancelled",
            "object": "discarded",
            "Baton's object": "discarded",
            "huge": "cancelled",
            "None": "cancelled",
        }


async def test_errors_of_ordinary_jobs_are_stored_as_well(baton_dsn: str) -> None:
    async with (
        beside_good_jobs(baton_dsn, {}) as run,
        await psycopg.AsyncConnection.connect(baton_dsn) as conn,
    ):
        await run.wait(timeout=10)
        await conn.execute(
            "INSERT INTO oban_jobs (worker, args, max_attempts) "
            "SELECT 'tests.test_hostile.Raises', jsonb_build_object('what', what), 1 FROM unnest(%s::text[]) AS what",
            (list(ERRORS),),
        )
        await conn.execute("SELECT pg_notify('public.oban_insert', '{\"queue\": \"default\"}')")
        await conn.commit()

        async def discarded() -> bool:
            row = await (
                await conn.execute("SELECT count(*) FROM oban_jobs WHERE state = 'discarded'")
            ).fetchone()
            return row == (len(ERRORS),)

        await eventually(discarded)


# --- snoozes -----------------------------------------------------------------------------------------

SNOOZES: dict[str, Callable[[], Any]] = {
    "NaN": lambda: ObanSnooze(float("nan")),  # type: ignore[arg-type]
    "infinity": lambda: ObanSnooze(float("inf")),  # type: ignore[arg-type]
    "negative": lambda: ObanSnooze(-(10**12)),
    "huge": lambda: ObanSnooze(10**30),
    "text": lambda: ObanSnooze("soon"),  # type: ignore[arg-type]
    "None": lambda: ObanSnooze(None),  # type: ignore[arg-type]
    "object": lambda: ObanSnooze(Broken()),  # type: ignore[arg-type]
    "Baton's NaN": lambda: baton.Snooze(float("nan")),
    "meta NUL": lambda: ObanSnooze(60, {"a": "\x00"}),
    "meta surrogate": lambda: ObanSnooze(60, {"\ud800": 1}),
    "meta NaN": lambda: ObanSnooze(60, {"a": float("nan")}),
    "meta bytes": lambda: ObanSnooze(60, {"a": b"x"}),
    "meta key": lambda: ObanSnooze(60, {1: 2}),
    "meta list": lambda: ObanSnooze(60, [1, 2]),  # type: ignore[arg-type]
    "Baton's meta list": lambda: baton.Snooze(60, [1, 2]),  # type: ignore[arg-type]
    "Baton's meta NUL": lambda: baton.Snooze(60, {"a": "\x00"}),
}


@step(name="tests.hostile.snoozes", max_attempts=1)
async def snoozes(what: str) -> Any:
    return SNOOZES[what]()


async def test_a_hostile_snooze_is_a_snooze_or_a_failure_and_nothing_else_suffers(baton_dsn: str) -> None:
    steps = numbered(SNOOZES)
    async with beside_good_jobs(baton_dsn, {name: snoozes.new(what) for name, what in steps.items()}) as run:

        async def all_written() -> bool:
            # The negative ones come round again and again; at one moment each is seen at rest.
            seen.update({s.name for s in (await run.status()).steps if s.state in ("scheduled", "discarded")})
            return seen >= steps.keys()

        seen: set[str] = set()
        await eventually(all_written)
        found = {steps[s.name]: str(s.state) for s in (await run.status()).steps if s.name in steps}
        assert {found[what] for what in ("text", "None", "object", "Baton's NaN") if what != "None"} == {
            "discarded"
        }
        assert (
            found["huge"] == found["infinity"] == found["meta NUL"] == found["meta surrogate"] == "scheduled"
        )


# --- names -------------------------------------------------------------------------------------------


async def test_a_hostile_name_is_refused_or_stored_as_it_is(baton_dsn: str) -> None:
    kept = []
    async with Baton(baton_dsn) as baton_:
        for name in NAMES:
            try:
                workflow = Workflow(name, key=name)
            except InvalidName:
                continue
            kept.append((await baton_.insert(workflow), name))
        listed = {
            summary.id: (summary.name, summary.key) for summary in await baton_.query.list_runs(limit=1000)
        }
        assert listed == {run.id: (name, name) for run, name in kept}
        assert len(kept) > 20, "most of them are legal names of workflows"
        for _, name in kept:
            assert (await baton_.insert(Workflow(name))).inserted


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_step_or_queue_name_is_refused_before_anything_is_written(name: str) -> None:
    workflow = Workflow("names")
    for add in (
        lambda: workflow.add(name, good.new(1)),
        lambda: workflow.add("step", good.with_options(queue=name).new(1)),
    ):
        if re.fullmatch(r"[a-z_.]+", name) and len(name) <= 60:
            continue
        with pytest.raises(DefinitionError):
            add()
    assert workflow.steps == {}


# --- rows --------------------------------------------------------------------------------------------


@baton.worker()
class Plain:
    ran: ClassVar[list[Any]] = []

    async def process(self, job: Job) -> None:
        self.ran.append((job.args, job.priority))


INSERT = "INSERT INTO oban_jobs (worker, {}) VALUES ('tests.test_hostile.Plain', {})"
ROWS = {
    "priority beyond Oban's": ("priority", "12"),
    "before all time": ("scheduled_at", "'-infinity'"),
    "before Christ": ("scheduled_at", "'4000-01-01 BC'"),
    "inserted after all time": ("inserted_at", "'infinity'"),
    "inserted in the year 200000": ("inserted_at", "'200000-01-01'"),
    "a number beyond any float": ("args", "'{\"n\": 1e400}'"),
    "an int beyond 64 bits": ("args", "'{\"n\": 10000000000000000000000000000000000000001}'"),
    "2,000 levels": ("args", "('{\"n\":' || repeat('[', 2000) || repeat(']', 2000) || '}')::jsonb"),
    "args that are a list": ("args", "'[1]'"),
    "args that are null": ("args", "'null'"),
    "meta that is a list": ("meta", "'[1]'"),
    "errors that are no list": ("errors", "'{}'"),
    "attempted by nobody": ("attempted_by", "ARRAY[NULL, NULL]::text[]"),
    "hostile tags": ("tags", "ARRAY[NULL, '', E'\\n', '\"', '{}']::text[]"),
}


@pytest.mark.parametrize("what", ROWS)
async def test_a_row_that_nobody_expects_does_not_keep_its_neighbours_from_running(
    baton_dsn: str, what: str
) -> None:
    Plain.ran.clear()
    async with await psycopg.AsyncConnection.connect(baton_dsn) as conn:
        await conn.execute(INSERT.format(*ROWS[what]).encode())
        await conn.commit()
        async with beside_good_jobs(baton_dsn, {}):

            async def settled() -> bool:
                await conn.rollback()
                row = await (
                    await conn.execute(
                        "SELECT count(*) FROM oban_jobs WHERE worker LIKE '%Plain' AND state IN ('available', 'executing')"
                    )
                ).fetchone()
                return row == (0,)

            await eventually(settled, timeout=2)
        # What no Python datetime can hold ends with an error that says so.
        cursor = await conn.execute(
            "SELECT errors FROM oban_jobs WHERE state = 'discarded' AND errors <> '[]'"
        )
        assert len(Plain.ran) + len(await cursor.fetchall()) == 1


async def test_an_ordinary_jobs_big_numbers_arrive_as_with_oban_alone(baton_dsn: str) -> None:
    Plain.ran.clear()
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        await conn.execute(INSERT.format("args", "'{\"n\": 100000000000000000000001}'").encode())
    async with beside_good_jobs(baton_dsn, {}):
        await eventually(lambda: Plain.ran)
    assert Plain.ran == [({"n": 100000000000000000000001}, 0)]


@pytest.mark.parametrize(
    "change", ["meta = '[1]'", "args = '[1]'", "args = '{}'", "tags = ARRAY[NULL]::text[]"]
)
async def test_a_step_whose_job_was_tampered_with_does_not_keep_others_from_running(
    baton_dsn: str, change: str
) -> None:
    async with Baton(baton_dsn) as inserter:
        workflow = Workflow("tampered")
        workflow.add("bad", good.with_options(max_attempts=1).new(1))
        run_id = (await inserter.insert(workflow)).id
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        await conn.execute(f"UPDATE oban_jobs SET {change}".encode())
    async with beside_good_jobs(baton_dsn, {}), Baton(baton_dsn) as reader:

        async def at_rest() -> bool:
            state = (await reader.get_run(run_id).status()).step("bad").state
            return state not in ("available", "executing")

        await eventually(at_rest, timeout=2)


async def test_exhausted_jobs_at_the_head_do_not_starve_their_queue(baton_dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO oban_jobs (worker, attempt, max_attempts, scheduled_at) "
            "SELECT 'tests.test_hostile.Plain', 3, 3, timezone('UTC', now()) - interval '1 day' FROM generate_series(1, 50)"
        )
    async with beside_good_jobs(baton_dsn, {}):
        pass


async def test_a_workflow_that_cannot_be_settled_does_not_stop_the_queue(baton_dsn: str) -> None:
    async with Baton(baton_dsn) as inserter:
        workflow = Workflow("broken")
        workflow.add("bad", good.new(1))
        run_id = (await inserter.insert(workflow)).id
    async with await psycopg.AsyncConnection.connect(baton_dsn, autocommit=True) as conn:
        await conn.execute(
            f"ALTER TABLE workflows ADD CONSTRAINT broken CHECK (id <> '{run_id}' OR unsettled = 1)".encode()
        )
        async with beside_good_jobs(baton_dsn, {}):
            pass


@step(name="tests.hostile.same")
async def same(value: Any) -> Any:
    return value


async def test_a_large_float_is_a_float_wherever_it_goes(baton_dsn: str) -> None:
    async with Baton(baton_dsn, queues={"default": 2}) as worker:
        workflow = Workflow("floats")
        given = workflow.add("given", same.new(1.5e300))
        workflow.add("handed", same.new([given.result, given.result]))
        run = await worker.insert(workflow)
        assert await run.wait(timeout=10) == "completed"
        assert await run.results() == {"given": 1.5e300, "handed": [1.5e300, 1.5e300]}


@step(name="tests.hostile.big", max_attempts=1)
async def big(n: int) -> str:
    return random.Random(n).randbytes(4_000_000).hex()


async def test_many_large_results_at_once_are_written_in_batches(baton_dsn: str) -> None:
    async with beside_good_jobs(baton_dsn, {f"big-{n}": big.new(n) for n in range(6)}) as run:
        assert await run.wait(timeout=60) == "completed"
        assert len(await run.result("big-3")) == 8_000_000
