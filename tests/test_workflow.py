import json
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oban.job import Job

from baton import _declare
from baton._declare import step
from baton.errors import (
    CycleError,
    DuplicateStep,
    ForeignReference,
    InvalidArgument,
    InvalidName,
    InvalidOption,
    ReferenceMismatch,
    SelfDependency,
    UnknownStep,
)
from baton.workflow import STEP_WORKER, Workflow
from tests.kit.hostile import NAMES, VALUES


@dataclass
class Document:
    title: str


@step(queue="io", max_attempts=5, tags=["web"], timeout=3)
async def fetch_sources(topic: str) -> list[Document]: ...


@step
def keywords(documents: list[Document]) -> list[str]: ...


@step
def credibility(documents: list[Document]) -> float: ...


@step
def compile_brief(words: list[str], score: float, **extra: Any) -> str: ...


@step
def noop() -> None: ...


def research(name: str = "research") -> Workflow:
    workflow = Workflow(name)
    documents = workflow.add("fetch_sources", fetch_sources.new(topic="x"))
    words = workflow.add("keywords", keywords.new(documents=documents.result))
    score = workflow.add("credibility", credibility.new(documents=documents.result))
    workflow.add("compile_brief", compile_brief.new(words.result, score.result), deps=[documents])
    return workflow


def deps_of(workflow: Workflow) -> dict[str, tuple[str, ...]]:
    return {name: definition.deps for name, definition in workflow.steps.items()}


def test_references_and_deps_make_the_graph():
    workflow = research()
    workflow.validate()
    assert deps_of(workflow) == {
        "fetch_sources": (),
        "keywords": ("fetch_sources",),
        "credibility": ("fetch_sources",),
        "compile_brief": ("keywords", "credibility", "fetch_sources"),
    }


def test_a_step_is_defined_by_its_job_and_its_options():
    definition = research().steps["fetch_sources"]
    assert definition.worker == STEP_WORKER
    assert json.loads(definition.args) == {"step": f"{__name__}.fetch_sources", "args": {"topic": "x"}}
    assert (definition.queue, definition.max_attempts, definition.priority) == ("io", 5, 0)
    assert (definition.tags, definition.meta, definition.scheduled_at) == (("web",), "{}", None)
    assert (definition.ignore_cancelled, definition.ignore_discarded) == (False, False)
    assert definition.function == f"{__name__}.fetch_sources"
    with pytest.raises(FrozenInstanceError):
        definition.queue = "other"  # type: ignore[misc]


def test_a_timeout_of_its_own_travels_with_the_job():
    workflow = Workflow()
    workflow.add("a", fetch_sources.with_options(timeout=9).new("x"))
    workflow.add("b", fetch_sources.with_options(timeout=None).new("x"))
    workflow.add("c", fetch_sources.with_options(queue="other").new("x"))
    metas = [json.loads(definition.meta) for definition in workflow.steps.values()]
    assert metas == [{"timeout": 9}, {"timeout": None}, {}]


def test_the_steps_cannot_be_changed_from_outside():
    with pytest.raises(TypeError):
        research().steps["more"] = None  # type: ignore[index]


def test_names_may_refer_to_steps_added_later():
    workflow = Workflow()
    workflow.add("late", noop.new(), deps=["early"])
    with pytest.raises(UnknownStep):
        workflow.validate()
    workflow.add("early", noop.new())
    workflow.validate()


def test_a_dependency_named_twice_is_one():
    workflow = Workflow()
    ref = workflow.add("a", noop.new())
    workflow.add("b", noop.new(), deps=["a", ref, "a"])
    assert workflow.steps["b"].deps == ("a",)


def test_deps_may_be_an_iterator():
    workflow = Workflow()
    workflow.add("sum", noop.new(), deps=(f"part[{n}]" for n in range(3)))
    assert workflow.steps["sum"].deps == ("part[0]", "part[1]", "part[2]")


