import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton import _fold
from baton._fold import Folded, fold


def labels(folded: Folded) -> list[tuple[str, int]]:
    return [(part.label, len(part.steps)) for part in folded.parts]


def edges(folded: Folded) -> set[tuple[str, str]]:
    return {(folded.parts[a].label, folded.parts[b].label) for a, b in folded.edges}


def fan(width: int, name: str = "fetch[{}]") -> dict[str, list[str]]:
    names = [name.format(n) for n in range(width)]
    return {"plan": [], **{name: ["plan"] for name in names}, "sum": names}


def chains(count: int) -> dict[str, list[str]]:
    graph: dict[str, list[str]] = {"plan": []}
    for n in range(count):
        graph |= {f"load_{n}": ["plan"], f"parse_{n}": [f"load_{n}"]}
    return graph | {"sum": [f"parse_{n}" for n in range(count)]}


def random_graphs(max_steps: int = 40) -> st.SearchStrategy[dict[str, list[str]]]:
    """Graphs with few kinds of names, so that some of their steps are alike; some have cycles, and names of no step."""

    def build(rows: list[tuple[str, list[int]]]) -> dict[str, list[str]]:
        names = [f"{kind}{number}" for number, (kind, _) in enumerate(rows)]
        return {
            name: [names[on] if on < len(names) else "elsewhere" for on in deps]
            for name, (_, deps) in zip(names, rows, strict=True)
        }

    row = st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, max_steps), max_size=3, unique=True))
    return st.lists(row, max_size=max_steps).map(build)


def test_a_wide_fan_out_is_one_box_with_one_edge_to_and_from_it():
    folded = fold(fan(2000))
    assert labels(folded) == [("plan", 1), ("fetch", 2000), ("sum", 1)]
    assert edges(folded) == {("plan", "fetch"), ("fetch", "sum")}
    assert [(group.id, group.label, len(group.steps), group.expanded) for group in folded.groups] == [
        ("g1", "fetch", 2000, False)
    ]


def test_parallel_chains_are_a_chain_of_groups():
    folded = fold(chains(50))
    assert labels(folded) == [("plan", 1), ("load", 50), ("parse", 50), ("sum", 1)]
    assert edges(folded) == {("plan", "load"), ("load", "parse"), ("parse", "sum")}


def test_three_that_are_alike_stay_single():
    assert len(fold(fan(3)).parts) == 5
    assert len(fold(fan(4)).parts) == 3


def test_a_step_that_somebody_else_waits_for_is_unlike_its_siblings():
    graph = fan(10) | {"audit": ["fetch[3]"]}
    assert labels(fold(graph)) == [("plan", 1), ("fetch", 9), ("fetch[3]", 1), ("sum", 1), ("audit", 1)]


def test_likeness_is_seen_along_a_whole_chain():
    graph = chains(10) | {"audit": ["parse_3"]}
    assert ("load", 9) in labels(fold(graph))
    assert ("load_3", 1) in labels(fold(graph))


def test_another_function_is_another_group():
    functions = {f"fetch[{n}]": "app.fetch_new" if n < 5 else "app.fetch_old" for n in range(10)}
    assert labels(fold(fan(10), functions)) == [("plan", 1), ("fetch", 5), ("fetch", 5), ("sum", 1)]


def test_steps_named_differently_are_a_group_only_if_they_are_many():
    names = ["tone", "facts", "style", "length", "links", "names", "dates", "places"]
    graph = {"plan": [], **{name: ["plan"] for name in names}}
    functions = dict.fromkeys(names, "app.checks.look_at")
    assert labels(fold(graph, functions)) == [("plan", 1), ("look_at", 8)]
    del graph["places"]
    assert len(fold(graph, functions).parts) == 8


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fetch[{}]", "fetch"),
        ("fetch_{}", "fetch"),
        ("fetch-{}", "fetch"),
        ("part{}", "part"),
        ("us_{}_load", "us_*_load"),
        ("2024_{}", "2024"),
        ("s3_{}[0]", "s3_*[0]"),
        ("{}", "layer 2"),
    ],
)
def test_a_group_is_called_what_its_names_have_in_common(name, label):
    assert labels(fold(fan(5, name)))[1] == (label, 5)


