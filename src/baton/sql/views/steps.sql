-- baton_steps: one row per step. Public: columns are only ever added, at the end. Results and arguments are not among them.
-- Whoever may read the view needs no rights on the tables. It leaves no row out, so it need not be a barrier.
CREATE OR REPLACE VIEW /* schema */baton_steps AS
SELECT
  step.workflow_id,
  workflow.name AS workflow_name,
  step.id AS step_id,
  step.position,
  step.name,
  /* state */ AS state,
  step.function,
  job.queue,
  coalesce(step.attempt, job.attempt, 0)::integer AS attempt,
  job.max_attempts::integer AS max_attempts,
  step.waiting_on,
  step.runs_on,
  step.result IS NOT NULL AS has_result,
  CASE WHEN step.settled_at IS NULL THEN job.errors -> -1 ->> 'error' ELSE step.error END AS error,
  job.scheduled_at AT TIME ZONE 'UTC' AS scheduled_at,
  coalesce(step.started_at, job.attempted_at AT TIME ZONE 'UTC') AS started_at,
  step.settled_at,
  extract(epoch FROM coalesce(step.settled_at, CASE WHEN job.state = 'executing' THEN now() END)
                     - coalesce(step.started_at, job.attempted_at AT TIME ZONE 'UTC'))::double precision AS duration_seconds,
  -- Since it could run: its time had come, and its last dependency had settled.
  CASE WHEN job.state <> 'suspended' THEN greatest(extract(epoch FROM
    CASE WHEN job.state IN ('available', 'scheduled', 'retryable') THEN now()
         ELSE coalesce(step.started_at, job.attempted_at AT TIME ZONE 'UTC') END
    - greatest(job.scheduled_at AT TIME ZONE 'UTC', (
        SELECT max(dependency.settled_at) FROM /* schema */workflow_edges AS edge
        JOIN /* schema */workflow_nodes AS dependency ON dependency.id = edge.dependency_id WHERE edge.dependent_id = step.id
      )))::double precision, 0) END AS lag_seconds,
  job.attempted_by[1] AS node,
  step.job_id,
  progress.done AS progress_done,
  progress.total AS progress_total,
  progress.message AS progress_message
FROM /* schema */workflow_nodes AS step
-- Joined by what is unique, so that a query which asks for none of their columns does not read them.
LEFT JOIN /* schema */workflows AS workflow ON workflow.id = step.workflow_id
LEFT JOIN /* schema */oban_jobs AS job ON job.id = step.job_id
LEFT JOIN /* schema */workflow_progress AS progress
  ON progress.step_id = step.id AND progress.attempt >= coalesce(step.attempt, job.attempt, 0)
