"""A step whose code one of the workers does not have."""

from typing import Any

import baton
from baton import Cancel, Snooze, step
from tests.lab.steps import _run


@step(name="lab.rare", backoff=lambda _attempt: 0)
async def rare(tag: str, plan: dict[str, Any], inputs: dict[str, str | None]) -> str | Snooze | Cancel:
    """As `steps.work`."""
    context = baton.current()
    return await _run(context.job, tag, context.step, plan, inputs)
