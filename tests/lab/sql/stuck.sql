-- stuck: runs, steps and jobs that have not come to their end, with what they wait for.
SELECT workflow.id, step.name, step.state || ' step waiting on ' || step.waiting_on || ', ' || coalesce(job.state::text, 'no') || ' job '
       || step.job_id || ', attempt ' || coalesce(job.attempt, 0) || ', by ' || coalesce(job.attempted_by::text, 'nobody')
       || ', scheduled ' || coalesce(job.scheduled_at::text, 'never') || CASE WHEN step.owed THEN ', owed' ELSE '' END
       || CASE WHEN workflow.paused_at IS NOT NULL THEN ', paused' ELSE '' END
       || CASE WHEN step.cancel_requested_at IS NOT NULL THEN ', cancel requested' ELSE '' END || ', meta ' || coalesce(job.meta::text, '')
FROM workflows AS workflow
JOIN workflow_nodes AS step ON step.workflow_id = workflow.id AND step.state IN ('held', 'released')
LEFT JOIN oban_jobs AS job ON job.id = step.job_id
WHERE workflow.finished_at IS NULL
UNION ALL
SELECT NULL, 'job ' || job.id, job.state || ' job of ' || job.worker || ', attempt ' || job.attempt || ', by '
       || coalesce(job.attempted_by::text, 'nobody') || ', scheduled ' || job.scheduled_at
FROM oban_jobs AS job
WHERE job.state NOT IN ('completed', 'cancelled', 'discarded')
  AND NOT EXISTS (SELECT FROM workflow_nodes AS step WHERE step.job_id = job.id AND step.state IN ('held', 'released'))
UNION ALL
SELECT NULL, 'plain job ' || plain.job_id, 'is ' || coalesce(job.state::text, 'gone')
FROM lab.plain AS plain LEFT JOIN oban_jobs AS job ON job.id = plain.job_id
WHERE job.state IS DISTINCT FROM 'completed' AND (job.id IS NULL OR job.state IN ('cancelled', 'discarded'))
