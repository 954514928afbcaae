"""The research brief as a workflow: fetch the sources, look at them in three ways at once, write one page.

                     +--> summarize ---+
    fetch_sources ---+--> keywords ----+--> compile_brief
                     +--> credibility -+

`baton demo [PATH|URL ...] [--topic TOPIC]` runs it. The steps are plain functions: each runs in a thread, and
what it returns is stored and handed to the steps that ask for it.

With models, the three ask one each. With several, each of the three is a step for every model, and one that makes one answer
of theirs:

                     +--> summarize_gpt_6_1_sol --+
    fetch_sources ---+                            +--> summarize_synthesis --> compile_brief
                     +--> summarize_opus_5_5 -----+
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from baton import Cancel, Ref, Step, StepJob, Workflow, llm_step, multi_model, progress, step

from . import analyses, answers, asking, sources
from .analyses import Assessment, Keyword, Summary
from .answers import Answer
from .sources import Document, SourceError, SourceUnavailable

TOPIC = "surviving a power failure"  # of the texts that ship with the example


@step(max_attempts=3, timeout=600)
def fetch_sources(origins: list[str]) -> list[Document] | Cancel:
    try:
        return sources.load(origins, lambda done, total, name: progress(done, total, f"reading {name}"))
    except SourceUnavailable:
        raise  # tried again
    except SourceError as error:
        return Cancel(str(error))  # a file that is not there will not be there in a minute


# --- counted here ---


@step(max_attempts=3)
def summarize(documents: list[Document], topic: str) -> Summary:
    return analyses.summarize(documents, topic)


@step(max_attempts=3)
def keywords(documents: list[Document]) -> list[Keyword]:
    return analyses.keywords(documents)


@step(max_attempts=3)
def credibility(documents: list[Document]) -> list[Assessment]:
    return analyses.credibility(documents)


@step(max_attempts=3)
def compile_brief(
    topic: str,
    summary: Summary,
    keywords: list[Keyword],
    assessments: list[Assessment],
    documents: list[Document],
) -> str:
    return analyses.compile_brief(topic, summary, keywords, assessments, documents)


# --- asked of models ---


@llm_step(max_attempts=3, timeout=600)
async def ask_summary(documents: list[Document], topic: str) -> Answer[Summary]:
    model = multi_model.model_for("")
    read = partial(answers.read_summary, model=model, documents=documents)
    return await asking.ask(answers.ask_summary(model, documents, topic), read, Answer[Summary])


@llm_step(max_attempts=3, timeout=600)
async def ask_keywords(documents: list[Document]) -> Answer[list[Keyword]]:
    model = multi_model.model_for("")
    read = partial(answers.read_keywords, model=model, documents=documents)
    return await asking.ask(answers.ask_keywords(model, documents), read, Answer[list[Keyword]])


@llm_step(max_attempts=3, timeout=600)
async def ask_credibility(documents: list[Document]) -> Answer[list[Assessment]]:
    model = multi_model.model_for("")
    read = partial(answers.read_credibility, model=model, documents=documents)
    return await asking.ask(answers.ask_credibility(model, documents), read, Answer[list[Assessment]])


@step(max_attempts=3)
async def merge_summaries(
    given: dict[str, Answer[Summary] | None], documents: list[Document]
) -> Answer[Summary] | Cancel:
    failed = await multi_model.failures()
    return answers.merge_summaries(given, failed, documents) or _nobody(failed)


@step(max_attempts=3)
async def merge_keywords(
    given: dict[str, Answer[list[Keyword]] | None], documents: list[Document]
) -> Answer[list[Keyword]] | Cancel:
    failed = await multi_model.failures()
    return answers.merge_keywords(given, failed, documents) or _nobody(failed)


@step(max_attempts=3)
async def merge_credibility(
    given: dict[str, Answer[list[Assessment]] | None], documents: list[Document]
) -> Answer[list[Assessment]] | Cancel:
    failed = await multi_model.failures()
    return answers.merge_credibility(given, failed, documents) or _nobody(failed)


def _nobody(failed: dict[str, str]) -> Cancel:
    told = "; ".join(f"{model}: {answers.reason(error)}" for model, error in failed.items())
    return Cancel(f"no model gave an answer: {told}")


@step(max_attempts=3)
def compile_answers(
    topic: str,
    summary: Answer[Summary],
    keywords: Answer[list[Keyword]],
    assessments: Answer[list[Assessment]],
    documents: list[Document],
) -> str:
    writers = answers.writers(summary, keywords, assessments, documents)
    return analyses.compile_brief(
        topic, summary.value, keywords.value, assessments.value, documents, writers=writers
    )


# --- the graph ---


def research(topic: str, origins: Sequence[str] = (), *, models: Sequence[str] = ()) -> Workflow:
    """Build the workflow that writes a brief about `origins`.

    Args:
        topic: What the reader wants to know; "" leaves it to the documents.
        origins: Paths of files or folders, http and https URLs. Relative paths start here, not where the
            worker runs. Empty means the texts that ship with the example.
        models: Who is asked, at the endpoint of the workers' environment. With none, the documents are looked at with what is
            in `analyses`, and no model is asked.
    """
    here = [
        origin if sources.is_url(origin) else str(Path(origin).expanduser().absolute()) for origin in origins
    ]
    wf = Workflow(name="research_brief")
    documents = wf.add("fetch_sources", fetch_sources.new(origins=here))
    if models:
        _by_models(wf, topic, documents, models)
    else:
        _counted(wf, topic, documents)
    return wf


def _counted(wf: Workflow, topic: str, documents: Ref[list[Document]]) -> None:
    summary = wf.add("summarize", summarize.new(documents=documents.result, topic=topic))
    words = wf.add("keywords", keywords.new(documents=documents.result))
    scores = wf.add("credibility", credibility.new(documents=documents.result))
    wf.add(
        "compile_brief",
        compile_brief.new(
            topic=topic,
            summary=summary.result,
            keywords=words.result,
            assessments=scores.result,
            documents=documents.result,
        ),
    )


def _by_models(wf: Workflow, topic: str, documents: Ref[list[Document]], models: Sequence[str]) -> None:
    def ask[T](name: str, job: StepJob[Answer[T]], merge: Step[..., Answer[T]]) -> Ref[Answer[T]]:
        if len(models) == 1:
            multi_model.configure(wf, {name: models[0]})
            return wf.add(name, job)
        fan = multi_model.fan_out(
            wf,
            name,
            job,
            models=models,
            synthesize_with=merge,
            synthesize_args={"documents": documents.result},
            # A provider that is down, or a budget that is spent, costs an answer, not the brief.
            ignore_discarded=True,
            ignore_cancelled=True,
        )
        return fan.synthesis

    summary = ask("summarize", ask_summary.new(documents.result, topic), merge_summaries)
    words = ask("keywords", ask_keywords.new(documents.result), merge_keywords)
    scores = ask("credibility", ask_credibility.new(documents.result), merge_credibility)
    wf.add(
        "compile_brief",
        compile_answers.new(
            topic=topic,
            summary=summary.result,
            keywords=words.result,
            assessments=scores.result,
            documents=documents.result,
        ),
    )
