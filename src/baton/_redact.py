"""What may be stored of a captured call: a bounded copy of it, without secrets, cut to a size. Pure.

`copied` is quick and made at once, so that what the step does with its objects afterwards is not seen. `redacted` and
`cut_text` go through every character, and belong into a thread. Secrets are looked for before anything is cut to its size:
half of a key has no shape any more. Where `copied` has to cut, a whole word and more goes.

No expression here goes through a text more than once from each place that it can begin at, whatever the text: most of it was
written by a model.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import PurePath
from uuid import UUID

import orjson

type JsonValue = bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None

REDACTED = "[redacted]"
# Of a request, a response or the results of other steps, in bytes of JSON.
LIMIT = 64 * 1024
# Of what is copied before that.
_MOST_CHARACTERS = 512 * 1024
_MOST_OF_A_TEXT = 128 * 1024
_MOST_VALUES = 20_000
_MOST_OF_A_NAME = 200
_DEPTH = 64
# No key and no token is longer, so none is cut in two when as much goes from the end of a text.
_LONGEST_SECRET = 4_096
_LARGEST_INT = 2**63
_BLOB = re.compile(r"(data:[^,\s]{0,200},)?[A-Za-z0-9+/_=-]{3072}")


# --- a copy -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """A copy, and about how many bytes it takes."""

    value: JsonValue
    weight: int


def weighed(value: object) -> Copy:
    """As `copied`, with its weight."""
    copier = _Copier()
    return Copy(copier.copy(value), copier.weight)


def copied(value: object) -> JsonValue:
    """Copy a value as JSON has it, however large, deep or odd. What is no JSON is named by its type, too much is left out.

    Of foreign code only the iteration of mappings runs, and what tells an agent's messages; it may raise. What models,
    dataclasses and the like hide from their own text (`repr=False`, `exclude=True`, `SecretStr`) is left out.
    """
    return _Copier().copy(value)


class _Copier:
    def __init__(self) -> None:
        self._values = _MOST_VALUES
        self._characters = _MOST_CHARACTERS
        self._above: set[int] = set()

    @property
    def weight(self) -> int:
        return 8 * (_MOST_VALUES - self._values) + _MOST_CHARACTERS - self._characters

    def copy(self, value: object) -> JsonValue:
        try:
            return self._copy(value)
        except RecursionError:
            return "[too deep for what is left of the stack]"
        except Exception as error:
            return f"[could not be read: {type(error).__name__}]"

    def _copy(self, value: object) -> JsonValue:
        self._values -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self._copy(value.value)
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return _number(int.__int__(value))
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"[{len(value):,} bytes]"
        if isinstance(value, datetime | date | time):
            return value.isoformat()
        if isinstance(value, UUID | Decimal | PurePath | timedelta):
            return str(value)
        if isinstance(value, BaseException):
            return self._text(error_text(value))
        return self._structure(value)

    def _structure(self, value: object) -> JsonValue:
        if id(value) in self._above:
            return "[contains itself]"
        if len(self._above) >= _DEPTH:
            return "[too deep]"
        self._above.add(id(value))
        try:
            named = isinstance(value, tuple) and hasattr(value, "_fields")
            if isinstance(value, list | tuple | set | frozenset) and not named:
                return self._items(value)
            members = value.items() if isinstance(value, Mapping) else _fields(value)
            if members is None:
                return f"[{type(value).__module__}.{type(value).__qualname__}]"
            return self._members(members)
        finally:
            self._above.discard(id(value))

    def _items(self, value: Iterable[object]) -> JsonValue:
        items: list[JsonValue] = []
        for item in value:
            if self._values <= 0:
                items.append("[more items are left out]")
                break
            items.append(self.copy(item))
        return items

    def _members(self, pairs: Iterable[tuple[object, object]]) -> JsonValue:
        members: dict[str, JsonValue] = {}
        for key, member in pairs:
            if self._values <= 0:
                members["[left out]"] = "more members"
                break
            # Headers may have their names as bytes.
            name = self._copy(key.decode(errors="replace") if isinstance(key, bytes) else key)
            members[name if isinstance(name, str) else str(name)[:_MOST_OF_A_NAME]] = self.copy(member)
        return members

    def _text(self, text: str) -> str:
        if len(text) > _LONGEST_SECRET and (blob := _BLOB.match(text)):
            # An image or a file. Its beginning says what it is.
            text = f"{blob[1] or ''}[{len(text):,} characters without a space]"
        most = min(_MOST_OF_A_TEXT, max(0, self._characters))
        if len(text) > most:
            text = _beginning(text, most)
        self._characters -= len(text)
        return text


def _fields(value: object) -> Iterable[tuple[object, object]] | None:
    """Name and value of what a model, dataclass or the like shows of itself; None for the rest."""
    kind = type(value)
    if isinstance(value, type):
        return None
    if isinstance(value, tuple):
        return zip(value._fields, value, strict=False)  # type: ignore[attr-defined]
    if callable(getattr(kind, "new_messages", None)) and hasattr(value, "output"):
        # The run of a Pydantic AI agent, which hides what went to and fro.
        return [("output", value.output), ("messages", value.new_messages())]  # type: ignore[attr-defined]
    if (fields := getattr(kind, "__pydantic_fields__", None)) is not None:
        hidden = {name for name, field in fields.items() if not field.repr or field.exclude}
        own = [(name, member) for name, member in vars(value).items() if name not in hidden]
        return own + list((getattr(value, "__pydantic_extra__", None) or {}).items())
    if dataclasses.is_dataclass(value):
        return [
            (field.name, getattr(value, field.name, None))
            for field in dataclasses.fields(value)
            if field.repr
        ]
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return [(one.name, getattr(value, one.name, None)) for one in attributes if one.repr]
    if (names := getattr(kind, "__struct_fields__", None)) is not None:
        return [(name, getattr(value, name, None)) for name in names]
    return None


def _number(number: int) -> JsonValue:
    if -_LARGEST_INT <= number < _LARGEST_INT:
        return number
    return str(number) if number.bit_length() <= 256 else f"[a number of {number.bit_length():,} bits]"


def _beginning(text: str, most: int) -> str:
    """The beginning of a text that is too long, which ends where no secret can have been cut in two."""
    least = max(0, most - _LONGEST_SECRET)
    at = max((text.rfind(space, least, most) for space in " \n\t"), default=-1)
    at = max(least, at)
    return f"{text[:at]}[{len(text) - at:,} characters cut]"


def error_text(error: BaseException, most: int = _MOST_OF_A_TEXT) -> str:
    """An exception in words, whatever its own text does."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return name
    return f"{name}: {_beginning(text, most) if len(text) > most else text}" if text else name


