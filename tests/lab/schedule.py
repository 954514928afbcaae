"""One seed -> all that will happen in a run: the graphs with what users do to them, the plain jobs, the faults. Pure.

Times are seconds from the start of the run. The schedule is written down before anything of it is executed, so that a run can
be read and replayed; what the machine makes of it (who is executing when a kill comes) is the run's own.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

type Kind = Literal["ok", "thread", "class", "flaky", "snooze", "fail", "cancel", "block", "rare"]
type RunsOn = Literal["success", "always", "failure"]

QUEUES = {"fast": 8, "slow": 4}
# Long enough that a rescue by a silent event loop would hit it.
BLOCKED = 3.0

FAULTS = (
    "kill",
    "freeze",
    "term",
    "pg_restart",
    "pg_crash",
    "end_listener",
    "end_engine",
    "end_pool",
    "end_heartbeat",
    "stall",
    "drop",
    "delay",
    "snapshot",
    "garbage",
)
# Not made by the monkey: these come with the workers and the steps, and are counted there.
BUILT_IN = ("lost_answer", "blocked_loop", "missing_code")


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: what it waits for, what it does, and what it accepts. `times`: failures or snoozes before it completes."""

    name: str
    deps: tuple[str, ...] = ()
    kind: Kind = "ok"
    seconds: float = 0.0
    times: int = 0
    max_attempts: int = 20
    queue: str = "fast"
    runs_on: RunsOn = "success"
    ignore_cancelled: bool = False
    ignore_discarded: bool = False

    def accepts(self, state: str) -> bool:
        """Whether it may run after a dependency that settled so."""
        if self.runs_on != "success" or state == "completed":
            return True
        return self.ignore_discarded if state == "discarded" else self.ignore_cancelled


@dataclass(frozen=True, slots=True)
class Action:
    """What a user does to a run, `after` seconds from its insert or from the action before. `step`: to this step alone."""

    what: Literal["cancel", "cancel_step", "oban_cancel", "oban_retry", "pause", "retry", "rerun", "prune"]
    after: float
    step: str | None = None
    lasts: float = 0.0


@dataclass(frozen=True, slots=True)
class Flow:
    """A workflow to insert, and what is done to it. Steps come after those they wait for."""

    at: float
    tag: str
    steps: tuple[StepPlan, ...]
    actions: tuple[Action, ...] = ()

    @property
    def retried(self) -> bool:
        return any(action.what == "retry" for action in self.actions)


