"""Turns workflows into the columns that `insert` writes. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from baton._names import uuid7
from baton.workflow import Workflow

_STEP_COLUMNS = 15
_LATER_COLUMNS = 3
_BUDGET_COLUMNS = 7


@dataclass(frozen=True, slots=True)
class InsertPlan:
    """Workflows as the columns that `insert` writes; places count from 1."""

    ids: list[UUID]
    names: list[str]
    keys: list[str | None]
    hashes: list[str]
    steps: list[int]
    step_columns: tuple[Sequence[Any], ...]
    dependency: list[int]
    dependent: list[int]
    deadlines: list[datetime | None]
    deadlines_in: list[float | None]
    later_step_columns: tuple[Sequence[Any], ...]
    budget_columns: tuple[Sequence[Any], ...]
    queues: frozenset[str]

    @property
    def columns(self) -> tuple[Sequence[object], ...]:
        """Those that every version has, in the order that the database's function takes them."""
        workflows = (self.ids, self.names, self.keys, self.hashes, self.steps)
        return (*workflows, *self.step_columns, self.dependency, self.dependent)

    @property
    def budget_keys(self) -> Sequence[str | None]:
        """Of the budgets, in their order; None for a run's own."""
        return self.budget_columns[1]

    @property
    def later_columns(self) -> tuple[Sequence[object], ...]:
        """Those that came after the first version, which the function takes last."""
        return (self.deadlines, self.deadlines_in, *self.later_step_columns, *self.budget_columns)


def plan_insert(workflows: Sequence[Workflow], *, carried: Mapping[str, str] | None = None) -> InsertPlan:
    """Lay out validated workflows, in order, steps in the order they were added; `carried` goes into the meta of each."""
    head = orjson.dumps(dict(carried)).decode()[:-1] if carried else ""
    rows: list[tuple[Any, ...]] = []
    later: list[tuple[Any, ...]] = []
    dependency: list[int] = []
    dependent: list[int] = []
    queues: set[str] = set()
    budgets: list[tuple[Any, ...]] = []
    for ordinal, workflow in enumerate(workflows, start=1):
        first = len(rows) + 1
        budgets += [
            (ordinal, one.key, one.usd, one.tokens, one.calls, one.on_exhausted, one.unpriced)
            for one in workflow.budgets
        ]
        place = {name: first + index for index, name in enumerate(workflow.steps)}
        for name, step in workflow.steps.items():
            scheduled_at = step.scheduled_at
            if not step.deps:
                scheduled_at = scheduled_at or workflow.scheduled_at
                queues.add(step.queue)
            rows.append(
                (
                    ordinal,
                    name,
                    step.function,
                    step.worker,
                    step.queue,
                    step.args,
                    _carrying(head, step.meta) if head else step.meta,
                    array_literal(step.tags),
                    step.max_attempts,
                    step.priority,
                    scheduled_at,
                    array_literal(step.deps),
                    step.ignore_cancelled,
                    step.ignore_discarded,
                    len(step.deps),
                )
            )
            later.append((step.runs_on, step.hooked, workflow.debug))
            for dep in step.deps:
                dependency.append(place[dep])
                dependent.append(place[name])
    return InsertPlan(
        ids=[uuid7() for _ in workflows],
        names=[workflow.name for workflow in workflows],
        keys=[workflow.key for workflow in workflows],
        hashes=[workflow.definition_hash for workflow in workflows],
        steps=[len(workflow.steps) for workflow in workflows],
        step_columns=tuple(zip(*rows, strict=True)) if rows else ((),) * _STEP_COLUMNS,
        dependency=dependency,
        dependent=dependent,
        deadlines=[w.deadline if isinstance(w.deadline, datetime) else None for w in workflows],
        deadlines_in=[
            w.deadline.total_seconds() if isinstance(w.deadline, timedelta) else None for w in workflows
        ],
        later_step_columns=tuple(zip(*later, strict=True)) if later else ((),) * _LATER_COLUMNS,
        budget_columns=tuple(zip(*budgets, strict=True)) if budgets else ((),) * _BUDGET_COLUMNS,
        queues=frozenset(queues),
    )


def _carrying(head: str, meta: str) -> str:
    """A JSON object with more in front: of two values under one key, PostgreSQL takes the last."""
    inside = meta.strip()[1:]
    return f"{head}{inside}" if inside.strip() == "}" else f"{head},{inside}"


def array_literal(items: Iterable[object]) -> str:
    """A column as PostgreSQL writes an array. A driver's own adaptation looks at each of thousands of values in Python."""
    return "{" + ",".join([_element(item) for item in items]) + "}"


def _element(item: object) -> str:
    if type(item) is str:
        return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if item is None:
        return "NULL"
    if item is True or item is False:
        return "t" if item else "f"
    return f'"{item.isoformat()}"' if isinstance(item, datetime) else str(item)
