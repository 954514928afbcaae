from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton._graph import descendants, find_cycle, layers


@st.composite
def dags(draw):
    size = draw(st.integers(0, 12))
    return [draw(st.lists(st.integers(0, i - 1), unique=True)) if i else [] for i in range(size)]


def test_a_diamond_has_three_layers():
    assert layers([[], [0], [0], [1, 2]]) == [[0], [1, 2], [3]]


def test_an_empty_graph_has_no_layers_and_no_cycle():
    assert layers([]) == []
    assert find_cycle([]) is None
    assert descendants([], []) == set()


@given(dags())
def test_each_id_stands_one_layer_below_its_lowest_dependency(dag):
    depth = {i: number for number, layer in enumerate(layers(dag)) for i in layer}
    assert depth.keys() == set(range(len(dag)))
    assert all(depth[i] == max((depth[on] + 1 for on in ids), default=0) for i, ids in enumerate(dag))
    assert find_cycle(dag) is None


@given(dags(), st.data())
def test_an_edge_against_the_flow_is_found_as_a_cycle(dag, data):
    pairs = [(i, below) for i in range(len(dag)) for below in descendants(dag, [i])]
    if not pairs:
        return
    top, bottom = data.draw(st.sampled_from(pairs))
    looped = [[*ids, bottom] if i == top else ids for i, ids in enumerate(dag)]
    cycle = find_cycle(looped)
    assert cycle is not None
    assert cycle[0] == cycle[-1]
    assert all(on in looped[i] for on, i in pairwise(cycle))


@pytest.mark.parametrize("graph", [[[0]], [[1], [0]], [[], [0, 3], [1], [2]]])
def test_a_cycle_ends_where_it_begins(graph):
    cycle = find_cycle(graph)
    assert cycle is not None
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1


def test_what_hangs_off_a_cycle_is_not_on_it():
    assert set(find_cycle([[1], [0], [1]]) or ()) == {0, 1}


@given(dags())
def test_descendants_are_reached_through_dependents(dag):
    for root in range(len(dag)):
        expected = set()
        for i in range(root + 1, len(dag)):
            if any(on == root or on in expected for on in dag[i]):
                expected.add(i)
        assert descendants(dag, [root]) == expected


def test_a_chain_of_100_000_needs_no_recursion():
    chain = [[]] + [[i] for i in range(99_999)]
    assert len(layers(chain)) == 100_000
    assert find_cycle(chain) is None
    assert len(descendants(chain, [0])) == 99_999
    assert len(find_cycle([[99_999], *chain[1:]]) or ()) == 100_001
