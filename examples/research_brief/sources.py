"""Where the documents of a brief come from: files, folders and URLs, as clean text with what is known of
each.

A document named by its own path or URL must load, or `load` raises and says why. A folder is more lenient:
what cannot be read there is left out, and a note on the folder's first document says so. Nothing here looks
at the text's meaning.
"""

import codecs
import contextlib
import dataclasses
import html
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from lxml.etree import _Element  # type: ignore[import-untyped]

MAX_DOCUMENTS = 200
MAX_BYTES = 5_000_000  # of one document
MAX_TOTAL = 5_000_000  # characters of text in all of them: stored as one step's result, of 16 MB at most
TIMEOUT = 10.0  # seconds without an answer
DEADLINE = 30.0  # seconds for one whole download, so that a server that drips cannot hold the step

TEXTS = Path(__file__).parent / "texts"

type Kind = Literal["text", "markdown", "html"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
}
_CONTENT_TYPES: dict[str, Kind] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/plain": "text",
}
_LICENCES = {"copying", "copyright", "licence", "licences", "license", "licenses", "notice"}
_MAGIC = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "gzip data",
    b"\x7fELF": "a program",
}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")
_HEADER = re.compile(r"(?i)(title|authors?|by|date|published|updated)\s*:\s*(\S.*)")
_META_CHARSET = re.compile(
    rb"""(?i)<(?:meta[^>]{0,200}charset|\?xml[^>]{0,100}encoding)\s*=\s*["']?([\w-]{2,40})"""
)
# What a terminal or a JSON column in PostgreSQL would stumble over; tab and newline stay.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ud800-\udfff]")

logger = logging.getLogger(__name__)


class SourceError(Exception):
    """A document that cannot be used, however often it is tried."""


class SourceUnavailable(SourceError):
    """A URL that did not answer, or not well; later it may."""


