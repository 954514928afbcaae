"""Mermaid, DOT, SVG and terminal text from steps, their dependencies and, if known, their states.

The graph is a mapping from each step's name to the names it waits for, in the order to be shown. Names may be
anything, as rows may come from elsewhere: each format escapes all that could mean something to its reader. Where a reader
could not cope with all steps, those that are alike are shown as one, as `_fold` finds them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton import _fold
from baton._graph import layers
from baton._svg import to_svg

__all__ = ["to_dot", "to_mermaid", "to_svg", "to_text"]

type Graph = Mapping[str, Sequence[str]]
type States = Mapping[str, str]
type Functions = Mapping[str, str]

# Mermaid draws no more edges than this unless it is configured to.
_MERMAID_EDGES = 500
# What a person reads from top to bottom.
_TEXT_STEPS = 60

# Fill and outline; states of steps, and of their jobs while they live.
_COLORS = {
    "held": ("#f4f4f5", "#a1a1aa"),
    "scheduled": ("#ede9fe", "#8b5cf6"),
    "available": ("#e0f2fe", "#0284c7"),
    "executing": ("#fef3c7", "#d97706"),
    "retryable": ("#ffedd5", "#ea580c"),
    "completed": ("#dcfce7", "#16a34a"),
    "skipped": ("#f4f4f5", "#71717a"),
    "cancelled": ("#e5e7eb", "#4b5563"),
    "discarded": ("#fee2e2", "#dc2626"),
}


def to_mermaid(graph: Graph, states: States | None = None, functions: Functions | None = None) -> str:
    """Draw a flowchart for Mermaid, left to right, with one class per state.

    Steps that are alike are one node if there are more edges than Mermaid draws.
    """
    rows = _rows(graph, states, functions, fold=len(_edges(graph)) > _MERMAID_EDGES)
    lines = ["flowchart LR"]
    lines += [f'    s{number}["{_mermaid_text(row.label)}"]' for number, row in enumerate(rows)]
    lines += [f"    s{on} --> s{number}" for number, row in enumerate(rows) for on in row.deps]
    by_state: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if row.state in _COLORS:
            by_state.setdefault(row.state, []).append(f"s{number}")
    for state, ids in by_state.items():
        fill, stroke = _COLORS[state]
        lines.append(f"    classDef {state} fill:{fill},stroke:{stroke},color:#18181b")
        lines.append(f"    class {','.join(ids)} {state}")
    return "\n".join(lines) + "\n"


def to_dot(graph: Graph, states: States | None = None) -> str:
    """Draw a digraph for Graphviz, left to right, filled by state."""
    ids = {name: f"s{number}" for number, name in enumerate(graph)}
    colors = {name: _COLORS[state] for state, names in _by_state(graph, states).items() for name in names}
    lines = ["digraph workflow {", "    rankdir=LR", '    node [shape=box, style="rounded,filled"]']
    for name, identifier in ids.items():
        fill, stroke = colors.get(name, ("#ffffff", "#52525b"))
        lines.append(f'    {identifier} [label="{_dot_text(name)}", fillcolor="{fill}", color="{stroke}"]')
    lines += [f"    {ids[on]} -> {ids[name]}" for on, name in _edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def to_text(graph: Graph, states: States | None = None, functions: Functions | None = None) -> str:
    """List the steps by layer for a terminal, each once, with what it waits for.

        1  fetch_sources  completed
        2  keywords       executing  <- fetch_sources
           credibility    available  <- fetch_sources
        3  compile_brief  held       <- keywords, credibility

    Steps of one layer can run at the same time. Steps on a cycle, or behind one, come last, under `?`. Of more than 60 steps,
    those that are alike are one line.
    """
    rows = _rows(graph, states, functions, fold=len(graph) > _TEXT_STEPS)
    if not rows:
        return "(no steps)\n"
    cells = [
        (
            layer if first else "",
            _terminal_text(rows[i].label),
            _terminal_text(rows[i].text),
            rows[i].waits_for,
        )
        for layer, numbers in _layers(rows)
        for first, i in zip([True] + [False] * (len(numbers) - 1), numbers, strict=True)
    ]
    widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
    lines = []
    for layer, label, text, waits_for in cells:
        line = f"{layer:>{widths[0]}}  {label:<{widths[1]}}"
        if widths[2]:
            line += f"  {text:<{widths[2]}}"
        if waits_for:
            line += f"  <- {_few(waits_for)}"
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Row:
    """A step, or steps that are alike.

    Attributes:
        label: What it is called.
        state: That of all its steps; empty where they differ.
        text: The state, or how many steps are in which.
        deps: Numbers of the rows that it waits for.
        waits_for: What those are called, and what it waits for that is no step.
    """

    label: str
    state: str
    text: str
    deps: Sequence[int]
    waits_for: Sequence[str]


def _rows(graph: Graph, states: States | None, functions: Functions | None, *, fold: bool) -> list[_Row]:
    states = states or {}
    if not fold:
        numbers = {name: number for number, name in enumerate(graph)}
        return [
            _Row(
                name,
                states.get(name, ""),
                states.get(name, ""),
                [numbers[on] for on in waits_for if on in numbers],
                waits_for,
            )
            for name, waits_for in graph.items()
        ]
    names = list(graph)
    folded = _fold.fold(graph, functions)
    deps: list[list[int]] = [[] for _ in folded.parts]
    for on, number in folded.edges:
        deps[number].append(on)
    labels = [f"{part.label} ({len(part.steps):,})" if part.group else part.label for part in folded.parts]
    rows = []
    for part, label, waits_for in zip(folded.parts, labels, deps, strict=True):
        counts = Counter(states.get(names[step], "") for step in part.steps)
        state = next(iter(counts)) if len(counts) == 1 else ""
        text = state or ", ".join(f"{count:,} {state}" for state, count in counts.items() if state)
        rows.append(_Row(label, state, text, waits_for, [labels[on] for on in waits_for]))
    return rows


def _layers(rows: Sequence[_Row]) -> list[tuple[str, list[int]]]:
    sorted_layers = layers([row.deps for row in rows])
    found = [(str(number), layer) for number, layer in enumerate(sorted_layers, 1)]
    placed = {i for layer in sorted_layers for i in layer}
    rest = [i for i in range(len(rows)) if i not in placed]
    return [*found, ("?", rest)] if rest else found


def _edges(graph: Graph) -> list[tuple[str, str]]:
    return [(on, name) for name, waits_for in graph.items() for on in waits_for if on in graph]


def _by_state(graph: Graph, states: States | None) -> dict[str, list[str]]:
    """Names by state, for the states that have a colour."""
    found: dict[str, list[str]] = {}
    for name in graph:
        state = (states or {}).get(name)
        if state in _COLORS:
            found.setdefault(state, []).append(name)
    return found


def _few(names: Sequence[str]) -> str:
    shown = [_terminal_text(name) for name in names[:6]]
    return ", ".join(shown if len(names) <= 6 else [*shown[:5], f"{len(names) - 5} more"])


def _mermaid_text(text: str) -> str:
    """Keep letters and digits of any script; write the rest as character codes, which Mermaid only shows."""
    return "".join(c if c.isalnum() or c in " _-." else f"#{ord(c)};" for c in text) or " "


def _dot_text(text: str) -> str:
    return _terminal_text(text.replace("\\", "\\\\").replace('"', '\\"'), escape="\\\\")


def _terminal_text(text: str, escape: str = "\\") -> str:
    """Write what a terminal would obey instead of show as an escape: control, bidi, surrogates."""
    return "".join(c if c.isprintable() else f"{escape}u{{{ord(c):x}}}" for c in text)
