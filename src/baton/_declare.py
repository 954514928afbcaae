"""Steps as declared: `@step`, the job that `step.new()` builds, and references to results not there yet.

Everything that can be known before a workflow exists is checked here: that the arguments bind, that JSON can
hold them, and that a referenced result may be what the parameter wants. Nothing here runs a step.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import random
import threading
import types
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypedDict, Union, Unpack, cast, overload

import orjson

from baton._codec import Attribute, Path, Refused, dump, render_path
from baton._fit import describe, fits, members
from baton._names import function_name, queue_name
from baton._outcomes import Cancel, Snooze
from baton.errors import (
    DuplicateStep,
    InvalidArgument,
    InvalidName,
    InvalidOption,
    NotAValue,
    ReferenceMismatch,
)

type Backoff = Callable[[int], float]
# Called with the reason and the Oban job of the step that was doomed; may be `async`.
type DoomHook = Callable[[str, Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How a step's job is queued and tried. Checked when made.

    Attributes:
        queue: Queue whose workers run the step.
        max_attempts: Attempts, the first included, before the step is discarded.
        priority: 0 (first) to 9 (last) among the available jobs of the queue.
        timeout: Seconds an attempt may run; None is no limit.
        tags: Labels of the job, lowercased and sorted as Oban does.
        backoff: Seconds to wait after the attempt of that number failed; None is Oban's own.
        scheduled_at: When the step may run at the earliest; aware.
        on_dep_cancelled: Called when a cancelled dependency has cancelled the step.
        on_dep_discarded: Called when a discarded dependency has cancelled the step.
        llm: Whether it was declared with `@llm_step`.

    Raises:
        InvalidOption: A value that cannot work.
        InvalidName: A queue outside the grammar.
    """

    queue: str = "default"
    max_attempts: int = 20
    priority: int = 0
    timeout: float | None = None
    tags: tuple[str, ...] = ()
    backoff: Backoff | None = None
    scheduled_at: datetime | None = None
    on_dep_cancelled: DoomHook | None = None
    on_dep_discarded: DoomHook | None = None
    llm: bool = False

    def __post_init__(self) -> None:
        queue_name(self.queue)
        _check_int("max_attempts", self.max_attempts, 1, 32_767)
        _check_int("priority", self.priority, 0, 9)
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout < math.inf):
            raise InvalidOption(
                f"timeout={self.timeout!r} cannot work; use seconds above 0, or None for no limit"
            )
        if self.backoff is not None and not callable(self.backoff):
            raise InvalidOption(
                f"backoff={self.backoff!r} is not callable; use a function of the attempt's number"
            )
        check_scheduled_at(self.scheduled_at)
        for name in DOOM_HOOKS:
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise InvalidOption(f"{name}={hook!r} is not callable; use a function of a reason and a job")


DOOM_HOOKS = ("on_dep_cancelled", "on_dep_discarded")


class StepChanges(TypedDict, total=False):
    """Options that may differ from one job of a step to the next."""

    queue: str
    max_attempts: int
    priority: int
    timeout: float | None
    tags: Iterable[str]
    scheduled_at: datetime | None


