"""What is done by the clock: run again what died, look for what must not be and repair it, prune.

Everything here is harmless when two do it at once, and when nobody does it for a while: the engine does not rest on it.
Telemetry goes through Oban's: the span `baton.plugin.sweep` around each turn, `baton.plugin.rescued` when jobs are run again,
`baton.workflow.failed` for each run that failed.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from oban import telemetry

from baton._engine import Engine
from baton._loop import Loop
from baton.telemetry import FAILED_STEPS, RESCUED, WORKFLOW_FAILED, has_default_logger, is_heard

logger = logging.getLogger("baton.engine")


# Told at a time, and how long they are nobody else's meanwhile.
_FAILURES = 100
_LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Settings of the maintenance, as `Baton` takes them."""

    interval: float
    rescue_after: float
    prune: bool
    prune_limit: int
    debug_log_max_age: float | None
    stats_max_age: float | None = None


class Maintenance:
    """The maintenance of one Baton: `rescue` each second, `sweep` each interval.

    Args:
        is_leader: Whether this node does what one node is enough for.
        job_max_age: Seconds that Oban's pruner keeps jobs: those of a younger run are certainly there.
    """

    def __init__(
        self, engine: Engine, upkeep: Upkeep, *, is_leader: Callable[[], bool], job_max_age: float
    ) -> None:
        self.loop = Loop("the maintenance of workflows", self.sweep, interval=upkeep.interval)
        self._engine = engine
        self._upkeep = upkeep
        self._is_leader = is_leader
        self._job_max_age = job_max_age
        self._rescued = 0

    async def rescue(self) -> None:
        """Run jobs again whose process is dead, and say which."""
        jobs = await self._engine.rescue(self._upkeep.rescue_after)
        if jobs:
            self._rescued += len(jobs)
            if not has_default_logger():
                logger.warning(
                    "jobs of dead processes are run again, or ended (%d): %s", len(jobs), jobs[:20]
                )
            telemetry.execute(RESCUED, {"count": len(jobs), "job_ids": jobs})

    async def rescue_all(self) -> int:
        """What Oban's lifeline does each minute; returns how many jobs it hit."""
        return await self._engine.rescue_all(self._upkeep.rescue_after)

    async def sweep(self) -> None:
        """One turn."""
        leader = self._is_leader()
        with telemetry.span("baton.plugin.sweep", {"leader": leader}) as context:
            missing = await self._missing_triggers()
            failed = await self._tell_failures(leader) if is_heard(WORKFLOW_FAILED) else 0
            repaired = await self._repair() if leader and not missing else 0
            if leader:
                await self._settle_budgets()
            pruned = await self._prune() if leader and self._upkeep.prune else Counter[str]()
            logs = await self._prune_debug_logs() if leader else 0
            stats = await self._prune_stats() if leader else 0
            context.add(
                {
                    "rescued": self._rescued,
                    "failed": failed,
                    "repaired": repaired,
                    "pruned": pruned["workflows"],
                    "deleted": dict(pruned),
                    "debug_logs": logs,
                    "stats": stats,
                    "missing_triggers": missing,
                }
            )
            self._rescued = 0

    async def _missing_triggers(self) -> list[str]:
        missing = await self._engine.missing_triggers()
        if missing:
            logger.error(
                "triggers on oban_jobs are missing or disabled: %s. Workflows no longer follow what others do to their "
                "jobs; run `baton migrate`",
                ", ".join(missing),
            )
        return missing

    async def _tell_failures(self, leader: bool) -> int:
        """Runs that failed, whoever ended them, since somebody first listened. They are kept like deliveries to a consumer, and
        forgotten when they were told, so whoever leads next goes on; returns how many."""
        await self._engine.add_consumer(WORKFLOW_FAILED)
        told = 0
        while leader:
            due = await self._engine.deliver(WORKFLOW_FAILED, [], _FAILURES, _LEASE_SECONDS)
            for text in due:
                run = orjson.loads(text)
                telemetry.execute(WORKFLOW_FAILED, _failure(run))
                await self._engine.delete_delivery(run["id"], run["tries"])
            told += len(due)
            if len(due) < _FAILURES:
                break
        return told

    async def _repair(self) -> int:
        drifted = await self._engine.reconcile()
        if drifted:
            logger.warning(
                "%d jobs had changed while no trigger was looking; their steps follow now", drifted
            )
        return drifted

    async def _settle_budgets(self) -> None:
        charged = await self._engine.charge_dead()
        if charged:
            logger.warning(
                "%d calls of models were under way in attempts that died; what was set aside for them counts as spent",
                charged,
            )
        # Whoever added to a budget may have died before this, or have done it in a transaction of its own.
        await self._engine.resume_funded()

    async def _prune(self) -> Counter[str]:
        """The oldest, up to the limit; what is left is for the next turn."""
        deleted: Counter[str] = Counter()
        room, after = self._upkeep.prune_limit, None
        while room > 0:
            done = await self._engine.prune(room, self._job_max_age, after)
            deleted.update(done.deleted)
            steps = max(done.deleted.get("workflow_nodes", 0), done.deleted.get("workflows", 0))
            room -= steps + done.deleted.get("workflow_streams", 0)
            if done.stopped_at in (None, after):
                break
            after = done.stopped_at
        return deleted

    async def _prune_debug_logs(self) -> int:
        age = self._upkeep.debug_log_max_age
        return 0 if age is None else await self._engine.prune_debug_logs(age, self._upkeep.prune_limit)

    async def _prune_stats(self) -> int:
        age = self._upkeep.stats_max_age
        return 0 if age is None else await self._engine.prune_stats(age, self._upkeep.prune_limit)


def _failure(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "workflow_id": run["workflow_id"],
        "workflow_label": run["workflow_label"],
        "generation": run["generation"],
        "failed_steps": run["failed_steps"][:FAILED_STEPS],
        "failed_count": len(run["failed_steps"]),
        "total_count": run["total_count"],
        "timestamp": datetime.fromisoformat(run["timestamp"]).astimezone(UTC),
    }