# --- without secrets --------------------------------------------------------------------------------


def redacted(value: JsonValue) -> JsonValue:
    """The same without what is a secret by its name or by its shape, and without long runs of base64."""
    return _redacted(value, 0)


def _redacted(value: JsonValue, depth: int) -> JsonValue:
    if depth > _DEPTH:
        return "[too deep]"
    if isinstance(value, str):
        return redacted_text(value, depth)
    if isinstance(value, list):
        match value:
            # A header, as lists of them have it.
            case [str(name), str() | int() | float()] if is_secret(name):
                return [name, REDACTED]
        # The argument behind `--password`, as commands have them.
        return [
            REDACTED
            if _is_flag(before) and isinstance(item, str) and item[:1] != "-"
            else _redacted(item, depth + 1)
            for before, item in zip((None, *value), value, strict=False)
        ]
    if isinstance(value, dict):
        return _redacted_members(value, depth)
    return value if not isinstance(value, float) or value - value == 0 else str(value)


def _redacted_members(value: dict[str, JsonValue], depth: int) -> JsonValue:
    named = any(
        isinstance(member, str) and key.lower() in ("name", "key", "header") and is_secret(member)
        for key, member in value.items()
    )
    members: dict[str, JsonValue] = {}
    for key, member in value.items():
        if named and key.lower() in ("value", "values"):
            kept: JsonValue = REDACTED
        elif key == "token" and "logprob" in value:
            # The tokens of an answer, one by one.
            kept = _redacted(member, depth + 1)
        elif _hides(key, member):
            kept = REDACTED
        else:
            kept = _redacted(member, depth + 1)
        name = redacted_text(key, depth)
        while name in members:
            name += "'"
        members[name] = kept
    return members


def _is_flag(value: JsonValue) -> bool:
    return isinstance(value, str) and value.startswith("-") and value.isascii() and is_secret(value)