class Step[**P, R]:
    """A function declared with `@step`. Calling it calls the function; `new` builds a job for a workflow.

    Attributes:
        name: What the step is registered under: `module.qualname`, or the name given.
        function: The function as written.
        options: Its options.
        is_async: Whether it is an `async def`. A plain function runs in a thread.
    """

    __name__: str

    def __init__(self, function: Callable[P, object], name: str, options: StepOptions) -> None:
        functools.update_wrapper(self, function)
        self.name = name
        self.function = function
        self.options = options
        self.is_async = inspect.iscoroutinefunction(function)
        self._signature = inspect.signature(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> object:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<step {self.name}{self._signature}>"

    def new(self, *args: P.args, **kwargs: P.kwargs) -> StepJob[R]:
        """Build a job for `Workflow.add`.

        Arguments may be `ref.result` of other steps of the workflow, at any depth of lists, tuples and dicts.
        Those become dependencies, and are filled in before the step runs.

        Defaults are left to the function, so a default changed by a deploy holds for jobs already inserted.

        Raises:
            InvalidArgument: The arguments do not bind to the signature, or JSON cannot hold one.
            ReferenceMismatch: A referenced result cannot be what the parameter is annotated with.
        """
        arguments = self._bind(args, kwargs)
        references: list[BoundReference] = []

        def claim(value: object, path: Path) -> bool:
            if isinstance(value, Reference):
                references.append(self._bound(value, path))
                return True
            if isinstance(value, Ref):
                raise Refused(path, f"this is the step itself, not its result; pass the .result of {value!r}")
            if isinstance(value, Step | StepJob):
                raise Refused(
                    path, "this step has not run; add it to the workflow and pass its ref's .result"
                )
            return False

        try:
            encoded = dump(arguments, claim)
        except Refused as refused:
            raise InvalidArgument(f"{self._argument(refused.path)}: {refused.reason}") from None
        document: dict[str, object] = {"step": self.name, "args": orjson.Fragment(encoded)}
        if references:
            document["refs"] = [[list(bound.place), bound.ref.name, list(bound.path)] for bound in references]
        return StepJob(self, orjson.dumps(document).decode(), tuple(references))

    def with_options(self, **changes: Unpack[StepChanges]) -> Self:
        """Copy the step with other options for the jobs it builds; the function and its name stay.

        Raises:
            InvalidOption: No such option, or a value that cannot work. `backoff` and `name` belong to the
                function, so they are set with `@step` alone.
        """
        if unknown := changes.keys() - StepChanges.__annotations__.keys():
            allowed = ", ".join(StepChanges.__annotations__)
            raise InvalidOption(f"step {self.name!r} has no option {min(unknown)!r} here; use {allowed}")
        values: dict[str, Any] = {**changes}
        if "tags" in values:
            values["tags"] = checked_tags(values["tags"])
        changed = copy.copy(self)
        changed.options = replace(self.options, **values)
        return changed

    @functools.cached_property
    def returns(self) -> object:
        """The resolved return annotation without Snooze and Cancel; Any where there is none."""
        annotation = self._hints.get("return", Any)
        if isinstance(annotation, typing.TypeAliasType):
            annotation = annotation.__value__
        stored = tuple(member for member in members(annotation) if not _is_outcome(member))
        return Union[stored] if stored else Any  # noqa: UP007 - the members are known at run time alone

    @functools.cached_property
    def parameters(self) -> Mapping[str, object]:
        """The resolved annotation of each parameter, in order; Any where none is, or none resolves.

        The annotation of `**kwargs` stands under the parameter's own name, and is each keyword's.
        """
        return {name: self._hints.get(name, Any) for name in self._signature.parameters}

    @functools.cached_property
    def _hints(self) -> dict[str, object]:
        return resolved_hints(self.function)

    def _bind(self, args: tuple[object, ...], kwargs: dict[str, object]) -> dict[str, object]:
        try:
            arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            signature = f"{self.__name__}{self._signature}"
            raise InvalidArgument(f"step {self.__name__!r}: {error}; its signature is {signature}") from None
        if self._keywords is not None:
            arguments |= arguments.pop(self._keywords, {})
        return arguments

    @functools.cached_property
    def _keywords(self) -> str | None:
        """Name of the `**` parameter."""
        kinds = self._signature.parameters.values()
        return next((p.name for p in kinds if p.kind is inspect.Parameter.VAR_KEYWORD), None)

    def _bound(self, reference: Reference, path: Path) -> BoundReference:
        ref, inner = _taken_apart(reference)
        if any(isinstance(segment, Attribute) for segment in path):
            raise Refused(
                path, "a reference cannot stand inside an object; pass it as an argument of its own"
            )
        parameter = str(path[0])
        wanted = self.parameters.get(parameter, self.parameters.get(self._keywords or "", Any))
        if len(path) == 1 and not inner and not fits(ref._returns, wanted):
            raise ReferenceMismatch(
                f"{self._argument(path)} is annotated {describe(wanted)}, but step {ref.name!r} returns "
                f"{describe(ref._returns)}; change one of the annotations, or put a step between the two"
            )
        return BoundReference(path, ref, inner)

    def _argument(self, path: Path) -> str:
        where = render_path(str(path[0]), path[1:]) if path else "list"
        return f"argument {where} of step {self.__name__!r}"


class AsyncStep[**P, R](Step[P, R]):
    """A step written as an `async def`."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...


class PlainStep[**P, R](Step[P, R]):
    """A step written as a plain function; it runs in a thread."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


@dataclass(frozen=True, slots=True)
class StepJob[R]:
    """A step with its arguments, ready for `Workflow.add`. Nothing has been written.

    Attributes:
        step: The step that will run.
        args_json: JSON text of the job's args: `step`, `args`, and `refs` if there are any.
        references: The results that are filled in before the step runs.
    """

    step: Step[..., R]
    args_json: str
    references: tuple[BoundReference, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ref[R]:
    """A step added to a workflow.

    Attributes:
        name: The step's name in its workflow.
    """

    name: str
    _workflow: object
    _returns: object = Any

    @property
    def result(self) -> R:
        """A placeholder for what the step will return, to be passed to another step's `new()`.

        `["key"]`, `[0]` and attributes lead into it. Used as a value it raises NotAValue.
        """
        return cast("R", Reference(self, ()))

    def __repr__(self) -> str:
        return f"<ref to step {self.name!r}>"


@dataclass(frozen=True, slots=True)
class BoundReference:
    """A result that is an argument.

    Attributes:
        place: Path in the step's arguments: parameter first, then keys and indexes.
        ref: The step whose result goes there.
        path: Path into that result.
    """

    place: Path
    ref: Ref[Any]
    path: Path


class Reference:
    """Stands for a result that does not exist yet. All it can do is lead further in, and be passed on."""

    __slots__ = ("_baton_path", "_baton_ref")

    def __init__(self, ref: Ref[Any], path: Path) -> None:
        self._baton_ref = ref
        self._baton_path = path

    def __getattr__(self, name: str) -> Reference:
        # Dunders are how Python and libraries ask what an object can do. The answer is nothing. Our own slots
        # come here only while they are empty: in a copy that is being made.
        if (name.startswith("__") and name.endswith("__")) or name in Reference.__slots__:
            raise AttributeError(name)
        return Reference(self._baton_ref, (*self._baton_path, Attribute(name)))

    def __getitem__(self, key: str | int) -> Reference:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise InvalidArgument(f"{self!r} has no {type(key).__name__} keys; use one string or one integer")
        return Reference(self._baton_ref, (*self._baton_path, key))

    def __repr__(self) -> str:
        return f"<reference to {_shown(self)}>"


def _taken_apart(reference: Reference) -> tuple[Ref[Any], Path]:
    return reference._baton_ref, reference._baton_path


def _shown(reference: Reference) -> str:
    ref, path = _taken_apart(reference)
    return f"{render_path('result', path)} of step {ref.name!r}"


def _refuse_use(self: Reference, *_: object, **__: object) -> NoReturn:
    raise NotAValue(
        f"{_shown(self)} is a reference, not a value: the step has not run yet; "
        "pass it to another step's new()"
    )


_USES = """
    bool hash str format bytes int float complex index round trunc floor ceil fspath
    len iter next reversed contains setitem delitem call await aiter anext enter exit aenter aexit
    eq ne lt le gt ge neg pos abs invert
    add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor
    radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand ror rxor
    reduce reduce_ex copy deepcopy
"""
for _use in _USES.split():
    setattr(Reference, f"__{_use}__", _refuse_use)


class _Decorator(Protocol):
    """What `@step(...)` is before it gets its function."""

    # The two overlap, as a coroutine is a value too; the first that fits is meant.
    @overload
    def __call__[**P, R](  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, R | Snooze | Cancel]], /
    ) -> AsyncStep[P, R]: ...

    @overload
    def __call__[**P, R](self, function: Callable[P, R | Snooze | Cancel], /) -> PlainStep[P, R]: ...


