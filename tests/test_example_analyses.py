"""The work of the research brief: documents in, a sensible page out, and no document that can break it."""

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("trafilatura")
pytest.importorskip("yake")
pytest.importorskip("markdown_it")

from baton.examples.research_brief import analyses, sources
from baton.examples.research_brief.sources import Document, SourceError, SourceUnavailable, load

BEES = """\
Title: How honey bees find a home
Author: Mira Holt
Date: 2 March 2021

A honey bee swarm chooses its new nest site by a debate among scout bees. Each scout bee that has found a
hollow tree performs a waggle dance, and the dance is longer for a better nest site. Other scout bees follow
the dance, inspect the hollow tree themselves and may dance for it in turn. Prof. T. Seeley et al. 2010 have
described the debate in detail, e.g. how a scout bee stops rivals with a short beep.

When enough scout bees meet at one nest site, they return and warm up the swarm. The swarm then flies to the
hollow tree within minutes, guided by the few bees that know the way. A swarm rarely splits, because the
debate among the scout bees ends only when a quorum is reached at one nest site.
"""

BREAD = """\
# Sourdough bread

By: Jo Park

Sourdough bread rises because wild yeast and lactic bacteria live together in a starter. The baker feeds
the starter with flour and water, and the wild yeast produces the gas that lifts the dough. A cold dough
ferments slowly, and slow fermentation gives sourdough bread its acid taste.

```
print("this is code, and no sentence of the article at all, whatever it may look like to others.")
```

| flour | water |
|-------|-------|
| 500 g | 350 g |

- The [starter](starter.md) must double its size before the baker mixes it into the dough.
- Wild yeast survives a week in the refrigerator, if the starter was fed well before.
"""

PAGE = """\
<!DOCTYPE html><html><head><title>Tides</title>
<meta name="author" content="Ada Marsh"><meta name="date" content="2019-07-01">
<script>var stolen = "The script steals every cookie of the reader and sends it away.";</script></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>
<article><h1>Tides</h1>
<p>The tide is the regular rise and fall of the sea, caused by the pull of the moon and the sun.<br>It turns
twice a day on most coasts of the <a href="https://example.org/ocean">open ocean</a>.</p>
<p>A spring tide is higher than an ordinary one, because sun and moon pull in one line at new moon and full
moon.</p>
<p>Between them lies the neap tide, when the two pull at a right angle and the sea moves least.</p>
</article><style>p { color: red }</style></body></html>
"""


class Brief(NamedTuple):
    documents: list[Document]
    summary: analyses.Summary
    keywords: list[analyses.Keyword]
    assessments: list[analyses.Assessment]
    text: str


def brief(*origins: Path | str, topic: str = "") -> Brief:
    documents = load([str(origin) for origin in origins])
    summary = analyses.summarize(documents, topic)
    keywords = analyses.keywords(documents)
    assessments = analyses.credibility(documents)
    text = analyses.compile_brief(topic, summary, keywords, assessments, documents)
    return Brief(documents, summary, keywords, assessments, text)


type Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# --- briefs ---


def check(made: Brief) -> None:
    """What holds for every brief: it takes everything from its documents."""
    for sentence in made.summary.sentences:
        assert sentence.text in made.documents[sentence.source - 1].text
    for word in made.keywords:
        for source in word.sources:
            first = word.phrase.lower().split()[0].rstrip("s")
            assert first in made.documents[source - 1].text.lower()
        assert word.count >= len(word.sources) >= 1
        assert 0 < word.score <= 1
    assert [assessment.source for assessment in made.assessments] == [*range(1, len(made.documents) + 1)]
    assert all(0 <= assessment.score <= 1 for assessment in made.assessments)
    for document in made.documents:
        assert document.words == len(document.text.split()) > 0


def test_two_inputs_give_two_briefs_each_about_its_own_document(write):
    bees, bread = brief(write("bees.txt", BEES)), brief(write("bread.md", BREAD))
    check(bees)
    check(bread)
    assert {"scout bees", "nest site"} <= {word.phrase for word in bees.keywords}
    assert {"wild yeast", "sourdough bread"} <= {word.phrase.lower() for word in bread.keywords}
    assert not {word.phrase.lower() for word in bees.keywords} & {
        word.phrase.lower() for word in bread.keywords
    }
    assert {text.text for text in bees.summary.sentences}.isdisjoint(
        text.text for text in bread.summary.sentences
    )
    assert bees.text.startswith("# Research brief: ")
    assert bees.summary.sentences[0].text == (
        "A honey bee swarm chooses its new nest site by a debate among scout bees."
    )
    assert "this is code" not in bread.text
    assert "350 g" not in bread.text


