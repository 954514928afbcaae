"""Where boxes and edges are drawn: in layers from left to right, after Sugiyama.

Each box stands one column right of the last one that it waits for. An edge that passes columns gets a place in each of them,
as if it were a box without height, so it never runs through a box. Long edges from one box, or to one, share their places.
Parts of a graph that have nothing to do with each other stand one below the other, and boxes without any edge in a grid.

The same graph always has the same layout.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from baton._fold import Folded, Group
from baton._layers import Layered, place, untangle

STEP_SIZE = (220.0, 52.0)
GROUP_SIZE = (240.0, 64.0)

_MARGIN = 24.0
# Free space between two boxes of a column, a box and an edge that passes, and two such edges.
_BETWEEN_BOXES, _BESIDE_EDGE, _BETWEEN_EDGES = 20.0, 16.0, 10.0
_BETWEEN_COMPONENTS = 36.0
_NARROWEST_GAP, _WIDEST_GAP = 64.0, 200.0
# Edges beyond this number of places run along the top, all in one lane.
_MOST_PLACES = 20_000


@dataclass(frozen=True, slots=True)
class Box:
    """A step, or a group of steps, and where it is drawn.

    Attributes:
        id: The same for a run, whenever and wherever it is laid out.
        label: The step's name, or what the names of a group have in common.
        function: Registered name of the steps' function; empty if they differ.
        x: Of its left edge; 0 is left.
        y: Of its top edge; 0 is the top.
        width: Its width.
        height: Its height.
        steps: Positions of its steps.
        group: Whether it stands for several.
        layer: Its column, counted from 1: one more than the highest of those it waits for.
    """

    id: str
    label: str
    function: str
    x: float
    y: float
    width: float
    height: float
    steps: tuple[int, ...]
    group: bool
    layer: int


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from a box to one that waits for it.

    Between two points (x, y) and (X, Y) of it, draw the cubic curve whose control points are ((x + X) / 2, y) and
    ((x + X) / 2, Y). It is level where it ends, so it passes no other box and goes beyond neither of its points.

    Attributes:
        source: Id of the box where it begins.
        target: Id of the box where it ends.
        points: Two or more (x, y), from left to right. On a circle of steps, which rows from elsewhere may hold, some go back.
    """

    source: str
    target: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawing without its colours: the size it needs, boxes, edges, and the groups among the steps, folded or expanded."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    groups: tuple[Group, ...]


def layout(folded: Folded) -> Layout:
    """Place the parts of a folded graph."""
    plan = _Plan(folded)
    top = _MARGIN
    for members, edges in plan.components():
        top = plan.settle(members, edges, top) + _BETWEEN_COMPONENTS
    return plan.finish(top)


