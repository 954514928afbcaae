"""What one call of a model used. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from baton.errors import InvalidUsage

_KINDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
# The largest that the database's bigint holds.
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one call of a model used. None is unknown, which is not 0.

    Attributes:
        model: As the provider named it in its answer, or as it was asked for.
        provider: Whose model it is, such as `openai`; None leaves it to the pricing to tell by the model.
        input_tokens: All that went in, those read from and written to a cache included.
        output_tokens: All that came out, reasoning included.
        cache_read_tokens: Of the input, those that a cache held.
        cache_write_tokens: Of the input, those that were put into a cache.
        reasoning_tokens: Of the output, those of the model's reasoning.
        units: What else was counted and has a price of its own, by the names of genai-prices: `cache_write_1h_tokens`,
            `input_audio_tokens`, `web_searches` and the like.
        service_tier: Such as `flex` or `priority`, where the provider's prices depend on it.
        latency: Seconds that the call took.

    Raises:
        InvalidUsage: A count that is no whole number from 0 up, or parts that are more than the whole.
    """

    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    units: Mapping[str, int] = field(default=MappingProxyType({}))
    service_tier: str | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for kind in _KINDS:
            _check_count(kind, getattr(self, kind))
        for name, count in self.units.items():
            _check_count(f"units[{name!r}]", count)
        cached = (self.cache_read_tokens or 0) + (self.cache_write_tokens or 0)
        if cached > (self.input_tokens or 0):
            raise InvalidUsage(
                f"{cached} tokens of a cache are more than the {self.input_tokens or 0} input tokens that they are part of; "
                "input_tokens counts all that went in, those of caches included"
            )
        if (self.reasoning_tokens or 0) > (self.output_tokens or 0):
            raise InvalidUsage(
                f"{self.reasoning_tokens} reasoning tokens are more than the {self.output_tokens or 0} output tokens that they "
                "are part of; output_tokens counts all that came out, reasoning included"
            )


def _check_count(name: str, count: object) -> None:
    if count is not None and (type(count) is not int or not 0 <= count <= _MOST):
        # Python refuses to write very large numbers.
        shown = (
            f"a number of {count.bit_length()} bits"
            if isinstance(count, int) and count > _MOST
            else repr(count)
        )
        raise InvalidUsage(
            f"{name} is {shown}; it must be a whole number from 0 up, or None where it is not known"
        )
