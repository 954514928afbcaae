"""Several models side by side: which step asks which model, and one step for each of several models.

    from baton import Workflow, llm_step, multi_model

    @llm_step
    async def answer(question: str) -> str:
        model = multi_model.model_for("gpt-6.1-sol")
        ...

    @llm_step
    async def judge(answers: dict[str, str | None]) -> str: ...

    wf = Workflow("compare")
    fan = multi_model.fan_out(
        wf, "answer", answer, models=["gpt-6.1-sol", "claude-opus-5-5"], args={"question": "..."}, synthesize_with=judge
    )
    wf.add("publish", publish.new(fan.synthesis.result))

The model is in the args of the step's job, under `workflow_model`: it is stored with the job, and the same in each attempt.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args, overload

from baton import _step
from baton._declare import Ref, Step, StepJob
from baton._fit import describe, fits
from baton._models import SYNTHESIS, arm_names
from baton._names import model_name, step_name
from baton.errors import DuplicateStep, InvalidArgument, InvalidOption, NoWorkflow, ReferenceMismatch

if TYPE_CHECKING:
    from oban.job import Job

    from baton.workflow import Workflow

# In the args of a job: the model that its step is to ask; of a synthesis, each model with its step, in a list because jsonb has
# an order of its own for keys.
_MODEL = "workflow_model"
_ARMS = "workflow_arms"


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut[R, S]:
    """The steps of a fan-out over models, as added to a workflow.

    Attributes:
        name: As it was given, in front of the name of each step.
        arms: The step of each model, by the model's full name, in the order of `models`.
        synthesis: The step that is called `<name>_synthesis`, or None.
    """

    name: str
    arms: Mapping[str, Ref[R]]
    synthesis: S

    @property
    def results(self) -> dict[str, R]:
        """Placeholders for what the steps will return, by model, to be passed to another step's `new()`.

        Of one that stored nothing, which only a step that ignores that gets to see, it holds None.
        """
        return {model: ref.result for model, ref in self.arms.items()}


def configure(workflow: Workflow, models: Mapping[str, str]) -> None:
    """Say which steps ask which model, before they are added. Other steps are left alone.

    Called again, it adds to what was said, and changes it.

    Args:
        models: Model by name of the step. The step reads it with `model_for`; a worker class also finds it in
            `job.args["workflow_model"]`. A step that is never added is refused when the workflow is inserted.

    Raises:
        DuplicateStep: A step has been added already, without it.
        InvalidName: A step or a model is outside the grammar.
        InvalidOption: `models` is no mapping.
    """
    if not isinstance(models, Mapping):
        raise InvalidOption(
            f"models is {type(models).__name__}; use a dict of step name to model, such as {{'summarize': 'gpt-6.1-sol'}}"
        )
    chosen = {step_name(step): model_name(model) for step, model in models.items()}
    for step in chosen:
        if step in workflow.steps:
            raise DuplicateStep(
                f"workflow {workflow.name!r} has step {step!r} already, which was added without the model; call configure first"
            )
    for step, model in chosen.items():
        workflow._entries[step] = {_MODEL: model}


@overload
def model_for(default: str, /) -> str: ...


@overload
def model_for(job: Job, default: str, /) -> str: ...


def model_for(job: Job | str, default: str | None = None, /) -> str:
    """The model that a step is to ask: the one it was configured with, or of its arm of a fan-out, else `default`.

    `model_for(default)` is for code that a `@step` runs; where none runs, as when its function is called in a test, it is the
    default. `model_for(job, default)` is for worker classes.
    """
    if isinstance(job, str):
        default = job
        try:
            job = _step.current().job
        except NoWorkflow:
            return default
    if not isinstance(default, str):
        raise InvalidOption(
            "model_for takes the model to ask where none was configured, behind the job or alone: model_for('gpt-6.1-sol')"
        )
    found = job.args.get(_MODEL)
    return found if isinstance(found, str) else default


@overload
def fan_out[R](
    workflow: Workflow,
    name: str,
    step: Step[..., R] | StepJob[R],
    *,
    models: Iterable[str] | Mapping[str, str],
    args: Mapping[str, Any] | None = None,
    deps: Iterable[str | Ref[Any]] = (),
    synthesize_with: None = None,
    ignore_cancelled: bool | None = None,
    ignore_discarded: bool | None = None,
) -> FanOut[R, None]: ...


@overload
def fan_out[R, S](
    workflow: Workflow,
    name: str,
    step: Step[..., R] | StepJob[R],
    *,
    models: Iterable[str] | Mapping[str, str],
    args: Mapping[str, Any] | None = None,
    deps: Iterable[str | Ref[Any]] = (),
    synthesize_with: Step[..., S],
    synthesize_model: str | None = None,
    synthesize_args: Mapping[str, Any] | None = None,
    ignore_cancelled: bool | None = None,
    ignore_discarded: bool | None = None,
) -> FanOut[R, Ref[S]]: ...


@overload
def fan_out[R](
    workflow: Workflow,
    name: str,
    step: Step[..., R] | StepJob[R],
    *,
    models: Iterable[str] | Mapping[str, str],
    args: Mapping[str, Any] | None = None,
    deps: Iterable[str | Ref[Any]] = (),
    synthesize_with: type[Any] | Job,
    synthesize_model: str | None = None,
    synthesize_args: Mapping[str, Any] | None = None,
    ignore_cancelled: bool | None = None,
    ignore_discarded: bool | None = None,
) -> FanOut[R, Ref[Any]]: ...


@overload
def fan_out(
    workflow: Workflow,
    name: str,
    step: type[Any] | Job,
    *,
    models: Iterable[str] | Mapping[str, str],
    args: Mapping[str, Any] | None = None,
    deps: Iterable[str | Ref[Any]] = (),
    synthesize_with: Step[..., Any] | type[Any] | Job | None = None,
    synthesize_model: str | None = None,
    synthesize_args: Mapping[str, Any] | None = None,
    ignore_cancelled: bool | None = None,
    ignore_discarded: bool | None = None,
) -> FanOut[Any, Any]: ...


def fan_out(
    workflow: Workflow,
    name: str,
    step: Step[..., Any] | StepJob[Any] | type[Any] | Job,
    *,
    models: Iterable[str] | Mapping[str, str],
    args: Mapping[str, Any] | None = None,
    deps: Iterable[str | Ref[Any]] = (),
    synthesize_with: Step[..., Any] | type[Any] | Job | None = None,
    synthesize_model: str | None = None,
    synthesize_args: Mapping[str, Any] | None = None,
    ignore_cancelled: bool | None = None,
    ignore_discarded: bool | None = None,
) -> FanOut[Any, Any]:
    """Add one step for each model, all with the same arguments, and one that makes one result of theirs.

    The steps are called `<name>_<model>`, the model without its provider, vendor and date: `answer_sonnet_4` asks
    `claude-sonnet-4-20250514`. The synthesis is `<name>_synthesis` and waits for all of them; what comes after depends on it.
    If this raises, the workflow is as it was.

    Args:
        name: In front of the name of each step.
        step: A step or a worker class, which takes `args`; or what its `new(...)` returned, for arguments that are type-checked
            and options of their own. It asks `model_for` which model is its.
        models: The models, each once. In a dict under the end of the step's name, for models whose short names meet.
        args: Arguments of each step, results of other steps included.
        deps: What the steps wait for besides the steps whose results are arguments.
        synthesize_with: A `@step`, whose first parameter gets the results by model; or a worker class, which reads
            `await multi_model.results(job)`. None adds no synthesis: pass `FanOut.results` to a step of your own.
        synthesize_model: What `model_for` answers in the synthesis.
        synthesize_args: Its other arguments.
        ignore_cancelled: Whether the synthesis runs although a step of a model was cancelled, as by an exhausted budget. Its
            result is None then, and `failures` tells the reason. None is the workflow's default.
        ignore_discarded: The same for one that was discarded: a provider that is down costs its result, not the run.

    Raises:
        DuplicateStep: Two models have one short name, or a step of this name was added.
        InvalidName: A name or a model is outside the grammar, or a step's name gets too long.
        InvalidOption: No models, one twice, or an option that has nothing to work on.
        InvalidArgument: `args` do not bind, or JSON cannot hold them.
        ReferenceMismatch: The first parameter of the synthesis cannot take the results, or no None where failures are ignored.
        ForeignReference: A ref belongs to another workflow.
    """
    name = step_name(name)
    made = _made(name, step, args, "args")
    arms = arm_names(name, models, synthesis=synthesize_with is not None)
    flags = {"ignore_cancelled": ignore_cancelled, "ignore_discarded": ignore_discarded}
    if synthesize_with is None:
        _refuse_unused(
            name, {"synthesize_model": synthesize_model, "synthesize_args": synthesize_args, **flags}
        )
    steps, entries = dict(workflow._steps), dict(workflow._entries)
    # What can be read once would be empty for the second arm.
    deps = list(deps) if isinstance(deps, Iterator) else deps
    try:
        refs: dict[str, Ref[Any]] = {}
        for model, arm in arms.items():
            _note(workflow, arm, {_MODEL: model})
            refs[model] = workflow.add(arm, made, deps=deps)
        fan: FanOut[Any, Any] = FanOut(name=name, arms=types.MappingProxyType(refs), synthesis=None)
        if synthesize_with is None:
            return fan
        chosen = {} if synthesize_model is None else {_MODEL: model_name(synthesize_model)}
        end = f"{name}_{SYNTHESIS}"
        _note(workflow, end, {**chosen, _ARMS: [[*arm] for arm in arms.items()]})
        job = _synthesis(workflow, fan, made, synthesize_with, synthesize_args, flags)
        added = workflow.add(
            end,
            job,
            deps=refs.values(),
            ignore_cancelled=ignore_cancelled,
            ignore_discarded=ignore_discarded,
        )
        return FanOut(name=name, arms=fan.arms, synthesis=added)
    except BaseException:
        workflow._steps, workflow._entries = steps, entries
        raise


async def results(job: Job | None = None) -> dict[str, Any]:
    """What the models' steps returned, for the synthesis of a fan-out: by the model's full name, in the order of `models`.

    None for one that stored nothing, which `failures` tells about. In a `@step`, the first parameter has the same.

    Args:
        job: The synthesis's, as its worker class gets it; None in code that a `@step` runs.

    Raises:
        NoWorkflow: The job is not of a synthesis of a fan-out.
    """
    job, arms = _arms(job)
    found = await _step.results.get_all(job)
    return {model: found.get(step) for model, step in arms.items()}


async def failures(job: Job | None = None) -> dict[str, str]:
    """Which models' steps ended cancelled or discarded, with their last error or the reason, by the model's full name.

    Raises:
        NoWorkflow: The job is not of a synthesis of a fan-out.
    """
    job, arms = _arms(job)
    found = await _step.results.failures(job)
    return {model: found[step] for model, step in arms.items() if step in found}


def _arms(job: Job | None) -> tuple[Job, dict[str, str]]:
    job = _step.current().job if job is None else job
    arms = job.args.get(_ARMS)
    if not isinstance(arms, list):
        raise NoWorkflow(
            f"job {job.id} is not of a synthesis of a fan-out, so it has no results by model; give another step the fan-out's "
            "results as an argument, or read baton.results by the names of the steps"
        )
    return job, dict(arms)


def _made(
    name: str,
    step: object,
    args: Mapping[str, Any] | None,
    option: str,
    first: Mapping[str, Any] | None = None,
) -> StepJob[Any] | Job:
    """The job of a step or worker class; what is a job already has no further arguments."""
    if args is not None and not isinstance(args, Mapping):
        raise InvalidOption(f"fan-out {name!r}: {option} is {type(args).__name__}; use a dict of arguments")
    if isinstance(step, Step):
        if both := (args or {}).keys() & (first or {}).keys():
            raise InvalidArgument(
                f"fan-out {name!r}: argument {min(both)!r} of step {step.__name__!r} is for the results; leave it out of "
                f"{option}"
            )
        return step.new(**{**(first or {}), **(args or {})})
    if isinstance(step, type) and callable(make := getattr(step, "new", None)):
        return cast("Job", make(dict(args or {})))
    if args is not None:
        raise InvalidOption(
            f"fan-out {name!r}: {type(step).__name__} has its arguments already; leave {option} out"
        )
    # What is no job at all, `add` refuses.
    return cast("Job", step)


def _synthesis(
    workflow: Workflow,
    fan: FanOut[Any, Any],
    arm: StepJob[Any] | Job,
    step: object,
    args: Mapping[str, Any] | None,
    flags: Mapping[str, bool | None],
) -> StepJob[Any] | Job:
    if not isinstance(step, Step):
        if isinstance(step, StepJob):
            raise InvalidOption(
                f"fan-out {fan.name!r}: synthesize_with has its arguments already; pass the step, and synthesize_args"
            )
        return _made(fan.name, step, args, "synthesize_args")
    if not step.parameters:
        raise InvalidArgument(
            f"fan-out {fan.name!r}: step {step.__name__!r} has no parameter for the results; give it one, which gets a dict of "
            "them by model"
        )
    first, wanted = next(iter(step.parameters.items()))
    returned = arm.step.returns if isinstance(arm, StepJob) else Any
    if not fits(types.GenericAlias(dict, (str, returned)), wanted):
        raise ReferenceMismatch(
            f"fan-out {fan.name!r}: the first parameter of step {step.__name__!r} is annotated {describe(wanted)}, but gets "
            f"dict[str, {describe(returned)}]: the results by model; change one of the annotations"
        )
    kinds = get_args(wanted)
    ignores = any(getattr(workflow, flag) if value is None else value for flag, value in flags.items())
    if ignores and len(kinds) == 2 and not fits(types.NoneType, kinds[1]):
        raise ReferenceMismatch(
            f"fan-out {fan.name!r}: the first parameter of step {step.__name__!r} is annotated {describe(wanted)}, but "
            f"failures are ignored, and a model that failed has None there; annotate it dict[str, {describe(kinds[1])} | None]"
        )
    return _made(fan.name, step, args, "synthesize_args", {first: fan.results})


def _note(workflow: Workflow, step: str, entries: dict[str, Any]) -> None:
    """Put more into the args of a step that will be added; another model that was configured for it stands in the way."""
    configured = workflow._entries.get(step, {})
    if _MODEL in configured and entries.get(_MODEL, configured[_MODEL]) != configured[_MODEL]:
        raise InvalidOption(
            f"step {step!r} was configured with model {configured[_MODEL]!r}, and the fan-out gives it {entries[_MODEL]!r}; "
            "leave one of them out"
        )
    workflow._entries[step] = {**configured, **entries}


def _refuse_unused(name: str, options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise InvalidOption(
                f"fan-out {name!r}: {option} is for a synthesis, and there is none; name one in synthesize_with"
            )
