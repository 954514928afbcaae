import asyncio
import copy
import functools
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from oban.job import Cancel as ObanCancel
from oban.job import Snooze as ObanSnooze

from baton import _declare
from baton._declare import AsyncStep, PlainStep, Ref, all_steps, registered, step
from baton._outcomes import Cancel, Snooze
from baton.errors import (
    DuplicateStep,
    InvalidArgument,
    InvalidName,
    InvalidOption,
    NotAValue,
    ReferenceMismatch,
)
from tests.kit.hostile import VALUES

if TYPE_CHECKING:
    from somewhere import Unresolvable


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(_declare, "_registry", {})


@dataclass
class Document:
    title: str
    score: float = 0.0


class Model(pydantic.BaseModel):
    value: Any


def make_fetch() -> AsyncStep[..., list[Document]]:
    @step(queue="io", max_attempts=5, tags=["Web ", "net"], timeout=2.5)
    async def fetch(topic: str, limit: int = 10) -> list[Document] | Snooze:
        """Fetch documents."""
        return [Document(topic)] * limit

    return fetch


def make_keywords() -> PlainStep[..., list[str] | None]:
    @step
    def keywords(documents: list[Document], weight: float = 1.0, **extra: int) -> list[str] | Cancel | None:
        return [document.title for document in documents]

    return keywords


def a_ref(returns: object = Any, name: str = "fetch") -> Ref[Any]:
    return Ref(name, object(), returns)


def test_a_step_is_the_function_with_options():
    fetch = make_fetch()
    assert asyncio.run(fetch("x", limit=2)) == [Document("x")] * 2
    assert isinstance(fetch, AsyncStep)
    assert fetch.is_async
    assert fetch.__name__ == "fetch"
    assert fetch.__doc__ == "Fetch documents."
    assert fetch.name == f"{__name__}.make_fetch.<locals>.fetch"
    assert (fetch.options.queue, fetch.options.max_attempts, fetch.options.priority) == ("io", 5, 0)
    assert (fetch.options.timeout, fetch.options.tags) == (2.5, ("net", "web"))
    assert "fetch(topic: str" in repr(fetch)


def test_a_plain_function_is_a_plain_step():
    keywords = make_keywords()
    assert isinstance(keywords, PlainStep)
    assert not keywords.is_async
    assert keywords([Document("x")]) == ["x"]
    assert keywords.options == _declare.StepOptions()


def test_annotations_resolve_without_snooze_and_cancel():
    assert make_fetch().returns == list[Document]
    assert make_keywords().returns == list[str] | None
    assert make_keywords().parameters == {"documents": list[Document], "weight": float, "extra": int}


def test_annotations_that_do_not_resolve_say_nothing():
    @step
    def guess(a: "Unresolvable", b: "int", c) -> "Unresolvable": ...

    assert guess.parameters == {"a": Any, "b": int, "c": Any}
    assert guess.returns is Any
    assert json.loads(guess.new(1, 2, 3).args_json)["args"] == {"a": 1, "b": 2, "c": 3}


def test_outcomes_of_oban_are_no_results_either():
    @step
    def wait() -> int | ObanSnooze | ObanCancel: ...

    assert wait.returns is int


def test_a_step_that_only_snoozes_returns_anything():
    @step
    def wait() -> Snooze: ...

    @step
    def nothing() -> None: ...

    assert wait.returns is Any
    assert nothing.returns is type(None)


def test_new_binds_and_encodes_the_arguments():
    job = make_fetch().new("x", limit=3)
    assert json.loads(job.args_json) == {
        "step": f"{__name__}.make_fetch.<locals>.fetch",
        "args": {"topic": "x", "limit": 3},
    }
    assert job.references == ()


def test_defaults_are_left_to_the_function():
    assert json.loads(make_fetch().new("x").args_json)["args"] == {"topic": "x"}


