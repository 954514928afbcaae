-- S17 attempts: more attempts than there may be, or a step that completed without one.
SELECT step.workflow_id, step.name, 'attempt ' || step.attempt || ' of ' || coalesce(job.max_attempts::text, 'unknown')
FROM workflow_nodes AS step LEFT JOIN oban_jobs AS job ON job.id = step.job_id
WHERE step.attempt > job.max_attempts OR (step.state = 'completed' AND step.job_id > 0 AND coalesce(step.attempt, 0) < 1)
UNION ALL
SELECT NULL, job.id::text, 'job ' || job.id || ' is at attempt ' || job.attempt || ' of ' || job.max_attempts
FROM oban_jobs AS job WHERE job.attempt > job.max_attempts
