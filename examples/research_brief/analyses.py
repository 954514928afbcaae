"""Three ways to look at documents, and the page that joins them. Pure: the same documents give the same
brief.

Nothing here is a model, and nothing is downloaded. The summary quotes sentences, the key terms are phrases of
the text, and the credibility signals are counts that are shown with their reasons.
"""

import functools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import PurePath

from .sources import Document, is_url

# Bounds of what is looked at, so that 200 large documents cost seconds, not hours. The brief says when they
# applied.
MAX_SENTENCES = 500
MAX_TERM_WORDS = 60_000


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# The commonest words of a language are enough to tell it from the others; the keys are also YAKE's.
_COMMON = {
    "en": _set("the of and to in is that for it with as was are be this by not or"),
    "de": _set("der die und das ist nicht mit den von zu ein eine auf für im dem des sich"),
    "fr": _set("le la les et des est une dans que pour pas sur du qui au avec ne il"),
    "es": _set("el la los que de y en un una es por con para las se del no su"),
    "it": _set("il di che è la per un una non sono con del della le si dei da gli"),
    "nl": _set("de het een van en is dat op te zijn met voor niet aan er die ook als"),
    "pt": _set("o a que de e do da em um para com não uma os no se na por"),
}
_HEDGES = _set(
    """about almost apparently appears approximately around can could estimate estimated estimates likely may
    maybe might often perhaps possible possibly probably roughly seem seems should sometimes suggest suggests
    typically uncertain unclear usually"""
)
_SUPERLATIVES = _set(
    """absolutely amazing astonishing awesome best breakthrough fantastic flawless game-changing greatest
    incredible incredibly insane magical miracle perfect perfectly phenomenal revolutionary stunning ultimate
    unbeatable unbelievable undeniably unmatched unparalleled unprecedented world-class"""
)
# A sentence that starts so leans on the one before it and reads badly without.
_LEANING = re.compile(
    r"""(?ix) ["'(“]* (this|that|these|those|it|its|they|their|them|he|she|such|so|thus|hence|therefore|then
    |but|and|also|however|instead|otherwise|likewise|similarly|moreover|furthermore|there|here|both|see|note
    |some|others|next|finally|firstly?|second(ly)?|after|once|in\ (other\ words|this|that|these|such)
    |for\ (example|instance|this|these)|as\ (an\ example|described|mentioned|shown|explained)|at\ (this|that)
    |when\ that|of\ (this|these|course)|if\ (so|not|this|that)|the\ (former|latter|same))\b"""
)
# It points to another place in its document.
_POINTING = re.compile(
    r"(?i)\b((section|step|figure|table|chapter) \d|(see|the following|following|above|below)\b)"
)
# What a full stop after it does not end.
_ABBREVIATIONS = _set(
    """e.g i.e cf vs etc al ca approx resp incl no nr vol fig figs sec sect ch chap p pp ed eds dr mr mrs ms
    prof st jr sr inc ltd co corp dept est jan feb mar apr jun jul aug sep sept oct nov dec bzw ggf usw"""
)
_MAY_END = _set("etc inc ltd co corp jr sr usw no al")
_BREAK = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[\"'“‘(\[]*([^\W_]))")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_CITATION = re.compile(
    r"\[\d{1,3}\]|\((?:[A-Z][\w.&'’ -]{1,60}),? (?:19|20)\d\d[a-z]?\)|\bRFC ?\d{3,5}\b|\bdoi:|\bISBN\b"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as it stands in the source with this number, counted from 1."""

    text: str
    source: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The sentences that say most of what the documents say, in the order of the documents."""

    sentences: list[Sentence]


@dataclass(frozen=True, slots=True)
class Keyword:
    """A phrase that stands for what the documents are about.

    Attributes:
        phrase: In the spelling the documents use most.
        score: 1.0 for the first, less for those after it.
        count: How often it occurs in all documents, in any case and number.
        sources: The numbers of the documents in which it occurs, counted from 1.
    """

    phrase: str
    score: float
    count: int
    sources: list[int]


@dataclass(frozen=True, slots=True)
class Assessment:
    """What can be counted about one document that makes it easier, or harder, to rely on.

    It says nothing about whether the document is right.

    Attributes:
        source: The number of the document, counted from 1.
        score: 0.0 to 1.0: the weighted share of the signals that speak for it.
        reasons: One per signal, in words.
    """

    source: int
    score: float
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class Writers:
    """The models that wrote a brief, by what they wrote, and what is to be said about that."""

    summary: list[str]
    keywords: list[str]
    credibility: list[str]
    notes: list[str]


# --- summary ---


def summarize(documents: Sequence[Document], topic: str = "", *, limit: int | None = None) -> Summary:
    """Pick the sentences that are most like all the others: LexRank (Erkan and Radev, 2004).

    Sentences are vectors of their words, a word weighing more the fewer sentences have it. Two sentences vote
    for each other as much as their vectors agree; a sentence that gets votes from sentences with many votes
    ranks high. Those on `topic` start with an advantage. Then counts whether a sentence can stand alone: one
    that opens a document or a paragraph can, one that leans on its neighbours cannot. The best of each
    document come first, then the second best of each, and so on; never one that repeats a chosen one.

    Args:
        documents: In the order in which the brief numbers them.
        topic: Its words draw the choice towards them; "" draws nowhere.
        limit: How many sentences. By default two for each document, but 6 to 10.
    """
    limit = min(10, max(6, 2 * len(documents))) if limit is None else limit
    candidates = _candidates(documents)
    vectors = _vectors([_stems(candidate.text) for candidate in candidates])
    candidates, vectors = _most_central(
        candidates, vectors, per_document=MAX_SENTENCES // max(1, len(documents))
    )
    wanted = set(_stems(topic))
    starts = [1 + 3 * len(wanted & vector.keys()) / max(1, len(wanted)) for vector in vectors]
    votes = _votes(vectors, starts)
    ranks = [vote * candidate.alone for vote, candidate in zip(votes, candidates, strict=True)]
    best_first = sorted(range(len(candidates)), key=lambda index: (-ranks[index], index))
    chosen: list[int] = []
    while len(chosen) < limit:
        heard: set[int] = set()
        for index in best_first:
            if (
                len(chosen) < limit
                and candidates[index].source not in heard
                and all(_likeness(vectors[index], vectors[other]) < 0.45 for other in chosen)
            ):
                heard.add(candidates[index].source)
                chosen.append(index)
        if not heard:
            break
    return Summary([Sentence(candidates[index].text, candidates[index].source) for index in sorted(chosen)])


def sentences(paragraph: str) -> list[str]:
    """Cut a paragraph where a sentence ends, not after `e.g.`, `Dr.`, an initial or a number such as 3.5."""
    found: list[str] = []
    start = 0
    for stop in _BREAK.finditer(paragraph):
        if stop[0].startswith("."):
            after = stop[1]
            before = paragraph[max(start, stop.start() - 40) : stop.start()].split()
            last = before[-1].lstrip("\"'“‘([") if before else ""
            # "U.S. Army", "J. Smith": an initial. "no. 5" goes on, where a capital would start anew.
            if after.islower() or re.fullmatch(r"(?:[^\W\d_]\.)+[^\W\d_]|[A-Z]", last):
                continue
            if last.lower() in _ABBREVIATIONS and not (last.lower() in _MAY_END and after.isupper()):
                continue
        found.append(paragraph[start : stop.end()].strip())
        start = stop.end()
    if rest := paragraph[start:].strip():
        found.append(rest)
    return found


@dataclass(frozen=True, slots=True)
class _Candidate:
    text: str
    source: int
    alone: float  # how well it can be read alone


def _candidates(documents: Sequence[Document]) -> list[_Candidate]:
    """Whole sentences of running text: no headings, questions, enumerations or remains of code."""
    candidates: list[_Candidate] = []
    seen: set[str] = set()
    for number, document in enumerate(documents, start=1):
        alone = 3.0
        for paragraph in document.text.split("\n\n"):
            for text in sentences(paragraph):
                if text not in seen and _is_prose(text):
                    seen.add(text)
                    leans = (0.3 if _LEANING.match(text) else 1.0) * (0.5 if _POINTING.search(text) else 1.0)
                    leans *= min(1.0, len(text.split()) / 16)  # likeness favours the short, which say less
                    candidates.append(_Candidate(text, number, alone * leans))
                    alone = 0.7
            alone = 1.0
    return candidates


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        10 <= len(text.split()) <= 45
        and re.match(r"[\"'“‘]?[^\W_a-z]", text) is not None
        and re.search(r"[.!][\"'”’)]*$", text) is not None
        and re.search(r"[=<>{}|→]|://|\[\D|: [A-Z]", text) is None
        and len(re.findall(r"[:;]", text)) <= 1
        and letters >= 0.88 * len(text)
    )