def test_keywords_are_stored_beside_the_parameters():
    job = make_keywords().new([Document("x")], depth=3)
    assert json.loads(job.args_json)["args"] == {"documents": [{"title": "x", "score": 0.0}], "depth": 3}


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, r"missing a required argument: 'topic'"),
        (("a", 1, 2), {}, "too many positional arguments"),
        (("a",), {"topics": 1}, "unexpected keyword argument 'topics'"),
    ],
)
def test_arguments_that_do_not_bind_are_refused_with_the_signature(args, kwargs, text):
    with pytest.raises(InvalidArgument, match=rf"step 'fetch': .*{text}; its signature is fetch\(topic: str"):
        make_fetch().new(*args, **kwargs)


def test_an_argument_that_json_cannot_hold_is_refused_with_its_path():
    documents = [Document("x"), Document("y", math.nan)]
    with pytest.raises(
        InvalidArgument, match=r"^argument documents\[1\]\.score of step 'keywords': nan is not JSON"
    ):
        make_keywords().new(documents)


@pytest.mark.parametrize("label", [label for label in VALUES if label != "20 MB of text"])
def test_a_hostile_argument_is_refused_with_or_without_a_reference(label):
    with pytest.raises(InvalidArgument, match=r"^argument documents"):
        make_keywords().new(VALUES[label]())
    with pytest.raises(InvalidArgument, match=r"^argument documents"):
        make_keywords().new([a_ref().result, VALUES[label]()])


def test_references_are_found_at_any_depth():
    ref = a_ref(dict)
    job = make_keywords().new([{"a": (1, ref.result["x"][0].title)}, ref.result], weight=ref.result["n"])
    assert json.loads(job.args_json) == {
        "step": make_keywords().name,
        "args": {"documents": [{"a": [1, None]}, None], "weight": None},
        "refs": [
            [["documents", 0, "a", 1], "fetch", ["x", 0, "title"]],
            [["documents", 1], "fetch", []],
            [["weight"], "fetch", ["n"]],
        ],
    }


def test_a_reference_is_bound_to_its_place():
    ref = a_ref()
    (bound,) = make_keywords().new(ref.result["x"]).references
    assert (bound.place, bound.ref, bound.path) == (("documents",), ref, ("x",))


@pytest.mark.parametrize(
    "wrap", [Document, lambda ref: Model.model_construct(value=ref), lambda ref: {1, ref} and [{ref}]]
)
def test_a_reference_inside_an_object_is_refused(wrap):
    with pytest.raises((InvalidArgument, NotAValue)):
        make_keywords().new([wrap(a_ref().result)])


def test_a_reference_inside_a_dataclass_is_refused_with_its_path():
    with pytest.raises(
        InvalidArgument, match=r"argument documents\[0\]\.title of step 'keywords': a reference"
    ):
        make_keywords().new([Document(a_ref().result)])


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        (a_ref(), r"pass the \.result of <ref to step 'fetch'>"),
        (make_fetch(), "has not run"),
        (make_fetch().new("x"), "has not run"),
    ],
)
def test_a_step_in_place_of_its_result_is_refused_with_a_hint(argument, hint):
    with pytest.raises(InvalidArgument, match=hint):
        make_keywords().new(argument)


def test_a_result_that_cannot_fit_the_parameter_is_refused():
    with pytest.raises(ReferenceMismatch) as caught:
        make_keywords().new(a_ref(int).result)
    for part in ("'documents'", "'keywords'", "'fetch'", "Document", "int"):
        assert part.strip("'") in str(caught.value)
    with pytest.raises(ReferenceMismatch):
        make_keywords().new([], depth=a_ref(str).result)


def test_a_part_of_a_result_is_not_judged_by_the_whole():
    assert make_keywords().new(a_ref(dict).result["documents"]).references
    assert make_keywords().new([a_ref(int).result]).references
    assert make_keywords().new(a_ref(list[Document] | None).result).references


