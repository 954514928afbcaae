"""Budgets against a model: whatever calls, settlements, deaths and top-ups follow each other, the sums are the model's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton import Budget, _store
from baton._engine import _INSERT
from baton._plan import array_literal, plan_insert
from tests.kit import fixtures
from tests.kit.engine import graph

database = fixtures.database
baton_dsn = fixtures.baton_dsn

STEPS = 2
amounts = st.sampled_from([Decimal(n) / 4 for n in range(5)])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, STEPS - 1), amounts),
        st.tuples(st.just("settle"), st.integers(0, 9), st.none() | amounts),
        st.tuples(st.just("end"), st.integers(0, 9), st.none()),
        st.tuples(st.just("use"), st.none() | amounts, st.none()),
        st.tuples(st.just("die"), st.integers(0, STEPS - 1), st.none()),
        st.tuples(st.just("add"), st.booleans(), amounts),
        st.tuples(st.just("look"), st.none(), st.none()),
    ),
    max_size=40,
)


@dataclass(slots=True)
class Books:
    """One budget, as it must be."""

    usd: Decimal | None
    calls: int | None
    spent: Decimal = Decimal(0)
    spent_calls: int = 0
    unpriced: int = 0
    held: dict[UUID, tuple[Decimal, tuple[int, int]]] = field(default_factory=dict)
    lost: dict[UUID, Decimal] = field(default_factory=dict)

    @property
    def reserved(self) -> Decimal:
        return sum((usd for usd, _ in self.held.values()), Decimal(0))

    def obstacle(self, asked: Decimal) -> str | None:
        """What stands in the way of one more call."""
        limits = [
            (self.usd, self.spent, self.reserved, asked),
            (self.calls, self.spent_calls, len(self.held), 1),
        ]
        if any(most is not None and spent + more > most for most, spent, _, more in limits):
            return "exhausted"
        if any(most is not None and spent + held + more > most for most, spent, held, more in limits):
            return "waiting"
        return None

    def bury(self, living: set[tuple[int, int]]) -> int:
        dead = [id_ for id_, (_, attempt) in self.held.items() if attempt not in living]
        for id_ in dead:
            usd, _ = self.held.pop(id_)
            self.lost[id_] = usd
            self.charge(usd, None)
        return len(dead)

    def charge(self, usd: Decimal, cost: Decimal | None) -> None:
        self.spent += usd if cost is None else cost
        self.spent_calls += 1
        self.unpriced += cost is None

    def give_back_lost(self, id_: UUID) -> None:
        self.spent -= self.lost.pop(id_)
        self.spent_calls -= 1
        self.unpriced -= 1

    def settle(self, id_: UUID, cost: Decimal | None) -> None:
        usd = Decimal(0)
        if id_ in self.held:
            usd, _ = self.held.pop(id_)
        elif id_ in self.lost:
            usd = self.lost[id_]
            self.give_back_lost(id_)
        self.charge(usd, cost)

    def end(self, id_: UUID) -> None:
        if id_ in self.held:
            del self.held[id_]
        elif id_ in self.lost:
            self.give_back_lost(id_)

    def row(self) -> tuple[Any, ...]:
        return (self.spent, self.reserved, self.spent_calls, len(self.held), self.unpriced)


@pytest.fixture
def db(baton_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(baton_dsn, autocommit=True) as db:
        yield db


class World:
    """The database and the model beside each other, for one run."""

    def __init__(self, db: psycopg.Connection, budgets: list[Budget]) -> None:
        self.db = db
        plan = plan_insert([graph({f"s{n}": [] for n in range(STEPS)}, budget=budgets)])
        (self.run,) = plan.ids
        columns = [array_literal(column) for column in plan.columns]
        later = [array_literal(column) for column in plan.later_columns]
        db.execute(_store.statement(_INSERT, "public"), (*columns, "{}", None, *later))
        self.jobs = [
            row[0]
            for row in self.rows(
                "SELECT job_id FROM workflow_nodes WHERE workflow_id = %s ORDER BY id", self.run
            )
        ]
        self.books = [Books(one.usd, one.calls) for one in budgets]
        self.keys = [one.key for one in budgets]
        self.ids: list[UUID] = []
        self.attempts = [0] * STEPS
        self.at: list[Any] = [None] * STEPS
        for step in range(STEPS):
            self.start(step)

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        return self.db.execute(sql.encode(), params).fetchall()

    def start(self, step: int) -> None:
        self.attempts[step] += 1
        ((self.at[step],),) = self.rows(
            "UPDATE oban_jobs SET state = 'executing', attempted_at = timezone('UTC', clock_timestamp()) WHERE id = %s "
            "RETURNING attempted_at",
            self.jobs[step],
        )

    @property
    def living(self) -> set[tuple[int, int]]:
        return set(enumerate(self.attempts))

    def reserve(self, step: int, usd: Decimal) -> None:
        id_ = uuid4()
        ((said,),) = self.rows(
            "SELECT baton_reserve(%s, %s, %s, %s, 0)", id_, self.jobs[step], self.at[step], usd
        )
        expected = self._obstacle(usd)
        if expected == "waiting" and sum(one.bury(self.living) for one in self.books):
            expected = self._obstacle(usd)
        assert said["status"] == (expected or "ok")
        if expected is None:
            self.ids.append(id_)
            for one in self.books:
                one.held[id_] = (usd, (step, self.attempts[step]))

    def _obstacle(self, usd: Decimal) -> str | None:
        found = [one.obstacle(usd) for one in self.books]
        return "exhausted" if "exhausted" in found else "waiting" if "waiting" in found else None

    def settle(self, place: int, cost: Decimal | None) -> None:
        if self.ids:
            self._charge(self.ids[place % len(self.ids)], cost)

    def use(self, cost: Decimal | None, _: None) -> None:
        self._charge(uuid4(), cost)

    def _charge(self, id_: UUID, cost: Decimal | None) -> None:
        call = {"workflow_id": str(self.run), "reservation": str(id_), "cost_usd": cost and str(cost)}
        if cost == 0:
            call["cost_usd"] = "0"
        self.rows("SELECT baton_charge(%s::jsonb)", json.dumps([call]))
        for one in self.books:
            one.settle(id_, cost)

    def end(self, place: int, _: None) -> None:
        if self.ids:
            id_ = self.ids[place % len(self.ids)]
            self.rows("SELECT baton_release_reservation(ARRAY[%s::uuid])", id_)
            for one in self.books:
                one.end(id_)

    def die(self, step: int, _: None) -> None:
        self.rows("UPDATE oban_jobs SET state = 'available' WHERE id = %s RETURNING id", self.jobs[step])
        self.start(step)

    def add(self, own: bool, usd: Decimal) -> None:
        place = 0 if own else 1
        self.rows(
            "SELECT baton_add_to_budget(%s, %s, %s, 0, 0)",
            self.keys[place],
            None if self.keys[place] else self.run,
            usd,
        )
        before = self.books[place].usd
        assert before is not None
        self.books[place].usd = before + usd

    def look(self, *_: None) -> None:
        ((charged,),) = self.rows("SELECT baton_charge_dead()")
        assert charged == sum(one.bury(self.living) for one in self.books)

    def check(self) -> None:
        found = self.rows(
            "SELECT spent_usd, reserved_usd, spent_calls, reserved_calls, unpriced_calls FROM workflow_budgets AS budget "
            "JOIN workflow_budget_runs AS drawn ON drawn.budget_id = budget.id WHERE drawn.workflow_id = %s "
            "ORDER BY budget.key NULLS FIRST",
            self.run,
        )
        assert found == [one.row() for one in self.books]


@given(operations=OPERATIONS, usd=amounts, calls=st.integers(1, 4))
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_happens_the_sums_are_those_of_the_model(
    db: psycopg.Connection, operations: list[tuple[str, Any, Any]], usd: Decimal, calls: int
) -> None:
    world = World(db, [Budget(usd=usd + 1), Budget(usd=3, calls=calls, key=str(uuid4().int))])
    for name, first, second in operations:
        getattr(world, name)(first, second)
        world.check()
    world.look()
    world.check()
    assert not [row for row in db.execute(_store.load("audit")).fetchall() if row[0] == "budgets"]
