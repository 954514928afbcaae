"""Folding: which steps of a graph are shown as one box, so that a wide fan-out is a box and not a wall.

Steps are alike when they stand in the same layer, have the same function and the same kind of name, wait for steps that
are alike, and are waited for by steps that are alike. Four or more of them make a group; so do parallel chains, link by
link. All members of a group stand in one layer, so groups never wait for each other in a circle.

A graph that is still too large to look at is folded further: by layer, function and kind of name alone, and at last by layers.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from baton._graph import layers

# Members that are named alike, as `part[0]` and `part[1]` are, and members that only do the same.
_FEWEST = 4
_FEWEST_NAMED_DIFFERENTLY = 8
# More boxes than anybody looks at; above it, likeness is judged less strictly.
_MOST_BOXES = 1_000
_MOST_BANDS = 200
# Members that an expanded group shows; the others stay in a box of their own, which may be expanded in turn.
_SHOWN = 200
# A round makes likeness stricter along longer paths. Stopping early only leaves unlike neighbours together.
_ROUNDS = 8

_INDEX = re.compile(r"\[[^\]]*\]|[0-9]+")
_LOOSE_ENDS = " _-.:/#"


@dataclass(frozen=True, slots=True)
class Group:
    """Steps that are alike, shown as one box or, when expanded, singly.

    Attributes:
        id: The same for a run, whenever and wherever it is folded.
        label: What the members' names have in common, or else their function.
        steps: Positions of the members.
        expanded: Whether they are shown singly.
    """

    id: str
    label: str
    steps: tuple[int, ...]
    expanded: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one box: a step, or a group of them."""

    id: str
    label: str
    function: str
    steps: tuple[int, ...]
    group: bool


@dataclass(frozen=True, slots=True)
class Folded:
    """A graph as it is shown: parts, edges between them as pairs of their indices, and the groups."""

    parts: tuple[Part, ...]
    edges: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]


def fold(
    deps: Mapping[str, Sequence[str]],
    functions: Mapping[str, str] | None = None,
    *,
    positions: Mapping[str, int] | None = None,
    expand: Collection[str] = (),
) -> Folded:
    """Fold a graph.

    Args:
        deps: What each step waits for, in the order of positions. Names that are no steps are passed over.
        functions: Function by step name. Steps of which it is not known are alike only if their names are.
        positions: Position by step name; counted from 0 where there is none.
        expand: Ids of groups whose members are shown singly, up to 200 of them; the rest stays a group, with an id of its
            own. Ids that are of no group are passed over.
    """
    graph = _Graph(deps, functions or {}, positions or {})
    members = _classes(graph, _alike(graph))
    if len(members) > _MOST_BOXES:
        members = _classes(graph, _kinds(graph))
    if len(members) > _MOST_BOXES:
        members = _bands(graph)
    return _assemble(graph, members, frozenset(expand))


class _Graph:
    """Steps by index, in the order given."""

    def __init__(
        self, deps: Mapping[str, Sequence[str]], functions: Mapping[str, str], positions: Mapping[str, int]
    ) -> None:
        self.names = list(deps)
        index = {name: number for number, name in enumerate(self.names)}
        self.deps = [[index[on] for on in waits_for if on in index] for waits_for in deps.values()]
        self.functions = [functions.get(name, "") for name in self.names]
        self.positions = [positions.get(name, number) for number, name in enumerate(self.names)]
        sorted_layers = layers(self.deps)
        self.layers = len(sorted_layers)
        # Steps on a cycle, or behind one, stand in no layer; they come last, each unlike all others.
        self.depths = [self.layers] * len(self.names)
        for depth, layer in enumerate(sorted_layers):
            for i in layer:
                self.depths[i] = depth
        self.order = sorted(range(len(self.names)), key=self.depths.__getitem__)

    def unsortable(self, i: int) -> bool:
        return self.depths[i] == self.layers


def _kinds(graph: _Graph) -> list[int]:
    """A number per step, the same for steps of one layer, function and kind of name.

    Kinds that have too few steps for groups of their own are taken together, if a group can come of it.
    """
    keys = [
        (graph.depths[i], function, _kind(name))
        for i, (name, function) in enumerate(zip(graph.names, graph.functions, strict=True))
    ]
    counts = Counter(keys)
    rare = Counter(
        (depth, function)
        for depth, function, kind in keys
        if function and counts[depth, function, kind] < _FEWEST
    )
    return _numbered(
        (depth, function, None)
        if counts[depth, function, kind] < _FEWEST and rare[depth, function] >= _FEWEST_NAMED_DIFFERENTLY
        else (depth, function, kind)
        for depth, function, kind in keys
    )


