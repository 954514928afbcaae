"""Workers that are killed, frozen, stopped and cut off: real processes, and a table that says what really ran."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton import step
from tests.kit.crew import blocks, kills, never_ends, one_step, waits
from tests.kit.processes import Server, Witness, Worker, until

pytestmark = pytest.mark.slow

GRACE = 2.0
# A stop takes the grace and two seconds, and a loaded machine longer. Left to themselves, pools take half a minute.
IN_TIME = GRACE + 8


@pytest.fixture
def witness(baton_dsn: str) -> Witness:
    return Witness(baton_dsn)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that lets steps end, once it is there."""
    return tmp_path / "gate"


@pytest.fixture(scope="module")
def _crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("crashing") / "pg") as server:
        yield server


@pytest.fixture
def server(_crashing: Server) -> Server:
    """A server that may crash, with an empty database."""
    _crashing.renew()
    return _crashing


def test_a_worker_that_was_frozen_changes_nothing_when_it_wakes(
    witness: Witness, gate: Path, tmp_path: Path
) -> None:
    with Worker(witness.dsn, tmp_path) as frozen:
        witness.insert(one_step("step", waits.new(str(gate))))
        until(lambda: witness.starts("step"), frozen)
        with Worker(witness.dsn, tmp_path).working() as other:
            frozen.freeze()
            until(lambda: len(witness.starts("step")) == 2, other)
            gate.touch()
            until(lambda: witness.job("step") == ("completed", 2), other)
            other.stop()
            assert other.end() == 0
        before = witness.rows("SELECT * FROM workflow_nodes"), witness.rows("SELECT * FROM oban_jobs")
        frozen.thaw()
        until(lambda: witness.ended("step") == 2, frozen)
        # Its producer writes outcomes before it claims.
        witness.insert(one_step("next", waits.new(str(gate))))
        until(lambda: witness.job("next") == ("completed", 1), frozen)
        assert witness.result("step") == other.pid
        assert (
            witness.rows("SELECT * FROM workflow_nodes WHERE name = 'step'"),
            witness.rows("SELECT * FROM oban_jobs WHERE id = (SELECT min(id) FROM oban_jobs)"),
        ) == before
        assert [(name,) for name in ("step", "next")] == witness.rows(
            "SELECT name FROM workflow_nodes ORDER BY id"
        )


def test_a_step_that_kills_its_worker_is_discarded_after_its_last_attempt(
    witness: Witness, gate: Path, tmp_path: Path
) -> None:
    witness.insert(one_step("kills", kills.with_options(max_attempts=2).new()))
    for count in itertools.count(1):
        with Worker(witness.dsn, tmp_path) as worker:
            until(lambda: worker.process.poll() is not None or witness.job("kills")[0] == "discarded", worker)
            if witness.job("kills")[0] == "discarded":
                break
        assert count <= 2
    assert [attempt for attempt, _ in witness.starts("kills")] == [1, 2]
    ((error, outcome),) = witness.rows(
        "SELECT step.error, workflow.outcome FROM workflow_nodes AS step "
        "JOIN workflows AS workflow ON workflow.id = step.workflow_id"
    )
    assert error.startswith("the process running it died, 2 times; it was on node ")
    assert outcome == "failed"


def test_a_stop_writes_what_ends_at_once_and_gives_the_rest_back(
    witness: Witness, gate: Path, tmp_path: Path
) -> None:
    with Worker(witness.dsn, tmp_path, shutdown_grace_period=GRACE) as worker:
        witness.insert(
            one_step("short", waits.new(str(gate))),
            one_step("thread", waits.new(str(tmp_path / "never"))),
            one_step("task", never_ends.new()),
        )
        until(lambda: len(witness.rows("SELECT FROM effects")) == 3, worker)
        worker.stop()
        until(lambda: "stopping" in worker.log, worker)
        gate.touch()
        until(lambda: witness.job("short") == ("completed", 1), worker)
        assert witness.job("task") == ("executing", 1), "it was written while others still had their grace"
        assert worker.end() == 0
    assert witness.job("thread") == ("available", 0)
    assert witness.job("task") == ("available", 0)
    assert witness.rows("SELECT FROM oban_producers") == []


def test_a_blocked_event_loop_is_no_death_and_is_told_of(
    witness: Witness, gate: Path, tmp_path: Path
) -> None:
    with Worker(witness.dsn, tmp_path) as blocked:
        witness.insert(one_step("blocks", blocks.new(str(gate))))
        until(lambda: witness.starts("blocks"), blocked)
        with Worker(witness.dsn, tmp_path).working() as rescuer:
            # Three times as long as it takes to be found dead, by the clock that judges.
            until(
                lambda: witness.rows(
                    "SELECT FROM effects WHERE clock_timestamp() - at > interval '6 seconds' AND step = 'blocks'"
                ),
                blocked,
                rescuer,
            )
            assert witness.starts("blocks") == [(1, blocked.pid)]
            (told,) = [line for line in blocked.log.splitlines() if "has not answered" in line]
            assert "Async steps running: 'blocks' of 'crew-blocks'" in told
            assert "tests/kit/crew.py" in told
            assert "make that step a plain function" in told
            gate.touch()
            until(lambda: witness.job("blocks") == ("completed", 1), blocked)