USES: list[Callable[[Any], object]] = [
    bool, hash, str, len, iter, next, reversed, list, tuple, set, dict, sorted, sum, int, float,
    complex, bytes, round, abs, math.floor, math.trunc, range, format, copy.copy, copy.deepcopy,
    pickle.dumps, lambda r: f"{r}", lambda r: r + 1, lambda r: 1 + r, lambda r: r - 1, lambda r: 1 / r,
    lambda r: r * 2, lambda r: r**2, lambda r: r % 2, lambda r: r @ r, lambda r: -r, lambda r: ~r,
    lambda r: r == 1, lambda r: r == 1, lambda r: r != 1, lambda r: r < 1, lambda r: r > 1,
    lambda r: r >= r, lambda r: r and 1, lambda r: not r, lambda r: 1 if r else 2, lambda r: r | {},
    lambda r: {} | r, lambda r: r(), lambda r: r.upper(), lambda r: "x" in r, lambda r: [1, 2][r],
    lambda r: {r: 1}, lambda r: [*r], lambda r: r.__enter__(), os.fspath,
    lambda r: r.__setitem__("x", 1), lambda r: r.__delitem__("x"), lambda r: asyncio.run(awaited(r)),
    lambda r: asyncio.run(entered(r)), lambda r: asyncio.run(iterated(r)),
]  # fmt: skip


async def awaited(value):
    await value


async def entered(value):
    async with value:
        pass


async def iterated(value):
    async for _ in value:
        pass


@pytest.mark.parametrize("use", USES)
def test_a_reference_used_as_a_value_raises(use):
    with pytest.raises(NotAValue):
        use(a_ref().result["x"].title)


@pytest.mark.parametrize("use", [json.dumps, "%d".__mod__, lambda r: {**r}, open])
def test_what_python_refuses_by_itself_is_a_type_error_too(use):
    with pytest.raises(TypeError):
        use(a_ref().result)


def test_the_message_says_which_result_and_what_to_do():
    with pytest.raises(NotAValue) as caught:
        bool(a_ref().result["x"][0].title)
    assert str(caught.value) == (
        """result["x"][0].title of step 'fetch' is a reference, not a value: the step has not run yet; """
        "pass it to another step's new()"
    )


def test_a_reference_can_be_shown_and_has_no_dunders():
    result = a_ref().result
    assert repr(result["x"]) == """<reference to result["x"] of step 'fetch'>"""
    assert not hasattr(result, "__array__")
    assert not hasattr(result, "__html__")
    assert repr([result])


@pytest.mark.parametrize("key", [slice(1, 2), None, 1.5, (1, 2), True], ids=repr)
def test_a_reference_leads_on_by_one_string_or_integer(key):
    with pytest.raises(InvalidArgument, match="use one string or one integer"):
        a_ref().result[key]


def test_a_copy_with_other_options_leaves_the_step_as_it_was():
    fetch = make_fetch()
    at = datetime(2026, 1, 2, tzinfo=UTC)
    urgent = fetch.with_options(queue="urgent", priority=1, tags=["B", "a"], scheduled_at=at, timeout=None)
    assert type(urgent) is AsyncStep
    assert (urgent.name, urgent.function) == (fetch.name, fetch.function)
    assert (urgent.options.queue, urgent.options.max_attempts, urgent.options.tags) == (
        "urgent",
        5,
        ("a", "b"),
    )
    assert (urgent.options.scheduled_at, urgent.options.timeout) == (at, None)
    assert fetch.options.queue == "io"
    assert registered(fetch.name) is fetch
    assert urgent.new("x").step is urgent


BAD_OPTIONS: list[dict[str, Any]] = [
    {"max_attempts": 0},
    {"max_attempts": -1},
    {"max_attempts": 1.5},
    {"max_attempts": True},
    {"max_attempts": "5"},
    {"max_attempts": 2**31},
    {"priority": -1},
    {"priority": 10},
    {"timeout": 0},
    {"timeout": -1.0},
    {"timeout": math.nan},
    {"timeout": math.inf},
    {"timeout": "3"},
    {"tags": "web"},
    {"tags": [""]},
    {"tags": [3]},
    {"tags": ["a\0"]},
    {"tags": ["\ud800"]},
    {"tags": 3},
]


