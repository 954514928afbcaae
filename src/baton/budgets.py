"""What budgets have left, and adding to them: `baton.budgets`.

await baton.budgets.get("tenant:acme")
await baton.budgets.add(run, usd=5)             # what that had paused goes on
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import QueryCanceled
from psycopg.rows import dict_row

from baton import _asked, _dollars, _store
from baton._budget import OnExhausted, Unpriced, count, dollars, named, spent_text
from baton._names import budget_key
from baton.errors import BudgetNotFound, InvalidOption, QueryTimeout

if TYPE_CHECKING:
    from baton._budget import Dollars
    from baton.run import Run

_SECONDS = 2
_ONE_MOMENT = (
    f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '{_SECONDS}s'; "
    "SET LOCAL jit = off"
)
_MOST_BUDGETS = 1_000


@dataclass(frozen=True, slots=True)
class BudgetLine[N: (Decimal, int)]:
    """One kind of what a budget counts.

    Attributes:
        limit: As it was declared last; None does not hold anything back.
        added: On top of that.
        spent: Settled.
        reserved: Set aside for calls that are under way.
    """

    limit: N | None
    added: N
    spent: N
    reserved: N

    @property
    def total(self) -> N | None:
        """The limit with what was added; None without one."""
        with localcontext(_dollars.EXACT):
            return None if self.limit is None else _shortest(self.limit + self.added)

    @property
    def left(self) -> N | None:
        """What a call may still ask for; None without a limit, and below nothing where more was spent."""
        with localcontext(_dollars.EXACT):
            return None if self.total is None else _shortest(self.total - self.spent - self.reserved)

    @property
    def is_exhausted(self) -> bool:
        """Whether a step may not even start: all is spent."""
        return self.total is not None and self.spent >= self.total


def _shortest[N: (Decimal, int)](amount: N) -> N:
    return _dollars.plain(amount) if isinstance(amount, Decimal) else amount


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget at one moment.

    Attributes:
        key: Of a shared one; None for a run's own.
        run_id: The run whose own it is; None for a shared one.
        usd: Dollars.
        tokens: Input and output tokens.
        calls: Calls.
        unpriced_calls: Of the spent calls, those whose cost is not known. What was set aside for them counts as spent.
        on_exhausted: `stop` or `pause`.
        unpriced: `strict` or `warn`.
        paused_runs: Runs that it has paused, counted up to 1,000.
        inserted_at: When it was declared first.
        raised_at: When something was added or given back, or its limits changed; else when it was declared.
    """

    key: str | None
    run_id: str | None
    usd: BudgetLine[Decimal]
    tokens: BudgetLine[int]
    calls: BudgetLine[int]
    unpriced_calls: int
    on_exhausted: OnExhausted
    unpriced: Unpriced
    paused_runs: int
    inserted_at: datetime
    raised_at: datetime

    @property
    def name(self) -> str:
        """`budget 'tenant:acme'`, or `the run's budget`."""
        return named(self.key)

    @property
    def is_exhausted(self) -> bool:
        """Whether one of its limits is used up."""
        return self.usd.is_exhausted or self.tokens.is_exhausted or self.calls.is_exhausted

    @property
    def text(self) -> str:
        """What is spent of each limit, for people: `$1.20 of $2.50 spent, $0.10 reserved; 3 of 100 calls spent`."""
        return spent_text(
            usd=(self.usd.total, self.usd.spent, self.usd.reserved),
            tokens=(self.tokens.total, self.tokens.spent, self.tokens.reserved),
            calls=(self.calls.total, self.calls.spent, self.calls.reserved),
            unpriced=self.unpriced_calls,
        )


class Keeper(Protocol):
    """What changes budgets: the engine."""

    async def add_to_budget(
        self, key: str | None, run_id: UUID | None, usd: Decimal, tokens: int, calls: int
    ) -> bool: ...

    async def delete_budget(self, key: str) -> bool: ...


