"""Steps that ask models with real clients, OpenAI's, Anthropic's and Pydantic AI's agents: a real server, on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anthropic
import openai
import psycopg
import pytest
from oban import telemetry as oban_telemetry
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

import baton
from baton import Baton, Run, Workflow, call_llm, llm_step, once, record_usage, stream, telemetry
from baton.errors import InvalidOption
from baton.pydantic_ai import StepModel
from tests.kit import fixtures
from tests.kit.providers import Cut, Providers, Refuse, Reply, Slow
from tests.kit.wait import eventually

database = fixtures.database
baton_dsn = fixtures.baton_dsn
db = fixtures.db

GPT, CLAUDE = "gpt-6.1-sol", "claude-opus-5-5"
COST = Decimal("0.00624")
ASK: Any = [{"role": "user", "content": "Is it?"}]
NOW: Any = {"max_attempts": 3, "backoff": lambda _attempt: 0}


class Clients:
    """The clients of the server that the steps below ask."""

    providers: Providers
    gpt: openai.AsyncOpenAI
    gpt_plain: openai.OpenAI
    claude: anthropic.AsyncAnthropic


here = Clients()


@pytest.fixture(autouse=True)
async def providers() -> AsyncIterator[Providers]:
    with Providers() as providers:
        here.providers = providers
        async with (
            openai.AsyncOpenAI(base_url=providers.openai_url, api_key="sk-test", max_retries=0) as here.gpt,
            anthropic.AsyncAnthropic(
                base_url=providers.url, api_key="sk-ant-test", max_retries=0
            ) as here.claude,
        ):
            with openai.OpenAI(
                base_url=providers.openai_url, api_key="sk-test", max_retries=0
            ) as here.gpt_plain:
                yield providers


@pytest.fixture
async def worker(baton_dsn: str) -> AsyncIterator[Baton]:
    async with Baton(baton_dsn, queues={"llm": 5, "default": 5}) as worker:
        yield worker


async def ran(worker: Baton, job: Any, state: str = "completed") -> Run:
    workflow = Workflow("asking")
    workflow.add("ask", job)
    run = await worker.insert(workflow)
    assert await run.wait(timeout=30) == state
    return run


async def calls(db: psycopg.AsyncConnection) -> list[tuple[Any, ...]]:
    cursor = await db.execute(
        "SELECT attempt, model, input_tokens, output_tokens, cost_usd FROM workflow_step_stats ORDER BY id"
    )
    return await cursor.fetchall()


# --- OpenAI and Anthropic -------------------------------------------------------------------------


@llm_step(name="tests.integrations.chat", **NOW)
async def chat() -> str:
    request: Any = {"model": GPT, "messages": ASK, "max_completion_tokens": 800}
    answer = await once(
        "draft", lambda: here.gpt.chat.completions.create(**request), request=request, returns=ChatCompletion
    )
    if baton.current().attempt == 1:
        raise ValueError("not yet")
    return answer.choices[0].message.content or ""


@llm_step(name="tests.integrations.respond")
async def respond() -> str:
    answer = await call_llm(lambda: here.gpt.responses.create(model=GPT, input="Is it?"), model=GPT)
    return answer.output_text


@llm_step(name="tests.integrations.message")
async def message() -> str:
    answer = await call_llm(
        lambda: here.claude.messages.create(model=CLAUDE, messages=ASK, max_tokens=100), model=CLAUDE
    )
    return "".join(block.text for block in answer.content if block.type == "text")


@llm_step(name="tests.integrations.plain")
def plain() -> str:
    answer = here.gpt_plain.chat.completions.create(model=GPT, messages=ASK)
    record_usage(answer)
    return answer.choices[0].message.content or ""


@llm_step(name="tests.integrations.streams")
async def streams() -> str:
    async def ask() -> ChatCompletion:
        async with here.gpt.chat.completions.stream(
            model=GPT, messages=ASK, stream_options={"include_usage": True}
        ) as events:
            async for event in events:
                if event.type == "content.delta":
                    stream.write(event.delta)
            return await events.get_final_completion()

    answer = await once("draft", ask, model=GPT)
    return answer.choices[0].message.content or ""


@llm_step(name="tests.integrations.streams_claude")
async def streams_claude() -> str:
    async def ask() -> anthropic.types.Message:
        async with here.claude.messages.stream(model=CLAUDE, messages=ASK, max_tokens=100) as answer:
            async for text in answer.text_stream:
                stream.write(text)
            return await answer.get_final_message()

    answer = await once("draft", ask, model=CLAUDE)
    return "".join(block.text for block in answer.content if block.type == "text")


async def test_an_openai_answer_is_kept_with_what_it_used_and_comes_back_as_it_was(
    worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    run = await ran(worker, chat.new())
    assert await run.result("ask") == "Yes, it is."
    assert len(providers.requests) == 1, "the second attempt asked nobody"
    assert await calls(db) == [(1, GPT, 1_000, 500, COST)]


@pytest.mark.parametrize("job", [respond, plain])
async def test_responses_and_plain_steps_are_recorded(
    job: Any, worker: Baton, db: psycopg.AsyncConnection
) -> None:
    run = await ran(worker, job.new())
    assert await run.result("ask") == "Yes, it is."
    assert await calls(db) == [(1, GPT, 1_000, 500, COST)]


async def test_an_anthropic_answer_is_recorded(worker: Baton, db: psycopg.AsyncConnection) -> None:
    run = await ran(worker, message.new())
    assert await run.result("ask") == "Yes, it is."
    ((attempt, model, given, taken, cost),) = await calls(db)
    assert (attempt, model, given, taken) == (1, CLAUDE, 1_000, 500)
    # 600 at $4, 400 of a cache at $0.20 and 500 out at $20 a million, by genai-prices 0.2.3.
    assert cost == Decimal("0.01248")


@pytest.mark.parametrize(("job", "model", "after"), [(streams, GPT, 3), (streams_claude, CLAUDE, 5)])
async def test_a_stream_goes_to_readers_as_it_comes_and_is_recorded_at_its_end(
    job: Any, model: str, after: int, worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(Slow(Reply("One two three."), after=after), model=model)
    workflow = Workflow("streaming")
    workflow.add("ask", job.new())
    run = await worker.insert(workflow)
    read: list[Any] = []

    async def follow() -> None:
        async for chunk in run.stream("ask"):
            read.append(chunk.value)  # noqa: PERF401 - to be looked at meanwhile

    reader = asyncio.create_task(follow())
    await eventually(lambda: read)
    assert "three." not in "".join(read), "and not when all of it is there"
    assert await calls(db) == []
    providers.release()
    assert await run.wait(timeout=30) == "completed"
    await reader
    assert "".join(read) == await run.result("ask") == "One two three."
    assert [row[:4] for row in await calls(db)] == [(1, model, 1_000, 500)]


@pytest.mark.parametrize("refusal", [Refuse(429, retry_after=0), Refuse(529), Refuse(503, retry_after=0)])
async def test_a_provider_without_room_is_asked_again_and_no_attempt_is_used(
    refusal: Refuse, worker: Baton, providers: Providers, db: psycopg.AsyncConnection
) -> None:
    providers.script(refusal, model=CLAUDE)
    workflow = Workflow("asking")
    workflow.add("ask", message.with_options(max_attempts=1).new())
    run = await worker.insert(workflow)
    await eventually(lambda: providers.requests)

    async def is_snoozed() -> bool:
        rows = await (await db.execute("SELECT 1 FROM oban_jobs WHERE state = 'scheduled'")).fetchall()
        return bool(rows)

    await eventually(is_snoozed)
    await db.execute(
        "UPDATE oban_jobs SET state = 'available', scheduled_at = now() WHERE state = 'scheduled'"
    )
    assert await run.wait(timeout=30) == "completed"
    assert len(providers.requests) == 2
    assert [row[2] for row in await calls(db)] == [1_000]


async def test_the_clients_own_retries_happen_unseen_so_they_are_to_be_turned_off(
    worker: Baton, providers: Providers
) -> None:
    here.gpt = here.gpt.with_options(max_retries=2)
    providers.script(Refuse(429, retry_after=0), Refuse(500))
    await ran(worker, respond.new())
    assert len(providers.requests) == 3


# --- agents ---------------------------------------------------------------------------------------


class Verdict(BaseModel):
    fair: bool
    why: str


def gpt_model() -> OpenAIChatModel:
    return OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=here.gpt))


@llm_step(name="tests.integrations.agent")
async def agent(question: str) -> Verdict:
    result = await Agent(gpt_model(), output_type=Verdict).run(question)
    record_usage(result)
    return result.output


def looking(model: Any) -> Agent[None, str]:
    made = Agent(model)

    @made.tool_plain
    def look(where: str) -> str:
        """Look somewhere."""
        if "broken" in where and baton.current().attempt == 1:
            raise RuntimeError("no light")
        return f"nothing in {where}"

    return made


@llm_step(name="tests.integrations.looks", **NOW)
async def looks(key: str | None = None, streamed: bool = False, api: str = "chat") -> str:
    model: Any = {
        "chat": gpt_model,
        "responses": lambda: OpenAIResponsesModel(GPT, provider=OpenAIProvider(openai_client=here.gpt)),
        "messages": lambda: AnthropicModel(CLAUDE, provider=AnthropicProvider(anthropic_client=here.claude)),
    }[api]()
    result = await looking(StepModel(model, key=key, streams=streamed)).run("Is it there?")
    return result.output


async def test_an_agents_run_is_a_step_and_its_output_its_result(
    worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(Reply(tool=("final_result", {"fair": True, "why": "so"})))
    run = await ran(worker, agent.new("Is it?"))
    assert await run.result("ask") == Verdict(fair=True, why="so")
    assert await calls(db) == [(1, GPT, 1_000, 500, COST)]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_each_request_of_a_step_model_is_a_call_also_of_a_run_that_fails(
    api: str, worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    look = Reply(tool=("look", {"where": "the broken box"}))
    providers.script(look, look, Reply("Not there.", input_tokens=2_000))
    run = await ran(worker, looks.new(api=api))
    assert await run.result("ask") == "Not there."
    assert [row[:1] + row[2:3] for row in await calls(db)] == [(1, 1_000), (2, 1_000), (2, 2_000)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_step_model_with_a_key_pays_for_no_request_twice(
    streamed: bool, worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(Reply(tool=("look", {"where": "the broken box"})), Reply("Not there."))
    run = await ran(worker, looks.new(key="agent", streamed=streamed))
    assert await run.result("ask") == "Not there."
    assert [row[0] for row in await calls(db)] == [1, 2]
    assert len(providers.requests) == 2
    keys = await (await db.execute("SELECT call_key FROM workflow_step_stats ORDER BY id")).fetchall()
    assert [key.split(":")[:2] for (key,) in keys] == [["agent", "1"], ["agent", "3"]]


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_a_step_model_streams_the_text_of_all_its_answers(
    api: str, worker: Baton, db: psycopg.AsyncConnection, providers: Providers
) -> None:
    providers.script(Reply(tool=("look", {"where": "the box"})), Reply("Not there, no."))
    run = await ran(worker, looks.new(streamed=True, api=api))
    read = [chunk.value async for chunk in run.stream("ask")]
    assert "".join(read) == await run.result("ask") == "Not there, no."
    assert len(read) > 1
    assert len(await calls(db)) == 2
    assert providers.requests[0].streamed


@llm_step(name="tests.integrations.events")
async def events() -> list[str]:
    async with looking(StepModel(gpt_model())).run_stream("Is it there?") as result:
        return [text async for text in result.stream_text(delta=True)]


async def test_an_agent_that_asks_for_a_stream_gets_the_whole_answer(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    run = await ran(worker, events.new())
    assert "".join(await run.result("ask")) == "Yes, it is."
    assert [row[:3] for row in await calls(db)] == [(1, GPT, 1_000)]


@llm_step(name="tests.integrations.agent_in_a_thread")
def agent_in_a_thread() -> str:
    with openai.OpenAI(base_url=here.providers.openai_url, api_key="sk-test") as _:
        client = openai.AsyncOpenAI(base_url=here.providers.openai_url, api_key="sk-test", max_retries=0)

        async def run() -> str:
            async with client:
                model = OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=client))
                return (await Agent(StepModel(model, key="agent")).run("Is it?")).output

        return asyncio.run(run())


async def test_a_step_model_works_in_the_thread_of_a_plain_step(
    worker: Baton, db: psycopg.AsyncConnection
) -> None:
    run = await ran(worker, agent_in_a_thread.new())
    assert await run.result("ask") == "Yes, it is."
    assert [row[:3] for row in await calls(db)] == [(1, GPT, 1_000)]


async def test_the_model_that_was_asked_for_is_told_beside_the_one_that_answered(
    worker: Baton, providers: Providers
) -> None:
    providers.script(Reply(model=f"{GPT}-2026-09-01"))
    told: list[tuple[str, str]] = []

    def listen(_: str, meta: dict[str, Any]) -> None:
        told.append((meta["requested_model"], meta["model"]))

    oban_telemetry.attach("test-integrations", [telemetry.LLM_CALL], listen)
    try:
        await ran(worker, looks.new())
    finally:
        oban_telemetry.detach("test-integrations")
    assert told == [(GPT, f"{GPT}-2026-09-01")]


async def test_an_agents_provider_without_room_is_waited_for(
    worker: Baton, providers: Providers, db: psycopg.AsyncConnection
) -> None:
    providers.script(Refuse(429, retry_after=3_000))
    workflow = Workflow("asking")
    workflow.add("ask", looks.new())
    await worker.insert(workflow)

    async def waits() -> tuple[Any, ...] | None:
        cursor = await db.execute(
            "SELECT attempt, max_attempts, scheduled_at - now() > '45 minutes' FROM oban_jobs WHERE state = 'scheduled'"
        )
        return await cursor.fetchone()

    attempt, most, is_late = await eventually(waits)
    assert is_late
    assert most - attempt == 3, "none of three was used"
    assert await calls(db) == []


async def test_outside_of_steps_a_step_model_is_what_it_wraps(providers: Providers) -> None:
    made = looking(StepModel(gpt_model(), key="agent"))
    assert (await made.run("Is it?")).output == "Yes, it is."
    async with made.run_stream("Is it?") as result:
        assert await result.get_output() == "Yes, it is."
    providers.script(Cut())
    with pytest.raises(Exception, match=r"[Cc]onnection"):
        await made.run("Is it?")


@pytest.mark.parametrize("key", ["", "x" * 101, "two\nlines", 5])
def test_a_key_that_cannot_be_one_is_refused(key: Any) -> None:
    with pytest.raises(InvalidOption, match="key is"):
        StepModel("test", key=key)