@overload
def step[**P, R](  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    function: Callable[P, Coroutine[Any, Any, R | Snooze | Cancel]], /
) -> AsyncStep[P, R]: ...


@overload
def step[**P, R](function: Callable[P, R | Snooze | Cancel], /) -> PlainStep[P, R]: ...


@overload
def step(
    *,
    queue: str = "default",
    max_attempts: int = 20,
    priority: int = 0,
    timeout: float | None = None,
    tags: Iterable[str] = (),
    backoff: Backoff | None = None,
    on_dep_cancelled: DoomHook | None = None,
    on_dep_discarded: DoomHook | None = None,
    name: str | None = None,
) -> _Decorator: ...


def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    queue: str = "default",
    max_attempts: int = 20,
    priority: int = 0,
    timeout: float | None = None,
    tags: Iterable[str] = (),
    backoff: Backoff | None = None,
    on_dep_cancelled: DoomHook | None = None,
    on_dep_discarded: DoomHook | None = None,
    name: str | None = None,
) -> Any:
    """Declare a function as a step: `@step`, or `@step(queue="llm", max_attempts=5)`.

    The function may be `async def` or plain, and takes and returns what JSON can hold (see the codec). It may
    return or raise Snooze and Cancel.

    Args:
        queue: Queue whose workers run the step.
        max_attempts: Attempts, the first included, before the step is discarded.
        priority: 0 (first) to 9 (last) among the available jobs of the queue.
        timeout: Seconds an attempt may run; None is no limit.
        tags: Labels of the job.
        backoff: Seconds to wait after the attempt of that number failed; None is Oban's own.
        on_dep_cancelled: Called with a reason and the step's Oban job after a cancelled dependency has cancelled the step: in
            some worker that has this code, at least once, in a thread if it is a plain function.
        on_dep_discarded: The same after a discarded dependency has cancelled it.
        name: What the step is registered under, and stored as; `module.qualname` unless given. Give one if
            the function may move while jobs are waiting.

    Raises:
        InvalidOption: An option that cannot work, or not a function: a method, class, lambda, generator.
        InvalidName: `queue`, `name` or the function's own name is outside the grammar.
        DuplicateStep: Another function has the name.
    """
    options = StepOptions(
        queue=queue,
        max_attempts=max_attempts,
        priority=priority,
        timeout=timeout,
        tags=checked_tags(tags),
        backoff=backoff,
        on_dep_cancelled=on_dep_cancelled,
        on_dep_discarded=on_dep_discarded,
    )
    if function is None:
        return lambda function: _declared(function, name, options)
    return _declared(function, name, options)


