import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import pytest

from baton._fold import fold
from baton._layout import layout
from baton._states import StepState
from baton.render import to_dot, to_mermaid, to_svg, to_text
from tests.kit.hostile import NAMES

DIAMOND = {
    "fetch_sources": [],
    "keywords": ["fetch_sources"],
    "credibility": ["fetch_sources"],
    "outline": ["fetch_sources"],
    "compile_brief": ["keywords", "credibility", "outline"],
}
STATES = {"fetch_sources": "completed", "keywords": "executing", "compile_brief": "held"}


def test_text_lists_each_step_once_by_layer():
    assert to_text(DIAMOND) == (
        "1  fetch_sources\n"
        "2  keywords       <- fetch_sources\n"
        "   credibility    <- fetch_sources\n"
        "   outline        <- fetch_sources\n"
        "3  compile_brief  <- keywords, credibility, outline\n"
    )


def test_text_shows_states_in_a_column():
    assert to_text(DIAMOND, STATES).splitlines()[:3] == [
        "1  fetch_sources  completed",
        "2  keywords       executing  <- fetch_sources",
        "   credibility               <- fetch_sources",
    ]


def test_text_names_a_few_of_many_dependencies():
    graph = {f"part[{n}]": [] for n in range(50)} | {"sum": [f"part[{n}]" for n in range(50)]}
    assert to_text(graph).splitlines()[-1] == (
        "2  sum       <- part[0], part[1], part[2], part[3], part[4], 45 more"
    )


def test_text_has_one_line_for_many_steps_that_are_alike():
    graph = {"plan": []} | {f"part[{n}]": ["plan"] for n in range(1200)}
    graph |= {"sum": [f"part[{n}]" for n in range(1200)]}
    states = {"plan": "completed", "sum": "held"} | {
        f"part[{n}]": "completed" if n < 1000 else "executing" for n in range(1200)
    }
    assert to_text(graph, states) == (
        "1  plan          completed\n"
        "2  part (1,200)  1,000 completed, 200 executing  <- plan\n"
        "3  sum           held                            <- part (1,200)\n"
    )


def test_text_puts_a_cycle_last():
    assert to_text({"a": ["b"], "b": ["a"], "c": [], "d": ["elsewhere"]}) == (
        "1  c\n   d  <- elsewhere\n?  a  <- b\n   b  <- a\n"
    )


def test_mermaid_draws_the_diamond():
    assert to_mermaid(DIAMOND, STATES).splitlines() == [
        "flowchart LR",
        '    s0["fetch_sources"]',
        '    s1["keywords"]',
        '    s2["credibility"]',
        '    s3["outline"]',
        '    s4["compile_brief"]',
        "    s0 --> s1",
        "    s0 --> s2",
        "    s0 --> s3",
        "    s1 --> s4",
        "    s2 --> s4",
        "    s3 --> s4",
        "    classDef completed fill:#dcfce7,stroke:#16a34a,color:#18181b",
        "    class s0 completed",
        "    classDef executing fill:#fef3c7,stroke:#d97706,color:#18181b",
        "    class s1 executing",
        "    classDef held fill:#f4f4f5,stroke:#a1a1aa,color:#18181b",
        "    class s4 held",
    ]


def test_mermaid_folds_what_it_would_not_draw():
    graph = {"plan": []} | {f"part[{n}]": ["plan"] for n in range(500)}
    assert to_mermaid(graph).count("-->") == 500
    graph["part[500]"] = ["plan"]
    states = dict.fromkeys(graph, "completed")
    assert to_mermaid(graph, states).splitlines() == [
        "flowchart LR",
        '    s0["plan"]',
        '    s1["part #40;501#41;"]',
        "    s0 --> s1",
        "    classDef completed fill:#dcfce7,stroke:#16a34a,color:#18181b",
        "    class s0,s1 completed",
    ]


def test_dot_draws_the_diamond():
    lines = to_dot(DIAMOND, STATES).splitlines()
    assert lines[0] == "digraph workflow {"
    assert '    s0 [label="fetch_sources", fillcolor="#dcfce7", color="#16a34a"]' in lines
    assert "    s3 -> s4" in lines
    assert lines[-1] == "}"


def test_nothing_draws_nothing():
    assert to_text({}) == "(no steps)\n"
    assert to_mermaid({}) == "flowchart LR\n"
    assert to_dot({}).startswith("digraph")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_stays_a_label(name):
    graph = {"root": [], name: ["root"]}
    states = {"root": name, name: "completed"}
    mermaid, dot, text = to_mermaid(graph, states), to_dot(graph, states), to_text(graph, states)
    assert len(mermaid.splitlines()) == 6
    assert re.fullmatch(r'    s1\["[^"<>&`;\\]*(#\d+;[^"<>&`;\\]*)*"\]', mermaid.splitlines()[2])
    assert len(dot.splitlines()) == 7
    assert re.fullmatch(
        r'    s1 \[label="([^"\\]|\\.)*", fillcolor="#\w+", color="#\w+"\]', dot.splitlines()[4]
    )
    assert len(text.splitlines()) == 2
    for output in (mermaid, dot, text):
        assert output.replace("\n", "").isprintable()
        output.encode()


