"""What a run came to, in numbers, and the verdict."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.lab.invariants import Finding
from tests.lab.ledger import Direct
from tests.lab.schedule import BUILT_IN

GREEN, VIOLATION, INCONCLUSIVE = 0, 1, 2

_COUNTS = {
    "workflows": "SELECT count(*) FROM lab.flows WHERE run IS NOT NULL",
    "steps": "SELECT count(DISTINCT step_id) FROM lab.moves WHERE became NOT IN ('held', 'released')",
    "plain_jobs": "SELECT count(*) FROM lab.plain",
    "attempts": "SELECT count(*) FROM lab.attempts",
    "lost": """SELECT count(*) FROM lab.flows AS flow LEFT JOIN workflows AS workflow ON workflow.id = flow.run
        WHERE flow.run IS NOT NULL AND flow.pruned_at IS NULL AND workflow.finished_at IS NULL""",
    "settled_twice": """SELECT count(*) FROM (
        SELECT move.step_id FROM lab.moves AS move
        WHERE move.became IN ('completed', 'cancelled', 'discarded', 'skipped')
        GROUP BY move.run, move.step_id
        HAVING count(*) > 1 + (SELECT count(*) FROM lab.actions WHERE run = move.run AND what = 'retry')) AS twice""",
    "completions_missing": """SELECT count(*) FROM workflows AS workflow
        CROSS JOIN generate_series(1, workflow.generation) AS generation (number)
        WHERE workflow.finished_at IS NOT NULL AND NOT EXISTS (SELECT FROM workflow_completions AS completion
          WHERE completion.workflow_id = workflow.id AND completion.generation = generation.number)""",
    "completions_doubled": """SELECT count(*) FROM (SELECT FROM workflow_completions
        GROUP BY workflow_id, generation HAVING count(*) > 1) AS doubled""",
    # Attempts begun again after an end that should have sufficed, or after none, because a process was lost or thought so.
    "re_runs": """SELECT count(*) FROM lab.attempts AS again WHERE EXISTS (
        SELECT FROM lab.attempts AS before WHERE before.job_id = again.job_id AND before.attempted_at < again.attempted_at
          AND coalesce(before.phase, 'lost') IN ('lost', 'end') AND NOT EXISTS (
            SELECT FROM lab.actions AS action WHERE action.run = again.run AND action.what IN ('retry', 'oban_retry')))""",
    "overlaps": """SELECT count(*) FROM lab.attempts AS again JOIN lab.attempts AS before
        ON before.job_id = again.job_id AND before.attempted_at < again.attempted_at AND before.ended_at > again.started_at""",
    "deadlocks": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
}

# From the fault until each job that it hit runs again, or its step has settled, whichever comes first.
_RECOVERY = """
    SELECT extract(epoch FROM least(
      (SELECT min(attempt.started_at) FROM lab.attempts AS attempt
       WHERE attempt.job_id = hit.job AND attempt.attempted_at AT TIME ZONE 'UTC' > fault.began_at),
      (SELECT min(move.at) FROM lab.moves AS move WHERE move.job_id = hit.job AND move.at > fault.began_at)
    ) - fault.began_at)::float
    FROM lab.faults AS fault CROSS JOIN LATERAL unnest(fault.jobs) AS hit (job)
    WHERE fault.kind = ANY(%s)"""

# Jobs that the worker without their code had in its hands.
_MISSING_CODE = (
    "SELECT count(*) FROM oban_jobs WHERE args ->> 'step' = 'lab.rare' AND meta ?| '{snoozed,parked}'"
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from a fault until what it hit went on."""

    jobs: int
    p50: float | None
    p99: float | None
    longest: float | None