def test_an_expanded_group_shows_its_members():
    folded = fold(fan(5), expand=["g1", "unknown"])
    assert labels(folded) == [("plan", 1), *((f"fetch[{n}]", 1) for n in range(5)), ("sum", 1)]
    assert [(group.id, len(group.steps), group.expanded) for group in folded.groups] == [("g1", 5, True)]


def test_a_large_group_is_expanded_by_200_at_a_time():
    folded = fold(fan(450), expand=["g1"])
    assert len(folded.parts) == 203
    assert folded.parts[201].label == "fetch, the rest"
    assert folded.parts[201].id == "g1+200"
    assert len(folded.parts[201].steps) == 250
    assert [(group.id, group.expanded) for group in folded.groups] == [("g1", True), ("g1+200", False)]
    folded = fold(fan(450), expand=["g1", "g1+200", "g1+400"])
    assert len(folded.parts) == 452
    assert all(group.expanded for group in folded.groups)


def test_no_remainder_is_smaller_than_a_group():
    assert len(fold(fan(203), expand=["g1"]).parts) == 205
    assert len(fold(fan(204), expand=["g1"]).parts) == 203


def test_positions_are_those_of_the_run():
    positions = {name: 100 + n for n, name in enumerate(fan(4))}
    folded = fold(fan(4), positions=positions)
    assert [(part.id, part.steps) for part in folded.parts] == [
        ("s100", (100,)),
        ("g101", (101, 102, 103, 104)),
        ("s105", (105,)),
    ]


def test_a_graph_too_large_to_look_at_is_folded_by_layer_and_name():
    """Each step waits for other ones, so no two are alike."""
    graph: dict[str, list[str]] = {}
    for layer in range(4):
        for n in range(400):
            graph[f"work_{layer}_{n}"] = [f"work_{layer - 1}_{m}" for m in {n, n * 7 % 400}] if layer else []
    graph |= {f"own_{n}": [f"work_3_{n}"] for n in range(400)}
    assert labels(fold(graph)) == [*((f"work_{layer}", 400) for layer in range(4)), ("own", 400)]


def test_a_chain_too_long_to_look_at_is_folded_by_layers():
    graph = {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(5000)}
    folded = fold(graph)
    assert len(folded.parts) <= 200
    assert folded.parts[0].label == "layers 1 to 26"
    assert len(folded.edges) == len(folded.parts) - 1
    assert len(fold(graph, expand=["g0"]).parts) == len(folded.parts) + 25


def test_steps_on_a_cycle_stay_single_and_nothing_hangs():
    graph = {"a": ["b"], "b": ["a"], "c": ["c"], "d": ["a"], "e": []}
    folded = fold(graph)
    assert labels(folded) == [(name, 1) for name in "abcde"]
    assert edges(folded) == {("a", "b"), ("b", "a"), ("a", "d")}


def test_nothing_folds_to_nothing():
    assert fold({}) == Folded((), (), ())


@pytest.mark.parametrize("most", [1000, 5, 2])
@given(graph=random_graphs(), data=st.data())
def test_every_step_is_in_one_box_and_no_new_cycle_arises(most, graph, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fold, "_MOST_BOXES", most)
        patch.setattr(_fold, "_MOST_BANDS", most)
        patch.setattr(_fold, "_SHOWN", 5)
        groups = [group.id for group in fold(graph).groups]
        expand = data.draw(st.sets(st.sampled_from([*groups, "g0+5"])))
        folded = fold(graph, expand=expand)
        assert folded == fold(graph, expand=expand)
    shown = [step for part in folded.parts for step in part.steps]
    assert sorted(shown) == list(range(len(graph)))
    assert len({part.id for part in folded.parts}) == len(folded.parts)
    assert all(part.group == (len(part.steps) > 1) for part in folded.parts)
    home = {step: number for number, part in enumerate(folded.parts) for step in part.steps}
    index = {name: number for number, name in enumerate(graph)}
    wanted = {
        (home[index[on]], home[index[name]]) for name, on_ in graph.items() for on in on_ if on in index
    }
    assert set(folded.edges) == {(a, b) for a, b in wanted if a != b}
    if sortable(
        range(len(graph)), {(index[on], index[n]) for n, on_ in graph.items() for on in on_ if on in index}
    ):
        assert sortable(range(len(folded.parts)), set(folded.edges))


def sortable(ids: range, pairs: set[tuple[int, int]]) -> bool:
    left = set(ids)
    while ready := {i for i in left if not any(b == i and a in left for a, b in pairs)}:
        left -= ready
    return not left
