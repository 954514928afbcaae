"""What calls of models used and cost: of a run, by model, by label, by day: `baton.stats`.

What is recorded of a call is a fact. It counts whatever became of the attempt that made it, and is kept when its run is
pruned. What is not known is None and never 0: of totals with such calls, the cost is the least that was spent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from oban.job import Job
from psycopg import AsyncConnection
from psycopg.errors import QueryCanceled
from psycopg.rows import dict_row

from baton import _asked, _dollars, _store
from baton._calls import record_for
from baton._declare import Ref
from baton._engine import Engine
from baton._step import attempt_of
from baton._totals import TOKENS, Totals
from baton._usage import Usage
from baton.errors import InvalidOption, NoWorkflow, QueryTimeout, RunNotFound
from baton.pricing import Price, Pricing, price_of

_RUN_SECONDS = 2
_REPORT_SECONDS = 10
_ONE_MOMENT = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '{seconds}s'; "
    "SET LOCAL jit = off"
)
_MOST_RUNS = 1_000
_MOST_CALLS = 1_000
_MOST_ROWS = 10_000
# Repriced in one statement.
_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the calls of one model by one attempt of a step came to.

    Attributes:
        step: Its name.
        position: Its place among the steps of its run; None when the run was pruned.
        attempt: Which attempt made them, from 1.
        provider: Whose model; None where that is not known.
        model: None where that is not known.
        totals: What they came to.
        latency: Seconds that they took together; None where no call's is known.
        prices: Where their prices are from, with the version, such as `genai-prices 0.2.3`.
    """

    step: str
    position: int | None
    attempt: int
    provider: str | None
    model: str | None
    totals: Totals
    latency: float | None
    prices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model, as it was recorded; None is not known.

    Attributes:
        call_id: A uuid of version 7: ids are ordered by time.
        step: Name of the step that made it.
        attempt: Which attempt of it, from 1.
        key: Of a call made with `once`, its key.
        provider: Whose model.
        model: As the provider named it, or as it was asked for.
        service_tier: Such as `flex`.
        input_tokens: All that went in.
        output_tokens: All that came out.
        cache_read_tokens: Of the input, those read from a cache.
        cache_write_tokens: Of the input, those put into one.
        reasoning_tokens: Of the output, those of reasoning.
        units: What else was counted and has a price of its own.
        latency: Seconds.
        cost_usd: To the last digit.
        price_source: Where the price is from.
        price_version: Which state of that source.
        at: When it was recorded.
    """

    call_id: str
    step: str
    attempt: int
    key: str | None
    provider: str | None
    model: str | None
    service_tier: str | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    units: Mapping[str, int]
    latency: float | None
    cost_usd: Decimal | None
    price_source: str | None
    price_version: str | None
    at: datetime

    @property
    def cost_text(self) -> str:
        """The cost as people read it: `$0.0062`, or `unknown`."""
        return "unknown" if self.cost_usd is None else _dollars.text(self.cost_usd)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What the calls of one model came to; None is a provider or a model that is not known."""

    provider: str | None
    model: str | None
    totals: Totals


@dataclass(frozen=True, slots=True)
class LabelCost:
    """What the calls of all runs of one name came to."""

    label: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class StepsCost:
    """What the calls of the steps of one name came to, in all runs of one name."""

    label: str
    step: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class DayCost:
    """What the calls of one day came to; a day is one in UTC."""

    day: date
    totals: Totals


def record(job: Job, usage: object, *, cost: Decimal | int | str | float | None = None) -> Usage:
    """Record what a call of a model used that a job made; for worker classes, which have the job at hand.

        async def process(self, job):
            answer = await client.messages.create(...)
            stats.record(job, answer)

    The same as `baton.record_usage`, and like that it does not wait.

    Args:
        job: The job that this process is running, as `process` got it.
        usage: What `record_usage` takes: a provider's answer, a `Usage`, or a dict with the keys of `llm_usage`.
        cost: What it cost in USD, where that is known better than from a table of prices.

    Returns:
        What was read.

    Raises:
        InvalidUsage: Nothing that was used can be read from it.
        NoWorkflow: The job is no step's of a workflow, or is not running here.
    """
    attempt = attempt_of(job)
    if attempt is None or attempt.accounts is None:
        raise NoWorkflow(
            f"job {job.id} is not the job of a workflow's step that runs here; usage is recorded of steps, while they run"
        )
    return record_for(attempt.accounts, usage, cost=cost)