def _hides(name: str, value: JsonValue) -> bool:
    """Whether a value must not be seen because of its name."""
    if value is None or isinstance(value, bool) or value in ("", [], {}):
        return False
    # A count of tokens has a name much like a token's.
    words = _words(name[:_MOST_OF_A_NAME])
    counts = isinstance(value, int | float) and words[-1:] == ("token",) and len(words) > 1
    return not counts and _is_secret(words)


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SECRET_WORDS = _listed(
    "authorization authentication cookie cookies secret secrets passcode passphrase pwd credential credentials jwt sessionid"
)
# However they are written: apiKey, API_KEY, x-api-key, apikey.
_SECRET_PARTS = _listed(
    "password passwd passphrase passkey apikey accesskey privatekey secretkey clientsecret accesstoken refreshtoken authtoken"
)
# Only where the name says nothing else.
_SECRET_NAMES = _listed("auth bearer token pass sid session csrf xsrf otp pin")
_PLAIN_IN_TEXT = frozenset((name,) for name in _SECRET_NAMES - {"token"})
# Whose keys, and whose tokens, are secrets.
_SECRET_KEYS = _listed(
    "api access secret private signing encryption decryption auth account master subscription storage shared ssh service rsa "
    "hmac admin deploy license bearer session security ssl tls pgp gpg openai anthropic google gemini azure aws mistral groq "
    "cohere deepseek openrouter xai huggingface stripe"
)
_SECRET_TOKENS = _listed(
    "access refresh auth api id bearer session secret security csrf xsrf oauth user bot app personal device"
)
# Whose pass is a password, and what is sent to be let in.
_SECRET_PASSES = _listed(
    "db database user smtp imap mail email ftp sftp ssh mysql pg postgres redis mongo root admin login proxy"
)
_SECRET_AUTHS = _listed("basic digest http proxy x")
# `eos_token` is one of a model's vocabulary.
_PLAIN_TOKENS = _listed("eos bos pad unk sep mask cls stop start end first last per special max min")


def is_secret(name: str) -> bool:
    """Whether what goes by this name is a secret: `x-api-key`, `clientSecret`, `DB_PASSWORD`, but not `max_tokens`."""
    return _is_secret(_words(name[:_MOST_OF_A_NAME]))


@lru_cache(4096)
def _is_secret(words: tuple[str, ...]) -> bool:
    if not words:
        return False
    if not _SECRET_WORDS.isdisjoint(words) or (len(words) == 1 and words[0] in _SECRET_NAMES):
        return True
    run_together = "".join(words)
    if any(part in run_together for part in _SECRET_PARTS):
        return True
    pairs = list(pairwise(words))
    if any(second in ("key", "keys") and first in _SECRET_KEYS for first, second in pairs):
        return True
    if ("session", "id") in pairs:
        return True
    match pairs[-1:]:
        case [(whose, "pass")]:
            return whose in _SECRET_PASSES
        case [(whose, "auth")]:
            return whose in _SECRET_AUTHS
        case [(whose, "token")]:
            return whose not in _PLAIN_TOKENS
        case [(whose, "tokens")]:
            return whose in _SECRET_TOKENS
    return False


@lru_cache(4096)
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))