def test_the_texts_that_ship_make_a_brief_that_names_and_quotes_each_of_them():
    made = brief(topic="surviving a power failure")
    check(made)
    assert len(made.documents) == 4
    assert {sentence.source for sentence in made.summary.sentences} == {1, 2, 3, 4}
    phrases = {word.phrase for word in made.keywords}
    assert {"power loss", "asynchronous commit", "powersafe overwrite"} <= phrases
    assert made.text.startswith("# Research brief: surviving a power failure\n")
    assert all(document.title in made.text for document in made.documents)
    assert "dated 2016-09-14" in made.text
    assert not any("PERMISSION" in document.text.upper() for document in made.documents), (
        "the licence was read"
    )
    assert all(300 < document.words < 1_300 for document in made.documents)


def test_the_same_documents_give_the_same_brief(write):
    paths = [write("bees.txt", BEES), write("bread.md", BREAD), write("tides.html", PAGE)]
    assert brief(*paths, topic="nature") == brief(*paths, topic="nature")


def test_a_topic_draws_the_summary_towards_it():
    documents = load([])
    about = analyses.summarize(documents, "torn pages", limit=8)
    assert any("torn page" in sentence.text for sentence in about.sentences)


def test_a_summary_says_nothing_twice_and_keeps_to_its_limit(write):
    paths = [write(f"{number}.txt", BEES.replace("minutes", f"{number} hours")) for number in range(3)]
    made = brief(*paths)
    assert len({sentence.text for sentence in made.summary.sentences}) == len(made.summary.sentences)
    assert len(analyses.summarize(made.documents, limit=2).sentences) == 2


def test_of_phrases_that_say_the_same_one_is_kept(write):
    made = brief(write("bees.txt", BEES))
    phrases = [word.phrase.lower() for word in made.keywords]
    assert len([phrase for phrase in phrases if "scout" in phrase]) == 1
    assert len(phrases) == len(set(phrases))


def test_everything_is_plain_json(write):
    made = brief(write("bees.txt", BEES), write("tides.html", PAGE))
    for value in (*made.documents, made.summary, *made.keywords, *made.assessments):
        assert json.loads(json.dumps(asdict(value), allow_nan=False)) == asdict(value)


def test_credibility_prefers_the_sober_dated_signed_text_and_says_why(write):
    advert = (
        "Our incredible product is the best! It is absolutely perfect! Amazing results, guaranteed! " * 20
    )
    sober, loud = analyses.credibility(load([str(write("bees.txt", BEES)), str(write("ad.txt", advert))]))
    assert sober.score > loud.score + 0.3
    assert "names its author (Mira Holt)" in sober.reasons
    assert "dated 2021-03-02" in sober.reasons
    assert "names no author" in loud.reasons
    assert any(reason.startswith("promotional tone (") for reason in loud.reasons)


def test_a_text_in_another_language_gets_its_own_stop_words_and_no_english_judgement(write):
    german = (
        "Die Gezeiten sind die Bewegung des Wassers im Meer. Der Mond zieht das Wasser mit seiner Schwerkraft"
        " an, und die Sonne zieht mit. Das Wasser steigt zweimal am Tag, wenn der Mond über dem Meer steht. Die"
        " Schwerkraft der Sonne ist nicht so stark wie die des Mondes, weil die Sonne weit von der Erde ist."
    )
    made = brief(write("gezeiten.txt", german))
    check(made)
    assert not {"der", "die", "das", "und"} & {word.phrase.lower() for word in made.keywords}
    assert "tone and readability not judged: not English" in made.text


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("One ends here. Two starts.", ["One ends here.", "Two starts."]),
        ("Use WAL, e.g. in PostgreSQL. Done.", ["Use WAL, e.g. in PostgreSQL.", "Done."]),
        ("Dr. Smith et al. (2010) and J. R. Moe agree.", ["Dr. Smith et al. (2010) and J. R. Moe agree."]),
        ("It took 3.5 s. It works.", ["It took 3.5 s.", "It works."]),
        ("Pens, paper etc. Then we left.", ["Pens, paper etc.", "Then we left."]),
        ("See no. 5 in the U.S. Army list.", ["See no. 5 in the U.S. Army list."]),
        ("“Is it?” He asked. (Yes.) End", ["“Is it?”", "He asked.", "(Yes.)", "End"]),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(paragraph, expected):
    assert analyses.sentences(paragraph) == expected