class Stats:
    """Reads what calls of models used and cost. `baton.stats` is one; it works while its Baton does.

    Each question is answered from one moment, by a read-only transaction with a time limit: two seconds for those about runs,
    ten for reports. `name_prefix` narrows any of them to runs whose name begins so; it is asked of the database, so that what
    one tenant may see can be left to it.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        engine: Engine,
        pricing: Pricing,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._engine = engine
        self._pricing = pricing

    record = staticmethod(record)

    # --- runs ---------------------------------------------------------------------------------------

    async def workflow_totals(self, run_id: str | UUID, *, name_prefix: str = "") -> Totals:
        """What the calls of a run came to so far, those of failed attempts included.

        Raises:
            RunNotFound: There is no such run, nor are calls of one recorded.
        """
        id_ = _asked.run_id(run_id)
        found = await self.totals_for_workflows([id_], name_prefix=name_prefix)
        if str(id_) not in found:
            raise _no_run(id_)
        return found[str(id_)]

    async def totals_for_workflows(
        self, run_ids: Sequence[str | UUID], *, name_prefix: str = ""
    ) -> dict[str, Totals]:
        """What the calls of each of some runs came to, by their ids; runs that are not there are left out.

        Args:
            run_ids: 1,000 at most.
        """
        ids = [_asked.run_id_option("run_ids", run_id) for run_id in run_ids]
        if len(ids) > _MOST_RUNS:
            raise InvalidOption(f"there are {len(ids):,} run_ids; give {_MOST_RUNS:,} at most")
        asked = {"ids": list(dict.fromkeys(ids)), "name_prefix": _asked.beginning(name_prefix)}
        async with self._reading("the totals of runs", _RUN_SECONDS) as conn:
            rows = await self._rows(conn, "read_cost_of_runs", asked)
        return {str(row["workflow_id"]): Totals.of(row) for row in rows}

    async def steps_for_workflow(
        self, run_id: str | UUID, *, limit: int = _MOST_ROWS, name_prefix: str = ""
    ) -> tuple[StepCost, ...]:
        """What the calls of a run came to by step, attempt and model; steps in the order they were added.

        Args:
            limit: 1 to 10,000.

        Raises:
            RunNotFound: There is no such run, nor are calls of one recorded.
        """
        _asked.check_range("limit", limit, _MOST_ROWS)
        rows = await self._rows_of_run("read_cost_of_steps", run_id, name_prefix, limit=limit)
        return tuple(
            StepCost(
                step=row["step"],
                position=row["position"],
                attempt=row["attempt"],
                provider=row["provider"],
                model=row["model"],
                totals=Totals.of(row),
                latency=_seconds(row["latency_ms"]),
                prices=tuple(row["prices"] or ()),
            )
            for row in rows
        )

    async def models_for_workflow(
        self, run_id: str | UUID, *, limit: int = _MOST_ROWS, name_prefix: str = ""
    ) -> tuple[ModelCost, ...]:
        """What the calls of a run came to by provider and model, the dearest first; those of an unknown cost come last.

        Args:
            limit: 1 to 10,000.

        Raises:
            RunNotFound: There is no such run, nor are calls of one recorded.
        """
        _asked.check_range("limit", limit, _MOST_ROWS)
        rows = await self._rows_of_run("read_cost_of_models", run_id, name_prefix, limit=limit)
        return tuple(ModelCost(row["provider"], row["model"], Totals.of(row)) for row in rows)

    async def calls_for_workflow(
        self,
        run_id: str | UUID,
        step: str | Ref[Any] | None = None,
        *,
        after: str | UUID | None = None,
        limit: int = 100,
        name_prefix: str = "",
    ) -> tuple[ModelCall, ...]:
        """The calls of a run one by one, the oldest first.

        Args:
            step: Only those of this step.
            after: `call_id` of the last call of the page before.
            limit: 1 to 1,000.

        Raises:
            RunNotFound: There is no such run, nor are calls of one recorded.
        """
        _asked.check_range("limit", limit, _MOST_CALLS)
        rows = await self._rows_of_run(
            "list_calls",
            run_id,
            name_prefix,
            step=_asked.text("step", step.name if isinstance(step, Ref) else step),
            after=None if after is None else _call_id(after),
            limit=limit,
        )
        return tuple(_call(row) for row in rows)

    # --- reports ------------------------------------------------------------------------------------

    async def totals(
        self, from_: datetime | None = None, to: datetime | None = None, *, name_prefix: str = ""
    ) -> Totals:
        """What all calls came to that were recorded from one moment on, up to another.

        Args:
            from_: Aware; None for all from the first on.
            to: Those before this; aware. None for all until now.

        Raises:
            InvalidOption: A time without a zone.
            QueryTimeout: There are too many.
        """
        (row,) = await self._report("read_cost", from_, to, name_prefix)
        return Totals.of(row)

    async def cost_by_model(
        self,
        from_: datetime | None = None,
        to: datetime | None = None,
        *,
        name_prefix: str = "",
        limit: int = _MOST_ROWS,
    ) -> tuple[ModelCost, ...]:
        """As `totals`, by provider and model, the dearest first; those of an unknown cost come last."""
        rows = await self._report("read_cost_by_model", from_, to, name_prefix, limit)
        return tuple(ModelCost(row["provider"], row["model"], Totals.of(row)) for row in rows)

    async def cost_by_label(
        self,
        from_: datetime | None = None,
        to: datetime | None = None,
        *,
        name_prefix: str = "",
        limit: int = _MOST_ROWS,
    ) -> tuple[LabelCost, ...]:
        """As `totals`, by the name of the runs, the dearest first; those of an unknown cost come last."""
        rows = await self._report("read_cost_by_label", from_, to, name_prefix, limit)
        return tuple(LabelCost(row["label"], Totals.of(row)) for row in rows)

    async def cost_by_step(
        self,
        from_: datetime | None = None,
        to: datetime | None = None,
        *,
        name_prefix: str = "",
        limit: int = _MOST_ROWS,
    ) -> tuple[StepsCost, ...]:
        """As `totals`, by the names of run and step, the dearest first; those of an unknown cost come last."""
        rows = await self._report("read_cost_by_step", from_, to, name_prefix, limit)
        return tuple(StepsCost(row["label"], row["step"], Totals.of(row)) for row in rows)

    async def cost_by_day(
        self,
        from_: datetime | None = None,
        to: datetime | None = None,
        *,
        name_prefix: str = "",
        limit: int = _MOST_ROWS,
    ) -> tuple[DayCost, ...]:
        """As `totals`, by day in UTC, the latest first. Days without a call are left out."""
        rows = await self._report("read_cost_by_day", from_, to, name_prefix, limit)
        return tuple(DayCost(row["day"], Totals.of(row)) for row in rows)

    # --- prices -------------------------------------------------------------------------------------

    async def reprice(
        self, from_: datetime | None = None, to: datetime | None = None, *, only_unpriced: bool = True
    ) -> int:
        """Price calls again that are recorded already, with the prices that this Baton has now, each as of its own time.

        For models that had no price when they were called, or a wrong one. A call keeps its cost where no price is known now,
        or where the step itself said what it cost. What budgets have spent stays as it is.

        Calls are written a thousand at a time. Two who do it at once, or a second time, change nothing more; what was written
        before an error stays.

        Args:
            from_: Only calls recorded at this moment or later; aware.
            to: Only those before this; aware.
            only_unpriced: Leave those alone whose cost is known.

        Returns:
            How many calls have another price now.
        """
        asked = {**_between(from_, to), "only_unpriced": bool(only_unpriced), "limit": _BATCH}
        changed, at, id_ = 0, None, None
        while True:
            rows = await self._engine.read_calls_to_price(**asked, after_at=at, after_id=id_)
            priced = await asyncio.to_thread(_priced, self._pricing, rows)
            if priced:
                changed += await self._engine.price_calls(
                    ids=[row["id"] for row, _ in priced],
                    befores=[row["cost_usd"] for row, _ in priced],
                    costs=[price.cost for _, price in priced],
                    sources=[price.source for _, price in priced],
                    versions=[price.version for _, price in priced],
                )
            if len(rows) < _BATCH:
                return changed
            at, id_ = rows[-1]["inserted_at"], rows[-1]["id"]

    # --- how it is read -----------------------------------------------------------------------------

    async def _report(
        self,
        name: str,
        from_: datetime | None,
        to: datetime | None,
        name_prefix: str,
        limit: int = 1,
    ) -> list[dict[str, Any]]:
        _asked.check_range("limit", limit, _MOST_ROWS)
        asked = {**_between(from_, to), "name_prefix": _asked.beginning(name_prefix), "limit": limit}
        async with self._reading("a report", _REPORT_SECONDS) as conn:
            return await self._rows(conn, name, asked)

    async def _rows_of_run(
        self, name: str, run_id: str | UUID, name_prefix: str, **asked: object
    ) -> list[dict[str, Any]]:
        id_ = _asked.run_id(run_id)
        run = {"id": id_, "name_prefix": _asked.beginning(name_prefix)}
        async with self._reading(f"the calls of run {id_}", _RUN_SECONDS) as conn:
            rows = await self._rows(conn, name, run | asked)
            if not rows and not await self._rows(conn, "read_cost_of_runs", run | {"ids": [id_]}):
                raise _no_run(id_)
        return rows

    async def _rows(
        self, conn: AsyncConnection, name: str, asked: Mapping[str, object]
    ) -> list[dict[str, Any]]:
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_store.load(name, self._prefix), asked, prepare=False)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _reading(self, what: str, seconds: int) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads one moment, and that the server ends when it takes too long."""
        async with self._connection() as conn:
            try:
                async with conn.transaction():
                    await conn.execute(_ONE_MOMENT.format(seconds=seconds).encode())
                    yield conn
            except QueryCanceled as error:
                raise QueryTimeout(
                    f"reading {what} took longer than {seconds} seconds, and the database gave it up; ask for less: a shorter "
                    "time, or one run"
                ) from error


