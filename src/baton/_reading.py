"""Reads what a call of a model used from what its provider answered: OpenAI, Anthropic, Google, litellm, Pydantic AI. Pure.

By the names of fields alone, in objects and dicts alike; no package of a provider is imported. What comes from a provider is
not trusted: what is no count, is negative, or is larger than the database holds, is not known. What an answer does not say is
None.

The providers count the same thing in different ways. Here `Usage`'s way is the only one: the whole, and parts of it.

- Anthropic's `input_tokens` leave out what a cache held or took: it is added.
- Google's `candidates_token_count` leaves out the thoughts, and `prompt_token_count` what tools gave: they are added.
- OpenAI's `completion_tokens` have the reasoning in them; those of xAI and of Google behind OpenAI's names do not. The total
  tells them apart.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import Any, Final

from baton import _dollars
from baton._usage import Usage
from baton.errors import InvalidOption, InvalidUsage

_MOST = 2**63 - 1
_LONGEST_NAME = 200
# An answer holds its usage at most this far down: an event, its response, the usage.
_DEPTH = 4
# Of a list from a provider, and of an agent's messages, no more than this is looked at.
_LONGEST_LIST = 64
_MOST_CALLS = 10_000

KEYS: Final = frozenset(
    {
        "model",
        "provider",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "latency_ms",
        "cost_usd",
    }
)
"""What a dict under `llm_usage` may have."""

# Where an answer has its usage, and where an event of a stream has its answer.
_USAGE = ("usage", "usage_metadata", "usageMetadata")
_ANSWERS = ("response", "message")
# Fields by which a usage is known. Those of Google have two spellings, the SDK's and the wire's.
_CHAT = ("prompt_tokens", "completion_tokens")
_GOOGLE = (
    "prompt_token_count",
    "promptTokenCount",
    "candidates_token_count",
    "candidatesTokenCount",
    "total_token_count",
    "totalTokenCount",
)
_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
_PLAIN = ("input_tokens", "output_tokens")
_ANTHROPIC = ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use")

_OF_CALLER = ("cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "latency_ms", "cost_usd")
_OF_PYDANTIC_AI = ("details", "requests")

# What genai-prices calls the units that have prices of their own, and that Pydantic AI keeps under the same names.
_UNITS = (
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_audio_read_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "input_video_tokens",
    "output_audio_tokens",
    "output_image_tokens",
    "output_video_tokens",
    "web_searches",
    "code_executions",
)
_MODALITIES = {"TEXT": "text", "AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}


def read_usage(
    response: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    latency: float | None = None,
    asked_for: str | None = None,
) -> Usage:
    """What a response, or a part of one, says was used. Of an agent's run it is the sum; see `read_calls`.

    Args:
        response: An answer of a provider's SDK or its JSON as a dict, its usage alone, an event of a stream that has a usage,
            a result of a Pydantic AI agent, a `Usage`, or a dict with `KEYS`.
        model: Instead of what the response says.
        provider: Instead of what the response says.
        latency: Seconds that the call took; instead of what the response says.
        asked_for: The model of the request, for responses that name none.

    Returns:
        The usage. An answer that could have one and has none, as of a stream whose last part never came, comes to a usage of
        which no count is known.

    Raises:
        InvalidUsage: Nothing of this kind can be read from it, or a `Usage` or dict of the caller's own has a count that can
            not be.
    """
    calls = read_calls(response, model=model, provider=provider, latency=latency, asked_for=asked_for)
    return calls[0] if len(calls) == 1 else replace(_summed(calls), latency=latency)


def read_calls(
    response: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    latency: float | None = None,
    asked_for: str | None = None,
) -> tuple[Usage, ...]:
    """The same, call by call: an agent's run is several, each with a price of its own. Of all else it is one.

    Of an agent's run they are those of its new messages. What its usage has beyond these, as of answers that the agent did
    not take, is one more, of no known model. Not so where the usage is shared with other runs, which are read on their own.
    For a call of which its provider said nothing there is a usage without counts, so that totals are seen to be lower bounds.

    Raises:
        InvalidUsage: As `read_usage`.
    """
    found, answers = _usage_in(response)
    if isinstance(found, Usage):
        calls = [_checked(found)]
    else:
        whole = _read(found, answers)
        calls = [_read(_get(message, "usage"), [message]) for message in _model_responses(response)]
        if not calls:
            calls = [whole, *_aside(found, answers), *[Usage()] * _unmeasured(found, whole)]
        elif (rest := _rest(whole, calls)) is not None and _count(found, "requests") == len(calls):
            calls.append(rest)
    # The latency of a run is that of all of its calls, and of none of them.
    return tuple(
        _named(usage, model, provider, latency if len(calls) == 1 else None, asked_for) for usage in calls
    )


def read_cost(response: object) -> Decimal | None:
    """What the caller says a call cost: `cost_usd` of a dict with `KEYS`. None if that is not there, or None.

    Raises:
        InvalidUsage: It is no amount from 0 up.
    """
    cost = response.get("cost_usd") if isinstance(response, Mapping) else None
    return None if cost is None else checked_cost(cost)


def checked_cost(cost: object) -> Decimal:
    """A cost in dollars, from a Decimal, a whole number, a text, or a float, which is what it is written as: 0.1 is 0.1.

    Raises:
        InvalidUsage: It is no amount from 0 up.
    """
    try:
        return _dollars.exact("cost", cost, floats=True)
    except InvalidOption:
        raise InvalidUsage(
            f"a cost of {str(cost)[:80]!r} cannot be; give dollars from 0 up as a Decimal, a number or a text such as "
            "'0.0125', with 40 digits at most before the point and after it"
        ) from None


# --- finding it -----------------------------------------------------------------------------------


def _usage_in(response: object) -> tuple[object, list[object]]:
    """The usage in a response, and the answers around it, the innermost first, which may name the model."""
    answers: list[object] = []
    here = response
    for _ in range(_DEPTH):
        if isinstance(here, Usage) or _has_counts(here):
            return here, answers
        answers.insert(0, here)
        usage = next((found for name in _USAGE if (found := _get(here, name)) is not None), None)
        # A method in older versions of Pydantic AI. In newer ones it can be called as well, and need not be.
        if callable(usage) and not _has_counts(usage):
            usage = _called(usage)
        if usage is not None:
            here = usage
            continue
        inside = next((found for name in _ANSWERS if (found := _get(here, name)) is not None), None)
        if inside is None or isinstance(inside, str) or callable(inside):
            break
        here = inside
    # An answer that has a place for its usage, and nothing in it.
    for answer in answers:
        if any(_has(answer, name) for name in _USAGE) and isinstance(_name_of_model(answer), str):
            return None, [answer]
    raise InvalidUsage(
        f"what a model used cannot be read from {_kind(response)}; give a response of OpenAI, Anthropic, Google, litellm or "
        "Pydantic AI, its usage, a baton.Usage, or a dict with input_tokens and output_tokens"
    )


def _has_counts(value: object) -> bool:
    return any(_count(value, name) is not None for name in (*_CHAT, *_GOOGLE, *_PLAIN)) or _is_of_caller(
        value
    )


def _is_of_caller(value: object) -> bool:
    """Whether a value is a dict with `KEYS`. What Pydantic AI's usage comes to as a dict has some of them, and others."""
    if not isinstance(value, Mapping) or any(name in value for name in (*_USAGE, *_OF_PYDANTIC_AI)):
        return False
    return any(name in value for name in _OF_CALLER) or (
        value.keys() <= KEYS and any(name in value for name in _PLAIN)
    )


