"""Order and height of the nodes of a layered graph: plain ids in rows, with edges between neighbouring rows alone.

A row holds what stands side by side; here that is a column of the drawing, from top to bottom. Both searches are bounded, and
the same graph always comes out the same.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

type Rows = list[list[int]]

_MANY_EDGES = 4_000
# Swapping neighbours pays where a person looks at each crossing, and costs the most where nobody can.
_MOST_EDGES_SWAPPED = 3_000
_SWAPS = 8
_PATIENCE = 4
# How firmly a node holds its place when its row is crowded: a long line stays straight before a box is centred.
_FIRM, _LOOSE, _ADRIFT = 4.0, 1.0, 0.01
_NEARLY_LEVEL = 14.0


@dataclass(frozen=True, slots=True)
class Layered:
    """Nodes in rows.

    Attributes:
        rows: Ids by row, in the order they stand.
        before: Neighbours in the row before, by id.
        after: Neighbours in the row after, by id.
        halves: Half of each node's height; 0 for a place that an edge passes.
        passing: From this id on, nodes are places that edges pass.
    """

    rows: Rows
    before: list[list[int]]
    after: list[list[int]]
    halves: list[float]
    passing: int


def untangle(graph: Layered) -> Rows:
    """Find an order of each row with few crossings."""
    edges = sum(map(len, graph.after))
    rows = best = _depth_first(graph)
    fewest = _crossings(graph, best)
    failures = 0
    for number in range(8 if edges > _MANY_EDGES else 24):
        if not fewest or failures == _PATIENCE:
            break
        rows = _sweep(graph, rows, forwards=number % 2 == 0, mirrored=number % 4 > 1)
        if edges <= _MOST_EDGES_SWAPPED:
            _swap(graph, rows)
        crossings = _crossings(graph, rows)
        failures += 1
        if crossings < fewest:
            best, fewest, failures = rows, crossings, 0
    return best


def _depth_first(graph: Layered) -> Rows:
    """Rows in the order in which a walk from the first row meets their nodes: a tree has no crossing then."""
    rows: Rows = [[] for _ in graph.rows]
    row_of = {v: number for number, row in enumerate(graph.rows) for v in row}
    seen = [False] * len(graph.halves)
    for row in graph.rows:
        for root in row:
            reached = [root]
            while reached:
                v = reached.pop()
                if not seen[v]:
                    seen[v] = True
                    rows[row_of[v]].append(v)
                    reached += reversed(graph.after[v])
    return rows


def _places(graph: Layered, rows: Rows) -> list[int]:
    at = [0] * len(graph.halves)
    for row in rows:
        for place, v in enumerate(row):
            at[v] = place
    return at


def _crossings(graph: Layered, rows: Rows) -> int:
    at = _places(graph, rows)
    total = 0
    for row in rows:
        ends: list[int] = []
        for v in row:
            # Those that begin at one node do not cross each other: all are counted before any is added.
            places = sorted([at[w] for w in graph.after[v]])
            total += sum([len(ends) - bisect_right(ends, place) for place in places])
            for place in places:
                insort(ends, place)
    return total


def _sweep(graph: Layered, rows: Rows, *, forwards: bool, mirrored: bool) -> Rows:
    """Sort each row by the medians of its neighbours in the row before it, or after it.

    Nodes without such neighbours keep their places. `mirrored` says who goes first of two with the same median.
    """
    at = _places(graph, rows)
    neighbours = graph.before if forwards else graph.after
    found = list(rows)
    for number in range(1, len(rows)) if forwards else range(len(rows) - 2, -1, -1):
        row = rows[number]
        bound = [(v, _median_place([at[w] for w in neighbours[v]])) for v in row if neighbours[v]]
        if mirrored:
            bound.reverse()
        bound.sort(key=lambda entry: entry[1])
        following = iter(bound)
        found[number] = [next(following)[0] if neighbours[v] else v for v in row]
        for place, v in enumerate(found[number]):
            at[v] = place
    return found


def _median_place(places: list[int]) -> float:
    """The median; of an even number of places, a mean that leans to the side where they are denser."""
    count = len(places)
    if count == 1:
        return places[0]
    places.sort()
    middle = count // 2
    if count % 2:
        return places[middle]
    if count == 2:
        return (places[0] + places[1]) / 2
    left, right = places[middle - 1] - places[0], places[-1] - places[middle]
    if left + right == 0:
        return (places[middle - 1] + places[middle]) / 2
    return (places[middle - 1] * right + places[middle] * left) / (left + right)


def _swap(graph: Layered, rows: Rows) -> None:
    """Exchange neighbours in a row wherever that has fewer crossings."""
    at = _places(graph, rows)
    for _ in range(_SWAPS):
        better = False
        for row in rows:
            for place in range(len(row) - 1):
                v, w = row[place], row[place + 1]
                if _gain(graph, at, v, w) > 0:
                    row[place], row[place + 1] = w, v
                    at[v], at[w] = place + 1, place
                    better = True
        if not better:
            return


def _gain(graph: Layered, at: list[int], v: int, w: int) -> int:
    """How many crossings exchanging two neighbours of a row, `v` above `w`, saves."""
    gain = 0
    for neighbours in (graph.before, graph.after):
        above, below = neighbours[v], neighbours[w]
        if above and below:
            places = sorted([at[u] for u in below])
            for u in above:
                # Lines to places above this one cross now; lines to those below it would.
                gain += bisect_left(places, at[u]) - (len(places) - bisect_right(places, at[u]))
    return gain


def place(graph: Layered, rows: Rows, distance: Callable[[int, int], float]) -> list[float]:
    """Find the height of each node's middle, the order of rows given.

    Args:
        graph: The nodes.
        rows: Their order.
        distance: How far apart the middles of two neighbours in a row must be.
    """
    offsets = [_offsets(row, distance) for row in rows]
    heights = [0.0] * len(graph.halves)
    for row, steps in zip(rows, offsets, strict=True):
        for v, offset in zip(row, steps, strict=True):
            heights[v] = offset - steps[-1] / 2
    rounds = 4 if len(heights) > _MANY_EDGES else 12
    order = list(zip(rows, offsets, strict=True))
    for _ in range(rounds):
        for row, steps in order:
            _settle(graph, row, steps, heights, graph.before)
        for row, steps in reversed(order):
            _settle(graph, row, steps, heights, graph.after)
    both = [_drawn_to(graph, v) for v in range(len(heights))]
    for _ in range(rounds // 2):
        for row, steps in order:
            _settle(graph, row, steps, heights, both)
        for row, steps in reversed(order):
            _settle(graph, row, steps, heights, both)
    room = _Room(rows, offsets, heights)
    _straighten(graph, room, heights)
    _level(graph, room, rows, heights)
    return heights


def _drawn_to(graph: Layered, v: int) -> list[int]:
    """Whom a node stands level with: the links of its chain; or else boxes, before the long lines that it has."""
    before, after = graph.before[v], graph.after[v]
    chain = [w for w in before if len(before) == len(graph.after[w]) == 1]
    chain += [w for w in after if len(after) == len(graph.before[w]) == 1]
    if chain or v >= graph.passing:
        return chain or before + after
    return [w for w in before + after if w < graph.passing] or before + after


class _Room:
    """How far each node may move while the others stay."""

    def __init__(self, rows: Rows, offsets: Sequence[Sequence[float]], heights: list[float]) -> None:
        self._heights = heights
        self._above = [(-1, 0.0)] * len(heights)
        self._below = [(-1, 0.0)] * len(heights)
        for row, steps in zip(rows, offsets, strict=True):
            for (v, upper), (w, lower) in pairwise(zip(row, steps, strict=True)):
                self._below[v] = (w, lower - upper)
                self._above[w] = (v, lower - upper)

    def of(self, v: int) -> tuple[float, float]:
        (above, up), (below, down) = self._above[v], self._below[v]
        here = self._heights[v]
        # Where it stands there is room, whatever the last digit of a sum says.
        return (
            -inf if above < 0 else min(self._heights[above] + up, here),
            inf if below < 0 else max(self._heights[below] - down, here),
        )


def _straighten(graph: Layered, room: _Room, heights: list[float]) -> None:
    """Bring the places of long lines to one height, as many in a row as have room for it."""
    for start in range(graph.passing, len(heights)):
        if any(v >= graph.passing for v in graph.before[start]):
            continue
        line = [start]
        while following := [w for w in graph.after[line[-1]] if w >= graph.passing]:
            line.append(following[0])
        while line:
            line = line[_straighten_some(graph, room, line, heights) :]


def _straighten_some(graph: Layered, room: _Room, line: Sequence[int], heights: list[float]) -> int:
    """Level the beginning of a line, and say of how many places."""
    lowest, highest, count = -inf, inf, 0
    for v in line:
        low, high = room.of(v)
        if max(low, lowest) > min(high, highest):
            break
        lowest, highest, count = max(low, lowest), min(high, highest), count + 1
    ends = [*graph.before[line[0]], *graph.after[line[count - 1]]]
    wanted = [heights[v] for v in ends if lowest <= heights[v] <= highest]
    height = (
        wanted[0] if wanted else min(max(_median_height([heights[v] for v in line[:count]]), lowest), highest)
    )
    for v in line[:count]:
        heights[v] = height
    return count


def _level(graph: Layered, room: _Room, rows: Rows, heights: list[float]) -> None:
    """Move boxes a little where that makes a line level that is nearly so."""
    for row in rows:
        for v in row:
            if v >= graph.passing:
                continue
            around = [heights[w] for w in (*graph.before[v], *graph.after[v])]
            low, high = room.of(v)
            near = [
                height
                for height in around
                if abs(height - heights[v]) <= _NEARLY_LEVEL and low <= height <= high
            ]
            if near:
                heights[v] = max([heights[v], *near], key=around.count)


def _offsets(row: Sequence[int], distance: Callable[[int, int], float]) -> list[float]:
    offsets = [0.0]
    for v, w in pairwise(row):
        offsets.append(offsets[-1] + distance(v, w))
    return offsets


def _settle(
    graph: Layered,
    row: Sequence[int],
    offsets: Sequence[float],
    heights: list[float],
    neighbours: Sequence[Sequence[int]],
) -> None:
    """Bring each node of a row to the median of its neighbours, or as near as the others let it.

    An isotonic regression by least squares: nodes that would come too near are pooled into a block, which goes to the mean of
    what its nodes want.
    """
    blocks: list[tuple[float, float, int]] = []
    for v, offset in zip(row, offsets, strict=True):
        around = neighbours[v]
        if around:
            weight = _FIRM if v >= graph.passing else _LOOSE
            wanted = _median_height([heights[w] for w in around]) - offset
        else:
            weight, wanted = _ADRIFT, heights[v] - offset
        count = 1
        while blocks and blocks[-1][0] >= wanted:
            mean, heaviness, members = blocks.pop()
            wanted = (wanted * weight + mean * heaviness) / (weight + heaviness)
            weight += heaviness
            count += members
        blocks.append((wanted, weight, count))
    following = iter(zip(row, offsets, strict=True))
    for mean, _, count in blocks:
        for _ in range(count):
            v, offset = next(following)
            heights[v] = mean + offset


def _median_height(heights: list[float]) -> float:
    count = len(heights)
    if count == 1:
        return heights[0]
    heights.sort()
    middle = count // 2
    return heights[middle] if count % 2 else (heights[middle - 1] + heights[middle]) / 2