def _alike(graph: _Graph) -> list[int]:
    """A number per step, the same for steps that are alike.

    Partition refinement: who has unlike neighbours is unlike. Neighbours always stand in other layers, so one pass along the
    layers settles likeness towards the roots, one pass back towards the leaves.
    """
    colors = _kinds(graph)
    for i in reversed(graph.order):
        if not graph.unsortable(i):
            break
        colors[i] = -1 - i
    dependents: list[list[int]] = [[] for _ in graph.names]
    for i, ids in enumerate(graph.deps):
        for on in ids:
            dependents[on].append(i)
    found = len(set(colors))
    for _ in range(_ROUNDS):
        for order, neighbours in ((graph.order, graph.deps), (graph.order[::-1], dependents)):
            seen: dict[Hashable, int] = {}
            for i in order:
                around = frozenset([colors[j] for j in neighbours[i]])
                colors[i] = seen.setdefault((colors[i], around), len(seen))
        classes = len(set(colors))
        if classes == found or classes > _MOST_BOXES:
            break
        found = classes
    return colors


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _classes(graph: _Graph, colors: Sequence[int]) -> list[list[int]]:
    """Steps by colour, those of a class too small for a group singly."""
    classes: defaultdict[int, list[int]] = defaultdict(list)
    for i, color in enumerate(colors):
        classes[color].append(i)
    found: list[list[int]] = []
    for members in classes.values():
        fewest = _FEWEST if _same(members, lambda i: _kind(graph.names[i])) else _FEWEST_NAMED_DIFFERENTLY
        found += [members] if len(members) >= fewest else [[i] for i in members]
    return found


def _bands(graph: _Graph) -> list[list[int]]:
    """Steps by layer, or by some layers at once if there are many."""
    thickness = -(-(graph.layers + 1) // _MOST_BANDS)
    bands: defaultdict[int, list[int]] = defaultdict(list)
    for i in graph.order:
        bands[graph.depths[i] // thickness].append(i)
    found: list[list[int]] = []
    for members in bands.values():
        found += [members] if len(members) >= _FEWEST else [[i] for i in members]
    return found


def _assemble(graph: _Graph, classes: Iterable[Sequence[int]], expand: frozenset[str]) -> Folded:
    parts: list[tuple[Part, Sequence[int]]] = []
    groups: list[Group] = []
    for members in classes:
        if len(members) == 1:
            parts.append((_single(graph, members[0]), members))
        else:
            _add_group(graph, members, expand, parts, groups)
    parts.sort(key=lambda part: min(part[0].steps))
    groups.sort(key=lambda group: (min(group.steps), -len(group.steps)))
    home = [0] * len(graph.names)
    for number, (_, members) in enumerate(parts):
        for i in members:
            home[i] = number
    edges = {
        (home[on], home[i]): None for i, ids in enumerate(graph.deps) for on in ids if home[on] != home[i]
    }
    return Folded(tuple(part for part, _ in parts), tuple(edges), tuple(groups))


def _add_group(
    graph: _Graph,
    members: Sequence[int],
    expand: frozenset[str],
    parts: list[tuple[Part, Sequence[int]]],
    groups: list[Group],
) -> None:
    """Add a group as one part; or singly as many as are shown, and the rest as a group again."""
    members = sorted(members, key=lambda i: (graph.depths[i], i))
    label = _label(graph, members)
    group_id = first = f"g{graph.positions[members[0]]}"
    shown = 0
    while group_id in expand:
        groups.append(_group(graph, group_id, label, members[shown:], expanded=True))
        upto = shown + _SHOWN if len(members) - shown - _SHOWN >= _FEWEST else len(members)
        parts += [(_single(graph, i), [i]) for i in members[shown:upto]]
        shown = upto
        if shown == len(members):
            return
        group_id = f"{first}+{shown}"
    rest = members[shown:]
    if shown:
        label = f"{label}, the rest"
    group = _group(graph, group_id, label, rest, expanded=False)
    groups.append(group)
    function = graph.functions[rest[0]] if _same(rest, graph.functions.__getitem__) else ""
    parts.append((Part(group.id, group.label, function, group.steps, group=True), rest))


def _group(graph: _Graph, group_id: str, label: str, members: Sequence[int], *, expanded: bool) -> Group:
    return Group(group_id, label, tuple(graph.positions[i] for i in members), expanded)


def _single(graph: _Graph, i: int) -> Part:
    position = graph.positions[i]
    return Part(f"s{position}", graph.names[i], graph.functions[i], (position,), group=False)


def _label(graph: _Graph, members: Sequence[int]) -> str:
    """What the names have in common: `part[0]` and `part[1]` are `part`, `us_1_load` and `us_2_load` are `us_*_load`."""
    first, last = graph.depths[members[0]] + 1, graph.depths[members[-1]] + 1
    if first == last:
        names = [graph.names[i] for i in members]
        if _same(members, lambda i: _kind(graph.names[i])) and (stem := _common(names)):
            return stem
        if _same(members, graph.functions.__getitem__) and (function := graph.functions[members[0]]):
            return function.rpartition(".")[2] or function
        return f"layer {first}"
    return f"layers {first} to {last}"


def _common(names: Sequence[str]) -> str:
    """A name of the same kind in which the numbers that differ are left out."""
    numbers = zip(*map(_INDEX.findall, names), strict=True)
    kept = iter([found[0] if len(set(found)) == 1 else "*" for found in numbers])
    return _INDEX.sub(lambda _: next(kept), names[0]).rstrip(f"*{_LOOSE_ENDS}")


def _same(members: Sequence[int], of: Callable[[int], object]) -> bool:
    first = of(members[0])
    return all(of(i) == first for i in members)


def _kind(name: str) -> str:
    """A name without its numbers: `part[0]` and `part[1]` are of one kind, and so are `us_1_load` and `us_2_load`."""
    return _INDEX.sub("*", name)