# --- in a text --------------------------------------------------------------------------------------

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
# Where a word can begin: also behind what an escape in JSON or in a URL ends with.
_BEGIN = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"
_SHAPES = re.compile(
    _BEGIN
    + r"(?:"
    + "|".join(
        (
            r"sk-[A-Za-z0-9_-]{16,}",  # OpenAI, Anthropic, OpenRouter, Langfuse, DeepSeek
            r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{16,}",  # Stripe
            r"AIza[A-Za-z0-9_-]{30,}|AQ\.[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_.-]{16,}|GOCSPX-[A-Za-z0-9_-]{16,}",  # Google
            r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
            r"ABSK[A-Za-z0-9+/=]{40,}|bedrock-api-key-[A-Za-z0-9+/=_-]{16,}",  # Bedrock
            r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,}",  # GitHub
            r"glpat-[A-Za-z0-9_-]{16,}",  # GitLab
            r"xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}",  # Slack
            r"hf_[A-Za-z0-9]{20,}",  # Hugging Face
            r"gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|pplx-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|nvapi-[A-Za-z0-9_-]{20,}",
            r"tvly-[A-Za-z0-9_-]{16,}|lsv2_[A-Za-z0-9_]{20,}|pcsk_[A-Za-z0-9_]{20,}|fw_[A-Za-z0-9]{20,}",
            r"npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}|dop_v1_[a-f0-9]{32,}|dapi[a-f0-9]{32,}",
            r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
            r"ntn_[A-Za-z0-9]{20,}|secret_[A-Za-z0-9]{32,}|lin_api_[A-Za-z0-9]{20,}|figd_[A-Za-z0-9_-]{20,}",
            r"shp(?:at|ca|pa|ss)_[a-f0-9]{32}|sntry[su]_[A-Za-z0-9_+/=-]{20,}|sbp_[a-f0-9]{40}|ATATT3[A-Za-z0-9_=-]{20,}",
            r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
        )
    )
    + r")"
)
_SLACK_HOOK = re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[A-Za-z0-9/_-]{8,}")
# A whole run each time, so that no run is gone through twice; what has no dot is no JWT.
_JWT = re.compile(_BEGIN + r"eyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){0,4}")
_BEARER = re.compile(r"(?i)\b(bearer\s{1,8})([A-Za-z0-9._~+/=-]{6,})")
_BASIC = re.compile(r"(?i)\b(basic\s{1,8})([A-Za-z0-9+/_-]{4,}={0,2})")
_IN_A_URL = re.compile(r"(://)(?:[^\s/@:\"'<>\\]{0,256}:[^\s/\"'<>\\]{1,1024}|[^\s/@:\"'<>\\]{20,1024})@")
_IN_A_QUERY = re.compile(
    r"(?i)([?&;](?:key|api[_-]?key|apikey|token|[a-z]{1,16}[_-]token|auth|code|sig|signature|password|passwd|pwd|secret|client_secret|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|sv|se)=)([^&\s\"'<>#\\]+)"
)
# What may be the name of a secret, up to where its value begins: also in Markdown, in a block of YAML, and in a URL's URL.
_NAMED = re.compile(
    r"(?:(?<![\w\\-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))-{0,2}([A-Za-z_][\w-]{0,63})(?:\\{0,3}[\"']|\*\*|`)?"
    r"(?:\s{0,8}(?::=|=>|[:=]|%3[Dd])(?:\*\*(?=\s))?\s{0,8}(?:[|>][+-]?[ \t]{0,8}\r?\n\s{0,32})?|>)"
)
_FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]{0,63})\s{1,8}(?![\s-])")
_VALUE = re.compile(
    r"(?P<quote>[\"'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\\n]){1,4096})"
    r"|(?P<escape>\\{1,3}[\"'])(?P<escaped>(?:(?!(?P=escape))[^\n]){1,4096})"
    # One without quotes may have them inside, but for one that ends what it stands in; so may backslashes.
    r"|(?P<bare>(?:[^\s\"'\\<]|[\"'](?![\s,;:}\])>]|\Z)|\\(?![nrtu\"'\\])|<(?!/)){1,4096})"
)
_LINE = re.compile(r"(?P<quote>\\{0,3}[\"']?)(?P<bare>[^\r\n\"'\\]{1,4096})")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{512,}")
_LONGEST_NOTHING = 256
# What a value is that is no secret, whatever it is assigned to.
_NOTHING = re.compile(
    r"(?i)(?:null|none|true|false|undefined|\d{1,5}|\*+|\.+|<[^>]*>?|\$?\{.*|\(.*)?[,;)}\]]*"
)


def redacted_text(text: str, depth: int = 0) -> str:
    """A text without secrets; of one that is JSON, without those of its members."""
    if _UNSTORABLE.search(text):
        text = _UNSTORABLE.sub("\ufffd", text)
    if len(text) < 5:
        return text
    if text.lstrip()[:1] in ("{", "["):
        text = _redacted_json(text, depth)
    text = _PRIVATE_KEY.sub(REDACTED, text)
    text = _SHAPES.sub(REDACTED, text)
    text = _JWT.sub(_without_jwt, text)
    text = _SLACK_HOOK.sub(rf"\1{REDACTED}", text)
    text = _IN_A_URL.sub(rf"\1{REDACTED}@", text)
    text = _IN_A_QUERY.sub(rf"\1{REDACTED}", text)
    text = _BEARER.sub(_without_bearer, text)
    text = _BASIC.sub(_without_basic, text)
    text = _without_values(_NAMED, text)
    text = _without_values(_FLAG, text)
    return _BASE64.sub(lambda found: f"[{len(found[0]):,} characters without a space]", text)


