"""What answers say was used: real types of the SDKs, their dicts, and what nobody should send. genai-prices reads the same."""

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from anthropic.types import Message, MessageDeltaUsage, RawMessageDeltaEvent, RawMessageStartEvent
from anthropic.types.beta import BetaMessage
from genai_prices.data_snapshot import get_snapshot
from google.genai.types import GenerateContentResponse
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseCompletedEvent
from pydantic_ai.agent import AgentRunResult
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage, RunUsage

from baton._reading import KEYS, read_calls, read_cost, read_usage
from baton._usage import Usage
from baton.errors import InvalidUsage

CHAT_USAGE = {
    "prompt_tokens": 1_000,
    "completion_tokens": 500,
    "total_tokens": 1_500,
    "prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 300, "audio_tokens": 0},
}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-6.1-sol",
    "service_tier": "flex",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}},
    ],
    "usage": CHAT_USAGE,
}
CHUNK = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-6.1-sol",
    "choices": [],
    "usage": CHAT_USAGE,
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-6.1-sol",
    "status": "completed",
    "output": [],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "service_tier": "default",
    "usage": {
        "input_tokens": 1_000,
        "output_tokens": 500,
        "total_tokens": 1_500,
        "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100},
        "output_tokens_details": {"reasoning_tokens": 300},
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [{"type": "text", "text": "Yes."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 1_000,
        "cache_read_input_tokens": 5_000,
        "cache_creation_input_tokens": 600,
        "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 300,
        "output_tokens_details": {"thinking_tokens": 100},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        "service_tier": "standard",
    },
}
CONTENT = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Yes."}]}, "finishReason": "STOP"}],
    "modelVersion": "gemini-4-argon",
    "usageMetadata": {
        "promptTokenCount": 1_000,
        "candidatesTokenCount": 200,
        "thoughtsTokenCount": 300,
        "toolUsePromptTokenCount": 50,
        "cachedContentTokenCount": 400,
        "totalTokenCount": 1_550,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 900},
            {"modality": "AUDIO", "tokenCount": 100},
        ],
    },
}

OF_CHAT = Usage(
    model="gpt-6.1-sol",
    service_tier="flex",
    input_tokens=1_000,
    output_tokens=500,
    cache_read_tokens=400,
    reasoning_tokens=300,
)
OF_RESPONSE = Usage(
    model="gpt-6.1-sol",
    service_tier="default",
    input_tokens=1_000,
    output_tokens=500,
    cache_read_tokens=400,
    cache_write_tokens=100,
    reasoning_tokens=300,
)
OF_MESSAGE = Usage(
    model="claude-opus-5-5",
    service_tier="standard",
    input_tokens=6_600,
    output_tokens=300,
    cache_read_tokens=5_000,
    cache_write_tokens=600,
    reasoning_tokens=100,
    units={"cache_write_5m_tokens": 400, "cache_write_1h_tokens": 200, "web_searches": 2},
)
OF_CONTENT = Usage(
    model="gemini-4-argon",
    input_tokens=1_050,
    output_tokens=500,
    cache_read_tokens=400,
    reasoning_tokens=300,
    units={"input_tool_tokens": 50, "input_text_tokens": 900, "input_audio_tokens": 100},
)