@overload
def llm_step[**P, R](  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    function: Callable[P, Coroutine[Any, Any, R | Snooze | Cancel]], /
) -> AsyncStep[P, R]: ...


@overload
def llm_step[**P, R](function: Callable[P, R | Snooze | Cancel], /) -> PlainStep[P, R]: ...


@overload
def llm_step(
    *,
    queue: str = "llm",
    max_attempts: int = 20,
    priority: int = 0,
    timeout: float | None = None,
    tags: Iterable[str] = (),
    backoff: Backoff | None = None,
    on_dep_cancelled: DoomHook | None = None,
    on_dep_discarded: DoomHook | None = None,
    name: str | None = None,
) -> _Decorator: ...


def llm_step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    queue: str = "llm",
    max_attempts: int = 20,
    priority: int = 0,
    timeout: float | None = None,
    tags: Iterable[str] = (),
    backoff: Backoff | None = None,
    on_dep_cancelled: DoomHook | None = None,
    on_dep_discarded: DoomHook | None = None,
    name: str | None = None,
) -> Any:
    """Declare a step that calls models: as `@step`, with the queue `llm` and a backoff that differs from step to step.

    If it returns a dict with the key `llm_usage`, that is recorded and taken out of the result; `baton.record_usage`,
    `call_llm` and `once` work in every step. An error that says that the provider has no room, such as a 429, makes it snooze
    for as long as the provider asks, which uses no attempt. In a run with a budget, an attempt asks first whether that is
    exhausted.

    Args:
        queue: As for `step`, and so are all the others.
        max_attempts: Attempts, the first included, before the step is discarded.
        priority: 0 (first) to 9 (last) among the available jobs of the queue.
        timeout: Seconds an attempt may run; None is no limit.
        tags: Labels of the job.
        backoff: Seconds to wait after the attempt of that number failed; None is 2, 4, 8... up to 300, of which the last half
            is left to chance, so that steps that failed together do not come back together.
        on_dep_cancelled: Called when a cancelled dependency has cancelled the step.
        on_dep_discarded: Called when a discarded dependency has cancelled the step.
        name: What the step is registered under, and stored as; `module.qualname` unless given.

    Raises:
        InvalidOption: As for `step`.
        InvalidName: As for `step`.
        DuplicateStep: As for `step`.
    """
    options = StepOptions(
        queue=queue,
        max_attempts=max_attempts,
        priority=priority,
        timeout=timeout,
        tags=checked_tags(tags),
        backoff=jittered if backoff is None else backoff,
        on_dep_cancelled=on_dep_cancelled,
        on_dep_discarded=on_dep_discarded,
        llm=True,
    )
    if function is None:
        return lambda function: _declared(function, name, options)
    return _declared(function, name, options)


def jittered(attempt: int) -> float:
    """Seconds to wait after a call of a model failed: doubled with each, and different for all that failed together."""
    return min(2.0 ** min(attempt, 20), 300.0) * random.uniform(0.5, 1.0)  # noqa: S311


def registered(name: str) -> Step[..., Any] | None:
    """The step declared under `name`, or None."""
    return _registry.get(name)