@dataclass(frozen=True, slots=True)
class Document:
    """One source, read.

    Attributes:
        title: As the document gives it, else its file name.
        origin: The path or URL it was read from.
        kind: How it was read.
        text: Paragraphs, each on one line, with an empty line between them. Code, tables and menus are left
            out.
        words: How many words `text` has.
        author: "" when the document does not say.
        date: `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; "" when the document does not say.
        links: How often it points to another document.
        notes: What was left out or guessed while reading it.
    """

    title: str
    origin: str
    kind: Kind
    text: str
    words: int
    author: str = ""
    date: str = ""
    links: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a parser found: the same for every kind."""

    paragraphs: list[str]
    title: str = ""
    author: str = ""
    date: str = ""
    links: int = 0


def load(origins: Sequence[str], tell: Callable[[int, int, str], object] = lambda *_: None) -> list[Document]:
    """Read every document that `origins` names, in that order; a folder's files in the order of their names.

    Of a folder, and of the folders in it, the files ending in .txt, .md, .markdown, .html and .htm are read.
    Hidden files and licence texts are not. Documents with the same text are read once.

    Args:
        origins: Paths of files or folders, http and https URLs. Empty means the texts that ship with the
            example.
        tell: Called before each of them with how many were read, of how many, and its name.

    Returns:
        At least one document, at most `MAX_DOCUMENTS`.

    Raises:
        SourceUnavailable: a URL did not answer, or with an error of the server; trying again may help.
        SourceError: a named document is missing, empty, binary or too large, or a folder holds none to read.
    """
    if len(origins) > MAX_DOCUMENTS:
        raise SourceError(
            f"{len(origins)} documents were named, a brief takes at most {MAX_DOCUMENTS}; name fewer"
        )
    documents: dict[str, Document] = {}  # by their text
    origins = origins or [str(TEXTS)]
    for place, origin in enumerate(origins):
        tell(place, len(origins), _printable(origin))
        if _URL.match(origin):
            found = [_from_url(origin)]
        elif Path(origin).expanduser().is_dir():
            found = _from_folder(origin, room=MAX_DOCUMENTS - len(documents), characters=_room(documents))
        else:
            found = [_from_file(Path(origin).expanduser(), origin)]
        for document in found:
            documents.setdefault(document.text, document)
        if _room(documents) < 0 or len(documents) > MAX_DOCUMENTS:
            raise SourceError(
                f"the documents up to {_printable(origin)!r} are more than {MAX_DOCUMENTS}, or than"
                f" {MAX_TOTAL:,} characters; name fewer, or smaller ones"
            )
    return list(documents.values())


def is_url(origin: str) -> bool:
    """Whether `load` takes this for a URL, not for a path."""
    return _URL.match(origin) is not None


# --- files and folders ---


def _from_folder(origin: str, *, room: int, characters: int) -> list[Document]:
    folder = Path(origin).expanduser()
    documents: list[Document] = []
    skipped: list[str] = []
    for path in _files(folder):
        name = _printable(str(path.relative_to(folder)))
        if len(documents) >= room:
            skipped.append(
                f"{name} and whatever follows it, as a brief takes at most {MAX_DOCUMENTS} documents"
            )
            break
        try:
            document = _from_file(path, str(path))
        except SourceError as error:
            skipped.append(f"{name}: {error}")
            continue
        if len(document.text) > characters:
            skipped.append(f"{name}, as there are {MAX_TOTAL:,} characters without it")
            continue
        characters -= len(document.text)
        documents.append(document)
    if not documents:
        reasons = "; ".join(skipped[:3]) or f"it has no file ending in {', '.join(sorted(_KINDS))}"
        raise SourceError(
            f"the folder {_printable(origin)!r} has nothing to read: {reasons}; name another one"
        )
    if skipped:
        logger.warning("left out of %s: %s", folder, "; ".join(skipped))
        shown = "; ".join(skipped[:10]) + (f"; and {len(skipped) - 10} more" if len(skipped) > 10 else "")
        first = documents[0]
        documents[0] = dataclasses.replace(first, notes=[*first.notes, f"left out of its folder: {shown}"])
    return documents


def _files(folder: Path) -> Iterator[Path]:
    # os.walk does not follow links to folders, so a link to its own parent is no endless tree.
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or path.stem.lower() in _LICENCES:
                continue
            if path.suffix.lower() in _KINDS:
                yield path


def _from_file(path: Path, origin: str) -> Document:
    where = _printable(str(path))
    if not path.exists():
        raise SourceError(
            f"{where!r} does not exist (seen from {_printable(str(Path.cwd()))!r}); check the path"
        )
    if not path.is_file():
        raise SourceError(f"{where!r} is not an ordinary file; name a file, a folder or a URL")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{where!r} cannot be read: {error.strerror}; check its permissions") from error
    kind = _KINDS.get(path.suffix.lower(), "text")
    return _document(data, kind, origin=origin, name=path.stem or path.name, charset="")


def _room(documents: dict[str, Document]) -> int:
    return MAX_TOTAL - sum(map(len, documents))


# --- URLs ---


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https alone: urllib itself would also follow one to ftp."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_url(newurl)
        except SourceError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    shown = _printable(url)
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise SourceError(f"{shown!r} is not a URL: {error}; correct it") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise SourceError(f"{shown!r} is neither http nor https; download it and name the file")
    if not host:
        raise SourceError(f"{shown!r} names no host; correct it")
    if parts.username or parts.password:
        # The origin is stored with the step and printed in the brief.
        raise SourceError(
            f"the URL on {host!r} holds a user name or a password; download it and name the file"
        )


def _from_url(url: str) -> Document:
    _check_url(url)
    # Not build_opener: that would add the handlers for file:, ftp: and data:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _SameSchemes(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "baton-research-brief"), ("Accept-Encoding", "identity")]
    try:
        request = urllib.request.Request(_quoted(url))
        with contextlib.closing(opener.open(request, timeout=TIMEOUT)) as response:
            headers: Message = response.headers
            data = _read(response, url)
    except urllib.error.HTTPError as error:
        with error:
            message = f"{url} answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise SourceUnavailable(f"{message}; try again later") from error
        raise SourceError(f"{message}; check the address") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise SourceUnavailable(
            f"{url} could not be read: {reason}; check the address and the network"
        ) from error
    except ValueError as error:
        raise SourceError(f"{url} is not a URL that can be fetched: {error}; correct it") from error
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise SourceError(f"{url} answered in the encoding {encoding!r}; download it and name the file")
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    by_name = _KINDS.get(Path(path).suffix.lower())
    content_type = headers.get_content_type() if "Content-Type" in headers else ""
    kind = _CONTENT_TYPES.get(content_type)
    if kind is None or (kind == "text" and by_name):
        # Servers of plain files know .md seldom: they say text/plain, or nothing that helps.
        kind = by_name if content_type in ("", "text/plain", "application/octet-stream") else None
    if kind is None:
        raise SourceError(
            f"{url} is {content_type or 'of no stated type'}; only HTML, Markdown and plain text are read:"
            " convert it and name the file"
        )
    name = Path(path).stem or urllib.parse.urlsplit(url).hostname or url
    return _document(data, kind, origin=url, name=name, charset=headers.get_content_charset() or "")


def _quoted(url: str) -> str:
    # Also an address copied from a browser's bar, with its spaces and umlauts, is meant to work.
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    data = bytearray()
    deadline = time.monotonic() + DEADLINE
    while chunk := response.read1(65_536):
        data += chunk
        if len(data) > MAX_BYTES:
            break
        if time.monotonic() > deadline:
            raise SourceUnavailable(
                f"{url} took longer than {DEADLINE:.0f} seconds; download it and name the file"
            )
    if response.length and len(data) <= MAX_BYTES:
        raise SourceUnavailable(f"{url} broke off after {len(data):,} bytes; try again later")
    return bytes(data)


# --- bytes to text ---


def _document(data: bytes, kind: Kind, *, origin: str, name: str, charset: str) -> Document:
    where = _printable(origin)
    if len(data) > MAX_BYTES:
        raise SourceError(f"{where!r} is larger than {MAX_BYTES // 1_000_000} MB; name a part of it")
    text, note = _decode(data, where, charset)
    if not text.strip():
        raise SourceError(f"{where!r} is empty; leave it out")
    match kind:
        case "text":
            content = _read_text(text)
        case "markdown":
            content = _read_markdown(text)
        case "html":
            content = _read_html(text, where)
        case _:
            assert_never(kind)
    paragraphs = [flat for paragraph in content.paragraphs if (flat := _flat(paragraph))]
    if not paragraphs:
        raise SourceError(f"{where!r} has no text to read, only markup, code or tables; leave it out")
    body = "\n\n".join(paragraphs)
    return Document(
        title=_flat(content.title)[:200] or _flat(name),
        origin=where,
        kind=kind,
        text=body,
        words=len(body.split()),
        author=_flat(content.author)[:200],
        date=_iso_date(content.date),
        links=content.links,
        notes=[note] if note else [],
    )


def _decode(data: bytes, where: str, charset: str) -> tuple[str, str]:
    """The text, and a note when its encoding had to be guessed."""
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, "replace"), ""
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise SourceError(f"{where!r} is {what}, not text; convert it to text, Markdown or HTML")
    head = data[:8_192]
    if b"\0" in head or len(re.findall(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)) > len(head) // 20:
        raise SourceError(f"{where!r} is binary, not text; convert it to text, Markdown or HTML")
    declared = _META_CHARSET.search(data[:2_048])
    for encoding in ("utf-8", charset, declared[1].decode() if declared else ""):
        # LookupError: an encoding nobody knows, or one that does not yield text, such as base64.
        with contextlib.suppress(UnicodeError, LookupError):
            if encoding:
                return data.decode(encoding), ""
    # cp1252 is what documents that call themselves latin-1 are written in; of its five holes nothing is lost.
    return data.decode("cp1252", "replace"), "not UTF-8, read as Latin-1"


def _read_text(text: str) -> _Content:
    headers, lines = _take_headers(text.splitlines())
    paragraphs = re.split(r"\n[ \t\f]*(?:\n[ \t\f]*)+", "\n".join(lines).strip())
    title = headers.get("title", "")
    if not title and len(paragraphs) > 1 and len(paragraphs[0]) <= 100 and "\n" not in paragraphs[0]:
        title = paragraphs.pop(0).strip(" =-#*")
    by = re.fullmatch(r"(?i)by ((?:\S+ ?){1,6})", _flat(paragraphs[0])) if paragraphs else None
    if by and len(paragraphs) > 1:
        paragraphs.pop(0)
    links = len(re.findall(r"https?://", text))
    return _Content(
        paragraphs, title, headers.get("author", by[1] if by else ""), headers.get("date", ""), links
    )


def _read_markdown(text: str) -> _Content:
    from markdown_it import MarkdownIt

    lines = text.splitlines()
    headers: dict[str, str] = {}
    if lines and lines[0].strip() == "---" and "---" in (rest := [line.strip() for line in lines[1:200]]):
        end = rest.index("---")
        headers, _ = _take_headers(lines[1 : end + 1], everywhere=True)
        lines = lines[end + 2 :]
    paragraphs: list[str] = []
    title = headers.get("title", "")
    links = in_table = in_heading = 0
    for token in MarkdownIt("commonmark").enable("table").parse("\n".join(lines)):
        if token.type in ("table_open", "table_close"):
            in_table += token.nesting
        elif token.type in ("heading_open", "heading_close"):
            in_heading += token.nesting
        elif token.type == "inline" and token.children is not None:
            links += sum(
                child.type == "link_open" and not str(child.attrs.get("href", "")).startswith("#")
                for child in token.children
            )
            shown = "".join(
                " " if child.type.endswith("break") else child.content
                for child in token.children
                if child.type in ("text", "text_special", "code_inline", "softbreak", "hardbreak")
            )
            if in_heading and not title:
                title = shown
            elif not in_table:
                paragraphs.append(shown)
    if paragraphs and (lead := _HEADER.fullmatch(paragraphs[0].strip())):
        headers.setdefault(_header_name(lead[1]), lead[2])
    return _Content(paragraphs, title, headers.get("author", ""), headers.get("date", ""), links)


def _read_html(text: str, where: str) -> _Content:
    import trafilatura  # takes a third of a second to import, more on a cold disk

    # A declaration of the encoding no longer holds for decoded text, and lxml refuses the two together.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    try:
        found = trafilatura.bare_extraction(
            text,
            include_comments=False,
            include_links=True,
            favor_recall=True,
            with_metadata=True,
            # Of dates only what the page states: the last resort would be any number in the text.
            date_extraction_params={"extensive_search": False, "original_date": True},
        )
    except Exception as error:  # whatever a parser raises that is fed with anything at all
        raise SourceError(f"{where!r} cannot be read as HTML: {error}; save it as text") from error
    if found is None or isinstance(found, dict):
        # No main part to find in a page this short or this broken: then its text, for what that is worth.
        return _Content(_without_tags(text))
    paragraphs = list(_blocks(found.body))
    links = sum(
        not (element.get("target") or "#").startswith(("#", "mailto:", "javascript:"))
        for element in found.body.iter("ref")
    )
    return _Content(paragraphs, found.title or "", found.author or "", found.date or "", links)


def _without_tags(text: str) -> list[str]:
    """The text between the tags, in one pass: what no parser can read may be large, too."""
    parts: list[str] = []
    silent = ""  # the tag whose text nobody sees, until its end
    for place, part in enumerate(re.split(r"(<!--|-->|<[a-zA-Z/!?][^<>]*>)", text)):
        name = part.strip("</!>").split(maxsplit=1)[0].lower() if part.strip("</!>") else ""
        if place % 2 == 0:
            parts.append("" if silent else html.unescape(part))
        elif silent:
            ends = part == "-->" if silent == "--" else part.startswith("</") and name == silent
            silent = "" if ends else silent
        elif part == "<!--" or name in ("script", "style", "title", "template"):
            silent = name
        elif name not in ("a", "b", "code", "em", "i", "span", "strong", "sub", "sup"):
            parts.append("\n\n")
    return "".join(parts).split("\n\n")


def _blocks(element: "_Element") -> Iterator[str]:
    """The running text below `element`, one string per paragraph, item, quotation or heading."""
    inline = [element.text or ""]
    for child in element:
        is_code_block = child.tag == "code" and (element.tag == "body" or "\n" in "".join(child.itertext()))
        if child.tag in ("p", "head", "list", "item", "quote", "table") or is_code_block:
            yield "".join(inline)
            inline = []
            if child.tag != "table" and not is_code_block:
                yield from _blocks(child)
        elif child.tag == "lb":
            inline.append(" ")
        elif isinstance(child.tag, str):  # no comment
            inline.extend(child.itertext())
        inline.append(child.tail or "")
    yield "".join(inline)


# --- small things ---


def _take_headers(lines: Sequence[str], *, everywhere: bool = False) -> tuple[dict[str, str], list[str]]:
    """Lines such as `Author: Ada Lovelace` at the very top, and the lines after them."""
    headers: dict[str, str] = {}
    for number, line in enumerate(lines):
        if match := _HEADER.fullmatch(line.strip()):
            headers.setdefault(_header_name(match[1]), match[2].strip("\"' []"))
        elif line.strip() and not everywhere:
            return headers, list(lines[number:])
    return headers, []


def _header_name(name: str) -> str:
    return {"by": "author", "authors": "author", "published": "date", "updated": "date"}.get(
        name.lower(), name.lower()
    )


def _iso_date(text: str) -> str:
    """As much of a date as `text` states: `2024-05-01`, `2024-05` or `2024`; "" for none."""
    if match := re.search(r"\b(\d{4})-(\d{2})(?:-(\d{2}))?(?!\d)", text):
        return match[0]
    for pattern, shape in (("%d %B %Y", "%Y-%m-%d"), ("%B %d, %Y", "%Y-%m-%d"), ("%B %Y", "%Y-%m")):
        with contextlib.suppress(ValueError):
            return datetime.strptime(text.strip(), pattern).replace(tzinfo=UTC).strftime(shape)
    match = re.fullmatch(r"\s*(\d{4})\s*", text)
    return match[1] if match else ""


def _flat(text: str) -> str:
    """One line, without what a terminal or a database would stumble over."""
    return " ".join(_CONTROLS.sub(" ", text).split())


def _printable(path: str) -> str:
    # A file name need not be valid text: its odd bytes arrive as surrogates, which JSON cannot hold.
    return _flat(path.encode("utf-8", "replace").decode())