def objects(value: Any) -> Any:
    """A dict as an object with attributes, as litellm's and many others' are."""
    if isinstance(value, Mapping):
        return SimpleNamespace(**{key: objects(inner) for key, inner in value.items()})
    return [objects(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("response", "usage"),
    [
        (ChatCompletion.model_validate(CHAT), OF_CHAT),
        (CHAT, OF_CHAT),
        (objects(CHAT), OF_CHAT),
        (ChatCompletionChunk.model_validate(CHUNK), dataclasses.replace(OF_CHAT, service_tier=None)),
        (Response.model_validate(RESPONSE), OF_RESPONSE),
        (RESPONSE, OF_RESPONSE),
        (
            ResponseCompletedEvent.model_validate(
                {"type": "response.completed", "sequence_number": 9, "response": RESPONSE}
            ),
            OF_RESPONSE,
        ),
        ({"type": "response.completed", "response": RESPONSE}, OF_RESPONSE),
        (Message.model_validate(MESSAGE), OF_MESSAGE),
        (MESSAGE, OF_MESSAGE),
        (objects(MESSAGE), OF_MESSAGE),
        (
            RawMessageStartEvent.model_validate({"type": "message_start", "message": MESSAGE}),
            OF_MESSAGE,
        ),
        (GenerateContentResponse.model_validate(CONTENT), OF_CONTENT),
        (CONTENT, OF_CONTENT),
        (GenerateContentResponse.model_validate(CONTENT).model_dump(), OF_CONTENT),
        (GenerateContentResponse.model_validate(CONTENT).model_dump(by_alias=True), OF_CONTENT),
    ],
)
def test_an_answer_says_the_same_as_an_object_as_a_dict_and_at_the_end_of_a_stream(
    response: object, usage: Usage
) -> None:
    assert read_usage(response) == usage
    assert read_calls(response) == (usage,)


@pytest.mark.parametrize(
    ("response", "usage"), [(CHAT, OF_CHAT), (RESPONSE, OF_RESPONSE), (MESSAGE, OF_MESSAGE)]
)
def test_the_usage_alone_is_enough_for_the_counts(response: dict[str, Any], usage: Usage) -> None:
    alone = read_usage(response["usage"], model="m")
    tier = response["usage"].get("service_tier")
    assert alone == dataclasses.replace(usage, model="m", service_tier=tier)


@pytest.mark.parametrize(
    ("response", "provider", "flavor"),
    [
        (CHAT, "openai", "chat"),
        (RESPONSE, "openai", "responses"),
        (MESSAGE, "anthropic", "default"),
        (CONTENT, "google", "default"),
    ],
)
def test_genai_prices_reads_the_same(response: dict[str, Any], provider: str, flavor: str) -> None:
    reader = next(one for one in get_snapshot().providers if one.id == provider)
    model, theirs = reader.extract_usage(response, api_flavor=flavor)
    ours = read_usage(response)
    names = {
        "input_tokens": ours.input_tokens,
        "output_tokens": ours.output_tokens,
        "cache_read_tokens": ours.cache_read_tokens,
        "cache_write_tokens": ours.cache_write_tokens,
        "output_reasoning_tokens": ours.reasoning_tokens,
        **ours.units,
    }
    assert {name: count for name, count in names.items() if count} == {
        name: count for name, count in vars(theirs).items() if count
    }
    assert model is not None


def test_the_last_part_of_an_anthropic_stream_counts_all_that_came_before_it() -> None:
    usage = MessageDeltaUsage(input_tokens=10, output_tokens=30, cache_read_input_tokens=5)
    event = RawMessageDeltaEvent.model_validate(
        {"type": "message_delta", "delta": {}, "usage": usage.model_dump()}
    )
    assert read_usage(event, asked_for="claude-opus-5-5") == Usage(
        model="claude-opus-5-5", input_tokens=15, output_tokens=30, cache_read_tokens=5
    )


def test_what_anthropic_uses_besides_the_answer_is_counted_and_an_advisor_by_its_own_model() -> None:
    counts = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    answer = BetaMessage.model_validate(
        {
            **MESSAGE,
            "usage": {
                "input_tokens": 10,
                "output_tokens": 20,
                "iterations": [
                    {"type": "compaction", "input_tokens": 3, "output_tokens": 4, **counts},
                    {"type": "message", "input_tokens": 10, "output_tokens": 20, **counts},
                    {
                        "type": "advisor_message",
                        "model": "claude-haiku-5",
                        "input_tokens": 5,
                        "output_tokens": 6,
                        **counts,
                    },
                ],
            },
        }
    )
    calls = read_calls(answer)
    assert [(call.model, call.input_tokens, call.output_tokens) for call in calls] == [
        ("claude-opus-5-5", 10, 20),
        ("claude-opus-5-5", 3, 4),
        ("claude-haiku-5", 5, 6),
    ]
    whole = read_usage(answer)
    assert (whole.model, whole.input_tokens, whole.output_tokens) == (None, 18, 30)


def test_anthropics_fast_mode_is_a_tier_as_it_has_prices_of_its_own() -> None:
    usage = {**MESSAGE["usage"], "speed": "fast"}  # type: ignore[dict-item]
    assert read_usage(Message.model_validate({**MESSAGE, "usage": usage})).service_tier == "fast"


def test_litellm_is_read_with_the_cache_in_the_prompt_and_its_provider() -> None:
    # As of litellm 1.106 for an Anthropic model.
    answer = SimpleNamespace(
        model="claude-opus-5-5",
        _hidden_params={"custom_llm_provider": "anthropic", "response_cost": 0.1},
        usage=SimpleNamespace(
            prompt_tokens=6_600,
            completion_tokens=300,
            total_tokens=6_900,
            prompt_tokens_details=SimpleNamespace(
                cached_tokens=5_000,
                cache_creation_tokens=600,
                cache_creation_token_details=SimpleNamespace(
                    ephemeral_5m_input_tokens=400, ephemeral_1h_input_tokens=200
                ),
            ),
            completion_tokens_details=SimpleNamespace(reasoning_tokens=100),
            cache_creation_input_tokens=600,
            cache_read_input_tokens=5_000,
            server_tool_use=SimpleNamespace(web_search_requests=2),
        ),
    )
    assert read_usage(answer) == dataclasses.replace(OF_MESSAGE, provider="anthropic", service_tier=None)


@pytest.mark.parametrize("total", [1_800, None])
def test_reasoning_that_a_provider_counts_beside_the_output_is_added_to_it(total: int | None) -> None:
    """xAI's way. The total says so; and so does reasoning that is more than all that came out."""
    output = 500 if total else 200
    usage = read_usage(
        {
            "prompt_tokens": 1_000,
            "completion_tokens": output,
            "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": 300},
        }
    )
    assert (usage.output_tokens, usage.reasoning_tokens) == (output + 300, 300)


