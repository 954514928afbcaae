"""Asks a model at an OpenAI-compatible endpoint, whose tokens are streamed as they come.

`BATON_LLM_URL` is the endpoint, `BATON_LLM_MODEL` the model, or several with commas between them; the key is in
`BATON_LLM_KEY`, else in `OPENAI_API_KEY`. Without the first two no model is asked.
"""

import asyncio
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from baton import Usage, once, record_usage, stream

from .answers import MOST_ANSWER, Malformed, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

QUEUE = "llm"
TIMEOUT = 120.0  # seconds without a token


class EndpointError(Exception):
    """What the environment says of the endpoint cannot work, or the endpoint does not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where models are asked, and which. Its `repr` does not have the key."""

    url: str
    models: list[str]
    key: str = field(repr=False)

    @property
    def host(self) -> str:
        """For people: without what the URL may have of a user and a password."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        # Retries are the step's: each is an attempt that is seen, and the wait for one holds no place in the queue.
        return AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=TIMEOUT)


def endpoint(environment: Mapping[str, str] = os.environ) -> Endpoint | None:
    """The endpoint that is configured here; None without one.

    Raises:
        EndpointError: Only one of the variables is set, or it is no URL.
    """
    url = environment.get("BATON_LLM_URL", "").strip()
    named = (name.strip() for name in environment.get("BATON_LLM_MODEL", "").split(","))
    models = list(dict.fromkeys(name for name in named if name))
    if not url and not models:
        return None
    if not url or not models:
        unset, other = (
            ("BATON_LLM_URL", "BATON_LLM_MODEL") if not url else ("BATON_LLM_MODEL", "BATON_LLM_URL")
        )
        raise EndpointError(f"{other} is set and {unset} is not; set both to ask a model, or neither")
    if not _is_url(url):
        raise EndpointError("BATON_LLM_URL must be a URL such as http://localhost:11434/v1")
    # An endpoint without a key takes any; the SDK takes none for a mistake.
    key = environment.get("BATON_LLM_KEY") or environment.get("OPENAI_API_KEY") or "none"
    return Endpoint(url, models, key)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


async def ask[T](request: Request, read: Callable[[str], T], returns: object) -> T:
    """Ask once: what `read` has made of the answer is stored, and a later attempt gets that and asks nobody.

    Raises:
        Malformed: The answer is not what was asked for. It is paid for and not stored, so the next attempt asks again.
        EndpointError: No endpoint is configured in this process, or it cannot be reached, or the connection broke.
        openai.OpenAIError: The endpoint answered, but with an error.
    """
    here = endpoint()
    if here is None:
        raise EndpointError(
            f"no endpoint is configured here to ask {request['model']}; set BATON_LLM_URL and BATON_LLM_MODEL"
        )

    async def call() -> T:
        # Takes a second the first time, in which the event loop has other steps to serve.
        openai = await asyncio.to_thread(importlib.import_module, "openai")
        try:
            return read(await _answer(here, request))
        except openai.APIConnectionError as error:
            # It says "Connection error", and not where to or why.
            raise EndpointError(
                f"no answer from {here.host}, as BATON_LLM_URL says: {error.__cause__ or error}"
            ) from error

    return await once("answer", call, request=request, returns=returns)


async def _answer(here: Endpoint, request: Request) -> str:
    text, ended, used = "", None, None
    async with here.client() as client:
        chunks = await client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        try:
            async for chunk in chunks:
                used = chunk if chunk.usage is not None else used
                for choice in chunk.choices[:1]:
                    ended = choice.finish_reason or ended
                    if token := _storable(choice.delta.content or ""):
                        text += token
                        stream.write(token)
                if len(text) > MOST_ANSWER:
                    raise Malformed(f"the answer is over {MOST_ANSWER:,} characters")
        finally:
            # From here on it is paid for, whatever becomes of it. How much is not known of a stream that was cut.
            record_usage(used if used is not None else Usage(model=request["model"]))
    if ended == "length":
        raise Malformed(f"the answer is cut after {request['max_completion_tokens']:,} tokens")
    return text


def _storable(token: str) -> str:
    """Text without what PostgreSQL cannot hold: NUL, and halves of a character that was cut between two chunks."""
    return token.replace("\0", "").encode(errors="replace").decode()
