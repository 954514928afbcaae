import random
from itertools import pairwise

import pytest
from hypothesis import given

from baton import _layout
from baton._fold import fold
from baton._layout import Box, Edge, Layout, layout
from tests.test_fold import chains, fan, random_graphs, sortable

DIAMOND = {
    "fetch": [],
    "keywords": ["fetch"],
    "credibility": ["fetch"],
    "outline": ["fetch"],
    "brief": ["keywords", "credibility", "outline"],
}


def drawn(graph: dict[str, list[str]], *, alike: bool = False, expand: tuple[str, ...] = ()) -> Layout:
    functions = {} if alike else {name: name for name in graph}
    return layout(fold(graph, functions, expand=expand))


def by_label(picture: Layout) -> dict[str, Box]:
    return {box.label: box for box in picture.boxes}


def middle(box: Box) -> float:
    return box.y + box.height / 2


def random_layers(steps: int, depth: int, seed: int) -> dict[str, list[str]]:
    """A graph in which one in five edges passes layers."""
    dice = random.Random(seed)
    rows: list[list[str]] = [[] for _ in range(depth)]
    graph: dict[str, list[str]] = {}
    for n in range(steps):
        layer = n % depth
        earlier = [
            rows[layer - 1] if dice.random() < 0.8 else rows[dice.randrange(layer)]
            for _ in range(2 if layer else 0)
        ]
        graph[f"s{n}"] = sorted({dice.choice(row) for row in earlier})
        rows[layer].append(f"s{n}")
    return graph


def along(edge: Edge) -> list[tuple[float, float]]:
    """Points of the curves that an edge is drawn as."""
    found = []
    for (x, y), (to_x, to_y) in pairwise(edge.points):
        for part in range(17):
            t = part / 16
            # Control points stand in the middle, level with the ends.
            across = (x + to_x) / 2
            found.append(
                (
                    (1 - t) ** 3 * x + 3 * t * (1 - t) * across + t**3 * to_x,
                    ((1 - t) ** 3 + 3 * t * (1 - t) ** 2) * y + (t**3 + 3 * t**2 * (1 - t)) * to_y,
                )
            )
    return found


def check(picture: Layout) -> None:
    """No box on another one, none outside, and no edge through a box."""
    for box in picture.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= picture.width
        assert box.y + box.height <= picture.height
    rows = sorted(picture.boxes, key=lambda box: (box.x, box.y))
    for number, box in enumerate(rows):
        for other in rows[number + 1 :]:
            if other.x >= box.x + box.width:
                break
            assert other.y >= box.y + box.height or box.y >= other.y + other.height, (box, other)
    boxes = {box.id: box for box in picture.boxes}
    for edge in picture.edges:
        source, target = boxes[edge.source], boxes[edge.target]
        (low, *_), (*_, high) = edge.points, edge.points
        left, right = (source, target) if low[0] < high[0] else (target, source)
        ends = sorted(edge.points)
        assert ends[0] == pytest.approx((left.x + left.width, middle(left)), abs=0.1)
        assert ends[-1] == pytest.approx((right.x, middle(right)), abs=0.1)
        for x, y in along(edge):
            assert 0 <= y <= picture.height
            for box in picture.boxes:
                assert not (
                    box.x + 0.2 < x < box.x + box.width - 0.2 and box.y + 0.2 < y < box.y + box.height - 0.2
                ), (edge, box)


def test_a_diamond_is_symmetrical():
    picture = drawn(DIAMOND)
    boxes = by_label(picture)
    assert middle(boxes["fetch"]) == middle(boxes["credibility"]) == middle(boxes["brief"])
    assert middle(boxes["keywords"]) + middle(boxes["outline"]) == 2 * middle(boxes["fetch"])
    assert [boxes[name].layer for name in DIAMOND] == [1, 2, 2, 2, 3]
    assert boxes["keywords"].x == boxes["outline"].x > boxes["fetch"].x + boxes["fetch"].width
    assert len({(box.width, box.height) for box in picture.boxes}) == 1


def test_chains_are_straight():
    picture = drawn(chains(6))
    boxes = by_label(picture)
    for n in range(6):
        assert middle(boxes[f"load_{n}"]) == middle(boxes[f"parse_{n}"])
    level = [edge for edge in picture.edges if edge.points[0][1] == edge.points[-1][1]]
    assert len(level) == 6
    assert all(len(edge.points) == 2 for edge in level)


def test_an_edge_that_passes_a_layer_goes_around_its_boxes():
    graph = {"a": [], "b": ["a"], "c": ["b"], "d": ["a", "c"]}
    picture = drawn(graph)
    (long,) = [edge for edge in picture.edges if len(edge.points) > 2]
    boxes = by_label(picture)
    assert (long.source, long.target) == (boxes["a"].id, boxes["d"].id)
    assert all(abs(y - middle(boxes["b"])) > 26 for _, y in long.points[1:-1])
    check(picture)


