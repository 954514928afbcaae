"""What the page does: the verbs of a run, for whoever may, with a line in the log for each."""

import logging
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from oban import telemetry
from starlette.responses import Response

from baton import Run, RunState, StepState, _dollars
from baton.web import _shapes
from baton.web._errors import Refused
from baton.web._site import Call

logger = logging.getLogger("baton.web")

_LONGEST_REASON = 1_000
# A page names its clicks with letters, digits and dashes; a uuid, say.
_LONGEST_KEY = 100
_TAKES_POSITION = frozenset({"cancel", "rerun"})
_AMOUNTS = ("usd", "tokens", "calls")
# What one click adds at most: more is a slip of the hand.
_MOST_USD = 10**6
_MOST_COUNT = 10**12
_USD = re.compile(r"[0-9]{1,7}([.][0-9]{1,6})?")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an action was asked with. Which run it is about says the URL alone."""

    reason: str | None
    position: int | None
    budget: str | None
    usd: Decimal
    tokens: int
    calls: int

    @classmethod
    def of(cls, action: str, body: dict[str, Any]) -> "_Asked":
        allowed = {"reason"} if action == "cancel" else set()
        if action == "add_budget":
            allowed = {"budget", *_AMOUNTS}
        if action in _TAKES_POSITION:
            allowed |= {"position"}
        if unknown := sorted(set(body) - allowed):
            raise Refused(400, f"{action} takes no {unknown[0][:40]!r}")
        reason, position = body.get("reason"), body.get("position")
        if reason is not None and (not isinstance(reason, str) or len(reason) > _LONGEST_REASON):
            raise Refused(400, f"reason must be text of at most {_LONGEST_REASON:,} characters")
        if position is not None and (type(position) is not int or not 0 <= position < 2**31):
            raise Refused(400, "position must be a whole number from 0 up")
        budget = body.get("budget")
        if budget is not None and not isinstance(budget, str):
            raise Refused(400, "budget must be the key of a shared budget, or null for the run's own")
        tokens, calls = (_count(name, body.get(name)) for name in ("tokens", "calls"))
        return cls(reason, position, budget, _usd(body.get("usd")), tokens, calls)


def _usd(given: object) -> Decimal:
    """An amount as text, since a number of JSON is not exact; nothing for none."""
    if given is None:
        return Decimal(0)
    if not isinstance(given, str) or not _USD.fullmatch(given) or Decimal(given) > _MOST_USD:
        raise Refused(400, f'usd must be text such as "2.50", up to {_MOST_USD:,}')
    return Decimal(given)


def _count(name: str, given: object) -> int:
    if given is None:
        return 0
    if type(given) is not int or not 0 <= given <= _MOST_COUNT:
        raise Refused(400, f"{name} must be a whole number from 0 to {_MOST_COUNT:,}")
    return given


async def act(action: str, call: Call) -> Response:
    """Do it, once, and say so."""
    asked = _Asked.of(action, await call.json())
    query, prefix = call.site.baton.query, call.access.name_prefix
    async with call.site.reading():
        await query.get_run(call.run_id, name_prefix=prefix)
        step = None
        if asked.position is not None:
            found = await query.get_step(
                call.run_id, asked.position, characters=1, neighbours=1, name_prefix=prefix
            )
            step = found.status.name
    try:
        run_id, message = await _do(action, call, asked, step)
    except Exception as error:
        audit(action, call, step, f"failed: {type(error).__name__}")
        raise
    audit(action, call, step, message)
    return Response(_shapes.dumps({"run": run_id, "message": message}), media_type="application/json")


async def _do(action: str, call: Call, asked: _Asked, step: str | None) -> tuple[str, str]:
    """The run that the page shows next, and what became of it."""
    run = call.site.baton.get_run(call.run_id)
    match action:
        case "cancel":
            by = f"cancelled by {call.access.user}" if call.access.user else "cancelled on the page"
            return run.id, await _cancel(run, step, asked.reason or by)
        case "retry":
            return run.id, _retried(await run.retry())
        case "rerun":
            return await _rerun(call, run, step)
        case "pause":
            return run.id, _late(
                "run", await run.pause(), RunState.EXECUTING
            ) or "paused: nothing more of it starts"
        case "add_budget":
            return run.id, await _add_budget(call, run, asked)
        case "resume":
            return run.id, _late("run", await run.resume(), RunState.EXECUTING) or "goes on"
    raise AssertionError(action)


async def _cancel(run: Run, step: str | None, reason: str) -> str:
    if step is None:
        return _late("run", await run.cancel(reason=reason), RunState.CANCELLED) or "cancelled"
    return _late("step", await run.cancel(step, reason=reason), StepState.CANCELLED) or f"{step}: cancelled"


async def _add_budget(call: Call, run: Run, asked: _Asked) -> str:
    """Add to a budget that the run draws on, and to no other."""
    if not (asked.usd or asked.tokens or asked.calls):
        raise Refused(400, "say how much is to be added, in usd, tokens or calls")
    budgets = call.site.baton.budgets
    async with call.site.reading():
        found = [budget for budget in await budgets.for_run(run) if budget.key == asked.budget]
    if not found:
        raise Refused(404, "the run has no such budget")

    async def add() -> str:
        now = await budgets.add(
            run if asked.budget is None else asked.budget,
            usd=asked.usd,
            tokens=asked.tokens,
            calls=asked.calls,
        )
        return f"{now.name}: {_sum(asked)} added, {now.text}"

    click = (call.access.user, run.id, asked)
    text, known = await call.site.clicks.once(click, _key(call), add)
    return text + (", a moment ago" if known else "")


def _sum(asked: _Asked) -> str:
    parts = [_dollars.text(asked.usd)] if asked.usd else []
    parts += [f"{asked.tokens:,} tokens"] if asked.tokens else []
    parts += [f"{asked.calls:,} calls"] if asked.calls else []
    return " and ".join(parts)


def _key(call: Call) -> str | None:
    """What the page calls this click."""
    key = call.request.headers.get("idempotency-key")
    if key is not None and len(key) > _LONGEST_KEY:
        raise Refused(400, f"Idempotency-Key has at most {_LONGEST_KEY} characters")
    return key


async def _rerun(call: Call, run: Run, step: str | None) -> tuple[str, str]:
    async def rerun() -> str:
        return (await run.rerun(from_=step)).id

    new, known = await call.site.clicks.once((call.access.user, run.id, step), _key(call), rerun)
    where = "" if step is None else f" from {step}"
    return new, f"runs again{where}" + (", since a moment ago" if known else "")


def _retried(names: list[str]) -> str:
    if not names:
        return "nothing had failed"
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
    return f"{'1 step runs' if len(names) == 1 else f'{len(names):,} steps run'} again: {shown}"


def _late(what: str, state: RunState | StepState, wanted: RunState | StepState) -> str | None:
    """What to say where the run or step had ended otherwise before."""
    return None if state == wanted else f"the {what} had ended before: it is {state}"


def audit(action: str, call: Call, step: str | None, outcome: str) -> None:
    """Say who did what, in the log and to telemetry."""
    client = call.request.client
    origin = client.host if client else "unknown"
    # What comes from outside cannot forge a line of the log.
    logger.info(
        "%s by %s from %s: run %s%s: %s",
        action,
        ascii(call.access.user),
        ascii(origin),
        call.run_id,
        f" step {step!a}" if step is not None else "",
        ascii(outcome),
    )
    telemetry.execute(
        "baton.web.action",
        {
            "action": action,
            "user": call.access.user,
            "from": origin,
            "run_id": call.run_id,
            "step": step,
            "outcome": outcome,
        },
    )
