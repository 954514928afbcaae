"""Read by mypy and pyright, never run. A line that must not type-check ends in `# E`; all others must."""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, assert_type

from oban.job import Job

from baton import LLMWorker, call_llm, llm_step, multi_model, once, record_usage
from baton._declare import AsyncStep, PlainStep, Ref, StepJob, step
from baton._outcomes import Cancel, Snooze
from baton._usage import Usage
from baton.multi_model import FanOut
from baton.workflow import Workflow


@dataclass
class Document:
    title: str
    words: list[str]


@step
async def fetch(topic: str, limit: int = 10) -> list[Document] | Snooze: ...


@step(queue="cpu", max_attempts=5, tags=["nlp"], backoff=lambda attempt: 2.0**attempt)
def keywords(documents: list[Document]) -> list[str]: ...


@step
def gate(amount: int) -> str | Cancel | None: ...


@step(timeout=2.5)
async def totals(words: list[str]) -> dict[str, int]: ...


@step
def count(number: int) -> int: ...


@step
async def label(text: str, **extra: float) -> None: ...


@step
def first(document: Document) -> Document | Snooze | Cancel: ...


@llm_step
async def summarize(documents: list[Document]) -> str | Snooze: ...


@llm_step(timeout=60)
def ask(text: str) -> str: ...


class Rate(LLMWorker, max_attempts=3, timeout=60):
    async def process(self, job: Job) -> dict[str, int]: ...


def llm_steps_are_typed_as_steps() -> None:
    workflow = Workflow("llm")
    documents = workflow.add("fetch", fetch.new(topic="x"))
    text = workflow.add("summarize", summarize.new(documents.result))
    assert_type(text, Ref[str])
    workflow.add("ask", ask.new(text.result))
    assert_type(workflow.add("rate", Rate.new({"text": "x"}), deps=[text]), Ref[Any])
    workflow.add("ask2", ask.new(documents.result))  # E
    summarize.new("x")  # E


async def calls_keep_the_type_of_their_value(document: Document) -> None:
    async def call() -> Document: ...

    assert_type(await call_llm(call), Document)
    assert_type(await call_llm(lambda: call(), model="m"), Document)
    assert_type(await once("key", call, returns=Document), Document)
    assert_type(record_usage({"model": "m"}, cost="0.10"), Usage)
    await once("key", document)  # E
    await call_llm(lambda: document)  # E


def snoozes_and_cancels_are_no_results() -> None:
    anything: AsyncStep[..., list[Document]] = fetch
    anything.new()
    assert_type(fetch.new("x"), StepJob[list[Document]])
    assert_type(keywords.new([]), StepJob[list[str]])
    assert_type(gate.new(1), StepJob[str | None])
    assert_type(totals.new(words=[]), StepJob[dict[str, int]])
    assert_type(first.new(Document("", [])), StepJob[Document])


async def calling_a_step_calls_the_function() -> None:
    await assert_type(fetch("x"), Coroutine[Any, Any, list[Document]])
    assert_type(await fetch("x", limit=3), list[Document])
    assert_type(keywords([]), list[str])
    await fetch(3)  # E
    keywords(document=[])  # E


def arguments_are_checked() -> None:
    fetch.new()  # E
    fetch.new(topic="x", limit="many")  # E
    fetch.new(topics="x")  # E
    label.new("x", weight=1.5)
    label.new("x", weight="heavy")  # E


def edges_are_checked() -> None:
    workflow = Workflow("typed")
    documents = workflow.add("fetch", fetch.new(topic="x"))
    assert_type(documents, Ref[list[Document]])
    words = workflow.add("keywords", keywords.new(documents=documents.result))
    sums = workflow.add("totals", totals.new(words.result), deps=[documents, "keywords"])
    workflow.add("count", count.new(sums.result["x"]))
    workflow.add("label", label.new(documents.result[0].title))
    workflow.add("first", first.new(documents.result[0]))
    workflow.add("count2", count.new(words.result))  # E
    workflow.add("totals2", totals.new(documents.result))  # E
    workflow.add("label2", label.new(sums.result["x"]))  # E
    workflow.add("label3", label.new(documents.result[0].words))  # E
    workflow.add("label4", label.new(documents.result[0].titel))  # E
    workflow.add("keywords2", keywords.new(documents))  # E
    workflow.add("keywords3", keywords)  # E
    workflow.add("keywords4", keywords.new([]), deps=documents)  # E
    workflow.add("keywords5", keywords.new([]), deps=[3])  # E


def oban_jobs_are_steps_of_any_type(job: Job) -> None:
    workflow = Workflow("mixed")
    raw = workflow.add("raw", job)
    assert_type(raw, Ref[Any])
    workflow.add("count", count.new(raw.result["n"]))


def options_keep_the_type() -> None:
    urgent = keywords.with_options(queue="urgent", priority=0)
    assert_type(urgent.new([]), StepJob[list[str]])
    plain: PlainStep[..., list[str]] = urgent
    urgent.new(3)  # E
    keywords.with_options(queue=3)  # E
    keywords.with_options(backoff=None)  # E
    plain.new()


@llm_step(queue=5)  # E
async def misdeclared_too() -> None: ...


@step
def join(answers: dict[str, list[str]]) -> int: ...


def fan_outs_keep_the_type(job: Job) -> None:
    workflow = Workflow("fan-out")
    fan = multi_model.fan_out(workflow, "words", keywords, models=["a"], synthesize_with=join)
    assert_type(fan, FanOut[list[str], Ref[int]])
    workflow.add("count", count.new(fan.synthesis.result))
    workflow.add("totals", totals.new(fan.arms["a"].result))
    workflow.add("join", join.new(fan.results))
    workflow.add("count2", count.new(fan.arms["a"].result))  # E
    bare = multi_model.fan_out(workflow, "bare", keywords.new([]), models={"x": "a"})
    assert_type(bare, FanOut[list[str], None])
    workflow.add("count4", count.new(bare.synthesis.result))  # E
    workers = multi_model.fan_out(workflow, "workers", job, models=["a"])
    workflow.add("count3", count.new(workers.synthesis.result))
    multi_model.fan_out(workflow, "none", keywords)  # E
    multi_model.fan_out(workflow, "args", keywords, models=["a"], args=[1])  # E
    multi_model.fan_out(workflow, "model", keywords, models=["a"], synthesize_model="b")  # E
    multi_model.configure(workflow, {"x": 3})  # E
    assert_type(multi_model.model_for("a"), str)
    assert_type(multi_model.model_for(job, "a"), str)
    multi_model.model_for(job)  # E


@step(max_attempts="5")  # E
def misdeclared() -> None: ...
