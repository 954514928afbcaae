-- S6 pairing: a step and its job do not go together: a held one's waits, a released one's lives, a settled one's is done with.
-- A job that is owed follows at the next sweep. A job retried by Oban itself after its step had settled runs again.
SELECT step.workflow_id, step.name, step.state || ' step, ' || coalesce(job.state::text, 'no') || ' job'
FROM workflow_nodes AS step
JOIN workflows AS workflow ON workflow.id = step.workflow_id
LEFT JOIN oban_jobs AS job ON job.id = step.job_id
WHERE NOT step.owed AND CASE
  WHEN step.state = 'held' THEN job.state IS DISTINCT FROM 'suspended'
  WHEN step.state = 'released' AND workflow.paused_at IS NOT NULL THEN job.state IS NULL OR job.state NOT IN ('suspended', 'executing')
  WHEN step.state = 'released' THEN job.state IS NULL OR job.state NOT IN ('available', 'scheduled', 'retryable', 'executing')
  ELSE job.state NOT IN ('completed', 'cancelled', 'discarded') AND NOT EXISTS (
    SELECT FROM lab.actions AS action WHERE action.run = step.workflow_id AND action.what = 'oban_retry') END
