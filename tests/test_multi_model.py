"""Several models side by side: names, what is refused, and what the steps see on real workers."""

import contextlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oban.job import Job

import baton
from baton import Baton, Budget, Cancel, Ref, Workflow, llm_step, multi_model, once, step, testing
from baton._models import short_name
from baton.errors import (
    DuplicateStep,
    ForeignReference,
    InvalidArgument,
    InvalidName,
    InvalidOption,
    NoWorkflow,
    ReferenceMismatch,
    UnknownStep,
)
from tests.kit import fixtures

database = fixtures.database
baton_dsn = fixtures.baton_dsn

SONNET = "claude-sonnet-4-20250514"


@step
async def answer(question: str, retries: int = 0) -> str:
    return f"{multi_model.model_for('gpt-4o')}: {question}"


@step
def plain_answer(question: str) -> str:
    return f"{multi_model.model_for('gpt-4o')}: {question}"


@step(max_attempts=1)
async def fails_for_o3(question: str) -> str:
    if multi_model.model_for("") == "o3":
        raise ValueError("the provider is down")
    return f"{multi_model.model_for('')}: {question}"


@step
async def cancels_for_o3() -> str | Cancel:
    return Cancel("too dear") if multi_model.model_for("") == "o3" else "fine"


@step
async def join(answers: dict[str, str]) -> list[str]:
    return [multi_model.model_for("none"), *(f"{model}={text}" for model, text in answers.items())]


@step
async def join_what_came(answers: Mapping[str, str | None], topic: str = "") -> dict[str, Any]:
    return {
        "answers": dict(answers),
        "topic": topic,
        "results": await multi_model.results(),
        "failures": await multi_model.failures(),
    }


@step
async def ask_for_question() -> str:
    return "why?"


@step
async def nothing() -> str:
    return ""


@baton.worker(queue="default")
class Answer:
    async def process(self, job: Job) -> Any:
        if job.args["workflow_model"] == "o3":
            return baton.Cancel("out of order")
        return {"asked": multi_model.model_for(job, "gpt-4o"), **job.args}


@baton.worker(queue="default")
class Join:
    async def process(self, job: Job) -> Any:
        return {
            "model": multi_model.model_for(job, "default"),
            "results": await multi_model.results(job),
            "failures": await multi_model.failures(job),
            "by_step": sorted(await baton.results.get_all(job)),
            "in_order": [*await multi_model.results(job)],
        }


def args_of(workflow: Workflow, name: str) -> Any:
    return orjson.loads(workflow.steps[name].args)


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "short"),
    [
        (SONNET, "sonnet_4"),
        ("claude-opus-4-20250514", "opus_4"),
        ("gpt-4o", "gpt_4o"),
        ("o3", "o3"),
        ("claude-3-5-sonnet-latest", "3_5_sonnet_latest"),
        ("claude-opus-4@20250514", "opus_4"),
        ("gpt-4o-2024-08-06", "gpt_4o"),
        ("gpt-4-0613", "gpt_4_0613"),
        ("gpt-6.1-sol", "gpt_6_1_sol"),
        ("openai/gpt-5", "gpt_5"),
        ("openrouter/anthropic/claude-sonnet-4", "sonnet_4"),
        ("openai:gpt-4o", "gpt_4o"),
        ("google-gla:gemini-2.5-pro", "gemini_2_5_pro"),
        ("models/gemini-2.5-flash", "gemini_2_5_flash"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "sonnet_4"),
        ("anthropic.claude-opus-4-20250514-v1:0", "opus_4"),
        ("eu.amazon.nova-pro-v1:0:300k", "nova_pro"),
        ("arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-opus-4-20250514-v1:0", "opus_4"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama_3_1_8b_instruct"),
        ("llama3:8b", "llama3_8b"),
        ("ft:gpt-4o-2024-08-06:acme::x7", "ft_gpt_4o_2024_08_06_acme_x7"),
        ("claude-", "claude"),
        ("claude-20250514", "claude"),
        ("-20250514", "20250514"),
        ("model-20251399", "model_20251399"),
        ("us.gpt-4", "us_gpt_4"),
    ],
)
def test_a_model_has_a_short_name(model: str, short: str) -> None:
    assert short_name(model) == short


@given(st.text(min_size=1, max_size=80))
def test_a_short_name_can_be_part_of_a_steps_name_or_is_refused(model: str) -> None:
    with contextlib.suppress(InvalidName):
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", short_name(model))


