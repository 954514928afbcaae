"""Layers, cycles and descendants over plain ids; knows nothing of steps or jobs.

A graph is a sequence of sequences: `dependencies[i]` holds the ids that `i` waits for, each from 0 up to
the length of the sequence. Nothing here recurses, so a chain may be as long as memory allows.
"""

import graphlib
from collections.abc import Iterable, Sequence


def layers(dependencies: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sort ids into layers, each depending on earlier layers alone.

    An id stands in the first layer that can hold it, and in the order of ids within it. Ids on a cycle, and
    all that waits for one, are left out: the graph has a cycle if fewer ids come back than went in.
    """
    waiting_on = [len(ids) for ids in dependencies]
    dependents = _dependents(dependencies)
    layer = [i for i, count in enumerate(waiting_on) if count == 0]
    found = []
    while layer:
        found.append(layer)
        released = []
        for i in layer:
            for dependent in dependents[i]:
                waiting_on[dependent] -= 1
                if waiting_on[dependent] == 0:
                    released.append(dependent)
        layer = sorted(released)
    return found


def find_cycle(dependencies: Sequence[Sequence[int]]) -> list[int] | None:
    """Find ids that wait for each other.

    Returns:
        A path along the flow, each id a dependency of the next, that ends with the id it begins with; or
        None if the graph has no cycle.
    """
    sortable = {i for layer in layers(dependencies) for i in layer}
    if len(sortable) == len(dependencies):
        return None
    rest = {
        i: [on for on in ids if on not in sortable] for i, ids in enumerate(dependencies) if i not in sortable
    }
    try:
        graphlib.TopologicalSorter(rest).prepare()
    except graphlib.CycleError as cycle:
        path: list[int] = cycle.args[1]
        return path
    raise AssertionError("what could not be sorted has a cycle")


def descendants(dependencies: Sequence[Sequence[int]], roots: Iterable[int]) -> set[int]:
    """Collect all ids that wait for a root, directly or not; a root only if it waits for one itself."""
    dependents = _dependents(dependencies)
    found: set[int] = set()
    reached = list(roots)
    while reached:
        for dependent in dependents[reached.pop()]:
            if dependent not in found:
                found.add(dependent)
                reached.append(dependent)
    return found


def _dependents(dependencies: Sequence[Sequence[int]]) -> list[list[int]]:
    dependents: list[list[int]] = [[] for _ in dependencies]
    for i, ids in enumerate(dependencies):
        for on in ids:
            dependents[on].append(i)
    return dependents