def test_a_killed_workers_step_runs_elsewhere_and_a_slow_one_is_left_alone_on_a_node_of_the_same_name(
    witness: Witness, gate: Path, tmp_path: Path
) -> None:
    def start(*queues: str) -> Worker:
        return Worker(witness.dsn, tmp_path, app="make_on_node", node="same", queues=dict.fromkeys(queues, 5))

    with start("default") as dies, start("own") as lives:
        witness.insert(
            one_step("lost", waits.new(str(gate))),
            one_step("slow", waits.with_options(queue="own").new(str(gate))),
        )
        until(lambda: witness.starts("lost") and witness.starts("slow"), dies, lives)
        dies.kill()
        with start("default", "own") as heir:
            until(lambda: len(witness.starts("lost")) == 2, lives, heir)
            assert witness.starts("slow") == [(1, lives.pid)]
            gate.touch()
            until(lambda: witness.job("lost") == ("completed", 2), lives, heir)
            until(lambda: witness.job("slow") == ("completed", 1), lives, heir)
    assert witness.rows("SELECT DISTINCT attempted_by[1] FROM oban_jobs") == [("same",)]


def test_a_step_that_no_worker_knows_waits_for_one_that_does(witness: Witness, tmp_path: Path) -> None:
    @step(name="crew.special")
    def special() -> int: ...

    with Worker(witness.dsn, tmp_path) as ignorant:
        witness.insert(one_step("special", special.new()))

        def parked() -> list[tuple[str, int, str]]:
            return witness.rows(
                "SELECT state::text, attempt, meta ->> 'parked' FROM oban_jobs WHERE meta ? 'parked'"
            )

        ((state, attempt, reason),) = until(parked, ignorant)
        assert (state, attempt) == ("scheduled", 0)
        assert reason.startswith("no code for step 'crew.special' here")
        ((node,),) = witness.rows("SELECT node FROM oban_producers")
        assert reason.endswith(f"(on node {node})")
        with Worker(witness.dsn, tmp_path, knows=True) as knowing:
            ignorant.stop()
            assert ignorant.end() == 0
            until(lambda: witness.job("special") == ("completed", 1), knowing)
            assert witness.result("special") == knowing.pid
            assert witness.rows("SELECT FROM oban_jobs WHERE meta ? 'parked'") == []


def test_a_crash_of_the_server_takes_no_step_from_its_worker(
    server: Server, gate: Path, tmp_path: Path
) -> None:
    witness = Witness(server.dsn)
    with Worker(server.dsn, tmp_path) as first, Worker(server.dsn, tmp_path) as second:
        witness.insert(*(one_step(f"step{number}", waits.new(str(gate))) for number in range(6)))
        until(lambda: len(witness.rows("SELECT FROM effects")) == 6, first, second)
        server.crash()
        server.restart()
        # Its table of producers is empty, and the workers go on looking for the dead.
        until(
            lambda: witness.rows(
                "SELECT FROM oban_producers WHERE updated_at > started_at + interval '3 seconds'"
            ),
            first,
            second,
        )
        gate.touch()
        until(
            lambda: {witness.job(f"step{number}") for number in range(6)} == {("completed", 1)}, first, second
        )
        assert len(witness.rows("SELECT FROM effects WHERE phase = 'start'")) == 6


def test_a_stop_in_the_middle_of_a_start_ends_in_time_while_the_database_is_away(
    server: Server, tmp_path: Path
) -> None:
    witness = Witness(server.dsn)
    witness.insert(one_step("task", never_ends.new()))
    with Worker(server.dsn, tmp_path, shutdown_grace_period=GRACE) as worker:
        # Steps run before a start is over.
        until(lambda: witness.starts("task"), worker)
        server.crash()
        worker.stop()
        assert worker.process.wait(IN_TIME) == 0, worker.log


def test_a_stop_ends_in_time_while_the_database_is_away(server: Server, gate: Path, tmp_path: Path) -> None:
    witness = Witness(server.dsn)
    with (
        Worker(server.dsn, tmp_path, shutdown_grace_period=GRACE) as busy,
        Worker(server.dsn, tmp_path, shutdown_grace_period=GRACE, queues={"idle": 1}) as idle,
    ):
        for worker in (busy, idle):
            worker.working()
        witness.insert(one_step("short", waits.new(str(gate))), one_step("task", never_ends.new()))
        until(lambda: len(witness.rows("SELECT FROM effects")) == 2, busy)
        server.crash()
        for worker in (busy, idle):
            worker.stop()
        for worker in (busy, idle):
            until(lambda worker=worker: "stopping" in worker.log, worker)
        gate.touch()
        for worker in (busy, idle):
            assert worker.process.wait(IN_TIME) == 0, worker.log
            assert "never retrieved" not in worker.log
