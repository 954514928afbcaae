"""Providers of models, as far as their clients can tell: one HTTP server on loopback with the wire formats of three of them.

    with Providers() as providers:
        client = AsyncOpenAI(base_url=providers.openai_url, api_key="sk-test", max_retries=0)
        providers.script(Refuse(429, retry_after=0.2), Reply("Yes."))

- OpenAI: `/v1/chat/completions` and `/v1/responses`, both streamed as well
- Anthropic: `/v1/messages`, streamed as well
- Google: `/v1beta/models/{model}:generateContent`, streamed as well

It runs in a thread with an event loop of its own, so tests of any kind and other processes can ask it. Each request takes
the next behaviour of the script for its model, else of that for all models, else the default. Needs no package.
"""

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args:
        text: What the model says. Streamed, a word at a time.
        tool: The name of a tool that it wants called instead, and the arguments for it.
        input_tokens, output_tokens, cached_tokens, written_tokens, reasoning_tokens: Counted as `baton.Usage` does it; each
            provider says it in its own way. Those that are preset cost $0.00624 of `gpt-6.1-sol`.
        usage: False for an answer that does not say what was used.
        model: What the answer calls the model; None for what the request did.
        tier: What the answer calls its service tier.
    """

    text: str = "Yes, it is."
    tool: tuple[str, Mapping[str, Any]] | None = None
    input_tokens: int = 1_000
    output_tokens: int = 500
    cached_tokens: int = 400
    written_tokens: int = 0
    reasoning_tokens: int = 300
    usage: bool = True
    model: str | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error, with the body that the provider gives it. 429 and 503 say when to come back if `retry_after` does.

    Args:
        code: What the provider calls it; None for what fits the status.
        retry_after: Seconds, or an HTTP date.
        headers: Others.
    """

    status: int
    retry_after: float | str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Malformed:
    """200, and a body that is no JSON."""

    body: bytes = b'{"id": "1", "choices": [{"mess'