class Budgets:
    """Reads budgets, adds to them, deletes shared ones. `baton.budgets` is one; it works while its Baton does.

    A budget is named by its key, or by the run whose own it is: a `Run`, or its id.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        prefix: str,
        keeper: Keeper,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._keeper = keeper

    async def get(self, budget: str | UUID | Run) -> BudgetStatus:
        """A shared budget by its key, or a run's own.

        Raises:
            BudgetNotFound: No run has declared that key, or the run has no budget of its own.
        """
        key, run_id = _which(budget)
        rows = await self._rows("read_budget", key=key, id=run_id)
        if not rows:
            raise _not_found(key, run_id)
        return _status(rows[0])

    async def for_run(self, run: str | UUID | Run) -> tuple[BudgetStatus, ...]:
        """All budgets that hold for a run: its own first, then the shared ones by key. None for a run without, and for no run.

        Raises:
            RunNotFound: That is no run's id.
        """
        rows = await self._rows("read_budgets_of_run", id=_asked.run_id(_plain(run)))
        return tuple(map(_status, rows))

    async def list(
        self, *, key_prefix: str = "", after: str | None = None, limit: int = 100
    ) -> tuple[BudgetStatus, ...]:
        """Shared budgets, by key.

        Args:
            key_prefix: Those whose keys begin so, such as `tenant:`.
            after: Key of the last one of the page before.
            limit: How many at most, 1 to 1,000.
        """
        _asked.check_range("limit", limit, _MOST_BUDGETS)
        prefix = _asked.text("key_prefix", key_prefix)
        if prefix is None:
            raise InvalidOption("key_prefix is None; it must be text, '' for all budgets")
        pattern = f"{_escaped(prefix)}%" if prefix else None
        rows = await self._rows(
            "list_budgets", key_prefix=pattern, after=_asked.text("after", after), limit=limit
        )
        return tuple(map(_status, rows))

    async def add(
        self, budget: str | UUID | Run, *, usd: Dollars = 0, tokens: int = 0, calls: int = 0
    ) -> BudgetStatus:
        """Top up a budget; runs that it had paused go on. What was added stays when limits are declared anew.

        A number below 0 takes back what was added by mistake. Called again after a lost connection, it may add twice: look at
        `get` first.

        Raises:
            BudgetNotFound: As for `get`.
            InvalidOption: Nothing is added, or to a limit that the budget does not have.
        """
        key, run_id = _which(budget)
        more = _signed(usd), _signed_count("tokens", tokens), _signed_count("calls", calls)
        if not any(more):
            raise InvalidOption("nothing is added; give usd=, tokens= or calls=")
        if not await self._keeper.add_to_budget(key, run_id, *more):
            raise _not_found(key, run_id)
        return await self.get(budget)

    async def delete(self, key: str) -> bool:
        """Forget a shared budget, one of last week's day for instance. Returns whether there was one.

        Runs that draw on it go on without this limit, those that it had paused as well. A run that declares the key later makes
        a new one, of which nothing is spent.
        """
        return await self._keeper.delete_budget(budget_key(key))

    async def _rows(self, name: str, /, **asked: object) -> Sequence[dict[str, Any]]:
        async with self._reading() as conn, conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_store.load(name, self._prefix), asked, prepare=False)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        async with self._connection() as conn:
            try:
                async with conn.transaction():
                    await conn.execute(_ONE_MOMENT.encode())
                    yield conn
            except QueryCanceled as error:
                raise QueryTimeout(
                    f"reading budgets took longer than {_SECONDS} seconds, and the database gave it up; ask for fewer"
                ) from error


def _plain(budget: str | UUID | Run) -> str | UUID:
    return budget if isinstance(budget, str | UUID) else budget.id


def _which(budget: str | UUID | Run) -> tuple[str | None, UUID | None]:
    """The key, or the run's id: no key looks like one."""
    named_by = _plain(budget)
    try:
        return None, UUID(str(named_by))
    except ValueError:
        return budget_key(named_by), None


def _not_found(key: str | None, run_id: UUID | None) -> BudgetNotFound:
    if key is None:
        return BudgetNotFound(
            f"run {run_id} has no budget of its own; it was inserted without one, draws on shared ones, or was pruned"
        )
    return BudgetNotFound(
        f"there is no budget {key!r}; the first run with Workflow(budget=Budget(key={key!r}, ...)) makes it"
    )


def _signed(usd: Dollars) -> Decimal:
    """As `dollars`, and below nothing as well."""
    if isinstance(usd, str) and usd.lstrip().startswith("-"):
        return dollars("usd", usd.replace("-", "", 1)).copy_negate()
    if isinstance(usd, Decimal) and usd.is_signed():
        return dollars("usd", usd.copy_negate()).copy_negate()
    if isinstance(usd, int | float) and usd < 0:
        return dollars("usd", -usd).copy_negate()
    return dollars("usd", usd)


def _signed_count(option: str, value: int) -> int:
    return -count(option, -value) if type(value) is int and value < 0 else count(option, value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _status(row: Mapping[str, Any]) -> BudgetStatus:
    def dollars_of(name: str) -> Decimal:
        return _dollars.plain(row[name])

    return BudgetStatus(
        key=row["key"],
        run_id=None if row["workflow_id"] is None else str(row["workflow_id"]),
        usd=BudgetLine(
            limit=None if row["limit_usd"] is None else dollars_of("limit_usd"),
            added=dollars_of("added_usd"),
            spent=dollars_of("spent_usd"),
            reserved=dollars_of("reserved_usd"),
        ),
        tokens=BudgetLine(
            row["limit_tokens"], row["added_tokens"], row["spent_tokens"], row["reserved_tokens"]
        ),
        calls=BudgetLine(row["limit_calls"], row["added_calls"], row["spent_calls"], row["reserved_calls"]),
        unpriced_calls=row["unpriced_calls"],
        on_exhausted=row["on_exhausted"],
        unpriced=row["unpriced"],
        paused_runs=row["paused_runs"],
        inserted_at=row["inserted_at"].astimezone(UTC),
        raised_at=row["raised_at"].astimezone(UTC),
    )
