"""The providers' own SDKs against a real server: what they make of it is read, and their exceptions are told apart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from google import genai
from google.genai import errors as google_errors
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from baton._overload import is_overloaded, never_sent, retry_after, status_of
from baton._reading import read_calls, read_usage
from baton._usage import Usage
from tests.kit.providers import Cut, FailLate, Malformed, Providers, Refuse, Reply, Slow
from tests.kit.wait import eventually

GPT, CLAUDE, GEMINI = "gpt-6.1-sol", "claude-opus-5-5", "gemini-4-argon"
COUNTS: dict[str, Any] = {
    "input_tokens": 1_000,
    "output_tokens": 500,
    "cache_read_tokens": 400,
    "reasoning_tokens": 300,
}
ASK: Any = [{"role": "user", "content": "Is it?"}]


@pytest.fixture
def providers() -> Iterator[Providers]:
    with Providers() as providers:
        yield providers


@pytest.fixture
async def gpt(providers: Providers) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=providers.openai_url, api_key="sk-test", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture
async def claude(providers: Providers) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=providers.url, api_key="sk-ant-test", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture
async def gemini(providers: Providers) -> AsyncIterator[genai.Client]:
    with genai.Client(api_key="test", http_options={"base_url": providers.url}) as client:
        async with client.aio:
            yield client


def chat(client: openai.AsyncOpenAI) -> Awaitable[Any]:
    return client.chat.completions.create(model=GPT, messages=ASK)


def respond(client: openai.AsyncOpenAI) -> Awaitable[Any]:
    return client.responses.create(model=GPT, input="Is it?")


def message(client: anthropic.AsyncAnthropic) -> Awaitable[Any]:
    return client.messages.create(model=CLAUDE, messages=ASK, max_tokens=100)


# --- answers --------------------------------------------------------------------------------------


async def test_openai_answers_are_read_whole(gpt: openai.AsyncOpenAI, providers: Providers) -> None:
    answer = await chat(gpt)
    assert answer.choices[0].message.content == "Yes, it is."
    expected = Usage(model=GPT, service_tier="default", **COUNTS, cache_write_tokens=0)
    assert read_usage(answer) == expected
    answer = await respond(gpt)
    assert answer.output_text == "Yes, it is."
    assert read_usage(answer) == expected
    assert [request.api for request in providers.asked(GPT)] == ["chat", "responses"]
    assert providers.requests[0].text == providers.requests[1].text == "Is it?"


async def test_openai_streams_are_read_at_their_end(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.chat.completions.create(
        model=GPT, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Yes, it is."
    expected = Usage(model=GPT, service_tier="default", **COUNTS, cache_write_tokens=0)
    assert read_usage(chunks[-1]) == expected
    assert read_usage(chunks[0]).input_tokens is None

    async with gpt.responses.stream(model=GPT, input="Is it?") as events:
        seen = [event async for event in events]
        answer = await events.get_final_response()
    assert (
        "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "Yes, it is."
    )
    assert answer.output_text == "Yes, it is."
    assert read_usage(answer) == read_usage(seen[-1]) == expected

    async with gpt.chat.completions.stream(
        model=GPT, messages=ASK, stream_options={"include_usage": True}
    ) as deltas:
        assert read_usage(await deltas.get_final_completion()) == expected


async def test_anthropic_answers_are_read_whole_and_at_the_end_of_a_stream(
    claude: anthropic.AsyncAnthropic,
) -> None:
    answer = await message(claude)
    assert answer.content[0].text == "Yes, it is."
    expected = Usage(model=CLAUDE, service_tier="standard", **COUNTS, cache_write_tokens=0)
    assert read_usage(answer) == expected
    async with claude.messages.stream(model=CLAUDE, messages=ASK, max_tokens=100) as stream:
        assert "".join([text async for text in stream.text_stream]) == "Yes, it is."
        assert read_usage(await stream.get_final_message()) == expected
    events = [
        event
        async for event in await claude.messages.create(
            model=CLAUDE, messages=ASK, max_tokens=100, stream=True
        )
    ]
    last = next(event for event in events if event.type == "message_delta")
    assert read_usage(last, asked_for=CLAUDE).output_tokens == 500


async def test_google_answers_are_read_whole_and_at_the_end_of_a_stream(gemini: genai.Client) -> None:
    expected = Usage(model=GEMINI, **COUNTS)
    answer = await gemini.aio.models.generate_content(model=GEMINI, contents="Is it?")
    assert answer.text == "Yes, it is."
    assert read_usage(answer) == expected
    stream = await gemini.aio.models.generate_content_stream(model=GEMINI, contents="Is it?")
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text or "" for chunk in chunks) == "Yes, it is."
    assert read_usage(chunks[-1]) == expected


async def test_an_answer_that_does_not_say_what_was_used_is_a_call_without_counts(
    gpt: openai.AsyncOpenAI, providers: Providers
) -> None:
    providers.script(Reply(usage=False), Reply(usage=False))
    assert read_usage(await chat(gpt)) == Usage(model=GPT, service_tier="default")
    assert read_usage(await respond(gpt)) == Usage(model=GPT, service_tier="default")


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
async def test_an_agents_run_is_read_call_by_call(
    kind: str, gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, providers: Providers
) -> None:
    model = {
        "chat": lambda: OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=gpt)),
        "responses": lambda: OpenAIResponsesModel(GPT, provider=OpenAIProvider(openai_client=gpt)),
        "messages": lambda: AnthropicModel(CLAUDE, provider=AnthropicProvider(anthropic_client=claude)),
    }[kind]()
    agent = Agent(model)

    @agent.tool_plain
    def look(where: str) -> str:
        return f"nothing in {where}"

    providers.script(Reply(tool=("look", {"where": "the box"})), Reply(input_tokens=2_000))
    result = await agent.run("Is it in the box?")
    assert result.output == "Yes, it is."
    first, second = read_calls(result)
    name = CLAUDE if kind == "messages" else GPT
    provider = "anthropic" if kind == "messages" else "openai"
    assert (first.model, first.provider, first.input_tokens) == (name, provider, 1_000)
    assert (second.cache_read_tokens, second.reasoning_tokens, second.input_tokens) == (400, 300, 2_000)
    assert read_usage(result).input_tokens == result.usage.input_tokens == 3_000


# --- errors ---------------------------------------------------------------------------------------


async def raised(call: Awaitable[Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        await call
    assert isinstance(caught.value, Exception)
    return caught.value


@pytest.mark.parametrize("ask", [chat, respond])
async def test_openai_exceptions_are_told_apart(
    ask: Callable[[Any], Awaitable[Any]], gpt: openai.AsyncOpenAI, providers: Providers
) -> None:
    providers.script(
        Refuse(429, retry_after=2.5),
        Refuse(429, code="insufficient_quota"),
        Refuse(503),
        Refuse(503, retry_after=1),
        Refuse(500),
        Malformed(),
        Cut(),
        Cut(after=0),
    )
    full, unpaid, gone, back, broken, malformed, cut, nothing = [await raised(ask(gpt)) for _ in range(8)]
    assert isinstance(full, openai.RateLimitError)
    assert (is_overloaded(full), retry_after(full), status_of(full)) == (True, 2.5, 429)
    assert isinstance(unpaid, openai.RateLimitError)
    assert not is_overloaded(unpaid)
    assert not is_overloaded(gone)
    assert (is_overloaded(back), retry_after(back)) == (True, 1)
    assert (is_overloaded(broken), status_of(broken), never_sent(broken)) == (False, 500, False)
    for error in (malformed, cut, nothing):
        assert (is_overloaded(error), status_of(error), never_sent(error)) == (False, None, False), error


async def test_anthropic_exceptions_are_told_apart(
    claude: anthropic.AsyncAnthropic, providers: Providers
) -> None:
    providers.script(Refuse(429, retry_after=2.5), Refuse(529), Refuse(500), Cut(), FailLate())
    full, overloaded, broken, cut = [await raised(message(claude)) for _ in range(4)]
    assert (is_overloaded(full), retry_after(full), status_of(full)) == (True, 2.5, 429)
    assert (is_overloaded(overloaded), retry_after(overloaded), status_of(overloaded)) == (True, None, 529)
    assert (is_overloaded(broken), status_of(broken)) == (False, 500)
    assert (is_overloaded(cut), never_sent(cut)) == (False, False)
    async with claude.messages.stream(model=CLAUDE, messages=ASK, max_tokens=100) as stream:
        late = await raised(stream.get_final_message())
    assert is_overloaded(late)


async def test_an_openai_stream_that_fails_late_says_whether_there_is_room(
    gpt: openai.AsyncOpenAI, providers: Providers
) -> None:
    providers.script(FailLate("rate_limit_exceeded"), FailLate("server_error"), Cut(after=2))

    async def read() -> None:
        async for _ in await gpt.chat.completions.create(model=GPT, messages=ASK, stream=True):
            pass

    full, broken, cut = [await raised(read()) for _ in range(3)]
    assert is_overloaded(full)
    assert not is_overloaded(broken)
    assert not is_overloaded(cut)


async def test_google_exceptions_are_told_apart(gemini: genai.Client, providers: Providers) -> None:
    providers.script(Refuse(429, retry_after=3), Refuse(400))
    ask = gemini.aio.models.generate_content
    full, wrong = [await raised(ask(model=GEMINI, contents="Is it?")) for _ in range(2)]
    assert isinstance(full, google_errors.ClientError)
    assert (is_overloaded(full), retry_after(full), status_of(full)) == (True, 3, 429)
    assert (is_overloaded(wrong), status_of(wrong)) == (False, 400)


async def test_an_agents_exceptions_are_told_apart(gpt: openai.AsyncOpenAI, providers: Providers) -> None:
    agent = Agent(OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=gpt)))
    providers.script(
        Refuse(429, retry_after=2.5), Refuse(429, code="insufficient_quota"), Refuse(500), Cut(after=0)
    )
    full, unpaid, broken, cut = [await raised(agent.run("Is it?")) for _ in range(4)]
    assert isinstance(full, ModelHTTPError)
    assert (is_overloaded(full), retry_after(full)) == (True, 2.5)
    assert not is_overloaded(unpaid)
    assert status_of(broken) == 500
    assert isinstance(cut, ModelAPIError)
    assert not never_sent(cut)


async def test_a_provider_that_is_not_there_was_never_asked() -> None:
    with Providers() as gone:
        url, openai_url = gone.url, gone.openai_url
    async with (
        openai.AsyncOpenAI(base_url=openai_url, api_key="sk", max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=url, api_key="sk", max_retries=0) as claude,
        httpx.AsyncClient(base_url=url) as plain,
    ):
        agent = Agent(OpenAIChatModel(GPT, provider=OpenAIProvider(openai_client=gpt)))
        for call in (chat(gpt), message(claude), plain.get("/"), agent.run("Is it?")):
            error = await raised(call)
            assert never_sent(error), error
            assert not is_overloaded(error)
            assert status_of(error) is None


async def test_an_answer_that_is_too_late_may_have_been_paid_for(
    gpt: openai.AsyncOpenAI, providers: Providers
) -> None:
    providers.script(Slow())
    error = await raised(gpt.with_options(timeout=0.1).chat.completions.create(model=GPT, messages=ASK))
    assert isinstance(error, openai.APITimeoutError)
    assert not never_sent(error)


async def test_a_slow_answer_comes_when_it_is_released(gpt: openai.AsyncOpenAI, providers: Providers) -> None:
    providers.script(Slow(Reply("At last.")), model=GPT)
    asked = asyncio.ensure_future(chat(gpt))
    await eventually(lambda: providers.waiting == 1)
    assert not asked.done()
    providers.release()
    assert (await asked).choices[0].message.content == "At last."
