"""One budget and many processes: they race on it, die with calls under way, and start anew."""

from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from baton import Budget, Workflow
from tests.kit.processes import Witness, Worker, until
from tests.kit.spenders import RESERVED, hangs, spends

pytestmark = pytest.mark.slow

PROCESSES = 8
LIMIT = Decimal(1)
assert RESERVED.usd is not None
ASKED = RESERVED.usd


@pytest.fixture
def witness(baton_dsn: str) -> Witness:
    return Witness(baton_dsn)


def spending(steps: int, most: int, *budgets: Budget, calls: int = 2) -> Workflow:
    workflow = Workflow("spending", budget=budgets)
    for n in range(steps):
        workflow.add(f"s{n}", spends.new(calls=calls, most=most))
    return workflow


def worker(witness: Witness, folder: Path, **options: Any) -> Worker:
    return Worker(witness.dsn, folder, module="spenders", **{"pool_size": 3, **options})


def books(witness: Witness) -> tuple[Any, ...]:
    """What was really paid, what the budget says is spent and reserved, and what the rows of the calls add up to."""
    ((paid,),) = witness.rows("SELECT coalesce(sum(attempt), 0) / 1000.0 FROM effects WHERE phase = 'paid'")
    ((spent, reserved),) = witness.rows(
        "SELECT spent_usd, reserved_usd FROM workflow_budgets WHERE limit_usd IS NOT NULL"
    )
    ((recorded,),) = witness.rows("SELECT coalesce(sum(cost_usd), 0) FROM workflow_step_stats")
    return paid, spent, reserved, recorded


def unsettled(witness: Witness) -> int:
    ((count,),) = witness.rows("SELECT sum(unsettled) FROM workflows")
    return int(count)


def test_eight_processes_that_race_on_one_budget_never_spend_more_than_it_has(
    witness: Witness, tmp_path: Path
) -> None:
    # Three runs that share the budget, whose calls come to several times as much.
    shared = Budget(usd=LIMIT, key="shared")
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(witness, tmp_path)) for _ in range(PROCESSES)]
        for one in workers:
            one.working()
        witness.insert(*(spending(40, 30, shared, Budget(calls=1_000), calls=1) for _ in range(3)))
        until(lambda: unsettled(witness) == 0, *workers)
        for one in workers:
            one.stop()
        assert [one.end() for one in workers] == [0] * PROCESSES
    paid, spent, reserved, recorded = books(witness)
    assert paid == spent == recorded
    assert reserved == 0
    assert LIMIT - ASKED < spent <= LIMIT, "and all of it was used, as far as a call still fits"
    ((processes,),) = witness.rows("SELECT count(DISTINCT pid) FROM effects")
    assert processes >= PROCESSES // 2, "several processes did the spending"
    ended = dict(witness.rows("SELECT state, count(*) FROM workflow_nodes GROUP BY state"))
    assert ended.keys() <= {"completed", "cancelled"}
    ((exhausted,),) = witness.rows("SELECT count(*) FROM workflow_nodes WHERE error LIKE '%is exhausted%'")
    assert exhausted == ended["cancelled"] > 0


def test_calls_that_come_to_more_than_was_reserved_overspend_by_no_more_than_that(
    witness: Witness, tmp_path: Path
) -> None:
    witness.insert(spending(30, 60, Budget(usd="0.5", key="shared")))
    with worker(witness, tmp_path) as one, worker(witness, tmp_path) as other:
        until(lambda: unsettled(witness) == 0, one, other)
    paid, spent, _, _ = books(witness)
    assert paid == spent
    # Two workers of five steps each, with up to three calls at once that each come to twice what is reserved.
    assert spent <= Decimal("0.5") + 2 * 5 * 3 * ASKED


def test_what_was_under_way_in_a_killed_process_counts_as_spent_in_the_next(
    witness: Witness, tmp_path: Path
) -> None:
    workflow = Workflow("hanging", budget=Budget(usd="0.045", calls=5))
    workflow.add("hangs", hangs.new(gate=str(tmp_path / "gate")))
    with worker(witness, tmp_path) as first:
        witness.insert(workflow)
        until(lambda: books(witness)[0] > 0, first)
        first.kill()
    assert books(witness)[:3] == (Decimal("0.02"), 0, ASKED)
    with worker(witness, tmp_path) as second:
        until(lambda: unsettled(witness) == 0, second)
    paid, spent, reserved, _ = books(witness)
    assert (paid, spent, reserved) == (Decimal("0.02"), ASKED, 0), "nobody knows what the call came to"
    ((error,),) = witness.rows("SELECT error FROM workflow_nodes")
    assert "$0.03 of $0.045 spent, and this call may come to $0.03" in error


def test_a_budget_goes_on_where_the_last_process_stopped(witness: Witness, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    runs = [Workflow("day", budget=Budget(usd="0.05", key="day")) for _ in range(3)]
    for workflow in runs:
        workflow.add("hangs", hangs.new(gate=str(tmp_path / "gate")))
    states = []
    for workflow in runs:
        with worker(witness, tmp_path) as one:
            witness.insert(workflow)
            until(lambda: unsettled(witness) == 0, one)
            one.stop()
            assert one.end() == 0
        states.append(witness.rows("SELECT state FROM workflow_nodes ORDER BY id DESC LIMIT 1")[0][0])
    assert states == ["completed", "completed", "cancelled"]
    assert books(witness)[:3] == (Decimal("0.04"), Decimal("0.04"), 0)