def _redacted_json(text: str, depth: int) -> str:
    """A text that is JSON, such as the arguments of a call of a tool; as it is where there is nothing to hide."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    shown = _redacted(value, depth + 1)
    return text if shown == value else orjson.dumps(shown).decode()


def _without_jwt(found: re.Match[str]) -> str:
    return REDACTED if "." in found[0].rstrip(".") else found[0]


def _without_bearer(found: re.Match[str]) -> str:
    token = found[2]
    return f"{found[1]}{REDACTED}" if len(token) >= 20 or any(map(str.isdigit, token)) else found[0]


def _without_basic(found: re.Match[str]) -> str:
    try:
        plain = base64.b64decode(found[2][: 4 * (len(found[2]) // 4)], validate=True)
    except (binascii.Error, ValueError):
        return found[0]
    return f"{found[1]}{REDACTED}" if b":" in plain else found[0]


def _without_values(names: re.Pattern[str], text: str) -> str:
    """A text without what is assigned to the name of a secret there, as in `PASSWORD=...`, YAML, or JSON within JSON."""
    parts: list[str] = []
    at = 0
    for found in names.finditer(text):
        words = _words(found[1])
        if found.start() < at or not _is_secret_in_text(words):
            continue
        # A header's value goes on to the end of its line.
        whole_line = words[-1] in ("authorization", "cookie", "cookies")
        value = (_LINE if whole_line else _VALUE).match(text, found.end())
        if value is None:
            continue
        kind = value.lastgroup or ""
        shown = value[kind]
        if (
            # A longer one is not left for the names within it, which would go through it once more each.
            len(shown) <= _LONGEST_NOTHING
            and (
                shown.startswith(REDACTED)
                or _NOTHING.fullmatch(shown)
                or (words == ("token",) and _is_prose(shown))
            )
        ):
            continue
        end = value.end()
        if kind == "bare" and not whole_line:
            end -= len(shown) - len(shown.rstrip(",;)}]"))
        parts += text[at : value.start(kind)], REDACTED
        at = end
    return "".join((*parts, text[at:])) if parts else text


def _is_secret_in_text(words: tuple[str, ...]) -> bool:
    # In a text, many a word is followed by a colon.
    return _is_secret(words) and words not in _PLAIN_IN_TEXT


def _is_prose(value: str) -> bool:
    return len(value) < 16 and not any(map(str.isdigit, value))


# --- and cut ----------------------------------------------------------------------------------------


def storable(value: JsonValue, hook: Callable[[JsonValue], object] | None, limit: int = LIMIT) -> str:
    """JSON of a copy without secrets, of `limit` bytes at most; `hook` sees it before that, and what it returns is stored."""
    value = redacted(value)
    if hook is not None:
        value = redacted(copied(hook(value)))
    return cut_text(value, limit)


def cut_text(value: JsonValue, limit: int = LIMIT) -> str:
    """JSON of at most so many bytes. Of long texts and lists the beginning and the end stay, and how much is missing."""
    text = orjson.dumps(value)
    most = limit
    while len(text) > limit:
        most //= 2
        if most < 16:
            return orjson.dumps(f"[{len(text):,} bytes cut]").decode()
        text = orjson.dumps(_cut(value, most))
    return text.decode()


def _cut(value: JsonValue, most: int) -> JsonValue:
    if isinstance(value, str):
        return _cut_string(value, most)
    count = max(2, most // 16)
    if isinstance(value, list):
        if len(value) > count:
            behind = count // 4
            gone = f"[{len(value) - count:,} items cut]"
            value = [*value[: count - behind], gone, *value[len(value) - behind :]]
        return [_cut(item, most) for item in value]
    if isinstance(value, dict):
        members = {_cut_string(key, most): _cut(member, most) for key, member in islice(value.items(), count)}
        if len(value) > count:
            members["[cut]"] = f"{len(value) - count:,} members"
        return members
    return value


def _cut_string(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    behind = most // 4
    return f"{text[: most - behind]}[{len(text) - most:,} characters cut]{text[len(text) - behind :]}"
