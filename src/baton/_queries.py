"""Oban's inserts of jobs in one statement, on Oban's own connection or a caller's. Part of the seam to Oban."""

from collections.abc import Sequence
from typing import Any

from oban._query import Query, unwrap_connection
from oban.job import Job
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from baton import _store
from baton._engine import naive_utc

# So many jobs to a statement: their arguments must fit into one message of the protocol.
_BATCH = 5_000


async def insert_jobs(query: Query, jobs: list[Job], conn: Any = None) -> list[Job]:
    """What Oban's insert does, at one round trip instead of one a job: the same rows, and what the database set in each job.

    All of them or none, unless the caller's connection commits by itself.
    """
    if conn is not None:
        return await _insert(query, jobs, await unwrap_connection(conn))
    async with query.connection() as own:
        return await _insert(query, jobs, own)


async def _insert(query: Query, jobs: list[Job], conn: Any) -> list[Job]:
    if isinstance(conn, AsyncConnection | AsyncCursor):
        # A caller's may make dicts of its rows.
        conn = conn if isinstance(conn, AsyncConnection) else conn.connection
        conn = conn.cursor(row_factory=tuple_row)
    for start in range(0, len(jobs), _BATCH):
        batch = jobs[start : start + _BATCH]
        result = await conn.execute(_store.load("insert_jobs", query._prefix), _columns(batch))
        rows = await result.fetchall()
        for job, row in zip(batch, rows, strict=True):
            job.id, job.inserted_at, job.queue, job.scheduled_at, job.state = row
    return jobs


def _columns(jobs: Sequence[Job]) -> dict[str, list[Any]]:
    return {
        "args": [Jsonb(job.args) for job in jobs],
        "meta": [Jsonb(job.meta) for job in jobs],
        "tags": [Jsonb(job.tags) for job in jobs],
        "workers": [job.worker for job in jobs],
        "queues": [job.queue for job in jobs],
        "states": [str(job.state) for job in jobs],
        "max_attempts": [job.max_attempts for job in jobs],
        "priorities": [job.priority for job in jobs],
        "inserted_at": [job.inserted_at and naive_utc(job.inserted_at) for job in jobs],
        "scheduled_at": [job.scheduled_at and naive_utc(job.scheduled_at) for job in jobs],
    }
