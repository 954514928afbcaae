"""What the page reads. Each question is bounded by the query that answers it, and narrowed to what the caller may see."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from starlette.responses import Response

import baton
from baton import RunState, StepState
from baton.errors import ResultNotFound
from baton.query import Neighbour, StepOrder
from baton.web import _shapes, _streams
from baton.web._actions import audit
from baton.web._board import Board
from baton.web._errors import Refused
from baton.web._page import page
from baton.web._site import Call

_RUNS = 50
_MOST_RUNS = 200
_STEPS = 100
_MOST_STEPS = 1_000
_CHARACTERS = 20_000
_NEIGHBOURS = 50
_CHUNKS = 500
_CALLS = 50
_PROMPTS = 10
_MOST_CHUNKS_EVER = 2**31 - 1
_ORDERS = ("position", "started_at", "duration")


async def html(call: Call) -> Response:
    """The page, whatever run its address names."""
    return page(call.request)


async def session(call: Call) -> Response:
    """Who is looking, and what they may do."""
    return _json(
        {
            "user": call.access.user,
            "actions": sorted(call.access.actions),
            "prompts": call.access.prompts,
            "csrf": call.site.forgery.token(call.access.user),
            "version": baton.__version__,
        }
    )


async def list_runs(call: Call) -> Response:
    """A page of runs, and how many there are by state."""
    filters: dict[str, Any] = {
        "name": call.text("name"),
        "key": call.text("key"),
        "search": call.text("q"),
        "inserted_after": call.moment("after"),
        "inserted_before": call.moment("before"),
        "name_prefix": call.access.name_prefix,
    }
    states = _one_of(RunState, call.text("state"))
    limit = max(1, call.number("limit", _RUNS, _MOST_RUNS))
    query = call.site.baton.query
    async with call.site.reading():
        runs = await query.list_runs(state=states, before=call.text("cursor"), limit=limit, **filters)
        counts = await query.count_runs(**filters)
    return _json(
        {
            "runs": [_shapes.run(run) for run in runs],
            "next": runs[-1].id if len(runs) == limit else None,
            "counts": _shapes.counts(counts),
        }
    )


async def watch_runs(call: Call) -> Response:
    """Events of all runs that the caller may see."""
    runs = call.site.runs

    @asynccontextmanager
    async def messages() -> AsyncIterator[AsyncIterator[bytes]]:
        async with runs.watched():
            yield _streams.of_runs(runs, call.access.name_prefix)

    return _streams.Stream(call.site.seats, call.access.user, messages)


async def get_run(call: Call) -> Response:
    """A run as it is drawn."""
    expand = call.expand()
    async with _board(call) as board, board.view(expand) as view:
        return _raw(view.whole())


async def watch_run(call: Call) -> Response:
    """Events of one run."""
    expand = call.expand()

    @asynccontextmanager
    async def messages() -> AsyncIterator[AsyncIterator[bytes]]:
        async with _board(call) as board, board.view(expand) as view:
            yield _streams.of_run(view)

    return _streams.Stream(call.site.seats, call.access.user, messages)


async def list_models(call: Call) -> Response:
    """What each model cost in a run."""
    async with _board(call) as board:
        return _raw(b'{"models":%s}' % await board.models())


async def list_steps(call: Call) -> Response:
    """A page of steps for the table and the timeline."""
    order = call.text("sort") or "position"
    if order not in _ORDERS:
        raise Refused(400, f"sort must be one of {', '.join(_ORDERS)}")
    states = _one_of(StepState, call.text("state"))
    limit = max(1, call.number("limit", _STEPS, _MOST_STEPS))
    box = (call.text("box") or "").replace(" ", "+")
    positions = await _positions(call, box) if box else None
    async with call.site.reading():
        found = await call.site.baton.query.list_steps(
            call.run_id,
            state=states,
            search=call.text("q"),
            positions=positions,
            order_by=cast("StepOrder", order),
            after=call.text("cursor"),
            limit=limit,
            name_prefix=call.access.name_prefix,
        )
    return _json({"steps": [_shapes.step(step) for step in found.steps], "next": found.next})


async def get_step(call: Call) -> Response:
    """One step with all that the panel shows."""
    async with call.site.reading():
        found = await call.site.baton.query.get_step(
            call.run_id,
            call.position,
            characters=_CHARACTERS,
            neighbours=_NEIGHBOURS,
            name_prefix=call.access.name_prefix,
        )
        why = await call.site.baton.get_run(call.run_id).why(found.status.name)
    return _json(
        _shapes.step(found.status)
        | {
            "dependencies": _neighbours(found.dependencies),
            "dependencies_count": found.dependencies_count,
            "dependents": _neighbours(found.dependents),
            "dependents_count": found.dependents_count,
            "arguments": found.arguments,
            "arguments_size": found.arguments_size,
            "references": found.references,
            "attempts": [
                {"attempt": one.attempt, "at": one.at, "error": one.error} for one in found.attempts
            ],
            "errors_hidden": max(0, found.attempts_failed - len(found.attempts)),
            "result": found.result,
            "result_size": found.result_size,
            "result_cut": found.result is not None and (found.result_size or 0) > len(found.result),
            "worker": found.worker,
            # Whoever may not see it is not told that it is there.
            **({"captured": found.captured} if call.access.prompts else {}),
            "job_id": found.status.job_id,
            "why": [cause.text for cause in why.causes],
        }
    )


async def get_result(call: Call) -> Response:
    """A step's whole result, to be saved as a file."""
    async with call.site.reading():
        found = await call.site.baton.query.get_step(
            call.run_id, call.position, characters=1, neighbours=1, name_prefix=call.access.name_prefix
        )
        text = await call.site.baton.query.read_result_text(
            call.run_id, call.position, name_prefix=call.access.name_prefix
        )
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", found.status.name)[:80].strip("-") or "result"
    return _raw(
        text.encode(), {"Content-Disposition": f'attachment; filename="{name}-{call.run_id[-8:]}.json"'}
    )


