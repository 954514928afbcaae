"""`baton demo`: the research brief on an embedded PostgreSQL, shown as it runs.

Several demos at once share the server and the queue, so one may run steps of another: they have the same code.
"""

import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from baton import Baton, Run, RunStatus, StepState, Totals, _foreground, _terminal, _watch
from baton.errors import StepFailed
from baton.examples.research_brief.asking import QUEUE, Endpoint

# Also to resume, and before the start: whoever works on the queue must have the code of the steps.
from baton.examples.research_brief.workflow import TOPIC, research

if TYPE_CHECKING:
    from baton.web._serve import Page

# Steps of the demo take less; whatever they leave undone is done by the next process that looks.
_GRACE = 0.5
_QUEUES = {"default": 10}
# Of those who know where models are asked; the steps of other demos on the same server wait for one that does.
_ASKING = {QUEUE: 8}


@dataclass(frozen=True, slots=True)
class Demo:
    """What one `baton demo` was asked for.

    Attributes:
        sources: Paths and URLs; none means the texts of the example.
        topic: None leaves it to the sources, or is the topic of the example's texts.
        output: File for the brief; None chooses a new one.
        as_json: Standard output is for JSON alone.
        ui: Serve the page, and stay until a signal when the run has ended.
        data_dir: As for `Baton.local`.
        endpoint: Where models are asked; None to ask none.
    """

    sources: Sequence[str]
    topic: str | None
    output: Path | None
    as_json: bool
    ui: bool
    data_dir: Path | None
    endpoint: Endpoint | None = None

    async def run(self, resume: str | None) -> int:
        """Insert the workflow, or take the run `resume`, and show it to its end. Returns the exit code.

        Raises:
            StepFailed: A step ended cancelled or discarded.
            UsageError: The run to resume asks models, and nothing says where.
            BatonError: Baton could not start, or there is no such run.
        """
        signals = _foreground.Signals()
        async with self._page(signals) as page:
            queues = _QUEUES | (_ASKING if self.endpoint else {})
            baton = Baton.local(self.data_dir, queues=queues, shutdown_grace_period=_GRACE)
            async with _foreground.running(baton, signals) as started:
                if not started or signals.first.is_set():
                    click.echo("baton: interrupted before anything was begun", err=True)
                    return _foreground.INTERRUPTED
                self._say(f"data     {baton.data_dir}")
                run = await self._begin(baton, resume)
                self._say(f"run      {run.id}")
                if self.endpoint is not None and resume is None:
                    self._say(f"models   {', '.join(self.endpoint.models)} at {self.endpoint.host}")
                if page is not None:
                    self._say(f"page     {page.address(f'/runs/{run.id}')}")
                self._say("")
                status = await _watch.watch(run, signals.first, self._say, in_place=not self.as_json)
                if status is None:
                    self._explain_interrupt(run)
                    return _foreground.INTERRUPTED
                results = await run.results("compile_brief")
                totals = await baton.stats.workflow_totals(run.id)
            try:
                return self._report(status, results.get("compile_brief"), totals)
            finally:
                if page is not None:
                    await self._stay(page, run, signals)

    @asynccontextmanager
    async def _page(self, signals: _foreground.Signals) -> "AsyncIterator[Page | None]":
        """The page, if it was asked for: on a Baton that only reads, for it stays when the work is done."""
        if not self.ui:
            yield None
            return
        from baton.web import _serve

        reader = Baton.local(self.data_dir, queues={})
        async with _foreground.running(reader, signals) as started:
            if not started:
                yield None
                return
            page = _serve.Page(reader)
            async with page.serving():
                yield page

    async def _stay(self, page: "Page", run: Run, signals: _foreground.Signals) -> None:
        self._say(f"page     {page.address(f'/runs/{run.id}')}; Ctrl-C ends it")
        page.login.used = lambda: self._say(f"for another browser: {page.address(f'/runs/{run.id}')}")
        await signals.first.wait()

    async def _begin(self, baton: Baton, resume: str | None) -> Run:
        if resume is None:
            topic = self.topic if self.topic is not None else "" if self.sources else TOPIC
            models = self.endpoint.models if self.endpoint is not None else ()
            return await baton.insert(research(topic, self.sources, models=models))
        run = baton.get_run(resume)
        status = await run.status()
        if self.endpoint is None and any(
            step.queue == QUEUE and not step.state.settled for step in status.steps
        ):
            raise click.UsageError(
                f"run {run.id} asks models; set BATON_LLM_URL and BATON_LLM_MODEL, as when it was begun."
            )
        return run

    def _explain_interrupt(self, run: Run) -> None:
        folder = f" --data-dir {shlex.quote(str(self.data_dir))}" if self.data_dir is not None else ""
        click.echo(
            "\nInterrupted. The run is durable: what is done is kept, and the rest waits.\n"
            f"  see it:      baton show {run.id} --local{folder}\n"
            f"  go on:       baton demo --resume {run.id}{folder}",
            err=True,
        )

    def _report(self, status: RunStatus, brief: str | None, totals: Totals) -> int:
        file, problem = None, ""
        if brief is not None:
            if totals.calls:
                # The brief's last lines are a list of who wrote it.
                brief = f"{brief.rstrip()}\n- Cost: {_cost(totals)}.\n"
            try:
                file = _write(brief, self.output, status.run.id)
            except OSError as error:
                problem = f"the brief could not be written: {error}"
        if self.as_json:
            found = asdict(status) | {"brief": brief, "file": None if file is None else str(file)}
            found |= {"cost": asdict(totals) if totals.calls else None}
            click.echo(_terminal.as_json(found))
        else:
            self._print(status, brief, file, totals)
        if brief is None:
            raise _failed(status)
        if problem:
            click.echo(f"baton: {_terminal.safe(problem)}", err=True)
        return 1 if problem else 0

    def _print(self, status: RunStatus, brief: str | None, file: Path | None, totals: Totals) -> None:
        if brief is not None:
            click.echo()
            _terminal.show_markdown(_terminal.open_console(), brief)
            click.echo()
        times = [f"{step.name} {_terminal.duration(step.seconds)}" for step in status.steps if step.attempt]
        self._say(f"times    {', '.join([*times, f'the whole run {_terminal.took(status.run)}'])}")
        if totals.calls:
            self._say(f"cost     {_cost(totals)}")
        if file is not None:
            self._say(f"written  {file}")

    def _say(self, text: str) -> None:
        click.echo(_terminal.safe(text, lines=True), err=self.as_json)