def test_markup_in_a_source_stays_text_in_the_brief(write):
    text = (
        "Title: <script>alert(1)</script> | a [link](javascript:alert)\n\n"
        "A text with *stars* and <b>bold</b> letters is shown exactly as its author has written it down.\n"
    )
    made = brief(write("a|b`.txt", text), topic="*loud* <img>")
    assert "<script" not in made.text
    assert "<img" not in made.text
    assert "[link]" not in made.text.replace("\\[link\\]", "")
    assert made.text.splitlines()[0] == "# Research brief: \\*loud\\* &lt;img>"
    row = next(line for line in made.text.splitlines() if line.startswith("| 1 |"))
    assert row.replace("\\|", "").count("|") == 6


def test_documents_without_a_sentence_still_make_a_brief(write):
    made = brief(write("list.txt", "apples\n\npears\n\nplums"))
    check(made)
    assert made.summary.sentences == []
    assert "No source has a whole sentence to quote." in made.text


# --- reading ---


def test_plain_text_gives_its_header_lines_and_joins_broken_lines(write):
    (document,) = load([str(write("bees.txt", BEES))])
    assert (document.title, document.author, document.date) == (
        "How honey bees find a home",
        "Mira Holt",
        "2021-03-02",
    )
    assert document.kind == "text"
    assert "that has found a hollow tree performs" in document.text
    assert document.text.count("\n\n") == 1


def test_markdown_gives_its_front_matter_and_leaves_out_code_and_tables(write):
    path = write("tides.md", f"---\ntitle: 'Bread'\nauthor: [Jo Park]\ndate: March 2020\n---\n\n{BREAD}")
    (document,) = load([str(path)])
    assert (document.title, document.author, document.date, document.links) == (
        "Bread",
        "Jo Park",
        "2020-03",
        1,
    )
    assert "print(" not in document.text
    assert "500 g" not in document.text
    assert "The starter must double its size" in document.text


def test_html_gives_its_main_text_and_metadata_and_no_script(write):
    (document,) = load([str(write("tides.html", PAGE))])
    assert (document.title, document.author, document.date) == ("Tides", "Ada Marsh", "2019-07-01")
    assert document.links == 1
    assert "cookie" not in document.text
    assert "color" not in document.text
    assert "Shop" not in document.text
    assert "the sun. It turns twice a day on most coasts of the open ocean." in document.text


@pytest.mark.parametrize("kind", [".html", ".md", ".txt"])
@pytest.mark.parametrize(
    "data",
    [
        "caf\u00e9 is a word that has an accent".encode("utf-8-sig"),
        "caf\u00e9 is a word that has an accent".encode("utf-16"),
        "caf\u00e9 is a word that has an accent".encode("latin-1"),
    ],
)
def test_text_is_decoded_as_it_was_written(write, data, kind):
    (document,) = load([str(write("page" + kind, data))])
    assert "caf\u00e9 is a word" in document.text


def test_a_declared_encoding_is_used_and_a_guessed_one_is_noted(write):
    russian = "<meta charset='koi8-r'><p>Море волнуется раз, море волнуется два, море волнуется три.</p>"
    (declared,) = load([str(write("sea.html", russian.encode("koi8-r")))])
    assert "Море волнуется раз" in declared.text
    assert declared.notes == []
    (guessed,) = load([str(write("guess.txt", b"caf\xe9 and na\xefve are two words"))])
    assert guessed.notes == ["not UTF-8, read as Latin-1"]


