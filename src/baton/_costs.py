"""The command that says what calls of models cost: `baton cost`."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from baton._command import HELP, Target, database_options
from baton._shown import moment

if TYPE_CHECKING:
    from baton import Totals
    from baton._terminal import CostRow


@click.command(context_settings=HELP)
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option(
    "--by",
    type=click.Choice(["model", "label", "step", "day"]),
    help="What to add up by; default: model. Of one run, step or model; default: step.",
)
@click.option(
    "--from",
    "from_",
    metavar="TIME",
    callback=moment,
    help="Only calls made at this time or later; 7d is seven days ago.",
)
@click.option("--to", metavar="TIME", callback=moment, help="Only calls made before this time.")
@click.option("--name-prefix", default="", help="Only calls of runs whose name begins so.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How many lines at most, the dearest first.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with exact decimals as text.")
@database_options
def cost(
    target: Target,
    run_id: str | None,
    by: str | None,
    from_: datetime | None,
    to: datetime | None,
    name_prefix: str,
    limit: int,
    as_json: bool,
) -> None:
    """Say what calls of models used and cost: of one run, or of all of a time.

    A label is the name that a workflow was given; days are those of UTC. What was spent by attempts that failed, and by runs
    that have been pruned, counts. A cost that is not known makes a total `at least` what is known.
    """
    if run_id is not None and (from_ or to):
        raise click.UsageError("--from and --to are for the costs of all runs.")
    if run_id is not None and by in ("label", "day"):
        raise click.UsageError(f"--by {by} is for the costs of all runs.")
    wanted = by or ("model" if run_id is None else "step")

    from baton import _terminal

    async def read() -> "tuple[Totals, Sequence[CostRow]]":
        async with target.baton() as baton:
            stats = baton.stats
            if run_id is not None:
                total = await stats.workflow_totals(run_id, name_prefix=name_prefix)
                if wanted == "step":
                    return total, await stats.steps_for_workflow(run_id, limit=limit, name_prefix=name_prefix)
                return total, await stats.models_for_workflow(run_id, limit=limit, name_prefix=name_prefix)
            total = await stats.totals(from_, to, name_prefix=name_prefix)
            asked: Any = {"from_": from_, "to": to, "name_prefix": name_prefix, "limit": limit}
            match wanted:
                case "model":
                    return total, await stats.cost_by_model(**asked)
                case "label":
                    return total, await stats.cost_by_label(**asked)
                case "step":
                    return total, await stats.cost_by_step(**asked)
                case _:
                    return total, await stats.cost_by_day(**asked)

    total, rows = asyncio.run(read())
    if as_json:
        said = {"run": run_id, "by": wanted, "totals": _plain(total), "rows": [_row(row) for row in rows]}
        click.echo(_terminal.as_json(said))
    elif not total.calls:
        click.echo("no calls of models are recorded", err=True)
    else:
        console = _terminal.open_console()
        _terminal.show(console, _terminal.costs_table(console, total, rows))
        if len(rows) == limit:
            click.echo("there may be more lines: raise --limit", err=True)


def _plain(totals: "Totals") -> dict[str, Any]:
    return {**asdict(totals), "is_lower_bound": totals.is_lower_bound}


def _row(row: "CostRow") -> dict[str, Any]:
    about = asdict(row)
    del about["totals"]
    return {**about, **_plain(row.totals)}
