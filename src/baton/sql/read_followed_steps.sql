-- read_followed_steps: steps as read_steps gives them, each with its id and a mark that is another one whenever a row
-- it is read from was changed. Params: ids bigint[]. In no order; an id that there is not gives nothing.
SELECT
  step.id AS step_id,
  step.workflow_id,
  concat_ws(' ', step.xmin, job.xmin) AS mark,
  step.name,
  step.deps,
  step.job_id,
  CASE WHEN step.state <> 'released' THEN step.state
       WHEN job.state = 'suspended' THEN CASE WHEN job.scheduled_at > timezone('UTC', now()) THEN 'scheduled' ELSE 'available' END
       ELSE coalesce(job.state::text, 'cancelled') END AS state,
  step.function,
  coalesce(job.queue, '') AS queue,
  coalesce(step.attempt, job.attempt, 0) AS attempt,
  coalesce(job.max_attempts, 0) AS max_attempts,
  step.waiting_on,
  step.result IS NOT NULL AS has_result,
  CASE WHEN step.settled_at IS NULL THEN job.errors -> -1 ->> 'error' ELSE step.error END AS error,
  job.scheduled_at AT TIME ZONE 'UTC' AS scheduled_at,
  coalesce(step.started_at, job.attempted_at AT TIME ZONE 'UTC') AS started_at,
  step.settled_at,
  step.runs_on,
  step.cancel_requested_at
FROM /* schema */workflow_nodes AS step
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
WHERE step.id = ANY(%(ids)s::bigint[])