def _model_responses(result: object) -> list[object]:
    """The answers of models in an agent's run."""
    for name in ("new_messages", "messages"):
        messages = _get(result, name)
        if callable(messages):
            messages = _called(messages)
        if isinstance(messages, list) and _has(result, "usage"):
            return [
                message
                for message in messages[:_MOST_CALLS]
                if _get(message, "kind") == "response" and _has_counts(_get(message, "usage"))
            ]
    return []


def _aside(usage: object, answers: Sequence[object]) -> list[Usage]:
    """What Anthropic used besides the answer, and does not count in it: to make its context shorter, to ask an advisor."""
    iterations = _get(usage, "iterations")
    if not isinstance(iterations, list):
        return []
    return [
        _read(iteration, [iteration, *answers])
        for iteration in iterations[:_LONGEST_LIST]
        if _get(iteration, "type") in ("compaction", "advisor_message") and _has_counts(iteration)
    ]


def _unmeasured(usage: object, whole: Usage) -> int:
    """How many calls of an agent's run said nothing, besides those that the whole is known of."""
    if whole.input_tokens is None and whole.output_tokens is None:
        return 0
    requests, unmeasured = _count(usage, "requests") or 0, _count(usage, "unmeasured_requests") or 0
    return min(unmeasured, requests, _MOST_CALLS)


