"""Random graphs of steps, drawn by hypothesis, and workflows made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from oban.job import Job

from baton.workflow import Workflow

QUEUE = "default"


class Hooked:
    """A worker that nobody runs, and that wants to hear that a dependency doomed it."""

    async def on_dep_cancelled(self, reason: str, job: Job) -> None: ...

    async def on_dep_discarded(self, reason: str, job: Job) -> None: ...


HOOKED = f"{Hooked.__module__}.{Hooked.__qualname__}"


@dataclass(frozen=True, slots=True)
class Vertex:
    """A step of a random graph. `deps` are places of vertices before it; `later` schedules it for tomorrow."""

    deps: tuple[int, ...] = ()
    ignore_cancelled: bool = False
    ignore_discarded: bool = False
    max_attempts: int = 20
    later: bool = False
    runs_on: str = "success"
    hooked: bool = False

    @property
    def ignores(self) -> frozenset[str]:
        flags = {"cancelled": self.ignore_cancelled, "discarded": self.ignore_discarded}
        return frozenset(state for state, ignored in flags.items() if ignored)


_RUNS_ON = ["success", "success", "success", "always", "failure"]


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
                runs_on=draw(st.sampled_from(_RUNS_ON if deps else _RUNS_ON[:-1])),
                hooked=draw(st.booleans()),
            )
        )
    return tuple(vertices)


def name_of(place: int) -> str:
    """Name of the step at a place."""
    return f"s{place}"


def build(
    dag: Sequence[Vertex], *, name: str = "random", key: str | None = None, deadline: timedelta | None = None
) -> Workflow:
    """The workflow of a graph; its jobs belong to workers that nobody runs."""
    workflow = Workflow(name, key=key, deadline=deadline)
    for place, vertex in enumerate(dag):
        workflow.add(
            name_of(place),
            Job(
                HOOKED if vertex.hooked else "tests.Nobody",
                queue=QUEUE,
                args={"place": place},
                max_attempts=vertex.max_attempts,
                scheduled_at=datetime.now(UTC) + timedelta(days=1) if vertex.later else None,
            ),
            deps=[name_of(dep) for dep in vertex.deps],
            ignore_cancelled=vertex.ignore_cancelled,
            ignore_discarded=vertex.ignore_discarded,
            always=vertex.runs_on == "always",
            on_failure=vertex.runs_on == "failure",
        )
    return workflow
