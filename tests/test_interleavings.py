"""Two or three transactions in every order in which their statements can follow each other.

An operation is a list of statements in one transaction. Each schedule runs on real connections; a statement that waits for
a lock is not runnable until whoever it waits for has ended. What the database is afterwards, and what each operation
answered, must be what some serial order leads to. Nobody may meet a deadlock.

Locks inside one statement are where two of them meet, so each pair is run again with a row held by a third transaction, which
stops them there until it ends.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from psycopg import DatabaseError
from psycopg.errors import DeadlockDetected, SerializationFailure

from baton._engine import Outcome
from tests.kit.database import Database, Session
from tests.kit.graphs import Vertex, build

type Statement = Callable[[Session, "Scene"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A run, the ids of its jobs in order, and the outcomes that its attempts under way may come to."""

    run_id: UUID
    jobs: tuple[int, ...]
    outcomes: Mapping[int, Outcome]


@dataclass(frozen=True, slots=True)
class Act:
    """An operation: its statements, all in one transaction. The last one's answer is the operation's."""

    name: str
    statements: tuple[Statement, ...]

    @property
    def steps(self) -> int:
        """The statements, and the commit."""
        return len(self.statements) + 1


@dataclass(slots=True)
class Actor:
    """An operation under way on a connection of its own."""

    act: Act
    session: Session
    done: int = 0
    owed: int = 0
    answer: Any = None
    waiting: "asyncio.Future[Any] | None" = None
    error: DatabaseError | None = None


class Stage:
    """Runs schedules: a new scene each time, then the steps of the actors in the order given, then what is left."""

    def __init__(self, db: Database, sessions: Sequence[Session]) -> None:
        self.db = db
        self.sessions = sessions

    async def play(
        self, scene: Callable[[Database], Awaitable[Scene]], acts: Sequence[Act], schedule: Iterable[int]
    ) -> tuple[Any, ...]:
        """Returns what came of it: answers, and the database in words that are the same for every scene."""
        await self.db.clear()
        here = await scene(self.db)
        actors = [Actor(act, session) for act, session in zip(acts, self.sessions, strict=False)]
        for place in schedule:
            actors[place].owed += 1
            await self._go_on(actors, here)
        for actor in actors:
            actor.owed = actor.act.steps - actor.done
        await self._go_on(actors, here)
        assert all(actor.done == actor.act.steps for actor in actors), "somebody still waits"
        await self.db.main.engine.sweep()
        await self._again(actors, here)
        assert await self.db.audit() == []
        return tuple(actor.answer for actor in actors), await self._words(here)

    async def _go_on(self, actors: list[Actor], scene: Scene) -> None:
        """Let everybody do what they are due, as long as somebody can."""
        moved = True
        while moved:
            moved = False
            for actor in actors:
                if actor.waiting is not None and not await self._ended(actor):
                    continue
                while actor.owed and actor.waiting is None:
                    await self._step(actor, scene)
                    moved = True

    async def _step(self, actor: Actor, scene: Scene) -> None:
        """Begin the actor's next statement, or end its transaction."""
        if actor.done == 0:
            await actor.session.begin()
        if actor.done == len(actor.act.statements):
            await actor.session.end(actor.error is None)
            actor.done, actor.owed = actor.done + 1, actor.owed - 1
            return
        if actor.error is not None:
            actor.done, actor.owed = actor.done + 1, actor.owed - 1
            return
        actor.waiting = asyncio.ensure_future(actor.act.statements[actor.done](actor.session, scene))
        await self._ended(actor)

    async def _ended(self, actor: Actor) -> bool:
        """Follow the actor's statement until it has ended, or waits for a lock."""
        assert actor.waiting is not None
        if await self.db.waits_or_ends(actor.waiting, actor.session):
            return False
        statement, actor.waiting = actor.waiting, None
        try:
            actor.answer = await statement
        except SerializationFailure:
            # As the engine does: again, from the beginning.
            await actor.session.end(False)
            actor.owed += actor.done
            actor.done = 0
            return True
        except DeadlockDetected:
            raise
        except DatabaseError as error:
            actor.error, actor.answer = error, error.sqlstate
        actor.done, actor.owed = actor.done + 1, actor.owed - 1
        return True

    async def _again(self, actors: Sequence[Actor], scene: Scene) -> None:
        """What passes over locked rows takes them the next time it comes by."""
        for actor in actors:
            if actor.act in (CLAIM, PRUNE, RESCUE):
                await actor.act.statements[0](self.db.main, scene)

    async def _words(self, scene: Scene) -> tuple[Any, ...]:
        steps = await self.db.main.rows(
            "SELECT workflow.id = %s, step.name, step.state, step.waiting_on, step.owed, step.doomed, step.reruns, "
            "step.result::text, step.cancel_requested_at IS NOT NULL, job.state::text, job.attempt FROM workflow_nodes AS step "
            "JOIN workflows AS workflow ON workflow.id = step.workflow_id LEFT JOIN oban_jobs AS job ON job.id = step.job_id "
            "ORDER BY 1 DESC, step.position",
            scene.run_id,
        )
        runs = await self.db.main.rows(
            "SELECT id = %s, outcome, generation, unsettled, failed, excused, paused_at IS NOT NULL, cancel_cause, "
            "rerun_of = %s FROM workflows ORDER BY 1 DESC",
            scene.run_id,
            scene.run_id,
        )
        ends = await self.db.main.rows(
            "SELECT workflow_id = %s, generation, outcome, failed_steps::text FROM workflow_completions ORDER BY 1, 2",
            scene.run_id,
        )
        return tuple(steps), tuple(runs), tuple(ends)