def test_a_cache_that_is_more_than_the_input_was_counted_beside_it() -> None:
    usage = read_usage(
        {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 90}}
    )
    assert (usage.input_tokens, usage.cache_read_tokens) == (100, 90)


def test_of_embeddings_nothing_comes_out() -> None:
    answer = CreateEmbeddingResponse.model_validate(
        {
            "object": "list",
            "data": [],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )
    assert read_usage(answer) == Usage(model="text-embedding-3-small", input_tokens=8, output_tokens=0)


def test_of_an_answer_of_google_without_candidates_the_total_says_what_came_out() -> None:
    usage = {"promptTokenCount": 7, "totalTokenCount": 7}
    assert read_usage({"usageMetadata": usage}) == Usage(input_tokens=7, output_tokens=0)


# --- what is not known ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        ChatCompletion.model_validate({**CHAT, "usage": None}),
        {**CHAT, "usage": None},
        Response.model_validate({**RESPONSE, "usage": None}),
        {**CHAT, "usage": {}},
        {**CHAT, "usage": {"prompt_tokens": None}},
    ],
)
def test_an_answer_without_usage_is_a_call_of_which_no_count_is_known(response: object) -> None:
    usage = read_usage(response)
    assert usage.model == "gpt-6.1-sol"
    assert usage.input_tokens is None
    assert usage.output_tokens is None


def test_what_a_provider_did_not_say_is_none_and_never_zero() -> None:
    usage = read_usage({"model": "m", "usage": {"prompt_tokens": 10, "completion_tokens": 5}})
    assert usage == Usage(model="m", input_tokens=10, output_tokens=5)
    assert usage.cache_read_tokens is None
    assert usage.reasoning_tokens is None


@pytest.mark.parametrize(
    "count", [-1, 2**63, 10**400, True, "12", 1.5, float("nan"), float("inf"), [], {}, object()]
)
def test_what_is_no_count_is_not_known(count: Any) -> None:
    usage = read_usage(
        {
            "model": "m",
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": count,
                "prompt_tokens_details": {"cached_tokens": count},
                "completion_tokens_details": [count],
            },
        }
    )
    assert usage == Usage(model="m", input_tokens=10)


def test_counts_that_are_too_large_together_are_not_known() -> None:
    most = 2**63 - 1
    usage = read_usage(
        {"model": "m", "usage": {"input_tokens": most, "output_tokens": 1, "cache_read_input_tokens": most}}
    )
    assert usage.input_tokens is None