class _Plan:
    """What is known of a drawing so far.

    Edges are turned to run from a lower rank to a higher one; each has the heights at which it passes the ranks between.
    """

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.sizes = [GROUP_SIZE if part.group else STEP_SIZE for part in folded.parts]
        self.ranks, self.edges = _ranked(len(folded.parts), folded.edges)
        self.middles = [0.0] * len(folded.parts)
        self.passes: list[list[float]] = [[] for _ in self.edges]
        self.lone: list[int] = []

    def components(self) -> list[tuple[list[int], list[int]]]:
        """Parts that hang together, and their edges; parts without any edge are put aside."""
        edges_of: list[list[int]] = [[] for _ in self.sizes]
        for number, ends in enumerate(self.edges):
            for i in ends:
                edges_of[i].append(number)
        found: list[tuple[list[int], list[int]]] = []
        seen = [False] * len(self.sizes)
        for start, its_edges in enumerate(edges_of):
            if not its_edges:
                self.lone.append(start)
            elif not seen[start]:
                seen[start] = True
                members = [start]
                edges: dict[int, None] = {}
                for i in members:
                    for number in edges_of[i]:
                        edges[number] = None
                        for j in self.edges[number]:
                            if not seen[j]:
                                seen[j] = True
                                members.append(j)
                found.append((sorted(members), sorted(edges)))
        return found

    def settle(self, members: Sequence[int], edges: Sequence[int], top: float) -> float:
        """Find the heights of a component that begins at `top`, and return where it ends."""
        chains, beyond = self._chains(edges)
        local = {i: number for number, i in enumerate(members)}
        graph, places = self._layered(members, local, edges, chains)
        halves = graph.halves

        def distance(v: int, w: int) -> float:
            passing = (v >= graph.passing) + (w >= graph.passing)
            return halves[v] + halves[w] + (_BETWEEN_BOXES, _BESIDE_EDGE, _BETWEEN_EDGES)[passing]

        heights = place(graph, untangle(graph), distance)
        highest = min(height - half for height, half in zip(heights, halves, strict=True))
        shift = top - highest + (_BESIDE_EDGE if beyond else 0.0)
        for i, number in local.items():
            self.middles[i] = heights[number] + shift
        for number, passed in places.items():
            self.passes[number] = [heights[v] + shift for v in passed]
        for number in beyond:
            low, high = self.edges[number]
            self.passes[number] = [top] * (self.ranks[high] - self.ranks[low] - 1)
        return max(height + half for height, half in zip(heights, halves, strict=True)) + shift

    def _chains(self, edges: Sequence[int]) -> tuple[dict[tuple[str, int], list[int]], list[int]]:
        """Long edges by the end whose places they share; and those for which no places are left."""
        leaving: defaultdict[int, int] = defaultdict(int)
        arriving: defaultdict[int, int] = defaultdict(int)
        long = [number for number in edges if self._span(number) > 1]
        for number in long:
            low, high = self.edges[number]
            leaving[low] += 1
            arriving[high] += 1
        chains: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for number in long:
            low, high = self.edges[number]
            key = ("from", low) if leaving[low] >= arriving[high] else ("to", high)
            chains[key].append(number)
        left = _MOST_PLACES
        found: dict[tuple[str, int], list[int]] = {}
        beyond: list[int] = []
        for key, numbers in sorted(chains.items(), key=lambda chain: max(map(self._span, chain[1]))):
            left -= max(map(self._span, numbers)) - 1
            if left >= 0:
                found[key] = numbers
            else:
                beyond += numbers
        return found, beyond

    def _span(self, number: int) -> int:
        low, high = self.edges[number]
        return self.ranks[high] - self.ranks[low]

    def _layered(
        self,
        members: Sequence[int],
        local: dict[int, int],
        edges: Sequence[int],
        chains: dict[tuple[str, int], list[int]],
    ) -> tuple[Layered, dict[int, list[int]]]:
        """A component with its places for long edges, and the places of each."""
        first = min(self.ranks[i] for i in members)
        rows: list[list[int]] = [[] for _ in range(max(self.ranks[i] for i in members) - first + 1)]
        for i, number in local.items():
            rows[self.ranks[i] - first].append(number)
        halves = [self.sizes[i][1] / 2 for i in members]
        links: dict[tuple[int, int], None] = {}
        for number in edges:
            if self._span(number) == 1:
                low, high = self.edges[number]
                links[local[low], local[high]] = None
        places: dict[int, list[int]] = {}
        for numbers in chains.values():
            at: dict[int, int] = {}
            for number in numbers:
                low, high = self.edges[number]
                for rank in range(self.ranks[low] + 1, self.ranks[high]):
                    if rank not in at:
                        at[rank] = len(halves)
                        rows[rank - first].append(len(halves))
                        halves.append(0.0)
                places[number] = [at[rank] for rank in range(self.ranks[low] + 1, self.ranks[high])]
                path = [local[low], *places[number], local[high]]
                links |= dict.fromkeys(pairwise(path))
        before: list[list[int]] = [[] for _ in halves]
        after: list[list[int]] = [[] for _ in halves]
        for v, w in links:
            after[v].append(w)
            before[w].append(v)
        return Layered(rows, before, after, halves, len(members)), places

    def finish(self, bottom: float) -> Layout:
        """Give everything its x, and put the lone parts below the rest."""
        columns = self._columns()
        corners = [(0.0, 0.0)] * len(self.sizes)
        for i, (width, height) in enumerate(self.sizes):
            if columns:
                left, right = columns[self.ranks[i]]
                corners[i] = ((left + right - width) / 2, self.middles[i] - height / 2)
        for i, corner in self._grid(bottom, columns[-1][1] - _MARGIN if columns else 0.0):
            corners[i] = corner
        boxes = tuple(
            Box(
                part.id,
                part.label,
                part.function,
                round(x, 1),
                round(y, 1),
                *size,
                part.steps,
                part.group,
                rank + 1,
            )
            for part, (x, y), size, rank in zip(
                self.folded.parts, corners, self.sizes, self.ranks, strict=True
            )
        )
        width = max((box.x + box.width for box in boxes), default=_MARGIN) + _MARGIN
        ends = [box.y + box.height for box in boxes]
        ends += [round(height, 1) for passed in self.passes for height in passed]
        height = max(ends, default=_MARGIN) + _MARGIN
        return Layout(width, height, boxes, tuple(self._drawn(boxes, columns)), self.folded.groups)

    def _columns(self) -> list[tuple[float, float]]:
        """Left and right of each rank; further apart where edges climb far, so that they do not become upright."""
        if not self.edges:
            return []
        lone = set(self.lone)
        widths = [0.0] * (max(self.ranks) + 1)
        for i, rank in enumerate(self.ranks):
            if i not in lone:
                widths[rank] = max(widths[rank], self.sizes[i][0])
        climbs = [0.0] * len(widths)
        for (low, high), passed in zip(self.edges, self.passes, strict=True):
            heights = [self.middles[low], *passed, self.middles[high]]
            for rank, (here, there) in enumerate(pairwise(heights), self.ranks[low]):
                climbs[rank] = max(climbs[rank], abs(there - here))
        columns = []
        left = _MARGIN
        for width, climb in zip(widths, climbs, strict=True):
            columns.append((left, left + width))
            left += width + min(_WIDEST_GAP, _NARROWEST_GAP + 4 * sqrt(climb))
        return columns

    def _grid(self, top: float, width: float) -> Iterator[tuple[int, tuple[float, float]]]:
        """Corners of the lone parts: as wide as the rest, or a little wider than high."""
        if not self.lone:
            return
        cell_width = max(self.sizes[i][0] for i in self.lone) + _BETWEEN_BOXES
        cell_height = max(self.sizes[i][1] for i in self.lone) + _BETWEEN_BOXES
        count = max(
            int((width + _BETWEEN_BOXES) / cell_width),
            round(sqrt(len(self.lone) * cell_height * 1.6 / cell_width)),
            1,
        )
        for number, i in enumerate(self.lone):
            row, column = divmod(number, count)
            yield i, (_MARGIN + column * cell_width, top + row * cell_height)

    def _drawn(self, boxes: Sequence[Box], columns: Sequence[tuple[float, float]]) -> Iterator[Edge]:
        for (source, target), (low, high), passed in zip(
            self.folded.edges, self.edges, self.passes, strict=True
        ):
            points = self._points(boxes[low], boxes[high], passed, columns, self.ranks[low])
            if source != low:
                points.reverse()
            yield Edge(boxes[source].id, boxes[target].id, tuple(points))

    def _points(
        self,
        low: Box,
        high: Box,
        passed: Sequence[float],
        columns: Sequence[tuple[float, float]],
        rank: int,
    ) -> list[tuple[float, float]]:
        """From box to box, level through every column on the way, and as few points as say that."""
        start, end = low.y + low.height / 2, high.y + high.height / 2
        points = [(low.x + low.width, start), (columns[rank][1], start)]
        for number, y in enumerate(passed, rank + 1):
            points += [(columns[number][0], y), (columns[number][1], y)]
        last = rank + len(passed) + 1
        points += [(columns[last][0], end), (high.x, end)]
        found: list[tuple[float, float]] = []
        for x, y in points:
            point = (round(x, 1), round(y, 1))
            if len(found) > 1 and found[-1][1] == found[-2][1] == point[1]:
                found.pop()
            if not found or found[-1] != point:
                found.append(point)
        return found


def _ranked(count: int, edges: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """The column of each part, one right of the last that it waits for; and the edges, turned where they close a circle."""
    after: list[list[int]] = [[] for _ in range(count)]
    waiting_on = [0] * count
    for source, target in edges:
        after[source].append(target)
        waiting_on[target] += 1
    before: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        before[target].append(source)
    ranks = [0] * count
    placed = [False] * count
    ready = deque(i for i in range(count) if not waiting_on[i])
    stuck = 0
    while True:
        while ready:
            i = ready.popleft()
            placed[i] = True
            for j in after[i]:
                if not placed[j]:
                    ranks[j] = max(ranks[j], ranks[i] + 1)
                    waiting_on[j] -= 1
                    if not waiting_on[j]:
                        ready.append(j)
        while stuck < count and placed[stuck]:
            stuck += 1
        if stuck == count:
            break
        # Everything left waits for a circle: cut it at the first part, whose predecessors now come after it.
        ready.append(stuck)
        for source in before[stuck]:
            if not placed[source]:
                after[stuck].append(source)
                waiting_on[source] += 1
    return ranks, [
        (source, target) if ranks[source] < ranks[target] else (target, source) for source, target in edges
    ]