type _Vector = dict[str, float]


def _vectors(bags: Sequence[Sequence[str]]) -> list[_Vector]:
    spread = Counter(stem for bag in bags for stem in set(bag))
    vectors = []
    for bag in bags:
        weights = {
            stem: count * math.log(1 + len(bags) / spread[stem]) for stem, count in Counter(bag).items()
        }
        length = math.hypot(*weights.values()) or 1.0
        vectors.append({stem: weight / length for stem, weight in weights.items()})
    return vectors


def _most_central(
    candidates: list[_Candidate], vectors: list[_Vector], *, per_document: int
) -> tuple[list[_Candidate], list[_Vector]]:
    """The voting is quadratic: of long documents, only those sentences vote that are closest to the
    average."""
    average: defaultdict[str, float] = defaultdict(float)
    for vector in vectors:
        for stem, weight in vector.items():
            average[stem] += weight / len(vectors)
    by_source: defaultdict[int, list[int]] = defaultdict(list)
    for index, candidate in enumerate(candidates):
        by_source[candidate.source].append(index)
    kept = sorted(
        index
        for indices in by_source.values()
        for index in sorted(indices, key=lambda index: (-_likeness(vectors[index], average), index))[
            : max(3, per_document)
        ]
    )
    return [candidates[index] for index in kept], [vectors[index] for index in kept]