@pytest.mark.parametrize(
    "page",
    [
        "<p>The page ends in the middle of <b>a tag, but it can be <i>read",
        "<?xml version='1.0' encoding='utf-8'?><html xmlns='http://www.w3.org/1999/xhtml'><body><p>The page"
        " ends and can be read.</p></body></html>",
        "The page has no tags at all, but it can be read.",
        "<div>" * 3_000 + "<p>The page is deep, and it can be read.</p>",
        "<html><body><p>The page hides a &#0;NUL&#7; and can be read.</p><!-- a comment --></body></html>",
        "<!DOCTYPE html><!-- a <b>comment</b> --><style>p { color: red }</style>The page can be <em>read",
    ],
)
def test_broken_html_is_read_as_far_as_it_goes(write, page):
    (document,) = load([str(write("page.html", page))])
    assert "read" in document.text
    assert "The page" in document.text
    assert "\x00" not in document.text
    assert "\x07" not in document.text
    assert "comment" not in document.text


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("blank.md", b" \n\t\n", "empty"),
        ("image.txt", b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        ("paper.html", b"%PDF-1.7 stream", "a PDF"),
        ("data.txt", bytes(range(256)) * 10, "binary"),
        ("huge.txt", b"word " * 1_000_001, "larger than 5 MB"),
        ("code.md", b"```\nonly = code\n```\n", "no text"),
        ("comment.html", b"<!--" * 1_000, "no text"),
        ("script.html", b"<html><body><script>var a = 1;</script></body></html>", "no text"),
    ],
)
def test_a_named_document_that_cannot_be_used_is_an_error_that_names_it(write, name, content, message):
    path = write(name, content)
    with pytest.raises(SourceError, match=message) as caught:
        load([str(path)])
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere.md' does not exist .* check the path"):
        load([str(tmp_path / "nowhere.md")])


def test_what_is_no_ordinary_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SourceError, match="not an ordinary file"):
        load([str(tmp_path / "pipe.txt")])


def test_a_folder_is_read_in_the_order_of_its_names_and_what_is_bad_is_noted(write, tmp_path, caplog):
    write("b.md", BREAD)
    write("a.txt", BEES)
    write("sub/c.HTML", PAGE)
    write("sub/empty.txt", "")
    write("picture.png", b"\x89PNG")
    write(".hidden.txt", "This is hidden from the reader of folders.")
    write(".git/config.txt", "This is hidden from the reader of folders.")
    write("LICENSE.txt", "This is the licence of the other texts.")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    documents = load([str(tmp_path)])
    assert [document.kind for document in documents] == ["text", "markdown", "html"]
    assert len(documents[0].notes) == 1
    assert "sub/empty.txt" in documents[0].notes[0]
    assert "sub/empty.txt" in caplog.text
    assert "sub/empty.txt" in brief(tmp_path).text


def test_a_folder_without_a_document_is_an_error(write, tmp_path):
    with pytest.raises(SourceError, match="has no file ending in"):
        load([str(tmp_path)])
    write("empty.txt", "")
    with pytest.raises(SourceError, match=r"nothing to read: empty.txt: .*empty"):
        load([str(tmp_path)])