async def get_stream(call: Call) -> Response:
    """Some of what an attempt of a step streamed, after its first `after` chunks; `next` is the `after` of the next page."""
    after = call.number("after", 0, _MOST_CHUNKS_EVER)
    attempt = call.number("attempt", 0, _MOST_CHUNKS_EVER) or None
    async with call.site.reading():
        found = await call.site.baton.query.read_stream(
            call.run_id,
            call.position,
            attempt=attempt,
            after=after - 1,
            limit=_CHUNKS,
            name_prefix=call.access.name_prefix,
        )
    return _json(
        {
            "attempt": found.attempt,
            "chunks": [{"position": chunk.position, "value": chunk.value} for chunk in found.chunks],
            "next": found.chunks[-1].position + 1 if found.chunks else after,
        }
    )


async def list_calls(call: Call) -> Response:
    """The calls of models that a step made, in pages, the oldest first."""
    limit = max(1, call.number("limit", _CALLS, _MOST_STEPS))
    after = call.text("cursor")
    async with call.site.reading():
        name = await _name_of_step(call)
        calls = await call.site.baton.stats.calls_for_workflow(
            call.run_id, name, after=after, limit=limit, name_prefix=call.access.name_prefix
        )
    return _json(
        {
            "calls": [_shapes.call(one) for one in calls],
            "next": calls[-1].call_id if len(calls) == limit else None,
        }
    )


async def list_prompts(call: Call) -> Response:
    """What was captured of a step's calls, in pages, the oldest first. For those who may see that; who looked is logged."""
    after = call.number("cursor", 0, 2**63 - 1)
    async with call.site.reading():
        found = await call.site.baton.query.list_debug_logs(
            call.run_id, call.position, after=after, limit=_PROMPTS, name_prefix=call.access.name_prefix
        )
        name = found.logs[0].step if found.logs else await _name_of_step(call)
    audit("prompts", call, name, f"{len(found.logs)} shown")
    return _json(
        {
            "prompts": [
                {
                    "id": str(log.id),
                    "attempt": log.attempt,
                    "model": log.model,
                    "key": log.call_key,
                    "request": log.request,
                    "response": log.response,
                    "context": log.context,
                    "error": log.error,
                    "at": log.at,
                }
                for log in found.logs
            ],
            "next": None if found.next is None else str(found.next),
        }
    )


async def _name_of_step(call: Call) -> str:
    found = await call.site.baton.query.list_steps(
        call.run_id, positions=[call.position], limit=1, name_prefix=call.access.name_prefix
    )
    if not found.steps:
        raise ResultNotFound(f"run {call.run_id} has no step at position {call.position}")
    return found.steps[0].name


@asynccontextmanager
async def _board(call: Call) -> AsyncIterator[Board]:
    """The run's board, once the database has said that the caller may see the run."""
    async with call.site.reading():
        await call.site.baton.query.get_run(call.run_id, name_prefix=call.access.name_prefix)
    async with call.site.boards.board(call.run_id) as board:
        yield board


async def _positions(call: Call, box: str) -> tuple[int, ...]:
    """The steps of a box, by its id."""
    async with _board(call) as board:
        found = await board.positions(box, call.expand())
    if found is None:
        raise Refused(404, "there is no such group in this run")
    return found


def _one_of[S: (RunState, StepState)](kind: type[S], text: str | None) -> list[S] | None:
    """States, separated by commas."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise Refused(400, f"state must be of {', '.join(kind)}") from None


def _neighbours(found: tuple[Neighbour, ...]) -> list[dict[str, Any]]:
    return [{"position": one.position, "name": one.name, "state": one.state} for one in found]


def _json(value: Any) -> Response:
    return _raw(_shapes.dumps(value))


def _raw(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, media_type="application/json", headers=headers)