def schedules(acts: Sequence[Act]) -> list[tuple[int, ...]]:
    """All orders in which the steps of the operations can follow each other: 6 for two of one statement each."""
    steps = [place for place, act in enumerate(acts) for _ in range(act.steps)]
    return sorted(set(itertools.permutations(steps)))


def serial(acts: Sequence[Act]) -> list[tuple[int, ...]]:
    """Those in which one has ended before the next begins."""
    return [
        tuple(place for place in order for _ in range(acts[place].steps))
        for order in itertools.permutations(range(len(acts)))
    ]


# --- operations -----------------------------------------------------------------------------------------


def one(name: str, statement: Statement) -> Act:
    return Act(name, (statement,))


def ack(place: int, state: str = "completed") -> Act:
    async def statement(session: Session, scene: Scene) -> int:
        outcome = scene.outcomes[place]
        kept = replace(outcome, state=state, result=outcome.result if state == "completed" else None)
        return len((await session.ack([kept])).acked)

    return one(f"ack {place} {state}", statement)


def verb(name: str, *params: object) -> Act:
    async def statement(session: Session, scene: Scene) -> Any:
        # An error of these is told apart by its code; 40001 is for whoever called.
        return (await session.rows(_CALLS[name], scene.run_id, *params))[0][0]

    return one(" ".join([name, *(str(param) for param in params)]), statement)


_CALLS = {
    "cancel": "SELECT baton_cancel(%s, NULL, 'enough', 'request')",
    "cancel step": "SELECT baton_cancel(%s, ARRAY[%s]::text[], 'enough', 'request')",
    "expire": "SELECT baton_cancel(id, NULL, 'late', 'deadline') FROM workflows WHERE id = %s",
    "pause": "SELECT baton_pause(%s)",
    "resume": "SELECT baton_resume(%s)",
    "retry": "SELECT baton_retry(%s)",
    "rerun": "SELECT baton_rerun(%s, gen_random_uuid(), NULL)",
}


def oban(call: str, *places: int) -> Act:
    async def statement(session: Session, scene: Scene) -> Any:
        answer = await getattr(session, call)(*[scene.jobs[place] for place in places])
        return len(answer) if isinstance(answer, dict) else answer

    return one(f"Oban's {call} of {places}", statement)


async def _rescue(session: Session, scene: Scene) -> None:
    # As the engine's own rescue does it, whatever it takes for dead: here all that run.
    await session.run(
        "WITH dead AS (SELECT id FROM oban_jobs WHERE state = 'executing' ORDER BY id FOR UPDATE SKIP LOCKED) "
        "UPDATE oban_jobs AS job SET state = 'available' FROM dead WHERE job.id = dead.id"
    )


async def _prune(session: Session, scene: Scene) -> None:
    await session.rows("SELECT deleted FROM baton_prune(100, 0, NULL)")


async def _claim(session: Session, scene: Scene) -> None:
    await session.claim(10)


RESCUE = one("rescue", _rescue)
PRUNE = one("prune", _prune)
CLAIM = one("claim", _claim)


def hold(what: str) -> Act:
    """Hold a row, and do nothing with it: whoever needs it stops there."""

    async def statement(session: Session, scene: Scene) -> None:
        if what == "run":
            await session.rows("SELECT 1 FROM workflows WHERE id = %s FOR UPDATE", scene.run_id)
        else:
            place = int(what)
            jobs = list(scene.jobs[place : place + 1])
            await session.rows("SELECT 1 FROM oban_jobs WHERE id = ANY(%s) FOR UPDATE", jobs)

    return one(f"hold {what}", statement)


# --- scenes ---------------------------------------------------------------------------------------------

# Two that run, what waits for both, what waits for that, and what always runs.
DIAMOND = (
    Vertex(),
    Vertex(),
    Vertex(deps=(0, 1)),
    Vertex(deps=(2,)),
    Vertex(deps=(0,), runs_on="always"),
)