def test_a_folder_of_too_many_documents_is_cut_and_says_so(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENTS", 2)
    for number in range(4):
        write(f"{number}.txt", f"This is the text number {number}.")
    documents = load([str(tmp_path)])
    assert len(documents) == 2
    assert "2.txt and whatever follows it" in documents[0].notes[0]
    with pytest.raises(SourceError, match="3 documents were named"):
        load(["a", "b", "c"])


def test_more_text_than_a_step_should_store_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_TOTAL", 50)
    paths = [str(write(f"{number}.txt", f"This is the text number {number}.")) for number in range(3)]
    with pytest.raises(SourceError, match="name fewer, or smaller ones"):
        load(paths)
    assert len(load([str(tmp_path)])) == 1


def test_of_long_documents_the_beginning_gives_the_key_terms_and_the_brief_says_so(write, monkeypatch):
    monkeypatch.setattr(analyses, "MAX_TERM_WORDS", 300)
    made = brief(write("long.txt", BEES + BREAD * 10))
    assert "key terms are taken from the first 300 words of each source" in made.text


def test_words_without_end_end(write):
    made = brief(write("endless.txt", "a" * 200_000 + " b"), write("brackets.md", "[" * 20_000))
    assert made.keywords == []


def test_the_same_text_is_read_once(write):
    assert len(load([str(write("one.txt", BEES)), str(write("two.txt", BEES))])) == 1


def test_a_file_name_that_is_no_text_does_not_break_the_brief(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")  # noqa: PTH118 - pathlib has no bytes
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(BEES.encode())
    made = brief(os.fsdecode(path))
    made.text.encode()
    json.dumps(asdict(made.documents[0])).encode()


# --- URLs ---

ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/tides": (200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.encode()),
    "/notes/bread.md": (200, {"Content-Type": "text/plain"}, BREAD.encode()),
    "/with%20space.txt": (200, {}, BEES.encode()),
    "/latin": (
        200,
        {"Content-Type": "text/plain; charset=iso-8859-2"},
        "źródło is a source".encode("iso-8859-2"),
    ),
    "/moved": (302, {"Location": "/tides"}, b""),
    "/to-file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/to-ftp": (302, {"Location": "ftp://127.0.0.1/x"}, b""),
    "/loop": (302, {"Location": "/loop"}, b""),
    "/image": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
    "/unknown": (200, {"Content-Type": "nonsense/charset; charset=no-such-charset"}, b"text"),
    "/odd-charset": (200, {"Content-Type": "text/plain; charset=hex"}, b"caf\xe9 is a word here"),
    "/zipped": (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, b"\x1f\x8b"),
    "/huge.txt": (200, {"Content-Type": "text/plain"}, b"word " * 1_000_001),
    "/missing": (404, {}, b""),
    "/broken": (503, {}, b""),
    "/short": (200, {"Content-Type": "text/plain", "Content-Length": "1000"}, b"cut off"),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = ANSWERS[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        # The reader hangs up on what is too long.
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_read_as_what_the_server_says_it_is(url):
    documents = load([url + path for path in ("/tides", "/notes/bread.md", "/with space.txt", "/latin")])
    assert [document.kind for document in documents] == ["html", "markdown", "text", "text"]
    assert documents[0].origin == url + "/tides"
    assert [document.title for document in documents[:3]] == [
        "Tides",
        "Sourdough bread",
        "How honey bees find a home",
    ]
    assert documents[3].text == "źródło is a source"


def test_a_brief_of_a_url_links_to_it(url):
    made = brief(url + "/moved")
    check(made)
    assert f"| <{url}/moved> |" in made.text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/to-file", "not allowed"),
        ("/to-ftp", "neither http nor https"),
        ("/image", "is image/png"),
        ("/unknown", "only HTML, Markdown and plain text"),
        ("/zipped", "encoding 'gzip'"),
        ("/huge.txt", "larger than 5 MB"),
        ("/missing", "404 .*check the address"),
    ],
)
def test_a_url_that_will_never_do_is_an_error(url, path, message):
    with pytest.raises(SourceError, match=message) as caught:
        load([url + path])
    assert not isinstance(caught.value, SourceUnavailable)


@pytest.mark.parametrize("path", ["/broken", "/short"])
def test_a_url_that_may_do_later_is_unavailable(url, path):
    with pytest.raises(SourceUnavailable):
        load([url + path])


def test_a_redirect_in_circles_ends(url):
    with pytest.raises(SourceError):
        load([url + "/loop"])


def test_a_charset_nobody_knows_does_not_matter(url):
    assert "caf\u00e9 is a word" in load([url + "/odd-charset"])[0].text


def test_a_server_that_drips_is_left(url, monkeypatch):
    monkeypatch.setattr(sources, "DEADLINE", -1.0)
    with pytest.raises(SourceUnavailable, match="took longer"):
        load([url + "/tides"])


@pytest.mark.parametrize(
    "origin",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "http://",
        "https://[broken",
        "http://me:secret@example.org/",
    ],
)
def test_an_address_that_is_no_plain_web_address_is_refused_unasked(origin):
    with pytest.raises(SourceError) as caught:
        load([origin])
    assert "secret" not in str(caught.value)


def test_nobody_listening_is_unavailable(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(SourceUnavailable, match="check the address and the network"):
        load(["http://127.0.0.1:9/"])
