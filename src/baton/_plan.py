"""Turns workflows into the columns that `insert` writes. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from baton._names import uuid7
from baton.workflow import Workflow


@dataclass(frozen=True, slots=True)
class InsertPlan:
    """Workflows as the columns that `insert` writes; places count from 1."""

    ids: list[UUID]
    names: list[str]
    keys: list[str | None]
    hashes: list[str]
    steps: list[int]
    step_columns: tuple[list[Any], ...]
    dependency: list[int]
    dependent: list[int]
    queues: frozenset[str]


def plan_insert(workflows: Sequence[Workflow]) -> InsertPlan:
    """Lay out validated workflows, in order, steps in the order they were added."""
    columns: tuple[list[Any], ...] = tuple([] for _ in range(15))
    dependency: list[int] = []
    dependent: list[int] = []
    queues: set[str] = set()
    for ordinal, workflow in enumerate(workflows, start=1):
        first = len(columns[0]) + 1
        place = {name: first + index for index, name in enumerate(workflow.steps)}
        for name, step in workflow.steps.items():
            scheduled_at = step.scheduled_at
            if not step.deps:
                scheduled_at = scheduled_at or workflow.scheduled_at
                queues.add(step.queue)
            row = (
                ordinal,
                name,
                step.function,
                step.worker,
                step.queue,
                step.args,
                step.meta,
                _array(step.tags),
                step.max_attempts,
                step.priority,
                scheduled_at,
                _array(step.deps),
                step.ignore_cancelled,
                step.ignore_discarded,
                len(step.deps),
            )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            for dep in step.deps:
                dependency.append(place[dep])
                dependent.append(place[name])
    return InsertPlan(
        ids=[uuid7() for _ in workflows],
        names=[workflow.name for workflow in workflows],
        keys=[workflow.key for workflow in workflows],
        hashes=[workflow.definition_hash for workflow in workflows],
        steps=[len(workflow.steps) for workflow in workflows],
        step_columns=columns,
        dependency=dependency,
        dependent=dependent,
        queues=frozenset(queues),
    )


def _array(items: Sequence[str]) -> str:
    # A list per step has no place in a list of steps, so it goes as PostgreSQL writes an array. JSON quotes the same two
    # characters in the same way.
    return "{" + ",".join(json.dumps(item, ensure_ascii=False) for item in items) + "}"