def _rest(whole: Usage, calls: Sequence[Usage]) -> Usage | None:
    """What a run's usage has beyond its calls, None for nothing."""
    told = _summed(calls)
    left: dict[str, Any] = {
        name: max(0, (getattr(whole, name) or 0) - (getattr(told, name) or 0)) for name in _COUNTS
    }
    if not left["input_tokens"] and not left["output_tokens"]:
        return None
    cached = left["cache_read_tokens"] + left["cache_write_tokens"]
    if cached > left["input_tokens"] or left["reasoning_tokens"] > left["output_tokens"]:
        left = {name: left[name] for name in ("input_tokens", "output_tokens")}
    return Usage(**left)


def _summed(calls: Sequence[Usage]) -> Usage:
    """Calls as one; a name is kept if all of them have it."""
    units: dict[str, int] = {}
    for usage in calls:
        for name, count in usage.units.items():
            units[name] = units.get(name, 0) + count
    names: dict[str, Any] = {
        name: values.pop() if len(values := {getattr(usage, name) for usage in calls}) == 1 else None
        for name in ("model", "provider", "service_tier")
    }
    counts: dict[str, Any] = {name: _sum(*(getattr(usage, name) for usage in calls)) for name in _COUNTS}
    return Usage(**counts, **names, units=units)


# --- reading it -----------------------------------------------------------------------------------


def _read(usage: object, answers: list[object]) -> Usage:
    """A usage by its fields; the answers around it say which model it was."""
    if not answers and isinstance(usage, Mapping) and _is_of_caller(usage):
        return _of_caller(usage)
    if any(_count(usage, name) is not None for name in _CHAT):
        counts = _of_chat(usage)
    elif any(_count(usage, name) is not None for name in _GOOGLE):
        counts = _of_google(usage)
    elif any(_has(usage, name) for name in ("cache_read_tokens", *_OF_PYDANTIC_AI)):
        counts = _of_pydantic_ai(usage)
    elif any(_has(usage, name) for name in _ANTHROPIC):
        counts = _of_anthropic(usage)
    else:
        counts = _of_responses(usage)
    sources = [*answers, usage]
    return Usage(
        **_fitted(**counts),
        model=_first(_name_of_model, sources),
        provider=_first(_name_of_provider, sources),
        service_tier="fast" if _get(usage, "speed") == "fast" else _first(_tier, sources),
    )


def _of_caller(usage: Mapping[Any, Any]) -> Usage:
    """A dict of the caller's own. What is wrong in it is a mistake that can be mended, so it is said."""
    latency = usage.get("latency_ms")
    if latency is not None:
        latency = _seconds(latency, "latency_ms") / 1_000
    given: dict[str, Any] = {name: usage.get(name) for name in (*_COUNTS, "model", "provider")}
    return _checked(Usage(**given, latency=latency))


def _checked(usage: Usage) -> Usage:
    """A usage that the caller made, with names and a time that the database can hold."""
    for what in ("model", "provider", "service_tier"):
        _short(getattr(usage, what), what)
    for unit in usage.units:
        _short(unit, "the name of a unit")
    if usage.latency is not None:
        _seconds(usage.latency, "latency")
    return usage