@dataclass(frozen=True, slots=True)
class PlainJobs:
    """Ordinary Oban jobs, inserted beside the workflows."""

    at: float
    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong. `lasts`: until it is undone; `worker`: whom it prefers, if it has a choice."""

    at: float
    kind: str
    lasts: float = 0.0
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """All of a run."""

    seed: int
    seconds: float
    rescue_after: float
    kinds: tuple[str, ...]
    flows: tuple[Flow, ...]
    plain: tuple[PlainJobs, ...]
    faults: tuple[Fault, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make(seed: int, seconds: float, *, rescue_after: float = 2.0, kinds: Sequence[str] = FAULTS) -> Schedule:
    """The run of a seed. The same arguments make the same schedule, on any machine."""
    stream, monkey = random.Random(f"graphs/{seed}"), random.Random(f"faults/{seed}")
    flows = tuple(_flows(stream, seconds))
    plain = tuple(
        PlainJobs(at=round(at, 3), count=stream.randint(1, 4))
        for at in _times(stream, 0.2, seconds, every=1.0)
    )
    return Schedule(
        seed,
        seconds,
        rescue_after,
        tuple(kinds),
        flows,
        plain,
        tuple(_faults(monkey, seconds, rescue_after, kinds)),
    )


def _times(rng: random.Random, start: float, end: float, *, every: float) -> Iterator[float]:
    at = start
    while at < end:
        yield at
        at += rng.uniform(0.5, 1.5) * every


# --- graphs ---------------------------------------------------------------------------------------


def _flows(rng: random.Random, seconds: float) -> Iterator[Flow]:
    blocked = 0.0
    for number, at in enumerate(_times(rng, 0.1, seconds, every=0.3)):
        shape = rng.choices([_chain, _diamond, _fan, _layers, _single], [2, 3, 2, 4, 1])[0]
        steps = [_with_behaviour(rng, name, deps, bool(shape is _fan)) for name, deps in shape(rng).items()]
        # A blocked loop holds up all that its process runs, so there is one at a time.
        if at >= blocked:
            place = rng.randrange(len(steps))
            steps[place] = StepPlan(steps[place].name, steps[place].deps, "block", BLOCKED, queue="slow")
            blocked = at + 4 * BLOCKED
        yield Flow(round(at, 3), f"f{number}", tuple(steps), tuple(_actions(rng, steps)))


def _single(_rng: random.Random) -> dict[str, list[str]]:
    return {"s0": []}


def _chain(rng: random.Random) -> dict[str, list[str]]:
    return {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(rng.randint(2, 8))}


def _diamond(rng: random.Random) -> dict[str, list[str]]:
    middle = [f"s{n}" for n in range(1, rng.randint(3, 6))]
    return {"s0": [], **{name: ["s0"] for name in middle}, f"s{len(middle) + 1}": middle}


def _fan(rng: random.Random) -> dict[str, list[str]]:
    return {**(many := {f"s{n}": [] for n in range(rng.randint(12, 40))}), f"s{len(many)}": list(many)}


def _layers(rng: random.Random) -> dict[str, list[str]]:
    graph: dict[str, list[str]] = {}
    for n in range(rng.randint(3, 14)):
        graph[f"s{n}"] = rng.sample(sorted(graph), min(len(graph), rng.choice([0, 1, 1, 2, 3])))
    return graph


def _with_behaviour(rng: random.Random, name: str, deps: list[str], many: bool) -> StepPlan:
    kinds: dict[Kind, int] = {
        "ok": 60,
        "thread": 8,
        "class": 6,
        "flaky": 5,
        "snooze": 4,
        "fail": 4,
        "cancel": 2,
        "rare": 4,
    }
    if many:
        kinds = {"ok": 95, "thread": 2, "fail": 2, "flaky": 1}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    runs_on: RunsOn = rng.choices(["success", "always", "failure"], [88, 6, 6])[0] if deps else "success"  # type: ignore[assignment]
    return StepPlan(
        name,
        tuple(deps),
        kind,
        seconds=round(
            rng.choice([0, 0, 0.02, 0.1, 0.4]) if many or rng.random() < 0.85 else rng.uniform(0.8, 3.0), 2
        ),
        times=rng.randint(1, 2),
        max_attempts=rng.randint(1, 2) if kind == "fail" else 20,
        queue="slow" if rng.random() < 0.2 else "fast",
        runs_on=runs_on,
        ignore_cancelled=rng.random() < 0.25,
        ignore_discarded=rng.random() < 0.25,
    )


def _actions(rng: random.Random, steps: list[StepPlan]) -> Iterator[Action]:
    if rng.random() < 0.5:
        return
    step = rng.choice(steps).name
    soon = round(rng.choice([0.0, 0.05, 0.3, 1.0, 2.0]), 2)
    fails = any(step.kind == "fail" for step in steps)
    what = rng.choices(
        ["cancel", "cancel_step", "oban_cancel", "oban_retry", "pause", "rerun", "retry", "prune"],
        [4, 2, 2, 2, 4, 2, 8 if fails else 1, 5],
    )[0]
    match what:
        case "pause":
            yield Action("pause", soon, lasts=round(rng.uniform(0.2, 2.0), 2))
        case "cancel":
            yield Action("cancel", soon)
            if rng.random() < 0.4:
                yield Action("retry", round(rng.uniform(0.0, 1.5), 2))
        case "retry":
            yield Action("retry", soon + 1.0)
        case "cancel_step" | "oban_cancel" | "oban_retry" | "rerun":
            yield Action(what, soon, step)
        case "prune":
            yield Action("prune", 0.5)


# --- faults ---------------------------------------------------------------------------------------

# Seconds until a fault is undone, as a share of the time after which a silent process is dead.
_LASTS = {"freeze": (1.8, 2.6), "stall": (0.3, 0.9), "delay": (0.5, 1.0), "snapshot": (1.0, 2.0)}


def _faults(
    rng: random.Random, seconds: float, rescue_after: float, wanted: Sequence[str]
) -> Iterator[Fault]:
    """Every kind at least once, in a random order, then again; none in the last part, in which what is broken heals."""
    end = seconds - min(6.0, seconds / 5)
    rounds = max(1, round(end / 20))
    kinds = [kind for _ in range(rounds) for kind in rng.sample(wanted, len(wanted))]
    for number, kind in enumerate(kinds):
        low, high = _LASTS.get(kind, (0.0, 0.0))
        yield Fault(
            at=round(1.0 + (end - 1.0) * number / len(kinds), 3),
            kind=kind,
            lasts=round(rng.uniform(low, high) * rescue_after, 2),
            worker=rng.randrange(3),
        )


# --- values ---------------------------------------------------------------------------------------


def value_of(tag: str, step: str, inputs: Mapping[str, str | None]) -> str:
    """What a step returns: it depends on all that it was given, so one stale input shows in every value downstream."""
    given = ",".join(f"{name}={inputs[name] or ''}" for name in sorted(inputs))
    return hashlib.sha256(f"{tag}/{step}/{given}".encode()).hexdigest()