def test_a_fan_out_adds_a_step_for_each_model_and_their_synthesis() -> None:
    wf = Workflow()
    question = wf.add("question", ask_for_question.new())
    fan = multi_model.fan_out(
        wf,
        "answer",
        answer,
        models=[SONNET, "claude-opus-4-20250514", "gpt-4o", "o3"],
        args={"question": question.result},
        deps=["later"],
        synthesize_with=join,
        synthesize_model="gpt-4o",
    )
    wf.add("later", nothing.new())
    wf.validate()

    arms = ["answer_sonnet_4", "answer_opus_4", "answer_gpt_4o", "answer_o3"]
    assert list(wf.steps) == ["question", *arms, "answer_synthesis", "later"]
    assert fan.name == "answer"
    assert [ref.name for ref in fan.arms.values()] == arms
    assert list(fan.arms) == [SONNET, "claude-opus-4-20250514", "gpt-4o", "o3"]
    assert fan.synthesis.name == "answer_synthesis"
    assert wf.steps["answer_o3"].deps == ("question", "later")
    assert wf.steps["answer_synthesis"].deps == tuple(arms)
    assert args_of(wf, "answer_sonnet_4")["workflow_model"] == SONNET
    assert args_of(wf, "answer_synthesis")["workflow_model"] == "gpt-4o"


def test_a_fan_out_without_synthesis_has_results_for_a_step_of_the_users() -> None:
    wf = Workflow()
    fan = multi_model.fan_out(wf, "a", answer.with_options(queue="llm").new("why?"), models=["gpt-4o", "o3"])
    assert fan.synthesis is None
    assert [wf.steps[name].queue for name in ("a_gpt_4o", "a_o3")] == ["llm", "llm"]
    wf.add("join", join.new(fan.results))
    assert wf.steps["join"].deps == ("a_gpt_4o", "a_o3")


def test_arms_can_be_named_by_the_user() -> None:
    wf = Workflow()
    may, june = "claude-sonnet-4-20250514", "claude-sonnet-4-20250601"
    fan = multi_model.fan_out(wf, "a", answer, models={"may": may, "june": june}, args={"question": ""})
    assert {model: ref.name for model, ref in fan.arms.items()} == {may: "a_may", june: "a_june"}


def test_dependencies_may_come_from_a_generator() -> None:
    wf = Workflow()
    wf.add("first", nothing.new())
    multi_model.fan_out(wf, "a", nothing, models=["o3", "gpt-4o"], deps=(name for name in ["first"]))
    assert wf.steps["a_o3"].deps == wf.steps["a_gpt_4o"].deps == ("first",)


# --- what is refused ---------------------------------------------------------------------------------------


def refused(error: type[Exception], message: str, **options: Any) -> None:
    wf = Workflow("w")
    wf.add("a_o1", nothing.new())
    multi_model.configure(wf, {"a_synthesis": "gpt-4o"})
    before = dict(wf.steps), dict(wf._entries)
    given = {"name": "a", "step": answer, "models": ["o3"], "args": {"question": ""}, **options}
    with pytest.raises(error, match=message):
        multi_model.fan_out(wf, **given)
    assert (dict(wf.steps), dict(wf._entries)) == before


def test_two_models_with_one_short_name_are_refused_with_both_named() -> None:
    pair = ["claude-sonnet-4-20250514", "claude-sonnet-4-20250601"]
    refused(DuplicateStep, f"'{pair[0]}' and model '{pair[1]}' would both be step 'a_sonnet_4'", models=pair)
    refused(DuplicateStep, "would both be step 'a_x'", models=["openai/x", "x"])


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ([], InvalidOption, "no models"),
        ("gpt-4o", InvalidOption, r"use models=\[...\]"),
        (None, InvalidOption, r"use models=\[...\]"),
        (["o3", "o3"], InvalidOption, "names model 'o3' twice"),
        ({"x": "o3", "y": "o3"}, InvalidOption, "names model 'o3' twice"),
        ([3], InvalidName, "model of type int is not a string"),
        (["\x00"], InvalidName, "unprintable"),
        (["模型"], InvalidName, "name it yourself"),
        (["m" * 80], InvalidName, "choose a shorter name"),
        ({"a b": "o3"}, InvalidName, "use ASCII letters"),
        ({"x[1]": "o3"}, InvalidName, "use ASCII letters"),
        ({1: "o3"}, InvalidName, "use ASCII letters"),
        (["o1"], DuplicateStep, "has a step 'a_o1' already"),
        (["gpt-4o", "o1"], DuplicateStep, "has a step 'a_o1' already"),
    ],
)
def test_models_that_cannot_work_are_refused(models: Any, error: type[Exception], message: str) -> None:
    refused(error, message, models=models)