def all_steps() -> tuple[Step[..., Any], ...]:
    """All steps declared so far in this process."""
    with _lock:
        return tuple(_registry.values())


_registry: dict[str, Step[..., Any]] = {}
_lock = threading.Lock()


def _declared(function: Callable[..., Any], name: str | None, options: StepOptions) -> Step[..., Any]:
    _check_function(function)
    full_name = function_name(f"{function.__module__}.{function.__qualname__}" if name is None else name)
    kind = AsyncStep if inspect.iscoroutinefunction(function) else PlainStep
    declared: Step[..., Any] = kind(function, full_name, options)
    with _lock:
        taken = _registry.get(full_name)
        if taken is not None and not _origins(taken.function) & _origins(function):
            raise DuplicateStep(
                f"step {full_name!r} is declared at {_place(function)} and at {_place(taken.function)}; "
                f"give one of them another name="
            )
        _registry[full_name] = declared
    return declared


def _check_function(function: object) -> None:
    """Refuse what cannot be found again by name, or whose arguments have no names."""
    shown = getattr(function, "__qualname__", None) or type(function).__name__
    if isinstance(function, Step):
        raise InvalidOption(f"{function!r} is a step already; use with_options() for other options")
    if not isinstance(function, types.FunctionType):
        raise InvalidOption(
            f"@step takes a function, and {shown!r} is of type {type(function).__name__}; "
            f"write a function with def or async def that calls it"
        )
    if function.__name__ == "<lambda>":
        raise InvalidName("@step takes no lambda, which has no name to be found by; use def")
    outer = function.__qualname__.rpartition(".")[0]
    if outer and not outer.endswith("<locals>"):
        raise InvalidOption(f"@step takes no method, and {shown!r} is one; move it out of its class")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidOption(f"step {shown!r} yields; a step returns one value, so return a list")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
            raise InvalidOption(
                f"step {shown!r} has the positional-only parameter {stars}{parameter.name}; arguments are "
                f"stored by name, so make it an ordinary parameter"
            )


def _origins(function: Callable[..., Any]) -> set[tuple[str, str]]:
    """Where a function was written. A module that is loaded again, or as __main__ too, writes it anew."""
    code = inspect.unwrap(function).__code__
    return {(function.__module__, function.__qualname__), (code.co_filename, function.__qualname__)}


def _place(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def resolved_hints(function: Callable[..., Any]) -> dict[str, object]:
    """Annotations as types, each on its own: one that does not resolve, such as a name imported for type
    checkers alone, leaves the others known."""
    try:
        annotations = dict(inspect.unwrap(function).__annotations__)
    except (
        Exception
    ):  # annotations are expressions, from Python 3.14 on evaluated here: any error is possible
        return {}
    hints: dict[str, object] = {}
    for name, annotation in annotations.items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(alone, globalns=function.__globals__, include_extras=True)
        except Exception:  # noqa: S112 - unresolved, so unknown
            continue
    return hints


def _is_outcome(annotation: object) -> bool:
    """Recognise Snooze and Cancel, Oban's as well, without importing Oban."""
    if annotation in (Snooze, Cancel):
        return True
    name = getattr(annotation, "__module__", None), getattr(annotation, "__qualname__", None)
    return name in (("oban.job", "Snooze"), ("oban.job", "Cancel"))


def check_scheduled_at(value: object) -> None:
    """Check that a time is aware, or None.

    Raises:
        InvalidOption: It has no time zone, or is no datetime.
    """
    if value is None:
        return
    if not isinstance(value, datetime):
        raise InvalidOption(f"scheduled_at={value!r} is no datetime; use datetime.now(UTC) + timedelta(...)")
    if value.utcoffset() is None:
        raise InvalidOption(f"scheduled_at={value!r} has no time zone; use datetime(..., tzinfo=UTC)")


def _check_int(option: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidOption(f"{option}={value!r} cannot work; use a whole number from {low} to {high:,}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_tags(tags: object) -> tuple[str, ...]:
    """Check labels, and lowercase and sort them as Oban does.

    Raises:
        InvalidOption: Not several strings of 1 to 255 characters that are text.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidOption(f"tags={tags!r} is not a list; use tags=[...]")
    cleaned = set()
    for tag in tags:
        if not isinstance(tag, str) or not tag.strip() or len(tag) > 255 or "\0" in tag or not _is_text(tag):
            raise InvalidOption(f"tag {tag!r} cannot work; use 1 to 255 characters of text, not all blank")
        cleaned.add(tag.strip().lower())
    return tuple(sorted(cleaned))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