def test_an_unknown_state_has_no_colour():
    assert "class" not in to_mermaid({"a": []}, {"a": "'; evil"})


SVG = "{http://www.w3.org/2000/svg}"


def svg(graph: Mapping[str, Sequence[str]], states: Mapping[str, str] | None = None, title: str = "") -> str:
    by_position = {place: (states or {}).get(name, "") for place, name in enumerate(graph)}
    return to_svg(layout(fold(graph)), by_position, title=title)


def texts(drawing: str) -> list[str]:
    """What is written in a drawing, besides its tooltips."""
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def test_svg_draws_the_diamond_with_a_sign_and_a_word_for_each_state():
    drawing = svg(DIAMOND, STATES, title="research")
    root = ElementTree.fromstring(drawing)
    assert texts(drawing) == [
        "research", "1 completed", "1 executing", "1 held",
        "completed", "fetch_sources", "executing", "keywords", "credibility", "outline", "held", "compile_brief",
    ]  # fmt: skip
    assert [title.text for title in root.iter(f"{SVG}title")][:3] == [
        "research",
        "fetch_sources: completed",
        "keywords: executing",
    ]
    assert len(root.findall(f"{SVG}g/{SVG}path")) == 6
    assert "prefers-color-scheme:dark" in drawing


def test_svg_without_states_or_title_is_boxes_and_lines_alone():
    drawing = svg(DIAMOND)
    assert texts(drawing) == list(DIAMOND)
    assert "<use" not in drawing


def test_every_state_has_a_sign_of_its_own():
    states = list(StepState)
    drawing = svg({state: [] for state in states}, {state: state for state in states})
    signs = [
        re.sub("<g[^>]*>", "", ElementTree.tostring(sign).decode())
        for sign in ElementTree.fromstring(drawing).iter(f"{SVG}g")
        if (sign.get("id") or "").startswith("baton-")
    ]
    assert len(set(signs)) == len(signs) == len(states)
    assert set(states) <= set(texts(drawing))


def test_a_group_has_a_bar_with_a_part_for_each_state_and_its_counts():
    graph = {f"part[{n}]": [] for n in range(2000)}
    states = {f"part[{n}]": "completed" if n else "discarded" for n in range(2000)}
    drawing = svg(graph, states)
    assert texts(drawing) == ["part", "2,000", "1", "1,999"]
    bars = [
        rect
        for rect in ElementTree.fromstring(drawing).iter(f"{SVG}rect")
        if "baton-bar" in (rect.get("class") or "")
    ]
    widths = [float(bar.get("width") or 0) for bar in bars]
    assert [bar.get("class") for bar in bars] == ["baton-bar baton-completed", "baton-bar baton-discarded"]
    assert widths[0] > 190
    assert widths[1] >= 3
    assert "part, 2,000 steps: 1 discarded, 1,999 completed" in drawing


def test_a_long_name_is_cut_and_the_whole_of_it_is_the_tooltip():
    name = "a_step_whose_name_says_more_than_anybody_wants_to_read"
    drawing = svg({name: []})
    (text,) = texts(drawing)
    assert text.endswith("…")
    assert name.startswith(text[:-1])
    assert 15 < len(text) < 30
    assert f"<title>{name}</title>" in drawing


def test_an_svg_of_nothing_is_one():
    assert ElementTree.fromstring(svg({}, title="nothing")).tag == f"{SVG}svg"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_is_text_in_an_svg(name):
    plain = svg({"root": [], "name": ["root"]}, {"root": "held"}, title="title")
    drawing = svg({"root": [], name: ["root"]}, {"root": "held", name: name}, title=name or "title")
    drawing.encode()
    assert drawing.replace("\n", "").isprintable()
    shape = [element.tag for element in ElementTree.fromstring(plain).iter()]
    assert [element.tag for element in ElementTree.fromstring(drawing).iter()] == shape
    assert len(drawing) < len(plain) + 20_000
    grouped = svg({f"{name}{n}": [] for n in range(5)}, title=name)
    assert ElementTree.fromstring(grouped) is not None
    assert grouped.replace("\n", "").isprintable()


def test_an_svg_loads_nothing_and_runs_nothing():
    drawing = svg(DIAMOND, STATES, title="research").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//|<script|<image|<foreignObject|@import|url\((?!#)|\son\w+=", drawing)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', drawing))
