"""The commands about what calls of models may use: `baton budget show` and `baton budget add`."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from baton._command import HELP, Target, database_options

if TYPE_CHECKING:
    from baton import BudgetStatus


@click.group(context_settings=HELP)
def budget() -> None:
    """Show what budgets have left, and add to them."""


@budget.command(context_settings=HELP)
@click.argument("name", metavar="[RUN|KEY]", required=False)
@click.option("--prefix-of-keys", "key_prefix", default="", help="Only shared ones whose keys begin so.")
@click.option("--after", metavar="KEY", help="Only those behind this key: the last of the page before.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with exact decimals as text.")
@database_options
def show(
    target: Target, name: str | None, key_prefix: str, after: str | None, limit: int, as_json: bool
) -> None:
    """Show the budgets that hold for a run, the shared one with a key, or all shared ones."""
    from baton import _terminal

    async def read() -> "tuple[BudgetStatus, ...]":
        async with target.baton() as baton:
            if name is None:
                return await baton.budgets.list(key_prefix=key_prefix, after=after, limit=limit)
            if _is_id(name):
                # Raises where there is no such run.
                return await baton.budgets.for_run((await baton.get_run(name).summary()).id)
            return (await baton.budgets.get(name),)

    found = asyncio.run(read())
    if as_json:
        click.echo(_terminal.as_json([_plain(one) for one in found]))
        return
    for one in found:
        click.echo(_terminal.safe(_line(one)))
    if not found:
        click.echo("no budget" if name is None else f"run {name} has no budget", err=True)


@budget.command(context_settings=HELP)
@click.argument("name", metavar="RUN|KEY")
@click.option("--usd", default="0", help="Dollars, such as 2.50.")
@click.option("--tokens", type=int, default=0, help="Tokens.")
@click.option("--calls", type=int, default=0, help="Calls.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with exact decimals as text.")
@database_options
def add(target: Target, name: str, usd: str, tokens: int, calls: int, as_json: bool) -> None:
    """Top up the shared budget with a key, or a run's own; what that had paused goes on.

    A number below 0 takes back: --usd=-2.50.
    """
    from baton import _terminal

    async def do() -> "BudgetStatus":
        async with target.baton() as baton:
            return await baton.budgets.add(name, usd=usd, tokens=tokens, calls=calls)

    one = asyncio.run(do())
    click.echo(_terminal.as_json(_plain(one)) if as_json else _terminal.safe(_line(one)))


def _is_id(name: str) -> bool:
    from uuid import UUID

    try:
        UUID(name)
    except ValueError:
        return False
    return True


def _line(one: "BudgetStatus") -> str:
    paused = (
        f"; {one.paused_runs:,} {'run' if one.paused_runs == 1 else 'runs'} paused" if one.paused_runs else ""
    )
    exhausted = " (exhausted)" if one.is_exhausted else ""
    return f"{one.key or f'run {one.run_id}'}: {one.text}{exhausted}{paused}"


def _plain(one: "BudgetStatus") -> dict[str, Any]:
    left = {"usd": one.usd.left, "tokens": one.tokens.left, "calls": one.calls.left}
    plain = asdict(one)
    return (
        plain
        | {kind: plain[kind] | {"left": left[kind]} for kind in left}
        | {"is_exhausted": one.is_exhausted}
    )