def _between(from_: datetime | None, to: datetime | None) -> dict[str, object]:
    return {"from": _asked.aware("from_", from_), "to": _asked.aware("to", to)}


def _priced(pricing: Pricing, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Price]]:
    """The calls whose price is another now, with that. May take its time."""
    found = []
    for row in rows:
        price = price_of(pricing, _usage(row), at=row["inserted_at"].astimezone(UTC))
        before = (row["cost_usd"], row["price_source"], row["price_version"])
        if price is not None and before != (price.cost, price.source, price.version):
            found.append((row, price))
    return found


def _usage(row: Mapping[str, Any]) -> Usage:
    return Usage(
        model=row["model"],
        provider=row["provider"],
        service_tier=row["service_tier"],
        units=row["units"],
        **{kind: row[kind] for kind in TOKENS},
    )


def _call(row: Mapping[str, Any]) -> ModelCall:
    rest = dict(row)
    cost = rest.pop("cost_usd")
    return ModelCall(
        call_id=str(rest.pop("call_id")),
        latency=_seconds(rest.pop("latency_ms")),
        at=rest.pop("inserted_at").astimezone(UTC),
        cost_usd=None if cost is None else _dollars.plain(cost),
        **rest,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1_000


def _call_id(call_id: str | UUID) -> UUID:
    try:
        return UUID(str(call_id))
    except ValueError:
        raise InvalidOption(
            f"after is {call_id!a:.80}, which is no call's id; pass `call_id` of the last call of the page before"
        ) from None


def _no_run(id_: UUID) -> RunNotFound:
    return RunNotFound(
        f"there is no run {id_}, and no call of a model is recorded of one; it may have been pruned, or inserted in a "
        "transaction rolled back"
    )
