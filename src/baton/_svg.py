"""A layout as an SVG file of its own: no scripts, nothing loaded from elsewhere, light or dark as the reader has it.

Each state has a sign besides its colour. Names may be anything: what would mean something to XML, or to whoever shows it, is
escaped, and what is too long is cut, with the whole name as the tooltip.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

from baton._layout import Box, Edge, Layout

_HEADER = 56.0
_MARGIN = 24.0
_LONGEST_TITLE = 500

# Sign on a field from -8 to 8, and the colour of it, on white and on black. In the order that a group's bar has them.
_SIGNS = {
    "completed": (
        '<circle r="8" class="fill"/><path d="M-3.6.4-1.2 2.9 3.7-2.6" class="over"/>',
        "#16a34a",
        "#22c55e",
    ),
    "skipped": (
        '<circle r="7"/><path d="M-3.5-3-.5 0-3.5 3M.8-3 3.8 0 .8 3"/>',
        "#71717a",
        "#a1a1aa",
    ),
    "executing": ('<circle r="7"/><circle r="3.4" class="fill"/>', "#d97706", "#fbbf24"),
    "retryable": ('<path d="M5-4.9A7 7 0 1 0 7 0M6-7.6V-4.3H2.6"/>', "#ea580c", "#fb923c"),
    "available": ('<circle r="7"/>', "#0284c7", "#38bdf8"),
    "scheduled": ('<circle r="7"/><path d="M0-4V0L2.8 1.8"/>', "#7c3aed", "#a78bfa"),
    "held": ('<circle r="7" stroke-dasharray="2.75"/>', "#a1a1aa", "#71717a"),
    "cancelled": ('<circle r="7"/><path d="M-4.9 4.9 4.9-4.9"/>', "#4b5563", "#d4d4d8"),
    "discarded": (
        '<circle r="8" class="fill"/><path d="M-3-3 3 3M3-3-3 3" class="over"/>',
        "#dc2626",
        "#f87171",
    ),
}
# What a group's counts begin with, as there is not always room for all of them.
_FIRST = ("discarded", "cancelled", "retryable", "executing", "completed")

_STYLE = """\
.baton{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-size:13px}
.baton .page{fill:#fafafa}
.baton .card{fill:#fff;stroke:#d4d4d8}
.baton text{fill:#18181b}
.baton .name{font-weight:600}
.baton .less{fill:#71717a;font-size:11px}
.baton .many{text-anchor:end;font-weight:600;font-variant-numeric:tabular-nums}
.baton .title{font-size:16px;font-weight:650}
.baton .edge{fill:none;stroke:#c4c4cc;stroke-width:1.5}
.baton .track{fill:#e4e4e7}
.baton-sign{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.baton-sign .over{stroke:#fff}
"""
_DARK = """\
.baton .page{fill:#0c0c0f}
.baton .card{fill:#18181b;stroke:#3f3f46}
.baton text{fill:#f4f4f5}
.baton .less{fill:#a1a1aa}
.baton .edge{stroke:#52525b}
.baton .track{fill:#27272a}
.baton-sign .over{stroke:#18181b}
"""


def to_svg(layout: Layout, states: Mapping[int, str] | None = None, *, title: str = "") -> str:
    """Draw a layout.

    Args:
        layout: What to draw.
        states: State of each step by its position; none are drawn of those that are not there.
        title: Put above the drawing, with how many steps are in which state.
    """
    counts = {box.id: _counted(box, states or {}) for box in layout.boxes}
    total: Counter[str] = sum(counts.values(), Counter())
    header, header_width = _header(title, total)
    top = _HEADER if header else 0.0
    width, height = max(layout.width, header_width), layout.height + top
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="baton" role="img" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}">',
        f"<title>{_text(title[:_LONGEST_TITLE] or 'workflow')}</title>",
        f"<style>\n{_styles(total)}</style>",
        *_definitions(total),
        '<rect class="page" width="100%" height="100%"/>',
        *header,
        f'<g transform="translate(0 {top:g})">',
        *(f'<path class="edge" d="{_path(edge)}"/>' for edge in layout.edges),
        *(line for box in layout.boxes for line in _box(box, counts[box.id])),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _counted(box: Box, states: Mapping[int, str]) -> Counter[str]:
    return Counter(states[step] for step in box.steps if states.get(step) in _SIGNS)


def _styles(total: Counter[str]) -> str:
    light, dark = _STYLE, _DARK
    for state, (_, on_white, on_black) in _SIGNS.items():
        if total[state]:
            light += _colored(state, on_white)
            dark += _colored(state, on_black)
    return f"{light}@media (prefers-color-scheme:dark){{\n{dark}}}\n"


def _colored(state: str, color: str) -> str:
    # Signs are drawn by reference, where rules that name an element around them do not hold.
    return f".baton-{state}{{stroke:{color}}}\n.baton-{state} .fill,.baton-bar.baton-{state}{{fill:{color};stroke:none}}\n"


def _definitions(total: Counter[str]) -> Iterator[str]:
    yield "<defs>"
    # Names are cut by the width that letters are believed to have; a font with wider ones must not run over the edge.
    yield '<clipPath id="baton-step"><rect width="212" height="52"/></clipPath>'
    yield '<clipPath id="baton-group"><rect width="190" height="64"/></clipPath>'
    for state, (sign, _, _) in _SIGNS.items():
        if total[state]:
            yield f'<g id="baton-{state}" class="baton-sign baton-{state}">{sign}</g>'
    yield "</defs>"


def _sign(state: str, x: float, y: float, scale: float = 1.0) -> str:
    return f'<use href="#baton-{state}" transform="translate({x:g} {y:g}) scale({scale:g})"/>'


def _header(title: str, total: Counter[str]) -> tuple[list[str], float]:
    """The lines above the drawing, and how wide they are."""
    if not title:
        return [], 0.0
    shown = _cut(title, 600, 16)
    lines = [f'<text class="title" x="{_MARGIN:g}" y="30">{_text(shown)}</text>']
    x = _MARGIN
    for state in _SIGNS:
        if total[state]:
            words = f"{total[state]:,} {state}"
            lines.append(_sign(state, x + 6, 48, 0.75))
            lines.append(f'<text class="less" x="{x + 17:g}" y="52">{words}</text>')
            x += 17 + _width(words, 11) + 16
    return lines, max(x, _MARGIN + _width(shown, 16)) + _MARGIN


def _path(edge: Edge) -> str:
    (x, y), *rest = edge.points
    drawn = [f"M{x:g} {y:g}"]
    for to_x, to_y in rest:
        middle = (x + to_x) / 2
        drawn.append(
            f"H{to_x:g}" if to_y == y else f"C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"
        )
        x, y = to_x, to_y
    return "".join(drawn)


def _box(box: Box, counts: Counter[str]) -> Iterator[str]:
    yield f'<g transform="translate({box.x:g} {box.y:g})">'
    yield from _group(box, counts) if box.group else _step(box, counts)
    yield "</g>"


def _step(box: Box, counts: Counter[str]) -> Iterator[str]:
    state = next(iter(counts), None)
    label = box.label[:_LONGEST_TITLE]
    yield f"<title>{_text(f'{label}: {state}' if state else label)}</title>"
    yield f'<rect class="card" width="{box.width:g}" height="{box.height:g}" rx="10"/>'
    left = 16.0
    if state:
        left = 42.0
        yield _sign(state, 22, 26)
        yield f'<text class="less" x="{left:g}" y="40">{state}</text>'
    name = _cut(box.label, box.width - left - 12, 13)
    yield f'<text class="name" clip-path="url(#baton-step)" x="{left:g}" y="{23 if state else 31}">{_text(name)}</text>'


def _group(box: Box, counts: Counter[str]) -> Iterator[str]:
    total = f"{len(box.steps):,}"
    ordered = sorted(counts, key=lambda state: _FIRST.index(state) if state in _FIRST else len(_FIRST))
    words = ", ".join(f"{counts[state]:,} {state}" for state in ordered)
    label = f"{box.label[:_LONGEST_TITLE]}, {total} steps"
    yield f"<title>{_text(f'{label}: {words}' if words else label)}</title>"
    # Like a pile of cards.
    yield f'<rect class="card" x="4" y="4" width="{box.width:g}" height="{box.height:g}" rx="10"/>'
    yield f'<rect class="card" width="{box.width:g}" height="{box.height:g}" rx="10"/>'
    inner = box.width - 32
    name = _cut(box.label, inner - _width(total, 13) - 12, 13)
    baseline = 24 if counts else 37
    yield f'<text class="name" clip-path="url(#baton-group)" x="16" y="{baseline}">{_text(name)}</text>'
    yield f'<text class="many" x="{box.width - 16:g}" y="{baseline}">{total}</text>'
    if not counts:
        return
    yield f'<rect class="track" x="16" y="33" width="{inner:g}" height="6" rx="3"/>'
    yield from _bar(counts, len(box.steps), 16, inner)
    x = 16.0
    for state in ordered:
        number = f"{counts[state]:,}"
        end = x + 14 + _width(number, 11)
        if end > box.width - 16:
            break
        yield _sign(state, x + 5, 51, 0.6)
        yield f'<text class="less" x="{x + 13:g}" y="55">{number}</text>'
        x = end + 10


def _bar(counts: Counter[str], total: int, left: float, width: float) -> Iterator[str]:
    """A segment per state, as long as its share, and long enough to be seen."""
    present = [state for state in _SIGNS if counts[state]]
    narrowest = 4.0
    free = width * sum(counts.values()) / total - narrowest * len(present)
    x = left
    for state in present:
        length = narrowest + max(0.0, free) * counts[state] / sum(counts.values())
        yield f'<rect class="baton-bar baton-{state}" x="{x:.1f}" y="33" width="{length - 1:.1f}" height="6" rx="2"/>'
        x += length


def _cut(text: str, room: float, size: float) -> str:
    """As much of a text as fits, with an ellipsis where it was cut."""
    used, last = 0.0, 0
    for number, char in enumerate(text[:_LONGEST_TITLE]):
        used += _char_width(char) * size
        if used > room:
            return f"{text[:last].rstrip()}…"
        if used <= room - size:
            last = number + 1
    return text if len(text) <= _LONGEST_TITLE else f"{text[:last]}…"


def _width(text: str, size: float) -> float:
    return sum(map(_char_width, text)) * size


def _char_width(char: str) -> float:
    """Width of a letter in ems, in the wider of the bold fonts that browsers have."""
    if not char.isprintable():
        return 5.0
    if not char.isascii():
        if unicodedata.combining(char):
            return 0.0
        return 1.05 if unicodedata.east_asian_width(char) in "WF" else 0.75
    if char in "iljI.,:;'|! ":
        return 0.37
    if char in "ftr()[]{}-`_":
        return 0.48
    if char in "mwMW@%":
        return 0.98
    return 0.76 if char.isupper() or char in "<>=+" else 0.66


def _text(text: str) -> str:
    """Text for XML: also what a reader would obey instead of show is written out, as `\\u{202e}`."""
    return escape("".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text))
