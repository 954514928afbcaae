"""Mermaid, DOT and terminal text from steps, their dependencies and, if known, their states.

The graph is a mapping from each step's name to the names it waits for, in the order to be shown. Names may be
anything, as rows may come from elsewhere: each format escapes all that could mean something to its reader.
"""

from collections.abc import Mapping, Sequence

from baton._graph import layers

type Graph = Mapping[str, Sequence[str]]
type States = Mapping[str, str]

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


def to_mermaid(graph: Graph, states: States | None = None) -> str:
    """Draw a flowchart for Mermaid, left to right, with one class per state."""
    ids = {name: f"s{number}" for number, name in enumerate(graph)}
    lines = ["flowchart LR"]
    lines += [f'    {ids[name]}["{_mermaid_text(name)}"]' for name in graph]
    lines += [f"    {ids[on]} --> {ids[name]}" for on, name in _edges(graph)]
    for state, names in _by_state(graph, states).items():
        fill, stroke = _COLORS[state]
        lines.append(f"    classDef {state} fill:{fill},stroke:{stroke},color:#18181b")
        lines.append(f"    class {','.join(ids[name] for name in names)} {state}")
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


def to_text(graph: Graph, states: States | None = None) -> str:
    """List the steps by layer for a terminal, each once, with what it waits for.

        1  fetch_sources  completed
        2  keywords       executing  <- fetch_sources
           credibility    available  <- fetch_sources
        3  compile_brief  held       <- keywords, credibility

    Steps of one layer can run at the same time. Steps on a cycle, or behind one, come last, under `?`.
    """
    states = states or {}
    rows = [
        (number if first else "", _terminal_text(name), _terminal_text(states.get(name, "")), graph[name])
        for number, layer in _layers(graph)
        for first, name in zip([True] + [False] * (len(layer) - 1), layer, strict=True)
    ]
    if not rows:
        return "(no steps)\n"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for number, name, state, waits_for in rows:
        line = f"{number:>{widths[0]}}  {name:<{widths[1]}}"
        if widths[2]:
            line += f"  {state:<{widths[2]}}"
        if waits_for:
            line += f"  <- {_few(waits_for)}"
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def _layers(graph: Graph) -> list[tuple[str, list[str]]]:
    names = list(graph)
    index = {name: number for number, name in enumerate(names)}
    sorted_layers = layers([[index[on] for on in waits_for if on in index] for waits_for in graph.values()])
    found = [(str(number), [names[i] for i in layer]) for number, layer in enumerate(sorted_layers, 1)]
    placed = {i for layer in sorted_layers for i in layer}
    rest = [name for i, name in enumerate(names) if i not in placed]
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
