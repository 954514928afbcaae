-- steps: what is said of a step, between SELECT and WHERE. A settled step's facts are its own; a live one's are its job's. Progress is
-- that of the present attempt, or of the one it will have again: a snooze takes its number back. Calls of models are those of all attempts.
  step.name,
  step.deps,
  step.job_id,
  -- A released step's job is suspended while its run is paused, or for a moment.
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
  step.cancel_requested_at,
  step.position,
  -- Whoever may write a job may have written anything there.
  CASE WHEN jsonb_typeof(job.meta -> 'snoozed') = 'number'
       THEN least(greatest(trunc((job.meta ->> 'snoozed')::numeric), 0), 2147483647)::integer ELSE 0 END AS snoozed,
  progress.done,
  progress.total,
  progress.message,
  progress.updated_at AS progress_at,
  coalesce(progress.chunks, 0) AS chunks,
  used.*
FROM /* schema */workflow_nodes AS step
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
LEFT JOIN /* schema */workflow_progress AS progress
  ON progress.step_id = step.id AND progress.workflow_id = step.workflow_id AND progress.attempt >= coalesce(step.attempt, job.attempt, 0)
LEFT JOIN LATERAL (
  SELECT
/* totals */
  FROM /* schema */workflow_step_stats AS stat
  WHERE stat.workflow_id = step.workflow_id AND stat.step_id = step.id
    -- Asked once, by index: where no model was called, nothing is looked up for each step.
    AND (SELECT any_stat.inserted_at FROM /* schema */workflow_step_stats AS any_stat
         ORDER BY any_stat.inserted_at DESC LIMIT 1) IS NOT NULL
) AS used ON true