def test_a_model_called_synthesis_is_refused_where_there_is_one() -> None:
    refused(
        DuplicateStep, "the synthesis of fan-out 'a' and model", models=["synthesis"], synthesize_with=join
    )
    wf = Workflow()
    multi_model.fan_out(wf, "a", nothing, models=["synthesis"])
    assert list(wf.steps) == ["a_synthesis"]


@step
async def takes_a_list(answers: list[str]) -> None: ...


@step
async def takes_numbers(answers: dict[str, int]) -> None: ...


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "a b"}, InvalidName, "step name 'a b'"),
        ({"args": {"qestion": ""}}, InvalidArgument, "required argument: .question"),
        ({"args": [1]}, InvalidOption, "use a dict of arguments"),
        ({"step": answer.new("")}, InvalidOption, "has its arguments already"),
        ({"step": 3, "args": None}, InvalidArgument, "a job is wanted, not int"),
        ({"deps": "o1"}, InvalidOption, r"use deps=\[...\]"),
        ({"deps": [Ref("x", Workflow())]}, ForeignReference, "refers to step 'x'"),
        ({"synthesize_model": "o3"}, InvalidOption, "synthesize_model is for a synthesis"),
        ({"synthesize_args": {}}, InvalidOption, "synthesize_args is for a synthesis"),
        ({"ignore_discarded": True}, InvalidOption, "ignore_discarded is for a synthesis"),
        ({"synthesize_with": nothing}, InvalidArgument, "no parameter for the results"),
        (
            {"synthesize_with": takes_a_list},
            ReferenceMismatch,
            r"annotated list\[str\], but gets dict\[str, str\]",
        ),
        ({"synthesize_with": takes_numbers}, ReferenceMismatch, r"but gets dict\[str, str\]"),
        ({"synthesize_with": join, "ignore_discarded": True}, ReferenceMismatch, r"dict\[str, str \| None\]"),
        (
            {"synthesize_with": join, "synthesize_args": {"answers": {}}},
            InvalidArgument,
            "'answers'.*for the results",
        ),
        (
            {"synthesize_with": join, "synthesize_model": "o3"},
            InvalidOption,
            "configured with model 'gpt-4o'",
        ),
        ({"synthesize_with": join.new({})}, InvalidOption, "pass the step, and synthesize_args"),
        ({"synthesize_with": join_what_came, "ignore_cancelled": 1}, InvalidOption, "is no bool"),
    ],
)
def test_options_that_cannot_work_are_refused_and_nothing_is_added(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    refused(error, message, **options)


def test_a_workflow_that_ignores_failures_needs_a_synthesis_that_takes_none() -> None:
    wf = Workflow(ignore_discarded=True)
    with pytest.raises(ReferenceMismatch, match="a model that failed has None there"):
        multi_model.fan_out(wf, "a", answer, models=["o3"], args={"question": ""}, synthesize_with=join)
    multi_model.fan_out(
        wf, "a", answer, models=["o3"], args={"question": ""}, synthesize_with=join, ignore_discarded=False
    )


# --- configure -----------------------------------------------------------------------------------------------


def test_configured_steps_get_their_model_and_others_nothing() -> None:
    wf = Workflow()
    multi_model.configure(wf, {"one": "o3", "worker": "gpt-4o"})
    multi_model.configure(wf, {"one": "o4"})
    wf.add("one", answer.new(""))
    wf.add("two", answer.new(""))
    wf.add("worker", Answer.new({"x": 1}))
    wf.validate()
    assert args_of(wf, "one")["workflow_model"] == "o4"
    assert "workflow_model" not in args_of(wf, "two")
    assert args_of(wf, "worker") == {"x": 1, "workflow_model": "gpt-4o"}


def test_the_model_is_part_of_the_definition() -> None:
    def built(model: str | None) -> str:
        wf = Workflow()
        if model:
            multi_model.configure(wf, {"one": model})
        wf.add("one", answer.new(""))
        return wf.definition_hash

    assert len({built(None), built("o3"), built("o4")}) == 3


async def test_a_model_for_a_step_that_is_never_added_is_refused_at_the_insert(baton_dsn: str) -> None:
    wf = Workflow("w")
    multi_model.configure(wf, {"summarise": "o3"})
    wf.add("summarize", answer.new(""))
    with pytest.raises(UnknownStep, match=r"never added: 'summarise' \(did you mean 'summarize'\?\)"):
        wf.validate()
    async with Baton(baton_dsn) as baton_:
        with pytest.raises(UnknownStep):
            await baton_.insert(wf)


@pytest.mark.parametrize(
    ("models", "error"),
    [
        ({"there": "o3"}, DuplicateStep),
        ({"a b": "o3"}, InvalidName),
        ({"x": ""}, InvalidName),
        ({"x": None}, InvalidName),
        ([("x", "o3")], InvalidOption),
    ],
)
def test_what_cannot_be_configured_is_refused_as_a_whole(models: Any, error: type[Exception]) -> None:
    wf = Workflow()
    wf.add("there", nothing.new())
    with pytest.raises(error):
        multi_model.configure(wf, models if isinstance(models, list) else {"good": "o3", **models})
    wf.validate()


def test_args_with_another_model_stand_in_the_way() -> None:
    wf = Workflow()
    multi_model.configure(wf, {"a": "o3", "b": "o3"})
    wf.add("a", Answer.new({"workflow_model": "o3"}))
    with pytest.raises(InvalidArgument, match="'workflow_model' already"):
        wf.add("b", Answer.new({"workflow_model": "o4"}))


# --- model_for -----------------------------------------------------------------------------------------------


async def test_a_step_called_as_a_function_asks_the_default_model() -> None:
    assert await answer("why?") == "gpt-4o: why?"
    assert plain_answer("why?") == "gpt-4o: why?"


def test_without_a_model_and_a_default_there_is_nothing_to_ask() -> None:
    assert multi_model.model_for(Job(worker="w", args={}), "o3") == "o3"
    assert multi_model.model_for(Job(worker="w", args={"workflow_model": 3}), "o3") == "o3"
    with pytest.raises(InvalidOption, match="model_for takes the model"):
        multi_model.model_for(Job(worker="w", args={}))  # type: ignore[call-overload]
    with pytest.raises(InvalidOption, match="model_for takes the model"):
        multi_model.model_for(None)  # type: ignore[call-overload]


async def test_results_by_model_are_for_a_synthesis_alone() -> None:
    job = Job(worker="w", args={})
    for read in (multi_model.results, multi_model.failures):
        with pytest.raises(NoWorkflow, match="not of a synthesis"):
            await read(job)
        with pytest.raises(NoWorkflow, match="no step of a workflow is running"):
            await read()


# --- on workers ----------------------------------------------------------------------------------------------


async def test_each_step_asks_its_own_model_and_the_synthesis_gets_their_results(baton_dsn: str) -> None:
    wf = Workflow()
    question = wf.add("question", ask_for_question.new())
    fan = multi_model.fan_out(
        wf,
        "answer",
        answer,
        models=[SONNET, "o3"],
        args={"question": question.result},
        synthesize_with=join,
        synthesize_model="gpt-6",
    )
    multi_model.configure(wf, {"threaded": "gpt-5"})
    wf.add("threaded", plain_answer.new("and?"))
    wf.add("unconfigured", plain_answer.new(question=question.result))
    wf.add("after", join.new({"all": "of"}), deps=[fan.synthesis])
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.results["answer_sonnet_4"] == f"{SONNET}: why?"
    assert done.results["answer_synthesis"] == ["gpt-6", f"{SONNET}={SONNET}: why?", "o3=o3: why?"]
    assert done.results["threaded"] == "gpt-5: and?"
    assert done.results["unconfigured"] == "gpt-4o: why?"
    assert done.results["after"] == ["none", "all=of"]


async def test_a_provider_that_is_down_costs_its_result_and_not_the_run(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.fan_out(
        wf,
        "answer",
        fails_for_o3,
        models=[SONNET, "o3"],
        args={"question": "why?"},
        synthesize_with=join_what_came,
        synthesize_args={"topic": "tides"},
        ignore_discarded=True,
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.outcome == "completed"
    found = done.results["answer_synthesis"]
    assert found["answers"] == found["results"] == {SONNET: f"{SONNET}: why?", "o3": None}
    assert found["topic"] == "tides"
    assert list(found["failures"]) == ["o3"]
    assert "the provider is down" in found["failures"]["o3"]


async def test_a_cancelled_model_can_be_ignored_as_well(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.fan_out(
        wf, "a", cancels_for_o3, models=["o3", "o4"], synthesize_with=join_what_came, ignore_cancelled=True
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.outcome == "completed"
    assert done.results["a_synthesis"]["failures"] == {"o3": "too dear"}


async def test_where_nothing_is_ignored_a_model_that_fails_fails_the_run(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.fan_out(
        wf, "a", fails_for_o3, models=[SONNET, "o3"], args={"question": ""}, synthesize_with=join
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.outcome == "failed"
    assert done.states["a_synthesis"] == "cancelled"


async def test_with_all_models_down_the_synthesis_hears_of_each(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.fan_out(
        wf,
        "a",
        fails_for_o3,
        models=["o3"],
        args={"question": ""},
        synthesize_with=join_what_came,
        ignore_discarded=True,
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.results["a_synthesis"]["answers"] == {"o3": None}
    assert list(done.results["a_synthesis"]["failures"]) == ["o3"]


async def test_worker_classes_read_results_by_model(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.configure(wf, {"ask_synthesis": "gpt-6"})
    fan = multi_model.fan_out(
        wf, "ask", Answer, models=["gpt-4o", "o3"], args={"x": 1}, synthesize_with=Join, ignore_cancelled=True
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.results[fan.synthesis.name] == {
        "model": "gpt-6",
        "results": {"gpt-4o": {"asked": "gpt-4o", "x": 1, "workflow_model": "gpt-4o"}, "o3": None},
        "failures": {"o3": "out of order"},
        "by_step": ["ask_gpt_4o"],
        "in_order": ["gpt-4o", "o3"],
    }


async def test_jobs_of_worker_classes_keep_their_options_in_each_arm(baton_dsn: str) -> None:
    wf = Workflow()
    fan = multi_model.fan_out(
        wf,
        "ask",
        Answer.new({"x": 2}, queue="llm", priority=3),
        models=["gpt-4o", "gpt-5"],
        synthesize_with=Join.new({}, queue="other"),
    )
    assert {(step.queue, step.priority) for step in wf.steps.values()} == {("llm", 3), ("other", 0)}
    done = await testing.run(wf, dsn=baton_dsn)
    assert list(done.results[fan.synthesis.name]["in_order"]) == ["gpt-4o", "gpt-5"]


async def test_a_step_of_the_users_reads_the_results_it_was_given(baton_dsn: str) -> None:
    wf = Workflow()
    fan = multi_model.fan_out(wf, "a", answer, models=["o3", "o4"], args={"question": "?"})
    wf.add("mine", join.new(fan.results))
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.results["mine"] == ["none", "o3=o3: ?", "o4=o4: ?"]


async def test_a_rerun_asks_the_same_models(baton_dsn: str) -> None:
    wf = Workflow()
    multi_model.fan_out(wf, "a", answer, models=["o3"], args={"question": "?"}, synthesize_with=join)
    async with Baton(baton_dsn, queues={"default": 5}, poll_interval=0.05) as baton_:
        run = await baton_.insert(wf)
        await run.wait(timeout=20)
        again = await run.rerun(from_=["a_o3"])
        await again.wait(timeout=20)
        assert await again.result("a_synthesis") == ["none", "o3=o3: ?"]


@llm_step(max_attempts=2)
async def paid_answer(question: str) -> str:
    model = multi_model.model_for("gpt-6.1-sol")
    usage = {"prompt_tokens": 1_000, "completion_tokens": 500}

    async def call() -> dict[str, Any]:
        return {"model": model, "choices": [{"message": {"content": question}}], "usage": usage}

    return str((await once("answer", call, model=model))["choices"][0]["message"]["content"])


async def test_each_model_has_its_own_cost(baton_dsn: str) -> None:
    wf = Workflow()
    models = ["gpt-6.1-sol", SONNET, "nobodys-model"]
    fan = multi_model.fan_out(
        wf, "a", paid_answer, models=models, args={"question": "?"}, synthesize_with=join
    )
    done = await testing.run(wf, dsn=baton_dsn)
    async with Baton(baton_dsn) as baton_:
        costs = {cost.step: cost for cost in await baton_.stats.steps_for_workflow(done.run.id)}
        totals = await baton_.stats.workflow_totals(done.run.id)
    assert {model: costs[ref.name].model for model, ref in fan.arms.items()} == {m: m for m in models}
    assert costs["a_sonnet_4"].totals.cost_usd == Decimal("0.0105")
    assert costs["a_nobodys_model"].totals.cost_usd is None
    assert totals.is_lower_bound


async def test_what_a_budget_does_not_allow_costs_its_answer_and_not_the_run(baton_dsn: str) -> None:
    wf = Workflow(budget=Budget(calls=1))
    multi_model.fan_out(
        wf,
        "a",
        paid_answer,
        models=["gpt-6.1-sol", SONNET],
        args={"question": "?"},
        synthesize_with=join_what_came,
        ignore_cancelled=True,
    )
    done = await testing.run(wf, dsn=baton_dsn)
    assert done.outcome == "completed"
    found = done.results["a_synthesis"]
    assert sorted(found["answers"].values(), key=str) == ["?", None]
    (failed,) = found["failures"].items()
    assert found["answers"][failed[0]] is None
    assert "budget" in failed[1]
