"""Pydantic AI: a model whose requests are calls of the step that makes them. Needs `pydantic-ai-slim`.

    agent = Agent(StepModel("openai:gpt-6.1-sol"), output_type=Verdict)

    @llm_step
    async def judge(text: str) -> Verdict:
        return (await agent.run(text)).output

Without it an agent runs in a step just as well: `baton.record_usage(result)` records what its run used.
"""

import hashlib
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from baton import call_llm, current, once, record_usage, stream
from baton.errors import InvalidOption, MissingExtra, NoWorkflow

try:
    from pydantic_ai import ModelMessagesTypeAdapter, RunContext
    from pydantic_ai.messages import (
        ModelMessage,
        ModelResponse,
        ModelResponseStreamEvent,
        PartDeltaEvent,
        PartStartEvent,
        TextPart,
        TextPartDelta,
    )
    from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.models.wrapper import WrapperModel
    from pydantic_ai.settings import ModelSettings
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("pydantic_ai"):
        raise
    raise MissingExtra(
        "baton.pydantic_ai needs Pydantic AI; install it with: pip install pydantic-ai-slim"
    ) from error

_LONGEST_KEY = 100
# Differ from one attempt to the next, and mean nothing to the model.
_VOLATILE = frozenset({"timestamp", "run_id", "conversation_id"})


class StepModel(WrapperModel):
    """A model of Pydantic AI; in a step, each of its requests is a call as by `baton.call_llm`, with `key` as by `baton.once`.

    So each asks the run's budgets first, is recorded when it is made, also if the agent's run then fails, and captured if the
    run is. Outside of steps it is the model that it wraps. The client's own retries are best turned off, as for any client.

    Args:
        wrapped: A model, or its name, such as `openai:gpt-6.1-sol`.
        key: Store each answer of the model: an attempt that comes to the same request again, after a failure or a crash, gets
            the stored one. Requests are the same if the model and all messages are, times and ids apart. 1 to 100 printable
            characters; None stores nothing. Tools run again, so they should be such that it does not matter.
        streams: Have the model stream, and write its text to `baton.stream` as it comes.

    An agent that itself asks for a stream, by `run_stream` or an event handler, gets the events when the answer is complete.

    Raises:
        InvalidOption: `key` is none.
    """

    def __init__(self, wrapped: Model | str, *, key: str | None = None, streams: bool = False) -> None:
        super().__init__(wrapped)
        if key is not None and not (
            isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY and key.isprintable()
        ):
            raise InvalidOption(
                f"key is {key!r}; it must be 1 to {_LONGEST_KEY} printable characters, or None"
            )
        self._key = key
        self._streams = streams

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask the model."""
        if not _is_in_step():
            return await self.wrapped.request(messages, model_settings, model_request_parameters)
        return await self._call(messages, model_settings, model_request_parameters, None)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Ask the model; in a step, the stream begins when the answer is complete."""
        if not _is_in_step():
            async with self.wrapped.request_stream(
                messages, model_settings, model_request_parameters, run_context
            ) as response:
                yield response
            return
        answer = await self._call(messages, model_settings, model_request_parameters, run_context)
        yield CompletedStreamedResponse(
            answer, model_request_parameters=model_request_parameters, replay_events=True
        )

    async def _call(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None,
    ) -> ModelResponse:
        said: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
        request: dict[str, Any] = {"model": self.model_name, "messages": said}
        most = {**(self.wrapped.settings or {}), **(settings or {})}.get("max_tokens")
        if most is not None:
            request["max_tokens"] = most

        async def ask() -> ModelResponse:
            began = time.monotonic()
            answer = await self._ask(messages, settings, parameters, run_context)
            record_usage(answer, latency=time.monotonic() - began)
            return answer

        async def ask_for_json() -> list[Any]:
            dumped: list[Any] = ModelMessagesTypeAdapter.dump_python([await ask()], mode="json")
            return dumped

        if self._key is None:
            return await call_llm(ask, request=request)
        stored = await once(_key_of(self._key, self.model_id, said), ask_for_json, request=request)
        (answer,) = ModelMessagesTypeAdapter.validate_python(stored)
        assert isinstance(answer, ModelResponse)
        return answer

    async def _ask(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None,
    ) -> ModelResponse:
        if not self._streams:
            return await self.wrapped.request(messages, settings, parameters)
        async with self.wrapped.request_stream(messages, settings, parameters, run_context) as response:
            async for event in response:
                if text := _text_of(event):
                    stream.write(text)
            return response.get()


def _is_in_step() -> bool:
    try:
        current()
    except NoWorkflow:
        return False
    return True


def _key_of(key: str, model: str, messages: list[dict[str, Any]]) -> str:
    """A key for a request: the same in each attempt that comes to it."""
    said = [
        {
            **{name: value for name, value in message.items() if name not in _VOLATILE},
            "parts": [
                {name: value for name, value in part.items() if name not in _VOLATILE}
                for part in message.get("parts", ())
            ],
        }
        for message in messages
    ]
    digest = hashlib.sha256(json.dumps([model, said], sort_keys=True).encode()).hexdigest()
    return f"{key}:{len(messages)}:{digest[:32]}"


def _text_of(event: ModelResponseStreamEvent) -> str | None:
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return None