@pytest.mark.parametrize("deps", ["fetch", 3, None, [3], [None], [noop]], ids=repr)
def test_deps_that_are_no_list_of_names_or_refs_are_refused(deps):
    workflow = Workflow()
    with pytest.raises(InvalidOption, match="step 'a': deps"):
        workflow.add("a", noop.new(), deps=deps)
    assert workflow.steps == {}


def test_a_ref_or_its_result_is_no_list():
    workflow = Workflow()
    ref = workflow.add("a", noop.new())
    for deps in (ref, ref.result):
        with pytest.raises(InvalidOption, match="list"):
            workflow.add("b", noop.new(), deps=deps)  # type: ignore[call-overload]
    with pytest.raises(InvalidOption, match="Reference"):
        workflow.add("b", noop.new(), deps=[ref.result])


def test_a_name_is_taken_once():
    workflow = research()
    with pytest.raises(DuplicateStep, match="workflow 'research' has a step 'keywords' already"):
        workflow.add("keywords", noop.new())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("__proto__", "constructor", "null")], ids=ascii
)
def test_a_hostile_name_is_refused_and_nothing_is_added(name):
    workflow = Workflow()
    with pytest.raises(InvalidName):
        workflow.add(name, noop.new())
    assert not workflow.steps


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_dependency_is_an_unknown_step(name):
    workflow = Workflow()
    workflow.add("a", noop.new(), deps=[name])
    with pytest.raises(UnknownStep) as caught:
        workflow.validate()
    assert str(caught.value).isprintable()


def test_unknown_steps_are_all_named_with_near_matches():
    workflow = research()
    workflow.add("x", noop.new(), deps=["fetch_source", "nowhere"])
    workflow.add("y", noop.new(), deps=["keyword"])
    with pytest.raises(UnknownStep) as caught:
        workflow.validate()
    text = str(caught.value)
    assert "step 'x' waits for 'fetch_source' (did you mean 'fetch_sources'?)" in text
    assert "step 'x' waits for 'nowhere';" in text
    assert "step 'y' waits for 'keyword' (did you mean 'keywords'?)" in text


def test_many_unknown_steps_are_counted():
    workflow = Workflow()
    workflow.add("x", noop.new(), deps=[f"missing{n}" for n in range(1_000)])
    with pytest.raises(UnknownStep, match="and 990 more") as caught:
        workflow.validate()
    assert len(str(caught.value)) < 2_000


def test_a_step_does_not_wait_for_itself():
    workflow = Workflow()
    workflow.add("a", noop.new(), deps=["a"])
    with pytest.raises(SelfDependency, match="step 'a' waits for itself"):
        workflow.validate()


def test_a_cycle_is_named():
    workflow = Workflow("loop")
    for name, on in [("a", "c"), ("b", "a"), ("c", "b")]:
        workflow.add(name, noop.new(), deps=[on])
    workflow.add("d", noop.new(), deps=["a"])
    with pytest.raises(CycleError, match="workflow 'loop' has a cycle") as caught:
        workflow.validate()
    path = caught.value.path
    assert path[0] == path[-1]
    assert set(path) == {"a", "b", "c"}
    assert all(on in workflow.steps[name].deps for on, name in pairwise(path))


def test_an_empty_workflow_is_legal():
    workflow = Workflow()
    workflow.validate()
    assert workflow.name == "workflow"
    assert workflow.to_text() == "(no steps)\n"
    assert len(workflow.definition_hash) == 64


def test_a_reference_into_another_workflow_is_foreign():
    other = Workflow("other")
    ref = other.add("fetch_sources", fetch_sources.new("x"))
    workflow = Workflow("mine")
    with pytest.raises(ForeignReference, match=r"'mine'.*'keywords'.*'fetch_sources' of <workflow 'other'"):
        workflow.add("keywords", keywords.new(ref.result))
    with pytest.raises(ForeignReference):
        workflow.add("noop", noop.new(), deps=[ref])
    assert not workflow.steps