@pytest.mark.parametrize("options", [*BAD_OPTIONS, {"backoff": 3}], ids=repr)
def test_an_option_that_cannot_work_is_refused(options):
    with pytest.raises(InvalidOption):
        step(**options)


@pytest.mark.parametrize(
    "options",
    [
        *BAD_OPTIONS,
        {"backoff": None},
        {"name": "x"},
        {"ques": "x"},
        {"scheduled_at": datetime(2026, 1, 2)},
        {"scheduled_at": "2026-01-02"},
    ],
    ids=repr,
)
def test_an_option_that_cannot_work_is_refused_for_a_copy(options):
    with pytest.raises(InvalidOption):
        make_fetch().with_options(**options)


@pytest.mark.parametrize("queue", ["", "a b", "q\0", None, "x" * 61])
def test_a_queue_outside_the_grammar_is_refused(queue):
    with pytest.raises(InvalidName):
        step(queue=queue)


class Owner:
    def method(self): ...

    @staticmethod
    def static(): ...

    def __call__(self): ...


def generator():
    yield 1


async def async_generator():
    yield 1


def positional(a, /): ...


def stars(*values): ...


@pytest.mark.parametrize(
    "function",
    [
        lambda: 3,
        Owner,
        Owner.method,
        Owner.static,
        Owner().method,
        Owner(),
        staticmethod(generator),
        functools.partial(make_fetch),
        generator,
        async_generator,
        positional,
        stars,
        len,
        3,
        "fetch",
    ],
)
def test_what_is_no_ordinary_function_is_no_step(function):
    with pytest.raises((InvalidOption, InvalidName)):
        step(function)
    assert all_steps() == ()


def test_a_step_is_declared_once():
    with pytest.raises(InvalidOption, match="is a step already"):
        step(make_fetch())


def test_a_step_is_found_by_its_name():
    fetch = make_fetch()
    assert registered(fetch.name) is fetch
    assert registered("nowhere") is None
    assert all_steps() == (fetch,)


def test_declaring_the_same_function_again_replaces_it():
    make_fetch()
    again = make_fetch()
    assert registered(again.name) is again
    assert all_steps() == (again,)


def test_a_name_given_to_two_functions_names_both_places():
    @step(name="fetch")
    def one(): ...

    with pytest.raises(DuplicateStep, match=r"test_declare\.py:\d+ and at .*test_declare\.py:\d+"):

        @step(name="fetch")
        def two(): ...

    assert registered("fetch") is one


def test_a_module_loaded_again_as_main_may_declare_its_names_again():
    source = compile("def fetch(): ...", "app.py", "exec")
    modules = [{"__name__": "app"}, {"__name__": "__main__"}]
    for module in modules:
        exec(source, module)
    first, second = (step(name="fetch")(module["fetch"]) for module in modules)
    assert first.function is not second.function
    assert registered("fetch") is second


@pytest.mark.parametrize("name", ["", "a b", "caf\u00e9", "x" * 201, "a\n"])
def test_a_name_outside_the_grammar_is_refused(name):
    with pytest.raises(InvalidName):
        step(name=name)(generator_free)


def generator_free(): ...


def test_a_wrapped_function_keeps_its_signature():
    def traced(function):
        @functools.wraps(function)
        async def wrapper(*args, **kwargs):
            return await function(*args, **kwargs)

        return wrapper

    @step
    @traced
    async def fetch(topic: str) -> int: ...

    assert fetch.returns is int
    assert fetch.is_async
    with pytest.raises(InvalidArgument):
        fetch.new()


def test_importing_the_definition_layer_imports_no_oban_psycopg_or_pydantic():
    # The package itself is empty here: it imports the whole library, and this is about one layer of it.
    code = (
        "import importlib.util, sys, types\n"
        "spec, package = importlib.util.find_spec('baton'), types.ModuleType('baton')\n"
        "package.__path__ = spec.submodule_search_locations\n"
        "sys.modules['baton'] = package\n"
        "import baton.workflow, baton.render, baton._codec, baton._declare\n"
        "print([name for name in ('oban', 'psycopg', 'pydantic', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
