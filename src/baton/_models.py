"""Short names of models, for the steps of a fan-out. Pure.

`claude-sonnet-4-20250514` is `sonnet_4` in the name of a step. What is cut off may be all that tells two models apart, so names
that meet are refused: a result must never be taken for that of another model.
"""

import re
from collections.abc import Iterable, Mapping

from baton._names import model_name, step_name
from baton.errors import DuplicateStep, InvalidName, InvalidOption

SYNTHESIS = "synthesis"

# Where a model is asked for, as litellm and Pydantic AI write it in front: `openai:gpt-4o`. Other colons stay: `llama3:8b`.
_PROVIDER = re.compile(
    r"(?i)(anthropic|azure|bedrock|cerebras|cohere|deepseek|fireworks|gateway|github|google|google-cloud|google-gla|google-vertex|grok|groq"
    r"|huggingface|litellm|mistral|moonshotai|ollama|openai|openai-chat|openai-responses|openrouter|together|vercel|vertex_ai|xai):(?=.)"
)
# Bedrock's ids: `us.anthropic.claude-sonnet-4-20250514-v1:0`.
_BEDROCK = re.compile(
    r"(?:(?:apac|au|ca|eu|global|jp|sa|us|us-gov)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|nvidia|openai|qwen|stability|twelvelabs|writer|zai)"
    r"\.(.+?)(?:-v?\d+:\d+(?::\w+)?)?"
)
_DATE = re.compile(r"(?<=.)[-@](?:19|20)\d\d(-?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])$")
_VENDOR = "claude-"
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,64}")


def short_name(model: str) -> str:
    """What stands for a model in the name of a step: without provider, vendor and date, in `a-z`, `0-9` and `_`.

    Raises:
        InvalidName: Nothing is left of it.
    """
    text = model.rstrip("/").rpartition("/")[2]
    if provider := _PROVIDER.match(text):
        text = text[provider.end() :]
    if bedrock := _BEDROCK.fullmatch(text):
        text = bedrock[1]
    text = _DATE.sub("", text).removeprefix(_VENDOR) or text
    short = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if not short:
        raise InvalidName(
            f"model {model!r} has no ASCII letter or digit to name a step by; name it yourself: models={{'name': {model!r}}}"
        )
    return short


def arm_names(name: str, models: Iterable[str] | Mapping[str, str], *, synthesis: bool) -> dict[str, str]:
    """Name the steps of a fan-out, by model and in their order.

    Args:
        name: The fan-out's, in front of each.
        models: Each once; in a mapping under the end of its step's name, which the caller chose.
        synthesis: Whether `<name>_synthesis` is taken.

    Raises:
        InvalidOption: No models, or one twice.
        InvalidName: A model, or the name of a step, is outside the grammar.
        DuplicateStep: Two models have one short name, or one is called like the synthesis.
    """
    if isinstance(models, str) or not isinstance(models, Iterable):
        raise InvalidOption(f"fan-out {name!r}: models={models!r} is no list; use models=[...]")
    if isinstance(models, Mapping):
        ends = [(_alias(name, alias), model_name(model)) for alias, model in models.items()]
    else:
        ends = [(short_name(model_name(model)), str.__str__(model)) for model in models]
    if not ends:
        raise InvalidOption(f"fan-out {name!r} has no models; name one at least")
    taken = {f"{name}_{SYNTHESIS}": f"the synthesis of fan-out {name!r}"} if synthesis else {}
    arms: dict[str, str] = {}
    for end, model in ends:
        if model in arms:
            raise InvalidOption(
                f"fan-out {name!r} names model {model!r} twice; results are kept by model, so name each once"
            )
        step = _step_name(name, end, model)
        if step in taken:
            raise DuplicateStep(
                f"{taken[step]} and model {model!r} would both be step {step!r}; name the steps yourself, with a dict of the "
                f"end of each name: models={{'first': ..., 'second': {model!r}}}"
            )
        taken[step] = f"model {model!r}"
        arms[model] = step
    return arms


def _alias(name: str, alias: object) -> str:
    if isinstance(alias, str) and _ALIAS.fullmatch(alias):
        return str.__str__(alias)
    raise InvalidName(
        f"fan-out {name!r}: the end {alias!r} of a step's name is not allowed; use ASCII letters, digits, '_' or '-'"
    )


def _step_name(name: str, end: str, model: str) -> str:
    try:
        return step_name(f"{name}_{end}")
    except InvalidName as error:
        raise InvalidName(
            f"{error}; the fan-out is called {name!r} and the model {model!r}: choose a shorter name, or name the step "
            f"yourself: models={{'short': {model!r}}}"
        ) from None