def test_a_result_that_cannot_fit_is_refused_while_building():
    workflow = Workflow()
    score = workflow.add("credibility", credibility.new([]))
    with pytest.raises(ReferenceMismatch):
        keywords.new(score.result)  # type: ignore[arg-type]


@pytest.mark.parametrize("job", [None, "fetch", 3, {}, object(), fetch_sources.function])
def test_what_is_no_job_is_refused(job):
    with pytest.raises(InvalidArgument, match="a job is wanted"):
        Workflow().add("a", job)


def test_a_step_without_new_is_refused_with_the_call():
    with pytest.raises(InvalidArgument, match=r"pass keywords\.new\(\.\.\.\)"):
        Workflow().add("a", keywords)  # type: ignore[call-overload]


def a_job(**changes: Any) -> Job:
    return Job(**{"worker": "app.Mailer", "args": {"to": ["x"]}, "meta": {"m": 1}, "queue": "mail"} | changes)


def test_an_oban_job_is_copied():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    job = a_job(max_attempts=3, priority=2, tags=["B", "a"], scheduled_at=at)
    workflow = Workflow()
    ref = workflow.add("mail", job, deps=["later"])
    definition = workflow.steps["mail"]
    job.args["to"].append("y")
    assert (definition.worker, definition.args, definition.meta) == ("app.Mailer", '{"to":["x"]}', '{"m":1}')
    assert (definition.queue, definition.max_attempts, definition.priority) == ("mail", 3, 2)
    assert (definition.tags, definition.scheduled_at, definition.deps) == (("a", "b"), at, ("later",))
    assert definition.function == "app.Mailer"
    assert job.id is None
    workflow.add("keywords", keywords.new(ref.result))
    assert workflow.steps["keywords"].deps == ("mail",)


def test_an_inserted_oban_job_is_refused():
    with pytest.raises(InvalidArgument, match="job 7 is inserted already"):
        Workflow().add("mail", a_job(id=7))


@pytest.mark.parametrize("label", [label for label in VALUES if label != "20 MB of text"])
@pytest.mark.parametrize("root", ["args", "meta"])
def test_an_oban_job_with_hostile_contents_is_refused(root, label):
    with pytest.raises(InvalidArgument, match=rf"""step 'mail': {root}\["x"\]"""):
        Workflow().add("mail", a_job(**{root: {"x": VALUES[label]()}}))


def test_an_oban_job_takes_no_references():
    workflow = Workflow()
    ref = workflow.add("a", noop.new())
    with pytest.raises(InvalidArgument, match=r'args\["x"\]: only steps take references'):
        workflow.add("mail", a_job(args={"x": ref.result}))


def test_an_oban_job_with_bad_attributes_is_refused():
    for attribute, value in [
        ("queue", "a b"),
        ("priority", 11),
        ("tags", "x"),
        ("worker", " "),
        ("args", [1]),
    ]:
        job = a_job()
        setattr(job, attribute, value)
        with pytest.raises((InvalidOption, InvalidName, InvalidArgument)):
            Workflow().add("mail", job)


def test_flags_default_to_those_of_the_workflow():
    workflow = Workflow(ignore_cancelled=True)
    workflow.add("a", noop.new())
    workflow.add("b", noop.new(), ignore_cancelled=False, ignore_discarded=True)
    flags = [(one.ignore_cancelled, one.ignore_discarded) for one in workflow.steps.values()]
    assert flags == [(True, False), (False, True)]


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "a\0"},
        {"name": None},
        {"key": ""},
        {"key": "  "},
        {"key": 3},
        {"scheduled_at": datetime(2026, 1, 2)},
        {"ignore_cancelled": 1},
        {"ignore_discarded": "yes"},
    ],
    ids=repr,
)
def test_a_workflow_with_impossible_options_is_refused(options):
    with pytest.raises((InvalidName, InvalidOption)):
        Workflow(**options)


