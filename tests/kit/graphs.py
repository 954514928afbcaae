"""Random graphs of steps, drawn by hypothesis, and workflows made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from oban.job import Job

from baton.workflow import Workflow

QUEUE = "default"


@dataclass(frozen=True, slots=True)
class Vertex:
    """A step of a random graph. `deps` are places of vertices before it; `later` schedules it for tomorrow."""

    deps: tuple[int, ...] = ()
    ignore_cancelled: bool = False
    ignore_discarded: bool = False
    max_attempts: int = 20
    later: bool = False

    @property
    def ignores(self) -> frozenset[str]:
        flags = {"cancelled": self.ignore_cancelled, "discarded": self.ignore_discarded}
        return frozenset(state for state, ignored in flags.items() if ignored)


@st.composite
def dags(draw: st.DrawFn, min_steps: int = 0, max_steps: int = 12) -> tuple[Vertex, ...]:
    """Graphs of `min_steps` to `max_steps` steps; a step depends only on steps drawn before it.

    In half of them every step ignores whatever became of its dependencies.
    """
    vertices = []
    lenient = draw(st.booleans())
    for place in range(draw(st.integers(min_steps, max_steps))):
        deps = draw(st.lists(st.integers(0, place - 1), unique=True, max_size=4)) if place else []
        vertices.append(
            Vertex(
                deps=tuple(deps),
                ignore_cancelled=lenient or draw(st.booleans()),
                ignore_discarded=lenient or draw(st.booleans()),
                max_attempts=draw(st.sampled_from([20, 1, 2])),
                later=draw(st.sampled_from([False, False, False, True])),
            )
        )
    return tuple(vertices)


def name_of(place: int) -> str:
    """Name of the step at a place."""
    return f"s{place}"


def build(dag: Sequence[Vertex], *, name: str = "random", key: str | None = None) -> Workflow:
    """The workflow of a graph; its jobs belong to a worker that nobody has."""
    workflow = Workflow(name, key=key)
    for place, vertex in enumerate(dag):
        workflow.add(
            name_of(place),
            Job(
                "tests.Nobody",
                queue=QUEUE,
                args={"place": place},
                max_attempts=vertex.max_attempts,
                scheduled_at=datetime.now(UTC) + timedelta(days=1) if vertex.later else None,
            ),
            deps=[name_of(dep) for dep in vertex.deps],
            ignore_cancelled=vertex.ignore_cancelled,
            ignore_discarded=vertex.ignore_discarded,
        )
    return workflow
