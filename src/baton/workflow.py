"""The Workflow builder: named steps, their dependencies, and the checks that need no database.

Nothing here is written anywhere. `Baton.insert` takes the finished workflow, validates it and inserts it in
one transaction.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import MAXYEAR, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

import orjson

from baton import render
from baton._budget import Budget
from baton._codec import Path, Refused, dump, encode, render_path
from baton._declare import (
    DOOM_HOOKS,
    Ref,
    Reference,
    Step,
    StepJob,
    StepOptions,
    check_scheduled_at,
    checked_tags,
    registered,
)
from baton._fold import fold
from baton._graph import find_cycle
from baton._layout import layout
from baton._names import step_name, workflow_key, workflow_name
from baton.errors import (
    CycleError,
    DuplicateStep,
    ForeignReference,
    InvalidArgument,
    InvalidOption,
    SelfDependency,
    UnknownStep,
)

if TYPE_CHECKING:
    from oban.job import Job

STEP_WORKER = "baton.StepWorker"
# Far from the end of the calendar, whenever it is added to now.
_LONGEST_DEADLINE = timedelta(days=365_000)
type RunsOn = Literal["success", "always", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDefinition:
    """One step, as it will be inserted.

    Attributes:
        name: Unique in the workflow.
        worker: Worker of the Oban job; `baton.StepWorker` for a `@step` function.
        args: JSON text of the job's args.
        queue: Queue of the job.
        max_attempts: Attempts before the job is discarded.
        priority: 0 (first) to 9 (last).
        tags: Labels of the job.
        meta: JSON text of the job's meta.
        scheduled_at: When it may run at the earliest, aware; None for as soon as it is released.
        deps: Names of the steps it waits for, each once.
        ignore_cancelled: Whether a cancelled dependency counts as done.
        ignore_discarded: Whether a discarded dependency counts as done.
        function: Registered name of the `@step`, or the worker of an Oban job.
        runs_on: When its dependencies have settled: after `success`, `always`, or only after a `failure`.
        hooked: Whether its code wants to hear that a dependency doomed it.
    """

    name: str
    worker: str
    args: str
    queue: str
    max_attempts: int
    priority: int
    tags: tuple[str, ...]
    meta: str
    scheduled_at: datetime | None
    deps: tuple[str, ...]
    ignore_cancelled: bool
    ignore_discarded: bool
    function: str
    runs_on: RunsOn = "success"
    hooked: bool = False


class Workflow:
    """A graph of steps, built in any order and inserted as a whole.

    Args:
        name: What kind of work this is, for people and lists: 1 to 200 printable characters.
        key: While a workflow with this key is live, inserting the same graph returns that one.
        ignore_cancelled: Default of the steps: whether a cancelled dependency counts as done.
        ignore_discarded: Default of the steps: whether a discarded dependency counts as done.
        scheduled_at: When the steps without dependencies may run at the earliest; aware.
        deadline: When the run must have finished: a time, aware, or a timedelta from the insert on, by the server's clock.
            Looked at once a second, so a run that ends within that second has met it.
            What has not settled by then is cancelled, and the run ends as failed; steps with `always=True` still run. A retry
            of the finished run, and a re-run, get as long again.
        debug: Capture the calls of models that its steps make: request, response, and the results that the step saw. See
            `baton.debug`.
        budget: What its calls of models may use: one `Budget`, or several that hold at once, of which at most one is the run's
            own and the others are shared by their keys. A re-run has a new one as large, and draws on the same shared ones.

    Raises:
        InvalidName: `name` or `key` is outside the grammar.
        InvalidOption: `scheduled_at` or `deadline` has no time zone, a flag is no bool, or two budgets would be the same.
    """

    def __init__(
        self,
        name: str = "workflow",
        *,
        key: str | None = None,
        ignore_cancelled: bool = False,
        ignore_discarded: bool = False,
        scheduled_at: datetime | None = None,
        deadline: datetime | timedelta | None = None,
        debug: bool = False,
        budget: Budget | Iterable[Budget] | None = None,
    ) -> None:
        self.name = workflow_name(name)
        self.key = None if key is None else workflow_key(key)
        self.ignore_cancelled = _flag("ignore_cancelled", ignore_cancelled)
        self.ignore_discarded = _flag("ignore_discarded", ignore_discarded)
        check_scheduled_at(scheduled_at)
        self.scheduled_at = scheduled_at
        self.deadline = _deadline(deadline)
        self.debug = _flag("debug", debug)
        self.budgets = _budgets(self.name, budget)
        self._steps: dict[str, StepDefinition] = {}
        # What goes into the args of steps besides their own, by the name of the step: `multi_model` puts it here beforehand.
        self._entries: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"<workflow {self.name!r} with {len(self._steps):,} steps>"

    @property
    def steps(self) -> Mapping[str, StepDefinition]:
        """The steps by name, in the order they were added. Read only."""
        return MappingProxyType(self._steps)

    @overload
    def add[R](
        self,
        name: str,
        job: StepJob[R],
        *,
        deps: Iterable[str | Ref[Any]] = (),
        ignore_cancelled: bool | None = None,
        ignore_discarded: bool | None = None,
        always: bool = False,
        on_failure: bool = False,
    ) -> Ref[R]: ...

    @overload
    def add(
        self,
        name: str,
        job: Job,
        *,
        deps: Iterable[str | Ref[Any]] = (),
        ignore_cancelled: bool | None = None,
        ignore_discarded: bool | None = None,
        always: bool = False,
        on_failure: bool = False,
    ) -> Ref[Any]: ...

    def add(
        self,
        name: str,
        job: StepJob[Any] | Job,
        *,
        deps: Iterable[str | Ref[Any]] = (),
        ignore_cancelled: bool | None = None,
        ignore_discarded: bool | None = None,
        always: bool = False,
        on_failure: bool = False,
    ) -> Ref[Any]:
        """Add a step. If this raises, the workflow is as it was.

        Args:
            name: 1 to 64 letters, digits, `_` or `-`, unique in this workflow.
            job: What `step.new(...)` or an Oban worker's `new(...)` built. It is copied.
            deps: Steps to wait for besides those whose results are arguments: refs, or names, which may be
                of steps added later. Naming one twice is naming it once.
            ignore_cancelled: Whether a cancelled dependency counts as done; None is the workflow's default.
            ignore_discarded: Whether a discarded dependency counts as done; None is the workflow's default.
            always: Run it when its dependencies have settled, whatever became of them, also after the run was cancelled or its
                deadline passed: for cleaning up. A failure of a dependency still fails the run.
            on_failure: Run it only if one of its dependencies was discarded or cancelled, and skip it otherwise: for telling
                somebody. A cancelled run runs it no more. What waits for a skipped step is skipped in turn.

        Returns:
            A reference to the step. Its `.result` goes into another step's `new()`.

        Raises:
            InvalidName: `name` is outside the grammar.
            DuplicateStep: `name` is taken.
            ForeignReference: A ref belongs to another workflow.
            InvalidArgument: `job` is no job, is inserted already, or JSON cannot hold its args or meta.
            InvalidOption: `deps` is one string, a flag is no bool, both `always` and `on_failure` are set, or a step that is to
                run on failure waits for nothing.
        """
        name = step_name(name)
        if name in self._steps:
            raise DuplicateStep(f"workflow {self.name!r} has a step {name!r} already; choose another name")
        flags: dict[str, Any] = {
            "ignore_cancelled": _flag("ignore_cancelled", ignore_cancelled, self.ignore_cancelled),
            "ignore_discarded": _flag("ignore_discarded", ignore_discarded, self.ignore_discarded),
            "runs_on": _runs_on(name, _flag("always", always), _flag("on_failure", on_failure)),
        }
        if isinstance(job, StepJob):
            used = [self._own(name, bound.ref) for bound in job.references]
            names = tuple(dict.fromkeys([*used, *self._names(name, deps)]))
            definition = _step_definition(name, job, names, flags)
            returns = job.step.returns
        else:
            definition = _job_definition(name, job, tuple(dict.fromkeys(self._names(name, deps))), flags)
            returns = Any
        if definition.runs_on == "failure" and not definition.deps:
            raise InvalidOption(
                f"step {name!r} is to run on failure and waits for nothing; name the steps whose failure is meant in deps"
            )
        if name in self._entries:
            definition = replace(definition, args=_with_entries(name, definition.args, self._entries[name]))
        self._steps[name] = definition
        return Ref(name, self, returns)

    def validate(self) -> None:
        """Check that every dependency was added and that no steps wait for each other.

        A workflow without steps is legal. 100,000 steps take a fraction of a second.

        Raises:
            UnknownStep: Dependencies, or steps with a configured model, that were never added; the message offers near matches.
            SelfDependency: A step that waits for itself.
            CycleError: Steps that wait for each other.
        """
        index = {name: number for number, name in enumerate(self._steps)}
        dependencies: list[list[int]] = []
        unknown: dict[str, str] = {}
        for name, step in self._steps.items():
            if name in step.deps:
                raise SelfDependency(
                    f"workflow {self.name!r}: step {name!r} waits for itself; remove {name!r} from its deps"
                )
            try:
                dependencies.append([index[on] for on in step.deps])
            except KeyError:
                unknown |= {on: name for on in step.deps if on not in index and on not in unknown}
        if unknown:
            raise UnknownStep(self._describe_unknown(unknown))
        if never := self._entries.keys() - self._steps.keys():
            raise UnknownStep(self._describe_unconfigured(sorted(never)))
        if cycle := find_cycle(dependencies):
            names = list(self._steps)
            raise CycleError(self.name, [names[number] for number in cycle])

    @property
    def definition_hash(self) -> str:
        """SHA-256 of the graph in hex: equal for the same work, in whatever order it was added.

        The key is no part of it, and neither are times: the same work may be asked for again, for later. Nor is what is
        captured of it.
        """
        steps = [
            [
                step.name,
                step.worker,
                orjson.loads(step.args),
                orjson.loads(step.meta),
                sorted(step.deps),
                # What is younger than the first version appears only where it is used, so that a deploy changes no hash.
                [
                    step.ignore_cancelled,
                    step.ignore_discarded,
                    *([] if step.runs_on == "success" else [step.runs_on]),
                ],
                [step.queue, step.max_attempts, step.priority, step.tags],
            ]
            for _, step in sorted(self._steps.items())
        ]
        text = orjson.dumps([self.name, steps], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()

    def to_mermaid(self, states: Mapping[str, str] | None = None) -> str:
        """Draw the workflow as a Mermaid flowchart; `states` by step name give colours.

        Of more than 500 edges, which is what Mermaid draws, steps that are alike are one node.
        """
        return render.to_mermaid(self._graph(), states, self._functions())

    def to_dot(self, states: Mapping[str, str] | None = None) -> str:
        """Draw the workflow as a Graphviz digraph; `states` by step name give colours."""
        return render.to_dot(self._graph(), states)

    def to_text(self, states: Mapping[str, str] | None = None) -> str:
        """List the workflow for a terminal, layer by layer; of more than 60 steps, those that are alike on one line."""
        return render.to_text(self._graph(), states, self._functions())

    def to_svg(self, states: Mapping[str, str] | None = None) -> str:
        """Draw the workflow as an SVG file of its own, with steps that are alike as one box; `states` by step name."""
        graph = self._graph()
        found = {position: states[name] for position, name in enumerate(graph) if states and name in states}
        return render.to_svg(layout(fold(graph, self._functions())), found, title=self.name)

    def _functions(self) -> dict[str, str]:
        return {name: step.function for name, step in self._steps.items()}

    def _graph(self) -> dict[str, tuple[str, ...]]:
        return {name: step.deps for name, step in self._steps.items()}

    def _names(self, step: str, deps: Iterable[str | Ref[Any]]) -> list[str]:
        if isinstance(deps, str | Ref):
            raise InvalidOption(f"step {step!r}: deps={deps!r} is not a list; use deps=[...]")
        if isinstance(deps, Reference) or not isinstance(deps, Iterable):
            raise InvalidOption(f"step {step!r}: deps is {type(deps).__name__}; use a list of names or refs")
        return [self._name(step, dependency) for dependency in deps]

    def _name(self, step: str, dependency: object) -> str:
        if isinstance(dependency, Ref):
            return self._own(step, dependency)
        if isinstance(dependency, str):
            return str.__str__(dependency)
        kind = type(dependency).__name__
        raise InvalidOption(f"step {step!r}: deps holds {kind}; use names, or what add() returned")

    def _own(self, step: str, ref: Ref[Any]) -> str:
        if ref._workflow is not self:
            raise ForeignReference(
                f"workflow {self.name!r}: step {step!r} refers to step {ref.name!r} of {ref._workflow!r}; "
                f"use refs that this workflow's add() returned"
            )
        return ref.name

    def _describe_unknown(self, unknown: Mapping[str, str]) -> str:
        found = [f"step {step!r} waits for {on!r}{self._hint(on)}" for on, step in list(unknown.items())[:10]]
        more = f"; and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
        return f"workflow {self.name!r} lacks steps: {'; '.join(found)}{more}; add them, or correct deps"

    def _describe_unconfigured(self, never: list[str]) -> str:
        found = ", ".join(f"{name!r}{self._hint(name)}" for name in never[:10])
        more = f" and {len(never) - 10:,} more" if len(never) > 10 else ""
        return (
            f"workflow {self.name!r} has a model configured for steps that were never added: {found}{more}; "
            "add them, or correct what multi_model.configure was given"
        )

    def _hint(self, name: str) -> str:
        # Comparing with every name of a huge workflow would take longer than building it.
        near = difflib.get_close_matches(name, list(self._steps)[:5_000], n=3)
        return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _step_definition(
    name: str, job: StepJob[Any], deps: tuple[str, ...], flags: dict[str, Any]
) -> StepDefinition:
    options = job.step.options
    declared = registered(job.step.name)
    # Options of the declaration are looked up when the step runs, so that a deploy can change them. Only what
    # this job was given of its own travels with it.
    own = declared is not None and options.timeout != declared.options.timeout
    return StepDefinition(
        name=name,
        worker=STEP_WORKER,
        args=job.args_json,
        queue=options.queue,
        max_attempts=options.max_attempts,
        priority=options.priority,
        tags=options.tags,
        meta=encode({"timeout": options.timeout}, root="meta") if own else "{}",
        scheduled_at=options.scheduled_at,
        deps=deps,
        function=job.step.name,
        hooked=any(getattr(options, hook) is not None for hook in DOOM_HOOKS),
        **flags,
    )


def _job_definition(name: str, job: Job, deps: tuple[str, ...], flags: dict[str, Any]) -> StepDefinition:
    if isinstance(job, Step):
        raise InvalidArgument(f"step {name!r}: {job!r} has no arguments yet; pass {job.__name__}.new(...)")
    if any(not hasattr(job, attribute) for attribute in ("worker", "args", "queue", "meta", "id")):
        raise InvalidArgument(
            f"step {name!r}: a job is wanted, not {type(job).__name__}; pass what step.new(...) or an Oban "
            f"worker's new(...) returns"
        )
    if job.id is not None:
        raise InvalidArgument(
            f"step {name!r}: job {job.id} is inserted already; build a new one with new(...)"
        )
    if not isinstance(job.worker, str) or not job.worker.strip() or "\0" in job.worker:
        raise InvalidArgument(f"step {name!r}: the job's worker {job.worker!r} is no name of a class")
    options = StepOptions(
        queue=job.queue,
        max_attempts=job.max_attempts,
        priority=job.priority,
        tags=checked_tags(job.tags),
        scheduled_at=job.scheduled_at,
    )
    return StepDefinition(
        name=name,
        worker=job.worker,
        args=_object_text(name, "args", job.args),
        queue=options.queue,
        max_attempts=options.max_attempts,
        priority=options.priority,
        tags=options.tags,
        meta=_object_text(name, "meta", job.meta),
        scheduled_at=options.scheduled_at,
        deps=deps,
        function=job.worker,
        hooked=_worker_has_hooks(job.worker),
        **flags,
    )


def _with_entries(step: str, args: str, entries: Mapping[str, Any]) -> str:
    """The args of a job with more in them."""
    own = orjson.loads(args)
    for key, value in entries.items():
        if key in own and own[key] != value:
            raise InvalidArgument(
                f"step {step!r}: its args have {key!r} already, which is where its model goes; leave it out of the args"
            )
    return orjson.dumps(own | entries).decode()


def _object_text(step: str, root: str, value: object) -> str:
    if not isinstance(value, dict):
        raise InvalidArgument(
            f"step {step!r}: {root} is {type(value).__name__}; an Oban job's {root} is a dict"
        )

    def claim(value: object, path: Path) -> bool:
        if isinstance(value, Reference):
            raise Refused(
                path, "only steps take references; name the step in deps and read baton.results there"
            )
        return False

    try:
        return dump(value, claim).decode()
    except Refused as refused:
        raise InvalidArgument(f"step {step!r}: {render_path(root, refused.path)}: {refused.reason}") from None


def _worker_has_hooks(path: str) -> bool:
    """Whether a worker class that is loaded here, as it is where a job of it was built, has a method for a doomed step."""
    module, _, name = path.rpartition(".")
    worker = getattr(sys.modules.get(module), name, None)
    return any(callable(getattr(worker, hook, None)) for hook in DOOM_HOOKS)


def _runs_on(step: str, always: bool, on_failure: bool) -> RunsOn:
    if always and on_failure:
        raise InvalidOption(f"step {step!r}: always and on_failure exclude each other; use one of them")
    return "always" if always else "failure" if on_failure else "success"


def _deadline(value: object) -> datetime | timedelta | None:
    if value is None or (isinstance(value, timedelta) and timedelta() < value <= _LONGEST_DEADLINE):
        return value
    if isinstance(value, datetime) and value.utcoffset() is not None and value.year < MAXYEAR:
        return value
    raise InvalidOption(
        f"deadline={value!r} cannot work; use a datetime with a time zone, or a timedelta above 0, of a thousand years at most"
    )


def _budgets(workflow: str, given: object) -> tuple[Budget, ...]:
    if given is None or isinstance(given, Budget):
        return () if given is None else (given,)
    budgets: list[Budget] = []
    for budget in given if isinstance(given, Iterable) and not isinstance(given, str) else (given,):
        if not isinstance(budget, Budget):
            raise InvalidOption(
                f"workflow {workflow!r}: budget holds {type(budget).__name__}; use Budget(usd=2.50), or a list of budgets"
            )
        budgets.append(budget)
    keys = [budget.key for budget in budgets]
    for key in keys:
        if keys.count(key) > 1:
            which = "budgets of its own" if key is None else f"budgets with the key {key!r}"
            raise InvalidOption(
                f"workflow {workflow!r} has {keys.count(key)} {which}; put the limits into one Budget"
            )
    return tuple(budgets)


def _flag(option: str, value: object, default: bool = False) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidOption(f"{option}={value!r} is no bool; use True or False")
    return value