@dataclass(frozen=True, slots=True)
class Slow:
    """Nothing comes until `Providers.release`, or until the client leaves. Streamed, it stops after `after` parts."""

    reply: Reply = field(default_factory=Reply)
    after: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends in the middle: of the body, or after so many parts of a stream; of 0, before an answer."""

    reply: Reply = field(default_factory=Reply)
    after: int = 1


@dataclass(frozen=True, slots=True)
class FailLate:
    """A stream that begins well and then says that there was an error."""

    code: str = "overloaded_error"
    reply: Reply = field(default_factory=Reply)
    after: int = 2


Behaviour = Reply | Refuse | Malformed | Slow | Cut | FailLate


@dataclass(frozen=True, slots=True)
class Request:
    """A request that came.

    Attributes:
        api: chat, responses, messages or google.
        headers: Names in lower case.
    """

    api: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    model: str
    streamed: bool

    @property
    def text(self) -> str:
        """All that was said to the model."""
        return "\n".join(
            _texts(
                [self.body.get(name) for name in ("system", "instructions", "messages", "input", "contents")]
            )
        )


class Providers:
    """The server, from `with` to its end.

    Args:
        default: What a request gets that nothing was scripted for: a behaviour, or what chooses one by the request.
    """

    def __init__(self, default: Behaviour | Callable[[Request], Behaviour] | None = None) -> None:
        self.default = Reply() if default is None else default
        self.requests: list[Request] = []
        self._scripts: defaultdict[str | None, deque[Behaviour]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self._waiting = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="providers", daemon=True)
        self._started = threading.Event()
        self._port = 0

    @property
    def url(self) -> str:
        """For clients of Anthropic and Google, which add the version themselves."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """For clients of OpenAI."""
        return f"{self.url}/v1"

    @property
    def waiting(self) -> int:
        """How many slow answers are held back now."""
        return self._waiting

    def script(self, *behaviours: Behaviour, model: str | None = None) -> None:
        """What the next requests get, one after the other; of one model, or of all."""
        with self._lock:
            self._scripts[model].extend(behaviours)

    def release(self) -> None:
        """Let all slow answers go, those to come as well."""
        self._loop.call_soon_threadsafe(self._released.set)

    def asked(self, model: str) -> list[Request]:
        """The requests for a model."""
        return [request for request in self.requests if request.model == model]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not stop"

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request. False to hang up."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        path = first.split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = _request(path, headers, body)
        if request is None:
            writer.write(_response(404, {"error": {"message": f"no such path: {path}"}}))
            return True
        self.requests.append(request)
        match behaviour := self._next(request):
            case Refuse():
                body = _error(request.api, behaviour.status, behaviour.code)
                more = dict(behaviour.headers)
                if behaviour.retry_after is not None:
                    more["retry-after"] = str(behaviour.retry_after)
                writer.write(_response(behaviour.status, body, more))
            case Malformed():
                writer.write(_head(200, length=len(behaviour.body)) + behaviour.body)
            case Cut(after=0):
                return False
            case Cut(reply=reply) if not request.streamed:
                whole = _response(200, _whole(request, reply))
                writer.write(whole[: len(whole) - 20])
                await writer.drain()
                return False
            case _ if request.streamed:
                return await self._stream(request, behaviour, reader, writer)
            case Slow(reply=reply):
                if not await self._hold(reader):
                    return False
                writer.write(_response(200, _whole(request, reply)))
            case Reply():
                writer.write(_response(200, _whole(request, behaviour)))
            case _:
                writer.write(_response(500, {"error": {"message": f"only of a stream: {behaviour}"}}))
        await writer.drain()
        return True

    async def _stream(
        self,
        request: Request,
        behaviour: Behaviour,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        assert isinstance(behaviour, (Reply, Slow, Cut, FailLate))
        reply = behaviour if isinstance(behaviour, Reply) else behaviour.reply
        writer.write(_head(200, kind="text/event-stream"))
        for number, part in enumerate(_STREAMS[request.api](request, reply)):
            if not isinstance(behaviour, Reply) and number == behaviour.after:
                await writer.drain()
                if isinstance(behaviour, Slow):
                    if not await self._hold(reader):
                        return False
                elif isinstance(behaviour, FailLate):
                    writer.write(_chunk(_late_error(request.api, behaviour.code)))
                    break
                else:
                    return False
            writer.write(_chunk(part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _hold(self, reader: asyncio.StreamReader) -> bool:
        """Until released; False if the client leaves before."""
        self._waiting += 1
        released = asyncio.ensure_future(self._released.wait())
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([released, left], return_when=asyncio.FIRST_COMPLETED)
            return released.done()
        finally:
            self._waiting -= 1
            for task in (released, left):
                task.cancel()
            await asyncio.gather(released, left, return_exceptions=True)

    def _next(self, request: Request) -> Behaviour:
        with self._lock:
            for script in (self._scripts[request.model], self._scripts[None]):
                if script:
                    return script.popleft()
        return self.default(request) if callable(self.default) else self.default


# --- requests -------------------------------------------------------------------------------------


def _request(path: str, headers: Mapping[str, str], body: bytes) -> Request | None:
    bare = path.partition("?")[0]
    apis = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/messages": "messages"}
    said = json.loads(body or b"{}")
    if bare in apis:
        return Request(apis[bare], path, headers, said, said.get("model", ""), bool(said.get("stream")))
    model, _, method = bare.rpartition("/models/")[2].partition(":")
    if method in ("generateContent", "streamGenerateContent"):
        return Request("google", path, headers, said, model, method.startswith("stream"))
    return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for name in ("text", "content", "parts"):
            yield from _texts(value.get(name))


# --- HTTP -----------------------------------------------------------------------------------------


def _head(
    status: int,
    *,
    kind: str = "application/json",
    length: int | None = None,
    more: Mapping[str, str] | None = None,
) -> bytes:
    size = {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
    headers = {"content-type": kind, "x-request-id": "req_1", "request-id": "req_1", **size, **(more or {})}
    lines = [f"HTTP/1.1 {status} As Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _response(status: int, body: object, more: Mapping[str, str] | None = None) -> bytes:
    text = json.dumps(body).encode()
    return _head(status, length=len(text), more=more) + text


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


def _event(data: Mapping[str, Any], *, named: bool) -> bytes:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


# --- errors ---------------------------------------------------------------------------------------

_OPENAI_CODES = {400: "invalid_request_error", 401: "invalid_api_key", 429: "rate_limit_exceeded"}
_ANTHROPIC_CODES = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GOOGLE_CODES = {400: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


def _error(api: str, status: int, code: str | None) -> dict[str, Any]:
    said = f"as scripted: {status}"
    if api == "messages":
        kind = code or _ANTHROPIC_CODES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": said}, "request_id": "req_1"}
    if api == "google":
        return {
            "error": {
                "code": status,
                "status": code or _GOOGLE_CODES.get(status, "INTERNAL"),
                "message": said,
            }
        }
    kind = code or _OPENAI_CODES.get(status, "server_error")
    return {"error": {"message": said, "type": kind, "code": kind, "param": None}}


def _late_error(api: str, code: str) -> bytes:
    if api == "messages":
        return _event(_error(api, 529, code), named=True)
    if api == "responses":
        event = {
            "type": "error",
            "code": code,
            "message": "as scripted",
            "param": None,
            "sequence_number": 99,
        }
        return _event(event, named=True)
    return _event(_error(api, 500, code), named=False)


# --- answers --------------------------------------------------------------------------------------


def _whole(request: Request, reply: Reply) -> dict[str, Any]:
    return _WHOLES[request.api](request, reply)


def _words(reply: Reply) -> list[str]:
    """Parts that make the text when they are put together."""
    return [word if number == 0 else f" {word}" for number, word in enumerate(reply.text.split(" "))]


def _chat_usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": reply.cached_tokens,
            "cache_write_tokens": reply.written_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens, "audio_tokens": 0},
    }


def _chat(request: Request, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.tool is not None:
        message |= {"content": None, "tool_calls": [_chat_call(reply.tool)]}
    finish = "stop" if reply.tool is None else "tool_calls"
    answer = {
        **_chat_base(request, reply, "chat.completion"),
        "choices": [{"index": 0, "finish_reason": finish, "message": message, "logprobs": None}],
    }
    return {**answer, "usage": _chat_usage(reply)} if reply.usage else answer


def _chat_call(tool: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    called = {"name": tool[0], "arguments": json.dumps(tool[1])}
    return {"id": "call_1", "type": "function", "function": called}


def _chat_base(request: Request, reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1_790_000_000,
        "model": reply.model or request.model,
        "service_tier": reply.tier or "default",
    }


def _chat_stream(request: Request, reply: Reply) -> Iterator[bytes]:
    counted = bool((request.body.get("stream_options") or {}).get("include_usage"))
    base: dict[str, Any] = _chat_base(request, reply, "chat.completion.chunk")
    if counted:
        base["usage"] = None

    def part(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**base, "choices": [choice]}, named=False)

    if reply.tool is None:
        yield part({"role": "assistant", "content": ""})
        for word in _words(reply):
            yield part({"content": word})
    else:
        yield part(
            {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_chat_call(reply.tool)}]}
        )
    yield part({}, "stop" if reply.tool is None else "tool_calls")
    if counted and reply.usage:
        yield _event({**base, "choices": [], "usage": _chat_usage(reply)}, named=False)
    yield b"data: [DONE]\n\n"


def _responses(request: Request, reply: Reply, status: str = "completed") -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "input_tokens_details": {
            "cached_tokens": reply.cached_tokens,
            "cache_write_tokens": reply.written_tokens,
        },
        "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": reply.model or request.model,
        "output": [_responses_item(reply, done=True)] if done else [],
        "parallel_tool_calls": True,
        "service_tier": reply.tier or "default",
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done and reply.usage else None,
    }


def _responses_item(reply: Reply, *, done: bool) -> dict[str, Any]:
    if reply.tool is not None:
        name, arguments = reply.tool
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name}
        said = json.dumps(arguments) if done else ""
        return {**call, "arguments": said, "status": "completed" if done else "in_progress"}
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed" if done else "in_progress",
        "content": [_responses_text(reply.text)] if done else [],
    }


def _responses_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _responses_stream(request: Request, reply: Reply) -> Iterator[bytes]:
    said: list[dict[str, Any]]
    if reply.tool is None:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        said = [
            {"type": "response.content_part.added", **place, "part": _responses_text("")},
            *(
                {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
                for word in _words(reply)
            ),
            {"type": "response.output_text.done", **place, "text": reply.text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": _responses_text(reply.text)},
        ]
    else:
        place, arguments = {"item_id": "fc_1", "output_index": 0}, json.dumps(reply.tool[1])
        said = [
            {"type": "response.function_call_arguments.delta", **place, "delta": arguments},
            {
                "type": "response.function_call_arguments.done",
                **place,
                "name": reply.tool[0],
                "arguments": arguments,
            },
        ]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _responses(request, reply, "in_progress")},
        {"type": "response.in_progress", "response": _responses(request, reply, "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": _responses_item(reply, done=False)},
        *said,
        {"type": "response.output_item.done", "output_index": 0, "item": _responses_item(reply, done=True)},
        {"type": "response.completed", "response": _responses(request, reply)},
    ]
    for number, event in enumerate(events):
        yield _event({**event, "sequence_number": number}, named=True)


def _anthropic_usage(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.input_tokens - reply.cached_tokens - reply.written_tokens,
        "cache_read_input_tokens": reply.cached_tokens,
        "cache_creation_input_tokens": reply.written_tokens,
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.reasoning_tokens},
        "service_tier": reply.tier or "standard",
    }


def _messages(request: Request, reply: Reply) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "text", "text": reply.text, "citations": None}
    if reply.tool is not None:
        content = {"type": "tool_use", "id": "toolu_1", "name": reply.tool[0], "input": dict(reply.tool[1])}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": reply.model or request.model,
        "content": [content],
        "stop_reason": "end_turn" if reply.tool is None else "tool_use",
        "stop_sequence": None,
        "usage": _anthropic_usage(reply) if reply.usage else None,
    }


def _messages_stream(request: Request, reply: Reply) -> Iterator[bytes]:
    first = {**_anthropic_usage(reply), "output_tokens": 1, "output_tokens_details": None}
    whole = _messages(request, reply)
    message = {**whole, "content": [], "stop_reason": None, "usage": first}
    block: dict[str, Any] = {"type": "text", "text": ""}
    deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": word} for word in _words(reply)]
    if reply.tool is not None:
        block = {**whole["content"][0], "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": json.dumps(reply.tool[1])}]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": _anthropic_usage(reply),
        },
        {"type": "message_stop"},
    ]
    for event in events:
        yield _event(event, named=True)


def _google(request: Request, reply: Reply) -> dict[str, Any]:
    part: dict[str, Any] = {"text": reply.text}
    if reply.tool is not None:
        part = {"functionCall": {"name": reply.tool[0], "args": dict(reply.tool[1])}}
    answer: dict[str, Any] = {
        "candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [part]}}],
        "modelVersion": reply.model or request.model,
        "responseId": "resp_1",
    }
    if reply.usage:
        answer["usageMetadata"] = {
            "promptTokenCount": reply.input_tokens,
            "cachedContentTokenCount": reply.cached_tokens,
            "candidatesTokenCount": reply.output_tokens - reply.reasoning_tokens,
            "thoughtsTokenCount": reply.reasoning_tokens,
            "totalTokenCount": reply.input_tokens + reply.output_tokens,
        }
    return answer


def _google_stream(request: Request, reply: Reply) -> Iterator[bytes]:
    words = _words(reply) if reply.tool is None else [""]
    for number, word in enumerate(words):
        last = number == len(words) - 1
        yield _event(_google(request, replace(reply, text=word, usage=reply.usage and last)), named=False)


_WHOLES: dict[str, Callable[[Request, Reply], dict[str, Any]]] = {
    "chat": _chat,
    "responses": _responses,
    "messages": _messages,
    "google": _google,
}
_STREAMS: dict[str, Callable[[Request, Reply], Iterator[bytes]]] = {
    "chat": _chat_stream,
    "responses": _responses_stream,
    "messages": _messages_stream,
    "google": _google_stream,
}