@dataclass(slots=True)
class Report:
    """Everything that is told about a run."""

    seed: int
    seconds: float
    rescue_after: float
    counts: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, Recovery] = field(default_factory=dict)
    looks: int = 0
    quiet_after: float = 0.0
    storm: dict[str, Any] = field(default_factory=dict)
    findings: dict[Finding, float] = field(default_factory=dict)
    stuck: list[Finding] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Faults that never hit their window."""
        return sorted(kind for kind, hits in self.hits.items() if not hits)

    @property
    def verdict(self) -> int:
        """0, 1 for a violation, 2 when a kind of fault never hit: then the run shows nothing about it."""
        if self.findings or self.stuck:
            return VIOLATION
        return INCONCLUSIVE if self.missed else GREEN

    def as_json(self) -> str:
        data = {
            **{
                name: getattr(self, name)
                for name in (
                    "seed",
                    "seconds",
                    "rescue_after",
                    "looks",
                    "quiet_after",
                    "storm",
                    "made",
                    "hits",
                    "missed",
                )
            },
            **self.counts,
            "verdict": ("green", "violation", "inconclusive")[self.verdict],
            "recovery": {kind: asdict(each) for kind, each in self.recovery.items()},
            "findings": [{"at": at, **finding.as_json()} for finding, at in self.findings.items()],
            "stuck": [finding.as_json() for finding in self.stuck],
            "timeline": self.timeline,
        }
        return json.dumps(data, indent=2)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.seconds:g} s, rescue after {self.rescue_after:g} s, {self.looks} looks at all of it",
            *(f"  {name.replace('_', ' '):<22}{count:>8}" for name, count in self.counts.items()),
            f"  {'stuck':<22}{len(self.stuck):>8}",
            f"  {'seconds until quiet':<22}{self.quiet_after:>8}",
            "faults: times made, what they hit",
            *(
                f"  {kind.replace('_', ' '):<22}{self.made.get(kind, hits):>8}{hits:>8}"
                for kind, hits in self.hits.items()
            ),
            "recovery in seconds: jobs hit, p50, p99, longest",
            *(
                f"  {kind:<22}{each.jobs:>8}"
                + "".join(
                    f"{'-' if value is None else f'{value:.2f}':>8}"
                    for value in (each.p50, each.p99, each.longest)
                )
                for kind, each in self.recovery.items()
            ),
        ]
        if self.storm:
            lines += [
                "deadlock storm",
                *(f"  {name.replace('_', ' '):<22}{value:>8}" for name, value in self.storm.items()),
            ]
        lines += [f"VIOLATION at {at:.1f} s: {finding}" for finding, at in list(self.findings.items())[:40]]
        lines += [f"STUCK {finding}" for finding in self.stuck[:40]]
        match self.verdict:
            case 1:
                lines.append(f"VIOLATION: {len(self.findings)} findings, {len(self.stuck)} rows stuck")
            case 2:
                lines.append(
                    f"INCONCLUSIVE: nothing was hit by {', '.join(self.missed)}; use another seed, or more seconds"
                )
            case _:
                lines.append("GREEN")
        return "\n".join(lines)


async def gather(report: Report, kinds: Sequence[str], direct: Direct) -> None:
    """Fill in what is read off the tables."""
    for name, statement in _COUNTS.items():
        report.counts[name] = int(await direct.value(statement) or 0)
    rows = await direct.rows("SELECT kind, count(*), sum(hits) FROM lab.faults GROUP BY kind")
    made = {kind: (count, int(hits)) for kind, count, hits in rows}
    report.made = {kind: made.get(kind, (0, 0))[0] for kind in kinds}
    report.hits = {kind: made.get(kind, (0, 0))[1] for kind in kinds}
    counted = dict(await direct.rows("SELECT kind, count(*) FROM lab.hits GROUP BY kind"))
    report.hits |= {kind: counted.get(kind, 0) for kind in BUILT_IN}
    report.hits["missing_code"] = int(await direct.value(_MISSING_CODE))
    for name, kinds in {"kill": ["kill"], "freeze": ["freeze"], "server": ["pg_restart", "pg_crash"]}.items():
        seconds = sorted(value for (value,) in await direct.rows(_RECOVERY, kinds) if value is not None)
        report.recovery[name] = Recovery(
            len(seconds), percentile(seconds, 50), percentile(seconds, 99), percentile(seconds, 100)
        )


def percentile(ordered: Sequence[float], share: int) -> float | None:
    """The smallest value that so many per cent do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else None