# One to be claimed or rescued: of several, whoever skips locked rows may take some and not the others.
SHORT = (Vertex(), Vertex(deps=(0,)), Vertex(deps=(0,), runs_on="always"))


def scene(
    *, started: Sequence[int] = (), before: Sequence[Act] = (), dag: Sequence[Vertex] = DIAMOND
) -> Callable[[Database], Awaitable[Scene]]:
    """A new run, some of it started, and what has happened to it before the operations meet."""

    async def make(db: Database) -> Scene:
        inserted = await db.main.insert(build(dag))
        jobs = tuple((await db.jobs(inserted.id)).values())
        outcomes = await db.main.start(*[jobs[place] for place in started]) if started else []
        found = Scene(inserted.id, jobs, dict(zip(started, outcomes, strict=True)))
        for act in before:
            for statement in act.statements:
                await statement(db.main, found)
        return found

    return make


async def _oban_prunes(session: Session, _scene: Scene) -> None:
    await session.oban("prune_jobs", max_age=0, limit=1000)


async def _overdue(session: Session, scene: Scene) -> None:
    await session.run(
        "UPDATE workflows SET deadline_at = now() - interval '1 hour' WHERE id = %s", scene.run_id
    )


RUNNING = scene(started=(0, 1))
READY = scene(dag=SHORT)
STARTED = scene(started=(0,), dag=SHORT)
OVERDUE = scene(started=(0, 1), before=[one("overdue", _overdue)])
FAILED = scene(started=(0, 1), before=[ack(0, "discarded"), ack(1)], dag=DIAMOND[:4])
CANCELLED = scene(before=[verb("cancel")], dag=DIAMOND[:4])
CANCELLED_READY = scene(before=[verb("cancel")], dag=SHORT[:2])
GONE = scene(before=[verb("cancel"), one("Oban prunes", _oban_prunes)], dag=DIAMOND[:4])

PAIRS: dict[str, tuple[Callable[[Database], Awaitable[Scene]], tuple[Act, Act]]] = {
    "the last two of a fan-in": (RUNNING, (ack(0), ack(1))),
    "the same ack twice": (RUNNING, (ack(0), ack(0))),
    "an ack, a failure": (RUNNING, (ack(0), ack(1, "discarded"))),
    "ack, cancel": (RUNNING, (ack(0), verb("cancel"))),
    "the last ack, cancel": (scene(started=(0,), dag=DIAMOND[:1]), (ack(0), verb("cancel"))),
    "ack, cancel of the step": (RUNNING, (ack(0), verb("cancel step", "s0"))),
    "ack, cancel of a dependent": (RUNNING, (ack(0), verb("cancel step", "s2"))),
    "ack, pause": (RUNNING, (ack(0), verb("pause"))),
    "retryable, pause": (RUNNING, (ack(0, "retryable"), verb("pause"))),
    "ack, resume": (scene(started=(0, 1), before=[verb("pause")]), (ack(0), verb("resume"))),
    "retry, retry": (FAILED, (verb("retry"), verb("retry"))),
    "retry, cancel": (FAILED, (verb("retry"), verb("cancel"))),
    "retry, cancel of a step": (FAILED, (verb("retry"), verb("cancel step", "s0"))),
    "retry of a cancelled run, cancel": (CANCELLED, (verb("retry"), verb("cancel"))),
    "retry, ack": (
        scene(started=(0, 1), before=[ack(0, "discarded")], dag=DIAMOND[:4]),
        (verb("retry"), ack(1)),
    ),
    "retry, prune": (FAILED, (verb("retry"), PRUNE)),
    "retry of what is gone, prune": (GONE, (verb("retry"), PRUNE)),
    "retry, pause": (FAILED, (verb("retry"), verb("pause"))),
    "cancel, cancel": (RUNNING, (verb("cancel"), verb("cancel"))),
    "cancel, cancel of a step": (RUNNING, (verb("cancel"), verb("cancel step", "s0"))),
    "cancel, pause": (RUNNING, (verb("cancel"), verb("pause"))),
    "rescue, ack": (STARTED, (RESCUE, ack(0))),
    "rescue, cancel": (STARTED, (RESCUE, verb("cancel"))),
    "prune, rerun": (GONE, (PRUNE, verb("rerun"))),
    "prune of what is kept, rerun": (FAILED, (PRUNE, verb("rerun"))),
    "rerun, ack": (RUNNING, (verb("rerun"), ack(0))),
    "expire, ack": (OVERDUE, (verb("expire"), ack(0))),
    "expire, cancel": (OVERDUE, (verb("expire"), verb("cancel"))),
    "expire, retry": (
        scene(
            started=(0, 1), before=[one("overdue", _overdue), ack(0, "discarded"), ack(1)], dag=DIAMOND[:4]
        ),
        (verb("expire"), verb("retry")),
    ),
    "Oban's cancel, ack": (RUNNING, (oban("cancel_many", 2, 1, 0), ack(0))),
    "Oban's cancel of a held step, ack": (RUNNING, (oban("cancel", 4), ack(0))),
    "Oban's cancel, cancel": (RUNNING, (oban("cancel_many", 3, 0), verb("cancel"))),
    "Oban's delete, ack": (RUNNING, (oban("delete", 2), ack(0))),
    "Oban's retry, retry": (FAILED, (oban("retry", 0), verb("retry"))),
    "Oban's retry, Oban's retry": (FAILED, (oban("retry", 0), oban("retry", 0))),
    "Oban's retry of a held step, ack": (RUNNING, (oban("retry", 2), ack(0))),
    "Oban's retry, resume": (scene(before=[verb("pause")]), (oban("retry", 0), verb("resume"))),
    "claim, cancel": (READY, (CLAIM, verb("cancel"))),
    "claim, pause": (READY, (CLAIM, verb("pause"))),
}