@pytest.mark.parametrize("name", ["x" * 201, "", "two\nlines", "\x00", 5, ["m"], "\ud800"])
def test_a_name_that_cannot_be_one_is_none(name: Any) -> None:
    assert read_usage({"model": name, "usage": CHAT_USAGE}, asked_for="asked").model == "asked"


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name.startswith("__") else RuntimeError(name)


ENDLESS: dict[str, Any] = {"model": "m"}
ENDLESS["response"] = ENDLESS


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        5,
        [],
        {},
        {"a": 1},
        Hostile(),
        MagicMock(),
        ENDLESS,
        {"model": "m"},
        b"",
        CHAT["choices"],
    ],
)
def test_where_nothing_can_be_read_it_says_what_can(value: object) -> None:
    with pytest.raises(InvalidUsage, match=r"cannot be read from an? \w+|from None"):
        read_usage(value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                sorted(
                    {*CHAT_USAGE, *RESPONSE["usage"], *MESSAGE["usage"], *CONTENT["usageMetadata"]}  # type: ignore[misc]
                    | {"usage", "usage_metadata", "response", "model", "iterations", "details", "requests"}
                    | {"cached_tokens", "reasoning_tokens", "audio_tokens", "modality", "tokenCount"}
                )
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(response=junk)
def test_whatever_comes_it_is_a_usage_that_can_be_stored_or_invalid(response: Any) -> None:
    try:
        calls = read_calls(response)
    except InvalidUsage:
        return
    assert calls
    for usage in calls:
        assert (usage.cache_read_tokens or 0) + (usage.cache_write_tokens or 0) <= (usage.input_tokens or 0)
        assert (usage.reasoning_tokens or 0) <= (usage.output_tokens or 0)


# --- of the caller's own --------------------------------------------------------------------------


def test_a_usage_is_taken_as_it_is_and_what_is_said_beside_it_counts() -> None:
    usage = Usage(model="m", input_tokens=1, output_tokens=2, latency=0.5, units={"web_searches": 1})
    assert read_usage(usage) == usage
    assert read_usage(usage, model="other", provider="p", latency=2) == dataclasses.replace(
        usage, model="other", provider="p", latency=2.0
    )
    assert read_usage(usage, asked_for="asked").model == "m"


def test_a_dict_of_ones_own_has_these_keys() -> None:
    given = {
        "model": "m",
        "provider": "p",
        "input_tokens": 100,
        "output_tokens": 50,
        "cache_read_tokens": 40,
        "cache_write_tokens": 10,
        "reasoning_tokens": 5,
        "latency_ms": 250,
        "cost_usd": "0.0125",
    }
    assert given.keys() == KEYS
    assert read_usage(given) == Usage(
        model="m",
        provider="p",
        input_tokens=100,
        output_tokens=50,
        cache_read_tokens=40,
        cache_write_tokens=10,
        reasoning_tokens=5,
        latency=0.25,
    )
    assert read_cost(given) == Decimal("0.0125")
    assert read_usage({"input_tokens": 1, "latency_ms": None, "more": "of no matter"}) == Usage(
        input_tokens=1
    )


@pytest.mark.parametrize(
    "given",
    [
        {"input_tokens": -1},
        {"input_tokens": "12"},
        {"input_tokens": 1.0},
        {"input_tokens": 10**5_000},
        {"input_tokens": 10, "cache_read_tokens": 11},
        {"input_tokens": 10, "latency_ms": -1},
        {"input_tokens": 10, "latency_ms": float("nan")},
        {"input_tokens": 10, "model": "two\nlines"},
        {"output_tokens": 10, "reasoning_tokens": 11},
        Usage(model="\x00"),
        Usage(latency=float("inf")),
        Usage(units={"": 1}),
    ],
)
def test_a_mistake_of_ones_own_is_said(given: object) -> None:
    with pytest.raises(InvalidUsage):
        read_usage(given)


@pytest.mark.parametrize(
    "cost",
    [
        float("nan"),
        float("inf"),
        -0.5,
        -1,
        10**120,
        "x",
        "",
        "NaN",
        "Infinity",
        True,
        [],
        "1e999",
        "1e-50",
        Decimal("-0.1"),
        "1" * 200,
    ],
)
def test_a_cost_that_is_none_is_said(cost: Any) -> None:
    with pytest.raises(InvalidUsage, match="a cost of"):
        read_cost({"input_tokens": 1, "cost_usd": cost})


@pytest.mark.parametrize("cost", [Decimal("0.1"), 0, 3, "0.000000001", "0", 0.5])
def test_a_cost_stays_exact(cost: Any) -> None:
    assert read_cost({"cost_usd": cost}) == Decimal(cost)
    assert read_cost({"cost_usd": 0.1}) == Decimal("0.1")
    assert read_cost({"input_tokens": 1}) is None
    assert read_cost(CHAT) is None


# --- agents ---------------------------------------------------------------------------------------


def answer(model: str, **usage: int) -> ModelResponse:
    return ModelResponse(
        parts=[TextPart("Yes.")], model_name=model, provider_name="openai", usage=RequestUsage(**usage)
    )


def run(*answers: ModelResponse, usage: RunUsage | None = None) -> AgentRunResult[str]:
    total = usage or RunUsage(requests=len(answers))
    if usage is None:
        for one in answers:
            total += one.usage
    result = AgentRunResult("Yes.")
    result._state.message_history = [ModelRequest.user_text_prompt("Is it?"), *answers]
    result._state.usage = total
    return result


def test_an_agents_run_is_its_calls_each_by_its_model() -> None:
    result = run(
        answer("gpt-6.1-sol", input_tokens=100, output_tokens=10, cache_read_tokens=50),
        answer("gpt-6.1-mini", input_tokens=200, output_tokens=20, output_reasoning_tokens=5),
    )
    first, second = read_calls(result, latency=3.0)
    assert first == Usage(
        model="gpt-6.1-sol",
        provider="openai",
        input_tokens=100,
        output_tokens=10,
        cache_read_tokens=50,
        cache_write_tokens=0,
        reasoning_tokens=0,
    )
    assert (second.model, second.reasoning_tokens, second.latency) == ("gpt-6.1-mini", 5, None)
    whole = read_usage(result, latency=3.0)
    assert (whole.model, whole.provider, whole.input_tokens, whole.output_tokens, whole.latency) == (
        None,
        "openai",
        300,
        30,
        3.0,
    )


def test_what_a_run_used_beyond_the_answers_that_it_took_is_counted() -> None:
    taken = answer("gpt-6.1-sol", input_tokens=100, output_tokens=10)
    result = run(taken, usage=RunUsage(requests=1, input_tokens=150, output_tokens=12))
    assert [(call.model, call.input_tokens, call.output_tokens) for call in read_calls(result)] == [
        ("gpt-6.1-sol", 100, 10),
        (None, 50, 2),
    ]


def test_a_usage_that_other_runs_share_is_not_counted_twice() -> None:
    taken = answer("gpt-6.1-sol", input_tokens=100, output_tokens=10)
    result = run(taken, usage=RunUsage(requests=4, input_tokens=900, output_tokens=90))
    assert [call.input_tokens for call in read_calls(result)] == [100]


def test_a_request_that_was_not_measured_is_a_call_without_counts() -> None:
    silent = answer("gpt-6.1-sol", unmeasured_requests=1)
    known = answer("gpt-6.1-sol", input_tokens=100, output_tokens=10)
    assert [call.input_tokens for call in read_calls(run(known, silent))] == [100, None]
    total = RunUsage(requests=2, input_tokens=100, output_tokens=10, unmeasured_requests=1)
    assert [call.input_tokens for call in read_calls(total)] == [100, None]
    assert read_usage(silent).input_tokens is None
    assert read_usage(silent).model == "gpt-6.1-sol"


def test_older_versions_have_the_usage_as_a_method() -> None:
    usage = SimpleNamespace(
        requests=1, input_tokens=5, output_tokens=3, cache_read_tokens=0, details={"reasoning_tokens": 2}
    )
    assert read_usage(SimpleNamespace(usage=lambda: usage)).reasoning_tokens == 2


def test_an_agents_usage_as_a_dict_is_read_too() -> None:
    usage = RunUsage(requests=1, input_tokens=100, output_tokens=10, input_audio_tokens=7)
    usage.web_searches = 2  # type: ignore[attr-defined]
    assert read_usage(usage).units == {"input_audio_tokens": 7, "web_searches": 2}
    assert read_usage(dataclasses.asdict(usage)).units == {"input_audio_tokens": 7}