def _votes(vectors: Sequence[_Vector], starts: Sequence[float], *, damping: float = 0.8) -> list[float]:
    """PageRank over likeness: each round a sentence hands its votes on, and keeps a part of its start."""
    edges: list[list[tuple[int, float]]] = [[] for _ in vectors]
    for one, vector in enumerate(vectors):
        for other in range(one):
            # A little likeness every two sentences have; it would only make all of them equal.
            if (likeness := _likeness(vector, vectors[other])) > 0.08:
                edges[one].append((other, likeness))
                edges[other].append((one, likeness))
    given = [sum(likeness for _, likeness in edge) for edge in edges]
    total = sum(starts) or 1.0
    votes = [start / total for start in starts]
    for _ in range(30):
        votes = [
            (1 - damping) * starts[index] / total
            + damping * sum(votes[other] * likeness / given[other] for other, likeness in edges[index])
            for index in range(len(vectors))
        ]
    return votes


def _likeness(one: _Vector, other: _Vector) -> float:
    if len(one) > len(other):
        one, other = other, one
    return sum(weight * other.get(stem, 0.0) for stem, weight in one.items())


# --- key terms ---


def keywords(documents: Sequence[Document], *, limit: int = 12) -> list[Keyword]:
    """Find the phrases the documents are about, with YAKE (Campos et al., 2020), and merge those that say the
    same.

    YAKE looks at one document at a time: where a word stands, how often, in what company. A phrase ranks by
    its places in all documents and by how often it occurs. Of `disk drive`, `disk drives` and `drive` one is
    kept, with the spelling used most. Phrases come before single words, which fill a quarter, and more where
    phrases are few.

    Args:
        documents: In the order in which the brief numbers them.
        limit: How many at most.
    """
    import yake  # brings numpy and networkx: a quarter of a second to import, more on a cold disk

    places: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for document, text in zip(documents, _beginnings(documents), strict=True):
        extractor = yake.KeywordExtractor(lan=_language(document.text), n=3, top=40, dedup_lim=0.9)
        # Sixty characters without a space are no word, and YAKE takes minutes over a megabyte of them.
        text = re.sub(r"\S{60,}", " ", text)
        for rank, (phrase, _) in enumerate(extractor.extract_keywords(text)):
            words = _WORD.findall(phrase)
            stems = tuple(_stem(word) for word in words)
            if len(set(stems)) == len(stems) and not all(word.isdigit() for word in words):
                places[stems] += 1 - rank / 40
    indexes = [_Index(document) for document in documents]
    total = sum(document.words for document in documents)
    best = sorted(places, key=lambda stems: (-places[stems], stems))[:300]
    counts = {stems: sum(index.count(stems) for index in indexes) for stems in best}
    merits = {
        # A single word says less than a phrase: `system` is in every text about systems.
        stems: places[stems] * math.log2(1 + count) * (1.0 if len(stems) > 1 else 0.4)
        for stems, count in counts.items()
        if count
    }
    ranked = sorted(merits, key=lambda stems: (-merits[stems], stems))

    chosen: list[tuple[str, ...]] = []
    for stems in (stems for stems in ranked if len(stems) > 1):
        # What only occurs inside a chosen phrase, or around one, says nothing new.
        enough = 1 if total < 150 else max(2, total // 3_500)
        if (
            len(chosen) < limit - limit // 4
            and sum(index.count(stems, free=True) for index in indexes) >= enough
        ):
            chosen.append(stems)
            for index in indexes:
                index.take(stems)
    for stems in (stems for stems in ranked if len(stems) == 1):
        enough = 1 if total < 150 else max(3, total // 2_500)
        if len(chosen) < limit and counts[stems] >= enough and not any(stems[0] in other for other in chosen):
            chosen.append(stems)
    chosen.sort(key=ranked.index)
    return [
        Keyword(
            phrase=_usual(sum((index.spellings(stems) for index in indexes), Counter())),
            score=round(merits[stems] / merits[chosen[0]], 3),
            count=counts[stems],
            sources=[number for number, index in enumerate(indexes, start=1) if index.count(stems)],
        )
        for stems in chosen
    ]


def located(phrases: Sequence[str], documents: Sequence[Document]) -> list[Keyword]:
    """Look up key terms that somebody named, the most telling one first.

    Returns:
        Those that the documents have, in the same order, with what they are counted as; phrases that are one in the documents
        once, in the spelling used most.
    """
    indexes = [_Index(document) for document in documents]
    found: dict[tuple[str, ...], None] = {}
    for phrase in phrases:
        stems = tuple(_stem(word) for word in _WORD.findall(phrase))
        if stems and any(index.count(stems) for index in indexes):
            found.setdefault(stems)
    return [
        Keyword(
            phrase=_usual(sum((index.spellings(stems) for index in indexes), Counter())),
            score=round(1 - rank / len(found), 3),
            count=sum(index.count(stems) for index in indexes),
            sources=[number for number, index in enumerate(indexes, start=1) if index.count(stems)],
        )
        for rank, stems in enumerate(found)
    ]


class _Index:
    """Where in one document each stem stands, to find phrases by their stems, within a sentence, word by
    word."""

    def __init__(self, document: Document) -> None:
        self._text = document.text
        self._words = list(_WORD.finditer(document.text))
        self._stems = [_stem(match[0]) for match in self._words]
        self._taken: set[int] = set()
        self._starts: defaultdict[str, list[int]] = defaultdict(list)
        for place, stem in enumerate(self._stems):
            self._starts[stem].append(place)

    def count(self, stems: Sequence[str], *, free: bool = False) -> int:
        """How often the phrase occurs; with `free`, how often it shares no word with a phrase that was
        taken."""
        return sum(not (free and self._taken.intersection(place)) for place in self._places(stems))

    def take(self, stems: Sequence[str]) -> None:
        self._taken.update(*self._places(stems))

    def spellings(self, stems: Sequence[str]) -> Counter[str]:
        return Counter(
            self._text[self._words[place[0]].start() : self._words[place[-1]].end()]
            for place in self._places(stems)
        )

    def _places(self, stems: Sequence[str]) -> Iterator[range]:
        for start in self._starts.get(stems[0], ()):
            end = start + len(stems)
            if self._stems[start:end] == list(stems):
                between = (
                    self._text[one.end() : other.start()] for one, other in pairwise(self._words[start:end])
                )
                if all(gap in (" ", "-") for gap in between):
                    yield range(start, end)


def _usual(spelled: Counter[str]) -> str:
    phrase = min(spelled, key=lambda phrase: (-spelled[phrase], phrase != phrase.lower(), phrase))
    return re.sub(r"['’]s$", "", phrase)


def _beginnings(documents: Sequence[Document]) -> list[str]:
    """As much of each document as `keywords` reads."""
    share = max(300, MAX_TERM_WORDS // max(1, len(documents)))
    return [
        document.text if document.words <= share else _first_words(document.text, share)
        for document in documents
    ]


def _first_words(text: str, count: int) -> str:
    last = next(islice(re.finditer(r"\S+", text), count - 1, None))
    return text[: last.end()]


# --- credibility ---


def credibility(documents: Sequence[Document]) -> list[Assessment]:
    """Count what speaks for and against relying on each document, and say what was counted.

    Six signals: is an author named, is it dated, does it point to other work, is its tone sober, can it be
    read, is it long enough to explain anything. Tone and readability are judged in English only and left out
    otherwise.
    """
    return [_assess(number, document) for number, document in enumerate(documents, start=1)]


def _assess(number: int, document: Document) -> Assessment:
    signals = [_author(document), _dated(document), _references(document), _length(document)]
    if _language(document.text) == "en":
        signals += [_tone(document), _readability(document)]
    else:
        signals.append((0.0, 0.0, "tone and readability not judged: not English"))
    score = sum(weight * value for weight, value, _ in signals) / sum(weight for weight, _, _ in signals)
    return Assessment(number, round(score, 2), [reason for _, _, reason in signals])


type _Signal = tuple[float, float, str]  # weight, how far it speaks for the document (0 to 1), in words


def _author(document: Document) -> _Signal:
    if document.author:
        return 0.2, 1.0, f"names its author ({document.author})"
    return 0.2, 0.0, "names no author"


def _dated(document: Document) -> _Signal:
    if document.date:
        return 0.15, 1.0, f"dated {document.date}"
    return 0.15, 0.0, "not dated"


def _references(document: Document) -> _Signal:
    count = document.links + len(_CITATION.findall(document.text))
    per_thousand = 1_000 * count / max(300, document.words)
    if count == 0:
        return 0.2, 0.0, "points to no other work"
    return 0.2, min(1.0, per_thousand / 5), f"points to other work {_times(count)}"


def _length(document: Document) -> _Signal:
    value = min(1.0, document.words / 400)
    return (
        0.1,
        value,
        f"{document.words:,} words" + (", too few to explain much" if document.words < 150 else ""),
    )


def _tone(document: Document) -> _Signal:
    words = Counter(word.lower() for word in _WORD.findall(document.text))
    superlatives = sum(words[word] for word in _SUPERLATIVES) + len(re.findall(r"!(?!\w|=)", document.text))
    hedges = sum(words[word] for word in _HEDGES)
    scale = 1_000 / max(150, document.words)
    # Ten superlatives or exclamation marks in a thousand words are an advertisement; no doubt in them is
    # bold.
    value = 0.7 * max(0.0, 1 - superlatives * scale / 10) + 0.3 * min(1.0, hedges * scale / 5)
    kind = "sober" if value >= 0.8 else "plain" if value >= 0.5 else "promotional"
    return 0.2, value, f"{kind} tone ({_many(superlatives, 'superlative')}, {_many(hedges, 'hedged word')})"


def _readability(document: Document) -> _Signal:
    """Flesch reading ease: 100 is a children's book, 30 an academic paper, below 10 hardly prose."""
    parts = [text for paragraph in document.text.split("\n\n") for text in sentences(paragraph)]
    words = _WORD.findall(document.text) or [""]
    syllables = sum(max(1, len(re.findall(r"(?i)[aeiouy]+", re.sub(r"(?i)e\b", "", word)))) for word in words)
    ease = 206.835 - 1.015 * len(words) / max(1, len(parts)) - 84.6 * syllables / len(words)
    value = min(1.0, max(0.0, ease / 30))
    kind = "easy to read" if ease >= 60 else "readable" if ease >= 30 else "hard to read"
    return 0.15, value, f"{kind} (Flesch {max(0.0, min(100.0, ease)):.0f})"


# --- the page ---


def compile_brief(
    topic: str,
    summary: Summary,
    keywords: Sequence[Keyword],
    assessments: Sequence[Assessment],
    documents: Sequence[Document],
    *,
    writers: Writers | None = None,
) -> str:
    """Write the brief as Markdown: summary, key terms, sources with their signals. Text of a source stays
    text, and so does that of a model.

    Args:
        topic: The title; "" takes the first key terms.
        summary: Of these documents, as are `keywords` and `assessments`.
        keywords: In the order in which they are listed.
        assessments: One per document.
        documents: In the order of their numbers.
        writers: The models that were asked; None for what was counted.
    """
    title = topic.strip() or ", ".join(word.phrase for word in keywords[:3]) or documents[0].title
    words = sum(document.words for document in documents)
    lines = [
        f"# Research brief: {_escaped(title)}",
        f"*{_many(len(documents), 'source')}, {words:,} words. The sentences below are quoted,"
        " each with its source.*",
        "## Summary",
    ]
    lines.append(
        "\n".join(f"- {_at_line_start(sentence.text)} [{sentence.source}]" for sentence in summary.sentences)
        or "No source has a whole sentence to quote."
    )
    if keywords:
        lines.append("## Key terms")
        lines.append(
            "\n".join(
                f"- **{_escaped(word.phrase)}**: {_times(word.count)}"
                f" in {', '.join(f'[{number}]' for number in word.sources)}"
                for word in keywords
            )
        )
    folder = _common_folder([document.origin for document in documents if not is_url(document.origin)])
    lines.append("## Sources")
    scores = "credibility" if writers else "credibility signals"
    rows = [f"| | source | where | words | {scores} |", "|---:|---|---|---:|---:|"]
    for number, (document, assessment) in enumerate(zip(documents, assessments, strict=True), start=1):
        rows.append(
            f"| {number} | {_cell(document.title)} | {_where(document.origin, folder)} | {document.words:,} "
            f"| {assessment.score:.2f} |"
        )
    lines.append("\n".join(rows))
    if folder:
        lines.append(f"Files are in {_code(folder)}.")
    lines.append("## Credibility" if writers else "## Credibility signals")
    lines.append(
        f"Judged by {_models(writers.credibility)} from the text alone, not counted; a judgement is no proof."
        if writers
        else "Counted, not judged: 1.00 means that every signal speaks for the source, not that it is right."
    )
    lines.append(
        "\n".join(
            f"{assessment.source}. **{assessment.score:.2f}** {_escaped('; '.join(assessment.reasons))}"
            for assessment in assessments
        )
    )
    if notes := _notes(documents, counted=writers is None):
        lines += ["## Notes on reading", "\n".join(f"- {note}" for note in notes)]
    if writers:
        lines += ["## Written by models", "\n".join(f"- {line}" for line in _written(writers))]
    return "\n\n".join(lines) + "\n"


def _written(writers: Writers) -> list[str]:
    return [
        f"The sentences were chosen by {_models(writers.summary)}; each was looked up in its source.",
        f"The key terms were named by {_models(writers.keywords)}, and counted in the sources.",
        f"The credibility was judged by {_models(writers.credibility)}.",
        *(_escaped(note) for note in writers.notes),
    ]


def _models(names: Sequence[str]) -> str:
    *most, last = map(_code, names)
    return f"{', '.join(most)} and {last}" if most else last


def _notes(documents: Sequence[Document], *, counted: bool) -> list[str]:
    notes = [
        f"[{number}] {_escaped(note)}"
        for number, document in enumerate(documents, start=1)
        for note in document.notes
    ]
    shares = {
        len(read.split())
        for document, read in zip(documents, _beginnings(documents), strict=True)
        if len(read) < len(document.text)
    }
    if shares and counted:
        notes.append(f"key terms are taken from the first {max(shares):,} words of each source")
    return notes


def _common_folder(paths: Sequence[str]) -> str:
    if not paths or len({PurePath(path).is_absolute() for path in paths}) > 1:
        return ""
    folder = os.path.commonpath([PurePath(path).parent for path in paths])
    return "" if folder in (".", "/") else folder


def _where(origin: str, folder: str) -> str:
    if is_url(origin):
        return "<" + re.sub(r"[\s<>|\\]", lambda match: f"%{ord(match[0]):02X}", origin) + ">"
    return _code(str(PurePath(origin).relative_to(folder)) if folder else origin)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """What Markdown would take for markup, taken for text."""
    text = re.sub(r"[\\`*\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def _at_line_start(text: str) -> str:
    """As `_escaped`, where `1.`, `#` or `-` would begin a list or a heading."""
    return re.sub(r"^(\d*)([.)#>+-])", r"\1\\\2", _escaped(text))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


# --- words ---


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in _WORD.findall(text) if len(word) > 2]


@functools.lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    """Cut common English endings: `caches`, `cached` and `caching` are one word. Crude, and good enough to
    compare."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    for ending in ("ies", "ing", "ed", "es", "s", "e"):
        if (
            word.endswith(ending)
            and len(word) - len(ending) >= 3
            and not (ending == "s" and word.endswith("ss"))
        ):
            return word.removesuffix(ending) + ("y" if ending == "ies" else "")
    return word


def _language(text: str) -> str:
    """The code of the language whose commonest words are the most frequent here; English if none stands
    out."""
    words = Counter(text[:20_000].lower().split())

    def frequency(language: str) -> int:
        return sum(words[word] for word in _COMMON[language])

    return max(_COMMON, key=frequency)  # the first of equals, which is English