def _cost(totals: Totals) -> str:
    tokens = [
        f"{count:,} tokens {way}"
        for count, way in ((totals.input_tokens, "in"), (totals.output_tokens, "out"))
        if count is not None
    ]
    calls = f"{totals.calls} call{'s' if totals.calls > 1 else ''}"
    return f"{totals.cost_text} for {', '.join([calls, *tokens])}"


def _failed(status: RunStatus) -> StepFailed:
    """The step that failed by itself, not because of another one."""
    for step in status.steps:
        if step.state in (StepState.CANCELLED, StepState.DISCARDED) and (
            step.attempt or not any(status.step(name).state is not StepState.COMPLETED for name in step.deps)
        ):
            return StepFailed(
                f"step {step.name!r} was {step.state}: {_terminal.one_line(step.error)}", step=step.name
            )
    return StepFailed(
        f"run {status.run.id} is {status.state} and has no brief; --resume is for runs of the demo"
    )


def _write(brief: str, output: Path | None, run_id: str) -> Path:
    """Write the brief where the user said, or to a new file here; one with this very text will do."""
    text = brief if brief.endswith("\n") else f"{brief}\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
        return output
    name = f"research-brief-{run_id[-8:]}"
    path, number = Path(f"{name}.md"), 1
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            if path.is_file() and path.read_bytes() == text.encode():
                return path
            number += 1
            path = Path(f"{name}-{number}.md")
        else:
            return path
