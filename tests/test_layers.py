import random
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton._layers import Layered, Rows, place, untangle


def layered(sizes: list[int], pairs: set[tuple[int, int]]) -> Layered:
    """Rows of so many nodes, numbered through, and edges between neighbouring rows."""
    ids = iter(range(sum(sizes)))
    rows = [[next(ids) for _ in range(size)] for size in sizes]
    before: list[list[int]] = [[] for _ in range(sum(sizes))]
    after: list[list[int]] = [[] for _ in range(sum(sizes))]
    for v, w in sorted(pairs):
        after[v].append(w)
        before[w].append(v)
    return Layered(rows, before, after, [10.0] * sum(sizes), sum(sizes))


def crossings(graph: Layered, rows: Rows) -> int:
    """Counted one by one."""
    at = {v: number for row in rows for number, v in enumerate(row)}
    lines = [[(at[v], at[w]) for v in row for w in graph.after[v]] for row in rows]
    return sum((a - c) * (b - d) < 0 for between in lines for (a, b), (c, d) in combinations(between, 2))


def dense(seed: int) -> Layered:
    dice = random.Random(seed)
    pairs = {
        (8 * row + dice.randrange(8), 8 * row + 8 + dice.randrange(8)) for row in range(3) for _ in range(14)
    }
    return layered([8, 8, 8, 8], pairs)


graphs = st.builds(
    lambda sizes, draws: layered(
        sizes,
        {
            (sum(sizes[:row]) + a % sizes[row], sum(sizes[: row + 1]) + b % sizes[row + 1])
            for row, a, b in draws
            if row + 1 < len(sizes)
        },
    ),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)), max_size=20),
)


@pytest.mark.parametrize("seed", range(5))
def test_an_order_has_half_the_crossings_that_it_had(seed):
    graph = dense(seed)
    assert crossings(graph, untangle(graph)) < crossings(graph, graph.rows) / 2


def test_an_order_without_crossings_is_found():
    graph = layered([4, 4], {(0, 7), (1, 6), (2, 5), (3, 4)})
    assert crossings(graph, untangle(graph)) == 0


@given(graph=graphs)
def test_an_order_keeps_every_node_in_its_row_and_is_always_the_same(graph):
    rows = untangle(graph)
    assert [sorted(row) for row in rows] == graph.rows
    assert rows == untangle(graph)


@given(graph=graphs)
def test_nodes_of_a_row_keep_their_order_and_their_distance(graph):
    rows = untangle(graph)
    heights = place(graph, rows, lambda v, w: 30.0)
    for row in rows:
        assert all(heights[w] - heights[v] >= 30 - 1e-6 for v, w in pairwise(row))


def test_a_parent_stands_in_the_middle_of_its_fan():
    graph = layered([1, 5], {(0, n) for n in range(1, 6)})
    heights = place(graph, graph.rows, lambda v, w: 30.0)
    assert heights[0] == pytest.approx(heights[3])
    assert [heights[n + 1] - heights[n] for n in range(1, 5)] == pytest.approx([30.0] * 4)


def test_a_chain_is_level_though_a_wide_row_is_beside_it():
    graph = layered(
        [2, 5, 2], {(0, 2), (2, 7), (1, 3), (1, 4), (1, 5), (1, 6), (3, 8), (4, 8), (5, 8), (6, 8)}
    )
    heights = place(graph, graph.rows, lambda v, w: 30.0)
    assert heights[0] == pytest.approx(heights[2]) == pytest.approx(heights[7])