def _of_chat(usage: object) -> dict[str, Any]:
    """OpenAI's chat, and all that speak its language, litellm among them."""
    inputs, outputs = _get(usage, "prompt_tokens_details"), _get(usage, "completion_tokens_details")
    prompt, completion, total = (
        _count(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    if completion is None and prompt == total:
        # Embeddings: nothing comes out, and no field says so.
        completion = 0
    read = _first_count(
        (inputs, "cached_tokens"),
        (usage, "cache_read_input_tokens"),
        (usage, "prompt_cache_hit_tokens"),
        (usage, "cached_tokens"),
    )
    write = _first_count(
        (inputs, "cache_write_tokens"),
        (inputs, "cache_creation_tokens"),
        (usage, "cache_creation_input_tokens"),
    )
    return {
        "whole_input": prompt,
        "whole_output": completion,
        "read": read,
        "write": write,
        "reasoning": _first_count((outputs, "reasoning_tokens"), (usage, "reasoning_tokens")),
        "total": total,
        "units": {
            "input_audio_tokens": _count(inputs, "audio_tokens"),
            "output_audio_tokens": _count(outputs, "audio_tokens"),
            "web_searches": _count(_get(usage, "server_tool_use"), "web_search_requests"),
            **_written(_get(inputs, "cache_creation_token_details")),
        },
    }


def _of_responses(usage: object) -> dict[str, Any]:
    """OpenAI's responses."""
    inputs, outputs = _get(usage, "input_tokens_details"), _get(usage, "output_tokens_details")
    return {
        "whole_input": _count(usage, "input_tokens"),
        "whole_output": _count(usage, "output_tokens"),
        "read": _count(inputs, "cached_tokens"),
        "write": _count(inputs, "cache_write_tokens"),
        "reasoning": _count(outputs, "reasoning_tokens"),
        "total": _count(usage, "total_tokens"),
        "units": {
            "input_image_tokens": _count(inputs, "image_tokens"),
            "input_audio_tokens": _count(inputs, "audio_tokens"),
            "output_image_tokens": _count(outputs, "image_tokens"),
            "output_audio_tokens": _count(outputs, "audio_tokens"),
        },
    }


def _of_anthropic(usage: object) -> dict[str, Any]:
    """Anthropic's messages. What a cache held or took is not in `input_tokens`."""
    read, write = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    fresh = _count(usage, "input_tokens")
    tools = _get(usage, "server_tool_use")
    return {
        "whole_input": None if fresh is None else fresh + (read or 0) + (write or 0),
        "whole_output": _count(usage, "output_tokens"),
        "read": read,
        "write": write,
        "reasoning": _count(_get(usage, "output_tokens_details"), "thinking_tokens"),
        "total": None,
        "units": {
            "web_searches": _count(tools, "web_search_requests"),
            **_written(_get(usage, "cache_creation")),
        },
    }


def _of_google(usage: object) -> dict[str, Any]:
    """Google's. Thoughts are not in what the candidates have, nor what tools gave in the prompt."""
    prompt, tools = _google(usage, "prompt_token_count"), _google(usage, "tool_use_prompt_token_count")
    candidates, thoughts = _google(usage, "candidates_token_count"), _google(usage, "thoughts_token_count")
    total = _google(usage, "total_token_count")
    whole_input = _sum(prompt, tools)
    whole_output = _sum(candidates, thoughts)
    if whole_output is None and total is not None and whole_input is not None and total >= whole_input:
        # Google leaves out what is 0: an answer of which nothing came.
        whole_output = total - whole_input
    units: dict[str, int | None] = {"input_tool_tokens": tools}
    for field, unit in (
        ("prompt_tokens_details", "input_{}_tokens"),
        ("tool_use_prompt_tokens_details", "input_{}_tokens"),
        ("tool_use_prompt_tokens_details", "input_{}_tool_tokens"),
        ("candidates_tokens_details", "output_{}_tokens"),
        ("cache_tokens_details", "cache_{}_read_tokens"),
    ):
        for modality, count in _modalities(_spelled(usage, field)):
            name = unit.format(modality)
            units[name] = _sum(units.get(name), count)
    return {
        "whole_input": whole_input,
        "whole_output": whole_output,
        "read": _google(usage, "cached_content_token_count"),
        "write": None,
        "reasoning": thoughts,
        "total": None,
        "units": units,
    }


def _of_pydantic_ai(usage: object) -> dict[str, Any]:
    """Pydantic AI's, which counts as `Usage` does. A request that was not measured has zeros that mean nothing."""
    details = _get(usage, "details")
    counts = {
        "whole_input": _count(usage, "input_tokens"),
        "whole_output": _count(usage, "output_tokens"),
        "read": _count(usage, "cache_read_tokens"),
        "write": _count(usage, "cache_write_tokens"),
        "reasoning": _first_count(
            (usage, "output_reasoning_tokens"),
            (details, "reasoning_tokens"),
            (details, "thoughts_tokens"),
        ),
        "total": None,
    }
    if _count(usage, "unmeasured_requests") and not counts["whole_input"] and not counts["whole_output"]:
        return {**dict.fromkeys(counts), "units": {}}
    return {**counts, "units": {name: _count(usage, name) for name in _UNITS}}


def _fitted(
    *,
    whole_input: int | None,
    whole_output: int | None,
    read: int | None,
    write: int | None,
    reasoning: int | None,
    total: int | None,
    units: Mapping[str, int | None],
) -> dict[str, Any]:
    """Counts that agree: a part that is more than the whole was counted beside it.

    Of some providers the total alone says so.
    """
    if whole_output is not None and reasoning and whole_input is not None:
        beside = total == whole_input + whole_output + reasoning
        if beside or reasoning > whole_output:
            whole_output += reasoning
    cached = (read or 0) + (write or 0)
    if whole_input is not None and cached > whole_input:
        whole_input += cached
    if whole_input is None:
        read = write = None
    if whole_output is None:
        reasoning = None
    if any(count is not None and count > _MOST for count in (whole_input, whole_output)):
        return {}
    return {
        "input_tokens": whole_input,
        "output_tokens": whole_output,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "reasoning_tokens": reasoning,
        "units": {name: count for name, count in units.items() if count},
    }


def _named(
    usage: Usage, model: str | None, provider: str | None, latency: float | None, asked_for: str | None
) -> Usage:
    given: dict[str, Any] = {
        "model": _short(model, "model") or usage.model or _name(asked_for),
        "provider": _short(provider, "provider") or usage.provider,
        "latency": usage.latency if latency is None else _seconds(latency, "latency"),
    }
    return replace(usage, **given)


def _written(by_time: object) -> dict[str, int | None]:
    return {
        "cache_write_5m_tokens": _count(by_time, "ephemeral_5m_input_tokens"),
        "cache_write_1h_tokens": _count(by_time, "ephemeral_1h_input_tokens"),
    }


def _google(usage: object, name: str) -> int | None:
    return _first_count((usage, name), (usage, _camel(name)))


def _spelled(usage: object, name: str) -> object:
    found = _get(usage, name)
    return _get(usage, _camel(name)) if found is None else found


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _modalities(details: object) -> Iterator[tuple[str, int]]:
    if not isinstance(details, list):
        return
    for detail in details[:_LONGEST_LIST]:
        modality = _get(detail, "modality")
        # An enum in the SDK, a text on the wire.
        kind = _MODALITIES.get(str(_get(modality, "value") or modality).upper())
        count = _google(detail, "token_count")
        if kind is not None and count is not None:
            yield kind, count


def _name_of_model(answer: object) -> str | None:
    return _first(
        lambda name: _name(_get(answer, name)), ("model", "model_version", "modelVersion", "model_name")
    )


def _name_of_provider(answer: object) -> str | None:
    """Said by Pydantic AI and by litellm. The shape of an answer says nothing: many speak OpenAI's language."""
    hidden = _get(answer, "_hidden_params")
    return _name(_get(answer, "provider_name")) or _name(_get(hidden, "custom_llm_provider"))


def _tier(answer: object) -> str | None:
    return _name(_get(answer, "service_tier"))


# --- fields of values that nobody vouches for -----------------------------------------------------


def _get(value: object, name: str) -> Any:
    """A key of a mapping or an attribute of an object, None if it is not there or cannot be read."""
    try:
        if isinstance(value, Mapping):
            return value.get(name)
        return getattr(value, name, None)
    except Exception:
        return None


def _has(value: object, name: str) -> bool:
    try:
        return name in value if isinstance(value, Mapping) else hasattr(value, name)
    except Exception:
        return False


def _called(method: Callable[[], object]) -> object:
    try:
        return method()
    except Exception:
        return None


def _count(value: object, name: str) -> int | None:
    count = _get(value, name)
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST:
        return None
    return int(count)


def _first_count(*places: tuple[object, str]) -> int | None:
    return _first(lambda place: _count(*place), places)


def _first[T, R](read: Callable[[T], R | None], places: Iterable[T]) -> R | None:
    return next(
        (found for place in islice(places, _LONGEST_LIST) if (found := read(place)) is not None), None
    )


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _name(value: object) -> str | None:
    """A name from a provider: one printable line, and short. Anything else is none."""
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return value
    return None


def _short(name: object, what: str) -> str | None:
    """A name of the caller's."""
    if name is None or _name(name) is not None:
        return _name(name)
    raise InvalidUsage(
        f"{what} is {str(name)[:80]!r}; it must be 1 to {_LONGEST_NAME} printable characters, or None"
    )


def _seconds(value: object, what: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise InvalidUsage(
            f"{what} is {value!r}; it must be a number from 0 up, or None where it is not known"
        )
    return float(value)


def _kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