def test_a_group_is_larger_than_a_step_and_keeps_its_id_when_another_is_expanded():
    graph = chains(10)
    folded, expanded = drawn(graph, alike=True), drawn(graph, alike=True, expand=("g1",))
    ids = {box.label: box.id for box in folded.boxes}
    assert {box.label: box.id for box in expanded.boxes if box.label in ids} == {
        label: box_id for label, box_id in ids.items() if label != "load"
    }
    group, step = by_label(folded)["parse"], by_label(folded)["plan"]
    assert (group.group, step.group) == (True, False)
    assert group.width > step.width
    assert group.steps == tuple(range(2, 22, 2))
    check(expanded)


def test_parts_that_have_nothing_to_do_with_each_other_stand_below_each_other():
    graph = {"a": [], "b": ["a"], "c": [], "d": ["c"], "lone": []}
    boxes = by_label(drawn(graph))
    assert boxes["a"].y < boxes["c"].y < boxes["lone"].y
    assert boxes["a"].x == boxes["c"].x == boxes["lone"].x


def test_many_boxes_without_edges_are_a_grid():
    picture = drawn({f"step_{n}": [] for n in range(100)})
    assert 1 < picture.width / picture.height < 3
    check(picture)


def test_an_order_without_crossings_is_found():
    """Two trees, their leaves added crosswise."""
    graph: dict[str, list[str]] = {"left": [], "right": []}
    for n in range(6):
        graph[f"leaf_{n}"] = ["left", "right"][n % 2 : n % 2 + 1]
    graph |= {"join": [f"leaf_{n}" for n in range(6)]}
    boxes = by_label(drawn(graph))
    tops = sorted((boxes[f"leaf_{n}"].y, n % 2) for n in range(6))
    assert [side for _, side in tops] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_large_graph_has_no_overlaps(seed):
    check(drawn(random_layers(120, 9, seed)))


def test_edges_beyond_the_limit_share_a_lane_along_the_top(monkeypatch):
    monkeypatch.setattr(_layout, "_MOST_PLACES", 5)
    picture = drawn(random_layers(60, 10, 1))
    lanes = {y for edge in picture.edges for _, y in edge.points if y < min(box.y for box in picture.boxes)}
    assert len(lanes) == 1
    check(picture)


def test_five_to_five_is_symmetrical():
    graph: dict[str, list[str]] = {f"in_{n}": [] for n in range(5)}
    graph |= {f"out_{n}": list(graph)[:5] for n in range(5)}
    boxes = by_label(drawn(graph))
    assert [boxes[f"in_{n}"].y for n in range(5)] == [boxes[f"out_{n}"].y for n in range(5)]


def test_an_expanded_fan_out_has_its_ends_in_the_middle():
    picture = drawn(fan(2000), alike=True, expand=("g1",))
    boxes = by_label(picture)
    assert len(boxes) == 203
    assert middle(boxes["plan"]) == pytest.approx(picture.height / 2, rel=0.05)
    assert middle(boxes["plan"]) == middle(boxes["sum"])


def test_nothing_has_an_empty_layout():
    picture = drawn({})
    assert picture.boxes == picture.edges == picture.groups == ()
    assert picture.width > 0


def test_a_circle_is_cut_where_it_begins_and_its_edge_runs_back():
    picture = drawn({"a": ["c"], "b": ["a"], "c": ["b"], "d": ["d"]})
    boxes = by_label(picture)
    assert boxes["a"].x < boxes["b"].x < boxes["c"].x
    (back,) = [edge for edge in picture.edges if edge.source == boxes["c"].id]
    assert back.points[0][0] > back.points[-1][0]
    check(picture)


@given(graph=random_graphs(16))
def test_any_graph_is_drawn_without_overlaps_from_left_to_right(graph):
    for alike in (True, False):
        picture = drawn(graph, alike=alike)
        assert picture == drawn(graph, alike=alike)
        check(picture)
        assert sorted(step for box in picture.boxes for step in box.steps) == list(range(len(graph)))
        pairs = {(edge.source, edge.target) for edge in picture.edges}
        assert len(pairs) == len(picture.edges)
        number = {box.id: n for n, box in enumerate(picture.boxes)}
        if sortable(range(len(number)), {(number[a], number[b]) for a, b in pairs}):
            boxes = {box.id: box for box in picture.boxes}
            for edge in picture.edges:
                assert all(x <= to_x for (x, _), (to_x, _) in pairwise(edge.points))
                assert boxes[edge.source].layer < boxes[edge.target].layer
