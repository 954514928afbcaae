"""Durable DAG workflows on PostgreSQL and nothing else: steps are Oban jobs, and state follows them by trigger.

    from baton import Baton, Workflow, step

    @step
    def greet(name: str) -> str:
        return f"hello {name}"

    workflow = Workflow("greeting")
    workflow.add("greet", greet.new(name="you"))

    async with Baton.local() as baton:
        run = await baton.insert(workflow)
        print(await run.result("greet"))

Everything here is loaded when it is first used, so that importing Baton to define steps does not import a database driver.
"""

import importlib
from typing import TYPE_CHECKING, Any

from baton._budget import Budget, Reserve
from baton._declare import Ref, Step, StepJob, llm_step, step
from baton._outcomes import Cancel, Snooze
from baton.errors import BatonError
from baton.workflow import Workflow

if TYPE_CHECKING:
    from oban import worker

    from baton import (
        debug,
        doctor,
        errors,
        events,
        migration,
        multi_model,
        otel,
        pricing,
        stats,
        telemetry,
        testing,
    )
    from baton import web as web
    from baton._calls import call_llm, once, record_usage
    from baton._fold import Group
    from baton._layout import Box, Edge, Layout
    from baton._llm import LLMWorker
    from baton._progress import progress, stream
    from baton._states import RunState, StepState
    from baton._step import StepContext, StepLogFilter, current, results
    from baton._totals import Totals
    from baton._usage import Usage
    from baton.budgets import BudgetLine, Budgets, BudgetStatus
    from baton.client import Baton
    from baton.events import StepProgress, StepStreamed, StepUpdated, WorkflowFinished
    from baton.pricing import GenaiPrices, ModelPrice, Price, PriceTable, Pricing
    from baton.query import DebugLog, DebugLogPage, FailedAttempt, Neighbour, Query, StepDetail, StepPage
    from baton.run import Run
    from baton.snapshot import (
        Chunk,
        Graph,
        Progress,
        RunChange,
        RunsChange,
        RunStatus,
        RunSummary,
        StepStatus,
        StreamPage,
    )
    from baton.stats import DayCost, LabelCost, ModelCall, ModelCost, Stats, StepCost, StepsCost
    from baton.why import Cause, Explanation, Reason, RunExplanation

__version__ = "0.1.0"

__all__ = [
    "Baton",
    "BatonError",
    "Box",
    "Budget",
    "BudgetLine",
    "BudgetStatus",
    "Budgets",
    "Cancel",
    "Cause",
    "Chunk",
    "DayCost",
    "DebugLog",
    "DebugLogPage",
    "Edge",
    "Explanation",
    "FailedAttempt",
    "GenaiPrices",
    "Graph",
    "Group",
    "LLMWorker",
    "LabelCost",
    "Layout",
    "ModelCall",
    "ModelCost",
    "ModelPrice",
    "Neighbour",
    "Price",
    "PriceTable",
    "Pricing",
    "Progress",
    "Query",
    "Reason",
    "Ref",
    "Reserve",
    "Run",
    "RunChange",
    "RunExplanation",
    "RunState",
    "RunStatus",
    "RunSummary",
    "RunsChange",
    "Snooze",
    "Stats",
    "Step",
    "StepContext",
    "StepCost",
    "StepDetail",
    "StepJob",
    "StepLogFilter",
    "StepPage",
    "StepProgress",
    "StepState",
    "StepStatus",
    "StepStreamed",
    "StepUpdated",
    "StepsCost",
    "StreamPage",
    "Totals",
    "Usage",
    "Workflow",
    "WorkflowFinished",
    "call_llm",
    "current",
    "debug",
    "doctor",
    "errors",
    "events",
    "llm_step",
    "migration",
    "multi_model",
    "once",
    "otel",
    "pricing",
    "progress",
    "record_usage",
    "results",
    "stats",
    "step",
    "stream",
    "telemetry",
    "testing",
    "worker",
]

# Name to the module that has it; a name of its own module stands for the module.
_LAZY = {
    "Baton": "baton.client",
    "Box": "baton._layout",
    "BudgetLine": "baton.budgets",
    "BudgetStatus": "baton.budgets",
    "Budgets": "baton.budgets",
    "Cause": "baton.why",
    "Chunk": "baton.snapshot",
    "DebugLog": "baton.query",
    "DebugLogPage": "baton.query",
    "Edge": "baton._layout",
    "Explanation": "baton.why",
    "FailedAttempt": "baton.query",
    "Graph": "baton.snapshot",
    "Group": "baton._fold",
    "LLMWorker": "baton._llm",
    "Layout": "baton._layout",
    "Neighbour": "baton.query",
    "Progress": "baton.snapshot",
    "Query": "baton.query",
    "Reason": "baton.why",
    "Run": "baton.run",
    "RunChange": "baton.snapshot",
    "RunExplanation": "baton.why",
    "RunState": "baton._states",
    "RunStatus": "baton.snapshot",
    "RunSummary": "baton.snapshot",
    "RunsChange": "baton.snapshot",
    "StepContext": "baton._step",
    "StepDetail": "baton.query",
    "StepLogFilter": "baton._step",
    "StepPage": "baton.query",
    "StepProgress": "baton.events",
    "StepState": "baton._states",
    "StepStatus": "baton.snapshot",
    "StepStreamed": "baton.events",
    "StepUpdated": "baton.events",
    "StreamPage": "baton.snapshot",
    # Not for users: the path under which Oban finds the worker of every step.
    "StepWorker": "baton._step",
    "Usage": "baton._usage",
    "WorkflowFinished": "baton.events",
    "call_llm": "baton._calls",
    "current": "baton._step",
    "debug": "baton.debug",
    "doctor": "baton.doctor",
    "errors": "baton.errors",
    "events": "baton.events",
    "migration": "baton.migration",
    "once": "baton._calls",
    "multi_model": "baton.multi_model",
    "progress": "baton._progress",
    "record_usage": "baton._calls",
    "otel": "baton.otel",
    "results": "baton._step",
    "stream": "baton._progress",
    "telemetry": "baton.telemetry",
    "testing": "baton.testing",
    "web": "baton.web",
    "worker": "oban",
    "DayCost": "baton.stats",
    "GenaiPrices": "baton.pricing",
    "LabelCost": "baton.stats",
    "ModelCall": "baton.stats",
    "ModelCost": "baton.stats",
    "ModelPrice": "baton.pricing",
    "Price": "baton.pricing",
    "PriceTable": "baton.pricing",
    "Pricing": "baton.pricing",
    "Stats": "baton.stats",
    "StepCost": "baton.stats",
    "StepsCost": "baton.stats",
    "Totals": "baton._totals",
    "pricing": "baton.pricing",
    "stats": "baton.stats",
}


def __getattr__(name: str) -> Any:
    try:
        module = importlib.import_module(_LAZY[name])
    except KeyError:
        raise AttributeError(f"module 'baton' has no attribute {name!r}") from None
    value = module if _LAZY[name] == f"baton.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
