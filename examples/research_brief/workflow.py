"""The research brief as a workflow: fetch the sources, look at them in three ways at once, write one page.

                     +--> summarize ---+
    fetch_sources ---+--> keywords ----+--> compile_brief
                     +--> credibility -+

`baton demo [PATH|URL ...] [--topic TOPIC]` runs it. The steps are plain functions: each runs in a thread, and
what it returns is stored and handed to the steps that ask for it.
"""

from collections.abc import Sequence
from pathlib import Path

from baton import Cancel, Workflow, progress, step

from . import analyses, sources
from .analyses import Assessment, Keyword, Summary
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


def research(topic: str, origins: Sequence[str] = ()) -> Workflow:
    """Build the workflow that writes a brief about `origins`.

    Args:
        topic: What the reader wants to know; "" leaves it to the documents.
        origins: Paths of files or folders, http and https URLs. Relative paths start here, not where the
            worker runs. Empty means the texts that ship with the example.
    """
    here = [
        origin if sources.is_url(origin) else str(Path(origin).expanduser().absolute()) for origin in origins
    ]
    wf = Workflow(name="research_brief")
    documents = wf.add("fetch_sources", fetch_sources.new(origins=here))
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
    return wf