# What each of a pair may be stopped at.
HELD = ("run", "0", "2")

TRIPLES: dict[str, tuple[Callable[[Database], Awaitable[Scene]], tuple[Act, Act, Act]]] = {
    "ack, ack, cancel": (RUNNING, (ack(0), ack(1), verb("cancel"))),
    "ack, pause, resume": (RUNNING, (ack(0), verb("pause"), verb("resume"))),
    "retry, cancel, claim": (CANCELLED_READY, (verb("retry"), verb("cancel"), CLAIM)),
    "retry, pause, claim": (CANCELLED_READY, (verb("retry"), verb("pause"), CLAIM)),
    "retry, prune, rerun": (FAILED, (verb("retry"), PRUNE, verb("rerun"))),
}


@pytest.fixture
async def stage(baton_dsn: str) -> AsyncIterator[Stage]:
    async with Database.opened(baton_dsn) as db:
        yield Stage(db, [await db.session() for _ in range(4)])


async def serially(
    stage: Stage, make: Callable[[Database], Awaitable[Scene]], acts: Sequence[Act]
) -> set[str]:
    """What the operations may come to: one after the other, in every order."""
    return {str(await stage.play(make, acts, order)) for order in serial(acts)}


async def explore(
    stage: Stage,
    make: Callable[[Database], Awaitable[Scene]],
    acts: Sequence[Act],
    expected: set[str],
    held: Sequence[str] = (),
) -> None:
    """Play every schedule, also with a row held from the beginning; each must come to what is expected."""
    for order in schedules(acts):
        found = str(await stage.play(make, acts, order))
        assert found in expected, "\n".join([f"{[acts[place].name for place in order]}:", found, *expected])
    for what, order, rest in itertools.product(held, itertools.permutations(range(len(acts))), _after(acts)):
        # All begin while the row is held; from there on, they end in every order.
        schedule = (len(acts), *order, *rest)
        answers, *words = await stage.play(make, [*acts, hold(what)], schedule)
        found = str((answers[:-1], *words))
        assert found in expected, "\n".join([f"{what} held, {schedule}:", found, *expected])


def _after(acts: Sequence[Act]) -> list[tuple[int, ...]]:
    """The release of the row that is held, before, between and after the commits."""
    places = range(len(acts))
    return [
        (*order[:at], len(acts), *order[at:])
        for order in itertools.permutations(places)
        for at in range(len(acts) + 1)
    ]


@pytest.mark.parametrize("pair", PAIRS)
async def test_two_transactions_come_to_what_they_come_to_one_after_the_other(
    stage: Stage, pair: str
) -> None:
    make, acts = PAIRS[pair]
    await explore(stage, make, acts, await serially(stage, make, acts), HELD)


@pytest.mark.slow
@pytest.mark.parametrize("triple", TRIPLES)
async def test_three_transactions_come_to_what_they_come_to_one_after_the_other(
    stage: Stage, triple: str
) -> None:
    make, acts = TRIPLES[triple]
    await explore(stage, make, acts, await serially(stage, make, acts))


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ("ack_unfenced", "the same ack twice"),
        ("cancel_forgets_held", "ack, cancel"),
        ("lock_jobs_run_first", "ack, cancel"),
        ("pause_of_what_is_released", "ack, pause"),
        ("prune_without_looking", "retry, prune"),
        ("retry_same_generation", "retry, cancel"),
        ("settle_by_looking", "the last two of a fan-in"),
        ("take_jobs_waiting", "Oban's cancel of a held step, ack"),
    ],
)
async def test_the_schedules_catch_a_broken_function(stage: Stage, broken: str, where: str) -> None:
    make, acts = PAIRS[where]
    expected = await serially(stage, make, acts)
    await stage.db.install(broken)
    with pytest.raises((AssertionError, DatabaseError)):
        await explore(stage, make, acts, expected, HELD)