def test_the_hash_knows_neither_the_key_nor_the_times():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    now, later = Workflow(), Workflow(key="k", scheduled_at=at)
    now.add("a", fetch_sources.new("x"))
    later.add("a", fetch_sources.with_options(scheduled_at=at).new("x"))
    assert now.definition_hash == later.definition_hash
    assert research().definition_hash == research().definition_hash
    assert research().definition_hash != research("other").definition_hash


def test_the_hash_of_the_same_calls_in_another_order_is_the_same():
    one, other = Workflow(), Workflow()
    for workflow, names in ((one, "abc"), (other, "cba")):
        for name in names:
            workflow.add(name, noop.new(), deps=[on for on in names if on < name])
    assert one.definition_hash == other.definition_hash


@pytest.mark.parametrize(
    "changed",
    [
        lambda w: w.add("a", fetch_sources.new("y")),
        lambda w: w.add("b", fetch_sources.new("x")),
        lambda w: w.add("a", fetch_sources.with_options(queue="other").new("x")),
        lambda w: w.add("a", fetch_sources.with_options(max_attempts=1).new("x")),
        lambda w: w.add("a", fetch_sources.with_options(timeout=1).new("x")),
        lambda w: w.add("a", fetch_sources.new("x"), ignore_cancelled=True),
        lambda w: w.add("a", fetch_sources.new("x"), deps=["b"]),
        lambda w: w.add("a", keywords.new([])),
        lambda w: w.add("a", a_job()),
    ],
)
def test_the_hash_changes_with_the_work(changed):
    base, other = Workflow(), Workflow()
    base.add("a", fetch_sources.new("x"))
    changed(other)
    assert base.definition_hash != other.definition_hash


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_a_workflow_is_valid_exactly_if_it_has_no_cycle(edges):
    workflow = Workflow()
    for n in range(10):
        workflow.add(f"s{n}", noop.new(), deps=[f"s{on}" for dependent, on in edges if dependent == n])
    left = {n: {on for dependent, on in edges if dependent == n} for n in range(10)}
    while ready := {n for n, on in left.items() if not on & left.keys()}:
        left = {n: on for n, on in left.items() if n not in ready}
    try:
        workflow.validate()
        assert not left
    except (CycleError, SelfDependency):
        assert left


def test_100_000_steps_are_validated_in_a_chain_and_in_a_fan():
    workflow = Workflow()
    job = noop.new()
    workflow.add("s0", job)
    for n in range(1, 50_000):
        workflow.add(f"s{n}", job, deps=[f"s{n - 1}"])
    for n in range(49_999):
        workflow.add(f"branch[{n}]", job, deps=["s0"])
    workflow.add("sum", job, deps=[f"branch[{n}]" for n in range(49_999)])
    workflow.validate()
    assert len(workflow.steps) == 100_000


def test_a_workflow_draws_itself():
    workflow = research()
    assert workflow.to_text({"keywords": "executing"}).splitlines()[1].split() == [
        "2", "keywords", "executing", "<-", "fetch_sources",
    ]  # fmt: skip
    assert "s0 --> s1" in workflow.to_mermaid()
    assert "s0 -> s1" in workflow.to_dot()
    assert ">keywords: executing</title>" in workflow.to_svg({"keywords": "executing"})


def test_the_builder_does_not_need_the_registry(monkeypatch):
    monkeypatch.setattr(_declare, "_registry", {})
    workflow = Workflow()
    workflow.add("a", noop.new())
    assert workflow.steps["a"].meta == "{}"


@pytest.mark.parametrize(
    "deadline",
    [5, "tomorrow", timedelta(), timedelta.max, datetime(2026, 1, 1), datetime.max.replace(tzinfo=UTC)],
)
def test_a_deadline_that_cannot_work_is_refused(deadline):
    with pytest.raises(InvalidOption, match="deadline="):
        Workflow("late", deadline=deadline)
