-- read_obstacles: what stands between steps of a run and their end, by the columns that the claim, the release and the rescue look at.
-- Params: id; names text[], null for the unsettled steps, those that could run first; limit, steps at most; live, seconds that a
-- producer may be silent and count, unless it says otherwise in its row. Returns a row per step. Counts stop at 1,000, names of
-- dependencies at 50.
WITH chosen AS (
  SELECT step.id, step.workflow_id, step.name, step.position, step.job_id, step.state, step.waiting_on, step.owed, step.attempt,
         step.error, step.settled_at, step.cancel_requested_at, step.cancel_reason
  FROM /* schema */workflow_nodes AS step
  WHERE step.workflow_id = %(id)s
    AND CASE WHEN %(names)s::text[] IS NULL THEN step.state IN ('held', 'released') ELSE step.name = ANY(%(names)s::text[]) END
  ORDER BY step.state = 'held', step.position LIMIT %(limit)s
), producers AS (
  SELECT producer.queue, producer.uuid::text AS uuid, producer.updated_at, silence.seconds, producer.meta -> 'paused' = 'true' AS paused,
         CASE jsonb_typeof(producer.meta -> 'local_limit') WHEN 'number' THEN (producer.meta ->> 'local_limit')::numeric::bigint
              ELSE 0 END AS room
  FROM /* schema */oban_producers AS producer
  CROSS JOIN LATERAL (SELECT coalesce((producer.meta #>> '{baton,rescue_after}')::double precision, %(live)s) AS seconds) AS silence
), lanes AS (
  SELECT queue, count(*) AS workers, count(*) FILTER (WHERE paused) AS paused, coalesce(sum(room) FILTER (WHERE NOT paused), 0)::bigint AS room,
         array_agg(uuid) FILTER (WHERE NOT paused) AS uuids
  FROM producers WHERE updated_at > timezone('UTC', clock_timestamp()) - make_interval(secs => seconds) GROUP BY queue
)
SELECT
  step.name AS step,
  step.state AS settles,
  step.owed,
  step.waiting_on,
  ARRAY(SELECT dependency.name FROM /* schema */workflow_edges AS edge
        JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id
        WHERE edge.dependent_id = step.id AND step.state = 'held' AND dependency.state IN ('held', 'released')
        ORDER BY dependency.position LIMIT 50) AS waits_for,
  step.settled_at,
  step.cancel_requested_at,
  step.cancel_reason,
  right(CASE WHEN step.settled_at IS NULL THEN job.errors -> -1 ->> 'error' ELSE step.error END, 2000) AS error,
  workflow.paused_at,
  workflow.paused_for IS NOT NULL AS paused_for_budget,
  budget.key AS budget_key,
  budget.limit_usd + budget.added_usd AS budget_usd, budget.spent_usd, budget.reserved_usd,
  budget.limit_tokens + budget.added_tokens AS budget_tokens, budget.spent_tokens, budget.reserved_tokens,
  budget.limit_calls + budget.added_calls AS budget_calls, budget.spent_calls, budget.reserved_calls,
  budget.unpriced_calls,
  job.state::text AS job,
  coalesce(job.queue, '') AS queue,
  coalesce(step.attempt, job.attempt, 0) AS attempt,
  coalesce(job.max_attempts, 0) AS max_attempts,
  job.scheduled_at AT TIME ZONE 'UTC' AS scheduled_at,
  job.attempted_at AT TIME ZONE 'UTC' AS attempted_at,
  coalesce(job.attempted_by[1], '') AS node,
  left(job.meta ->> 'parked', 2000) AS parked,
  left(job.meta ->> 'no_room', 500) AS no_room,
  -- A claim is a sign of life, too.
  EXISTS (SELECT FROM producers WHERE producers.uuid = job.attempted_by[2]
            AND greatest(producers.updated_at, job.attempted_at) > timezone('UTC', clock_timestamp()) - make_interval(secs => producers.seconds)
  ) AS process_known,
  coalesce(lane.workers, 0) AS workers,
  coalesce(lane.paused, 0) AS paused_workers,
  coalesce(lane.room, 0) AS room,
  CASE WHEN job.state = 'available' THEN (SELECT count(*) FROM (
    SELECT FROM /* schema */oban_jobs AS running
    WHERE running.state = 'executing' AND running.queue = job.queue AND running.attempted_by[2] = ANY(lane.uuids) LIMIT 1000
  ) AS counted) ELSE 0 END AS executing,
  CASE WHEN job.state = 'available' THEN (SELECT count(*) FROM (
    SELECT FROM /* schema */oban_jobs AS earlier
    WHERE earlier.state = 'available' AND earlier.queue = job.queue AND earlier.attempt < earlier.max_attempts
      AND (earlier.priority, earlier.scheduled_at, earlier.id) < (job.priority, job.scheduled_at, job.id) LIMIT 1000
  ) AS counted) ELSE 0 END AS ahead,
  clock_timestamp() AS now
FROM chosen AS step
JOIN /* schema */workflows AS workflow ON workflow.id = step.workflow_id
LEFT JOIN /* schema */workflow_budgets AS budget ON budget.id = workflow.paused_for
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
LEFT JOIN lanes AS lane ON lane.queue = job.queue
ORDER BY step.state = 'held', step.position
